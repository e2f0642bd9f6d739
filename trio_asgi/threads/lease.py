"""A lease: the right of a request to one worker thread.

It keeps the thread from its first call on: what sync code leaves there, such as a
transaction, is there for the next call, and for no other request. Everything here is
called in the Trio thread, unless a docstring says otherwise.
"""

from __future__ import annotations

import contextvars
import functools
import logging
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from .abandon import ABANDONED, describe_thread
from .call import Call
from .host import MOVED
from .loop import CallLoop
from .slot import Slot
from .worker import Detached

if TYPE_CHECKING:
    from collections.abc import Callable
    from queue import SimpleQueue

    from .loop import Pool
    from .protocols import Inbox, Loop
    from .worker import Worker

T = TypeVar("T")

logger = logging.getLogger("trio_asgi")


def lease_of(loop: Loop) -> Lease:
    """Return the lease whose thread runs the calls of a loop."""
    lease = loop.lease
    assert isinstance(lease, Lease)
    return lease


class Lease(CallLoop):
    """The right to one worker thread, which is taken at the first call.

    The task that makes it must `release` it; any task may call. After the release,
    calls of tasks that outlive the request go to the program's thread.
    """

    #: The application whose request or background task this is.
    owner: object = None
    #: Whether sync code with no async code above it calls asyncio's: `below_asyncio`.
    for_asyncio = False
    #: Whether the handler of its request has yet to begin: see `reserved_lease`.
    reserved = False
    #: Whether the thread ends with the lease, because code that was cut short may have
    #: left something in it. May also be set in the worker thread.
    retire = False
    #: Whether code, a middleware for example, keeps something in the thread until the
    #: lease ends. If so, `release_thread` ends the thread: no other lease may have it.
    unfinished = False
    #: Whether a cancelled task leaves a running call instead of waiting for it.
    impatient = False
    #: Whether a task has left a running call. Then the thread is not used again.
    abandoned = False
    #: Whether a task has left a call of one of the `others`.
    others_abandoned = False
    #: What calls raise after the release; None: they go to the program's thread.
    closed_error: str | None = None
    #: Called in the worker thread after a thread was taken, before its first call and
    #: in that call's context. If it raises, that call fails, but not the next.
    on_take: Callable[[], object] | None = None
    #: Called in the worker thread after each call. Must not raise.
    on_return: Callable[[], object] | None = None
    #: How many calls have begun to run, inner ones included. Worker thread.
    calls = 0
    #: Whether the thread goes back at its call's end, unless `retire`. Set in it.
    done = False
    # Whether nothing has run in the thread since it was taken.
    _fresh = True
    # The thread, from its first call on. Changes under the queue's lock.
    _worker: Worker | None = None

    def __init__(
        self,
        pool: Pool,
        inbox: Inbox | None = None,
        *,
        slots: trio.CapacityLimiter | None = None,
    ) -> None:
        """Take nothing yet.

        Args:
            pool: Where the thread is taken from, and the queue of calls.
            inbox: Leads to a thread that is not the pool's: nothing is taken then.
            slots: Limits how many leases hold a thread at the same time.
        """
        super().__init__(pool, None, inbox)
        #: Whether the thread is not the pool's.
        self.borrowed = inbox is not None
        #: Leases of calls that are not thread-sensitive, made under this one.
        self.others: set[Lease] = set()
        if slots is not None:
            self._slot = Slot(slots)

    @property
    def lease(self) -> Lease:
        """Itself: inner loops ask for it. Any thread."""
        return self

    @property
    def has_thread(self) -> bool:
        """Whether it holds a thread of the pool."""
        return self._worker is not None

    def _outer_loop(self) -> CallLoop:
        if self.closed_error is not None:
            raise RuntimeError(self.closed_error)
        return self.pool.program_lease()

    def thread_inbox(self) -> Inbox | None:
        """Return the thread's inbox; take one if needed. Any thread, with the lock."""
        if self._inbox is not None:
            return self._inbox
        if self._worker is None:
            self._worker = self.pool.take()
        return None if self._worker is None else self._worker.inbox

    def end_call(self, *, left: bool) -> SimpleQueue[Any] | None:
        """Give the thread back if `done`; return its inbox. Worker thread, locked."""
        worker = self._worker
        if worker is None:
            return None
        if self.done and not (left or worker.left or self.retire or self.pool.closed):
            self._worker, self._fresh, self.done = None, True, False
            self.pool.give_back(worker)
        return worker.inbox

    def run_call(self, fn: Callable[[], T]) -> T:
        """Call ``fn()`` between `on_take` and `on_return`. Worker thread, in a context.

        Raises:
            Exception: what `on_take` raises, and then ``fn`` is not called; or ``fn``.
        """
        try:
            self.begin_call()
            return fn()
        finally:
            # The lease's release may remove it meanwhile.
            if (on_return := self.on_return) is not None:
                on_return()

    def wrap_call(self, fn: Callable[[], T], place: str = "") -> Callable[[], T]:  # noqa: ARG002
        """Return the function to run for ``fn``; ``place`` says where, if not here."""
        return fn

    def begin_request(self) -> None:
        """Count the next call as the first: code around the handler may have called."""
        self.reserved = False
        self._fresh = True

    def begin_call(self) -> None:
        """Note that a call begins to run; raise what `on_take` does. Worker thread."""
        self.calls += 1
        if self._fresh:
            # Noted first: `on_take` may call sync code in turn.
            self._fresh = False
            if (on_take := self.on_take) is not None:
                on_take()

    def _end_turn(self) -> None:
        # No worker: the call never began, or the thread has given itself back.
        if not self.open or (self._worker is None and self._slot is not None):
            self._give_back()

    def abandon(self) -> None:
        """Note that a task has left the running call."""
        if not self.open and self.owner is not None and not self.abandoned:
            # Otherwise the code that releases the lease logs it.
            logger.error(ABANDONED, f"sync code in {self.describe_thread()}", "a task")
        self.abandoned = True
        if self._worker is not None:
            self._worker.left = True
        self.pool.replace_program_lease(self)

    def describe_thread(self) -> str:
        """Return the thread's name, and what runs in it, for the log."""
        worker = self._worker  # the thread may give itself back meanwhile
        thread = worker and describe_thread(worker.thread)
        return thread or "a thread that is not the pool's"

    @trio.lowlevel.enable_ki_protection
    def stop_waiting(self) -> None:
        """From now on, let cancelled tasks leave the calls that they wait for.

        The thread of such a call runs on alone, and ends when the call has returned.
        """
        self.impatient = True
        self.abandon_innermost()
        for other in self.others:
            other.stop_waiting()

    @trio.lowlevel.enable_ki_protection
    def release(self, last: Callable[[], object] | None = None) -> None:
        """Give the thread back when its running call has ended; end it if `retire`.

        Args:
            last: Called in the thread before, without being waited for. Errors are
                logged. Without a thread one is taken, even beyond the limit of slots;
                if the system can start none, it is called here.
        """
        self.open = False
        if last is None:
            # They may refer to objects that refer to the lease.
            self.on_take = self.on_return = None
        else:
            last = functools.partial(self.run_call, self.wrap_call(last))
            job = Detached(contextvars.copy_context(), last)
            try:
                with self.pool.queue.lock:
                    inbox = self.thread_inbox()
                    assert inbox is not None, "the Trio thread starts one, or fails"
                    inbox.put(job)
            except RuntimeError:  # the system can start no more threads
                job.run()
        call = self.running
        if call is None or self.abandoned:
            self._give_back()
        elif self.pool.queue.withdraw(call):
            call.move()

    @trio.lowlevel.enable_ki_protection
    async def release_thread(
        self, last: Callable[[], object], *, on_take: Callable[[], object]
    ) -> None:
        """Give the thread back for now; the next call takes one again.

        Waits for its turn, as a call does; without a thread of the pool it is only a
        checkpoint. If it is cancelled first, or ``last`` fails, the lease keeps the
        thread. If the lease is `unfinished`, the thread ends.

        Args:
            last: Called in the thread before it goes back.
            on_take: The lease's `on_take` from then on.

        Raises:
            trio.Cancelled: as `run_sync`.
            RuntimeError: sync code in the thread waits for the running task.
            Exception: whatever ``last`` raises.
        """
        self._check_not_waited_for()
        if not self.open or self._worker is None:
            await trio.lowlevel.checkpoint()
            return
        await trio.lowlevel.checkpoint_if_cancelled()
        context = contextvars.copy_context()
        call = Call(self, self.pool.queue, context, self.wrap_call(last))
        turns = await self._wait_turn()
        try:
            # Another task may have given it back meanwhile.
            if self.has_thread:
                self.running = call
                if await call.host() is not MOVED:
                    self.on_take, self._fresh = on_take, True
                    self._give_back(retire=self.unfinished)
        finally:
            self.running = None
            turns._pass_on()

    @trio.lowlevel.enable_ki_protection
    def release_idle_thread(
        self, last: Callable[[], object] | None, *, on_take: Callable[[], object]
    ) -> None:
        """Do the same at once, unless a call has its turn; log errors of ``last``."""
        if self.open and not self._has_turn and self._worker is not None:
            if last is not None:
                self._worker.inbox.put(Detached(contextvars.Context(), last))
            self.on_take, self._fresh = on_take, True
            self._give_back()

    def _give_back(self, *, retire: bool = False) -> None:
        if self._worker is None and self._slot is None:
            return
        free_slot = None if self._slot is None else self._slot.hand_over()
        queue = self.pool.queue
        with queue.lock:
            worker, self._worker = self._worker, None
            if worker is not None:
                if retire or self.retire or self.abandoned or self.pool.closed:
                    # The thread has its connections until it has ended.
                    worker.stop(then=free_slot)
                    return
                self.pool.give_back(worker)
        if free_slot is not None:
            free_slot()
        queue.dispatch()

"""A lease: the right of a request to one worker thread.

A lease takes its thread at its first call, and keeps it: what sync code leaves in the
thread, a transaction for example, is there for the next call, and for no other request.
Which threads there are is the business of `pool`.
Everything here is called in the Trio thread, but for what says "worker thread".
"""

from __future__ import annotations

import contextvars
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import trio

from .abandon import ABANDONED, describe_thread
from .call import Call
from .loop import CallLoop, CallPool, current_loop

if TYPE_CHECKING:
    from collections.abc import Callable

    from .call import Inbox, Loop
    from .worker import Worker

T = TypeVar("T")

logger = logging.getLogger("trio_asgi")


@dataclass(frozen=True)
class Detached:
    """A call that nobody waits for: what is left to do when a lease is given up."""

    context: contextvars.Context
    fn: Callable[[], object]
    #: Whose last call it is.
    lease: Lease

    def run(self) -> None:
        """Run it. Worker thread."""
        try:
            self.context.run(self.lease.run_call, self.fn)
        except BaseException:
            logger.exception("The last call of a lease failed: %r", self.fn)


class ThreadPool(CallPool, Protocol):
    """Where a lease takes its thread from; of the pool, what a lease needs."""

    #: Whether the run is at its end: then no thread is kept.
    closed: bool

    def take(self) -> Worker:
        """Return an idle worker, or a new one."""

    def give_back(self, worker: Worker, /) -> None:
        """Let the next lease have this worker."""

    def program_lease(self) -> CallLoop:
        """Return where sensitive code goes that belongs to no request."""

    def replace_program_lease(self, lease: Lease, /) -> None:
        """If a lease is the program's, let the next call have another thread."""


def lease_of(loop: Loop) -> Lease:
    """Return the lease whose thread runs the calls of a loop."""
    lease = loop.lease
    assert isinstance(lease, Lease)
    return lease


class Lease(CallLoop):
    """The right to one worker thread, which is taken at the first call.

    Owned by the task that made it and that must `release` it in the end; calls may come
    from any task. After the release they go to the program's thread, so that a task
    that outlives its request can still call sync code.
    """

    pool: ThreadPool
    #: The application whose request or background task this is.
    owner: object = None
    #: Whether sync code that has no async code above it calls asyncio's: see
    #: `below_asyncio`.
    for_asyncio = False
    #: Whether it waits for the handler of its request: see `reserved_lease`.
    reserved = False
    #: Whether the thread ends with the lease, because code that was cut short may have
    #: left something in it. May also be set in the worker thread.
    retire = False
    #: Whether code has begun something in the thread that it ends only with the lease,
    #: as a middleware does. Then the thread cannot be given to others before that, and
    #: `release_thread` ends it.
    unfinished = False

    def __init__(
        self,
        pool: ThreadPool,
        inbox: Inbox | None = None,
        *,
        slots: trio.CapacityLimiter | None = None,
    ) -> None:
        """Take nothing yet.

        Args:
            pool: Where the thread is taken from, and what limits the running calls.
            inbox: Leads to a thread that is not the pool's: nothing is taken then.
            slots: Limits how many leases hold a thread at the same time.
        """
        super().__init__(pool, parent=None)
        self._borrowed = inbox
        self._slots = slots
        #: The one that is taken: from before a thread is, until that is idle again or
        #: has ended.
        self._slot: object | None = None
        #: What is raised by calls after the release; None: they go to the program's
        #: thread.
        self.closed_error: str | None = None
        #: Whether a cancelled task leaves a running call instead of waiting for it.
        self.impatient = False
        #: Whether a task has left a running call. Then the thread is not used again.
        self.abandoned = False
        #: Leases of calls that are not thread-sensitive, made under this one.
        self.others: set[Lease] = set()
        #: Whether a task has left one of those calls.
        self.others_abandoned = False
        #: Called in the worker thread before the first call that runs there after a
        #: thread was taken, in that call's context. If it raises, the call fails with
        #: that, and the next one goes on without it.
        self.on_take: Callable[[], object] | None = None
        #: Called in the worker thread after each call. It must not raise.
        self.on_return: Callable[[], object] | None = None
        #: How many calls have begun to run in this lease's thread, inner ones included.
        #: Changes in the worker thread.
        self.calls = 0
        # Whether nothing has run in the thread since it was taken.
        self._fresh = True
        self._worker: Worker | None = None

    @property
    def lease(self) -> Lease:
        """Itself, which its inner loops ask for."""
        return self

    @property
    def has_thread(self) -> bool:
        """Whether a thread of the pool is held."""
        return self._worker is not None

    @property
    def borrowed(self) -> bool:
        """Whether the thread is not the pool's."""
        return self._borrowed is not None

    @property
    def _needs_slot(self) -> bool:
        return self._slots is not None and self._slot is None

    async def _wait_slot(self) -> None:
        assert self._slots is not None
        # Not on behalf of the lease, which can take another thread, and another slot,
        # while the one that it had is ending.
        slot = object()
        await self._slots.acquire_on_behalf_of(slot)
        self._slot = slot

    def _outer_loop(self) -> CallLoop:
        if self.closed_error is not None:
            raise RuntimeError(self.closed_error)
        return self.pool.program_lease()

    def _thread_inbox(self) -> Inbox:
        if self._borrowed is not None:
            return self._borrowed
        if self._worker is None:
            self._worker = self.pool.take()
        return self._worker.inbox

    def run_call(self, fn: Callable[[], T]) -> T:
        """Run a call, between `on_take` and `on_return`. Worker thread, in its context.

        Raises:
            Exception: what `on_take` raises, instead of running the call; or ``fn``.
        """
        try:
            self.begin_call()
            return fn()
        finally:
            if self.on_return is not None:
                self.on_return()

    def wrap_call(self, fn: Callable[[], T], place: str = "") -> Callable[[], T]:
        """Return what a call of ``fn`` runs; one that records calls returns another.

        Args:
            fn: Is to be called.
            place: Where, in words, if not in the lease's thread.
        """
        del place
        return fn

    def begin_request(self) -> None:
        """Have the next call count as the first one, which calls `on_take`.

        Code around the handler may have made some already.
        """
        self.reserved = False
        self._fresh = True

    def begin_call(self) -> None:
        """Note that a call begins to run; raise what `on_take` does. Worker thread."""
        self.calls += 1
        if self._fresh:
            # Noted first: what it calls may call sync code in turn.
            self._fresh = False
            if self.on_take is not None:
                self.on_take()

    def _pass_on(self) -> None:
        super()._pass_on()
        # Without a worker its call was cancelled, or no thread could be started.
        if not self.open or self._worker is None:
            self._give_back()

    def abandon(self) -> None:
        """Note that a task has left the running call."""
        if not self.open and self.owner is not None and not self.abandoned:
            # Else whoever releases it says so.
            logger.error(ABANDONED, f"sync code in {self.describe_thread()}", "a task")
        self.abandoned = True
        if self._worker is not None:
            self._worker.left = True
        self.pool.replace_program_lease(self)

    def describe_thread(self) -> str:
        """Return the thread's name, and what runs in it, for the log."""
        if self._worker is None:
            return "a thread that is not the pool's"
        return describe_thread(self._worker.thread)

    @trio.lowlevel.enable_ki_protection
    def stop_waiting(self) -> None:
        """From now on, let cancelled tasks leave the calls that they wait for.

        A thread that was left runs on by itself, and ends when it has finished.
        """
        self.impatient = True
        loop: CallLoop = self
        while loop.running is not None and loop.inner is not None:
            loop = loop.inner
        call = loop.running
        if call is not None:
            call.abandon_if_cancelled()
        for other in self.others:
            other.stop_waiting()

    @trio.lowlevel.enable_ki_protection
    def release(self, last: Callable[[], object] | None = None) -> None:
        """Give the thread back, when it has finished what it is running.

        If `retire` is set it ends then, and nobody else gets what was left in it.

        Args:
            last: Called in the thread before, without being waited for. Errors are
                logged. If there is no thread, one is taken, slot or no slot: nobody is
                there to wait for it.
        """
        self.open = False
        if last is None:
            # They may refer to what refers to the lease.
            self.on_take = self.on_return = None
        else:
            job = Detached(contextvars.copy_context(), self.wrap_call(last), self)
            self._thread_inbox().put(job)
        if self.running is None or self.abandoned:
            self._give_back()

    @trio.lowlevel.enable_ki_protection
    async def release_thread(
        self, last: Callable[[], object], *, on_take: Callable[[], object]
    ) -> None:
        """Give the thread back for now; the next call takes one again.

        Does nothing but a checkpoint if the lease has no thread of the pool. Else it
        waits for its turn, as a call does. If it is cancelled before, or if ``last``
        fails, the thread stays. If something is `unfinished` there, the thread ends.

        Args:
            last: Called in the thread before it goes back.
            on_take: What `on_take` is after that.

        Raises:
            trio.Cancelled: as `run_sync`.
            RuntimeError: sync code in the thread waits for the running task.
            Exception: whatever ``last`` raises.
        """
        self._check_not_waited_for()
        if not self.open or self._worker is None:
            await trio.lowlevel.checkpoint()
            return
        await self._turn.acquire()
        fn = self.wrap_call(last)
        call = Call(self, self.pool.wakeups, contextvars.copy_context(), fn)
        try:
            await self.pool.acquire_token(call)
        except BaseException:
            self._pass_on()
            raise
        self.running = call
        try:
            # Another task may have given it back meanwhile.
            if self._worker is not None:
                await call.host(self._worker.inbox)
                self.on_take, self._fresh = on_take, True
                self._give_back(retire=self.unfinished)
        finally:
            self._finish(call)

    @trio.lowlevel.enable_ki_protection
    def release_idle_thread(self, *, on_take: Callable[[], object]) -> None:
        """Do as `release_thread`, with nothing to call, if nothing runs in the thread.

        Nor if a call has its turn, and waits for a token: it counts on the slot.
        """
        idle = self._turn.value > 0
        if self.open and idle and self._worker is not None:
            self.on_take, self._fresh = on_take, True
            self._give_back()

    def _check_not_waited_for(self) -> None:
        """Raise RuntimeError if sync code in the thread waits for the running task."""
        loop = current_loop.get()
        while loop is not None and not loop.open:
            loop = loop.parent
        in_inner_loop = loop is not None and loop is not self and loop.lease is self
        if in_inner_loop or self._runs_call_that_waits():
            raise RuntimeError(
                "release_thread() was called where sync code waits for the running "
                "task, in async_to_sync() or trio.from_thread.run(). The thread is in "
                "the midst of that code and cannot be given away. Is the view below "
                "sync middleware? Make that async, or keep the thread."
            )

    def _give_back(self, *, retire: bool = False) -> None:
        worker, self._worker = self._worker, None
        slot, self._slot = self._slot, None

        def release_slot() -> None:
            if slot is not None:
                assert self._slots is not None
                self._slots.release_on_behalf_of(slot)

        if worker is not None:
            if retire or self.retire or self.abandoned or self.pool.closed:
                # Until the thread has ended it has its connections.
                worker.stop(then=release_slot)
                return
            self.pool.give_back(worker)
        release_slot()


class OneCallLease(Lease):
    """A lease that ends with its first call.

    It is waited for with the patience of the lease that the caller has.
    """

    @trio.lowlevel.enable_ki_protection
    async def run_sync(
        self, fn: Callable[[], T], *, context: contextvars.Context | None = None
    ) -> T:
        """Run the call, and end the lease; else as `CallLoop.run_sync`."""
        loop = current_loop.get()
        above = None if loop is None else lease_of(loop)
        if above is None or not above.open:
            above = Lease(self.pool)
        above.others.add(self)
        self.impatient = above.impatient
        try:
            fn = above.wrap_call(fn, "in another thread")
            return await super().run_sync(fn, context=context)
        finally:
            above.others.discard(self)
            above.others_abandoned |= self.abandoned
            self.release()

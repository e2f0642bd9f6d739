"""Calls from Trio tasks into worker threads, and back.

The task that makes a sync call waits for it, as with `trio.to_thread.run_sync`, and
meanwhile acts for the thread. `trio.from_thread` in the sync code acts on that task,
and so does `run_async`, the base of `async_to_sync`: the coroutine runs under the
cancel scopes of its caller, while the thread waits for it and runs the sync code that
the coroutine calls. Each such turn puts one more `CallLoop` on the thread's stack
(docs/design/threads.md has a diagram).

Everything here is called in the Trio thread, unless a docstring says otherwise.
"""

from __future__ import annotations

import contextvars
import threading
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import outcome
import trio

from .call import Call
from .host import MOVED
from .turns import Block, Turns
from .worker import Detached

if TYPE_CHECKING:
    from collections.abc import Callable

    from .call_queue import CallQueue
    from .protocols import Inbox, Owner
    from .slot import Slot
    from .worker import Worker

T = TypeVar("T")

#: The longest that a signal waits for its handler.
_SIGNAL_SECONDS = 0.2

#: Where thread-sensitive code of the running task goes: the innermost loop above it.
#: Set where a lease is made, and by `run_async` around its coroutine.
current_loop: contextvars.ContextVar[CallLoop | None] = contextvars.ContextVar(
    "trio_asgi.current_loop", default=None
)


async def switch_context(context: contextvars.Context) -> contextvars.Context:
    """Continue the running task in another context, shielded; return the one it had."""
    task = trio.lowlevel.current_task()
    outer, task.context = task.context, context
    # The task enters the new context when it is next scheduled.
    await trio.lowlevel.cancel_shielded_checkpoint()
    return outer


class Pool(Protocol):
    """What loops and leases need of the `WorkerPool`."""

    #: Whether the run is ending: then no thread is kept.
    closed: bool

    @property
    def queue(self) -> CallQueue:
        """Where calls wait for a place, and what guards the pool."""

    def take(self) -> Worker | None:
        """Return an idle worker, or in the Trio thread a new one. With the lock."""

    def give_back(self, worker: Worker, /) -> None:
        """Let the next lease have this worker. With the lock."""

    def program_lease(self) -> CallLoop:
        """Return the loop for sensitive code that belongs to no request."""

    def replace_program_lease(self, lease: CallLoop, /) -> None:
        """If this is the program's lease, give the program's next call a new one."""


class CallLoop(Turns):
    """A place where a worker thread waits for calls, and runs one at a time.

    Any task of the run may call. The calls run in the order in which they were made.
    During a `Block`, those of other tasks wait for its end.
    """

    #: False once the thread no longer waits here.
    open = True
    #: The call that runs in this loop, or waits in the queue.
    running: Call[Any] | None = None
    #: The loop of the coroutine that this call is waiting for, if any.
    inner: CallLoop | None = None
    #: What a lease needs to hold a thread, if that is limited.
    _slot: Slot | None = None

    def __init__(
        self, pool: Pool, parent: CallLoop | None, inbox: Inbox | None
    ) -> None:
        self.pool = pool
        #: Where calls go once this loop is closed; None if it is a lease.
        self.parent = parent
        # Not looked up when asked for: that would recurse once for each loop above.
        self._lease = None if parent is None else parent.lease
        #: Where the thread takes its calls from, and at last the outcome for `serve`.
        #: None if it is a worker of the pool.
        self._inbox = inbox

    @property
    def lease(self) -> Owner:
        """The lease whose thread this is. Any thread."""
        assert self._lease is not None, "a lease overrides this"
        return self._lease

    # Ctrl-C between the steps of a call would leave its turn and place taken.
    @trio.lowlevel.enable_ki_protection
    async def run_sync(
        self, fn: Callable[[], T], *, context: contextvars.Context | None = None
    ) -> T:
        """Run ``fn()`` in this loop's thread, in a context, and wait for it.

        Args:
            fn: A sync callable without arguments.
            context: What the call runs in; a copy of the caller's if None.

        Raises:
            trio.Cancelled: cancelled before the call has begun: it never runs. A
                running call is waited for.
            RuntimeError: the call would wait for itself.
            Exception: whatever ``fn`` raises.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.running is not None:
            self._check_deadlock()
        if context is None:
            context = contextvars.copy_context()
        if self.open:
            call = Call(self, self.pool.queue, context, self.lease.wrap_call(fn))
            turns: Turns = self
            if self._has_turn:
                turns = await self._wait_turn()
            else:
                self._has_turn = True
            try:
                if self._slot is not None and self.open:
                    await self._slot.acquire()
                self.running = call
                result = await call.host()
            finally:
                self.running = None
                turns._pass_on()
                if turns is not self:  # it is a block inside
                    self._end_turn()
            if result is not MOVED:
                return result
        self._check_block()
        return await self._outer_loop().run_sync(fn, context=context)

    def _pass_on(self) -> None:
        super()._pass_on()
        self._end_turn()

    def _end_turn(self) -> None:
        """Note that a call has ended, or a block: a lease may not need its thread."""

    @trio.lowlevel.enable_ki_protection
    async def begin_block(self) -> Block:
        """Wait for the turn, and keep it until `Block.end`.

        Raises:
            trio.Cancelled: cancelled before.
            RuntimeError: sync code in the thread waits for the running task.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.running is not None:
            self._check_deadlock()
        turns = await self._wait_turn()
        if self.open:
            return Block(turns)
        turns._pass_on()
        self._check_block()
        return await self._outer_loop().begin_block()

    def _check_block(self) -> None:
        """Raise RuntimeError if the running task's block has lost its thread."""
        if self.block is not None and self.block.has_running_task():
            raise RuntimeError(
                "The request has ended in which this transaction began, and it was "
                "rolled back. A task that outlives its request must be started with "
                "trio_asgi.start_soon(), which gives it its own connections."
            )

    def _runs_call_that_waits(self) -> bool:
        """Whether the call that runs here waits for the running task."""
        call = self.running
        return call is not None and call.waits_for(trio.lowlevel.current_task())

    def _check_not_waited_for(self) -> None:
        """Raise RuntimeError if sync code in the thread waits for the running task."""
        loop = current_loop.get()
        while loop is not None and not loop.open:
            loop = loop.parent
        below = loop is not None and loop is not self and loop.lease is self.lease
        if below or self._runs_call_that_waits():
            raise RuntimeError(
                "release_thread() was called where sync code waits for the running "
                "task, in async_to_sync() or trio.from_thread.run(). The thread is "
                "still running that code and cannot serve others. Is the view below "
                "sync middleware? Make that async, or keep the thread."
            )

    def _check_deadlock(self) -> None:
        # Below async_to_sync() the task may call: an inner loop is current there.
        if self._runs_call_that_waits():
            raise RuntimeError(
                "This sync call would wait for ever for a thread that is waiting for "
                "this task. Code run by trio.from_thread.run() cannot call sync code "
                "of the same request: use asgiref.sync.async_to_sync() instead. Tasks "
                "started below that must keep the context that they inherit."
            )

    def abandon_innermost(self) -> None:
        """Let the task of the innermost call go on if it was cancelled and waits."""
        loop = self
        while loop.running is not None and loop.inner is not None:
            loop = loop.inner
        if loop.running is not None:
            loop.running.abandon_if_cancelled()

    def _outer_loop(self) -> CallLoop:
        """Return where calls go once this loop is closed."""
        assert self.parent is not None, "a lease overrides this"
        return self.parent

    def thread_inbox(self) -> Inbox | None:
        """Return where the thread takes its calls from. Any thread, with the lock."""
        return self._inbox

    def end_call(self, *, left: bool) -> SimpleQueue[Any] | None:  # noqa: ARG002
        """Do nothing: the thread waits here. Worker thread, with the lock."""
        return None

    @property
    def has_thread(self) -> bool:
        """Whether it holds a thread of the pool."""
        return False

    def post(self, fn: Callable[[], object]) -> bool:
        """Have the thread call ``fn()`` after the call that it runs; do not wait.

        Errors are logged. Returns False if there is no thread.

        Raises:
            RuntimeError: the running task's block has lost its thread.
        """
        if not self.open:
            self._check_block()
            return self._outer_loop().post(fn)
        with self.pool.queue.lock:
            inbox = self.thread_inbox() if self.has_thread else self._inbox
            if not isinstance(inbox, SimpleQueue):
                return False
            inbox.put(Detached(contextvars.copy_context(), fn))
        return True

    async def close(self) -> None:
        """Take no more calls; return when the one that runs here has ended."""
        if self._has_turn:
            await self._park()
        self.open = False
        self._pass_on()


def serve(inbox: SimpleQueue[Any]) -> outcome.Outcome[Any]:
    """Run the calls that come in, until an outcome comes; return it. Any thread."""
    while True:
        job = _next_job(inbox)
        if isinstance(job, outcome.Outcome):
            try:
                return job
            finally:
                # An error's traceback holds this frame: leave no cycle behind.
                del job
        job.run()
        del job


def _next_job(inbox: SimpleQueue[Any]) -> Any:
    if threading.current_thread() is not threading.main_thread():
        return inbox.get()
    # Signal handlers run in the main thread. A signal that comes just before the thread
    # blocks does not wake it; on Windows, no signal does.
    while True:
        with suppress(Empty):
            return inbox.get(timeout=_SIGNAL_SECONDS)

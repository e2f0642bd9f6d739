"""Calls from Trio tasks into worker threads, and back.

The task that makes a sync call waits for it, as with `trio.to_thread.run_sync`, and
serves the thread meanwhile: `trio.from_thread` in the sync code acts on that very task,
and so does `run_async`, which `async_to_sync` is made of. Then the coroutine runs under
the cancel scopes of its caller, and the thread, which waits for it, runs the sync code
that the coroutine calls. Each such turn-about puts one more `CallLoop` on the thread's
stack:

    worker thread                         waiting task
    the lease's loop: run call 1     <──  lease.run_sync(call 1)
      run_async(afn): a second loop  ──>    run afn
        run call 2                   <──      second loop.run_sync(call 2)
        call 2's result              ──>      ...
        afn's result                 <──    afn has ended, its loop is closed
      call 1's result                ──>  returned

One such call is a `Call`. `lease` and `pool` say which thread it goes to. Everything
here is called in the Trio thread, but for what says "worker thread" or "any thread".
"""

from __future__ import annotations

import contextvars
import threading
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import trio

from .call import Call

if TYPE_CHECKING:
    from collections.abc import Callable

    import outcome

    from .call import Inbox, Owner
    from .wakeups import Wakeups

T = TypeVar("T")

#: How long a signal may wait for its handler, at most.
_SIGNAL_SECONDS = 0.2

#: Where thread-sensitive code goes from here: the innermost loop above the running
#: task. Set by whoever opens a lease, and by `run_async` around its coroutine.
current_loop: contextvars.ContextVar[CallLoop | None] = contextvars.ContextVar(
    "trio_asgi.current_loop", default=None
)


async def switch_context(context: contextvars.Context) -> contextvars.Context:
    """Have the running task go on in another context; return the one it had.

    No cancellation reaches this.
    """
    task = trio.lowlevel.current_task()
    outer, task.context = task.context, context
    # A task enters its new context when it is next switched to.
    await trio.lowlevel.cancel_shielded_checkpoint()
    return outer


@dataclass(frozen=True)
class Ended:
    """A coroutine of `run_async` has ended: its thread leaves the loop with this."""

    result: outcome.Outcome[Any]


class CallPool(Protocol):
    """What all calls of a Trio run share; of the pool, what a loop needs."""

    @property
    def wakeups(self) -> Wakeups:
        """How threads wake the tasks that wait for them."""

    async def acquire_token(self, call: Call[Any], /) -> None:
        """Wait until the call may run; a checkpoint only if it has to wait."""

    def release_token(self, call: Call[Any], /) -> None:
        """Note that the call does not run any more."""


class CallLoop:
    """A place where a worker thread waits for calls, and runs one at a time.

    Calls may come from any task of the run, and are run in the order of their asking.
    """

    def __init__(self, pool: CallPool, parent: CallLoop | None) -> None:
        self.pool = pool
        #: Where calls go once this loop is closed; None if it is a lease.
        self.parent = parent
        #: False once the thread no longer waits here.
        self.open = True
        #: The call that the thread runs in this loop.
        self.running: Call[Any] | None = None
        #: The loop of the coroutine that this call waits for just now, if any.
        self.inner: CallLoop | None = None
        #: Held by the task whose call this is, or is about to be.
        self._turn = trio.Semaphore(1)
        self._inbox: SimpleQueue[Any] = SimpleQueue()

    @property
    def lease(self) -> Owner:
        """The lease whose thread this is."""
        assert self.parent is not None, "a lease is its own"
        return self.parent.lease

    # Control-C between the steps of a call would leave its turn and token taken.
    @trio.lowlevel.enable_ki_protection
    async def run_sync(
        self, fn: Callable[[], T], *, context: contextvars.Context | None = None
    ) -> T:
        """Run ``fn()`` in this loop's thread, in a context, and wait for it.

        Args:
            fn: A sync callable without arguments.
            context: What the call runs in; a copy of the caller's if None.

        Raises:
            trio.Cancelled: if cancelled before the call got its turn and a token of the
                limit: then it never runs. Once running it is waited for.
            RuntimeError: if the call would wait for itself.
            Exception: whatever ``fn`` raises.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_deadlock()
        if context is None:
            context = contextvars.copy_context()
        call = Call(self, self.pool.wakeups, context, self.lease.wrap_call(fn))
        if not (self.open and await self._begin(call)):
            return await self._outer_loop().run_sync(fn, context=context)
        try:
            return await call.host(self._thread_inbox())
        finally:
            self._finish(call)

    async def _begin(self, call: Call[Any]) -> bool:
        """Wait for the call's turn and for a token; False if the loop was closed."""
        # Tried at once first: the acquire methods switch tasks even if they need not.
        try:
            self._turn.acquire_nowait()
        except trio.WouldBlock:
            await self._turn.acquire()
        try:
            if self._needs_slot:
                await self._wait_slot()
            await self.pool.acquire_token(call)
        except BaseException:
            self._pass_on()
            raise
        self.running = call
        if not self.open:
            self._finish(call)
            return False
        return True

    def _finish(self, call: Call[Any]) -> None:
        """Give turn and token to the next."""
        self.running = None
        self.pool.release_token(call)
        self._pass_on()

    def _pass_on(self) -> None:
        """Give the turn to the next."""
        self._turn.release()

    def _runs_call_that_waits(self) -> bool:
        """Whether the call that runs here waits for the running task."""
        call = self.running
        return call is not None and call.waits_for(trio.lowlevel.current_task())

    def _check_deadlock(self) -> None:
        # The task that the thread waits for must not wait for the thread in turn.
        # Below async_to_sync it does not: there a loop further in is the current one.
        if self._runs_call_that_waits():
            raise RuntimeError(
                "This sync call would wait for ever for a thread that waits for this "
                "very task. In code run by trio.from_thread.run(), sync code of the "
                "same request cannot be called: use asgiref.sync.async_to_sync(). "
                "Below that, start tasks with the context that they inherit."
            )

    def _outer_loop(self) -> CallLoop:
        """Return where calls go once this loop is closed."""
        assert self.parent is not None, "a lease has its own answer"
        return self.parent

    @property
    def _needs_slot(self) -> bool:
        """Whether a call waits for `_wait_slot` before it waits for a token."""
        return False

    async def _wait_slot(self) -> None:
        """Wait until a thread may be taken."""
        raise NotImplementedError

    def _thread_inbox(self) -> Inbox:
        return self._inbox

    async def close(self) -> None:
        """Take no more calls; return when the one that runs here has ended."""
        await self._turn.acquire()
        self.open = False
        self._turn.release()

    def end(self, result: outcome.Outcome[Any]) -> None:
        """Send the thread out of the closed loop."""
        self._inbox.put(Ended(result))

    def serve(self) -> outcome.Outcome[Any]:
        """Run the calls that come until the loop ends. Worker thread."""
        return serve(self._inbox)


def serve(inbox: SimpleQueue[Any]) -> outcome.Outcome[Any]:
    """Run the calls that come in, until one says that it was the last. Any thread."""
    while True:
        job = _next_job(inbox)
        if isinstance(job, Ended):
            try:
                return job.result
            finally:
                # An error's traceback holds this frame: leave no cycle behind.
                del job
        job.run()
        del job


def _next_job(inbox: SimpleQueue[Any]) -> Any:
    if threading.current_thread() is not threading.main_thread():
        return inbox.get()
    # Handlers of signals run in the main thread. A signal that comes just before the
    # thread blocks does not wake it; on Windows, none does.
    while True:
        with suppress(Empty):
            return inbox.get(timeout=_SIGNAL_SECONDS)

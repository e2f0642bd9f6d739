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

Which thread that is, and who may have it, is the business of `_worker`. Everything here
is called in the Trio thread, but for what says "worker thread" or "any thread".
"""

from __future__ import annotations

import contextvars
import os
import threading
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import outcome
import trio

# The one use of Trio's private names: they are what makes `trio.from_thread` work in a
# thread that Trio did not start. A thread of Trio's own cache can neither be kept for
# one request nor tell when it ends, so the threads have to be ours (docs/design).
from trio._threads import PARENT_TASK_DATA, Run, RunSync

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ._worker import Lease, WorkerPool

T = TypeVar("T")

#: Where thread-sensitive code goes from here: the innermost loop above the running
#: task. Set by whoever opens a lease, and by `run_async` around its coroutine.
current_loop: contextvars.ContextVar[CallLoop | None] = contextvars.ContextVar(
    "trio_asgi.current_loop", default=None
)


class _ThreadState(threading.local):
    #: The call that this thread runs, if it is one of the workers.
    call: Call[Any] | None = None


_thread_state = _ThreadState()


class Call(Generic[T]):
    """One sync call, made by a task that waits for it.

    Made and hosted by that task, run by the worker. A cancellation of the task is noted
    for `trio.from_thread.check_cancelled`, and otherwise waits for the call's end,
    unless the lease is impatient: then the task leaves, and the thread goes on alone.

    Guarantees: a message that the thread could post reaches the task, which does not
    leave before; after the task has left, posting fails.
    """

    def __init__(
        self, loop: CallLoop, context: contextvars.Context, fn: Callable[[], T]
    ) -> None:
        self.loop = loop
        #: The loop of the coroutine that the thread waits for just now, if any.
        self.inner: CallLoop | None = None
        self._fn: Callable[[], T] | None = fn
        self._context = context
        self._token = trio.lowlevel.current_trio_token()
        # Lists of one element, which is how Trio shares them with its threads.
        #: The task, until it leaves the call. Changes under the lock.
        self._task: list[trio.lowlevel.Task | None] = [trio.lowlevel.current_task()]
        self._raise_cancel: list[Callable[[], Any] | None] = [None]
        #: Whether the task is in `host`'s wait, and not at work for the thread.
        self._waiting = False
        #: Whether a message is on its way to the task. Set under the lock.
        self._posted = False
        self._lock = threading.Lock()

    @property
    def task(self) -> trio.lowlevel.Task | None:
        """The task that waits for the call, until it leaves it."""
        return self._task[0]

    @trio.lowlevel.enable_ki_protection
    async def host(self, inbox: SimpleQueue[Any]) -> T:
        """Hand the call to the thread; do what the thread asks for until it ends."""

        def abort(raise_cancel: Callable[[], Any]) -> trio.lowlevel.Abort:
            self._raise_cancel[0] = raise_cancel
            if self.loop.lease.impatient and self._leave():
                return trio.lowlevel.Abort.SUCCEEDED
            return trio.lowlevel.Abort.FAILED

        inbox.put(self)
        while True:
            self._waiting = True
            message = await trio.lowlevel.wait_task_rescheduled(abort)
            self._waiting = self._posted = False
            try:
                if isinstance(message, outcome.Outcome):
                    result: T = message.unwrap()
                    return result
                if isinstance(message, RunSync):
                    message.run_sync()
                else:
                    assert isinstance(message, (Run, Reentry))
                    await message.run()
            finally:
                # An error's traceback holds this frame: leave no cycle behind.
                del message

    def leave_if_cancelled(self) -> None:
        """Let the task go on at once if it was cancelled while it waits here."""
        task, raise_cancel = self._task[0], self._raise_cancel[0]
        if raise_cancel is not None and self._leave():
            assert task is not None
            trio.lowlevel.reschedule(task, outcome.capture(raise_cancel))

    def _leave(self) -> bool:
        """Note that the task waits no more; False if it is wanted first."""
        with self._lock:
            # Until a message has arrived and was acted on the task has to stay. When
            # it comes back to wait, `abort` is called again.
            if self._posted or not self._waiting:
                return False
            self._waiting = False
            self._task[0] = None
        self.loop.lease.abandoned = True
        return True

    def post(self, deliver: Callable[..., object], *args: object) -> None:
        """Have ``deliver`` called in the Trio thread, to wake the task. Worker thread.

        Raises:
            trio.RunFinishedError: nobody waits for this call any more.
        """
        with self._lock:
            if self._task[0] is None:
                raise trio.RunFinishedError("nobody waits for this thread any more")
            self._posted = True
            self._token.run_sync_soon(deliver, *args)

    def tell(self, message: object) -> None:
        """Wake the task with a message. Worker thread; raises what `post` raises."""
        self.post(self._wake, message)

    def _wake(self, message: object) -> None:
        task = self._task[0]
        assert task is not None
        trio.lowlevel.reschedule(task, outcome.Value(message))

    def run(self) -> None:
        """Run the call and tell the task. Worker thread."""
        fn, self._fn = self._fn, None
        assert fn is not None
        outer, _thread_state.call = _thread_state.call, self
        self._point_trio_here()
        result = outcome.capture(self._context.run, fn)
        _thread_state.call = outer
        if outer is None:
            vars(PARENT_TASK_DATA).clear()
        else:
            outer._point_trio_here()
        # What the call refers to must be gone before the task goes on.
        del fn, outer
        try:
            self.tell(result)
        except trio.RunFinishedError:
            pass  # The task has left, which was logged then.
        finally:
            # An error's traceback holds this frame: leave no cycle behind.
            del result

    def _point_trio_here(self) -> None:
        """Let `trio.from_thread` act on this call's task. Worker thread."""
        PARENT_TASK_DATA.token = cast("trio.lowlevel.TrioToken", _TokenOfCall(self))
        PARENT_TASK_DATA.abandon_on_cancel = False
        PARENT_TASK_DATA.cancel_register = self._raise_cancel
        PARENT_TASK_DATA.task_register = self._task


class _TokenOfCall:
    """What `trio.from_thread` uses for a `trio.lowlevel.TrioToken`. Worker thread.

    Trio relies on the waiting task being there, which here it may have left.
    """

    def __init__(self, call: Call[Any]) -> None:
        self._call = call

    def run_sync_soon(self, wake: Callable[[], object]) -> None:
        """Do as the method of this name; raises what `Call.post` raises."""
        self._call.post(wake)


@dataclass(frozen=True)
class Ended:
    """A coroutine of `run_async` has ended: its thread leaves the loop with this."""

    result: outcome.Outcome[Any]


class CallLoop:
    """A place where a worker thread waits for calls, and runs one at a time.

    Calls may come from any task of the run, and are run in the order of their asking.
    """

    def __init__(self, pool: WorkerPool, parent: CallLoop | None) -> None:
        self.pool = pool
        #: Where calls go once this loop is closed; None: to the program's thread.
        self.parent = parent
        #: Whose thread this is.
        self.lease: Lease = parent.lease if parent else cast("Lease", self)
        #: False once the thread no longer waits here.
        self.open = True
        #: The call that the thread runs in this loop.
        self.running: Call[Any] | None = None
        #: Held by the task whose call this is, or is about to be.
        self._turn = trio.Semaphore(1)
        self._inbox: SimpleQueue[Any] = SimpleQueue()

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
        call = Call(self, context, fn)
        if not (self.open and await self._begin(call)):
            elsewhere = self.parent or self.pool.program_lease()
            return await elsewhere.run_sync(fn, context=context)
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
            await self.pool.acquire_token(call)
        except BaseException:
            self._turn.release()
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
        self._turn.release()

    def _check_deadlock(self) -> None:
        # The task that the thread waits for must not wait for the thread in turn.
        # Below async_to_sync it does not: there a loop further in is the current one.
        call = self.running
        if call is not None and call.task is trio.lowlevel.current_task():
            raise RuntimeError(
                "This sync call would wait for ever for a thread that waits for this "
                "very task. In code run by trio.from_thread.run(), sync code of the "
                "same request cannot be called: use asgiref.sync.async_to_sync()."
            )

    def _thread_inbox(self) -> SimpleQueue[Any]:
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
        while True:
            job = self._inbox.get()
            if isinstance(job, Ended):
                try:
                    return job.result
                finally:
                    # An error's traceback holds this frame: leave no cycle behind.
                    del job
            job.run()
            del job


class Reentry:
    """`run_async`'s message: run this coroutine, and say when it has ended.

    Made by the worker thread, run by the task that waits for the thread's call.
    """

    def __init__(self, call: Call[Any], afn: Callable[[], Awaitable[Any]]) -> None:
        self.call = call
        self.loop = CallLoop(call.loop.pool, parent=call.loop)
        self.context = contextvars.copy_context()
        self._afn = afn

    async def run(self) -> None:
        """Run the coroutine in the waiting task, in the context of the sync code."""
        pool = self.loop.pool
        self.call.inner = self.loop
        # The thread only waits now, and must not keep others from running.
        pool.release_token(self.call)
        task = trio.lowlevel.current_task()
        outer, task.context = task.context, self.context
        # A task enters its new context when it is next switched to.
        await trio.lowlevel.cancel_shielded_checkpoint()
        marker = current_loop.set(self.loop)
        result = await outcome.acapture(self._unprotected)
        current_loop.reset(marker)
        task.context = outer
        with trio.CancelScope(shield=True):
            # In this order: who has the turn in the loop may wait for a token.
            await self.loop.close()
            await pool.acquire_token(self.call)
        self.call.inner = None
        self.loop.end(result)
        del result

    @trio.lowlevel.disable_ki_protection
    async def _unprotected(self) -> Any:
        return await self._afn()


def run_async(
    afn: Callable[[], Awaitable[T]],
) -> tuple[outcome.Outcome[T], contextvars.Context]:
    """Run ``afn()`` in the task that waits for this thread's call. Worker thread.

    The thread waits, and runs the sync code that ``afn`` calls. A cancellation of the
    task reaches ``afn``, whose outcome is `trio.Cancelled` then.

    Returns:
        The outcome, and the context that ``afn`` ran in, with its changes.

    Raises:
        trio.RunFinishedError: nobody waits for this thread any more.
    """
    call = calling()
    assert call is not None, "run_async() outside a worker's call"
    reentry = Reentry(call, afn)
    call.tell(reentry)
    return reentry.loop.serve(), reentry.context


def calling() -> Call[Any] | None:
    """Return the call that this thread runs; None outside the workers. Any thread."""
    return _thread_state.call


def in_trio_thread() -> bool:
    """Whether `trio.from_thread` works in this thread. Any thread."""
    return hasattr(PARENT_TASK_DATA, "token")


def _forget_trio() -> None:
    """In a forked child, no task waits for the thread that was copied."""
    vars(PARENT_TASK_DATA).clear()
    _thread_state.call = None


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_trio)

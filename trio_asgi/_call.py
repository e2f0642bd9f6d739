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
import functools
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

import outcome
import trio

from ._trio_thread import Run, RunSync, interrupts, no_call, thread_state, trios_notes

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._worker import Lease, WorkerPool

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


class Inbox(Protocol):
    """Where a thread takes its calls from."""

    def put(self, job: Any, /) -> Callable[[], bool] | None:
        """Hand a call over; return what takes it back if it was not begun yet."""


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
        #: What the task does for the thread just now.
        self._work: trio.CancelScope | None = None
        #: What the thread has sent while the task was still at work for it: an error of
        #: a signal handler, as Ctrl-C, has driven it out of `trio.from_thread.run`.
        self._early: deque[Callable[[], object]] = deque()
        #: How many nurseries the task had open when it began to run a coroutine of
        #: `trio.from_thread.run`; None when it runs none.
        self._outer_nurseries: int | None = None
        #: How many messages are on their way to the task. Changes under the lock.
        self._posted = 0
        self._lock = threading.Lock()

    @property
    def task(self) -> trio.lowlevel.Task | None:
        """The task that waits for the call, until it leaves it."""
        return self._task[0]

    @property
    def begun(self) -> bool:
        """Whether a thread has begun to run the call. Any thread."""
        return self._fn is None

    @trio.lowlevel.enable_ki_protection
    async def host(self, inbox: Inbox) -> T:
        """Hand the call to the thread; do what the thread asks for until it ends."""

        def abort(raise_cancel: Callable[[], Any]) -> trio.lowlevel.Abort:
            self._raise_cancel[0] = raise_cancel
            if withdraw is not None and withdraw():
                return trio.lowlevel.Abort.SUCCEEDED
            if self.loop.lease.impatient and self._leave():
                return trio.lowlevel.Abort.SUCCEEDED
            return trio.lowlevel.Abort.FAILED

        withdraw = inbox.put(self)
        while True:
            self._waiting = True
            if self._early:
                self._token.run_sync_soon(self._deliver, self._early.popleft())
            message = await trio.lowlevel.wait_task_rescheduled(abort)
            with self._lock:
                self._posted -= 1
            try:
                if isinstance(message, outcome.Outcome):
                    result: T = message.unwrap()
                    return result
                if isinstance(message, RunSync):
                    message.run_sync()
                else:
                    if isinstance(message, Run):
                        task = trio.lowlevel.current_task()
                        self._outer_nurseries = len(task.child_nurseries)
                    with trio.CancelScope() as self._work:
                        if self._early:
                            self._work.cancel()
                        # Either of Trio's, or a `Reentry`.
                        await message.run()
            finally:
                self._outer_nurseries = self._work = None
                # An error's traceback holds this frame: leave no cycle behind.
                del message

    def waits_for(self, task: trio.lowlevel.Task) -> bool:
        """Whether the call cannot end before this task has.

        So it is for the task that hosts the call, and for the children of the nurseries
        that a coroutine of `trio.from_thread.run` has opened in it. Not below
        `run_async`: there sync code has a loop of its own.
        """
        host = self.task
        if host is None or task is host:
            return task is host
        if self._outer_nurseries is None:
            return False
        inner = host.child_nurseries[self._outer_nurseries :]
        nursery = task.parent_nursery
        while nursery is not None and nursery not in inner:
            nursery = nursery.parent_task.parent_nursery
        return nursery is not None

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

    def post(self, wake: Callable[[], object]) -> None:
        """Have ``wake`` called in the Trio thread, when the task waits. Worker thread.

        Raises:
            trio.RunFinishedError: nobody waits for this call any more.
        """
        with self._lock:
            if self._task[0] is None:
                raise trio.RunFinishedError("nobody waits for this thread any more")
            self._posted += 1
            self._token.run_sync_soon(self._deliver, wake)

    def tell(self, message: object) -> None:
        """Wake the task with a message. Worker thread; raises what `post` raises."""
        self.post(functools.partial(self._wake, message))

    def _wake(self, message: object) -> None:
        task = self._task[0]
        assert task is not None
        trio.lowlevel.reschedule(task, outcome.Value(message))

    def _deliver(self, wake: Callable[[], object]) -> None:
        if self._waiting:
            self._waiting = False
            wake()
            return
        self._early.append(wake)
        # The thread does not wait for what the task is doing any more.
        if self._work is not None:
            self._work.cancel()

    def run(self) -> None:
        """Run the call and tell the task. Worker thread."""
        fn, self._fn = self._fn, None
        assert fn is not None
        with no_call():
            thread_state.call = self
            self._point_trio_here()
            result = outcome.capture(self._context.run, _run_sync_code, fn)
        # What the call refers to must be gone before the task goes on.
        del fn
        try:
            self.tell(result)
        except trio.RunFinishedError:
            pass  # The task has left, which was logged then.
        finally:
            # An error's traceback holds this frame: leave no cycle behind.
            del result

    def _point_trio_here(self) -> None:
        """Let `trio.from_thread` act on this call's task. Worker thread."""
        trios_notes.token = cast("trio.lowlevel.TrioToken", _TokenOfCall(self))
        trios_notes.abandon_on_cancel = False
        trios_notes.cancel_register = self._raise_cancel
        trios_notes.task_register = self._task


def _run_sync_code(fn: Callable[[], T]) -> T:
    """Call ``fn()``, and say so. Within what catches its errors, Ctrl-C included."""
    note = interrupts.note_sync_code
    if note is None:
        return fn()
    try:
        note(True)  # noqa: FBT003 - it is told what begins, or ends
        return fn()
    finally:
        note(False)  # noqa: FBT003


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
        #: Where calls go once this loop is closed; None if it is a lease.
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
        if call is not None and call.waits_for(trio.lowlevel.current_task()):
            raise RuntimeError(
                "This sync call would wait for ever for a thread that waits for this "
                "very task. In code run by trio.from_thread.run(), sync code of the "
                "same request cannot be called: use asgiref.sync.async_to_sync()."
            )

    def _outer_loop(self) -> CallLoop:
        """Return where calls go once this loop is closed."""
        assert self.parent is not None, "a lease has its own answer"
        return self.parent

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

"""Worker threads: where the sync code of a request runs.

Django's sync code keeps state in its thread, database connections above all, so all
sync code of one request must run in one thread, in order. A request holds a
`Lease`, which takes a `Worker` from the `WorkerPool` at the first call and gives it
back at the end; the next request takes the same thread, with its connections.

The task that makes a call waits for it, as with `trio.to_thread.run_sync`, and serves
the thread meanwhile: `trio.from_thread` in the sync code acts on that very task, and
so does `run_async` below, which `async_to_sync` is made of. Then the coroutine runs
under the cancel scopes of its caller, and the thread, which waits for it, runs the sync
code that the coroutine calls. Each such turn-about puts one more `CallLoop` on the
thread's stack:

    worker thread                         waiting task
    the lease's loop: run call 1     <──  lease.run_sync(call 1)
      run_async(afn): a second loop  ──>    run afn
        run call 2                   <──      second loop.run_sync(call 2)
        call 2's result              ──>      ...
        afn's result                 <──    afn has ended, its loop closes
      call 1's result                ──>  returned

Everything here is called in the Trio thread, but for what says "worker thread".
"""

from __future__ import annotations

import contextvars
import logging
import os
import threading
from dataclasses import dataclass
from itertools import count
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import outcome
import trio

# The one use of Trio's private names: they are what makes `trio.from_thread` work in a
# thread that Trio did not start. A thread of Trio's own cache can neither be kept for
# one request nor tell when it ends, so the threads have to be ours (docs/design).
from trio._threads import PARENT_TASK_DATA, Run, RunSync

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

logger = logging.getLogger("trio_asgi")

#: Where thread-sensitive code goes from here: the innermost loop above the running
#: task. Set by whoever opens a lease, and by `run_async` around its coroutine.
current_loop: contextvars.ContextVar[CallLoop | None] = contextvars.ContextVar(
    "trio_asgi.current_loop", default=None
)

_thread_numbers = count(1)


class _ThreadState(threading.local):
    #: The call that this thread runs, if it is one of the workers.
    call: Call[Any] | None = None


_thread_state = _ThreadState()


class Call(Generic[T]):
    """One sync call, made by a task that waits for it.

    Made and hosted by that task, run by the worker. A cancellation of the task is noted
    for `trio.from_thread.check_cancelled`, and otherwise waits for the call's end.
    """

    def __init__(
        self, loop: CallLoop, context: contextvars.Context, fn: Callable[[], T]
    ) -> None:
        self.loop = loop
        self.token = trio.lowlevel.current_trio_token()
        #: The loop of the coroutine that the thread waits for just now, if any.
        self.inner: CallLoop | None = None
        self._fn: Callable[[], T] | None = fn
        self._context = context
        # Lists of one element, which is how Trio shares them with its threads. The
        # task is None once it has left the call.
        self._task: list[trio.lowlevel.Task | None] = [trio.lowlevel.current_task()]
        self._raise_cancel: list[Callable[[], Any] | None] = [None]
        #: Whether the task sits in `host`'s wait, and was not woken yet.
        self._waiting = False

    @property
    def task(self) -> trio.lowlevel.Task | None:
        """The task that waits for the call, until it leaves it."""
        return self._task[0]

    @trio.lowlevel.enable_ki_protection
    async def host(self, inbox: SimpleQueue[Any]) -> T:
        """Hand the call to the thread; do what the thread asks for until it ends."""

        def abort(raise_cancel: Callable[[], Any]) -> trio.lowlevel.Abort:
            self._raise_cancel[0] = raise_cancel
            if not self.loop.lease.impatient:
                return trio.lowlevel.Abort.FAILED
            self._leave()
            return trio.lowlevel.Abort.SUCCEEDED

        inbox.put(self)
        while True:
            self._waiting = True
            message = await trio.lowlevel.wait_task_rescheduled(abort)
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

    def abandon_if_cancelled(self) -> None:
        """Let the task go on at once if it was cancelled while it waits here."""
        task, raise_cancel = self._task[0], self._raise_cancel[0]
        if task is not None and raise_cancel is not None and self._waiting:
            self._leave()
            trio.lowlevel.reschedule(task, outcome.capture(raise_cancel))

    def _leave(self) -> None:
        self._task[0] = None
        self._waiting = False
        self.loop.lease.abandoned = True

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
        self.tell(result)

    def _point_trio_here(self) -> None:
        """Let `trio.from_thread` act on this call's task. Worker thread."""
        PARENT_TASK_DATA.token = _TokenOfCall(self)
        PARENT_TASK_DATA.abandon_on_cancel = False
        PARENT_TASK_DATA.cancel_register = self._raise_cancel
        PARENT_TASK_DATA.task_register = self._task

    def tell(self, message: object) -> None:
        """Wake the waiting task with a message. Worker thread."""
        try:
            self.token.run_sync_soon(self._wake, message)
        except trio.RunFinishedError:
            # The call was abandoned, then the program ended: nobody listens.
            logger.debug("A sync call ended after the Trio run that it belongs to")

    def _wake(self, message: object) -> None:
        task = self._task[0]
        if task is not None:
            self._waiting = False
            trio.lowlevel.reschedule(task, outcome.Value(message))
        elif isinstance(message, (Reentry, Run, RunSync)):
            _refuse(message)

    def pass_on(self, wake: Callable[[], object]) -> None:
        """Let a message of `trio.from_thread` wake the task, if it is still there."""
        if self._task[0] is not None:
            self._waiting = False
            wake()
        else:
            trio.lowlevel.spawn_system_task(self._stand_in, wake)

    async def _stand_in(self, wake: Callable[[], object]) -> None:
        """Take a message in the place of the task that has left, and refuse it."""
        self._task[0] = trio.lowlevel.current_task()
        trio.lowlevel.current_trio_token().run_sync_soon(wake)
        message = await trio.lowlevel.wait_task_rescheduled(
            lambda _: trio.lowlevel.Abort.FAILED
        )
        self._task[0] = None
        _refuse(message)


class _TokenOfCall:
    """What `trio.from_thread` takes for a `trio.lowlevel.TrioToken`. Worker thread.

    Trio relies on the waiting task being there, but an abandoned call's is not. Whether
    it is can only be told in the Trio thread, when the message arrives.
    """

    def __init__(self, call: Call[Any]) -> None:
        self._call = call

    def run_sync_soon(self, wake: Callable[[], object]) -> None:
        """Do as the method of this name, on the way to which Trio's message is."""
        self._call.token.run_sync_soon(self._call.pass_on, wake)


def _refuse(message: Reentry | Run[Any] | RunSync[Any]) -> None:
    """Answer a thread whose task has left."""
    inbox = message.loop._inbox if isinstance(message, Reentry) else message.queue
    error = outcome.Error(trio.RunFinishedError("nobody waits for this thread any more"))
    inbox.put(Ended(error) if isinstance(message, Reentry) else error)


@dataclass(frozen=True)
class Detached:
    """A call that nobody waits for: what is left to do when a lease is given up."""

    context: contextvars.Context
    fn: Callable[[], object]

    def run(self) -> None:
        """Run it. Worker thread."""
        try:
            self.context.run(self.fn)
        except Exception:
            logger.exception("The last call of a lease failed: %r", self.fn)


@dataclass(frozen=True)
class Ended:
    """A coroutine of `run_async` has ended: its thread leaves the loop with this."""

    result: outcome.Outcome[Any]


class Stop:
    """The worker's thread shall end."""


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
        #: Held by the task whose call this is.
        self._turn = trio.Semaphore(1)
        self._inbox: SimpleQueue[Any] = SimpleQueue()

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
        if self.open:
            await _acquire(self._turn)
            try:
                if self.open:
                    return await self._run_in_turn(fn, context)
            finally:
                self._turn.release()
        parent = self.parent or self.pool.program_lease()
        return await parent.run_sync(fn, context=context)

    async def _run_in_turn(
        self, fn: Callable[[], T], context: contextvars.Context | None
    ) -> T:
        if context is None:
            context = contextvars.copy_context()
        call = Call(self, context, fn)
        limiter = self.pool.limiter
        try:
            limiter.acquire_on_behalf_of_nowait(call)
        except trio.WouldBlock:
            await limiter.acquire_on_behalf_of(call)
        self.running = call
        try:
            return await call.host(self._thread_inbox())
        finally:
            self.running = None
            limiter.release_on_behalf_of(call)
            self.pool.note_call_ended()

    def _check_deadlock(self) -> None:
        # The task that the thread waits for must not wait for the thread in turn. Below
        # async_to_sync it does not get here: there a loop further in is the current one.
        call = self.running
        if call is not None and call.task is trio.lowlevel.current_task():
            raise RuntimeError(
                "This sync call would wait for ever for a thread that waits for this "
                "very task. In code run by trio.from_thread.run(), sync code of the "
                "same request cannot be called: use asgiref.sync.async_to_sync()."
            )

    def _thread_inbox(self) -> SimpleQueue[Any]:
        return self._inbox

    async def end(self, result: outcome.Outcome[Any]) -> None:
        """Send the thread out of the loop, when the call that runs in it has ended."""
        await self._turn.acquire()
        self.open = False
        self._turn.release()
        self._inbox.put(Ended(result))

    def serve(self) -> outcome.Outcome[Any]:
        """Run the calls that come until the loop ends. Worker thread."""
        while True:
            job = self._inbox.get()
            if isinstance(job, Ended):
                return job.result
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
        limiter = self.loop.pool.limiter
        self.call.inner = self.loop
        # The thread only waits now, and must not keep others from running.
        limiter.release_on_behalf_of(self.call)
        task = trio.lowlevel.current_task()
        outer, task.context = task.context, self.context
        # A task enters its new context when it is next switched to.
        await trio.lowlevel.cancel_shielded_checkpoint()
        marker = current_loop.set(self.loop)
        result = await outcome.acapture(self._unprotected)
        current_loop.reset(marker)
        task.context = outer
        with trio.CancelScope(shield=True):
            await limiter.acquire_on_behalf_of(self.call)
            await self.loop.end(result)
        self.call.inner = None

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


class Lease(CallLoop):
    """The right to one worker thread, which is taken at the first call.

    Owned by the task that made it and that must `release` it in the end; calls may come
    from any task. After the release they go to the program's thread, so that a task
    that outlives its request can still call sync code.
    """

    def __init__(self, pool: WorkerPool) -> None:
        super().__init__(pool, parent=None)
        #: Whether a cancelled task leaves a running call instead of waiting for it.
        self.impatient = False
        #: Whether the thread runs, or ran, a call that its task has left.
        self.abandoned = False
        self._worker: Worker | None = None

    @property
    def has_thread(self) -> bool:
        """Whether a thread is held."""
        return self._worker is not None

    def _thread_inbox(self) -> SimpleQueue[Any]:
        if self._worker is None:
            self._worker = self.pool.take()
        return self._worker.inbox

    def stop_waiting(self) -> None:
        """From now on, let cancelled tasks leave the calls that they wait for.

        A thread that was left runs on by itself, and does not go back to the pool.
        """
        self.impatient = True
        call = self.running
        while call is not None and call.inner is not None:
            call = call.inner.running
        if call is not None:
            call.abandon_if_cancelled()

    def release(self, last: Callable[[], object] | None = None) -> None:
        """Give the thread back; one that was abandoned ends instead.

        Args:
            last: Called in the thread before, but after what it still runs, and without
                being waited for. Errors are logged.
        """
        self.open = False
        worker, self._worker = self._worker, None
        if last is not None:
            worker = worker or self.pool.take()
            worker.inbox.put(Detached(contextvars.copy_context(), last))
        if worker is None:
            return
        if self.abandoned:
            worker.inbox.put(Stop())
        else:
            self.pool.give_back(worker)


class Worker:
    """One OS thread of the pool, idle or leased to one lease at a time."""

    def __init__(self, pool: WorkerPool) -> None:
        self.pool = pool
        self.inbox: SimpleQueue[Any] = SimpleQueue()
        self.thread = threading.Thread(
            target=self._work,
            name=f"trio-asgi-worker-{next(_thread_numbers)}",
            # A sync view that never returns must not keep the process from exiting.
            daemon=True,
        )
        self.thread.start()

    def _work(self) -> None:
        try:
            while True:
                try:
                    job = self.inbox.get(timeout=self.pool.idle_seconds)
                except Empty:
                    # The pool may be giving this thread away right now: then stay.
                    if self.pool.forget_idle(self):
                        return
                    continue
                if isinstance(job, Stop):
                    return
                job.run()
                del job
        finally:
            try:
                self.pool.on_thread_exit()
            finally:
                self.pool.workers.discard(self)


class WorkerPool:
    """The worker threads of one Trio run, and the limit on calls that run in them.

    Guarantees:

    - The limit is on running calls. An idle lease holds no token, nor does a thread that
      waits for a coroutine. Waiting for a token is first come, first served.
    - A thread that nobody takes for ``idle_seconds`` ends, and calls ``on_thread_exit``
      as its last act. So do all threads at the end of the run.
    - The thread that came back last is taken first, so that few threads do the work.
    """

    def __init__(
        self,
        *,
        threads: int = 40,
        idle_seconds: float = 30.0,
        shutdown_seconds: float = 10.0,
        on_thread_exit: Callable[[], object] = lambda: None,
    ) -> None:
        self.limiter = trio.CapacityLimiter(threads)
        self.idle_seconds = idle_seconds
        self.shutdown_seconds = shutdown_seconds
        self.on_thread_exit = on_thread_exit
        #: The workers whose thread has not ended. Each takes itself out.
        self.workers: set[Worker] = set()
        # A dict for its atomic operations: popitem() here, and del in a thread that
        # gives up waiting, cannot both get the same worker.
        self._idle: dict[Worker, None] = {}
        self._program_lease: Lease | None = None
        #: Made by whoever waits for the end of a call.
        self._call_ended: trio.Event | None = None

    def take(self) -> Worker:
        """Return an idle worker, or a new one."""
        try:
            worker, _ = self._idle.popitem()
        except KeyError:
            worker = Worker(self)
            self.workers.add(worker)
        return worker

    def give_back(self, worker: Worker) -> None:
        """Let the next lease have this worker."""
        self._idle[worker] = None

    def forget_idle(self, worker: Worker) -> bool:
        """Take out a worker that wants to end; False if it was taken. Worker thread."""
        try:
            del self._idle[worker]
        except KeyError:
            return False
        return True

    def note_call_ended(self) -> None:
        """Tell `wait_idle`."""
        if self._call_ended is not None:
            self._call_ended.set()
            self._call_ended = None

    def program_lease(self) -> Lease:
        """Return the lease for sensitive code that belongs to no request."""
        if self._program_lease is None:
            self._program_lease = Lease(self)
        return self._program_lease

    async def run_sync(
        self, fn: Callable[[], T], *, context: contextvars.Context | None = None
    ) -> T:
        """Run ``fn()`` in any worker thread, as `CallLoop.run_sync` does."""
        lease = Lease(self)
        try:
            return await lease.run_sync(fn, context=context)
        finally:
            lease.release()

    async def wait_idle(self) -> bool:
        """Wait until no call runs; return False if none ran in the first place."""
        if not self.limiter.borrowed_tokens:
            return False
        while self.limiter.borrowed_tokens:
            self._call_ended = self._call_ended or trio.Event()
            await self._call_ended.wait()
        return True

    async def retire_idle(self) -> None:
        """End the idle threads, and wait for that up to ``shutdown_seconds``."""
        retired = list(self._idle)
        for worker in retired:
            # Not taken out by itself meanwhile: then it is told to stop.
            if self.forget_idle(worker):
                worker.inbox.put(Stop())
        with trio.move_on_after(self.shutdown_seconds):
            for worker in retired:
                await trio.to_thread.run_sync(
                    worker.thread.join, abandon_on_cancel=True
                )

    async def close_at_end_of_run(self) -> None:
        """End all threads when the run's main task has ended. A system task."""
        try:
            await trio.sleep_forever()
        finally:
            if self._program_lease is not None:
                self._program_lease.release()
            with trio.CancelScope(shield=True):
                await self.retire_idle()


async def _acquire(turn: trio.Semaphore) -> None:
    """Acquire without the switch of tasks that `acquire` makes even when it is free."""
    try:
        turn.acquire_nowait()
    except trio.WouldBlock:
        await turn.acquire()


_pool: trio.lowlevel.RunVar[WorkerPool] = trio.lowlevel.RunVar("trio_asgi.pool")

#: What the pool of the next Trio run is made with: the arguments of `WorkerPool`.
pool_options: dict[str, Any] = {}


def current_pool() -> WorkerPool:
    """Return the pool of this Trio run; its first caller makes it."""
    try:
        return _pool.get()
    except LookupError:
        pool = WorkerPool(**pool_options)
        _pool.set(pool)
        trio.lowlevel.spawn_system_task(pool.close_at_end_of_run)
        return pool


def sensitive_loop() -> CallLoop:
    """Return where thread-sensitive code of the running task belongs."""
    pool = current_pool()
    loop = current_loop.get()
    if loop is None or loop.pool is not pool:
        # None, or inherited by a Trio run that sync code of another run has started.
        return pool.program_lease()
    return loop

"""The task that waits for a call, and acts for its thread."""

from __future__ import annotations

import functools
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import outcome
import trio

from .abandon import AbandonableWait
from .trio_state import RunSync

if TYPE_CHECKING:
    from collections.abc import Callable

    from .call_queue import CallQueue
    from .protocols import Loop

T = TypeVar("T")

#: Returned by `Host.host` for a call that is to be made elsewhere.
MOVED: Final[Any] = object()


class Host(AbandonableWait, Generic[T]):
    """The part of a `Call` that belongs to the task: it waits, and gets messages.

    If the task is cancelled, `trio.from_thread.check_cancelled` tells the sync code,
    and the task still waits for the call's end. Only if the lease is impatient does the
    task leave; then the thread goes on alone.

    Guarantees: the task does not leave before it has received all messages that the
    thread has posted; after it has left, posting fails.
    """

    # What few calls need is not set for each.
    #: Whether `begin` has handed the call to its thread. Changes under the lock.
    handed_over = False
    #: Whether the task waits in `host`, and is not working for the thread.
    _waiting = False
    #: Whether the task has been woken with the result, and not with a message.
    _ended = False
    #: The scope of the task's work for the thread, if it is working.
    _work: trio.CancelScope | None = None
    #: What the thread has sent while the task was still working for it, because a
    #: signal handler's error, Ctrl-C for example, ended `trio.from_thread.run`.
    _early: deque[tuple[Any, ...]] | None = None
    #: How many nurseries the task had when it began a coroutine for the thread.
    _outer_nurseries: int | None = None
    #: Takes the call back from an inbox that is not a thread's; tried once.
    _withdraw: Callable[[], bool] | None = None
    #: What the call returned or raised, until it is posted to the task.
    _result: outcome.Outcome[T] | None = None
    #: How many messages are on their way to the task. Changes under the lock.
    _posted = 0
    #: The `CallQueue`'s: when the call got its place; None without a place.
    generation: int | None = None

    def __init__(self, loop: Loop, queue: CallQueue) -> None:
        self.loop = loop
        self._queue = queue
        # Lists of one element: Trio shares them with its threads in that form.
        #: The task; None once it has left the call. Changes under the lock.
        self._task: list[trio.lowlevel.Task | None] = [trio.lowlevel.current_task()]
        self._raise_cancel: list[Callable[[], Any] | None] = [None]

    @property
    def call(self) -> Host[T]:
        """Itself: in the queue it is the entry of a call that begins."""
        return self

    @property
    def left(self) -> bool:
        """Whether the task has left the call. Any thread."""
        return self._task[0] is None

    def begin(self) -> bool:
        """Hand the call to its thread: see `Call`."""
        raise NotImplementedError

    def withdraw(self) -> bool:
        """Take the call back; False if it has begun: see `Call`."""
        raise NotImplementedError

    @trio.lowlevel.enable_ki_protection
    async def host(self) -> T:
        """Queue the call; do what its thread asks for until it ends.

        Returns:
            What the function returns; or `MOVED`, after `move`.
        """
        if not self.loop.open:
            return MOVED  # type: ignore[no-any-return] # stands for no result
        failure = None
        try:
            try:
                self._queue.submit(self)
            except BaseException as error:  # of a signal handler, or there is no memory
                if self._queue.withdraw(self) or not self.handed_over:
                    raise
                failure = error
            while True:
                self._waiting = True
                if self._early:
                    early = self._early.popleft()
                    self._queue.wakeups.run_sync_soon(self._deliver, *early)
                try:
                    message = await trio.lowlevel.wait_task_rescheduled(self._abort)
                except BaseException as error:
                    self._on_error(error)
                    raise
                if self._ended:
                    if failure is not None:
                        raise failure
                    return message  # type: ignore[no-any-return]
                await self._work_for(message)
                # An error's traceback holds this frame: leave no cycle behind.
                del message
        finally:
            del failure  # its traceback holds this frame
            self._queue.leave(self)

    async def _work_for(self, message: Any) -> None:
        """Do what the thread has asked for."""
        with self._queue.lock:
            self._posted -= 1
        if isinstance(message, RunSync):
            message.run_sync()
            return
        self._outer_nurseries = len(trio.lowlevel.current_task().child_nurseries)
        try:
            with trio.CancelScope() as self._work:
                if self._early:
                    self._work.cancel()
                await message.run()  # Trio's `Run`, or a `Reentry`
        finally:
            self._outer_nurseries = self._work = None

    def move(self) -> None:
        """Have `host` return `MOVED`: the call was withdrawn."""
        self._deliver(self._end, outcome.Value(MOVED))

    def _abort(self, raise_cancel: Callable[[], Any]) -> trio.lowlevel.Abort:
        """Note a cancellation of the task; say whether it stops waiting."""
        self._raise_cancel[0] = raise_cancel
        if self.withdraw() or (self.loop.lease.impatient and self._leave()):
            return trio.lowlevel.Abort.SUCCEEDED
        return trio.lowlevel.Abort.FAILED

    def waits_for(self, task: trio.lowlevel.Task) -> bool:
        """Whether the call cannot end before this task has.

        That is true of the task that hosts the call, and of all tasks in nurseries
        opened by a coroutine that the thread waits for. Below `run_async` these tasks
        can call an inner loop, but find it only through their context.
        """
        host = self._task[0]
        if host is None or task is host:
            return task is host
        if self._outer_nurseries is None:
            return False
        inner = host.child_nurseries[self._outer_nurseries :]
        nursery = task.parent_nursery
        while nursery is not None and nursery not in inner:
            nursery = nursery.parent_task.parent_nursery
        return nursery is not None

    @property
    def is_cancelled(self) -> bool:
        """Whether the task was cancelled during the call."""
        return self._raise_cancel[0] is not None

    def abandon_if_cancelled(self) -> bool:
        """Let the task go on at once if it was cancelled and is waiting."""
        task, raise_cancel = self._task[0], self._raise_cancel[0]
        if raise_cancel is None or not self._leave():
            return False
        assert task is not None
        trio.lowlevel.reschedule(task, outcome.capture(raise_cancel))
        return True

    def __str__(self) -> str:
        return f"sync code in {self.loop.lease.describe_thread()}"

    def _on_error(self, error: BaseException) -> None:
        """Leave the call if it was not Trio that has raised the error.

        It is asyncio's, if this coroutine runs in a nested `asyncio.run`. Trio knows
        nothing of the wait, so the result must not reschedule the task.
        """
        if self._waiting and not isinstance(error, trio.Cancelled):
            self._waiting = False
            if not self.withdraw():
                with self._queue.lock:
                    self._task[0] = None
                self.loop.lease.abandon()

    def _leave(self) -> bool:
        """Note that the task waits no more; False if it has to stay for a message."""
        with self._queue.lock:
            # Trio calls `_abort` again when the task waits again.
            if self._posted or not self._waiting:
                return False
            self._waiting = False
            self._task[0] = None
        self.loop.lease.abandon()
        return True

    def run_sync_soon(self, wake: Callable[[], object]) -> None:
        """Have ``wake`` called in the Trio thread, when the task waits. Worker thread.

        `trio.from_thread` uses the call as its `trio.lowlevel.TrioToken`. Trio's token
        would post even if the task has left.

        Raises:
            trio.RunFinishedError: no task waits for this call any more.
        """
        with self._queue.lock:
            if not self._post(wake):
                raise trio.RunFinishedError("no task waits for this thread any more")
        self._queue.wakeups.wake()

    def tell(self, message: Any) -> None:
        """Have the task ``await message.run()``. Worker thread; raises as above."""
        self.run_sync_soon(functools.partial(self._wake, outcome.Value(message)))

    def end(self, result: outcome.Outcome[T]) -> None:
        """Wake the task with a result. Any thread; raises as above."""
        self.run_sync_soon(functools.partial(self._end, result))

    def post_result(self) -> bool:
        """Give the result to the task; False if that has left. With the lock."""
        result, self._result = self._result, None
        return self._post(self._end, result)

    def fail(self, error: BaseException) -> None:
        """Raise an error in the task: the call cannot begin. With the lock."""
        self.end(outcome.Error(error))

    def _post(self, wake: Callable[..., object], *args: Any) -> bool:
        if self._task[0] is None:
            return False
        self._posted += 1
        self._queue.wakeups.post(self._deliver, wake, *args)
        return True

    def _deliver(self, wake: Callable[..., object], *args: Any) -> None:
        if self._waiting:
            self._waiting = False
            wake(*args)
            return
        if self._early is None:
            self._early = deque()
        self._early.append((wake, *args))
        # The thread no longer waits for the task's work.
        if self._work is not None:
            self._work.cancel()

    def _wake(self, message: outcome.Outcome[Any]) -> None:
        task = self._task[0]
        assert task is not None
        trio.lowlevel.reschedule(task, message)

    def _end(self, result: outcome.Outcome[T]) -> None:
        self._ended = True
        self._withdraw = None  # it refers to the call: leave no cycle behind
        self._wake(result)

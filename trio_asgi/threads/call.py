"""One sync call: hosted by the task that waits for it, run by a worker thread."""

from __future__ import annotations

from collections import deque
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import outcome
import trio

from .abandon import AbandonableWait
from .trio_state import RunSync, interrupts, switch_task, trios_notes

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable

    from .call_queue import CallQueue
    from .protocols import Inbox, Loop, Owner

T = TypeVar("T")

#: Returned by `Call.host` for a call that is to be made elsewhere.
MOVED: Final[Any] = object()


def calling() -> Call[Any] | None:
    """Return the `Call` that this thread runs, if any. Any thread."""
    token = vars(trios_notes).get("token")
    return token if isinstance(token, Call) else None


class Call(AbandonableWait, Generic[T]):
    """One sync call, made and hosted by a task that waits for it, run by a worker.

    If the task is cancelled, `trio.from_thread.check_cancelled` tells the sync code,
    and the task still waits for the call's end. Only if the lease is impatient does the
    task leave; then the thread goes on alone.

    Guarantees: the task does not leave before it has received all messages that the
    thread has posted; after it has left, posting fails.
    """

    # What few calls need is not set for each.
    #: Takes the call back from an inbox that is not a thread's; tried once.
    _withdraw: Callable[[], bool] | None = None
    #: Whether the task waits in `host`, and is not working for the thread.
    _waiting = False
    #: The scope of the task's work for the thread, if it is working.
    _work: trio.CancelScope | None = None
    #: What the thread has sent while the task was still working for it, because a
    #: signal handler's error, Ctrl-C for example, ended `trio.from_thread.run`.
    _early: deque[tuple[Any, Callable[[], object] | None]] | None = None
    #: How many nurseries the task had when it began a coroutine for the thread.
    _outer_nurseries: int | None = None
    #: How many messages are on their way to the task. Changes under the lock.
    _posted = 0
    #: The `CallQueue`'s: when the call got its place; None without a place.
    generation: int | None = None

    def __init__(
        self,
        loop: Loop,
        queue: CallQueue,
        context: contextvars.Context,
        fn: Callable[[], T],
    ) -> None:
        self.loop = loop
        self._queue = queue
        self._context = context
        self._fn: Callable[[], T] | None = fn
        # Lists of one element: Trio shares them with its threads in that form.
        #: The task; None once it has left the call. Changes under the lock.
        self._task: list[trio.lowlevel.Task | None] = [trio.lowlevel.current_task()]
        self._raise_cancel: list[Callable[[], Any] | None] = [None]

    @property
    def begun(self) -> bool:
        """Whether a thread has begun to run the call. Any thread."""
        return self._fn is None

    @property
    def left(self) -> bool:
        """Whether the task has left the call. Any thread."""
        return self._task[0] is None

    @property
    def call(self) -> Call[T]:
        """Itself: in the queue it is the entry of a call that begins."""
        return self

    @trio.lowlevel.enable_ki_protection
    async def host(self) -> T:
        """Queue the call; do what its thread asks for until it ends.

        Returns:
            What the function returns; or `MOVED`, after `move`.
        """
        self._queue.submit(self)
        while True:
            self._waiting = True
            if self._early:
                self._queue.wakeups.run_sync_soon(self._deliver, *self._early.popleft())
            message = await trio.lowlevel.wait_task_rescheduled(self._abort)
            try:
                if isinstance(message, outcome.Outcome):
                    # It refers to the call: leave no cycle behind.
                    self._withdraw = None
                    result: T = message.unwrap()
                    return result
                with self._queue.lock:
                    self._posted -= 1
                if isinstance(message, RunSync):
                    message.run_sync()
                else:
                    task = trio.lowlevel.current_task()
                    self._outer_nurseries = len(task.child_nurseries)
                    with trio.CancelScope() as self._work:
                        if self._early:
                            self._work.cancel()
                        await message.run()  # Trio's `Run`, or a `Reentry`
            finally:
                self._outer_nurseries = self._work = None
                # An error's traceback holds this frame: leave no cycle behind.
                del message

    def begin(self) -> bool:
        """Hand the call to its thread; False if there is none. With the lock.

        Raises:
            RuntimeError: the system can start no more threads.
        """
        inbox = self.loop.thread_inbox()
        if inbox is None:
            return False
        if isinstance(inbox, SimpleQueue):
            inbox.put(self)
        else:
            self._posted += 1
            self._queue.wakeups.run_sync_soon(self._put, inbox)
        return True

    def _put(self, inbox: Inbox) -> None:
        """Hand the call to an executor, unless the task was cancelled meanwhile."""
        with self._queue.lock:
            self._posted -= 1
        task, raise_cancel = self._task[0], self._raise_cancel[0]
        assert task is not None
        if raise_cancel is not None:
            self._waiting = False
            trio.lowlevel.reschedule(task, outcome.capture(raise_cancel))
            return
        try:
            self._withdraw = inbox.put(self)
        except Exception as error:  # noqa: BLE001 - of the executor
            self._deliver(outcome.Error(error))

    def move(self) -> None:
        """Have `host` return `MOVED`: the call was withdrawn from the queue."""
        self._deliver(outcome.Value(MOVED))

    def _abort(self, raise_cancel: Callable[[], Any]) -> trio.lowlevel.Abort:
        """Note a cancellation of the task; say whether it stops waiting."""
        self._raise_cancel[0] = raise_cancel
        withdraw, self._withdraw = self._withdraw, None
        withdrawn = self._queue.withdraw(self) or (withdraw is not None and withdraw())
        if withdrawn or (self.loop.lease.impatient and self._leave()):
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
        self.tell(None, wake)

    def tell(self, message: object, wake: Callable[[], object] | None = None) -> None:
        """Wake the task with a message. Worker thread; raises as `run_sync_soon`."""
        with self._queue.lock:
            if not self.post(message, wake):
                raise trio.RunFinishedError("no task waits for this thread any more")
            self._queue.wakeups.wake()

    def post(self, message: object, wake: Callable[[], object] | None = None) -> bool:
        """Post a message; False if the task has left. With the lock."""
        if self._task[0] is None:
            return False
        self._posted += 1
        self._queue.wakeups.post(self._deliver, message, wake)
        return True

    def fail(self, error: BaseException) -> None:
        """Raise an error in the task: the call cannot begin. With the lock."""
        self.tell(outcome.Error(error))

    def _deliver(
        self, message: object, wake: Callable[[], object] | None = None
    ) -> None:
        if self._waiting:
            self._waiting = False
            if wake is not None:
                wake()
            elif (task := self._task[0]) is not None:
                trio.lowlevel.reschedule(task, outcome.Value(message))
            return
        if self._early is None:
            self._early = deque()
        self._early.append((message, wake))
        # The thread no longer waits for the task's work.
        if self._work is not None:
            self._work.cancel()

    def run(self) -> None:
        """Run the call and tell the task. Worker thread."""
        fn, self._fn = self._fn, None
        assert fn is not None
        outer = switch_task(
            {
                "token": self,
                "abandon_on_cancel": False,
                "cancel_register": self._raise_cancel,
                "task_register": self._task,
            },
        )
        try:
            lease = self.loop.lease
            result = outcome.capture(self._context.run, _run_sync_code, lease, fn)
        finally:
            switch_task(outer)
        del fn  # no references may be left when the task goes on
        try:
            self._queue.end(self, result)
        finally:
            # An error's traceback holds this frame: leave no cycle behind.
            del result


def _run_sync_code(owner: Owner, fn: Callable[[], T]) -> T:
    """Call ``fn()``, and tell `interrupts`. `run` catches its errors, even Ctrl-C."""
    note = interrupts.note_sync_code
    if note is None:
        return owner.run_call(fn)
    try:
        note(True)  # noqa: FBT003 - whether sync code begins or ends
        return owner.run_call(fn)
    finally:
        note(False)  # noqa: FBT003

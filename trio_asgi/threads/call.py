"""One sync call: hosted by the task that waits for it, run by a worker thread."""

from __future__ import annotations

import functools
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import outcome
import trio

from .abandon import AbandonableWait
from .trio_state import RunSync, interrupts, switch_task, trios_notes

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable

    from .wakeups import Wakeups

T = TypeVar("T")


class Inbox(Protocol):
    """Where a thread takes its calls from."""

    def put(self, job: Any, /) -> Callable[[], bool] | None:
        """Hand over a call; return a function that takes it back, or None.

        The function returns False if the call has begun.
        """


class Owner(Protocol):
    """The lease that holds the thread, as the call sees it."""

    #: Whether a cancelled task leaves a running call instead of waiting for it.
    impatient: bool

    def abandon(self) -> None:
        """Note that the task has left the call. Trio thread."""

    def describe_thread(self) -> str:
        """Return the thread's name, and what runs in it, for the log."""

    def wrap_call(self, fn: Callable[[], T], place: str = "") -> Callable[[], T]:
        """Return what runs in the thread instead of ``fn``. In the calling task."""

    def run_call(self, fn: Callable[[], T]) -> T:
        """Call ``fn()`` between the lease's own functions. Worker thread."""


class Loop(Protocol):
    """Where the thread takes the call from."""

    @property
    def lease(self) -> Owner:
        """The lease that holds the thread."""


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

    def __init__(
        self,
        loop: Loop,
        wakeups: Wakeups,
        context: contextvars.Context,
        fn: Callable[[], T],
    ) -> None:
        self.loop = loop
        self._fn: Callable[[], T] | None = fn
        self._context = context
        self._wakeups = wakeups
        # Lists of one element: Trio shares them with its threads in that form.
        #: The task; None once it has left the call. Changes under the lock.
        self._task: list[trio.lowlevel.Task | None] = [trio.lowlevel.current_task()]
        self._raise_cancel: list[Callable[[], Any] | None] = [None]
        #: Takes the call back if it has not begun. Tried once.
        self._withdraw: Callable[[], bool] | None = None
        #: Whether the task waits in `host`, and is not working for the thread.
        self._waiting = False
        #: The scope of the task's work for the thread, if it is working.
        self._work: trio.CancelScope | None = None
        #: What the thread has sent while the task was still working for it, because a
        #: signal handler's error, Ctrl-C for example, ended `trio.from_thread.run`.
        self._early: deque[Callable[[], object]] = deque()
        #: How many nurseries the task had when it began a coroutine for the thread.
        self._outer_nurseries: int | None = None
        #: How many messages are on their way to the task. Changes under the lock.
        self._posted = 0
        self._lock = threading.Lock()

    @property
    def begun(self) -> bool:
        """Whether a thread has begun to run the call. Any thread."""
        return self._fn is None

    @trio.lowlevel.enable_ki_protection
    async def host(self, inbox: Inbox) -> T:
        """Hand the call to the thread; do what the thread asks for until it ends."""
        self._withdraw = inbox.put(self)
        while True:
            self._waiting = True
            if self._early:
                self._wakeups.run_sync_soon(self._deliver, self._early.popleft())
            message = await trio.lowlevel.wait_task_rescheduled(self._abort)
            with self._lock:
                self._posted -= 1
            try:
                if isinstance(message, outcome.Outcome):
                    # It refers to the call: leave no cycle behind.
                    self._withdraw = None
                    result: T = message.unwrap()
                    return result
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

    def _abort(self, raise_cancel: Callable[[], Any]) -> trio.lowlevel.Abort:
        """Note a cancellation of the task; say whether it stops waiting."""
        self._raise_cancel[0] = raise_cancel
        withdraw, self._withdraw = self._withdraw, None
        withdrawn = withdraw is not None and withdraw()
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
        with self._lock:
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
        with self._lock:
            if self._task[0] is None:
                raise trio.RunFinishedError("no task waits for this thread any more")
            self._posted += 1
            self._wakeups.run_sync_soon(self._deliver, wake)

    def tell(self, message: object) -> None:
        """Wake the task with a message. Worker thread; raises as `run_sync_soon`."""
        self.run_sync_soon(functools.partial(self._wake, message))

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
            self.tell(result)
        except trio.RunFinishedError:
            pass  # the task has left, which was logged
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

"""One sync call: hosted by the task that waits for it, run by a worker thread.

`loop` tells what the call is for the task, and what for the thread. The task may go on
alone when it was cancelled, if it is not to wait for the thread's end.
"""

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
        """Hand a call over; return what takes it back if it was not begun yet."""


class Owner(Protocol):
    """What holds the thread that runs the call."""

    #: Whether a cancelled task leaves a running call instead of waiting for it.
    impatient: bool

    def abandon(self) -> None:
        """Note that the task has left the call. Trio thread."""

    def describe_thread(self) -> str:
        """Return the thread's name, and what runs in it, for the log."""

    def wrap_call(self, fn: Callable[[], T], place: str = "") -> Callable[[], T]:
        """Return what runs in the thread instead of ``fn``. In the calling task."""

    def run_call(self, fn: Callable[[], T]) -> T:
        """Call ``fn()``, and what is to be called around it. Worker thread."""


class Loop(Protocol):
    """Where the thread takes the call from."""

    @property
    def lease(self) -> Owner:
        """What holds the thread."""


def calling() -> Call[Any] | None:
    """Return the call that this thread runs; None if none of ours. Any thread."""
    token = vars(trios_notes).get("token")
    return token if isinstance(token, Call) else None


class Call(AbandonableWait, Generic[T]):
    """One sync call, made by a task that waits for it.

    Made and hosted by that task, run by the worker. A cancellation of the task is noted
    for `trio.from_thread.check_cancelled`, and otherwise waits for the call's end,
    unless the lease is impatient: then the task leaves, and the thread goes on alone.

    Guarantees: a message that the thread could post reaches the task, which does not
    leave before; after the task has left, posting fails.
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
        # Lists of one element, which is how Trio shares them with its threads.
        #: The task, until it leaves the call. Changes under the lock.
        self._task: list[trio.lowlevel.Task | None] = [trio.lowlevel.current_task()]
        self._raise_cancel: list[Callable[[], Any] | None] = [None]
        #: Takes the call back if it was not begun, where that can be done. Tried once.
        self._withdraw: Callable[[], bool] | None = None
        #: Whether the task is in `host`'s wait, and not at work for the thread.
        self._waiting = False
        #: What the task does for the thread just now.
        self._work: trio.CancelScope | None = None
        #: What the thread has sent while the task was still at work for it: an error of
        #: a signal handler, as Ctrl-C, has driven it out of `trio.from_thread.run`.
        self._early: deque[Callable[[], object]] = deque()
        #: How many nurseries the task had open when it began to run a coroutine for the
        #: thread; None when it runs none.
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
                        # Either of Trio's, or a `Reentry`.
                        await message.run()
            finally:
                self._outer_nurseries = self._work = None
                # An error's traceback holds this frame: leave no cycle behind.
                del message

    def _abort(self, raise_cancel: Callable[[], Any]) -> trio.lowlevel.Abort:
        """Note a cancellation of the task; say whether it stops waiting."""
        self._raise_cancel[0] = raise_cancel
        withdraw, self._withdraw = self._withdraw, None
        if withdraw is not None and withdraw():
            return trio.lowlevel.Abort.SUCCEEDED
        if self.loop.lease.impatient and self._leave():
            return trio.lowlevel.Abort.SUCCEEDED
        return trio.lowlevel.Abort.FAILED

    def waits_for(self, task: trio.lowlevel.Task) -> bool:
        """Whether the call cannot end before this task has.

        So it is for the task that hosts the call, and for the children of the nurseries
        that a coroutine has opened in it for which the thread waits. Below `run_async`
        they have a loop of their own to call, but know it only by their context.
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

    @property
    def is_cancelled(self) -> bool:
        """Whether the task was cancelled while it waits here."""
        return self._raise_cancel[0] is not None

    def abandon_if_cancelled(self) -> bool:
        """Let the task go on at once if it was cancelled while it waits here."""
        task, raise_cancel = self._task[0], self._raise_cancel[0]
        if raise_cancel is None or not self._leave():
            return False
        assert task is not None
        trio.lowlevel.reschedule(task, outcome.capture(raise_cancel))
        return True

    def __str__(self) -> str:
        return f"sync code in {self.loop.lease.describe_thread()}"

    def _leave(self) -> bool:
        """Note that the task waits no more; False if it is wanted first."""
        with self._lock:
            # Until a message has arrived and was acted on the task has to stay. When
            # it comes back to wait, `abort` is called again.
            if self._posted or not self._waiting:
                return False
            self._waiting = False
            self._task[0] = None
        self.loop.lease.abandon()
        return True

    def run_sync_soon(self, wake: Callable[[], object]) -> None:
        """Have ``wake`` called in the Trio thread, when the task waits. Worker thread.

        To `trio.from_thread` the call is its `trio.lowlevel.TrioToken`: Trio relies on
        the waiting task being there, which here it may have left.

        Raises:
            trio.RunFinishedError: nobody waits for this call any more.
        """
        with self._lock:
            if self._task[0] is None:
                raise trio.RunFinishedError("nobody waits for this thread any more")
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
        # The thread does not wait for what the task is doing any more.
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
        # What the call refers to must be gone before the task goes on.
        del fn
        try:
            self.tell(result)
        except trio.RunFinishedError:
            pass  # The task has left, which was logged then.
        finally:
            # An error's traceback holds this frame: leave no cycle behind.
            del result


def _run_sync_code(owner: Owner, fn: Callable[[], T]) -> T:
    """Call ``fn()``, and say so. Within what catches its errors, Ctrl-C included."""
    note = interrupts.note_sync_code
    if note is None:
        return owner.run_call(fn)
    try:
        note(True)  # noqa: FBT003 - it is told what begins, or ends
        return owner.run_call(fn)
    finally:
        note(False)  # noqa: FBT003

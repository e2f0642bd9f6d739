"""One sync call, as the thread sees it."""

from __future__ import annotations

import functools
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

import outcome
import trio

from .host import Host
from .trio_state import interrupts, switch_task, trios_notes

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable

    from .call_queue import CallQueue
    from .protocols import Inbox, Loop

T = TypeVar("T")


def calling() -> Call[Any] | None:
    """Return the `Call` that this thread runs, if any. Any thread."""
    token = vars(trios_notes).get("token")
    return token if isinstance(token, Call) else None


class Call(Host[T]):
    """One sync call, made and hosted by a task that waits for it, run by a worker."""

    #: When a thread has begun to run it, by `time.perf_counter`.
    began_at = 0.0

    def __init__(
        self,
        loop: Loop,
        queue: CallQueue,
        context: contextvars.Context,
        fn: Callable[[], T],
    ) -> None:
        super().__init__(loop, queue)
        self._context = context
        self._fn: Callable[[], T] | None = fn

    @property
    def begun(self) -> bool:
        """Whether a thread has begun to run the call. Any thread."""
        return self._fn is None

    @property
    def over(self) -> bool:
        """Whether its code has ended, and only that is left to tell. Any thread."""
        return "_context" not in vars(self)

    def begin(self) -> bool:
        """Hand the call to its thread; False if there is none. With the lock.

        Raises:
            RuntimeError: the system can start no more threads.
        """
        inbox = self.loop.thread_inbox()
        if inbox is None:
            return False
        # Just before: afterwards a signal handler may raise an error.
        self.handed_over = True
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
            self._deliver(self._end, outcome.Error(error))

    def withdraw(self) -> bool:
        """Take the call back; False if it has begun. Trio thread."""
        if self._queue.withdraw(self):
            return True
        withdraw, self._withdraw = self._withdraw, None
        return withdraw is not None and withdraw()

    def run(self) -> None:
        """Run the call and tell the task. Worker thread."""
        self.began_at = time.perf_counter()
        fn, self._fn = self._fn, None
        assert fn is not None
        outer = None
        try:
            outer = switch_task(
                {
                    "token": self,
                    "abandon_on_cancel": False,
                    "cancel_register": self._raise_cancel,
                    "task_register": self._task,
                },
            )
            run = self.loop.lease.run_call
            if interrupts.note_sync_code is not None:
                run = functools.partial(_run_noted, run)
            self._result = outcome.capture(self._context.run, run, fn)
            switch_task(outer)
        except BaseException as error:  # noqa: BLE001 - of a signal handler, say
            # Not the sync code's: that is captured. Whatever it is, the task gets it.
            self._result = outcome.Error(error)
            if outer is not None:
                switch_task(outer)
        # The task may go on before this thread does, and then be the only one that
        # refers to what it gave and got.
        del fn, self._context
        self._queue.end(self)


def _run_noted(run: Callable[[Callable[[], T]], T], fn: Callable[[], T]) -> T:
    """Call ``run(fn)``, and tell `interrupts`. Its caller catches Ctrl-C."""
    note = interrupts.note_sync_code
    assert note is not None
    try:
        note(True)  # noqa: FBT003 - whether sync code begins or ends
        return run(fn)
    finally:
        note(False)  # noqa: FBT003

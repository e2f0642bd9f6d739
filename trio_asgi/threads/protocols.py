"""What calls, loops and the queue need of each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from queue import SimpleQueue

T = TypeVar("T")


class Inbox(Protocol):
    """Where a thread takes its calls from: a `SimpleQueue`, or an executor's."""

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

    #: False once the thread no longer waits here.
    open: bool

    @property
    def lease(self) -> Owner:
        """The lease that holds the thread."""

    def thread_inbox(self) -> Inbox | None:
        """Return the inbox of the thread, or None if there is none. With the lock.

        Raises:
            RuntimeError: the system can start no more threads.
        """

    def end_call(self, *, left: bool) -> SimpleQueue[Any] | None:
        """Note that the call has ended in the thread. Worker thread, with the lock.

        Args:
            left: Whether the task has left the call.

        Returns:
            Where a worker of the pool takes its next call from; None for other threads.
        """


class QueuedCall(Protocol):
    """A call, as the queue sees it."""

    #: When the call got its place; None without a place. The queue's.
    generation: int | None

    @property
    def loop(self) -> Loop:
        """Where the thread takes the call from."""

    @property
    def left(self) -> bool:
        """Whether the task has left the call. Any thread."""

    def post_result(self) -> bool:
        """Give the result to the task; False if that has left. With the lock."""


class Entry(Protocol):
    """Something in the queue that can begin: a call, or its way back to its thread."""

    @property
    def handed_over(self) -> bool:
        """Whether `begin` has handed it to the thread. With the lock."""

    @property
    def call(self) -> QueuedCall:
        """The call that gets a place."""

    def begin(self) -> bool:
        """Let the thread go on; False if there is none. Any thread, with the lock.

        Raises:
            RuntimeError: the system can start no more threads.
        """

    def fail(self, error: BaseException, /) -> None:
        """Raise an error in the task that waits. Any thread, with the lock."""

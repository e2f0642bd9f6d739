"""The base of `async_to_sync`: sync code has the waiting task run a coroutine."""

from __future__ import annotations

import contextvars
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

import outcome
import trio

from .call import calling
from .loop import CallLoop, current_loop, serve, switch_context
from .trio_state import Run, interrupts, trios_notes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .call import Call

T = TypeVar("T")


def run_async(
    afn: Callable[[], Awaitable[T]],
) -> tuple[outcome.Outcome[T], contextvars.Context]:
    """Run ``afn()`` in the task that waits for this thread's call. Worker thread.

    Meanwhile the thread runs the sync code that ``afn`` calls. A cancellation of the
    task reaches ``afn``; then its outcome is `trio.Cancelled`.

    Returns:
        The outcome, and the context that ``afn`` ran in, with its changes.

    Raises:
        trio.RunFinishedError: no task waits for this thread any more.
    """
    call = calling()
    assert call is not None, "run_async() outside a worker's call"
    reentry = Reentry(call, afn)
    note = interrupts.note_sync_code
    if note is not None:
        note(False)  # noqa: FBT003 - whether sync code begins or ends
    try:
        call.tell(reentry)
        return serve(reentry.inbox), reentry.context
    finally:
        if note is not None:
            note(True)  # noqa: FBT003


class Reentry:
    """`run_async`'s message to the waiting task: run this coroutine.

    Then it waits in the queue for the place of its call, and the thread goes on.
    """

    def __init__(self, call: Call[Any], afn: Callable[[], Awaitable[Any]]) -> None:
        """Run nothing yet. Worker thread."""
        self.call = call
        loop = call.loop
        assert isinstance(loop, CallLoop)
        self._outer_loop = loop
        self.inbox: SimpleQueue[Any] = SimpleQueue()
        self.loop = CallLoop(loop.pool, loop, self.inbox)
        self.context = contextvars.copy_context()
        self._afn = afn
        self._result: outcome.Outcome[Any] | None = None

    async def run(self) -> None:
        """Run the coroutine in the context of the sync code. Trio thread."""
        queue = self.loop.pool.queue
        self._outer_loop.inner = self.loop
        queue.leave(self.call)  # the thread only waits now
        outer = await switch_context(self.context)
        marker = current_loop.set(self.loop)
        self._result = await outcome.acapture(self._unprotected)
        current_loop.reset(marker)
        trio.lowlevel.current_task().context = outer
        # In this order: the call that has the turn in the loop may need a place.
        with trio.CancelScope(shield=True):
            await self.loop.close()
        self._outer_loop.inner = None
        queue.submit(self)

    @property
    def handed_over(self) -> bool:
        """Whether the thread has got the outcome."""
        return self._result is None

    def begin(self) -> bool:
        """Let the thread go on with the outcome. Any thread, with the lock."""
        result, self._result = self._result, None
        self.inbox.put(result)
        del result
        return True

    def fail(self, error: BaseException) -> None:
        """Not called: the thread is there."""
        raise error

    @trio.lowlevel.disable_ki_protection
    async def _unprotected(self) -> Any:
        return await self._afn()


def run_async_from_trio_thread(
    afn: Callable[[], Awaitable[T]], loop: Callable[[SimpleQueue[Any]], CallLoop]
) -> tuple[outcome.Outcome[T], contextvars.Context]:
    """As `run_async`, in a thread of `trio.to_thread.run_sync`.

    Args:
        afn: Run in the task that waits for the thread, or in a system task if the
            thread was started with ``abandon_on_cancel``.
        loop: Returns a loop for this thread's inbox. Called in the Trio thread.
    """
    inbox: SimpleQueue[Any] = SimpleQueue()

    async def run() -> tuple[outcome.Outcome[Any], contextvars.Context]:
        own = loop(inbox)
        marker = current_loop.set(own)
        result = await outcome.acapture(afn)
        current_loop.reset(marker)
        with trio.CancelScope(shield=True):
            await own.close()
        return result, contextvars.copy_context()

    message = Run(run, ())
    # Where Trio puts the outcome, as the last thing it does with the message: only then
    # may this thread go on and send the next.
    vars(message)["queue"] = inbox
    if trios_notes.abandon_on_cancel:
        message.run_in_system_nursery(trios_notes.token)
    else:
        message.run_in_host_task(trios_notes.token)
    return serve(inbox).unwrap()  # type: ignore[no-any-return]

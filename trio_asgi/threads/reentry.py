"""Coroutines that sync code runs in the task that waits for it.

What `async_to_sync` is made of, in a worker thread and in a thread of Trio's own.
"""

from __future__ import annotations

import contextvars
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

import outcome
import trio

from .call import calling
from .loop import CallLoop, Ended, current_loop, serve, switch_context
from .trio_state import Run, interrupts, trios_notes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .call import Call

T = TypeVar("T")


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
    note = interrupts.note_sync_code
    if note is not None:
        note(False)  # noqa: FBT003 - it is told what begins, or ends
    try:
        call.tell(reentry)
        return reentry.loop.serve(), reentry.context
    finally:
        if note is not None:
            note(True)  # noqa: FBT003


class Reentry:
    """`run_async`'s message: run this coroutine, and say when it has ended.

    Made by the worker thread, run by the task that waits for the thread's call.
    """

    def __init__(self, call: Call[Any], afn: Callable[[], Awaitable[Any]]) -> None:
        self.call = call
        loop = call.loop
        assert isinstance(loop, CallLoop)
        self._outer_loop = loop
        self.loop = CallLoop(loop.pool, parent=loop)
        self.context = contextvars.copy_context()
        self._afn = afn

    async def run(self) -> None:
        """Run the coroutine in the waiting task, in the context of the sync code."""
        pool = self.loop.pool
        self._outer_loop.inner = self.loop
        # The thread only waits now, and must not keep others from running.
        pool.release_token(self.call)
        outer = await switch_context(self.context)
        marker = current_loop.set(self.loop)
        result = await outcome.acapture(self._unprotected)
        current_loop.reset(marker)
        trio.lowlevel.current_task().context = outer
        with trio.CancelScope(shield=True):
            # In this order: who has the turn in the loop may wait for a token.
            await self.loop.close()
            await pool.acquire_token(self.call)
        self._outer_loop.inner = None
        self.loop.end(result)
        del result

    @trio.lowlevel.disable_ki_protection
    async def _unprotected(self) -> Any:
        return await self._afn()


def run_async_from_trio_thread(
    afn: Callable[[], Awaitable[T]], loop: Callable[[SimpleQueue[Any]], CallLoop]
) -> tuple[outcome.Outcome[T], contextvars.Context]:
    """Do as `run_async`, in a thread of `trio.to_thread.run_sync`.

    Args:
        afn: What to run in the task that waits for the thread; in a system task if the
            thread was started with ``abandon_on_cancel``.
        loop: Called in the Trio thread, makes the loop of which this thread is part.
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
    # Trio puts the outcome here as the message's last act: only then may this thread go
    # on, and send its next message. Sent to where this thread waits for calls.
    vars(message)["queue"] = _OutcomeTo(inbox)
    if trios_notes.abandon_on_cancel:
        message.run_in_system_nursery(trios_notes.token)
    else:
        message.run_in_host_task(trios_notes.token)
    return serve(inbox).unwrap()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _OutcomeTo:
    """What a message of Trio's has for a queue: the outcome ends the serving."""

    inbox: SimpleQueue[Any]

    def put_nowait(self, result: outcome.Outcome[Any]) -> None:
        self.inbox.put(Ended(result))

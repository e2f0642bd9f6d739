"""What lives on between requests: background tasks, and what the last one ends."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from . import _call, _worker
from ._connections import tidy_up
from ._errors import reraise, split_ending
from ._island_loop import close_loop
from ._offload import HeldLog, log
from ._signals import join_transaction
from ._view_errors import cleanup_seconds

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

logger = logging.getLogger("trio_asgi")


async def run_in_background(
    async_fn: Callable[..., Awaitable[Any]], args: tuple[Any, ...]
) -> None:
    """Run a task of `ASGIHandler.start_soon`, with a thread of its own."""
    await join_transaction()
    lease = _worker.current_pool().lease()
    if not lease.borrowed:
        # The connections of its thread may have been idle for long.
        lease.on_take = tidy_up
    _call.current_loop.set(lease)
    async with HeldLog(cleanup_seconds):
        try:
            await async_fn(*args)
        except BaseException as error:  # noqa: BLE001 - raised again, or logged
            # Code that was cut short may have left something in the thread.
            lease.retire = True
            ending, failure = split_ending(error)
            try:
                if failure is not None:
                    message = "A background task failed: %r"
                    log(logger, logging.ERROR, message, async_fn, error=failure)
                if ending is not None:
                    reraise(ending)
            finally:
                # Their tracebacks hold this frame: leave no cycle behind.
                del ending, failure
        finally:
            # What the end of a request does for the thread that goes back.
            lease.release(last=tidy_up if lease.has_thread else None)


async def end_islands_and_threads() -> None:
    """End what requests and background tasks share, when the last has ended."""
    await close_loop()
    await _worker.current_pool().retire_idle()

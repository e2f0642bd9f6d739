"""A task beside another piece of work, which ends with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import outcome
import trio

from ._errors import leaves

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def run_beside(
    task: Callable[[], Awaitable[None]],
    body: Callable[[], Awaitable[None]],
    *,
    stop: Callable[[], None] = lambda: None,
) -> None:
    """Run ``body()`` with a task beside it that is cancelled at its end.

    What a nursery would do, except that an error of ``body`` comes out as it is, in no
    group, and is not lost in a cancellation that comes from outside.

    Args:
        task: Runs beside; it shall raise nothing but cancellations.
        body: Whose result counts.
        stop: Called when ``body`` has ended, before the task is cancelled.
    """
    # A cancellation that is kept here comes from a scope around the nursery, or else
    # the nursery raises what has cancelled it.
    ended: outcome.Outcome[None] = outcome.Value(None)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(task)
            ended = await outcome.acapture(body)
            stop()
            nursery.cancel_scope.cancel()
    except BaseException as raised:
        if _is_cancelled(raised) and not _is_cancelled(ended):
            ended.unwrap()
        raise
    else:
        ended.unwrap()
    finally:
        # An error's traceback holds this frame: leave no cycle behind.
        del ended


def _is_cancelled(ended: BaseException | outcome.Outcome[None]) -> bool:
    """Whether this is a cancellation, or a group of nothing else."""
    error = ended.error if isinstance(ended, outcome.Error) else ended
    return isinstance(error, BaseException) and all(
        isinstance(leaf, trio.Cancelled) for leaf in leaves(error)
    )

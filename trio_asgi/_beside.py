"""A task beside another piece of work, which ends with it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import outcome
import trio

from ._errors import leaves, raise_sole_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup


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
        if all(isinstance(leaf, trio.Cancelled) for leaf in leaves(raised)):
            ended.unwrap()
            if isinstance(raised, BaseExceptionGroup):
                raise_sole_error(raised)
        raise
    else:
        ended.unwrap()
    finally:
        # An error's traceback holds this frame: leave no cycle behind.
        del ended

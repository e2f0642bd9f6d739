"""Run tasks beside a piece of work, and end them with it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import trio

from trio_asgi.errors import leaves, raise_sole_error

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
    """Run ``body()`` with a task beside it; see `run_in_nursery`."""
    await run_in_nursery(lambda nursery: nursery.start_soon(task), body, stop=stop)


async def run_in_nursery(
    begin: Callable[[trio.Nursery], object],
    body: Callable[[], Awaitable[None]],
    *,
    stop: Callable[[], None] = lambda: None,
) -> None:
    """Run ``body()`` in a nursery that is cancelled when ``body`` ends.

    An error of ``body`` is raised without a group around it, and is not lost when a
    cancellation comes from outside.

    Args:
        begin: Called first. The tasks that it starts, then or later, must raise nothing
            but cancellations.
        body: Runs in the calling task.
        stop: Called when ``body`` has ended, before the nursery is cancelled.
    """
    # A Cancelled kept here comes from a scope around the nursery: otherwise the nursery
    # raises the error that has cancelled it.
    error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            begin(nursery)
            try:
                await body()
            except BaseException as raised:  # noqa: BLE001 - raised again below
                error = raised
            stop()
            if nursery.child_tasks:
                nursery.cancel_scope.cancel()
    except BaseException as raised:
        if all(isinstance(leaf, trio.Cancelled) for leaf in leaves(raised)):
            if error is not None:
                raise error  # noqa: B904 - it was first
            if isinstance(raised, BaseExceptionGroup):
                raise_sole_error(raised)
        raise
    else:
        if error is not None:
            raise error
    finally:
        # Its traceback holds this frame: leave no cycle behind.
        del error

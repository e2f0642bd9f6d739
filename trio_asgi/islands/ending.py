"""The end of asyncio tasks that islands have started."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import sys
from typing import TYPE_CHECKING, Any

from trio_asgi.threads.abandon import (
    ABANDONED,
    INTERVAL,
    describe_asyncio_task,
    forget_asyncio_task,
)
from trio_asgi.threads.current import current_pool
from trio_asgi.threads.lease import lease_of
from trio_asgi.threads.loop import current_loop

if TYPE_CHECKING:
    from trio_asgi.hosts.asyncio_calls import HostLoop

logger = logging.getLogger("trio_asgi")


async def cancel_tasks(tasks: list[asyncio.Task[Any]], seconds: float) -> None:
    """Cancel tasks of this loop, and wait for them. Asyncio task."""
    for task in tasks:
        task.cancel()
    _, left = await asyncio.wait(tasks, timeout=seconds)
    for task in left:
        logger.error(ABANDONED, describe_asyncio_task(task), "nobody")
        forget_asyncio_task(task)


async def end_host_tasks(host: HostLoop, owner: object) -> None:
    """Do so on a host loop, which also runs tasks of the server."""
    tasks = []
    for task in asyncio.all_tasks(host.loop):
        place = _context_of(task).get(current_loop)
        if place is not None and lease_of(place).owner is owner:
            tasks.append(task)
    if tasks:
        seconds = current_pool().shutdown_seconds + 5 * INTERVAL
        await host.run_aio_coroutine(cancel_tasks(tasks, seconds))


if sys.version_info >= (3, 12):

    def _context_of(task: asyncio.Task[Any]) -> contextvars.Context:
        return task.get_context()

else:

    def _context_of(task: asyncio.Task[Any]) -> contextvars.Context:
        # No attribute tells it, but the garbage collector does: it comes first.
        for referent in gc.get_referents(task):
            if isinstance(referent, contextvars.Context):
                return referent
        return contextvars.Context()

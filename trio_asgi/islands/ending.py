"""The end of asyncio tasks that islands have started."""

from __future__ import annotations

import asyncio
import contextvars
import logging
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
    """Do so on a host loop, which also runs tasks of the server.

    Up to Python 3.11 asyncio does not tell a task's context; there these tasks run on,
    until the server ends its loop.
    """
    tasks = []
    for task in asyncio.all_tasks(host.loop):
        get_context = getattr(
            task, "get_context", contextvars.Context
        )  # new in Python 3.12
        place = get_context().get(current_loop)
        if place is not None and lease_of(place).owner is owner:
            tasks.append(task)
    if tasks:
        seconds = current_pool().shutdown_seconds + 5 * INTERVAL
        await host.run_aio_coroutine(cancel_tasks(tasks, seconds))

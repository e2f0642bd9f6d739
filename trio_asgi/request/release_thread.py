"""`release_thread`: giving the thread back before the request ends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import trio
from django.db import close_old_connections, connections

from trio_asgi.islands.functions import run_on_trio
from trio_asgi.threads.current import current_pool
from trio_asgi.threads.lease import lease_of
from trio_asgi.threads.loop import current_loop
from trio_asgi.threads.trio_state import in_trio_run, in_trio_task

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper


async def release_thread() -> None:
    """Give the thread of this request back, before the task waits for long.

    For async views, streams and tasks of `ASGIHandler.start_soon`. From the first sync
    call on, a request has a thread, and with it a database connection. Here both become
    free for other requests. The next sync call of the request takes any thread, and
    waits for one if ``TRIO_ASGI["MAX_HELD_THREADS"]`` are taken.

    What a sync call has left in the thread, as a cursor or a value in a
    `threading.local`, is not there for the next one. In the old thread and in the new
    one, connections that are too old or unusable are closed, as between two requests.
    If a sync hook of the project's middleware, or a receiver of ``request_started``,
    has run in the old thread, it may have left something there that it takes away only
    at the request's end: then that thread ends.

    Waits for its turn if a sync call of another task is running in the thread. If it is
    cancelled before, the thread stays. Does nothing but a checkpoint if the request has
    no thread, or has that of a test, or if there is no request.

    Raises:
        RuntimeError: a transaction is open in the thread, or sync code in it waits for
            this task in `async_to_sync` or `trio.from_thread.run`.
        trio.Cancelled: the task was cancelled.
    """
    if in_trio_task():
        await _release_thread()
    elif in_trio_run():
        await run_on_trio(_release_thread)
    else:
        await asyncio.sleep(0)


async def _release_thread() -> None:
    loop = current_loop.get()
    if loop is None or loop.pool is not current_pool():
        await trio.lowlevel.checkpoint()
    else:
        # The thread's connections may have been idle for long by then.
        await lease_of(loop).release_thread(_end_work, on_take=close_old_connections)


def _end_work() -> None:
    """Do for the connections of this thread what a request's end does. Worker thread.

    Raises:
        RuntimeError: a transaction is open.
    """
    used = connections.all(initialized_only=True)
    busy = [connection.alias for connection in used if _in_transaction(connection)]
    if busy:
        raise RuntimeError(
            "release_thread() was called in a transaction, which another request would "
            f"find in this thread. End it first. Databases: {', '.join(busy)}."
        )
    close_old_connections()


def _in_transaction(connection: BaseDatabaseWrapper) -> bool:
    # Without autocommit whoever has turned it off may have a transaction open.
    usual = connection.settings_dict["AUTOCOMMIT"]
    return connection.in_atomic_block or (
        connection.connection is not None and connection.autocommit != usual
    )

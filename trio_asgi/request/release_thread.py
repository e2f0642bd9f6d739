"""`release_thread` gives the thread back before the request ends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import trio
from django.db import close_old_connections

from trio_asgi.bridge.connections import used_connections
from trio_asgi.islands.functions import run_on_trio
from trio_asgi.threads.current import current_pool
from trio_asgi.threads.lease import lease_of
from trio_asgi.threads.loop import current_loop
from trio_asgi.threads.trio_state import in_trio_run, in_trio_task

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper


async def release_thread() -> None:
    """Give the thread of this request back, before the task waits for a long time.

    For async views, streams and tasks of `ASGIHandler.start_soon`. A request holds a
    thread from its first sync call on, and usually a database connection. This call
    frees both for other requests. The request's next sync call takes any thread, and
    waits for one if ``TRIO_ASGI["MAX_HELD_THREADS"]`` threads are taken.

    The next sync call does not find what an earlier one left in the thread, such as a
    cursor or a value in a `threading.local`. Connections that are too old or unusable
    are closed in both threads, as between two requests. If a sync hook of the project's
    middleware, or a receiver of ``request_started``, has run in the old thread, that
    thread ends: the hook might clean up there only at the request's end.

    Waits while a sync call of another task runs in the thread; if cancelled meanwhile,
    the thread stays. Only a checkpoint if the request has no thread or a test's, or if
    there is no request.

    Raises:
        RuntimeError: a transaction is open in the thread, or sync code there waits for
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
        # By the next call, its thread's connections may have been idle for long.
        await lease_of(loop).release_thread(_end_work, on_take=close_old_connections)


def _end_work() -> None:
    """Close this thread's old connections, as a request's end does. Worker thread.

    Raises:
        RuntimeError: a transaction is open.
    """
    used = used_connections()
    busy = [connection.alias for connection in used if _in_transaction(connection)]
    if busy:
        raise RuntimeError(
            "release_thread() was called in a transaction, which another request would "
            f"find in this thread. End it first. Databases: {', '.join(busy)}."
        )
    close_old_connections()


def _in_transaction(connection: BaseDatabaseWrapper) -> bool:
    # Code that turned autocommit off may have a transaction open.
    usual = connection.settings_dict["AUTOCOMMIT"]
    return connection.in_atomic_block or (
        connection.connection is not None and connection.autocommit != usual
    )

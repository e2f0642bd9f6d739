"""The database connections of worker threads."""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

import sniffio
from django.conf import settings
from django.db import connections

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from django.db.backends.base.base import BaseDatabaseWrapper

logger = logging.getLogger("trio_asgi")


def tidy_up() -> None:
    """Clean up this thread's connections for its next user. Worker thread.

    Beyond `close_old_connections`, this rolls back open transactions, which Django
    leaves to the end of the thread. Never raises: a connection that cannot be closed is
    logged and dropped.
    """
    for connection in used_connections():
        alias = connection.alias
        try:
            if not connection.in_atomic_block:
                connection.close_if_unusable_or_obsolete()
                continue
            if connection.allow_thread_sharing:
                continue  # a live server's, and the transaction is the test's
            message = "A transaction was left open in database %r, and is rolled back."
            logger.error(message, alias)
            connection.close()
        except Exception:
            message = (
                "The connection to database %r could not be closed, and is dropped."
            )
            logger.exception(message, alias)
        del connections[alias]


def close_connections() -> None:
    """Close the connections of this thread before it ends. Worker thread."""
    for connection in used_connections():
        connection.close()


def in_transaction() -> bool:
    """Whether a connection of this thread is in a transaction. Any thread."""
    return any(connection.in_atomic_block for connection in used_connections())


def used_connections() -> Sequence[BaseDatabaseWrapper]:
    """Return the connections that were opened in this thread. Any thread."""
    if sniffio.thread_local.name is None and asyncio._get_running_loop() is None:
        # What `all` finds where no loop runs. Its `hasattr` takes ten times as long.
        opened = vars(connections._connections._storage)  # type: ignore[attr-defined]
        if not opened:
            return ()
        return [opened[alias] for alias in connections.settings if alias in opened]
    # Without settings there are no databases, and the call would fail.
    return connections.all(initialized_only=True) if settings.configured else ()


def opened_connections() -> Mapping[str, BaseDatabaseWrapper]:
    """Return this thread's own dict of its connections, by alias. Worker thread.

    It changes with them, so another thread can see which connections there are.
    """
    return vars(connections._connections._storage)  # type: ignore[attr-defined]


@contextmanager
def keep_connections() -> Iterator[None]:
    """Let Django close no connection of this thread as old or unusable. Any thread.

    In a transaction Django takes every connection for unusable. Its test client
    disconnects the receiver for that time, but in all threads. Blocks may nest, when a
    request is made during another in a test's thread.
    """
    name = "close_if_unusable_or_obsolete"
    used = map(vars, used_connections())
    # Without those that an outer block keeps.
    kept = [attributes for attributes in used if name not in attributes]
    for attributes in kept:
        attributes[name] = lambda: None
    try:
        yield
    finally:
        for attributes in kept:
            del attributes[name]

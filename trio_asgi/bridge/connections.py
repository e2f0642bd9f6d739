"""The database connections of a worker thread, between two users of the thread."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from django.conf import settings
from django.db import connections

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from django.db.backends.base.base import BaseDatabaseWrapper

logger = logging.getLogger("trio_asgi")


def tidy_up() -> None:
    """Leave nothing in this thread's connections for its next user. Worker thread.

    What `close_old_connections` does, and more: Django leaves a connection alone that
    is in a transaction, because it ends the thread. A connection that cannot be closed
    is logged and dropped, so this never raises.
    """
    for connection in _used():
        _tidy(connection)


def _tidy(connection: BaseDatabaseWrapper) -> None:
    alias = connection.alias
    try:
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()
            return
        logger.error(
            "A transaction was left open in database %r, and is rolled back.", alias
        )
        connection.close()
    except Exception:
        logger.exception(
            "The connection to database %r could not be closed, and is dropped.", alias
        )
    del connections[alias]


def close_connections() -> None:
    """Close the connections of this thread, which ends. Worker thread."""
    for connection in _used():
        connection.close()


def in_transaction() -> bool:
    """Whether a connection of this thread is in a transaction. Any thread."""
    return any(connection.in_atomic_block for connection in _used())


def _used() -> Sequence[BaseDatabaseWrapper]:
    """Return the connections that code has used in this thread."""
    # Without settings there are no databases, and asking for them would fail.
    return connections.all(initialized_only=True) if settings.configured else []


@contextmanager
def keep_connections() -> Iterator[None]:
    """Have Django close no connection of this thread as old or unusable. Any thread.

    In a transaction it takes each for unusable. Its test client disconnects the
    receiver meanwhile, but that is for all threads. Blocks may nest, as requests do of
    which one is made by another in the thread of a test.
    """
    name = "close_if_unusable_or_obsolete"
    used = map(vars, connections.all(initialized_only=True))
    # What an outer block keeps is left to that.
    kept = [attributes for attributes in used if name not in attributes]
    for attributes in kept:
        attributes[name] = lambda: None
    try:
        yield
    finally:
        for attributes in kept:
            del attributes[name]

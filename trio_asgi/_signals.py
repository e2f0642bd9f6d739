"""``request_started`` and ``request_finished``: once each, in the request's thread."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from django.core import signals
from django.db import connections

from ._worker import current_pool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.http import HttpResponseBase

    from ._types import Scope


class RequestSignals:
    """The two signals of one request. Used in the request's worker thread."""

    def __init__(self, sender: type[Any], *, keep_connections: bool = False) -> None:
        """Send nothing yet.

        Args:
            sender: The handler's class, which is the sender of both.
            keep_connections: Whether the thread and its connections are a test's: then
                Django's receiver of both signals must not close them.
        """
        self._sender = sender
        self._around = _keep_connections if keep_connections else nullcontext
        #: Whether the request has started, and its end is still to be signalled.
        self.pending = False

    def send_started(self, scope: Scope) -> None:
        """Send ``request_started``. Worker thread."""
        # Noted first: even if a receiver fails, others may have been called, and want
        # to hear of the end.
        self.pending = True
        with self._around():
            signals.request_started.send(sender=self._sender, scope=scope)

    def send_finished(self, response: HttpResponseBase | None) -> None:
        """Close the response, if there is one, and send ``request_finished`` once.

        Does nothing the second time, nor if the request has not started. Worker thread.
        """
        if not self.pending:
            return
        self.pending = False
        with self._around():
            if response is None:
                signals.request_finished.send(sender=self._sender)
            else:
                # Django sends the signal from there.
                response._handler_class = self._sender  # type: ignore[attr-defined]
                response.close()


async def join_transaction() -> None:
    """Have requests run in the thread of a test's transaction, if there is one.

    `TestCase` holds it in the thread that waits in `async_to_sync`. If that thread is
    busy, it is not asked: it may wait for this very request.
    """
    pool = current_pool()
    if pool.caller_is_free and await pool.program_lease().run_sync(_in_transaction):
        pool.lend_to_requests()


def _in_transaction() -> bool:
    used = connections.all(initialized_only=True)
    return any(connection.in_atomic_block for connection in used)


@contextmanager
def _keep_connections() -> Iterator[None]:
    """Have Django close no connection of this thread as old or unusable. Any thread.

    In a transaction it takes each for unusable. Its test client disconnects the
    receiver meanwhile, but that is for all threads.
    """
    kept = [vars(connection) for connection in connections.all(initialized_only=True)]
    for attributes in kept:
        attributes["close_if_unusable_or_obsolete"] = lambda: None
    try:
        yield
    finally:
        for attributes in kept:
            del attributes["close_if_unusable_or_obsolete"]

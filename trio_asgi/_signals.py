"""``request_started`` and ``request_finished``: once each, in the request's thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core import signals

if TYPE_CHECKING:
    from django.http import HttpResponseBase

    from ._types import Scope


class RequestSignals:
    """The two signals of one request. Used in the request's worker thread."""

    def __init__(self, sender: type[Any]) -> None:
        """Take the handler's class, which is the sender of both."""
        self._sender = sender
        #: Whether the request has started, and its end is still to be signalled.
        self.pending = False

    def send_started(self, scope: Scope) -> None:
        """Send ``request_started``. Worker thread."""
        # Noted first: even if a receiver fails, others may have been called, and want
        # to hear of the end.
        self.pending = True
        signals.request_started.send(sender=self._sender, scope=scope)

    def send_finished(self, response: HttpResponseBase | None) -> None:
        """Close the response, if there is one, and send ``request_finished`` once.

        Does nothing the second time, nor if the request has not started. Worker thread.
        """
        if not self.pending:
            return
        self.pending = False
        if response is None:
            signals.request_finished.send(sender=self._sender)
        else:
            # Django sends the signal from there.
            response._handler_class = self._sender  # type: ignore[attr-defined]
            response.close()

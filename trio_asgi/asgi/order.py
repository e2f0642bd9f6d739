"""The order in which an application may send its messages.

The table lists the messages allowed in each state, and the state after each.
`ResponseSender` checks this package, `testing.ApplicationCommunicator` any application.
Source: the ASGI specifications of HTTP, WebSocket and lifespan.

                  start                     last body
    HTTP:  NOTHING ───► STARTED ──► body... ──────────► COMPLETE
                                      │ last body, and trailers were announced
                                      └───────────────► TRAILERS ──► COMPLETE
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

from trio_asgi.errors import ASGIOrderError

if TYPE_CHECKING:
    from .types import Message


class SendState(Enum):
    """How much of its answer the application has sent."""

    NOTHING = "nothing was sent yet"
    STARTED = "the response has started"
    TRAILERS = "the body is complete, and trailers were announced"
    ACCEPTED = "the connection was accepted"
    DENYING = "the handshake is being answered over HTTP"
    RUNNING = "the start-up is complete"
    COMPLETE = "everything was sent"

    #: Enum's own is a Python function.
    __hash__ = object.__hash__


_S = SendState

_ORDER: Final[dict[str, dict[SendState, dict[str, SendState]]]] = {
    "http": {
        _S.NOTHING: {
            "http.response.debug": _S.NOTHING,
            "http.response.early_hint": _S.NOTHING,
            "http.response.push": _S.NOTHING,
            "http.response.start": _S.STARTED,
        },
        _S.STARTED: {
            "http.response.push": _S.STARTED,
            "http.response.body": _S.STARTED,
            "http.response.body (last)": _S.COMPLETE,
            "http.response.zerocopysend": _S.STARTED,
            "http.response.zerocopysend (last)": _S.COMPLETE,
            "http.response.pathsend": _S.COMPLETE,
        },
        _S.TRAILERS: {
            "http.response.trailers": _S.TRAILERS,
            "http.response.trailers (last)": _S.COMPLETE,
        },
        _S.COMPLETE: {},
    },
    "websocket": {
        _S.NOTHING: {
            "websocket.accept": _S.ACCEPTED,
            "websocket.close": _S.COMPLETE,
            "websocket.http.response.start": _S.DENYING,
        },
        _S.ACCEPTED: {"websocket.send": _S.ACCEPTED, "websocket.close": _S.COMPLETE},
        _S.DENYING: {
            "websocket.http.response.body": _S.DENYING,
            "websocket.http.response.body (last)": _S.COMPLETE,
        },
        _S.COMPLETE: {},
    },
    "lifespan": {
        _S.NOTHING: {
            "lifespan.startup.complete": _S.RUNNING,
            "lifespan.startup.failed": _S.COMPLETE,
        },
        _S.RUNNING: {
            "lifespan.shutdown.complete": _S.COMPLETE,
            "lifespan.shutdown.failed": _S.COMPLETE,
        },
        _S.COMPLETE: {},
    },
}

#: The key by which a message says that more of its kind follow.
_MORE: Final = {
    "http.response.body": "more_body",
    "http.response.zerocopysend": "more_body",
    "http.response.trailers": "more_trailers",
    "websocket.http.response.body": "more_body",
}


class SendOrder:
    """What an application has sent in one call, for a scope's ``type``."""

    def __init__(self, protocol: str) -> None:
        self._table = _ORDER[protocol]
        self._trailers = False
        self.state = SendState.NOTHING

    def advance(self, message: Message) -> None:
        """Note a message that is about to be sent.

        Raises:
            ASGIOrderError: the message is not allowed now; the state is unchanged.
        """
        event = message["type"]
        more = _MORE.get(event)
        if more is not None and not message.get(more, False):
            event += " (last)"
        allowed = self._table[self.state]
        if event not in allowed:
            expected = " or ".join(allowed) or "nothing any more"
            raise ASGIOrderError(
                f"{event} may not be sent when {self.state.value}: expected {expected}."
            )
        if event == "http.response.start":
            self._trailers = message.get("trailers", False)
        self.state = allowed[event]
        if self._trailers and event == "http.response.body (last)":
            self.state = SendState.TRAILERS

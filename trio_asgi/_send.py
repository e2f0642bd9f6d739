"""The one writer, and the order in which an application may send its messages.

The order is a table: in which state which message may come, and the state after it.
`ResponseSender` holds this package to it, `testing.ApplicationCommunicator` any
application. Source: the ASGI specifications of HTTP, WebSocket and lifespan.

                  start                     last body
    HTTP:  NOTHING ───► STARTED ──► body... ──────────► COMPLETE
                                      │ last body, and trailers were announced
                                      └───────────────► TRAILERS ──► COMPLETE
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

import trio

from ._beside import run_beside
from ._errors import ASGIOrderError, ClientDisconnected

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ._receive import Receiver
    from ._types import Message, Send


class SendState(Enum):
    """How far the application has come with its answer."""

    NOTHING = "nothing was sent yet"
    STARTED = "the response has started"
    TRAILERS = "the body is complete, and trailers were announced"
    ACCEPTED = "the connection was accepted"
    DENYING = "the handshake is being answered over HTTP"
    RUNNING = "the start-up is complete"
    COMPLETE = "everything was sent"


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
        _S.ACCEPTED: {
            "websocket.send": _S.ACCEPTED,
            "websocket.close": _S.COMPLETE,
        },
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

#: Messages that say themselves whether they are the last of their kind.
_MORE: Final = {
    "http.response.body": "more_body",
    "http.response.zerocopysend": "more_body",
    "http.response.trailers": "more_trailers",
    "websocket.http.response.body": "more_body",
}


class SendOrder:
    """Where the application stands in the order of its messages."""

    def __init__(self, protocol: str) -> None:
        """Start a conversation of a protocol: a scope's ``type``."""
        self._table = _ORDER[protocol]
        self._trailers = False
        self.state = SendState.NOTHING

    def advance(self, message: Message) -> None:
        """Take note of a message that is about to be sent.

        Raises:
            ASGIOrderError: it may not come now; the state stays as it was.
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


class ResponseSender:
    """A server's ``send``, for one response. Only one task may call it."""

    def __init__(
        self,
        send: Send,
        receiver: Receiver | None = None,
        *,
        wants_body: bool = True,
        takes_paths: bool = False,
    ) -> None:
        """Send nothing yet.

        Args:
            send: The server's.
            receiver: What the request's body comes from; None: all of it has come.
            wants_body: Whether a body is sent at all; the answer to HEAD has none.
            takes_paths: Whether the server sends files by itself
                (``http.response.pathsend``).
        """
        self._send = send
        self._receiver = receiver
        self._order = SendOrder("http")
        self.wants_body = wants_body
        self.takes_paths = takes_paths

    @property
    def complete(self) -> bool:
        """Whether the last message was handed to the server, or is just being so.

        A server may report the disconnect while it still sends that message.
        """
        return self._order.state is SendState.COMPLETE

    async def beside_body(self, send: Callable[[], Awaitable[None]]) -> None:
        """Send a response in one piece; meanwhile drop what comes of the body.

        Nobody reads it any more. A client that reads nothing before it has sent all
        would wait for us, and we for it.
        """
        if self._receiver is None or self._receiver.complete:
            await send()
        else:
            await run_beside(self._receiver.drop_rest, send)

    async def __call__(self, message: Message) -> None:
        """Send a message; a checkpoint if it is the last one.

        Raises:
            ClientDisconnected: the server said so, by an OSError as ASGI 2.4 has it, or
                by one of Trio's errors about a connection that is gone.
            ASGIOrderError: the message may not come now.
        """
        receiver = self._receiver
        if receiver is not None and not receiver.begun:
            await receiver.wait_begun()
        self._order.advance(message)
        if self.complete:
            if receiver is not None and not receiver.complete:
                await self._send_last_early(message, receiver)
                return
            # hypercorn 0.18 drops what is sent while it refuses bytes that the client
            # sent too much, and does so without a checkpoint. If it is not given one
            # before the end, its two tasks write at the same time, and its worker dies.
            await trio.lowlevel.checkpoint()
        await self._pass_on(message)

    async def _send_last_early(self, message: Message, receiver: Receiver) -> None:
        """Send the last message while the client still sends its body.

        The server closes the connection then. Before that, the client gets some time to
        read the answer. And as long as messages wait for us, the server may be busy
        with handing over the next, and could not even close.
        """

        async def send_last() -> None:
            last = message
            if last["type"] == "http.response.body":
                if last.get("body"):
                    await self._pass_on({**last, "more_body": True})
                    last = {"type": "http.response.body"}
                await receiver.linger()
            await self._pass_on(last)

        await self.beside_body(send_last)

    async def _pass_on(self, message: Message) -> None:
        try:
            await self._send(message)
        except (
            OSError,
            trio.BusyResourceError,
            trio.BrokenResourceError,
            trio.ClosedResourceError,
        ) as error:
            if message["type"] == "http.response.pathsend" and isinstance(
                getattr(error, "filename", None), str
            ):
                raise  # about the file, and not about the client
            raise ClientDisconnected from error

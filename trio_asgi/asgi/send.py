"""Sends a response, and keeps track of how much of it was sent."""

from __future__ import annotations

import functools
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import trio

from trio_asgi.errors import ClientDisconnected

from .connection import shut_down_unread_connection
from .nursery import run_beside
from .order import SendOrder, SendState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio.lowlevel import Task

    from .receive import Receiver
    from .types import Message, Send


#: Statuses whose responses have no body, whatever their headers say.
BODYLESS: Final = frozenset({204, 304})

#: Seconds that a server may take to end a response that no longer reaches the client.
END_SECONDS: Final = 1.0

#: Bytes of one filler message in `ResponseSender.finish_cut_off`.
_FILLER: Final = 2**24


class ResponseSender(SendOrder):
    """A server's ``send``, for one response. Only one task may call it."""

    #: Whether all of the body is there at the start. Then all of it is sent even if the
    #: client has left: a server that does not get the end may keep the connection.
    in_one_piece = False
    #: How many messages the server was given, and the task that waits while it sends
    #: one. None for ``http.response.pathsend``, which is one message of any size.
    turn = 0
    waiting: Task | None = None
    #: Set when the client has not taken a message for too long.
    given_up = False
    #: Set when the server has taken the last message.
    handed_over = False
    #: The ``http.response.start`` message, and the bytes of the body sent after it.
    _start: Message = MappingProxyType({})
    _sent = 0

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
            receiver: The reader of the request's body; None: all of it has come.
            wants_body: Whether to send a body; the answer to HEAD has none.
            takes_paths: Whether the server supports ``http.response.pathsend``.
        """
        super().__init__("http")
        self._send = send
        self._receiver = receiver
        self.wants_body = wants_body
        self.takes_paths = takes_paths

    @property
    def begun(self) -> bool:
        """Whether the response has started, so that no other can be sent."""
        return self.state is not SendState.NOTHING

    @property
    def complete(self) -> bool:
        """Whether the server has the last message, perhaps still sending it.

        It may report the disconnect meanwhile.
        """
        return self.state is SendState.COMPLETE

    @property
    def settled(self) -> bool:
        """Whether the rest can be sent without running any more of the project."""
        return self.complete or (self.in_one_piece and self.begun)

    @property
    def is_http1(self) -> bool:
        """Whether the connection carries one response at a time."""
        return self._receiver is None or self._receiver.is_http1

    async def beside_body(self, send: Callable[[], Awaitable[None]]) -> None:
        """Run ``send()``; meanwhile receive and drop the rest of the request's body.

        Otherwise a client that sends all of it before it reads would wait for us, and
        we for it.
        """
        if self._receiver is None or self._receiver.complete:
            await send()
        else:
            await run_beside(self._receiver.drop_rest, send)

    async def __call__(self, message: Message) -> None:
        """Send a message; a checkpoint if it is the last one.

        Raises:
            ClientDisconnected: the server raised an OSError, as ASGI 2.4 says, or one
                of Trio's errors about a closed connection.
            ASGIOrderError: the message is not allowed now.
            RuntimeError: the body is longer or shorter than its ``Content-Length``.
            Exception: the server refuses the message. If it was the first, another
                response can be sent.
        """
        receiver = self._receiver
        if receiver is not None and not receiver.begun:
            await receiver.wait_begun()
        event = message["type"]
        if event == "http.response.body":
            self._sent += len(message.get("body", b""))
            # The length of a response in one piece was checked before.
            if not self.in_one_piece and self.begun and self._announced is not None:
                self._check_length(message, self._announced)
        self.advance(message)
        if event == "http.response.start":
            await self._send_start(message)
        elif self.state is not SendState.COMPLETE:
            await self._pass_on(message)
        elif receiver is not None and not receiver.complete:
            await self._send_last_early(message, receiver)
        else:
            await self._send_last(message)

    async def send_whole(
        self, start: Message, body: bytes, *, before_last: Callable[[], object]
    ) -> None:
        """Send a response in two messages, and call a function between them.

        As two calls of this object would, but faster. Only if all of the request's body
        has come, and no response has started.
        """
        self.state = SendState.STARTED
        await self._send_start(start)
        before_last()
        self.state, self._sent = SendState.COMPLETE, len(body)
        await self._send_last(
            {"type": "http.response.body", "body": body, "more_body": False}
        )

    async def _send_start(self, message: Message) -> None:
        self._start = message
        try:
            await self._pass_on(message)
        except ClientDisconnected:
            raise
        except Exception:
            self.state = SendState.NOTHING
            raise

    async def _send_last(self, message: Message) -> None:
        # hypercorn 0.18 drops messages while it refuses surplus bytes from the client,
        # without a checkpoint. Unless there is one before the end, its two tasks write
        # at the same time, and its worker dies.
        await trio.lowlevel.checkpoint()
        await self._pass_on(message, last=True)

    def _check_length(self, message: Message, announced: int) -> None:
        """Raise RuntimeError for more bytes than announced, or for fewer at the end.

        h11 would raise a less helpful error, and then accept nothing any more.
        """
        if self._sent > announced or (
            self._sent < announced and not message.get("more_body")
        ):
            self._sent -= len(message.get("body", b""))
            than = "longer" if message.get("body") else "shorter"
            raise RuntimeError(
                f"The body of a response is {than} than its Content-Length, which is "
                f"{announced} bytes: the rest is cut off."
            )

    @functools.cached_property
    def _announced(self) -> int | None:
        """The bytes to send, by the response's Content-Length; None if not known."""
        if not self.wants_body or self._start["status"] in BODYLESS:
            return None
        for name, value in self._start.get("headers", ()):
            if name.lower() == b"content-length" and value.isdigit():
                return int(value)
        return None

    async def finish_cut_off(self) -> None:
        """Let the server end a response that was cut off, if it waits for the end.

        The connection is shut down first: the client must see that the response is cut
        off. A server that still reads from the client knows what to do.
        """
        if self.handed_over or not (self.begun and self.is_http1):
            return
        if not shut_down_unread_connection():
            return
        with trio.move_on_after(END_SECONDS, shield=True), suppress(Exception):
            missing = (self._announced or self._sent) - self._sent
            while missing > 0:
                # h11 counts the bytes, but nothing reads these.
                filler = bytes(min(missing, _FILLER))
                await self._send(
                    {"type": "http.response.body", "body": filler, "more_body": True}
                )
                missing -= len(filler)
            await self._send({"type": "http.response.body"})

    async def _send_last_early(self, message: Message, receiver: Receiver) -> None:
        """Send the last message while the client still sends its body.

        The server then closes the connection, so the client first gets some time to
        read the answer. Meanwhile messages are received: a server that waits to hand
        one over could not close.
        """

        async def send_last() -> None:
            last = message
            if last["type"] == "http.response.body":
                if last.get("body"):
                    await self._pass_on({**last, "more_body": True})
                    last = {"type": "http.response.body"}
                await receiver.linger()
            await self._pass_on(last, last=True)

        await self.beside_body(send_last)

    async def _pass_on(self, message: Message, *, last: bool = False) -> None:
        self.turn += 1
        if message["type"] != "http.response.pathsend":
            self.waiting = trio.lowlevel.current_task()
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
                raise  # about the file, not about the client
            raise ClientDisconnected from error
        finally:
            self.waiting = None
        if last:
            self.handed_over = True
        if self.given_up:
            raise ClientDisconnected

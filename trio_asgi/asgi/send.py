"""The one writer: what sends a response, and notes how far it has come."""

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

#: For how long a server may take to come to the end of a response that nobody gets.
END_SECONDS: Final = 1.0

_FILLER: Final = 2**24


class ResponseSender:
    """A server's ``send``, for one response. Only one task may call it."""

    #: Whether all of the body is there when it begins. Then it is sent to its end,
    #: though the client may have left: that costs nothing, and a server that gets no
    #: end may keep the connection.
    in_one_piece = False
    #: How many messages were begun to be handed over; and the task that does so, while
    #: it waits for the client. Not so for a file that the server sends by itself: that
    #: is one message, of any size.
    turn = 0
    waiting: Task | None = None
    #: Set when the client has not taken a message for too long.
    given_up = False
    #: Set when the last message was handed over.
    handed_over = False
    #: The first message, and how many bytes of the body came after it.
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
    def begun(self) -> bool:
        """Whether the response has started: no other one can be sent any more."""
        return self._order.state is not SendState.NOTHING

    @property
    def complete(self) -> bool:
        """Whether the last message was handed to the server, or is just being so.

        A server may report the disconnect while it still sends that message.
        """
        return self._order.state is SendState.COMPLETE

    @property
    def settled(self) -> bool:
        """Whether the rest will come to the server without any more of the project."""
        return self.complete or (self.in_one_piece and self.begun)

    @property
    def is_http1(self) -> bool:
        """Whether the connection is this response's alone."""
        return self._receiver is None or self._receiver.is_http1

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
            RuntimeError: the body is longer or shorter than its ``Content-Length``.
            Exception: the server refuses it. If it was the first one, another response
                can be sent.
        """
        receiver = self._receiver
        if receiver is not None and not receiver.begun:
            await receiver.wait_begun()
        event = message["type"]
        if event == "http.response.body":
            self._sent += len(message.get("body", b""))
            # What comes in one piece was compared before.
            if not self.in_one_piece and self.begun and self._announced is not None:
                self._check_length(message, self._announced)
        self._order.advance(message)
        if event == "http.response.start":
            self._start = message
            try:
                await self._pass_on(message)
            except ClientDisconnected:
                raise
            except Exception:
                self._order = SendOrder("http")
                raise
        elif not self.complete:
            await self._pass_on(message)
        elif receiver is not None and not receiver.complete:
            await self._send_last_early(message, receiver)
        else:
            # hypercorn 0.18 drops what is sent while it refuses bytes that the client
            # sent too much, and does so without a checkpoint. If it is not given one
            # before the end, its two tasks write at the same time, and its worker dies.
            await trio.lowlevel.checkpoint()
            await self._pass_on(message, last=True)

    def _check_length(self, message: Message, announced: int) -> None:
        """Refuse more bytes than were announced, or an end before.

        h11 would end in a state in which it takes nothing at all, and says less.
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
        """What the response's Content-Length says about the bytes that are sent."""
        if not self.wants_body or self._start["status"] in BODYLESS:
            return None
        for name, value in self._start.get("headers", ()):
            if name.lower() == b"content-length" and value.isdigit():
                return int(value)
        return None

    async def finish_cut_off(self) -> None:
        """Have the server come to the end of a response that has been cut off.

        If it still reads for the client, it knows how to go on. If it waits for us to
        come to an end, it gets one, which does not come to the client: the response
        shall be seen to be cut off, and not be taken for a whole one.
        """
        if self.handed_over or not (self.begun and self.is_http1):
            return
        if not shut_down_unread_connection():
            return
        with trio.move_on_after(END_SECONDS, shield=True), suppress(Exception):
            missing = (self._announced or self._sent) - self._sent
            while missing > 0:
                # h11 counts. Nothing of this is ever looked at, nor in memory.
                filler = bytes(min(missing, _FILLER))
                await self._send(
                    {"type": "http.response.body", "body": filler, "more_body": True}
                )
                missing -= len(filler)
            await self._send({"type": "http.response.body"})

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
                raise  # about the file, and not about the client
            raise ClientDisconnected from error
        finally:
            self.waiting = None
        if last:
            self.handed_over = True
        if self.given_up:
            raise ClientDisconnected

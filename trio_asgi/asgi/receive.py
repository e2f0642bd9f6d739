"""The one reader: first the request's body, then the news that the client has left.

A server's ``receive`` has one queue. Whoever calls it must be the only one, and must
have read all of the body before a disconnect can be seen. So all of a request read
through its `Receiver`, and one at a time calls the server for all:

    server ──► [messages that came ahead] ──► whoever reads the body
      ▲                                       (the handler, the view, a thread)
      └── called by a reader that finds nothing, or by the watcher, up to a bound

The watcher reads ahead, since the disconnect is behind the body.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from trio_asgi.errors import BodyTimeout, BodyTooLarge, ClientDisconnected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .types import Message, Receive, Scope

#: For how long the first message is waited for before an answer that needs none of the
#: body. Servers want to have been asked; but a client may wait, too. Seconds.
FIRST_SECONDS: Final = 0.05

#: For how long the rest of a body is received, and dropped, before the connection is
#: closed: so long a client has to read the answer. Seconds.
LINGER_SECONDS: Final = 2.0

#: How much of a body the watcher has received before it is read, besides the message
#: that exceeds it; bytes.
AHEAD: Final = 2**16


@dataclass(frozen=True)
class BodyLimits:
    """What a body may be at most."""

    #: Bytes; None: any size.
    size: int | None = None
    #: For how long the client is waited for without a byte; seconds.
    timeout: float = math.inf
    #: How many bytes give it back a second of that; 0: any byte gives back all.
    rate: float = 0
    #: For how long the client is waited for in all; seconds.
    total: float = math.inf


#: Frozen, so one for all.
_NO_LIMITS: Final = BodyLimits()


class Receiver:
    """A server's ``receive`` for one request, with limits, and with a memory.

    Owned by the request; any of its tasks may call it, and nothing is lost if one is
    cancelled. Each chunk of the body goes to one of them, in the order of asking.
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        """Receive nothing yet."""
        self._scope = scope
        self._receive = receive
        #: Whether a task calls the server just now.
        self._busy = False
        #: Where others wait for what that brings.
        self._news = trio.lowlevel.ParkingLot()
        #: Messages that nobody has asked for yet, and how many bytes they hold.
        self._ahead: deque[Message] = deque()
        self._ahead_size = 0
        #: What is allowed. May change while the body is being read.
        self.limits = _NO_LIMITS
        #: How many bytes of the body have come.
        self._size = 0
        #: For how long the client was waited for, in all, and how much of the time that
        #: it has without a byte is used up. The time in which nobody reads is not its.
        self._waited = self._used = 0.0
        #: Whether the server has been asked, and has answered.
        self.begun = False
        #: Whether all of the body has come.
        self.complete = False
        #: Whether the client has left.
        self.disconnected = False
        #: Which limit the body has passed: no more of it is wanted.
        self._passed: int | None = None
        #: Called when the client has left.
        self.on_disconnect: Callable[[], object] | None = None

    # What the headers say

    @property
    def may_have_body(self) -> bool:
        """Whether the request's headers leave room for a body."""
        announced = self._announced
        if self.is_http1:
            return (announced is not None and announced != 0) or any(
                name == b"transfer-encoding" for name, _ in self._headers
            )
        # HTTP/2 says so beside the headers, where no server tells it.
        if announced is None:
            return self._scope["method"] not in ("GET", "HEAD")
        return announced != 0

    @property
    def is_http1(self) -> bool:
        """Whether the connection is this request's alone."""
        version: str = self._scope.get("http_version", "1.1")
        return version < "2"

    @property
    def _announced(self) -> int | None:
        for name, value in self._headers:
            if name == b"content-length":
                return int(value) if value.isdigit() else -1
        return None

    @property
    def _headers(self) -> Iterable[tuple[bytes, bytes]]:
        headers: Iterable[tuple[bytes, bytes]] = self._scope.get("headers", ())
        return headers

    # For those who read

    async def check_announced_size(self) -> None:
        """Refuse a body that is announced to be larger than allowed.

        Raises:
            BodyTooLarge: it is; the server was asked for something before, if it gives
                anything soon.
            ClientDisconnected: it is, and the client has left.
        """
        limit, announced = self.limits.size, self._announced
        if limit is not None and announced is not None and announced > limit:
            await self.wait_begun()
            if self.disconnected:
                raise ClientDisconnected
            raise BodyTooLarge(limit)

    async def __call__(self) -> Message:
        """Return the next message of the body: ASGI's ``receive``, for `read_body`.

        Raises:
            BodyTooLarge: the body has become larger than is allowed.
            BodyTimeout: no byte has come for longer than is allowed, or too few have.
        """
        if not self._has_news():
            await self._wait_news()
        if self._ahead:
            message = self._ahead.popleft()
            size = len(message.get("body") or b"")
            self._ahead_size -= size
            rate = self.limits.rate
            self._used = max(self._used - size / rate, 0.0) if rate else 0.0
            # The watcher may wait for room.
            self._news.unpark_all()
            return message
        if self._passed is not None:
            raise BodyTooLarge(self._passed)
        if self.disconnected:
            return {"type": "http.disconnect"}
        return {"type": "http.request"}

    async def read_chunk(self) -> bytes:
        """Return some bytes of the body, as they come; none at its end.

        No checkpoint where there is nothing to wait for.

        Raises:
            ClientDisconnected: the client has left.
            BodyTooLarge, BodyTimeout: as `__call__`.
        """
        message: Message = {"more_body": True}
        while message.get("more_body"):
            message = await self()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            if chunk := message.get("body"):
                return bytes(chunk)
        return b""

    async def wait_begun(self) -> None:
        """Wait until the server has sent anything, but no longer than a moment."""
        if not self.begun:
            with trio.move_on_after(FIRST_SECONDS):
                while not self.begun:
                    await self._receive_or_park()

    async def linger(self) -> None:
        """Let the client send on for some time, and drop what it sends.

        A connection that is closed while bytes arrive is reset, and then the client
        may lose the answer. Most stop when they have read it. HTTP/2 has a connection
        for many requests, which is not closed.
        """
        if self.is_http1:
            with trio.move_on_after(LINGER_SECONDS):
                await self.drop_rest()

    async def drop_rest(self) -> None:
        """Receive the rest of the body, and drop it, whatever its size."""
        self.limits = _NO_LIMITS
        while not (self.complete or self.disconnected):
            self._drop()
            await self._receive_or_park()
        self._drop()

    def _drop(self) -> None:
        self._ahead.clear()
        self._ahead_size = 0

    async def _wait_news(self) -> None:
        """Wait for the client until there is a message, or an end of them."""
        limits = self.limits
        if limits.timeout == limits.total == math.inf:
            while not self._has_news():
                await self._receive_or_park()
            return
        left = limits.timeout - self._used
        total_left = limits.total - self._waited
        begun = trio.current_time()
        try:
            with trio.move_on_after(max(min(left, total_left), 0)):
                while not self._has_news():
                    await self._receive_or_park()
                return
        finally:
            seconds = trio.current_time() - begun
            self._used += seconds
            self._waited += seconds
        if total_left < left:
            raise BodyTimeout(limits.total, total=True)
        raise BodyTimeout(limits.timeout, limits.rate)

    def _has_news(self) -> bool:
        return bool(
            self._ahead
            or self.complete
            or self.disconnected
            or self._passed is not None
        )

    # For the watcher

    async def wait_disconnect(self) -> None:
        """Wait until the client has left; meanwhile receive the body ahead.

        Raises:
            AssertionError: the server sent what no server may send here.
        """
        while not (self.complete or self.disconnected):
            if self._ahead_size > AHEAD or self._passed is not None:
                await self._news.park()
            else:
                await self._receive_or_park()
        if self.disconnected:
            return
        message = await self._receive()
        if message["type"] != "http.disconnect":
            raise AssertionError(
                f"Invalid ASGI message after request body: {message['type']}"
            )
        self.disconnected = True

    # The server

    async def _receive_or_park(self) -> None:
        """Receive a message, or wait until another task has received one."""
        if self._busy:
            await self._news.park()
            return
        self._busy = True
        try:
            message = await self._receive()
            self.begun = True
            self._note(message)
        finally:
            self._busy = False
            self._news.unpark_all()

    def _note(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.disconnect":
            self.disconnected = True
            if self.on_disconnect is not None:
                self.on_disconnect()
            return
        if kind != "http.request":
            raise AssertionError(f"Invalid ASGI message in request body: {kind}")
        self.complete = not message.get("more_body", False)
        size = len(message.get("body") or b"")
        self._size += size
        if self.limits.size is not None and self._size > self.limits.size:
            self._passed = self.limits.size
        elif size:
            # An empty one is no news, unless it is the last.
            self._ahead.append(message)
            self._ahead_size += size

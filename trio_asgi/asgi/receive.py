"""The only caller of a server's ``receive``: for the body, then for the disconnect.

Only one task may call ``receive``, and the disconnect comes after the whole body. So
all readers of a request use its `Receiver`; one of them calls the server for all:

    server ──► [messages read ahead] ──► readers of the body
      ▲                                  (the handler, the view, a thread)
      └── called by a reader that finds none, or by the watcher, up to a bound
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from trio_asgi.errors import BodyTimeout, BodyTooLarge, ClientDisconnected

if TYPE_CHECKING:
    from collections.abc import Callable

    from .types import Message, Receive, Scope

#: Seconds to wait for the first message before an answer that does not need the body.
#: Servers expect a call of ``receive``, but the client may itself wait for the answer.
FIRST_SECONDS: Final = 0.05

#: Seconds in which the rest of a body is dropped before the connection is closed, so
#: that the client can read the answer.
LINGER_SECONDS: Final = 2.0

#: Bytes of a body beyond which the watcher stops reading ahead.
AHEAD: Final = 2**16


@dataclass(frozen=True)
class BodyLimits:
    """The limits of a request's body. Only time in which a task reads it counts."""

    #: Bytes; None: no limit.
    size: int | None = None
    #: Seconds to wait for the client without a byte.
    timeout: float = math.inf
    #: Bytes that give back one second of ``timeout``; 0: any byte gives back all of it.
    rate: float = 0
    #: Seconds to wait for the client in all.
    total: float = math.inf


_NO_LIMITS: Final = BodyLimits()

#: Methods of requests without a body.
_BODYLESS: Final = ("GET", "HEAD")


class Receiver:
    """A server's ``receive`` for one request, with limits and a buffer.

    Any task of the request may call it. If one is cancelled, nothing is lost. Each
    chunk of the body goes to one caller, in the order of the calls.
    """

    #: Whether a task is calling the server; where the others wait for its message.
    _busy = False
    _news: trio.lowlevel.ParkingLot | None = None
    #: Messages that nobody has asked for yet, and their size in bytes.
    _ahead: deque[Message] | None = None
    _ahead_size = 0
    #: May change while the body is being read.
    limits = _NO_LIMITS
    #: Bytes of the body that have come.
    _size = 0
    #: Seconds waited for the client in all, and used up of ``limits.timeout``.
    _waited = _used = 0.0
    #: Whether the server has given a first message.
    begun = False
    #: Whether all of the body has come.
    complete = False
    #: Whether the client has left.
    disconnected = False
    #: The size limit that the body has exceeded: no more of it is kept.
    _passed: int | None = None
    #: Called when the client leaves before the body is complete.
    on_disconnect: Callable[[], object] | None = None

    def __init__(self, scope: Scope, receive: Receive) -> None:
        """Receive nothing yet, but look at the headers."""
        self._receive = receive
        #: Whether the connection carries one request at a time.
        self.is_http1 = str(scope.get("http_version", "1.1")) < "2"
        headers = dict(scope.get("headers", ()))
        length: bytes | None = headers.get(b"content-length")
        #: The body's announced length in bytes; -1: it is not a number.
        self._announced: int | None = None
        if length is not None:
            self._announced = int(length) if length.isdigit() else -1
        may_have_body = bool(self._announced) or b"transfer-encoding" in headers
        #: Whether the headers say that there is no body. HTTP/2 cannot say it there.
        self.expects_no_body = self.is_http1 and not may_have_body
        #: Whether the request's headers allow a body.
        self.may_have_body = may_have_body or not (
            self.is_http1 or self._announced == 0 or scope["method"] in _BODYLESS
        )

    # For readers of the body

    async def receive_first(self) -> bool:
        """Receive the first message; return whether the body is complete and empty.

        Only if no other task receives yet.
        """
        message = await self._receive()
        self.begun = True
        self._note(message)
        return self.complete and not self._size

    async def check_announced_size(self) -> None:
        """Refuse a body whose ``Content-Length`` is larger than allowed.

        Raises:
            BodyTooLarge: it is larger. Raised after `wait_begun`.
            ClientDisconnected: it is larger, and the client has left.
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
            BodyTooLarge: the body is larger than allowed.
            BodyTimeout: the client sends too slowly.
        """
        if not self._has_news():
            await self._wait_news()
        if self._ahead:
            message = self._ahead.popleft()
            size = len(message.get("body") or b"")
            self._ahead_size -= size
            rate = self.limits.rate
            self._used = max(self._used - size / rate, 0.0) if rate else 0.0
            self._unpark()  # the watcher may wait for room
            return message
        if self._passed is not None:
            raise BodyTooLarge(self._passed)
        if self.disconnected:
            return {"type": "http.disconnect"}
        return {"type": "http.request"}

    async def read_chunk(self) -> bytes:
        """Return the next bytes of the body; none at its end.

        Not a checkpoint if bytes are there already.

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
        """Wait for the server's first message, at most `FIRST_SECONDS`."""
        if not self.begun:
            with trio.move_on_after(FIRST_SECONDS):
                while not self.begun:
                    await self._receive_or_park()

    async def linger(self) -> None:
        """Receive and drop the rest of the body, for at most `LINGER_SECONDS`.

        A connection closed while bytes arrive is reset, and the client may lose the
        answer. Most clients stop when they have read it. HTTP/2 connections stay open,
        so nothing is done there.
        """
        if self.is_http1:
            with trio.move_on_after(LINGER_SECONDS):
                await self.drop_rest()

    async def drop_rest(self) -> None:
        """Receive and drop the rest of the body, whatever its size."""
        self.limits = _NO_LIMITS
        while not (self.complete or self.disconnected):
            self._ahead, self._ahead_size = None, 0
            await self._receive_or_park()
        self._ahead, self._ahead_size = None, 0

    async def _wait_news(self) -> None:
        """Wait until there is a message, or until no more will come."""
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
        """Wait until the client has left; meanwhile read the body ahead.

        Raises:
            AssertionError: the server sent a message that ASGI does not allow here.
        """
        while not (self.complete or self.disconnected):
            if self._ahead_size > AHEAD or self._passed is not None:
                await self._park()
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
            await self._park()
            return
        self._busy = True
        try:
            message = await self._receive()
            self.begun = True
            self._note(message)
        finally:
            self._busy = False
            self._unpark()

    async def _park(self) -> None:
        if self._news is None:
            self._news = trio.lowlevel.ParkingLot()
        await self._news.park()

    def _unpark(self) -> None:
        if self._news is not None:
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
            if self._ahead is None:
                self._ahead = deque()
            self._ahead.append(message)
            self._ahead_size += size

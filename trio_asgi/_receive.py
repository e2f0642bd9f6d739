"""The one reader: first the request's body, then the news that the client has left.

A server's ``receive`` has one queue. Whoever calls it must be the only one, and must
have read all of the body before a disconnect can be seen:

    BEGINNING ──► BODY ──► BODY ... ──► COMPLETE ──► the disconnect
        └───────────┴─────────┴──────────────────────────▲
                     the client has left before, or a limit was passed

So all of a request read through its `Receiver`: whoever reads the body, the watcher
for the disconnect, and what lets go of the rest of a body that nobody wants.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from ._errors import BodyTimeout, BodyTooLarge, ClientDisconnected

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._types import Message, Receive, Scope

#: For how long a server is asked for the first message if the client waits to be told
#: that it may send its body. Seconds.
_EXPECTING_SECONDS: Final = 0.05

#: For how long the rest of a body is received, and dropped, before the connection is
#: closed: so long a client has to read the answer. Seconds.
LINGER_SECONDS: Final = 2.0


@dataclass(frozen=True)
class BodyLimits:
    """What a body may be at most."""

    #: Bytes; None: any size.
    size: int | None = None
    #: Seconds without a byte.
    timeout: float = math.inf


class Receiver:
    """A server's ``receive`` for one request, with limits, and with a memory.

    Any task of the request may call it; one at a time calls the server. A cancelled
    call loses nothing.
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        """Receive nothing yet."""
        self._scope = scope
        self._receive = receive
        #: Whether a task calls the server just now; and where others wait meanwhile.
        self._busy = False
        self._others = trio.lowlevel.ParkingLot()
        #: Received by `begin`, and to be given to whoever asks first.
        self._first: Message | None = None
        #: What is allowed. May change while the body is being read.
        self.limits = BodyLimits()
        #: How many bytes of the body have come.
        self.size = 0
        #: Whether all of the body has come.
        self.complete = False
        self._watcher: trio.Event | None = None
        #: Whether the client has left.
        self.disconnected = False
        #: Called when it has.
        self.on_disconnect: Callable[[], object] = lambda: None

    @property
    def announced(self) -> int | None:
        """The body's size as the client has announced it; None if it has not."""
        for name, value in self._scope.get("headers", ()):
            if name == b"content-length":
                return int(value) if value.isdigit() else None
        return None

    @property
    def may_have_body(self) -> bool:
        """Whether the request's headers leave room for a body.

        If not, the server says at once that there is none.
        """
        if self._scope.get("http_version", "1.1") < "2":
            return self.announced != 0 and any(
                name in (b"content-length", b"transfer-encoding")
                for name, _ in self._scope.get("headers", ())
            )
        # HTTP/2 says so beside the headers, where no server tells it.
        announced = self.announced
        return announced != 0 and (
            announced is not None or self._scope["method"] not in ("GET", "HEAD")
        )

    @property
    def has_body(self) -> bool:
        """Whether there is a body, as far as is known after `begin`."""
        return self.size > 0 or not self.complete

    @property
    def _is_too_large(self) -> bool:
        limit, announced = self.limits.size, self.announced
        return limit is not None and announced is not None and announced > limit

    async def begin(self) -> None:
        """Receive the first message, without which no server may be answered.

        Not waited for is a client that waits itself, for leave to send a body that is
        too large anyway.

        Raises:
            ClientDisconnected: the client has left.
            BodyTooLarge: as `__call__`, or that much is announced.
            BodyTimeout: as `__call__`.
        """
        if self._is_too_large and self._is_expected():
            with trio.move_on_after(_EXPECTING_SECONDS):
                self._first = await self._receive_next()
        else:
            self._first = await self._receive_next()
        if self.disconnected:
            raise ClientDisconnected
        if self._is_too_large:
            assert self.limits.size is not None
            raise BodyTooLarge(self.limits.size)

    def _is_expected(self) -> bool:
        return any(
            name == b"expect" and value.lower() == b"100-continue"
            for name, value in self._scope.get("headers", ())
        )

    async def __call__(self) -> Message:
        """Return the next message of the body: ASGI's ``receive``, for `read_body`.

        Raises:
            BodyTooLarge: the body has become larger than is allowed.
            BodyTimeout: no byte has come for longer than is allowed.
        """
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return await self._receive_next()

    async def read_chunk(self) -> bytes:
        """Return some bytes of the body, as they come; none at its end.

        No checkpoint where there is nothing to wait for.

        Raises:
            ClientDisconnected: the client has left.
            BodyTooLarge, BodyTimeout: as `__call__`.
        """
        while not self.complete or self._first is not None:
            if self.disconnected:
                raise ClientDisconnected
            message = await self()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            if chunk := message.get("body"):
                return bytes(chunk)
        return b""

    async def wait_disconnect(self) -> None:
        """Wait until the client has left.

        As long as the body is incomplete, whoever reads it is told instead.

        Raises:
            AssertionError: the server sent what no server may send here.
        """
        if not self.complete:
            self._watcher = trio.Event()
            await self._watcher.wait()
        message = await self._receive()
        if message["type"] != "http.disconnect":
            raise AssertionError(
                f"Invalid ASGI message after request body: {message['type']}"
            )
        self.disconnected = True

    async def linger(self) -> None:
        """Let the client send on for some time, and drop what it sends.

        A connection that is closed while bytes arrive is reset, and then the client
        may lose the answer. Most stop when they have read it.
        """
        with trio.move_on_after(LINGER_SECONDS):
            await self.drop_rest()

    async def drop_rest(self) -> None:
        """Receive the rest of the body, and drop it, whatever its size."""
        self.limits = BodyLimits()
        self._first = None
        while not (self.complete or self.disconnected):
            await self._receive_next()

    async def _receive_next(self) -> Message:
        while self._busy:
            await self._others.park()
        # While this call waited, another may have met the end.
        if self.disconnected:
            return {"type": "http.disconnect"}
        if self.complete:
            return {"type": "http.request"}
        self._busy = True
        try:
            if self.limits.timeout == math.inf:
                message = await self._receive()
            else:
                message = await self._receive_in_time(self.limits.timeout)
        finally:
            self._busy = False
            self._others.unpark()
        self._note(message)
        return message

    async def _receive_in_time(self, seconds: float) -> Message:
        try:
            with trio.fail_after(seconds):
                return await self._receive()
        except trio.TooSlowError:
            raise BodyTimeout(seconds) from None

    def _note(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.disconnect":
            self.disconnected = True
            self.on_disconnect()
        elif kind == "http.request":
            self.size += len(message.get("body") or b"")
            if not message.get("more_body", False):
                self.complete = True
                if self._watcher is not None:
                    self._watcher.set()
            if self.limits.size is not None and self.size > self.limits.size:
                raise BodyTooLarge(self.limits.size)
        else:
            raise AssertionError(f"Invalid ASGI message in request body: {kind}")

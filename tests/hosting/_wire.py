"""A client that can send any bytes, and disconnect, at any moment."""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import h11

if TYPE_CHECKING:
    from types import TracebackType


@dataclass(frozen=True)
class Response:
    """A whole response."""

    status: int
    headers: dict[str, str]
    body: bytes
    #: The statuses of the informational responses that came first.
    informational: tuple[int, ...] = ()


class ConnectionEndedError(Exception):
    """The server has closed the connection instead of responding."""


def pause(seconds: float) -> None:
    """Let a moment pass, to some microseconds: `time.sleep` alone comes later."""
    end = time.perf_counter() + seconds
    if seconds > 0.001:
        time.sleep(seconds - 0.001)
    while time.perf_counter() < end:
        pass


def request_bytes(target: str, *headers: str, method: str = "GET") -> bytes:
    """Return the head of a request."""
    lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", *headers, "", ""]
    return "\r\n".join(lines).encode()


@final
class Connection:
    """A client's connection: bytes go out unchanged, responses are read by h11."""

    def __init__(self, sock: socket.socket) -> None:
        """Take over a connected socket."""
        self._socket = sock
        self._read_too_far = b""

    def __enter__(self) -> Connection:
        """Enter a block that closes it at its end."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def send(self, data: bytes) -> None:
        """Send any bytes."""
        self._socket.sendall(data)

    def send_request(self, target: str, *headers: str, method: str = "GET") -> None:
        """Send the head of a request."""
        self.send(request_bytes(target, *headers, method=method))

    def end_sending(self) -> None:
        """Stop sending, and go on reading."""
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close politely, with FIN."""
        self._socket.close()

    def reset(self) -> None:
        """Close rudely, with RST."""
        linger = struct.pack("ii", 1, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._socket.close()

    def read_some(self) -> bytes:
        """Return some bytes, or none at the end of the connection."""
        return self._socket.recv(2**16)

    def read_at_least(self, size: int) -> None:
        """Read that many bytes, or more."""
        while size > 0:
            received = len(self.read_some())
            assert received, "the connection has ended too early"
            size -= received

    def read_to_end(self) -> bytes:
        """Return all bytes until the server closes or resets the connection."""
        received = self._read_too_far
        try:
            while part := self.read_some():
                received += part
        except ConnectionError:
            pass
        return received

    def read_response(self, method: str = "GET") -> Response:
        """Return the response to one request, which was sent as bytes.

        Raises:
            ConnectionEndedError: the server closed the connection instead.
        """
        parser = h11.Connection(h11.CLIENT)
        # h11 must know which request the response belongs to.
        parser.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        parser.send(h11.EndOfMessage())
        if self._read_too_far:  # h11 takes empty bytes for the end
            parser.receive_data(self._read_too_far)
        informational: list[int] = []
        head: h11.Response | None = None
        body = bytearray()
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                received = self.read_some()
                if not received and head is None:
                    raise ConnectionEndedError
                parser.receive_data(received)
            elif isinstance(event, h11.InformationalResponse):
                informational.append(event.status_code)
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                raise ConnectionEndedError
        assert head is not None
        self._read_too_far = parser.trailing_data[0]
        headers = {name.decode(): value.decode() for name, value in head.headers}
        return Response(head.status_code, headers, bytes(body), tuple(informational))

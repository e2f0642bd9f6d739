"""An HTTP/2 client that can cancel single requests."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, ResponseReceived, StreamReset

if TYPE_CHECKING:
    from ._wire import Connection


class _Connection(H2Connection):
    """A connection that goes on after GOAWAY, as RFC 9113 says; h2's does not."""

    def _receive_goaway_frame(self, frame: Any) -> tuple[list[Any], list[Any]]:
        return [], []


class Http2Client:
    """Requests on the streams of one connection, with prior knowledge of HTTP/2."""

    def __init__(self, connection: Connection) -> None:
        """Start HTTP/2 on a fresh connection."""
        self._connection = connection
        self._h2 = _Connection()
        self._h2.initiate_connection()
        self._flush()
        self._bodies: dict[int, bytes] = {}
        self._sizes: dict[int, int] = {}

    def send_request(self, target: str) -> int:
        """Send a request; return the number of its stream."""
        stream = self._h2.get_next_available_stream_id()
        headers = [
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "127.0.0.1"),
            (":path", target),
        ]
        self._bodies[stream] = b""
        self._h2.send_headers(stream, headers, end_stream=True)
        self._flush()
        return stream

    def reset(self, stream: int) -> None:
        """Cancel a request."""
        self._h2.reset_stream(stream, ErrorCodes.CANCEL)
        self._flush()

    def read_body(self, stream: int) -> bytes:
        """Return the body of a response with status 200, when it is complete.

        That is, when it has its Content-Length: at a shutdown, hypercorn 0.18 may
        forget the flag that ends the stream.
        """
        while not self._is_complete(stream):
            received = self._connection.read_some()
            assert received, "the server has closed the connection"
            for event in self._h2.receive_data(received):
                if isinstance(event, ResponseReceived):
                    headers = dict(event.headers)
                    assert headers[b":status"] == b"200"
                    length = headers.get(b"content-length", -1)  # of another stream
                    self._sizes[event.stream_id] = int(length)
                elif isinstance(event, DataReceived):
                    assert event.data is not None
                    self._bodies[event.stream_id] += event.data
                    self._h2.acknowledge_received_data(
                        event.flow_controlled_length, event.stream_id
                    )
                elif isinstance(event, StreamReset):
                    # Another stream may end so: a server resets one that it gave up.
                    assert event.stream_id != stream
            # A server that shuts down does not wait for our reply to that.
            with suppress(ConnectionError):
                self._flush()
        return self._bodies[stream]

    def _is_complete(self, stream: int) -> bool:
        return len(self._bodies[stream]) == self._sizes.get(stream)

    def _flush(self) -> None:
        self._connection.send(self._h2.data_to_send())

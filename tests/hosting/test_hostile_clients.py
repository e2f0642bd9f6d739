"""Clients that break the rules are refused, and no other client suffers.

Bytes that arrive while the application answers can bring down hypercorn's worker; the
application's protection is tried here often enough to count.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from ._hosts import HOSTS
from ._wire import pause, request_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._server import Connect, Server
    from ._wire import Connection

TRIES = 200
#: This many connections wait for their refusals together.
ROUND = 20

HANDSHAKE = request_bytes(
    "/hello/",
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
)
#: A WebSocket frame with a text.
FRAME = b"\x81\x85\x00\x00\x00\x00hello"

#: Answers that the server gives by itself, without the application.
BAD_REQUEST = b"HTTP/1.1 400"
FORBIDDEN = b"HTTP/1.1 403"


@pytest.fixture(autouse=True)
def _healthy_afterwards(server: Server) -> Iterator[None]:
    """Whatever a test does, the server is at rest afterwards, and serves others."""
    yield
    assert server.is_running, server.log
    server.wait_for_rest()
    assert server.get("/hello/?id=next") == b"hello next"
    assert server.get("/sync/hello/?id=next") == b"hello next"


# After a WebSocket handshake


def in_rounds(connect: Connect) -> Iterator[list[Connection]]:
    """Yield new connections by the dozen, as a refusal takes some time; then close."""
    for _ in range(TRIES // ROUND):
        connections = [connect() for _ in range(ROUND)]
        yield connections
        for connection in connections:
            connection.close()


def test_bytes_with_a_websocket_handshake(connect: Connect) -> None:
    """A frame in the handshake's own segment: 200 times refused."""
    for connections in in_rounds(connect):
        for connection in connections:
            connection.send(HANDSHAKE + FRAME)
        for connection in connections:
            assert connection.read_some().startswith((BAD_REQUEST, FORBIDDEN))


def test_bytes_soon_after_a_websocket_handshake(connect: Connect) -> None:
    """A frame right behind the handshake: 200 times refused."""
    for connections in in_rounds(connect):
        for number, connection in enumerate(connections):
            connection.send(HANDSHAKE)
            pause(number / ROUND * 0.001)
            connection.send(FRAME)
        for connection in connections:
            assert connection.read_some().startswith((BAD_REQUEST, FORBIDDEN))


@pytest.mark.demands("closing refused")
def test_bytes_after_a_refused_websocket_handshake(connect: Connect) -> None:
    """Frames that a client sends after the refusal: 200 times ignored.

    They are sent when the client has seen the end. A frame between the 403 and the end,
    some microseconds later, ends hypercorn 0.18's worker: no application prevents that.
    """
    for connections in in_rounds(connect):
        for connection in connections:
            connection.send(HANDSHAKE)
        for connection in connections:
            assert connection.read_to_end().startswith(FORBIDDEN)
            with suppress(ConnectionError):
                connection.send(FRAME)
                connection.send(FRAME)


# After the last request of a connection

views = pytest.mark.parametrize("path", ["/hello/", "/sync/hello/", "/large/"])
junk = pytest.mark.parametrize(
    "more", [b"junk\r\n\r\n", request_bytes("/hello/")], ids=["junk", "request"]
)


def assert_is_answer(received: bytes) -> None:
    """Check that an answer of either side, or nothing at all, has come."""
    assert received.startswith((b"HTTP/1.1 200", BAD_REQUEST)) or not received


@pytest.fixture
def count_failed_sends(server: Server) -> Iterator[None]:
    """Expect tracebacks of servers whose `send` fails when they have answered junk."""
    logged = len(server.log)
    yield
    if HOSTS[server.kind].answers_junk:
        server.wait_for_rest()
        server.tracebacks += server.log[logged:].count("Traceback")


@views
@junk
@pytest.mark.usefixtures("count_failed_sends")
def test_bytes_after_connection_close(server: Server, path: str, more: bytes) -> None:
    """Bytes after a request with Connection: close, at 200 moments of its answer."""
    for number in range(TRIES):
        with server.connect() as connection:
            connection.send_request(path, "Connection: close")
            pause(number / TRIES * 0.004)
            with suppress(ConnectionError):
                connection.send(more)
            assert_is_answer(connection.read_to_end())


@views
@junk
@pytest.mark.usefixtures("count_failed_sends")
def test_bytes_with_connection_close(server: Server, path: str, more: bytes) -> None:
    """Bytes in the very segment of a request with Connection: close, 200 times."""
    for _ in range(TRIES):
        with server.connect() as connection:
            connection.send(request_bytes(path, "Connection: close") + more)
            assert_is_answer(connection.read_to_end())


@pytest.mark.parametrize("path", ["/digest/", "/sync/digest/"])
@pytest.mark.usefixtures("count_failed_sends")
def test_bytes_after_an_awaited_body(server: Server, path: str) -> None:
    """A byte too many after a body that was requested, 200 times."""
    for number in range(TRIES):
        with server.connect() as connection:
            connection.send_request(
                path,
                "Connection: close",
                "Content-Length: 4",
                "Expect: 100-continue",
                method="POST",
            )
            pause(number / TRIES * 0.003)
            connection.send(b"body!")
            assert connection.read_to_end().startswith(b"HTTP/1.1 100")


def answer_to_bytes_around(server: Server, target: str, seconds: float) -> bytes:
    """Send bytes with a last request, and some time later; return what comes."""
    with server.connect() as connection:
        connection.send(request_bytes(target, "Connection: close") + b"x" * 10)
        pause(seconds)
        with suppress(ConnectionError):
            connection.send(b"y" * 10)
        return connection.read_to_end()


@pytest.mark.parametrize("what", ["cookie", "NUL", "length"])
def test_bytes_behind_an_answer_that_cannot_be_sent(server: Server, what: str) -> None:
    """The application answers itself, 200 times: the server's answer would not help."""
    logged = len(server.log)
    target = f"/unsendable/?what={what}"
    for number in range(TRIES):
        received = answer_to_bytes_around(server, target, number / TRIES * 0.002)
        assert received.startswith((b"HTTP/1.1 500", BAD_REQUEST)) or not received
    server.wait_for_rest()
    server.tracebacks += server.log[logged:].count("Traceback")
    assert "Error in ASGI Framework" not in server.log[logged:]


@pytest.mark.parametrize("size", [20, 40])
@pytest.mark.demands("cutting off")
def test_bytes_behind_a_stream_of_another_length(server: Server, size: int) -> None:
    """Bytes too late for a 500 are cut off, and harm only their own connection."""
    logged = len(server.log)
    target = f"/wrong/length/?bytes={size}"
    for number in range(TRIES):
        received = answer_to_bytes_around(server, target, number / TRIES * 0.002)
        if HOSTS[server.kind].holds_head and received.startswith(b"HTTP/1.1 500"):
            continue
        assert_is_answer(received)
    server.wait_for_rest()
    server.tracebacks += server.log[logged:].count("Traceback")


# Invalid requests


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 this is TLS\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: many\r\n\r\n",
        b"GET / HTTP/1.1\r\nno header\r\n\r\n",
        pytest.param(
            request_bytes("/hello/", "Cookie: " + "a" * 20_000)[:-2],
            marks=pytest.mark.demands("limited headers"),
        ),
        request_bytes("/digest/", "Transfer-Encoding: chunked", method="POST")
        + b"4\r\nbody\r\nZZ\r\n",
    ],
    ids=["tls", "request-line", "length", "header", "oversized", "chunk"],
)
def test_nonsense_is_rejected(server: Server, nonsense: bytes) -> None:
    """Invalid HTTP/1.1 requests get a 4xx and the end of the connection."""
    for _ in range(10):
        with server.connect() as connection:
            connection.send(nonsense)
            received = connection.read_to_end()
        answer = HOSTS[server.kind].answers_bad_body
        assert received.startswith((b"HTTP/1.1 4", answer))


@pytest.mark.demands("answer before error")
def test_nonsense_behind_a_request(server: Server) -> None:
    """An error in the second request does not harm the first."""
    for _ in range(50):
        with server.connect() as connection:
            connection.send(request_bytes("/sync/hello/?id=x") + b"\x00\r\n\r\n")
            assert connection.read_response().body == b"hello x"
            assert connection.read_response().status == 400


@pytest.mark.parametrize("path", ["/digest/", "/sync/digest/"])
def test_a_body_cut_short(server: Server, path: str) -> None:
    """A body shorter than promised is never given to a view."""
    ids = [server.new_id() for _ in range(50)]
    for identity in ids:
        with server.connect() as connection:
            connection.send_request(
                f"{path}?id={identity}", "Content-Length: 10", method="POST"
            )
            connection.send(b"body")
            connection.end_sending()
            received = connection.read_to_end()
        answer = HOSTS[server.kind].answers_bad_body
        assert received.startswith(answer) or not received
    server.wait_for_rest()
    for identity in ids:
        assert server.events(identity) == []


# Views that fail


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/boom/", "LookupError: the async kettle is broken"),
        ("/sync/boom/", "LookupError: the sync kettle is broken"),
    ],
)
def test_an_exception_in_a_view(server: Server, path: str, error: str) -> None:
    """The client gets a 500, the log one entry, and the connection stays open."""
    identity, logged = server.new_id(), len(server.log)
    with server.connect() as connection:
        connection.send_request(f"{path}?id={identity}")
        assert connection.read_response().status == 500
        connection.send_request("/hello/?id=same")
        assert connection.read_response().body == b"hello same"
    server.tracebacks += 1
    entry = server.log[logged:]
    assert entry.startswith(f"ERROR django.request: Internal Server Error: {path}\n")
    assert entry.count("Traceback (most recent call last)") == 1
    assert entry.rstrip().endswith(error)
    server.wait_for_event("finished", identity)
    assert server.events(identity) == ["started", "finished"]

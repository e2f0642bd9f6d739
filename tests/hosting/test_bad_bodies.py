"""Bodies that go wrong, in either direction: the answer, and nothing left behind."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from ._hosts import HOSTS
from ._server import eventually
from ._wire import request_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from ._server import Server

MEGABYTE = 2**20


def assert_it_goes_on(server: Server, identity: str) -> None:
    """Check that a request has ended and left nothing, and that the next one works."""
    server.wait_for_rest()
    assert server.events(identity)[-1] == "finished"
    assert server.get("/hello/?id=next") == b"hello next"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/failing/", "LookupError: the async kettle is empty"),
        ("/sync/failing/", "LookupError: the sync kettle is empty"),
    ],
)
@pytest.mark.demands("cutting off")
def test_a_stream_that_fails_midway(server: Server, path: str, message: str) -> None:
    """The client gets the parts before, no clean end, and the log one traceback."""
    identity = server.new_id()
    before = server.log.count(message)
    with server.connect() as connection:
        connection.send_request(f"{path}?id={identity}")
        received = connection.read_to_end()
    server.tracebacks += 1
    assert b"first part" in received
    assert not received.endswith(b"0\r\n\r\n")
    assert_it_goes_on(server, identity)
    assert "cleaned up" in server.events(identity)
    assert server.log.count(message) == before + 1


@pytest.mark.parametrize(
    "where",
    [
        "view",
        pytest.param("sync", marks=pytest.mark.demands("cutting off")),
        pytest.param("async", marks=pytest.mark.demands("cutting off")),
    ],
)
@pytest.mark.parametrize(
    "error",
    ["GeneratorExit", "CancelledError", "SystemExit", "KeyboardInterrupt", "Panic"],
)
def test_errors_that_are_no_exceptions(server: Server, where: str, error: str) -> None:
    """They end the response, but neither the server nor its worker."""
    identity = server.new_id()
    before = server.log.count("Traceback")
    with server.connect() as connection:
        connection.send_request(
            f"/odd/errors/{where}/{error}/?id={identity}", "Connection: close"
        )
        received = connection.read_to_end()
    if where == "view":
        assert received.startswith(b"HTTP/1.1 500 ")
    else:
        assert b"first part" in received
        assert not received.endswith(b"0\r\n\r\n")
    assert_it_goes_on(server, identity)
    # One for the error that the server was given, one for its cause.
    tracebacks = server.log.count("Traceback") - before
    assert tracebacks in (1, 2)
    server.tracebacks += tracebacks


def test_parts_that_are_no_bytes(server: Server) -> None:
    """They are converted to bytes, as Django does: text, numbers, None."""
    body = server.get(f"/odd/parts/?id={server.new_id()}")
    assert body.decode() == "t\xe9a 42None view"


def test_content_that_cannot_be_iterated(server: Server) -> None:
    """It is answered with a 500, because nothing was sent yet."""
    identity = server.new_id()
    with server.connect() as connection:
        connection.send_request(f"/no/parts/?id={identity}")
        assert connection.read_response().status == 500
    server.tracebacks += 2  # neither an iterable nor an async one
    assert_it_goes_on(server, identity)


@pytest.mark.demands("cutting off")
def test_a_file_that_shrinks_while_it_is_sent(server: Server, tmp_path: Path) -> None:
    """The connection ends before the announced length, so the client notices."""
    identity = server.new_id()
    file = tmp_path / "file"
    file.write_bytes(bytes(MEGABYTE))
    with server.connect() as connection:
        connection.send_request(f"/shrinking/file/?id={identity}&path={file}")
        received = connection.read_to_end()
    server.tracebacks += 1
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"content-length: 1048576" in head.lower()
    assert len(body) == 100_000
    assert_it_goes_on(server, identity)
    # granian closes the connection before it logs the error.
    eventually(lambda: "before the Content-Length" in server.log, "the error is logged")


def test_a_file_that_vanishes_while_it_is_sent(server: Server, tmp_path: Path) -> None:
    """It is open: its bytes are sent, and the server is given no path."""
    identity = server.new_id()
    file = tmp_path / "file"
    file.write_bytes(bytes(MEGABYTE))
    body = server.get(f"/vanishing/file/?id={identity}&path={file}")
    assert body == bytes(MEGABYTE)
    assert_it_goes_on(server, identity)


@pytest.mark.demands("streamed uploads")
def test_an_answer_before_the_end_of_the_upload(server: Server) -> None:
    """A client that keeps sending gets all of it, then the connection ends."""
    identity = server.new_id()
    head = request_bytes(
        f"/uninterested/?id={identity}", "Transfer-Encoding: chunked", method="POST"
    )
    chunk = b"10000\r\n" + bytes(2**16) + b"\r\n"
    with server.connect() as connection:
        connection.send(head + chunk)
        response = connection.read_response()
        assert (response.status, response.body) == (200, b"no, thanks")
        with suppress(ConnectionError):
            for _ in range(100):
                connection.send(chunk)
    assert_it_goes_on(server, identity)


def test_a_chunked_body_that_stops_short(server: Server) -> None:
    """The view is never called, and the server may report the error."""
    identity = server.new_id()
    with server.connect() as connection:
        connection.send_request(
            f"/digest/?id={identity}", "Transfer-Encoding: chunked", method="POST"
        )
        connection.send(b"10\r\nshort")
        connection.end_sending()
        received = connection.read_to_end()
    answer = HOSTS[server.kind].answers_bad_body
    assert received.startswith(answer) or not received
    server.wait_for_rest()
    assert server.events(identity) == []
    assert server.get("/hello/?id=next") == b"hello next"


@pytest.mark.parametrize("name", ["Bad\x00Name", "Bad\x01Name", "Bad Name", "Bad\x7f"])
def test_header_names_with_control_characters(server: Server, name: str) -> None:
    """The server refuses them, before the application."""
    with server.connect() as connection:
        connection.send_request(f"/hello/?id={server.new_id()}", f"{name}: value")
        assert connection.read_response().status == 400
    server.wait_for_rest()
    assert server.get("/hello/?id=next") == b"hello next"

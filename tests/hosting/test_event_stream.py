"""Server-sent events from real servers, read by a browser and by a parser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import h11
import pytest

from event_stream_parser import Dispatched, parse

from ._browser import browser
from ._hosts import HOSTS
from ._server import eventually, serve
from ._wire import Connection

if TYPE_CHECKING:
    from pathlib import Path

    from ._server import Connect, Kind, Server

LASTING = "hosted.asgi:lasting"

leaving = pytest.mark.parametrize(
    "leave", [Connection.close, Connection.reset], ids=["fin", "rst"]
)

#: What the page has seen when the stream has ended for the first time.
SEEN_FIRST = [
    ["open"],
    ["message", "plain", ""],
    ["message", " one\ntwo\n\nfour\n", ""],
    ["message", "", ""],
    ["message", "\ufeff\u2615 \U0001f375 \0 \x85 \u2028 :", ""],
    ["message", '{"price": 1.5, "name": "\\u2615\\n"}', ""],
    ["caf\xe9", "typed", ""],
    ["message", "with an id", "caf\xe9 \u2615"],
    ["message", "with the same id", "caf\xe9 \u2615"],
]
#: And when it has reconnected: 0 is EventSource.CONNECTING, not CLOSED.
SEEN_AGAIN = [["error", 0], ["open"], ["done", "done", ""]]


def seen_by_page(server: Server, identity: str) -> Any:
    """Return what the page reports at the end."""
    server.wait_for_event("seen", identity)
    (entry,) = (e for e in server.journal_of("seen") if e["id"] == identity)
    return entry["events"]


@pytest.mark.parametrize(
    "then", ["end", pytest.param("fail", marks=pytest.mark.demands("cutting off"))]
)
def test_a_browser_reads_the_events(server: Server, then: str) -> None:
    """Chromium's EventSource gets all, reconnects by itself, and sends the last id."""
    identity = server.new_id()
    server.tracebacks += then == "fail"
    with browser(f"{server.url}/events/page/?id={identity}&then={then}"):
        seen = seen_by_page(server, identity)
    assert seen == SEEN_FIRST + SEEN_AGAIN
    connected = [e for e in server.journal_of("connected") if e["id"] == identity]
    assert [e["last_event_id"] for e in connected] == ["", "caf\xe9 \u2615"]
    server.wait_for_rest()


def test_the_parser_of_the_tests_agrees_with_the_browser(
    server: Server, connect: Connect
) -> None:
    """The parser in the other tests does what Chromium does."""
    connection = connect()
    connection.send_request(f"/events/for/browser/?id={server.new_id()}&then=end")
    parser = parse(connection.read_response().body)
    listened_to = [e for e in parser.events if e.type != "other"]
    assert [[e.type, e.data, e.last_event_id] for e in listened_to] == SEEN_FIRST[1:]
    assert parser.reconnection_time == 50
    assert parser.last_event_id == "caf\xe9 \u2615"


@pytest.mark.demands("cancellation")
def test_a_browser_finds_the_next_server(kind: Kind, tmp_path: Path) -> None:
    """At shutdown the stream ends, and the browser continues at the next server."""
    first_directory, next_directory = tmp_path / "first", tmp_path / "next"
    first_directory.mkdir()
    next_directory.mkdir()
    options: dict[str, object] = {"graceful-timeout": 1}
    with (
        serve(kind, first_directory, application=LASTING, options=options) as first,
        browser(f"{first.url}/events/page/?id=page&then=stay"),
    ):
        first.wait_for_event("entered", "page")
        assert first.stop() in HOSTS[first.kind].ends_with
        assert_no_complaints(first)
        assert first.events("page")[-2:] == ["cleaned up", "finished"]
        options = {"port": first.port}
        with serve(kind, next_directory, options=options) as following:
            seen = seen_by_page(following, "page")
            (again,) = following.journal_of("connected")
    assert seen[: len(SEEN_FIRST)] == SEEN_FIRST
    # It may have tried to connect in vain meanwhile.
    assert seen[-2:] == SEEN_AGAIN[-2:]
    assert again["last_event_id"] == "caf\xe9 \u2615"


def assert_no_complaints(server: Server) -> None:
    """Check that the log reports no error."""
    assert "Traceback" not in server.complaints
    assert "ERROR" not in server.complaints
    assert "ResourceWarning" not in server.log


@pytest.mark.parametrize("path", ["/events/", "/sync/events/"])
@pytest.mark.demands("cancellation")
def test_a_stream_ends_cleanly_at_shutdown(
    kind: Kind, tmp_path: Path, path: str
) -> None:
    """After the grace period the events are closed, and the body ends properly."""
    options = {"graceful-timeout": 1}
    with (
        serve(kind, tmp_path, application=LASTING, options=options) as server,
        server.connect() as connection,
    ):
        connection.send_request(f"{path}?id=stream")
        server.wait_for_event("entered", "stream")
        server.terminate()
        response = connection.read_response()
        assert parse(response.body).events == [Dispatched("first")]
        assert server.wait_for_end() in HOSTS[server.kind].ends_with
        assert_no_complaints(server)
        assert server.events("stream") == [
            "started",
            "entered",
            "cleaned up",
            "finished",
        ]


def test_the_headers_come_before_there_is_an_event(connect: Connect) -> None:
    """The browser learns that the stream is open, however long it has to wait."""
    connection = connect()
    connection.send_request("/no/events/?keep_alive=60&id=idle")
    head = b""
    while b"\r\n\r\n" not in head:
        head += connection.read_some()
    lines = head.partition(b"\r\n\r\n")[0].lower().split(b"\r\n")
    assert lines[0].startswith(b"http/1.1 200")
    assert b"content-type: text/event-stream" in lines
    assert b"cache-control: no-cache" in lines
    assert b"x-accel-buffering: no" in lines
    assert b"transfer-encoding: chunked" in lines


def test_comments_come_while_there_is_no_event(connect: Connect) -> None:
    """A proxy sees that the connection is alive."""
    connection = connect()
    connection.send_request("/no/events/?keep_alive=0.01&id=comments")
    received = b""
    while received.count(b":\n\n") < 3:
        received += connection.read_some()


@leaving
@pytest.mark.parametrize("path", ["/events/", "/sync/events/"])
def test_a_client_that_leaves(
    server: Server, connect: Connect, path: str, leave: Any
) -> None:
    """The events are closed, and nothing is left behind."""
    identity = server.new_id()
    connection = connect()
    connection.send_request(f"{path}?id={identity}")
    server.wait_for_event("entered", identity)
    leave(connection)
    server.wait_for_rest()
    assert server.events(identity) == ["started", "entered", "cleaned up", "finished"]


@leaving
def test_a_client_that_does_not_read(
    server: Server, connect: Connect, leave: Any
) -> None:
    """Events that wait for the client to read are closed when it disconnects."""
    identity = server.new_id()
    connection = connect()
    connection.send_request(f"/many/events/?id={identity}")
    connection.read_at_least(1_000_000)
    leave(connection)
    server.wait_for_rest()
    assert server.events(identity) == ["started", "entered", "cleaned up", "finished"]


@pytest.mark.demands("cutting off")
def test_events_that_fail(server: Server, connect: Connect) -> None:
    """The body has no clean end, which tells the client; the log shows why, once."""
    identity = server.new_id()
    connection = connect()
    connection.send_request(f"/failing/events/?id={identity}")
    server.tracebacks += 1
    with pytest.raises(h11.RemoteProtocolError, match="incomplete chunked read"):
        connection.read_response()
    server.wait_for_event("finished", identity)
    eventually(lambda: "the kettle is empty" in server.log, "the error is logged")
    assert server.get("/hello/?id=next") == b"hello next"

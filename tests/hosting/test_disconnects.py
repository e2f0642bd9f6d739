"""Clients that disconnect, at each stage of a request, leave nothing behind.

Each test brings a request to one point, known from its events, then disconnects. It
must see the rest of the events, and after that a server at rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from ._http2 import Http2Client
from ._server import eventually
from ._wire import Connection, pause, request_bytes

if TYPE_CHECKING:
    from ._server import Connect, Server

leaving = pytest.mark.parametrize(
    "leave", [Connection.close, Connection.reset], ids=["fin", "rst"]
)
Leave = Callable[[Connection], None]


def assert_healthy(server: Server) -> None:
    """Check that the server is at rest, and serves the next sync and async request."""
    server.wait_for_rest()
    assert server.get("/hello/?id=next") == b"hello next"
    assert server.get("/sync/hello/?id=next") == b"hello next"


@leaving
def test_before_the_body_is_complete(
    server: Server, connect: Connect, leave: Leave
) -> None:
    """No view is called, no signal is sent, and the partial body's file is removed."""
    identity = server.new_id()
    connection = connect()
    connection.send_request(
        f"/sync/digest/?id={identity}", "Content-Length: 4000000", method="POST"
    )
    connection.send(bytes(3_000_000))
    server.wait_for_temporary_files(1)
    leave(connection)
    assert_healthy(server)
    assert server.events(identity) == []


@leaving
def test_in_an_async_view(server: Server, connect: Connect, leave: Leave) -> None:
    """The view is cancelled, and cleans up."""
    identity = server.new_id()
    connection = connect()
    connection.send_request(f"/wait/?id={identity}")
    server.wait_for_event("entered", identity)
    leave(connection)
    assert_healthy(server)
    assert server.events(identity) == [
        "started",
        "entered",
        "cancelled",
        "cleaned up",
        "finished",
    ]


@leaving
def test_in_an_async_view_that_has_a_body(
    server: Server, connect: Connect, leave: Leave
) -> None:
    """The disconnect is noticed behind the body too, and the body's file is removed."""
    identity = server.new_id()
    connection = connect()
    connection.send_request(
        f"/wait/?id={identity}", "Content-Length: 3000000", method="POST"
    )
    connection.send(bytes(3_000_000))
    server.wait_for_event("entered", identity)
    server.wait_for_temporary_files(1)
    leave(connection)
    assert_healthy(server)
    assert server.events(identity)[-1] == "finished"


@leaving
def test_in_a_sync_view(server: Server, connect: Connect, leave: Leave) -> None:
    """The view can notice it, and still runs to its end, including the body."""
    identity = server.new_id()
    connection = connect()
    connection.send_request(
        f"/sync/wait/?id={identity}", "Content-Length: 4", method="POST"
    )
    connection.send(b"body")
    server.wait_for_event("entered", identity)
    leave(connection)
    assert_healthy(server)
    assert server.events(identity) == [
        "started",
        "entered",
        "cancelled",
        "ran on",
        "response closed",
        "finished",
    ]
    assert server.journal_of("ran on")[-1]["body"] == "body"


@leaving
@pytest.mark.parametrize("path", ["/stream/", "/sync/stream/"])
def test_in_a_stream(server: Server, connect: Connect, path: str, leave: Leave) -> None:
    """The generator is closed, whether it waits or has more to send."""
    identity = server.new_id()
    connection = connect()
    connection.send_request(f"{path}?id={identity}")
    connection.read_at_least(len("first part"))
    server.wait_for_event("entered", identity)
    leave(connection)
    assert_healthy(server)
    assert server.events(identity) == ["started", "entered", "cleaned up", "finished"]


@leaving
@pytest.mark.parametrize("path", ["/flood/", "/sync/flood/"])
def test_in_a_stream_that_is_not_read(
    server: Server, connect: Connect, path: str, leave: Leave
) -> None:
    """The generator is also closed while it waits for the client to read."""
    identity = server.new_id()
    connection = connect()
    connection.send_request(f"{path}?id={identity}")
    connection.read_at_least(1_000_000)
    leave(connection)
    assert_healthy(server)
    assert server.events(identity) == ["started", "entered", "cleaned up", "finished"]


@leaving
def test_after_half_of_a_response(
    server: Server, connect: Connect, leave: Leave
) -> None:
    """The rest of a large response is dropped."""
    identity, size = server.new_id(), 50_000_000
    connection = connect()
    connection.send_request(f"/large/?id={identity}&bytes={size}")
    connection.read_at_least(size // 2)
    leave(connection)
    assert_healthy(server)
    assert server.events(identity) == ["started", "entered", "finished"]


@pytest.mark.parametrize(
    "target",
    [
        "/large/?bytes=4000000",
        "/sync/large/?bytes=4000000",
        "/pausing/",
        "/pausing/?length",
        "/pausing/?fail=5",
        "/flood/",
        "/sync/flood/",
    ],
)
def test_with_the_next_request_on_its_way(server: Server, target: str) -> None:
    """Its descriptor and its tasks go, though the server stops reading from it.

    The server's reader waits for the end of the first answer, which our handler sends.
    """
    before = server.state()
    logged = len(server.log)
    for number in range(20):
        with server.connect() as connection:
            connection.send(request_bytes(target) * 2)
            connection.read_at_least(100)
            pause(number / 20 * 0.01)
            connection.reset()
    eventually(
        lambda: (
            (state := server.state()).sockets <= before.sockets
            and len(state.tasks) <= len(before.tasks)
        ),
        "no connection is left",
    )
    server.wait_for_rest()
    server.tracebacks += server.log[logged:].count("Traceback")
    assert_healthy(server)


@pytest.mark.demands("cutting off")
def test_a_stream_that_fails_is_seen_to_be_cut_off(server: Server) -> None:
    """The body gets no end, because the view did not reach it."""
    with server.connect() as connection:
        connection.send_request("/pausing/?fail=5")
        received = connection.read_to_end()
    assert received.startswith(b"HTTP/1.1 200")
    assert not received.endswith(b"0\r\n\r\n")
    server.tracebacks += 1
    assert_healthy(server)


def test_a_client_that_has_only_stopped_sending(server: Server) -> None:
    """A stream does not look complete to a client that still reads."""
    with server.connect() as connection:
        connection.send_request("/pausing/")
        connection.end_sending()
        received = connection.read_to_end()
    assert not received.endswith(b"0\r\n\r\n")
    assert_healthy(server)


@pytest.mark.demands("requests of those who left")
def test_right_after_the_request(server: Server) -> None:
    """A request whose client does not wait for the answer is handled like any other."""
    for _ in range(20):
        identity = server.new_id()
        with server.connect() as connection:
            connection.send_request(f"/sync/hello/?id={identity}")
        server.wait_for_event("finished", identity)
        assert server.events(identity) == ["started", "finished"]
    assert_healthy(server)


@pytest.mark.parametrize("path", ["/hello/", "/sync/hello/"])
@leaving
def test_at_any_moment(
    server: Server, connect: Connect, path: str, leave: Leave
) -> None:
    """Whenever the client disconnects, the request has both signals or neither."""
    ids = [server.new_id() for _ in range(100)]
    for number, identity in enumerate(ids):
        connection = connect()
        connection.send_request(f"{path}?id={identity}")
        pause(number / len(ids) * 0.004)
        leave(connection)
    assert_healthy(server)
    for identity in ids:
        assert server.events(identity) in ([], ["started", "finished"])


@leaving
def test_many_at_once(server: Server, connect: Connect, leave: Leave) -> None:
    """60 clients leave views of each kind at once: all threads become free again."""
    workers: list[int] = []
    for _ in range(2):
        ids: list[str] = []
        connections: list[Connection] = []
        for path in ["/wait/", "/sync/wait/", "/stream/"] * 20:
            identity, connection = server.new_id(), connect()
            connection.send_request(f"{path}?id={identity}")
            ids.append(identity)
            connections.append(connection)
        for identity in ids:
            server.wait_for_event("entered", identity)
        for connection in connections:
            leave(connection)
        workers.append(server.wait_for_rest().workers)
        for identity in ids:
            events = server.events(identity)
            assert (events[0], events[-1]) == ("started", "finished")
            assert events.count("started") == events.count("finished") == 1
    # A thread for each, and one for the request that checks that all are at rest.
    assert max(workers) <= len(ids) + 1
    assert_healthy(server)


@leaving
def test_more_at_once_than_threads(
    server: Server, connect: Connect, leave: Leave
) -> None:
    """60 clients leave sync views, of which 40 run and 20 wait for a thread."""
    ids = [server.new_id() for _ in range(60)]
    connections = [connect() for _ in ids]
    for identity, connection in zip(ids, connections, strict=True):
        connection.send_request(f"/sync/wait/?id={identity}")
    eventually(
        lambda: sum("entered" in server.events(identity) for identity in ids) == 40,
        "40 views run",
    )
    for connection in connections:
        leave(connection)
    assert_healthy(server)
    for identity in ids:
        events = server.events(identity)
        assert events.count("started") == events.count("finished") <= 1


@pytest.mark.demands("http2")
def test_one_stream_of_http2(server: Server) -> None:
    """A reset stream cancels its own view, and no other on the connection."""
    taken_back, kept = server.new_id(), server.new_id()
    with server.connect() as connection:
        client = Http2Client(connection)
        stream = client.send_request(f"/wait/?id={taken_back}")
        other = client.send_request(f"/meet/?place={kept}&crowd=2&id={kept}")
        server.wait_for_event("entered", taken_back)
        client.reset(stream)
        server.wait_for_event("finished", taken_back)
        assert server.events(kept) == ["started"]
        server.get(f"/meet/?place={kept}&crowd=2&id=x")
        assert client.read_body(other) == f"met {kept}".encode()
        third = client.send_request("/hello/?id=third")
        assert client.read_body(third) == b"hello third"
    assert_healthy(server)


@pytest.mark.demands("http2")
@leaving
def test_all_streams_of_http2(server: Server, connect: Connect, leave: Leave) -> None:
    """The end of the connection cancels the views of all its streams."""
    ids = [server.new_id() for _ in range(10)]
    connection = connect()
    client = Http2Client(connection)
    for identity in ids:
        client.send_request(f"/wait/?id={identity}")
    for identity in ids:
        server.wait_for_event("entered", identity)
    leave(connection)
    assert_healthy(server)
    for identity in ids:
        assert server.events(identity)[-3:] == ["cancelled", "cleaned up", "finished"]

"""Clients that do not read their response."""

from __future__ import annotations

import threading
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest

from ._http2 import Http2Client
from ._server import eventually, serve_cleanly

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._server import Connect, Kind, Server


@pytest.mark.parametrize("path", ["/large/", "/sync/large/"])
def test_a_request_ends_although_its_answer_waits(
    server: Server, connect: Connect, path: str
) -> None:
    """The thread is released after a second; the bytes arrive when they are read."""
    identity, size = server.new_id(), 16_000_000
    connection = connect()
    connection.send_request(f"{path}?id={identity}&bytes={size}", "Connection: close")
    server.wait_for_event("finished", identity)
    assert server.events(identity) == ["started", "entered", "finished"]
    # More remains to be sent than the kernel buffers on both sides.
    received = connection.read_to_end()
    assert received.endswith(b"x" * 1000)
    assert received.count(b"x") >= size
    server.wait_for_rest()


def test_clients_that_do_not_read_pin_no_thread(
    server: Server, connect: Connect
) -> None:
    """More of them than there are threads do not keep others from sync views."""
    connections = [connect() for _ in range(10)]
    identities = [server.new_id() for _ in connections]
    for connection, identity in zip(connections, identities, strict=True):
        connection.send_request(f"/sync/large/?id={identity}&bytes=16000000")
    for identity in identities:
        server.wait_for_event("finished", identity)
    assert server.get("/sync/hello/?id=next") == b"hello next"

    def all_at_rest() -> bool:
        return server.state().in_flight == ["state"]

    eventually(all_at_rest, "no request between its two signals")
    for connection in connections:
        connection.close()
    server.wait_for_rest()


# Clients that are slower than allowed

LIMITS = {
    "MAX_HELD_THREADS": 2,
    "SEND_TIMEOUT": 1,
    "BODY_TIMEOUT": 1,
    "BODY_MIN_RATE": 1000,
}


@pytest.fixture(scope="module")
def strict_server(
    kind: Kind, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Serve with two leases, and a second for everything."""
    with serve_cleanly(kind, tmp_path_factory.mktemp(kind), settings=LIMITS) as running:
        yield running


@pytest.mark.parametrize("path", ["/sync/flood/", "/thread/flood/"])
@pytest.mark.demands("closing unread")
def test_slow_readers_leave_the_leases_to_others(
    strict_server: Server, path: str
) -> None:
    """With as many unread streams as leases, a sync view is still served.

    The connections are reset, so that nothing of them stays.
    """
    server = strict_server
    sockets = server.state().sockets
    with ExitStack() as stack:
        connections = [stack.enter_context(server.connect()) for _ in range(2)]
        identities = [server.new_id() for _ in connections]
        for connection, identity in zip(connections, identities, strict=True):
            connection.send_request(f"{path}?id={identity}")
        for identity in identities:
            server.wait_for_event("entered", identity)
        assert server.get("/sync/hello/?id=next") == b"hello next"
        for identity in identities:
            server.wait_for_event("finished", identity)
            assert server.events(identity) == [
                "started",
                "entered",
                "cleaned up",
                "finished",
            ]
        eventually(lambda: server.state().sockets <= sockets, "both are closed")
    server.wait_for_rest()


@pytest.mark.demands("streamed uploads")
def test_slow_senders_leave_the_leases_to_others(strict_server: Server) -> None:
    """While sync views read slow bodies in all leases, another is served."""
    server = strict_server
    with ExitStack() as stack:
        connections = [stack.enter_context(server.connect()) for _ in range(2)]
        identities = [server.new_id() for _ in connections]
        for connection, identity in zip(connections, identities, strict=True):
            connection.send_request(
                f"/sync/take/?id={identity}", "Content-Length: 1000000", method="POST"
            )
        for identity in identities:
            server.wait_for_event("entered", identity)
        stopped = threading.Event()

        def trickle() -> None:
            while not stopped.wait(0.1):
                for connection in connections:
                    with suppress(OSError):
                        connection.send(b"x")

        sender = threading.Thread(target=trickle)
        sender.start()
        try:
            assert server.get("/sync/hello/?id=next") == b"hello next"
            for connection in connections:
                assert connection.read_response().status == 408
        finally:
            stopped.set()
            sender.join()
    server.wait_for_rest()


@pytest.mark.demands("http2")
@pytest.mark.demands("http2 back-pressure")
def test_a_slow_stream_of_http2_harms_no_other(strict_server: Server) -> None:
    """It is ended, and the connection with its other streams goes on."""
    server = strict_server
    identity = server.new_id()
    with server.connect() as connection:
        client = Http2Client(connection)
        client.send_request(f"/sync/flood/?id={identity}")
        server.wait_for_event("finished", identity)
        assert server.events(identity)[-2:] == ["cleaned up", "finished"]
        other = client.send_request("/sync/hello/?id=other")
        assert client.read_body(other) == b"hello other"
    server.wait_for_rest()

"""Clients that do not read what they have asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ._server import eventually

if TYPE_CHECKING:
    from ._server import Connect, Server


@pytest.mark.parametrize("path", ["/large/", "/sync/large/"])
def test_a_request_ends_although_its_answer_waits(
    server: Server, connect: Connect, path: str
) -> None:
    """The thread goes back after a second; the bytes come when they are read."""
    identity, size = server.new_id(), 16_000_000
    connection = connect()
    connection.send_request(f"{path}?id={identity}&bytes={size}", "Connection: close")
    server.wait_for_event("finished", identity)
    assert server.events(identity) == ["started", "entered", "finished"]
    # More than the kernel takes on both sides is still to be sent.
    received = connection.read_to_end()
    assert received.endswith(b"x" * 1000)
    assert received.count(b"x") >= size
    server.wait_for_rest()


def test_clients_that_do_not_read_pin_no_thread(
    server: Server, connect: Connect
) -> None:
    """More of them than there are threads keep nobody from sync views."""
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

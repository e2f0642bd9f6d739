"""What a snapshot says of requests under a real server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ._server import eventually

if TYPE_CHECKING:
    from ._server import Connect, Server


def snapshot(server: Server) -> Any:
    """Return what runs in the server's process."""
    return json.loads(server.get("/tasks/?id=tasks"))


def wait_for_state(server: Server, path: str, state: str) -> dict[str, Any]:
    """Wait until a request is in a state; return what the snapshot says of it."""

    def find() -> dict[str, Any] | None:
        for one in snapshot(server)["requests"]:
            if (one["path"], one["state"]) == (path, state):
                return one  # type: ignore[no-any-return]
        return None

    return eventually(find, f"{path} is {state}")


def wait_for_no_request(server: Server) -> None:
    """Wait until the snapshot has no request."""

    def is_empty() -> bool:
        counts = snapshot(server)["counts"]
        return not (counts["requests"] or counts["tasks"] or counts["busy_threads"])

    eventually(is_empty, "no requests")


def test_a_client_that_does_not_read(server: Server, connect: Connect) -> None:
    """Its request is sending; when the client has left, it is gone."""
    for path in ("/large/", "/sync/large/"):
        with connect() as connection:
            connection.send_request(f"{path}?id={server.new_id()}&bytes=16000000")
            state = "sending to a client that does not read"
            wait_for_state(server, path, state)
        wait_for_no_request(server)


def test_a_client_that_does_not_send(server: Server, connect: Connect) -> None:
    """Its request reads the body."""
    with connect() as connection:
        connection.send(
            b"POST /digest/?id=slow HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Length: 10\r\n\r\nsome"
        )
        found = wait_for_state(server, "/digest/", "reading the body")
        assert found["method"] == "POST"
    wait_for_no_request(server)


def test_waiting_views(server: Server, connect: Connect) -> None:
    """An async view and a sync view are found at their lines."""
    places = {"/wait/": "in async code", "/sync/wait/": "in sync code"}
    for path, state in places.items():
        with connect() as connection:
            connection.send_request(f"{path}?id={server.new_id()}")
            found = wait_for_state(server, path, state)
            assert "views.py:" in found["where"]
            assert found["seconds"] < 60
        wait_for_no_request(server)

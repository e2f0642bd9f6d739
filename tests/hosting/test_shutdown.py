"""SIGTERM: requests that end in time are answered, others cancelled; all clean up."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from ._hosts import HOSTS
from ._http2 import Http2Client
from ._server import Server, serve

if TYPE_CHECKING:
    from pathlib import Path

    from ._server import Kind
    from ._wire import Connection

Terminate = Callable[[Server], None]

LASTING = "hosted.asgi:lasting"
#: Longer than any test waits, in seconds.
LONG = 60

to_whom = pytest.mark.parametrize(
    "terminate", [Server.terminate, Server.terminate_all], ids=["parent", "all"]
)


def wait_for_shutdown(idle: Connection) -> None:
    """Wait for the first effect of SIGTERM: idle connections are closed."""
    assert idle.read_to_end() == b""


def idle_connection(server: Server) -> Connection:
    """Return a connection that is kept alive, and idle."""
    connection = server.connect()
    connection.send_request("/hello/?id=idle")
    assert connection.read_response().body == b"hello idle"
    return connection


def occupy_all_workers(
    server: Server, stack: ExitStack, target: str
) -> dict[str, Connection]:
    """Put a request in flight in each worker; return the connections by request."""
    waiting: dict[str, Connection] = {}
    # The system chooses the worker of each connection, and will choose each in time.
    while (
        len({entry["pid"] for entry in server.journal_of("entered")}) < server.workers
    ):
        assert len(waiting) < 100
        identity, connection = server.new_id(), stack.enter_context(server.connect())
        connection.send_request(f"{target}id={identity}")
        server.wait_for_event("entered", identity)
        waiting[identity] = connection
    return waiting


def assert_ended_cleanly(server: Server) -> None:
    """Check that the process ended normally, each lifespan after its requests."""
    assert server.wait_for_end() in HOSTS[server.kind].ends_with, server.log
    assert "Traceback" not in server.complaints
    assert "ERROR" not in server.complaints
    if "clean parent" not in HOSTS[server.kind].cannot:
        assert "ResourceWarning" not in server.log
    assert server.temporary_files == []
    shutdowns = server.journal_of("shutdown")
    assert len(shutdowns) == server.workers
    assert all(entry["in_flight"] == [] for entry in shutdowns)


@to_whom
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.demands("grace period")
def test_requests_that_end_in_time_are_answered(
    kind: Kind, tmp_path: Path, workers: int, terminate: Terminate
) -> None:
    """Requests in flight at SIGTERM are answered, and the server then ends."""
    flag = tmp_path / "flag"
    options = {"graceful-timeout": LONG, "keep-alive": LONG}
    with (
        serve(
            kind, tmp_path, application=LASTING, workers=workers, options=options
        ) as server,
        ExitStack() as stack,
    ):
        waiting = occupy_all_workers(server, stack, f"/wait/for/file/?path={flag}&")
        idle = stack.enter_context(idle_connection(server))
        terminate(server)
        wait_for_shutdown(idle)
        flag.touch()
        for identity, connection in waiting.items():
            assert connection.read_response().body == b"it is there"
            server.wait_for_event("finished", identity)
        assert_ended_cleanly(server)


@pytest.mark.demands("http2")
def test_a_stream_of_http2_that_ends_in_time_is_answered(
    kind: Kind, tmp_path: Path
) -> None:
    """The same for HTTP/2, where connections are not kept alive by requests alone."""
    flag = tmp_path / "flag"
    options = {"graceful-timeout": LONG, "keep-alive": LONG}
    with (
        serve(kind, tmp_path, application=LASTING, options=options) as server,
        idle_connection(server) as idle,
        server.connect() as connection,
    ):
        client = Http2Client(connection)
        stream = client.send_request(f"/wait/for/file/?id=wait&path={flag}")
        server.wait_for_event("entered", "wait")
        server.terminate()
        wait_for_shutdown(idle)
        flag.touch()
        assert client.read_body(stream) == b"it is there"
        connection.close()
        assert_ended_cleanly(server)


@pytest.mark.demands("cancellation")
def test_requests_that_do_not_end_are_cancelled(kind: Kind, tmp_path: Path) -> None:
    """After the grace period all requests in flight are cancelled, and clean up."""
    options = {"graceful-timeout": 1}
    with (
        serve(kind, tmp_path, application=LASTING, options=options) as server,
        server.connect() as view,
        server.connect() as view_with_body,
        server.connect() as sync_view,
        server.connect() as stream,
        server.connect() as sync_stream,
        server.connect() as upload,
    ):
        view.send_request("/wait/?id=view")
        view_with_body.send_request(
            "/wait/?id=body", "Content-Length: 3000000", method="POST"
        )
        view_with_body.send(bytes(3_000_000))
        sync_view.send_request("/sync/wait/?id=sync-view")
        stream.send_request("/stream/?id=stream")
        sync_stream.send_request("/sync/stream/?id=sync-stream")
        ids = ["view", "body", "sync-view", "stream", "sync-stream"]
        for identity in ids:
            server.wait_for_event("entered", identity)
        # Half of this request's body has arrived, into a temporary file.
        upload.send_request(
            "/digest/?id=upload", "Content-Length: 6000000", method="POST"
        )
        upload.send(bytes(3_000_000))
        server.wait_for_temporary_files(2)
        server.terminate()
        assert_ended_cleanly(server)
        cancelled = ["started", "entered", "cancelled", "cleaned up", "finished"]
        assert server.events("view") == cancelled
        assert server.events("body") == cancelled
        assert server.events("sync-view") == [
            "started",
            "entered",
            "cancelled",
            "ran on",
            "response closed",
            "finished",
        ]
        streamed = ["started", "entered", "cleaned up", "finished"]
        assert server.events("stream") == streamed
        assert server.events("sync-stream") == streamed
        assert server.events("upload") == []


@pytest.mark.demands("cancellation")
def test_clients_that_do_not_read(kind: Kind, tmp_path: Path) -> None:
    """Requests that wait for a client to read, and cannot be cancelled, end with it."""
    options = {"graceful-timeout": 1}
    with (
        serve(kind, tmp_path, application=LASTING, options=options) as server,
        ExitStack() as stack,
    ):
        paths = {
            "view": "/wait/?",
            "stream": "/flood/?",
            "sync-stream": "/sync/flood/?",
            "buffered": "/large/?bytes=50000000&",
        }
        connections: list[Connection] = []
        for identity, path in paths.items():
            connections.append(stack.enter_context(server.connect()))
            connections[-1].send_request(f"{path}id={identity}")
            server.wait_for_event("entered", identity)
        server.terminate()
        server.wait_for_event("finished", "view")  # the grace period is over
        for connection in connections:
            connection.close()
        assert_ended_cleanly(server)
        streamed = ["started", "entered", "cleaned up", "finished"]
        assert server.events("stream") == streamed
        assert server.events("sync-stream") == streamed
        assert server.events("buffered") == ["started", "entered", "finished"]


@to_whom
@pytest.mark.demands("cancellation")
def test_all_workers_cancel_what_does_not_end(
    kind: Kind, tmp_path: Path, terminate: Terminate
) -> None:
    """Each of two workers lets its requests clean up, whichever ends first."""
    options = {"graceful-timeout": 1}
    with (
        serve(
            kind, tmp_path, application=LASTING, workers=2, options=options
        ) as server,
        ExitStack() as stack,
    ):
        waiting = occupy_all_workers(server, stack, "/wait/?")
        terminate(server)
        assert_ended_cleanly(server)
        for identity in waiting:
            assert server.events(identity)[-2:] == ["cleaned up", "finished"]


@pytest.mark.demands("cancellation")
def test_a_thread_that_hangs_does_not_keep_the_server(
    kind: Kind, tmp_path: Path
) -> None:
    """Sync code that never ends is left behind, and logged; other requests end well."""
    with (
        serve(
            kind,
            tmp_path,
            application=LASTING,
            options={"graceful-timeout": 1},
            settings={"SHUTDOWN_SECONDS": 0.2, "CLEANUP_SECONDS": 0.2},
        ) as server,
        server.connect() as hanging,
        server.connect() as waiting,
    ):
        hanging.send_request("/sync/hang/?id=hanging")
        waiting.send_request("/wait/?id=waiting")
        server.wait_for_event("entered", "hanging")
        server.wait_for_event("entered", "waiting")
        server.terminate()
        assert server.wait_for_end() in HOSTS[server.kind].ends_with
        assert "Left sync code running that does not end: /sync/hang/" in server.log
        assert "Traceback" not in server.complaints
        assert server.events("waiting")[-2:] == ["cleaned up", "finished"]
        assert server.events("lifespan") == ["startup", "shutdown"]

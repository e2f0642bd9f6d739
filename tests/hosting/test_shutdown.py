"""SIGTERM: who is done in time is answered, who is not is cancelled, all clean up."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from ._http2 import Http2Client
from ._server import serve

if TYPE_CHECKING:
    from pathlib import Path

    from ._server import Kind, Server
    from ._wire import Connection

LASTING = "hosted.asgi:lasting"
#: As LASTING, for several workers.
PATIENT = "hosted.patient:application"

#: Longer than any test waits, in seconds.
LONG = 60


def terminate(server: Server, idle: Connection) -> None:
    """Send SIGTERM, and wait for its first effect: idle connections are closed."""
    server.terminate()
    assert idle.read_to_end() == b""


def idle_connection(server: Server) -> Connection:
    """Return a connection that is kept alive, and does nothing."""
    connection = server.connect()
    connection.send_request("/hello/?id=idle")
    assert connection.read_response().body == b"hello idle"
    return connection


def assert_ended_cleanly(server: Server) -> None:
    """The process has ended as it should, each worker's lifespan after its requests."""
    assert server.wait_for_end() == 0, server.log
    assert "Traceback" not in server.log
    assert "ERROR" not in server.log
    assert "ResourceWarning" not in server.log
    assert server.temporary_files == []
    shutdowns = server.journal_of("shutdown")
    assert len(shutdowns) == server.workers
    assert all(entry["in_flight"] == [] for entry in shutdowns)


def test_a_request_that_ends_in_time_is_answered(kind: Kind, tmp_path: Path) -> None:
    """A request in flight at SIGTERM has its answer, and the server then ends."""
    flag = tmp_path / "flag"
    options = {"graceful-timeout": LONG, "keep-alive": LONG}
    with (
        serve(kind, tmp_path, application=LASTING, options=options) as server,
        idle_connection(server) as idle,
        server.connect() as connection,
    ):
        connection.send_request(f"/wait/for/file/?id=wait&path={flag}")
        server.wait_for_event("entered", "wait")
        terminate(server, idle)
        assert server.events("wait") == ["started", "entered"]
        flag.touch()
        assert connection.read_response().body == b"it is there"
        assert_ended_cleanly(server)
        assert server.events("wait") == ["started", "entered", "finished"]


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
        terminate(server, idle)
        flag.touch()
        assert client.read_body(stream) == b"it is there"
        connection.close()
        assert_ended_cleanly(server)


def test_requests_that_do_not_end_are_cancelled(kind: Kind, tmp_path: Path) -> None:
    """After the grace period all that is in flight is cancelled, and cleans up."""
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
        # Of this request, half of the body has come, into a temporary file.
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


def occupy_all_workers(server: Server, stack: ExitStack, target: str) -> list[str]:
    """Have requests in flight in each worker; return their ids."""
    ids: list[str] = []
    # The system chooses the worker of each connection: it will choose all.
    while len({entry["pid"] for entry in server.journal_of("entered")}) < 2:
        assert len(ids) < 100
        ids.append(server.new_id())
        stack.enter_context(server.connect()).send_request(f"{target}id={ids[-1]}")
        server.wait_for_event("entered", ids[-1])
    return ids


def test_all_workers_answer_in_time(kind: Kind, tmp_path: Path) -> None:
    """Of two workers, none is ended before its requests, though the other one is."""
    flag = tmp_path / "flag"
    options = {"graceful-timeout": LONG, "keep-alive": LONG}
    with (
        serve(
            kind, tmp_path, application=PATIENT, workers=2, options=options
        ) as server,
        ExitStack() as stack,
    ):
        ids = occupy_all_workers(server, stack, f"/wait/for/file/?path={flag}&")
        terminate(server, stack.enter_context(idle_connection(server)))
        flag.touch()
        assert_ended_cleanly(server)
        for identity in ids:
            assert server.events(identity) == ["started", "entered", "finished"]


def test_all_workers_cancel_the_rest(kind: Kind, tmp_path: Path) -> None:
    """Of two workers, each lets its requests clean up."""
    options = {"graceful-timeout": 1}
    with (
        serve(
            kind, tmp_path, application=PATIENT, workers=2, options=options
        ) as server,
        ExitStack() as stack,
    ):
        ids = occupy_all_workers(server, stack, "/wait/?")
        server.terminate()
        assert_ended_cleanly(server)
        for identity in ids:
            assert server.events(identity)[-2:] == ["cleaned up", "finished"]


def test_a_thread_that_hangs_does_not_keep_the_server(
    kind: Kind, tmp_path: Path
) -> None:
    """Sync code that never ends is left behind, which the log says; others end well."""
    with (
        serve(
            kind,
            tmp_path,
            application=LASTING,
            options={"graceful-timeout": 1},
            settings={"SHUTDOWN_SECONDS": 1, "CLEANUP_SECONDS": 1},
        ) as server,
        server.connect() as hanging,
        server.connect() as waiting,
    ):
        hanging.send_request("/sync/hang/?id=hanging")
        waiting.send_request("/wait/?id=waiting")
        server.wait_for_event("entered", "hanging")
        server.wait_for_event("entered", "waiting")
        server.terminate()
        assert server.wait_for_end() == 0
        assert "Left sync code running that does not end: /sync/hang/" in server.log
        assert "Traceback" not in server.log
        assert server.events("waiting")[-2:] == ["cleaned up", "finished"]
        assert server.events("lifespan") == ["startup", "shutdown"]

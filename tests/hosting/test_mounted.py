"""The application inside others that run on asyncio, over real sockets."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from websockets.sync.client import connect as connect_websocket

from ._server import Server, eventually, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ._wire import Response

KIND = "uvicorn"
SITE = "hosted.mounted_asgi"
LONG = {"graceful-timeout": 60}

#: Applications, and where the site is mounted in each.
MOUNTED = {
    "plain": "/inner/one",
    "in_middleware": "/one",
    "api": "/one",
    "channels": "",
    "channels_lasting": "",
}
LASTING = ["api", "channels_lasting"]


@pytest.fixture(params=MOUNTED)
def name(request: pytest.FixtureRequest) -> str:
    """Each of the outer applications."""
    return str(request.param)


@pytest.fixture
def at(name: str) -> str:
    """Where the site is mounted."""
    return MOUNTED[name]


@pytest.fixture
def server(name: str, tmp_path: Path) -> Iterator[Server]:
    """Serve an application; it must end well."""
    with serve(KIND, tmp_path, application=f"{SITE}:{name}", options=LONG) as server:
        yield server
        stop_cleanly(server)


def stop_cleanly(server: Server) -> None:
    """End the server; nothing is left, and nothing was logged as an error."""
    assert server.stop() in (0, -15), server.log
    for bad in ("Traceback", "ERROR", "CRITICAL", "Warning"):
        assert bad not in server.log, server.log
    assert server.temporary_files == []


def ask(
    server: Server, target: str, *headers: str, body: bytes = b"", method: str = "GET"
) -> Response:
    """Make one request on a new connection."""
    with server.connect() as connection:
        length = f"Content-Length: {len(body)}"
        connection.send_request(target, length, *headers, method=method)
        connection.send(body)
        return connection.read_response()


def answer(server: Server, target: str) -> Any:
    """Return the JSON that a view has answered."""
    response = ask(server, target)
    assert response.status == 200, (response, server.log)
    return json.loads(response.body)


def test_requests_of_all_kinds(server: Server, name: str, at: str) -> None:
    """Nursery, ORM, body, stream and error work, and URLs have the mount's prefix."""
    assert answer(server, f"{at}/where/") == {
        "reverse": f"{at}/where/",
        "path_info": "/where/",
        "caller": "middleware" if name == "in_middleware" else "nobody",
        "library": "trio",
    }
    for number in range(2):
        found = answer(server, f"{at}/users/?id=user-{number}")
        assert found["reverse"] == f"{at}/users/"
    assert found["users"] == ["user-0", "user-1"]
    body = bytes(range(256)) * 20_000
    for path in ("digest", "sync/digest"):
        posted = ask(server, f"{at}/{path}/?id=body", body=body, method="POST")
        assert posted.body.decode() == hashlib.sha256(body).hexdigest()
    large = ask(server, f"{at}/sync/large/?id=large&bytes=3000000")
    assert large.body == b"x" * 3_000_000
    through = large.headers.get("x-through")
    assert through == ("Starlette" if name == "in_middleware" else None)
    assert ask(server, f"{at}/missing/").status == 404
    leaving = ["stream", "sync/stream", "events", "flood", "sync/flood"]
    if name != "in_middleware":
        # There Starlette logs an error if the client leaves before the answer.
        leaving.append("wait")
    for path in leaving:
        with server.connect() as connection:
            connection.send_request(f"{at}/{path}/?id={path}")
            server.wait_for_event("entered", path)
        server.wait_for_event("cleaned up", path)
        eventually(
            lambda path=path: "finished" in server.events(path),  # type: ignore[misc]
            f"the request {path} ends",
        )


def test_an_error_is_answered_and_logged_by_django(tmp_path: Path) -> None:
    """The outer application sees an answer, and no error."""
    with serve(KIND, tmp_path, application=f"{SITE}:in_middleware") as server:
        assert ask(server, "/one/boom/").status == 500
        assert ask(server, "/one/sync/boom/").status == 500
        assert server.stop() in (0, -15)
        assert server.log.count("Traceback") == 2
        assert server.log.count("ERROR django.request: ") == 2


def test_routes_of_the_outer_application(tmp_path: Path) -> None:
    """FastAPI's async routes, with the ORM, are answered while a request waits."""
    with (
        serve(KIND, tmp_path, application=f"{SITE}:api") as server,
        server.connect() as waiting,
    ):
        waiting.send_request("/one/wait/?id=wait")
        server.wait_for_event("entered", "wait")
        answer(server, "/one/users/?id=user")
        assert answer(server, "/items/7") == {"item": 7, "users": 1}
        assert answer(server, "/openapi.json")["paths"].keys() == {"/items/{item}"}
        waiting.close()
        server.wait_for_event("finished", "wait")
        stop_cleanly(server)


def test_two_applications_share_the_run(tmp_path: Path) -> None:
    """Their requests are tasks of one Trio run."""
    with (
        serve(KIND, tmp_path, application=f"{SITE}:plain") as server,
        server.connect() as one,
        server.connect() as two,
    ):
        one.send_request("/inner/one/meet/?id=one&place=run&crowd=2")
        assert answer(server, "/where/")["reverse"] == "/where/"
        eventually(
            lambda: (
                answer(server, "/state/?id=state")["tasks"].count("trio_asgi.http") == 2
            ),
            "the other application's task is seen",
        )
        two.send_request("/meet/?id=two&place=run&crowd=2")
        assert one.read_response().body == b"met one"
        assert two.read_response().body == b"met two"
        assert ask(server, "/rest/").body == b"Starlette"
        one.close()
        two.close()
        stop_cleanly(server)


@pytest.mark.parametrize("name", ["channels", "channels_lasting"])
def test_websockets_beside(server: Server) -> None:
    """Channels' consumer runs on asyncio, while requests wait on Trio."""
    address = f"ws://127.0.0.1:{server.port}/echo/"
    with server.connect() as waiting, connect_websocket(address, proxy=None) as socket:
        waiting.send_request("/wait/?id=wait")
        server.wait_for_event("entered", "wait")
        socket.send("tea")
        assert socket.recv() == "echo tea"
        assert answer(server, "/where/")["library"] == "trio"
        socket.send("more")
        assert socket.recv() == "echo more"
    server.wait_for_event("closed", "echo")
    server.wait_for_event("finished", "wait")


# SIGTERM


@pytest.mark.parametrize("name", ["plain", "api", "channels"])
def test_requests_that_end_in_time_are_answered(
    name: str, at: str, tmp_path: Path
) -> None:
    """The server waits for them, with or without a lifespan."""
    flag = tmp_path / "flag"
    with (
        serve(KIND, tmp_path, application=f"{SITE}:{name}", options=LONG) as server,
        server.connect() as waiting,
        server.connect() as idle,
    ):
        idle.send_request(f"{at}/users/?id=idle")
        assert idle.read_response().status == 200
        waiting.send_request(f"{at}/wait/for/file/?id=wait&path={flag}")
        server.wait_for_event("entered", "wait")
        server.terminate()
        assert idle.read_to_end() == b""
        flag.touch()
        assert waiting.read_response().body == b"it is there"
        waiting.close()
        stop_cleanly(server)
        assert server.events("wait")[-1] == "finished"


@pytest.mark.parametrize("name", LASTING)
def test_what_does_not_end_is_cancelled(name: str, at: str, tmp_path: Path) -> None:
    """With a lifespan: requests clean up, then background tasks, then the outer end."""
    with (
        serve(
            KIND,
            tmp_path,
            application=f"{SITE}:{name}",
            options={"graceful-timeout": 1},
            settings={"SHUTDOWN_SECONDS": 0.2},
        ) as server,
        server.connect() as view,
        server.connect() as sync_view,
        server.connect() as stream,
    ):
        assert ask(server, f"{at}/background/?id=task").body == b"begun"
        view.send_request(f"{at}/wait/?id=view")
        sync_view.send_request(f"{at}/sync/wait/?id=sync-view")
        stream.send_request(f"{at}/stream/?id=stream")
        for identity in ("view", "sync-view", "stream"):
            server.wait_for_event("entered", identity)
        server.terminate()
        assert server.wait_for_end() in (0, -15)
        for identity in ("view", "sync-view", "stream"):
            assert server.events(identity)[-1] == "finished", server.log
        assert server.events("task") == ["started", "finished", "background ended"]
        [shutdown] = server.journal_of("shutdown")
        assert shutdown["in_flight"] == []
        assert "Traceback" not in server.complaints
        outer = server.journal_of("outer shutdown")
        assert len(outer) == (name == "api")
        assert server.journal[-1] in (shutdown, *outer)

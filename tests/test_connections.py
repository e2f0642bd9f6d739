"""Connections to databases: how long they are kept, who gets them, when they end."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeAlias
from wsgiref.util import setup_testing_defaults

import pytest
import trio
from asgiref.sync import iscoroutinefunction, sync_to_async
from django.core.handlers.wsgi import WSGIHandler, WSGIRequest
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import override_settings
from django.urls import path

from database_support import (
    MariaDB,
    PostgreSQL,
    Server,
    add_database,
    connection_of,
    open_database,
    open_server,
)
from support import Answer, application, request
from trio_asgi import release_thread
from trio_asgi.testing import ApplicationCommunicator
from trio_asgi.threads.current import current_pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from trio_asgi import ASGIHandler

View: TypeAlias = "Callable[[HttpRequest], Any]"
MakeView: TypeAlias = "Callable[[Server, str], View]"


@pytest.fixture(scope="module", params=[PostgreSQL, MariaDB])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Provide a database on a server of each kind."""
    with open_server(request.param) as server:
        yield server


@pytest.fixture(scope="module")
def postgresql() -> Iterator[Server]:
    """Provide a database on PostgreSQL."""
    with open_server(PostgreSQL) as server:
        yield server


# Views that answer with the connection they have used


def sync_view(server: Server, alias: str) -> View:
    """Return a sync view that queries."""

    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(str(connection_of(server, alias).get()))

    return view


def orm_view(server: Server, alias: str) -> View:
    """Return an async view that uses Django's async queries."""

    async def view(request: HttpRequest) -> HttpResponse:
        first = await connection_of(server, alias).aget()
        second = await connection_of(server, alias).afirst()
        assert first == second
        return HttpResponse(str(first))

    return view


def cursor_view(server: Server, alias: str) -> View:
    """Return an async view that uses a cursor in its thread."""

    def query() -> int:
        with connections[alias].cursor() as cursor:
            cursor.execute(f"SELECT {server.id_function}()")
            return int(cursor.fetchone()[0])

    async def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(str(await sync_to_async(query)()))

    return view


views = pytest.mark.parametrize("make_view", [sync_view, orm_view, cursor_view])


def served(view: View) -> ASGIHandler:
    """Return an application of one view."""
    return application(path("", view))


async def used_connection(app: ASGIHandler) -> int:
    """Make a request, and return which connection it has used."""
    answer = await request(app)
    assert answer.status == 200
    return int(answer.body)


# Kept, or not


@views
@pytest.mark.parametrize("checks", [False, True])
async def test_connections_are_reused(
    server: Server, make_view: MakeView, checks: bool
) -> None:
    """With ``CONN_MAX_AGE``, sequential requests use one connection."""
    settings = server.settings(CONN_MAX_AGE=60, CONN_HEALTH_CHECKS=checks)
    async with open_database(settings) as alias:
        app = served(make_view(server, alias))
        used = [await used_connection(app) for _ in range(5)]
        assert len(set(used)) == 1
        assert server.connection_ids() == set(used)
    # The thread has closed it at its end.
    await server.wait_connections(0)


@views
async def test_connections_are_closed_with_the_request(
    server: Server, make_view: MakeView
) -> None:
    """Without ``CONN_MAX_AGE`` no request leaves a connection behind."""
    async with open_database(server.settings(CONN_MAX_AGE=0)) as alias:
        app = served(make_view(server, alias))
        used = []
        for _ in range(3):
            used.append(await used_connection(app))
            await server.wait_connections(0)
        assert len(set(used)) == 3


@views
async def test_connections_that_are_too_old_are_closed(
    server: Server, make_view: MakeView
) -> None:
    """A connection that has reached its age is not used by another request."""
    async with open_database(server.settings(CONN_MAX_AGE=3600)) as alias:

        def grow_old() -> None:
            connections[alias].close_at = 0

        app = served(make_view(server, alias))
        first = await used_connection(app)
        await current_pool().run_sync(grow_old)
        assert await used_connection(app) != first


# Cut off by the server


class OneThread:
    """Django's own handler for WSGI, in a server's only thread."""

    def __init__(self, view: View) -> None:
        class Request(WSGIRequest):
            urlconf = (path("", view),)  # type: ignore[assignment] # Django takes it

        class Handler(WSGIHandler):
            request_class = Request

        self._handler = Handler()
        self._thread = ThreadPoolExecutor(1)

    def _request(self) -> Answer:
        environ: dict[str, Any] = {}
        setup_testing_defaults(environ)
        handler: Any = self._handler
        response = handler(environ, lambda *_: None)
        try:
            body = b"".join(response)
        finally:
            response.close()
        status = response.status_code
        return Answer([{"status": status}, {"body": body}])

    async def request(self) -> Answer:
        """Make one request."""
        return await trio.to_thread.run_sync(
            lambda: self._thread.submit(self._request).result()
        )

    async def close(self) -> None:
        """End the thread, and close its connections."""
        self._thread.submit(connections.close_all).result()
        self._thread.shutdown()


async def answers_to_a_kill(
    server: Server, make_request: Callable[[], Any]
) -> list[str]:
    """Let the server cut a connection off after a request; return the next answers."""
    story = []
    used: list[int] = []
    for _ in range(4):
        answer = await make_request()
        if answer.status != 200:
            story.append(str(answer.status))
            continue
        connection = int(answer.body)
        story.append("the same" if connection in used else "new")
        if not used:
            await server.wait_killed(connection)
        used.append(connection)
    return story


@views
@pytest.mark.parametrize(
    ("checks", "story"),
    [
        (True, ["new", "new", "the same", "the same"]),
        (False, ["new", "500", "new", "the same"]),
    ],
)
async def test_a_connection_that_the_server_has_cut_off(
    server: Server, make_view: MakeView, checks: bool, story: list[str]
) -> None:
    """It is replaced as in a WSGI thread of Django.

    With health checks no request fails. Without, the next request fails, and the one
    after that has a new connection.
    """
    settings = server.settings(CONN_MAX_AGE=60, CONN_HEALTH_CHECKS=checks)
    async with open_database(settings) as alias:
        app = served(make_view(server, alias))
        assert await answers_to_a_kill(server, lambda: request(app)) == story

        wsgi = OneThread(sync_view(server, alias))
        assert await answers_to_a_kill(server, wsgi.request) == story
        await wsgi.close()


# psycopg's own pool


def with_pool(server: Server, **options: Any) -> dict[str, Any]:
    """Return settings with a pool of psycopg."""
    return server.settings(OPTIONS={"pool": {"timeout": 10, **options}})


def pool_of(alias: str) -> Any:
    """Return psycopg's pool of a database, as Django keeps it for all threads."""
    from django.db.backends.postgresql.base import DatabaseWrapper  # noqa: PLC0415

    return DatabaseWrapper._connection_pools[alias]  # type: ignore[attr-defined]


async def wait_all_returned(alias: str) -> None:
    """Wait until all connections of a pool are in it: it has threads that open some."""
    with trio.fail_after(10):
        while True:
            stats = pool_of(alias).get_stats()
            assert stats["requests_waiting"] == 0
            if stats["pool_available"] == stats["pool_size"]:
                return
            await trio.sleep(0.01)


def after(barrier: threading.Barrier, view: View) -> View:
    """Return a view that waits for others of its kind before it begins."""

    def sync(request: HttpRequest) -> Any:
        barrier.wait()
        return view(request)

    async def asynchronous(request: HttpRequest) -> Any:
        await sync_to_async(barrier.wait)()
        return await view(request)

    return asynchronous if iscoroutinefunction(view) else sync


@views
async def test_psycopgs_pool(postgresql: Server, make_view: MakeView) -> None:
    """Sequential requests find the pool's only connection back in it."""
    settings = with_pool(postgresql, min_size=1, max_size=1)
    async with open_database(settings) as alias:
        app = served(make_view(postgresql, alias))
        try:
            used = [await used_connection(app) for _ in range(5)]
            assert len(set(used)) == 1
            await wait_all_returned(alias)
        finally:
            pool_of(alias).close()
    await postgresql.wait_connections(0)


@views
async def test_psycopgs_pool_is_the_bound(
    postgresql: Server, make_view: MakeView
) -> None:
    """Eight requests at once share the two connections of a pool."""
    settings = with_pool(postgresql, min_size=1, max_size=2)
    async with open_database(settings) as alias:
        barrier = threading.Barrier(8, timeout=10)
        app = served(after(barrier, make_view(postgresql, alias)))
        try:
            used = await many_requests(app, requests=8, at_once=8)
            assert 1 <= len(used) <= 2
            await wait_all_returned(alias)
        finally:
            pool_of(alias).close()
    await postgresql.wait_connections(0)


# How many


@views
@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({}, 32),
        ({"MAX_HELD_THREADS": 5}, 5),
        ({"MAX_HELD_THREADS": 5, "THREADS": 2}, 5),
    ],
)
async def test_many_requests_at_once(
    postgresql: Server, make_view: MakeView, settings: dict[str, int], most: int
) -> None:
    """200 requests, 32 at a time, use a connection for each lease, and no more."""
    with override_settings(TRIO_ASGI=settings):
        async with open_database(postgresql.settings(CONN_MAX_AGE=None)) as alias:
            app = served(make_view(postgresql, alias))
            used = await many_requests(app, requests=200, at_once=32)
            assert 1 <= len(used) <= most
            # None was closed, and none was opened without being used.
            assert postgresql.connection_ids() == used
        await postgresql.wait_connections(0)


async def test_many_sync_views_at_once(postgresql: Server) -> None:
    """A sync view holds its thread while it runs, so ``THREADS`` bounds these, too."""
    with override_settings(TRIO_ASGI={"THREADS": 4}):
        async with open_database(postgresql.settings(CONN_MAX_AGE=None)) as alias:
            app = served(sync_view(postgresql, alias))
            used = await many_requests(app, requests=200, at_once=32)
            assert 1 <= len(used) <= 4
            assert postgresql.connection_ids() == used


async def many_requests(app: ASGIHandler, *, requests: int, at_once: int) -> set[int]:
    """Make requests, and return which connections they have used."""
    used: set[int] = set()
    numbers = iter(range(requests))

    async def client() -> None:
        for _ in numbers:
            used.add(await used_connection(app))

    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(client)
    return used


def test_no_connection_outlives_the_run(postgresql: Server) -> None:
    """When `trio.run` returns, all connections are closed, lifespan or not."""

    async def main(alias: str) -> None:
        app = served(orm_view(postgresql, alias))
        used = await many_requests(app, requests=20, at_once=4)
        assert postgresql.connection_ids() == used

    with add_database(postgresql.settings(CONN_MAX_AGE=None)) as alias:
        trio.run(main, alias)
    trio.run(postgresql.wait_connections, 0)


async def test_no_connection_outlives_the_lifespan(postgresql: Server) -> None:
    """The server is told that the shutdown is complete when they are closed."""
    async with open_database(postgresql.settings(CONN_MAX_AGE=None)) as alias:
        app = served(orm_view(postgresql, alias))
        scope = {"type": "lifespan", "asgi": {}}
        async with ApplicationCommunicator(app, scope) as lifespan:
            await lifespan.send_input({"type": "lifespan.startup"})
            await lifespan.receive_output()
            used = await many_requests(app, requests=20, at_once=4)
            assert postgresql.connection_ids() == used
            await lifespan.send_input({"type": "lifespan.shutdown"})
            await lifespan.receive_output(timeout=10)
            await postgresql.wait_connections(0)
            await lifespan.wait()


# Given back early


class Waiting:
    """Code of a request that queries, waits for a long time, and queries again."""

    def __init__(self, server: Server, alias: str) -> None:
        self.waits = trio.Event()
        self.go_on = trio.Event()
        self.used: list[int] = []
        self._server = server
        self._alias = alias

    async def _query(self) -> None:
        self.used.append(await connection_of(self._server, self._alias).aget())

    async def __call__(self) -> None:
        await self._query()
        await release_thread()
        self.waits.set()
        await self.go_on.wait()
        await self._query()

    async def view(self, request: HttpRequest) -> HttpResponse:
        """Run it in a view."""
        await self()
        return HttpResponse("done")

    async def stream(self, request: HttpRequest) -> StreamingHttpResponse:
        """Run it in a stream."""

        async def parts() -> AsyncIterator[bytes]:
            await self()
            yield b"done"

        return StreamingHttpResponse(parts())


@pytest.mark.parametrize("where", ["view", "stream"])
@pytest.mark.parametrize("max_age", [0, None])
async def test_who_waits_pins_no_connection(
    postgresql: Server, where: str, max_age: float | None
) -> None:
    """After `release_thread`, others use the thread, and its connection if it is kept.

    Only one lease at a time is allowed here.
    """
    settings = postgresql.settings(CONN_MAX_AGE=max_age)
    with override_settings(TRIO_ASGI={"MAX_HELD_THREADS": 1}):
        async with open_database(settings) as alias, trio.open_nursery() as nursery:
            code = Waiting(postgresql, alias)
            slow = served(getattr(code, where))
            other = served(sync_view(postgresql, alias))
            nursery.start_soon(expect_done, slow)
            await code.waits.wait()
            await postgresql.wait_connections(0 if max_age == 0 else 1)
            used = await used_connection(other)
            code.go_on.set()
    kept = [code.used[0]] * 2
    if max_age is None:
        assert [used, code.used[1]] == kept
    else:
        assert len({used, *code.used}) == 3


async def expect_done(app: ASGIHandler) -> None:
    """Make a request that answers "done"."""
    assert (await request(app)).body == b"done"


async def test_a_background_task_pins_no_connection(postgresql: Server) -> None:
    """A task of `start_soon` gives its thread back in the same way."""
    settings = postgresql.settings(CONN_MAX_AGE=0)
    with override_settings(TRIO_ASGI={"MAX_HELD_THREADS": 1}):
        async with open_database(settings) as alias:
            code = Waiting(postgresql, alias)
            app = served(sync_view(postgresql, alias))
            scope = {"type": "lifespan", "asgi": {}}
            async with ApplicationCommunicator(app, scope) as lifespan:
                await lifespan.send_input({"type": "lifespan.startup"})
                await lifespan.receive_output()
                app.start_soon(code)
                await code.waits.wait()
                await postgresql.wait_connections(0)
                await used_connection(app)
                code.go_on.set()
                await lifespan.send_input({"type": "lifespan.shutdown"})
                await lifespan.receive_output(timeout=10)
                await lifespan.wait()
    assert len(code.used) == 2
    await postgresql.wait_connections(0)


async def test_a_connection_that_was_cut_off_meanwhile(postgresql: Server) -> None:
    """A view that has waited is not affected by connections lost meanwhile."""
    settings = postgresql.settings(CONN_MAX_AGE=60, CONN_HEALTH_CHECKS=True)
    async with open_database(settings) as alias, trio.open_nursery() as nursery:
        code = Waiting(postgresql, alias)
        nursery.start_soon(expect_done, served(code.view))
        await code.waits.wait()
        await postgresql.wait_killed(code.used[0])
        code.go_on.set()
    assert len(set(code.used)) == 2


async def test_a_view_in_a_transaction_keeps_its_thread(postgresql: Server) -> None:
    """`release_thread` refuses where a part of the view has begun a transaction."""

    async def view(request: HttpRequest) -> HttpResponse:
        block: Any = transaction.atomic(alias)
        await sync_to_async(block.__enter__)()
        with pytest.raises(RuntimeError, match="in a transaction"):
            await release_thread()
        await sync_to_async(block.__exit__)(None, None, None)
        await release_thread()
        return HttpResponse("done")

    async with open_database(postgresql.settings()) as alias:
        await expect_done(served(view))

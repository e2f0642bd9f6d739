"""`LiveServerThread`: the server of `LiveServerTestCase`, on Trio."""

from __future__ import annotations

import gc
import sys
import threading
import time
import warnings
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trio
from asgiref.sync import sync_to_async
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.servers.basehttp import ThreadedWSGIServer
from django.core.signals import request_started
from django.db import connection, connections, transaction
from django.http import HttpResponse
from django.test import override_settings
from django.test.testcases import _StaticFilesHandler
from django.urls import path
from hypercorn.utils import LifespanFailureError

from trio_asgi import ASGIHandler, EventStream, start_soon
from trio_asgi.testing import LiveServerThread, live_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from django.http import HttpRequest
    from django.urls import URLPattern

#: For waits that are short, unless the test fails.
SECONDS = 10


class Server:
    """A running thread, and how to talk to it."""

    def __init__(self, thread: LiveServerThread) -> None:
        self.thread = thread
        host = f"[{thread.host}]" if ":" in thread.host else thread.host
        self.url = f"http://{host}:{thread.port}"

    def get(self, path: str = "/") -> httpx.Response:
        """Make a request; return the response."""
        return httpx.get(f"{self.url}{path}", timeout=SECONDS)


@contextmanager
def serving(
    *urls: URLPattern,
    kind: type[LiveServerThread] = LiveServerThread,
    host: str = "localhost",
    static_handler: Any = _StaticFilesHandler,
    **options: Any,
) -> Iterator[Server]:
    """Run a live server for these URLs, as Django's test case does."""
    urlconf = ModuleType("urlconf")
    urlconf.urlpatterns = urls  # type: ignore[attr-defined]
    with override_settings(ROOT_URLCONF=urlconf):
        thread = kind(host, static_handler, **options)
        thread.daemon = True
        thread.start()
        try:
            assert thread.is_ready.wait(SECONDS)
            if thread.error:
                raise thread.error
            yield Server(thread)
        finally:
            thread.terminate()
            assert not thread.is_alive()


async def nothing(request: HttpRequest) -> HttpResponse:
    """Answer on Trio."""
    await trio.lowlevel.checkpoint()
    return HttpResponse("nothing")


def test_it_serves_on_trio() -> None:
    """Async views run in Trio tasks of a server, and sync views at the same time."""
    barrier = threading.Barrier(2)

    def meet(request: HttpRequest) -> HttpResponse:
        barrier.wait(SECONDS)
        return HttpResponse("met")

    with serving(path("", nothing), path("meet/", meet)) as server:
        assert server.thread.port != 0
        response = server.get()
        assert response.text == "nothing"
        assert response.headers["server"].startswith("hypercorn")
        other = threading.Thread(target=server.get, args=["/meet/"])
        other.start()
        assert server.get("/meet/").text == "met"
        other.join()


@pytest.mark.parametrize("debug", [False, True])
def test_a_receiver_starts_a_task_in_a_request_for_a_file(
    tmp_path: Path, debug: bool
) -> None:
    """Files are served with ``DEBUG``, too, and belong to the application."""
    ran = threading.Event()

    async def task() -> None:
        ran.set()

    def start(**kwargs: Any) -> None:
        start_soon(task)

    (tmp_path / "file.txt").write_text("content")
    request_started.connect(start)
    try:
        with (
            override_settings(
                DEBUG=debug, STATIC_ROOT=str(tmp_path), STATIC_URL="/static/"
            ),
            serving(path("", nothing)) as server,
        ):
            assert server.get("/static/file.txt").text == "content"
            assert ran.wait(SECONDS)
    finally:
        request_started.disconnect(start)


def test_a_given_port_and_one_in_use() -> None:
    """A port can be chosen; the test case gets the error if it is in use."""
    with serving(path("", nothing)) as server:
        port = server.thread.port
        with warnings.catch_warnings():
            # hypercorn leaves open the socket that it could not bind.
            warnings.simplefilter("ignore", ResourceWarning)
            with pytest.raises(OSError, match="in use"), serving(port=port):
                raise AssertionError
            gc.collect()
    with serving(path("", nothing), port=port) as server:
        assert server.get().text == "nothing"
        assert server.thread.port == port


def test_ipv6() -> None:
    """The host may be an address of IPv6."""
    with serving(path("", nothing), host="::1") as server:
        assert server.get().text == "nothing"


def test_it_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """The output of a test runner shows no lines of the server."""
    with serving(path("", nothing)) as server:
        server.get()
    assert capfd.readouterr() == ("", "")


# What can fail


def test_without_hypercorn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "hypercorn.config", None)
    with (
        pytest.raises(
            ImportError, match=r"needs hypercorn: pip install 'hypercorn>=0\.18'"
        ),
        serving(),
    ):
        raise AssertionError


def test_an_application_that_cannot_be_made() -> None:
    """The test case gets the error."""
    middleware = override_settings(MIDDLEWARE=["no.such.middleware"])
    with (
        middleware,
        pytest.raises(ImportError, match="No module named 'no'"),
        serving(),
    ):
        raise AssertionError


class Site(ASGIHandler):
    """Notes its life, and fails if told so."""

    events: list[str]

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Note the start-up and the shutdown."""
        self.events.append("startup")
        if "fails" in self.events:
            raise ValueError("the start-up failed")
        yield
        self.events.append("shutdown")


def site_thread(*events: str) -> type[LiveServerThread]:
    """Return a class of threads that serve a `Site`."""

    class OwnSite(Site):
        pass

    class SiteThread(LiveServerThread):
        handler_class = OwnSite

    OwnSite.events = [*events]
    return SiteThread


def test_the_lifespan() -> None:
    """The project's own handler class is served, with its lifespan."""
    kind = site_thread()
    with serving(path("", nothing), kind=kind) as server:
        assert server.get().text == "nothing"
    assert kind.handler_class.events == ["startup", "shutdown"]  # type: ignore[attr-defined]


def test_a_lifespan_that_fails() -> None:
    """The test case gets the error."""
    with (
        pytest.raises(LifespanFailureError, match="the start-up failed"),
        serving(kind=site_thread("fails")),
    ):
        raise AssertionError


def test_the_errors_of_views() -> None:
    """They are answered, and the server goes on."""

    async def fail(request: HttpRequest) -> HttpResponse:
        raise ValueError("the view failed")

    with serving(path("", nothing), path("fail/", fail)) as server:
        assert server.get("/fail/").status_code == 500
        assert server.get().text == "nothing"


# Files


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Path]:
    """Provide a directory with files, in which all kinds of files are found."""
    for name in ("found", "root", "media"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file.txt").write_text(name)
    with override_settings(
        STATICFILES_DIRS=[tmp_path / "found"],
        STATIC_ROOT=tmp_path / "root",
        MEDIA_ROOT=tmp_path / "media",
        MEDIA_URL="media/",
    ):
        yield tmp_path


async def show_path(request: HttpRequest, **_: str) -> HttpResponse:
    """Answer where there is no file."""
    return HttpResponse(f"the view of {request.path}")


EVERY_PATH = path("<path:path>", show_path)


def test_files_of_the_finders(files: Path) -> None:
    """`StaticLiveServerTestCase` takes them from the finders; or there are none."""
    with serving(EVERY_PATH, static_handler=StaticFilesHandler) as server:
        assert server.get("/static/file.txt").text == "found"
        assert server.get("/static/missing.txt").status_code == 404
        assert server.get("/media/file.txt").text == "media"
        assert server.get("/media/missing.txt").text == "the view of /media/missing.txt"
        assert server.get("/other/").text == "the view of /other/"


def test_files_of_the_static_root(files: Path) -> None:
    """`LiveServerTestCase` takes them from ``STATIC_ROOT``; others go to the views."""
    with serving(EVERY_PATH) as server:
        assert server.get("/static/file.txt").text == "root"
        assert server.get("/static/no.txt").text == "the view of /static/no.txt"


@override_settings(STATIC_URL=None)
def test_no_files_at_all() -> None:
    """A project may have neither static nor media files."""
    with serving(EVERY_PATH) as server:
        assert server.get("/static/no.txt").text == "the view of /static/no.txt"


def test_no_file_elsewhere(files: Path) -> None:
    """A path does not lead out of the directories."""
    with serving(static_handler=StaticFilesHandler) as server:
        for base in ("static", "media"):
            response = server.get(f"/{base}/%2e%2e/root/file.txt")
            assert response.status_code in (400, 404)


# Databases


@pytest.fixture
def shared() -> Iterator[dict[str, Any]]:
    """Provide this thread's database in memory, with a table, for other threads."""
    connection.inc_thread_sharing()
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE live (title text)")
    yield {"default": connections["default"]}
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE live")
    connection.dec_thread_sharing()


def count() -> int:
    """Count the rows. Any thread."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM live")
        (number,) = cursor.fetchone()
        return int(number)


def insert() -> None:
    """Add a row. Any thread."""
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO live VALUES ('a title')")


def in_sync_view(request: HttpRequest) -> HttpResponse:
    """Count in the request's thread."""
    return HttpResponse(str(count()))


async def in_async_view(request: HttpRequest) -> HttpResponse:
    """Count in the request's thread, and in another one."""
    first = await sync_to_async(count)()
    second = await sync_to_async(count, thread_sensitive=False)()
    return HttpResponse(f"{first} {second}")


COUNTS = path("sync/", in_sync_view), path("async/", in_async_view)


def test_a_database_in_memory_is_shared(shared: dict[str, Any]) -> None:
    """All threads of the server use the connection of the test's thread."""
    with serving(*COUNTS, connections_override=shared) as server:
        assert server.get("/sync/").text == "0"
        insert()
        assert server.get("/sync/").text == "1"
        assert server.get("/async/").text == "1 1"
    assert count() == 1


def test_a_transaction_of_the_test(
    shared: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The end of a request leaves the test's transaction alone."""
    with serving(*COUNTS, connections_override=shared) as server:
        with transaction.atomic():
            insert()
            for _ in range(2):
                assert server.get("/sync/").text == "1"
        assert count() == 1
    assert caplog.records == []


# The end


async def silence() -> AsyncIterator[str]:
    """Send an event, and then none."""
    yield "first"
    await trio.sleep_forever()


async def events(request: HttpRequest) -> EventStream:
    """Answer with an event stream that does not end."""
    return EventStream(silence())


def test_open_connections() -> None:
    """Neither an open event stream nor an idle connection delays the end."""
    with httpx.Client(timeout=SECONDS) as client:
        with serving(path("", nothing), path("events/", events)) as server:
            client.get(server.url)
            with closing(
                client.send(
                    client.build_request("GET", f"{server.url}/events/"), stream=True
                )
            ) as response:
                assert next(response.iter_text()) == "data: first\n\n"
                begin = time.monotonic()
                server.thread.terminate()
        assert time.monotonic() - begin < 2


def test_a_view_that_waits() -> None:
    """It is cancelled at once, without hypercorn's time for running requests."""
    begun = threading.Event()

    async def wait(request: HttpRequest) -> HttpResponse:
        begun.set()
        await trio.sleep_forever()
        raise AssertionError

    with serving(path("", wait)) as server:
        get_in_thread(server)
        assert begun.wait(SECONDS)
        begin = time.monotonic()
        server.thread.terminate()
        assert time.monotonic() - begin < 2


def test_a_client_that_leaves() -> None:
    """The view is cancelled."""
    begun, cancelled = threading.Event(), threading.Event()

    async def wait(request: HttpRequest) -> HttpResponse:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()
        raise AssertionError

    with serving(path("", wait)) as server:
        with httpx.Client() as client:

            def leave() -> None:
                begun.wait(SECONDS)
                client.close()

            leaver = threading.Thread(target=leave)
            leaver.start()
            with pytest.raises(httpx.HTTPError):
                client.get(server.url, timeout=0.5)
            leaver.join()
        assert cancelled.wait(SECONDS)


def hang() -> tuple[Any, threading.Event, threading.Event]:
    """Return a function that waits in its thread, and events: it has begun; end it."""
    begun, end = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        end.wait(SECONDS)

    return wait, begun, end


def get_in_thread(server: Server) -> None:
    """Make a request that may fail, because the server ends."""

    def get() -> None:
        with suppress(httpx.HTTPError):
            server.get()

    threading.Thread(target=get).start()


@override_settings(TRIO_ASGI={"SHUTDOWN_SECONDS": 0.1})
def test_sync_code_that_does_not_end() -> None:
    """It is left behind."""
    wait, begun, end = hang()

    def view(request: HttpRequest) -> HttpResponse:
        wait()
        return HttpResponse()

    try:
        with serving(path("", view)) as server:
            get_in_thread(server)
            assert begun.wait(SECONDS)
        assert not end.is_set()
    finally:
        end.set()


@override_settings(TRIO_ASGI={"SHUTDOWN_SECONDS": 0})
def test_async_code_that_blocks_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait ends with an error."""
    monkeypatch.setattr(live_server, "END_SECONDS", 0)
    wait, begun, end = hang()

    async def view(request: HttpRequest) -> HttpResponse:
        wait()
        return HttpResponse()

    with serving(path("", view)) as server:
        get_in_thread(server)
        assert begun.wait(SECONDS)
        with pytest.raises(RuntimeError, match="async code blocks its loop"):
            server.thread.terminate()
        end.set()
        server.thread.join(SECONDS)


@override_settings(TRIO_ASGI={"SHUTDOWN_SECONDS": 0})
def test_a_test_that_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that has not started yet, when it is to end, does not start."""
    monkeypatch.setattr(live_server, "END_SECONDS", 0)
    wait, begun, end = hang()

    class Slow(ASGIHandler):
        def __init__(self) -> None:
            wait()
            super().__init__()

    class SlowThread(LiveServerThread):
        handler_class = Slow

    thread = SlowThread("localhost", _StaticFilesHandler)
    thread.start()
    assert begun.wait(SECONDS)
    with pytest.raises(RuntimeError, match="did not end"):
        thread.terminate()
    end.set()
    thread.join(SECONDS)
    assert not thread.is_alive()
    assert thread.port == 0


# Subclasses


class OwnServer(ThreadedWSGIServer):
    """A server that a project has written."""


class OwnServerThread(LiveServerThread):
    """As projects name it."""

    server_class = OwnServer


class OwnServerThread2(LiveServerThread):
    """As projects make it, say for HTTPS."""

    def _create_server(self, connections_override: Any = None) -> Any:
        """Make it as Django does."""
        create: Any = super()._create_server  # type: ignore[misc]
        return create(connections_override=connections_override)


@pytest.mark.parametrize("kind", [OwnServerThread, OwnServerThread2])
def test_a_subclass_with_its_own_server(kind: type[LiveServerThread]) -> None:
    """It keeps the server."""

    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse("its own")

    with serving(path("", view), kind=kind) as server:
        response = server.get()
        assert response.text == "its own"
        assert not response.headers.get("server", "").startswith("hypercorn")

"""What is recorded of a request's hops; the header, and the command, that show it."""

from __future__ import annotations

import functools
import gc
import re
import threading
import warnings
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

import pytest
import trio
from asgiref.sync import SyncToAsync, async_to_sync, sync_to_async
from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType
from django.contrib.sessions.models import Session
from django.core.handlers import asgi
from django.core.management import CommandError, call_command
from django.core.signals import request_finished, request_started
from django.db import connections
from django.http import HttpResponse, StreamingHttpResponse
from django.test import override_settings
from django.urls import path

import test_hops
from hop_support import STARTPROJECT, async_hello, counted_hops, hello, path_of
from project_support import run_python
from support import application, request
from test_hops import BOTH, FUNCTION, PAGES, TEMPLATES, VIEWS
from trio_asgi import ASGIHandler, ASGIStaticFilesHandler, release_thread
from trio_asgi.hops.record import DESCRIPTION, SHOWN_HOPS, RecordedHop, record_hops
from trio_asgi.management.commands import trio_asgi_hops

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from django.http import HttpRequest

ROOT = Path(__file__).parent.parent


class Declared(test_hops.Both):
    loop_safe_hooks = ("process_request", "process_response")


def total(**_: Any) -> int:
    return 3


async def async_total(request: HttpRequest) -> HttpResponse:
    return HttpResponse(await sync_to_async(total)())


def waiting(request: HttpRequest) -> HttpResponse:
    return async_to_sync(async_total)(request)


async def others(request: HttpRequest) -> HttpResponse:
    await sync_to_async(total, thread_sensitive=False)()
    await async_total(request)
    await release_thread()
    return HttpResponse()


@pytest.fixture(autouse=True)
def database_in_memory() -> Iterator[None]:
    """Free the connections of worker threads: Django closes none in memory."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


async def kinds(request: HttpRequest) -> HttpResponse:
    return HttpResponse(await ContentType.objects.acount())


async def form(request: HttpRequest) -> HttpResponse:
    return HttpResponse(await request.aread())  # type: ignore[attr-defined]


async def signed_in(request: HttpRequest) -> HttpResponse:
    user = await request.auser()
    return HttpResponse(status=200 if user.is_authenticated else 401)


def streaming(wait: bool) -> Any:
    """Return a view that streams, and then waits for ever or fails."""

    async def parts() -> AsyncIterator[bytes]:
        yield b"part"
        if wait:
            await trio.sleep_forever()
        raise ValueError("no more")

    async def view(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(parts())

    return view


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give all threads the same database, in a file."""
    name = str(tmp_path / "db.sqlite3")
    monkeypatch.setitem(connections.databases["default"], "NAME", name)
    migrate = functools.partial(call_command, "migrate", verbosity=0)
    in_thread = threading.Thread(target=migrate)
    in_thread.start()
    in_thread.join()


async def record(view: Any, middleware: Any = (), **scope: Any) -> list[RecordedHop]:
    """Make a request, and return the record of it."""
    app: Any = application(path("", view), middleware=middleware)
    record_hops(app)
    with override_settings(TEMPLATES=PAGES):
        await request(app, **scope)
    return [*app.last_hops]


def named(hops: list[RecordedHop]) -> list[str]:
    """Return what has asked for each hop, without the names of modules, and where."""
    modules = rf"\b({__name__}|test_hops|hop_support|django\.[a-z.]+)\.(?!py:)"
    texts = [" + ".join(hop.causes) + (hop.place and f" ({hop.place})") for hop in hops]
    return [re.sub(modules, "", text) for text in texts]


def called_in(view: Any, called: str) -> str:
    """Return what is said of a call by the first line of a view."""
    line = view.__code__.co_firstlineno + 1
    place = f"tests/test_hop_record.py:{line}, in {view.__name__}"
    return f"sync_to_async({called}) at {place}"


# What asks for a hop


@pytest.mark.parametrize("case", test_hops.CASES.values(), ids=test_hops.CASES)
async def test_each_hop_is_recorded_with_what_has_asked_for_it(
    case: test_hops.Case,
) -> None:
    """As many as there are, with a cause, and in the time that they have taken."""
    with counted_hops() as hops:
        recorded = await record(case.view, case.middleware, **case.scope)
    assert len(recorded) == hops.count
    for one in recorded:
        assert one.causes
        assert one.asked <= one.began <= one.ended


CALLED = called_in(async_total, "total")

#: A view, middleware, and what has asked for each hop.
CASES: list[tuple[Any, Any, str]] = [
    (
        hello,
        [BOTH, path_of(Declared), *STARTPROJECT, VIEWS],
        "process_request of Both + process_view of Views + the sync view hello"
        " + process_response of Both",
    ),
    (
        async_hello,
        [FUNCTION, BOTH],
        "the sync middleware sync_function + process_request of Both"
        "; process_response of Both (within the hop that waits for it)",
    ),
    (
        test_hops.template,
        [TEMPLATES],
        "the sync view template + process_template_response of Templates"
        " + rendering a TemplateResponse",
    ),
    (
        test_hops.async_not_found,
        STARTPROJECT,
        "answering Http404 + process_response of CommonMiddleware"
        " + logging the status of a HttpResponseNotFound",
    ),
    (
        test_hops.stream,
        [],
        "the sync view stream; reading the response; closing the response",
    ),
    (
        waiting,
        [],
        f"the sync view waiting; {CALLED} (within the hop that waits for it)",
    ),
    (
        others,
        [],
        f"{called_in(others, 'total')} (in another thread); {CALLED}; release_thread()",
    ),
    (test_hops.async_cache_view, [], "closing a cache"),
]


@pytest.mark.parametrize(("view", "middleware", "causes"), CASES)
async def test_what_asks_for_hops(view: Any, middleware: Any, causes: str) -> None:
    """Each piece of code that needs the thread, by its name."""
    backend = {"BACKEND": "test_hops.ClosingCache"}
    with override_settings(CACHES={"default": backend, "used": backend}):
        assert "; ".join(named(await record(view, middleware))) == causes


@pytest.mark.usefixtures("database")
async def test_a_call_of_djangos_has_the_line_of_the_project() -> None:
    """The ORM's async methods are calls of the project's."""
    call = called_in(kinds, "QuerySet.count")
    assert named(await record(kinds)) == [call]


@pytest.mark.usefixtures("database")
async def test_connections_close_after_a_stream() -> None:
    """The end of a stream is waited for; for another response the thread does it alone.

    The record names what the end is for.
    """

    async def parts() -> AsyncIterator[bytes]:
        yield str(await ContentType.objects.acount()).encode()

    async def view(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(parts())

    *_, last = named(await record(view))
    assert last == "closing old database connections"


@pytest.mark.parametrize("wrapped", [False, True])
async def test_receivers_of_signals(
    wrapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Receivers that are not Django's are named; also where a tool looks at hops."""
    if wrapped:
        handler = functools.partialmethod(SyncToAsync.thread_handler)
        monkeypatch.setattr(SyncToAsync, "thread_handler", handler)
    request_started.connect(total)
    request_finished.connect(total)
    try:
        found = named(await record(async_hello))
    finally:
        request_started.disconnect(total)
        request_finished.disconnect(total)
    assert found == [
        "a receiver of request_started: total",
        "a receiver of request_finished: total",
    ]


async def test_bodies() -> None:
    """What goes to disk is written there before the view starts, and read again."""
    body = {"method": "POST", "body": b"a=1", "headers": [(b"content-length", b"3")]}
    assert await record(form, **body) == []
    with override_settings(FILE_UPLOAD_MAX_MEMORY_SIZE=0):
        written, *read = named(await record(form, **body))
    assert written == "writing the body to disk (in another thread)"
    assert set(read) == {"reading the body (in another thread)"}


# The header


async def shown(view: Any) -> list[tuple[str, str]]:
    """Make a request in ``DEBUG``; return the metrics' names and descriptions."""
    with override_settings(DEBUG=True):
        app = application(path("", view), middleware=[])
    value = dict((await request(app)).headers)[b"Server-Timing"].decode("ascii")
    metric = r'(\w+)(?:;desc="([ !#-\[\]-~]*)")?(?:;dur=\d+(?:\.\d)?)?'
    assert re.fullmatch(f"{metric}(?:, {metric})*", value, re.ASCII)
    return re.findall(metric + "(?:, |$)", value)


async def test_hops_are_shown_in_a_header_in_debug() -> None:
    """Behind the response's own metrics, up to a bound, and only in ASCII."""

    def bad() -> None:
        pass

    bad.__qualname__ = 'x"\\\r\n; é,' + 500 * "y"

    async def many(request: HttpRequest) -> HttpResponse:
        for _ in range(50):
            await sync_to_async(bad)()
        return HttpResponse(headers={"Server-Timing": "db;dur=1"})

    one = [("hops", "1 in all"), ("hop1", "the sync view hop_support.hello")]
    assert await shown(hello) == one
    own, total, *hops = await shown(many)
    assert (own, total) == (("db", ""), ("hops", "50 in all"))
    assert len(hops) == SHOWN_HOPS
    start = f"sync_to_async({__name__}.x????; ?,"
    assert hops[0] == ("hop1", start.ljust(DESCRIPTION, "y"))


@override_settings(DEBUG=True, TRIO_ASGI={"MAX_HELD_THREADS": 1})
async def test_a_tool_around_djangos_call_has_the_requests_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Recording changes nothing: both share the one thread that there is."""
    threads = []
    call: Any = asgi.ASGIHandler.__call__

    async def wrapper(*arguments: Any) -> None:
        threads.append(await sync_to_async(threading.current_thread)())
        await call(*arguments)

    async def view(request: HttpRequest) -> HttpResponse:
        threads.append(await sync_to_async(threading.current_thread)())
        return HttpResponse()

    monkeypatch.setattr(asgi.ASGIHandler, "__call__", wrapper)
    app = application(path("", view), middleware=[])
    with trio.fail_after(10):
        answer = await request(app)
    assert b'"2 in all"' in dict(answer.headers)[b"Server-Timing"]
    assert threads[0] is threads[1]


class Echo:
    """A callable object, which has no name."""

    def __call__(self, value: str) -> str:
        return value


@pytest.mark.parametrize(
    ("fn", "name"),
    [
        (str.upper, "str.upper"),
        (len, "len"),
        (MethodType(Echo(), "a"), "str.Echo"),
        (Echo(), f"{__name__}.Echo"),
        (functools.partial(str), "str"),
        ("a".upper, "str.upper"),
    ],
)
async def test_any_callable_has_a_name(fn: Any, name: str) -> None:
    """A record fails no request, whatever is called in the thread."""

    async def view(request: HttpRequest) -> HttpResponse:
        bound = isinstance(getattr(fn, "__self__", None), str)
        arguments = () if bound else ("a",)
        return HttpResponse(str(await sync_to_async(fn)(*arguments)))

    (_, (_, what)) = await shown(view)
    assert what.startswith(f"sync_to_async({name}) at")


async def test_nothing_is_recorded_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ``DEBUG`` at the start, there is no header, and nothing that records."""
    app = application(path("", hello), middleware=[BOTH])
    monkeypatch.setattr(RecordedHop, "__init__", lambda *_: pytest.fail("recorded"))
    with override_settings(DEBUG=True):
        answer = await request(app)
    assert b"Server-Timing" not in dict(answer.headers)


# The command


def output_of(*arguments: str, view: Any = async_hello, **options: Any) -> list[str]:
    """Run the command, and return what it prints; each time is "0.0 ms"."""
    urls = type("Urls", (), {"urlpatterns": [path("page/", view)]})
    out = StringIO()
    with override_settings(ROOT_URLCONF=urls, **options):
        call_command("trio_asgi_hops", *arguments, stdout=out, no_color=True)
    return re.sub(r"\d+\.\d ms", "0.0 ms", out.getvalue()).splitlines()


def test_the_body_of_the_request() -> None:
    """It is posted, past the check of its token; or has another method and type."""
    seen: list[Any] = []

    def view(request: HttpRequest) -> HttpResponse:
        seen.append(request.POST.dict() or request.content_type)
        return HttpResponse(status=201)

    page = functools.partial(
        output_of,
        "/page/",
        view=view,
        MIDDLEWARE=STARTPROJECT,
        SECURE_SSL_REDIRECT=True,
        SECURE_PROXY_SSL_HEADER=("HTTP_X_SCHEME", "https"),
    )
    assert page("--data=a=1&b=%20")[0] == "POST /page/ -> 201"
    said = page("--method=put", "--data={}", "--content-type=a/b")
    assert said[0] == "PUT /page/ -> 201"
    assert seen == [{"a": "1", "b": " "}, "a/b"]


@pytest.mark.usefixtures("database")
def test_a_user_is_signed_in_for_the_request() -> None:
    """Nothing of that is left."""
    user = User.objects.create_user("ann")
    options = {"view": signed_in, "MIDDLEWARE": STARTPROJECT}
    page = functools.partial(output_of, "/page/", **options)
    assert page()[0] == "GET /page/ -> 401"
    assert page("--user=ann")[0] == "GET /page/ -> 200"
    assert not Session.objects.exists()
    user.refresh_from_db()
    assert user.last_login is None
    with pytest.raises(CommandError, match="There is no user 'bob'"):
        page("--user=bob")
    connections["default"].close()


def test_a_response_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client leaves it; what was recorded is printed."""
    monkeypatch.setattr(trio_asgi_hops, "SECONDS", 0.1)
    said = output_of("/page/", view=streaming(wait=True))
    assert said[:2] == ["GET /page/ -> 200", "no hops"]
    monkeypatch.setattr(trio_asgi_hops, "SECONDS", 0)
    assert output_of("/page/")[0] == "GET /page/ -> no answer in 0 s"


def test_the_application_of_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is started and shut down, also below static files; or a plain one is made."""
    events = []

    class Own(ASGIHandler):
        @asynccontextmanager
        async def lifespan(self) -> AsyncIterator[None]:
            events.append("start-up")
            if broken_start:
                raise OSError("no start")
            yield
            events.append("shutdown")

    def output(made: Any) -> list[str]:
        monkeypatch.setitem(globals(), "own", made)
        return output_of("/page/", ASGI_APPLICATION=f"{__name__}.own")

    broken_start = False
    for made in (Own(), ASGIStaticFilesHandler(Own())):
        assert output(made)[1] == "no hops"
    assert events == ["start-up", "shutdown"] * 2
    broken_start = True
    with pytest.raises(CommandError, match=r"start-up failed.*no start"):
        output(Own())
    assert output(hello)[0] == "GET /page/ -> 200"


def test_a_page_that_shows_its_hops_shows_them_once() -> None:
    """With ``DEBUG`` the handler records already, and the command records no more."""
    seen = []

    class Own(ASGIHandler):
        async def send_response(self, response: Any, send: Any) -> None:
            seen.append(response.headers["Server-Timing"])
            await super().send_response(response, send)

    with override_settings(DEBUG=True):
        globals()["own"] = Own()
        output_of("/page/", view=hello, ASGI_APPLICATION=f"{__name__}.own")
    assert [value.count("hops;desc=") for value in seen] == [1]


def test_errors_of_the_project() -> None:
    """They come out, and have their traceback."""
    with pytest.raises(ImportError, match="nothing"):
        output_of("/page/", MIDDLEWARE=["nothing.Middleware"])
    with pytest.raises(ValueError, match="no more"):
        output_of("/page/", view=streaming(wait=False))


def test_the_page_of_the_reference() -> None:
    """What the documentation shows is what is printed, with other names."""
    page = (ROOT / "docs/reference/hops.md").read_text(encoding="utf-8")
    pattern = r"^```console\n\$ .* /orders/\n(.*?)^```$"
    (shown,) = re.findall(pattern, page, re.MULTILINE | re.DOTALL)
    options = {"view": async_total, "MIDDLEWARE": [*STARTPROJECT, BOTH]}
    said = "\n".join(output_of("/page/", **options))
    for ours, theirs in {
        "/page/": "/orders/",
        r"test_hops\.Both": "shop.middleware.TenantMiddleware",
        rf"{__name__}\.total": "shop.models.total",
        r"tests/test_hop_record\.py:\d+, in async_total": "shop/views.py:12, in orders",
    }.items():
        said = re.sub(ours, theirs, said)
    assert said.splitlines() == re.sub(r"\d+\.\d ms", "0.0 ms", shown).splitlines()


def test_the_example_site() -> None:
    """The command runs as users run it; a mistake ends it with status 1."""
    site = ROOT / "examples/site"
    done = run_python(site, "-W", "error", "manage.py", "trio_asgi_hops", "/market/")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("GET /market/ -> 200\n1 hop\n")
    done = run_python(site, "manage.py", "trio_asgi_hops", "market/")
    assert (done.returncode, done.stdout) == (1, "")
    assert "CommandError: 'market/' is not a path: it must begin with" in done.stderr

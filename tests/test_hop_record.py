"""What is recorded of a request's hops; the header, and the command, that show it."""

from __future__ import annotations

import functools
import re
import sys
import threading
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import trio
from asgiref.sync import SyncToAsync, async_to_sync, sync_to_async
from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType
from django.contrib.sessions.models import Session
from django.core.cache.backends.locmem import LocMemCache
from django.core.management import CommandError, call_command
from django.core.signals import request_finished, request_started
from django.db import connections
from django.http import FileResponse, Http404, HttpResponse, StreamingHttpResponse
from django.template.response import TemplateResponse
from django.test import override_settings
from django.urls import path
from django.utils.deprecation import MiddlewareMixin

import test_hops
from hop_support import COMMON, STARTPROJECT, Hops, counted_hops
from project_support import run_python
from support import application, request
from trio_asgi import ASGIHandler, ASGIStaticFilesHandler, release_thread
from trio_asgi.hops.record import DESCRIPTION, SHOWN_HOPS, RecordedHop, record_hops
from trio_asgi.management.commands import trio_asgi_hops

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from django.http import HttpRequest

ROOT = Path(__file__).parent.parent
HERE = __name__

# A project


class Tenant(MiddlewareMixin):
    def process_request(self, request: HttpRequest) -> None:
        pass

    def process_response(self, request: HttpRequest, response: Any) -> Any:
        return response


class Declared(Tenant):
    loop_safe_hooks = ("process_request", "process_response")


class Inner(MiddlewareMixin):
    def process_view(self, *_: Any) -> None:
        pass

    def process_template_response(self, request: HttpRequest, response: Any) -> Any:
        return response

    def process_exception(self, request: HttpRequest, error: Exception) -> Any:
        return HttpResponse(status=418)


def sync_function(get_response: Callable[[Any], Any]) -> Any:
    def middleware(request: HttpRequest) -> Any:
        return get_response(request)

    return middleware


def total() -> int:
    return 3


def sync_view(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


def template(request: HttpRequest) -> HttpResponse:
    return TemplateResponse(request, "page.html")


def waiting(request: HttpRequest) -> HttpResponse:
    async_to_sync(async_total)()
    return HttpResponse()


async def async_total() -> int:
    return await sync_to_async(total)()


async def async_view(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


async def totals(request: HttpRequest) -> HttpResponse:
    await async_total()
    await sync_to_async(total, thread_sensitive=False)()
    await release_thread()
    return HttpResponse()


async def kinds(request: HttpRequest) -> HttpResponse:
    return HttpResponse(await ContentType.objects.acount())


async def missing(request: HttpRequest) -> HttpResponse:
    raise Http404


async def broken(request: HttpRequest) -> HttpResponse:
    raise ValueError


async def stream(request: HttpRequest) -> HttpResponse:
    return StreamingHttpResponse(iter([b"part"]))  # type: ignore[return-value]


async def form(request: HttpRequest) -> HttpResponse:
    return HttpResponse(await request.aread())  # type: ignore[attr-defined]


async def signed_in(request: HttpRequest) -> HttpResponse:
    user = await request.auser()
    return HttpResponse(status=200 if user.is_authenticated else 401)


async def with_own_header(request: HttpRequest) -> HttpResponse:
    await sync_to_async(total)()
    return HttpResponse(headers={"Server-Timing": "db;dur=1"})


async def endless(request: HttpRequest) -> HttpResponse:
    async def parts() -> AsyncIterator[bytes]:
        yield b"part"
        await trio.sleep_forever()

    return StreamingHttpResponse(parts())  # type: ignore[return-value]


def own(*names: str) -> list[str]:
    return [f"{HERE}.{name}" for name in names]


def receiver(**_: Any) -> None:
    pass


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give all threads the same database, in a file."""
    name = str(tmp_path / "db.sqlite3")
    monkeypatch.setitem(connections.databases["default"], "NAME", name)
    run_in_thread = threading.Thread(
        target=call_command, args=("migrate",), kwargs={"verbosity": 0}
    )
    run_in_thread.start()
    run_in_thread.join()


@pytest.fixture
def hops() -> Iterator[Hops]:
    """Count the calls in worker threads."""
    with counted_hops() as hops:
        yield hops


async def record(view: Any, middleware: Any = (), **scope: Any) -> list[RecordedHop]:
    """Make a request, and return the record of it."""
    app: Any = application(path("", view), middleware=middleware)
    record_hops(app)
    await request(app, **scope)
    recorded: list[RecordedHop] = app.last_hops
    return recorded


def named(hops: list[RecordedHop]) -> list[str]:
    """Return what has asked for each hop."""
    return [" + ".join(hop.causes).replace(f"{HERE}.", "") for hop in hops]


# What asks for a hop


@pytest.mark.parametrize("case", test_hops.CASES.values(), ids=test_hops.CASES)
async def test_each_hop_is_recorded_with_what_has_asked_for_it(
    case: test_hops.Case, hops: Hops
) -> None:
    """As many as there are, with a cause, and in the time that they have taken."""
    with override_settings(TEMPLATES=test_hops.PAGES):
        recorded = await record(case.view, case.middleware, **case.scope)
    assert len(recorded) == hops.count
    for one in recorded:
        assert one.causes
        assert one.asked <= one.began <= one.ended


#: A view, middleware, and what has asked for each hop.
CASES = {
    "hooks share a hop": (
        sync_view,
        [*own("Tenant", "Declared"), *STARTPROJECT, *own("Inner")],
        "process_request of Tenant + process_view of Inner + the sync view sync_view"
        " + process_response of Tenant",
    ),
    "hooks around an async view": (
        async_view,
        [*STARTPROJECT, *own("Tenant")],
        "process_request of Tenant; process_response of Tenant",
    ),
    "sync middleware": (
        async_view,
        own("sync_function", "Tenant"),
        "the sync middleware sync_function + process_request of Tenant"
        "; process_response of Tenant",
    ),
    "template": (
        template,
        own("Inner"),
        "process_view of Inner + the sync view template"
        " + process_template_response of Inner"
        " + rendering a django.template.response.TemplateResponse",
    ),
    "404": (
        missing,
        [COMMON],
        "answering a django.http.response.Http404"
        " + process_response of django.middleware.common.CommonMiddleware"
        " + logging the status of a django.http.response.HttpResponseNotFound",
    ),
    "error": (
        broken,
        own("Inner"),
        "process_view of Inner; answering a ValueError"
        " + logging the status of a django.http.response.HttpResponse",
    ),
    "stream": (stream, (), "reading the response; closing the response"),
    "async code in a sync view": (
        waiting,
        (),
        "the sync view waiting"
        "; sync_to_async(total) at tests/test_hop_record.py:LINE, in async_total",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_what_asks_for_hops(case: tuple[Any, Any, str]) -> None:
    """Each piece of code that needs the thread, by its name."""
    view, middleware, said = case
    with override_settings(TEMPLATES=test_hops.PAGES):
        found = named(await record(view, middleware))
    assert re.sub(r":\d+,", ":LINE,", "; ".join(found)) == said


async def test_hops_of_sync_to_async() -> None:
    """Each call has its line; those in other threads, or within a hop, say so."""
    recorded = await record(totals)
    line = async_total.__code__.co_firstlineno + 1
    where = f"tests/test_hop_record.py:{line}, in async_total"
    called, _, released = named(recorded)
    assert called == f"sync_to_async(total) at {where}"
    assert released == "release_thread()"
    assert [one.place for one in recorded] == ["", "in another thread", ""]
    outer, inner = await record(waiting)
    assert (outer.place, inner.place) == ("", "within the hop that waits for it")
    assert outer.began < inner.began < inner.ended < outer.ended


@pytest.mark.usefixtures("database")
async def test_a_call_of_djangos_has_the_line_of_the_project() -> None:
    """The ORM's async methods are calls of the project's, and connections close."""
    line = kinds.__code__.co_firstlineno + 1
    where = f"tests/test_hop_record.py:{line}, in kinds"
    assert named(await record(kinds)) == [
        f"sync_to_async(django.db.models.query.QuerySet.count) at {where}",
        "closing old database connections",
    ]


@pytest.mark.parametrize("wrapped", [False, True])
async def test_receivers_of_signals(
    wrapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Receivers that are not Django's are named; also where a tool looks at hops."""
    if wrapped:
        handler = SyncToAsync.thread_handler

        @functools.wraps(handler)
        def wrapper(*args: Any) -> Any:
            return handler(*args)  # type: ignore[no-untyped-call]

        monkeypatch.setattr(SyncToAsync, "thread_handler", wrapper)
    for signal in (request_started, request_finished):
        signal.connect(receiver)
    try:
        found = named(await record(async_view))
    finally:
        for signal in (request_started, request_finished):
            signal.disconnect(receiver)
    assert found == [
        "a receiver of request_started: receiver",
        "a receiver of request_finished: receiver",
    ]


class ClosingCache(LocMemCache):
    def close(self, **_: Any) -> None:
        pass


async def test_a_cache_that_is_closed() -> None:
    """The request's end says what it has closed."""

    async def view(request: HttpRequest) -> HttpResponse:
        from django.core.cache import cache  # noqa: PLC0415 - looked up in the request

        cache.get("key")
        return HttpResponse()

    backend = {"default": {"BACKEND": f"{HERE}.ClosingCache"}}
    with override_settings(CACHES=backend):
        assert named(await record(view)) == ["closing a cache"]


async def test_bodies() -> None:
    """What goes to disk is written there before the view starts, and read again."""
    body = {"method": "POST", "body": b"a=1", "headers": [(b"content-length", b"3")]}
    assert await record(form, **body) == []
    with override_settings(FILE_UPLOAD_MAX_MEMORY_SIZE=0):
        recorded = await record(form, **body)
    assert {one.place for one in recorded} == {"in another thread"}
    written, *read = named(recorded)
    assert written == "writing the body to disk"
    assert set(read) == {"reading the body"}


# The header


async def shown(view: Any, middleware: Any = ()) -> list[tuple[str, str]]:
    """Make a request in ``DEBUG``; return the metrics' names and descriptions."""
    with override_settings(DEBUG=True):
        app = application(path("", view), middleware=middleware)
    value = dict((await request(app)).headers)[b"Server-Timing"].decode("ascii")
    metric = r'([\w-]+)(?:;desc="([ !#-\[\]-~]*)")?(?:;dur=\d+(?:\.\d)?)?'
    assert re.fullmatch(f"{metric}(?:, {metric})*", value, re.ASCII)
    return re.findall(metric + "(?:, |$)", value)


async def test_hops_are_shown_in_a_header_in_debug() -> None:
    """Also the hop in which it is made, and behind the response's own metrics."""
    assert await shown(async_view) == [("hops", "0 in all")]
    causes = f"process_request of {HERE}.Tenant + the sync view {HERE}.sync_view"
    assert await shown(sync_view, own("Tenant")) == [
        ("hops", "1 in all"),
        ("hop1", f"{causes} + process_response of {HERE}.Tenant"[:DESCRIPTION]),
    ]
    names = [name for name, _ in await shown(with_own_header)]
    assert names == ["db", "hops", "hop1"]


async def test_the_header_has_a_bound_and_only_ascii() -> None:
    """Whatever functions are called, and however many hops there are."""

    def bad() -> None:
        pass

    bad.__qualname__ = 'x"\\\r\n; é,' + 500 * "y"

    async def many(request: HttpRequest) -> HttpResponse:
        for _ in range(50):
            await sync_to_async(bad)()
        return HttpResponse()

    total, *hops = await shown(many)
    assert total == ("hops", "50 in all")
    assert len(hops) == SHOWN_HOPS
    start = f"sync_to_async({HERE}.x????; ?,yy"
    assert hops[0] == ("hop1", start.ljust(DESCRIPTION, "y"))


async def test_nothing_is_recorded_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ``DEBUG`` at the start, there is no header, and nothing that records."""
    app = application(path("", sync_view), middleware=own("Tenant"))
    monkeypatch.setattr(RecordedHop, "__init__", lambda *_: pytest.fail("recorded"))
    with override_settings(DEBUG=True):
        answer = await request(app)
    assert b"Server-Timing" not in dict(answer.headers)


# The command


def output_of(*arguments: str, view: Any = async_view, **options: Any) -> list[str]:
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
        seen.append((request.method, request.content_type, request.POST.dict()))
        return HttpResponse(status=201)

    options = {
        "view": view,
        "MIDDLEWARE": STARTPROJECT,
        "SECURE_SSL_REDIRECT": True,
        "SECURE_PROXY_SSL_HEADER": ("HTTP_X_SCHEME", "https"),
    }
    assert output_of("/page/", "--data=a=1&b=%20", **options)[0] == "POST /page/ -> 201"
    output_of("/page/", "--method=put", "--data={}", "--content-type=a/b", **options)
    form = "application/x-www-form-urlencoded"
    assert seen == [("POST", form, {"a": "1", "b": " "}), ("PUT", "a/b", {})]


@pytest.mark.usefixtures("database")
def test_a_user_is_signed_in_for_the_request() -> None:
    """Nothing of that is left."""
    user = User.objects.create_user("ann")
    page = {"view": signed_in, "MIDDLEWARE": STARTPROJECT}
    assert output_of("/page/", **page)[0] == "GET /page/ -> 401"
    assert output_of("/page/", "--user=ann", **page)[0] == "GET /page/ -> 200"
    assert not Session.objects.exists()
    user.refresh_from_db()
    assert user.last_login is None
    with pytest.raises(CommandError, match="There is no user 'bob'"):
        output_of("/page/", "--user=bob")
    connections["default"].close()


def test_a_response_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client leaves it; what was recorded is printed."""
    monkeypatch.setattr(trio_asgi_hops, "SECONDS", 0.1)
    assert output_of("/page/", view=endless)[:2] == ["GET /page/ -> 200", "no hops"]
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
        monkeypatch.setitem(globals(), "application_of_the_test", made)
        named = f"{HERE}.application_of_the_test"
        return output_of("/page/", ASGI_APPLICATION=named)

    broken_start = False
    for made in (Own(), ASGIStaticFilesHandler(Own())):
        assert output(made)[1] == "no hops"
    assert events == ["start-up", "shutdown"] * 2
    broken_start = True
    with pytest.raises(CommandError, match=r"start-up failed.*no start"):
        output(Own())
    assert output(sync_view)[0] == "GET /page/ -> 200"


def test_errors_of_the_project() -> None:
    """They come out, with their traceback."""

    async def view(request: HttpRequest) -> HttpResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"part"
            raise ValueError("no more")

        return StreamingHttpResponse(parts())  # type: ignore[return-value]

    with pytest.raises(ValueError, match="no more"):
        output_of("/page/", view=view)
    with pytest.raises(ImportError, match="nothing"):
        output_of("/page/", MIDDLEWARE=["nothing.Middleware"])
    with pytest.raises(CommandError, match="'page/' is no path: it must begin with"):
        output_of("page/")


def test_the_page_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the documentation shows is what is printed."""
    page = (ROOT / "docs/reference/hops.md").read_text(encoding="utf-8")
    (shown,) = re.findall(
        r"^```console\n\$ .* /orders/\n(.*?)^```$", page, re.MULTILINE | re.DOTALL
    )
    code = "\n" * 10 + "async def orders(request):\n return HttpResponse(await total())"
    names: dict[str, Any] = {"__name__": "shop.views", "HttpResponse": HttpResponse}

    def count() -> int:
        return 3

    count.__module__, count.__qualname__ = "shop.models", "total"
    names["total"] = sync_to_async(count)
    exec(compile(code, "/srv/shop/views.py", "exec"), names)  # noqa: S102
    shop = ModuleType("shop.middleware")
    vars(shop)["TenantMiddleware"] = type(
        "TenantMiddleware", (Tenant,), {"__module__": "shop.middleware"}
    )
    monkeypatch.setitem(sys.modules, "shop", ModuleType("shop"))
    monkeypatch.setitem(sys.modules, "shop.middleware", shop)
    middleware = [*STARTPROJECT, "shop.middleware.TenantMiddleware"]
    said = output_of("/page/", view=names["orders"], MIDDLEWARE=middleware)
    said[0] = said[0].replace("/page/", "/orders/")
    assert said == re.sub(r"\d+\.\d ms", "0.0 ms", shown).splitlines()


def test_the_example_site() -> None:
    """The command runs as users run it; a mistake ends it with status 1."""
    site = ROOT / "examples/site"
    done = run_python(site, "-W", "error", "manage.py", "trio_asgi_hops", "/market/")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("GET /market/ -> 200\n1 hop, ")
    done = run_python(site, "manage.py", "trio_asgi_hops", "market/")
    assert (done.returncode, done.stdout) == (1, "")
    assert "CommandError" in done.stderr

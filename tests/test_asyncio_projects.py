"""asyncio projects with ``ASYNCIO_VIEWS``: their sync code, and what it streams."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import trio
from asgiref.sync import async_to_sync, sync_to_async
from channels.layers import InMemoryChannelLayer  # type: ignore[import-untyped] # so it is
from django.core.signals import request_finished, request_started
from django.dispatch import Signal
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.template.response import TemplateResponse
from django.test import Client, override_settings
from django.urls import path
from django.utils.decorators import method_decorator
from django.utils.deprecation import MiddlewareMixin
from django.views import View
from django.views.decorators.cache import never_cache
from django.views.decorators.gzip import gzip_page
from django_browser_reload.views import events as browser_reload_events

from support import Answer, application, http_scope, receive_answer, request
from trio_asgi import EventStream, asyncio_island, install_bridge, trio_island
from trio_asgi.testing import ApplicationCommunicator, AsyncClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from django.http import HttpResponseBase

    from trio_asgi import ASGIHandler

SECONDS = 10


@pytest.fixture
def asyncio_project() -> Iterator[None]:
    """Use the settings of an asyncio project."""
    with override_settings(TRIO_ASGI={"ASYNCIO_VIEWS": True}):
        yield


in_asyncio_project = pytest.mark.usefixtures("asyncio_project")


async def whose() -> str:
    """Return whose code this is, judged by what works."""
    if asyncio._get_running_loop() is None:
        await trio.lowlevel.checkpoint()
        return "Trio"
    await asyncio.sleep(0)
    return "asyncio"


#: The same for sync code.
ask = async_to_sync(whose)


def serve(view: Any, *middleware: str) -> ASGIHandler:
    """Return an application with one view."""
    names = [f"{__name__}.{name}" for name in middleware]
    return application(path("", view, name="view"), middleware=names)


async def answer(view: Any, *middleware: str, **scope: Any) -> Answer:
    """Return the whole answer of one request to a view."""
    with trio.fail_after(SECONDS):
        return await request(serve(view, *middleware), **scope)


async def text(view: Any, *middleware: str) -> str:
    """Return what a view has answered."""
    result = await answer(view, *middleware)
    assert result.status == 200
    return result.body.decode()


# What sync views stream


class Parts:
    """Async content that notes which library iterates and closes it."""

    def __init__(self) -> None:
        self.closed = ""

    async def __call__(self) -> AsyncIterator[str]:
        """Yield two parts."""
        try:
            for _ in range(2):
                yield await whose() + " "
        finally:
            self.closed = await whose()


def view_of(make: Callable[[], Any]) -> Any:
    """Return a sync view that streams."""

    def view(request: HttpRequest) -> HttpResponseBase:
        assert threading.current_thread().name.startswith("trio-asgi-worker-")
        return StreamingHttpResponse(make())

    return view


def class_of(make: Callable[[], Any]) -> Any:
    """Return a class-based view that does the same."""

    class Page(View):
        def get(self, request: HttpRequest) -> HttpResponseBase:
            response: HttpResponseBase = view_of(make)(request)
            return response

    return Page.as_view()


def decorated_class_of(make: Callable[[], Any], decorator: Any) -> Any:
    """Return a class-based view with Django's method decorator."""

    @method_decorator(decorator, name="dispatch")
    class Page(View):
        def get(self, request: HttpRequest) -> HttpResponseBase:
            response: HttpResponseBase = view_of(make)(request)
            return response

    return Page.as_view()


@in_asyncio_project
@pytest.mark.parametrize("decorate", [view_of, class_of])
@pytest.mark.parametrize("middleware", [[], ["sync_middleware"], ["async_middleware"]])
async def test_what_a_sync_view_streams_is_asyncios(
    decorate: Any, middleware: Sequence[str]
) -> None:
    """It is iterated and closed on asyncio, as under Django's own handler."""
    parts = Parts()
    assert await text(decorate(parts), *middleware) == "asyncio asyncio "
    assert parts.closed == "asyncio"


@in_asyncio_project
async def test_what_a_decorator_puts_around_a_stream_is_the_views() -> None:
    """Django's compression, for example, is iterated on asyncio too."""
    parts = Parts()
    headers = [(b"accept-encoding", b"gzip")]
    result = await answer(gzip_page(view_of(parts)), headers=headers)
    assert (b"Content-Encoding", b"gzip") in result.headers
    assert result.is_complete
    assert parts.closed == "asyncio"


@in_asyncio_project
@pytest.mark.parametrize("at_end", [True, False])
async def test_a_disconnect_closes_what_a_sync_view_streams(at_end: bool) -> None:
    """The generator is cancelled where it waits, or closed where it has yielded."""
    ended = trio.Event()
    waits = trio.Event()

    async def parts() -> AsyncIterator[str]:
        try:
            yield "first"
            waits.set()
            await asyncio.sleep(3600)
        finally:
            assert await whose() == "asyncio"
            ended.set()

    scope = http_scope()
    async with ApplicationCommunicator(serve(view_of(parts)), scope) as client:
        await client.send_input({"type": "http.request"})
        await client.receive_output()
        await client.receive_output()
        if at_end:
            await waits.wait()
        await client.send_input({"type": "http.disconnect"})
        await client.wait()
    assert ended.is_set()


@in_asyncio_project
async def test_events_of_a_sync_view_are_asyncios() -> None:
    """The stream itself, which belongs to this package, stays on Trio."""
    parts = Parts()

    def view(request: HttpRequest) -> HttpResponseBase:
        return EventStream(parts())

    assert (await text(view)).count("data: asyncio \n") == 2
    assert parts.closed == "asyncio"


@in_asyncio_project
async def test_a_context_manager_of_a_sync_view_is_asyncios() -> None:
    """It is entered, iterated and exited in one asyncio task."""
    tasks: set[Any] = set()

    @asynccontextmanager
    async def manager() -> AsyncIterator[AsyncIterator[str]]:
        tasks.add(asyncio.current_task())
        async with asyncio.Lock():
            yield parts()
        tasks.add(asyncio.current_task())

    async def parts() -> AsyncIterator[str]:
        tasks.add(asyncio.current_task())
        yield await whose()

    assert await text(view_of(manager)) == "asyncio"
    assert len(tasks) == 1


MARKED = {
    "a view": lambda make, mark: mark(view_of(make)),
    "a decorated view": lambda make, mark: never_cache(mark(view_of(make))),
    "a decorator of one": lambda make, mark: mark(never_cache(view_of(make))),
    "a class": lambda make, mark: mark(class_of(make)),
    "a decorated class": decorated_class_of,
}


@in_asyncio_project
@pytest.mark.parametrize("kind", MARKED)
async def test_a_sync_view_can_be_marked_as_trios(kind: str) -> None:
    """Then its stream is Trio's too, even in an asyncio project."""
    parts = Parts()
    assert await text(MARKED[kind](parts, trio_island)) == "Trio Trio "
    assert parts.closed == "Trio"


@pytest.mark.parametrize("kind", MARKED)
async def test_a_sync_view_can_be_marked_as_asyncios(kind: str) -> None:
    """In a Trio project."""
    parts = Parts()
    assert await text(MARKED[kind](parts, asyncio_island)) == "asyncio asyncio "
    assert parts.closed == "asyncio"


async def test_a_sync_view_streams_on_trio_without_the_setting() -> None:
    """And no part of asyncio is loaded for it."""
    parts = Parts()
    assert await text(view_of(parts)) == "Trio Trio "
    assert parts.closed == "Trio"


@in_asyncio_project
async def test_sync_content_has_no_island() -> None:
    """It is iterated in the request's thread."""

    def parts() -> Iterator[str]:
        yield threading.current_thread().name

    assert (await text(view_of(parts))).startswith("trio-asgi-worker-")


# What sync code calls


def sync_view(request: HttpRequest) -> HttpResponse:
    """Call async code."""
    return HttpResponse(ask())


def sync_middleware(get_response: Any) -> Any:
    """Call async code before and after the view, and be called in the thread itself."""

    def middleware(request: HttpRequest) -> Any:
        before = ask()
        response = get_response(request)
        if not response.streaming:
            response.content += f" {before} {ask()}".encode()
        return response

    return middleware


def async_middleware(get_response: Any) -> Any:
    """Run on Trio, and call sync code that calls async code."""

    async def middleware(request: HttpRequest) -> Any:
        assert await whose() == "Trio"
        before = await sync_to_async(ask)()
        response = await get_response(request)
        if not response.streaming:
            response.content += f" {before} {await whose()}".encode()
        return response

    return middleware


async_middleware.async_capable = True  # type: ignore[attr-defined]
async_middleware.sync_capable = False  # type: ignore[attr-defined]


class Hooks(MiddlewareMixin):
    """Call async code in hooks."""

    def process_request(self, request: HttpRequest) -> None:
        """Note it."""
        request.whose = [ask()]  # type: ignore[attr-defined]

    def process_view(self, request: Any, *_: Any) -> None:
        """Note it."""
        request.whose.append(ask())

    def process_response(self, request: Any, response: Any) -> Any:
        """Add it to the response."""
        response.content += f" {' '.join(request.whose)} {ask()}".encode()
        return response


async def async_view(request: HttpRequest) -> HttpResponse:
    """Call sync code that calls async code."""
    return HttpResponse(await sync_to_async(ask)())


def template_view(request: HttpRequest) -> HttpResponseBase:
    """Call async code in a template."""

    class Template:
        def render(self, context: Any, request: Any) -> str:
            return ask()

    response: Any = TemplateResponse(request, "unused")
    response.resolve_template = lambda _: Template()
    return response  # type: ignore[no-any-return]


def sync_streaming_view(request: HttpRequest) -> HttpResponseBase:
    """Call async code in sync content."""

    def parts() -> Iterator[str]:
        yield ask()

    return StreamingHttpResponse(parts())


SYNC_CODE: dict[str, tuple[Any, list[str]]] = {
    "a view": (sync_view, []),
    "middleware above a view": (sync_view, ["sync_middleware"]),
    "middleware above an async view": (async_view, ["sync_middleware"]),
    "hooks": (sync_view, ["Hooks"]),
    "hooks above an async view": (async_view, ["Hooks"]),
    "below middleware of both kinds": (
        sync_view,
        ["sync_middleware", "async_middleware", "Hooks", "sync_middleware"],
    ),
    "below an async view": (async_view, []),
    "a template": (template_view, []),
    "a stream": (sync_streaming_view, []),
}


@pytest.mark.parametrize("name", SYNC_CODE)
@pytest.mark.parametrize("project", ["Trio", "asyncio"])
async def test_the_async_code_that_sync_code_calls(name: str, project: str) -> None:
    """All sync code of an asyncio project calls asyncio code."""
    view, middleware = SYNC_CODE[name]
    with override_settings(TRIO_ASGI={"ASYNCIO_VIEWS": project == "asyncio"}):
        found = (await text(view, *middleware)).split()
    if "async_middleware" in middleware:
        # Its own code is on Trio in any case.
        found.remove("Trio")
    assert set(found) == {project}


@in_asyncio_project
async def test_receivers_of_signals_call_asyncio() -> None:
    """Receivers of a request's signals, and async ones to which sync code sends."""
    found: list[str] = []
    signal = Signal()

    def receive(**kwargs: Any) -> None:
        found.append(ask())

    async def areceive(**kwargs: Any) -> None:
        found.append(await whose())

    def view(request: HttpRequest) -> HttpResponse:
        signal.send(None)
        return HttpResponse()

    signal.connect(areceive)
    request_started.connect(receive)
    request_finished.connect(receive)
    try:
        await text(view)
    finally:
        request_started.disconnect(receive)
        request_finished.disconnect(receive)
    assert found == ["asyncio"] * 3


@in_asyncio_project
async def test_what_is_marked_as_trios_calls_trio() -> None:
    """A view, an inline function, and a background task, which is always Trio's."""
    found: list[str] = []

    @trio_island
    async def view(request: HttpRequest) -> HttpResponse:
        found.append(await sync_to_async(ask)())
        found.append(await trio.to_thread.run_sync(ask))
        return HttpResponse()

    def marked(request: HttpRequest) -> HttpResponse:
        found.append(ask())
        return HttpResponse()

    def in_place(request: HttpRequest) -> HttpResponse:
        found.append(async_to_sync(trio_island(whose))())
        return HttpResponse()

    async def task() -> None:
        found.append(await sync_to_async(ask)())
        ended.set()

    async def starting(request: HttpRequest) -> HttpResponse:
        app.start_soon(task)
        return HttpResponse()

    await text(view)
    await text(trio_island(marked))
    await text(in_place)
    assert found == ["Trio"] * 4
    ended = trio.Event()
    app = serve(starting)
    async with ApplicationCommunicator(app, {"type": "lifespan"}) as server:
        await server.send_input({"type": "lifespan.startup"})
        await server.receive_output()
        await request(app)
        await ended.wait()
        await server.send_input({"type": "lifespan.shutdown"})
        await server.receive_output(timeout=SECONDS)
    assert found == ["Trio"] * 5


async def test_a_marked_sync_view_calls_asyncio() -> None:
    """In a Trio project, and its caller is on Trio again."""

    def view(request: HttpRequest) -> HttpResponse:
        one = asyncio_island(sync_view)(request)
        return HttpResponse(one.content.decode() + " " + ask())

    assert await text(asyncio_island(sync_view)) == "asyncio"
    assert await text(view) == "asyncio Trio"


async def test_sync_code_of_an_asyncio_project_hops_as_ever() -> None:
    """An asyncio coroutine called by sync code uses the thread that waits."""
    threads: list[threading.Thread] = []

    async def note() -> None:
        await asyncio.sleep(0)
        await sync_to_async(lambda: threads.append(threading.current_thread()))()

    def view(request: HttpRequest) -> HttpResponse:
        threads.append(threading.current_thread())
        async_to_sync(note)()
        return HttpResponse()

    with override_settings(TRIO_ASGI={"ASYNCIO_VIEWS": True}):
        await text(view)
    assert threads == [threads[0]] * 2


# Packages


class Group:
    """Two views of a project that uses Channels: one waits for the other's message."""

    layer: ClassVar[Any] = None

    @classmethod
    async def wait(cls, request: HttpRequest) -> HttpResponse:
        """Wait for a message to the group."""
        channel = await cls.layer.new_channel()
        await cls.layer.group_add("group", channel)
        asyncio.get_running_loop().call_soon(cls.waits.set)
        message = await cls.layer.receive(channel)
        return HttpResponse(message["text"])

    waits: ClassVar[Any] = None

    @classmethod
    def send(cls, request: HttpRequest) -> HttpResponse:
        """Send one, as Channels' documentation shows for sync code."""
        message = {"type": "message", "text": "hello"}
        async_to_sync(cls.layer.group_send)("group", message)
        return HttpResponse("sent")


@in_asyncio_project
async def test_a_channel_layer() -> None:
    """A sync view sends to a group through `async_to_sync`, as in Channels' docs."""
    Group.layer, Group.waits = InMemoryChannelLayer(), trio.Event()
    app = application(path("wait/", Group.wait), path("send/", Group.send))
    with trio.fail_after(SECONDS):
        async with ApplicationCommunicator(app, http_scope("/wait/")) as waiting:
            await waiting.send_input({"type": "http.request"})
            await Group.waits.wait()
            assert (await request(app, "/send/")).body == b"sent"
            assert (await receive_answer(waiting)).body == b"hello"
            await waiting.wait()


@in_asyncio_project
async def test_django_browser_reload(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its events are an asyncio async generator, from a sync view."""
    monkeypatch.setattr("django_browser_reload.views.PING_DELAY", 0.001)
    app = serve(browser_reload_events)
    with override_settings(DEBUG=True), trio.fail_after(SECONDS):
        async with ApplicationCommunicator(app, http_scope()) as client:
            await client.send_input({"type": "http.request"})
            assert (await client.receive_output())["status"] == 200
            assert b"ping" in (await client.receive_output())["body"]
            await client.send_input({"type": "http.disconnect"})
            await client.wait()


# Its tests


async def show_whose(request: HttpRequest) -> HttpResponse:
    """Answer whose code this is."""
    return HttpResponse(await whose())


urlpatterns = [
    path("asyncio/", show_whose, name="asyncio"),
    path("trio/", trio_island(show_whose), name="trio"),
]
ITS_TESTS = override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=[])


@pytest.fixture
def trio_backend() -> Iterator[None]:
    """Have `async_to_sync` start Trio, as the app does by default."""
    install_bridge(async_to_sync_backend="trio")
    yield
    install_bridge(async_to_sync_backend="asyncio")


@in_asyncio_project
@pytest.mark.usefixtures("trio_backend")
@ITS_TESTS
def test_sync_tests() -> None:
    """The sync client runs views on asyncio, but marked ones on Trio."""
    assert Client().get("/asyncio/").content == b"asyncio"
    assert Client().get("/trio/").content == b"Trio"


@in_asyncio_project
@pytest.mark.usefixtures("trio_backend")
@pytest.mark.parametrize(("mark", "library"), [(str, "asyncio"), (trio_island, "Trio")])
def test_async_tests(mark: Any, library: str) -> None:
    """Tests run on asyncio, but marked ones on Trio; the views do not depend on it."""

    async def test() -> list[str]:
        client = AsyncClient()
        answers = [await client.get("/asyncio/"), await client.get("/trio/")]
        return [await whose(), *(answer.content.decode() for answer in answers)]

    test = test if mark is str else mark(test)
    with ITS_TESTS:
        assert async_to_sync(test)() == [library, "asyncio", "Trio"]

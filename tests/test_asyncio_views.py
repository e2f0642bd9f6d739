"""asyncio views: single islands, and projects with ``ASYNCIO_VIEWS``."""

from __future__ import annotations

import asyncio
import os
import threading
import traceback
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import redis
import redis.asyncio
import trio
import trio.testing
from asgiref.sync import sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import override_settings
from django.urls import path
from django.utils.decorators import async_only_middleware, method_decorator
from django.utils.deprecation import MiddlewareMixin
from django.views import View
from django.views.decorators.cache import never_cache

from support import (
    application,
    http_scope,
    request,
    signal_log,
    skip_without_server,
)
from trio_asgi import asyncio_island, trio_island
from trio_asgi.testing import ApplicationCommunicator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from django.http import HttpResponseBase
    from django.urls import URLPattern

    from trio_asgi.asgi.types import Message


pytestmark = pytest.mark.usefixtures("watching_at_once")


def kind() -> str:
    """Return whose code this is."""
    return "Trio" if asyncio._get_running_loop() is None else "asyncio"


async def view(request: HttpRequest) -> HttpResponse:
    """Answer whose code this is, from whichever loop runs it."""
    return HttpResponse(kind())


@pytest.fixture
def asyncio_views() -> Iterator[None]:
    """Run all async views as islands."""
    with override_settings(TRIO_ASGI={"ASYNCIO_VIEWS": True}):
        yield


def at_root(view: Any) -> URLPattern:
    """Return a URL pattern for a view at ``/``."""
    pattern: URLPattern = path("", view)
    return pattern


async def answer(view: Any, **kwargs: Any) -> str:
    """Return the status and body of one request to a view."""
    answer = await request(application(at_root(view), **kwargs))
    return f"{answer.status} {answer.body.decode()}"


# Which views


async def test_one_view_can_be_an_island() -> None:
    """A decorated view runs on asyncio, the others beside it on Trio."""
    assert await answer(asyncio_island(view)) == "200 asyncio"
    assert await answer(view) == "200 Trio"


@pytest.mark.usefixtures("asyncio_views")
async def test_all_views_are_islands() -> None:
    """With ``ASYNCIO_VIEWS``, async views run on asyncio, except marked Trio views."""
    assert await answer(view) == "200 asyncio"
    assert await answer(never_cache(view)) == "200 asyncio"
    assert await answer(trio_island(view)) == "200 Trio"
    assert await answer(never_cache(trio_island(view))) == "200 Trio"


@pytest.mark.usefixtures("asyncio_views")
async def test_class_based_views_are_islands() -> None:
    """Handlers of a class are async views like others, and are marked the same way."""

    class Page(View):
        async def get(self, request: HttpRequest) -> HttpResponse:
            return HttpResponse(kind())

    @method_decorator(trio_island, name="dispatch")
    class TrioPage(Page):
        pass

    assert await answer(Page.as_view()) == "200 asyncio"
    assert await answer(TrioPage.as_view()) == "200 Trio"
    page: Any = Page.as_view()
    assert await answer(trio_island(page)) == "200 Trio"


@pytest.mark.usefixtures("asyncio_views")
async def test_sync_views_are_no_islands() -> None:
    """They run in the request's thread, as without the setting."""

    def sync_view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(threading.current_thread().name)

    assert (await answer(sync_view)).startswith("200 trio-asgi-worker-")


# What they do


async def test_an_asyncio_view_uses_asyncio_and_the_requests_thread() -> None:
    """`asyncio.gather` works, and sync code has the thread of the request's signals."""

    @asyncio_island
    async def view(request: HttpRequest) -> HttpResponse:
        here = sync_to_async(threading.current_thread)
        threads.update(await asyncio.gather(here(), here()))
        return HttpResponse("gathered")

    threads: set[threading.Thread] = set()
    with signal_log() as log:
        assert await answer(view) == "200 gathered"
    assert threads == log.threads
    assert len(threads) == 1


async def test_what_an_asyncio_view_raises_is_answered() -> None:
    """Django's exceptions have their usual meaning, and others are a server error."""

    async def missing(request: HttpRequest) -> HttpResponse:
        await asyncio.sleep(0)
        raise Http404

    async def broken(request: HttpRequest) -> HttpResponse:
        raise LookupError

    assert (await answer(asyncio_island(missing))).startswith("404 ")
    assert (await answer(asyncio_island(broken))).startswith("500 ")


async def test_a_view_that_asyncio_cancels_is_a_server_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Otherwise a CancelledError out of the view would end the server."""

    @asyncio_island
    async def view(request: HttpRequest) -> HttpResponse:
        raise asyncio.CancelledError

    assert (await answer(view)).startswith("500 ")
    assert "The asyncio code of / was cancelled by other asyncio code" in caplog.text


async def test_an_island_in_a_nursery_that_asyncio_cancels(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In a group, even beside another error, it is a server error as well."""

    @asyncio_island
    async def cancel() -> None:
        raise asyncio.CancelledError

    async def fail() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise LookupError

    async def view(request: HttpRequest) -> HttpResponse:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel)
            nursery.start_soon(fail)
        raise AssertionError

    assert (await answer(view)).startswith("500 ")
    assert "The asyncio code of / was cancelled by other asyncio code" in caplog.text


async def test_middleware_that_asyncio_cancels_is_a_server_error() -> None:
    """A CancelledError that Django's handler lets through does not reach the server."""
    app = application(
        at_root(view), middleware=["test_asyncio_views.middleware_that_is_cancelled"]
    )
    assert (await request(app)).status == 500


@async_only_middleware
def middleware_that_is_cancelled(get_response: Any) -> Any:
    """Middleware whose asyncio code is cancelled."""

    @asyncio_island
    async def middleware(request: HttpRequest) -> HttpResponse:
        raise asyncio.CancelledError

    return middleware


async def test_a_background_island_that_asyncio_cancels(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is logged, and other background tasks go on."""

    @asyncio_island
    async def cancel() -> None:
        raise asyncio.CancelledError

    async def background(request: HttpRequest) -> HttpResponse:
        app.start_soon(cancel)
        app.start_soon(go_on)
        return HttpResponse()

    async def go_on() -> None:
        await trio.testing.wait_all_tasks_blocked()
        ended.set()

    ended = trio.Event()
    app = application(at_root(background))
    async with ApplicationCommunicator(app, {"type": "lifespan"}) as server:
        await server.send_input({"type": "lifespan.startup"})
        await server.receive_output()
        await request(app)
        await ended.wait()
        await server.send_input({"type": "lifespan.shutdown"})
        message = await server.receive_output(timeout=10)
    assert message["type"] == "lifespan.shutdown.complete"
    assert "A background task failed" in caplog.text


SAYS_WHAT_TO_DO = "trio_asgi.asyncio_island()"


async def uses_asyncio(request: HttpRequest) -> HttpResponse:
    """Be a view of Trio's that calls asyncio."""
    await asyncio.sleep(0)
    raise AssertionError


async def uses_asyncio_in_nursery(request: HttpRequest) -> HttpResponse:
    """Do the same, so that the error comes in a group."""
    async with trio.open_nursery():
        return await uses_asyncio(request)


@async_only_middleware
def asyncio_middleware(get_response: Any) -> Any:
    """Return middleware that calls asyncio."""
    return uses_asyncio


@pytest.mark.parametrize("view", [uses_asyncio, uses_asyncio_in_nursery])
async def test_asyncio_in_a_trio_view_says_what_to_do(
    view: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The log of the server error names the island, once; so does the page."""
    with override_settings(DEBUG=True):
        answered = await answer(view)
    assert answered.startswith("500 ")
    assert caplog.text.count(SAYS_WHAT_TO_DO) == 1
    assert SAYS_WHAT_TO_DO in answered


async def test_asyncio_in_middleware_says_what_to_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """So does that of middleware, which is answered by the layer around it."""
    middleware = [f"{__name__}.asyncio_middleware"]
    assert (await answer(view, middleware=middleware)).startswith("500 ")
    assert caplog.text.count(SAYS_WHAT_TO_DO) == 1


async def test_asyncio_in_a_stream_says_what_to_do() -> None:
    """What the server gets, and logs, has the note too."""

    async def parts() -> AsyncIterator[str]:
        yield "one"
        await asyncio.sleep(1)

    async def stream(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(parts())

    with pytest.raises(RuntimeError) as raised:
        await answer(stream)
    assert SAYS_WHAT_TO_DO in "".join(traceback.format_exception(raised.value))


async def run_in_background(async_fn: Any, *arguments: Any) -> Message:
    """Run a background task of an application; return its last lifespan message."""
    app = application(at_root(view))
    async with ApplicationCommunicator(app, {"type": "lifespan"}) as server:
        await server.send_input({"type": "lifespan.startup"})
        await server.receive_output()
        app.start_soon(async_fn, *arguments)
        await trio.testing.wait_all_tasks_blocked()
        await server.send_input({"type": "lifespan.shutdown"})
        return await server.receive_output(timeout=10)


async def test_asyncio_in_the_background_says_what_to_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log of a background task that fails has the note."""
    await run_in_background(asyncio.sleep, 1)
    assert caplog.text.count(SAYS_WHAT_TO_DO) == 1


class HostileError(RuntimeError):
    """Looks like asyncio's, and its text is not to be asked for on the loop."""

    def __str__(self) -> str:
        if trio.lowlevel.in_trio_task():
            raise SynchronousOnlyOperation
        return "no running event loop"


async def raises_hostile_error(*_: Any) -> HttpResponse:
    """Raise one."""
    raise HostileError("no running event loop")


class AnswersErrors(MiddlewareMixin):
    """Answers errors of the view."""

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse:
        """Answer one."""
        return HttpResponse(str(error), status=409)


async def test_no_code_of_an_error_is_called_for_a_note(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Middleware answers it in the thread, and a background task's is logged there."""
    middleware = [f"{__name__}.AnswersErrors"]
    answered = await answer(raises_hostile_error, middleware=middleware)
    assert answered == "409 no running event loop"
    ended = await run_in_background(raises_hostile_error)
    assert ended["type"] == "lifespan.shutdown.complete"
    assert "A background task failed" in caplog.text


async def test_httpx_needs_no_island() -> None:
    """What is upon AnyIO runs on Trio as it is, beside islands."""

    async def fetch(request: HttpRequest) -> HttpResponse:
        asgi: Any = app  # httpx has other types of messages
        transport = httpx.ASGITransport(asgi)
        async with httpx.AsyncClient(transport=transport) as client:
            found = await client.get("http://testserver/island/")
        return HttpResponse(found.text)

    app = application(at_root(fetch), path("island/", asyncio_island(view)))
    assert (await request(app)).body == b"asyncio"


async def test_a_disconnect_cancels_an_asyncio_view() -> None:
    """The view gets asyncio's CancelledError, and may await while it cleans up."""
    order: list[str] = []

    @asyncio_island
    async def view(request: HttpRequest) -> HttpResponse:
        entered.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.sleep(0.001)
            order.append("cleaned up")
            raise
        raise AssertionError

    entered = trio.Event()
    app = application(at_root(view))
    with signal_log() as log:
        async with ApplicationCommunicator(app, http_scope()) as server:
            await server.send_input({"type": "http.request"})
            await entered.wait()
            await server.send_input({"type": "http.disconnect"})
            await server.wait()
    assert order == ["cleaned up"]
    assert log.names == ["started", "finished"]


# Streams


def streaming_view(parts: Any) -> Any:
    """Return an island that streams an async generator."""

    @asyncio_island
    async def view(request: HttpRequest) -> HttpResponseBase:
        return StreamingHttpResponse(parts())

    return view


@pytest.mark.parametrize("gzip", [False, True])
async def test_an_asyncio_view_streams(gzip: bool) -> None:
    """An island's stream is iterated and closed by asyncio, in middleware too."""
    kinds: list[str] = []

    async def parts() -> AsyncIterator[str]:
        try:
            for number in range(3):
                await asyncio.sleep(0.001)
                kinds.append(kind())
                yield f"part {number} "
        finally:
            await asyncio.sleep(0)
            kinds.append(f"closed by {kind()}")

    middleware = ["django.middleware.gzip.GZipMiddleware"] if gzip else []
    app = application(at_root(streaming_view(parts)), middleware=middleware)
    headers = [(b"accept-encoding", b"gzip")]
    result = await request(app, headers=headers)
    if not gzip:
        assert result.body == b"part 0 part 1 part 2 "
    assert result.is_complete
    assert kinds == ["asyncio"] * 3 + ["closed by asyncio"]


async def test_a_trio_view_streams_beside_it() -> None:
    """A Trio view's stream is Trio's."""

    async def parts() -> AsyncIterator[str]:
        await trio.lowlevel.checkpoint()
        yield kind()

    async def view(request: HttpRequest) -> HttpResponseBase:
        return StreamingHttpResponse(parts())

    assert await answer(view) == "200 Trio"


async def test_a_disconnect_closes_an_asyncio_stream() -> None:
    """The generator is cancelled where it waits, and closed by asyncio."""
    order: list[str] = []

    async def parts() -> AsyncIterator[str]:
        yield "first"
        try:
            waiting.set()
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            order.append("cancelled")
            raise
        finally:
            await asyncio.sleep(0.001)
            order.append("closed")

    waiting = trio.Event()
    app = application(at_root(streaming_view(parts)))
    async with ApplicationCommunicator(app, http_scope()) as server:
        await server.send_input({"type": "http.request"})
        assert (await server.receive_output())["status"] == 200
        assert (await server.receive_output())["body"] == b"first"
        await waiting.wait()
        await server.send_input({"type": "http.disconnect"})
        await server.wait()
    assert order == ["cancelled", "closed"]


async def test_an_asyncio_stream_fails() -> None:
    """The error reaches the server, which aborts the connection."""

    async def parts() -> AsyncIterator[str]:
        yield "first"
        await asyncio.sleep(0)
        raise LookupError("in the stream")

    app = application(at_root(streaming_view(parts)))
    async with ApplicationCommunicator(app, http_scope()) as server:
        await server.send_input({"type": "http.request"})
        await server.receive_output()
        await server.receive_output()
        with pytest.raises(LookupError, match="in the stream"):
            await server.wait()


# The server's lifetime


async def test_the_loop_ends_with_the_server() -> None:
    """At shutdown remaining asyncio tasks are cancelled, before the threads end."""
    order: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            order.append(await sync_to_async(lambda: "cleaned up in a thread")())

    async def start(request: HttpRequest) -> HttpResponse:
        tasks.append(asyncio.create_task(forever()))
        await asyncio.sleep(0)
        return HttpResponse()

    tasks: list[Any] = []
    app = application(at_root(asyncio_island(start)))
    async with ApplicationCommunicator(app, {"type": "lifespan"}) as server:
        await server.send_input({"type": "lifespan.startup"})
        await server.receive_output()
        await request(app)
        assert not tasks[0].done()
        await server.send_input({"type": "lifespan.shutdown"})
        message = await server.receive_output(timeout=10)
    assert message["type"] == "lifespan.shutdown.complete"
    assert tasks[0].cancelled()
    assert order == ["cleaned up in a thread"]


# Clients that need asyncio


async def test_a_client_of_asyncio_in_a_view() -> None:
    """The asyncio client of Redis works in views, with one pool for all requests."""
    url = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
    try:
        redis.Redis.from_url(url).ping()
    except redis.ConnectionError:
        skip_without_server(f"no Redis answers at {url}")
    client: Any = redis.asyncio.Redis.from_url(url)
    key = f"trio_asgi:{os.getpid()}"

    @asyncio_island
    async def count(request: HttpRequest) -> HttpResponse:
        async with client.pipeline() as pipe:
            value, _ = await pipe.incr(key).expire(key, 60).execute()
        return HttpResponse(str(value))

    app = application(at_root(count))
    answers: list[bytes] = []

    async def ask() -> None:
        answers.append((await request(app)).body)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
    assert sorted(answers) == [b"1", b"2", b"3", b"4", b"5"]

    async def clean_up() -> None:
        await client.delete(key)
        await client.aclose()

    await asyncio_island(clean_up)()


def trio_wrapper(get_response: Any) -> Any:
    """Wrap a stream in a Trio async generator."""

    async def middleware(request: HttpRequest) -> Any:
        response = await get_response(request)
        content = response.streaming_content

        async def parts() -> AsyncIterator[bytes]:
            async for part in content:
                await trio.lowlevel.checkpoint()
                yield part.upper()

        response.streaming_content = parts()
        return response

    return middleware


trio_wrapper.async_capable = True  # type: ignore[attr-defined]
trio_wrapper.sync_capable = False  # type: ignore[attr-defined]


async def test_middleware_of_trio_around_a_stream_of_asyncio() -> None:
    """Only the view's own content is asyncio's."""

    async def parts() -> AsyncIterator[bytes]:
        yield b"one "
        await asyncio.sleep(0)
        yield b"two"

    @asyncio_island
    async def view(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(parts())

    app = application(path("", view), middleware=[f"{__name__}.trio_wrapper"])
    assert (await request(app)).body == b"ONE TWO"

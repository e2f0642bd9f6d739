"""Whatever one request leaves in its thread is never found by another request.

A thread serves the next request only if the previous one has run to its end: then its
middleware and signals have also ended what they began in the thread.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio
from asgiref.sync import async_to_sync, sync_to_async
from django.core.signals import request_finished, request_started
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path
from django.utils.decorators import async_only_middleware
from django.utils.deprecation import MiddlewareMixin

from support import application, http_scope, request
from thread_support import assert_at_rest, join
from trio_asgi import ASGIHandler, release_thread
from trio_asgi.testing import ApplicationCommunicator
from trio_asgi.threads.current import current_pool
from trio_asgi.threads.lease import Lease

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

DISCONNECT = {"type": "http.disconnect"}

#: The request that the thread serves, as middleware for tenants stores it.
local = threading.local()


def tenant() -> str:
    """Return the tenant that is stored in this thread."""
    return str(getattr(local, "tenant", None))


class Tenant(MiddlewareMixin):
    """Puts the request's tenant into the thread, and removes it at the end."""

    def process_request(self, request: HttpRequest) -> None:
        if "tenant" in request.GET:
            local.tenant = request.GET["tenant"]

    def process_response(
        self, request: HttpRequest, response: HttpResponse
    ) -> HttpResponse:
        vars(local).clear()
        return response


class TenantOfView(MiddlewareMixin):
    """Does so when the view is known."""

    process_response = Tenant.process_response

    def process_view(self, request: HttpRequest, *args: Any) -> None:
        if "tenant" in request.GET:
            local.tenant = request.GET["tenant"]


HOOKS = f"{__name__}.Tenant"
VIEW_HOOK = f"{__name__}.TenantOfView"
waiting = trio.Event()


@pytest.fixture(autouse=True)
def new_event() -> None:
    """Provide the event that says that a view of this test waits."""
    global waiting  # noqa: PLW0603 - made within the test's run
    waiting = trio.Event()


async def waits(request: HttpRequest) -> HttpResponse:
    """Wait for ever."""
    waiting.set()
    await trio.Event().wait()
    return HttpResponse()


def sync_waits(request: HttpRequest) -> HttpResponse:
    """Wait for ever in a coroutine below sync code."""
    return async_to_sync(waits)(request)


async def puts_and_waits(request: HttpRequest) -> HttpResponse:
    """Put the tenant there itself, and wait."""
    await sync_to_async(setattr)(local, "tenant", "secret")
    return await waits(request)


async def sees(request: HttpRequest) -> HttpResponse:
    """Return the tenant that it finds."""
    return HttpResponse(await sync_to_async(tenant)())


def sync_sees(request: HttpRequest) -> HttpResponse:
    """Return the tenant that it finds."""
    return HttpResponse(tenant())


async def wait_ended() -> int:
    """Wait for the threads that end; return how many serve the next request."""
    pool = current_pool()
    for worker in list(pool.workers):
        if worker not in pool._idle:
            await join(worker.thread)
    assert_at_rest(pool)
    return len(pool._idle)


async def assert_nothing_left() -> None:
    """Check that no thread that serves the next request has a tenant."""
    leases = [Lease(current_pool()) for _ in range(await wait_ended())]
    for lease in leases:
        assert await lease.run_sync(tenant) == "None"
    for lease in leases:
        lease.release()


def app_of(*views: Any, middleware: tuple[str, ...] = (HOOKS,)) -> ASGIHandler:
    """Return an application of these views and of those that look."""
    patterns = [path(f"{v.__name__}/", v) for v in (*views, sees, sync_sees)]
    return application(*patterns, middleware=middleware)


async def cut_short_by(by: str, app: ASGIHandler, url: str) -> None:
    """Make a tenant's request, and interrupt it when its view waits."""
    scope = http_scope(url, query_string=b"tenant=secret")
    communicator = ApplicationCommunicator(app, scope)
    await communicator.send_input({"type": "http.request"})
    with trio.fail_after(10):
        await waiting.wait()
    if by == "client":
        await communicator.send_input(DISCONNECT)
    else:
        communicator.stop()
    await communicator.wait(10)


@pytest.mark.parametrize("by", ["client", "server"])
@pytest.mark.parametrize("view", [waits, sync_waits, puts_and_waits])
@pytest.mark.parametrize("middleware", [HOOKS, VIEW_HOOK])
async def test_a_request_that_is_cancelled(
    by: str, view: Callable[..., Any], middleware: str
) -> None:
    """The hooks that would clean up are skipped, so the thread is not reused."""
    app = app_of(view, middleware=(middleware,))
    await cut_short_by(by, app, f"/{view.__name__}/")
    await assert_nothing_left()


@async_only_middleware
def with_deadline(get_response: Callable[..., Any]) -> Callable[..., Any]:
    """Answer in time, whatever the view does."""

    async def middleware(request: HttpRequest) -> HttpResponse:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def cancel() -> None:
                    await waiting.wait()
                    scope.cancel()

                nursery.start_soon(cancel)
                response: HttpResponse = await get_response(request)
                nursery.cancel_scope.cancel()
                return response
        return HttpResponse("too late", status=503)

    return middleware


@pytest.mark.parametrize("view", [waits, sync_waits])
async def test_a_deadline_in_middleware(view: Callable[..., Any]) -> None:
    """The request is answered, but the code below the deadline was interrupted."""
    app = app_of(view, middleware=(f"{__name__}.with_deadline", HOOKS))
    answer = await request(app, f"/{view.__name__}/", query_string=b"tenant=secret")
    assert answer.status == 503
    waiting.set()
    await assert_nothing_left()


async def test_a_stream_that_is_cut_off() -> None:
    """State that the parts have left in the thread is not found by others."""

    def parts() -> Iterator[str]:
        local.tenant = "secret"
        trio.from_thread.run_sync(waiting.set)
        yield "x" * 2**20
        yield "y"
        vars(local).clear()

    async def async_parts() -> AsyncIterator[str]:
        await sync_to_async(setattr)(local, "tenant", "secret")
        yield "x"
        waiting.set()
        await trio.sleep_forever()

    def stream(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(parts())

    async def async_stream(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(async_parts())

    app = app_of(async_stream)
    await cut_short_by("client", app, "/async_stream/")
    await assert_nothing_left()

    # The server takes the first part when the client disconnects.
    app = app_of(stream)

    async def receive() -> Any:
        if not asked:
            asked.append("body")
            return {"type": "http.request"}
        await sending.wait()
        return DISCONNECT

    async def send(message: Any) -> None:
        if message.get("more_body"):
            sending.set()
            await trio.sleep_forever()

    asked: list[str] = []
    sending = trio.Event()
    await app(http_scope("/stream/"), receive, send)
    await assert_nothing_left()


async def test_a_receiver_that_fails() -> None:
    """The receivers after it, which would have cleaned up, were not called."""

    def put(**kwargs: Any) -> None:
        local.tenant = "secret"

    def fail(**kwargs: Any) -> None:
        raise ValueError("a receiver")

    def take(**kwargs: Any) -> None:
        vars(local).clear()

    app = app_of(middleware=())
    request_started.connect(put)
    request_finished.connect(fail)
    request_finished.connect(take)
    try:
        with pytest.raises(ValueError, match="a receiver"):
            await request(app, "/sync_sees/")
    finally:
        request_started.disconnect(put)
        request_finished.disconnect(fail)
        request_finished.disconnect(take)
    await assert_nothing_left()


@pytest.mark.parametrize("by", ["error", "shutdown"])
async def test_a_background_task_that_does_not_end_by_itself(by: str) -> None:
    """It may have left something in its thread, too."""
    app = app_of()
    threads = []

    def put() -> None:
        local.tenant = "secret"
        threads.append(threading.current_thread())

    async def task() -> None:
        await sync_to_async(put)()
        waiting.set()
        if by == "error":
            raise ValueError("a task")
        await trio.sleep_forever()

    scope = {"type": "lifespan", "asgi": {"version": "3.0"}}
    async with ApplicationCommunicator(app, scope) as server:
        await server.send_input({"type": "lifespan.startup"})
        await server.receive_output()
        app.start_soon(task)
        await waiting.wait()
        if by == "error":
            await join(threads[0])
    await join(threads[0])
    await assert_nothing_left()


@pytest.mark.parametrize("middleware", [HOOKS, VIEW_HOOK])
async def test_a_thread_that_is_released_below_middleware(middleware: str) -> None:
    """Its hooks would then clean up in another thread, so the first one ends."""

    async def releases(request: HttpRequest) -> HttpResponse:
        await release_thread()
        return await sees(request)

    app = app_of(releases, middleware=(middleware,))
    answer = await request(app, "/releases/", query_string=b"tenant=secret")
    assert answer.body == b"None"
    assert await wait_ended() == 1


async def test_a_thread_that_is_released_below_receivers() -> None:
    """The same holds if a receiver of request_started has begun something there."""

    def put(**kwargs: Any) -> None:
        local.tenant = "secret"

    async def releases(request: HttpRequest) -> HttpResponse:
        await release_thread()
        request_started.disconnect(put)
        return await sees(request)

    app = app_of(releases)
    request_started.connect(put)
    answer = await request(app, "/releases/")
    assert answer.body == b"None"


@pytest.mark.parametrize("middleware", [(HOOKS,), ()])
async def test_a_request_that_runs_to_its_end(middleware: tuple[str, ...]) -> None:
    """Its thread serves the next one, if nothing was interrupted."""
    app = app_of(middleware=middleware)
    for url in ("/sees/", "/sync_sees/") * 2:
        assert (await request(app, url)).body == b"None"
        assert await wait_ended() == 1

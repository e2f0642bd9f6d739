"""Background tasks keep thread-bound objects apart; so do requests."""

from __future__ import annotations

import contextvars
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar
from zoneinfo import ZoneInfo

import pytest
import trio
from asgiref.local import Local
from asgiref.sync import sync_to_async
from django.core.cache import caches
from django.core.cache.backends.locmem import LocMemCache
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import get_urlconf, path, reverse
from django.utils import timezone, translation

from support import application, bare_request, http_scope, receive_answer, request
from trio_asgi.testing import ApplicationCommunicator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from trio_asgi import ASGIHandler

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
local = Local()

SECONDS = 10


class Cache(LocMemCache):
    """A cache that must be closed, and notes where that happened."""

    closed: ClassVar[list[tuple[Cache, threading.Thread]]] = []

    def close(self, **kwargs: Any) -> None:
        """Close it."""
        self.closed.append((self, threading.current_thread()))


@pytest.fixture(autouse=True)
def cache_backend() -> Iterator[None]:
    """Use that cache."""
    Cache.closed.clear()
    cache = {"BACKEND": f"{__name__}.Cache", "LOCATION": __name__}
    with override_settings(CACHES={"default": cache}):
        yield


def used_cache() -> tuple[Any, threading.Thread]:
    """Use the cache of the running code; return it and the thread."""
    cache = caches["default"]
    cache.set("key", "value")
    return cache, threading.current_thread()


use_cache = sync_to_async(used_cache)


@asynccontextmanager
async def serving(app: ASGIHandler) -> AsyncIterator[None]:
    """Run an application under a server; its background tasks end with the block."""
    scope = {"type": "lifespan", "asgi": {}}
    with trio.fail_after(SECONDS):
        async with ApplicationCommunicator(app, scope) as server:
            await server.send_input({"type": "lifespan.startup"})
            await server.receive_output()
            yield
            await server.send_input({"type": "lifespan.shutdown"})
            await server.receive_output(timeout=SECONDS)


async def test_a_cache_is_used_in_one_thread() -> None:
    """A task has its own, whatever the request has used, at once in two threads."""
    both = threading.Barrier(2, timeout=SECONDS)
    used: list[Any] = []

    def use_at_once() -> None:
        both.wait()
        used.append(used_cache())
        both.wait()

    async def task() -> None:
        await sync_to_async(use_at_once)()

    async def view(request: HttpRequest) -> HttpResponse:
        first = await use_cache()
        app.start_soon(task)
        await sync_to_async(use_at_once)()
        assert first in used
        return HttpResponse()

    app = application(path("", view))
    async with serving(app):
        await request(app)
    (one, one_thread), (two, two_thread) = used
    assert one is not two
    assert one_thread is not two_thread


async def test_a_request_that_ends_closes_its_own_caches() -> None:
    """The caches of its task are closed when that ends, in the task's thread."""
    ended = trio.Event()
    tasks: list[Any] = []

    async def task() -> None:
        tasks.append(await use_cache())
        await ended.wait()
        assert await use_cache() == tasks[0]

    async def view(request: HttpRequest) -> HttpResponse:
        views.append(await use_cache())
        app.start_soon(task)
        return HttpResponse()

    views: list[Any] = []
    app = application(path("", view))
    async with serving(app):
        await request(app)
        assert Cache.closed == views
        ended.set()
    assert Cache.closed == views + tasks


async def test_a_cache_that_was_used_on_the_loop_alone_is_closed() -> None:
    """It is closed in a thread taken for that purpose."""
    used: list[Any] = []

    async def task() -> None:
        used.append(caches["default"])
        await trio.lowlevel.checkpoint()

    app = application()
    async with serving(app):
        app.start_soon(task)
    assert [cache for cache, _ in Cache.closed] == used
    assert Cache.closed[0][1].name.startswith("trio-asgi-worker-")


async def test_a_task_of_a_task_has_its_own_cache() -> None:
    """A background task's own tasks are separate from it in the same way."""
    used: list[Any] = []

    async def task(depth: int) -> None:
        used.append(await use_cache())
        if depth:
            app.start_soon(task, depth - 1)
        else:
            last.set()
        used.append(await use_cache())

    last = trio.Event()
    app = application()
    async with serving(app):
        app.start_soon(task, 2)
        await last.wait()
    assert len({id(cache) for cache, _ in used}) == 3
    assert {id(cache) for cache, _ in Cache.closed} == {id(cache) for cache, _ in used}


async def test_variables_come_along_and_locals_do_not() -> None:
    """A `Local` is a thread-local to sync code: its content belongs to a thread."""
    seen: list[Any] = []

    def see() -> tuple[str, Any]:
        return variable.get(), getattr(local, "value", None)

    async def task() -> None:
        seen.append(see())
        seen.append(await sync_to_async(see)())
        variable.set("task's")
        local.value = "task's"
        seen.append(await sync_to_async(see)())
        ended.set()

    async def view(request: HttpRequest) -> HttpResponse:
        variable.set("request's")
        local.value = "request's"
        app.start_soon(task)
        local.value = "request's, later"
        await ended.wait()
        seen.append(await sync_to_async(see)())
        return HttpResponse()

    ended = trio.Event()
    app = application(path("", view))
    async with serving(app):
        await request(app)
    assert seen == [
        ("request's", None),
        ("request's", None),
        ("task's", "task's"),
        ("request's", "request's, later"),
    ]


class Urls:
    """A tenant's URLs."""

    urlpatterns: ClassVar[list[Any]] = []


def locale() -> tuple[str | None, str, Any, str]:
    """Return what a task knows about the request that started it."""
    return (
        translation.get_language(),
        timezone.get_current_timezone_name(),
        get_urlconf(),
        reverse("page"),
    )


@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.parametrize("language", ["de", None])
async def test_language_time_zone_and_urls_come_along(
    kind: str, language: str | None
) -> None:
    """A mail sent in the background has the user's language, and links to the site."""
    seen: list[Any] = []

    async def task() -> None:
        seen.append(locale())
        seen.append(await sync_to_async(locale)())

    def start() -> None:
        app.start_soon(task)

    def set_locale() -> None:
        if language is None:
            translation.deactivate_all()
        else:
            translation.activate(language)
        timezone.activate(ZoneInfo("Asia/Tokyo"))

    async def view(request: HttpRequest) -> HttpResponse:
        set_locale()
        start()
        return HttpResponse()

    def sync_view(request: HttpRequest) -> HttpResponse:
        set_locale()
        trio.from_thread.run_sync(start)
        return HttpResponse()

    urls = (path("", view if kind == "async" else sync_view, name="page"),)
    app = application(*urls)
    scope = http_scope("/site/", root_path="/site")
    async with serving(app), ApplicationCommunicator(app, scope) as client:
        await client.send_input({"type": "http.request"})
        assert (await receive_answer(client)).status == 200
    assert seen == [(language, "Asia/Tokyo", urls, "/site/")] * 2


async def test_a_task_of_the_lifespan_has_the_defaults() -> None:
    """Without activation, the defaults apply."""
    seen: list[Any] = []

    async def task() -> None:
        seen.append((translation.get_language(), timezone.get_current_timezone_name()))
        await trio.lowlevel.checkpoint()

    app = application()
    async with serving(app):
        app.start_soon(task)
    assert seen == [("en-us", "America/Chicago")]


async def test_a_request_whose_end_is_left_to_the_thread_closes_its_caches() -> None:
    """Also if nothing waits for the thread any more."""
    used: list[Any] = []

    async def view(request: HttpRequest) -> HttpResponse:
        used.append(await use_cache())
        return HttpResponse()

    app = application(path("", view))
    with override_settings(TRIO_ASGI={"CLEANUP_SECONDS": 0}):
        async with serving(app):
            await request(app)
    assert Cache.closed == used


async def test_requests_do_not_share_what_start_up_has_used() -> None:
    """They have the context in which the server was started, but not its caches."""
    used = [used_cache()[0]]

    async def view(request: HttpRequest) -> HttpResponse:
        used.append((await use_cache())[0])
        return HttpResponse()

    app = application(path("", view))
    # Not by `ApplicationCommunicator`, which has an empty context for each request.
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bare_request, app)
        nursery.start_soon(bare_request, app)
    assert len({id(cache) for cache in used}) == 3
    assert {id(cache) for cache, _ in Cache.closed} == {id(cache) for cache in used}

"""Context variables go with a call between loop and thread."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.local import Local
from asgiref.sync import async_to_sync, sync_to_async
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path
from django.utils.functional import SimpleLazyObject

from support import application, request
from trio_asgi import EventStream, asyncio_island
from trio_asgi.islands.context import restore_context, without_locals

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from django.http import HttpResponseBase

kept: contextvars.ContextVar[Any] = contextvars.ContextVar("kept")
local = Local()


class Untouchable:
    """A value that fails when compared, or asked for its type."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        raise AssertionError("compared")

    def __ne__(self, other: object) -> bool:
        raise AssertionError("compared")

    def __bool__(self) -> bool:
        raise AssertionError("asked for its truth")

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        raise AssertionError("asked for its class")


def never() -> Any:
    """Fail, instead of asking the database for a user."""
    pytest.fail("a lazy object was evaluated", pytrace=False)


#: Two objects for each kind of laziness: the second replaces the first.
VALUES: list[Callable[[], Any]] = [
    Untouchable,
    functools.partial(SimpleLazyObject, never),
]


def keep_lazily(get_response: Any, make: Callable[[], Any]) -> Any:
    """Sync middleware that keeps something of the request in a variable."""

    def middleware(request: HttpRequest) -> Any:
        replace(make)
        return get_response(request)

    return middleware


def keep_untouchable(get_response: Any) -> Any:
    """Keep an untouchable value."""
    return keep_lazily(get_response, VALUES[0])


def keep_lazy(get_response: Any) -> Any:
    """Keep one of Django's lazy objects."""
    return keep_lazily(get_response, VALUES[1])


def replace(make: Callable[[], Any]) -> None:
    """Replace the kept values by others."""
    kept.set(make())
    local.kept = make()


async def async_view(request: HttpRequest) -> HttpResponse:
    """Call sync code that changes the values, directly and through nested calls."""
    make = type(kept.get()) if type(kept.get()) is Untouchable else VALUES[1]
    await sync_to_async(replace)(make)
    await sync_to_async(replace, thread_sensitive=False)(make)
    await sync_to_async(async_to_sync(sync_to_async(replace)))(make)
    return HttpResponse("answered")


@asyncio_island
async def island_view(request: HttpRequest) -> HttpResponse:
    """Do the same in asyncio code."""
    await asyncio.sleep(0)
    return await async_view(request)


def sync_view(request: HttpRequest) -> HttpResponse:
    """Do the same below sync code, also in a loop that asgiref starts for it."""
    async_to_sync(nothing, force_new_loop=True)()
    response: HttpResponse = async_to_sync(async_view)(request)
    return response


async def nothing() -> None:
    """Run in an asyncio loop."""


async def streaming_view(request: HttpRequest) -> HttpResponseBase:
    """Do the same in a stream."""

    async def parts() -> AsyncIterator[bytes]:
        yield (await async_view(request)).content

    return StreamingHttpResponse(parts())


async def event_view(request: HttpRequest) -> HttpResponseBase:
    """Do the same in a task that yields events."""

    async def events() -> AsyncIterator[str]:
        yield (await async_view(request)).content.decode()

    return EventStream(events())


def streaming_sync_view(request: HttpRequest) -> HttpResponseBase:
    """Change the values in sync content."""

    def parts() -> Iterator[str]:
        replace(Untouchable)
        yield "answered"

    return StreamingHttpResponse(parts())


@pytest.mark.parametrize("middleware", ["keep_untouchable", "keep_lazy"])
@pytest.mark.parametrize(
    "view",
    [
        async_view,
        island_view,
        sync_view,
        streaming_view,
        event_view,
        streaming_sync_view,
    ],
    ids=lambda view: view.__name__,
)
async def test_no_value_of_a_context_variable_is_touched(
    view: Any, middleware: str
) -> None:
    """A user kept by middleware is not looked up, neither on the loop nor elsewhere."""
    app = application(path("", view), middleware=[f"{__name__}.{middleware}"])
    answer = await request(app)
    assert answer.status == 200
    assert b"answered" in answer.body


async def test_changed_values_come_back() -> None:
    """Values set by sync code are set afterwards, even if they equal the old ones."""
    before, after = [1], [1]
    kept.set(before)
    local.kept = before

    def change() -> None:
        assert kept.get() is before
        assert local.kept is before
        kept.set(after)
        local.kept = after

    await sync_to_async(change)()
    assert kept.get() is after
    assert local.kept is after


def test_the_data_of_a_local_is_moved_to_the_running_thread() -> None:
    """It can be seen there, and the copy belongs to that thread alone."""

    def set_values() -> None:
        kept.set("kept")
        local.kept = "local"

    def see() -> tuple[str, str]:
        restore_context(context)
        return kept.get(), local.kept

    context = contextvars.Context()
    context.run(set_values)
    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.append(see()))
    thread.start()
    thread.join()
    assert seen == [("kept", "local")]
    assert context.run(lambda: local.kept) == "local"


def test_a_context_without_locals() -> None:
    """It has the values of all other variables, and changes none of them."""

    def set_values() -> None:
        kept.set("kept")
        local.kept = "local"

    def see() -> tuple[str, bool]:
        return kept.get(), hasattr(local, "kept")

    context = contextvars.Context()
    context.run(set_values)
    assert without_locals(context).run(see) == ("kept", False)
    assert context.run(see) == ("kept", True)

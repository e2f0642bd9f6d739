"""`AsyncClient` and `AsyncRequestFactory` of `trio_asgi.testing`."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from types import ModuleType
from typing import TYPE_CHECKING, Any

import django.test
import pytest
import trio
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.middleware.csrf import CsrfViewMiddleware
from django.test import override_settings
from django.urls import path

import trio_asgi
from trio_asgi.testing import AsyncClient, AsyncRequestFactory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


async def size(request: trio_asgi.ASGIRequest) -> HttpResponse:
    """Answer with the size of the body, read as a stream."""
    parts = [part async for part in request.stream()]
    return HttpResponse(str(sum(map(len, parts))))


async def form(request: trio_asgi.ASGIRequest) -> HttpResponse:
    """Answer with the form's fields."""
    await request.aread()
    return HttpResponse(" ".join(request.POST))


async def show(request: HttpRequest) -> HttpResponse:
    """Answer with what the client has sent, and set a cookie."""
    sent = [
        request.method,
        request.headers.get("x-name"),
        request.COOKIES.get("seen"),
        request.GET.get("q"),
    ]
    response = HttpResponse(repr(sent))
    response.set_cookie("seen", "yes")
    return response


async def fail(request: HttpRequest) -> HttpResponse:
    """Fail."""
    raise ValueError("the view failed")


#: What the generators of streams have done.
closed: list[str] = []


async def endless() -> AsyncIterator[str]:
    """Yield twice, then wait for ever."""
    try:
        yield "first"
        yield "second"
        await trio.sleep_forever()
    finally:
        closed.append("closed")


async def events(request: HttpRequest) -> trio_asgi.EventStream:
    """Stream events."""
    return trio_asgi.EventStream(endless())


async def stream(request: HttpRequest) -> StreamingHttpResponse:
    """Stream text."""
    return StreamingHttpResponse(endless())


@pytest.fixture(autouse=True)
def urls() -> Iterator[None]:
    """Serve the views."""
    urlconf: Any = ModuleType("urlconf")
    views = size, form, show, fail, events, stream
    urlconf.urlpatterns = [path(f"{view.__name__}/", view) for view in views]
    closed.clear()
    csrf = f"{CsrfViewMiddleware.__module__}.{CsrfViewMiddleware.__qualname__}"
    with override_settings(ROOT_URLCONF=urlconf, MIDDLEWARE=[csrf]):
        yield


async def test_the_body_as_a_stream() -> None:
    """Views can read the body as under a server."""
    client = AsyncClient()
    options: Any = {"content_type": "application/octet-stream"}
    answer = await client.post("/size/", b"x" * 100_000, **options)
    assert answer.content == b"100000"
    assert (await client.get("/size/")).content == b"0"
    assert (await client.post("/form/", {"name": "Ada"})).content == b"name"


async def test_everything_else_is_djangos() -> None:
    """Headers, cookies, queries, other methods, `follow` and errors."""
    client = AsyncClient()
    assert isinstance(client, django.test.AsyncClient)
    answer = await client.get("/show/", {"q": "1"}, headers={"x-name": "Ada"})
    assert answer.content == b"['GET', 'Ada', None, '1']"
    answer = await client.put("/show/?q=2", follow=True)
    assert answer.content == b"['PUT', None, 'yes', '2']"
    assert answer.resolver_match.func is show
    assert isinstance(answer.asgi_request, trio_asgi.ASGIRequest)
    with pytest.raises(ValueError, match="the view failed"):
        await client.get("/fail/")
    client = AsyncClient(raise_request_exception=False)
    assert (await client.get("/fail/")).status_code == 500


@pytest.mark.parametrize("enforced", [False, True])
async def test_csrf(enforced: bool) -> None:
    """The argument reaches the handler."""
    answer = await AsyncClient(enforced).post("/show/")
    assert answer.status_code == (403 if enforced else 200)


async def test_several_cookies() -> None:
    """They are joined as under a server, on older Djangos too."""
    client = AsyncClient()
    client.cookies["other"] = "no"
    answer = await client.get("/show/", headers={"cookie": "seen=here"})
    assert answer.content == b"['GET', None, 'here', None]"


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("/stream/", [b"first", b"second"]),
        ("/events/", [b"", b"data: first\n\n", b"data: second\n\n"]),
    ],
)
async def test_an_endless_stream(url: str, parts: list[bytes]) -> None:
    """A test reads some of it, and closes it: then it is closed in the view, too."""
    seen = []
    answer: Any = await AsyncClient().get(url)
    async with aclosing(answer) as response:
        async for part in response.streaming_content:
            seen.append(part)
            if len(seen) == len(parts):
                break
        assert closed == []
    assert seen == parts
    assert closed == ["closed"]


def test_a_stream_that_is_not_closed() -> None:
    """It is closed at the end of the run at the latest, which does not fail."""
    left = []

    async def main() -> None:
        response: Any = await AsyncClient().get("/events/")
        left.append(response.streaming_content)
        assert await anext(left[0]) == b""
        assert await anext(left[0]) == b"data: first\n\n"

    trio.run(main)
    assert closed == ["closed"]


async def test_a_deadline_around_a_stream() -> None:
    """It ends the wait for a part; the stream need not be closed."""
    response: Any = await AsyncClient().get("/events/")
    with trio.move_on_after(0.01) as scope:
        async for _ in response:
            pass
    assert scope.cancelled_caught
    assert closed == ["closed"]


def test_on_asyncio() -> None:
    """Where tests run on asyncio, it is as Django's."""

    async def main() -> bytes:
        answer = await AsyncClient().get("/show/")
        content: bytes = answer.content
        return content

    assert asyncio.run(main()) == b"['GET', None, None, None]"


async def test_the_factory() -> None:
    """Its requests are of the same class."""
    request = AsyncRequestFactory().post("/", {"name": "Ada"})
    assert type(request) is trio_asgi.ASGIRequest
    assert (await form(request)).content == b"name"

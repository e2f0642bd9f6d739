"""Views on Trio, and one that is sync."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

import trio_asgi
from books.models import Book

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from django.http import HttpRequest


async def books(request: HttpRequest) -> JsonResponse:
    """Add a book for a POST; return the titles of all."""
    assert trio.lowlevel.in_trio_task()
    await trio.lowlevel.checkpoint()
    if request.method == "POST":
        await Book.objects.acreate(title="posted")
    titles = [book.title async for book in Book.objects.order_by("title")]
    return JsonResponse({"titles": titles})


def sync_books(request: HttpRequest) -> JsonResponse:
    """Return all titles."""
    titles = Book.objects.order_by("title").values_list("title", flat=True)
    return JsonResponse({"titles": list(titles)})


async def stream(request: HttpRequest) -> StreamingHttpResponse:
    """Stream the titles."""

    async def titles() -> AsyncIterator[str]:
        async for book in Book.objects.order_by("title"):
            await trio.sleep(60)
            yield book.title

    return StreamingHttpResponse(titles())


async def ordered(request: HttpRequest) -> HttpResponse:
    """Add a book in the background."""

    async def write() -> None:
        await Book.objects.acreate(title="in the background")

    trio_asgi.start_soon(write)
    return HttpResponse(status=202)


async def me(request: HttpRequest) -> HttpResponse:
    """Return the signed-in user."""
    return HttpResponse((await request.auser()).username)


async def nothing(request: HttpRequest) -> HttpResponse:
    """Use no database."""
    await trio.lowlevel.checkpoint()
    return HttpResponse("nothing")


async def fails(request: HttpRequest) -> HttpResponse:
    """Fail."""
    await Book.objects.acreate(title="of a view that fails")
    raise ValueError("the view failed")


@csrf_exempt
@trio_asgi.stream_body
async def count(request: trio_asgi.ASGIRequest) -> JsonResponse:
    """Count the bytes of the body, and then of its form."""
    if request.content_type == "multipart/form-data":
        await request.aread()
        return JsonResponse({"form": [*request.POST, *request.FILES]})
    return JsonResponse({"size": sum([len(part) async for part in request.stream()])})


def host(request: HttpRequest) -> HttpResponse:
    """Return the host, if it is allowed."""
    return HttpResponse(request.get_host())


async def events(request: HttpRequest) -> trio_asgi.EventStream:
    """Stream an event for each book."""

    async def titles() -> AsyncIterator[str]:
        async for book in Book.objects.order_by("title"):
            yield book.title

    return trio_asgi.EventStream(titles())


urlpatterns = [
    path("events/", events),
    path("host/", host),
    path("count/", count),
    path("books/", books),
    path("sync/", sync_books),
    path("stream/", stream),
    path("me/", me),
    path("ordered/", ordered),
    path("nothing/", nothing),
    path("fails/", fails),
]

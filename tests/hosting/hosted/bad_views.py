"""Views whose content fails on its way."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio
from asgiref.sync import sync_to_async
from django.http import (
    FileResponse,
    HttpRequest,
    HttpResponse,
    StreamingHttpResponse,
)
from django.views.decorators.csrf import csrf_exempt

from trio_asgi import stream_body

from . import journal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


def sync_failing(request: HttpRequest) -> StreamingHttpResponse:
    """Fail after a part, in a thread."""

    def parts() -> Iterator[bytes]:
        try:
            yield b"first part"
            raise LookupError("the sync kettle is empty")
        finally:
            journal.note("cleaned up", request)

    return StreamingHttpResponse(parts())


async def failing(request: HttpRequest) -> StreamingHttpResponse:
    """Fail after a part."""

    async def parts() -> AsyncIterator[bytes]:
        try:
            yield b"first part"
            raise LookupError("the async kettle is empty")
        finally:
            journal.note("cleaned up", request)

    return StreamingHttpResponse(parts())


def odd_parts(request: HttpRequest) -> StreamingHttpResponse:
    """Stream parts that are not bytes."""
    parts: list[Any] = ["t\xe9a ", 42, None, memoryview(b" view")]
    return StreamingHttpResponse(parts)


_ODD = {
    "GeneratorExit": GeneratorExit,
    "CancelledError": asyncio.CancelledError,
    "SystemExit": SystemExit,
    "KeyboardInterrupt": KeyboardInterrupt,
    "Panic": type("Panic", (BaseException,), {}),
}


async def odd_errors(
    request: HttpRequest, where: str, kind: str
) -> StreamingHttpResponse:
    """Raise errors that are not Exceptions, in the view or in its stream."""

    async def parts() -> AsyncIterator[bytes]:
        yield b"first part"
        raise _ODD[kind]("the odd kettle")

    def sync_parts() -> Iterator[bytes]:
        yield b"first part"
        raise _ODD[kind]("the odd kettle")

    if where == "view":
        raise _ODD[kind]("the odd kettle")
    return StreamingHttpResponse(sync_parts() if where == "sync" else parts())


def no_parts(request: HttpRequest) -> StreamingHttpResponse:
    """Stream something that is not iterable."""
    return StreamingHttpResponse(42)  # type: ignore[arg-type] # the mistake


def shrinking_file(request: HttpRequest) -> FileResponse:
    """Send a file that is truncated while it is sent."""
    name = Path(request.GET["path"])
    response = FileResponse(name.open("rb"))
    with name.open("r+b") as file:
        file.truncate(100_000)
    return response


def vanishing_file(request: HttpRequest) -> FileResponse:
    """Send a file that is deleted while it is sent."""
    name = Path(request.GET["path"])
    response = FileResponse(name.open("rb"))
    name.unlink()
    return response


@csrf_exempt
@stream_body
async def uninterested(request: HttpRequest) -> StreamingHttpResponse:
    """Answer without reading the body."""

    async def parts() -> AsyncIterator[bytes]:
        yield b"no, "
        yield b"thanks"

    return StreamingHttpResponse(parts())


async def unsendable(request: HttpRequest) -> HttpResponse:
    """Return an unsendable response: with a bad cookie, or one of two bad headers."""
    response = HttpResponse("body")
    if request.GET["what"] == "cookie":
        response.set_cookie("name", "\u0141\xf3d\u017a")
    elif request.GET["what"] == "length":
        response["Content-Length"] = "3"
    else:
        response["X-A"] = "a\0b"
    return response


def wrong_length(request: HttpRequest) -> StreamingHttpResponse:
    """Stream more, or less, than announced."""
    headers = {"Content-Length": request.GET["bytes"]}
    return StreamingHttpResponse([b"x" * 10] * 3, headers=headers)


async def pausing(request: HttpRequest) -> StreamingHttpResponse:
    """Stream 20 parts, with pauses; or fail in the middle of them."""

    async def parts() -> AsyncIterator[bytes]:
        for number in range(20):
            yield b"x" * 1000
            await trio.sleep(0.01)
            if number == int(request.GET.get("fail", -1)):
                raise LookupError("no more parts")

    headers = {"Content-Length": "20000"} if "length" in request.GET else {}
    return StreamingHttpResponse(parts(), headers=headers)


async def thread_flood(request: HttpRequest) -> StreamingHttpResponse:
    """Stream endlessly from the loop, holding a thread."""

    async def parts() -> AsyncIterator[bytes]:
        try:
            journal.note("entered", request)
            while True:
                yield bytes(100_000)
        finally:
            journal.note("cleaned up", request)

    await sync_to_async(str)()
    return StreamingHttpResponse(parts())

"""Views with large bodies; some send their time of start, to time the first byte."""

from __future__ import annotations

import csv
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING

from django.conf import settings
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.views.decorators.csrf import csrf_exempt

import trio_asgi

from .views import sleep_function

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from django.http import HttpRequest

    from trio_asgi import ASGIRequest

#: How many bytes a view reads at once.
BLOCK = 2**16


def _began() -> dict[str, str]:
    return {"X-Began": str(time.monotonic_ns())}


def download(_request: HttpRequest, name: str) -> FileResponse:
    """Send a file."""
    began = _began()
    file = (Path(settings.FILES) / name).open("rb")
    return FileResponse(file, headers=began)


class Echo:
    """A file for `csv.writer` that gives each line back."""

    def write(self, line: str) -> str:
        """Return the line."""
        return line


def rows(_request: HttpRequest, count: int) -> StreamingHttpResponse:
    """Send so many rows of CSV, made one by one."""
    began = _began()

    def lines() -> Iterator[str]:
        writer = csv.writer(Echo())
        yield writer.writerow(["number", "name", "price"])
        for number in range(1, count + 1):
            yield writer.writerow([number, "Sencha", 12.5])

    return StreamingHttpResponse(lines(), content_type="text/csv", headers=began)


@csrf_exempt
async def upload(request: HttpRequest) -> HttpResponse:
    """Read the body in blocks, as usual in Django, and answer with its size."""
    size = 0
    while block := request.read(BLOCK):
        size += len(block)
    return HttpResponse(str(size))


@csrf_exempt
@trio_asgi.stream_body
async def upload_stream(request: ASGIRequest) -> HttpResponse:
    """Read the body as it arrives, and answer with its size."""
    size = 0
    async for block in request.stream():
        size += len(block)
    return HttpResponse(str(size))


async def events(_request: HttpRequest, milliseconds: int) -> StreamingHttpResponse:
    """Send an event with its time in each period.

    The second event comes at a random time in the first period, so that streams that
    were opened together do not stay in step.
    """
    period = milliseconds / 1000
    sleep = sleep_function()

    async def stream() -> AsyncIterator[bytes]:
        due = time.monotonic() - random.uniform(0, period)  # noqa: S311 - no secret
        while True:
            yield b"data: %d\n\n" % time.monotonic_ns()
            due += period
            await sleep(max(0, due - time.monotonic()))

    return StreamingHttpResponse(stream(), content_type="text/event-stream")

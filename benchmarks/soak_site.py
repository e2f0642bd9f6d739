"""The site that `soak.py` serves: views of all kinds, and one that counts."""

# ruff: noqa: ARG001 - a view takes a request, used or not

from __future__ import annotations

import asyncio
import gc
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio
from django.conf import settings
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from obedient import usage

from trio_asgi import EventStream, asyncio_island, get_asgi_application

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from django.http import HttpRequest

settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    LOGGING={
        "version": 1,
        "disable_existing_loggers": False,  # uvicorn's
        "loggers": {"django": {"level": "CRITICAL"}},
    },
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    ROOT_URLCONF="soak_site",
    SECRET_KEY="only for this",  # noqa: S106
)
application = get_asgi_application()


async def hello(request: HttpRequest) -> HttpResponse:
    """Answer from two tasks."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep, 0)
        nursery.start_soon(trio.sleep, 0)
    return HttpResponse("async")


def query(request: HttpRequest) -> HttpResponse:
    """Ask the database, in a thread."""
    from django.db import connection  # noqa: PLC0415 - when the settings are there

    with connection.cursor() as cursor:
        cursor.execute("select 42")
        return HttpResponse(f"row {cursor.fetchone()[0]}")


async def body(request: HttpRequest) -> HttpResponse:
    """Return the size of the body."""
    return HttpResponse(f"{len(request.read())} bytes")


@asyncio_island
async def island(request: HttpRequest) -> HttpResponse:
    """Answer on asyncio."""
    await asyncio.sleep(0)
    return HttpResponse("island")


async def fail(request: HttpRequest) -> HttpResponse:
    """Fail."""
    raise LookupError("of the soak")


async def wait(request: HttpRequest) -> HttpResponse:
    """Wait for the client to leave."""
    await trio.sleep_forever()


async def _parts(request: HttpRequest) -> AsyncIterator[str]:
    for number in range(5):
        yield f"part {number}"
        await trio.lowlevel.checkpoint()
    if "endless" in request.GET:
        await trio.sleep_forever()


def _sync_parts(request: HttpRequest) -> Iterator[str]:
    for number in range(5):
        yield f"part {number}"
    while "endless" in request.GET:
        yield "another part"
        time.sleep(0.01)


async def stream(request: HttpRequest) -> StreamingHttpResponse:
    """Stream on Trio."""
    return StreamingHttpResponse(_parts(request))


def sync_stream(request: HttpRequest) -> StreamingHttpResponse:
    """Stream from a thread."""
    return StreamingHttpResponse(_sync_parts(request))


async def events(request: HttpRequest) -> EventStream:
    """Stream events."""
    return EventStream(_parts(request))


def _trio_tasks(task: Any) -> int:
    children = [child for n in task.child_nurseries for child in n.child_tasks]
    return 1 + sum(map(_trio_tasks, children))


@asyncio_island
async def _asyncio_tasks() -> int:
    return len(asyncio.all_tasks())


def _process() -> dict[str, int]:
    return {
        **usage(),
        "objects": len(gc.get_objects()),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
    }


async def state(request: HttpRequest) -> JsonResponse:
    """Return what the process has, with this request."""
    tasks = {
        "Trio tasks": _trio_tasks(trio.lowlevel.current_root_task()),
        "asyncio tasks": await _asyncio_tasks(),
    }
    return JsonResponse(_process() | tasks)


VIEWS = [hello, query, body, island, fail, wait, stream, sync_stream, events, state]
urlpatterns = [path(f"{view.__name__}/", view) for view in VIEWS]

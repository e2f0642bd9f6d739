"""Code that never ends, in every place that a shutdown must be able to leave."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import trio
from asgiref.sync import async_to_sync, sync_to_async
from django.http import HttpResponse, StreamingHttpResponse

from trio_asgi import asyncio_island

from . import journal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from django.http import HttpRequest


# The log must name these, so each has a different name.


def _hang(what: str) -> None:
    journal.write("entered", what)
    threading.Event().wait()


def sync_hangs() -> None:
    """Never return."""
    _hang("sync")


def other_sync_hangs() -> None:
    """Never return."""
    _hang("other-sync")


def trio_thread_hangs() -> None:
    """Never return."""
    _hang("trio-thread")


def nested_hangs() -> None:
    """Never return."""
    _hang("nested")


def asyncio_thread_hangs() -> None:
    """Never return."""
    _hang("asyncio-thread")


async def island_hangs() -> None:
    """Never return, despite any cancellation. asyncio."""
    journal.write("entered", "island")
    while True:
        await _sleep_through_cancellation()


async def _sleep_through_cancellation() -> None:
    try:
        await asyncio.sleep(1)
    except asyncio.CancelledError:
        journal.write("ignored", "island")


# How they are called


async def _in_sync_code() -> None:
    await sync_to_async(sync_hangs)()


async def _in_other_sync_code() -> None:
    await sync_to_async(other_sync_hangs, thread_sensitive=False)()


async def _in_trio_thread() -> None:
    await trio.to_thread.run_sync(trio_thread_hangs)


async def _in_async_code_of_sync_code() -> None:
    @async_to_sync
    async def inner() -> None:
        await trio.to_thread.run_sync(nested_hangs)

    await sync_to_async(inner, thread_sensitive=False)()


async def _in_island() -> None:
    await asyncio_island(island_hangs)()


async def _in_asyncio_thread() -> None:
    await asyncio_island(asyncio.to_thread)(asyncio_thread_hangs)


KINDS: dict[str, Callable[[], Awaitable[None]]] = {
    "sync": _in_sync_code,
    "other-sync": _in_other_sync_code,
    "trio-thread": _in_trio_thread,
    "nested": _in_async_code_of_sync_code,
    "island": _in_island,
    "asyncio-thread": _in_asyncio_thread,
}


# Where they are called


async def view(request: HttpRequest, kind: str) -> HttpResponse:
    """Hang in a view."""
    await KINDS[kind]()
    return HttpResponse()


async def stream(request: HttpRequest, kind: str) -> StreamingHttpResponse:
    """Hang in the clean-up of a stream."""

    async def items() -> AsyncIterator[bytes]:
        try:
            yield b"first"
            journal.write("streaming", kind)
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True) as scope:
                # Like code that wants to clean up, but not for ever.
                scope.deadline = trio.current_time() + 0.1
                await KINDS[kind]()

    return StreamingHttpResponse(items())


async def task(request: HttpRequest, kind: str) -> HttpResponse:
    """Hang in a task of `start_soon`."""
    from .asgi import lasting  # noqa: PLC0415 - which imports this

    lasting.start_soon(KINDS[kind])
    return HttpResponse()


async def lifespan_task(request: HttpRequest, kind: str) -> HttpResponse:
    """Hang in a nursery that `lifespan` has opened, in the program's thread."""
    from .asgi import lasting  # noqa: PLC0415 - which imports this

    lasting.context.run(lasting.nursery.start_soon, KINDS[kind])
    return HttpResponse()


async def system_task(request: HttpRequest, kind: str) -> HttpResponse:
    """Hang in a system task, whose sync code runs in the program's thread."""
    trio.lowlevel.spawn_system_task(KINDS[kind])
    return HttpResponse()


_tasks: list[asyncio.Task[Any]] = []


async def asyncio_task(request: HttpRequest, kind: str) -> HttpResponse:
    """Hang in an asyncio task that is never awaited."""

    async def start() -> None:
        run = {
            "island": island_hangs,
            "asyncio-thread": lambda: asyncio.to_thread(asyncio_thread_hangs),
            "sync": sync_to_async(sync_hangs),
        }[kind]
        _tasks.append(asyncio.get_running_loop().create_task(run()))

    await asyncio_island(start)()
    return HttpResponse()

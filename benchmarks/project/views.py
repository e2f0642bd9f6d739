"""The views: each does one thing; most exist in a sync and an async version."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import trio
from django.db import connection
from django.http import HttpResponse

from .models import Tea

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from django.http import HttpRequest


#: How long the slow views sleep, in seconds.
PAUSE = 0.05


class Gate:
    """Requests wait here until the driver opens it. Only the loop's thread uses it."""

    def __init__(self) -> None:
        #: How many requests are waiting.
        self.waiting = 0
        #: An event of the running loop, which the driver makes and sets.
        self.opened: Any = None


gate = Gate()


def sleep_function() -> Callable[[float], Awaitable[None]]:
    """Return that of the running loop."""
    return trio.sleep if trio.lowlevel.in_trio_task() else asyncio.sleep


def hello(_request: HttpRequest) -> HttpResponse:
    """Answer at once."""
    return HttpResponse("hello")


async def hello_async(_request: HttpRequest) -> HttpResponse:
    """Answer at once."""
    return HttpResponse("hello")


def slow(_request: HttpRequest) -> HttpResponse:
    """Block this thread for a while."""
    time.sleep(PAUSE)
    return HttpResponse("slept")


async def slow_async(_request: HttpRequest) -> HttpResponse:
    """Sleep for a while."""
    await sleep_function()(PAUSE)
    return HttpResponse("slept")


def user(request: HttpRequest) -> HttpResponse:
    """Read the user, from the database."""
    return HttpResponse(request.user.get_username())


async def user_async(request: HttpRequest) -> HttpResponse:
    """Read the user, from the database."""
    found = await request.auser()
    return HttpResponse(found.get_username())


def row(_request: HttpRequest) -> HttpResponse:
    """Read one row."""
    return HttpResponse(Tea.objects.get(pk=1).name)


async def row_async(_request: HttpRequest) -> HttpResponse:
    """Read one row."""
    tea = await Tea.objects.aget(pk=1)
    return HttpResponse(tea.name)


def backend(_request: HttpRequest) -> HttpResponse:
    """Answer with the PostgreSQL process at the other end of the connection."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (number,) = cursor.fetchone()
    return HttpResponse(str(number))


async def wait(_request: HttpRequest) -> HttpResponse:
    """Wait at the gate."""
    gate.waiting += 1
    try:
        await gate.opened.wait()
    finally:
        gate.waiting -= 1
    return HttpResponse("waited")

"""request_started and request_finished, and the thread of a request."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio
from asgiref.sync import sync_to_async
from django.core.cache import close_caches
from django.core.handlers.base import reset_urlconf
from django.core.signals import request_finished, request_started
from django.db import close_old_connections, connection
from django.db.backends.base.base import BaseDatabaseWrapper
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path

from support import application, http_scope, request, signal_log
from trio_asgi.request.signals import _DjangoReceivers
from trio_asgi.testing import ApplicationCommunicator
from trio_asgi.threads.current import current_pool

if TYPE_CHECKING:
    from collections.abc import Callable


def where(request: HttpRequest) -> HttpResponse:
    """Name the thread that this runs on."""
    return HttpResponse(threading.current_thread().name)


async def async_where(request: HttpRequest) -> HttpResponse:
    """Name the thread that sync code of this view runs on."""
    return await sync_to_async(where)(request)


class ThreadMiddleware:
    """A sync-only middleware that notes its thread on the way in and out."""

    threads: list[str]

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        self.threads.append(threading.current_thread().name)
        response = self.get_response(request)
        self.threads.append(threading.current_thread().name)
        return response


@pytest.mark.parametrize("view", [where, async_where])
async def test_all_sync_code_of_a_request_runs_on_one_thread(view: Any) -> None:
    """Signals, middleware and views share a thread, however they nest."""
    ThreadMiddleware.threads = []
    app = application(
        path("", view),
        middleware=[
            f"{__name__}.ThreadMiddleware",
            "django.middleware.common.CommonMiddleware",
        ],
    )
    with signal_log() as log:
        answer = await request(app)
    assert log.names == ["started", "finished"]
    names = {thread.name for thread in log.threads}
    assert names == {*ThreadMiddleware.threads, answer.body.decode()}
    assert len(names) == 1
    assert threading.current_thread().name not in names


async def test_request_started_carries_the_scope_and_both_their_sender() -> None:
    """The sender is the handler's class; request_started has the scope as well."""
    app = application(path("", where))
    with signal_log() as log:
        await request(app)
    (_, _, started), (_, _, finished) = log.calls
    assert started["sender"] is type(app)
    assert started["scope"]["path"] == "/"
    assert finished == {"sender": type(app)}


async def test_requests_at_the_same_time_run_on_threads_of_their_own() -> None:
    """Two sync views that wait for each other both answer."""
    barrier = threading.Barrier(2)

    def view(request: HttpRequest) -> HttpResponse:
        barrier.wait(10)
        return where(request)

    app = application(path("", view))
    names = []

    async def make_request() -> None:
        names.append((await request(app)).body)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(make_request)
        nursery.start_soon(make_request)
    assert len(set(names)) == 2


async def test_the_next_request_has_the_same_thread() -> None:
    """Threads, and Django's objects in them, are used again."""
    app = application(path("", where))
    names = {(await request(app)).body for _ in range(5)}
    assert len(names) == 1
    assert names.pop().startswith(b"trio-asgi-worker-")


async def test_djangos_receivers_of_the_start_work_without_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A request finds no queries of the last one; connections were looked at."""
    looks: list[str] = []
    look = BaseDatabaseWrapper.close_if_unusable_or_obsolete

    def note_and_look(self: BaseDatabaseWrapper) -> None:
        looks.append(self.alias)
        look(self)

    def query(request: HttpRequest) -> HttpResponse:
        found = len(connection.queries_log), len(looks)
        connection.queries_log.append({"sql": "SELECT 1", "time": "0"})
        looks.clear()
        return HttpResponse(repr(found))

    name = "close_if_unusable_or_obsolete"
    monkeypatch.setattr(BaseDatabaseWrapper, name, note_and_look)
    app = application(path("", query))
    assert (await request(app)).body == b"(0, 0)"
    # The end of the first request has looked once, and the start of the second.
    assert (await request(app)).body == b"(0, 2)"


async def test_async_receivers_run_in_the_request() -> None:
    """An async receiver of either signal is awaited, on the loop's thread."""
    seen = []

    async def receiver(**kwargs: Any) -> None:
        await trio.lowlevel.checkpoint()
        seen.append(threading.current_thread())

    app = application(path("", where))
    request_started.connect(receiver)
    request_finished.connect(receiver)
    try:
        await request(app)
    finally:
        request_started.disconnect(receiver)
        request_finished.disconnect(receiver)
    assert seen == [threading.current_thread()] * 2


async def test_what_a_receiver_leaves_in_the_context_reaches_the_view() -> None:
    """A context variable set by a receiver of request_started is seen by the view."""
    from contextvars import ContextVar  # noqa: PLC0415

    variable: ContextVar[str] = ContextVar("variable")

    def receiver(**kwargs: Any) -> None:
        variable.set("from the receiver")

    async def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(variable.get())

    app = application(path("", view))
    request_started.connect(receiver)
    try:
        answer = await request(app)
    finally:
        request_started.disconnect(receiver)
    assert answer.body == b"from the receiver"


async def test_the_end_comes_even_if_every_token_is_taken() -> None:
    """If a request's end gets no turn in time, its thread ends the request anyway."""
    finished = threading.Event()

    async def view(request: HttpRequest) -> HttpResponse:
        # From here on no sync code may start.
        await sync_to_async(int)()
        current_pool().queue.set_threads(0)
        return HttpResponse("whole")

    def receiver(**kwargs: Any) -> None:
        finished.set()

    with override_settings(TRIO_ASGI={"CLEANUP_SECONDS": 0.01}):
        app = application(path("", view), middleware=[])
        request_finished.connect(receiver)
        try:
            async with ApplicationCommunicator(app, http_scope()) as communicator:
                await communicator.send_input({"type": "http.request"})
                await communicator.receive_output()
                await communicator.receive_output()
                await communicator.wait()
            assert await trio.to_thread.run_sync(finished.wait, 10)
        finally:
            request_finished.disconnect(receiver)


def test_a_receiver_that_another_thread_connects_at_that_moment() -> None:
    """What is remembered is what was looked at, not what is there afterwards."""

    def late(**_: Any) -> None:
        """Do nothing."""

    class Keys(set[Any]):
        __hash__ = None

        def __ne__(self, other: object) -> bool:
            request_finished.connect(late)
            return set(self) != other

    alone = _DjangoReceivers(
        request_finished, close_caches, close_old_connections, reset_urlconf
    )
    alone._keys = Keys(alone._keys)
    try:
        assert alone.are_alone()
        assert not alone.are_alone()
    finally:
        request_finished.disconnect(late)

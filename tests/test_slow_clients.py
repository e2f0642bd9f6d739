"""A client that does not read: its request's resources are released after a second."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.signals import request_finished
from django.http import (
    FileResponse,
    HttpRequest,
    HttpResponse,
    StreamingHttpResponse,
)
from django.test import override_settings
from django.urls import path

from support import application, http_scope, request, signal_log
from thread_support import assert_at_rest
from trio_asgi.asgi.exchange import SEND_SECONDS
from trio_asgi.threads.current import current_pool

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from django.http import HttpResponseBase
    from trio.testing import MockClock

    from trio_asgi import ASGIHandler
    from trio_asgi.asgi.types import Message

View = Callable[..., Any]


@pytest.fixture
def settings_dict() -> Iterator[dict[str, Any]]:
    """Return this test's ``TRIO_ASGI``."""
    with override_settings(TRIO_ASGI={}):
        yield settings.TRIO_ASGI


class Client:
    """A client that takes the last message only when it is told to."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.blocked, self.reads = trio.Event(), trio.Event()
        self._requested = False

    async def receive(self) -> Message:
        """Give an empty body, and never leave."""
        if self._requested:
            await trio.sleep_forever()
        self._requested = True
        return {"type": "http.request"}

    async def send(self, message: Message) -> None:
        """Take all but the last message at once; like servers, ignore cancellation."""
        if message["type"] == "http.response.body":
            self.blocked.set()
            with trio.CancelScope(shield=True):
                await self.reads.wait()
        self.messages.append(message)

    async def request(self, app: ASGIHandler) -> None:
        """Make one request."""
        await app(http_scope(), self.receive, self.send)

    @asynccontextmanager
    async def blocks(self, app: ASGIHandler) -> AsyncIterator[trio.Nursery]:
        """Run a block while the client does not read."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.request, app)
            await self.blocked.wait()
            try:
                yield nursery
            finally:
                self.reads.set()


class Closer(HttpResponse):
    """A response with something to close, which records the closing thread."""

    closed_in: list[str]

    def close(self) -> None:
        """Close, and record it."""
        self.closed_in.append(threading.current_thread().name)
        super().close()


def sync_view(request: HttpRequest) -> HttpResponse:
    """Answer, with something to close."""
    Closer.closed_in = []
    return Closer("body")


async def async_view(request: HttpRequest) -> HttpResponse:
    """Answer after having used the thread."""
    return await sync_to_async(sync_view)(request)


def idle_threads() -> int:
    """Return how many threads are not leased."""
    return len(current_pool()._idle)


@pytest.mark.parametrize("view", [sync_view, async_view])
async def test_the_request_ends_early(autojump_clock: MockClock, view: View) -> None:
    """After a second it is closed, its end is signalled, and its thread is free."""
    client, app = Client(), application(path("", view))
    with signal_log() as log:
        async with client.blocks(app):
            assert log.names == ["started"]
            await trio.sleep(SEND_SECONDS * 0.9)
            assert log.names == ["started"]
            assert idle_threads() == 0
            await trio.sleep(SEND_SECONDS * 0.2)
            assert log.names == ["started", "finished"]
            assert len(log.threads) == len(Closer.closed_in) == 1
            assert idle_threads() == 1
        assert log.names == ["started", "finished"]
    assert [m["type"] for m in client.messages] == [
        "http.response.start",
        "http.response.body",
    ]
    assert len(Closer.closed_in) == 1


async def test_a_request_with_nothing_to_end_holds_no_thread(
    autojump_clock: MockClock,
) -> None:
    """If the thread has nothing left to do, it is released before anything is sent."""

    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse("body")

    client, app = Client(), application(path("", view))
    async with client.blocks(app):
        assert idle_threads() == 1


async def test_a_client_that_reads_in_time(autojump_clock: MockClock) -> None:
    """The order is the usual one: the response is sent, then the request ends."""
    client, app = Client(), application(path("", sync_view))
    with signal_log() as log:
        async with client.blocks(app):
            await trio.sleep(SEND_SECONDS * 0.9)
            client.reads.set()
            await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(SEND_SECONDS * 2)
        assert log.names == ["started", "finished"]


async def test_many_clients_that_do_not_read(autojump_clock: MockClock) -> None:
    """Each has its own second."""
    app = application(path("", sync_view))
    clients: Sequence[Client] = [Client() for _ in range(3)]
    with signal_log() as log:
        async with AsyncExitStack() as stack:
            for client in clients:
                await stack.enter_async_context(client.blocks(app))
                await trio.sleep(SEND_SECONDS * 0.4)
            # 1.2, 0.8 and 0.4 seconds ago
            assert log.names.count("finished") == 1
            clients[1].reads.set()
            await trio.sleep(SEND_SECONDS * 0.4)
            assert log.names.count("finished") == 2
            await trio.sleep(SEND_SECONDS * 0.4)
            assert log.names.count("finished") == 3
            assert idle_threads() == len(current_pool().workers)


async def test_the_server_cancels_while_the_request_ends_early(
    autojump_clock: MockClock,
) -> None:
    """The early end is finished, once, and the cancellation goes on to its scope."""
    entered, go_on = trio.Event(), trio.Event()

    def slow_receiver(**_: Any) -> None:
        trio.from_thread.run_sync(entered.set)
        trio.from_thread.run(wait_shielded)

    async def wait_shielded() -> None:
        with trio.CancelScope(shield=True):
            await go_on.wait()

    client, app = Client(), application(path("", sync_view))
    with signal_log() as log:
        request_finished.connect(slow_receiver)
        try:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(client.request, app)
                    await entered.wait()
                    scope.cancel()
                    client.reads.set()
                    go_on.set()
        finally:
            request_finished.disconnect(slow_receiver)
        assert log.names == ["started", "finished"]
    assert idle_threads() == 1


async def test_an_early_end_that_fails(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Its error is logged; the response goes on."""

    def fail(**_: Any) -> None:
        raise ValueError("no end")

    client, app = Client(), application(path("", sync_view))
    request_finished.connect(fail)
    try:
        async with client.blocks(app):
            await trio.sleep(SEND_SECONDS * 2)
            assert "Error at the end of a request: /" in caplog.text
    finally:
        request_finished.disconnect(fail)
    assert len(client.messages) == 2
    errors = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert len(errors) == 1


async def test_a_stream_is_not_ended_early(autojump_clock: MockClock) -> None:
    """The source of a stream's parts is needed until the last one is sent."""

    def parts() -> Iterator[bytes]:
        yield b"part"

    def view(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(parts())

    client, app = Client(), application(path("", view))
    with signal_log() as log:
        async with client.blocks(app):
            await trio.sleep(SEND_SECONDS * 10)
            assert log.names == ["started"]
        assert log.names == ["started", "finished"]


# A client that takes nothing for too long


class Stuck(Client):
    """A client that takes no part; its server may or may not be cancellable."""

    def __init__(self, *, shielded: bool) -> None:
        super().__init__()
        self._shielded = shielded

    async def send(self, message: Message) -> None:
        """Take no body."""
        if message["type"] == "http.response.body":
            self.blocked.set()
            with trio.CancelScope(shield=self._shielded):
                await self.reads.wait()
        self.messages.append(message)


def sync_stream(request: HttpRequest) -> StreamingHttpResponse:
    """Stream from the request's thread, endlessly."""

    def parts() -> Iterator[bytes]:
        try:
            while True:
                yield b"x" * 100_000
        finally:
            Closer.closed_in.append(threading.current_thread().name)

    Closer.closed_in = []
    return StreamingHttpResponse(parts())


async def async_stream(request: HttpRequest) -> StreamingHttpResponse:
    """Stream endlessly, after having used the thread."""

    async def parts() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 100_000
        finally:
            Closer.closed_in.append(threading.current_thread().name)

    Closer.closed_in = []
    await sync_to_async(threading.current_thread)()
    return StreamingHttpResponse(parts())


@pytest.mark.parametrize("shielded", [False, True])
@pytest.mark.parametrize("view", [sync_view, async_view, sync_stream, async_stream])
async def test_nothing_waits_for_ever_for_a_client(
    autojump_clock: MockClock, view: View, shielded: bool
) -> None:
    """After 10 minutes, and a quarter more, all is closed and the thread is free.

    Even if the server's sending cannot be cancelled: then only that still waits.
    """
    client, app = Stuck(shielded=shielded), application(path("", view))
    with signal_log() as log:
        async with client.blocks(app):
            await trio.sleep(599)
            assert len(log.names) == (2 if view in (sync_view, async_view) else 1)
            await trio.sleep(155)
            assert log.names == ["started", "finished"]
            assert len(Closer.closed_in) == 1
            assert_at_rest(current_pool())
            assert bool(client.reads.statistics().tasks_waiting) == shielded
        assert log.names == ["started", "finished"]
    assert len(Closer.closed_in) == 1
    assert len(client.messages) == 1 + shielded


async def test_a_client_that_takes_something_in_time(
    autojump_clock: MockClock,
) -> None:
    """Each message has its own 10 minutes."""

    class Slow(Client):
        async def send(self, message: Message) -> None:
            await trio.sleep(599)
            self.messages.append(message)

    async def view(request: HttpRequest) -> StreamingHttpResponse:
        async def parts() -> AsyncIterator[bytes]:
            for _ in range(5):
                yield b"part"

        return StreamingHttpResponse(parts())

    client = Slow()
    await client.request(application(path("", view)))
    assert [m.get("body") for m in client.messages] == [None, *[b"part"] * 5, None]


async def test_no_deadline(
    autojump_clock: MockClock, settings_dict: dict[str, Any]
) -> None:
    """None means no limit."""
    settings_dict["SEND_TIMEOUT"] = None
    client, app = Client(), application(path("", sync_stream))
    with signal_log() as log:
        async with client.blocks(app) as nursery:
            await trio.sleep(80_000)
            assert log.names == ["started"]
            nursery.cancel_scope.cancel()


# The cost of a client that does not read


@pytest.mark.parametrize("view", ["buffered", "stream", "file"])
async def test_a_message_is_small_until_the_client_has_read_much(
    tmp_path: Path, view: str
) -> None:
    """The few megabytes that both systems buffer do not justify a large message."""
    size = 2**26
    file = tmp_path / "file"
    with file.open("wb") as empty:
        empty.truncate(size)
    content = bytes(size)

    def respond(request: HttpRequest) -> HttpResponseBase:
        if view == "file":
            return FileResponse(file.open("rb"))
        if view == "buffered":
            return HttpResponse(content)
        return StreamingHttpResponse(bytes(2**16) for _ in range(size // 2**16))

    answer = await request(application(path("", respond), middleware=()))
    sizes = [len(part) for part in answer.parts]
    assert sum(sizes) == size
    taken = 0
    for part in sizes:
        assert part <= max(2**18, taken // 16)
        taken += part
    if view != "stream":
        assert max(sizes) > 2**19

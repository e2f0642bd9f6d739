"""`trio_asgi.testing`: where a test's sync code runs, and scopes."""

from __future__ import annotations

import contextvars
import threading
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import pytest
import trio
from asgiref.sync import async_to_sync, sync_to_async
from django.core.signals import request_finished, request_started
from django.db import connection, transaction
from django.http import HttpResponse
from django.urls import path
from trio.testing import MockClock

import trio_asgi
from support import application, request
from trio_asgi import ASGIHandler
from trio_asgi.testing import (
    ApplicationCommunicator,
    http_scope,
    lifespan,
    run,
    sync_context,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from django.http import HttpRequest

current_thread = threading.current_thread

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")


class Threads:
    """An application that notes in which threads its sync code runs."""

    def __init__(self) -> None:
        self.of_code: list[threading.Thread] = []
        self.app = application(path("sync/", self.sync_view), path("", self.view))

    def note(self, **_: Any) -> None:
        """Note the running thread."""
        self.of_code.append(current_thread())

    async def view(self, request: HttpRequest) -> HttpResponse:
        """Note the thread of an async view's sync code, and of other code."""
        await sync_to_async(self.note)()
        return HttpResponse()

    def sync_view(self, request: HttpRequest) -> HttpResponse:
        """Note the thread of a sync view."""
        self.note()
        return HttpResponse()

    @contextmanager
    def of_signals(self) -> Iterator[None]:
        """Note the threads of the signals too."""
        request_started.connect(self.note)
        request_finished.connect(self.note)
        try:
            yield
        finally:
            request_started.disconnect(self.note)
            request_finished.disconnect(self.note)


def test_run_leaves_its_thread_to_sync_code() -> None:
    """Trio runs in another thread; sync code of all kinds runs in the caller's."""
    threads = Threads()

    async def main(*args: str) -> tuple[threading.Thread, tuple[str, ...]]:
        await sync_to_async(threads.note)()
        for url in ("/", "/sync/"):
            assert (await request(threads.app, url)).status == 200
        async with ApplicationCommunicator(threads.app, {"type": "lifespan"}) as server:
            await server.send_input({"type": "lifespan.startup"})
            await server.receive_output()
            threads.app.start_soon(sync_to_async(threads.note))
            await server.send_input({"type": "lifespan.shutdown"})
            await server.receive_output()
        return current_thread(), args

    with threads.of_signals():
        thread, args = run(main, "a", "b")
    assert thread is not current_thread()
    assert args == ("a", "b")
    # The test's, then each request's start, view and end, then start_soon's.
    assert threads.of_code == [current_thread()] * 8


def test_insensitive_code_runs_elsewhere() -> None:
    """Thread-insensitive code does not run in the caller's thread."""

    async def main() -> threading.Thread:
        return await sync_to_async(current_thread, thread_sensitive=False)()

    assert run(main) is not current_thread()


async def test_requests_have_threads_of_their_own_elsewhere() -> None:
    """Under `trio.run` the communicator's requests run as under a server."""
    threads = Threads()
    program = await sync_to_async(current_thread)()
    await request(threads.app)
    assert {*threads.of_code}.isdisjoint({program, current_thread()})


@pytest.mark.parametrize("in_transaction", [False, True])
def test_requests_below_async_to_sync(in_transaction: bool) -> None:
    """They run in the calling thread if that is in a transaction, as in `TestCase`."""
    threads = Threads()
    trio_asgi.install_bridge(async_to_sync_backend="trio")
    try:
        with transaction.atomic() if in_transaction else nullcontext():
            async_to_sync(request)(threads.app)
    finally:
        trio_asgi.install_bridge(async_to_sync_backend="asyncio")
        connection.close()
    assert (threads.of_code == [current_thread()]) is in_transaction
    assert (current_thread() in threads.of_code) is in_transaction


def test_a_request_does_not_wait_for_the_code_that_waits_for_it() -> None:
    """While the calling thread is busy, requests have their own threads."""
    threads = Threads()

    async def main() -> None:
        await sync_to_async(async_to_sync(request))(threads.app)

    trio_asgi.install_bridge(async_to_sync_backend="trio")
    try:
        with transaction.atomic():
            async_to_sync(main)()
    finally:
        trio_asgi.install_bridge(async_to_sync_backend="asyncio")
        connection.close()
    assert current_thread() not in threads.of_code


def test_run_takes_trios_options() -> None:
    """The options of `trio.run` are passed on; context variables are visible."""
    variable.set("outside")

    async def main() -> str:
        await trio.sleep(3600)
        return variable.get()

    assert run(main, clock=MockClock(autojump_threshold=0)) == "outside"


def test_run_raises_what_is_raised() -> None:
    """An error is raised unchanged."""

    async def main() -> None:
        raise ValueError("seen")

    with pytest.raises(ValueError, match="seen"):
        run(main)


async def test_run_in_a_task() -> None:
    """A Trio task gets an error that forbids another run."""

    async def main() -> None:
        raise AssertionError

    with pytest.raises(RuntimeError, match=r"called in a Trio task.*Just await"):
        run(main)


class Recorder:
    """A sync context manager that notes what happens, and where."""

    def __init__(self, *, swallows: bool = False) -> None:
        self.swallows = swallows
        self.threads: list[threading.Thread] = []
        self.errors: list[type[BaseException] | None] = []

    @contextmanager
    def __call__(self, value: str) -> Iterator[str]:
        """Enter it, and return a value."""
        self.threads.append(current_thread())
        variable.set(value)
        try:
            yield value
        except BaseException as error:
            self.errors.append(type(error))
            if not self.swallows:
                raise
        finally:
            self.threads.append(current_thread())


async def test_sync_context() -> None:
    """A context manager is entered and exited where sync code runs."""
    recorder = Recorder()
    async with sync_context(recorder, value="inside") as value:
        assert value == variable.get() == "inside"
    thread = await sync_to_async(current_thread)()
    assert recorder.threads == [thread, thread]


async def test_sync_context_with_an_error() -> None:
    """An error is passed to the context manager, which may swallow it."""
    recorder = Recorder()
    with pytest.raises(ValueError, match="seen"):
        async with sync_context(recorder, "inside"):
            raise ValueError("seen")
    assert recorder.errors == [ValueError]
    async with sync_context(Recorder(swallows=True), "inside"):
        raise ValueError("swallowed")


async def test_sync_context_that_cannot_be_entered() -> None:
    """An error at the start keeps the body from running."""

    def make() -> Recorder:
        raise ValueError("seen")

    with pytest.raises(ValueError, match="seen"):
        async with sync_context(make):  # type: ignore[arg-type] # it returns nothing
            raise AssertionError


async def test_sync_context_is_left_when_cancelled() -> None:
    """The context manager is exited despite a cancellation."""
    recorder = Recorder()
    with trio.CancelScope() as scope:
        async with sync_context(recorder, "inside"):
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert recorder.errors == [trio.Cancelled]
    with trio.CancelScope() as scope:
        async with sync_context(recorder, "inside"):
            scope.cancel()
    assert len(recorder.threads) == 4


def test_http_scope() -> None:
    """A scope is that of a plain GET, with the given values."""
    scope = http_scope()
    assert (scope["type"], scope["method"], scope["path"]) == ("http", "GET", "/")
    assert scope["query_string"] == b""
    assert scope["headers"] == [(b"host", b"testserver")]
    scope = http_scope(
        "/a%20b/é/?c=d e&f=%2F",
        method="POST",
        headers={"X-Colour": "blue", "Host": "example.com"},
        client=("192.0.2.1", 1),
    )
    assert scope["path"] == "/a b/é/"
    assert scope["raw_path"] == b"/a%20b/%C3%A9/"
    assert scope["query_string"] == b"c=d%20e&f=%2F"
    assert scope["method"] == "POST"
    assert scope["headers"] == [(b"host", b"example.com"), (b"x-colour", b"blue")]
    assert scope["client"] == ("192.0.2.1", 1)


# lifespan


@pytest.mark.parametrize("phase", ["startup", "shutdown"])
async def test_a_lifespan_that_fails(phase: str) -> None:
    """The error names the phase, and the application's error."""

    class Handler(ASGIHandler):
        @asynccontextmanager
        async def lifespan(self) -> AsyncIterator[None]:
            if phase == "startup":
                raise LookupError("no kettle")
            yield
            raise LookupError("no kettle")

    ran = False
    with pytest.raises(RuntimeError, match=f"The {phase} failed: LookupError: no ket"):
        async with lifespan(Handler()):
            ran = True
    assert ran is (phase == "shutdown")

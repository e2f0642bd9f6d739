"""Errors of any class end the request, and nothing else."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
import weakref
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import trio
import trio.testing
from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from django.core.signals import request_finished, request_started
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import override_settings
from django.urls import path
from django.utils.decorators import async_only_middleware
from django.utils.deprecation import MiddlewareMixin

from hop_support import path_of
from support import (
    application,
    bare_request,
    frees_at_once,
    http_scope,
    request,
    signal_log,
)
from trio_asgi import ASGIHandler, ASGIRequest, EventStream, asyncio_island
from trio_asgi.testing import ApplicationCommunicator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from typing import IO

    from trio_asgi.asgi.types import Scope

pytestmark = pytest.mark.usefixtures("watching_at_once")

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup


class Panic(BaseException):
    """Like a library's error that is no Exception, such as pyo3's PanicException."""


class Kept:
    """A cancellation that has ended its scope, kept to be raised again."""

    error: trio.Cancelled

    @classmethod
    async def make(cls) -> None:
        """Keep one."""
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as error:
                cls.error = error
                raise


ODD: dict[str, Callable[[], BaseException]] = {
    "StopIteration": StopIteration,
    "StopAsyncIteration": StopAsyncIteration,
    "GeneratorExit": GeneratorExit,
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "CancelledError": asyncio.CancelledError,
    "Panic": Panic,
    "group": lambda: BaseExceptionGroup("two", [Panic(), ValueError()]),
    "kept": lambda: Kept.error,
}


@pytest.fixture(params=ODD, name="odd")
def make_odd(request: pytest.FixtureRequest) -> str:
    """Name the errors that are not ordinary."""
    odd: str = request.param
    return odd


@pytest.fixture(name="fail")
async def make_fail(odd: str) -> Callable[..., NoReturn]:
    """Return a function that raises it."""
    await Kept.make()

    def fail(*_: object, **__: object) -> NoReturn:
        error = ODD[odd]()
        raise error

    return fail


# Before the response has started


def places(fail: Callable[..., NoReturn]) -> dict[str, Any]:
    """Return views that fail, each in a different place."""

    def sync_view(request: HttpRequest) -> NoReturn:
        fail()

    async def async_view(request: HttpRequest) -> NoReturn:
        fail()

    async def after_checkpoint(request: HttpRequest) -> NoReturn:
        await trio.lowlevel.checkpoint()
        fail()

    async def in_nursery(request: HttpRequest) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(async_view, request)
            nursery.start_soon(trio.sleep_forever)

    async def calls_sync(request: HttpRequest) -> None:
        await sync_to_async(fail)()

    def calls_async(request: HttpRequest) -> None:
        async_to_sync(async_view)(request)

    async def island(request: HttpRequest) -> None:
        await asyncio_island(async_view)(request)

    def renders(request: HttpRequest) -> HttpResponse:
        response = HttpResponse()
        response.render = fail  # type: ignore[attr-defined]
        return response

    views = (
        sync_view,
        async_view,
        after_checkpoint,
        in_nursery,
        calls_sync,
        calls_async,
        island,
        renders,
    )
    return {view.__name__: view for view in views}


async def assert_answered(app: ASGIHandler, caplog: pytest.LogCaptureFixture) -> None:
    """Check that a request is answered 500, and logged once, and the next one works."""
    with signal_log() as log:
        answer = await request(app)
    assert answer.status == 500
    assert answer.is_complete
    (record,) = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert record.name == "django.request"
    assert record.exc_info is not None
    assert log.names == ["started", "finished"]


@pytest.mark.parametrize("place", places(NotImplemented))
async def test_a_view_that_raises_anything_is_answered(
    place: str, fail: Callable[..., NoReturn], caplog: pytest.LogCaptureFixture
) -> None:
    """A 500, whatever the error's class, and wherever it is raised below the view."""
    await assert_answered(application(path("", places(fail)[place])), caplog)


@pytest.mark.parametrize("hook", ["process_request", "process_response", "call"])
@pytest.mark.parametrize("loop", [False, True])
async def test_middleware_that_raises_anything_is_answered(
    hook: str,
    loop: bool,
    fail: Callable[..., NoReturn],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """So is an error in a hook, on the loop or in the thread, or outside hooks."""

    class Hooks(MiddlewareMixin):
        loop_safe_hooks = (hook,) if loop else ()

    class Call:
        sync_capable, async_capable = not loop, loop

        def __init__(self, get_response: Any) -> None:
            """Call nothing further in."""

        __call__ = fail

    middleware: Any = Call
    if hook != "call":
        setattr(Hooks, hook, fail)
        middleware = Hooks
    elif loop:

        @async_only_middleware
        def middleware(get_response: Any) -> Any:
            async def call(request: HttpRequest) -> NoReturn:
                fail()

            return call

    async def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    app = application(path("", view), middleware=[path_of(middleware)])
    await assert_answered(app, caplog)


async def test_a_request_that_cannot_be_made_is_answered(
    fail: Callable[..., NoReturn], caplog: pytest.LogCaptureFixture
) -> None:
    """So is an error of a ``request_class``."""

    class Request(ASGIRequest):
        def __init__(self, scope: Scope, body_file: IO[bytes]) -> None:
            """Fail."""
            fail()

    class Handler(ASGIHandler):
        request_class = Request

    await assert_answered(Handler(), caplog)


async def test_a_body_that_cannot_be_read_is_answered(
    fail: Callable[..., NoReturn], caplog: pytest.LogCaptureFixture
) -> None:
    """So is an error in `read_body`, for example a full disk."""

    class Handler(ASGIHandler):
        async def read_body(self, receive: object) -> NoReturn:
            fail()

    await assert_answered(application(handler=Handler), caplog)


@contextmanager
def receiving(sent: Any, receiver: Any) -> Iterator[None]:
    """Connect a receiver to a signal."""
    sent.connect(receiver)
    try:
        yield
    finally:
        sent.disconnect(receiver)


async def test_a_receiver_that_raises_anything_is_answered(
    fail: Callable[..., NoReturn], caplog: pytest.LogCaptureFixture
) -> None:
    """So is an error of a receiver of ``request_started``."""
    with receiving(request_started, fail):
        answer = await request(application())
    assert answer.status == 500
    assert "Internal Server Error" in caplog.text


@pytest.mark.parametrize("kind", ["too large", "lost"])
async def test_a_receiver_fails_for_a_refused_body(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A body is refused, and a receiver fails: the client is answered anyway."""

    class Handler(ASGIHandler):
        async def read_body(self, receive: Any) -> IO[bytes]:
            if kind == "lost":
                raise OSError("no space left on device")
            return await super().read_body(receive)

    def fail(**_: object) -> NoReturn:
        raise LookupError("in a receiver")

    with (
        receiving(request_started, fail),
        override_settings(TRIO_ASGI={"MAX_BODY_SIZE": 3}),
    ):
        length = (b"content-length", b"4")
        answer = await request(
            application(handler=Handler), method="POST", headers=[length], body=b"four"
        )
    assert answer.status == 500
    assert "in a receiver" in caplog.text


# Afterwards


async def fail_in_response(app: ASGIHandler) -> tuple[Exception, bytes, bool]:
    """Return the server's error, the parts before it, and whether the body ended."""
    parts, is_whole = [], False
    with signal_log() as log:
        communicator = ApplicationCommunicator(app, http_scope())
        await communicator.send_input({"type": "http.request"})
        with pytest.raises(Exception) as caught:
            await communicator.wait()
        while not await communicator.receive_nothing():
            message = await communicator.receive_output()
            parts.append(message.get("body", b""))
            is_whole = not message.get("more_body", True)
    assert log.names == ["started", "finished"]
    assert isinstance(caught.value, Exception)
    return caught.value, b"".join(parts), is_whole


def streams(fail: Callable[..., NoReturn]) -> dict[str, Callable[[], Any]]:
    """Return functions that make responses that fail after their first part."""

    def parts() -> Iterator[str]:
        yield "data: first\n\n"
        fail()

    async def async_parts() -> AsyncIterator[str]:
        yield "data: first\n\n"
        fail()

    class Parts:
        count = 0

        def __aiter__(self) -> Parts:
            return self

        async def __anext__(self) -> str:
            self.count += 1
            return "data: first\n\n" if self.count == 1 else fail()

    @asynccontextmanager
    async def manager() -> AsyncIterator[AsyncIterator[str]]:
        async with trio.open_nursery():
            yield async_parts()

    return {
        "sync": lambda: StreamingHttpResponse(parts()),
        "async": lambda: StreamingHttpResponse(async_parts()),
        "iterator": lambda: StreamingHttpResponse(Parts()),
        "events": lambda: EventStream(async_parts()),
        "manager": lambda: EventStream(manager()),
    }


@pytest.mark.parametrize(
    ("kind", "island", "odd"),
    [
        (kind, island, odd)
        for kind in streams(NotImplemented)
        for island in (False, True)
        for odd in ODD
        # A nursery is Trio's.
        if not (kind == "manager" and island)
        # So an iterator says that it has ended.
        and not (kind == "iterator" and odd == "StopAsyncIteration")
        # It may be from a scope of the stream's, which has ended.
        and odd != "kept"
    ],
)
async def test_a_stream_that_raises_anything_ends_the_response(
    kind: str, island: bool, odd: str, fail: Callable[..., NoReturn]
) -> None:
    """The client gets the parts before, and no clean end; the server an Exception."""

    async def view(request: HttpRequest) -> StreamingHttpResponse:
        response: StreamingHttpResponse = streams(fail)[kind]()
        return response

    view = asyncio_island(view) if island else view
    error, body, is_whole = await fail_in_response(application(path("", view)))
    assert b"data: first" in body
    assert not is_whole
    assert not isinstance(error, BaseExceptionGroup)


@pytest.mark.parametrize("where", ["close", "receiver", "aclose"])
async def test_an_end_that_raises_anything_is_told_to_the_server(
    where: str, fail: Callable[..., NoReturn]
) -> None:
    """The response is complete by then; the server gets an Exception."""

    class Response(HttpResponse):
        def close(self) -> None:
            """Close, and fail."""
            super().close()
            if where == "close":
                fail()

    class Parts:
        def __aiter__(self) -> Parts:
            return self

        async def __anext__(self) -> bytes:
            raise StopAsyncIteration

        async def aclose(self) -> None:
            fail()

    async def view(request: HttpRequest) -> Any:
        if where == "aclose":
            return StreamingHttpResponse(Parts())
        if where == "receiver":
            request_finished.connect(fail)
        return Response("whole")

    try:
        _, body, is_whole = await fail_in_response(application(path("", view)))
    finally:
        request_finished.disconnect(fail)
    assert (body, is_whole) == (b"", False) if where == "aclose" else (b"whole", True)


async def test_a_closer_that_raises_anything_keeps_nothing_open(
    fail: Callable[..., NoReturn],
) -> None:
    """Those after it are called, and ``request_finished`` is sent."""
    closed: list[str] = []

    def view(request: HttpRequest) -> HttpResponse:
        response = HttpResponse()
        closers: list[Any] = [fail, lambda: closed.append("file")]
        response._resource_closers.extend(closers)  # type: ignore[attr-defined]
        return response

    with signal_log() as log:
        assert (await request(application(path("", view)))).status == 200
    assert closed == ["file"]
    assert log.names == ["started", "finished"]


# What goes on


async def test_a_background_task_that_raises_anything_harms_no_other(
    fail: Callable[..., NoReturn], caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and another task, and the lifespan, go on."""
    app = ASGIHandler()
    done: list[str] = []

    async def other() -> None:
        await trio.testing.wait_all_tasks_blocked()
        done.append("other")

    async def failing() -> None:
        await trio.lowlevel.checkpoint()
        fail()

    async with ApplicationCommunicator(app, {"type": "lifespan"}) as server:
        await server.send_input({"type": "lifespan.startup"})
        await server.receive_output()
        app.start_soon(failing)
        app.start_soon(other)
        await server.send_input({"type": "lifespan.shutdown"})
        assert (await server.receive_output())["type"] == "lifespan.shutdown.complete"
    assert done == ["other"]
    (record,) = caplog.records
    assert record.message.startswith("A background task failed: ")


async def test_errors_beside_the_cancellation_of_a_background_task(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At shutdown a task can fail while it is cancelled: that is only logged."""

    class Handler(ASGIHandler):
        pass

    async def failing() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("in clean-up")

    with override_settings(TRIO_ASGI={"SHUTDOWN_SECONDS": 0}):
        app = Handler()
        async with ApplicationCommunicator(app, {"type": "lifespan"}) as server:
            await server.send_input({"type": "lifespan.startup"})
            await server.receive_output()
            app.start_soon(failing)
            await trio.testing.wait_all_tasks_blocked()
            await server.send_input({"type": "lifespan.shutdown"})
            last = await server.receive_output()
    assert last["type"] == "lifespan.shutdown.complete"
    (record,) = caplog.records
    assert "in clean-up" in str(record.exc_info)


@pytest.mark.parametrize("phase", ["startup", "shutdown"])
async def test_a_lifespan_that_raises_anything_has_failed(
    phase: str, fail: Callable[..., NoReturn], caplog: pytest.LogCaptureFixture
) -> None:
    """The server is told so, by the ASGI message."""

    class Handler(ASGIHandler):
        @asynccontextmanager
        async def lifespan(self) -> AsyncIterator[None]:
            """Fail."""
            if phase == "startup":
                fail()
            yield
            fail()

    async with ApplicationCommunicator(Handler(), {"type": "lifespan"}) as server:
        await server.send_input({"type": "lifespan.startup"})
        await server.send_input({"type": "lifespan.shutdown"})
        if phase == "shutdown":
            await server.receive_output()
        assert (await server.receive_output())["type"] == f"lifespan.{phase}.failed"
    assert f"The application's {phase} failed" in caplog.text


# Errors that must pass


def press_ctrl_c(*_: object) -> None:
    """Let this very code be interrupted."""
    signal.raise_signal(signal.SIGINT)


def end_by_signal(*_: object) -> None:
    """Send a signal to a handler that ends the program."""
    signal.raise_signal(signal.SIGTERM)


@pytest.fixture(params=[press_ctrl_c, end_by_signal], name="interrupt")
def make_interrupt(request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """Return a function that ends the program by a signal."""

    def leave(*_: object) -> NoReturn:
        raise SystemExit(3)

    # The tests may have been started in the background, with SIGINT ignored.
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: leave}
    outer = {number: signal.signal(number, new) for number, new in handlers.items()}
    try:
        yield request.param
    finally:
        for number, handler in outer.items():
            signal.signal(number, handler)


def assert_ends_the_program(error: BaseException) -> None:
    """Check that the error is the signal handler's, in a group or not."""
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, (KeyboardInterrupt, SystemExit))


@pytest.mark.parametrize("where", ["async_view", "in_nursery", "async", "events"])
async def test_a_signal_ends_the_program(
    where: str, interrupt: Callable[..., Any]
) -> None:
    """An error of a signal's handler in a request's code is not that code's error."""

    async def view(request: HttpRequest) -> Any:
        if where in streams(interrupt):
            return streams(interrupt)[where]()
        return await places(interrupt)[where](request)

    app = application(path("", view))
    with pytest.raises(BaseException) as caught:
        await bare_request(app.handle)
    assert_ends_the_program(caught.value)


# Memory


class Thing:
    """An object that a cycle would keep."""


def failing() -> dict[str, Callable[[Thing], Any]]:
    """Return functions that fail."""

    def fail(thing: Thing) -> NoReturn:
        raise ValueError

    async def afail(thing: Thing) -> NoReturn:
        await trio.lowlevel.checkpoint()
        raise ValueError

    async def several(thing: Thing) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(afail, thing)
            nursery.start_soon(afail, thing)

    async def one(thing: Thing) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(afail, thing)
            nursery.start_soon(trio.sleep_forever)

    async def odd(thing: Thing) -> NoReturn:
        raise Panic

    async def cancelled(thing: Thing) -> NoReturn:
        raise asyncio.CancelledError

    return {
        "sync": fail,
        "async": afail,
        "nursery": one,
        "several": several,
        "odd": odd,
        "cancelled": cancelled,
        "sync_to_async": sync_to_async(fail),
        "async_to_sync": async_to_sync(one),
    }


@pytest.mark.parametrize("kind", failing())
@frees_at_once
async def test_a_view_that_fails_leaves_nothing_in_memory(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error, and everything that this refers to, are freed with the request."""
    logging.getLogger("django.request").addFilter(drop := lambda _: False)
    # As in the other test: asgiref's Local leaves a cycle on Python 3.10.
    monkeypatch.setattr(request_finished, "receivers", [])
    refs: list[weakref.ref[Thing]] = []
    fn = failing()[kind]

    def new() -> Thing:
        thing = Thing()
        refs.append(weakref.ref(thing))
        return thing

    def view(request: HttpRequest) -> None:
        fn(new())

    async def async_view(request: HttpRequest) -> None:
        await fn(new())

    failing_view: Any = async_view if iscoroutinefunction(fn) else view
    app = application(path("", failing_view))
    await request(app)
    gc.collect()
    gc.disable()
    try:
        assert (await request(app)).status == 500
        await trio.lowlevel.checkpoint()
        assert [ref() for ref in refs[1:]] == [None]
    finally:
        gc.enable()
        logging.getLogger("django.request").removeFilter(drop)


# Not a manager: Python's AsyncExitStack keeps a group, and what it comes from.
@pytest.mark.parametrize("kind", [k for k in streams(NotImplemented) if k != "manager"])
@pytest.mark.parametrize("error", [ValueError, Panic])
@frees_at_once
async def test_a_stream_that_fails_leaves_nothing_in_memory(
    kind: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the failed stream nor the response is kept."""
    monkeypatch.setattr(request_finished, "receivers", [])
    refs: list[weakref.ref[Any]] = []

    def fail() -> NoReturn:
        thing = Thing()
        refs.append(weakref.ref(thing))
        raise error

    async def view(request: HttpRequest) -> Any:
        response = streams(fail)[kind]()
        refs.append(weakref.ref(response))
        return response

    app = application(path("", view))

    async def serve() -> None:
        with suppress(Exception):
            await bare_request(app.handle)

    await serve()
    gc.collect()
    gc.disable()
    try:
        refs.clear()
        await serve()
        await trio.lowlevel.checkpoint()
        assert [ref() for ref in refs] == [None, None]
    finally:
        gc.enable()


@frees_at_once
async def test_a_view_that_fails_for_nobody_leaves_nothing_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor is the error of a view whose client has disconnected, which is logged."""
    monkeypatch.setattr(request_finished, "receivers", [])
    refs: list[weakref.ref[Any]] = []

    async def view(request: HttpRequest) -> NoReturn:
        thing = Thing()
        refs.append(weakref.ref(thing))
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError

    app = application(path("", view))
    logging.getLogger("django.request").addFilter(drop := lambda _: False)

    async def serve() -> None:
        messages = [{"type": "http.disconnect"}, {"type": "http.request"}]

        async def receive() -> Any:
            await trio.testing.wait_all_tasks_blocked()
            if not messages:
                await trio.sleep_forever()
            return messages.pop()

        await app.handle(http_scope(), receive, None)  # type: ignore[arg-type]

    await serve()
    gc.collect()
    gc.disable()
    try:
        refs.clear()
        await serve()
        await trio.lowlevel.checkpoint()
        assert [ref() for ref in refs] == [None]
    finally:
        gc.enable()
        logging.getLogger("django.request").removeFilter(drop)

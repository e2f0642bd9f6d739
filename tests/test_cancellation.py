"""The client disconnects, or the server cancels, at each point of a request.

Each test stops the request at one named point, and looks at what is left behind.
"""

from __future__ import annotations

import gc
import logging
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.lowlevel
import trio.testing
from asgiref.sync import async_to_sync, sync_to_async
from django.core.signals import request_finished
from django.http import FileResponse, HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import override_settings
from django.urls import path

from support import (
    SignalLog,
    application,
    http_scope,
    receive_answer,
    request,
    signal_log,
)
from thread_support import assert_at_rest
from trio_asgi import ASGIHandler
from trio_asgi.testing import ApplicationCommunicator
from trio_asgi.threads.current import current_pool
from trio_asgi.threads.lease import Lease

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from django.urls import URLPattern

    from trio_asgi.asgi.types import Message, Receive, Send

pytestmark = pytest.mark.usefixtures("watching_at_once")

DISCONNECT = {"type": "http.disconnect"}


@pytest.fixture
def log() -> Iterator[SignalLog]:
    """Record the signals of requests."""
    with signal_log() as log:
        yield log


def assert_ended(log: SignalLog, sender: type[ASGIHandler]) -> None:
    """Check that the end was signalled once, by the handler, off the loop."""
    assert log.names == ["started", "finished"]
    assert log.calls[1][2] == {"sender": sender}
    assert len(log.threads) == 1
    assert threading.current_thread() not in log.threads
    assert_at_rest(current_pool())


async def join_left_threads() -> None:
    """Wait for the abandoned threads; one may be handling a log record."""
    pool = current_pool()
    for worker in pool.workers - pool._idle.keys():
        await trio.to_thread.run_sync(worker.thread.join, 10)


class Point:
    """A place in a view, where the view waits and the test acts."""

    def __init__(self) -> None:
        self.reached = trio.Event()
        self.go_on = trio.Event()
        self.cancelled = False

    async def wait(self) -> None:
        """Wait here until told to go on."""
        self.reached.set()
        try:
            await self.go_on.wait()
        except trio.Cancelled:
            self.cancelled = True
            raise


def start(app: ASGIHandler, **scope: Any) -> ApplicationCommunicator:
    """Return a communicator for one request."""
    return ApplicationCommunicator(app, http_scope(**scope))


async def test_before_the_body_is_complete(log: SignalLog) -> None:
    """Nothing is sent, no request has started, and the body's file is closed."""
    files = []

    class Handler(ASGIHandler):
        async def read_body(self, receive: Receive) -> Any:
            import tempfile  # noqa: PLC0415

            real = tempfile.SpooledTemporaryFile

            def remember(*args: Any, **kwargs: Any) -> Any:
                files.append(file := real(*args, **kwargs))
                return file

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(tempfile, "SpooledTemporaryFile", remember)
                return await super().read_body(receive)

    communicator = start(application(handler=Handler), method="POST")
    part = {"type": "http.request", "body": b"half", "more_body": True}
    await communicator.send_input(part)
    await communicator.send_input(DISCONNECT)
    await communicator.wait()
    assert await communicator.receive_nothing()
    assert log.names == []
    assert [file.closed for file in files] == [True]


async def test_before_anything(log: SignalLog) -> None:
    """A disconnect as the first message ends the request without a trace."""
    communicator = start(application())
    await communicator.send_input(DISCONNECT)
    await communicator.wait()
    assert await communicator.receive_nothing()
    assert log.names == []


async def test_in_an_async_view(log: SignalLog) -> None:
    """The view is cancelled at its checkpoint, and nothing is sent."""
    point = Point()

    async def view(request: HttpRequest) -> HttpResponse:
        await point.wait()
        return HttpResponse()

    app = application(path("", view))
    communicator = start(app)
    await communicator.send_input({"type": "http.request"})
    await point.reached.wait()
    await communicator.send_input(DISCONNECT)
    await communicator.wait()
    assert point.cancelled
    assert await communicator.receive_nothing()
    assert_ended(log, type(app))


async def test_in_the_nursery_of_an_async_view(log: SignalLog) -> None:
    """All tasks of the view are cancelled, and the server gets no exception group."""
    points = [Point(), Point()]

    async def view(request: HttpRequest) -> HttpResponse:
        async with trio.open_nursery() as nursery:
            for point in points:
                nursery.start_soon(point.wait)
        return HttpResponse()

    app = application(path("", view))
    communicator = start(app)
    await communicator.send_input({"type": "http.request"})
    for point in points:
        await point.reached.wait()
    await communicator.send_input(DISCONNECT)
    await communicator.wait()
    assert [point.cancelled for point in points] == [True, True]
    assert_ended(log, type(app))


async def test_in_a_view_that_goes_on_without_a_checkpoint(log: SignalLog) -> None:
    """If a view finishes although it was cancelled, its response is closed."""
    closed = []

    def view(request: HttpRequest) -> HttpResponse:
        response = HttpResponse()
        response._resource_closers.append(lambda: closed.append(True))  # type: ignore[attr-defined]
        trio.from_thread.run(communicator.send_input, DISCONNECT)
        # The watcher takes the disconnect while this thread still runs.
        with pytest.raises(trio.Cancelled):
            while True:
                trio.from_thread.run(trio.lowlevel.checkpoint)
        return response

    app = application(path("", view))
    communicator = start(app)
    await communicator.send_input({"type": "http.request"})
    await communicator.wait()
    assert closed == [True]
    assert await communicator.receive_nothing()
    assert_ended(log, type(app))


async def test_in_a_sync_view(log: SignalLog) -> None:
    """It runs to its end, can check, can read the body, and its response is closed."""
    reached, go_on = trio.Event(), threading.Event()
    seen: dict[str, Any] = {}

    def view(request: HttpRequest) -> FileResponse:
        trio.from_thread.run_sync(reached.set)
        assert go_on.wait(10)
        with pytest.raises(trio.Cancelled):
            trio.from_thread.check_cancelled()
        seen["body"] = request.body
        seen["file"] = open(__file__, "rb")  # noqa: SIM115, PTH123
        return FileResponse(seen["file"])

    app = application(path("", view))
    communicator = start(app, method="POST")
    await communicator.send_input({"type": "http.request", "body": b"Body data!"})
    await reached.wait()
    await communicator.send_input(DISCONNECT)
    await trio.testing.wait_all_tasks_blocked()
    go_on.set()
    await communicator.wait()
    assert seen["body"] == b"Body data!"
    assert seen["file"].closed
    assert await communicator.receive_nothing()
    assert_ended(log, type(app))


async def test_with_the_body_of_a_request_for_a_sync_view() -> None:
    """The client gets no answer, however quick the thread is."""
    app = application(path("", lambda request: HttpResponse("too late")))
    for _ in range(100):
        async with ApplicationCommunicator(app, http_scope()) as communicator:
            await communicator.send_input({"type": "http.request", "body": b"Body"})
            await communicator.send_input(DISCONNECT)
            await communicator.wait()
            assert await communicator.receive_nothing()


async def test_in_a_coroutine_below_a_sync_view(log: SignalLog) -> None:
    """A sync view's coroutine in async_to_sync is cancelled, then the view."""
    point = Point()

    def view(request: HttpRequest) -> HttpResponse:
        async_to_sync(point.wait)()
        raise AssertionError("not reached")

    app = application(path("", view))
    communicator = start(app)
    await communicator.send_input({"type": "http.request"})
    await point.reached.wait()
    await communicator.send_input(DISCONNECT)
    await communicator.wait()
    assert point.cancelled
    assert_ended(log, type(app))


async def test_in_sync_code_below_an_async_view(log: SignalLog) -> None:
    """The view waits for its thread, and is cancelled at the next checkpoint."""
    reached, go_on = trio.Event(), threading.Event()
    steps = []

    def work() -> str:
        trio.from_thread.run_sync(reached.set)
        assert go_on.wait(10)
        return "done"

    async def view(request: HttpRequest) -> HttpResponse:
        steps.append(await sync_to_async(work)())
        await trio.lowlevel.checkpoint()
        steps.append("not reached")
        return HttpResponse()

    app = application(path("", view))
    communicator = start(app)
    await communicator.send_input({"type": "http.request"})
    await reached.wait()
    await communicator.send_input(DISCONNECT)
    await trio.testing.wait_all_tasks_blocked()
    go_on.set()
    await communicator.wait()
    assert steps == ["done"]
    assert_ended(log, type(app))


async def test_in_an_async_stream(log: SignalLog) -> None:
    """The stream is cancelled where it waits, and its clean-up runs in its task."""
    point = Point()
    tasks: list[Any] = []

    async def parts() -> AsyncIterator[bytes]:
        tasks.append(trio.lowlevel.current_task())
        try:
            yield b"first"
            await point.wait()
        finally:
            tasks.append(trio.lowlevel.current_task())

    async def view(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(parts())

    app = application(path("", view))
    communicator = start(app)
    await communicator.send_input({"type": "http.request"})
    await communicator.receive_output()
    assert (await communicator.receive_output())["body"] == b"first"
    await point.reached.wait()
    await communicator.send_input(DISCONNECT)
    await communicator.wait()
    assert point.cancelled
    assert tasks[0] is tasks[1]
    assert await communicator.receive_nothing()
    assert_ended(log, type(app))


class Server:
    """The server's side of one request, whose sends can be delayed."""

    def __init__(self) -> None:
        self.inputs_send, self.inputs = trio.open_memory_channel[Any](10)
        self.sent: list[Message] = []
        self.sending = trio.Event()
        self.may_send = trio.Event()

    async def receive(self) -> Any:
        """Give the application its next message."""
        return await self.inputs.receive()

    async def hold_send(self, message: Message) -> None:
        """Take a message; block if it has a body."""
        if message.get("body"):
            self.sending.set()
            await self.may_send.wait()
        self.sent.append(message)


async def run_with(app: ASGIHandler, server: Server, send: Send) -> None:
    """Run one GET request against a server."""
    await server.inputs_send.send({"type": "http.request"})
    await app(http_scope(), server.receive, send)


async def test_while_a_part_is_being_sent(log: SignalLog) -> None:
    """The generator, waiting at its yield, is closed; its own awaits can finish."""
    server = Server()
    closed = []

    async def parts() -> AsyncIterator[bytes]:
        try:
            yield b"first"
        finally:
            await trio.lowlevel.checkpoint()
            closed.append(trio.lowlevel.current_task())

    async def view(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(parts())

    app = application(path("", view))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_with, app, server, server.hold_send)
        await server.sending.wait()
        await server.inputs_send.send(DISCONNECT)
    assert len(closed) == 1
    assert [message["type"] for message in server.sent] == ["http.response.start"]
    assert_ended(log, type(app))


async def test_in_a_sync_stream(log: SignalLog) -> None:
    """The thread finishes its part, no more is made, the iterator is closed there."""
    reached, go_on = trio.Event(), threading.Event()
    events: list[Any] = []

    def parts() -> Iterator[bytes]:
        try:
            yield b"first"
            trio.from_thread.run_sync(reached.set)
            assert go_on.wait(10)
            yield b"second"
            events.append("pulled on")
        finally:
            events.append(threading.current_thread())

    def view(request: HttpRequest) -> StreamingHttpResponse:
        events.append(threading.current_thread())
        return StreamingHttpResponse(parts())

    app = application(path("", view))
    communicator = start(app)
    await communicator.send_input({"type": "http.request"})
    await communicator.receive_output()
    assert (await communicator.receive_output())["body"] == b"first"
    await reached.wait()
    await communicator.send_input(DISCONNECT)
    await trio.testing.wait_all_tasks_blocked()
    go_on.set()
    await communicator.wait()
    assert len(events) == 2
    assert events[0] is events[1]
    assert_ended(log, type(app))


async def test_a_stream_that_was_never_started_is_closed(log: SignalLog) -> None:
    """If a response is not sent at all, its async iterator is closed."""
    closed = []

    class Parts:
        def __aiter__(self) -> Parts:
            return self

        async def __anext__(self) -> bytes:
            raise StopAsyncIteration

        async def aclose(self) -> None:
            closed.append(trio.lowlevel.current_task())

    def view(request: HttpRequest) -> StreamingHttpResponse:
        trio.from_thread.run(communicator.send_input, DISCONNECT)
        with pytest.raises(trio.Cancelled):
            while True:
                trio.from_thread.run(trio.lowlevel.checkpoint)
        return StreamingHttpResponse(Parts())

    app = application(path("", view))
    communicator = start(app)
    await communicator.send_input({"type": "http.request"})
    await communicator.wait()
    assert len(closed) == 1
    assert_ended(log, type(app))


async def test_while_the_last_message_is_being_sent(log: SignalLog) -> None:
    """A disconnect that comes during the last send does not cancel it."""
    server = Server()
    app = application(path("", lambda request: HttpResponse("whole")))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_with, app, server, server.hold_send)
        await server.sending.wait()
        await server.inputs_send.send(DISCONNECT)
        await trio.testing.wait_all_tasks_blocked()
        server.may_send.set()
    assert [message.get("body") for message in server.sent] == [None, b"whole"]
    assert_ended(log, type(app))


async def test_at_the_moment_the_response_is_complete(log: SignalLog) -> None:
    """A disconnect that is queued when the response completes is harmless."""
    app = application(path("", lambda request: HttpResponse("whole")))
    communicator = start(app)
    await communicator.send_input({"type": "http.request", "body": b"some body"})
    answer = await receive_answer(communicator)
    await communicator.send_input(DISCONNECT)
    await communicator.wait()
    assert answer.body == b"whole"
    assert_ended(log, type(app))


async def test_between_the_chunks_of_a_large_response(log: SignalLog) -> None:
    """The rest is passed on anyway, since it exists; the server waits for it."""
    server = Server()

    async def send(message: Message) -> None:
        await server.hold_send(message)
        if len(server.sent) == 2:  # with the first piece of the body
            await server.inputs_send.send(DISCONNECT)
            await trio.testing.wait_all_tasks_blocked()

    app = application(path("", lambda request: HttpResponse(b"x" * 5_000_000)))
    server.may_send.set()
    await run_with(app, server, send)
    assert sum(len(message.get("body", b"")) for message in server.sent) == 5_000_000
    assert not server.sent[-1]["more_body"]
    assert_ended(log, type(app))


@pytest.mark.parametrize(
    "error", [OSError("gone"), trio.BrokenResourceError(), trio.ClosedResourceError()]
)
async def test_a_server_that_raises_when_the_client_has_left(
    log: SignalLog, error: Exception
) -> None:
    """An error of send, as in ASGI 2.4, ends the request quietly."""
    server = Server()

    async def send(message: Message) -> None:
        raise error

    app = application(path("", lambda request: HttpResponse("whole")))
    await run_with(app, server, send)
    assert_ended(log, type(app))


async def test_another_message_after_the_body(log: SignalLog) -> None:
    """Only a disconnect may follow the body; anything else is the server's error."""
    app = application(path("", lambda request: HttpResponse()))
    communicator = start(app)
    await communicator.send_input({"type": "http.request"})
    await communicator.send_input({"type": "http.not_a_real_message"})
    expected = "Invalid ASGI message after request body: http.not_a_real_message"
    with pytest.raises(AssertionError, match=expected):
        await communicator.wait()
    assert_ended(log, type(app))


@pytest.mark.parametrize("at", ["view", "stream", "sync view"])
async def test_the_server_cancels(log: SignalLog, at: str) -> None:
    """At the server's shutdown a request is cancelled, and ends as in other cases."""
    point = Point()
    go_on = threading.Event()
    server = Server()

    async def view(request: HttpRequest) -> HttpResponse:
        await point.wait()
        return HttpResponse()

    async def parts() -> AsyncIterator[bytes]:
        yield b"first"
        await point.wait()

    async def stream(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(parts())

    def sync_view(request: HttpRequest) -> HttpResponse:
        trio.from_thread.run_sync(point.reached.set)
        assert go_on.wait(10)
        return HttpResponse()

    views: Any = {"view": view, "stream": stream, "sync view": sync_view}
    app = application(path("", views[at]))
    server.may_send.set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_with, app, server, server.hold_send)
        await point.reached.wait()
        nursery.cancel_scope.cancel()
        go_on.set()
    assert point.cancelled or at == "sync view"
    assert all(message.get("more_body", True) for message in server.sent)
    assert_ended(log, type(app))


async def test_a_sync_view_that_outlasts_the_servers_patience(
    log: SignalLog, caplog: pytest.LogCaptureFixture
) -> None:
    """It is left behind, and its thread ends the request when the view has ended."""
    reached, go_on = trio.Event(), threading.Event()
    server = Server()

    def view(request: HttpRequest) -> HttpResponse:
        trio.from_thread.run_sync(reached.set)
        assert go_on.wait(10)
        return HttpResponse()

    with override_settings(TRIO_ASGI={"SHUTDOWN_SECONDS": 0}):
        app = application(path("", view))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_with, app, server, server.hold_send)
            await reached.wait()
            nursery.cancel_scope.cancel()
    assert log.names == ["started"]
    go_on.set()
    await join_left_threads()
    assert "Left sync code running" in caplog.text
    assert log.names == ["started", "finished"]
    (thread,) = log.threads
    assert not thread.is_alive()


async def test_code_in_any_thread_that_outlasts_the_servers_patience(
    log: SignalLog, caplog: pytest.LogCaptureFixture
) -> None:
    """Code that is not thread-sensitive is left as well; the request ends at once."""
    reached, go_on = trio.Event(), threading.Event()
    threads: list[threading.Thread] = []
    server = Server()

    def work() -> None:
        threads.append(threading.current_thread())
        trio.from_thread.run_sync(reached.set)
        assert go_on.wait(10)

    async def view(request: HttpRequest) -> HttpResponse:
        await sync_to_async(work, thread_sensitive=False)()
        raise AssertionError("not reached")

    with override_settings(TRIO_ASGI={"SHUTDOWN_SECONDS": 0}):
        app = application(path("", view))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_with, app, server, server.hold_send)
            await reached.wait()
            nursery.cancel_scope.cancel()
    assert log.names == ["started", "finished"]
    assert "Left sync code running" in caplog.text
    assert threads[0].is_alive()
    assert threads[0] not in log.threads
    go_on.set()
    await trio.to_thread.run_sync(threads[0].join, 10)
    assert not threads[0].is_alive()


async def test_the_end_cannot_be_cancelled_but_is_bounded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A response whose closing hangs is left behind after CLEANUP_SECONDS."""
    go_on = threading.Event()
    done = []

    def close() -> None:
        done.append(go_on.wait(10))

    def view(request: HttpRequest) -> HttpResponse:
        response = HttpResponse("whole")
        response._resource_closers.append(close)  # type: ignore[attr-defined]
        return response

    with override_settings(TRIO_ASGI={"CLEANUP_SECONDS": 0.01}):
        app = application(path("", view))
        answer = await request(app)
    assert answer.body == b"whole"
    assert done == []
    go_on.set()
    await join_left_threads()
    assert "Left sync code running" in caplog.text
    assert done == [True]


@pytest.mark.parametrize("kind", ["sync", "async", "nursery"])
async def test_an_error_in_a_cancelled_view_is_logged(
    log: SignalLog, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """A view that fails while it is cancelled cannot be answered, but is logged."""
    point = Point()

    def sync_view(request: HttpRequest) -> HttpResponse:
        try:
            async_to_sync(point.wait)()
        finally:
            raise ValueError("in clean-up")

    async def async_view(request: HttpRequest) -> HttpResponse:
        try:
            await point.wait()
        finally:
            raise ValueError("in clean-up")

    async def nursery_view(request: HttpRequest) -> HttpResponse:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(async_view, request)
            await trio.sleep_forever()
        raise AssertionError

    view: Any = {"sync": sync_view, "async": async_view, "nursery": nursery_view}[kind]
    app = application(path("", view))
    communicator = start(app)
    await communicator.send_input({"type": "http.request"})
    await point.reached.wait()
    await communicator.send_input(DISCONNECT)
    await communicator.wait()
    records = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert len(records) == 1
    # An error of sync code is answered in its thread, though the answer is not sent.
    name = "Internal Server Error" if kind == "sync" else "Error in a request that was"
    assert records[0].getMessage().startswith(name)
    assert "in clean-up" in caplog.text
    assert await communicator.receive_nothing()
    assert_ended(log, type(app))


async def test_a_receiver_of_request_started_that_fails(
    log: SignalLog, caplog: pytest.LogCaptureFixture
) -> None:
    """It is answered 500, and request_finished is sent all the same."""
    from django.core.signals import request_started  # noqa: PLC0415

    def fail(**kwargs: Any) -> None:
        raise ValueError("no start")

    request_started.connect(fail)
    try:
        app = application(path("", lambda request: HttpResponse()))
        answer = await request(app)
    finally:
        request_started.disconnect(fail)
    assert answer.status == 500
    assert "no start" in caplog.text
    assert log.names == ["started", "finished"]


async def cancel_at_every_checkpoint(
    pattern: URLPattern, log: SignalLog, caplog: pytest.LogCaptureFixture
) -> int:
    """Cancel a request at its first checkpoint, its second, and so on to its end."""

    class Cancelling(trio.abc.Instrument):
        """Cancels a scope when a task has run for the nth time."""

        def __init__(self, count: int) -> None:
            self.count = count
            self.scope = trio.CancelScope()
            self.task: Any = None

        def before_task_step(self, task: Any) -> None:
            if task is self.task:
                self.count -= 1
                if self.count == 0:
                    self.scope.cancel()

    app = application(pattern)
    count = 0
    while True:
        count += 1
        log.calls.clear()
        server = Server()
        server.may_send.set()
        instrument = Cancelling(count)

        async def serve(instrument: Cancelling, server: Server) -> None:
            instrument.task = trio.lowlevel.current_task()
            with instrument.scope:
                await run_with(app, server, server.hold_send)

        trio.lowlevel.add_instrument(instrument)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, instrument, server)
        trio.lowlevel.remove_instrument(instrument)
        if log.names:
            assert_ended(log, type(app))
        assert not [r for r in caplog.records if r.levelno >= logging.ERROR]
        if instrument.count > 0:
            return count


@pytest.mark.parametrize("kind", ["sync", "async", "stream", "sync stream", "error"])
async def test_cancelled_at_every_checkpoint(
    log: SignalLog, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """Wherever the server cancels, everything started is ended, and nothing is left."""
    open_streams = 0

    def sync_view(request: HttpRequest) -> HttpResponse:
        return HttpResponse("sync")

    async def async_view(request: HttpRequest) -> HttpResponse:
        await sync_to_async(int)()
        await trio.lowlevel.checkpoint()
        return HttpResponse("async")

    async def parts() -> AsyncIterator[bytes]:
        nonlocal open_streams
        open_streams += 1
        try:
            for _ in range(3):
                yield b"part"
                await trio.lowlevel.checkpoint()
        finally:
            open_streams -= 1

    async def stream(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(parts())

    async def sync_stream(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(iter([b"one", b"two"]))

    async def error(request: HttpRequest) -> HttpResponse:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sync_to_async(int), "no number")
        raise AssertionError

    views: dict[str, Any] = {
        "sync": sync_view,
        "async": async_view,
        "stream": stream,
        "sync stream": sync_stream,
        "error": error,
    }
    if kind == "error":
        # Django logs the error of the run that is not cancelled in the view.
        caplog.set_level(logging.CRITICAL, logger="django.request")
    points = await cancel_at_every_checkpoint(path("", views[kind]), log, caplog)
    assert points > 5
    assert open_streams == 0


async def test_nothing_keeps_a_request_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After its end a request is freed at once, without the garbage collector."""
    import weakref  # noqa: PLC0415

    # Not with Django's receivers: on Python 3.10 the Local of asgiref 3.9, which they
    # use, leaves a cycle of frames that refer to the request.
    monkeypatch.setattr(request_finished, "receivers", [])
    refs: list[weakref.ref[Any]] = []

    def view(request: HttpRequest) -> HttpResponse:
        refs.append(weakref.ref(request))
        return HttpResponse()

    app = application(path("", view))
    await request(app)
    gc.collect()
    gc.disable()
    try:
        await request(app)
        # The thread may just be returning from reporting the result.
        lease = Lease(current_pool())
        await lease.run_sync(int)
        lease.release()
        assert refs[1]() is None
    finally:
        gc.enable()

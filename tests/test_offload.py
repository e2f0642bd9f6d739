"""Blocking work is left to a thread: handlers of logging, closing of files."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import tempfile
import threading
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import trio
import trio.testing
from asgiref.sync import async_to_sync
from django.core.files.uploadedfile import TemporaryUploadedFile
from django.http import FileResponse, HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import override_settings
from django.urls import path

from support import application, http_scope, receive_answer, request
from thread_support import cannot_start
from trio_asgi import ASGIHandler, ASGIRequest, asyncio_island, stream_body
from trio_asgi.islands.loop import close_loop
from trio_asgi.testing import ApplicationCommunicator
from trio_asgi.threads.current import current_pool
from trio_asgi.threads.offload import HeldLog, finish_in_thread, log

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

SECONDS = 10

logger = logging.getLogger("trio_asgi.tests")


class Handler(logging.Handler):
    """A logging handler that can be slow; it notes its threads."""

    def __init__(self) -> None:
        """Start as a fast handler."""
        super().__init__()
        self.messages: list[str] = []
        self.threads: set[threading.Thread] = set()
        self.may_end = threading.Event()
        self.may_end.set()
        self._token = trio.lowlevel.current_trio_token()
        #: Set when a record has arrived.
        self.begun = trio.Event()
        #: Set when one was handled.
        self.done = trio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        """Handle a record, for as long as the test says."""
        self.threads.add(threading.current_thread())
        self._token.run_sync_soon(self.begun.set)
        if threading.current_thread() is not threading.main_thread():
            assert self.may_end.wait(SECONDS)
        self.messages.append(record.getMessage())
        self._token.run_sync_soon(self.done.set)


@pytest.fixture(name="handler")
async def make_handler() -> AsyncIterator[Handler]:
    """Add a handler to all loggers."""
    handler = Handler()
    logging.getLogger().addHandler(handler)
    try:
        with trio.fail_after(SECONDS):
            yield handler
    finally:
        handler.may_end.set()
        logging.getLogger().removeHandler(handler)


def assert_off_the_loop(handler: Handler, *beginnings: str) -> None:
    """Check that these records were handled in order, and none on the loop."""
    found = [message.split(":")[0] for message in handler.messages]
    assert found == list(beginnings)
    assert threading.current_thread() not in handler.threads


# The kinds of records


async def fail(*_: object, **__: object) -> NoReturn:
    """Fail."""
    await trio.lowlevel.checkpoint()
    raise ValueError("a bug")


class FailingRequest(ASGIRequest):
    """A request that cannot be made."""

    def __init__(self, *_: object) -> None:
        """Fail."""
        raise LookupError


async def test_server_errors(handler: Handler) -> None:
    """Errors that Django itself cannot answer."""

    class Failing(ASGIHandler):
        request_class = FailingRequest

    assert (await request(Failing())).status == 500
    assert_off_the_loop(handler, "Internal Server Error")


async def test_errors_of_views(handler: Handler) -> None:
    """Errors that Django answers."""
    assert (await request(application(path("", fail)))).status == 500
    assert_off_the_loop(handler, "Internal Server Error")


async def test_refused_bodies(handler: Handler) -> None:
    """A body that is too large."""
    with override_settings(TRIO_ASGI={"MAX_BODY_SIZE": 3}):
        length = (b"content-length", b"4")
        answer = await request(
            application(), method="POST", headers=[length], body=b"four"
        )
    assert answer.status == 413
    assert_off_the_loop(handler, HTTPStatus(413).phrase)


async def test_a_query_string_that_is_not_utf8(handler: Handler) -> None:
    """Django logs it while it makes the request."""
    assert (await request(application(), query_string=b"\xff")).status == 400
    assert_off_the_loop(handler, "Bad Request (UnicodeDecodeError)")


async def leave_while_it_runs(app: ASGIHandler) -> None:
    """Start a request, and disconnect when nothing runs any more."""
    async with ApplicationCommunicator(app, http_scope()) as client:
        await client.send_input({"type": "http.request"})
        await trio.testing.wait_all_tasks_blocked()
        await client.send_input({"type": "http.disconnect"})
        await client.wait()


@pytest.mark.parametrize("kind", ["plain", "nursery"])
async def test_errors_that_nobody_is_told(kind: str, handler: Handler) -> None:
    """A view that fails while it is being cancelled."""

    async def view(request: HttpRequest) -> NoReturn:
        try:
            await trio.sleep_forever()
        finally:
            await fail()

    async def in_nursery(request: HttpRequest) -> Any:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(view, request)

    async def fail() -> NoReturn:
        raise ValueError("a bug")

    view_ = in_nursery if kind == "nursery" else view
    await leave_while_it_runs(application(path("", view_)))
    assert_off_the_loop(handler, "Error in a request that was cancelled")


async def test_errors_in_the_closing_of_a_stream(handler: Handler) -> None:
    """A stream that fails, and then its closing."""

    class Parts:
        def __aiter__(self) -> Parts:
            return self

        __anext__ = aclose = fail

    async def view(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(Parts())

    client = ApplicationCommunicator(application(path("", view)), http_scope())
    await client.send_input({"type": "http.request"})
    with pytest.raises(ValueError, match="a bug"):
        await client.wait()
    assert_off_the_loop(handler, "Error while closing a stream")


async def test_sync_code_that_is_left(handler: Handler) -> None:
    """A view that runs on after its request has ended."""
    go_on = threading.Event()

    def close() -> None:
        assert go_on.wait(SECONDS)

    def view(request: HttpRequest) -> HttpResponse:
        response = HttpResponse("whole")
        response._resource_closers.append(close)  # type: ignore[attr-defined]
        return response

    with override_settings(TRIO_ASGI={"CLEANUP_SECONDS": 0.01}):
        await request(application(path("", view)))
        await handler.done.wait()
    go_on.set()
    assert_off_the_loop(handler, "Left sync code running that does not end")


async def test_background_tasks_and_the_lifespan(handler: Handler) -> None:
    """A task that fails, and then the shutdown."""

    app = ASGIHandler()

    async def end(*_: object) -> NoReturn:
        raise LookupError

    app._lifespan._after = end
    async with ApplicationCommunicator(app, {"type": "lifespan"}) as server:
        await server.send_input({"type": "lifespan.startup"})
        await server.receive_output()
        app.start_soon(fail)
        await server.send_input({"type": "lifespan.shutdown"})
        await server.receive_output()
    failures = "A background task failed", "The application's shutdown failed"
    assert_off_the_loop(handler, *failures)


async def test_tasks_of_asyncio_that_nobody_awaits(handler: Handler) -> None:
    """asyncio's own log of a task whose error was never retrieved."""

    async def main() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await asyncio.sleep(0)

    await asyncio_island(main)()
    await handler.done.wait()
    await close_loop()
    assert handler.messages[0].startswith("Exception in callback ")
    assert threading.current_thread() not in handler.threads


# How they are handled


async def test_a_slow_handler_stops_no_other_request(handler: Handler) -> None:
    """While an error mail is sent, the site goes on, and the error is answered."""

    class Failing(ASGIHandler):
        request_class = FailingRequest

    handler.may_end.clear()
    async with ApplicationCommunicator(Failing(), http_scope()) as client:
        await client.send_input({"type": "http.request"})
        # The client need not wait for the mail.
        assert (await receive_answer(client)).status == 500
        await handler.begun.wait()
        assert (await request(application())).status == 200
        assert handler.messages == []
        handler.may_end.set()
        await client.wait()
    assert_off_the_loop(handler, "Internal Server Error")


async def test_a_cancellation_loses_no_record(handler: Handler) -> None:
    """A record is handled, and waited for, when the server cancels its request."""

    class Failing(ASGIHandler):
        request_class = FailingRequest

    async def receive() -> Any:
        return {"type": "http.request"}

    async def send(message: object) -> None:
        scope.cancel()
        await trio.lowlevel.checkpoint()

    with trio.CancelScope() as scope:
        await Failing().handle(http_scope(), receive, send)
    assert scope.cancelled_caught
    assert_off_the_loop(handler, "Internal Server Error")


async def test_a_handler_that_does_not_end_is_left(handler: Handler) -> None:
    """After CLEANUP_SECONDS the request ends without it."""
    handler.may_end.clear()
    async with HeldLog(lambda: 0.01):
        log(logger, logging.ERROR, "slow")
    assert handler.messages == []
    handler.may_end.set()
    await handler.begun.wait()
    await handler.done.wait()


async def test_records_need_no_free_thread(handler: Handler) -> None:
    """If all THREADS are busy for too long, they are handled anyway."""
    pool, go_on = current_pool(), threading.Event()
    pool.queue.threads, tokens = 1, pool.queue.threads
    began = trio.Event()

    def work() -> None:
        trio.from_thread.run_sync(began.set)
        assert go_on.wait(SECONDS)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.run_sync, work)
            await began.wait()
            async with HeldLog(lambda: 0.01):
                log(logger, logging.ERROR, "%s, %s", "one", "two")
            await handler.done.wait()
            go_on.set()
    finally:
        pool.queue.set_threads(tokens)
    assert_off_the_loop(handler, "one, two")


async def test_records_keep_their_order_and_their_context(handler: Handler) -> None:
    """Each has the context, the place and the error from its making."""
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")
    seen: list[tuple[int, str, Any]] = []

    def note(record: logging.LogRecord) -> bool:
        seen.append((variable.get(), record.funcName, record.exc_info))
        return True

    handler.addFilter(note)
    error = ValueError("a bug")
    async with HeldLog(lambda: SECONDS):
        for number in range(3):
            variable.set(number)
            log(logger, logging.ERROR, "%d", number, error=error)
        assert handler.messages == []
    assert_off_the_loop(handler, "0", "1", "2")
    name = "test_records_keep_their_order_and_their_context"
    assert seen == [(number, name, (ValueError, error, None)) for number in range(3)]


async def test_a_record_that_comes_late(handler: Handler) -> None:
    """A record that a request's code logs after its end is not lost."""
    async with HeldLog(lambda: SECONDS):
        context = contextvars.copy_context()
    context.run(log, logger, logging.ERROR, "late")
    await handler.done.wait()
    assert_off_the_loop(handler, "late")


async def test_a_thread_logs_by_itself(handler: Handler) -> None:
    """A thread does not wait for a handler; disabled records cause no work."""
    await current_pool().run_sync(lambda: log(logger, logging.ERROR, "there"))
    log(logger, logging.DEBUG, "nobody wants this")
    assert_off_the_loop(handler, "there")


def test_the_end_of_the_run_loses_no_record() -> None:
    """A system task handles records outside requests; without one, the caller does."""
    messages: list[str] = []

    class Late:
        async def main(self) -> None:
            self.handler = Handler()
            self.handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
            logger.addHandler(self.handler)
            trio.lowlevel.spawn_system_task(self.system_task)
            log(logger, logging.ERROR, "one")

        async def system_task(self) -> None:
            try:
                await trio.sleep_forever()
            finally:
                log(logger, logging.ERROR, "two")

    late = Late()
    try:
        trio.run(late.main)
    finally:
        logger.removeHandler(late.handler)
    assert sorted(messages) == ["one", "two"]


@pytest.mark.parametrize("is_held", [False, True])
async def test_records_without_a_thread(
    is_held: bool, handler: Handler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the system can start no more threads, the loop handles them, in order."""
    monkeypatch.setattr(threading.Thread, "start", cannot_start)
    async with HeldLog(lambda: SECONDS) as held:
        if not is_held:
            held.is_open = False
        log(logger, logging.ERROR, "one")
        log(logger, logging.ERROR, "two")
    await trio.testing.wait_all_tasks_blocked()
    assert sorted(handler.messages) == ["one", "two"]
    assert not is_held or handler.messages == ["one", "two"]


@pytest.mark.parametrize("error", [ValueError, SystemExit])
async def test_a_handler_that_fails_harms_nobody(
    error: type[BaseException],
    handler: Handler,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Its error is printed, and the next record handled."""

    def fail_once(record: logging.LogRecord) -> bool:
        if record.getMessage() == "one":
            raise error("in a filter")
        return True

    handler.addFilter(fail_once)
    async with HeldLog(lambda: SECONDS):
        log(logger, logging.ERROR, "one")
        log(logger, logging.ERROR, "two")
    assert_off_the_loop(handler, "two")
    assert "in a filter" in capfd.readouterr().err


@pytest.mark.parametrize("has_thread", [True, False])
@pytest.mark.parametrize("error", [OSError, RuntimeError])
async def test_the_error_of_a_call_is_raised(
    error: type[Exception], has_thread: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the call is waited for; and it is called only once."""
    calls = 0

    def fail() -> NoReturn:
        nonlocal calls
        calls += 1
        raise error("cannot be closed")

    if not has_thread:
        monkeypatch.setattr(threading.Thread, "start", cannot_start)
    with pytest.raises(error, match="cannot be closed"):
        await finish_in_thread(fail, SECONDS)
    assert calls == 1


# Files


@contextmanager
def noted_closing(kind: type) -> Iterator[list[threading.Thread]]:
    """Note in which threads files of a class are closed, the first time each."""
    threads: list[threading.Thread] = []
    close = kind.close  # type: ignore[attr-defined]

    def note(file: Any) -> None:
        if not file.closed:
            threads.append(threading.current_thread())
        close(file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "close", note)
        yield threads


BODY = b"more than ten bytes"


@pytest.mark.parametrize("size", [10, 100])
async def test_the_file_of_a_body(size: int) -> None:
    """It is closed in a thread if it is on disk, otherwise where that is cheap."""
    with (
        noted_closing(tempfile.SpooledTemporaryFile) as threads,
        override_settings(FILE_UPLOAD_MAX_MEMORY_SIZE=size),
    ):
        answer = await request(
            application(),
            method="POST",
            headers=[(b"content-length", b"19")],
            body=BODY,
        )
        assert answer.status == 200
    (thread,) = threads
    assert (thread is threading.current_thread()) == (size == 100)


@pytest.mark.parametrize("how", ["disconnect", "cancellation"])
async def test_the_file_of_half_a_body(how: str) -> None:
    """The same holds if the client disconnects during the body, or the server ends."""
    headers = [(b"content-length", b"1000")]
    scope = http_scope(method="POST", headers=headers)
    with (
        noted_closing(tempfile.SpooledTemporaryFile) as threads,
        override_settings(FILE_UPLOAD_MAX_MEMORY_SIZE=10),
    ):
        async with ApplicationCommunicator(application(), scope) as client:
            message = {"type": "http.request", "body": BODY, "more_body": True}
            await client.send_input(message)
            # It is being written to disk.
            while not current_pool().workers:
                await trio.lowlevel.checkpoint()
            if how == "disconnect":
                await client.send_input({"type": "http.disconnect"})
                await client.wait()
            else:
                client.stop()
    (thread,) = threads
    assert thread is not threading.current_thread()


@pytest.mark.parametrize("leaves", [False, True])
@pytest.mark.parametrize("is_async", [False, True])
async def test_uploaded_files(is_async: bool, leaves: bool) -> None:
    """They are closed and deleted in a thread, however the request ends."""
    form = (
        b"--line\r\nContent-Disposition: form-data; name=f; filename=a\r\n\r\n"
        + bytes(100)
        + b"\r\n--line--\r\n"
    )
    multipart = (b"content-type", b"multipart/form-data; boundary=line")
    length = (b"content-length", str(len(form)).encode())
    paths: list[Path] = []
    reached = trio.Event()

    def view(request: HttpRequest) -> HttpResponse:
        file: Any = request.FILES["f"]
        paths.append(Path(file.temporary_file_path()))
        if leaves:
            trio.from_thread.run_sync(reached.set)
            async_to_sync(trio.sleep_forever)()
        return HttpResponse()

    @stream_body
    async def async_view(request: ASGIRequest) -> HttpResponse:
        await request.aread()
        file: Any = request.FILES["f"]
        paths.append(Path(file.temporary_file_path()))
        if leaves:
            reached.set()
            await trio.sleep_forever()
        return HttpResponse()

    app = application(path("", async_view if is_async else view))
    scope = http_scope(method="POST", headers=[multipart, length])
    with (
        noted_closing(TemporaryUploadedFile) as threads,
        override_settings(
            FILE_UPLOAD_HANDLERS=[
                "django.core.files.uploadhandler.TemporaryFileUploadHandler"
            ]
        ),
    ):
        async with ApplicationCommunicator(app, scope) as client:
            await client.send_input({"type": "http.request", "body": form})
            if leaves:
                await reached.wait()
                await client.send_input({"type": "http.disconnect"})
            else:
                await receive_answer(client)
            await client.wait()
    assert not paths[0].exists()
    assert threads
    assert threading.current_thread() not in threads


class OwnFile:
    """A file of a user-defined class, whose methods may do anything."""

    def __init__(self) -> None:
        """Start at the beginning."""
        self.asked: set[tuple[str, bool]] = set()
        self._bytes = iter([b"some", b" bytes"])

    def _note(self, what: str) -> None:
        on_loop = threading.current_thread() is threading.main_thread()
        self.asked.add((what, on_loop))

    def seekable(self) -> bool:
        """Return False."""
        self._note("seekable")
        return False

    def seek(self, *_: object) -> NoReturn:
        """Fail."""
        raise OSError

    def tell(self) -> int:
        """Return its position."""
        self._note("tell")
        return 0

    def read(self, size: int = -1) -> bytes:
        """Return some bytes."""
        self._note("read")
        return next(self._bytes, b"") if size else b""

    read1 = read

    def close(self) -> None:
        """Close."""
        self._note("close")


@pytest.mark.parametrize("with_ranges", [False, True])
async def test_a_file_of_somebodys_own_class(with_ranges: bool) -> None:
    """The loop calls nothing on it, not even seekable()."""
    file: Any = OwnFile()

    def make() -> FileResponse:
        return FileResponse(file, headers={"Content-Length": "10"})

    async def view(request: HttpRequest) -> FileResponse:
        response = await current_pool().run_sync(make)
        response.headers["Content-Length"] = "10"
        return response

    middleware = ["trio_asgi.middleware.RangeMiddleware"] if with_ranges else []
    answer = await request(
        application(path("", view), middleware=middleware),
        headers=[(b"range", b"bytes=0-1")],
    )
    assert answer.body == b"some bytes"
    assert {"seekable", "read", "close"} <= {what for what, _ in file.asked}
    assert [what for what, on_loop in file.asked if on_loop] == []


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_file_of_a_response(
    is_async: bool, method: str, tmp_path: Path
) -> None:
    """A file that was sent, or only announced, is closed in a thread."""
    closed: list[threading.Thread] = []
    (tmp_path / "file").write_bytes(bytes(100))

    class File(FileResponse):
        pass

    def view(request: HttpRequest) -> FileResponse:
        file = (tmp_path / "file").open("rb")
        response = File(file)
        closer = response._resource_closers.pop()  # type: ignore[attr-defined]

        def close() -> None:
            closed.append(threading.current_thread())
            closer()

        response._resource_closers.append(close)  # type: ignore[attr-defined]
        return response

    async def async_view(request: HttpRequest) -> FileResponse:
        return view(request)

    app = application(path("", async_view if is_async else view))
    await request(app, method=method)
    assert len(closed) == 1
    assert threading.current_thread() not in closed

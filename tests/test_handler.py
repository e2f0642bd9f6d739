"""What an HTTP client gets: status, headers, body; and how errors are answered."""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import django.core.handlers.asgi
import pytest
import trio
from django.core.exceptions import (
    BadRequest,
    PermissionDenied,
    RequestDataTooBig,
    SuspiciousOperation,
)
from django.http import (
    FileResponse,
    Http404,
    HttpRequest,
    HttpResponse,
    StreamingHttpResponse,
)
from django.test import override_settings
from django.urls import path, re_path

from support import application, http_scope, receive_answer, request, signal_log
from trio_asgi import (
    ASGIHandler,
    ASGIRequest,
    ASGIStaticFilesHandler,
    get_asgi_application,
)
from trio_asgi.request.body_file import spool_body
from trio_asgi.testing import ApplicationCommunicator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import IO

    from trio_asgi.asgi.types import Scope

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

HERE = Path(__file__)


def hello(request: HttpRequest) -> HttpResponse:
    """Greet the name in the query string."""
    return HttpResponse(f"Hello {request.GET.get('name', 'World')}!")


async def async_hello(request: HttpRequest) -> HttpResponse:
    """Greet the name in the query string."""
    await trio.lowlevel.checkpoint()
    return hello(request)


def echo(request: HttpRequest) -> HttpResponse:
    """Return the body if asked to; otherwise leave it unread."""
    if request.GET.get("echo"):
        return HttpResponse(request.body)
    return HttpResponse(status=204)


both_kinds = pytest.mark.parametrize("view", [hello, async_hello])


def test_the_application_is_a_handler_of_django() -> None:
    """isinstance and issubclass hold for Django's classes as for ours."""
    app = get_asgi_application()
    assert isinstance(app, ASGIHandler)
    assert isinstance(app, django.core.handlers.asgi.ASGIHandler)
    assert app.request_class is ASGIRequest
    assert issubclass(ASGIRequest, django.core.handlers.asgi.ASGIRequest)


async def test_the_default_application_serves_the_root_urlconf() -> None:
    """get_asgi_application() serves the URLs of ROOT_URLCONF."""
    answer = await request(get_asgi_application())
    assert (answer.status, answer.body) == (200, b"Hello World!")


@both_kinds
async def test_a_plain_view(view: Any) -> None:
    """A view's answer has its status, exactly two headers in their case, its body."""
    answer = await request(application(path("", view)))
    assert answer.status == 200
    assert sorted(answer.headers) == [
        (b"Content-Length", b"12"),
        (b"Content-Type", b"text/html; charset=utf-8"),
    ]
    assert answer.parts == [b"Hello World!"]


async def test_the_case_of_a_header_is_kept() -> None:
    """A header is sent as the view wrote it."""

    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(headers={"x-MiXeD": "Case"})

    answer = await request(application(path("", view)))
    assert (b"x-MiXeD", b"Case") in answer.headers


async def test_a_file_response() -> None:
    """A FileResponse carries length, type and disposition, and the file's bytes."""

    def view(request: HttpRequest) -> FileResponse:
        return FileResponse(HERE.open("rb"), content_type="text/x-python")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer = await request(application(path("", view)))
    assert sorted(answer.headers) == [
        (b"Content-Disposition", b'inline; filename="test_handler.py"'),
        (b"Content-Length", str(HERE.stat().st_size).encode()),
        (b"Content-Type", b"text/x-python"),
    ]
    assert answer.body == HERE.read_bytes()


async def test_a_file_is_closed_after_the_response() -> None:
    """The file of a FileResponse is closed, on the thread that read it."""
    file = HERE.open("rb")

    def view(request: HttpRequest) -> FileResponse:
        return FileResponse(file)

    await request(application(path("", view)))
    assert file.closed


async def test_a_file_is_sent_in_blocks_of_chunk_size() -> None:
    """The handler's chunk_size, which is a file's block size, can be overridden."""

    class SmallChunks(ASGIHandler):
        chunk_size = 1000

    def view(request: HttpRequest) -> FileResponse:
        return FileResponse(HERE.open("rb"))

    answer = await request(application(path("", view), handler=SmallChunks))
    assert answer.body == HERE.read_bytes()
    assert len(answer.parts[0]) == 1000


async def test_a_large_response_is_sent_in_chunks() -> None:
    """It is sent in several messages, none of them empty, or larger than chunk_size."""

    class SmallChunks(ASGIHandler):
        chunk_size = 50_000

    content = bytes(range(250)) * 10_000

    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(content)

    answer = await request(application(path("", view), handler=SmallChunks))
    assert answer.body == content
    assert all(0 < len(part) <= 50_000 for part in answer.parts)


@pytest.mark.parametrize("query_string", [b"name=Andrew", "name=Andrew"])
async def test_the_query_string_reaches_the_view(query_string: bytes | str) -> None:
    """A query string may be bytes, as servers send it, or str."""
    answer = await request(application(path("", hello)), query_string=query_string)
    assert answer.body == b"Hello Andrew!"


async def test_the_body_reaches_the_view() -> None:
    """A POST body, in several messages, is read as one."""
    scope = http_scope(method="POST", query_string="echo=1")
    async with ApplicationCommunicator(application(path("", echo)), scope) as app:
        for body, more_body in ((b"Echo", True), (b"", True), (b"!", False)):
            await app.send_input(
                {"type": "http.request", "body": body, "more_body": more_body}
            )
        answer = await receive_answer(app)
    assert answer.body == b"Echo!"


class RecordingHandler(ASGIHandler):
    """Keeps the files of the bodies that it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.body_files: list[IO[bytes]] = []

    async def read_body(self, receive: Any) -> IO[bytes]:
        """Read a body, and remember its file."""
        self.body_files.append(body_file := await super().read_body(receive))
        return body_file


async def test_a_body_that_no_one_read_is_closed() -> None:
    """The body's file is closed even if the view did not touch it."""
    app = application(path("", echo), handler=RecordingHandler)
    answer = await request(app, method="POST", body=b"not read")
    assert answer.status == 204
    assert answer.parts == [b""]
    (body_file,) = app.body_files  # type: ignore[attr-defined]
    assert body_file.closed


async def test_a_large_body_is_written_to_disk_in_a_thread() -> None:
    """A body above FILE_UPLOAD_MAX_MEMORY_SIZE is written off the loop's thread."""
    threads = []

    class Handler(ASGIHandler):
        async def read_body(self, receive: Any) -> IO[bytes]:
            body_file = await super().read_body(receive)
            threads.append(body_file._rolled)  # type: ignore[attr-defined]
            return body_file

    with override_settings(FILE_UPLOAD_MAX_MEMORY_SIZE=10):
        answer = await request(
            application(path("", echo), handler=Handler),
            method="POST",
            query_string="echo=1",
            body=b"more than ten bytes",
        )
    assert answer.body == b"more than ten bytes"
    assert threads == [True]


@pytest.mark.parametrize(
    ("limit", "size", "is_on_disk"),
    [
        (0, 0, False),
        (0, 1, True),
        (-1, 1, True),
        (10, 10, False),
        (10, 11, True),
        (None, 3 * 2**20, False),
    ],
)
async def test_when_a_body_goes_to_disk(
    limit: int | None, size: int, is_on_disk: bool
) -> None:
    """When it exceeds the setting; 0 is not a special value."""
    seen: list[bool] = []

    class Handler(ASGIHandler):
        async def read_body(self, receive: Any) -> IO[bytes]:
            body_file = await super().read_body(receive)
            seen.append(getattr(body_file, "_rolled", False))
            return body_file

    app = application(path("", echo), handler=Handler)
    with override_settings(
        FILE_UPLOAD_MAX_MEMORY_SIZE=limit, DATA_UPLOAD_MAX_MEMORY_SIZE=None
    ):
        answer = await request(
            app, method="POST", query_string="echo=1", body=b"x" * size
        )
    assert answer.body == b"x" * size
    assert seen == [is_on_disk]


async def test_a_body_goes_to_the_directory_for_uploads(tmp_path: Path) -> None:
    """FILE_UPLOAD_TEMP_DIR is used; a missing directory shows that."""
    missing = str(tmp_path / "missing")

    async def receive() -> Any:
        return {"type": "http.request", "body": b"body"}

    with (
        override_settings(FILE_UPLOAD_MAX_MEMORY_SIZE=0, FILE_UPLOAD_TEMP_DIR=missing),
        pytest.raises(FileNotFoundError, match="missing"),
    ):
        await spool_body(receive)


async def test_a_query_string_that_is_not_utf8() -> None:
    """It is answered 400 with an empty body, and the request ends like others."""
    with signal_log() as log:
        answer = await request(application(path("", hello)), query_string=b"\xff")
    assert (answer.status, answer.parts) == (400, [b""])
    assert log.names == ["started", "finished"]
    assert threading.current_thread() not in log.threads


class TooBigRequest(ASGIRequest):
    """A request that cannot be made."""

    def __init__(self, scope: Scope, body_file: IO[bytes]) -> None:
        """Fail."""
        super().__init__(scope, body_file)
        raise RequestDataTooBig


async def test_a_request_that_is_too_big_to_be_made() -> None:
    """RequestDataTooBig is answered 413, and the request ends like others."""

    class Handler(ASGIHandler):
        request_class = TooBigRequest

    with signal_log() as log:
        answer = await request(Handler())
    assert answer.status == 413
    assert answer.body == b"413 Payload too large"
    assert log.names == ["started", "finished"]
    assert log.calls[1][2] == {"sender": Handler}
    assert threading.current_thread() not in log.threads


async def test_cookies_become_headers() -> None:
    """Each cookie gets its own Set-Cookie header."""

    def view(request: HttpRequest) -> HttpResponse:
        response = HttpResponse()
        response.set_cookie("one", "1")
        response.set_cookie("two", "2", httponly=True)
        return response

    answer = await request(application(path("", view)))
    cookies = [value for name, value in answer.headers if name == b"Set-Cookie"]
    assert cookies == [b"one=1; Path=/", b"two=2; HttpOnly; Path=/"]


async def test_an_async_stream_is_sent_as_it_comes() -> None:
    """Each part is sent before the next is made; an empty body ends the response."""
    go_on = trio.Event()

    async def parts() -> AsyncIterator[bytes | str]:
        yield b"first"
        await go_on.wait()
        yield "läst"

    async def view(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(parts())

    app = application(path("", view))
    async with ApplicationCommunicator(app, http_scope()) as communicator:
        await communicator.send_input({"type": "http.request"})
        assert (await communicator.receive_output())["status"] == 200
        first = await communicator.receive_output()
        assert first["body"] == b"first"
        assert first["more_body"]
        go_on.set()
        assert (await communicator.receive_output())["body"] == "läst".encode()
        last = await communicator.receive_output()
        assert not last.get("body")
        assert not last.get("more_body")


async def test_a_sync_stream_is_sent_as_it_comes() -> None:
    """A sync iterator is pulled in a thread, part by part, without a warning."""
    go_on = threading.Event()
    threads = set()

    def parts() -> Any:
        threads.add(threading.current_thread())
        yield b"first"
        assert go_on.wait(10)
        yield "second"

    def view(request: HttpRequest) -> StreamingHttpResponse:
        threads.add(threading.current_thread())
        return StreamingHttpResponse(parts())

    app = application(path("", view))
    async with ApplicationCommunicator(app, http_scope()) as communicator:
        await communicator.send_input({"type": "http.request"})
        await communicator.receive_output()
        assert (await communicator.receive_output())["body"] == b"first"
        go_on.set()
        assert (await communicator.receive_output())["body"] == b"second"
        assert not (await communicator.receive_output()).get("body")
    assert len(threads) == 1
    assert threading.current_thread() not in threads


async def test_a_stream_that_fails_ends_without_a_last_message() -> None:
    """A stream's error reaches the server, ungrouped, and the response is not ended."""

    async def parts() -> AsyncIterator[bytes]:
        async with trio.open_nursery():
            yield b"first"
            raise ValueError("in the middle")

    async def view(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(parts())

    app = application(path("", view))
    communicator = ApplicationCommunicator(app, http_scope())
    await communicator.send_input({"type": "http.request"})
    await communicator.receive_output()
    assert (await communicator.receive_output())["body"] == b"first"
    with pytest.raises(ValueError, match="in the middle"):
        await communicator.wait()
    assert await communicator.receive_nothing()


async def test_a_stream_with_several_errors_is_no_group_to_the_server() -> None:
    """Several errors of a stream reach the server as the cause of one."""

    async def fail() -> NoReturn:
        raise ValueError

    async def parts() -> AsyncIterator[bytes]:
        yield b"first"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            nursery.start_soon(fail)

    async def view(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(parts())

    communicator = ApplicationCommunicator(application(path("", view)), http_scope())
    await communicator.send_input({"type": "http.request"})
    with pytest.raises(RuntimeError, match="2 errors in the response to /") as raised:
        await communicator.wait()
    assert isinstance(raised.value.__cause__, ExceptionGroup)


ERRORS = [
    (Http404("none"), 404),
    (PermissionDenied("no"), 403),
    (BadRequest("what"), 400),
    (SuspiciousOperation("hm"), 400),
    (ValueError("bug"), 500),
]


@pytest.mark.parametrize(("error", "status"), ERRORS)
@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("kind", ["sync", "async", "nursery"])
async def test_an_error_in_a_view_is_answered_by_django(
    error: Exception, status: int, debug: bool, kind: str
) -> None:
    """Each error has Django's status, even out of a nursery; DEBUG shows the page."""

    async def fail() -> NoReturn:
        await trio.lowlevel.checkpoint()
        raise error

    def sync_view(request: HttpRequest) -> NoReturn:
        raise error

    async def async_view(request: HttpRequest) -> NoReturn:
        await fail()

    async def nursery_view(request: HttpRequest) -> None:
        async with trio.open_nursery() as outer, trio.open_nursery() as inner:
            inner.start_soon(fail)
            outer.start_soon(trio.sleep_forever)

    view: Any = {"sync": sync_view, "async": async_view, "nursery": nursery_view}[kind]
    app = application(path("", view))
    with override_settings(DEBUG=debug):
        answer = await request(app)
    assert answer.status == status
    if debug and status == 500:
        assert b"bug" in answer.body
        assert b"ValueError" in answer.body
    if debug and status == 404:
        assert b"Page not found" in answer.body


async def test_several_errors_in_a_view_are_a_500_that_shows_them_all() -> None:
    """With DEBUG, the page has the traceback of each error from a nursery."""

    async def fail(error: Exception) -> NoReturn:
        raise error

    async def view(request: HttpRequest) -> HttpResponse:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail, Http404("this page"))
            nursery.start_soon(fail, KeyError("that key"))
        return HttpResponse()

    app = application(path("", view))
    with override_settings(DEBUG=True):
        answer = await request(app)
    assert answer.status == 500
    assert b"this page" in answer.body
    assert b"that key" in answer.body


async def test_an_error_out_of_a_nursery_keeps_its_context_and_traceback() -> None:
    """The debug page shows the context and traceback that the error was raised with."""
    seen: list[BaseException] = []

    class Middleware:
        async_capable = True

        def __init__(self, get_response: Any) -> None:
            self.get_response = get_response

        def __call__(self, request: HttpRequest) -> Any:
            return self.get_response(request)

        def process_exception(self, request: HttpRequest, error: Exception) -> None:
            seen.append(error)

    async def child() -> None:
        try:
            raise KeyError("first")
        except KeyError:
            raise ValueError("second")  # noqa: B904 - the implicit context is meant

    async def view(request: HttpRequest) -> HttpResponse:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
        return HttpResponse()

    globals()["ContextMiddleware"] = Middleware
    app = application(path("", view), middleware=[f"{__name__}.ContextMiddleware"])
    assert (await request(app)).status == 500
    (error,) = seen
    assert isinstance(error, ValueError)
    assert isinstance(error.__context__, KeyError)
    names = []
    traceback = error.__traceback__
    while traceback is not None:
        names.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    assert names[-1] == "child"


async def test_a_view_that_returns_nothing_is_a_500() -> None:
    """Django's complaint about a view without a response is answered."""

    async def view(request: HttpRequest) -> None:
        pass

    app = application(path("", view))  # type: ignore[arg-type]
    with override_settings(DEBUG=True):
        answer = await request(app)
    assert answer.status == 500
    assert b"returned None instead" in answer.body


@pytest.mark.parametrize("debug", [False, True])
async def test_an_error_that_django_cannot_answer(
    debug: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """If the URLconf cannot be imported, there is a plain 500 and a log entry."""

    class Request(ASGIRequest):
        urlconf = "no.such.urlconf"

    class Handler(ASGIHandler):
        request_class = Request

    with signal_log() as log, override_settings(DEBUG=debug):
        answer = await request(Handler())
    assert answer.status == 500
    assert (b"No module named" in answer.body) is debug
    assert (answer.body == b"Internal Server Error") is not debug
    assert log.names == ["started", "finished"]
    assert "Internal Server Error: /" in caplog.text
    assert "No module named 'no'" in caplog.text


def test_where_no_loop_runs_the_error_names_servers() -> None:
    """The handler needs Trio or asyncio."""
    app = get_asgi_application()
    with pytest.raises(RuntimeError, match="neither Trio nor asyncio"):
        app(http_scope(), print, print).send(None)  # type: ignore[arg-type]


def test_where_no_loop_runs_the_start_up_fails_with_the_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A server of neither Trio nor asyncio ends at once, instead of answering 500."""
    app = get_asgi_application()
    inputs = [{"type": "lifespan.startup"}]
    sent: list[Any] = []

    async def receive() -> Any:
        return inputs.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    with pytest.raises(StopIteration):
        app({"type": "lifespan"}, receive, send).send(None)
    assert inputs == []
    [message] = sent
    assert message["type"] == "lifespan.startup.failed"
    assert message["message"].startswith("RuntimeError: trio_asgi was called where")
    assert "The application's startup failed" in caplog.text


@pytest.mark.skipif(sys.version_info < (3, 12), reason="needs markcoroutinefunction()")
@pytest.mark.parametrize("static", [False, True])
def test_a_wsgi_server_is_told_that_this_is_asgi(*, static: bool) -> None:
    """Servers of WSGI call the application with two arguments."""
    app: Any = get_asgi_application()
    if static:
        app = ASGIStaticFilesHandler(app)
    with pytest.raises(TypeError, match=r"as a WSGI application.*gunicorn -k uvicorn"):
        app({"REQUEST_METHOD": "GET"}, lambda *_: None)


async def test_a_test_may_leave_out_what_is_not_called() -> None:
    """As Django's own tests do: three arguments are ASGI, whatever they are."""

    async def inner(*args: Any) -> None:
        seen.append(args)

    seen: list[Any] = []
    await ASGIStaticFilesHandler(inner)({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
    assert seen == [({"type": "lifespan"}, None, None)]


def test_servers_recognise_an_asgi_application() -> None:
    """They look whether ``__call__`` is async, and some whether it is a function."""
    for app in (get_asgi_application(), ASGIStaticFilesHandler(ASGIHandler())):
        assert inspect.iscoroutinefunction(app.__call__)
        assert asyncio.iscoroutinefunction(app.__call__)


@pytest.mark.parametrize(("length", "status"), [(b"0", 500), (b"4", 413)])
async def test_a_path_adds_no_line_to_the_log(
    length: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A line break in a path would begin a line that looks like another message."""

    def view(request: HttpRequest) -> HttpResponse:
        raise SystemExit

    headers = [(b"content-length", length)]
    with override_settings(TRIO_ASGI={"MAX_BODY_SIZE": 3}):
        app = application(re_path("", view))
        answer = await request(app, "/a\nERROR forged", headers=headers)
    assert answer.status == status
    assert caplog.messages[-1].endswith(": /a\\nERROR forged")


async def test_a_group_of_cancellations_is_one_to_the_server() -> None:
    """A server that cancels a view with a nursery gets Cancelled, not a group."""
    ended: list[object] = []

    async def view(request: HttpRequest) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(trio.sleep_forever)
            started.set()

    app = application(path("", view))  # type: ignore[arg-type]
    started = trio.Event()
    inputs = [{"type": "http.request"}]

    async def receive() -> Any:
        if not inputs:
            await trio.sleep_forever()
        return inputs.pop()

    async def send(message: Any) -> None:
        raise AssertionError("nothing may be sent")

    async def serve() -> None:
        try:
            await app(http_scope(), receive, send)
        except BaseException as error:
            ended.append(error)
            raise

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await started.wait()
        nursery.cancel_scope.cancel()
    assert isinstance(ended[0], trio.Cancelled)

"""A view that starts when the headers are in, and reads the body as it arrives."""

from __future__ import annotations

import logging
import threading
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import trio
import trio.testing
from asgiref.sync import sync_to_async
from django.core.exceptions import RequestDataTooBig, SynchronousOnlyOperation
from django.http import (
    FileResponse,
    HttpRequest,
    HttpResponse,
    RawPostDataException,
    StreamingHttpResponse,
    UnreadablePostError,
)
from django.test import override_settings
from django.urls import path
from django.utils.decorators import method_decorator
from django.utils.deprecation import MiddlewareMixin
from django.views import View

from hop_support import path_of
from support import (
    Answer,
    SignalLog,
    application,
    http_scope,
    receive_answer,
    request,
    signal_log,
)
from trio_asgi import ASGIHandler, ASGIRequest, stream_body
from trio_asgi.asgi.receive import AHEAD
from trio_asgi.testing import ApplicationCommunicator
from trio_asgi.threads.current import current_pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("watching_at_once")

DISCONNECT = {"type": "http.disconnect"}
SECONDS = 10

#: The last part of an upload; all of them together are `UPLOAD`.
PARTS = [b"one ", b"two ", b"three"]
UPLOAD = b"".join(PARTS)

FORM = (
    b'--line\r\nContent-Disposition: form-data; name="name"\r\n\r\nAda\r\n'
    b'--line\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n'
    b"Content-Type: text/plain\r\n\r\ncontent\r\n--line--\r\n"
)
MULTIPART = (b"content-type", b"multipart/form-data; boundary=line")
URLENCODED = (b"content-type", b"application/x-www-form-urlencoded")


def body(part: bytes, *, more_body: bool = True) -> dict[str, Any]:
    """Return a message that a server sends."""
    return {"type": "http.request", "body": part, "more_body": more_body}


@asynccontextmanager
async def uploading(
    app: ASGIHandler, *headers: tuple[bytes, bytes], method: str = "POST"
) -> AsyncIterator[ApplicationCommunicator]:
    """Begin a request whose body has no announced end."""
    chunked = (b"transfer-encoding", b"chunked")
    scope = http_scope(method=method, headers=[chunked, *headers])
    async with ApplicationCommunicator(app, scope) as communicator:
        yield communicator
        await communicator.wait()
    assert current_pool().queue.running == 0


async def upload(
    app: ASGIHandler, *headers: tuple[bytes, bytes], parts: list[bytes] | None = None
) -> Answer:
    """Upload all parts, and return the answer."""
    async with uploading(app, *headers) as communicator:
        for part in PARTS if parts is None else parts:
            await communicator.send_input(body(part))
        await communicator.send_input(body(b"", more_body=False))
        return await receive_answer(communicator)


# Async code reads


async def test_an_async_view_reads_as_the_body_comes() -> None:
    """Each chunk reaches the view before the next one is sent."""
    came = [trio.Event() for _ in PARTS]
    chunks: list[bytes] = []

    @stream_body
    async def view(request: ASGIRequest) -> HttpResponse:
        async for chunk in request.stream():
            chunks.append(chunk)
            came[len(chunks) - 1].set()
        return HttpResponse(b"|".join(chunks))

    async with uploading(application(path("", view))) as communicator:
        for part, event in zip(PARTS, came, strict=True):
            await communicator.send_input(body(part))
            with trio.fail_after(SECONDS):
                await event.wait()
        await communicator.send_input(body(b"", more_body=False))
        answer = await receive_answer(communicator)
    assert answer.body == b"one |two |three"


@pytest.mark.parametrize("stream", [False, True])
async def test_the_setting(stream: bool) -> None:
    """``STREAM_BODY`` applies to all views."""
    started = trio.Event()

    async def view(request: ASGIRequest) -> HttpResponse:
        started.set()
        return HttpResponse([chunk async for chunk in request.stream()])

    with override_settings(TRIO_ASGI={"STREAM_BODY": stream}):
        async with uploading(application(path("", view))) as communicator:
            await communicator.send_input(body(PARTS[0]))
            await trio.testing.wait_all_tasks_blocked()
            assert started.is_set() == stream
            await communicator.send_input(body(PARTS[1], more_body=False))
            answer = await receive_answer(communicator)
    assert answer.body == PARTS[0] + PARTS[1]


class ClassBased(View):
    """A class with one decorated method."""

    @method_decorator(stream_body)
    async def dispatch(self, request: ASGIRequest, *args: Any) -> Any:  # type: ignore[override]
        """Read the body as it arrives."""
        assert request._receiver is not None
        return HttpResponse([chunk async for chunk in request.stream()])


def decorated_above() -> Any:
    """Return a view with another of Django's decorators on top."""
    from django.views.decorators.csrf import csrf_exempt  # noqa: PLC0415

    @csrf_exempt
    @stream_body
    async def view(request: ASGIRequest) -> HttpResponse:
        assert request._receiver is not None
        return HttpResponse([chunk async for chunk in request.stream()])

    return view


@pytest.mark.parametrize("view", [ClassBased.as_view(), decorated_above()])
async def test_what_can_be_decorated(view: Any) -> None:
    """A class-based view, and one with other decorators on top."""
    answer = await upload(application(path("", view)))
    assert answer.body == UPLOAD


@pytest.mark.parametrize("language", ["de", "en"])
async def test_a_view_with_a_language_in_its_path(language: str) -> None:
    """A path that only LocaleMiddleware makes match is resolved before that runs."""
    from django.conf.urls.i18n import i18n_patterns  # noqa: PLC0415

    seen: list[bool] = []

    @stream_body
    async def view(request: ASGIRequest) -> HttpResponse:
        seen.append(request._receiver is not None)
        return HttpResponse(await request.aread())

    middleware = ["django.middleware.locale.LocaleMiddleware"]
    patterns: list[Any] = i18n_patterns(path("", view))
    app = application(*patterns, middleware=middleware)
    scope = http_scope(
        f"/{language}/", method="POST", headers=[(b"content-length", b"3")]
    )
    async with ApplicationCommunicator(app, scope) as communicator:
        await communicator.send_input(body(b"abc", more_body=False))
        assert (await receive_answer(communicator)).body == b"abc"
    assert seen == [True]


@pytest.mark.parametrize("name", ["body", "POST", "FILES", "read", "readline"])
@pytest.mark.parametrize("whole", [False, True])
async def test_async_code_must_not_wait_for_the_body(name: str, whole: bool) -> None:
    """Code that would block the loop raises, however much has come; the error helps.

    It makes no difference whether the whole body has come: code that works in a test
    with a few bytes would fail with a slow client.
    """

    @stream_body
    async def view(request: ASGIRequest) -> HttpResponse:
        with pytest.raises(SynchronousOnlyOperation, match=r"await request\.aread\(\)"):
            value = getattr(request, name)
            value()
        await request.aread()
        return HttpResponse(sorted(request.POST))

    async with uploading(application(path("", view)), URLENCODED) as communicator:
        await communicator.send_input(body(b"b=1&a=2", more_body=not whole))
        if not whole:
            await trio.testing.wait_all_tasks_blocked()
            await communicator.send_input(body(b"", more_body=False))
        assert (await receive_answer(communicator)).body == b"ab"


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_without_a_body_there_is_nothing_to_wait_for(method: str) -> None:
    """Code that accesses every request's body or form keeps working."""

    async def view(request: HttpRequest) -> HttpResponse:
        assert (request.body, dict(request.POST), dict(request.FILES)) == (b"", {}, {})
        return HttpResponse("fine")

    with override_settings(TRIO_ASGI={"STREAM_BODY": True}):
        answer = await request(application(path("", view)), method=method)
    assert answer.body == b"fine"


@pytest.mark.parametrize("stream", [False, True])
async def test_aread(stream: bool) -> None:
    """It returns the body, which is then in memory; a second call does no harm."""

    async def view(request: ASGIRequest) -> HttpResponse:
        assert await request.aread() == UPLOAD
        assert await request.aread() == request.body == UPLOAD
        chunks = [chunk async for chunk in request.stream()]
        assert b"".join(chunks) == request.read() + UPLOAD
        return HttpResponse("fine")

    with override_settings(TRIO_ASGI={"STREAM_BODY": stream}):
        assert (await upload(application(path("", view)))).body == b"fine"


@pytest.mark.parametrize("stream", [False, True])
async def test_aread_parses_a_form_in_the_requests_thread(stream: bool) -> None:
    """Upload handlers write to disks and storages, which would block the loop."""
    threads: list[threading.Thread] = []

    async def view(request: ASGIRequest) -> HttpResponse:
        parse = request.parse_file_upload

        def noting_parse(*args: Any) -> Any:
            threads.append(threading.current_thread())
            return parse(*args)

        request.parse_file_upload = noting_parse  # type: ignore[method-assign, assignment]
        assert await request.aread() == b""
        assert await request.aread() == b""
        threads.append(await sync_to_async(threading.current_thread)())
        file: Any = request.FILES["file"]
        return HttpResponse([request.POST["name"], " ", file.read()])

    app = application(path("", view))
    length = (b"content-length", str(len(FORM)).encode())
    scope = http_scope(method="POST", headers=[length, MULTIPART])
    with override_settings(TRIO_ASGI={"STREAM_BODY": stream}):
        async with ApplicationCommunicator(app, scope) as communicator:
            await communicator.send_input(body(FORM[:50]))
            await communicator.send_input(body(FORM[50:], more_body=False))
            answer = await receive_answer(communicator)
            await communicator.wait()
    assert answer.body == b"Ada content"
    assert len(threads) == 2
    assert len(set(threads)) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("announced", [False, True])
async def test_aread_of_a_body_that_is_too_large_for_memory(
    stream: bool, announced: bool
) -> None:
    """``DATA_UPLOAD_MAX_MEMORY_SIZE`` applies to bodies without a length, too."""
    raised: list[str] = []

    async def view(request: ASGIRequest) -> HttpResponse:
        try:
            return HttpResponse(await request.aread())
        except RequestDataTooBig as error:
            raised.append(str(error))
            raise

    def sync_view(request: HttpRequest) -> HttpResponse:
        try:
            return HttpResponse(request.body)
        except RequestDataTooBig as error:
            raised.append(str(error))
            raise

    length = [(b"content-length", b"13")] if announced else []
    views: list[Any] = [view, sync_view] if stream or announced else [view]
    for each in views:
        app = application(path("", each))
        with override_settings(
            DATA_UPLOAD_MAX_MEMORY_SIZE=10, TRIO_ASGI={"STREAM_BODY": stream}
        ):
            assert (await upload(app, *length)).status == 400
    message = "Request body exceeded settings.DATA_UPLOAD_MAX_MEMORY_SIZE."
    assert raised == [message] * len(views)


async def test_aread_after_the_stream_was_read() -> None:
    """The body cannot be read twice, and the error says so."""

    @stream_body
    async def view(request: ASGIRequest) -> HttpResponse:
        async for _ in request.stream():
            break
        with pytest.raises(RawPostDataException, match="aread"):
            await request.aread()
        with pytest.raises(RawPostDataException):
            request.body  # noqa: B018
        return HttpResponse([chunk async for chunk in request.stream()])

    assert (await upload(application(path("", view)))).body == b"two three"


@pytest.mark.parametrize("limit", [5, 2**20])
async def test_a_body_that_was_read_before_can_be_streamed(limit: int) -> None:
    """The same view works without ``STREAM_BODY``, from memory and from disk."""

    async def view(request: ASGIRequest) -> HttpResponse:
        assert request._receiver is None
        return HttpResponse([chunk async for chunk in request.stream()])

    with override_settings(FILE_UPLOAD_MAX_MEMORY_SIZE=limit):
        assert (await upload(application(path("", view)))).body == UPLOAD


async def test_async_code_goes_on_where_sync_code_has_left_off() -> None:
    """Nothing is lost between a sync reader, whose file reads ahead, and the stream."""

    @stream_body
    async def view(request: ASGIRequest) -> HttpResponse:
        first = await sync_to_async(request.read)(2)
        rest = [chunk async for chunk in request.stream()]
        return HttpResponse([first, b"|", *rest])

    assert (await upload(application(path("", view)))).body == b"on|e two three"


async def test_two_tasks_share_a_body() -> None:
    """Each chunk goes to one of them."""

    @stream_body
    async def view(request: ASGIRequest) -> HttpResponse:
        chunks: list[bytes] = []

        async def read() -> None:
            chunks.extend([chunk async for chunk in request.stream()])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            nursery.start_soon(read)
        return HttpResponse(b"|".join(sorted(chunks)))

    answer = await upload(application(path("", view)))
    assert answer.body == b"one |three|two "


async def test_a_view_that_does_not_read_stops_the_upload() -> None:
    """The server is asked for at most `AHEAD` bytes, plus a chunk's excess."""
    asked = 0
    read = trio.Event()
    answered = trio.Event()
    size = AHEAD // 2

    async def receive() -> dict[str, Any]:
        nonlocal asked
        asked += 1
        await trio.lowlevel.checkpoint()
        if asked > 10:
            await trio.sleep_forever()
        return body(bytes(size), more_body=asked < 10)

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body"):
            answered.set()

    @stream_body
    async def view(request: ASGIRequest) -> HttpResponse:
        chunks = request.stream()
        await read.wait()
        assert sum([len(chunk) async for chunk in chunks]) == 10 * size
        return HttpResponse("fine")

    length = str(10 * size).encode()
    scope = http_scope(method="POST", headers=[(b"content-length", length)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(application(path("", view)), scope, receive, send)
        await trio.testing.wait_all_tasks_blocked()
        assert asked == 3
        read.set()
    assert answered.is_set()
    assert asked <= 11  # the last time for the disconnect


@pytest.mark.parametrize("size", [0, 3])
async def test_a_disconnect_is_seen_behind_a_body_that_nobody_reads(size: int) -> None:
    """The watcher reads ahead: a waiting view is cancelled as after any GET."""
    left = trio.Event()

    @stream_body
    async def view(request: ASGIRequest) -> HttpResponse:
        try:
            await trio.sleep_forever()
        finally:
            left.set()

    async with uploading(application(path("", view))) as communicator:
        await communicator.send_input(body(bytes(size)))
        await communicator.send_input(body(b"", more_body=False))
        await trio.testing.wait_all_tasks_blocked()
        await communicator.send_input(DISCONNECT)
        with trio.fail_after(SECONDS):
            await left.wait()


async def test_a_view_starts_before_the_first_byte() -> None:
    """Once the headers are in."""
    started = trio.Event()

    @stream_body
    async def view(request: ASGIRequest) -> HttpResponse:
        started.set()
        return HttpResponse([chunk async for chunk in request.stream()])

    async with uploading(application(path("", view))) as communicator:
        with trio.fail_after(SECONDS):
            await started.wait()
        await communicator.send_input(body(UPLOAD, more_body=False))
        assert (await receive_answer(communicator)).body == UPLOAD


async def test_many_readers_of_one_body() -> None:
    """All of them reach an end."""

    @stream_body
    async def view(request: ASGIRequest) -> HttpResponse:
        chunks: list[bytes] = []

        async def read() -> None:
            chunks.extend([chunk async for chunk in request.stream()])

        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(read)
        return HttpResponse(b"".join(sorted(chunks)))

    answer = await upload(application(path("", view)))
    assert answer.body == b"one threetwo "


async def test_the_end_waits_for_no_thread_that_reads() -> None:
    """The view's own thread may read on: the loop does not wait for its lock."""
    reading, ended = threading.Event(), threading.Event()
    raised: list[BaseException] = []

    @stream_body
    def view(request: ASGIRequest) -> HttpResponse:
        def read() -> None:
            reading.set()
            try:
                request.read()
            except BaseException as error:  # checked below
                raised.append(error)
            ended.set()

        threading.Thread(target=read).start()
        assert reading.wait(SECONDS)
        return HttpResponse("done")

    app = application(path("", view))
    async with uploading(app) as communicator:
        await communicator.send_input(body(b"one"))
        answer = await communicator.receive_output(timeout=SECONDS)
        assert answer["status"] == 200
        await communicator.send_input(DISCONNECT)
        await communicator.wait(timeout=SECONDS)
    assert await trio.to_thread.run_sync(ended.wait, SECONDS)
    assert len(raised) <= 1


async def test_a_body_and_a_limit_that_no_memory_holds() -> None:
    """``DATA_UPLOAD_MAX_MEMORY_SIZE`` may be any number."""

    @stream_body
    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(request.body)

    for limit in (2**62, None):
        with override_settings(DATA_UPLOAD_MAX_MEMORY_SIZE=limit):
            assert (await upload(application(path("", view)))).body == UPLOAD


async def test_aread_of_a_form_after_the_stream_was_read() -> None:
    """A form cannot be parsed from its middle, and the error says so."""

    @stream_body
    async def view(request: ASGIRequest) -> HttpResponse:
        async for _ in request.stream():
            break
        with pytest.raises(RawPostDataException, match="aread"):
            await request.aread()
        return HttpResponse("fine")

    app = application(path("", view))
    parts = [FORM[:50], FORM[50:]]
    assert (await upload(app, MULTIPART, parts=parts)).body == b"fine"


async def test_a_disconnect_where_async_code_goes_on_after_sync_code(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It cancels the view, as everywhere, and nothing is logged."""

    @stream_body
    async def view(request: ASGIRequest) -> HttpResponse:
        await sync_to_async(request.read)(2)
        async for _ in request.stream():
            pass
        raise AssertionError("the body did not end")

    async with uploading(application(path("", view))) as communicator:
        await communicator.send_input(body(b"one"))
        await trio.testing.wait_all_tasks_blocked(0.01)
        await communicator.send_input(DISCONNECT)
        await communicator.wait()
    assert not caplog.records


@pytest.fixture
def request_finalizer() -> Iterator[ExitStack]:
    """Undo at the end what a test has changed."""
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_an_error_is_answered_without_waiting_for_the_body(
    debug: bool, kind: str, request_finalizer: ExitStack
) -> None:
    """An error report would show the form: it finds an empty one."""

    @stream_body
    async def view(request: HttpRequest) -> HttpResponse:
        raise LookupError("before the body")

    @stream_body
    def sync_view(request: HttpRequest) -> HttpResponse:
        raise LookupError("before the body")

    class Reporter(logging.Handler):
        def emit(self, record: Any) -> None:
            forms.append(dict(record.request.POST))

    forms: list[dict[str, Any]] = []
    reporter = Reporter()
    logging.getLogger("django.request").addHandler(reporter)
    request_finalizer.callback(
        logging.getLogger("django.request").removeHandler, reporter
    )
    app = application(path("", view if kind == "async" else sync_view))
    with override_settings(DEBUG=debug):
        async with uploading(app, MULTIPART) as communicator:
            await communicator.send_input(body(FORM[:50]))
            answer = await communicator.receive_output(timeout=SECONDS)
            assert answer["status"] == 500
            await communicator.send_input(body(b"", more_body=False))
            await communicator.wait(timeout=SECONDS)
    assert forms == [{}]


async def test_a_large_answer_to_a_client_that_sends_all_first() -> None:
    """The data it sends is dropped while the answer waits to be read."""
    received = 0
    all_sent = trio.Event()

    async def receive() -> dict[str, Any]:
        nonlocal received
        await trio.lowlevel.checkpoint()
        received += 1
        if received == 100:
            all_sent.set()
        if received > 100:
            await trio.sleep_forever()
        return body(bytes(2**16), more_body=received < 100)

    async def send(message: Any) -> None:
        await all_sent.wait()

    @stream_body
    async def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(bytes(3 * 2**20))

    with trio.fail_after(SECONDS):
        await application(path("", view))(scope_of_upload(), receive, send)


async def test_an_early_file_that_the_server_sends(tmp_path: Path) -> None:
    """It does not wait for the client to stop sending."""
    file = tmp_path / "file"
    file.write_bytes(b"content")
    sent: list[str] = []

    @stream_body
    async def view(request: HttpRequest) -> FileResponse:
        return FileResponse(file.open("rb"))

    async def send(message: Any) -> None:
        await trio.lowlevel.checkpoint()
        sent.append(message["type"])

    scope = scope_of_upload()
    scope["extensions"] = {"http.response.pathsend": {}}
    wire = Wire()
    before = trio.current_time()
    await application(path("", view))(scope, wire.receive, send)
    assert sent == ["http.response.start", "http.response.pathsend"]
    assert trio.current_time() - before < 2


# The client disconnects


@pytest.fixture(name="log")
def make_log() -> Iterator[SignalLog]:
    """Record the signals of requests."""
    with signal_log() as log:
        yield log


async def test_a_disconnect_cancels_an_async_view_that_reads(log: SignalLog) -> None:
    """At its ``async for``; and its end is signalled."""
    left: list[str] = []

    @stream_body
    async def view(request: ASGIRequest) -> HttpResponse:
        try:
            async for _ in request.stream():
                pass
        except trio.Cancelled:
            left.append("cancelled")
            raise
        raise AssertionError("the body did not end")

    async with uploading(application(path("", view))) as communicator:
        await communicator.send_input(body(b"one"))
        await communicator.send_input(DISCONNECT)
        await communicator.wait()
        assert await communicator.receive_nothing()
    assert left == ["cancelled"]
    assert log.names == ["started", "finished"]


async def test_a_disconnect_cancels_a_view_whose_thread_reads() -> None:
    """`aread` of a form is cancelled, too, although a thread reads."""
    left: list[str] = []

    @stream_body
    async def view(request: ASGIRequest) -> HttpResponse:
        try:
            await request.aread()
        except trio.Cancelled:
            left.append("cancelled")
            raise
        raise AssertionError("the body did not end")

    length = (b"content-length", b"1000")
    async with uploading(application(path("", view)), MULTIPART, length) as client:
        await client.send_input(body(FORM[:50]))
        await trio.testing.wait_all_tasks_blocked(0.01)
        await client.send_input(DISCONNECT)
        await client.wait()
        assert await client.receive_nothing()
    assert left == ["cancelled"]


async def test_a_task_that_is_not_cancelled_is_told() -> None:
    """Behind a shield, reading after a disconnect raises Django's error every time."""
    told: list[str] = []

    @stream_body
    async def view(request: ASGIRequest) -> HttpResponse:
        with trio.CancelScope(shield=True):
            for _ in range(2):
                with pytest.raises(UnreadablePostError, match="client left"):
                    [chunk async for chunk in request.stream()]
                told.append("told")
        return HttpResponse()

    async with uploading(application(path("", view))) as communicator:
        await communicator.send_input(body(b"one"))
        await communicator.send_input(DISCONNECT)
        await communicator.wait()
    assert told == ["told", "told"]


@pytest.mark.parametrize("how", ["read", "body", "POST", "FILES"])
async def test_a_disconnect_while_sync_code_reads(how: str, log: SignalLog) -> None:
    """It raises Django's error, in the thread, every time; the response is dropped."""
    told: list[str] = []

    @stream_body
    def view(request: ASGIRequest) -> HttpResponse:
        with pytest.raises(UnreadablePostError, match="client left"):
            value = getattr(request, how)
            value()
        with pytest.raises(UnreadablePostError):
            request.read()
        told.append("told")
        return HttpResponse("for nobody")

    length = (b"content-length", b"1000")
    app = application(path("", view))
    async with uploading(app, MULTIPART, length) as communicator:
        await communicator.send_input(body(FORM[:50]))
        await trio.testing.wait_all_tasks_blocked(0.01)
        await communicator.send_input(DISCONNECT)
        await communicator.wait()
        assert await communicator.receive_nothing()
    assert told == ["told"]
    assert log.names == ["started", "finished"]


@pytest.mark.parametrize("where", ["view", "hook", "stream", "any thread", "nursery"])
@pytest.mark.parametrize("how", ["read", "body", "POST"])
async def test_a_disconnect_is_no_error_of_sync_code(
    how: str, where: str, log: SignalLog, caplog: pytest.LogCaptureFixture
) -> None:
    """Code that does not catch Django's error has not failed: nothing is logged."""
    reading = trio.Event()

    def read(request: ASGIRequest) -> None:
        trio.from_thread.run_sync(reading.set)
        value: Any = getattr(request, how)
        value()
        raise AssertionError("the body did not end")

    class Middleware(MiddlewareMixin):
        def process_request(self, request: ASGIRequest) -> None:
            """Read in a hook."""
            if where == "hook":
                read(request)

    def parts(request: ASGIRequest) -> Iterator[bytes]:
        yield b""
        read(request)

    @stream_body
    def view(request: ASGIRequest) -> Any:
        if where == "stream":
            return StreamingHttpResponse(parts(request))
        read(request)
        return None

    @stream_body
    async def async_view(request: ASGIRequest) -> Any:
        async with trio.open_nursery() as nursery:
            if where == "nursery":
                nursery.start_soon(trio.sleep_forever)
            await sync_to_async(read, thread_sensitive=False)(request)

    length = (b"content-length", b"1000")
    app = application(
        path("", async_view if where in ("any thread", "nursery") else view),
        middleware=[path_of(Middleware)],
    )
    async with uploading(app, MULTIPART, length) as communicator:
        await communicator.send_input(body(FORM[:50]))
        await reading.wait()
        await trio.testing.wait_all_tasks_blocked(0.01)
        await communicator.send_input(DISCONNECT)
        await communicator.wait()
    assert log.names == ["started", "finished"]
    assert caplog.records == []


async def test_an_upload_that_cannot_be_read_is_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """While the client is still connected, Django's error is a server error."""

    @stream_body
    def view(request: ASGIRequest) -> NoReturn:
        raise UnreadablePostError("somebody else's upload")

    answer = await upload(application(path("", view)))
    assert answer.status == 500
    assert "somebody else's upload" in caplog.text


# Sync code reads


READERS: dict[str, Any] = {
    "read": ASGIRequest.read,
    "read in parts": lambda request: b"".join(iter(lambda: request.read(3), b"")),
    "lines": b"".join,
    "body": lambda request: request.body,
}


@pytest.mark.parametrize("how", READERS)
async def test_a_sync_view_reads_as_the_body_comes(how: str) -> None:
    """It waits in its thread, which counts as free meanwhile."""
    started = trio.Event()

    @stream_body
    def view(request: ASGIRequest) -> HttpResponse:
        trio.from_thread.run_sync(started.set)
        return HttpResponse(READERS[how](request))

    async with uploading(application(path("", view))) as communicator:
        await communicator.send_input(body(PARTS[0]))
        with trio.fail_after(SECONDS):
            await started.wait()
            while current_pool().queue.running:
                await trio.testing.wait_all_tasks_blocked(0.001)
        for part in PARTS[1:]:
            await communicator.send_input(body(part))
        await communicator.send_input(body(b"", more_body=False))
        assert (await receive_answer(communicator)).body == UPLOAD


async def test_sync_middleware_reads_for_an_async_view() -> None:
    """The form it has parsed is available to the view, without any `aread`."""

    @stream_body
    async def view(request: HttpRequest) -> HttpResponse:
        file: Any = request.FILES["file"]
        return HttpResponse([request.POST["name"], file.name])

    middleware = ["test_streamed_bodies.reading_middleware"]
    app = application(path("", view), middleware=middleware)
    length = (b"content-length", str(len(FORM)).encode())
    parts = [FORM[:99], FORM[99:]]
    assert (await upload(app, MULTIPART, length, parts=parts)).body == b"Adaa.txt"


def reading_middleware(get_response: Any) -> Any:
    """Access the form first of all."""

    def middleware(request: HttpRequest) -> Any:
        assert request.POST["name"] == "Ada"
        return get_response(request)

    return middleware


def _in_own_thread(fn: Any) -> Any:
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(fn()))
    thread.start()
    thread.join(SECONDS)
    return result[0]


async def test_any_thread_reads() -> None:
    """One of Trio's own, or one that the view has started."""

    @stream_body
    async def view(request: ASGIRequest) -> HttpResponse:
        one = await trio.to_thread.run_sync(request.read, 4)
        two = await sync_to_async(_in_own_thread)(partial(request.read, 4))
        return HttpResponse([one, b"|", two, b"|", await sync_to_async(request.read)()])

    answer = await upload(application(path("", view)))
    assert answer.body == b"one |two |three"


async def test_the_server_cancels_a_sync_view_that_reads(log: SignalLog) -> None:
    """The reading ends in Trio's error, like every wait of a thread for a task."""
    seen: list[type[BaseException]] = []

    @stream_body
    def view(request: ASGIRequest) -> HttpResponse:
        try:
            request.read()
        except BaseException as error:
            seen.append(type(error))
            raise
        return HttpResponse()

    app = application(path("", view))

    async def receive() -> dict[str, Any]:
        if not log.names:
            return body(b"x")
        await trio.sleep_forever()
        raise AssertionError

    async def send(message: Any) -> None:
        raise AssertionError(message)

    chunked = (b"transfer-encoding", b"chunked")
    scope = http_scope(method="POST", headers=[chunked])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app, scope, receive, send)
        while not log.names or current_pool().queue.running:
            await trio.testing.wait_all_tasks_blocked(0.001)
        nursery.cancel_scope.cancel()
    assert seen == [trio.Cancelled]
    assert log.names == ["started", "finished"]


# The answer comes first


class Wire:
    """A client that keeps sending, and the server's two functions for it."""

    def __init__(self, *, leaves: bool = False) -> None:
        self.received = 0
        self.sent: list[Any] = []
        self.answered = trio.Event()
        self._leaves = leaves

    async def receive(self) -> dict[str, Any]:
        """Give one chunk after another, until the client has read the answer."""
        await trio.lowlevel.checkpoint()
        if self._leaves and self.answered.is_set():
            return DISCONNECT
        self.received += 1
        await trio.sleep(0.1)
        return body(b"x" * 1000)

    async def send(self, message: Any) -> None:
        """Note what is sent, and when."""
        await trio.lowlevel.checkpoint()
        self.sent.append((message, trio.current_time()))
        if message.get("body"):
            self.answered.set()


def scope_of_upload() -> dict[str, Any]:
    """Return the scope of an upload of unknown length."""
    return http_scope(method="POST", headers=[(b"transfer-encoding", b"chunked")])


@stream_body
async def answer_at_once(request: HttpRequest) -> HttpResponse:
    """Ignore the body."""
    return HttpResponse("no, thanks")


@stream_body
async def stream_an_answer(request: HttpRequest) -> StreamingHttpResponse:
    """Answer in parts, and ignore the body."""

    async def parts() -> AsyncIterator[bytes]:
        yield b"no, "
        yield b"thanks"

    return StreamingHttpResponse(parts())


@pytest.mark.parametrize("view", [answer_at_once, stream_an_answer])
async def test_an_answer_before_the_end_of_the_body(
    view: Any, autojump_clock: trio.testing.MockClock
) -> None:
    """The client gets the answer, and two seconds to read it, before the end."""
    wire = Wire()
    await application(path("", view))(scope_of_upload(), wire.receive, wire.send)
    before, last = wire.sent[-2:]
    messages = [message for message, _ in wire.sent]
    assert b"".join(m.get("body", b"") for m in messages) == b"no, thanks"
    assert not last[0].get("body")
    assert not last[0].get("more_body")
    assert before[0]["more_body"]
    assert last[1] - before[1] == pytest.approx(2, abs=0.2)
    assert wire.received > 15


async def test_a_client_that_stops_when_it_is_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The end comes as soon as it has disconnected."""
    wire = Wire(leaves=True)
    app = application(path("", answer_at_once))
    await app(scope_of_upload(), wire.receive, wire.send)
    assert wire.sent[-1][1] - wire.sent[1][1] < 0.2
    assert not wire.sent[-1][0].get("more_body")


async def test_a_server_that_waits_for_its_messages_to_be_taken(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its ``send`` may not return before its queue was emptied: it is emptied."""
    queue_taken = trio.Event()
    messages = [body(b"1"), body(b"2", more_body=True)]

    async def receive() -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        if messages:
            return messages.pop(0)
        queue_taken.set()
        await trio.sleep_forever()
        raise AssertionError

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body"):
            with trio.fail_after(SECONDS):
                await queue_taken.wait()

    app = application(path("", answer_at_once))
    with trio.fail_after(SECONDS):
        await app(scope_of_upload(), receive, send)
    assert queue_taken.is_set()

"""Responses that no server can send: a plain 500 instead, and the reason in the log."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import trio
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.template.response import TemplateResponse
from django.urls import path

from support import application, http_scope, request, signal_log
from trio_asgi import ASGIHandler

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from django.http import HttpResponseBase

    from trio_asgi.asgi.types import Message, Send


class Closer(HttpResponse):
    """A response that notes that it was closed."""

    closed_times = 0

    def close(self) -> None:
        """Note it."""
        type(self).closed_times += 1
        super().close()


def with_header(name: str, value: str) -> HttpResponse:
    """Return a response with a header that Django would not set."""
    response = Closer("body")
    response.headers._store[name.lower()] = (name, value)
    return response


def with_cookie(value: str) -> HttpResponse:
    """Return a response with a cookie."""
    response = Closer("body")
    response.set_cookie("name", value)
    return response


def with_status(status: Any) -> HttpResponse:
    """Return a response whose status was changed to one that no server knows."""
    response = Closer("body")
    response.status_code = status
    return response


class Unreadable(Closer):
    """A response whose content cannot be accessed."""

    @property
    def content(self) -> bytes:
        """Fail."""
        raise LookupError("no content")

    @content.setter
    def content(self, value: Any) -> None:
        """Store the constructor's content."""


def unrendered() -> HttpResponseBase:
    """Return a response that is not rendered, and cannot be."""
    response = TemplateResponse(HttpRequest(), "x")
    # Django renders the responses of views.
    response.render = None  # type: ignore[assignment]
    return response


UNSENDABLE: dict[str, tuple[Callable[[], HttpResponseBase], str]] = {
    "cookie": (lambda: with_cookie("Łódź"), "must be ASCII"),
    "NUL": (lambda: with_header("X-A", "a\0b"), "control character '\\x00'"),
    "CR LF": (lambda: with_header("X-A", "a\r\nX-B: b"), "control character '\\r'"),
    "DEL": (lambda: with_header("X-A", "a\x7f"), "control character '\\x7f'"),
    "value": (lambda: with_header("X-A", "Łódź"), "can't encode"),
    "space in a name": (lambda: with_header("X A", "a"), "with the name 'X A'"),
    "colon in a name": (lambda: with_header(":path", "a"), "with the name ':path'"),
    "no name": (lambda: with_header("", "a"), "with the name ''"),
    "name": (lambda: with_header("Łódź", "a"), "with the name 'Łódź'"),
    "status, informational": (lambda: with_status(101), "with the status 101"),
    "too short": (lambda: with_header("Content-Length", "5"), "Content-Length '5'"),
    "too long": (lambda: with_header("Content-Length", "3"), "Content-Length '3'"),
    "no length": (lambda: with_header("Content-Length", "a"), "Content-Length 'a'"),
    "content": (Unreadable, "no content"),
    "not rendered": (unrendered, "must be rendered"),
}


@pytest.mark.parametrize("case", [*UNSENDABLE])
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_what_cannot_be_sent(
    caplog: pytest.LogCaptureFixture, kind: str, case: str
) -> None:
    """The client gets a 500, the log the reason; it is closed, and ends once."""
    make, reason = UNSENDABLE[case]
    made: list[HttpResponseBase] = []

    def view(request: HttpRequest) -> HttpResponseBase:
        made.append(make())
        return made[0]

    async def async_view(request: HttpRequest) -> HttpResponseBase:
        return view(request)

    app = application(path("", view if kind == "sync" else async_view), middleware=())
    with signal_log() as log:
        answer = await request(app)
    assert (answer.status, answer.body) == (500, b"Internal Server Error")
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert record.name == "django.request"
    assert record.exc_info is not None
    assert reason in str(record.exc_info[1])
    assert made[0].closed
    assert log.names == ["started", "finished"]


@pytest.mark.parametrize("status", ["OK", None, True, 1000])
async def test_a_status_that_no_server_knows(
    caplog: pytest.LogCaptureFixture, status: Any
) -> None:
    """Django compares it before; so it has to be changed after Django."""
    made: list[HttpResponse] = []

    class Changing(ASGIHandler):
        async def run_get_response(self, request: Any) -> HttpResponseBase:
            response = await super().run_get_response(request)
            response.status_code = status
            return response

    def view(request: HttpRequest) -> HttpResponse:
        made.append(HttpResponse("body"))
        return made[0]

    answer = await request(application(path("", view), handler=Changing))
    assert (answer.status, answer.body) == (500, b"Internal Server Error")
    assert f"A response with the status {status!r} cannot be sent" in caplog.text
    assert made[0].closed


async def test_a_stream_with_a_header_that_cannot_be_sent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is closed without having been started."""
    events: list[str] = []

    class Parts:
        def __aiter__(self) -> Parts:
            return self

        async def __anext__(self) -> bytes:
            events.append("asked")
            raise StopAsyncIteration

        async def aclose(self) -> None:
            events.append("closed")

    async def view(request: HttpRequest) -> StreamingHttpResponse:
        response = StreamingHttpResponse(Parts())
        response.set_cookie("name", "Łódź")
        return response

    answer = await request(application(path("", view)))
    assert (answer.status, answer.body) == (500, b"Internal Server Error")
    assert events == ["closed"]


async def test_sending_of_somebody_elses_that_fails_before_the_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An override of send_response may raise any error."""

    class Failing(ASGIHandler):
        async def send_response(self, response: HttpResponseBase, send: Send) -> None:
            raise LookupError("no start")

    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse("body")

    answer = await request(application(path("", view), handler=Failing))
    assert (answer.status, answer.body) == (500, b"Internal Server Error")
    assert "no start" in caplog.text


async def test_a_server_that_refuses_the_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A problem that only the server finds is answered in the same way."""
    sent: list[Message] = []

    inputs_send, inputs = trio.open_memory_channel[Any](1)
    await inputs_send.send({"type": "http.request"})

    async def send(message: Message) -> None:
        await trio.lowlevel.checkpoint()
        if (b"X-Odd", b"odd") in message.get("headers", ()):
            raise ValueError("an odd header")
        sent.append(message)

    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse("body", headers={"X-Odd": "odd"})

    await application(path("", view))(http_scope(), inputs.receive, send)
    assert [message.get("status") for message in sent] == [500, None]
    assert "an odd header" in caplog.text


@pytest.mark.parametrize(
    ("method", "status"), [("HEAD", 200), ("GET", 304), ("GET", 204)]
)
async def test_a_length_of_a_body_that_is_not_sent(method: str, status: int) -> None:
    """It is the length that another request would get."""

    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(status=status, headers={"Content-Length": "12345"})

    answer = await request(application(path("", view)), method=method)
    assert answer.status == status
    assert (b"Content-Length", b"12345") in answer.headers


async def test_what_may_be_in_a_value() -> None:
    """Tabs, and all of Latin-1, arrive unchanged."""
    value = "a\tb" + "".join(map(chr, range(0xA0, 0x100)))

    def view(request: HttpRequest) -> HttpResponse:
        return with_header("X-Any_Token.~", value)

    answer = await request(application(path("", view)))
    assert answer.status == 200
    assert (b"X-Any_Token.~", value.encode("latin-1")) in answer.headers


@pytest.mark.parametrize("version", ["1.1", "2"])
async def test_headers_about_the_connection(version: str) -> None:
    """HTTP/2 forbids them; its libraries then send nothing, and the client waits."""

    async def parts() -> AsyncIterator[bytes]:
        yield b"part"

    async def view(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(parts(), headers={"Connection": "close"})

    answer = await request(application(path("", view)), http_version=version)
    assert answer.body == b"part"
    names = [name for name, _ in answer.headers]
    assert (b"Connection" in names) == (version == "1.1")


async def test_headers_that_a_response_adds_when_it_is_sent() -> None:
    """A class of one's own decides what its headers are, as under Django's handler."""

    class Adding(HttpResponse):
        def items(self) -> Any:
            return [*super().items(), ("X-Added", "yes")]

    def view(request: HttpRequest) -> HttpResponse:
        return Adding()

    answer = await request(application(path("", view)))
    assert (b"X-Added", b"yes") in answer.headers

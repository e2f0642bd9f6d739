"""Django's sync test client, answered by `trio_asgi.ASGIHandler`.

Django's `Client` gives a WSGI environ to a handler for tests, which returns the
response object itself. Here each request is an ASGI request instead, in a separate Trio
run. Its sync code runs in the test's thread, and so in the test's transaction:

    self.client.get(...)  ──► environ ──► scope and body ──► ASGIHandler on Trio
    the test  ◄── the response object ◄── compared with ◄── messages of ASGI

The test gets what Django's handler gives it: the object that the middleware returned,
or the error that it raised. What a server would have sent must match that object; if
not, the test fails.
"""

from __future__ import annotations

import functools
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

import django.core.handlers.asgi
import trio
from django.core.handlers.wsgi import get_script_name
from django.test import client

import trio_asgi
import trio_asgi.testing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from django.http import HttpRequest, HttpResponseBase

    from trio_asgi.asgi.types import Message, Scope

    from .recorder import Recorder

#: How many bytes of a body one message brings.
CHUNK = 2**16

#: What an environ has as a variable, and ASGI as a header, where Django's middleware
#: looks for a user.
_AS_HEADERS = {
    "CONTENT_LENGTH": "content-length",
    "CONTENT_TYPE": "content-type",
    "REMOTE_USER": "remote-user",
}

#: Django's client may have one of these without a value. Real clients never do.
_NOT_EMPTY = {"cookie", "content-length", "content-type"}

#: The other keys of an environ that have a place in a scope.
_KNOWN = {
    "PATH_INFO",
    "QUERY_STRING",
    "REMOTE_ADDR",
    "REQUEST_METHOD",
    "SCRIPT_NAME",
    "SERVER_NAME",
    "SERVER_PORT",
    "SERVER_PROTOCOL",
}


class WireError(AssertionError):
    """A server would have sent something other than the response object."""


def install(notes: Recorder) -> None:
    """Put `ASGIHandler` in the place of Django's handler for tests.

    Args:
        notes: Receives each request, and each difference on the wire.
    """
    original: Any = client.ClientHandler.__call__

    @functools.wraps(original)
    def __call__(self: Any, environ: dict[str, Any]) -> HttpResponseBase:  # noqa: N807
        if trio.lowlevel.in_trio_task():
            # The call would block the loop of an async test that uses the sync client.
            notes.note_request(on_trio=False)
            return original(self, environ)  # type: ignore[no-any-return]
        handler = vars(self).get("_asgi_handler")
        if handler is None:
            kind = Handler if self.enforce_csrf_checks else UncheckedHandler
            handler = self._asgi_handler = kind()
        request = Exchange(environ)
        notes.note_request(on_trio=True)
        request.run(handler)
        for difference in request.differences():
            notes.note_difference(difference)
            raise WireError(difference)
        return request.result()

    vars_of_class: Any = client.ClientHandler
    vars_of_class.__call__ = __call__


# The handler


class UncheckedRequest(trio_asgi.ASGIRequest):
    """A request without the CSRF check, as in Django's client."""

    _dont_enforce_csrf_checks = True


class Telling(django.core.handlers.asgi.ASGIHandler):
    """Tells the `Exchange` what the handler works on."""

    async def run_get_response(self, request: HttpRequest) -> HttpResponseBase:
        exchange = _current.get()
        exchange.request = request
        # What no server tells an application through ASGI; see `accepted`.
        request.META.update(exchange.extras)
        try:
            response: HttpResponseBase = await super().run_get_response(request)
        except Exception as error:
            exchange.error = error
            raise
        exchange.response = response
        return response

    async def send_response(self, response: HttpResponseBase, send: Any) -> None:
        _current.get().sent = response
        await super().send_response(response, send)


class Handler(Telling, trio_asgi.ASGIHandler):
    """The handler under test."""


class UncheckedHandler(Handler):
    """The same, for clients without ``enforce_csrf_checks``."""

    request_class = UncheckedRequest


# One request


@dataclass
class Exchange:
    """A request of the client, and its result."""

    #: The threads and settings that it runs with.
    in_new_run: ClassVar[Any] = staticmethod(trio_asgi.testing.run)
    event: ClassVar[Any] = trio.Event
    checkpoint: ClassVar[Any] = staticmethod(trio.lowlevel.checkpoint)

    environ: dict[str, Any]
    #: The request that the handler has made from it.
    request: HttpRequest | None = None
    #: What the middleware returned or raised; the handler answers an error with 500.
    response: HttpResponseBase | None = None
    error: Exception | None = None
    #: What was sent, and in which form.
    sent: HttpResponseBase | None = None
    messages: list[Message] = field(default_factory=list)
    #: The error that a stream has raised.
    stream_error: Exception | None = None

    @functools.cached_property
    def extras(self) -> dict[str, Any]:
        """What the environ has and a scope has no place for."""
        return {
            key: value
            for key, value in self.environ.items()
            if not (
                key in _KNOWN
                or key in _AS_HEADERS
                or key.startswith(("HTTP_", "wsgi."))
            )
        }

    def run(self, handler: Telling) -> None:
        """Let the handler answer it."""
        scope, body = scope_of(self.environ), body_of(self.environ)
        self.in_new_run(self.serve, handler, scope, body)

    async def serve(self, handler: Telling, scope: Scope, body: bytes) -> None:
        """Let the handler answer a request, and keep what it sends."""
        chunks = [body[at : at + CHUNK] for at in range(0, len(body), CHUNK)] or [b""]
        incoming = [
            {"type": "http.request", "body": chunk, "more_body": True}
            for chunk in chunks
        ]
        incoming[-1]["more_body"] = False
        incoming.reverse()

        complete = self.event()

        async def receive() -> dict[str, Any]:
            await self.checkpoint()
            if incoming:
                return incoming.pop()
            await complete.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            await self.checkpoint()
            self.messages.append(message)
            if _is_last(message):
                complete.set()

        marker = _current.set(self)
        try:
            await handler(scope, receive, send)
        except Exception as error:
            if not self._is_streaming or self.messages[-1:] == []:
                raise
            self.stream_error = error
        finally:
            _current.reset(marker)

    @property
    def _is_streaming(self) -> bool:
        return self.response is not None and self.response.streaming

    def differences(self) -> Iterator[str]:
        """Yield the differences between the messages and the response."""
        response = self.response
        if self.error is not None:
            if self._status != 500:
                yield f"{self.error!r} was answered with status {self._status}"
            return
        if response is None or response is not self.sent:
            yield f"returned was {response!r}, but sent was {self.sent!r}"
            return
        kinds = [message["type"].rpartition(".")[2] for message in self.messages]
        if kinds != ["start"] + ["body"] * (len(kinds) - 1):
            yield f"sent were messages of the types {kinds}"
            return
        if self._status != response.status_code:
            yield f"the status is {response.status_code}, sent was {self._status}"
        headers = self.messages[0]["headers"]
        if headers != headers_of(response):
            yield f"the headers are {headers_of(response)}, sent were {headers}"
        if self.stream_error is None and not (
            _is_last(self.messages[-1]) and not any(map(_is_last, self.messages[:-1]))
        ):
            yield f"not only the last message is the last: {self.messages}"
        yield from self._differences_of_body(response)
        if not response.closed:
            yield "the response was not closed"

    def _differences_of_body(self, response: HttpResponseBase) -> Iterator[str]:
        body = b"".join(self.parts)
        if not response.streaming:
            if body != response.content:  # type: ignore[attr-defined]
                yield f"the body is {response.content!r}, sent was {body!r}"  # type: ignore[attr-defined]
        elif self.environ["REQUEST_METHOD"].upper() == "HEAD":
            if body:
                yield f"HEAD was answered with a body: {body!r}"
        elif self.stream_error is None:
            length = response.headers.get("Content-Length", str(len(body)))
            if length != str(len(body)):
                yield f"the Content-Length is {length}, sent were {len(body)} bytes"

    @property
    def _status(self) -> int | None:
        return self.messages[0].get("status") if self.messages else None

    @property
    def parts(self) -> list[bytes]:
        """The parts of the body."""
        return [part for m in self.messages[1:] if (part := m.get("body"))]

    def result(self) -> HttpResponseBase:
        """Return or raise what Django's handler for tests gives the client."""
        if self.error is not None:
            raise self.error
        response: Any = self.response
        if response.streaming:
            # It was iterated and closed when it was sent.
            again = _async_again if response.is_async else _again
            response.streaming_content = again(self.parts, self.stream_error)
        assert self.request is not None
        client.conditional_content_removal(self.request, response)
        response.wsgi_request = self.request
        return response  # type: ignore[no-any-return]


_current: ContextVar[Exchange] = ContextVar("django_suite_exchange")


def _is_last(message: Message) -> bool:
    return message["type"] == "http.response.body" and not message.get("more_body")


def _again(parts: list[bytes], error: Exception | None) -> Iterator[bytes]:
    yield from parts
    if error is not None:
        raise error


async def _async_again(
    parts: list[bytes], error: Exception | None
) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
    if error is not None:
        raise error


# From WSGI to ASGI, as a server would see the request


def scope_of(environ: dict[str, Any]) -> Scope:
    """Return the scope that a client's request with this environ would have."""
    prefix = get_script_name(environ).encode()  # FORCE_SCRIPT_NAME, if that is set
    info = environ["PATH_INFO"].encode("latin-1")
    path = prefix.rstrip(b"/") + b"/" + info.removeprefix(b"/")
    address, name = environ.get("REMOTE_ADDR"), environ.get("SERVER_NAME")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": environ["SERVER_PROTOCOL"].partition("/")[2],
        "method": environ["REQUEST_METHOD"].upper(),
        "scheme": environ["wsgi.url_scheme"],
        "path": path.decode(errors="replace"),
        "raw_path": quote(path, safe="/%:@!$&'()*+,;=~").encode(),
        "root_path": environ["SCRIPT_NAME"].encode("latin-1").decode(),
        "query_string": environ.get("QUERY_STRING", "").encode("latin-1"),
        "headers": list(request_headers(environ)),
        "client": (address, 50000) if address else None,
        "server": (name, int(environ["SERVER_PORT"])) if name else None,
    }


def request_headers(environ: dict[str, Any]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the headers as a client sends them."""
    for key, value in environ.items():
        name = _AS_HEADERS.get(key)
        if name is None and key.startswith("HTTP_"):
            name = key.removeprefix("HTTP_").lower().replace("_", "-")
        if name and value is not None and (value != "" or name not in _NOT_EMPTY):
            yield name.encode(), str(value).encode("latin-1")


def body_of(environ: dict[str, Any]) -> bytes:
    """Return the body, up to the announced length."""
    try:
        announced = int(environ.get("CONTENT_LENGTH") or 0)
    except ValueError:
        return b""
    body: bytes = environ["wsgi.input"].read()
    return body[:announced]


def headers_of(response: HttpResponseBase) -> list[tuple[bytes, bytes]]:
    """Return a response's headers, as Django's WSGI handler gives them to a server."""
    cookies = [cookie.output(header="") for cookie in response.cookies.values()]
    headers = [*response.items(), *(("Set-Cookie", text.strip()) for text in cookies)]
    return [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers]

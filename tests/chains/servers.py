"""Requests through a chain, under Django's two handlers and under this project's."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import io
import re
import sys
import warnings
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from typing import IO, TYPE_CHECKING, Any

import trio
from django.core.handlers.asgi import ASGIHandler as DjangoASGIHandler
from django.core.handlers.wsgi import WSGIHandler

from trio_asgi import ASGIHandler
from trio_asgi.testing import http_scope

from . import notes
from .notes import Event, Recording, note, recording
from .project import USES_DATABASE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .specs import Chain, Request

#: How long the requests of a chain may take, in seconds.
SECONDS = 20

#: What clients send while they have no cookie.
CSRF_TOKEN = "a" * 32


@dataclass
class Outcome:
    """The result of a request."""

    recording: Recording = field(default_factory=Recording)
    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    parts: list[bytes] = field(default_factory=list)
    complete: bool = False
    #: The error that the handler raised to the server.
    error: Exception | None = None

    @property
    def events(self) -> list[Event]:
        """All that happened."""
        return self.recording.events


@dataclass
class Run:
    """The results of the requests to one handler."""

    made: list[str]
    outcomes: list[Outcome]


def run_asyncio(chain: Chain) -> Run:
    """Serve the requests by Django's ASGI handler, one by one."""

    async def serve(app: _ClosingHandler) -> list[Outcome]:
        outcomes = []
        for client, request in _clients(chain):
            exchange = client.exchange(app, request, asyncio.Event().wait)
            # In a task, as under servers, and so in a separate context.
            task = asyncio.ensure_future(exchange)
            outcomes.append(await asyncio.wait_for(task, SECONDS))
            app.body_file.close()
        return outcomes

    with warnings.catch_warnings():
        # Warnings that an async handler streams sync parts.
        warnings.simplefilter("ignore")
        run = _run(chain, _ClosingHandler, lambda app: asyncio.run(serve(app)))
        if USES_DATABASE.intersection(chain.settings):
            # Failed requests, and other threads, leave connections open.
            gc.collect()
    return run


class _ClosingHandler(DjangoASGIHandler):
    """Django's ASGI handler, which up to 6.0 leaves the body open when it raises."""

    body_file: IO[bytes]

    async def read_body(self, receive: Any) -> IO[bytes]:
        self.body_file = await super().read_body(receive)
        return self.body_file


def run_trio(chain: Chain, handler: Callable[[], ASGIHandler] = ASGIHandler) -> Run:
    """Serve the requests by this project's handler, together if the chain says so."""

    async def serve(app: ASGIHandler) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}

        async def exchange(index: int, client: Client, request: Request) -> None:
            outcomes[index] = await client.exchange(app, request, trio.sleep_forever)

        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as together:
                for index, (client, request) in enumerate(_clients(chain)):
                    async with trio.open_nursery() as alone:
                        # In a task, as under servers, and so in a separate context.
                        nursery = together if chain.together else alone
                        nursery.start_soon(exchange, index, client, request)
        return [outcome for _, outcome in sorted(outcomes.items())]

    return _run(chain, handler, lambda app: trio.run(serve, app))


def run_wsgi(chain: Chain) -> Run:
    """Serve the requests by Django's WSGI handler, one by one."""

    def serve(app: WSGIHandler) -> list[Outcome]:
        return [
            contextvars.Context().run(client.call, app, request)
            for client, request in _clients(chain)
        ]

    with warnings.catch_warnings():
        # Warnings that a sync handler streams async parts.
        warnings.simplefilter("ignore")
        return _run(chain, WSGIHandler, serve)


def _run(
    chain: Chain, handler: Callable[[], Any], serve: Callable[[Any], list[Outcome]]
) -> Run:
    notes.made.clear()
    app = handler()
    made = list(notes.made)
    outcomes = contextvars.Context().run(serve, app)
    for outcome in outcomes:
        for coroutine in outcome.recording.coroutines:
            coroutine.close()
    return Run(made, outcomes)


def _clients(chain: Chain) -> Iterator[tuple[Client, Request]]:
    """Return each request's client: one for all, or several if they run together."""
    client = Client()
    for request in chain.requests:
        yield Client() if chain.together else client, request


class Client:
    """A client and its server. Keeps cookies from request to request."""

    def __init__(self) -> None:
        self._cookies: dict[str, str] = {}

    async def exchange(
        self, app: Any, request: Request, wait_forever: Callable[[], Any]
    ) -> Outcome:
        """Make a request to an ASGI application. Sets the task's recording."""
        outcome = Outcome()
        recording.set(outcome.recording)
        messages = [{"type": "http.request", "body": _body(request)}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await wait_forever()
            raise AssertionError("nobody has left")

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [
                    (name.decode(), value.decode())
                    for name, value in message["headers"]
                    # What Django does not have, in `DEBUG`.
                    if name != b"Server-Timing"
                ]
                self._start(outcome, message["status"], headers)
                return
            outcome.parts.append(message.get("body", b""))
            if not message.get("more_body"):
                outcome.complete = True
                note("send end")

        scope = http_scope(
            request.path, method=request.method, headers=self._headers(request)
        )
        try:
            await app(scope, receive, send)
        except Exception as error:
            outcome.error = error
        return outcome

    def call(self, app: WSGIHandler, request: Request) -> Outcome:
        """Make a request to a WSGI application. Sets the context's recording."""
        outcome = Outcome()
        recording.set(outcome.recording)

        def start_response(status: str, headers: list[tuple[str, str]]) -> None:
            stripped = [(name, value.strip()) for name, value in headers]
            self._start(outcome, int(status.partition(" ")[0]), stripped)

        wsgi: Any = app
        try:
            response = wsgi(self._environ(request), start_response)
            try:
                outcome.parts = list(response)
                outcome.complete = True
                note("send end")
            finally:
                response.close()
        except Exception as error:
            outcome.error = error
        return outcome

    def _start(
        self, outcome: Outcome, status: int, headers: list[tuple[str, str]]
    ) -> None:
        outcome.status, outcome.headers = status, headers
        note("send start", str(status))
        for name, value in headers:
            if name == "Set-Cookie":
                for morsel in SimpleCookie(value).values():
                    self._cookies[morsel.key] = morsel.coded_value

    def _headers(self, request: Request) -> dict[str, str]:
        cookies = dict(self._cookies)
        headers = {"Host": request.host, "Accept-Language": request.language}
        if request.method == "POST":
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            headers["Content-Length"] = str(len(_body(request)))
        if request.token:
            headers["X-CSRFToken"] = cookies.setdefault("csrftoken", CSRF_TOKEN)
        if cookies:
            pairs = [f"{name}={value}" for name, value in cookies.items()]
            headers["Cookie"] = "; ".join(pairs)
        return headers

    def _environ(self, request: Request) -> dict[str, Any]:
        headers = {
            f"HTTP_{name.upper().replace('-', '_')}": value
            for name, value in self._headers(request).items()
        }
        return {
            "REQUEST_METHOD": request.method,
            "PATH_INFO": request.path,
            "SCRIPT_NAME": "",
            "QUERY_STRING": "",
            "SERVER_NAME": "testserver",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "127.0.0.1",
            "CONTENT_TYPE": headers.pop("HTTP_CONTENT_TYPE", ""),
            "CONTENT_LENGTH": headers.pop("HTTP_CONTENT_LENGTH", ""),
            "wsgi.input": io.BytesIO(_body(request)),
            "wsgi.errors": sys.stderr,
            "wsgi.url_scheme": "http",
            "wsgi.multithread": False,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            "wsgi.version": (1, 0),
            **headers,
        }


def _body(request: Request) -> bytes:
    return b"name=value" if request.method == "POST" else b""


_EXPIRES = re.compile(r"expires=[^;]*")


def comparable(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return headers without random values and times."""
    done = []
    for name, value in headers:
        if name == "Set-Cookie":
            key, _, rest = value.partition("=")
            attributes = rest.partition(";")[2]
            done.append((name, f"{key};{_EXPIRES.sub('', attributes)}"))
        else:
            done.append((name, "" if name in {"Expires", "Date"} else value))
    return done

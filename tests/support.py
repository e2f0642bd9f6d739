"""What many tests share: scopes, applications of a few views, and answers."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import trio
from django.core.signals import request_finished, request_started
from django.db import close_old_connections
from django.test import override_settings

from trio_asgi import ASGIHandler, ASGIRequest
from trio_asgi.testing import ApplicationCommunicator

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from django.urls import URLPattern, URLResolver

    from trio_asgi.asgi.types import ASGIApplication, Message, Scope

#: Errors inside asgiref's `Local`, one for each attribute that it lacks, form a cycle.
frees_at_once = pytest.mark.skipif(
    sys.version_info < (3, 11),
    reason="contextlib of Python 3.10 keeps errors until garbage is collected",
)


def http_scope(
    path: str = "/",
    *,
    method: str = "GET",
    headers: Sequence[tuple[bytes, bytes]] = (),
    query_string: bytes | str = b"",
    **others: Any,
) -> Scope:
    """Return the scope that a server makes of a request."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query_string,
        "headers": list(headers),
        "client": ("127.0.0.1", 50000),
        "server": ("testserver", 80),
        **others,
    }


def application(
    *urlpatterns: URLPattern | URLResolver,
    middleware: Sequence[str] = ("django.middleware.common.CommonMiddleware",),
    handler: type[ASGIHandler] = ASGIHandler,
) -> ASGIHandler:
    """Return a handler that serves only these URLs, if any, through this middleware."""

    class Request(ASGIRequest):
        if urlpatterns:
            urlconf = urlpatterns  # type: ignore[assignment] # Django takes patterns

    class Handler(handler):  # type: ignore[misc, valid-type]
        request_class = Request

    with override_settings(MIDDLEWARE=list(middleware)):
        return Handler()


@dataclass
class Answer:
    """All that an application has sent in answer to one request."""

    messages: list[Message] = field(default_factory=list)

    @property
    def status(self) -> int:
        """The response's status."""
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers, in their original order and case."""
        return list(self.messages[0]["headers"])

    @property
    def parts(self) -> list[bytes]:
        """The body of each message."""
        return [message.get("body", b"") for message in self.messages[1:]]

    @property
    def body(self) -> bytes:
        """The whole body."""
        return b"".join(self.parts)

    @property
    def is_complete(self) -> bool:
        """Whether the last message is marked as the last."""
        last = self.messages[-1] if self.messages else {}
        return last.get("type") == "http.response.body" and not last.get("more_body")


async def receive_answer(communicator: ApplicationCommunicator) -> Answer:
    """Receive messages up to the one that completes the response."""
    answer = Answer()
    while not answer.is_complete:
        answer.messages.append(await communicator.receive_output(timeout=10))
    return answer


async def request(
    app: ASGIApplication,
    path: str = "/",
    *,
    body: bytes = b"",
    **scope: Any,
) -> Answer:
    """Make one request, whole, and return the whole answer."""
    async with ApplicationCommunicator(app, http_scope(path, **scope)) as communicator:
        await communicator.send_input({"type": "http.request", "body": body})
        answer = await receive_answer(communicator)
        await communicator.wait()
    return answer


async def bare_request(app: ASGIApplication) -> None:
    """Make one request in the current task; raise what the application raises.

    A communicator would have a task and a context for it, and keep what it has sent.
    """
    messages = [{"type": "http.request"}]

    async def receive() -> Message:
        if not messages:
            await trio.sleep_forever()
        return messages.pop()

    async def send(message: Message) -> None:
        await trio.lowlevel.checkpoint()

    await app(http_scope(), receive, send)


def skip_without_server(reason: str) -> NoReturn:
    """Skip a test whose server is missing; fail where all servers are required."""
    if os.environ.get("TRIO_ASGI_SERVICES") == "required":
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass
class SignalLog:
    """The signals of requests, in order, each with its thread."""

    calls: list[tuple[str, threading.Thread, dict[str, Any]]] = field(
        default_factory=list
    )

    def started(self, signal: object, **kwargs: Any) -> None:
        """Receive request_started."""
        self.calls.append(("started", threading.current_thread(), kwargs))

    def finished(self, signal: object, **kwargs: Any) -> None:
        """Receive request_finished."""
        self.calls.append(("finished", threading.current_thread(), kwargs))

    @property
    def names(self) -> list[str]:
        """Which signals came."""
        return [name for name, _, _ in self.calls]

    @property
    def threads(self) -> set[threading.Thread]:
        """On which threads they came."""
        return {thread for _, thread, _ in self.calls}


@contextmanager
def signal_log() -> Iterator[SignalLog]:
    """Record the signals of requests, without closing old connections."""
    log = SignalLog()
    request_started.disconnect(close_old_connections)
    request_finished.disconnect(close_old_connections)
    request_started.connect(log.started)
    request_finished.connect(log.finished)
    try:
        yield log
    finally:
        request_started.disconnect(log.started)
        request_finished.disconnect(log.finished)
        request_started.connect(close_old_connections)
        request_finished.connect(close_old_connections)

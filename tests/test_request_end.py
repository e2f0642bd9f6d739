"""A small request ends before its last message, if nobody can tell."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import trio
from asgiref.sync import sync_to_async
from django.core.signals import request_finished
from django.http import HttpRequest, HttpResponse
from django.urls import get_urlconf, path

from support import application, frees_at_once, http_scope, request
from thread_support import assert_at_rest
from trio_asgi import ASGIHandler
from trio_asgi.threads.current import current_pool
from trio_asgi.threads.lease import Lease
from trio_asgi.threads.loop import current_loop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_asgi.asgi.types import ASGIApplication, Message, Send

seen: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Forget what views have noted."""
    yield
    seen.clear()


async def note(request: HttpRequest) -> HttpResponse:
    """Note weak references to a request and its response."""
    response = HttpResponse("small")
    seen["request"], seen["response"] = weakref.ref(request), weakref.ref(response)
    return response


async def note_after_sync_code(request: HttpRequest) -> HttpResponse:
    """Note the same, with a thread."""
    await sync_to_async(lambda: None)()
    return await note(request)


async def run(app: ASGIApplication, send: Send, **scope: Any) -> None:
    """Make a request of a server that sends by ``send``."""

    async def receive() -> Message:
        if seen.setdefault("asked", False):
            await trio.sleep_forever()
        seen["asked"] = True
        return {"type": "http.request"}

    await app(http_scope(**scope), receive, send)


def alive() -> list[str]:
    """Return which of the noted objects are in memory."""
    return [name for name in ("request", "response") if seen[name]() is not None]


@frees_at_once
@pytest.mark.parametrize("view", [note, note_after_sync_code])
async def test_the_request_is_freed_before_the_last_message(
    view: Any,
) -> None:
    """While the server sends it, the request and the response are gone."""
    order: list[tuple[str, list[str], bool]] = []

    async def send(message: Message) -> None:
        order.append((message["type"], alive(), message.get("more_body", True)))

    await run(application(path("", view)), send)
    assert order == [
        ("http.response.start", ["request", "response"], True),
        ("http.response.body", [], False),
    ]
    assert get_urlconf() is None


@pytest.mark.parametrize("how", ["receiver", "closer"])
async def test_a_request_with_more_to_do_ends_after_the_last_message(how: str) -> None:
    """If somebody can tell, the response is closed when it was sent, as in Django."""
    order: list[str] = []

    def finished(**kwargs: Any) -> None:
        order.append("finished")

    async def view(request: HttpRequest) -> HttpResponse:
        response = HttpResponse("small")
        if how == "closer":
            response._resource_closers.append(lambda: order.append("closed"))  # type: ignore[attr-defined]
        return response

    async def send(message: Message) -> None:
        order.append(message["type"])

    app = application(path("", view))
    if how == "receiver":
        request_finished.connect(finished)
    try:
        await run(app, send)
    finally:
        request_finished.disconnect(finished)
    end = "finished" if how == "receiver" else "closed"
    assert order == ["http.response.start", "http.response.body", end]


async def test_sync_code_beside_the_last_message() -> None:
    """A wrapper of ``send`` can call sync code, which is no longer the request's."""
    threads: list[threading.Thread] = []
    leases: list[Lease] = []

    async def send(message: Message) -> None:
        lease = current_loop.get()
        assert isinstance(lease, Lease)
        leases.append(lease)
        threads.append(await sync_to_async(threading.current_thread)())

    await run(application(path("", note)), send)
    assert len(threads) == 2
    assert threading.current_thread() not in threads
    assert [lease.has_thread for lease in leases] == [False, False]


async def test_the_server_refuses_the_start() -> None:
    """Then the request is still there, and is answered with a plain 500."""
    messages: list[Message] = []

    async def send(message: Message) -> None:
        if not messages and message.get("status") == 200:
            seen["alive"] = alive()
            raise ValueError("not this one")
        messages.append(message)

    await run(application(path("", note)), send)
    assert seen["alive"] == ["request", "response"]
    assert messages[0]["status"] == 500


@pytest.mark.parametrize("point", ["start", "last"])
async def test_the_server_cancels_while_it_sends(point: str) -> None:
    """The request has ended, or ends then; no thread is left behind."""

    async def send(message: Message) -> None:
        if (message["type"] == "http.response.start") == (point == "start"):
            scope.cancel()
            await trio.lowlevel.checkpoint()

    with trio.CancelScope() as scope:
        await run(application(path("", note)), send)
    assert scope.cancelled_caught
    assert alive() == []
    assert_at_rest(current_pool())


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_an_overridden_method_is_called(method: str) -> None:
    """A subclass may read the body and send the response in its own way."""
    calls: list[str] = []

    class Handler(ASGIHandler):
        async def read_body(self, receive: Any) -> Any:
            calls.append("read_body")
            return await super().read_body(receive)

        async def send_response(self, response: Any, send: Send) -> None:
            calls.append("send_response")
            await super().send_response(response, send)

    answer = await request(application(path("", note), handler=Handler), method=method)
    assert answer.body == b"small"
    assert calls == ["read_body", "send_response"]


async def test_a_method_of_the_instance_is_called() -> None:
    """As a tool or a test may set one."""
    calls: list[str] = []
    app: Any = application(path("", note))
    for name in ("read_body", "send_response"):

        async def method(*args: Any, _name: str = name) -> Any:
            calls.append(_name)
            return await getattr(ASGIHandler, _name)(app, *args)

        setattr(app, name, method)
    assert (await request(app)).body == b"small"
    assert calls == ["read_body", "send_response"]


async def test_a_chunk_size_below_the_body_counts() -> None:
    """The messages are no larger than the handler's ``chunk_size``."""

    class Handler(ASGIHandler):
        chunk_size = 2

    answer = await request(application(path("", note), handler=Handler))
    assert answer.parts == [b"sm", b"al", b"l"]

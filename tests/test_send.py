"""The order of an application's messages."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from trio_asgi.asgi.order import SendOrder
from trio_asgi.asgi.send import ResponseSender
from trio_asgi.errors import ASGIOrderError

START = {"type": "http.response.start", "status": 200}
PART = {"type": "http.response.body", "body": b"x", "more_body": True}
LAST = {"type": "http.response.body", "body": b"x"}
TRAILERS = {"type": "http.response.trailers", "headers": []}
HTTP_RIGHT: list[list[Any]] = [
    [START, LAST],
    [START, PART, PART, LAST],
    [{"type": "http.response.early_hint"}, START, LAST],
    [START, {"type": "http.response.pathsend", "path": "/x"}],
    [START | {"trailers": True}, PART, LAST, TRAILERS],
]
HTTP_WRONG: list[tuple[list[Any], str]] = [
    (
        [LAST],
        "http.response.body (last) may not be sent when nothing was sent yet: expected "
        "http.response.debug or http.response.early_hint or http.response.push or "
        "http.response.start.",
    ),
    (
        [START, START],
        "http.response.start may not be sent when the response has started: expected "
        "http.response.push or http.response.body or http.response.body (last) or "
        "http.response.zerocopysend or http.response.zerocopysend (last) or "
        "http.response.pathsend.",
    ),
    (
        [START, LAST, LAST],
        "http.response.body (last) may not be sent when everything was sent: "
        "expected nothing any more.",
    ),
    ([START, {"type": "websocket.send"}], "websocket.send may not be sent when the"),
    ([START, LAST, TRAILERS], "http.response.trailers (last) may not be sent"),
]


@pytest.mark.parametrize("messages", HTTP_RIGHT)
def test_a_right_order(messages: list[Any]) -> None:
    """Every sequence that the specification allows is accepted."""
    order = SendOrder("http")
    for message in messages:
        order.advance(message)


@pytest.mark.parametrize(("messages", "rule"), HTTP_WRONG)
def test_a_wrong_order(messages: list[Any], rule: str) -> None:
    """The error says what came, in which state, and what was expected."""
    order = SendOrder("http")
    for message in messages[:-1]:
        order.advance(message)
    with pytest.raises(ASGIOrderError) as raised:
        order.advance(messages[-1])
    assert str(raised.value).startswith(rule)


@pytest.mark.parametrize(
    ("protocol", "types"),
    [
        ("websocket", ["websocket.accept", "websocket.send", "websocket.close"]),
        ("websocket", ["websocket.close"]),
        ("lifespan", ["lifespan.startup.complete", "lifespan.shutdown.complete"]),
        ("lifespan", ["lifespan.startup.failed"]),
    ],
)
def test_the_order_of_other_protocols(protocol: str, types: list[str]) -> None:
    """A protocol's messages are accepted in their order, and not again at the end."""
    order = SendOrder(protocol)
    for type_ in types:
        order.advance({"type": type_})
    with pytest.raises(ASGIOrderError, match="when everything was sent"):
        order.advance({"type": types[-1]})


async def test_the_sender_keeps_to_the_order() -> None:
    """A message out of order is not passed on to the server."""
    sent = []

    async def send(message: Any) -> None:
        sent.append(message)

    sender = ResponseSender(send)
    await sender(START)
    with pytest.raises(ASGIOrderError):
        await sender(START)
    assert [sender.complete, await sender(LAST), sender.complete] == [False, None, True]  # type: ignore[func-returns-value]
    assert sent == [START, LAST]


async def test_the_last_message_is_a_checkpoint() -> None:
    """Whatever the server's send does, other tasks run before the response is over."""

    async def send(message: Any) -> None:
        pass

    sender = ResponseSender(send)
    await sender(START)
    with trio.testing.assert_checkpoints():
        await sender(LAST)

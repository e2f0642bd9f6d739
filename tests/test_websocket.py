"""WebSocket connections are refused in a way that servers survive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio
import trio.testing

from support import application, http_scope
from trio_asgi.testing import ApplicationCommunicator

if TYPE_CHECKING:
    import pytest


async def test_a_websocket_is_refused_after_a_moment(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The refusal comes only when the server has read the handshake's other data."""
    scope = http_scope(type="websocket")
    async with ApplicationCommunicator(application(), scope) as communicator:
        await communicator.send_input({"type": "websocket.connect"})
        assert await communicator.receive_nothing(0.04)
        assert await communicator.receive_output() == {"type": "websocket.close"}
        await communicator.wait()


async def test_a_refused_websocket_is_logged(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning of ``django.request``, as every other 403, says why."""
    scope = http_scope("/chat/", type="websocket")
    async with ApplicationCommunicator(application(), scope) as communicator:
        await communicator.send_input({"type": "websocket.connect"})
        await communicator.receive_output()
        await communicator.wait()
    [record] = caplog.records
    assert (record.name, record.levelname) == ("django.request", "WARNING")
    expected = "Forbidden (Django has no views for WebSocket): /chat/"
    assert record.getMessage() == expected
    assert record.status_code == 403  # type: ignore[attr-defined]


async def test_a_websocket_client_that_leaves_is_not_answered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """After a disconnect nothing is sent."""
    scope = http_scope(type="websocket")
    async with ApplicationCommunicator(application(), scope) as communicator:
        await communicator.send_input({"type": "websocket.connect"})
        await communicator.send_input({"type": "websocket.disconnect", "code": 1006})
        await communicator.wait()
        assert await communicator.receive_nothing()


async def test_a_frame_before_the_refusal_changes_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Some servers hand over frames that a client sends before it is accepted."""
    scope = http_scope(type="websocket")
    async with ApplicationCommunicator(application(), scope) as communicator:
        await communicator.send_input({"type": "websocket.connect"})
        await communicator.send_input({"type": "websocket.receive", "text": "hello"})
        assert await communicator.receive_output() == {"type": "websocket.close"}
        await communicator.wait()


async def test_a_server_that_has_refused_by_itself() -> None:
    """A server's own error about the refusal goes no further."""
    inputs = [{"type": "websocket.connect"}]

    async def receive() -> Any:
        if not inputs:
            await trio.sleep_forever()
        return inputs.pop()

    async def send(message: Any) -> None:
        raise ValueError("can't handle event in state ERROR")

    await application()(http_scope(type="websocket"), receive, send)

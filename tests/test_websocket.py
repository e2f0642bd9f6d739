"""WebSocket connections are refused, in a way that servers survive."""

from __future__ import annotations

import trio.testing

from support import application, http_scope
from trio_asgi.testing import ApplicationCommunicator


async def test_a_websocket_is_refused_after_a_moment(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The refusal comes only when the server has read what came with the handshake."""
    scope = http_scope(type="websocket")
    async with ApplicationCommunicator(application(), scope) as communicator:
        await communicator.send_input({"type": "websocket.connect"})
        assert await communicator.receive_nothing(0.04)
        assert await communicator.receive_output() == {"type": "websocket.close"}
        await communicator.wait()


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

"""WebSocket connections, which Django has no views for, are refused."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from .types import Receive, Send

#: How many seconds to leave the server for reading what came with the handshake. A
#: worker of hypercorn 0.18 ends with an error if it meets more after the refusal.
_SETTLE_SECONDS: Final = 0.05


async def refuse(receive: Receive, send: Send) -> None:
    """Close the connection before it was accepted: the client is answered 403."""
    await receive()  # websocket.connect
    with trio.move_on_after(_SETTLE_SECONDS):
        await receive()  # websocket.disconnect, if the client leaves by itself
        return
    # hypercorn refuses by itself if more comes at this very moment, and then raises an
    # error of its parser here. Either way the client has its answer.
    with suppress(Exception):
        await send({"type": "websocket.close"})

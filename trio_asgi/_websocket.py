"""WebSocket connections, which Django has no views for, are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from ._types import Receive, Send

#: How many seconds to leave the server for reading what came with the handshake. A
#: worker of hypercorn 0.18 can end with an error if the refusal comes first.
_SETTLE_SECONDS: Final = 0.05


async def refuse(receive: Receive, send: Send) -> None:
    """Close the connection before it was accepted: the client is answered 403."""
    await receive()  # websocket.connect
    with trio.move_on_after(_SETTLE_SECONDS):
        await receive()  # websocket.disconnect, if the client leaves by itself
        return
    await send({"type": "websocket.close"})

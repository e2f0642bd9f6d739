"""Refuse WebSocket connections: Django has no views for them."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from trio_asgi.threads.offload import log

if TYPE_CHECKING:
    from .types import Receive, Scope, Send

logger = logging.getLogger("django.request")

#: Seconds in which the server can read what came with the handshake. A hypercorn 0.18
#: worker ends with an error if it reads more after the refusal.
_SETTLE_SECONDS: Final = 0.25


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Close the connection before it is accepted; the client gets 403. That is logged.

    Like all answers of 400 and above, as a warning of ``django.request``.
    """
    await receive()  # websocket.connect
    log(
        logger,
        logging.WARNING,
        "Forbidden (Django has no views for WebSocket): %s",
        scope["path"],
        extra={"status_code": 403, "request": None},
    )
    with trio.move_on_after(_SETTLE_SECONDS):
        if (await receive())["type"] == "websocket.disconnect":
            return
        # uvicorn hands over frames that came too early; they change nothing.
    # If more comes at this very moment, hypercorn itself refuses, and raises an error
    # of its parser here. Either way the client has its answer.
    with suppress(Exception):
        await send({"type": "websocket.close"})

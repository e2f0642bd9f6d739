"""Sends the response of a request, and gives its thread back meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from trio_asgi.response.files import sends_file
from trio_asgi.response.send import end_body

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_asgi.asgi.exchange import Exchange

    from .state import RequestState


async def send_answer(
    state: RequestState, exchange: Exchange, send: Callable[[], Awaitable[None]]
) -> None:
    """Send the response by ``send()``, holding no thread for a client that is slow.

    The thread goes back first if nothing of the request is left in it, or else after a
    second. A stream keeps it to the end, unless it sends a file.
    """
    response, lease, sender = state.response, state.lease, state.sender
    assert response is not None
    in_one_piece = not (response.streaming and sender.wants_body)
    threadless = (in_one_piece or sends_file(response)) and (
        not lease.has_thread or state.signals.release_thread_early(response)
    )
    # Sync code does not notice that the request was cancelled; a view may not, either.
    await trio.lowlevel.checkpoint_if_cancelled()
    if not in_one_piece:
        try:
            await send()
        except trio.Cancelled:
            if getattr(response, "ends_cleanly", False) and not exchange.aborted:
                await end_body(sender)
            raise
        return
    sender.in_one_piece = True
    exchange.stop_watching()
    if threadless:
        await sender.beside_body(send)
        return
    with exchange.sending_last(state.end_early):
        await sender.beside_body(send)

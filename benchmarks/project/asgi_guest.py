"""The bare application on Trio, as a guest of the server's asyncio loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trio_asgi.hosts.guest import run_as_guest

from .asgi_bare import application as bare

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def application(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Answer in a Trio task."""
    if scope["type"] != "http":
        raise NotImplementedError
    await run_as_guest(bare, scope, receive, send)

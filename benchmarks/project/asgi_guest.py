"""The bare application on Trio, as a guest of the server's asyncio loop."""

from __future__ import annotations

from typing import Any

from trio_asgi.hosts.guest import run_as_guest

from .asgi_bare import application as bare


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answer in a Trio task."""
    await run_as_guest(bare, scope, receive, send)

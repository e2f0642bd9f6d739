"""An application that does nothing but answer, to measure the server itself.

The path sets the response's body: ``/3x100/`` is three messages of a hundred bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def application(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Answer."""
    if scope["type"] != "http":
        raise NotImplementedError
    messages, size = map(int, scope["path"].strip("/").split("x"))
    length = (b"content-length", b"%d" % (messages * size))
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    for number in range(1, messages + 1):
        await send(
            {
                "type": "http.response.body",
                "body": bytes(size),
                "more_body": number < messages,
            }
        )

"""The one reader: first the request's body, then the news that the client has left.

A server's ``receive`` has one queue. Whoever calls it must be the only one, and must
have read all of the body before a disconnect can be seen. So one task reads the body
to its end, and then one task waits for the disconnect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._errors import ClientDisconnected

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ._types import Receive


async def read_body(
    receive: Receive, write: Callable[[bytes], Awaitable[None]]
) -> None:
    """Read the whole body, and give each chunk to ``write``.

    Raises:
        ClientDisconnected: the client left before the body was complete.
        AssertionError: the server sent what no server may send here.
    """
    more_body = True
    while more_body:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        if message["type"] != "http.request":
            raise AssertionError(
                f"Invalid ASGI message in request body: {message['type']}"
            )
        if body := message.get("body"):
            await write(body)
        more_body = message.get("more_body", False)


async def wait_disconnect(receive: Receive) -> None:
    """Wait until the client has left.

    Raises:
        AssertionError: the server sent what no server may send here.
    """
    message = await receive()
    if message["type"] != "http.disconnect":
        raise AssertionError(
            f"Invalid ASGI message after request body: {message['type']}"
        )

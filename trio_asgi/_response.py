"""Django's responses to bytes: headers, and the parts of a streamed body."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

import outcome
import trio

from . import _worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from django.http import HttpResponseBase, StreamingHttpResponse


def encode_headers(response: HttpResponseBase) -> list[tuple[bytes, bytes]]:
    """Return all headers, in the case that they were set in; each cookie is one."""
    headers = [
        (name.encode("ascii"), value.encode("latin-1"))
        for name, value in response.items()
    ]
    headers.extend(
        (b"Set-Cookie", cookie.OutputString().encode("ascii"))
        for cookie in response.cookies.values()
    )
    return headers


async def send_parts(
    response: StreamingHttpResponse,
    send: Callable[[bytes], Awaitable[None]],
    *,
    cleanup_seconds: float,
) -> None:
    """Send each part of a streamed body as it comes.

    An async iterator is iterated, and closed, in this task. A sync one is iterated in
    the request's thread, no faster than the parts are sent; ``response.close()``
    closes it.

    Args:
        response: The response; its parts may be bytes or str.
        send: Sends one part.
        cleanup_seconds: How long an async iterator's closing may take, which no
            cancellation interrupts.
    """
    if not response.is_async:
        await ThreadStream(response).send_all(send)
        return
    # Not `streaming_content`, which hides the iterator in a generator of its own.
    iterator: AsyncIterator[Any] = response._iterator  # type: ignore[attr-defined]
    with trio.CancelScope() as scope:
        try:
            async for part in iterator:
                await send(response.make_bytes(part))
        finally:
            # The shield is put up on a scope that was there before the generator's
            # own: a new one around aclose() would break the order in which they nest.
            scope.shield = True
            scope.deadline = trio.current_time() + cleanup_seconds
            await close_stream(response)


async def close_stream(response: HttpResponseBase | None) -> None:
    """Close the async iterator of a response that has one; again does no harm.

    A sync iterator is left to ``response.close()``, for it belongs in a thread.
    """
    if response is not None and getattr(response, "is_async", False):
        aclose = getattr(response._iterator, "aclose", None)  # type: ignore[attr-defined]
        if aclose is not None:
            await aclose()


class ThreadStream:
    """The parts of a sync iterator, pulled in the request's thread while they are sent.

    One call in the thread pulls until enough bytes wait for being sent, and returns,
    rather than blocking the thread for a client that reads slowly. Every part is handed
    over when it comes, so that a slow iterator's first part leaves at once.

    Owned by the task that calls `send_all`; `_pull` runs in the thread. A cancellation
    waits for the part that is being made.
    """

    #: How many bytes one call may pull before it returns: what a request holds in
    #: memory, besides the one part that exceeds it.
    PULL_BYTES: Final = 2**18

    def __init__(self, response: StreamingHttpResponse) -> None:
        """Take the iterator of a response that is not async."""
        self._iterator: Iterator[Any] = response._iterator  # type: ignore[attr-defined]
        self._make_bytes: Callable[[Any], bytes] = response.make_bytes
        self._token = trio.lowlevel.current_trio_token()
        self._parts: deque[bytes] = deque()
        #: Set when parts have come, or the end has.
        self._news = trio.Event()
        #: Set when more parts are wanted.
        self._wanted = trio.Event()
        self._stopped = False
        self._exhausted = False
        self._ended: outcome.Outcome[None] | None = None

    async def send_all(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Send all parts; then raise what the iterator raised, if it did."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_pulling)
            # Kept, and raised outside, lest the nursery wraps it in a group.
            sent = await outcome.acapture(self._send_from_queue, send)
            self._stopped = True
            nursery.cancel_scope.cancel()
        sent.unwrap()

    async def _send_from_queue(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        while True:
            while self._parts:
                part = self._parts.popleft()
                if len(self._parts) <= 1:
                    self._wanted.set()
                await send(part)
            if self._ended is not None and not self._parts:
                return self._ended.unwrap()
            self._wanted.set()
            await self._news.wait()
            self._news = trio.Event()

    async def _keep_pulling(self) -> None:
        loop = _worker.sensitive_loop()

        async def pull_all() -> None:
            while not self._exhausted:
                self._wanted = trio.Event()
                await loop.run_sync(self._pull)
                await self._wanted.wait()

        try:
            await pull_all()
        except Exception as error:  # noqa: BLE001 - raised after the parts before it
            self._ended = outcome.Error(error)
        else:
            self._ended = outcome.Value(None)
        self._news.set()

    def _pull(self) -> None:
        """Pull parts until there are enough. Worker thread."""
        pulled = 0
        for item in self._iterator:
            part = self._make_bytes(item)
            self._parts.append(part)
            self._token.run_sync_soon(self._tell, idempotent=True)
            pulled += len(part)
            if pulled >= self.PULL_BYTES or self._stopped:
                return
        self._exhausted = True

    def _tell(self) -> None:
        self._news.set()

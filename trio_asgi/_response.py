"""Django's responses to bytes: headers, and the parts of a streamed body."""

from __future__ import annotations

import logging
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import outcome
import trio

from ._beside import run_beside
from ._hop import hop
from ._island_stream import IslandStream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from django.http import HttpResponseBase, StreamingHttpResponse

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

logger = logging.getLogger("django.request")


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


def iterate_in_island(response: HttpResponseBase) -> None:
    """Have an async iterator that is asyncio's iterated, and closed, by asyncio."""
    if getattr(response, "is_async", False):
        iterator = response._iterator  # type: ignore[attr-defined]
        response._iterator = IslandStream(iterator)  # type: ignore[attr-defined]


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

    async def send_all() -> None:
        async for part in iterator:
            await send(response.make_bytes(part))

    closed: outcome.Outcome[None] = outcome.Value(None)
    with trio.CancelScope() as scope:
        ended: outcome.Outcome[None] = await outcome.acapture(send_all)
        # The shield is put up on a scope that was there before the generator's own: a
        # new one around the closing would break the order in which they nest.
        scope.shield = True
        scope.deadline = trio.current_time() + cleanup_seconds
        try:
            await close_stream(response)
        except Exception as error:  # noqa: BLE001 - raised or logged
            closed = outcome.Error(error)
    try:
        # Outside the scope, which would take a cancellation for one of its own.
        if isinstance(ended, outcome.Error) and isinstance(ended.error, trio.Cancelled):
            # It may also come from a scope of the generator's, and be at its end there:
            # only what cancels this task still goes on.
            ended = await outcome.acapture(trio.lowlevel.checkpoint_if_cancelled)
        if isinstance(ended, outcome.Error) and isinstance(closed, outcome.Error):
            logger.error("Error in the closing of a stream", exc_info=closed.error)
        ended.unwrap()
        closed.unwrap()
    finally:
        del ended, closed


async def close_stream(response: HttpResponseBase | None) -> None:
    """Close the async iterator of a response that has one; again does no harm.

    A sync iterator is left to ``response.close()``, for it belongs in a thread.
    """
    if response is not None and getattr(response, "is_async", False):
        aclose = getattr(response._iterator, "aclose", None)  # type: ignore[attr-defined]
        if aclose is not None:
            try:
                await aclose()
            except BaseExceptionGroup as group:
                # A nursery that is open in the generator wraps even its GeneratorExit.
                _raise_without_exit(group)


def _raise_without_exit(group: BaseExceptionGroup[BaseException]) -> None:
    rest = group.split(GeneratorExit)[1]
    try:
        if rest is not None:
            raise rest
    finally:
        del group, rest


class ThreadStream:
    """The parts of a sync iterator, pulled in the request's thread while they are sent.

    One call in the thread pulls until enough bytes wait for being sent, and returns,
    rather than blocking the thread for a client that reads slowly. Every part is handed
    over when it comes, so that a slow iterator's first part leaves at once.

    Owned by the task that calls `send_all`; `_pull` runs in the thread. A cancellation
    waits for the part that is being made.
    """

    #: How many bytes may wait for being sent, besides the part that exceeds it.
    PULL_BYTES: Final = 2**18

    def __init__(self, response: StreamingHttpResponse) -> None:
        """Take the iterator of a response that is not async."""
        self._iterator: Iterator[Any] = response._iterator  # type: ignore[attr-defined]
        self._make_bytes: Callable[[Any], bytes] = response.make_bytes
        self._token = trio.lowlevel.current_trio_token()
        self._parts: deque[bytes] = deque()
        #: Bytes pulled, which the thread counts, and bytes sent, which the task does.
        self._pulled = self._sent = 0
        #: Set when parts have come, or the end has.
        self._news = trio.Event()
        #: Set when a part was taken.
        self._taken = trio.Event()
        self._stopped = False
        self._exhausted = False
        self._ended: outcome.Outcome[None] | None = None

    async def send_all(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Send all parts; then raise what the iterator raised, if it did."""

        async def send_from_queue() -> None:
            await self._send_from_queue(send)

        def stop() -> None:
            self._stopped = True

        await run_beside(self._keep_pulling, send_from_queue, stop=stop)

    async def _send_from_queue(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        while True:
            while self._parts:
                part = self._parts.popleft()
                self._sent += len(part)
                self._taken.set()
                await send(part)
            if self._ended is not None:
                ended, self._ended = self._ended, None
                try:
                    return ended.unwrap()
                finally:
                    del ended
            self._news = trio.Event()
            await self._news.wait()

    async def _keep_pulling(self) -> None:
        try:
            await self._pull_all()
        except Exception as error:  # noqa: BLE001 - raised after the parts before it
            self._ended = outcome.Error(error)
        else:
            self._ended = outcome.Value(None)
        self._news.set()

    async def _pull_all(self) -> None:
        while not self._exhausted:
            await hop(self._pull)
            while self._pulled - self._sent > self.PULL_BYTES // 2:
                self._taken = trio.Event()
                await self._taken.wait()

    def _pull(self) -> None:
        """Pull parts until enough wait for being sent. Worker thread."""
        for item in self._iterator:
            part = self._make_bytes(item)
            self._pulled += len(part)
            self._parts.append(part)
            self._token.run_sync_soon(self._tell, idempotent=True)
            if self._stopped or self._pulled - self._sent >= self.PULL_BYTES:
                return
        self._exhausted = True

    def _tell(self) -> None:
        self._news.set()

"""A streamed body that a thread makes while it is sent; for files see `file_stream`.

The thread makes a batch while the one before it is being sent:

    thread   ──► pull ─► [parts that wait] ──► batch ──► send     the request's task
    at most one limit of bytes ──┘                └── at most one more

The limit starts small, grows while full batches leave at once, and shrinks if one takes
long: a quick client gets few large messages, and a thousand slow ones hold little
memory.
"""

from __future__ import annotations

import contextvars
import functools
import math
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import outcome
import trio

from trio_asgi.asgi.nursery import run_beside
from trio_asgi.bridge.hop import hop
from trio_asgi.errors import ends_more_than_request
from trio_asgi.islands.context import restore_context

from .message_size import LARGE, QUICK, SMALLEST, next_size

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

#: The largest limit for an iterator, and the largest batch of small parts; bytes.
LARGEST: Final = LARGE

#: After this, one call in the thread makes no further part; seconds. A call holds a
#: token of the pool, for which others may wait. A new call costs as much as some 50
#: rows of CSV.
TURN: Final = 0.02

_END: Final = object()


class ThreadStream:
    """The parts of a sync iterator, pulled in the request's thread while they are sent.

    One call in the thread pulls until enough bytes wait to be sent, and then returns,
    so a client that reads slowly does not block the thread. It also returns after
    `TURN`, and queues for its next turn behind all other sync code: slow parts keep
    nobody waiting for longer than one of them takes. A part that comes after a pause is
    sent at once. Parts that come quickly are gathered, up to the limit, for at most
    `QUICK`.

    Owned by the task that calls `send_all`; `_pull` runs in the thread. A cancellation
    waits for the part that is being made.
    """

    #: The largest limit, and the largest batch of small parts; bytes.
    largest = LARGEST

    def __init__(
        self, iterator: Iterator[Any], make_bytes: Callable[[Any], bytes]
    ) -> None:
        """Pull nothing yet. The iterator is not closed here.

        ``make_bytes`` makes bytes of a part, in the thread.
        """
        self._iterator = iterator
        self._make_bytes = make_bytes
        #: Runs `_pull` in the thread.
        self._run: Callable[[Callable[[], None]], Awaitable[None]] = hop
        self._token = trio.lowlevel.current_trio_token()
        self._parts: deque[bytes] = deque()
        #: Bytes pulled, counted by the thread, and bytes sent, counted by the task.
        self._pulled = self._sent = 0
        #: How many bytes may wait to be sent, besides the part that exceeds it.
        self._limit = SMALLEST
        #: How many bytes the server has taken.
        self._taken_bytes = 0
        #: Set to tell the task that parts have come, or the end.
        self._news = trio.Event()
        #: Whether the thread need not tell the task of a part: it knows, or gathers.
        self._told = False
        #: Set when a batch was taken.
        self._taken = trio.Event()
        self._stopped = False
        self._exhausted = False
        self._ended: outcome.Outcome[None] | None = None
        #: The iterator's context at its end.
        self._context: contextvars.Context | None = None

    async def send_all(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Send all parts; then raise what the iterator raised, if anything."""
        send_batches = functools.partial(self._send_batches, send)
        try:
            await run_beside(self._keep_pulling, send_batches, stop=self._stop)
        finally:
            # The end of the request closes the caches in it, for example.
            if self._context is not None:
                restore_context(self._context)
                self._context = None

    def _stop(self) -> None:
        self._stopped = True

    # The request's task

    async def _send_batches(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        sent_at = -math.inf
        while await self._has_parts():
            await self._gather(until=sent_at + QUICK)
            sent_at = await self._send_batch(send, self._take_batch())

    async def _has_parts(self) -> bool:
        """Wait for parts; return False at the end."""
        while True:
            # Reset before the check, so that the thread tells of every later part.
            self._told = False
            if self._parts:
                return True
            if self._ended is not None:
                ended, self._ended = self._ended, None
                try:
                    ended.unwrap()
                finally:
                    del ended
                return False
            self._news = trio.Event()
            await self._news.wait()

    async def _gather(self, until: float) -> None:
        """Wait for more parts, if the last batch left just now and more are pulled."""
        self._told = True
        while self._is_pulling() and self._ended is None:
            if trio.current_time() >= until:
                return
            self._news = trio.Event()
            with trio.move_on_at(until):
                await self._news.wait()

    def _take_batch(self) -> bytes:
        batch = [self._parts.popleft()]
        size = len(batch[0])
        while self._parts and size + len(self._parts[0]) <= self.largest:
            part = self._parts.popleft()
            size += len(part)
            batch.append(part)
        self._sent += size
        self._taken.set()
        return batch[0] if len(batch) == 1 else b"".join(batch)

    async def _send_batch(
        self, send: Callable[[bytes], Awaitable[None]], batch: bytes
    ) -> float:
        """Send a batch, and adapt the limit to the client; return the time."""
        begun = trio.current_time()
        await send(batch)
        sent_at = trio.current_time()
        self._taken_bytes += len(batch)
        self._limit = next_size(
            self._limit,
            len(batch),
            seconds=sent_at - begun,
            taken=self._taken_bytes,
            largest=self.largest,
        )
        return sent_at

    # The task beside it

    async def _keep_pulling(self) -> None:
        try:
            await self._pull_all()
        except BaseException as error:
            if ends_more_than_request(error):
                raise
            # Raised after earlier parts were sent.
            self._ended = outcome.Error(error)
        else:
            self._ended = outcome.Value(None)
        finally:
            self._context = contextvars.copy_context()
        self._news.set()

    async def _pull_all(self) -> None:
        while not self._exhausted:
            await self._run(self._pull)
            if self._is_full():
                self._news.set()
                while not self._is_pulling():
                    self._taken = trio.Event()
                    await self._taken.wait()

    # The thread

    def _pull(self) -> None:
        """Pull parts for one turn, or until enough wait to be sent. Worker thread."""
        until = time.perf_counter() + TURN
        # Not `for`, which would call `iter` each time: some iterators then start again.
        while (item := next(self._iterator, _END)) is not _END:
            if part := self._make_bytes(item):
                self._add(part)
            if self._stopped or self._is_full() or time.perf_counter() >= until:
                return
        self._exhausted = True

    def _add(self, part: bytes) -> None:
        self._parts.append(part)
        self._pulled += len(part)
        if not self._told:
            self._told = True
            self._token.run_sync_soon(self._tell, idempotent=True)

    def _is_full(self) -> bool:
        """Return whether so much waits to be sent that pulling stops."""
        return self._pulled - self._sent >= self._limit

    def _is_pulling(self) -> bool:
        """Return whether so little waits that pulling goes on."""
        return self._pulled - self._sent <= self._limit // 2

    def _tell(self) -> None:
        self._news.set()

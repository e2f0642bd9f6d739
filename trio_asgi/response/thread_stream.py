"""What a thread makes of a streamed body while it is sent; `file_stream` has files.

The thread makes a batch while the one before it is being sent:

    thread   ──► pull ─► [parts that wait] ──► batch ──► send     the request's task
    at most one limit of bytes ──┘                └── at most one more

The limit follows the client. It begins small, grows as long as full batches leave at
once, and shrinks if one takes long: so a quick client gets few large messages, and a
thousand slow ones hold little memory.
"""

from __future__ import annotations

import contextvars
import math
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import outcome
import trio

from trio_asgi.asgi.nursery import run_beside
from trio_asgi.bridge.hop import hop
from trio_asgi.errors import ends_more
from trio_asgi.islands.context import restore_context

from .message_size import LARGE, QUICK, SMALLEST, next_size

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

#: How far the limit goes for an iterator, and what a batch of small parts holds; bytes.
LARGEST: Final = LARGE

#: For how long one call in the thread makes parts, besides the last of them. A call
#: holds a token of the pool, and others may wait for one. To ask for it anew costs as
#: much as some 50 rows of CSV. Seconds.
TURN: Final = 0.02

_END: Final = object()


class ThreadStream:
    """The parts of a sync iterator, pulled in the request's thread while they are sent.

    One call in the thread pulls until enough bytes wait for being sent, and returns,
    rather than blocking the thread for a client that reads slowly. It also returns
    after `TURN`, and queues for its next turn behind all other sync code: so parts that
    come slowly keep nobody waiting for longer than one of them takes. What comes after
    a pause is sent at once; what comes quickly is gathered, up to the limit, for no
    longer than `QUICK`.

    Owned by the task that calls `send_all`; `_pull` runs in the thread. A cancellation
    waits for the part that is being made.
    """

    #: How far the limit may go, and what a batch may hold; bytes.
    largest = LARGEST

    def __init__(
        self, iterator: Iterator[Any], make_bytes: Callable[[Any], bytes]
    ) -> None:
        """Take an iterator; whoever made it closes it.

        Args:
            iterator: Gives the parts.
            make_bytes: Makes bytes of a part; called in the thread.
        """
        self._iterator = iterator
        self._make_bytes = make_bytes
        #: Runs `_pull` in the thread.
        self._run: Callable[[Callable[[], None]], Awaitable[None]] = hop
        self._token = trio.lowlevel.current_trio_token()
        self._parts: deque[bytes] = deque()
        #: Bytes pulled, which the thread counts, and bytes sent, which the task does.
        self._pulled = self._sent = 0
        #: How many bytes may wait for being sent, besides the part that exceeds it.
        self._limit = SMALLEST
        #: How many bytes the server has taken.
        self._taken_bytes = 0
        #: Set when the task is told that parts have come, or the end has.
        self._news = trio.Event()
        #: Whether the thread need not tell the task of a part: it has been told, or
        #: gathers.
        self._told = False
        #: Set when a batch was taken.
        self._taken = trio.Event()
        self._stopped = False
        self._exhausted = False
        self._ended: outcome.Outcome[None] | None = None
        #: What the iterator has left in its context.
        self._context: contextvars.Context | None = None

    async def send_all(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Send all parts; then raise what the iterator raised, if it did."""

        async def send_batches() -> None:
            await self._send_batches(send)

        def stop() -> None:
            self._stopped = True

        try:
            await run_beside(self._keep_pulling, send_batches, stop=stop)
        finally:
            # Such as the caches that it has used, which the request's end closes.
            if self._context is not None:
                restore_context(self._context)
                self._context = None

    # The request's task

    async def _send_batches(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        sent_at = -math.inf
        while await self._has_parts():
            await self._gather(until=sent_at + QUICK)
            batch = self._take_batch()
            sent_at = await self._send_batch(send, batch)

    async def _has_parts(self) -> bool:
        """Wait for parts; False if there are none any more."""
        while True:
            # Before the look: a part that comes after it is told of.
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
        """Let more parts come, if the last batch left just now and more are pulled."""
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
        """Send a batch, and have the limit follow the client; return when that was."""
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
            if ends_more(error):
                raise
            # Raised after the parts before it.
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
                await self._wait_room()

    async def _wait_room(self) -> None:
        while not self._is_pulling():
            self._taken = trio.Event()
            await self._taken.wait()

    # The thread

    def _pull(self) -> None:
        """Pull parts until enough wait for being sent, for one turn. Worker thread."""
        until = time.perf_counter() + TURN
        # Not `for`, which asks for an iterator each time: some begin anew then.
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
        """Whether so much waits for being sent that pulling stops."""
        return self._pulled - self._sent >= self._limit

    def _is_pulling(self) -> bool:
        """Whether so little waits that pulling goes on."""
        return self._pulled - self._sent <= self._limit // 2

    def _tell(self) -> None:
        self._news.set()

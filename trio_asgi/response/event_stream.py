"""`EventStream`: a response of server-sent events.

    the sender's task                          the events' task, in a nursery
    ─────────────────                          ──────────────────────────────
    enters the nursery ─────────────────────►  begins to iterate the events
    asks for a part                            gives an event
      ◄──────────────────── event ───────────  waits until it has been sent
    sends it, asks for the next ────────────►  iterates on
      keep_alive seconds without one:
    sends a comment, asks again
    leaves the nursery ─────────────────────►  is cancelled, and closes the events

A due comment must not cancel the wait for an event: that would end an async generator.
So the events have a separate task.
"""

from __future__ import annotations

import contextvars
import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final

import outcome
import trio
from django.http import StreamingHttpResponse

from trio_asgi import conf
from trio_asgi.bridge.streaming_content import ManagedStream, is_manager
from trio_asgi.errors import ends_more_than_request
from trio_asgi.islands.context import restore_context

from .send import send_parts
from .server_sent_event import EMPTY_COMMENT, encode_item

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterable,
        AsyncIterator,
        Callable,
        Mapping,
    )
    from contextlib import AbstractAsyncContextManager

    from typing_extensions import Self

#: The headers of an event stream, unless the view sets others.
HEADERS: Final = {
    "Content-Type": "text/event-stream",
    # A cache must never answer with an old stream.
    "Cache-Control": "no-cache",
    # nginx, and others that know its header, pass on each event at once.
    "X-Accel-Buffering": "no",
    # GZipMiddleware and proxies do not compress a response that has an encoding. Up to
    # Django 5.2 GZipMiddleware makes each part a gzip member; Chromium reads only one.
    "Content-Encoding": "identity",
}


class EventStream(StreamingHttpResponse):
    """A response of server-sent events, as a browser's ``EventSource`` reads them.

    Each event is sent at once, and the next one is asked for when that is done: events
    are made no faster than the client reads. They are iterated and closed in one
    separate task, with the context of the request. If they raise, earlier events are
    sent, and the response breaks off, so that the browser notices and reconnects.

    If the client disconnects, the events are cancelled; closing them may take
    ``TRIO_ASGI["CLEANUP_SECONDS"]``. They are also cancelled at the server's shutdown;
    then the response ends as if the events had.
    """

    #: For the handler: the end is sent even if the server cancels the request, so that
    #: the browser reconnects, to the next server.
    ends_cleanly: ClassVar[bool] = True

    def __init__(
        self,
        events: AsyncIterable[Any] | AbstractAsyncContextManager[AsyncIterable[Any]],
        *,
        keep_alive: float | None = 15.0,
        status: int | None = None,
        reason: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Make the response; nothing is iterated before it is sent.

        Args:
            events: An async iterable, or an async context manager that gives one, such
                as `trio.as_safe_channel` makes. An item that is not a `ServerSentEvent`
                becomes the data of one.
            keep_alive: After how many seconds without an event a comment is sent, so
                that proxies do not close the connection as idle; None for never.
            status: As for all responses. Browsers reconnect only after 200.
            reason: As for all responses.
            headers: As for all responses. They override those that are set here.

        Raises:
            TypeError: ``events`` is neither of these.
            ValueError: ``keep_alive`` is not a positive number.
        """
        if keep_alive is not None and not keep_alive > 0:
            raise ValueError(
                "EventStream's keep_alive must be a positive number of seconds, or "
                f"None, not {keep_alive!r}."
            )
        super().__init__(
            EventParts(
                _as_iterator(events), math.inf if keep_alive is None else keep_alive
            ),
            status=status,
            reason=reason,
            charset="utf-8",
            # The later of two wins, whatever the case of their names. No content_type:
            # Django refuses it together with a Content-Type header.
            headers={**HEADERS, **dict(headers or ())},
        )


def _as_iterator(events: Any) -> AsyncIterator[Any]:
    if is_manager(events):
        return ManagedStream(events)
    if hasattr(type(events), "__aiter__"):
        return aiter(events)
    raise TypeError(
        "EventStream takes an async iterable of events, or an async context manager "
        f"that gives one, not {type(events).__name__}: {events!r:.80}. Pass what an "
        "async generator function returns: async def events(): ... yield ..."
    )


class EventParts(ManagedStream):
    """The content of an event stream: the context manager in which it is sent."""

    def __init__(self, events: AsyncIterator[Any], keep_alive: float) -> None:
        super().__init__(self._open())
        self._events = events
        self._keep_alive = keep_alive
        #: Whether `_open` closes the events, or `aclose` has closed them.
        self._is_taken = False

    def wrap_events(
        self, wrap: Callable[[AsyncIterator[Any]], AsyncIterator[Any]]
    ) -> None:
        """Wrap the events, for example in an iterator that runs them on asyncio."""
        self._events = wrap(self._events)

    async def _iterate_alone(self) -> AsyncGenerator[bytes, None]:
        """Iterate without a nursery, which might never be left, and so no comments."""
        self._is_taken = True
        yield b""  # see `_Handover`
        try:
            async for event in self._events:
                yield encode_item(event)
        finally:
            if (aclose := getattr(self._events, "aclose", None)) is not None:
                await aclose()

    async def aclose(self) -> None:
        """Leave the context manager; close the events if it was never entered."""
        await super().aclose()
        aclose = getattr(self._events, "aclose", None)
        if aclose is not None and not self._is_taken:
            self._is_taken = True
            await aclose()

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[_Handover]:
        self._is_taken = True
        handover = _Handover(self._keep_alive)
        ended: outcome.Outcome[None] = outcome.Value(None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._give_events, handover)
            try:
                yield handover
            except BaseException as error:  # noqa: BLE001 - raised again, ungrouped
                # A cancellation comes from a scope around the nursery; otherwise the
                # nursery raises the error that caused it.
                ended = outcome.Error(error)
            nursery.cancel_scope.cancel()
        # The end of the request closes the caches in it, for example.
        restore_context(handover.context)
        try:
            ended.unwrap()
        finally:
            # An error's traceback refers to this frame: avoid a cycle.
            del ended
            handover.raise_error()

    async def _give_events(self, handover: _Handover) -> None:
        """Iterate and close the events. The events' task."""
        try:
            await send_parts(
                _Events(self._events),
                handover.give,
                cleanup_seconds=conf.get("CLEANUP_SECONDS"),
            )
        except BaseException as error:
            if ends_more_than_request(error):
                raise
            # The sender's task raises it.
            handover.end(error)
        else:
            handover.end(StopAsyncIteration())
        finally:
            handover.context = contextvars.copy_context()


class _Events(StreamingHttpResponse):
    """A response of the events alone, for `send_parts` to iterate and close them."""

    def make_bytes(self, value: object) -> bytes:
        return encode_item(value)


class _Handover:
    """Passes events, one at a time, from the events' task to the sender's.

    `give` returns only when the sender has sent the part: so code after a ``yield``
    runs after the event was sent, as it would without the other task. A cancellation
    ends both tasks, so neither is left waiting for the other.
    """

    def __init__(self, keep_alive: float) -> None:
        self._keep_alive = keep_alive
        #: The context of the events' task when it has ended.
        self.context = contextvars.copy_context()
        #: Whether the sender has taken its first part.
        self._has_begun = False
        #: The part that was given last.
        self._part = b""
        #: Set while a part waits for the sender, and when the events have ended.
        self._news = trio.Event()
        #: Raised once by the sender, when the events have ended.
        self._end: BaseException | None = None
        #: Set when the sender asks for more; a new one for each part.
        self._wanted = trio.Event()

    # The events' task

    async def give(self, part: bytes) -> None:
        """Give a part, and wait until it has been sent."""
        self._part = part
        wanted = self._wanted = trio.Event()
        self._news.set()
        await wanted.wait()

    def end(self, error: BaseException) -> None:
        """Make the sender raise an error, or `StopAsyncIteration`."""
        self._end = error
        self._news.set()

    # The sender's task

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if not self._has_begun:
            # Servers send the headers with the first part, even an empty one. So the
            # browser learns at once that the stream is open.
            self._has_begun = True
            await trio.lowlevel.checkpoint()
            return b""
        if not self._news.is_set():
            # Otherwise a part came while a comment was sent, and is still to be sent.
            self._wanted.set()
        with trio.move_on_after(self._keep_alive):
            await self._news.wait()
        if not self._news.is_set():
            return EMPTY_COMMENT
        if self._end is not None:
            self.raise_error()
            raise StopAsyncIteration
        self._news = trio.Event()
        return self._part

    def raise_error(self) -> None:
        """Raise the error that ended the events, if any; only once."""
        error, self._end = self._end, StopAsyncIteration()
        try:
            if error is not None and not isinstance(error, StopAsyncIteration):
                raise error
        finally:
            del error

"""`EventStream`: a response of server-sent events.

    the sender's task                          the events' task, in a nursery
    ─────────────────                          ──────────────────────────────
    enters the nursery ─────────────────────►  begins to iterate the events
    asks for a part                            gives an event
      ◄──────────────────── event ───────────  waits until it was sent
    sends it, asks for the next ────────────►  iterates on
      keep_alive seconds without one:
    sends a comment, asks again
    leaves, with what has ended the sending ►  is cancelled, and closes the events

Waiting for an event must not end because a comment is due: a cancelled async generator
is at its end. So the waiting has a task of its own.
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
from trio_asgi.bridge.managed_stream import ManagedStream, is_manager
from trio_asgi.errors import ends_more
from trio_asgi.islands.context import restore_context

from .send import send_parts
from .server_sent_event import EMPTY_COMMENT, encode_item

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from typing_extensions import Self

#: What an event stream says, if the view says nothing else.
HEADERS: Final = {
    "Content-Type": "text/event-stream",
    # A cache must ask for the stream each time, never answer with an old one.
    "Cache-Control": "no-cache",
    # nginx, and others that know its header, pass on each event when it comes.
    "X-Accel-Buffering": "no",
    # GZipMiddleware, and proxies that compress, leave alone what has an encoding. Up to
    # Django 5.2 the former makes a gzip member of each part, and Chromium reads one.
    "Content-Encoding": "identity",
}


class EventStream(StreamingHttpResponse):
    """A response of server-sent events, as a browser's ``EventSource`` reads them.

    Each event is sent when it comes, and the next one is asked for when it was sent:
    nothing is made faster than the client reads. The events are iterated, and closed,
    in one task of their own, with the context of the request. If they raise, that ends
    the response, after the events before it, so that the client can tell; it connects
    again by itself.

    A client that leaves cancels the events, whose closing may then take
    ``TRIO_ASGI["CLEANUP_SECONDS"]``. So does the server at its shutdown, and there the
    response ends as if the events had.
    """

    #: For the handler: the end is sent even if the server cancels the request, so that
    #: the browser connects again, to the server that comes next.
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
            events: An async iterable, or an async context manager that gives one, as
                `trio.as_safe_channel` makes it. Of each item that is no
                `ServerSentEvent`, one is made, with the item as its data.
            keep_alive: After how many seconds without an event a comment is sent, so
                that proxies do not take the connection for a dead one; None for never.
            status: As for all responses. After any other than 200 browsers do not
                connect again.
            reason: As for all responses.
            headers: As for all responses. They take the place of those set here.

        Raises:
            TypeError: the events are neither of these.
            ValueError: ``keep_alive`` is no positive number.
        """
        if keep_alive is not None and not keep_alive > 0:
            raise ValueError(
                "EventStream's keep_alive is a positive number of seconds, or None, "
                f"not {keep_alive!r}."
            )
        super().__init__(
            EventParts(
                _as_iterator(events), math.inf if keep_alive is None else keep_alive
            ),
            status=status,
            reason=reason,
            charset="utf-8",
            # The later of two wins, whatever the case of their names. Not content_type
            # for the first: Django refuses it beside a Content-Type.
            headers={**HEADERS, **dict(headers or ())},
        )


def _as_iterator(events: Any) -> AsyncIterator[Any]:
    if is_manager(events):
        return ManagedStream(events)
    if hasattr(type(events), "__aiter__"):
        return aiter(events)
    raise TypeError(
        "EventStream takes an async iterable of events, or an async context manager "
        f"that gives one, not {type(events).__name__}: {events!r:.80}. Give it what an "
        "async generator function returns: async def events(): ... yield ..."
    )


class EventParts(ManagedStream):
    """The content of an event stream: the context manager in which it is sent."""

    def __init__(self, events: AsyncIterator[Any], keep_alive: float) -> None:
        super().__init__(self._open())
        self._events = events
        self._keep_alive = keep_alive
        #: Whether the events are closed elsewhere, or were closed here.
        self._is_taken = False

    def wrap_events(
        self, wrap: Callable[[AsyncIterator[Any]], AsyncIterator[Any]]
    ) -> None:
        """Have something around the events, such as what iterates them by asyncio."""
        self._events = wrap(self._events)

    async def aclose(self) -> None:
        """Leave the context manager; or close events that were never iterated here."""
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
            except BaseException as error:  # noqa: BLE001 - raised again, in no group
                # A cancellation that is kept here comes from a scope around the
                # nursery, or else the nursery raises what has cancelled it.
                ended = outcome.Error(error)
            nursery.cancel_scope.cancel()
        # Such as the caches that the events have used, which the request's end closes.
        restore_context(handover.context)
        try:
            ended.unwrap()
        finally:
            # An error's traceback holds this frame: leave no cycle behind.
            del ended
            handover.raise_error()

    async def _give_events(self, handover: _Handover) -> None:
        """Iterate the events, and close them. The events' task."""
        try:
            await send_parts(
                _Events(self._events),
                handover.give,
                cleanup_seconds=conf.get("CLEANUP_SECONDS"),
            )
        except BaseException as error:
            if ends_more(error):
                raise
            # The sender's task raises it.
            handover.end(error)
        else:
            handover.end(StopAsyncIteration())
        finally:
            handover.context = contextvars.copy_context()


class _Events(StreamingHttpResponse):
    """The events, to be iterated and closed as the parts of any response are."""

    def make_bytes(self, value: object) -> bytes:
        return encode_item(value)


class _Handover:
    """Where the events' task gives its events to the sender's, one at a time.

    Guaranteed is that `give` returns when the sender is back from sending the part: so
    code behind a ``yield`` runs after the event was sent, as it would without the other
    task. A cancellation of either leaves nothing behind that the other would wait for
    wrongly, for it ends both.
    """

    def __init__(self, keep_alive: float) -> None:
        self._keep_alive = keep_alive
        #: What the events have left in theirs, when they have ended.
        self.context = contextvars.copy_context()
        #: Whether the sender had its first part.
        self._has_begun = False
        #: What was given and not taken yet; set by one task, and taken by the other.
        self._part = b""
        #: Set while there is such a part, and for good when the events have ended.
        self._news = trio.Event()
        #: What the sender raises at the end: once.
        self._end: BaseException | None = None
        #: Set when the sender is back for more; a new one for each part.
        self._wanted = trio.Event()

    # The events' task

    async def give(self, part: bytes) -> None:
        """Give a part, and wait until it was sent."""
        self._part = part
        wanted = self._wanted = trio.Event()
        self._news.set()
        await wanted.wait()

    def end(self, error: BaseException) -> None:
        """Have the sender raise an error, or `StopAsyncIteration`."""
        self._end = error
        self._news.set()

    # The sender's task

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if not self._has_begun:
            # Servers send no headers before there is some of the body, even nothing: a
            # browser is to know at once that the stream is open.
            self._has_begun = True
            await trio.lowlevel.checkpoint()
            return b""
        if not self._news.is_set():
            # Otherwise a part has come during a comment, and was not sent itself.
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
        """Raise the error that has ended the events, if one has; the first time."""
        error, self._end = self._end, StopAsyncIteration()
        try:
            if error is not None and not isinstance(error, StopAsyncIteration):
                raise error
        finally:
            del error

"""Server-sent events: what a browser reads, when it comes, and how the stream ends."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import math
from contextlib import aclosing, asynccontextmanager
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from django.test import RequestFactory, override_settings
from django.urls import path
from django.utils.datastructures import CaseInsensitiveMapping
from django.utils.translation import gettext_lazy
from hypothesis import given, strategies as st

from event_stream_parser import Dispatched, parse
from support import application, http_scope, receive_answer, request
from thread_support import cancel_later
from trio_asgi import ASGIRequest, asyncio_island
from trio_asgi.asgi.order import SendOrder
from trio_asgi.errors import leaves
from trio_asgi.response.event_stream import EventStream
from trio_asgi.response.send import close_stream, send_parts
from trio_asgi.response.server_sent_event import (
    ServerSentEvent,
    encode_item,
    last_event_id,
)
from trio_asgi.testing import ApplicationCommunicator

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterable,
        AsyncIterator,
        Awaitable,
        Callable,
    )

    from django.http import HttpRequest, StreamingHttpResponse

pytestmark = pytest.mark.usefixtures("watching_at_once")

#: A test that still waits after this time has failed.
SECONDS = 10

OPENING, COMMENT = b"", b":\n\n"

GZIP = "django.middleware.gzip.GZipMiddleware"

# The format

#: The characters that UTF-8 can encode.
TEXTS = st.text(
    st.characters(exclude_categories=["Cs"])
    | st.sampled_from(["\r", "\n", ":", " ", "\0", "\ufeff", "\u2028", "\x85"])
)
ONE_LINERS = TEXTS.map(lambda text: text.translate({10: "", 13: ""}))
IDS = ONE_LINERS.map(lambda text: text.replace("\0", ""))
EVENTS = st.builds(
    ServerSentEvent,
    TEXTS,
    event=st.none() | ONE_LINERS,
    id=st.none() | IDS | st.integers(),
    retry=st.none() | st.integers(0, 10**30),
    comment=st.none() | TEXTS,
)
WITHOUT_DATA = st.one_of(
    st.builds(ServerSentEvent, id=IDS),
    st.builds(ServerSentEvent, retry=st.integers(0)),
    st.builds(ServerSentEvent, comment=TEXTS),
)


def normalized(text: str) -> str:
    """Return a text with the line ends that a browser gives it."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


@given(st.lists(EVENTS | WITHOUT_DATA))
def test_a_browser_gets_what_was_sent(events: list[ServerSentEvent]) -> None:
    """Each event arrives as sent: its data, its type, and the last id."""
    expected: list[Dispatched] = []
    last_id, retry = "", None
    for event in events:
        last_id = last_id if event.id is None else str(event.id)
        retry = retry if event.retry is None else event.retry
        if event.data is not None:
            kind = event.event or "message"
            expected.append(Dispatched(normalized(event.data), kind, last_id))
    parser = parse(b"".join(event.encode() for event in events))
    assert parser.events == expected
    assert parser.last_event_id == last_id
    assert parser.reconnection_time == retry


@given(TEXTS)
def test_comments_arrive_whole(comment: str) -> None:
    """Each line of a comment arrives as a comment, and dispatches no event."""
    parser = parse(ServerSentEvent(comment=comment).encode())
    assert parser.events == []
    sent = [line.removeprefix(" ") for line in parser.comments]
    assert "\n".join(sent) == normalized(comment)


@given(
    st.recursive(
        st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
        lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
    ).filter(lambda value: not isinstance(value, str))
)
def test_other_data_arrives_as_json(data: Any) -> None:
    """Data other than str becomes one line of JSON."""
    (event,) = parse(encode_item(data)).events
    assert json.loads(event.data) == data
    assert "\n" not in event.data


@pytest.mark.parametrize(
    ("item", "lines"),
    [
        ("one", "data: one\n\n"),
        ("", "data: \n\n"),
        (" two", "data:  two\n\n"),
        ("a\nb\r\nc\rd\n", "data: a\ndata: b\ndata: c\ndata: d\ndata: \n\n"),
        ("caf\xe9 \u2615", "data: caf\xe9 \u2615\n\n"),
        ({"price": Decimal("1.50")}, 'data: {"price": "1.50"}\n\n'),
        ([date(2026, 1, 2), None, True], 'data: ["2026-01-02", null, true]\n\n'),
        (7, "data: 7\n\n"),
        (gettext_lazy("late"), "data: late\n\n"),
        (
            ServerSentEvent("x", event="tick", id=5, retry=1000, comment="why"),
            ": why\nevent: tick\nid: 5\nretry: 1000\ndata: x\n\n",
        ),
        (ServerSentEvent(id=""), "id: \n\n"),
        (ServerSentEvent(retry=0), "retry: 0\n\n"),
        (ServerSentEvent(comment=""), ": \n\n"),
        (ServerSentEvent(comment="a\nb"), ": a\n: b\n\n"),
    ],
)
def test_the_lines_of_an_item(item: object, lines: str) -> None:
    """A str is sent unchanged, an event with its fields, all else as Django's JSON."""
    assert encode_item(item) == lines.encode()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"event": "a\nb"}, r"event cannot contain CR or LF: 'a\\nb'"),
        ({"event": "a\rb"}, r"event cannot contain CR or LF: 'a\\rb'"),
        ({"id": "a\nb"}, r"id cannot contain CR, LF or NUL: 'a\\nb'"),
        ({"id": "a\rb"}, r"id cannot contain CR, LF or NUL: 'a\\rb'"),
        ({"id": "a\0b"}, r"id cannot contain CR, LF or NUL: 'a\\x00b'"),
        ({"retry": -1}, "retry must be 0 milliseconds or more, not -1"),
    ],
)
def test_values_that_no_line_can_carry(values: dict[str, Any], message: str) -> None:
    """A value that would become another field, or none, is an error that names it."""
    with pytest.raises(ValueError, match=message):
        ServerSentEvent("data", **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"event": 1}, "event must be str, not int: 1"),
        ({"id": 1.5}, "id must be str or int, not float: 1.5"),
        ({"id": True}, "id must be str or int, not bool: True"),
        ({"retry": "5"}, "retry must be int, not str: '5'"),
        ({"retry": 1.5}, "retry must be int, not float: 1.5"),
        ({"retry": True}, "retry must be int, not bool: True"),
        ({"comment": b"x"}, "comment must be str, not bytes: b'x'"),
        ({"data": b"x"}, "is text, not bytes: b'x': decode it"),
        ({"data": bytearray(b"x")}, "is text, not bytearray"),
        ({"data": memoryview(b"x")}, "is text, not memoryview"),
    ],
)
def test_values_of_a_wrong_type(values: dict[str, Any], message: str) -> None:
    """A value of a wrong type is an error that names the field, and shows the value."""
    with pytest.raises(TypeError, match=message):
        ServerSentEvent(**{"data": "data", **values})


def test_events_that_are_none() -> None:
    """An event that browsers would never dispatch is an error."""
    with pytest.raises(ValueError, match="needs data, an id, a retry or a comment"):
        ServerSentEvent()
    with pytest.raises(ValueError, match="An event of type 'tick' has no data"):
        ServerSentEvent(event="tick", id="1")
    with pytest.raises(TypeError, match="item None of an EventStream is not an event"):
        encode_item(None)


def test_items_that_cannot_be_encoded() -> None:
    """JSON names the type it cannot encode, UTF-8 the character."""
    with pytest.raises(TypeError, match="object is not JSON serializable"):
        encode_item(object())
    with pytest.raises(UnicodeEncodeError):
        encode_item("\ud800")


# The request


@pytest.mark.parametrize("identity", ["", "7", "caf\xe9 \u2615", " "])
def test_the_last_event_id_is_utf_8(identity: str) -> None:
    """The header has the browser's last id, whatever characters are in it."""
    scope = http_scope(headers=[(b"last-event-id", identity.encode())])
    assert last_event_id(ASGIRequest(scope, None)) == identity  # type: ignore[arg-type]


def test_a_request_without_a_last_event_id() -> None:
    """The first request of an event source has no such header."""
    assert last_event_id(ASGIRequest(http_scope(), None)) == ""  # type: ignore[arg-type]


@pytest.mark.parametrize("identity", ["7", "\u2615", "caf\xe9"])
def test_a_last_event_id_of_a_test(identity: str) -> None:
    """Requests of `RequestFactory`, and bytes that are not UTF-8, work too."""
    made = RequestFactory().get("/", headers={"Last-Event-ID": identity})
    assert last_event_id(made) == identity


# The response


class Peer:
    """Takes the parts: at once, or one by one when told to."""

    def __init__(self, *, reads: bool = True) -> None:
        self.parts: list[bytes] = []
        self.read = trio.Semaphore(0)
        self._reads = reads

    async def send(self, part: bytes) -> None:
        """Take a part."""
        self.parts.append(part)
        if self._reads:
            await trio.lowlevel.checkpoint()
        else:
            await self.read.acquire()

    async def wait_parts(self, count: int) -> None:
        """Wait until that many parts have come, and nothing else is running."""
        await trio.testing.wait_all_tasks_blocked()
        assert len(self.parts) == count


async def send_all(
    stream: StreamingHttpResponse,
    send: Callable[[bytes], Awaitable[None]],
    cleanup_seconds: float = SECONDS,
) -> None:
    """Send a stream as the handler does."""
    await send_parts(stream, send, cleanup_seconds=cleanup_seconds)


async def numbers(count: int) -> AsyncIterator[int]:
    """Yield some numbers."""
    for number in range(count):
        yield number


def test_headers() -> None:
    """Nothing between view and browser may store, change or buffer the events."""
    assert dict(EventStream(numbers(1)).items()) == {
        "Content-Type": "text/event-stream",
        "Cache-Control": "no-cache",
        "X-Accel-Buffering": "no",
        "Content-Encoding": "identity",
    }


def test_headers_of_the_views_own() -> None:
    """A header that the view sets counts, in whatever case."""
    headers = {"cache-control": "no-store", "X-Other": "other"}
    stream = EventStream(numbers(1), status=203, reason="Why", headers=headers)
    assert (stream.status_code, stream.reason_phrase) == (203, "Why")
    assert stream["Cache-Control"] == "no-store"
    assert stream["X-Other"] == "other"


@pytest.mark.parametrize("name", ["Content-Type", "content-type", "CONTENT-TYPE"])
@pytest.mark.parametrize("pack", [dict, CaseInsensitiveMapping, list])
def test_a_content_type_of_the_views_own(name: str, pack: Any) -> None:
    """It replaces the stream's, as with any other header."""
    headers = pack([(name, "text/event-stream; charset=utf-8")])
    stream = EventStream(numbers(1), headers=headers)
    assert stream["Content-Type"] == "text/event-stream; charset=utf-8"
    assert [key.lower() for key, _ in stream.items()].count("content-type") == 1


@pytest.mark.parametrize("seconds", [0, -1, math.nan])
def test_a_keep_alive_that_is_none(seconds: float) -> None:
    """An interval that is over at once, or never, is an error."""
    with pytest.raises(ValueError, match="keep_alive must be a positive number"):
        EventStream(numbers(1), keep_alive=seconds)


@pytest.mark.parametrize(
    "events", [["a", "b"], iter("ab"), "ab", {"a": 1}, numbers, None, 5]
)
def test_events_that_cannot_be_iterated(events: Any) -> None:
    """Other objects raise at once an error that says what to pass."""
    kind = type(events).__name__
    with pytest.raises(TypeError, match=f"gives one, not {kind}: .*async generator"):
        EventStream(events)


async def test_events_are_sent_in_order() -> None:
    """An empty part sends the headers; then comes one part for each event."""
    peer = Peer()
    await send_all(EventStream(numbers(3)), peer.send)
    assert peer.parts == [OPENING, b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n"]


async def test_no_events() -> None:
    """A stream may end before it has begun."""
    peer = Peer()
    await send_all(EventStream(numbers(0)), peer.send)
    assert peer.parts == [OPENING]


async def test_the_opening_does_not_wait_for_an_event() -> None:
    """The browser learns that the stream is open before there is an event."""
    peer = Peer()
    never = trio.Event()

    async def events() -> AsyncIterator[str]:
        await never.wait()
        yield "never"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_all, EventStream(events()), peer.send)
        await peer.wait_parts(1)
        assert peer.parts == [OPENING]
        nursery.cancel_scope.cancel()


async def test_events_of_a_context_manager() -> None:
    """The events may come from a nursery: it is entered and exited in their task."""
    tasks: set[trio.lowlevel.Task] = set()

    @trio.as_safe_channel
    async def events() -> AsyncGenerator[str, None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 0)
            yield "one"
            yield "two"

    @asynccontextmanager
    async def managed() -> AsyncIterator[AsyncIterable[str]]:
        tasks.add(trio.lowlevel.current_task())
        async with events() as channel:
            yield channel
        tasks.add(trio.lowlevel.current_task())

    peer = Peer()
    await send_all(EventStream(managed()), peer.send)
    assert peer.parts == [OPENING, b"data: one\n\n", b"data: two\n\n"]
    assert len(tasks) == 1


async def test_events_of_a_channel_are_closed() -> None:
    """The sender to a memory channel learns that the stream has ended."""
    send, receive = trio.open_memory_channel[str](0)
    peer = Peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_all, EventStream(receive), peer.send)
        await send.send("one")
        await peer.wait_parts(2)
        nursery.cancel_scope.cancel()
    with pytest.raises(trio.BrokenResourceError):
        send.send_nowait("two")


# Keep-alive


async def test_comments_keep_the_connection_alive(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A comment comes after each interval without an event, since the last part."""
    times: list[tuple[float, bytes]] = []
    began = trio.current_time()

    async def send(part: bytes) -> None:
        times.append((trio.current_time() - began, part))
        await trio.sleep(1)  # a client that takes its time

    async def events() -> AsyncIterator[str]:
        yield "one"
        await trio.sleep(25)
        yield "two"

    await send_all(EventStream(events(), keep_alive=10), send)
    # The wait for an event, of 25 seconds, goes on during the comments.
    assert times == [
        (0, OPENING),
        (1, b"data: one\n\n"),
        (12, COMMENT),
        (23, COMMENT),
        (27, b"data: two\n\n"),
    ]


async def test_a_comment_comes_every_fifteen_seconds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """That is the default."""
    peer = Peer()
    with trio.move_on_after(50):
        await send_all(EventStream(waiting()), peer.send)
    assert peer.parts == [OPENING, COMMENT, COMMENT, COMMENT]


async def test_no_comments(autojump_clock: trio.testing.MockClock) -> None:
    """Without an interval nothing is sent, however long it takes."""
    peer = Peer()
    with trio.move_on_after(10**6):
        await send_all(EventStream(waiting(), keep_alive=None), peer.send)
    assert peer.parts == [OPENING]


async def waiting() -> AsyncIterator[str]:
    """Wait for ever."""
    await trio.sleep(math.inf)
    yield "never"


async def test_an_event_that_comes_during_a_comment(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It is sent after the comment; and its generator goes on when it was sent."""
    times: dict[str, float] = {}
    began = trio.current_time()

    async def send(part: bytes) -> None:
        await trio.sleep(10)
        times[part.decode()] = trio.current_time() - began

    async def events() -> AsyncIterator[str]:
        await trio.sleep(17)
        yield "one"
        times["behind"] = trio.current_time() - began

    await send_all(EventStream(events(), keep_alive=5), send)
    assert times == {"": 10, ":\n\n": 25, "data: one\n\n": 35, "behind": 35}


# Backpressure


async def test_no_event_is_made_before_the_last_was_sent() -> None:
    """A client that does not read holds the generator at its yield."""
    made: list[int] = []
    peer = Peer(reads=False)

    async def events() -> AsyncIterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_all, EventStream(events()), peer.send)
        for count in range(1, 6):
            await peer.wait_parts(count)
            # The first is made while the headers are sent.
            assert len(made) == max(count - 1, 1)
            peer.read.release()
        nursery.cancel_scope.cancel()


# The end


class Story:
    """Events that record what happens to them."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.tasks: set[trio.lowlevel.Task] = set()
        #: Set when the first event was sent.
        self.sent = trio.Event()

    async def events(self, *, after: object = None) -> AsyncIterator[str]:
        """Yield an event, then raise an error, or wait for ever."""
        self.tasks.add(trio.lowlevel.current_task())
        try:
            yield "one"
            self.lines.append("asked for more")
            self.sent.set()
            if isinstance(after, Exception):
                raise after
            await trio.sleep_forever()
        except GeneratorExit:
            self.lines.append("closed")
            raise
        except trio.Cancelled:
            self.lines.append("cancelled")
            raise
        finally:
            self.tasks.add(trio.lowlevel.current_task())
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
            self.lines.append("cleaned up")


async def test_an_error_of_the_events() -> None:
    """It comes after the earlier events, unchanged, in no group."""
    story, peer, error = Story(), Peer(), LookupError("events")
    with pytest.raises(LookupError) as caught:
        await send_all(EventStream(story.events(after=error)), peer.send)
    assert caught.value is error
    assert error.__context__ is None
    assert peer.parts == [OPENING, b"data: one\n\n"]
    assert story.lines == ["asked for more", "cleaned up"]


async def test_an_error_of_the_events_is_seen_by_who_iterates() -> None:
    """Middleware around the stream does not mistake it for a normal end."""
    error = LookupError("events")
    stream = EventStream(Story().events(after=error))
    async with stream._iterator as parts:  # type: ignore[attr-defined]
        assert [await anext(parts), await anext(parts)] == [OPENING, b"data: one\n\n"]
        with pytest.raises(LookupError) as caught:
            await anext(parts)
        assert caught.value is error
        with pytest.raises(StopAsyncIteration):
            await anext(parts)


async def test_an_error_of_the_events_for_a_slow_client() -> None:
    """It waits until the previous event was sent."""
    story, peer, error = Story(), Peer(reads=False), LookupError("events")
    with pytest.raises(BaseException) as caught:
        async with trio.open_nursery() as nursery:
            stream = EventStream(story.events(after=error))
            nursery.start_soon(send_all, stream, peer.send)
            await peer.wait_parts(1)
            peer.read.release()
            await peer.wait_parts(2)
            assert story.lines == []
            peer.read.release()
    assert leaves(caught.value) == [error]


async def test_an_item_that_is_wrong() -> None:
    """It ends the stream with its error, and the events are closed."""
    lines: list[str] = []

    async def events() -> AsyncIterator[object]:
        try:
            yield "one"
            yield b"two"
        finally:
            lines.append("closed")

    peer = Peer()
    with pytest.raises(TypeError, match="is text, not bytes: b'two'"):
        await send_all(EventStream(events()), peer.send)
    assert peer.parts == [OPENING, b"data: one\n\n"]
    assert lines == ["closed"]


async def test_an_error_of_the_sending() -> None:
    """It is raised unchanged, and the events are closed in their own task."""
    story, error = Story(), OSError("the peer is gone")

    async def send(part: bytes) -> None:
        if part:
            raise error
        await trio.lowlevel.checkpoint()

    with pytest.raises(OSError, match="the peer is gone") as caught:
        await send_all(EventStream(story.events()), send)
    assert caught.value is error
    assert error.__context__ is None
    assert story.lines == ["closed", "cleaned up"]
    assert len(story.tasks) == 1


async def test_an_error_of_the_closing() -> None:
    """Nothing can be sent any more, but the error is not lost."""
    peer = Peer()

    async def events() -> AsyncIterator[str]:
        try:
            yield "one"
            await trio.sleep_forever()
        finally:
            raise LookupError("closing")

    async def cancel() -> None:
        await peer.wait_parts(2)
        scope.cancel()

    with pytest.raises(BaseException) as caught:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel)
            with trio.CancelScope() as scope:
                await send_all(EventStream(events()), peer.send)
    assert [str(error) for error in leaves(caught.value)] == ["closing"]


async def test_a_cancellation_reaches_the_events() -> None:
    """A cancelled stream cancels the wait for an event; its clean-up runs."""
    story, peer = Story(), Peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_all, EventStream(story.events()), peer.send)
        await peer.wait_parts(2)
        nursery.cancel_scope.cancel()
    assert story.lines == ["asked for more", "cancelled", "cleaned up"]
    assert len(story.tasks) == 1


async def test_a_cancellation_while_the_client_reads() -> None:
    """Events that wait at their yield are closed, in their own task."""
    story, peer = Story(), Peer(reads=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_all, EventStream(story.events()), peer.send)
        await peer.wait_parts(1)
        peer.read.release()
        await peer.wait_parts(2)
        nursery.cancel_scope.cancel()
    assert story.lines == ["closed", "cleaned up"]
    assert len(story.tasks) == 1


async def test_the_closing_has_a_bound(autojump_clock: trio.testing.MockClock) -> None:
    """A clean-up may take ``CLEANUP_SECONDS``, which no cancellation interrupts."""
    times: list[float] = []

    async def events() -> AsyncIterator[str]:
        began = 0.0
        try:
            yield "one"
        finally:
            began = trio.current_time()
            try:
                await trio.sleep_forever()
            finally:
                times.append(trio.current_time() - began)

    with override_settings(TRIO_ASGI={"CLEANUP_SECONDS": 3}):
        peer = Peer(reads=False)
        peer.read.release()
        with trio.move_on_after(1):
            await send_all(EventStream(events()), peer.send, cleanup_seconds=60)
    assert times == [3]


@pytest.mark.parametrize("reads", [True, False])
async def test_a_cancellation_at_any_step(reads: bool) -> None:
    """Wherever it hits, the events are closed in their task, and nothing is left."""
    reached: set[tuple[int, str]] = set()
    for steps in range(40):
        story, peer = Story(), Peer(reads=reads)
        peer.read.release()
        stream = EventStream(story.events())
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                if steps == 0:
                    scope.cancel()
                nursery.start_soon(cancel_later, scope, steps)
                await send_all(stream, peer.send)
        assert scope.cancelled_caught
        if story.tasks:
            assert story.lines[-1] == "cleaned up"
            assert len(story.tasks) == 1
        reached.add((len(peer.parts), " ".join(story.lines)))
    # Before the first part, and while waiting for the client or the next event.
    assert {parts for parts, _ in reached} == {0, 1, 2}
    end = "asked for more cancelled" if reads else "closed"
    assert (2, f"{end} cleaned up") in reached


@pytest.mark.parametrize("at", range(4))
async def test_a_server_that_cancels_during_a_message_gets_its_cancellation(
    at: int,
) -> None:
    """The head, the first part, an event or the end: no message is out of order."""
    sent: list[Any] = []

    async def events() -> AsyncIterator[str]:
        yield "one"

    async def view(request: ASGIRequest) -> EventStream:
        return EventStream(events())

    async def receive() -> Any:
        if not inputs:
            await trio.sleep_forever()
        return inputs.pop()

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) - 1 == at:
            scope.cancel()
        await trio.lowlevel.checkpoint()

    app = application(path("", view))
    inputs = [{"type": "http.request"}]
    with trio.CancelScope() as scope:
        await app(http_scope(), receive, send)
    assert scope.cancelled_caught
    order = SendOrder("http")
    for message in sent:
        order.advance(message)


async def test_events_that_are_never_sent() -> None:
    """If a view has begun to iterate them, they are closed with the unsent response."""
    story = Story()
    events = story.events()
    assert await anext(events) == "one"
    stream = EventStream(events)
    await close_stream(stream)
    assert story.lines == ["closed", "cleaned up"]
    await close_stream(stream)
    assert len(story.lines) == 2


async def test_events_that_never_began() -> None:
    """A response that is thrown away leaves no generator to be warned about."""
    story = Story()
    stream = EventStream(story.events())
    await close_stream(stream)
    del stream
    gc.collect()
    assert story.lines == []


async def test_a_stream_that_a_test_iterates() -> None:
    """Without the handler, as with Django's test client, a stream is the same."""
    story = Story()
    stream = EventStream(story.events())
    # It is a generator, although its annotation does not say so.
    async with aclosing(stream.__aiter__()) as parts:  # type: ignore[type-var]
        assert [await anext(parts), await anext(parts)] == [OPENING, b"data: one\n\n"]
    await close_stream(stream)
    assert story.lines[-1] == "cleaned up"
    assert len(story.tasks) == 1


# In the handler


async def shown(request: HttpRequest) -> EventStream:
    """Yield the event after the last one."""
    return EventStream(numbers(int(last_event_id(request) or 0) + 1))


def shown_by_sync_code(request: HttpRequest) -> EventStream:
    """Do the same in a thread."""
    return EventStream(numbers(int(last_event_id(request) or 0) + 1))


@pytest.mark.parametrize("view", [shown, shown_by_sync_code])
@pytest.mark.parametrize("middleware", [[], [GZIP]], ids=["plain", "compressing"])
async def test_a_view_that_returns_a_stream(
    view: Callable[[HttpRequest], Any], middleware: list[str]
) -> None:
    """A sync view may do so, too; and nothing is compressed."""
    app = application(path("", view), middleware=middleware)
    headers = [(b"last-event-id", b"1"), (b"accept-encoding", b"gzip")]
    answer = await request(app, headers=headers)
    assert answer.status == 200
    names = {name.lower(): value for name, value in answer.headers}
    assert names[b"content-type"] == b"text/event-stream"
    assert b"content-length" not in names
    assert answer.parts == [OPENING, b"data: 0\n\n", b"data: 1\n\n", b""]


@pytest.mark.parametrize("middleware", [[], [GZIP]], ids=["plain", "wrapped"])
async def test_a_client_that_leaves(middleware: list[str]) -> None:
    """A disconnect closes the events in their task, whatever wraps them."""
    story = Story()

    async def view(request: HttpRequest) -> EventStream:
        response = EventStream(story.events())
        del response["Content-Encoding"]
        return response

    app = application(path("", view), middleware=middleware)
    scope = http_scope(headers=[(b"accept-encoding", b"gzip")])
    async with ApplicationCommunicator(app, scope) as communicator:
        await communicator.send_input({"type": "http.request"})
        await story.sent.wait()
        await trio.testing.wait_all_tasks_blocked()
        await communicator.send_input({"type": "http.disconnect"})
        await communicator.wait()
    assert story.lines == ["asked for more", "cancelled", "cleaned up"]
    assert len(story.tasks) == 1


async def test_a_view_that_wants_events_compressed() -> None:
    """Without our header, middleware compresses the stream like any other."""

    async def view(request: HttpRequest) -> EventStream:
        response = EventStream(numbers(2))
        del response["Content-Encoding"]
        return response

    app = application(path("", view), middleware=[GZIP])
    answer = await request(app, headers=[(b"accept-encoding", b"gzip")])
    assert (b"Content-Encoding", b"gzip") in answer.headers
    assert gzip.decompress(answer.body) == b"data: 0\n\ndata: 1\n\n"


async def test_a_view_of_asyncio() -> None:
    """The events of an island view are iterated by asyncio, in one task."""
    tasks: set[object] = set()

    async def events() -> AsyncIterator[int]:
        for number in range(2):
            await asyncio.sleep(0)
            tasks.add(asyncio.current_task())
            yield number

    @asyncio_island
    async def view(request: HttpRequest) -> EventStream:
        await asyncio.sleep(0)
        return EventStream(events())

    answer = await request(application(path("", view)))
    assert answer.parts == [OPENING, b"data: 0\n\n", b"data: 1\n\n", b""]
    assert len(tasks) == 1


async def test_a_server_that_cancels() -> None:
    """The events are closed, and the response ends, so that the browser reconnects."""
    story = Story()

    async def view(request: HttpRequest) -> EventStream:
        return EventStream(story.events())

    app = application(path("", view))
    async with ApplicationCommunicator(app, http_scope()) as communicator:
        await communicator.send_input({"type": "http.request"})
        await story.sent.wait()
        communicator.stop()
        answer = await receive_answer(communicator)
        await communicator.wait()
    assert answer.parts == [OPENING, b"data: one\n\n", b""]
    assert story.lines == ["asked for more", "cancelled", "cleaned up"]
    assert len(story.tasks) == 1


async def test_events_that_fail_in_the_handler() -> None:
    """The body does not end, so the browser notices; the server gets the error."""
    story, error = Story(), LookupError("events")

    async def view(request: HttpRequest) -> EventStream:
        return EventStream(story.events(after=error))

    app = application(path("", view))
    async with ApplicationCommunicator(app, http_scope()) as communicator:
        await communicator.send_input({"type": "http.request"})
        for _ in range(3):
            message = await communicator.receive_output()
        assert message == {
            "type": "http.response.body",
            "body": b"data: one\n\n",
            "more_body": True,
        }
        with pytest.raises(LookupError) as caught:
            await communicator.wait()
    assert caught.value is error

"""``MAX_BODY_SIZE`` and ``BODY_TIMEOUT``: what is refused, when, and how."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import trio
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path

import trio_asgi
from support import application, http_scope, signal_log
from trio_asgi import ASGIHandler, ASGIRequest, BodyTimeout, BodyTooLarge
from trio_asgi.asgi.receive import LINGER_SECONDS
from trio_asgi.threads.current import current_pool

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from trio.testing import MockClock

    from trio_asgi.asgi.types import Message, Scope

pytestmark = pytest.mark.usefixtures("watching_at_once")

EXPECT = (b"expect", b"100-continue")
TOO_LARGE = (413, b"413 Payload too large")
TOO_SLOW = (408, b"408 Request timeout")


class Client:
    """Sends a body in chunks, with pauses between them, and keeps the answer.

    After the last one it waits for the answer, and disconnects.
    """

    def __init__(self, chunks: Sequence[bytes], pause: float = 0.0) -> None:
        self._chunks = list(chunks)
        self._pause = pause
        self._answered = trio.Event()
        self.asked = 0
        self.messages: list[Message] = []

    async def receive(self) -> dict[str, Any]:
        """Act as a server's ``receive``."""
        self.asked += 1
        if self._answered.is_set():
            return {"type": "http.disconnect"}
        await trio.lowlevel.checkpoint()
        if not self._chunks:
            await self._answered.wait()
            return {"type": "http.disconnect"}
        if self.asked > 1:
            await trio.sleep(self._pause)
        chunk = self._chunks.pop(0)
        return {
            "type": "http.request",
            "body": chunk,
            "more_body": bool(self._chunks),
        }

    async def send(self, message: Message) -> None:
        """Act as a server's ``send``."""
        await trio.lowlevel.checkpoint()
        self.messages.append(message)
        if message["type"] == "http.response.body":
            self._answered.set()

    async def ask(self, app: ASGIHandler, scope: Scope) -> tuple[int, bytes]:
        """Make the request."""
        with trio.fail_after(10_000):
            await app(scope, self.receive, self.send)
        assert not self.messages[-1].get("more_body")
        content = b"".join(message.get("body", b"") for message in self.messages[1:])
        return self.messages[0]["status"], content


def upload_scope(*headers: tuple[bytes, bytes], length: int | None = None) -> Scope:
    """Return the scope of a POST; without a length it is chunked."""
    size = (
        (b"transfer-encoding", b"chunked")
        if length is None
        else (b"content-length", str(length).encode())
    )
    return http_scope(method="POST", headers=[size, *headers])


async def view(request: ASGIRequest) -> HttpResponse:
    """Return the size of the body."""
    return HttpResponse(str(sum([len(chunk) async for chunk in request.stream()])))


def sync_view(request: HttpRequest) -> HttpResponse:
    """Do the same in a thread."""
    return HttpResponse(str(len(request.body)))


@pytest.fixture(params=[False, True], ids=["spooled", "streamed"])
def settings_dict(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """Provide ``TRIO_ASGI`` with both kinds of bodies."""
    values = {"STREAM_BODY": request.param}
    with override_settings(TRIO_ASGI=values):
        yield values


async def test_an_announced_size_is_refused_before_the_view(
    settings_dict: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """One message is awaited, as servers require; the view never starts."""
    settings_dict["MAX_BODY_SIZE"] = 10
    client = Client([b"x" * 11, b"never read"])
    app = application(path("", unreachable))
    with caplog.at_level(logging.WARNING):
        assert await client.ask(app, upload_scope(length=11)) == TOO_LARGE
    (record,) = caplog.records
    # HTTP has renamed the status.
    assert record.getMessage().endswith(" Too Large: /")
    assert record.__dict__["status_code"] == 413
    assert client.asked == 2  # the second time it is the disconnect


async def unreachable(request: HttpRequest) -> HttpResponse:
    """A view that must not be called."""
    raise AssertionError("the view was called")


async def test_a_client_that_waits_for_leave_need_not_send_anything(
    settings_dict: dict[str, Any], autojump_clock: MockClock
) -> None:
    """With ``Expect: 100-continue``, 413 is sent although the body never comes."""
    settings_dict["MAX_BODY_SIZE"] = 10
    client = Client([])
    started = trio.current_time()
    scope = upload_scope(EXPECT, length=11)
    assert await client.ask(application(path("", unreachable)), scope) == TOO_LARGE
    assert trio.current_time() < started + 3  # two seconds to let it read


@pytest.mark.parametrize("kind", [view, sync_view])
async def test_a_body_that_becomes_too_large(
    settings_dict: dict[str, Any], kind: Any
) -> None:
    """Without an announced size, the chunk that passes the limit is refused."""
    settings_dict["MAX_BODY_SIZE"] = 10
    client = Client([b"x" * 5, b"x" * 5, b"x", b"never read"])
    assert await client.ask(application(path("", kind)), upload_scope()) == TOO_LARGE
    # The rest of the body was dropped, or the disconnect came.
    assert client.asked <= 5
    assert current_pool().queue.running == 0


@pytest.mark.parametrize("kind", [view, sync_view])
@pytest.mark.parametrize("length", [10, None])
async def test_a_body_as_large_as_allowed(
    settings_dict: dict[str, Any], kind: Any, length: int | None
) -> None:
    """The limit itself is allowed."""
    settings_dict["MAX_BODY_SIZE"] = 10
    client = Client([b"x" * 5, b"x" * 5])
    app = application(path("", kind))
    assert await client.ask(app, upload_scope(length=length)) == (200, b"10")


async def test_a_client_that_sends_nothing(
    settings_dict: dict[str, Any], autojump_clock: MockClock
) -> None:
    """A minute without a byte is too long, as in Django's documentation."""
    client = Client([b"x", b"y"], pause=60.1)
    app = application(path("", view), middleware=())
    assert await client.ask(app, upload_scope(length=2)) == TOO_SLOW


async def test_a_slow_client(
    settings_dict: dict[str, Any], autojump_clock: MockClock
) -> None:
    """There is no limit on the total time while enough bytes come."""
    client = Client([b"x" * 240 * 59] * 30, pause=59.0)
    app = application(path("", view), middleware=())
    assert (await client.ask(app, upload_scope(length=240 * 59 * 30)))[0] == 200


async def test_a_client_that_sends_a_byte_a_second(
    settings_dict: dict[str, Any], autojump_clock: MockClock
) -> None:
    """It is refused in little more than a minute: the default is 240 bytes a second."""
    begun = trio.current_time()
    client = Client([b"x"] * 3600, pause=1.0)
    app = application(path("", view), middleware=())
    assert await client.ask(app, upload_scope(length=3600)) == TOO_SLOW
    assert 60 <= trio.current_time() - begun < 62


async def test_a_byte_for_a_sign_of_life(
    settings_dict: dict[str, Any], autojump_clock: MockClock
) -> None:
    """Without a minimum rate, any byte gives the client its full time again."""
    settings_dict["BODY_MIN_RATE"] = 0
    client = Client([b"x"] * 30, pause=59.0)
    app = application(path("", view), middleware=())
    assert await client.ask(app, upload_scope(length=30)) == (200, b"30")


async def test_a_client_that_was_quick_and_becomes_slow(
    settings_dict: dict[str, Any], autojump_clock: MockClock
) -> None:
    """Bytes that come early earn no time beyond ``BODY_TIMEOUT``."""
    begun = trio.current_time()
    client = Client([b"x" * 1_000_000] * 2 + [b"x"] * 3600, pause=1.0)
    app = application(path("", view), middleware=())
    assert (await client.ask(app, upload_scope()))[0] == 408
    assert trio.current_time() - begun < 65


async def test_a_body_that_takes_too_long_in_all(
    settings_dict: dict[str, Any], autojump_clock: MockClock
) -> None:
    """Regardless of how much arrives meanwhile."""
    settings_dict["BODY_TOTAL_TIMEOUT"] = 100
    begun = trio.current_time()
    client = Client([b"x" * 1_000_000] * 30, pause=8.0)
    app = application(path("", view), middleware=())
    assert await client.ask(app, upload_scope()) == TOO_SLOW
    assert 100 <= trio.current_time() - begun <= 100 + LINGER_SECONDS


async def test_a_slow_reader_is_not_the_clients_fault(
    autojump_clock: MockClock,
) -> None:
    """Time in which nothing waits for the client does not count, for either limit."""

    @trio_asgi.limit_body(timeout=5, min_rate=1000, total_timeout=10)
    @trio_asgi.stream_body
    async def view(request: ASGIRequest) -> HttpResponse:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            await trio.sleep(60)
        return HttpResponse(f"{size}")

    client = Client([b"x"] * 10, pause=0.1)
    app = application(path("", view), middleware=())
    assert await client.ask(app, upload_scope(length=10)) == (200, b"10")


async def test_a_thread_that_reads_a_trickling_body_is_freed() -> None:
    """A sync view gets the error in its own thread, which is idle afterwards."""

    @trio_asgi.limit_body(timeout=0.05, min_rate=1e6)
    @trio_asgi.stream_body
    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(request.read())

    client = Client([b"x"] * 10_000, pause=0.001)
    app = application(path("", view), middleware=())
    assert await client.ask(app, upload_scope()) == TOO_SLOW
    assert len(current_pool()._idle) == 1


async def test_a_client_that_stops(
    settings_dict: dict[str, Any], autojump_clock: MockClock
) -> None:
    """The setting says how long it may pause."""
    settings_dict["BODY_TIMEOUT"] = 5
    client = Client([b"x", b"y", b"z"], pause=6.0)
    app = application(path("", view), middleware=())
    assert await client.ask(app, upload_scope(length=3)) == TOO_SLOW


@pytest.mark.parametrize("length", [20, None])
async def test_a_view_may_allow_more(
    settings_dict: dict[str, Any], length: int | None
) -> None:
    """`limit_body` counts only for its view, with a size or without a limit."""
    settings_dict["MAX_BODY_SIZE"] = 10
    larger = trio_asgi.limit_body(max_size=20)(view)
    endless = trio_asgi.limit_body(max_size=None)(view)
    for kind in (larger, endless):
        client = Client([b"x" * 20])
        app = application(path("", kind))
        assert await client.ask(app, upload_scope(length=length)) == (200, b"20")
    client = Client([b"x" * 21])
    app = application(path("", larger))
    assert await client.ask(app, upload_scope(length=length)) == TOO_LARGE


async def test_a_view_may_allow_less() -> None:
    """Decorators add up, in any order."""
    both = trio_asgi.limit_body(max_size=5)(trio_asgi.stream_body(view))
    for kind in (both, trio_asgi.stream_body(trio_asgi.limit_body(max_size=5)(view))):
        client = Client([b"x" * 3, b"x" * 3])
        app = application(path("", kind))
        assert await client.ask(app, upload_scope()) == TOO_LARGE


async def test_a_view_may_be_more_patient(
    settings_dict: dict[str, Any], autojump_clock: MockClock
) -> None:
    """`limit_body` sets a timeout, too."""
    patient = trio_asgi.limit_body(timeout=100)(view)
    client = Client([b"x", b"y"], pause=99.0)
    app = application(path("", patient), middleware=())
    assert await client.ask(app, upload_scope(length=2)) == (200, b"2")


@pytest.mark.parametrize(
    "options",
    [
        {"max_size": -1},
        {"max_size": 1.5},
        {"max_size": True},
        {"timeout": 0},
        {"timeout": "1"},
        {"timeout": True},
        {"timeout": None},
    ],
)
def test_limits_that_make_no_sense(options: Any) -> None:
    """They are refused in the decorator call."""
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        trio_asgi.limit_body(**options)


async def test_a_view_that_answers_by_itself(autojump_clock: MockClock) -> None:
    """The view can catch the error, which says what to do."""
    caught: list[str] = []

    @trio_asgi.limit_body(max_size=10, timeout=5)
    @trio_asgi.stream_body
    async def view(request: ASGIRequest) -> HttpResponse:
        try:
            [chunk async for chunk in request.stream()]
        except (BodyTooLarge, BodyTimeout) as error:
            caught.append(str(error))
        return HttpResponse("mine", status=400)

    app = application(path("", view), middleware=())
    client = Client([b"x" * 5, b"x" * 6, b""])
    assert await client.ask(app, upload_scope()) == (400, b"mine")
    client = Client([b"x", b""], pause=6)
    assert await client.ask(app, upload_scope()) == (400, b"mine")
    assert "larger than 10 bytes" in caught[0]
    assert "MAX_BODY_SIZE" in caught[0]
    assert "for 5 seconds" in caught[1]
    assert "BODY_TIMEOUT" in caught[1]


async def test_a_form_that_is_refused_is_empty_for_whoever_asks_then() -> None:
    """Code that reports errors may ask for the form again."""
    seen: list[Any] = []

    @trio_asgi.limit_body(max_size=10)
    @trio_asgi.stream_body
    def view(request: HttpRequest) -> HttpResponse:
        with pytest.raises(BodyTooLarge):
            request.POST  # noqa: B018
        seen.append(dict(request.POST))
        raise BodyTooLarge(10)

    form = (b"content-type", b"multipart/form-data; boundary=x")
    # Unlike any server, so that it is not refused before.
    scope = upload_scope(form, length=9)
    client = Client([b"--x\r\n", b"x" * 20, b""])
    app = application(path("", view))
    assert await client.ask(app, scope) == TOO_LARGE
    assert seen == [{}]


@pytest.mark.parametrize(
    "scope",
    [
        http_scope(
            method="POST",
            headers=[(b"content-length", b"0"), (b"transfer-encoding", b"chunked")],
        ),
        http_scope(method="GET", http_version="2"),
        http_scope(method="POST", http_version="2"),
    ],
)
async def test_a_body_that_the_headers_hide(
    settings_dict: dict[str, Any], scope: Scope
) -> None:
    """The limits apply to the bytes that come, whatever was announced."""
    settings_dict["MAX_BODY_SIZE"] = 10
    client = Client([b"x" * 5, b"x" * 10, b""])
    assert await client.ask(application(path("", sync_view)), scope) == TOO_LARGE


async def test_messages_without_bytes_are_no_sign_of_life(
    settings_dict: dict[str, Any], autojump_clock: MockClock
) -> None:
    """The timeout applies to bytes."""
    client = Client([b"x", *[b""] * 20, b"y"], pause=50.0)
    app = application(path("", view), middleware=())
    assert await client.ask(app, upload_scope(length=2)) == TOO_SLOW


async def test_a_limit_that_was_passed_stays_so() -> None:
    """Reading again does not reach the end of a body that was refused."""
    raised: list[BaseException] = []

    @trio_asgi.limit_body(max_size=10)
    @trio_asgi.stream_body
    def view(request: HttpRequest) -> HttpResponse:
        for _ in range(2):
            with pytest.raises(BodyTooLarge) as caught:
                request.read()
            raised.append(caught.value)
        return HttpResponse(status=400)

    client = Client([b"x" * 5, b"x" * 6])
    assert (await client.ask(application(path("", view)), upload_scope()))[0] == 400
    assert len(raised) == 2


async def test_both_signals_come_for_a_body_that_is_refused() -> None:
    """Both are sent if anything listens."""
    client = Client([b"x" * 11])
    with signal_log() as log, override_settings(TRIO_ASGI={"MAX_BODY_SIZE": 10}):
        app = application(path("", unreachable))
        assert await client.ask(app, upload_scope(length=11)) == TOO_LARGE
    assert log.names == ["started", "finished"]


async def test_a_client_that_leaves_instead(settings_dict: dict[str, Any]) -> None:
    """No answer and no signal is sent."""

    class Abandoner(Client):
        async def receive(self) -> dict[str, Any]:
            await trio.lowlevel.checkpoint()
            return {"type": "http.disconnect"}

    settings_dict["MAX_BODY_SIZE"] = 10
    client = Abandoner([])
    with signal_log() as log:
        app = application(path("", unreachable))
        await app(upload_scope(length=11), client.receive, client.send)
    assert not client.messages
    assert not log.names

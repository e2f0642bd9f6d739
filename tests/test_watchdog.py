"""Under DEBUG, the log names the code that blocks the loop."""

from __future__ import annotations

import asyncio
import io
import logging
import pdb  # noqa: T100 - a debugger is what is tested
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio
from asgiref.sync import sync_to_async
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path

from guest_support import run_in_guest
from support import application, request
from thread_support import SECONDS, cannot_start
from trio_asgi.debugging import watchdog
from trio_asgi.debugging.frames import frames_of_stack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from trio_asgi import ASGIHandler


class Log(logging.Handler):
    """What was logged, and something to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []
        self.news = threading.Condition()
        #: Held until something is logged, by code that must not call Python.
        self.held = threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        with self.news:
            self.messages.append(record.getMessage())
            self.news.notify_all()
        if self.held.locked():
            self.held.release()

    def wait(self, count: int) -> None:
        """Block until so many messages were logged."""
        with self.news:
            assert self.news.wait_for(lambda: len(self.messages) >= count, SECONDS)


@pytest.fixture
def log() -> Iterator[Log]:
    """Return what is logged."""
    log, logger = Log(), logging.getLogger("trio_asgi")
    logger.addHandler(log)
    yield log
    logger.removeHandler(log)


class Looks:
    """Counts how often a watchdog has looked at the stack."""

    def __init__(self, original: Callable[[FrameType | None], Any]) -> None:
        self._original = original
        self._count = 0
        self._news = threading.Condition()

    def __call__(self, frame: FrameType | None) -> Any:
        found = self._original(frame)
        with self._news:
            self._count += 1
            self._news.notify_all()
        return found

    @property
    def count(self) -> int:
        """How often so far."""
        return self._count

    def wait(self) -> None:
        """Block while it looks, and waits for an answer, and looks again."""
        with self._news:
            wanted = self._count + 4
            assert self._news.wait_for(lambda: self._count >= wanted, SECONDS)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    """Count the looks."""
    looks = Looks(frames_of_stack)
    monkeypatch.setattr(watchdog, "frames_of_stack", looks)
    return looks


def debugged(view: Any) -> ASGIHandler:
    """Return an application that was made under DEBUG."""
    with override_settings(DEBUG=True):
        return application(path("", view))


def watchdogs() -> list[threading.Thread]:
    """Return the threads that watch."""
    return [one for one in threading.enumerate() if one.name == "trio-asgi-watchdog"]


async def test_the_culprit_is_named(log: Log) -> None:
    """That is the project's innermost line, and what it calls; the rest follows."""

    def helper() -> None:
        log.wait(1)

    async def view(request: HttpRequest) -> HttpResponse:
        helper()
        return HttpResponse()

    app = debugged(view)
    answer = await request(app)
    assert answer.status == 200
    [message] = log.messages
    first, *stack = message.splitlines()
    assert first.startswith(
        "The event loop has been blocked for more than 100 ms: threading.wait_for "
        "called at test_watchdog.py:"
    )
    assert " in wait, below test_watchdog.py:" in first
    assert " in view. Meanwhile" in first
    assert "in view" in stack[0]
    assert "in helper" in stack[2]
    assert "threading.py" in message


async def test_a_function_of_c_is_named_by_its_line(log: Log) -> None:
    """It has no frame, so the source is shown."""

    async def view(request: HttpRequest) -> HttpResponse:
        assert log.held.acquire(timeout=SECONDS)
        return HttpResponse()

    log.held.acquire()
    assert (await request(debugged(view))).status == 200
    [message] = log.messages
    assert "ms: 'assert log.held.acquire(timeout=SECONDS)' at test_watchdog" in message


async def test_each_line_is_logged_once_a_minute(
    log: Log, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another line is logged at once, and the same line after the minute."""

    async def view(request: HttpRequest) -> HttpResponse:
        for _ in range(2):
            looks.wait()
            assert len(log.messages) == 1
        log.wait(2)
        monkeypatch.setattr(watchdog, "AGAIN", 0)
        log.wait(3)
        return HttpResponse()

    assert (await request(debugged(view))).status == 200


async def test_a_debugger_is_no_culprit(log: Log, looks: Looks) -> None:
    """While its user thinks, the loop is blocked on purpose."""

    class User(io.StringIO):
        def readline(self, *_: Any) -> Any:
            looks.wait()
            return "continue\n"

    output = io.StringIO()

    async def view(request: HttpRequest) -> HttpResponse:
        pdb.Pdb(stdin=User(), stdout=output, nosigint=True, readrc=False).set_trace()
        assert log.messages == []
        log.wait(1)
        return HttpResponse()

    assert (await request(debugged(view))).status == 200
    assert "(Pdb)" in output.getvalue()


async def test_busy_code_that_lets_others_run(
    log: Log, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code of the project is on the stack all the time, but the loop answers."""
    # The machine may be busy with other things.
    monkeypatch.setattr(watchdog, "LIMIT", SECONDS)

    async def view(request: HttpRequest) -> HttpResponse:
        wanted = looks.count + 6
        while looks.count < wanted:
            # Longer than Python lets a thread wait for the interpreter's lock.
            until = time.perf_counter() + 0.02
            while time.perf_counter() < until:
                pass
            await trio.lowlevel.checkpoint()
        return HttpResponse()

    assert (await request(debugged(view))).status == 200
    assert log.messages == []


async def test_blocked_threads_are_no_culprits(log: Log, looks: Looks) -> None:
    """Sync code may block: it has its thread."""

    def view(request: HttpRequest) -> HttpResponse:
        looks.wait()
        return HttpResponse()

    async def async_view(request: HttpRequest) -> HttpResponse:
        await sync_to_async(looks.wait)()
        return HttpResponse()

    for one in (view, async_view):
        assert (await request(debugged(one))).status == 200
    assert log.messages == []


def test_one_thread_for_each_run() -> None:
    """It ends with the run; two applications and many requests share it."""

    async def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    async def main() -> None:
        for app in (debugged(view), debugged(view)):
            for _ in range(2):
                await request(app)
        [found] = watchdogs()
        assert found.daemon

    for _ in range(2):
        trio.run(main)
        assert watchdogs() == []


async def test_a_test_s_clock(autojump_clock: trio.testing.MockClock) -> None:
    """Where time may stand still, nothing watches."""

    async def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    await request(debugged(view))
    assert watchdogs() == []


async def test_without_debug() -> None:
    """Nothing is started, and the handler is the class's own."""

    async def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    app = application(path("", view))
    await request(app)
    assert watchdogs() == []
    assert "handle" not in vars(app)


def test_a_system_without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request is answered all the same."""

    async def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    async def main() -> int:
        monkeypatch.setattr(threading.Thread, "start", cannot_start)
        return (await request(debugged(view))).status

    assert trio.run(main) == 200


def test_a_handler_that_does_not_end(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's end waits for it, but not for ever."""
    monkeypatch.setattr(watchdog, "END_SECONDS", 0.01)
    entered, ends = threading.Event(), threading.Event()

    def emit(record: logging.LogRecord) -> None:
        entered.set()
        assert ends.wait(SECONDS)

    monkeypatch.setattr(log, "emit", emit)

    async def view(request: HttpRequest) -> HttpResponse:
        assert entered.wait(SECONDS)
        return HttpResponse()

    async def main() -> None:
        assert (await request(debugged(view))).status == 200

    trio.run(main)
    [thread] = watchdogs()
    ends.set()
    thread.join(SECONDS)
    assert watchdogs() == []


@pytest.mark.parametrize("islands", [False, True])
def test_under_a_server_on_asyncio(log: Log, islands: bool) -> None:
    """Trio's tasks and asyncio's code are watched, in the guest run."""

    async def view(request: HttpRequest) -> HttpResponse:
        if islands:
            await asyncio.sleep(0.001)
        log.wait(1)
        return HttpResponse()

    async def main() -> None:
        with override_settings(TRIO_ASGI={"ASYNCIO_VIEWS": islands}):
            answer = await request(debugged(view))
        assert answer.status == 200
        assert len(watchdogs()) == 1

    run_in_guest(main)
    assert watchdogs() == []
    [message] = log.messages
    assert "below test_watchdog.py:" in message
    assert " in view. Meanwhile" in message

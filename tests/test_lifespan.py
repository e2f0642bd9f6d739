"""The handshake with the server, and tasks that outlive requests."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from asgiref.sync import sync_to_async
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path

from support import application, request
from trio_asgi import ASGIHandler, asyncio_island
from trio_asgi.testing import ApplicationCommunicator
from trio_asgi.threads.abandon import Abandoner
from trio_asgi.threads.current import current_pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

STARTUP = {"type": "lifespan.startup"}
SHUTDOWN = {"type": "lifespan.shutdown"}


def lifespan(app: ASGIHandler) -> ApplicationCommunicator:
    """Return a communicator for the application's lifespan."""
    return ApplicationCommunicator(app, {"type": "lifespan", "asgi": {}})


async def start_up(communicator: ApplicationCommunicator) -> Any:
    """Send the start-up, and return the answer's type."""
    await communicator.send_input(STARTUP)
    return (await communicator.receive_output())["type"]


async def shut_down(communicator: ApplicationCommunicator) -> Any:
    """Send the shutdown, and return the answer's type."""
    await communicator.send_input(SHUTDOWN)
    return (await communicator.receive_output(timeout=10))["type"]


async def test_the_handshake() -> None:
    """Start-up and shutdown are answered, and the application ends."""
    async with lifespan(application()) as communicator:
        assert await start_up(communicator) == "lifespan.startup.complete"
        assert await communicator.receive_nothing(0.01)
        assert await shut_down(communicator) == "lifespan.shutdown.complete"
        await communicator.wait()


class Recording(ASGIHandler):
    """Records the course of its lifespan, and fails where told to."""

    events: list[str]
    fail_at = ""

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Hold a nursery open around the serving."""
        self.events.append("enter")
        if self.fail_at == "enter":
            raise ValueError("no database")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            yield
            nursery.cancel_scope.cancel()
        self.events.append("exit")
        if self.fail_at == "exit":
            raise ValueError("cannot save")


@pytest.fixture
def recording() -> Recording:
    """A handler that records its lifespan."""
    Recording.events, Recording.fail_at = [], ""
    return Recording()


async def test_an_overridden_lifespan_surrounds_the_serving(
    recording: Recording,
) -> None:
    """It is entered before start-up is complete, and left after the tasks' end."""

    async def task() -> None:
        await trio.lowlevel.checkpoint()
        recording.events.append("task")

    async with lifespan(recording) as communicator:
        await start_up(communicator)
        assert recording.events == ["enter"]
        recording.start_soon(task)
        await shut_down(communicator)
    assert recording.events == ["enter", "task", "exit"]


@pytest.mark.parametrize(
    ("point", "phase", "message"),
    [
        ("enter", "startup", "ValueError: no database"),
        ("exit", "shutdown", "ValueError: cannot save"),
    ],
)
async def test_a_failure_is_reported_to_the_server(
    recording: Recording,
    caplog: pytest.LogCaptureFixture,
    point: str,
    phase: str,
    message: str,
) -> None:
    """An error of lifespan() is logged once, and sent to the server as its failure."""
    Recording.fail_at = point
    async with lifespan(recording) as communicator:
        await communicator.send_input(STARTUP)
        if point == "exit":
            await communicator.receive_output()
            await communicator.send_input(SHUTDOWN)
        output = await communicator.receive_output()
        assert output == {"type": f"lifespan.{phase}.failed", "message": message}
        await communicator.wait()
    assert len(caplog.records) == 1
    assert f"The application's {phase} failed" in caplog.text


async def test_the_servers_error_about_a_failure_has_no_context(
    recording: Recording,
) -> None:
    """The server's error about a failure is not chained to its cause."""
    Recording.fail_at = "enter"

    async def receive() -> Any:
        return STARTUP

    async def send(message: Any) -> None:
        raise LookupError(message["type"])

    with pytest.raises(LookupError, match=r"lifespan\.startup\.failed") as raised:
        await recording({"type": "lifespan"}, receive, send)
    assert raised.value.__context__ is None


async def test_a_task_of_a_view_outlives_its_request() -> None:
    """A task started by a view runs on after the answer, with its own thread."""
    go_on = trio.Event()
    threads: list[str] = []

    def note_thread() -> None:
        threads.append(threading.current_thread().name)

    async def task() -> None:
        await sync_to_async(note_thread)()
        await go_on.wait()
        await sync_to_async(note_thread)()

    async def view(request: HttpRequest) -> HttpResponse:
        app.start_soon(task)
        await sync_to_async(note_thread)()
        return HttpResponse("answered")

    app = application(path("", view))
    async with lifespan(app) as communicator:
        await start_up(communicator)
        assert (await request(app)).body == b"answered"
        go_on.set()
        await shut_down(communicator)
    view_threads = {threads[0], threads[1]}
    assert len(threads) == 3
    assert len(view_threads) == 2
    assert threads[2] in view_threads


async def test_a_failing_task_is_logged_and_harms_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The error of one task leaves the others, and the server, alone."""
    done = []

    async def fail() -> None:
        raise ValueError("in the background")

    async def work() -> None:
        await trio.testing.wait_all_tasks_blocked()
        done.append(True)

    app = application()
    async with lifespan(app) as communicator:
        await start_up(communicator)
        app.start_soon(work)
        app.start_soon(fail)
        assert await shut_down(communicator) == "lifespan.shutdown.complete"
    assert done == [True]
    assert [r.levelno for r in caplog.records] == [logging.ERROR]
    assert "in the background" in caplog.text


async def test_shutdown_waits_for_tasks_but_not_for_ever(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A task may run on for SHUTDOWN_SECONDS, and is then cancelled."""
    ends: dict[str, float] = {}

    async def sleep(name: str, seconds: float) -> None:
        try:
            await trio.sleep(seconds)
        finally:
            ends[name] = trio.current_time() - start

    with override_settings(TRIO_ASGI={"SHUTDOWN_SECONDS": 5}):
        app = application()
    async with lifespan(app) as communicator:
        await start_up(communicator)
        start = trio.current_time()
        app.start_soon(sleep, "short", 2)
        app.start_soon(sleep, "long", 1000)
        assert await shut_down(communicator) == "lifespan.shutdown.complete"
    assert ends == {"short": pytest.approx(2), "long": pytest.approx(5)}


async def test_a_task_cannot_be_started_outside_the_lifespan() -> None:
    """Before start-up and after shutdown, the error says what to do instead."""
    app = application()
    with pytest.raises(RuntimeError, match="No nursery outlives this request"):
        app.start_soon(trio.sleep_forever)
    async with lifespan(app) as communicator:
        await start_up(communicator)
        await shut_down(communicator)
    with pytest.raises(RuntimeError, match=r"has sent no lifespan\.startup"):
        app.start_soon(trio.sleep_forever)


async def test_a_server_without_lifespan_is_served() -> None:
    """Requests need no lifespan scope."""
    assert (await request(ASGIHandler())).body == b"Hello World!"


async def test_shutdown_ends_the_threads() -> None:
    """When shutdown is complete no worker thread is left."""
    app = application(path("", lambda request: HttpResponse()))
    async with lifespan(app) as communicator:
        await start_up(communicator)
        await request(app)
        threads = [worker.thread for worker in current_pool().workers]
        assert [thread.is_alive() for thread in threads] == [True]
        await shut_down(communicator)
    assert [thread.is_alive() for thread in threads] == [False]
    assert not current_pool().workers


async def test_an_ended_thread_closes_its_database_connections() -> None:
    """No connection is left open behind a thread that has ended."""
    from django.db import connection  # noqa: PLC0415

    open_connections = []

    def view(request: HttpRequest) -> HttpResponse:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        # One that Django never closes by age, as with CONN_MAX_AGE=None.
        connection.close_at = None
        open_connections.append(connection.connection)
        return HttpResponse()

    closed = []
    with pytest.MonkeyPatch.context() as patch:
        from django.db.backends.sqlite3.base import (  # noqa: PLC0415
            DatabaseWrapper,
        )

        original = DatabaseWrapper._close  # type: ignore[attr-defined]

        def close(self: Any) -> Any:
            closed.append(threading.current_thread())
            return original(self)

        patch.setattr(DatabaseWrapper, "_close", close)
        # An in-memory SQLite database is never closed by close(), so look below it.
        patch.setattr(DatabaseWrapper, "is_in_memory_db", lambda self: False)
        app = application(path("", view))
        async with lifespan(app) as communicator:
            await start_up(communicator)
            await request(app)
            (worker,) = current_pool().workers
            await shut_down(communicator)
    assert closed == [worker.thread]
    assert len(open_connections) == 1


async def test_the_thread_of_a_task_goes_back_without_old_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A task's connections are checked in their thread, as a request's are."""
    closed: list[str] = []

    def tidy_up() -> None:
        closed.append(threading.current_thread().name)

    monkeypatch.setattr("trio_asgi.request.background.tidy_up", tidy_up)
    names: list[str] = []

    async def task() -> None:
        await sync_to_async(lambda: names.append(threading.current_thread().name))()

    async def without_thread() -> None:
        await trio.lowlevel.checkpoint()

    app = application()
    async with lifespan(app) as communicator:
        await start_up(communicator)
        app.start_soon(task)
        app.start_soon(without_thread)
        await shut_down(communicator)
    # When the thread is taken, because they may have been idle, and when it goes back.
    assert closed == names * 2
    assert len(names) == 1


async def test_an_applications_end_leaves_the_loop_to_others() -> None:
    """The islands of the program and of a second site outlive the end of the first."""
    began: dict[str, trio.Event] = {
        name: trio.Event() for name in ("first", "second", "background", "program")
    }
    ended: list[str] = []
    tasks: set[asyncio.Task[None]] = set()

    async def linger(name: str) -> None:
        began[name].set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append(name)

    async def begin(name: str) -> None:
        tasks.add(asyncio.create_task(linger(name)))
        await asyncio.sleep(0)

    def site(name: str) -> ASGIHandler:
        async def view(request: HttpRequest) -> HttpResponse:
            await asyncio_island(begin)(name)
            return HttpResponse()

        return application(path("", view))

    async def still_works() -> str:
        await asyncio.sleep(0)
        return await asyncio.to_thread(lambda: "works")

    first, second = site("first"), site("second")
    async with (
        trio.open_nursery() as nursery,
        lifespan(second) as second_life,
        lifespan(first) as first_life,
    ):
        await start_up(second_life)
        await start_up(first_life)
        nursery.start_soon(asyncio_island(linger), "program")
        await request(first)
        await request(second)
        first.start_soon(asyncio_island(begin), "background")
        for event in began.values():
            await event.wait()
        assert await shut_down(first_life) == "lifespan.shutdown.complete"
        assert sorted(ended) == ["background", "first"]
        assert await asyncio_island(still_works)() == "works"
        assert await shut_down(second_life) == "lifespan.shutdown.complete"
        assert sorted(ended) == ["background", "first", "second"]
        assert await asyncio_island(still_works)() == "works"
        nursery.cancel_scope.cancel()
    assert ended[-1] == "program"


def test_at_the_end_of_the_run_a_connection_is_closed_after_its_last_use() -> None:
    """asyncio code's clean-up with sync code is done before the threads end."""
    order: list[str] = []

    async def linger() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await sync_to_async(lambda: order.append("used"))()

    async def begin() -> None:
        tasks.append(asyncio.create_task(linger()))
        await asyncio.sleep(0)

    async def main() -> None:
        pool = current_pool()
        await sync_to_async(lambda: None)()
        pool.on_thread_exit = lambda: order.append("closed")
        await asyncio_island(begin)()

    tasks: list[asyncio.Task[None]] = []
    trio.run(main)
    assert "used" in order
    assert order[-1] == "closed"
    assert order.count("closed") == 2  # the program's thread, and that of the last call


def test_the_run_ends_though_its_own_sync_code_does_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Sync code of a system task, in the program's thread, is left, and named."""
    go_on = threading.Event()
    token: Any = None
    hangs: Any = None

    def hang_for_the_program() -> None:
        token.run_sync_soon(hangs.set)
        go_on.wait()

    async def system_task() -> None:
        await sync_to_async(hang_for_the_program)()

    async def main() -> None:
        nonlocal token, hangs
        token, hangs = trio.lowlevel.current_trio_token(), trio.Event()
        current_pool().shutdown_seconds = 0.1
        trio.lowlevel.spawn_system_task(system_task)
        await hangs.wait()

    try:
        trio.run(main)
    finally:
        go_on.set()
    assert "hang_for_the_program" in caplog.text
    assert "Left behind because it does not end" in caplog.text


async def test_a_call_left_in_the_programs_thread_blocks_no_other() -> None:
    """The next call of the program has another thread."""
    go_on = threading.Event()
    hangs = trio.Event()
    names: list[str] = []
    token = trio.lowlevel.current_trio_token()

    def hang() -> None:
        token.run_sync_soon(hangs.set)
        go_on.wait()

    async def wait_behind() -> None:
        await sync_to_async(lambda: names.append("behind"))()

    try:
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as stuck:
                stuck.start_soon(sync_to_async(hang))
                await hangs.wait()
                nursery.start_soon(wait_behind)
                await trio.testing.wait_all_tasks_blocked()
                abandoner = Abandoner(trio.lowlevel.current_task(), 0)
                abandoner.look()  # nobody is cancelled yet
                assert not abandoner.is_needed
                stuck.cancel_scope.cancel()
                abandoner.look()
            await sync_to_async(lambda: names.append("after"))()
    finally:
        go_on.set()
    assert sorted(names) == ["after", "behind"]

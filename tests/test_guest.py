"""Trio as a guest of asyncio's loop: one run for each loop, a task for each request."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import sniffio
import trio

from trio_asgi.hosts import guest_run, runs, ticks
from trio_asgi.hosts.guest import run_as_guest
from trio_asgi.islands.functions import asyncio_island, trio_island
from trio_asgi.threads.current import current_pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from trio_asgi.asgi.types import Message, Receive, Scope, Send

HTTP: dict[str, Any] = {"type": "http"}
LIFESPAN: dict[str, Any] = {"type": "lifespan"}

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="")


@pytest.fixture(autouse=True, params=["watched", "thread"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to wake the run: the host loop watches it, or Trio's own thread."""
    if request.param == "thread":
        monkeypatch.setattr(guest_run, "watch", lambda *_: None)
    elif sys.platform == "win32":
        pytest.skip("Proactor loops cannot watch files")
    return str(request.param)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No run outlives the test's loop."""
    yield
    assert not trio.lowlevel.in_trio_run()
    assert not runs._runs or all(loop.is_closed() for loop in runs._runs)


async def receive_nothing() -> Message:
    """Wait for a message that never comes."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError


async def send_nothing(message: Message) -> None:
    """Drop a message."""


async def nothing(_receive: Receive, _send: Send) -> None:
    """Answer nothing."""
    await trio.lowlevel.checkpoint()


async def call(
    async_fn: Callable[[Receive, Send], Awaitable[None]],
    receive: Receive = receive_nothing,
    send: Send = send_nothing,
) -> None:
    """Run an application in the guest run, as for a request."""

    async def application(_scope: Scope, receive: Receive, send: Send) -> None:
        await async_fn(receive, send)

    await run_as_guest(application, HTTP, receive, send)


class Lifespan:
    """A server's side of a lifespan."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[Message] = asyncio.Queue()
        self.sent: asyncio.Queue[Message] = asyncio.Queue()
        self.log: list[str] = []

    async def application(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a lifespan. Trio task."""
        while True:
            message = await receive()
            self.log.append(str(message["type"]))
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return

    async def send(self, message: Message) -> None:
        """Take a message of the application."""
        run = "runs" if trio.lowlevel.in_trio_run() else "has ended"
        self.log.append(f"{message['type']}, Trio {run}")
        await self.sent.put(message)

    async def start(self) -> None:
        """Start up."""
        self.task = asyncio.create_task(
            run_as_guest(self.application, LIFESPAN, self.asked.get, self.send)
        )
        await self.asked.put({"type": "lifespan.startup"})
        await self.sent.get()

    async def shut_down(self) -> None:
        """Shut down."""
        await self.asked.put({"type": "lifespan.shutdown"})
        await self.task


# A request


def test_a_request_is_a_trio_task_in_a_copy_of_the_callers_context() -> None:
    """The values are there; a change does not go back to the server's task."""
    seen = []
    loops: list[asyncio.AbstractEventLoop] = []

    async def app(_receive: Receive, _send: Send) -> None:
        assert asyncio.current_task(loops[0]) is None
        await trio.lowlevel.checkpoint()
        seen.append((variable.get(), sniffio.current_async_library()))
        variable.set("changed")
        assert asyncio.current_task(loops[0]) is None

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        variable.set("given")
        await call(app)
        assert variable.get() == "given"

    asyncio.run(main())
    assert seen == [("given", "trio")]


def test_the_error_of_a_request_is_raised_in_the_servers_task() -> None:
    """Also one that no asyncio future can hold."""

    async def app(_receive: Receive, _send: Send) -> None:
        await trio.lowlevel.checkpoint()
        raise StopAsyncIteration("of the request")

    async def main() -> None:
        with pytest.raises(StopAsyncIteration, match="of the request"):
            await call(app)

    asyncio.run(main())


def test_a_cancelled_request_is_waited_for() -> None:
    """The Trio task is cancelled and ends; then CancelledError goes on, once."""
    log = []

    async def main() -> None:
        waiting, may_end = asyncio.Event(), asyncio.Event()

        async def app(receive: Receive, send: Send) -> None:
            try:
                waiting.set()
                await trio.sleep_forever()
            finally:
                log.append("cancelled")
                with trio.CancelScope(shield=True):
                    await send({"type": "wait"})
                log.append("ended")

        async def send(_message: Message) -> None:
            await may_end.wait()

        task = asyncio.create_task(call(app, send=send))
        await waiting.wait()
        task.cancel()
        while not log:
            await asyncio.sleep(0)
        task.cancel()  # a second time
        await asyncio.sleep(0)
        assert not task.done()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert log == ["cancelled", "ended"]


def test_no_reference_cycles_are_left() -> None:
    """Neither by an answer nor by an error."""

    async def answer(_receive: Receive, send: Send) -> None:
        await send({"type": "answer"})
        await trio.lowlevel.checkpoint()
        await send({"type": "answer"})

    async def fail(_receive: Receive, send: Send) -> None:
        await send({"type": "answer"})
        await trio.lowlevel.checkpoint()
        raise ValueError

    async def send(_message: Message) -> None:
        await asyncio.sleep(0)

    async def once() -> None:
        await call(answer, send=send)
        with suppress(ValueError):
            await call(fail, send=send)

    async def main() -> None:
        await once()
        gc.collect()
        gc.disable()
        try:
            await once()
            # What asyncio itself leaves is not looked at.
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            ours = [
                found
                for found in gc.garbage
                if type(found).__module__.startswith(("trio_asgi.hosts", "test"))
            ]
            assert ours == []
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()

    asyncio.run(main())


def test_the_server_sees_nothing_that_the_application_sets() -> None:
    """Else a server may begin the connection's next request in such a context."""
    seen = []

    async def app(receive: Receive, send: Send) -> None:
        variable.set("of the application")
        for _ in range(2):
            await receive()
            await send({"type": "answer"})

    async def receive() -> Message:
        seen.append(variable.get())
        await asyncio.sleep(0)
        seen.append(variable.get())
        return {"type": "question"}

    async def send(_message: Message) -> None:
        seen.append(variable.get())

    async def main() -> None:
        variable.set("of the server")
        await call(app, receive, send)

    asyncio.run(main())
    assert seen == ["of the server"] * 6


def test_an_error_that_the_caller_handles_is_no_other_tasks() -> None:
    """Other Trio tasks run below the caller, but not in its `except` block."""
    seen: list[object] = []

    async def main() -> None:
        waiting = asyncio.Event()
        event = trio.Event()

        async def other(_receive: Receive, _send: Send) -> None:
            waiting.set()
            await event.wait()
            seen.append(sys.exc_info()[1])

        async def app(_receive: Receive, _send: Send) -> None:
            event.set()

        task = asyncio.create_task(call(other))
        await waiting.wait()
        try:
            raise ValueError
        except ValueError:
            await call(app)
        await task

    asyncio.run(main())
    assert seen == [None]


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
def test_a_loop_that_is_run_again() -> None:
    """As by granian: async generators of Trio code still belong to Trio."""
    seen = []

    async def generate() -> AsyncIterator[None]:
        try:
            yield
        finally:
            seen.append(trio.lowlevel.in_trio_task())
            closed.set()

    async def app(_receive: Receive, _send: Send) -> None:
        generator = generate()
        await generator.__anext__()
        del generator
        gc.collect()
        await closed.wait()

    closed = trio.Event()
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(call(nothing))
        loop.run_until_complete(call(app))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
    assert seen == [True]


# The server's receive and send


def test_a_send_that_does_not_wait_is_done_in_place() -> None:
    """No pass of the host loop is needed, and it finds a current asyncio task."""
    passes = 0
    seen = []

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def count() -> None:
            nonlocal passes
            passes += 1
            loop.call_soon(count)

        async def app(_receive: Receive, send: Send) -> None:
            count()
            before = passes
            for _ in range(5):
                await send({"type": "message"})
            seen.append(passes - before)

        async def send(_message: Message) -> None:
            task = asyncio.current_task()
            assert task is not None
            assert sniffio.current_async_library() == "asyncio"

        await call(app, send=send)

    asyncio.run(main())
    assert seen == [0]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout is new in 3.11")
def test_a_send_that_waits_may_use_a_timeout() -> None:
    """It is one asyncio task from its beginning."""
    log = []

    async def main() -> None:
        async def app(_receive: Receive, send: Send) -> None:
            await send({"type": "message"})
            log.append("sent")

        async def send(_message: Message) -> None:
            token = variable.set("first step")
            with suppress(TimeoutError):
                async with asyncio.timeout(0.001):
                    await asyncio.sleep(3600)
            assert variable.get() == "first step"
            variable.reset(token)
            log.append("timed out")

        await call(app, send=send)

    asyncio.run(main())
    assert log == ["timed out", "sent"]


def test_an_endless_stream_lets_others_run() -> None:
    """Even if the server drops its messages without waiting."""

    async def main() -> None:
        begun = asyncio.Event()

        async def app(_receive: Receive, send: Send) -> None:
            begun.set()
            while True:
                await send({"type": "http.response.body", "more_body": True})

        task = asyncio.create_task(call(app))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_a_deadline_cancels_a_send_and_waits_for_it() -> None:
    """The server sees CancelledError; its clean-up comes before Trio goes on."""
    log = []

    async def main() -> None:
        async def app(_receive: Receive, send: Send) -> None:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send, {"type": "message"})
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
            log.append("went on")

        async def send(_message: Message) -> None:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                await asyncio.sleep(0)
                log.append("cleaned up")
                raise

        await call(app, send=send)

    asyncio.run(main())
    assert log == ["cleaned up", "went on"]


def test_the_error_of_a_send_is_raised_in_place() -> None:
    """Whether it has waited or not."""
    log = []

    async def main() -> None:
        async def app(_receive: Receive, send: Send) -> None:
            for kind in ("now", "later"):
                with pytest.raises(OSError, match=kind):
                    await send({"type": kind})
                log.append(kind)

        async def send(message: Message) -> None:
            if message["type"] == "later":
                await asyncio.sleep(0)
            raise OSError(message["type"])

        await call(app, send=send)

    asyncio.run(main())
    assert log == ["now", "later"]


def test_a_cancelled_receive_loses_no_message() -> None:
    """The next call of the same request gets it."""
    got = []

    async def main() -> None:
        queue: asyncio.Queue[Message] = asyncio.Queue()

        async def app(receive: Receive, _send: Send) -> None:
            with trio.move_on_after(0):
                await receive()
            queue.put_nowait({"type": "first"})
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            got.append(await receive())
            queue.put_nowait({"type": "second"})
            got.append(await receive())

        await call(app, receive=queue.get)

    asyncio.run(main())
    assert [message["type"] for message in got] == ["first", "second"]


def test_a_receive_that_waits_ends_with_the_request() -> None:
    """No asyncio task is left."""
    ended = []

    async def main() -> None:
        async def receive() -> Message:
            try:
                return await receive_nothing()
            finally:
                ended.append(True)

        async def app(receive: Receive, _send: Send) -> None:
            with trio.move_on_after(0):
                await receive()

        await call(app, receive=receive)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert ended == [True]


# Waking


def test_deadlines_files_and_threads_wake_the_run() -> None:
    """While the host loop has nothing else to do."""

    async def app(_receive: Receive, _send: Send) -> None:
        for seconds in (0.03, 0.01, 0):
            with trio.move_on_after(seconds):
                await trio.sleep_forever()
        left, right = trio.socket.socketpair()
        with left, right:
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def answer() -> None:
                    await right.send(await right.recv(10))

                for _ in range(10):
                    await trio.testing.wait_all_tasks_blocked(0.001)
                await left.send(b"x")
                assert await left.recv(10) == b"x"
        assert await trio.to_thread.run_sync(threading.get_ident) != ident

    ident = threading.get_ident()

    async def main() -> None:
        await call(app)
        await call(app)

    asyncio.run(main())


def test_a_file_of_the_host_loop_wakes_trio() -> None:
    """Code of the host loop may set a Trio event, without knowing of the guest run."""

    async def main() -> None:
        event, waiting = trio.Event(), asyncio.Event()

        async def app(_receive: Receive, _send: Send) -> None:
            waiting.set()
            await event.wait()

        task = asyncio.create_task(call(app))
        await waiting.wait()
        left, right = socket.socketpair()
        with left, right:
            asyncio.get_running_loop().add_reader(right, event.set)
            await asyncio.sleep(0.01)
            left.send(b"x")
            await task
            asyncio.get_running_loop().remove_reader(right)

    asyncio.run(main())


def test_an_island_is_cancelled_before_the_loop_knows_it() -> None:
    """What its first step waits for is cancelled, too."""
    futures: list[asyncio.Future[None]] = []

    async def inner() -> None:
        futures.append(asyncio.get_running_loop().create_future())
        await futures[0]

    async def app(_receive: Receive, _send: Send) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asyncio_island(inner))
            while not futures:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

    asyncio.run(call(app))
    assert futures[0].cancelled()


def test_many_deadlines_on_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its timers may be early; then the next is not at once."""
    uvloop = pytest.importorskip("uvloop")
    timers: list[object] = []
    on_timer = ticks.WatchedTicks._on_timer

    def count(self: ticks.WatchedTicks) -> None:
        timers.append(self)
        on_timer(self)

    monkeypatch.setattr(ticks.WatchedTicks, "_on_timer", count)

    async def app(_receive: Receive, _send: Send) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(trio.sleep, 0.0013 * number)

    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(call(app))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
    assert len(timers) < 1000


def test_many_threads_wake_the_run_in_order() -> None:
    """Each thread's functions are called in the order of their posting."""
    got: list[list[int]] = [[] for _ in range(4)]

    async def app(_receive: Receive, _send: Send) -> None:
        token = trio.lowlevel.current_trio_token()
        done = trio.Event()

        def post(mine: list[int]) -> None:
            for number in range(500):
                token.run_sync_soon(mine.append, number)

        async with trio.open_nursery() as nursery:
            for mine in got:
                nursery.start_soon(trio.to_thread.run_sync, post, mine)
        token.run_sync_soon(done.set)
        await done.wait()

    asyncio.run(call(app))
    assert got == [list(range(500))] * 4


def test_the_host_loop_has_its_turn_while_trio_is_busy() -> None:
    """A Trio task that never waits does not stop asyncio."""

    async def main() -> None:
        stop = False

        async def app(_receive: Receive, _send: Send) -> None:
            while not stop:
                await trio.lowlevel.checkpoint()

        task = asyncio.create_task(call(app))
        for _ in range(10):
            await asyncio.sleep(0)
        stop = True
        await task

    asyncio.run(main())


# Its life


def test_the_run_ends_before_the_shutdown_is_complete() -> None:
    """It begins with the lifespan, and serves requests until the shutdown."""
    life = Lifespan()

    async def main() -> None:
        await life.start()

        async def app(_receive: Receive, _send: Send) -> None:
            life.log.append("request")

        await call(app)
        await life.shut_down()

    asyncio.run(main())
    assert life.log == [
        "lifespan.startup",
        "lifespan.startup.complete, Trio runs",
        "request",
        "lifespan.shutdown",
        "lifespan.shutdown.complete, Trio has ended",
    ]


def test_the_shutdown_waits_for_requests_that_were_cancelled() -> None:
    """uvicorn cancels its tasks, and sends the shutdown before they have ended."""

    async def main() -> None:
        lifespan = Lifespan()
        await lifespan.start()
        entered, may_end = asyncio.Event(), trio.Event()

        async def view(receive: Receive, send: Send) -> None:
            # Also after that: each has its own limit, CLEANUP_SECONDS.
            current_pool().shutdown_seconds = 0
            entered.set()
            try:
                await trio.sleep_forever()
            finally:
                lifespan.log.append("cleaning up")
                with trio.CancelScope(shield=True):
                    await may_end.wait()
                lifespan.log.append("cleaned up")

        request = asyncio.create_task(call(view))
        await entered.wait()
        request.cancel()
        shutdown = asyncio.create_task(lifespan.shut_down())
        while "cleaning up" not in lifespan.log:
            await asyncio.sleep(0)
        # A pass of the loop for each step that the shutdown would take.
        for _ in range(20):
            await asyncio.sleep(0)
        run = runs._runs[asyncio.get_running_loop()]
        run.host.ticks.soon(may_end.set)
        await shutdown
        with suppress(asyncio.CancelledError):
            await request
        assert lifespan.log[-4:] == [
            "cleaning up",
            "cleaned up",
            "lifespan.shutdown",
            "lifespan.shutdown.complete, Trio has ended",
        ]

    asyncio.run(main())


def test_the_shutdown_waits_for_requests_that_are_answered() -> None:
    """granian sends the shutdown when it has the answers, before the requests' end."""

    async def main() -> None:
        lifespan = Lifespan()
        await lifespan.start()
        answered, may_end = asyncio.Event(), trio.Event()

        async def view(receive: Receive, send: Send) -> None:
            answered.set()
            await may_end.wait()
            lifespan.log.append("ended")

        request = asyncio.create_task(call(view))
        await answered.wait()
        shutdown = asyncio.create_task(lifespan.shut_down())
        # A pass of the loop for each step that the shutdown would take.
        for _ in range(20):
            await asyncio.sleep(0)
        run = runs._runs[asyncio.get_running_loop()]
        run.host.ticks.soon(may_end.set)
        await shutdown
        await request
        assert lifespan.log[-3:] == [
            "ended",
            "lifespan.shutdown",
            "lifespan.shutdown.complete, Trio has ended",
        ]

    asyncio.run(main())


def test_a_thread_that_hangs_does_not_keep_the_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What belongs to no request is left behind, too, at the end of the run."""
    gate = threading.Event()

    async def main() -> None:
        run = await runs.guest_run()
        loop, entered = asyncio.get_running_loop(), asyncio.Event()

        def hang() -> None:
            loop.call_soon_threadsafe(entered.set)
            gate.wait()

        async def in_trio() -> None:
            current_pool().shutdown_seconds = 0.1
            await current_pool().run_sync(hang)

        task = asyncio.create_task(run.call(in_trio, name="test"))
        await entered.wait()
        await run.end()
        with suppress(asyncio.CancelledError):
            await task

    try:
        asyncio.run(main())
    finally:
        gate.set()
    [record] = caplog.records
    assert "Left behind because it does not end: sync code in" in record.message


def test_applications_on_one_loop_share_the_run() -> None:
    """The last lifespan ends it."""
    first, second = Lifespan(), Lifespan()
    tokens = []

    async def app(_receive: Receive, _send: Send) -> None:
        tokens.append(trio.lowlevel.current_trio_token())

    async def main() -> None:
        await asyncio.gather(first.start(), second.start())
        await call(app)
        await first.shut_down()
        await call(app)
        await second.shut_down()

    asyncio.run(main())
    assert tokens[0] is tokens[1]
    assert first.log[-1] == "lifespan.shutdown.complete, Trio runs"
    assert second.log[-1] == "lifespan.shutdown.complete, Trio has ended"


def test_without_a_lifespan_the_run_ends_with_the_loop() -> None:
    """System tasks end in order when the loop closes its async generators."""
    log = []

    async def app(_receive: Receive, _send: Send) -> None:
        async def system() -> None:
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(0.01)
                log.append("ended")

        trio.lowlevel.spawn_system_task(system)

    asyncio.run(call(app))
    assert log == ["ended"]


def test_a_request_that_is_left_at_the_end_is_cancelled() -> None:
    """After SHUTDOWN_SECONDS; the server's task sees that, too."""
    life = Lifespan()

    async def main() -> None:
        await life.start()
        waiting = asyncio.Event()

        async def app(_receive: Receive, _send: Send) -> None:
            current_pool().shutdown_seconds = 0
            waiting.set()
            await trio.sleep_forever()

        task = asyncio.create_task(call(app))
        await waiting.wait()
        await life.shut_down()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_an_island_may_call_trio_while_the_run_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """To wait, and to clean up when it is cancelled: the run waits for that."""
    log = []

    async def main() -> None:
        run = await runs.guest_run()
        waiting = [asyncio.Event(), asyncio.Event()]

        async def wait_on_trio() -> None:
            try:
                waiting[0].set()
                await trio_island(trio.sleep_forever)()
            finally:
                log.append("waited")

        async def clean_up_on_trio() -> None:
            try:
                waiting[1].set()
                await asyncio.Event().wait()
            finally:
                await trio_island(trio.sleep)(0.001)
                assert await runs.island_run() is run
                log.append("cleaned up")

        tasks = [
            asyncio.create_task(run.call(asyncio_island(fn), name="test"))
            for fn in (wait_on_trio, clean_up_on_trio)
        ]
        for event in waiting:
            await event.wait()
        await run.end()
        for task in tasks:
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    assert sorted(log) == ["cleaned up", "waited"]
    assert caplog.records == []  # nothing was left behind


def test_a_nursery_that_is_cancelled_at_the_end() -> None:
    """The asyncio task gets the cancellation, not a group of Trio's."""

    async def app(_receive: Receive, _send: Send) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(trio.sleep_forever)
            waiting.append(True)

    async def main() -> None:
        task = asyncio.create_task(call(app))
        while not waiting:
            await asyncio.sleep(0)
        await (await runs.guest_run()).end()
        with pytest.raises(asyncio.CancelledError):
            await task

    waiting: list[bool] = []
    asyncio.run(main())


def test_ctrl_c_is_the_hosts_after_the_end(caplog: pytest.LogCaptureFixture) -> None:
    """Where the server has no handler for it: the run ends, and the loop raises it."""
    log: list[str] = []

    async def wait(_receive: Receive, _send: Send) -> None:
        try:
            loop.call_soon(signal.raise_signal, signal.SIGINT)
            await trio.sleep_forever()
        finally:
            log.append("cancelled")

    async def main() -> None:
        with suppress(asyncio.CancelledError):
            await call(wait)
        await asyncio.Event().wait()  # as a server does

    # A shell starts programs in the background with SIGINT ignored.
    outer = signal.signal(signal.SIGINT, signal.default_int_handler)
    loop = asyncio.new_event_loop()
    task = loop.create_task(main())
    try:
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(task)
        assert log == ["cancelled"]
        assert not trio.lowlevel.in_trio_run()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.run_until_complete(call(nothing))  # in another run
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
        signal.signal(signal.SIGINT, outer)
    assert caplog.records == []


def test_the_task_that_begins_the_run_is_cancelled() -> None:
    """The run goes on, for others."""

    async def main() -> None:
        first = asyncio.create_task(call(nothing))
        await asyncio.sleep(0)
        first.cancel()
        with suppress(asyncio.CancelledError):
            await first
        await call(nothing)

    asyncio.run(main())


CLOSED_EARLY = """
import asyncio

from trio_asgi.hosts.runs import guest_run

loop = asyncio.new_event_loop()
loop.run_until_complete(guest_run())
loop.close()
asyncio.run(guest_run())
"""


@pytest.mark.parametrize("way", ["watched"], indirect=True)
def test_a_loop_that_was_closed_without_its_end() -> None:
    """Its run stays in the thread; the error of other loops says so."""
    run = subprocess.run(
        [sys.executable, "-c", CLOSED_EARLY],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert (
        "RuntimeError: Trio still runs in this thread, for an event loop" in run.stderr
    )


def test_a_run_that_has_ended_takes_no_call() -> None:
    """The caller is not cancelled, but told."""

    async def main() -> None:
        run = await runs.guest_run()
        await run.end()
        with pytest.raises(RuntimeError, match="Trio has ended"):
            await run.call(trio.lowlevel.checkpoint, name="test")

    asyncio.run(main())


def test_a_run_can_begin_after_another_has_ended() -> None:
    """On the same loop."""

    async def app(_receive: Receive, _send: Send) -> None:
        await trio.lowlevel.checkpoint()

    async def main() -> None:
        for _ in range(3):
            life = Lifespan()
            await life.start()
            await call(app)
            await life.shut_down()

    asyncio.run(main())


def test_a_crash_is_loud(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged; requests that run, and all later ones, get an error."""

    async def main() -> None:
        waiting = asyncio.Event()

        async def wait(_receive: Receive, _send: Send) -> None:
            waiting.set()
            await trio.sleep_forever()

        async def crash(_receive: Receive, _send: Send) -> None:
            async def fail() -> None:
                raise ValueError("of a system task")

            trio.lowlevel.spawn_system_task(fail)
            await trio.sleep_forever()

        task = asyncio.create_task(call(wait))
        await waiting.wait()
        for _ in range(2):
            with pytest.raises(RuntimeError, match="has crashed"):
                await call(crash)
        with pytest.raises(RuntimeError, match="has crashed"):
            await task

    asyncio.run(main())
    [record] = [r for r in caplog.records if r.levelno == logging.CRITICAL]
    assert "every request fails" in record.getMessage()
    assert record.exc_info


def test_another_run_in_the_thread_is_an_error() -> None:
    """Trio allows one; the next request can begin a run."""

    async def app(_receive: Receive, _send: Send) -> None:
        pass

    async def main() -> None:
        done = asyncio.Event()
        trio.lowlevel.start_guest_run(
            trio.sleep,
            0.01,
            run_sync_soon_threadsafe=asyncio.get_running_loop().call_soon_threadsafe,
            done_callback=lambda _: done.set(),
            host_uses_signal_set_wakeup_fd=True,
        )
        with pytest.raises(RuntimeError, match="run"):
            await call(app)
        await done.wait()
        await call(app)

    asyncio.run(main())


def test_an_unknown_trio_is_run_in_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a private name is missing, nothing of Trio is touched."""
    monkeypatch.setattr(ticks, "_TICK_NAMES", frozenset({"unknown"}))

    async def app(_receive: Receive, _send: Send) -> None:
        await trio.sleep(0.001)

    asyncio.run(call(app))

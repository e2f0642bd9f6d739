"""Islands: asyncio code in a Trio program, and Trio code inside that."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import socket
import sys
import textwrap
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from asgiref.local import Local
from asgiref.sync import async_to_sync, sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection
from django.utils.asyncio import async_unsafe

from thread_support import SECONDS, Gate, nothing, open_lease, run_script
from trio_asgi import asyncio_island, trio_island
from trio_asgi.errors import note_asyncio
from trio_asgi.islands.loop import close_loop
from trio_asgi.islands.stream import IslandStream
from trio_asgi.threads.current import current_pool
from trio_asgi.threads.loop import current_loop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from trio_asgi.threads.lease import Lease

variable: contextvars.ContextVar[str] = contextvars.ContextVar(
    "variable", default="default"
)


@pytest.fixture
async def lease() -> AsyncIterator[Lease]:
    """Have a thread for the sync code, as in a request."""
    with open_lease(current_pool()) as lease:
        yield lease


async def asyncio_only(value: object) -> object:
    """Use many asyncio-only features, and return the value."""
    loop = asyncio.get_running_loop()
    assert asyncio.current_task() in asyncio.all_tasks(loop)
    queue: asyncio.Queue[object] = asyncio.Queue()
    task = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    await asyncio.gather(queue.put(value), asyncio.sleep(0.001))
    return await asyncio.wait_for(task, SECONDS)


async def in_trio() -> bool:
    """Return whether Trio's functions work here."""
    await trio.lowlevel.checkpoint()
    return True


# There and back


async def test_code_of_asyncio_runs_in_a_trio_task() -> None:
    """An island is awaited like any function, with its arguments and its result."""

    @asyncio_island
    async def decorated(one: int, *, two: int) -> tuple[object, int]:
        """Be documented."""
        return await asyncio_only(one), two

    assert await decorated(1, two=2) == (1, 2)
    assert await asyncio_island(asyncio_only)("in place") == "in place"
    assert (decorated.__name__, decorated.__doc__) == ("decorated", "Be documented.")


async def test_a_function_that_returns_an_awaitable_can_be_an_island() -> None:
    """It is called in the loop, where `asyncio.gather`, for example, needs it."""
    gathered: Any = await asyncio_island(lambda: asyncio.gather(asyncio_only(1)))()
    assert gathered == [1]


async def test_an_error_crosses() -> None:
    """An error of the code is raised where it is awaited, with its traceback."""
    error = LookupError("in asyncio")

    async def fail() -> None:
        await asyncio.sleep(0)
        raise error

    with pytest.raises(LookupError) as caught:
        await asyncio_island(fail)()
    assert caught.value is error
    assert caught.traceback[-1].name == "fail"


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
async def test_an_exit_does_not_end_the_loop(error: BaseException) -> None:
    """Errors that end an asyncio loop are only errors of the one island here."""

    async def leave() -> None:
        raise error

    with pytest.raises(type(error)):
        await asyncio_island(leave)()
    assert await asyncio_island(asyncio_only)(1) == 1


async def test_trio_in_an_island() -> None:
    """`trio_island` runs Trio code for asyncio code, to any depth."""

    @trio_island
    async def with_deadline(value: object) -> object:
        with trio.fail_after(SECONDS):
            assert await in_trio()
        return await asyncio_island(asyncio_only)(value)

    @asyncio_island
    async def main() -> object:
        await asyncio.sleep(0)
        return await asyncio.gather(with_deadline(1), trio_island(in_trio)())

    assert await main() == [1, True]


async def test_an_error_of_trio_crosses() -> None:
    """An error of the Trio code is raised in the asyncio code."""

    @trio_island
    async def fail() -> None:
        await in_trio()
        raise LookupError("in Trio")

    @asyncio_island
    async def main() -> str:
        try:
            await fail()
        except LookupError as error:
            return str(error)
        raise AssertionError

    assert await main() == "in Trio"


async def test_a_function_on_its_own_side_is_called_as_it_is() -> None:
    """Islands add nothing where they are not needed."""

    async def task() -> object:
        # In a guest run asyncio's loop is there for Trio's tasks, too.
        running = asyncio._get_running_loop() is not None
        return (running and asyncio.current_task()) or trio.lowlevel.current_task()

    async def main() -> bool:
        return await asyncio_island(task)() is asyncio.current_task()

    assert await asyncio_island(main)()
    assert await trio_island(task)() is trio.lowlevel.current_task()


def test_an_island_under_asyncio_is_the_function() -> None:
    """A decorated view works under asyncio too, so it can be decorated beforehand."""

    async def main() -> object:
        return await asyncio_island(asyncio_only)("asyncio")

    assert asyncio.run(main()) == "asyncio"


def test_context_variables_cross() -> None:
    """Values go into the call, and changes come back, in both directions."""
    local = Local()

    @trio_island
    async def innermost() -> None:
        assert (variable.get(), local.value) == ("asyncio", "asyncio")
        variable.set("trio")
        local.value = "trio"

    @asyncio_island
    async def main() -> None:
        assert (variable.get(), local.value) == ("main", "main")
        await asyncio.sleep(0)
        variable.set("asyncio")
        local.value = "asyncio"
        await innermost()
        assert (variable.get(), local.value) == ("trio", "trio")
        variable.set("changed")
        raise LookupError

    async def run() -> None:
        variable.set("main")
        local.value = "main"
        with pytest.raises(LookupError):
            await main()
        assert (variable.get(), local.value) == ("changed", "trio")

    trio.run(run)


# Sync code


async def test_sync_code_of_an_island_runs_in_the_requests_thread(lease: Lease) -> None:
    """Thread-sensitive code has one thread, whatever is in between."""
    marker = current_loop.set(lease)
    own = await sync_to_async(threading.current_thread)()

    async def main() -> set[threading.Thread]:
        here = sync_to_async(threading.current_thread)
        return {await here(), *await asyncio.gather(here(), here())}

    assert await asyncio_island(main)() == {own}
    current_loop.reset(marker)


async def test_sync_code_of_an_island_calls_asyncio_back(lease: Lease) -> None:
    """`async_to_sync` runs a coroutine on the library that called the sync code."""
    marker = current_loop.set(lease)
    calls: list[tuple[str, threading.Thread]] = []

    def note(name: str) -> None:
        calls.append((name, threading.current_thread()))

    async def of_asyncio(name: str) -> None:
        await asyncio_only(name)
        await sync_to_async(note)(name)

    async def of_trio(name: str) -> None:
        await in_trio()
        await sync_to_async(note)(name)
        await sync_to_async(async_to_sync(of_trio_again))()

    async def of_trio_again() -> None:
        await in_trio()

    def code() -> None:
        note("code")
        async_to_sync(of_asyncio)("asyncio")
        async_to_sync(trio_island(of_trio))("trio")

    async def main() -> None:
        await sync_to_async(code)()
        # Trio code in an island calls Trio back.
        await trio_island(sync_to_async(async_to_sync(of_trio)))("below trio_island")

    await asyncio_island(main)()
    # After the island, sync code calls Trio.
    await sync_to_async(async_to_sync(of_trio))("after")
    assert [name for name, _ in calls] == [
        "code",
        "asyncio",
        "trio",
        "below trio_island",
        "after",
    ]
    assert len({thread for _, thread in calls}) == 1
    current_loop.reset(marker)


async def test_a_trio_task_that_an_island_has_started() -> None:
    """Its sync code calls Trio back, though asyncio code started the task."""
    called: list[bool] = []

    async def task() -> None:
        called.append(await sync_to_async(async_to_sync(in_trio))())

    async with trio.open_nursery() as nursery:

        @asyncio_island
        async def start() -> None:
            nursery.start_soon(task)

        await start()
    assert called == [True]


async def test_the_current_error_goes_into_the_thread() -> None:
    """``sys.exc_info()`` of sync code that an island calls is the caller's."""

    async def main() -> list[BaseException | None]:
        found: list[BaseException | None] = []
        try:
            raise caught
        except LookupError:
            found.append(await sync_to_async(lambda: sys.exc_info()[1])())
        found.append(await sync_to_async(lambda: sys.exc_info()[1])())
        return found

    caught = LookupError()
    assert await asyncio_island(main)() == [caught, None]


async def test_the_guard_of_the_orm_works_in_an_island() -> None:
    """Code that would block the loop raises, and is called through sync_to_async."""

    async def main() -> None:
        with pytest.raises(SynchronousOnlyOperation):
            connection.cursor()
        with pytest.raises(RuntimeError, match="just await the async function"):
            async_to_sync(asyncio_only)(1)
        assert await sync_to_async(async_unsafe(lambda: "called"))() == "called"

    await asyncio_island(main)()


# Cancellation


async def test_a_cancellation_of_trio_is_asyncios_inside() -> None:
    """The code gets one CancelledError, and is waited for while it cleans up."""
    order: list[str] = []

    @asyncio_island
    async def main() -> None:
        try:
            scope.cancel()
            await asyncio.sleep(SECONDS)
        except asyncio.CancelledError:
            order.append("cancelled")
            await asyncio.sleep(0.001)
            order.append("cleaned up")
            raise

    with trio.CancelScope() as scope:
        await main()
    assert scope.cancelled_caught
    assert order == ["cancelled", "cleaned up"]


async def test_code_that_ignores_its_cancellation_returns() -> None:
    """The code's result is kept; Trio's next checkpoint is cancelled."""

    @asyncio_island
    async def main() -> str:
        try:
            scope.cancel()
            await asyncio.sleep(SECONDS)
        except asyncio.CancelledError:
            return "ignored"
        raise AssertionError

    with trio.CancelScope() as scope:
        assert await main() == "ignored"
        await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught


async def test_a_cancelled_scope_starts_no_island() -> None:
    """At the latest, the first await of the code is cancelled."""
    reached: list[str] = []

    @asyncio_island
    async def main() -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        reached.append("too far")

    with trio.CancelScope() as scope:
        scope.cancel()
        await main()
    assert scope.cancelled_caught
    assert reached == []


async def test_a_cancellation_of_asyncio_is_trios_inside() -> None:
    """A cancelled asyncio task cancels the Trio code that it waits for."""
    order: list[str] = []

    @trio_island
    async def forever() -> None:
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            order.append("cancelled")

    @asyncio_island
    async def main() -> None:
        task = asyncio.create_task(forever())
        await trio_island(started.wait)()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        order.append("awaited")

    started = trio.Event()
    await main()
    assert order == ["cancelled", "awaited"]


async def test_a_cancellation_passes_through_all() -> None:
    """Trio, asyncio, Trio, thread, asyncio: the innermost is cancelled first."""
    order: list[str] = []

    def noting(
        name: str, afn: Callable[[], Awaitable[object]]
    ) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            try:
                await afn()
            finally:
                order.append(name)

        return run

    async def innermost() -> None:
        scope.cancel()
        await asyncio.sleep(SECONDS)

    thread = sync_to_async(async_to_sync(noting("asyncio", innermost)))
    below = asyncio_island(noting("below", thread))
    outer = asyncio_island(noting("outer", trio_island(noting("trio", below))))
    with trio.CancelScope() as scope:
        await outer()
    assert scope.cancelled_caught
    assert order == ["asyncio", "below", "trio", "outer"]


async def test_a_cancelled_island_waits_for_its_thread() -> None:
    """Running sync code is waited for; its thread is not used meanwhile."""
    gate = Gate(nothing)

    async def main() -> None:
        await sync_to_async(gate)()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(asyncio_island(main))
        await gate.entered.wait()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.testing.wait_all_tasks_blocked()
            assert nursery.child_tasks
            gate.open()


async def test_asyncio_cancels_itself() -> None:
    """A CancelledError that no Trio scope has caused is passed on."""

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(SECONDS)

    with pytest.raises(asyncio.CancelledError):
        await asyncio_island(main)()


# The loop


async def running_loop() -> asyncio.AbstractEventLoop:
    """Return the running loop."""
    return asyncio.get_running_loop()


def test_the_islands_of_a_run_share_a_loop() -> None:
    """One loop serves all; the next run has its own, and the old one is closed."""
    loops: list[asyncio.AbstractEventLoop] = []

    async def one() -> None:
        loops.append(await asyncio_island(running_loop)())

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(one)
        assert loops[-1].is_running()

    trio.run(main)
    trio.run(main)
    assert all(loop.is_closed() for loop in loops)
    assert len({id(loop) for loop in loops}) == 2
    assert loops[0] is loops[2]


def test_what_is_left_at_the_end_is_cancelled() -> None:
    """An asyncio task that is never awaited ends with the run, in order."""
    order: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.sleep(SECONDS)
        finally:
            await asyncio.sleep(0)
            order.append("cleaned up")

    async def main() -> None:
        await asyncio_island(start)()
        order.append("main ended")

    async def start() -> None:
        tasks.append(asyncio.create_task(forever()))
        await asyncio.sleep(0)

    tasks: list[asyncio.Task[None]] = []
    trio.run(main)
    assert order == ["main ended", "cleaned up"]


def test_a_loop_that_cannot_be_closed(caplog: pytest.LogCaptureFixture) -> None:
    """An error in the loop's ``close()`` is logged, and the run ends as usual.

    channels_redis replaces it with a function that runs a coroutine first.
    """

    async def replace_close() -> None:
        loop: Any = asyncio.get_running_loop()
        original = loop.close

        def close() -> None:
            loop.close = original
            loop.run_until_complete(original)

        loop.close = close

    async def main() -> str:
        await asyncio_island(replace_close)()
        return "ended"

    assert trio.run(main) == "ended"
    (record,) = caplog.records
    assert record.getMessage() == "The loop of the asyncio islands has ended"
    assert record.exc_text or record.exc_info
    assert "This is not a sync loop" in caplog.text


async def test_a_loop_that_was_closed_is_replaced() -> None:
    """After a server's shutdown, an island opens a new loop."""
    await close_loop()
    first = await asyncio_island(running_loop)()
    await close_loop()
    assert first.is_closed()
    second = await asyncio_island(running_loop)()
    assert second.is_running()
    assert second is not first


async def test_a_task_that_nobody_awaits_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its error is logged, as in asyncio, and nothing else happens."""

    async def fail() -> None:
        raise LookupError("nobody awaits this")

    async def main() -> None:
        task = asyncio.create_task(fail())
        await asyncio.wait([task])
        del task
        gc.collect()

    await asyncio_island(main)()
    # A thread handles it.
    with trio.fail_after(10):
        while not caplog.records:
            await trio.sleep(0.001)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("asyncio", logging.ERROR)
    assert "nobody awaits this" in str(record.exc_info)
    assert await asyncio_island(asyncio_only)(1) == 1


async def test_a_task_that_nobody_awaits_exits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Errors that end an asyncio loop are only logged here."""

    async def leave() -> None:
        raise SystemExit(3)

    async def main() -> None:
        task = asyncio.create_task(leave())
        await asyncio.wait([task])
        assert isinstance(task.exception(), SystemExit)

    await asyncio_island(main)()
    # A thread handles it.
    with trio.fail_after(10):
        while not caplog.records:
            await trio.sleep(0.001)
    (record,) = caplog.records
    assert record.name == "trio_asgi"
    assert record.message == "A task of asyncio would have ended its loop"
    assert await asyncio_island(asyncio_only)(1) == 1


async def test_a_callback_of_a_file_runs_in_the_loop() -> None:
    """A protocol that is given data finds the loop, and starts tasks in it."""

    class Protocol(asyncio.Protocol):
        def __init__(self) -> None:
            self.answer = asyncio.get_running_loop().create_future()

        def data_received(self, data: bytes) -> None:
            task = asyncio.create_task(asyncio_only(data))
            self.answer.set_result((asyncio.get_event_loop(), task))

    async def main() -> object:
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_connection(Protocol, sock=ours)
        theirs.send(b"data")
        found, task = await protocol.answer
        assert found is loop
        transport.close()
        return await task

    ours, theirs = socket.socketpair()
    with theirs:
        ours.setblocking(False)
        with trio.fail_after(SECONDS):
            assert await asyncio_island(main)() == b"data"


async def test_a_callback_of_a_file_exits() -> None:
    """Nothing else fails, as with a task."""

    async def main() -> None:
        def leave() -> None:
            loop.remove_reader(ours)
            called.set()
            raise SystemExit(3)

        loop = asyncio.get_running_loop()
        called = asyncio.Event()
        loop.add_reader(ours, leave)
        theirs.send(b"data")
        await called.wait()

    ours, theirs = socket.socketpair()
    with ours, theirs:
        await asyncio_island(main)()
        assert await asyncio_island(asyncio_only)(1) == 1


async def test_no_island_while_the_loop_is_closed() -> None:
    """When all tasks were cancelled, a new one is refused: it would never be ended."""

    async def linger() -> None:
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()
            with trio.CancelScope(shield=True):
                await go_on.wait()

    async def start() -> None:
        loop: Any = asyncio.get_running_loop()
        loop.trio_as_future(linger)

    started, cancelled, go_on = trio.Event(), trio.Event(), trio.Event()
    await asyncio_island(start)()
    await started.wait()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(close_loop)
        await cancelled.wait()
        try:
            with pytest.raises(RuntimeError, match="is being closed"):
                await asyncio_island(asyncio_only)(1)
        finally:
            go_on.set()
    assert await asyncio_island(asyncio_only)(1) == 1


def test_no_island_at_the_end_of_the_run() -> None:
    """When no loop can be opened any more, the error says so."""
    errors: list[str] = []

    async def generator() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            try:
                await asyncio_island(asyncio_only)(1)
            except RuntimeError as error:
                errors.append(str(error))

    async def main() -> None:
        kept.append(generator())
        await kept[0].__anext__()

    kept: list[Any] = []
    trio.run(main)
    (text,) = errors
    assert "at the end of the Trio run" in text


async def test_the_programs_own_loop_is_used() -> None:
    """If a program has opened a trio-asyncio loop, its islands stay there."""
    await asyncio_island(asyncio_only)(1)  # imports trio-asyncio
    import trio_asyncio  # noqa: PLC0415 - replaces much of asyncio

    async with trio_asyncio.open_loop() as loop:
        assert await asyncio_island(running_loop)() is loop
        assert asyncio.get_running_loop() is loop


async def test_a_call_leaves_nothing_in_memory() -> None:
    """Neither arguments nor results nor errors are kept by cycles."""

    class Big:
        """An object that a cycle would keep."""

    async def echo(big: Big) -> Big:
        return await trio_island(echo_on_trio)(big)

    async def echo_on_trio(big: Big) -> Big:
        return await sync_to_async(lambda: big)()

    async def call() -> weakref.ref[Big]:
        return weakref.ref(await asyncio_island(echo)(Big()))

    async def fail(big: Big) -> None:
        await echo(big)
        raise LookupError

    async def failing_call() -> weakref.ref[Big]:
        big = Big()
        ref = weakref.ref(big)
        try:
            await asyncio_island(fail)(big)
        except LookupError:
            del big
        return ref

    await call()  # opens the loop
    gc.collect()
    gc.disable()
    try:
        refs = [await call(), await failing_call()]
        # The loop and Trio may still refer to what they ran last.
        await trio.testing.wait_all_tasks_blocked()
        assert [ref() for ref in refs] == [None, None]
    finally:
        gc.enable()


# Outside


def test_an_island_where_no_loop_runs() -> None:
    """The error names the function, and what to do."""
    coroutine: Any = asyncio_island(asyncio_only)(1)
    expected = "asyncio island asyncio_only was called where no event loop runs"
    with pytest.raises(RuntimeError, match=expected):
        coroutine.send(None)


def test_a_trio_island_outside_trio() -> None:
    """On asyncio alone there is no Trio to switch to, and the error says so."""
    with pytest.raises(RuntimeError, match="in_trio was called outside Trio"):
        asyncio.run(trio_island(in_trio)())


#: What is often tried in a Trio task, by a name for each.
MISTAKES = """
import asyncio, sys, warnings, trio

warnings.simplefilter("ignore")

async def nothing():
    pass

async def wait_in_lock():
    lock = asyncio.Lock()
    await lock.acquire()
    await lock.acquire()

async def enter(manager):
    async with manager:
        pass

async def future_of_another_loop():
    await asyncio.new_event_loop().create_future()

mistakes = {
    "sleep(1)": lambda: asyncio.sleep(1),
    "sleep(0)": lambda: asyncio.sleep(0),
    "gather": lambda: asyncio.gather(nothing()),
    "create_task": lambda: asyncio.create_task(nothing()),
    "ensure_future": lambda: asyncio.ensure_future(nothing()),
    "shield": lambda: asyncio.shield(nothing()),
    "Lock": wait_in_lock,
    "Event": lambda: asyncio.Event().wait(),
    "Queue": lambda: asyncio.Queue().get(),
    "wait_for": lambda: asyncio.wait_for(nothing(), 1),
    "to_thread": lambda: asyncio.to_thread(print),
    "open_connection": lambda: asyncio.open_connection("127.0.0.1", 9),
    "subprocess": lambda: asyncio.create_subprocess_exec("true"),
    "current_task": lambda: asyncio.current_task(),
    "get_running_loop": lambda: asyncio.get_running_loop(),
    "run_in_executor":
        lambda: asyncio.get_event_loop().run_in_executor(None, int),
    "future": future_of_another_loop,
}
if sys.version_info >= (3, 11):
    mistakes["timeout"] = lambda: enter(asyncio.timeout(1))
    mistakes["TaskGroup"] = lambda: enter(asyncio.TaskGroup())
"""


@pytest.mark.parametrize("imported", ["", "import trio_asyncio"])
def test_asyncio_in_a_trio_task(imported: str) -> None:
    """Each mistake is an error that is noted, whether trio-asyncio is loaded or not."""
    output = run_script(
        MISTAKES
        + imported
        + textwrap.dedent(
            """
            import gc, logging
            from trio_asgi.errors import note_asyncio

            async def main():
                for name, call in mistakes.items():
                    try:
                        await call()
                    except Exception as error:
                        note_asyncio(error)
                        note_asyncio(error)  # no second time
                        notes = getattr(error, "__notes__", [])
                        print(name, len(notes), "asyncio_island" in str(notes))
                    else:
                        print(name, "raised nothing")

            logging.disable()  # asyncio, of tasks that never run
            trio.run(main)
            gc.collect()
            """
        )
    )
    lines = output.splitlines()
    assert len(lines) >= 17
    assert [line for line in lines if not line.endswith(" 1 True")] == []


@pytest.mark.parametrize(
    "error",
    [RuntimeError("no loop"), TypeError("trio"), AttributeError("create_task")],
)
def test_other_errors_are_not_noted(error: Exception) -> None:
    """What has nothing to do with asyncio stays as it is."""
    note_asyncio(error)
    assert not hasattr(error, "__notes__")


def test_asyncio_runs_beside_trio() -> None:
    """A loop that is begun in a Trio task is as good as anywhere else."""
    output = run_script(
        """
        import asyncio, trio, trio_asgi

        async def asyncios():
            await asyncio.gather(asyncio.sleep(0.001), asyncio.sleep(0))
            return "asyncio's"

        async def trios():
            return asyncio.run(asyncios())

        trio_asgi.install_bridge()
        print(trio.run(trios))
        """
    )
    assert output == "asyncio's\n"


def test_asyncio_is_as_before_outside_trio() -> None:
    """Where asyncio runs, or nothing does, its errors are its own."""
    with pytest.raises(RuntimeError, match=r"^no running event loop$"):
        asyncio.get_running_loop()
    assert asyncio.run(asyncio_only(1)) == 1


@pytest.mark.parametrize("first", ["trio_asyncio", "trio_asgi"])
def test_trio_asyncio_in_any_order(first: str) -> None:
    """Whenever trio-asyncio is loaded, islands work, and everything is undone."""
    output = run_script(
        """
        import asyncio, sys, warnings

        warnings.simplefilter("ignore", DeprecationWarning)
        pristine = dict(vars(asyncio))
        if sys.argv[1] == "trio_asyncio":
            import trio_asyncio
            pristine = dict(vars(asyncio))
        import trio, trio_asgi

        async def main():
            if sys.argv[1] == "trio_asgi":
                import trio_asyncio
            await trio_asgi.asyncio_island(asyncio.sleep)(0.001)
            print(await trio_asgi.asyncio_island(asyncio.sleep)(0, "slept"))

        trio_asgi.install_bridge()
        trio.run(main)
        trio_asgi.uninstall_bridge()
        if sys.argv[1] == "trio_asyncio":
            print(all(vars(asyncio)[name] is pristine[name] for name in pristine))
        try:
            asyncio.get_running_loop()
        except RuntimeError as error:
            print(error)
        """,
        first,
    )
    last_line = "True\n" if first == "trio_asyncio" else ""
    assert output == f"slept\n{last_line}no running event loop\n"


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="policies are deprecated")
def test_a_policy_of_the_program_makes_the_loops() -> None:
    """A policy set when trio-asyncio is already loaded is used as before."""
    output = run_script(
        """
        import asyncio, trio, trio_asgi

        class Policy(asyncio.DefaultEventLoopPolicy):
            def new_event_loop(self):
                print("made by the policy")
                return super().new_event_loop()

        trio.run(trio_asgi.asyncio_island(asyncio.sleep), 0)
        asyncio.set_event_loop_policy(Policy())
        asyncio.run(asyncio.sleep(0))
        """
    )
    assert output == "made by the policy\n"


def test_functions_that_were_imported_by_name() -> None:
    """Code that imported asyncio's functions before the first island can call them."""
    output = run_script(
        """
        import asyncio, threading, trio, trio_asgi
        from asyncio import current_task, get_running_loop, sleep

        async def island():
            loop = get_running_loop()
            assert current_task() is not None
            called = loop.create_future()
            loop.call_later(0.001, lambda: called.set_result(get_running_loop()))
            assert await called is loop
            called = loop.create_future()

            def call():
                called.set_result(get_running_loop())

            threading.Thread(target=loop.call_soon_threadsafe, args=(call,)).start()
            assert await called is loop
            await sleep(0)
            return "called"

        async def main():
            print(await trio_asgi.asyncio_island(island)())
            try:
                get_running_loop()
            except RuntimeError as error:
                print(error)

        trio_asgi.install_bridge()
        trio.run(main)
        """
    )
    assert output == "called\nno running event loop\n"


def test_the_package_does_not_load_trio_asyncio() -> None:
    """A program without islands keeps asyncio unpatched."""
    output = run_script(
        """
        import sys, trio, trio_asgi
        from asgiref.sync import sync_to_async

        trio_asgi.install_bridge()
        trio.run(sync_to_async(print), "called")
        print("trio_asyncio" in sys.modules)
        """
    )
    assert output == "called\nFalse\n"


# Streams


async def test_a_stream_is_iterated_in_one_task() -> None:
    """An asyncio timeout may be open from one item to the next."""
    tasks: set[object] = set()

    async def items() -> AsyncIterator[int]:
        try:
            for number in range(3):
                tasks.add(asyncio.current_task())
                await asyncio.sleep(0.001)
                yield number
        finally:
            tasks.add(asyncio.current_task())
            await asyncio.sleep(0)

    stream = IslandStream(items())
    assert [number async for number in stream] == [0, 1, 2]
    await stream.aclose()
    await stream.aclose()
    assert len(tasks) == 1


async def test_a_stream_does_not_run_ahead() -> None:
    """An item is made when requested."""
    made: list[int] = []

    async def items() -> AsyncIterator[int]:
        for number in range(3):
            made.append(number)
            yield number

    stream = IslandStream(items())
    assert await stream.__anext__() == 0
    await trio.testing.wait_all_tasks_blocked()
    assert made == [0]
    await stream.aclose()


async def test_a_stream_that_was_not_begun_is_closed() -> None:
    """Closing it runs on asyncio as well."""
    closed: list[object] = []

    class Items:
        def __aiter__(self) -> Items:
            return self

        async def __anext__(self) -> int:
            raise AssertionError

        async def aclose(self) -> None:
            closed.append(await asyncio_only("closed"))

    await IslandStream(Items()).aclose()
    assert closed == ["closed"]


async def test_a_stream_without_aclose() -> None:
    """An iterator need not be a generator."""

    class Items:
        def __aiter__(self) -> Items:
            return self

        async def __anext__(self) -> int:
            raise StopAsyncIteration

    stream = IslandStream(Items())
    assert [item async for item in stream] == []
    await stream.aclose()


async def test_a_failing_stream() -> None:
    """The error is raised where the item was requested."""

    async def items() -> AsyncIterator[int]:
        yield 1
        raise LookupError("in the stream")

    stream = IslandStream(items())
    with pytest.raises(LookupError, match="in the stream"):
        [item async for item in stream]
    await stream.aclose()


async def test_a_stream_that_fails_in_its_closing() -> None:
    """The error is raised by `aclose`, where it belongs."""

    async def items() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            raise LookupError("in the closing")

    stream = IslandStream(items())
    assert await stream.__anext__() == 1
    with pytest.raises(LookupError, match="in the closing"):
        await stream.aclose()


async def test_a_cancelled_stream() -> None:
    """The code that makes an item is cancelled when the stream is closed."""
    order: list[str] = []

    async def items() -> AsyncIterator[int]:
        try:
            yield 1
            scope.cancel()
            await asyncio.sleep(SECONDS)
        finally:
            await asyncio.sleep(0)
            order.append("closed")

    stream = IslandStream(items())
    with trio.CancelScope() as scope:
        async for _ in stream:
            pass
    assert scope.cancelled_caught
    assert order == []
    await stream.aclose()
    assert order == ["closed"]


async def test_a_stream_that_asyncio_cancels() -> None:
    """It ends with an error, of a class that servers know."""

    async def items() -> AsyncIterator[int]:
        yield 1
        raise asyncio.CancelledError

    stream = IslandStream(items())
    with trio.fail_after(SECONDS):
        assert await stream.__anext__() == 1
        with pytest.raises(RuntimeError, match="cancelled before its end") as caught:
            await stream.__anext__()
        assert isinstance(caught.value.__cause__, asyncio.CancelledError)
        await stream.aclose()


async def test_a_stream_that_exits() -> None:
    """An error that is not an Exception is raised where the item was requested, too."""

    async def items() -> AsyncIterator[int]:
        yield 1
        raise SystemExit(3)

    stream = IslandStream(items())
    with trio.fail_after(SECONDS), pytest.raises(SystemExit):
        [item async for item in stream]
    await stream.aclose()


async def test_a_stream_whose_aclose_fails() -> None:
    """After the last item, the error is raised where the next was requested."""

    class Items:
        def __aiter__(self) -> Items:
            return self

        async def __anext__(self) -> int:
            raise StopAsyncIteration

        async def aclose(self) -> None:
            raise LookupError("in aclose")

    stream = IslandStream(Items())
    with trio.fail_after(SECONDS), pytest.raises(LookupError, match="in aclose"):
        await stream.__anext__()
    await stream.aclose()


async def test_the_loop_ends_while_a_stream_makes_an_item() -> None:
    """The code that waits for the item gets an error."""

    async def items() -> AsyncIterator[int]:
        started.set()
        await asyncio.sleep(SECONDS)
        yield 1

    started = trio.Event()
    stream = IslandStream(items())
    async with trio.open_nursery() as nursery:

        async def close() -> None:
            await started.wait()
            await close_loop()

        nursery.start_soon(close)
        with trio.move_on_after(SECONDS / 2) as scope:
            with pytest.raises(RuntimeError, match="cancelled before its end"):
                await stream.__anext__()
    assert not scope.cancelled_caught
    await stream.aclose()


async def test_the_loop_ends_between_two_items() -> None:
    """A stream that was cut off raises, and does not look complete."""

    async def items() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.append(True)

    closed: list[bool] = []
    stream = IslandStream(items())
    assert await stream.__anext__() == 1
    await close_loop()
    assert closed
    with pytest.raises(RuntimeError, match="cancelled before its end"):
        await stream.__anext__()
    await stream.aclose()


async def test_a_stream_at_its_end_stays_there() -> None:
    """Further requests and closings work as with a generator."""

    async def items() -> AsyncIterator[int]:
        yield 1

    async def failing_items() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            raise LookupError("in the closing")

    stream = IslandStream(items())
    assert [item async for item in stream] == [1]
    assert [item async for item in stream] == []
    failing = IslandStream(failing_items())
    assert await failing.__anext__() == 1
    with pytest.raises(LookupError, match="in the closing"):
        await failing.aclose()
    await failing.aclose()

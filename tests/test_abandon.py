"""What a cancelled task waits for is left when its time is up, and not before."""

from __future__ import annotations

import asyncio
import inspect
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from trio_asgi import asyncio_island
from trio_asgi.threads.abandon import Abandoner

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

#: Released at the end of a test.
_go_on = threading.Event()


@pytest.fixture(autouse=True)
def release() -> Iterator[None]:
    """Let all threads go on at the end."""
    _go_on.clear()
    yield
    _go_on.set()


async def in_thread(started: trio.Event) -> None:
    """Wait in one of Trio's own threads."""

    def wait() -> None:
        trio.from_thread.run_sync(started.set)
        _go_on.wait()

    await trio.to_thread.run_sync(wait)


async def in_island(started: trio.Event) -> None:
    """Wait for asyncio code that ignores its cancellation."""

    async def stubborn() -> None:
        started.set()
        while not _go_on.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    await asyncio_island(stubborn)()


async def start_and_cancel(
    nursery: trio.Nursery, wait: Callable[[trio.Event], Awaitable[None]]
) -> None:
    """Start a wait in a nursery, and cancel that when the task waits."""
    started = trio.Event()
    nursery.start_soon(wait, started)
    await started.wait()
    await trio.testing.wait_all_tasks_blocked()
    nursery.cancel_scope.cancel()


everywhere = pytest.mark.parametrize("wait", [in_thread, in_island])


@everywhere
async def test_it_is_left_after_some_time(
    wait: Callable[[trio.Event], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    """A cancelled task waits for the given time, and goes on."""
    ended: list[type[BaseException]] = []
    started = trio.Event()

    async def run() -> None:
        try:
            await wait(started)
        except BaseException as error:
            ended.append(type(error))
            raise

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await started.wait()
        await trio.testing.wait_all_tasks_blocked()
        patient = Abandoner(trio.lowlevel.current_task(), 3600)
        impatient = Abandoner(trio.lowlevel.current_task(), 0)
        impatient.look()
        assert not impatient.is_needed  # not cancelled yet
        nursery.cancel_scope.cancel()
        patient.look()
        assert patient.is_needed
        with trio.CancelScope(shield=True):
            for _ in range(20):
                await trio.lowlevel.checkpoint()
        assert ended == []
        impatient.look()
    assert ended == [trio.Cancelled]
    assert "Left behind because it does not end" in caplog.text
    assert f"{wait.__name__}.<locals>" in caplog.text


@everywhere
async def test_what_ends_just_then_is_not_left(
    wait: Callable[[trio.Event], Awaitable[None]],
) -> None:
    """Whether the end or the time comes first, the task goes on once."""
    for _ in range(50):
        _go_on.clear()
        async with trio.open_nursery() as nursery:
            await start_and_cancel(nursery, wait)
            _go_on.set()
            abandoner = Abandoner(trio.lowlevel.current_task(), 0)
            with trio.CancelScope(shield=True):
                for _ in range(3):
                    abandoner.look()
                    await trio.lowlevel.checkpoint()


async def test_what_was_left_can_end_later() -> None:
    """The thread and the asyncio code end alone; no task waits for them."""
    for wait in (in_thread, in_island):
        _go_on.clear()
        async with trio.open_nursery() as nursery:
            await start_and_cancel(nursery, wait)
            Abandoner(trio.lowlevel.current_task(), 0).look()
        _go_on.set()
    await trio.testing.wait_all_tasks_blocked(0.1)
    assert await asyncio_island(asyncio.sleep)(0, "works") == "works"


async def test_code_of_asyncio_that_was_left_can_be_closed_anywhere() -> None:
    """The garbage collector closes its coroutines in any order, and in any context."""
    coroutines: list[Any] = []
    started = trio.Event()

    async def stubborn() -> None:
        task = asyncio.current_task()
        assert task is not None
        coroutines.append(task.get_coro())
        started.set()
        while True:
            with suppress(asyncio.CancelledError):
                await asyncio.get_running_loop().create_future()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(asyncio_island(stubborn))
        await started.wait()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.testing.wait_all_tasks_blocked()
        Abandoner(trio.lowlevel.current_task(), 0).look()
    while inspect.iscoroutine(inner := coroutines[-1].cr_await):
        coroutines.append(inner)
    assert coroutines[-1].__name__ == "stubborn"
    for coroutine in reversed(coroutines):
        coroutine.close()


async def test_code_of_asyncio_is_cancelled_at_once_in_to_thread() -> None:
    """As under asyncio: the task goes on, and the thread alone."""
    started = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def wait() -> None:
        token.run_sync_soon(started.set)
        _go_on.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(asyncio_island(asyncio.to_thread), wait)
        await started.wait()
        nursery.cancel_scope.cancel()
    assert not _go_on.is_set()
    _go_on.set()  # the end of the run would wait for the thread

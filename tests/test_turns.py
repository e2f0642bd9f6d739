"""Turns in a loop, and blocks that have them: what a transaction is built on."""

from __future__ import annotations

from threading import Thread, get_ident
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from thread_support import (
    Gate,
    assert_at_rest,
    cannot_start,
    lease,
    nothing,
    open_lease,
    pool,
)
from trio_asgi.threads.current import current_pool
from trio_asgi.threads.lease import Lease
from trio_asgi.threads.loop import current_loop
from trio_asgi.threads.turns import PATIENCE, Block

if TYPE_CHECKING:
    from trio_asgi.threads.pool import WorkerPool

__all__ = ["lease", "pool"]


async def test_calls_of_others_wait_in_the_order_of_asking(lease: Lease) -> None:
    """Those of the block's task do not wait; after its end, the first is first."""
    order: list[str] = []

    async def call(name: str) -> None:
        await lease.run_sync(lambda: order.append(name))

    async with trio.open_nursery() as nursery:
        block = await lease.begin_block()
        for name in ("one", "two", "three"):
            nursery.start_soon(call, name)
            await wait_all_tasks_blocked()
        await call("inside")
        await block.end()
    assert order == ["inside", "one", "two", "three"]


async def test_a_cancelled_call_leaves_the_others_in_order(lease: Lease) -> None:
    """One that gives up while it waits for the block has no turn to pass on."""
    order: list[str] = []
    scope = trio.CancelScope()

    async def call(name: str) -> None:
        await lease.run_sync(lambda: order.append(name))

    async def give_up() -> None:
        with scope:
            await call("never")

    async with trio.open_nursery() as nursery:
        block = await lease.begin_block()
        nursery.start_soon(give_up)
        await wait_all_tasks_blocked()
        nursery.start_soon(call, "next")
        await wait_all_tasks_blocked()
        scope.cancel()
        await wait_all_tasks_blocked()
        await block.end()
    assert order == ["next"]
    assert not lease._has_turn


async def test_a_block_begins_after_the_call_that_runs(lease: Lease) -> None:
    """A block waits for its turn as a call does."""
    gate = Gate(nothing)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lease.run_sync, gate)
        await gate.entered.wait()
        with trio.move_on_after(0):
            await lease.begin_block()
            pytest.fail("not yet")
        gate.open()
        block = await lease.begin_block()
        await block.end()
    assert lease.block is None
    assert not lease._has_turn


async def test_a_closed_loop_hands_its_blocks_on(
    lease: Lease, pool: WorkerPool
) -> None:
    """After a lease's end, a block begins in the program's thread, as calls do."""
    lease.release()
    block = await lease.begin_block()
    assert pool._program_lease is not None
    assert pool._program_lease.block is block
    await block.end()
    assert_at_rest(pool)


async def test_a_release_during_a_block_ends_it(lease: Lease) -> None:
    """The thread is gone, and a call in another would be outside the transaction."""
    block = await lease.begin_block()
    await lease.run_sync(nothing)
    lease.release()
    with pytest.raises(RuntimeError, match="has ended in which this transaction"):
        await lease.run_sync(nothing)
    with pytest.raises(RuntimeError, match="has ended in which this transaction"):
        await lease.begin_block()
    await block.end()


async def test_a_release_during_a_call_in_a_block_frees_the_thread(
    pool: WorkerPool,
) -> None:
    """After the call: the block may last, but nothing can run in it any more."""
    limiter = trio.CapacityLimiter(1)
    lease = Lease(pool, slots=limiter)
    gate = Gate(nothing)
    block = await lease.begin_block()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lease.run_sync, gate)
        await gate.entered.wait()
        lease.release()
        assert limiter.borrowed_tokens == 1
        gate.open()
    assert not lease.has_thread
    assert limiter.borrowed_tokens == 0
    await block.end()
    assert_at_rest(pool)


async def test_a_long_wait_is_logged_with_the_blocks_stack(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Once; and a shorter one is not."""

    async def sleep_here() -> None:
        await trio.sleep(PATIENCE * 3)

    with open_lease(current_pool()) as lease:
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                block = await lease.begin_block()
                nursery.start_soon(lease.run_sync, nothing)
                await trio.sleep(PATIENCE / 2)
                await block.end()
                await wait_all_tasks_blocked()
            assert not caplog.records
            block = await lease.begin_block()
            nursery.start_soon(lease.run_sync, nothing)
            await sleep_here()
            # The clock does not wait for Trio's threads.
            while not caplog.records:
                await trio.lowlevel.checkpoint()
            await block.end()
    [record] = caplog.records
    assert (record.name, record.levelname) == ("trio_asgi", "WARNING")
    assert "has waited 10 seconds for the end of a transaction" in record.getMessage()
    assert ", in sleep_here\n" in record.getMessage()
    assert record.thread != get_ident()


async def test_a_long_wait_for_the_block_of_a_task_that_has_ended(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """It has no stack, and the log still tells of the wait."""
    blocks: list[Block] = []

    with open_lease(current_pool()) as lease:

        async def begin() -> None:
            blocks.append(await lease.begin_block())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(begin)
        with trio.move_on_after(PATIENCE * 2):
            await lease.run_sync(nothing)
        while not caplog.records:
            await trio.lowlevel.checkpoint()
        await blocks[0].end()
    assert "has waited 10 seconds" in caplog.text


async def test_a_long_wait_is_logged_without_threads(
    lease: Lease,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An error of a system task would end the whole run."""
    monkeypatch.setattr("trio_asgi.threads.turns.PATIENCE", 0)
    with monkeypatch.context() as patch:
        patch.setattr("trio.to_thread.run_sync", lambda *_: cannot_start(Thread()))
        async with trio.open_nursery() as nursery:
            block = await lease.begin_block()
            nursery.start_soon(lease.run_sync, nothing)
            while not caplog.records:
                await trio.lowlevel.checkpoint()
            await block.end()
    assert "for the end of a transaction" in caplog.text


async def test_a_posted_function_runs_after_the_call(lease: Lease) -> None:
    """Without a thread there is nothing to run after."""
    order: list[str] = []
    assert not lease.post(lambda: order.append("posted"))
    gate = Gate(lambda: order.append("call"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lease.run_sync, gate)
        await gate.entered.wait()
        assert lease.post(lambda: order.append("posted"))
        gate.open()
    await lease.run_sync(lambda: order.append("next"))
    assert order == ["call", "posted", "next"]


async def test_a_posted_function_of_a_request_that_has_ended(
    lease: Lease, pool: WorkerPool
) -> None:
    """It goes where the calls go: to the program's thread."""
    await lease.run_sync(nothing)
    lease.release()
    token = current_loop.set(lease)
    try:
        assert not lease.post(nothing)
        await lease.run_sync(nothing)
        assert lease.post(nothing)
    finally:
        current_loop.reset(token)

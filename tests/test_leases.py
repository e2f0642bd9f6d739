"""What happens when a lease takes a thread, how many may, and giving it back early."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import random
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from asgiref.sync import async_to_sync, sync_to_async
from django.db import connections, transaction
from django.test import override_settings
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from database_support import open_database, sqlite_in
from thread_support import (
    SECONDS,
    Gate,
    cancel_later,
    cannot_start,
    in_task,
    in_thread,
    interrupt_each_line,
    join,
    leave,
    nothing,
    open_lease,
    open_pool,
    variable,
    wait_all_tasks_blocked_and,
)
from trio_asgi import asyncio_island, release_thread
from trio_asgi.bridge import pool_options
from trio_asgi.threads.current import current_pool
from trio_asgi.threads.lease import Lease
from trio_asgi.threads.loop import current_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from trio_asgi.threads.pool import WorkerPool


# When a lease takes a thread


async def test_on_take_comes_before_the_first_call(lease: Lease) -> None:
    """`on_take` runs once, in the thread and the context of the first call."""
    seen: list[tuple[str, threading.Thread, str]] = []

    def note(what: str) -> None:
        seen.append((what, threading.current_thread(), variable.get()))

    def on_take() -> None:
        note("taken")
        variable.set("by on_take")

    lease.on_take = on_take
    variable.set("task")
    context = contextvars.copy_context()
    await lease.run_sync(lambda: note("first"), context=context)
    await lease.run_sync(lambda: note("second"))
    thread = await lease.run_sync(threading.current_thread)
    assert seen == [
        ("taken", thread, "task"),
        ("first", thread, "by on_take"),
        ("second", thread, "task"),
    ]
    assert context[variable] == "by on_take"


@pytest.mark.parametrize("caller", ["another task", "sync_to_async"])
async def test_on_take_comes_whoever_calls(lease: Lease, caller: str) -> None:
    """The first call may come from anywhere: another task, or user code."""
    order: list[str] = []
    lease.on_take = lambda: order.append("taken")
    async with trio.open_nursery() as nursery:
        current_loop.set(lease)
        if caller == "another task":
            nursery.start_soon(in_thread, lambda: order.append("call"))
        else:
            # Such a call goes to the pool of the run.
            with request_lease() as own:
                own.on_take = lease.on_take
                await sync_to_async(order.append)("call")
    assert order == ["taken", "call"]


async def test_on_take_may_call_sync_code(lease: Lease) -> None:
    """`on_take` is sync code like any other, and is not called for its own calls."""
    order: list[str] = []

    async def coroutine() -> None:
        await in_thread(lambda: order.append("nested"))

    def on_take() -> None:
        order.append("taken")
        in_task(coroutine)
        assert trio.from_thread.run_sync(trio.lowlevel.current_task) is task

    task = trio.lowlevel.current_task()
    lease.on_take = on_take
    await lease.run_sync(lambda: order.append("call"))
    assert order == ["taken", "nested", "call"]
    assert lease.calls == 2


async def test_on_take_fails(lease: Lease) -> None:
    """The call does not run, and raises the error; the next one works without it."""

    def on_take() -> None:
        raise LookupError("in on_take")

    lease.on_take = on_take
    with pytest.raises(LookupError, match="in on_take"):
        await lease.run_sync(pytest.fail)
    assert lease.has_thread
    assert await lease.run_sync(lambda: "ran") == "ran"


async def test_on_take_of_a_borrowed_lease(pool: WorkerPool, lease: Lease) -> None:
    """A lease of a borrowed thread calls it before the lease's first call."""
    order: list[str] = []

    async def coroutine() -> None:
        loop = current_loop.get()
        assert loop is not None
        borrowed = Lease(pool, loop._inbox)
        borrowed.on_take = lambda: order.append("taken")
        await borrowed.run_sync(lambda: order.append("call"))
        await borrowed.run_sync(lambda: order.append("call"))
        borrowed.release()

    await lease.run_sync(lambda: in_task(coroutine))
    assert order == ["taken", "call", "call"]


async def test_on_take_comes_before_a_last_call(pool: WorkerPool) -> None:
    """If a released lease takes a thread just for its end, that calls it, too."""
    order: list[str] = []
    done = trio.Event()
    token = trio.lowlevel.current_trio_token()
    lease = pool.lease()
    lease.on_take = lambda: order.append("taken")

    def last() -> None:
        order.append("last")
        token.run_sync_soon(done.set)

    lease.release(last=last)
    await done.wait()
    assert order == ["taken", "last"]


async def test_a_last_call_ends_no_thread(
    pool: WorkerPool, caplog: pytest.LogCaptureFixture
) -> None:
    """An error of a last call is logged, and the thread takes the next lease."""

    def last() -> None:
        raise SystemExit

    lease = Lease(pool)
    thread = await lease.run_sync(threading.current_thread)
    lease.release(last=last)
    with open_lease(pool) as other:
        assert await other.run_sync(threading.current_thread) is thread
    assert "The last call of a lease failed" in caplog.text


async def test_the_calls_of_a_lease_are_counted(pool: WorkerPool) -> None:
    """All calls that began to run in the thread count, including nested ones."""

    async def coroutine() -> None:
        await in_thread(nothing)
        await in_thread(lambda: in_task(functools.partial(in_thread, nothing)))
        # In another thread, and so not counted.
        await pool.run_sync(nothing)

    with open_lease(pool) as lease:
        assert lease.calls == 0
        with trio.CancelScope() as scope:
            scope.cancel()
            await lease.run_sync(pytest.fail)
        assert lease.calls == 0
        await lease.run_sync(nothing)
        await lease.run_sync(lambda: in_task(coroutine))
        assert lease.calls == 5


# How many leases may hold a thread


async def test_a_bound_on_leases() -> None:
    """A hundred leases want a thread, three hold one: each until its release."""
    most = 0

    async with open_pool(leases=3) as pool:
        assert pool.slots is not None
        leases = [pool.lease() for _ in range(100)]

        async def use(lease: Lease) -> None:
            nonlocal most
            await lease.run_sync(nothing)
            await lease.run_sync(nothing)
            most = max(most, sum(each.has_thread for each in leases))
            lease.release()

        async with trio.open_nursery() as nursery:
            for lease in leases:
                nursery.start_soon(use, lease)
            await wait_all_tasks_blocked()
            assert len(pool.workers) <= 3
        assert most == 3
        assert len(pool.workers) == 3
        assert pool.slots.borrowed_tokens == 0


async def test_slots_are_first_come_first_served() -> None:
    """Leases get a slot in the order of their first calls, and none holds two."""
    order: list[int] = []
    async with open_pool(leases=1) as pool:
        first = pool.lease()
        await first.run_sync(nothing)
        leases = [pool.lease() for _ in range(4)]

        async def use(number: int) -> None:
            await leases[number].run_sync(lambda: order.append(number))
            await leases[number].run_sync(lambda: order.append(number))
            leases[number].release()

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(use, number)
                await wait_all_tasks_blocked()
            # A lease with a slot is not delayed by those that wait for one.
            await first.run_sync(nothing)
            assert order == []
            first.release()
    assert order == [0, 0, 1, 1, 2, 2, 3, 3]


async def test_two_first_calls_take_one_slot() -> None:
    """Whichever of a lease's tasks comes first, they need one slot together."""
    async with open_pool(leases=2) as pool:
        assert pool.slots is not None
        gate = Gate(nothing)
        with open_lease_of(pool) as lease:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lease.run_sync, gate)
                nursery.start_soon(lease.run_sync, nothing)
                await gate.entered.wait()
                assert pool.slots.borrowed_tokens == 1
                with open_lease_of(pool) as other:
                    await other.run_sync(nothing)
                gate.open()


@contextmanager
def open_lease_of(pool: WorkerPool) -> Iterator[Lease]:
    """Take out a lease like a request."""
    lease = pool.lease()
    try:
        yield lease
    finally:
        lease.release()


async def test_cancelled_while_waiting_for_a_slot() -> None:
    """A lease that is cancelled in the queue leaves no trace, and can try again."""
    order: list[str] = []
    async with open_pool(leases=1) as pool:
        assert pool.slots is not None
        with open_lease_of(pool) as first, open_lease_of(pool) as second:
            await first.run_sync(nothing)
            with open_lease_of(pool) as third:
                async with trio.open_nursery() as nursery:
                    with trio.CancelScope() as scope:
                        nursery.start_soon(wait_all_tasks_blocked_and, scope.cancel)
                        await second.run_sync(pytest.fail)
                    assert scope.cancelled_caught
                    assert second.running is None
                    assert pool.slots.statistics().tasks_waiting == 0
                    assert pool.queue.running == 0
                    nursery.start_soon(third.run_sync, lambda: order.append("third"))
                    await wait_all_tasks_blocked()
                    first.release()
            await second.run_sync(lambda: order.append("second"))
    assert order == ["third", "second"]


async def test_waiting_for_a_slot_holds_no_token() -> None:
    """A call without a slot keeps no other call from running."""
    async with open_pool(leases=1, threads=1) as pool:
        with open_lease_of(pool) as first, open_lease_of(pool) as second:
            await first.run_sync(nothing)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(second.run_sync, nothing)
                await wait_all_tasks_blocked()
                assert await first.run_sync(lambda: "ran") == "ran"
                first.release()


async def test_cancelled_with_a_slot_while_waiting_for_a_token() -> None:
    """If a slot leads to no thread, it goes to the next lease."""
    async with open_pool(leases=1, threads=1) as pool:
        assert pool.slots is not None
        gate = Gate(nothing)
        with open_lease_of(pool) as lease, open_lease_of(pool) as other:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pool.run_sync, gate)
                await gate.entered.wait()
                with trio.CancelScope() as scope:
                    nursery.start_soon(wait_all_tasks_blocked_and, scope.cancel)
                    await lease.run_sync(pytest.fail)
                assert scope.cancelled_caught
                assert pool.slots.borrowed_tokens == 0
                gate.open()
            await other.run_sync(nothing)


async def test_a_lease_that_is_released_in_the_queue() -> None:
    """If its lease ends, a call that waits for a slot goes to the program's thread."""
    threads: list[threading.Thread] = []
    async with open_pool(leases=1) as pool:
        assert pool.slots is not None
        first, second = pool.lease(), pool.lease()
        await first.run_sync(nothing)

        async def survivor() -> None:
            threads.append(await second.run_sync(threading.current_thread))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(survivor)
            await wait_all_tasks_blocked()
            second.release()
        # While the slot is still taken: its holder may wait for that task.
        first.release()
        program = await pool.program_lease().run_sync(threading.current_thread)
        assert threads == [program]
        assert pool.slots.borrowed_tokens == 0


async def test_a_slot_whose_thread_cannot_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the system can start no more threads, the slot is free again."""
    async with open_pool(leases=1) as pool:
        with open_lease_of(pool) as lease, open_lease_of(pool) as other:
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", cannot_start)
                with pytest.raises(RuntimeError, match="can't start"):
                    await lease.run_sync(nothing)
            await other.run_sync(nothing)


async def test_an_error_in_on_take_costs_no_slot() -> None:
    """The lease keeps thread and slot until its release, as after any other error."""

    def on_take() -> None:
        raise LookupError("in on_take")

    async with open_pool(leases=1) as pool:
        assert pool.slots is not None
        with open_lease_of(pool) as lease:
            lease.on_take = on_take
            with pytest.raises(LookupError, match="in on_take"):
                await lease.run_sync(pytest.fail)
            assert pool.slots.borrowed_tokens == 1
        assert pool.slots.borrowed_tokens == 0


async def test_a_thread_that_was_left_keeps_its_slot() -> None:
    """Its connections, and so its slot, are held until the thread has ended."""
    async with open_pool(leases=1) as pool:
        assert pool.slots is not None
        gate = Gate(nothing)
        lease = pool.lease()
        await leave(lease, gate)
        lease.release()
        with open_lease_of(pool) as other:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(other.run_sync, nothing)
                await wait_all_tasks_blocked()
                assert nursery.child_tasks
                gate.open()
            assert gate.thread not in {worker.thread for worker in pool.workers}
        await join(gate.thread)


async def test_a_thread_that_shall_end_keeps_its_slot() -> None:
    """A lease that retires its thread counts until ``on_thread_exit`` has returned."""
    go_on = threading.Event()

    def at_exit() -> None:
        assert go_on.wait(SECONDS)

    async with open_pool(leases=1, on_thread_exit=at_exit) as pool:
        lease = pool.lease()
        await lease.run_sync(nothing)
        lease.retire = True
        lease.release()
        with open_lease_of(pool) as other:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(other.run_sync, nothing)
                await wait_all_tasks_blocked()
                assert nursery.child_tasks
                go_on.set()


def test_a_slot_that_comes_back_after_the_run() -> None:
    """If a thread ends after its run, its slot is simply dropped."""
    gate = Gate(nothing)

    async def main() -> None:
        pool = current_pool()
        pool.slots = trio.CapacityLimiter(1)
        lease = pool.lease()
        await leave(lease, gate)
        lease.release()

    trio.run(main)
    gate.open()
    gate.thread.join(SECONDS)
    assert not gate.thread.is_alive()


async def test_leases_that_need_no_slot(lease: Lease) -> None:
    """Single calls, the program's calls, and borrowed threads wait for no slot.

    It would be a deadlock: the code that waits for them may hold the slot.
    """

    async def coroutine() -> None:
        loop = current_loop.get()
        assert loop is not None
        assert loop._inbox is not None
        pool.work_for(loop._inbox)
        pool.lend_to_requests()
        with open_lease_of(pool) as borrowed:
            assert borrowed.borrowed
            await borrowed.run_sync(nothing)

    async with open_pool(leases=1) as pool:
        with open_lease_of(pool) as holder:
            await holder.run_sync(nothing)
            await pool.run_sync(nothing)
            await pool.program_lease().run_sync(nothing)
            await lease.run_sync(lambda: in_task(coroutine))


async def test_a_last_call_waits_for_no_slot() -> None:
    """A lease's clean-up at its end runs, with or without a slot."""
    done = trio.Event()
    token = trio.lowlevel.current_trio_token()
    async with open_pool(leases=1) as pool:
        with open_lease_of(pool) as holder:
            await holder.run_sync(nothing)
            lease = pool.lease()
            lease.release(last=lambda: token.run_sync_soon(done.set))
            await done.wait()


def test_the_setting_is_the_bound() -> None:
    """``MAX_HELD_THREADS`` reaches the pool of the next run; None means no bound."""

    async def main() -> float | None:
        slots = current_pool().slots
        return None if slots is None else slots.total_tokens

    with override_settings(TRIO_ASGI={"MAX_HELD_THREADS": 3}):
        pool_options.configure_threads()
    assert trio.run(main) == 3
    pool_options.configure_threads()
    assert trio.run(main) is None


# Giving a thread back early


async def test_a_thread_is_given_back_for_now(pool: WorkerPool) -> None:
    """After `release_thread`, others may take the thread; the next call takes one."""
    order: list[tuple[str, threading.Thread]] = []

    def note(what: str) -> Callable[[], None]:
        return lambda: order.append((what, threading.current_thread()))

    with open_lease(pool) as lease, open_lease(pool) as other:
        lease.on_take = note("first taking")
        await lease.run_sync(note("call"))
        await lease.release_thread(note("last"), on_take=note("second taking"))
        assert not lease.has_thread
        assert lease.open
        thread = await other.run_sync(threading.current_thread)
        await lease.run_sync(note("call"))
        second = await lease.run_sync(threading.current_thread)
        assert order == [
            ("first taking", thread),
            ("call", thread),
            ("last", thread),
            ("second taking", second),
            ("call", second),
        ]
        assert second is not thread


async def test_release_thread_frees_a_slot() -> None:
    """A lease that has released its thread queues up for the next one."""
    async with open_pool(leases=1) as pool:
        assert pool.slots is not None
        with open_lease_of(pool) as lease, open_lease_of(pool) as other:
            await lease.run_sync(nothing)
            await lease.release_thread(nothing, on_take=nothing)
            assert pool.slots.borrowed_tokens == 0
            await other.run_sync(nothing)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lease.run_sync, nothing)
                await wait_all_tasks_blocked()
                assert not lease.has_thread
                other.release()
            assert lease.has_thread


async def test_an_idle_thread_is_given_back_at_once(pool: WorkerPool) -> None:
    """`release_idle_thread` needs neither await nor hop, if nothing runs there."""
    order: list[str] = []
    with open_lease(pool) as lease, open_lease(pool) as other:
        lease.release_idle_thread(None, on_take=pytest.fail)
        thread = await lease.run_sync(threading.current_thread)
        lease.release_idle_thread(None, on_take=lambda: order.append("taken"))
        assert await other.run_sync(threading.current_thread) is thread
        await lease.run_sync(lambda: order.append("call"))
        assert order == ["taken", "call"]
        gate = Gate(nothing)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lease.run_sync, gate)
            await gate.entered.wait()
            lease.release_idle_thread(None, on_take=pytest.fail)
            gate.open()
        assert lease.has_thread
    lease.release_idle_thread(None, on_take=pytest.fail)


async def test_the_next_user_of_an_idle_thread_comes_after_the_last_call(
    pool: WorkerPool, caplog: pytest.LogCaptureFixture
) -> None:
    """`release_idle_thread` waits for nothing, and logs an error."""
    opened = threading.Event()

    def last() -> None:
        assert opened.wait(SECONDS)
        raise ZeroDivisionError

    with open_lease(pool) as lease, open_lease(pool) as other:
        thread = await lease.run_sync(threading.current_thread)
        lease.release_idle_thread(last, on_take=nothing)
        assert not lease.has_thread
        opened.set()
        assert await other.run_sync(threading.current_thread) is thread
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


async def test_a_thread_that_a_call_is_about_to_use_stays() -> None:
    """A call that waits for a token has a slot, and no second one is taken for it."""
    async with open_pool(leases=1, threads=1) as pool:
        assert pool.slots is not None
        with open_lease_of(pool) as lease:
            thread = await lease.run_sync(threading.current_thread)
            threads: list[threading.Thread] = []

            async def call() -> None:
                threads.append(await lease.run_sync(threading.current_thread))

            gate = Gate(nothing)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pool.run_sync, gate)
                await gate.entered.wait()
                nursery.start_soon(call)
                await wait_all_tasks_blocked()
                lease.release_idle_thread(None, on_take=pytest.fail)
                assert pool.slots.borrowed_tokens == 1
                gate.open()
            assert threads == [thread]


async def test_last_fails_and_the_thread_stays(lease: Lease) -> None:
    """If the call before the release raises, nothing is released."""

    def last() -> None:
        raise LookupError("in last")

    thread = await lease.run_sync(threading.current_thread)
    with pytest.raises(LookupError, match="in last"):
        await lease.release_thread(last, on_take=pytest.fail)
    assert await lease.run_sync(threading.current_thread) is thread


async def test_release_thread_waits_for_its_turn(lease: Lease) -> None:
    """Sync code of another task is waited for; calls behind it take a new thread."""
    order: list[str] = []
    gate = Gate(lambda: order.append("call"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lease.run_sync, gate)
        await gate.entered.wait()
        release = functools.partial(
            lease.release_thread,
            lambda: order.append("last"),
            on_take=lambda: order.append("taken"),
        )
        nursery.start_soon(release)
        await wait_all_tasks_blocked()
        nursery.start_soon(lease.run_sync, lambda: order.append("behind"))
        await wait_all_tasks_blocked()
        assert order == []
        gate.open()
    assert order == ["call", "last", "taken", "behind"]


async def test_release_thread_waits_for_a_siblings_coroutine(lease: Lease) -> None:
    """If another task's sync code waits for a coroutine, its end is waited for."""
    go_on = trio.Event()
    started = trio.Event()

    async def coroutine() -> None:
        started.set()
        await go_on.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lease.run_sync, lambda: in_task(coroutine))
        await started.wait()
        current_loop.set(lease)
        release = functools.partial(lease.release_thread, nothing, on_take=nothing)
        nursery.start_soon(release)
        await wait_all_tasks_blocked()
        assert lease.has_thread
        go_on.set()
    assert not lease.has_thread


async def test_two_tasks_release_a_thread(lease: Lease) -> None:
    """The second one finds nothing left to release."""
    calls: list[str] = []
    gate = Gate(nothing)
    release = functools.partial(
        lease.release_thread, lambda: calls.append("last"), on_take=nothing
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lease.run_sync, gate)
        await gate.entered.wait()
        nursery.start_soon(release)
        nursery.start_soon(release)
        await wait_all_tasks_blocked()
        gate.open()
    assert calls == ["last"]
    assert lease.running is None


async def test_nothing_to_release(pool: WorkerPool) -> None:
    """Without a thread of the pool, `release_thread` is a checkpoint."""
    with open_lease(pool) as unused, open_lease(pool) as released:
        worker = pool.take()
        assert worker is not None
        for lease in (unused, released, Lease(pool, inbox=worker.inbox)):
            lease.release()
            for each in (lease, Lease(pool)):
                with assert_checkpoints():
                    await each.release_thread(pytest.fail, on_take=pytest.fail)
                assert not each.has_thread


async def test_a_lease_that_ends_while_its_thread_is_released(
    pool: WorkerPool,
) -> None:
    """If the lease is released first, nothing else happens."""
    gate = Gate(nothing)
    lease = Lease(pool)
    release = functools.partial(lease.release_thread, pytest.fail, on_take=pytest.fail)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lease.run_sync, gate)
        await gate.entered.wait()
        nursery.start_soon(release)
        await wait_all_tasks_blocked()
        lease.release()
        gate.open()
    assert not lease.has_thread
    assert len(pool._idle) == 1


async def test_a_lease_that_ends_while_last_runs(pool: WorkerPool) -> None:
    """If the lease ends while the thread is being given back, that happens once."""
    gate = Gate(nothing)
    lease = Lease(pool)
    await lease.run_sync(nothing)
    release = functools.partial(lease.release_thread, gate, on_take=nothing)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(release)
        await gate.entered.wait()
        lease.release()
        gate.open()
    assert not lease.has_thread
    assert len(pool._idle) == 1


# Where it is refused


@pytest.mark.parametrize("how", ["the coroutine", "a task below", "from_thread"])
async def test_a_thread_that_waits_for_the_task_is_not_released(
    lease: Lease, how: str
) -> None:
    """In the middle of sync code, which waits for this task, it is refused."""
    refused: list[str] = []

    async def release() -> None:
        with pytest.raises(RuntimeError, match=r"where sync code waits .*sync middle"):
            await lease.release_thread(pytest.fail, on_take=pytest.fail)
        refused.append(how)

    async def coroutine() -> None:
        if how == "a task below":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(release)
        else:
            await release()

    def code() -> None:
        if how == "from_thread":
            trio.from_thread.run(coroutine)
        else:
            in_task(coroutine)

    await lease.run_sync(code)
    assert refused == [how]
    assert lease.has_thread
    await lease.release_thread(nothing, on_take=nothing)


async def test_a_task_that_outlives_its_coroutine_may_release(lease: Lease) -> None:
    """When the sync code above it has ended, nothing waits for the task any more."""
    ended = trio.Event()

    async def survivor() -> None:
        await ended.wait()
        await lease.release_thread(nothing, on_take=nothing)

    async with trio.open_nursery() as nursery:

        async def coroutine() -> None:
            # With the context of the coroutine, whose loop is closed later.
            nursery.start_soon(survivor)

        await lease.run_sync(lambda: in_task(coroutine))
        ended.set()
    assert not lease.has_thread


# Cancelled while a thread is given back


async def cancelled_release(
    lease: Lease, last: Callable[[], object], scope: trio.CancelScope
) -> None:
    """Release a thread in a scope that is cancelled before the release."""
    with scope:
        await lease.release_thread(last, on_take=pytest.fail)
    assert scope.cancelled_caught


async def test_cancelled_before_the_release(lease: Lease) -> None:
    """A cancelled task gives nothing back."""
    thread = await lease.run_sync(threading.current_thread)
    scope = trio.CancelScope()
    scope.cancel()
    await cancelled_release(lease, pytest.fail, scope)
    assert await lease.run_sync(threading.current_thread) is thread


async def test_cancelled_while_the_release_waits_for_its_turn(lease: Lease) -> None:
    """Then the thread stays, and the call in it is not disturbed."""
    gate = Gate(threading.current_thread)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lease.run_sync, gate)
        await gate.entered.wait()
        scope = trio.CancelScope()
        nursery.start_soon(cancelled_release, lease, pytest.fail, scope)
        await wait_all_tasks_blocked()
        scope.cancel()
        await wait_all_tasks_blocked()
        gate.open()
    assert await lease.run_sync(threading.current_thread) is gate.thread


async def test_cancelled_while_the_release_waits_for_a_token() -> None:
    """Then the thread stays, and the turn goes to the next call."""
    async with open_pool(threads=1) as pool:
        with open_lease(pool) as lease:
            thread = await lease.run_sync(threading.current_thread)
            gate = Gate(nothing)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pool.run_sync, gate)
                await gate.entered.wait()
                scope = trio.CancelScope()
                nursery.start_soon(cancelled_release, lease, pytest.fail, scope)
                await wait_all_tasks_blocked()
                scope.cancel()
                await wait_all_tasks_blocked()
                gate.open()
            assert await lease.run_sync(threading.current_thread) is thread


async def test_cancelled_while_last_runs(lease: Lease) -> None:
    """The release is finished: the thread goes back, then the task is cancelled."""
    gate = Gate(nothing)
    await lease.run_sync(nothing)
    scope = trio.CancelScope()
    released: list[bool] = []

    async def release() -> None:
        with scope:
            await lease.release_thread(gate, on_take=nothing)
            released.append(not lease.has_thread)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(release)
        await gate.entered.wait()
        scope.cancel()
        await wait_all_tasks_blocked()
        gate.open()
    assert released == [True]
    assert scope.cancelled_caught


async def test_left_while_last_runs(pool: WorkerPool) -> None:
    """If the task must not wait, the lease's thread is left, as usual."""
    gate = Gate(nothing)
    lease = Lease(pool)
    await lease.run_sync(nothing)
    async with trio.open_nursery() as nursery:
        release = functools.partial(lease.release_thread, gate, on_take=pytest.fail)
        nursery.start_soon(release)
        await gate.entered.wait()
        lease.stop_waiting()
        nursery.cancel_scope.cancel()
    assert lease.abandoned
    assert lease.has_thread
    gate.open()
    lease.release()
    await join(gate.thread)


def test_an_interrupt_at_any_line() -> None:
    """Wherever Control-C hits a release and a call, no slot, turn or token is lost."""
    lines = interrupt_each_line(
        setup="pool.slots = trio.CapacityLimiter(1); lease = pool.lease()",
        steps=["lease.run_sync(int)", "lease.release_thread(int, on_take=int)"],
        free=["pool.queue.running", "pool.slots.borrowed_tokens"],
    )
    assert lines > 60


# All together


class Visitors:
    """Many leases with few slots, which take and release threads at random."""

    def __init__(self, pool: WorkerPool, seed: int) -> None:
        self.pool = pool
        self._random = random.Random(seed)  # noqa: S311
        self._lock = threading.Lock()
        self._in_use: dict[threading.Thread, Lease] = {}

    def _enter(self, lease: Lease) -> None:
        with self._lock:
            thread = threading.current_thread()
            assert self._in_use.setdefault(thread, lease) is lease
            assert len(self._in_use) <= 4

    def _leave(self) -> None:
        with self._lock:
            del self._in_use[threading.current_thread()]

    async def _visit(self, lease: Lease) -> None:
        for _ in range(self._random.randrange(1, 4)):
            async with trio.open_nursery() as nursery:
                for _ in range(self._random.randrange(1, 3)):
                    nursery.start_soon(
                        lease.run_sync, functools.partial(self._enter, lease)
                    )
            if self._random.random() < 0.7:
                await lease.release_thread(self._leave, on_take=nothing)

    async def run(self) -> None:
        """Run one of the visitors, and perhaps cancel it."""
        lease = self.pool.lease()
        try:
            async with trio.open_nursery() as nursery:
                if self._random.random() < 0.3:
                    steps = self._random.randrange(30)
                    nursery.start_soon(cancel_later, nursery.cancel_scope, steps)
                await self._visit(lease)
                nursery.cancel_scope.cancel()
        finally:
            lease.release(last=self._leave if lease.has_thread else None)


@pytest.mark.parametrize("seed", range(3))
async def test_many_leases_come_and_go_at_random(seed: int) -> None:
    """A hundred leases share four slots, and no thread has two of them at once."""
    async with open_pool(leases=4, threads=3) as pool:
        assert pool.slots is not None
        visitors = Visitors(pool, seed)
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(visitors.run)
        assert pool.slots.borrowed_tokens == 0


# For users


@contextmanager
def request_lease() -> Iterator[Lease]:
    """Act as a request: have a lease for the running task's sync code."""
    lease = current_pool().lease()
    marker = current_loop.set(lease)
    try:
        yield lease
    finally:
        current_loop.reset(marker)
        lease.release()


def is_open(alias: str) -> bool:
    """Whether this thread has a connection to a database."""
    return connections[alias].connection is not None


def query(alias: str) -> None:
    """Use a database, which opens a connection."""
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")


@pytest.mark.parametrize("max_age", [0, None])
async def test_connections_of_a_released_thread(
    tmp_path: Path, max_age: float | None
) -> None:
    """A connection is closed as at a request's end, or ends with its thread."""
    settings = sqlite_in(tmp_path, CONN_MAX_AGE=max_age)
    async with open_database(settings) as alias:
        with request_lease() as lease:
            await sync_to_async(query)(alias)
            await release_thread()
            assert not lease.has_thread
            with open_lease(current_pool()) as other:
                kept = await other.run_sync(functools.partial(is_open, alias))
    assert kept == (max_age is None)


async def test_connections_are_looked_at_before_they_are_used_again(
    tmp_path: Path,
) -> None:
    """The first call in the next thread finds no connection that is too old."""
    async with open_database(sqlite_in(tmp_path, CONN_MAX_AGE=3600)) as alias:

        def grow_old() -> None:
            connections[alias].close_at = 0

        with request_lease():
            await sync_to_async(query)(alias)
            await release_thread()
            await current_pool().run_sync(grow_old)
            assert not await sync_to_async(is_open)(alias)
            # But only there: connections that the request itself has opened stay.
            await sync_to_async(query)(alias)
            await sync_to_async(grow_old)()
            assert await sync_to_async(is_open)(alias)


@pytest.mark.parametrize("how", ["atomic", "no autocommit"])
async def test_a_thread_in_a_transaction_is_not_released(
    tmp_path: Path, how: str
) -> None:
    """Another request would find it there. It stays open for its owner to end."""
    async with open_database(sqlite_in(tmp_path)) as alias:

        def begin() -> None:
            if how == "atomic":
                block.__enter__()
            else:
                transaction.set_autocommit(False, alias)

        def end() -> None:
            assert is_open(alias)
            if how == "atomic":
                block.__exit__(None, None, None)
            else:
                transaction.set_autocommit(True, alias)

        block: Any = transaction.atomic(alias)
        with request_lease() as lease:
            thread = await sync_to_async(threading.current_thread)()
            await sync_to_async(begin)()
            with pytest.raises(RuntimeError, match=f"in a transaction.*: {alias}."):
                await release_thread()
            assert await sync_to_async(threading.current_thread)() is thread
            await sync_to_async(end)()
            await release_thread()
            assert not lease.has_thread


async def test_release_thread_below_sync_code() -> None:
    """Below `async_to_sync` the thread cannot be released, and the error says why."""
    refused: list[str] = []

    async def coroutine() -> None:
        with pytest.raises(RuntimeError, match="sync code waits for the running task"):
            await release_thread()
        refused.append("yes")

    with request_lease() as lease:
        await sync_to_async(async_to_sync(coroutine))()
        await release_thread()
        assert not lease.has_thread
    assert refused == ["yes"]


async def test_release_thread_where_there_is_none() -> None:
    """Outside requests, and before the first sync call, it is a checkpoint."""
    with assert_checkpoints():
        await release_thread()
    await current_pool().program_lease().run_sync(nothing)
    with assert_checkpoints():
        await release_thread()
    with request_lease(), assert_checkpoints():
        await release_thread()


async def test_release_thread_in_another_run() -> None:
    """A Trio run that sync code has started leaves the outer run's request alone."""
    with request_lease() as lease:
        await lease.run_sync(lambda: trio.run(release_thread))
        assert lease.has_thread


async def test_release_thread_of_a_test(tmp_path: Path, lease: Lease) -> None:
    """A test's thread, which has its transaction, stays with the test."""

    async def request(alias: str) -> None:
        loop = current_loop.get()
        assert loop is not None
        borrowed = Lease(current_pool(), loop._inbox)
        current_loop.set(borrowed)
        block: Any = transaction.atomic(alias)
        await borrowed.run_sync(block.__enter__)
        with assert_checkpoints():
            await release_thread()
        assert await borrowed.run_sync(lambda: is_open(alias))
        await borrowed.run_sync(lambda: block.__exit__(None, None, None))
        borrowed.release()

    def code(alias: str) -> None:
        in_task(functools.partial(request, alias))
        connections[alias].close()

    async with open_database(sqlite_in(tmp_path)) as alias:
        await lease.run_sync(functools.partial(code, alias))


async def test_release_thread_in_an_island() -> None:
    """asyncio code in a request can give the request's thread back, too."""

    seen: list[bool] = []

    async def fetch() -> None:
        await sync_to_async(nothing)()
        seen.append(lease.has_thread)
        await release_thread()
        seen.append(lease.has_thread)

    with request_lease() as lease:
        await asyncio_island(fetch)()
    assert seen == [True, False]


def test_release_thread_without_trio() -> None:
    """A view that a test runs on asyncio has nothing to give back."""
    asyncio.run(release_thread())

"""The queue of sync calls: who begins when, and when a result arrives."""

from __future__ import annotations

import functools
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
import trio
from asgiref.sync import sync_to_async
from trio.testing import MockClock, wait_all_tasks_blocked

from thread_support import (
    SECONDS,
    Gate,
    assert_ending,
    cannot_start,
    in_task,
    in_thread,
    nothing,
    open_lease,
    open_pool,
    wait_running,
    worker_threads,
)
from trio_asgi.threads import call_queue
from trio_asgi.threads.call import Call
from trio_asgi.threads.current import current_pool
from trio_asgi.threads.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_asgi.threads.pool import WorkerPool
    from trio_asgi.threads.worker import Worker


@pytest.fixture
def no_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no tick come during a test."""
    monkeypatch.setattr(call_queue, "TICK", 1000.0)
    monkeypatch.setattr(call_queue, "LONG", 1000.0)


# Few at a time


@pytest.mark.usefixtures("no_ticks")
async def test_one_after_the_other_in_one_thread(pool: WorkerPool) -> None:
    """While calls end, the next one begins in the thread of the last, in order."""
    order: list[int] = []
    threads: set[threading.Thread] = set()
    gate = Gate(nothing)

    def work(number: int) -> None:
        order.append(number)
        threads.add(threading.current_thread())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run_sync, gate)
        await gate.entered.wait()
        for number in range(50):
            nursery.start_soon(pool.run_sync, lambda number=number: work(number))
            await wait_all_tasks_blocked()
        assert (pool.queue.running, pool.queue.waiting) == (1, 50)
        gate.open()
    assert order == list(range(50))
    assert threads == {gate.thread}
    assert len(pool.workers) == 1


@pytest.mark.usefixtures("no_ticks")
async def test_the_last_result_brings_the_others(pool: WorkerPool) -> None:
    """Results wait for the thread to find no next call, and no longer."""
    gate, results = Gate(nothing), []

    async def call(number: int) -> None:
        results.append(await pool.run_sync(lambda: number))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run_sync, gate)
        await gate.entered.wait()
        for number in range(5):
            nursery.start_soon(call, number)
        await wait_all_tasks_blocked()
        gate.open()
    assert sorted(results) == [0, 1, 2, 3, 4]


async def test_a_result_comes_while_the_thread_runs_the_next_call(
    pool: WorkerPool,
) -> None:
    """A tick collects results, so no task waits for another task's call."""
    first, second, done = Gate(nothing), Gate(nothing), trio.Event()

    async def quick() -> None:
        await pool.run_sync(nothing)
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run_sync, first)
        await first.entered.wait()
        nursery.start_soon(quick)
        await wait_all_tasks_blocked()
        nursery.start_soon(pool.run_sync, second)
        await wait_all_tasks_blocked()
        first.open()
        await done.wait()
        second.open()


# More when they block


@pytest.mark.parametrize("number", [2, 32])
async def test_calls_that_wait_for_each_other(number: int) -> None:
    """All calls begin, up to the limit, if those that run wait for the others."""
    barrier = threading.Barrier(number, timeout=SECONDS)
    async with open_pool(threads=number) as pool, trio.open_nursery() as nursery:
        for _ in range(number):
            nursery.start_soon(pool.run_sync, barrier.wait)


async def test_calls_that_wait_for_each_other_on_a_busy_machine(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They begin even if ticks are always late."""
    monkeypatch.setattr(call_queue, "LATE", -1.0)
    barrier = threading.Barrier(8, timeout=SECONDS)
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(pool.run_sync, barrier.wait)


async def test_a_call_that_blocks_keeps_no_other_waiting(pool: WorkerPool) -> None:
    """A long call counts as blocked, and short ones run beside it."""
    with open_lease(pool) as lease:
        gate = Gate(nothing)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lease.run_sync, gate)
            await gate.entered.wait()
            for _ in range(20):
                await pool.run_sync(nothing)
            gate.open()


async def test_a_queued_call_ends_a_deadlock(pool: WorkerPool) -> None:
    """A call may wait for what only a call behind it in the queue does."""
    event = threading.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(pool.run_sync, lambda: event.wait(SECONDS))
            await wait_all_tasks_blocked()
        nursery.start_soon(pool.run_sync, event.set)
    assert event.is_set()


@pytest.mark.usefixtures("no_ticks")
async def test_how_the_number_of_active_calls_grows_and_shrinks() -> None:
    """It doubles while calls wait at an idle tick, and halves after a second."""
    async with open_pool(threads=20) as pool:
        queue, gates = pool.queue, [Gate(nothing) for _ in range(40)]
        async with trio.open_nursery() as nursery:
            for gate in gates:
                nursery.start_soon(pool.run_sync, gate)
            await wait_all_tasks_blocked()
            seen = [queue.running]
            for _ in range(4):
                queue._any_ended = False
                queue._tick(is_idle=True)
                seen.append(queue.running)
            assert seen == [1, 3, 7, 15, 20]
            # A busy machine says nothing about the calls.
            most = queue._most_active
            queue._tick(is_idle=False)
            assert queue._most_active == most == 16
            queue._adapted -= 3
            queue._any_ended = True
            queue._tick(is_idle=False)
            assert queue._most_active == 2
            # Calls end, but there is time that no thread uses.
            queue._tick(is_idle=True)
            assert queue._most_active == 4
            for gate in gates:
                gate.open()
        assert (queue.running, queue._old, queue._blocked) == (0, 0, 0)


@pytest.mark.usefixtures("no_ticks")
async def test_a_call_is_blocked_after_two_ticks(pool: WorkerPool) -> None:
    """Although others end meanwhile, it makes room for one more."""
    first, second = Gate(nothing), Gate(nothing)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run_sync, first)
        await first.entered.wait()
        nursery.start_soon(pool.run_sync, second)
        await wait_all_tasks_blocked()
        for running in (1, 2):
            # As if no tick had found an idle processor for long.
            pool.queue._any_ended, pool.queue._generation_began = True, 0
            pool.queue._tick(is_idle=False)
            assert pool.queue.running == running
        first.open()
        await second.entered.wait()
        second.open()
    assert pool.queue._most_active == 1


@pytest.mark.usefixtures("no_ticks")
async def test_a_call_that_ends_while_a_tick_begins(pool: WorkerPool) -> None:
    """It counts as ended, for the tick waits for the lock that its thread holds."""
    queue, gates = pool.queue, [Gate(nothing), Gate(nothing)]

    class Lock:
        def __enter__(self) -> None:
            lock.acquire()
            queue._any_ended = True

        def __exit__(self, *_: object) -> None:
            lock.release()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run_sync, gates[0])
        await gates[0].entered.wait()
        nursery.start_soon(pool.run_sync, gates[1])
        await wait_all_tasks_blocked()
        lock, queue._any_ended = queue.lock, False
        queue.lock = Lock()  # type: ignore[assignment]
        queue._tick(is_idle=True)
        queue.lock = lock
        assert queue._blocked == 0
        for gate in gates:
            gate.open()


def test_under_a_tests_clock_all_begin_at_once() -> None:
    """With a `MockClock` there are no ticks: only the limit counts."""
    barrier = threading.Barrier(8, timeout=SECONDS)

    async def main() -> None:
        async with open_pool(threads=8) as pool, trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(pool.run_sync, barrier.wait)
            for _ in range(8):
                nursery.start_soon(pool.run_sync, nothing)
            nursery.start_soon(trio.sleep, 1)

    trio.run(main, clock=MockClock(autojump_threshold=0))


# Both directions


async def test_calls_below_coroutines_of_many_calls(pool: WorkerPool) -> None:
    """A call that goes on after its coroutine waits for a place, as new calls do."""
    barrier = threading.Barrier(8, timeout=SECONDS)

    async def coroutine() -> None:
        await in_thread(barrier.wait)
        await pool.run_sync(nothing)

    def code() -> None:
        in_task(coroutine)
        barrier.wait()

    with ExitStack() as stack:
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                lease = stack.enter_context(open_lease(pool))
                nursery.start_soon(lease.run_sync, code)
    assert pool.queue.running == 0


# Withdrawn


async def test_a_call_is_withdrawn_or_runs_never_both(pool: WorkerPool) -> None:
    """Wherever a cancellation meets a thread that takes the call."""
    rng = random.Random(1)  # noqa: S311
    ran: set[int] = set()
    answered: set[int] = set()
    cancelled: set[int] = set()

    async def call(number: int) -> None:
        with trio.CancelScope() as scope:
            scopes.append(scope)
            await pool.run_sync(lambda: ran.add(number))
            answered.add(number)
        if scope.cancelled_caught:
            cancelled.add(number)

    scopes: list[trio.CancelScope] = []
    async with trio.open_nursery() as nursery:
        for number in range(500):
            nursery.start_soon(call, number)
            if rng.random() < 0.2:
                await trio.lowlevel.checkpoint()
            if scopes and rng.random() < 0.5:
                rng.choice(scopes).cancel()
    assert ran == answered
    assert answered | cancelled == set(range(500))
    assert not answered & cancelled
    assert cancelled
    assert (pool.queue.running, pool.queue.waiting) == (0, 0)


async def test_a_call_that_is_cancelled_while_it_begins(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finalizer that runs there may cancel it: too late, it has begun."""
    ran: list[int] = []
    scope, take = trio.CancelScope(), pool.take

    def taking() -> Worker | None:
        scope.cancel()
        return take()

    gate = Gate(nothing)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.program_lease().run_sync, gate)
        await gate.entered.wait()
        with scope:
            monkeypatch.setattr(pool, "take", taking)
            nursery.start_soon(_let_begin, pool)
            await pool.run_sync(lambda: ran.append(1))
        assert ran == [1]
        assert not scope.cancelled_caught
        gate.open()
    assert (pool.queue.running, pool.queue.waiting) == (0, 0)


async def _let_begin(pool: WorkerPool) -> None:
    pool.queue._most_active = 10
    pool.queue.dispatch()


async def test_all_are_cancelled_in_the_queue(pool: WorkerPool) -> None:
    """The queue is empty afterwards, and the place is not lost."""
    gate = Gate(nothing)
    async with trio.open_nursery() as outer:
        outer.start_soon(pool.run_sync, gate)
        await gate.entered.wait()
        pool.queue.set_threads(1)
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(pool.run_sync, pytest.fail)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert (pool.queue.running, pool.queue.waiting) == (1, 0)
        gate.open()
    await pool.run_sync(nothing)


async def test_a_lease_that_ends_while_its_call_is_queued(pool: WorkerPool) -> None:
    """The call goes to the program's thread, like all calls after the release."""
    pool.queue.set_threads(1)
    gate, threads = Gate(nothing), []
    lease = Lease(pool)

    async def call() -> None:
        threads.append(await lease.run_sync(threading.current_thread))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run_sync, gate)
        await gate.entered.wait()
        nursery.start_soon(call)
        await wait_all_tasks_blocked()
        lease.release()
        gate.open()
    assert lease.calls == 0
    program = await pool.program_lease().run_sync(threading.current_thread)
    assert threads == [program]


async def test_a_call_for_an_executor_that_is_cancelled_on_its_way() -> None:
    """It is not submitted, or taken back from the executor; and no place is lost."""
    gate = Gate(nothing)
    with ThreadPoolExecutor(1) as executor:
        run = sync_to_async(pytest.fail, thread_sensitive=False, executor=executor)
        busy = sync_to_async(gate, thread_sensitive=False, executor=executor)
        async with trio.open_nursery() as outer:
            outer.start_soon(busy)
            await gate.entered.wait()
            # So that the calls do not wait for a tick.
            current_pool().queue._most_active = 10
            for steps in range(6):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(run)
                    for _ in range(steps):
                        await trio.lowlevel.checkpoint()
                    nursery.cancel_scope.cancel()
            await wait_running(current_pool(), 1)
            assert current_pool().queue.running == 1
            gate.open()
    current_pool().queue._most_active = 1


# Threads


@pytest.mark.usefixtures("no_ticks")
async def test_a_bound_thread_that_ends_a_call_has_a_new_thread_started(
    pool: WorkerPool,
) -> None:
    """If no thread is idle, only the Trio thread starts one for the next call."""
    gate = Gate(threading.current_thread)
    with open_lease(pool) as lease, open_lease(pool) as other:
        threads: list[threading.Thread] = []

        async def call(lease: Lease, fn: Callable[[], threading.Thread]) -> None:
            threads.append(await lease.run_sync(fn))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, lease, gate)
            await gate.entered.wait()
            nursery.start_soon(call, other, threading.current_thread)
            await wait_all_tasks_blocked()
            gate.open()
        assert len(set(threads)) == 2
        assert lease.has_thread
        assert other.has_thread


async def test_a_thread_that_cannot_be_started_for_a_queued_call(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task that waits for the call gets the error, and nobody else."""
    gate, errors = Gate(nothing), []

    async def call() -> None:
        with pytest.raises(RuntimeError, match="can't start") as caught:
            await pool.run_sync(pytest.fail)
        errors.append(caught.value)

    with open_lease(pool) as lease:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lease.run_sync, gate)
            await gate.entered.wait()
            monkeypatch.setattr(threading.Thread, "start", cannot_start)
            nursery.start_soon(call)
            while not errors:
                await trio.sleep(0.001)
            monkeypatch.undo()
            gate.open()
    assert (pool.queue.running, pool.queue.waiting) == (0, 0)
    assert await pool.run_sync(lambda: "ran") == "ran"


@pytest.mark.usefixtures("no_ticks")
@pytest.mark.parametrize("whose", ["its own", "another's"])
@pytest.mark.parametrize("handed_over", [False, True])
async def test_an_error_while_a_call_begins(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch, whose: str, handed_over: bool
) -> None:
    """Of a signal handler, say. No call is lost, and none is made twice."""
    begin, ran = Call.begin, []

    def failing(call: Call[None]) -> bool:
        monkeypatch.undo()
        if handed_over:
            assert begin(call)
        raise MemoryError

    async def fail() -> None:
        with pytest.raises(MemoryError):
            await pool.run_sync(lambda: ran.append("its own"))

    gate, another = Gate(nothing), Gate(lambda: ran.append("another's"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run_sync, gate)
        await gate.entered.wait()
        if whose == "another's":
            nursery.start_soon(pool.run_sync, another)
            await wait_all_tasks_blocked()
        monkeypatch.setattr(Call, "begin", failing)
        pool.queue._most_active = 2
        await fail()
        another.open()
        gate.open()
    assert ran == ["another's"] * (whose == "another's") + ["its own"] * (
        whose == "its own" and handed_over
    )
    assert (pool.queue.running, pool.queue.waiting) == (0, 0)


def test_an_error_while_a_call_begins_lets_go_of_the_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A `MockClock` jumps again afterwards."""

    def begin(call: Call[None]) -> bool:
        raise MemoryError

    async def main() -> None:
        async with open_pool() as pool:
            with monkeypatch.context() as patch:
                patch.setattr(Call, "begin", begin)
                with pytest.raises(MemoryError):
                    await pool.run_sync(nothing)
            assert trio.lowlevel.current_clock().autojump_threshold == 0  # type: ignore[attr-defined]

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def test_no_tick_comes_while_nothing_waits(pool: WorkerPool) -> None:
    """A lone call costs no tick, and ticks stop when calls have ended."""
    await pool.run_sync(nothing)
    assert not pool.queue._ticking
    barrier = threading.Barrier(4, timeout=SECONDS)
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(pool.run_sync, barrier.wait)
    with trio.fail_after(SECONDS):
        await wait_all_tasks_blocked(0.05)
    assert not pool.queue._ticking
    gate = Gate(nothing)
    pool.queue.set_threads(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run_sync, gate)
        await gate.entered.wait()
        nursery.start_soon(pool.run_sync, nothing)
        # Nor when no more calls may run.
        await wait_all_tasks_blocked(0.05)
        assert not pool.queue._ticking
        gate.open()


# The end


def test_calls_that_are_queued_when_the_main_task_ends() -> None:
    """System tasks' calls run to their end when ticks come no more."""
    barrier = threading.Barrier(6, timeout=SECONDS)
    ended: list[int] = []

    async def system_task() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await current_pool().run_sync(barrier.wait)
                await current_pool().run_sync(nothing)
                ended.append(1)

    async def main() -> None:
        pool = current_pool()
        event = threading.Event()
        async with trio.open_nursery() as nursery:
            for _ in range(2):  # ticks have come before
                nursery.start_soon(pool.run_sync, lambda: event.wait(0.01))
        for _ in range(6):
            trio.lowlevel.spawn_system_task(system_task)
        await wait_all_tasks_blocked()

    before = worker_threads()
    trio.run(main)
    assert len(ended) == 6
    assert_ending(worker_threads() - before)


def test_a_run_that_is_cancelled_with_queued_calls() -> None:
    """Those that have begun end, the others never run, and no thread is left."""
    ran: list[int] = []

    async def main() -> None:
        pool = current_pool()
        gate = Gate(nothing)
        async with trio.open_nursery() as nursery:
            pool.queue.set_threads(1)
            nursery.start_soon(pool.run_sync, gate)
            await gate.entered.wait()
            for number in range(10):
                nursery.start_soon(pool.run_sync, functools.partial(ran.append, number))
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            gate.open()

    before = worker_threads()
    trio.run(main)
    assert ran == []
    assert worker_threads() <= before

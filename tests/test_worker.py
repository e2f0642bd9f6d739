"""Worker threads: one per lease, in order, and back in the pool afterwards."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import gc
import math
import random
import threading
import time
import weakref
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from thread_support import (
    SECONDS,
    Gate,
    assert_ending,
    cancel_later,
    in_task,
    in_thread,
    join,
    nothing,
    open_lease,
    open_pool,
    variable,
    wait_all_tasks_blocked_and,
    wait_set,
    worker_threads,
)
from trio_asgi.threads.call import calling
from trio_asgi.threads.current import current_pool
from trio_asgi.threads.lease import Lease
from trio_asgi.threads.loop import current_loop
from trio_asgi.threads.wakeups import Wakeups
from trio_asgi.threads.worker import Worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from trio_asgi.threads.pool import WorkerPool


# Which thread, and when


async def test_a_lease_is_one_thread(lease: Lease) -> None:
    """All calls of a lease run in one thread, whichever task makes them."""
    threads: set[threading.Thread] = set()

    async def call() -> None:
        threads.add(await lease.run_sync(threading.current_thread))

    for _ in range(5):
        await call()
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(call)
    (thread,) = threads
    assert thread is not threading.current_thread()


async def test_calls_of_a_lease_run_in_the_order_of_asking(lease: Lease) -> None:
    """A lease runs one call at a time, first come, first served."""
    order: list[int] = []
    gate = Gate(nothing)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lease.run_sync, gate)
        await gate.entered.wait()
        for number in range(5):
            call = functools.partial(order.append, number)
            nursery.start_soon(lease.run_sync, call)
            await wait_all_tasks_blocked()
        assert order == []
        gate.open()
    assert order == [0, 1, 2, 3, 4]


async def test_leases_run_at_the_same_time(pool: WorkerPool) -> None:
    """Two leases are two threads, which run at the same time."""
    barrier = threading.Barrier(2, timeout=SECONDS)
    threads: set[threading.Thread] = set()

    def meet() -> None:
        barrier.wait()
        threads.add(threading.current_thread())

    with open_lease(pool) as one, open_lease(pool) as other:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.run_sync, meet)
            nursery.start_soon(other.run_sync, meet)
    assert len(threads) == 2


async def test_an_unused_lease_has_no_thread(pool: WorkerPool) -> None:
    """A lease takes its thread at the first call, and has none after the release."""
    with open_lease(pool) as lease:
        seen = [lease.has_thread]
        await lease.run_sync(nothing)
        seen.append(lease.has_thread)
    assert [*seen, lease.has_thread] == [False, True, False]
    with open_lease(pool):
        pass
    assert len(pool.workers) == 1


async def test_the_thread_that_came_back_last_is_taken_first(pool: WorkerPool) -> None:
    """Leases take idle threads, the most recently used first."""
    leases = [Lease(pool) for _ in range(3)]
    threads = [await lease.run_sync(threading.current_thread) for lease in leases]
    for index in (0, 2, 1):
        leases[index].release()
    again = [Lease(pool) for _ in range(3)]
    taken = [await lease.run_sync(threading.current_thread) for lease in again]
    for lease in again:
        lease.release()
    assert taken == [threads[1], threads[2], threads[0]]


async def test_releasing_twice_gives_back_once(pool: WorkerPool) -> None:
    """A second release does not give two leases the same thread."""
    lease = Lease(pool)
    await lease.run_sync(nothing)
    lease.release()
    with open_lease(pool) as second:
        thread = await second.run_sync(threading.current_thread)
        lease.release()
        with open_lease(pool) as third:
            assert await third.run_sync(threading.current_thread) is not thread


async def test_the_pool_runs_calls_in_any_thread() -> None:
    """`WorkerPool.run_sync` waits for no other call, and keeps no thread."""
    barrier = threading.Barrier(3, timeout=SECONDS)
    async with open_pool() as pool, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(pool.run_sync, barrier.wait)


# The limit


async def test_the_limit_is_on_running_calls() -> None:
    """Idle leases hold no token, and no more calls run than there are tokens."""
    lock = threading.Lock()
    barrier = threading.Barrier(2, timeout=SECONDS)
    running = most = 0

    def call() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        # Two can run at once; whether a third could is tested while they meet.
        barrier.wait()
        with lock:
            running -= 1

    async with open_pool(threads=2) as pool:
        leases = [Lease(pool) for _ in range(6)]
        for lease in leases:
            await lease.run_sync(nothing)
        assert len(pool.workers) == 6
        assert pool.queue.running == 0
        async with trio.open_nursery() as nursery:
            for lease in leases:
                nursery.start_soon(lease.run_sync, call)
        for lease in leases:
            lease.release()
    assert most == 2


async def test_tokens_are_first_come_first_served() -> None:
    """Calls that wait for a token get one in the order of their requests."""
    order: list[int] = []
    async with open_pool(threads=1) as pool:
        gate = Gate(nothing)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.run_sync, gate)
            await gate.entered.wait()
            for number in range(5):
                call = functools.partial(order.append, number)
                nursery.start_soon(pool.run_sync, call)
                await wait_all_tasks_blocked()
            assert order == []
            gate.open()
    assert order == [0, 1, 2, 3, 4]


def test_the_clock_of_a_test_waits_for_sync_code() -> None:
    """A `MockClock` jumps only while no sync code runs."""
    order: list[str] = []

    async def sleep(seconds: float, then: str) -> None:
        await trio.sleep(seconds)
        order.append(then)

    def code(gate: Gate[None]) -> None:
        # While the thread waits for a coroutine the clock may jump.
        in_task(functools.partial(sleep, 1, "coroutine"))
        gate()

    async def main() -> None:
        async with open_pool() as pool, trio.open_nursery() as nursery:
            gate = Gate(lambda: order.append("sync code"))
            other = Gate(nothing)
            nursery.start_soon(pool.run_sync, functools.partial(code, gate))
            await gate.entered.wait()
            nursery.start_soon(pool.run_sync, other)
            await other.entered.wait()
            nursery.start_soon(sleep, 1, "task")
            await wait_all_tasks_blocked(0.01)
            other.open()
            await wait_all_tasks_blocked(0.01)
            gate.open()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert order == ["coroutine", "sync code", "task"]


# Cancelled while waiting


async def test_cancelled_before_the_call(lease: Lease) -> None:
    """A cancelled task makes no call, and takes no thread."""
    with trio.CancelScope() as scope:
        scope.cancel()
        await lease.run_sync(pytest.fail)
    assert scope.cancelled_caught
    assert not lease.has_thread


async def test_cancelled_while_waiting_for_the_turn(lease: Lease) -> None:
    """A call that is cancelled before its turn never runs; the others keep theirs."""
    order: list[int] = []
    gate = Gate(nothing)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lease.run_sync, gate)
        await gate.entered.wait()
        scopes = [trio.CancelScope() for _ in range(3)]

        async def call(number: int) -> None:
            with scopes[number]:
                await lease.run_sync(lambda: order.append(number))

        for number in range(3):
            nursery.start_soon(call, number)
            await wait_all_tasks_blocked()
        scopes[1].cancel()
        await wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 3
        gate.open()
    assert [scope.cancelled_caught for scope in scopes] == [False, True, False]
    await lease.run_sync(lambda: order.append(3))
    assert order == [0, 2, 3]


async def test_cancelled_while_waiting_for_a_token() -> None:
    """A call that is cancelled before its token never runs, and leaves no trace."""
    async with open_pool(threads=1) as pool:
        gate = Gate(nothing)
        with open_lease(pool) as lease:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pool.run_sync, gate)
                await gate.entered.wait()
                with trio.CancelScope() as scope:
                    nursery.start_soon(wait_all_tasks_blocked_and, scope.cancel)
                    await lease.run_sync(pytest.fail)
                assert scope.cancelled_caught
                assert pool.queue.waiting == 0
                assert not lease.has_thread
                assert lease.running is None
                gate.open()
            assert await lease.run_sync(lambda: "free again") == "free again"


async def test_running_code_is_waited_for(lease: Lease) -> None:
    """A task that is cancelled while its sync code runs gets the code's result."""
    results: list[str] = []
    gate = Gate(lambda: "result")
    scope = trio.CancelScope()

    async def call() -> None:
        with scope:
            results.append(await lease.run_sync(gate))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await gate.entered.wait()
        scope.cancel()
        await wait_all_tasks_blocked()
        assert nursery.child_tasks
        gate.open()
    assert results == ["result"]
    assert scope.cancelled_caught
    assert not lease.abandoned


async def test_sync_code_can_ask_for_the_cancellation(lease: Lease) -> None:
    """`check_cancelled` raises once the task is cancelled, and that goes on."""
    told: list[str] = []

    def code() -> None:
        trio.from_thread.check_cancelled()
        trio.from_thread.run_sync(scope.cancel)
        # Once this has got through, the task waits again, and was cancelled.
        trio.from_thread.run_sync(nothing)
        for _ in range(2):
            with pytest.raises(trio.Cancelled):
                trio.from_thread.check_cancelled()
        told.append("cancelled")
        trio.from_thread.check_cancelled()

    with trio.CancelScope() as scope:
        await lease.run_sync(code)
    assert scope.cancelled_caught
    # The next call does not see the cancellation of the last one.
    await lease.run_sync(trio.from_thread.check_cancelled)
    assert told == ["cancelled"]


# trio.from_thread


async def test_from_thread_acts_on_the_waiting_task(pool: WorkerPool) -> None:
    """`trio.from_thread` runs in the waiting task, under its scopes, in context."""

    async def current_task() -> trio.lowlevel.Task:
        await trio.lowlevel.checkpoint()
        return trio.lowlevel.current_task()

    async def set_variable() -> str:
        before = variable.get()
        variable.set("coroutine")
        await trio.lowlevel.checkpoint()
        return before

    def code() -> None:
        assert trio.from_thread.run_sync(trio.lowlevel.current_task) is task
        assert trio.from_thread.run(current_task) is task
        assert trio.from_thread.run_sync(trio.current_effective_deadline) == deadline
        variable.set("thread")
        assert trio.from_thread.run_sync(variable.get) == "thread"
        assert trio.from_thread.run(set_variable) == "thread"
        assert variable.get() == "thread"

    task = trio.lowlevel.current_task()
    variable.set("task")
    with open_lease(pool) as lease, trio.fail_after(SECONDS):
        deadline = trio.current_effective_deadline()
        await lease.run_sync(code)
    assert variable.get() == "task"


async def test_a_cancellation_reaches_from_thread(lease: Lease) -> None:
    """A coroutine of `trio.from_thread.run` is cancelled with the waiting task."""
    caught: list[type[BaseException]] = []

    def code() -> None:
        trio.from_thread.run_sync(scope.cancel)
        try:
            trio.from_thread.run(trio.sleep_forever)
        except trio.Cancelled as error:
            caught.append(type(error))
            raise

    with trio.CancelScope() as scope:
        await lease.run_sync(code)
    assert scope.cancelled_caught
    assert caught == [trio.Cancelled]


async def test_each_call_has_its_own_task() -> None:
    """`trio.from_thread` follows a thread from task to task, and is off in between."""
    seen: dict[int, trio.lowlevel.Task] = {}
    outside: list[str] = []

    def at_exit() -> None:
        with pytest.raises(RuntimeError, match="wasn't created by Trio"):
            trio.from_thread.run_sync(nothing)
        assert calling() is None
        outside.append(threading.current_thread().name)

    async def call(lease: Lease, number: int) -> None:
        task = await lease.run_sync(
            lambda: trio.from_thread.run_sync(trio.lowlevel.current_task)
        )
        assert task is trio.lowlevel.current_task()
        seen[number] = task

    async with open_pool(on_thread_exit=at_exit) as pool:
        for first in (0, 10):
            with open_lease(pool) as lease:
                async with trio.open_nursery() as nursery:
                    for number in range(first, first + 5):
                        nursery.start_soon(call, lease, number)
        assert len(pool.workers) == 1
    assert len(set(seen.values())) == 10
    assert len(outside) == 1


async def test_from_thread_is_right_again_after_nested_calls(lease: Lease) -> None:
    """When a nested call has ended, `trio.from_thread` acts on the outer task again."""

    def current_task() -> trio.lowlevel.Task:
        return trio.from_thread.run_sync(trio.lowlevel.current_task)

    inner: list[trio.lowlevel.Task] = []

    async def child() -> None:
        inner.append(await in_thread(current_task))
        assert inner == [trio.lowlevel.current_task()]

    async def coroutine() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)

    def code() -> tuple[trio.lowlevel.Task, trio.lowlevel.Task]:
        before = current_task()
        in_task(coroutine)
        return before, current_task()

    task = trio.lowlevel.current_task()
    assert await lease.run_sync(code) == (task, task)
    assert inner != [task]


async def test_sync_code_in_from_thread_run_is_refused(
    pool: WorkerPool, lease: Lease
) -> None:
    """A sync call that would wait for its own thread raises, and harms nothing."""

    async def coroutine() -> None:
        await lease.run_sync(pytest.fail)

    async def elsewhere() -> threading.Thread:
        return await pool.run_sync(threading.current_thread)

    def code() -> threading.Thread:
        with pytest.raises(RuntimeError, match="async_to_sync"):
            trio.from_thread.run(coroutine)
        return trio.from_thread.run(elsewhere)

    other = await lease.run_sync(code)
    assert await lease.run_sync(threading.current_thread) is not other


async def test_a_sibling_waits_while_from_thread_runs(lease: Lease) -> None:
    """A call of another task is not refused while the thread waits for Trio."""
    blocked, go_on = trio.Event(), trio.Event()

    async def coroutine() -> None:
        blocked.set()
        await go_on.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lease.run_sync, lambda: trio.from_thread.run(coroutine))
        await blocked.wait()
        nursery.start_soon(lease.run_sync, nothing)
        await wait_all_tasks_blocked()
        go_on.set()


# Memory


class Thing:
    """An object whose end can be observed."""


kept_in_context: contextvars.ContextVar[Thing] = contextvars.ContextVar("kept")


@pytest.mark.parametrize("raises", [False, True])
async def test_the_thread_lets_go_before_the_task_goes_on(
    lease: Lease, monkeypatch: pytest.MonkeyPatch, raises: bool
) -> None:
    """However slow the thread is, only the task has what the call gave and got."""
    checked = threading.Event()
    wake = Wakeups.wake

    def wake_and_stop(wakeups: Wakeups) -> None:
        wake(wakeups)
        if threading.current_thread() is thread:
            assert checked.wait(SECONDS)

    def code(given: Thing) -> Thing:
        got = Thing()
        kept = Thing()
        refs.extend(map(weakref.ref, (given, got, kept)))
        kept_in_context.set(kept)
        if raises:
            raise LookupError(got)
        return got

    async def call() -> None:
        context = contextvars.copy_context()
        with contextlib.suppress(LookupError):
            await lease.run_sync(functools.partial(code, Thing()), context=context)

    refs: list[weakref.ref[Thing]] = []
    thread = await lease.run_sync(threading.current_thread)
    monkeypatch.setattr(Wakeups, "wake", wake_and_stop)
    gc.collect()
    gc.disable()
    try:
        await call()
        await trio.lowlevel.checkpoint()  # Trio refers to what it has sent last
        assert [ref() for ref in refs] == [None, None, None]
    finally:
        checked.set()
        gc.enable()


# Waking the Trio thread


async def test_an_interrupt_of_a_thread_that_wakes_trio_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the other has posted, relying on the first, is called all the same."""
    wakeups = Wakeups(nothing)
    called = trio.Event()
    token = wakeups._token

    class Token:
        def run_sync_soon(self, fn: Callable[[], object]) -> None:
            wakeups._token = token
            wakeups.run_sync_soon(called.set)
            raise KeyboardInterrupt

    monkeypatch.setattr(wakeups, "_token", Token())
    with pytest.raises(KeyboardInterrupt):
        wakeups.wake()
    with trio.fail_after(SECONDS):
        await called.wait()


async def test_an_interrupt_of_a_thread_that_wakes_an_ended_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C is not replaced by the error that the run has ended."""
    wakeups = Wakeups(nothing)
    errors: list[BaseException] = [trio.RunFinishedError(), KeyboardInterrupt()]

    class Token:
        def run_sync_soon(self, fn: Callable[[], object]) -> None:
            raise errors.pop()

    monkeypatch.setattr(wakeups, "_token", Token())
    with pytest.raises(KeyboardInterrupt):
        wakeups.run_sync_soon(nothing)
    assert errors == []


# The end of threads


async def test_idle_threads_retire() -> None:
    """A thread that is not taken calls `on_thread_exit` itself, and ends."""
    ended: list[threading.Thread] = []
    exited = threading.Event()

    def at_exit() -> None:
        ended.append(threading.current_thread())
        exited.set()

    async with open_pool(idle_seconds=0.001, on_thread_exit=at_exit) as pool:
        with open_lease(pool) as lease:
            gate = Gate(threading.current_thread)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lease.run_sync, gate)
                await gate.entered.wait()
                gate.open()
            # A leased thread does not retire, however long it is idle.
            await trio.to_thread.run_sync(exited.wait, 0.05)
            thread = await lease.run_sync(threading.current_thread)
            assert thread is gate.thread
            assert ended == []
        await wait_set(exited)
        await join(thread)
        assert ended == [thread]
        assert pool.workers == set()
        # The next lease starts a new one.
        with open_lease(pool) as lease:
            assert await lease.run_sync(threading.current_thread) is not thread


async def test_a_thread_retires_after_a_lease_without_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However long the lease has held it, it is idle no longer than others."""
    monkeypatch.setattr("trio_asgi.threads.worker.SHORTEST_WAIT", 3600)
    async with open_pool(idle_seconds=0.001) as pool:
        with open_lease(pool) as lease:
            await lease.run_sync(nothing)
            (worker,) = pool.workers
            while not worker.waits_long:
                await trio.sleep(0.001)
        await join(worker.thread)


async def test_threads_that_retire_are_not_taken() -> None:
    """No call is lost to a thread that is about to end."""
    async with open_pool(idle_seconds=0) as pool:
        for number in range(100):
            with open_lease(pool) as lease:
                assert await lease.run_sync(lambda: number) == number  # noqa: B023


@pytest.mark.parametrize("idle_seconds", [math.inf, 1e12])
async def test_threads_that_never_retire(idle_seconds: float) -> None:
    """Threads may be kept for ever, and still end with the run."""
    async with open_pool(idle_seconds=idle_seconds) as pool:
        with open_lease(pool) as lease:
            # Do not hang if the thread cannot even wait for its work.
            lease.stop_waiting()
            assert await lease.run_sync(lambda: "ran") == "ran"


async def test_a_leased_thread_waits_without_effort() -> None:
    """However soon an idle thread ends, a leased one sleeps until there is work."""
    async with open_pool(idle_seconds=0) as pool:
        with open_lease(pool) as lease:
            before = await lease.run_sync(time.thread_time)
            # Not for ordering: this is time in which it could be busy.
            await trio.sleep(0.1)
            after = await lease.run_sync(time.thread_time)
        assert after - before < 0.05


async def test_retire_idle_ends_idle_threads_only() -> None:
    """`retire_idle` waits for idle threads to end, and leaves leased ones alone."""
    ended: list[threading.Thread] = []

    def at_exit() -> None:
        ended.append(threading.current_thread())

    async with open_pool(on_thread_exit=at_exit) as pool:
        with open_lease(pool) as lease:
            await lease.run_sync(nothing)
            leases = [Lease(pool) for _ in range(3)]
            idle = [await each.run_sync(threading.current_thread) for each in leases]
            for each in leases:
                each.release()
            await pool.retire_idle()
            assert set(ended) == set(idle)
            assert not any(thread.is_alive() for thread in idle)
            assert len(pool.workers) == 1
            await lease.run_sync(nothing)


async def test_threads_that_are_retired_cannot_be_taken(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise `retire_idle` would wait for a thread that another call has."""
    leases = [Lease(pool) for _ in range(3)]
    for lease in leases:
        await lease.run_sync(nothing)
    for lease in leases:
        lease.release()
    left: list[int] = []
    stop = Worker.stop

    def note_and_stop(worker: Worker) -> None:
        left.append(len(pool._idle))
        stop(worker)

    monkeypatch.setattr(Worker, "stop", note_and_stop)
    await pool.retire_idle()
    assert left == [0, 0, 0]
    assert pool.workers == set()


async def test_retire_idle_does_not_wait_for_ever() -> None:
    """A thread that is stuck in `on_thread_exit` is waited for a limited time."""
    go_on = threading.Event()

    def at_exit() -> None:
        assert go_on.wait(SECONDS)

    async with open_pool(on_thread_exit=at_exit, shutdown_seconds=0.01) as pool:
        await pool.run_sync(nothing)
        (worker,) = pool.workers
        await pool.retire_idle()
        assert worker.thread.is_alive()
        go_on.set()


def test_no_thread_outlives_the_run() -> None:
    """When `trio.run` returns, the threads of its pool have ended."""

    async def main() -> None:
        pool = current_pool()
        await pool.program_lease().run_sync(nothing)
        with open_lease(pool) as lease, open_lease(pool) as other:
            await other.run_sync(nothing)
            await lease.run_sync(nothing)
        assert len(worker_threads() - before) == 3

    before = worker_threads()
    for _ in range(2):
        trio.run(main)
        assert worker_threads() <= before


def test_no_thread_outlives_a_run_that_fails() -> None:
    """The threads end, too, when the main task raises."""

    async def main() -> None:
        with open_lease(current_pool()) as lease:
            await lease.run_sync(nothing)
            raise LookupError("main")

    before = worker_threads()
    with pytest.raises(LookupError, match="main"):
        trio.run(main)
    assert worker_threads() <= before


def test_no_thread_outlives_a_run_whose_tasks_are_cancelled() -> None:
    """The threads end, too, when calls are still running as all is cancelled."""

    async def call(gate: Gate[None]) -> None:
        with open_lease(current_pool()) as lease:
            await lease.run_sync(nothing)
            await lease.run_sync(gate)

    async def main() -> None:
        gate = Gate(nothing)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, gate)
            await gate.entered.wait()
            nursery.cancel_scope.cancel()
            gate.open()

    before = worker_threads()
    trio.run(main)
    assert worker_threads() <= before


def test_sync_code_after_the_main_task() -> None:
    """System tasks can call sync code in their clean-up, and leave no thread."""
    results: list[str] = []

    async def clean_up(how: str) -> None:
        pool = current_pool()
        loop = pool if how == "any thread" else pool.program_lease()
        results.append(await loop.run_sync(lambda: how))

    async def system_task(how: str, seconds: float) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                # When all tasks are blocked, the pool's own system task has ended.
                await wait_all_tasks_blocked(seconds)
                await clean_up(how)
                await clean_up(how)

    async def main() -> None:
        await current_pool().program_lease().run_sync(nothing)
        trio.lowlevel.spawn_system_task(system_task, "any thread", 0.02)
        trio.lowlevel.spawn_system_task(system_task, "program's thread", 0.03)
        await wait_all_tasks_blocked()

    before = worker_threads()
    trio.run(main)
    assert sorted(results) == ["any thread"] * 2 + ["program's thread"] * 2
    assert_ending(worker_threads() - before)


def test_a_thread_that_comes_back_after_the_main_task() -> None:
    """The lease of a system task that ends last does not leave its thread behind."""

    async def system_task(lease: Lease, started: trio.Event) -> None:
        try:
            await lease.run_sync(nothing)
            started.set()
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked(0.02)
                await lease.run_sync(nothing)
                lease.release()

    async def main() -> None:
        started = trio.Event()
        trio.lowlevel.spawn_system_task(system_task, Lease(current_pool()), started)
        await started.wait()

    before = worker_threads()
    trio.run(main)
    assert_ending(worker_threads() - before)


@pytest.mark.parametrize("used_before", [True, False])
def test_sync_code_in_the_last_async_generators(used_before: bool) -> None:
    """An async generator that Trio closes at the very end can call sync code."""
    results: list[str] = []

    async def generate() -> AsyncIterator[None]:
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                pool = current_pool()
                results.append(await pool.run_sync(lambda: "any"))
                results.append(await pool.program_lease().run_sync(lambda: "program"))

    async def main() -> None:
        if used_before:
            await current_pool().run_sync(nothing)
        generators.append(generate())
        await generators[0].__anext__()

    generators: list[AsyncIterator[None]] = []
    before = worker_threads()
    trio.run(main)
    assert results == ["any", "program"]
    assert_ending(worker_threads() - before)


# All together


class Visitor:
    """One of many requests, which nests and fails at random."""

    def __init__(self, name: str, lease: Lease) -> None:
        self.ended = "cancelled"
        self.thread: threading.Thread | None = None
        self.lease = lease
        self._name = name
        self._random = random.Random(name)  # noqa: S311

    def sync_code(self, depth: int) -> int:
        """Check where it runs, and continue in some way."""
        self.thread = self.thread or threading.current_thread()
        assert threading.current_thread() is self.thread
        assert variable.get() == self._name
        choice = self._random.random()
        if choice < 0.03:
            raise LookupError
        if depth == 0 or choice < 0.2:
            return 1
        if choice < 0.5:
            return trio.from_thread.run(self.only_async)
        return in_task(functools.partial(self.coroutine, depth - 1))

    async def only_async(self) -> int:
        """Check where it runs."""
        assert variable.get() == self._name
        await trio.lowlevel.checkpoint()
        return 1

    async def coroutine(self, depth: int) -> int:
        """Check where it runs, and run sync code in one or two tasks."""
        assert variable.get() == self._name
        total = failed = 0

        async def child() -> None:
            nonlocal total, failed
            try:
                total += await in_thread(lambda: self.sync_code(depth))
            except LookupError:
                failed += 1

        async with trio.open_nursery() as nursery:
            for _ in range(self._random.choice([1, 1, 2])):
                nursery.start_soon(child)
            if self._random.random() < 0.05:
                nursery.cancel_scope.cancel()
        if failed:
            raise LookupError
        return total

    async def run(self) -> None:
        """Run all of it, or be cancelled meanwhile."""
        variable.set(self._name)
        current_loop.set(self.lease)
        steps = self._random.choice([None, self._random.randrange(20)])
        async with trio.open_nursery() as nursery:
            if steps is not None:
                nursery.start_soon(cancel_later, nursery.cancel_scope, steps)
            try:
                await self.coroutine(4)
                await self.coroutine(4)
                self.ended = "well"
            except LookupError:
                self.ended = "failed"
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("seed", range(3))
async def test_many_leases_nest_at_random(seed: int) -> None:
    """Forty leases nest, fan out, fail and are cancelled, without any confusion."""
    async with open_pool(threads=7) as pool:
        visitors = [Visitor(f"{seed} {number}", Lease(pool)) for number in range(40)]
        async with trio.open_nursery() as nursery:
            for visitor in visitors:
                nursery.start_soon(visitor.run)
        assert not any(visitor.lease.abandoned for visitor in visitors)
        for visitor in visitors:
            visitor.lease.release()
    threads = [visitor.thread for visitor in visitors if visitor.thread]
    assert len(set(threads)) == len(threads)
    ended = {visitor.ended for visitor in visitors}
    assert ended == {"well", "failed", "cancelled"}


def test_threads_may_end_while_the_run_looks_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They leave the pool's set in their own time, also while the run goes over it."""
    threads: list[threading.Thread] = []
    may_end = threading.Event()

    def left(_worker: Worker) -> bool:
        may_end.set()
        for thread in threads:
            thread.join()
        return False

    ignore = lambda _worker, _value: None  # noqa: E731
    monkeypatch.setattr(Worker, "left", property(left, ignore), raising=False)

    async def main() -> None:
        pool = current_pool()
        pool.shutdown_seconds = 0
        pool.on_thread_exit = may_end.wait
        both = threading.Barrier(2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.run_sync, both.wait)
            nursery.start_soon(pool.run_sync, both.wait)
        threads.extend(worker.thread for worker in list(pool.workers))
        assert len(threads) == 2

    trio.run(main)
    assert not any(thread.is_alive() for thread in threads)

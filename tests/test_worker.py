"""Worker threads: one per lease, in order, and back again when they are done."""

from __future__ import annotations

import contextvars
import functools
import gc
import math
import os
import random
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import weakref
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_asgi._call import calling, current_loop, run_async
from trio_asgi._worker import Detached, Lease, WorkerPool, current_pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

T = TypeVar("T")

#: When a test that waits has failed.
SECONDS = 10

variable: contextvars.ContextVar[str] = contextvars.ContextVar(
    "variable", default="default"
)


@asynccontextmanager
async def open_pool(**options: Any) -> AsyncIterator[WorkerPool]:
    """Open a pool of a test's own; its threads have ended when the block has."""
    pool = WorkerPool(**options)
    try:
        with trio.fail_after(SECONDS):
            yield pool
    finally:
        with trio.CancelScope(shield=True):
            if pool._program_lease is not None:
                pool._program_lease.release()
            await pool.retire_idle()
    for worker in list(pool.workers):
        await join(worker.thread)
    assert pool.workers == set()
    assert pool.limiter.borrowed_tokens == 0


@pytest.fixture
async def pool() -> AsyncIterator[WorkerPool]:
    """Provide a pool, and cancel a test that takes too long."""

    async def give_up() -> None:
        await trio.sleep(SECONDS)
        pytest.fail("this takes too long")

    async with trio.open_nursery() as nursery, open_pool() as pool:
        nursery.start_soon(give_up)
        yield pool
        nursery.cancel_scope.cancel()


@pytest.fixture
async def lease(pool: WorkerPool) -> AsyncIterator[Lease]:
    """Provide a lease of that pool."""
    with open_lease(pool) as lease:
        yield lease


@contextmanager
def open_lease(pool: WorkerPool) -> Iterator[Lease]:
    """Take out a lease for a block."""
    lease = Lease(pool)
    try:
        yield lease
    finally:
        lease.release()


class Gate(Generic[T]):
    """Sync code that says when it runs, waits to be let go, and then does its work."""

    def __init__(self, work: Callable[[], T]) -> None:
        self.entered = trio.Event()
        #: Where the code runs, or ran.
        self.thread: threading.Thread
        self._work = work
        self._open = threading.Event()

    def __call__(self) -> T:
        self.thread = threading.current_thread()
        trio.from_thread.run_sync(self.entered.set)
        assert self._open.wait(SECONDS)
        return self._work()

    def open(self) -> None:
        """Let the code go on."""
        self._open.set()


def nothing() -> None:
    """Be the work of a gate that has none."""


def in_task(afn: Callable[[], Awaitable[T]]) -> T:
    """Run a coroutine function in the task that waits for this thread."""
    result, _ = run_async(afn)
    try:
        return result.unwrap()
    finally:
        # An error's traceback holds this frame: leave no cycle behind.
        del result


async def in_thread(fn: Callable[[], T]) -> T:
    """Run sync code where the current task's sync code belongs."""
    loop = current_loop.get()
    assert loop is not None
    return await loop.run_sync(fn)


async def join(thread: threading.Thread) -> None:
    """Wait for a thread to end."""
    await trio.to_thread.run_sync(thread.join, SECONDS)
    assert not thread.is_alive()


async def wait_set(event: threading.Event) -> None:
    """Wait for what a thread does that no task waits for."""
    assert await trio.to_thread.run_sync(event.wait, SECONDS)


async def leave(lease: Lease, gate: Gate[Any]) -> None:
    """Have a gate's code started, and leave it when it runs."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lease.run_sync, gate)
        await gate.entered.wait()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await wait_all_tasks_blocked()
            assert nursery.child_tasks, "the code was left too early"
            lease.stop_waiting()
    assert lease.abandoned


def worker_threads() -> set[threading.Thread]:
    """Return the worker threads there are now, of any pool."""
    return {
        thread
        for thread in threading.enumerate()
        if thread.name.startswith("trio-asgi-worker")
    }


def assert_ending(threads: set[threading.Thread]) -> None:
    """Check that threads that nobody waited for are at their end, not just idle."""
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()


def error_of(fn: Callable[..., object], *args: Any) -> type[BaseException] | None:
    """Return the type of what a call raises."""
    try:
        fn(*args)
    except BaseException as error:
        return type(error)
    return None


def run_script(script: str, *args: str) -> str:
    """Run a script in a Python of its own, and return what it prints."""
    # Who starts the tests in the background may have had SIGINT ignored.
    first = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    done = subprocess.run(
        [sys.executable, "-c", first + textwrap.dedent(script), *args],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=6 * SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


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
    """Leases take idle threads, the youngest in idleness first."""
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
        # Two can run at once; whether a third could is seen while they meet.
        barrier.wait()
        with lock:
            running -= 1

    async with open_pool(threads=2) as pool:
        leases = [Lease(pool) for _ in range(6)]
        for lease in leases:
            await lease.run_sync(nothing)
        assert len(pool.workers) == 6
        assert pool.limiter.borrowed_tokens == 0
        async with trio.open_nursery() as nursery:
            for lease in leases:
                nursery.start_soon(lease.run_sync, call)
        for lease in leases:
            lease.release()
    assert most == 2


async def test_tokens_are_first_come_first_served() -> None:
    """Calls that wait for a token get one in the order of their asking."""
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


# Cancellation of those who wait


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
                assert pool.limiter.statistics().tasks_waiting == 0
                assert not lease.has_thread
                assert lease.running is None
                gate.open()
            assert await lease.run_sync(lambda: "free again") == "free again"


async def wait_all_tasks_blocked_and(then: Callable[[], object]) -> None:
    """Do something as soon as everybody waits."""
    await wait_all_tasks_blocked()
    then()


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
        # When this has come through, the task waits again, and has been told.
        trio.from_thread.run_sync(nothing)
        for _ in range(2):
            with pytest.raises(trio.Cancelled):
                trio.from_thread.check_cancelled()
        told.append("cancelled")
        trio.from_thread.check_cancelled()

    with trio.CancelScope() as scope:
        await lease.run_sync(code)
    assert scope.cancelled_caught
    # The next call is not told of the cancellation of the last one.
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


# Re-entry


async def test_run_async_runs_in_the_waiting_task(lease: Lease) -> None:
    """A coroutine runs in the waiting task, with the context of the sync code."""

    async def coroutine() -> tuple[trio.lowlevel.Task, str]:
        before = variable.get()
        variable.set("coroutine")
        await trio.lowlevel.checkpoint()
        return trio.lowlevel.current_task(), before

    def code() -> tuple[trio.lowlevel.Task, str, str | None]:
        variable.set("thread")
        result, context = run_async(coroutine)
        return (*result.unwrap(), context.get(variable))

    variable.set("task")
    outcome = await lease.run_sync(code)
    assert outcome == (trio.lowlevel.current_task(), "thread", "coroutine")
    assert variable.get() == "task"
    assert current_loop.get() is None


@pytest.mark.parametrize("threads", [1, 40])
async def test_turns_nest_to_any_depth(threads: int) -> None:
    """Sync code and coroutines take turns in one thread and one task, ten deep."""
    seen: list[tuple[threading.Thread, trio.lowlevel.Task]] = []

    def sync_code(depth: int) -> int:
        task = trio.from_thread.run_sync(trio.lowlevel.current_task)
        seen.append((threading.current_thread(), task))
        if depth == 0:
            return 0
        return 1 + in_task(functools.partial(coroutine, depth))

    async def coroutine(depth: int) -> int:
        first = await in_thread(lambda: sync_code(depth - 1))
        # The loop is still there for a second call.
        assert await in_thread(lambda: "again") == "again"
        return first

    async with open_pool(threads=threads) as pool:
        with open_lease(pool) as lease:
            assert await lease.run_sync(lambda: sync_code(10)) == 10
            thread = await lease.run_sync(threading.current_thread)
    assert seen == [(thread, trio.lowlevel.current_task())] * 11


async def test_a_thread_that_waits_for_a_coroutine_holds_no_token() -> None:
    """While `run_async` waits, others use the token, and it is taken again after."""
    async with open_pool(threads=1) as pool:
        borrowed: list[int] = []
        gate = Gate(nothing)
        done = trio.Event()

        async def coroutine() -> None:
            borrowed.append(pool.limiter.borrowed_tokens)
            await pool.run_sync(nothing)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pool.run_sync, gate)
                await gate.entered.wait()
                nursery.start_soon(wait_all_tasks_blocked_and, gate.open)
            done.set()

        def code() -> None:
            in_task(coroutine)
            borrowed.append(pool.limiter.borrowed_tokens)

        with open_lease(pool) as lease:
            await lease.run_sync(code)
        assert done.is_set()
        assert borrowed == [0, 1]


async def test_the_token_is_waited_for_before_the_thread_goes_on() -> None:
    """The thread goes on behind a coroutine only when a token is free again."""
    async with open_pool(threads=1) as pool:
        other = Gate(nothing)
        order: list[str] = []

        async def coroutine() -> None:
            nursery.start_soon(pool.run_sync, other)
            await other.entered.wait()

        def code() -> None:
            in_task(coroutine)
            order.append("thread goes on")

        with open_lease(pool) as lease:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lease.run_sync, code)
                await other.entered.wait()
                await wait_all_tasks_blocked()
                order.append("other ends")
                other.open()
    assert order == ["other ends", "thread goes on"]


async def test_the_end_of_a_coroutine_does_not_hold_what_its_siblings_need() -> None:
    """A coroutine that ends keeps no token from a task that calls in its loop."""
    order: list[str] = []
    async with open_pool(threads=1) as pool:
        with open_lease(pool) as lease:
            other = Gate(nothing)
            started, call_now, end = trio.Event(), trio.Event(), trio.Event()

            async def sibling() -> None:
                await call_now.wait()
                await in_thread(lambda: order.append("sibling"))

            async def coroutine() -> None:
                tasks.start_soon(sibling)
                started.set()
                await end.wait()

            def code() -> None:
                in_task(coroutine)
                order.append("thread goes on")

            async def give_up() -> None:
                await trio.sleep(SECONDS / 2)
                pool.limiter.total_tokens = 2
                pytest.fail("everybody waits for everybody")

            async with trio.open_nursery() as watch:
                watch.start_soon(give_up)
                async with trio.open_nursery() as tasks:
                    tasks.start_soon(lease.run_sync, code)
                    await started.wait()
                    tasks.start_soon(pool.run_sync, other)
                    await other.entered.wait()
                    end.set()
                    await wait_all_tasks_blocked()
                    call_now.set()
                    await wait_all_tasks_blocked()
                    other.open()
                watch.cancel_scope.cancel()
    assert sorted(order) == ["sibling", "thread goes on"]


async def test_siblings_below_a_coroutine_queue_in_its_loop(lease: Lease) -> None:
    """Tasks that a coroutine starts call sync code in the waiting thread, in order."""
    order: list[int] = []
    tasks: set[trio.lowlevel.Task] = set()
    threads: set[threading.Thread] = set()

    def nested(number: int) -> None:
        order.append(number)
        threads.add(threading.current_thread())
        tasks.add(trio.from_thread.run_sync(trio.lowlevel.current_task))

    async def coroutine() -> None:
        gate = Gate(nothing)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, gate)
            await gate.entered.wait()
            for number in range(5):
                nursery.start_soon(in_thread, functools.partial(nested, number))
                await wait_all_tasks_blocked()
            gate.open()

    await lease.run_sync(lambda: in_task(coroutine))
    assert threads == {await lease.run_sync(threading.current_thread)}
    assert order == [0, 1, 2, 3, 4]
    assert len(tasks) == 5


async def test_siblings_turn_about_themselves() -> None:
    """Sync code of sibling tasks takes turns with their coroutines, to any depth."""

    def down(depth: int) -> set[threading.Thread]:
        here = {threading.current_thread()}
        if depth == 0:
            return here
        return here | in_task(functools.partial(fan_out, depth - 1))

    async def fan_out(depth: int) -> set[threading.Thread]:
        threads: set[threading.Thread] = set()

        async def child() -> None:
            threads.update(await in_thread(lambda: down(depth)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
            nursery.start_soon(child)
        return threads

    async with open_pool(threads=1) as pool:
        with open_lease(pool) as lease:
            assert await lease.run_sync(lambda: down(5)) == {
                await lease.run_sync(threading.current_thread)
            }


async def test_a_task_that_outlives_a_coroutine_uses_its_parent(lease: Lease) -> None:
    """When the loop has closed, its tasks call sync code in the lease's thread."""
    order: list[str] = []
    gate = Gate(lambda: order.append("call"))
    threads: list[threading.Thread] = []

    async def survivor() -> None:
        await gate.entered.wait()
        threads.append(await in_thread(threading.current_thread))
        order.append("survivor")

    async def coroutine() -> None:
        outside.start_soon(survivor)

    def code() -> None:
        in_task(coroutine)
        gate()

    async with trio.open_nursery() as outside:
        outside.start_soon(lease.run_sync, code)
        await gate.entered.wait()
        await wait_all_tasks_blocked()
        assert order == []
        gate.open()
    assert threads == [await lease.run_sync(threading.current_thread)]
    assert order == ["call", "survivor"]


async def test_a_call_that_waits_when_the_loop_closes_is_made(lease: Lease) -> None:
    """Tasks in the queue of a coroutine's loop are served before the thread leaves."""
    order: list[str] = []
    gate = Gate(lambda: order.append("first"))
    started = trio.Event()

    async def coroutine() -> None:
        outside.start_soon(in_thread, gate)
        await gate.entered.wait()
        outside.start_soon(in_thread, lambda: order.append("second"))
        await wait_all_tasks_blocked()
        started.set()

    def code() -> None:
        in_task(coroutine)
        order.append("call")

    async with trio.open_nursery() as outside:
        outside.start_soon(lease.run_sync, code)
        await started.wait()
        await wait_all_tasks_blocked()
        gate.open()
    assert order == ["first", "second", "call"]


async def test_a_task_that_outlives_its_lease_uses_the_programs_thread(
    pool: WorkerPool,
) -> None:
    """After the release, calls go to one thread that the program keeps for them."""
    with open_lease(pool) as lease, open_lease(pool) as other:
        own = await lease.run_sync(threading.current_thread)
        lease.release()
        # Somebody else has that thread now.
        assert await other.run_sync(threading.current_thread) is own
        program = await lease.run_sync(threading.current_thread)
        assert program is not own
        assert await lease.run_sync(threading.current_thread) is program
        loop = pool.program_lease()
        assert await loop.run_sync(threading.current_thread) is program
        assert not lease.has_thread


async def test_a_call_that_waits_when_its_lease_is_released(pool: WorkerPool) -> None:
    """A call in the queue of a lease that is released runs in the program's thread."""
    threads: list[threading.Thread] = []
    lease = Lease(pool)
    gate = Gate(nothing)

    async def last_call() -> None:
        await lease.run_sync(gate)
        lease.release()

    async def survivor() -> None:
        threads.append(await lease.run_sync(threading.current_thread))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(last_call)
        await gate.entered.wait()
        nursery.start_soon(survivor)
        await wait_all_tasks_blocked()
        gate.open()
    program = await pool.program_lease().run_sync(threading.current_thread)
    assert threads == [program]


async def test_a_call_that_waits_for_a_token_when_its_lease_is_released() -> None:
    """A lease that is released while a call waits for a token takes no thread."""
    async with open_pool(threads=1) as pool:
        lease = Lease(pool)
        gate = Gate(nothing)
        threads: list[threading.Thread] = []

        async def survivor() -> None:
            threads.append(await lease.run_sync(threading.current_thread))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.run_sync, gate)
            await gate.entered.wait()
            nursery.start_soon(survivor)
            await wait_all_tasks_blocked()
            lease.release()
            gate.open()
        assert not lease.has_thread
        program = await pool.program_lease().run_sync(threading.current_thread)
        assert threads == [program]
        # Else its thread would never end.
        lease.release()


async def test_a_busy_thread_is_not_given_to_another_lease(pool: WorkerPool) -> None:
    """A thread whose lease is released meanwhile is free when its call has ended."""
    lease = Lease(pool)
    gate = Gate(nothing)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lease.run_sync, gate)
        await gate.entered.wait()
        lease.release()
        with open_lease(pool) as other, trio.move_on_after(SECONDS / 4) as patience:
            nursery.start_soon(wait_all_tasks_blocked_and, nothing)
            thread = await other.run_sync(threading.current_thread)
            assert thread is not gate.thread
        gate.open()
    assert not patience.cancelled_caught


async def test_a_cancellation_passes_through_both_directions(lease: Lease) -> None:
    """`Cancelled` comes out of `run_async` in sync code, and goes on to its scope."""
    order: list[str] = []

    async def coroutine() -> None:
        scope.cancel()
        try:
            await trio.sleep_forever()
        finally:
            order.append("coroutine")

    def inner() -> None:
        try:
            in_task(coroutine)
        except trio.Cancelled:
            order.append("inner sync code")
            raise

    def outer() -> None:
        try:
            in_task(functools.partial(in_thread, inner))
        finally:
            order.append("outer sync code")

    with trio.CancelScope() as scope:
        await lease.run_sync(outer)
        pytest.fail("the cancellation got lost")
    assert scope.cancelled_caught
    assert await lease.run_sync(lambda: "usable") == "usable"
    assert order == ["coroutine", "inner sync code", "outer sync code"]


async def test_a_scope_in_the_coroutine_catches_its_own_cancellation(
    lease: Lease,
) -> None:
    """A scope inside the coroutine is no business of the sync code around it."""

    async def coroutine() -> str:
        with trio.move_on_after(0):
            await in_thread(pytest.fail)
        return "went on"

    assert await lease.run_sync(lambda: in_task(coroutine)) == "went on"
    await lease.run_sync(trio.from_thread.check_cancelled)


# Errors


async def test_errors_cross_with_their_traceback(lease: Lease) -> None:
    """An error passes through threads and tasks, and shows all of its way."""

    def raiser() -> None:
        raise LookupError("at the bottom")

    async def coroutine() -> None:
        await in_thread(raiser)

    def sync_code() -> None:
        in_task(coroutine)

    with pytest.raises(LookupError, match="at the bottom") as caught:
        await lease.run_sync(sync_code)
    names = [frame.name for frame in traceback.extract_tb(caught.tb)]
    ours = [name for name in names if name in ("sync_code", "coroutine", "raiser")]
    assert ours == ["sync_code", "coroutine", "raiser"]
    assert caught.value.__context__ is None
    assert await lease.run_sync(lambda: "usable") == "usable"


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), StopAsyncIteration()]
)
async def test_any_exception_crosses(lease: Lease, error: BaseException) -> None:
    """What is no ordinary error ends neither the thread nor the lease."""

    def raiser() -> None:
        raise error

    thread = await lease.run_sync(threading.current_thread)
    with pytest.raises(type(error)) as caught:
        await lease.run_sync(raiser)
    assert caught.value is error
    assert await lease.run_sync(threading.current_thread) is thread


async def test_a_thread_that_cannot_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the system has no thread left the call raises that, and takes nothing."""

    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async with open_pool(threads=1) as pool:
        with open_lease(pool) as lease:
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", start)
                with pytest.raises(RuntimeError, match="can't start"):
                    await lease.run_sync(nothing)
            assert pool.limiter.borrowed_tokens == 0
            assert lease.running is None
            await lease.run_sync(nothing)


async def test_the_context_of_a_call(pool: WorkerPool, lease: Lease) -> None:
    """A call runs in the context that it is given, or else in a copy of the task's."""

    def change() -> str:
        before = variable.get()
        variable.set("changed")
        return before

    variable.set("task")
    assert await lease.run_sync(change) == "task"
    assert variable.get() == "task"
    # An empty context is one, too.
    context = contextvars.Context()
    assert await lease.run_sync(change, context=context) == "default"
    assert await lease.run_sync(variable.get, context=context) == "changed"
    assert await pool.run_sync(variable.get, context=context) == "changed"
    assert variable.get() == "task"


# What is left behind in memory


class Thing:
    """Something whose end can be observed."""


class ThingError(Exception):
    """An error whose end can be observed."""


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Let objects end by their last reference alone."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _return(thing: Thing) -> Thing:
    return thing


def _raise(thing: Thing) -> Thing:
    raise ThingError(thing)


def _return_through_coroutine(thing: Thing) -> Thing:
    async def coroutine() -> Thing:
        return await in_thread(lambda: thing)

    return in_task(coroutine)


def _raise_through_coroutine(thing: Thing) -> Thing:
    async def coroutine() -> Thing:
        return await in_thread(lambda: _raise(thing))

    return in_task(coroutine)


@pytest.mark.parametrize(
    "fn", [_return, _raise, _return_through_coroutine, _raise_through_coroutine]
)
async def test_a_call_leaves_nothing_in_memory(
    lease: Lease, fn: Callable[[Thing], Thing]
) -> None:
    """Arguments, results and errors are gone with the call; no cycle keeps them."""

    async def call() -> list[weakref.ref[Any]]:
        thing = Thing()
        refs: list[weakref.ref[Any]] = [weakref.ref(thing)]
        try:
            result = await lease.run_sync(functools.partial(fn, thing))
        except ThingError as error:
            refs.append(weakref.ref(error))
        else:
            assert result is thing
        return refs

    with no_garbage_collection():
        refs = await call()
        # The thread lets go of a call when it waits for the next one.
        for _ in range(2):
            await lease.run_sync(nothing)
        assert [ref() for ref in refs] == [None] * len(refs)


async def test_arguments_are_gone_when_the_call_returns(lease: Lease) -> None:
    """The thread holds on to nothing of a call when its task goes on."""

    async def call() -> weakref.ref[Thing]:
        thing = Thing()
        ref = weakref.ref(thing)
        call = functools.partial(id, thing)
        del thing
        await lease.run_sync(call)
        return ref

    with no_garbage_collection():
        for _ in range(50):
            assert (await call())() is None


# The end of threads


async def test_idle_threads_retire() -> None:
    """A thread that nobody takes calls `on_thread_exit` itself, and ends."""
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
            # Not waited for, if the thread cannot even wait for its work.
            lease.stop_waiting()
            assert await lease.run_sync(lambda: "ran") == "ran"


async def test_a_leased_thread_waits_without_effort() -> None:
    """However soon an idle thread ends, a leased one sleeps until there is work."""
    async with open_pool(idle_seconds=0) as pool:
        with open_lease(pool) as lease:
            before = await lease.run_sync(time.thread_time)
            # Not to order anything: time in which it could be busy.
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
                # The pool's own system task has ended when nothing moves any more.
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
    """A lease of a system task that ends last does not leave its thread behind."""

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


# Calls that are left


async def test_a_call_can_be_left() -> None:
    """After `stop_waiting`, `last` runs once, behind the call, and the thread ends."""
    order: list[tuple[str, threading.Thread]] = []
    ended = threading.Event()

    def note(what: str) -> None:
        order.append((what, threading.current_thread()))

    async with open_pool(on_thread_exit=ended.set) as pool:
        lease = Lease(pool)
        gate = Gate(lambda: note("call"))
        await leave(lease, gate)
        lease.release(last=lambda: note("last"))
        lease.release(last=None)
        assert order == []
        with open_lease(pool) as other:
            thread = await other.run_sync(threading.current_thread)
            assert thread is not gate.thread
        gate.open()
        await join(gate.thread)
        assert order == [("call", gate.thread), ("last", gate.thread)]
        assert ended.is_set()
        assert [worker.thread for worker in pool.workers] == [thread]


async def test_a_call_that_was_left_and_ended_meanwhile(pool: WorkerPool) -> None:
    """A thread that was left ends after `last`, though nothing runs in it any more."""
    ran = threading.Event()
    lease = Lease(pool)
    gate = Gate(ran.set)
    await leave(lease, gate)
    gate.open()
    await wait_set(ran)
    last = threading.Event()
    lease.release(last=last.set)
    await wait_set(last)
    await join(gate.thread)


async def test_last_fails(pool: WorkerPool, caplog: pytest.LogCaptureFixture) -> None:
    """An error in `last` is logged, and the thread ends as it should."""

    def last() -> None:
        raise LookupError("in last")

    lease = Lease(pool)
    gate = Gate(nothing)
    await leave(lease, gate)
    lease.release(last=last)
    gate.open()
    await join(gate.thread)
    (record,) = caplog.records
    assert record.name == "trio_asgi"
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], LookupError)


async def test_stop_waiting_waits_for_whom_nobody_cancelled(pool: WorkerPool) -> None:
    """An impatient lease leaves only the calls of cancelled tasks, at once."""
    results: list[str] = []
    lease = Lease(pool)
    lease.stop_waiting()
    gate = Gate(lambda: "result")

    async def call() -> None:
        results.append(await lease.run_sync(gate))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await gate.entered.wait()
        lease.stop_waiting()
        await wait_all_tasks_blocked()
        gate.open()
    seen = [lease.abandoned]
    assert results == ["result"]

    second = Gate(nothing)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lease.run_sync, second)
        await second.entered.wait()
        nursery.cancel_scope.cancel()
    assert [*seen, lease.abandoned] == [False, True]
    lease.release()
    second.open()


async def test_stop_waiting_for_code_in_a_shield(pool: WorkerPool) -> None:
    """A call under a shield is not left, for it is not cancelled."""
    lease = Lease(pool)
    gate = Gate(nothing)

    async def call() -> None:
        with trio.CancelScope(shield=True):
            await lease.run_sync(gate)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await gate.entered.wait()
        nursery.cancel_scope.cancel()
        lease.stop_waiting()
        await trio.lowlevel.cancel_shielded_checkpoint()
        gate.open()
    assert not lease.abandoned
    lease.release()


async def test_stop_waiting_for_a_task_that_was_just_woken(pool: WorkerPool) -> None:
    """A task that has its result already is not woken a second time."""
    results: list[str] = []
    lease = Lease(pool)
    gate = Gate(lambda: "result")
    told = threading.Event()

    async def call() -> None:
        results.append(await lease.run_sync(gate))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await gate.entered.wait()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await wait_all_tasks_blocked()
        # While Trio stands still, the result gets into its queue; and right behind
        # it, what stops the waiting.
        (worker,) = pool.workers
        gate.open()
        worker.inbox.put(Detached(contextvars.copy_context(), told.set))
        assert told.wait(SECONDS)
        trio.lowlevel.current_trio_token().run_sync_soon(lease.stop_waiting)
    assert results == ["result"]
    assert not lease.abandoned
    lease.release()


async def test_a_nested_call_can_be_left(pool: WorkerPool) -> None:
    """Leaving sync code below a coroutine leaves all that the thread runs."""
    order: list[str] = []

    async def coroutine() -> None:
        try:
            await in_thread(gate)
        except trio.Cancelled:
            order.append("coroutine cancelled")
            raise

    def code() -> None:
        try:
            in_task(coroutine)
        except trio.Cancelled:
            order.append("code cancelled")
            raise

    lease = Lease(pool)
    gate = Gate(lambda: order.append("gate opened"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lease.run_sync, code)
        await gate.entered.wait()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await wait_all_tasks_blocked()
            lease.stop_waiting()
    assert lease.abandoned
    assert order == ["coroutine cancelled"]
    lease.release(last=lambda: order.append("last"))
    gate.open()
    await join(gate.thread)
    assert order == ["coroutine cancelled", "gate opened", "code cancelled", "last"]


async def test_code_that_was_left_cannot_come_back(pool: WorkerPool) -> None:
    """Code that nobody waits for gets an error from all that needs its task."""
    errors: list[type[BaseException] | None] = []

    async def coroutine() -> None:
        pytest.fail("ran without its task")

    def come_back() -> None:
        errors.append(error_of(trio.from_thread.run_sync, pytest.fail))
        errors.append(error_of(trio.from_thread.run, coroutine))
        errors.append(error_of(in_task, coroutine))
        errors.append(error_of(trio.from_thread.check_cancelled))

    lease = Lease(pool)
    gate = Gate(come_back)
    await leave(lease, gate)
    lease.release()
    gate.open()
    await join(gate.thread)
    assert errors == [
        trio.RunFinishedError,
        trio.RunFinishedError,
        trio.RunFinishedError,
        trio.Cancelled,
    ]


@pytest.mark.parametrize(
    ("how", "answer"),
    [
        ("from_thread.run_sync", None),
        ("from_thread.run", trio.Cancelled),
        ("run_async", trio.Cancelled),
    ],
)
async def test_a_message_that_was_sent_before_the_task_leaves(
    pool: WorkerPool, how: str, answer: type[BaseException] | None
) -> None:
    """A task answers the message that is on its way to it, and leaves only then."""
    answers: list[type[BaseException] | None] = []
    go_on = threading.Event()

    def send() -> None:
        if how == "from_thread.run_sync":
            answers.append(error_of(trio.from_thread.run_sync, nothing))
        elif how == "from_thread.run":
            answers.append(error_of(trio.from_thread.run, trio.sleep_forever))
        else:
            answers.append(error_of(in_task, trio.sleep_forever))
        assert go_on.wait(SECONDS)

    lease = Lease(pool)
    gate = Gate(send)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lease.run_sync, gate)
        await gate.entered.wait()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await wait_all_tasks_blocked()
        # The Trio thread stands still until the message is in its queue.
        gate.open()
        wait_until_sent(trio.lowlevel.current_trio_token())
        lease.stop_waiting()
        seen = [lease.abandoned]
    assert [*seen, lease.abandoned] == [False, True]
    lease.release()
    go_on.set()
    await join(gate.thread)
    assert answers == [answer]


def wait_until_sent(token: trio.lowlevel.TrioToken) -> None:
    """Block the Trio thread until a callback waits for it."""
    tick = threading.Event()
    for _ in range(SECONDS * 1000):
        if token._reentry_queue.size():
            return
        tick.wait(0.001)
    pytest.fail("nothing was sent")


def test_code_that_is_left_until_the_run_is_over() -> None:
    """Code that runs on after `trio.run` gets errors, then `last` runs all the same."""
    errors: list[type[BaseException] | None] = []
    order: list[str] = []

    async def coroutine() -> None:
        pytest.fail("ran without its task")

    def come_back() -> None:
        errors.append(error_of(trio.from_thread.run_sync, pytest.fail))
        errors.append(error_of(trio.from_thread.run, coroutine))
        errors.append(error_of(in_task, coroutine))
        order.append("call")

    async def main() -> Gate[None]:
        gate = Gate(come_back)
        lease = Lease(current_pool())
        await leave(lease, gate)
        lease.release(last=lambda: order.append("last"))
        return gate

    gate = trio.run(main)
    gate.open()
    gate.thread.join(SECONDS)
    assert not gate.thread.is_alive()
    assert errors == [trio.RunFinishedError] * 3
    assert order == ["call", "last"]


@pytest.mark.parametrize(
    "how", ["from_thread.run_sync", "from_thread.run", "run_async"]
)
def test_code_that_comes_back_while_the_run_closes(how: str) -> None:
    """Code that was left can call when no task can be started any more."""
    errors: list[type[BaseException] | None] = []

    async def coroutine() -> None:
        pytest.fail("ran without its task")

    def come_back() -> None:
        if how == "from_thread.run_sync":
            errors.append(error_of(trio.from_thread.run_sync, pytest.fail))
        elif how == "from_thread.run":
            errors.append(error_of(trio.from_thread.run, coroutine))
        else:
            errors.append(error_of(in_task, coroutine))

    async def close_last(gate: Gate[None]) -> AsyncIterator[None]:
        try:
            yield
        finally:
            # Trio has closed its system nursery, and finalizes async generators.
            gate.open()
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(gate.thread.join, SECONDS / 2)

    async def main() -> Gate[None]:
        gate = Gate(come_back)
        lease = Lease(current_pool())
        await leave(lease, gate)
        lease.release()
        generators.append(close_last(gate))
        await generators[0].__anext__()
        return gate

    generators: list[AsyncIterator[None]] = []
    gate = trio.run(main)
    assert not gate.thread.is_alive()
    assert errors == [trio.RunFinishedError]


async def test_a_patient_lease_can_have_a_last_call(pool: WorkerPool) -> None:
    """`last` runs in the thread before it is given back, and is not waited for."""
    lease = Lease(pool)
    gate_thread = await lease.run_sync(threading.current_thread)
    entered, go_on = threading.Event(), threading.Event()
    seen: list[tuple[threading.Thread, str]] = []

    def last() -> None:
        entered.set()
        assert go_on.wait(SECONDS)
        seen.append((threading.current_thread(), variable.get()))

    variable.set("task")
    lease.release(last=last)
    await wait_set(entered)
    assert seen == []
    go_on.set()
    with open_lease(pool) as other:
        assert await other.run_sync(threading.current_thread) is gate_thread
    assert seen == [(gate_thread, "task")]


# The process


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_belongs_to_no_call() -> None:
    """In a child that sync code forks, the thread is no worker's, and not Trio's."""
    output = run_script(
        """
        import os, sys, trio, warnings
        from trio_asgi._call import calling, in_trio_thread
        from trio_asgi._worker import current_pool

        # A process with threads should not be forked, says Python 3.12.
        warnings.simplefilter("ignore", DeprecationWarning)

        def code():
            assert calling() is not None and in_trio_thread()
            child = os.fork()
            if child == 0:
                free = calling() is None and not in_trio_thread()
                try:
                    trio.from_thread.run_sync(print)
                except RuntimeError:
                    os._exit(0 if free else 1)
                os._exit(2)
            _, status = os.waitpid(child, 0)
            # The parent goes on as before.
            assert calling() is not None
            trio.from_thread.run(trio.lowlevel.checkpoint)
            return os.waitstatus_to_exitcode(status)

        async def main():
            print(await current_pool().program_lease().run_sync(code))

        trio.run(main)
        """
    )
    assert output == "0\n"


INTERRUPTED = """
    import signal, sys, trio
    from trio_asgi._call import run_async
    from trio_asgi._worker import current_pool

    def interrupt():
        signal.raise_signal(signal.SIGINT)
        # The main thread handles the signal, then tells the task that waits.
        for _ in range(3):
            trio.from_thread.run_sync(int)

    def code():
        interrupt()
        try:
            trio.from_thread.check_cancelled()
        except KeyboardInterrupt:
            print("told")
            # As nobody was told: it is raised once only.
            interrupt()
        print("call ended")
        return "result"

    async def main():
        run = trio.to_thread.run_sync
        if sys.argv[1] == "lease":
            run = current_pool().program_lease().run_sync
        print(await run(code))
        await trio.lowlevel.checkpoint()
        print("not interrupted")

    try:
        trio.run(main)
    except KeyboardInterrupt:
        print("interrupted")
    """


def test_an_interrupt_waits_for_the_call() -> None:
    """Control-C during a call is raised when the call is over, as in Trio's threads."""
    output = run_script(INTERRUPTED, "lease")
    assert output.split("\n") == ["told", "call ended", "result", "interrupted", ""]
    assert output == run_script(INTERRUPTED, "trio")


def test_an_interrupt_reaches_a_coroutine() -> None:
    """Control-C interrupts what `run_async` runs, and comes out of it in the thread."""
    output = run_script(
        """
        import signal, trio
        from trio_asgi._call import run_async
        from trio_asgi._worker import current_pool

        async def coroutine():
            try:
                signal.raise_signal(signal.SIGINT)
            finally:
                print("coroutine")

        def code():
            try:
                run_async(coroutine)[0].unwrap()
            finally:
                print("code")

        async def main():
            lease = current_pool().program_lease()
            try:
                await lease.run_sync(code)
            except KeyboardInterrupt:
                print("task")
            print(await lease.run_sync(lambda: "usable"))

        trio.run(main)
        """
    )
    assert output.split() == ["coroutine", "code", "task", "usable"]


def test_an_interrupt_at_any_line_leaves_the_lease_usable() -> None:
    """Wherever Control-C hits the making of a call, no turn and no token is lost."""
    output = run_script(
        """
        import signal, sys, trio
        from trio_asgi import _call, _worker

        remaining = 0

        def count(frame, event, argument):
            global remaining
            if event == "line":
                remaining -= 1
                if remaining == 0:
                    sys.settrace(None)
                    signal.raise_signal(signal.SIGINT)
            return count

        def trace(frame, event, argument):
            ours = frame.f_code.co_filename in (_call.__file__, _worker.__file__)
            return count if ours and remaining > 0 else None

        async def use(pool, lease):
            with trio.fail_after(5):
                await lease.run_sync(int)
            assert pool.limiter.borrowed_tokens == 0

        async def main(line):
            global remaining
            pool = _worker.current_pool()
            lease = _worker.Lease(pool)
            await use(pool, lease)
            remaining = line
            sys.settrace(trace)
            try:
                await lease.run_sync(int)
                await trio.lowlevel.checkpoint()
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(None)
            try:
                await trio.lowlevel.checkpoint()
            except KeyboardInterrupt:
                pass
            try:
                await use(pool, lease)
            except BaseException as error:
                sys.exit(f"after an interrupt at line event {line}: {error!r}")
            lease.release()
            return remaining > 0

        for line in range(1, 1000):
            if trio.run(main, line):
                break
        print(line > 20)
        """
    )
    assert output == "True\n"


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
        """Check where it runs, and go on in some way."""
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
        """Do it all, or be cancelled meanwhile."""
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


async def cancel_later(scope: trio.CancelScope, steps: int) -> None:
    """Cancel a scope after some steps of the scheduler."""
    for _ in range(steps):
        await trio.lowlevel.checkpoint()
    scope.cancel()


@pytest.mark.parametrize("seed", range(3))
async def test_many_leases_nest_at_random(seed: int) -> None:
    """Forty leases nest, fan out, fail and are cancelled, and none is confused."""
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

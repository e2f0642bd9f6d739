"""Calls into threads and back, to any depth; their errors, and what they leave."""

from __future__ import annotations

import contextvars
import functools
import gc
import sys
import threading
import traceback
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from thread_support import (
    SECONDS,
    Gate,
    cannot_start,
    in_task,
    in_thread,
    nothing,
    open_lease,
    open_pool,
    variable,
    wait_all_tasks_blocked_and,
)
from trio_asgi.threads.lease import Lease
from trio_asgi.threads.loop import CallLoop, current_loop
from trio_asgi.threads.reentry import run_async

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trio_asgi.threads.pool import WorkerPool


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
    """Sync code and coroutines alternate in one thread and one task, ten deep."""
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
    """While `run_async` waits, others use the token; it is taken back afterwards."""
    async with open_pool(threads=1) as pool:
        borrowed: list[int] = []
        gate = Gate(nothing)
        done = trio.Event()

        async def coroutine() -> None:
            borrowed.append(pool.queue.running)
            await pool.run_sync(nothing)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pool.run_sync, gate)
                await gate.entered.wait()
                nursery.start_soon(wait_all_tasks_blocked_and, gate.open)
            done.set()

        def code() -> None:
            in_task(coroutine)
            borrowed.append(pool.queue.running)

        with open_lease(pool) as lease:
            await lease.run_sync(code)
        assert done.is_set()
        assert borrowed == [0, 1]


async def test_the_token_is_waited_for_before_the_thread_goes_on() -> None:
    """After a coroutine, the thread goes on only when a token is free again."""
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
                pool.queue.set_threads(2)
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
    """Tasks queued in a coroutine's loop are served before the thread leaves it."""
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
        # Another task has that thread now.
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
    """If a call's lease is released while it waits for a token, it takes no thread."""
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
        # Otherwise its thread would never end.
        lease.release()


async def test_a_last_call_for_which_no_thread_can_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is made where the lease is released, and the rest of the release happens."""
    async with open_pool(threads=1) as pool:
        lease = Lease(pool)
        gate = Gate(nothing)
        threads: list[threading.Thread] = []

        def note() -> None:
            threads.append(threading.current_thread())

        def last() -> None:
            note()
            raise LookupError("this is logged")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.run_sync, gate)
            await gate.entered.wait()
            nursery.start_soon(lease.run_sync, note)
            await wait_all_tasks_blocked()
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", cannot_start)
                lease.release(last)
            gate.open()
        program = await pool.program_lease().run_sync(threading.current_thread)
        assert threads == [threading.current_thread(), program]


async def test_a_busy_thread_is_not_given_to_another_lease(pool: WorkerPool) -> None:
    """If a busy thread's lease is released, the thread is free after its call."""
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
    """`run_async` raises `Cancelled` in sync code, and that goes on to its scope."""
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
    """A scope inside the coroutine does not affect the sync code around it."""

    async def coroutine() -> str:
        with trio.move_on_after(0):
            await in_thread(pytest.fail)
        return "went on"

    assert await lease.run_sync(lambda: in_task(coroutine)) == "went on"
    await lease.run_sync(trio.from_thread.check_cancelled)


# Code that would wait for itself


def never() -> None:
    """Sync code that must not run."""
    pytest.fail("this was called")


@contextmanager
def refused() -> Iterator[None]:
    """Expect a call that would wait for its own thread to be refused."""
    with pytest.raises(RuntimeError, match=r"would wait for ever .*async_to_sync"):
        yield


@pytest.mark.parametrize("depth", [0, 1, 3])
async def test_tasks_below_from_thread_run_are_refused(
    lease: Lease, depth: int
) -> None:
    """What a coroutine of `trio.from_thread.run` waits for cannot use its thread.

    This holds for the coroutine, its nurseries' tasks, and their nurseries' tasks.
    """
    seen: list[int] = []

    async def descend(remaining: int) -> None:
        if remaining == 0:
            with refused():
                await lease.run_sync(never)
            seen.append(depth)
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(descend, remaining - 1)

    with trio.fail_after(SECONDS):
        await lease.run_sync(lambda: trio.from_thread.run(descend, depth))
    assert seen == [depth]
    assert await lease.run_sync(lambda: "usable") == "usable"


async def test_tasks_of_the_same_nursery_are_not_refused(lease: Lease) -> None:
    """A task that the coroutine starts outside itself waits for its turn."""
    order: list[str] = []

    async def sibling() -> None:
        await lease.run_sync(lambda: order.append("sibling"))

    async def coroutine() -> None:
        # Opened before the call, so the coroutine does not wait for it.
        outside.start_soon(sibling)
        await wait_all_tasks_blocked()
        order.append("coroutine")

    async with trio.open_nursery() as outside:
        await lease.run_sync(lambda: trio.from_thread.run(coroutine))
        order.append("call")
    assert order == ["coroutine", "call", "sibling"]


async def test_children_of_the_task_itself_are_not_refused(lease: Lease) -> None:
    """A child that runs beside the call waits for its turn, though its parent hosts.

    It also does so while `trio.from_thread.run` works in the parent.
    """
    order: list[str] = []
    go_on = trio.Event()

    async def child() -> None:
        await go_on.wait()
        await lease.run_sync(lambda: order.append("child"))

    async def coroutine() -> None:
        async with trio.open_nursery():
            go_on.set()
            await wait_all_tasks_blocked()
        order.append("coroutine")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(child)
        await lease.run_sync(lambda: trio.from_thread.run(coroutine))
    assert order == ["coroutine", "child"]


async def test_the_coroutine_forgets_its_nurseries(lease: Lease) -> None:
    """Nurseries that are opened after `trio.from_thread.run` cause no refusal."""
    order: list[str] = []

    async def child() -> None:
        await lease.run_sync(lambda: order.append("child"))

    async def coroutine() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.checkpoint)

    async def below() -> None:
        # Not in a coroutine of from_thread.run: here the thread serves.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, lambda: order.append("in its loop"))

    def code() -> None:
        trio.from_thread.run(coroutine)
        in_task(below)
        trio.from_thread.run(coroutine)

    async with trio.open_nursery() as nursery:
        await lease.run_sync(code)
        nursery.start_soon(child)
    assert order == ["in its loop", "child"]


async def test_tasks_below_an_inner_loop_are_refused(lease: Lease) -> None:
    """The same holds for the loop of a coroutine: its thread waits there."""
    seen: list[str] = []

    async def child() -> None:
        with refused():
            await in_thread(never)
        seen.append("child")

    async def inner() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)

    async def outer() -> None:
        await in_thread(lambda: trio.from_thread.run(inner))

    with trio.fail_after(SECONDS):
        await lease.run_sync(lambda: in_task(outer))
    assert seen == ["child"]


async def test_code_of_other_threads_below_from_thread_run_is_refused(
    pool: WorkerPool, lease: Lease
) -> None:
    """A detour through another thread changes nothing: the first one is waited for."""
    seen: list[str] = []

    async def wants_lease() -> None:
        with refused():
            await lease.run_sync(never)
        seen.append("refused")

    async def coroutine() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.run_sync, lambda: trio.from_thread.run(wants_lease))

    with trio.fail_after(SECONDS):
        await lease.run_sync(lambda: trio.from_thread.run(coroutine))
    assert seen == ["refused"]


async def test_a_limit_is_no_deadlock() -> None:
    """A refused call holds nothing: neither a turn nor a token."""

    async def coroutine() -> None:
        with refused():
            await lease.run_sync(never)

    async with open_pool(threads=1) as pool:
        with open_lease(pool) as lease:
            await lease.run_sync(lambda: trio.from_thread.run(coroutine))
            assert pool.queue.running == 0
            assert lease.running is None


# Errors


async def test_errors_cross_with_their_traceback(lease: Lease) -> None:
    """An error passes through threads and tasks, and its traceback shows the way."""

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
    """Errors that are not Exceptions end neither the thread nor the lease."""

    def raiser() -> None:
        raise error

    thread = await lease.run_sync(threading.current_thread)
    with pytest.raises(type(error)) as caught:
        await lease.run_sync(raiser)
    assert caught.value is error
    assert await lease.run_sync(threading.current_thread) is thread


async def test_a_stack_that_is_too_deep_for_a_call(
    pool: WorkerPool, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error before the sync code begins is the call's; the place is free again."""

    def too_deep(lease: Lease) -> None:
        raise RecursionError

    lease.impatient = True
    with monkeypatch.context() as patch:
        patch.setattr(Lease, "run_call", property(too_deep))
        with pytest.raises(RecursionError):
            await lease.run_sync(pytest.fail)
    assert pool.queue.running == 0
    assert await lease.run_sync(lambda: "ran") == "ran"


async def test_the_lease_of_a_deeply_nested_call(
    pool: WorkerPool, lease: Lease
) -> None:
    """Asking for it takes no more stack than at the top."""
    loop: CallLoop = lease
    for _ in range(2 * sys.getrecursionlimit()):
        loop = CallLoop(pool, loop, None)
    assert loop.lease is lease


async def test_a_thread_that_cannot_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the system can start no more threads, the call raises and takes nothing."""
    async with open_pool(threads=1) as pool:
        with open_lease(pool) as lease:
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", cannot_start)
                with pytest.raises(RuntimeError, match="can't start"):
                    await lease.run_sync(nothing)
            assert pool.queue.running == 0
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


# Memory


class Thing:
    """An object whose end can be observed."""


class ThingError(Exception):
    """An error whose end can be observed."""


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Free objects only by reference counting."""
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
    """Arguments, results and errors are freed with the call; no cycle keeps them."""

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
        # The thread releases a call when it waits for the next one.
        for _ in range(2):
            await lease.run_sync(nothing)
        assert [ref() for ref in refs] == [None] * len(refs)


async def test_arguments_are_gone_when_the_call_returns(lease: Lease) -> None:
    """The thread keeps nothing of a call when its task goes on."""

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


async def test_a_coroutine_that_another_library_runs() -> None:
    """asyncio raises an error in it; the call's end then disturbs no Trio task."""
    begun, go = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert go.wait(SECONDS)

    async with open_pool() as pool:
        lease = Lease(pool)
        call = lease.run_sync(wait)
        # Trio sees none of this, as if asyncio.run() ran the coroutine.
        call.send(None)
        assert begun.wait(SECONDS)
        with pytest.raises(RuntimeError, match="bad yield"):
            call.throw(RuntimeError("Task got bad yield"))
        go.set()
        assert lease.abandoned
        lease.release()
        await pool.run_sync(nothing)


async def test_a_call_that_another_library_runs_and_that_has_not_begun() -> None:
    """It never begins."""
    async with open_pool(threads=1) as pool, trio.open_nursery() as nursery:
        gate = Gate(nothing)
        nursery.start_soon(pool.run_sync, gate)
        await gate.entered.wait()
        with open_lease(pool) as lease:
            call = lease.run_sync(lambda: pytest.fail("it has begun"))
            call.send(None)
            with pytest.raises(RuntimeError, match="bad yield"):
                call.throw(RuntimeError("Task got bad yield"))
            assert not lease.abandoned
            gate.open()
            await lease.run_sync(nothing)

"""Calls whose task has left: the thread runs on alone, and ends."""

from __future__ import annotations

import contextvars
import threading
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from thread_support import (
    SECONDS,
    Gate,
    error_of,
    in_task,
    in_thread,
    join,
    leave,
    nothing,
    open_lease,
    open_pool,
    variable,
    wait_set,
)
from trio_asgi.threads.current import current_pool
from trio_asgi.threads.lease import Lease
from trio_asgi.threads.worker import Detached

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_asgi.threads.pool import WorkerPool


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
    """A call under a shield is not left, because it is not cancelled."""
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
    """A task that already has its result is not woken a second time."""
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
        # While Trio stands still, the result gets into its queue; and right behind it,
        # the end of the waiting.
        (worker,) = pool.workers
        gate.open()
        worker.inbox.put(Detached(contextvars.copy_context(), told.set))
        assert told.wait(SECONDS)
        trio.lowlevel.current_trio_token().run_sync_soon(lease.stop_waiting)
    assert results == ["result"]
    assert not lease.abandoned
    lease.release()


async def test_a_nested_call_can_be_left(pool: WorkerPool) -> None:
    """Leaving sync code below a coroutine leaves everything that the thread runs."""
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


async def test_the_thread_of_a_left_call_does_not_go_back(pool: WorkerPool) -> None:
    """Not even if the call above, which nobody has left, is the lease's last."""
    gate = Gate(nothing)

    async def coroutine() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, gate)
            await gate.entered.wait()
            nursery.cancel_scope.cancel()
        gate.open()

    def code() -> None:
        in_task(coroutine)
        lease.done = True

    lease = Lease(pool)
    lease.impatient = True
    await lease.run_sync(code)
    assert lease.abandoned
    assert lease.has_thread
    lease.release()
    await join(gate.thread)


async def test_code_that_was_left_cannot_come_back(pool: WorkerPool) -> None:
    """In code that no task waits for, every call that needs its task raises."""
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
    """A task first answers a message on its way to it, and only then leaves."""
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

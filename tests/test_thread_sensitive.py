"""asgiref's ways to choose a thread: contexts and executors; and thread-local state."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import inspect
import multiprocessing
import threading
import weakref
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from typing import TYPE_CHECKING, Any

import asgiref.sync
import pytest
import trio
import trio.testing
from asgiref.local import Local
from asgiref.sync import (
    SyncToAsync,
    ThreadSensitiveContext,
    async_to_sync,
    sync_to_async,
)

import trio_asgi
from thread_support import (
    SECONDS,
    Gate,
    assert_ending,
    nothing,
    variable,
    wait_running,
    worker_threads,
)
from trio_asgi.threads.current import current_pool
from trio_asgi.threads.lease import Lease
from trio_asgi.threads.loop import current_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Features of asgiref 3.13, and of 3.10.
with_executor = pytest.mark.skipif(
    "executor" not in inspect.signature(ThreadSensitiveContext).parameters,
    reason="this asgiref has no executors of contexts",
)
AsyncSingleThreadContext: Any = getattr(asgiref.sync, "AsyncSingleThreadContext", None)
with_single_thread = pytest.mark.skipif(
    AsyncSingleThreadContext is None,
    reason="this asgiref has no AsyncSingleThreadContext",
)


@pytest.fixture
def async_to_sync_backend() -> Iterator[None]:
    """Let `async_to_sync` start Trio."""
    trio_asgi.install_bridge(async_to_sync_backend="trio")
    yield
    trio_asgi.install_bridge(async_to_sync_backend="asyncio")


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    """Provide an executor of one thread."""
    with ThreadPoolExecutor(1, thread_name_prefix="own") as executor:
        yield executor


async def where() -> threading.Thread:
    """Return where sensitive code runs here."""
    return await sync_to_async(threading.current_thread)()


def where_below() -> tuple[threading.Thread, threading.Thread]:
    """Return where this runs, and where a coroutine's sync code runs below it."""
    return threading.current_thread(), async_to_sync(where)()


def run(loops: str, afn: Callable[[], Any]) -> Any:
    """Run a coroutine function in a program."""
    if loops == "asyncio":
        return asyncio.run(afn())

    async def main() -> Any:
        with trio.fail_after(SECONDS):
            return await afn()

    return trio.run(main)


async def at_once(*afns: Any) -> None:
    """Run coroutine functions as tasks, on Trio and on asyncio."""
    if trio.lowlevel.in_trio_task():
        async with trio.open_nursery() as nursery:
            for afn in afns:
                nursery.start_soon(afn)
    else:
        await asyncio.gather(*(afn() for afn in afns))


both = pytest.mark.parametrize("loops", ["trio", "asyncio"])

# ThreadSensitiveContext


@both
def test_a_context_has_a_thread_of_its_own(loops: str) -> None:
    """Sensitive code in a context runs in one thread, which no other context has."""

    async def in_context() -> None:
        async with ThreadSensitiveContext():
            threads = {await where(), *await sync_to_async(where_below)()}
            await at_once(functools.partial(note, threads))
            await sync_to_async(barrier.wait)(SECONDS)
            found.append(threads)

    async def note(threads: set[threading.Thread]) -> None:
        threads.add(await where())

    async def main() -> None:
        program = await where()
        await at_once(in_context, in_context)
        assert await where() is program
        found.append({program})

    found: list[set[threading.Thread]] = []
    barrier = threading.Barrier(2)
    run(loops, main)
    assert [len(threads) for threads in found] == [1, 1, 1]
    assert len(set.union(*found)) == 3


@both
def test_the_outermost_context_counts(loops: str) -> None:
    """A nested context changes nothing, and ends nothing."""

    async def main() -> None:
        async with ThreadSensitiveContext():
            outer = await where()
            async with ThreadSensitiveContext():
                assert await where() is outer
            assert await where() is outer
        assert await where() is not outer

    run(loops, main)


@both
def test_a_context_can_be_entered_again(loops: str) -> None:
    """Each time it has a thread; and an error passes through it."""

    async def main() -> None:
        context = ThreadSensitiveContext()
        threads = set()
        for _ in range(2):
            with pytest.raises(LookupError, match="in the block"):
                async with context:
                    assert SyncToAsync.thread_sensitive_context.get() is context
                    threads.add(await where())
                    raise LookupError("in the block")
            assert SyncToAsync.thread_sensitive_context.get(None) is None
        assert await where() not in threads

    run(loops, main)


@both
@pytest.mark.usefixtures("async_to_sync_backend")
def test_a_context_below_sync_code(loops: Any) -> None:
    """Below `async_to_sync`, the context's thread is the one that waits there."""
    trio_asgi.install_bridge(async_to_sync_backend=loops)

    async def in_context() -> threading.Thread:
        async with ThreadSensitiveContext():
            return await where()

    def code() -> bool:
        return async_to_sync(in_context)() is threading.current_thread()

    assert code()
    assert run(loops, sync_to_async(code))
    assert run(loops, sync_to_async(code, thread_sensitive=False))
    if loops == "trio":
        assert trio.run(trio.to_thread.run_sync, code)


async def test_a_context_in_a_request() -> None:
    """A request already has a thread, and keeps it."""
    lease = Lease(current_pool())
    marker = current_loop.set(lease)
    thread = await where()
    async with ThreadSensitiveContext():
        assert await where() is thread
    assert await where() is thread
    current_loop.reset(marker)
    lease.release()


async def test_the_thread_ends_with_its_context() -> None:
    """A context's thread is not used again, and its token is given back."""
    before = worker_threads()
    async with ThreadSensitiveContext():
        thread = await where()
        assert thread in worker_threads() - before
    assert_ending({thread})
    assert current_pool().queue.running == 0


async def test_a_context_needs_no_slot() -> None:
    """A request that holds the last slot may wait for a context outside requests."""
    pool = current_pool()
    pool.slots = trio.CapacityLimiter(1)
    request = pool.lease()
    await request.run_sync(threading.current_thread)
    with trio.fail_after(SECONDS):
        async with ThreadSensitiveContext():
            await where()
    request.release()


async def test_a_context_without_calls_takes_no_thread() -> None:
    """The thread is taken at the first call."""
    before = worker_threads()
    async with ThreadSensitiveContext():
        assert worker_threads() == before
    assert worker_threads() == before


async def test_a_task_that_outlives_its_context() -> None:
    """Its code then runs in the program's thread."""
    go_on = trio.Event()
    threads: list[threading.Thread] = []

    async def survivor() -> None:
        threads.append(await where())
        await go_on.wait()
        threads.append(await where())

    async with trio.open_nursery() as nursery:
        async with ThreadSensitiveContext():
            nursery.start_soon(survivor)
            own = await where()
            await trio.testing.wait_all_tasks_blocked()
        go_on.set()
    assert threads == [own, await where()]
    assert threads[0] is not threads[1]


async def test_a_call_that_runs_when_its_context_ends() -> None:
    """The thread finishes it, and then ends."""
    gate = Gate(lambda: "result")
    results: list[str] = []

    async def survivor() -> None:
        results.append(await sync_to_async(gate)())

    async with trio.open_nursery() as nursery:
        async with ThreadSensitiveContext():
            nursery.start_soon(survivor)
            await gate.entered.wait()
        assert gate.thread.is_alive()
        gate.open()
    assert results == ["result"]
    assert_ending({gate.thread})


async def test_a_cancelled_context() -> None:
    """A cancelled block waits for its running code; entering and exiting never wait."""
    gate = Gate(nothing)

    async def in_context() -> None:
        async with ThreadSensitiveContext():
            await sync_to_async(gate)()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_context)
        await gate.entered.wait()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.testing.wait_all_tasks_blocked()
            assert nursery.child_tasks
            gate.open()
    assert_ending({gate.thread})
    with trio.CancelScope() as scope:
        scope.cancel()
        async with ThreadSensitiveContext():
            pass
    assert not scope.cancelled_caught


# A context with an executor


@both
@with_executor
def test_the_executor_of_a_context(loops: str, executor: ThreadPoolExecutor) -> None:
    """A context runs sensitive code in its executor, even inside another context.

    Code nested in that runs in the same thread.
    """

    async def main() -> None:
        (own,) = [executor.submit(threading.current_thread).result()]
        async with ThreadSensitiveContext():
            outer = await where()
            async with ThreadSensitiveContext(executor=executor):
                assert await where() is own
                assert await sync_to_async(where_below)() == (own, own)
                async with ThreadSensitiveContext():
                    assert await where() is own
                other = sync_to_async(threading.current_thread, thread_sensitive=False)
                assert await other() is not own
            assert await where() is outer
        assert executor.submit(threading.current_thread).result() is own

    run(loops, main)


@both
@with_executor
@pytest.mark.usefixtures("async_to_sync_backend")
def test_the_executor_of_a_context_below_sync_code(
    loops: Any, executor: ThreadPoolExecutor
) -> None:
    """So it does below `async_to_sync`, whose thread is hidden in the block."""
    trio_asgi.install_bridge(async_to_sync_backend=loops)

    async def coroutine() -> list[threading.Thread]:
        before = await where()
        async with ThreadSensitiveContext(executor=executor):
            inside = await where()
        return [before, inside, await where()]

    own = executor.submit(threading.current_thread).result()
    here = threading.current_thread()
    assert async_to_sync(coroutine)() == [here, own, here]


@both
@with_executor
def test_a_context_with_an_executor_is_entered_once(
    loops: str, executor: ThreadPoolExecutor
) -> None:
    """Entering it twice, concurrently or in sequence, raises asgiref's error."""

    async def main() -> None:
        context: Any = ThreadSensitiveContext(executor=executor)
        async with context:
            with pytest.raises(RuntimeError, match="is already entered"):
                await context.__aenter__()
        with pytest.raises(RuntimeError, match="cannot be entered again"):
            await context.__aenter__()

    run(loops, main)


@both
@with_executor
def test_a_task_that_outlives_a_context_with_an_executor(
    loops: str, executor: ThreadPoolExecutor
) -> None:
    """Its sensitive calls are refused: they would run in some other thread."""

    async def main() -> None:
        async with ThreadSensitiveContext(executor=executor):
            context = contextvars.copy_context()

        async def survivor() -> None:
            with pytest.raises(RuntimeError, match="ThreadSensitiveContext has exited"):
                await where()
            other = sync_to_async(lambda: "fine", thread_sensitive=False)
            assert await other() == "fine"

        if loops == "asyncio":
            await context.run(asyncio.ensure_future, survivor())
            return
        async with trio.open_nursery() as nursery:
            context.run(nursery.start_soon, survivor)

    run(loops, main)


# Executors of single calls


def insensitive(fn: Callable[..., Any], executor: Any) -> Any:
    """Bridge a function to an executor."""
    return sync_to_async(fn, thread_sensitive=False, executor=executor)


async def test_a_call_that_waits_in_an_executor_is_withdrawn(
    executor: ThreadPoolExecutor,
) -> None:
    """If it is cancelled before a thread has begun it, it never runs."""
    first, second = Gate(lambda: "first"), Gate(pytest.fail)
    results: list[str] = []

    async def call() -> None:
        results.append(await insensitive(first, executor)())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await first.entered.wait()
        with trio.CancelScope() as scope:
            nursery.start_soon(_cancel_when_blocked, scope)
            await insensitive(second, executor)()
        assert scope.cancelled_caught
        assert results == []
        first.open()
    assert results == ["first"]
    assert await insensitive(lambda: "usable", executor)() == "usable"
    assert current_pool().queue.running == 0


async def _cancel_when_blocked(scope: trio.CancelScope) -> None:
    await trio.testing.wait_all_tasks_blocked()
    scope.cancel()


async def test_a_call_that_runs_in_an_executor_is_waited_for(
    executor: ThreadPoolExecutor,
) -> None:
    """If it is cancelled later, it runs to its end, and can check for that."""
    order: list[str] = []

    def work() -> None:
        with pytest.raises(trio.Cancelled):
            trio.from_thread.check_cancelled()
        order.append("call")

    gate = Gate(work)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(insensitive(gate, executor))
        await gate.entered.wait()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.testing.wait_all_tasks_blocked()
            order.append("waited")
            gate.open()
    assert order == ["waited", "call"]


@pytest.mark.parametrize("cancelled_too", [False, True])
async def test_an_executor_that_drops_its_calls(cancelled_too: bool) -> None:
    """``shutdown(cancel_futures=True)`` is an error of the call, not a cancellation.

    If the task is cancelled at the same time, it gets one of them.
    """
    gate = Gate(nothing)
    outcomes: list[object] = []

    async def dropped() -> None:
        try:
            await insensitive(pytest.fail, own)()
        except (CancelledError, trio.Cancelled) as error:
            outcomes.append(type(error))
            if isinstance(error, trio.Cancelled):
                raise

    own = ThreadPoolExecutor(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(insensitive(gate, own))
        await gate.entered.wait()
        async with trio.open_nursery() as inner:
            inner.start_soon(dropped)
            await wait_running(current_pool(), 2)
            own.shutdown(wait=False, cancel_futures=True)
            if cancelled_too:
                inner.cancel_scope.cancel()
        # The task's next step is not disturbed.
        await trio.testing.wait_all_tasks_blocked()
        gate.open()
    assert outcomes == [CancelledError]
    assert current_pool().queue.running == 0


async def test_cancelled_first_and_dropped_then(executor: ThreadPoolExecutor) -> None:
    """A withdrawn call gets no error when the executor drops it."""
    gate = Gate(nothing)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(insensitive(gate, executor))
        await gate.entered.wait()
        async with trio.open_nursery() as inner:
            inner.start_soon(insensitive(pytest.fail, executor))
            await trio.testing.wait_all_tasks_blocked()
            inner.cancel_scope.cancel()
            executor.shutdown(wait=False, cancel_futures=True)
        await trio.testing.wait_all_tasks_blocked()
        gate.open()


def fail_to_start() -> None:
    """An initializer that fails."""
    raise LookupError("in the initializer")


@both
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_executor_that_breaks(loops: str, caplog: pytest.LogCaptureFixture) -> None:
    """If its threads cannot begin, the call fails with the executor's error."""

    async def main() -> None:
        with (
            ThreadPoolExecutor(1, initializer=fail_to_start) as executor,
            pytest.raises(BrokenExecutor),
        ):
            await insensitive(nothing, executor)()

    run(loops, main)
    assert "Exception in initializer" in caplog.text


@both
def test_an_executor_of_processes(loops: str) -> None:
    """If a call cannot be sent there, it fails with the reason."""
    spawn = multiprocessing.get_context("spawn")

    async def main() -> None:
        with ProcessPoolExecutor(1, mp_context=spawn) as executor:
            with pytest.raises((TypeError, AttributeError)) as caught:
                await insensitive(nothing, executor)()
            assert "pickle" in str(caught.value)

    run(loops, main)


@both
def test_an_executor_that_was_shut_down(loops: str) -> None:
    """Its own error is the call's, and nothing is held."""

    async def main() -> None:
        executor = ThreadPoolExecutor(1)
        executor.shutdown()
        with pytest.raises(RuntimeError, match="after shutdown"):
            await insensitive(nothing, executor)()
        if loops == "trio":
            assert current_pool().queue.running == 0

    run(loops, main)


@both
def test_an_executor_and_sensitivity_exclude_each_other(loops: str) -> None:
    """asgiref's refusal is kept."""

    async def main() -> None:
        with (
            ThreadPoolExecutor(1) as executor,
            pytest.raises(TypeError, match="executor must not be set"),
        ):
            sync_to_async(nothing, executor=executor)

    run(loops, main)


@both
def test_code_in_an_executor_calls_back(
    loops: str, executor: ThreadPoolExecutor
) -> None:
    """A coroutine below it runs in the waiting task; its sync code in that thread."""

    async def main() -> None:
        here, below = await insensitive(where_below, executor)()
        assert here is below
        assert here.name.startswith("own")

    run(loops, main)


@both
def test_the_context_goes_to_an_executor_and_back(
    loops: str, executor: ThreadPoolExecutor
) -> None:
    """Context variables and `Local` are carried as to any thread."""
    local = Local()

    def code() -> tuple[str, str]:
        seen = variable.get(), local.value
        variable.set("thread")
        local.value = "thread"
        return seen

    async def main() -> None:
        variable.set("task")
        local.value = "task"
        assert await insensitive(code, executor)() == ("task", "task")
        assert (variable.get(), local.value) == ("thread", "thread")

    run(loops, main)


async def test_an_executor_keeps_nothing(executor: ThreadPoolExecutor) -> None:
    """A call's arguments and errors are freed with it."""

    class Thing:
        pass

    class ThingError(Exception):
        pass

    def fail(thing: Thing) -> None:
        raise ThingError(thing)

    async def call(fn: Any) -> list[weakref.ref[Any]]:
        thing = Thing()
        refs: list[weakref.ref[Any]] = [weakref.ref(thing)]
        try:
            await insensitive(fn, executor)(thing)
        except ThingError as error:
            refs.append(weakref.ref(error))
        return refs

    gc.collect()
    gc.disable()
    try:
        for fn in (id, fail):
            refs = await call(fn)
            for _ in range(2):
                await insensitive(nothing, executor)()
            assert [ref() for ref in refs] == [None] * len(refs)
    finally:
        gc.enable()


# AsyncSingleThreadContext


async def current_thread() -> threading.Thread:
    """Return where a coroutine runs."""
    if trio.lowlevel.in_trio_task():
        await trio.lowlevel.checkpoint()
    return threading.current_thread()


@both
@with_single_thread
@pytest.mark.usefixtures("async_to_sync_backend")
def test_a_single_thread_for_coroutines(loops: Any) -> None:
    """In the context, all coroutines run in one thread, which ends with it."""
    trio_asgi.install_bridge(async_to_sync_backend=loops)
    with AsyncSingleThreadContext():
        one = async_to_sync(current_thread)()
        assert async_to_sync(current_thread)() is one
        with AsyncSingleThreadContext():
            assert async_to_sync(current_thread)() is one
        assert async_to_sync(current_thread)() is one
        assert async_to_sync(where)() is threading.current_thread()
        with pytest.raises(LookupError):
            async_to_sync(fails)()
        assert async_to_sync(current_thread)() is one
        assert one.is_alive()
    assert_ending({one})
    with AsyncSingleThreadContext():
        assert async_to_sync(current_thread)() is not one


async def fails() -> None:
    """A coroutine that fails."""
    raise LookupError


@both
@with_single_thread
@pytest.mark.usefixtures("async_to_sync_backend")
def test_nested_calls_with_a_single_thread(loops: Any) -> None:
    """A coroutine below another needs no thread, because it runs in the same loop."""
    trio_asgi.install_bridge(async_to_sync_backend=loops)

    def code() -> threading.Thread:
        return async_to_sync(current_thread)()

    async def coroutine() -> bool:
        nested = await sync_to_async(code)()
        return nested is threading.current_thread()

    with AsyncSingleThreadContext():
        assert async_to_sync(coroutine)()


# The scope of a thread-critical Local


@both
@pytest.mark.usefixtures("async_to_sync_backend")
def test_a_critical_local_in_tasks(loops: Any) -> None:
    """In a loop, it is like a context variable; in a thread, like a thread-local."""
    local = Local(thread_critical=True)
    seen: dict[str, str] = {}

    def value() -> str:
        return str(getattr(local, "value", "none"))

    def thread_first() -> str:
        before = value()
        local.value = "thread"
        return before

    async def sibling(name: str) -> None:
        seen[f"{name} inherits"] = value()
        local.value = name
        await sync_to_async(nothing)()
        seen[f"{name} keeps"] = value()

    async def main() -> None:
        local.value = "task"
        # Neither carried into the thread, nor out of it.
        seen["thread"] = await sync_to_async(thread_first)()
        seen["task"] = value()
        seen["thread again"] = await sync_to_async(value)()
        await at_once(
            functools.partial(sibling, "one"), functools.partial(sibling, "other")
        )
        seen["after siblings"] = value()
        del local.value
        seen["deleted"] = value()

    run(loops, main)
    assert seen == {
        "thread": "none",
        "task": "task",
        "thread again": "thread",
        "one inherits": "task",
        "one keeps": "one",
        "other inherits": "task",
        "other keeps": "other",
        "after siblings": "task",
        "deleted": "none",
    }


@both
def test_a_critical_local_of_the_program(loops: str) -> None:
    """A loop does not see the values of sync code in the same thread."""
    local = Local(thread_critical=True)

    async def main() -> str:
        before = str(getattr(local, "value", "none"))
        local.value = "loop"
        return before

    local.value = "program"
    assert run(loops, main) == "none"
    assert local.value == "program"


# The deadlock that asgiref detects


async def test_two_requests_share_no_thread() -> None:
    """Contexts of concurrent tasks wait neither for each other nor for the program."""
    met = threading.Barrier(3)

    async def in_context() -> None:
        async with ThreadSensitiveContext():
            await sync_to_async(met.wait)(SECONDS)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_context)
        nursery.start_soon(in_context)
        await sync_to_async(met.wait)(SECONDS)


async def test_a_task_with_an_empty_context_that_sync_code_waits_for() -> None:
    """It would wait for the program's thread, which waits for it: an error says so."""
    errors: list[str] = []

    async def child() -> None:
        try:
            await sync_to_async(lambda: None)()
        except RuntimeError as error:
            errors.append(str(error))

    async def with_child() -> None:
        async with trio.open_nursery() as nursery:
            contextvars.Context().run(nursery.start_soon, child)

    with trio.fail_after(SECONDS):
        await sync_to_async(async_to_sync(with_child))()
        await sync_to_async(lambda: trio.from_thread.run(with_child))()
    assert len(errors) == 2
    assert all("would wait for ever" in error for error in errors)


@pytest.mark.parametrize("owner", ["request", "program"])
async def test_a_system_task_that_sync_code_waits_for(owner: str) -> None:
    """`trio.from_thread.run` with a token starts one, whose sync call is refused."""
    token = trio.lowlevel.current_trio_token()
    ran: list[str] = []

    async def child() -> None:
        await sync_to_async(lambda: ran.append("elsewhere"), thread_sensitive=False)()
        with pytest.raises(RuntimeError, match=r"would wait for ever"):
            await sync_to_async(ran.append)("here")

    async def system_task() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)

    def sync_code() -> None:
        trio.from_thread.run(system_task, trio_token=token)

    lease = Lease(current_pool())
    marker = current_loop.set(lease if owner == "request" else None)
    try:
        with trio.fail_after(SECONDS):
            await sync_to_async(sync_code)()
            await sync_to_async(ran.append)("afterwards")
    finally:
        current_loop.reset(marker)
        lease.release()
    assert ran == ["elsewhere", "afterwards"]


async def test_who_only_has_to_wait_is_let_in() -> None:
    """A system task for which no sync code waits has its turn after that code."""
    order: list[str] = []
    ended = trio.Event()

    async def system_task() -> None:
        await sync_to_async(order.append)("system task")
        ended.set()

    async def start() -> None:
        trio.lowlevel.spawn_system_task(system_task)
        await trio.testing.wait_all_tasks_blocked()

    def sync_code() -> None:
        trio.from_thread.run(start)
        order.append("sync code")

    await sync_to_async(sync_code)()
    with trio.fail_after(SECONDS):
        await ended.wait()
    assert order == ["sync code", "system task"]

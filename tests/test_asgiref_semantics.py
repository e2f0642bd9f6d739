"""What asgiref's users rely on beyond its two functions, on Trio as on asyncio.

Most of it was found by asgiref's own tests; see `asgiref_suite`.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import asgiref.sync
import pytest
import trio
from asgiref.local import Local
from asgiref.sync import (
    SyncToAsync,
    ThreadSensitiveContext,
    async_to_sync,
    sync_to_async,
)
from asgiref.wsgi import WsgiToAsgi

import trio_asgi
from thread_support import SECONDS, variable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

T = TypeVar("T")

current_thread = sync_to_async(threading.current_thread)

needs_executor = pytest.mark.skipif(
    "executor" not in inspect.signature(ThreadSensitiveContext).parameters,
    reason="this asgiref has no executors in its contexts",
)
needs_single_thread = pytest.mark.skipif(
    not hasattr(asgiref.sync, "AsyncSingleThreadContext"),
    reason="this asgiref has no AsyncSingleThreadContext",
)


class Loops:
    """Where a test runs: on asyncio with asgiref alone, or with the bridge, or on Trio.

    Every test has the same result on each.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, afn: Callable[[], Awaitable[T]]) -> T:
        """Run an async function in a new loop."""

        async def main() -> T:
            with trio.fail_after(SECONDS):
                return await afn()

        async def main_of_asyncio() -> T:
            return await asyncio.wait_for(afn(), SECONDS)

        if self.name == "trio":
            return trio.run(main)
        return asyncio.run(main_of_asyncio())


@pytest.fixture(params=["asgiref", "asyncio", "trio"])
def loops(request: pytest.FixtureRequest) -> Iterator[Loops]:
    """Provide each of the loops in turn."""
    trio_asgi.uninstall_bridge()
    if request.param != "asgiref":
        trio_asgi.install_bridge(async_to_sync_backend=request.param)
    yield Loops(request.param)
    trio_asgi.uninstall_bridge()
    trio_asgi.install_bridge()


@asynccontextmanager
async def open_tasks() -> AsyncIterator[Callable[[Callable[[], Any]], object]]:
    """Open a block that waits for the tasks started in it, on Trio and on asyncio.

    Yields:
        What starts an async function as a task, in a copy of the current context.
    """
    if trio.lowlevel.in_trio_task():
        async with trio.open_nursery() as nursery:
            yield nursery.start_soon
    else:
        tasks: list[asyncio.Future[object]] = []
        yield lambda afn: tasks.append(asyncio.ensure_future(afn()))
        await asyncio.gather(*tasks)


async def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for the effect of other tasks."""
    while not condition():
        if trio.lowlevel.in_trio_task():
            await trio.lowlevel.checkpoint()
        else:
            await asyncio.sleep(0)


# Subclasses of SyncToAsync, and tools that wrap its methods


class Noting(SyncToAsync[Any, Any]):
    """A bridge that does something before and after each call, in its thread."""

    def __init__(self, func: Callable[..., Any], **options: Any) -> None:
        super().__init__(func, **options)
        #: When, in which thread, and with which current error.
        self.seen: list[tuple[str, threading.Thread, BaseException | None]] = []

    def thread_handler(self, loop: Any, *args: Any, **kwargs: Any) -> Any:
        self.seen.append(("before", threading.current_thread(), sys.exc_info()[1]))
        try:
            return super().thread_handler(loop, *args, **kwargs)  # type: ignore[no-untyped-call] # asgiref's
        finally:
            self.seen.append(("after", threading.current_thread(), sys.exc_info()[1]))


@pytest.mark.parametrize("kind", ["sensitive", "insensitive", "executor"])
def test_a_subclass_surrounds_each_call(loops: Loops, kind: str) -> None:
    """An overridden ``thread_handler`` is called in the call's thread, around it.

    So Channels closes old connections before and after each call.
    """

    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            options: dict[str, Any] = {"thread_sensitive": kind == "sensitive"}
            if kind == "executor":
                options["executor"] = executor
            bridge = Noting(threading.current_thread, **options)
            thread = await bridge()
            assert bridge.seen == [("before", thread, None), ("after", thread, None)]

            error, callers = LookupError("of the call"), ValueError("of the caller")
            bridge = Noting(fail_with, **options)
            with pytest.raises(LookupError) as caught:
                try:
                    raise callers
                except ValueError:
                    await bridge(error)
            assert caught.value is error
            assert error.__context__ is callers
            assert [found for _, _, found in bridge.seen] == [None, error]

    loops.run(main)


def fail_with(error: BaseException) -> None:
    """Raise an error."""
    raise error


def test_a_tool_changes_the_keywords_of_a_call(loops: Loops) -> None:
    """``thread_handler`` gets the call as a partial, and may remove a keyword."""
    handed_over: list[object] = []

    class Tool(SyncToAsync[Any, Any]):
        def thread_handler(self, *args: Any, **kwargs: Any) -> Any:
            child = args[-1]
            assert isinstance(child, functools.partial)
            assert child.func is function
            assert child.args == ("value",)
            handed_over.append(child.keywords.pop("of_the_tool"))
            return super().thread_handler(*args, **kwargs)  # type: ignore[no-untyped-call] # asgiref's

    def function(value: str, *, key: str) -> tuple[str, str]:
        return value, key

    async def main() -> object:
        return await Tool(function)("value", key="key", of_the_tool="note")

    assert loops.run(main) == ("value", "key")
    assert handed_over == ["note"]


def test_a_call_on_trio_leaves_the_notes_of_asyncio() -> None:
    """A Trio run in asyncio's sync code hides the waiting loop only while it runs."""

    async def below() -> threading.Thread:
        assert trio.lowlevel.in_trio_task()
        return await current_thread()

    async def coroutine() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    def code() -> asyncio.AbstractEventLoop:
        new_run = async_to_sync(below, force_new_loop=True)
        assert new_run() is threading.current_thread()
        return async_to_sync(coroutine)()

    async def main() -> None:
        assert await sync_to_async(code)() is asyncio.get_running_loop()

    trio_asgi.install_bridge(async_to_sync_backend="trio")
    try:
        asyncio.run(main())
    finally:
        trio_asgi.install_bridge(async_to_sync_backend="asyncio")


# ThreadSensitiveContext


def test_a_context_has_a_thread_of_its_own(loops: Loops) -> None:
    """Sensitive code runs in the thread of the outermost context."""

    async def in_contexts() -> None:
        async with ThreadSensitiveContext() as context:
            assert SyncToAsync.thread_sensitive_context.get() is context
            thread = await current_thread()
            async with ThreadSensitiveContext():
                assert SyncToAsync.thread_sensitive_context.get() is context
                assert await current_thread() is thread
            assert await current_thread() is thread
        assert SyncToAsync.thread_sensitive_context.get(None) is None
        seen.append(thread)
        await wait_until(lambda: len(seen) == 2)

    async def main() -> None:
        async with open_tasks() as start:
            start(in_contexts)
            start(in_contexts)
        assert len({*seen, await current_thread(), threading.current_thread()}) == 4

    seen: list[threading.Thread] = []
    loops.run(main)


def test_a_context_below_sync_code(loops: Loops) -> None:
    """Below `async_to_sync`, a context leaves the code in the thread that waits."""

    threads: list[threading.Thread] = []
    outermost: ThreadSensitiveContext | None = None

    async def coroutine() -> None:
        async with ThreadSensitiveContext() as context:
            assert SyncToAsync.thread_sensitive_context.get() in (context, outermost)
            threads.append(await current_thread())
            async with open_tasks() as start:
                start(note)
            await sync_to_async(async_to_sync(note))()
        assert SyncToAsync.thread_sensitive_context.get(None) is outermost
        threads.append(await current_thread())

    async def note() -> None:
        threads.append(await current_thread())

    def code() -> None:
        threads.clear()
        async_to_sync(coroutine)()
        assert threads == [threading.current_thread()] * 4

    async def main() -> None:
        nonlocal outermost
        await sync_to_async(code)()
        async with ThreadSensitiveContext() as outermost:
            await sync_to_async(code)()
        outermost = None

    code()
    loops.run(main)


def test_a_call_after_its_context(loops: Loops) -> None:
    """A task that outlives a context can go on calling, but not in that thread."""

    left = False
    thread: threading.Thread | None = None

    async def late() -> None:
        nonlocal thread
        await wait_until(lambda: left)
        thread = await current_thread()

    async def main() -> None:
        nonlocal left
        async with open_tasks() as start:
            async with ThreadSensitiveContext():
                of_context = await current_thread()
                start(late)
            left = True
        assert thread is not None
        assert thread not in (of_context, threading.current_thread())

    loops.run(main)


def test_a_context_that_fails(loops: Loops) -> None:
    """An error of the block is raised, and the state before the block is restored."""

    async def main() -> None:
        before = await current_thread()
        with pytest.raises(LookupError):
            async with ThreadSensitiveContext():
                assert await current_thread() is not before
                raise LookupError
        assert SyncToAsync.thread_sensitive_context.get(None) is None
        assert await current_thread() is before

    loops.run(main)


@needs_executor
def test_executors_in_contexts(loops: Loops) -> None:
    """A context with an executor uses its thread, whatever encloses it.

    Context variables go there and come back; a thread-critical `Local` does not move.
    """
    critical, local = Local(thread_critical=True), Local()

    def look() -> tuple[threading.Thread, object, str, str]:
        seen = getattr(critical, "value", None), local.value, variable.get()
        critical.value = local.value = "changed"
        variable.set("changed")
        return threading.current_thread(), *seen

    async def in_executor(executor: ThreadPoolExecutor, seen: object) -> None:
        variable.set("task")
        local.value = "task"
        above = await current_thread()
        async with context(executor):
            thread, *found = await sync_to_async(look)()
            assert found == [seen, "task", "task"]
            assert (local.value, variable.get()) == ("changed", "changed")
            assert thread is not above
            async with ThreadSensitiveContext():
                assert await current_thread() is thread
            assert executor.submit(threading.current_thread).result() is thread
            with ThreadPoolExecutor(1) as other:
                async with context(other):
                    assert await current_thread() not in (thread, above)
            assert await current_thread() is thread
            below = async_to_sync(current_thread)
            assert await sync_to_async(below)() is thread
        assert await current_thread() is above

    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            await in_executor(executor, None)
            async with ThreadSensitiveContext():
                await in_executor(executor, "changed")
            sync = async_to_sync(in_executor)
            await sync_to_async(sync)(executor, "changed")

    contextvars.copy_context().run(loops.run, main)


def context(executor: ThreadPoolExecutor) -> ThreadSensitiveContext:
    """Return a context with an executor. Not for every asgiref."""
    make: Any = ThreadSensitiveContext
    made: ThreadSensitiveContext = make(executor=executor)
    return made


async def enter(context: Any) -> None:
    """Enter a context by hand."""
    await context.__aenter__()


@needs_executor
def test_a_context_with_an_executor_is_entered_once(loops: Loops) -> None:
    """It cannot be entered again, and a task that outlives it can make no call."""

    left = False
    refused: list[str] = []

    async def late() -> None:
        await wait_until(lambda: left)
        with pytest.raises(RuntimeError, match="ThreadSensitiveContext has exited"):
            await current_thread()
        refused.append("late")

    async def main() -> None:
        nonlocal left
        with ThreadPoolExecutor(1) as executor:
            async with open_tasks() as start:
                once = context(executor)
                async with once:
                    with pytest.raises(RuntimeError, match="already entered"):
                        await enter(once)
                    start(late)
                with pytest.raises(RuntimeError, match="cannot be entered again"):
                    await enter(once)
                left = True

    loops.run(main)
    assert refused == ["late"]


# Deadlocks


@pytest.mark.parametrize("sensitive", [True, False])
def test_a_task_of_sync_code_that_waits_for_the_same_thread(
    loops: Loops, sensitive: bool
) -> None:
    """Sync code that waits for a task that it has started does not hang.

    In the program's one thread, the task's sensitive call is refused.
    """
    done = threading.Event()
    errors: list[str] = []

    async def task() -> None:
        try:
            await sync_to_async(done.set, thread_sensitive=sensitive)()
        except RuntimeError as error:
            errors.append(str(error).partition(",")[0])
            done.set()

    async def main() -> None:
        def code() -> bool:
            in_loop(start, task)
            return done.wait(SECONDS)

        in_loop: Any = trio.from_thread.run_sync
        if loops.name != "trio":
            in_loop = asyncio.get_running_loop().call_soon_threadsafe
        async with open_tasks() as start:
            assert await sync_to_async(code)()
        # The thread is free again.
        await current_thread()

    loops.run(main)
    refused = ["Single thread executor already being used"]
    assert errors == (refused if sensitive else [])


async def test_a_task_of_sync_code_that_made_calls_before() -> None:
    """Calls that the sync code has made through `async_to_sync` change nothing.

    Here asgiref hangs.
    """

    async def task() -> None:
        with pytest.raises(RuntimeError, match="would deadlock"):
            await current_thread()
        done.set()

    def code() -> bool:
        assert async_to_sync(current_thread)() is threading.current_thread()
        trio.from_thread.run_sync(nursery.start_soon, task)
        return done.wait(SECONDS)

    done = threading.Event()
    async with trio.open_nursery() as nursery:
        assert await sync_to_async(code)()


async def test_a_task_of_sync_code_that_has_ended() -> None:
    """As soon as the sync code that started a task has ended, the task may call.

    Here asgiref goes on refusing.
    """

    async def task() -> None:
        await ended.wait()
        threads.append(await current_thread())

    threads: list[threading.Thread] = []
    ended = trio.Event()
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            start = functools.partial(nursery.start_soon, task)
            await sync_to_async(trio.from_thread.run_sync)(start)
            ended.set()
        assert threads == [await current_thread()]


async def test_a_task_of_sync_code_in_a_context() -> None:
    """In a context with its own thread, such a task's call waits for its turn."""

    async def task() -> None:
        order.append("task")
        await sync_to_async(order.append)("call of the task")

    def code() -> None:
        trio.from_thread.run_sync(nursery.start_soon, task)
        trio.from_thread.run(wait_until, lambda: bool(order))
        order.append("code")

    order: list[str] = []
    with trio.fail_after(SECONDS):
        async with ThreadSensitiveContext(), trio.open_nursery() as nursery:
            await sync_to_async(code)()
    assert order == ["task", "code", "call of the task"]


# Cancellation


async def test_a_view_that_finishes_its_work_after_a_cancellation() -> None:
    """A cancellation reaches the coroutine below any number of layers, once.

    Its shielded code, and other tasks' work for it, are not disturbed; and if it then
    ends normally, all layers return.
    """
    order: list[str] = []

    async def view() -> str:
        try:
            scope.cancel()
            await trio.sleep_forever()
        except trio.Cancelled:
            order.append("cancelled")
        with trio.CancelScope(shield=True):
            go_on.set()
            await worked.wait()
            order.append(await sync_to_async(lambda: "sync code")())
        return "response"

    async def work() -> None:
        await go_on.wait()
        await sync_to_async(async_to_sync(trio.lowlevel.checkpoint))()
        order.append("work")
        worked.set()

    def middleware(get_response: Callable[[], Awaitable[str]]) -> str:
        return async_to_sync(get_response)()

    async def async_middleware() -> str:
        return await sync_to_async(middleware)(view)

    go_on, worked = trio.Event(), trio.Event()
    response = "none"
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            async with ThreadSensitiveContext():
                with trio.CancelScope() as scope:
                    response = await sync_to_async(middleware)(async_middleware)
    assert response == "response"
    assert order == ["cancelled", "work", "sync code"]
    assert not scope.cancelled_caught


@needs_executor
async def test_a_cancelled_call_in_an_executor_is_waited_for() -> None:
    """The block of a context ends when the executor's thread has finished its call."""

    def code() -> None:
        trio.from_thread.run_sync(scope.cancel)
        trio.from_thread.run_sync(order.append, "code")

    order: list[str] = []
    with ThreadPoolExecutor(1) as executor:
        with trio.CancelScope() as scope:
            async with context(executor):
                await sync_to_async(code)()
        order.append("left")
        assert executor.submit(lambda: "usable").result() == "usable"
    assert order == ["code", "left"]


# Which loop


@needs_single_thread
def test_one_thread_for_several_coroutines(loops: Loops) -> None:
    """In an `AsyncSingleThreadContext` all coroutines run in one thread.

    That is the loop's thread, where there is a loop.
    """

    async def coroutine() -> threading.Thread:
        variable.set(variable.get() + "+")
        return threading.current_thread()

    def code() -> set[threading.Thread]:
        variable.set("")
        single: Any = asgiref.sync.AsyncSingleThreadContext  # type: ignore[attr-defined,unused-ignore] # newer
        with single():
            threads = {async_to_sync(coroutine)()}
            with single():
                threads.add(async_to_sync(coroutine)())
            threads.add(async_to_sync(coroutine)())
        assert variable.get() == "+++"
        return threads

    async def main() -> bool:
        return await sync_to_async(code)() == {threading.current_thread()}

    (thread,) = contextvars.copy_context().run(code)
    assert thread is not threading.current_thread()
    assert not thread.is_alive()
    assert loops.run(main)


def test_a_bridge_made_in_a_loop_that_has_ended(loops: Loops) -> None:
    """A bridge made in a loop starts a new one when that loop has ended."""

    async def coroutine() -> str:
        return await sync_to_async(lambda: "called")()

    async def make() -> Callable[[], str]:
        return async_to_sync(coroutine)

    async def make_in_thread() -> Callable[[], str]:
        return await sync_to_async(lambda: async_to_sync(coroutine))()

    with ThreadPoolExecutor(1) as executor:
        for maker in (make, make_in_thread):
            bridge = loops.run(maker)
            assert bridge() == "called"
            assert executor.submit(bridge).result(SECONDS) == "called"


def test_critical_locals(loops: Loops) -> None:
    """A critical `Local` is the thread's in sync code, the task's in async code."""
    local = Local(thread_critical=True)

    def in_thread(value: str) -> str | None:
        found = getattr(local, "value", None)
        local.value = value
        return found

    async def in_task(value: str) -> None:
        local.value = value
        seen.append(value)
        await wait_until(lambda: len(seen) == 2)
        assert local.value == value

    async def main() -> None:
        local.value = "main"
        assert await sync_to_async(in_thread)("thread") is None
        assert await sync_to_async(in_thread)("again") == "thread"
        assert local.value == "main"
        async with open_tasks() as start:
            start(functools.partial(in_task, "one"))
            start(functools.partial(in_task, "other"))
        assert local.value == "main"

    seen: list[str] = []
    loops.run(main)


# WSGI


def test_wsgi_applications(loops: Loops) -> None:
    """asgiref's `WsgiToAsgi` serves a WSGI application."""

    def application(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("X-Test", environ["PATH_INFO"])])
        yield environ["wsgi.input"].read()
        yield b" and more"

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"body"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def main() -> None:
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "path": "/path",
            "query_string": b"",
            "headers": [],
        }
        wrapped: Any = WsgiToAsgi
        await wrapped(application)(scope, receive, send)

    sent: list[dict[str, Any]] = []
    loops.run(main)
    assert sent[0]["headers"] == [(b"x-test", b"/path")]
    assert b"".join(part.get("body", b"") for part in sent) == b"body and more"

"""`async_to_sync` where no loop runs: what it starts, whom it serves, how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import os
import sys
import threading
import traceback
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from asgiref.local import Local
from asgiref.sync import SyncToAsync, async_to_sync, sync_to_async
from django.contrib.sessions.models import Session
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection, connections, transaction
from django.utils import timezone

import trio_asgi
from support import frees_at_once
from thread_support import SECONDS, run_script, variable
from trio_asgi.threads.call import calling
from trio_asgi.threads.current import current_pool
from trio_asgi.threads.loop import current_loop
from trio_asgi.threads.new_run import run_in_new_run
from trio_asgi.threads.trio_state import in_trio_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup, ExceptionGroup


@pytest.fixture(autouse=True)
def async_to_sync_backend() -> Iterator[None]:
    """Let `async_to_sync` start Trio, unless a test says otherwise."""
    trio_asgi.install_bridge(async_to_sync_backend="trio")
    yield
    trio_asgi.install_bridge(async_to_sync_backend="asyncio")


def nothing() -> None:
    """Sync code that does nothing."""


async def checkpoint() -> None:
    """Let other tasks run, on Trio and on asyncio."""
    if trio.lowlevel.in_trio_task():
        await trio.lowlevel.checkpoint()
    else:
        await asyncio.sleep(0)


async def at_once(*afns: Callable[[], Awaitable[None]]) -> None:
    """Run coroutine functions as tasks, on Trio and on asyncio."""
    if trio.lowlevel.in_trio_task():
        async with trio.open_nursery() as nursery:
            for afn in afns:
                nursery.start_soon(afn)
    else:
        await asyncio.gather(*(afn() for afn in afns))


def in_other_thread(fn: Callable[[], object]) -> object:
    """Run sync code in a thread of no program or pool."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(fn).result()


# The same on Trio as on asyncio: async_to_sync in sync code

Scenario = Any
scenarios: list[tuple[Scenario, object]] = []


def means(expected: object) -> Callable[[Scenario], Scenario]:
    """Mark a scenario with what it returns, on Trio as on asyncio."""

    def register(scenario: Scenario) -> Scenario:
        scenarios.append((scenario, expected))
        return scenario

    return register


def exchange(new: str) -> str:
    """Set the variable, and return its previous value."""
    old = variable.get()
    variable.set(new)
    return old


@means((["program", "coroutine", "thread", "inner coroutine"], "coroutine again"))
def context_variables() -> object:
    """Context variables go into a coroutine, and all changes come back."""
    seen: list[str] = []

    async def inner() -> None:
        await checkpoint()
        seen.append(exchange("inner coroutine"))

    def code() -> None:
        seen.append(exchange("thread"))
        async_to_sync(inner)()

    async def coroutine() -> None:
        seen.append(exchange("coroutine"))
        await checkpoint()
        await sync_to_async(code)()
        seen.append(exchange("coroutine again"))

    variable.set("program")
    async_to_sync(coroutine)()
    return seen, variable.get()


@means(("coroutine", "thread"))
def context_after_errors() -> object:
    """Changes come back even from a coroutine that fails."""

    async def failing() -> None:
        variable.set("coroutine")
        raise LookupError

    def failing_code() -> None:
        variable.set("thread")
        raise LookupError

    with contextlib.suppress(LookupError):
        async_to_sync(failing)()
    first = variable.get()
    with contextlib.suppress(LookupError):
        async_to_sync(sync_to_async(failing_code))()
    return first, variable.get()


@means(("program", "program", "sibling"))
def context_of_tasks() -> object:
    """Tasks that the coroutine starts have copies, whose changes stay there."""
    seen: list[str] = []

    async def sibling() -> None:
        await sync_to_async(lambda: seen.append(variable.get()))()
        variable.set("sibling")
        await sync_to_async(lambda: seen.append(variable.get()))()

    variable.set("program")
    async_to_sync(at_once)(sibling)
    return variable.get(), *seen


@means((["program", "coroutine", "thread"], "inner", "inner"))
def asgiref_local() -> object:
    """A `Local` moves into the coroutine, into the sync code below, and back."""
    local = Local()
    seen: list[str] = []

    def replace(value: str) -> None:
        seen.append(local.value)
        local.value = value

    async def inner() -> None:
        await checkpoint()
        replace("inner")

    def code() -> str:
        replace("thread")
        async_to_sync(inner)()
        return str(local.value)

    async def coroutine() -> str:
        replace("coroutine")
        return await sync_to_async(code)()

    local.value = "program"
    # The same for a Local that has a value only later.
    return seen, async_to_sync(coroutine)(), local.value


@means(("AttributeError", "set", "AttributeError"))
def asgiref_local_appears_and_vanishes() -> object:
    """An attribute of a `Local` can be set and deleted by the coroutine."""
    local = Local()

    def look() -> str:
        try:
            return str(local.value)
        except AttributeError:
            return "AttributeError"

    async def set_value() -> None:
        local.value = "set"

    async def delete() -> None:
        del local.value

    before = look()
    async_to_sync(set_value)()
    between = look()
    async_to_sync(delete)()
    return before, between, look()


@means(("program", "no value", "program"))
def thread_critical_local() -> object:
    """A thread-critical `Local` is not moved: it stays in the calling thread."""
    local = Local(thread_critical=True)

    async def coroutine() -> tuple[str, str]:
        outside = getattr(local, "value", "no value")
        local.value = "coroutine"
        return await sync_to_async(lambda: str(local.value))(), outside

    local.value = "program"
    in_thread, outside = async_to_sync(coroutine)()
    return in_thread, outside, local.value


@means((True, True, None, True))
def current_error() -> object:
    """`sys.exc_info()` in the coroutine, and in sync code below, is the caller's."""
    seen: list[BaseException | None] = []

    def look() -> None:
        seen.append(sys.exc_info()[1])

    async def coroutine() -> None:
        await checkpoint()
        look()
        await sync_to_async(look)()

    error = LookupError()
    try:
        raise error
    except LookupError:
        async_to_sync(coroutine)()

    async def handles() -> None:
        look()
        try:
            raise error
        except LookupError:
            await sync_to_async(look)()

    async_to_sync(handles)()
    return seen[0] is error, seen[1] is error, seen[2], seen[3] is error


@means(("inner", "outer", None))
def chained_errors() -> object:
    """An error of the coroutine names the one that its caller was handling."""

    async def failing() -> None:
        await checkpoint()
        raise LookupError("inner")

    try:
        try:
            raise ValueError("outer")
        except ValueError:
            async_to_sync(failing)()
    except LookupError as error:
        context = error.__context__
        return str(error), str(context), context and context.__context__
    raise AssertionError


@means(["None", "None", "errors_cross", "coroutine", "code", "inner", "raiser"])
def errors_cross() -> object:
    """An error crosses all bridges, and its traceback shows the way."""

    def raiser() -> None:
        raise LookupError

    async def inner() -> None:
        await sync_to_async(raiser)()

    def code() -> None:
        async_to_sync(inner)()

    async def coroutine() -> None:
        await sync_to_async(code)()

    try:
        async_to_sync(coroutine)()
    except LookupError as error:
        names = [repr(error.__context__), repr(error.__cause__)]
        names += [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    return [
        name
        for name in names
        if name in ("None", "errors_cross", "raiser", "coroutine", "code", "inner")
    ]


@means([True] * 8)
def any_exception() -> object:
    """Any error of a coroutine or the sync code below arrives as the same object."""
    same: list[bool] = []

    def raiser(error: BaseException) -> None:
        raise error

    async def coroutine(error: BaseException) -> None:
        await checkpoint()
        raise error

    for make in (SystemExit, KeyboardInterrupt, GeneratorExit, LookupError):
        for afn in (coroutine, sync_to_async(raiser)):
            error = make("it")
            try:
                async_to_sync(afn)(error)
            except BaseException as caught:
                same.append(caught is error)
    return same


@means(("ExceptionGroup('group', [LookupError(1), ValueError(2)])", True))
def exception_groups() -> object:
    """A group arrives unchanged, and so does one that ends a program."""

    async def coroutine(group: BaseExceptionGroup[BaseException]) -> None:
        await checkpoint()
        raise group

    try:
        async_to_sync(coroutine)(
            ExceptionGroup("group", [LookupError(1), ValueError(2)])
        )
    except ExceptionGroup as group:
        text = repr(group)
    ending = BaseExceptionGroup("ends", [KeyboardInterrupt(), SystemExit(3)])
    try:
        async_to_sync(coroutine)(ending)
    except BaseExceptionGroup as caught:
        return text, caught is ending
    raise AssertionError


@means((True, True, False, True))
def threads() -> object:
    """Sensitive code runs in the calling thread, even in tasks; other code does not."""
    here = threading.current_thread()
    seen: set[threading.Thread] = set()

    async def note() -> None:
        for _ in range(3):
            seen.add(await sync_to_async(threading.current_thread)())

    async def coroutine() -> tuple[threading.Thread, threading.Thread]:
        await at_once(note, note, note)
        other = sync_to_async(threading.current_thread, thread_sensitive=False)
        return threading.current_thread(), await other()

    own, other = async_to_sync(coroutine)()
    return seen == {here}, own is not here, other is here, other is not own


@means((9, True))
def deep_nesting() -> object:
    """Bridges nest to any depth; all sync code is in the calling thread."""
    seen: set[threading.Thread] = set()

    def down(depth: int) -> int:
        seen.add(threading.current_thread())
        return 0 if depth == 0 else async_to_sync(coroutine)(depth)

    async def coroutine(depth: int) -> int:
        await checkpoint()
        return 1 + await sync_to_async(down)(depth - 1)

    return down(9), seen == {threading.current_thread()}


@means((5, True))
def deep_nesting_of_new_loops() -> object:
    """So do loops that are new each time."""
    seen: set[threading.Thread] = set()

    def down(depth: int) -> int:
        seen.add(threading.current_thread())
        if depth == 0:
            return 0
        return async_to_sync(coroutine, force_new_loop=True)(depth)

    async def coroutine(depth: int) -> int:
        await checkpoint()
        return 1 + await sync_to_async(down)(depth - 1)

    return down(5), seen == {threading.current_thread()}


@means(("You cannot use AsyncToSync in the same thread as an async event loop", 0))
def blocking_bridge_in_the_coroutine() -> object:
    """`async_to_sync` in the coroutine itself is refused."""
    made = 0

    async def inner() -> None:
        nonlocal made
        made += 1

    async def coroutine() -> str:
        try:
            async_to_sync(inner)()
        except RuntimeError as error:
            return str(error).partition(" -")[0]
        raise AssertionError

    return async_to_sync(coroutine)(), made


@means((True, False))
def guard_of_the_orm() -> object:
    """The ORM refuses to run in the coroutine, and runs in sync code below."""

    def refuses() -> bool:
        try:
            connection.cursor().close()
        except SynchronousOnlyOperation:
            return True
        close()
        return False

    async def coroutine() -> tuple[bool, bool]:
        return refuses(), await sync_to_async(refuses)()

    return async_to_sync(coroutine)()


@means(("called", ("object", 1, 2), "called"))
def callables() -> object:
    """Bridged functions, methods and objects can be called this way."""

    class Callable_:  # noqa: N801
        name = "object"

        async def __call__(self) -> str:
            return "called"

        @async_to_sync
        async def method(self, *args: int, key: int) -> object:
            await checkpoint()
            return self.name, *args, key

    return (
        async_to_sync(sync_to_async(lambda: "called"))(),
        Callable_().method(1, key=2),
        async_to_sync(Callable_())(),
    )


@means(([("inside", 1), ("outside", 0)], 1, ["a row", "another row"]))
def transactions() -> object:
    """The coroutine sees the caller's open transaction."""
    seen: list[tuple[str, int]] = []

    async def create() -> int:
        await Session.objects.acreate(session_key="2", expire_date=timezone.now())
        assert await sync_to_async(lambda: connection.in_atomic_block)()
        session = await Session.objects.aget(session_key="1")
        session.session_data = "another row"
        await session.asave()
        keys = [each.pk async for each in Session.objects.order_by("pk")]
        assert keys == ["1", "2"]
        return await Session.objects.filter(session_key="1").acount()

    async def count() -> int:
        return await Session.objects.acount()

    with connection.schema_editor() as editor:
        editor.create_model(Session)
    try:
        row: Any = functools.partial(Session.objects.create, expire_date=timezone.now())
        row(session_key="1", session_data="a row")
        before = Session.objects.get(session_key="1").session_data
        with transaction.atomic():
            found = async_to_sync(create)()
            after = Session.objects.get(session_key="1").session_data
            seen.append(("inside", async_to_sync(count)() - 1))
            transaction.set_rollback(True)
        seen.append(("outside", async_to_sync(count)() - 1))
    finally:
        close()
    return seen, found, [before, after]


@means(["inner", "sync code", "outer"])
def order_of_clean_up() -> object:
    """An error unwinds all sides in order."""
    order: list[str] = []

    async def inner() -> None:
        try:
            await checkpoint()
            raise LookupError
        finally:
            await checkpoint()
            order.append("inner")

    def code() -> None:
        try:
            async_to_sync(inner)()
        finally:
            order.append("sync code")

    async def outer() -> None:
        try:
            await sync_to_async(code)()
        finally:
            order.append("outer")

    with contextlib.suppress(LookupError):
        async_to_sync(outer)()
    return order


def in_worker_thread(fn: Callable[[], object]) -> object:
    """Run sync code that starts a new loop in a thread that a Trio task waits for."""

    async def main() -> object:
        with trio.fail_after(SECONDS):
            return await sync_to_async(fn)()

    return trio.run(main)


def in_thread_of_trios(fn: Callable[[], object]) -> object:
    """Run it in one of Trio's own threads."""
    return trio.run(trio.to_thread.run_sync, fn)


def in_coroutine_of_asyncios(fn: Callable[[], object]) -> object:
    """Run it in sync code that an asyncio task waits for."""
    return asyncio.run(sync_to_async(fn)())


def below_async_to_sync(fn: Callable[[], object]) -> object:
    """Run it in sync code below another call."""
    return async_to_sync(sync_to_async(fn))()


@pytest.fixture(autouse=True)
def database(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use a database in memory, which is separate for each connection."""
    monkeypatch.setitem(connections.databases["default"], "NAME", ":memory:")
    # The wrapper of this thread has read the name already.
    outer, connections["default"] = (
        connections["default"],
        connections.create_connection("default"),
    )
    yield
    connections["default"] = outer


def close() -> None:
    """Close the connection of this thread: Django leaves in-memory ones open."""
    if connection.connection is not None:
        connection.connection.close()
        connection.connection = None


@pytest.mark.parametrize(
    "place",
    [
        lambda fn: fn(),
        in_other_thread,
        in_worker_thread,
        in_thread_of_trios,
        in_coroutine_of_asyncios,
        below_async_to_sync,
    ],
    ids=["main", "other", "worker", "trios", "asyncios", "below"],
)
@pytest.mark.parametrize("loops", ["trio", "asyncio"])
@pytest.mark.parametrize(
    ("scenario", "expected"),
    [pytest.param(*each, id=each[0].__name__) for each in scenarios],
)
def test_scenario(
    scenario: Callable[[], object], expected: object, loops: Any, place: Any
) -> None:
    """Sync code and its coroutine see the same, whichever loop runs it and where."""
    trio_asgi.install_bridge(async_to_sync_backend=loops)
    context = contextvars.copy_context()
    assert place(lambda: context.run(scenario)) == expected


# Which loop runs it


async def library() -> str:
    """Return which library runs this."""
    await checkpoint()
    return "trio" if trio.lowlevel.in_trio_task() else "asyncio"


def call() -> str:
    """Run a coroutine where no loop runs."""
    return async_to_sync(library)()


def call_new() -> str:
    """Run a coroutine in a new loop."""
    return async_to_sync(library, force_new_loop=True)()


@pytest.mark.parametrize("loops", ["trio", "asyncio"])
def test_which_loop(loops: Any) -> None:
    """New loops are of the chosen kind; a loop that waits for the thread is used."""
    trio_asgi.install_bridge(async_to_sync_backend=loops)
    for place in (lambda fn: fn(), in_other_thread, below_async_to_sync):
        assert place(call) == loops
        assert place(call_new) == loops
    for place in (in_worker_thread, in_thread_of_trios):
        assert place(call) == "trio"
        assert place(call_new) == loops
        # The new loop leaves nothing that would hide the task.
        assert place(lambda: [call_new(), call(), call_new(), call()]) == [
            loops,
            "trio",
            loops,
            "trio",
        ]
    assert in_coroutine_of_asyncios(call) == "asyncio"
    assert in_coroutine_of_asyncios(call_new) == loops
    assert in_coroutine_of_asyncios(lambda: [call_new(), call()]) == [loops, "asyncio"]


def test_asyncios_own_loop_is_used_while_it_runs() -> None:
    """In threads of a program on asyncio, a coroutine runs in the program's loop."""

    async def current_loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for sensitive in (True, False):
            bridge = sync_to_async(
                async_to_sync(current_loop), thread_sensitive=sensitive
            )
            assert await bridge() is loop
        # A thread that the program has started itself belongs to no loop.
        assert await loop.run_in_executor(ThreadPoolExecutor(1), call) == "trio"

    asyncio.run(main())


def test_a_loop_that_has_ended_is_no_loop() -> None:
    """asgiref's note of an earlier loop hides neither choice nor task."""
    notes = vars(SyncToAsync.threadlocal)
    notes.clear()
    trio_asgi.install_bridge(async_to_sync_backend="asyncio")
    # In this very thread.
    assert async_to_sync(sync_to_async(call))() == "asyncio"
    assert notes["main_event_loop"].is_closed()
    trio_asgi.install_bridge(async_to_sync_backend="trio")
    assert call() == "trio"
    assert below_async_to_sync(call) == "trio"
    notes.clear()


def test_a_leftover_loop_in_a_worker_thread() -> None:
    """Nor does the note of a loop that sync code of a Trio task has run itself."""

    async def main() -> None:
        trio_asgi.install_bridge(async_to_sync_backend="asyncio")
        task = trio.lowlevel.current_task()
        this_task = async_to_sync(current_task)
        for _ in range(2):
            assert await sync_to_async(call_new)() == "asyncio"
            assert await sync_to_async(lambda: asyncio.run(library()))() == "asyncio"
            nested: Any = sync_to_async(
                async_to_sync(sync_to_async(call), force_new_loop=True)
            )
            assert await nested() == "asyncio"
            assert await sync_to_async(lambda: vars(SyncToAsync.threadlocal))() == {}
            assert await sync_to_async(this_task)() is task
            assert await trio.to_thread.run_sync(call_new) == "asyncio"
            assert await trio.to_thread.run_sync(this_task) is task

    async def current_task() -> trio.lowlevel.Task:
        return trio.lowlevel.current_task()

    trio.run(main)


@pytest.mark.parametrize("loops", ["trio", "asyncio"])
def test_a_new_loop_hides_the_waiting_task_only_while_it_runs(loops: Any) -> None:
    """Sync code below a new loop belongs to it; afterwards all is as before."""
    trio_asgi.install_bridge(async_to_sync_backend=loops)
    task: Any = None

    def look() -> bool:
        return in_trio_thread()

    async def coroutine() -> bool:
        return await sync_to_async(look)()

    def code() -> None:
        call = calling()
        assert call is not None
        assert async_to_sync(coroutine, force_new_loop=True)() is (loops == "trio")
        assert calling() is call
        trio.from_thread.check_cancelled()
        assert trio.from_thread.run_sync(trio.lowlevel.current_task) is task
        assert async_to_sync(coroutine)() is True

    async def main() -> None:
        nonlocal task
        task = trio.lowlevel.current_task()
        await sync_to_async(code)()

    trio.run(main)


# The run


async def agen(order: list[str]) -> AsyncIterator[None]:
    """An async generator whose end calls sync code."""
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            await trio.lowlevel.checkpoint()
            thread = await sync_to_async(threading.current_thread)()
            order.append("sync" if thread is threading.main_thread() else "other")


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
def test_async_generators_are_finalized() -> None:
    """Generators that are left open end with the run, and call the caller's thread."""
    order: list[str] = []
    left: list[AsyncIterator[None]] = []

    async def coroutine() -> None:
        generator = agen(order)
        left.append(generator)
        async for _ in generator:
            break

    async_to_sync(coroutine)()
    assert order == ["sync"]


def test_system_tasks_call_sync_code_at_the_end_of_the_run() -> None:
    """A system task that is cancelled at the end still has the caller's thread."""
    seen: list[threading.Thread] = []

    async def system_task() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                seen.append(await sync_to_async(threading.current_thread)())

    async def coroutine() -> None:
        await sync_to_async(nothing)()
        trio.lowlevel.spawn_system_task(system_task)
        await trio.testing.wait_all_tasks_blocked()

    async_to_sync(coroutine)()
    assert seen == [threading.current_thread()]


def test_a_run_that_crashes() -> None:
    """An error of Trio's own run is raised, and the next run works."""

    async def crash() -> None:
        raise LookupError("in a system task")

    async def coroutine() -> None:
        trio.lowlevel.spawn_system_task(crash)
        await trio.sleep_forever()

    with pytest.raises(trio.TrioInternalError) as caught:
        async_to_sync(coroutine)()
    assert "in a system task" in "".join(traceback.format_exception(caught.value))
    assert call() == "trio"


def test_a_thread_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the system can start no more threads the call raises; no coroutine is left."""
    awaited: list[Any] = []

    def start(*args: object) -> None:
        raise RuntimeError("can't start new thread")

    async def coroutine() -> None:
        await checkpoint()

    @functools.wraps(coroutine)
    def made() -> Any:
        awaited.append(coroutine())
        return awaited[-1]

    with monkeypatch.context() as patch:
        patch.setattr(trio.lowlevel, "start_thread_soon", start)
        with (
            pytest.raises(RuntimeError, match="can't start"),
            pytest.warns(UserWarning, match="non-async-marked"),
        ):
            async_to_sync(made)()
    with pytest.raises(RuntimeError, match="cannot reuse already awaited"):
        awaited[0].send(None)
    assert calling() is None
    assert call() == "trio"


def test_arguments_that_do_not_fit() -> None:
    """The error of a call is the function's own, and nothing is started."""
    before = threading.active_count()
    with pytest.raises(TypeError, match="unexpected keyword"):
        async_to_sync(library)(key=1)  # type: ignore[call-arg] # that is the point
    assert threading.active_count() == before


def test_many_threads_at_once() -> None:
    """Each thread has its own run, with its own sync code."""
    barrier = threading.Barrier(8)

    async def coroutine(number: int) -> tuple[int, Any, Any, str]:
        await sync_to_async(barrier.wait)(SECONDS)
        threads = {await sync_to_async(threading.current_thread)() for _ in range(5)}
        token = trio.lowlevel.current_trio_token()
        await sync_to_async(barrier.wait)(SECONDS)
        return number, threads, token, variable.get()

    def program(number: int) -> Any:
        variable.set(str(number))
        found, threads, token, value = async_to_sync(coroutine)(number)
        assert (found, value) == (number, str(number))
        assert threads == {threading.current_thread()}
        return token

    with ThreadPoolExecutor(8) as executor:
        for _ in range(5):
            tokens = list(executor.map(program, range(8)))
            assert len(set(tokens)) == 8


def test_it_leaves_no_thread_but_trios() -> None:
    """When the call returns, the threads of the run's pool have ended."""

    async def coroutine() -> threading.Thread:
        return await sync_to_async(threading.current_thread, thread_sensitive=False)()

    assert not async_to_sync(coroutine)().is_alive()


def test_where_sync_code_stands_does_not_travel() -> None:
    """The calling thread's context does not belong to the run."""

    def look() -> bool:
        return current_loop.get() is None

    async def coroutine() -> None:
        await sync_to_async(nothing)()

    def program() -> None:
        async_to_sync(coroutine)()
        assert current_loop.get() is None
        assert calling() is None
        assert not in_trio_thread()
        assert not trio.lowlevel.in_trio_task()

    contextvars.copy_context().run(program)


def test_a_limit_of_one_thread() -> None:
    """Nested insensitive code needs no second thread of the limit to go on."""

    async def coroutine(depth: int) -> int:
        if depth == 0:
            return 0
        current_pool().queue.set_threads(1)
        run = sync_to_async(async_to_sync(coroutine), thread_sensitive=depth % 2 == 0)
        return 1 + await run(depth - 1)

    assert async_to_sync(coroutine)(6) == 6


def test_trio_options() -> None:
    """Options of `trio.run` can be given: a clock, for example."""
    clock = trio.testing.MockClock(autojump_threshold=0)

    async def sleeps() -> str:
        await trio.sleep(3600)
        return "slept"

    result, _ = run_in_new_run(sleeps, clock=clock)
    assert result.unwrap() == "slept"
    assert clock.current_time() >= 3600


# Cancellation


async def waits(order: list[str], name: str) -> None:
    """Wait for ever, and report when that has ended."""
    try:
        await trio.sleep_forever()
    finally:
        order.append(name)


def test_a_scope_below_sync_code() -> None:
    """A scope of the run reaches through sync code of the calling thread."""
    order: list[str] = []

    def code(scope: trio.CancelScope) -> None:
        try:
            async_to_sync(inner)(scope)
        finally:
            order.append("sync code")

    async def inner(scope: trio.CancelScope) -> None:
        scope.cancel()
        await waits(order, "inner")

    async def coroutine() -> str:
        with trio.CancelScope() as scope:
            await sync_to_async(code)(scope)
        assert scope.cancelled_caught
        assert await sync_to_async(lambda: "usable")() == "usable"
        return "went on"

    assert async_to_sync(coroutine)() == "went on"
    assert order == ["inner", "sync code"]


def test_cancelled_calls_that_wait_are_never_made() -> None:
    """Of several calls, the one that runs is waited for; the others are dropped."""
    made: list[str] = []
    go_on = threading.Event()
    entered: Any = None

    def first() -> None:
        trio.from_thread.run_sync(entered.set)
        assert go_on.wait(SECONDS)
        made.append("first")

    async def coroutine() -> None:
        nonlocal entered
        entered = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sync_to_async(first))
            await entered.wait()
            nursery.start_soon(sync_to_async(made.append), "second")
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            go_on.set()

    async_to_sync(coroutine)()
    assert made == ["first"]


def test_cancelled_comes_to_the_caller_of_nobody() -> None:
    """A coroutine that raises `Cancelled` by itself ends with that error."""
    caught: list[BaseException] = []

    async def coroutine() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.sleep_forever()
            except trio.Cancelled as error:
                caught.append(error)
        raise caught[0]

    with pytest.raises(trio.Cancelled):
        async_to_sync(coroutine)()


# Trio's threads that no task waits for


async def abandon(fn: Callable[[], object]) -> None:
    """Start sync code in a Trio thread, and abandon it when it has begun."""
    entered = trio.Event()

    def code() -> None:
        trio.from_thread.run_sync(entered.set)
        fn()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            functools.partial(trio.to_thread.run_sync, code, abandon_on_cancel=True)
        )
        await entered.wait()
        nursery.cancel_scope.cancel()


def test_code_that_was_abandoned_runs_coroutines() -> None:
    """They run in a new task; sensitive code in the thread that waits."""
    go_on, done = threading.Event(), threading.Event()
    found: list[object] = []
    main_task: Any = None

    async def coroutine() -> bool:
        await trio.lowlevel.checkpoint()
        thread = await sync_to_async(threading.current_thread)()
        assert variable.get() == "thread"
        variable.set("coroutine")
        found.append(thread)
        return trio.lowlevel.current_task() is not main_task

    def code() -> None:
        assert go_on.wait(SECONDS)
        variable.set("thread")
        found.append(async_to_sync(coroutine)())
        found.append(variable.get())
        found.append(threading.current_thread())
        done.set()

    async def main() -> None:
        nonlocal main_task
        main_task = trio.lowlevel.current_task()
        await abandon(code)
        go_on.set()
        with trio.fail_after(SECONDS):
            await trio.to_thread.run_sync(done.wait, SECONDS)

    trio.run(main)
    assert found[1:] == [True, "coroutine", found[0]]


def test_code_that_outlives_its_run() -> None:
    """`async_to_sync` fails there like `trio.from_thread`; no coroutine is left."""
    go_on, done = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def code() -> None:
        assert go_on.wait(SECONDS)
        try:
            call()
        except BaseException as error:
            errors.append(error)
        done.set()

    trio.run(abandon, code)
    go_on.set()
    assert done.wait(SECONDS)
    gc.collect()
    assert [type(error) for error in errors] == [trio.RunFinishedError]


def test_a_coroutine_of_abandoned_code_at_the_end_of_the_run() -> None:
    """It is cancelled, like system tasks, and the thread goes on with `Cancelled`."""
    done = threading.Event()
    errors: list[BaseException] = []
    order: list[str] = []

    async def main() -> None:
        started = trio.Event()

        async def coroutine() -> None:
            await sync_to_async(nothing)()
            started.set()
            await waits(order, "coroutine")

        def code() -> None:
            try:
                async_to_sync(coroutine)()
            except BaseException as error:
                errors.append(error)
            done.set()

        await abandon(code)
        with trio.fail_after(SECONDS):
            await started.wait()

    trio.run(main)
    assert done.wait(SECONDS)
    assert order == ["coroutine"]
    assert [type(error) for error in errors] == [trio.Cancelled]


# Memory


class Thing:
    """An object whose end can be observed."""


class ThingError(Exception):
    """An error whose end can be observed."""


async def returns(thing: Thing) -> object:
    await checkpoint()
    return [thing]


async def fails(thing: Thing) -> object:
    await checkpoint()
    raise ThingError(thing)


async def calls(thing: Thing) -> object:
    return await sync_to_async(id)(thing)


async def fails_in_thread(thing: Thing) -> object:
    def failing() -> object:
        raise ThingError(thing)

    return await sync_to_async(failing)()


async def nests(thing: Thing) -> object:
    return await sync_to_async(async_to_sync(calls))(thing)


async def fails_in_nested(thing: Thing) -> object:
    return await sync_to_async(async_to_sync(fails_in_thread))(thing)


@pytest.mark.parametrize("handles_error", [False, True])
@pytest.mark.parametrize(
    "afn", [returns, fails, calls, fails_in_thread, nests, fails_in_nested]
)
@pytest.mark.parametrize("place", [lambda fn: fn(), in_other_thread])
@frees_at_once
def test_a_call_leaves_nothing_in_memory(
    afn: Callable[[Thing], Awaitable[object]],
    handles_error: bool,
    place: Callable[[Callable[[], object]], object],
) -> None:
    """A call's arguments, results and errors are freed with it; no cycle keeps them."""

    def make_call() -> list[weakref.ref[Any]]:
        thing = Thing()
        refs: list[weakref.ref[Any]] = [weakref.ref(thing)]
        try:
            if handles_error:
                try:
                    raise ThingError
                except ThingError as error:
                    refs.append(weakref.ref(error))
                    async_to_sync(afn)(thing)
            else:
                async_to_sync(afn)(thing)
        except ThingError as error:
            refs.append(weakref.ref(error))
        return refs

    def program() -> list[object]:
        refs = make_call()
        # Trio's thread releases a run when it waits for the next one.
        call()
        call()
        return [ref() for ref in refs]

    gc.collect()
    gc.disable()
    try:
        left = place(program)
        assert left == [None] * len(left)  # type: ignore[arg-type]
    finally:
        gc.enable()


def test_context_variables_are_gone_with_their_contexts() -> None:
    """Neither the caller's context nor the coroutine's outlives the run."""
    held: contextvars.ContextVar[Thing] = contextvars.ContextVar("held")
    refs: list[weakref.ref[Thing]] = []

    def hold() -> None:
        thing = Thing()
        refs.append(weakref.ref(thing))
        held.set(thing)

    async def coroutine() -> None:
        hold()
        await sync_to_async(hold)()
        await at_once(checkpoint)

    def program() -> None:
        hold()
        async_to_sync(coroutine)()
        assert held.get() is refs[-1]()

    gc.collect()
    gc.disable()
    try:
        contextvars.copy_context().run(program)
        call()
        call()
        assert [ref() for ref in refs] == [None] * 3
    finally:
        gc.enable()


def test_arguments_are_gone_when_the_call_returns() -> None:
    """The thread of the run keeps nothing when the caller goes on."""

    def make_call() -> weakref.ref[Thing]:
        thing = Thing()
        ref = weakref.ref(thing)
        call = functools.partial(calls, thing)
        del thing
        with (
            pytest.warns(UserWarning, match="non-async-marked")
            if (sys.version_info < (3, 8))
            else contextlib.nullcontext()
        ):
            async_to_sync(call)()
        return ref

    gc.collect()
    gc.disable()
    try:
        assert [make_call()() for _ in range(50)] == [None] * 50
    finally:
        gc.enable()


# Forks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("loops", ["trio", "asyncio"])
def test_a_fork_in_a_thread_that_serves_a_run(loops: str) -> None:
    """A child that sync code below a run forks has its own runs and Ctrl-C."""
    output = run_script(
        """
        import os, signal, sys, time, trio, trio_asgi, warnings
        from asgiref.sync import async_to_sync, sync_to_async

        # A process with threads should not be forked, says Python 3.12.
        warnings.simplefilter("ignore", DeprecationWarning)
        trio_asgi.install_bridge(async_to_sync_backend="trio")
        loops = sys.argv[1]

        async def library():
            in_trio = trio.lowlevel.in_trio_task()
            assert await sync_to_async(lambda: "nested")() == "nested"
            return "trio" if in_trio else "asyncio"

        def in_child():
            signal.alarm(8)
            assert async_to_sync(library)() == loops
            async_to_sync(library)()
            try:
                signal.raise_signal(signal.SIGINT)
                time.sleep(20)
            except KeyboardInterrupt:
                os._exit(0)
            os._exit(1)

        def code():
            # There is an idle thread of Trio's, which the child has not.
            child = os.fork()
            if child == 0:
                try:
                    trio_asgi.install_bridge(async_to_sync_backend=loops)
                    in_child()
                except BaseException as error:
                    print(repr(error), flush=True)
                os._exit(2)
            _, status = os.waitpid(child, 0)
            assert async_to_sync(library)() == "trio"
            return os.waitstatus_to_exitcode(status)

        async def coroutine():
            await trio.to_thread.run_sync(int)
            return await sync_to_async(code)()

        print(async_to_sync(coroutine)())
        """,
        loops,
    )
    assert output == "0\n"

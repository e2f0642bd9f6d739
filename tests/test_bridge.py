"""asgiref's two bridges on Trio: the semantics of asyncio, and cancellation."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import inspect
import os
import random
import sys
import threading
import traceback
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import asgiref.local
import asgiref.sync
import django
import django.dispatch.dispatcher
import django.utils.asyncio
import pytest
import trio
from asgiref.local import Local
from asgiref.sync import (
    AsyncToSync,
    SyncToAsync,
    ThreadSensitiveContext,
    async_to_sync,
    iscoroutinefunction,
    sync_to_async,
)
from django.contrib.sessions.models import Session
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection, connections
from django.dispatch import Signal
from django.utils import timezone
from trio.testing import wait_all_tasks_blocked

import trio_asgi
from thread_support import run_script
from trio_asgi.errors import leaves
from trio_asgi.threads.current import current_pool
from trio_asgi.threads.lease import Lease
from trio_asgi.threads.loop import current_loop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from django.db.backends.base.base import BaseDatabaseWrapper

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

#: A test that still waits after this time has failed.
SECONDS = 10

variable: contextvars.ContextVar[str] = contextvars.ContextVar(
    "variable", default="default"
)


def nothing() -> None:
    """Sync code that does nothing."""


async def checkpoint() -> None:
    """Let other tasks run, on Trio and on asyncio."""
    if trio.lowlevel.in_trio_task():
        await trio.lowlevel.checkpoint()
    else:
        await asyncio.sleep(0)


@contextmanager
def lease() -> Iterator[Lease]:
    """Give the sync code of this task a separate thread, as in a request."""
    lease = Lease(current_pool())
    marker = current_loop.set(lease)
    try:
        yield lease
    finally:
        current_loop.reset(marker)
        lease.release()


@pytest.fixture(autouse=True)
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a database in a file: connections to one in memory are never closed."""
    monkeypatch.setitem(connections.databases["default"], "NAME", str(tmp_path / "db"))


# Patching

#: All that could be patched.
OWNERS: list[Any] = [
    asgiref.local,
    asgiref.sync,
    SyncToAsync,
    AsyncToSync,
    ThreadSensitiveContext,
    asyncio,
    django.utils.asyncio,
    django.dispatch.dispatcher,
    Signal,
]

PATCHED = {
    (SyncToAsync, "__call__"),
    (AsyncToSync, "__call__"),
    (ThreadSensitiveContext, "__aenter__"),
    (ThreadSensitiveContext, "__aexit__"),
    (asgiref.sync, "_restore_context"),
    (asgiref.local, "asyncio"),
    (django.utils.asyncio, "get_running_loop"),
    (
        django.dispatch.dispatcher,
        "_run_parallel" if django.VERSION >= (6, 1) else "asyncio",
    ),
}


def attributes() -> dict[tuple[Any, str], Any]:
    """Return the present value of every attribute that could be patched."""
    return {
        (owner, name): value for owner in OWNERS for name, value in vars(owner).items()
    }


def different(
    one: dict[tuple[Any, str], Any], other: dict[tuple[Any, str], Any]
) -> set[tuple[Any, str]]:
    """Return which attributes are not the identical object."""
    missing = object()
    return {
        key
        for key in one.keys() | other.keys()
        if one.get(key, missing) is not other.get(key, missing)
    }


@pytest.fixture
def uninstalled() -> Iterator[None]:
    """Uninstall the bridge for a test."""
    trio_asgi.uninstall_bridge()
    yield
    trio_asgi.uninstall_bridge()
    trio_asgi.install_bridge()


@pytest.mark.usefixtures("uninstalled")
def test_install_patches_little_and_uninstall_undoes_it() -> None:
    """Few attributes are replaced; `uninstall` puts back the same objects."""
    pristine = attributes()
    for (owner, name), value in pristine.items():
        if (owner, name) in PATCHED and inspect.isfunction(value):
            assert not value.__code__.co_filename.startswith(
                os.path.dirname(trio_asgi.__file__)  # noqa: PTH120
            )
    trio_asgi.install_bridge()
    installed = attributes()
    assert different(pristine, installed) == PATCHED
    trio_asgi.install_bridge()
    assert different(installed, attributes()) == set()
    trio_asgi.uninstall_bridge()
    assert different(pristine, attributes()) == set()
    trio_asgi.uninstall_bridge()
    assert different(pristine, attributes()) == set()


@pytest.mark.usefixtures("uninstalled")
def test_install_from_many_threads() -> None:
    """However threads install and uninstall concurrently, the originals come back."""
    pristine = attributes()
    barrier = threading.Barrier(4)

    def work(seed: int) -> None:
        choose = random.Random(seed).choice  # noqa: S311
        barrier.wait()
        for _ in range(300):
            choose([trio_asgi.install_bridge, trio_asgi.uninstall_bridge])()
            assert different(pristine, attributes()) <= PATCHED

    with ThreadPoolExecutor(4) as executor:
        list(executor.map(work, range(4)))
    trio_asgi.install_bridge()
    assert different(pristine, attributes()) == PATCHED
    trio_asgi.uninstall_bridge()
    assert different(pristine, attributes()) == set()


def test_outside_trio_the_original_is_called_directly() -> None:
    """On asyncio, a call is the original's coroutine; the bridge adds no frame."""

    async def make() -> Any:
        return sync_to_async(nothing)()

    coroutine = asyncio.run(make())
    trio_asgi.uninstall_bridge()
    try:
        original = asyncio.run(make())
    finally:
        trio_asgi.install_bridge()
    assert inspect.iscoroutine(coroutine)
    assert inspect.iscoroutine(original)
    code = coroutine.cr_code, original.cr_code
    coroutine.close()
    original.close()
    assert code[0] is code[1]


def test_wrapped_functions_look_as_before() -> None:
    """The patched methods keep the names and signatures of asgiref's."""
    for owner in (SyncToAsync, AsyncToSync):
        patched: Any = vars(owner)["__call__"]
        assert patched.__qualname__ == f"{owner.__name__}.__call__"
        assert patched.__module__ == "asgiref.sync"
        assert list(inspect.signature(patched).parameters) == [
            "self",
            "args",
            "kwargs",
        ]


def test_only_sync_functions_are_wrapped() -> None:
    """`sync_to_async` refuses coroutine functions, and its own wrappers."""

    class WithAsyncCall:
        async def __call__(self) -> None:
            """Do nothing."""

    wrapped = sync_to_async(nothing)
    assert iscoroutinefunction(wrapped)
    assert iscoroutinefunction(SyncToAsync.__call__)
    assert not iscoroutinefunction(AsyncToSync.__call__)
    for refused in (checkpoint, wrapped, WithAsyncCall()):
        with pytest.raises(TypeError, match="can only be applied to sync functions"):
            sync_to_async(refused)
    with warnings.catch_warnings():
        # It recognizes both of these, and therefore does not warn.
        warnings.simplefilter("error")
        async_to_sync(wrapped)
        async_to_sync(WithAsyncCall())
    with pytest.warns(UserWarning, match="non-async-marked"):
        async_to_sync(nothing)  # type: ignore[arg-type] # that is the point


# The same on Trio as on asyncio

Scenario = Any
scenarios: list[tuple[Scenario, object]] = []


def means(
    expected: object, *, needs: str | None = None
) -> Callable[[Scenario], Scenario]:
    """Mark a scenario with what it returns, on Trio as on asyncio.

    Args:
        expected: What it returns.
        needs: An argument of `sync_to_async` that not every asgiref has.
    """

    def register(scenario: Scenario) -> Scenario:
        if needs is None or needs in inspect.signature(SyncToAsync).parameters:
            scenarios.append((scenario, expected))
        return scenario

    return register


def exchange(new: str) -> str:
    """Set the variable, and return its previous value."""
    old = variable.get()
    variable.set(new)
    return old


async def exchange_async(new: str) -> str:
    """Set the variable after a checkpoint, and return its previous value."""
    await checkpoint()
    return exchange(new)


@means(("task", "thread"))
async def context_of_sync_code() -> object:
    """Context variables go into sync code, and its changes come back."""
    variable.set("task")
    return await sync_to_async(exchange)("thread"), variable.get()


@means(("task", "thread"))
async def context_of_insensitive_code() -> object:
    """So do they with ``thread_sensitive=False``."""
    variable.set("task")
    run = sync_to_async(exchange, thread_sensitive=False)
    return await run("thread"), variable.get()


@means((["task", "thread", "coroutine", "inner thread"], "coroutine again"))
async def context_through_all_layers() -> object:
    """Changes pass through any number of nested calls, in both directions."""
    seen: list[str] = []

    async def coroutine() -> None:
        seen.append(exchange("coroutine"))
        seen.append(await sync_to_async(exchange)("inner thread"))
        seen.append(await exchange_async("coroutine again"))

    def code() -> None:
        seen.append(exchange("thread"))
        async_to_sync(coroutine)()
        assert variable.get() == "coroutine again"

    variable.set("task")
    await sync_to_async(code)()
    return seen, variable.get()


@means(("coroutine", "thread"))
async def context_after_errors() -> object:
    """Changes come back even from code that fails."""

    async def coroutine() -> None:
        variable.set("coroutine")
        raise LookupError

    def code() -> str:
        try:
            async_to_sync(coroutine)()
        except LookupError:
            return variable.get()
        raise AssertionError

    def failing() -> None:
        variable.set("thread")
        raise LookupError

    seen = await sync_to_async(code)()
    try:
        await sync_to_async(failing)()
    except LookupError:
        return seen, variable.get()
    raise AssertionError


@means(("task", "given", "thread"), needs="context")
async def explicit_context() -> object:
    """Code with an explicit context changes that one, and not the task's."""
    given = contextvars.copy_context()
    given.run(variable.set, "given")
    variable.set("task")
    before = await sync_to_async(exchange, context=given)("thread")
    return variable.get(), before, given.get(variable)


@means(("task", "default", "thread", "thread", "insensitive"), needs="context")
async def empty_context() -> object:
    """A context without any variable is one, too."""
    given = contextvars.Context()
    variable.set("task")
    before = await sync_to_async(exchange, context=given)("thread")
    after = given.get(variable)
    again = await sync_to_async(exchange, context=given, thread_sensitive=False)(
        "insensitive"
    )
    return variable.get(), before, after, again, given.get(variable)


@means((["task", "thread", "coroutine"], "inner thread", "inner thread"))
async def asgiref_local() -> object:
    """A `Local` moves to whichever thread a call runs in, and back."""
    local = Local()
    seen: list[str] = []

    def replace(value: str) -> None:
        seen.append(local.value)
        local.value = value

    async def coroutine() -> None:
        replace("coroutine")
        await sync_to_async(replace)("inner thread")

    def code() -> str:
        replace("thread")
        async_to_sync(coroutine)()
        return str(local.value)

    local.value = "task"
    in_thread = await sync_to_async(code)()
    return seen, in_thread, local.value


@means(["AttributeError", "set", "AttributeError"])
async def asgiref_local_appears_and_vanishes() -> object:
    """An attribute of a `Local` can be set and deleted on the other side."""
    local = Local()
    seen: list[str] = []

    def look() -> None:
        try:
            seen.append(local.value)
        except AttributeError:
            seen.append("AttributeError")

    def set_value() -> None:
        look()
        local.value = "set"

    def delete() -> None:
        del local.value

    await sync_to_async(set_value)()
    look()
    await sync_to_async(delete)()
    look()
    return seen


@means((True, True, None, True))
async def current_error() -> object:
    """`sys.exc_info()` in sync code and in coroutines below is the caller's."""
    seen: list[BaseException | None] = []

    def look() -> None:
        seen.append(sys.exc_info()[1])

    async def coroutine() -> None:
        await checkpoint()
        look()

    def code() -> None:
        look()
        async_to_sync(coroutine)()

    error = LookupError()
    try:
        raise error
    except LookupError:
        await sync_to_async(code)()
    await sync_to_async(look)()

    def handles() -> None:
        try:
            raise error
        except LookupError:
            async_to_sync(coroutine)()

    await sync_to_async(handles)()
    return seen[0] is error, seen[1] is error, seen[2], seen[3] is error


@means(("inner", "outer", None))
async def chained_errors() -> object:
    """An error raised in sync code names the one that the task was handling."""

    def failing() -> None:
        raise LookupError("inner")

    try:
        try:
            raise ValueError("outer")
        except ValueError:
            await sync_to_async(failing)()
    except LookupError as error:
        context = error.__context__
        return str(error), str(context), context and context.__context__
    raise AssertionError


@means(["errors_cross", "sync_code", "coroutine", "raiser"])
async def errors_cross() -> object:
    """An error crosses both bridges with its traceback."""

    def raiser() -> None:
        raise LookupError

    async def coroutine() -> None:
        await sync_to_async(raiser)()

    def sync_code() -> None:
        async_to_sync(coroutine)()

    try:
        await sync_to_async(sync_code)()
    except LookupError as error:
        names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    ours = ("errors_cross", "raiser", "coroutine", "sync_code")
    return [name for name in names if name in ours]


@means((1, 1, False))
async def threads_of_sensitive_code() -> object:
    """Sensitive code runs in one thread: that of the code it is nested in."""

    async def coroutine() -> threading.Thread:
        return await sync_to_async(threading.current_thread)()

    def nested() -> set[threading.Thread]:
        return {threading.current_thread(), async_to_sync(coroutine)()}

    one = await sync_to_async(threading.current_thread)()
    other = await sync_to_async(threading.current_thread)()
    return (
        len({one, other}),
        len(await sync_to_async(nested)()),
        one is threading.current_thread(),
    )


@means(7)
async def deep_nesting() -> object:
    """Bridges nest to any depth."""

    def down(depth: int) -> int:
        return 0 if depth == 0 else async_to_sync(coroutine)(depth)

    async def coroutine(depth: int) -> int:
        await checkpoint()
        return 1 + await sync_to_async(down)(depth - 1)

    return await sync_to_async(down)(7)


@means(("You cannot use AsyncToSync in the same thread as an async event loop", 0))
async def blocking_bridge_in_a_task() -> object:
    """`async_to_sync` in a task raises, without even making the coroutine."""
    made = 0

    async def coroutine() -> None:
        nonlocal made
        made += 1

    try:
        async_to_sync(coroutine)()
    except RuntimeError as error:
        return str(error).partition(" -")[0], made
    raise AssertionError


@means(("own", "result", "task", "thread", "LookupError"))
async def own_executor() -> object:
    """Insensitive code runs in its given executor, with the context."""
    variable.set("task")
    with ThreadPoolExecutor(1, thread_name_prefix="own") as executor:
        bridge: Any = functools.partial(
            sync_to_async, thread_sensitive=False, executor=executor
        )
        thread = await bridge(threading.current_thread)()
        result = await bridge(lambda *, key: key)(key="result")
        before = await bridge(exchange)("thread")
        try:
            await bridge({}.__getitem__)("key")
        except LookupError:
            error = "LookupError"
        else:
            error = "none"
    return thread.name.partition("_")[0], result, before, variable.get(), error


@means(["called", "called", "called"])
async def bridges_of_bridges() -> object:
    """Bridged code can be bridged back, wherever the coroutine was made."""
    one = sync_to_async(lambda: "called")
    made_in_thread = await sync_to_async(lambda: [one()])()
    return [
        await sync_to_async(async_to_sync(one))(),
        await sync_to_async(async_to_sync(sync_to_async(async_to_sync(one))))(),
        await made_in_thread[0],
    ]


class Decorated:
    """A class with bridged methods."""

    def __init__(self) -> None:
        self.name = "object"

    @sync_to_async
    def from_async(self, *args: object, **kwargs: object) -> object:
        """Return all arguments."""
        return self.name, args, kwargs, threading.current_thread().name

    @async_to_sync
    async def from_sync(self, *args: object, **kwargs: object) -> object:
        """Return all arguments."""
        await checkpoint()
        return self.name, args, kwargs

    async def __call__(self) -> str:
        """Return its name."""
        await checkpoint()
        return self.name


@means((("object", (1,), {"key": 2}), ("object", (3,), {"key": 4}), "object", "object"))
async def methods() -> object:
    """Methods can be bridged, as decorators and when bound; callable objects, too."""
    one = Decorated()
    from_async: Any = await one.from_async(1, key=2)
    from_sync = await sync_to_async(lambda: one.from_sync(3, key=4))()
    called = await sync_to_async(async_to_sync(one))()
    bound = await sync_to_async(functools.partial(getattr, one, "name"))()
    return from_async[:3], from_sync, called, bound


@means((True, True, False))
async def guard_of_the_orm() -> object:
    """The ORM refuses to run in a task and block its loop; in a thread it runs."""

    def refuses() -> bool:
        try:
            connection.cursor().close()
        except SynchronousOnlyOperation:
            return True
        connection.close()
        return False

    async def coroutine() -> bool:
        return refuses()

    below = await sync_to_async(async_to_sync(coroutine))()
    return refuses(), below, await sync_to_async(refuses)()


@means([("sync", 1), ("sync", 2), ("async", 1), ("async", 2)])
async def signal_asend() -> object:
    """`Signal.asend` calls sync and async receivers, and returns their responses."""
    return await receive_all(Signal.asend)


@means([("sync", 1), ("sync", 2), ("async", 1), ("async", 2)])
async def signal_asend_robust() -> object:
    """So does `Signal.asend_robust`."""
    return await receive_all(Signal.asend_robust)


@means([("sync", 1), ("sync", 2), ("async", 1), ("async", 2)])
async def signal_send() -> object:
    """So does `Signal.send`, in sync code."""
    return await receive_all(sync_to_async(Signal.send))


@means([("sync", 1), ("sync", 2), ("async", 1), ("async", 2)])
async def signal_send_robust() -> object:
    """So does `Signal.send_robust`, in sync code."""
    return await receive_all(sync_to_async(Signal.send_robust))


async def receive_all(send: Any) -> list[object]:
    """Send a signal to receivers of both kinds, and return the responses."""
    signal = Signal()

    def receiver(kind: str, number: int) -> Any:
        def sync_receiver(sender: object, **kwargs: object) -> tuple[str, int]:
            assert (sender, kwargs["key"]) == ("sender", "value")
            return kind, number

        async def async_receiver(**kwargs: Any) -> tuple[str, int]:
            # The first receiver that is called ends last.
            for _ in range(3 - number):
                await checkpoint()
            return sync_receiver(**kwargs)

        return sync_receiver if kind == "sync" else async_receiver

    receivers = [
        receiver(kind, number) for number in (1, 2) for kind in ("sync", "async")
    ]
    for each in receivers:
        signal.connect(each)
    responses = await send(signal, sender="sender", key="value")
    expected = [receivers[0], receivers[2], receivers[1], receivers[3]]
    assert [called for called, _ in responses] == expected
    return [response for _, response in responses]


@means([[], [], [], []])
async def signals_without_receivers() -> object:
    """A signal without receivers has no responses."""
    signal = Signal()
    return [
        await signal.asend("sender"),
        await signal.asend_robust("sender"),
        await sync_to_async(signal.send)("sender"),
        await sync_to_async(signal.send_robust)("sender"),
    ]


@means("LookupError('receiver')")
async def signal_asend_error() -> object:
    """The error of one async receiver arrives unchanged, in no group."""
    signal = Signal()

    async def failing(**kwargs: object) -> None:
        await checkpoint()
        raise LookupError("receiver")

    async def other(**kwargs: object) -> None:
        for _ in range(3):
            await checkpoint()

    signal.connect(other)
    signal.connect(failing)
    try:
        await signal.asend("sender")
    except LookupError as error:
        return repr(error)
    raise AssertionError


@means("LookupError('receiver')")
async def signal_asend_sync_error() -> object:
    """So does the error of a sync receiver."""
    signal = Signal()

    def failing(**kwargs: object) -> None:
        raise LookupError("receiver")

    async def other(**kwargs: object) -> None:
        await checkpoint()

    signal.connect(other)
    signal.connect(failing)
    try:
        await signal.asend("sender")
    except LookupError as error:
        return repr(error)
    raise AssertionError


@means("LookupError('receiver')")
async def signal_send_error() -> object:
    """So does the error of an async receiver of `Signal.send`."""
    signal = Signal()

    async def failing(**kwargs: object) -> None:
        await checkpoint()
        raise LookupError("receiver")

    signal.connect(failing)
    try:
        await sync_to_async(signal.send)("sender")
    except LookupError as error:
        return repr(error)
    raise AssertionError


@means(("task", "task", "async receiver" if django.VERSION >= (6, 1) else "task"))
async def signal_context() -> object:
    """Receivers see the context; since Django 6.1 they share one with the sender."""
    signal = Signal()
    seen: list[str] = []

    async def first(**kwargs: object) -> None:
        seen.append(variable.get())
        for _ in range(5):
            await checkpoint()
        variable.set("async receiver")

    async def second(**kwargs: object) -> None:
        seen.append(variable.get())

    signal.connect(first)
    signal.connect(second)
    variable.set("task")
    await signal.asend("sender")
    return (*seen, variable.get())


@pytest.mark.parametrize("bridge", ["installed", "uninstalled"])
@pytest.mark.parametrize(
    ("scenario", "expected"),
    [pytest.param(*each, id=each[0].__name__) for each in scenarios],
)
def test_asyncio(
    scenario: Scenario, expected: object, bridge: str, request: pytest.FixtureRequest
) -> None:
    """On asyncio, each scenario has its result, with and without the bridge."""
    if bridge == "uninstalled":
        request.getfixturevalue("uninstalled")
    assert asyncio.run(scenario()) == expected


@pytest.mark.parametrize("leased", [True, False])
@pytest.mark.parametrize(
    ("scenario", "expected"),
    [pytest.param(*each, id=each[0].__name__) for each in scenarios],
)
def test_trio(scenario: Scenario, expected: object, leased: bool) -> None:
    """On Trio, each scenario has the same result as on asyncio."""

    async def main() -> object:
        with trio.fail_after(SECONDS):
            if not leased:
                return await scenario()
            with lease():
                return await scenario()

    assert trio.run(main) == expected


# Outside both


def test_sync_program(uninstalled: None) -> None:
    """Where no loop runs, `async_to_sync` works as before."""

    async def coroutine() -> tuple[bool, threading.Thread, str]:
        thread = await sync_to_async(threading.current_thread)()
        before = variable.get()
        variable.set("coroutine")
        return asyncio.get_running_loop().is_running(), thread, before

    def program() -> tuple[bool, bool, str, str]:
        variable.set("program")
        runs, thread, before = async_to_sync(coroutine)()
        return runs, thread is threading.current_thread(), before, variable.get()

    expected = (True, True, "program", "coroutine")
    assert contextvars.copy_context().run(program) == expected
    trio_asgi.install_bridge()
    assert contextvars.copy_context().run(program) == expected
    connection.cursor().close()
    connection.close()


def test_thread_sensitive_context() -> None:
    """asgiref's own way to have a thread per request still works on asyncio."""

    async def in_context() -> threading.Thread:
        async with ThreadSensitiveContext():
            thread = await sync_to_async(threading.current_thread)()
            assert await sync_to_async(threading.current_thread)() is thread
            return thread

    async def main() -> None:
        one, other = await asyncio.gather(in_context(), in_context())
        assert one is not other

    asyncio.run(main())


# Threads


async def test_a_lease_is_a_thread_per_request() -> None:
    """Sensitive code runs in its request's thread; without a request, in one thread."""

    async def request(threads: list[threading.Thread]) -> None:
        with lease():
            threads.append(await sync_to_async(threading.current_thread)())
            await met.wait()
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(note, threads)

    async def note(threads: list[threading.Thread]) -> None:
        threads.append(await sync_to_async(threading.current_thread)())

    one: list[threading.Thread] = []
    other: list[threading.Thread] = []
    program: list[threading.Thread] = []
    met = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(request, one)
        nursery.start_soon(request, other)
        nursery.start_soon(note, program)
        nursery.start_soon(note, program)
        await wait_until(lambda: bool(one and other))
        met.set()
    assert [len(one), len(other), len(program)] == [3, 3, 2]
    assert len({*one}) == len({*other}) == len({*program}) == 1
    assert len({*one, *other, *program}) == 3


async def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for the effect of other tasks."""
    with trio.fail_after(SECONDS):
        while not condition():
            await trio.lowlevel.checkpoint()


async def test_insensitive_code_runs_in_parallel() -> None:
    """Insensitive code waits for no other code, even with a lease."""
    barrier = threading.Barrier(3, timeout=SECONDS)
    with lease() as request:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(sync_to_async(barrier.wait, thread_sensitive=False))
        assert not request.has_thread


async def test_insensitive_code_can_call_sensitive_code() -> None:
    """Code nested in any thread runs in that thread, which waits for it."""

    async def coroutine() -> threading.Thread:
        return await sync_to_async(threading.current_thread)()

    def code() -> bool:
        return async_to_sync(coroutine)() is threading.current_thread()

    with lease() as request:
        assert await sync_to_async(code, thread_sensitive=False)()
        assert not request.has_thread


async def test_an_executor_that_was_shut_down() -> None:
    """The error of an executor is raised unchanged."""
    with ThreadPoolExecutor(1) as executor:
        pass
    with pytest.raises(RuntimeError, match="after shutdown"):
        await sync_to_async(nothing, thread_sensitive=False, executor=executor)()


async def test_other_threads_are_none_of_ours() -> None:
    """In a thread that sync code starts itself, `async_to_sync` runs asyncio."""

    async def coroutine() -> bool:
        return asyncio.get_running_loop().is_running()

    def code() -> bool:
        with ThreadPoolExecutor(1) as executor:
            return executor.submit(async_to_sync(coroutine)).result()

    assert await sync_to_async(code)()


async def test_a_new_loop_is_asyncios() -> None:
    """``force_new_loop`` makes asgiref start asyncio, on Trio too."""

    async def coroutine() -> bool:
        return asyncio.get_running_loop().is_running()

    bridge = async_to_sync(coroutine, force_new_loop=True)
    assert await sync_to_async(bridge)()


async def test_asyncio_in_sync_code() -> None:
    """In an asyncio loop that sync code runs itself, asgiref uses that loop."""

    async def coroutine() -> str:
        return await sync_to_async(lambda: "nested")()

    async def main() -> str:
        with pytest.raises(RuntimeError, match="You cannot use AsyncToSync"):
            async_to_sync(coroutine)()
        with pytest.raises(SynchronousOnlyOperation):
            connection.cursor()
        return await coroutine()

    with lease():
        assert await sync_to_async(lambda: asyncio.run(main()))() == "nested"


async def test_trio_in_sync_code() -> None:
    """A Trio run that sync code starts has its own threads."""

    async def main() -> threading.Thread:
        with trio.fail_after(SECONDS):
            return await sync_to_async(threading.current_thread)()

    with lease():
        outer = await sync_to_async(threading.current_thread)()
        inner = await sync_to_async(trio.run)(main)
        assert inner is not outer
        assert not inner.is_alive()


@pytest.mark.parametrize("leased", [True, False])
async def test_sensitive_code_in_from_thread_run_is_refused(leased: bool) -> None:
    """Code that would wait for its own thread raises, and the error names the fix."""

    async def coroutine() -> str:
        with pytest.raises(RuntimeError, match="async_to_sync"):
            await sync_to_async(pytest.fail)()
        return await sync_to_async(lambda: "elsewhere", thread_sensitive=False)()

    def code() -> str:
        return trio.from_thread.run(coroutine)

    with lease() if leased else nullcontext():
        assert await sync_to_async(code)() == "elsewhere"


# Trio's own threads


async def test_async_to_sync_in_a_thread_of_trios() -> None:
    """In `trio.to_thread.run_sync`, a coroutine runs in the task that waits."""
    local = Local()

    async def coroutine() -> tuple[trio.lowlevel.Task, str, str]:
        await trio.lowlevel.checkpoint()
        local.value += " and coroutine"
        return trio.lowlevel.current_task(), exchange("coroutine"), local.value

    async def failing() -> None:
        variable.set("failing")
        raise LookupError("in the coroutine")

    def code() -> None:
        variable.set("thread")
        local.value = "thread"
        assert async_to_sync(coroutine)() == (task, "thread", "thread and coroutine")
        assert variable.get() == "coroutine"
        assert local.value == "thread and coroutine"
        with pytest.raises(LookupError, match="in the coroutine"):
            async_to_sync(failing)()
        assert variable.get() == "failing"

    task = trio.lowlevel.current_task()
    await trio.to_thread.run_sync(code)


@pytest.mark.parametrize("abandon_on_cancel", [False, True])
async def test_sensitive_code_below_a_thread_of_trios(abandon_on_cancel: bool) -> None:
    """Sensitive code below `async_to_sync` runs in the thread that waits there.

    This holds in a thread of `trio.to_thread.run_sync`, as with asgiref in any thread.
    """

    async def coroutine() -> threading.Thread:
        return await sync_to_async(threading.current_thread)()

    def code() -> tuple[threading.Thread, threading.Thread]:
        return threading.current_thread(), async_to_sync(coroutine)()

    with lease():
        waiting, called = await trio.to_thread.run_sync(
            code, abandon_on_cancel=abandon_on_cancel
        )
    assert waiting is called


async def test_a_cancellation_in_a_thread_of_trios() -> None:
    """A cancelled task cancels the coroutine that its thread waits for."""
    order: list[str] = []

    async def coroutine() -> None:
        scope.cancel()
        try:
            await trio.sleep_forever()
        finally:
            order.append("coroutine")

    def code() -> None:
        try:
            async_to_sync(coroutine)()
        finally:
            order.append("thread")

    with trio.CancelScope() as scope:
        await trio.to_thread.run_sync(code)
    assert scope.cancelled_caught
    assert order == ["coroutine", "thread"]


# Cancellation


async def test_a_cancellation_passes_through_the_bridges() -> None:
    """The coroutine is cancelled first, then the sync code around it, and so on."""
    order: list[str] = []

    async def inner() -> None:
        scope.cancel()
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            order.append("inner coroutine")
            raise

    async def outer() -> None:
        try:
            await sync_to_async(code)(inner)
        finally:
            order.append("outer coroutine")

    def code(afn: Callable[[], Awaitable[None]]) -> None:
        try:
            async_to_sync(afn)()
        finally:
            order.append("sync code")

    with lease(), trio.CancelScope() as scope:
        await sync_to_async(code)(outer)
    assert scope.cancelled_caught
    assert order == ["inner coroutine", "sync code", "outer coroutine", "sync code"]


async def test_cancelled_sync_code_brings_its_context_back() -> None:
    """Variables set by cancelled sync code are seen after the scope."""

    def code() -> None:
        trio.from_thread.run_sync(scope.cancel)
        variable.set("thread")

    with trio.CancelScope() as scope:
        await sync_to_async(code)()
    assert variable.get() == "thread"


async def test_code_that_was_left_cannot_run_coroutines() -> None:
    """`async_to_sync` in abandoned code raises, and leaves no coroutine unawaited."""
    errors: list[BaseException] = []
    go_on, done = threading.Event(), threading.Event()
    entered = trio.Event()

    async def coroutine() -> None:
        pytest.fail("ran without its task")

    def code() -> None:
        trio.from_thread.run_sync(entered.set)
        assert go_on.wait(SECONDS)
        try:
            async_to_sync(coroutine)()
        except BaseException as error:
            errors.append(error)
        done.set()

    with lease() as request:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sync_to_async(code))
            await entered.wait()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked()
                request.stop_waiting()
        assert request.abandoned
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        go_on.set()
        assert await trio.to_thread.run_sync(done.wait, SECONDS)
        gc.collect()
    assert [type(error) for error in errors] == [trio.RunFinishedError]


# Errors and memory


def test_the_callers_error_keeps_its_traceback() -> None:
    """Being the current error in a thread does not change an error."""

    async def coroutine() -> None:
        await trio.lowlevel.checkpoint()

    async def main() -> None:
        try:
            raise error
        except LookupError:
            texts.append(traceback.format_exception(error))
            await sync_to_async(async_to_sync(coroutine))()
            texts.append(traceback.format_exception(error))

    error = LookupError("of the caller")
    texts: list[list[str]] = []
    trio.run(main)
    assert texts[0] == texts[1]
    assert error.__context__ is None


class Thing:
    """An object whose end can be observed."""


def _fail(thing: Thing) -> object:
    raise KeyError(thing)


def _sync_to_async(thing: Thing) -> Awaitable[object]:
    return sync_to_async(id)(thing)


def _sync_to_async_fails(thing: Thing) -> Awaitable[object]:
    return sync_to_async(_fail)(thing)


def _async_to_sync(thing: Thing) -> Awaitable[object]:
    async def coroutine(thing: Thing) -> object:
        return await sync_to_async(id)(thing)

    return sync_to_async(lambda: async_to_sync(coroutine)(thing))()


def _async_to_sync_fails(thing: Thing) -> Awaitable[object]:
    async def coroutine(thing: Thing) -> object:
        return await sync_to_async(_fail)(thing)

    return sync_to_async(lambda: async_to_sync(coroutine)(thing))()


def _gathered(thing: Thing) -> Awaitable[object]:
    async def failing(**kwargs: object) -> None:
        await trio.lowlevel.checkpoint()
        raise KeyError(thing)

    signal = Signal()
    signal.connect(failing, weak=False)
    return signal.asend("sender")


@pytest.mark.parametrize("handles_error", [False, True])
@pytest.mark.parametrize(
    "call",
    [
        _sync_to_async,
        _sync_to_async_fails,
        _async_to_sync,
        _async_to_sync_fails,
        _gathered,
    ],
)
async def test_a_call_leaves_nothing_in_memory(
    call: Callable[[Thing], Awaitable[object]],
    handles_error: bool,
) -> None:
    """A call's arguments and errors are freed with it; no cycle keeps them."""

    async def make_call() -> list[weakref.ref[Any]]:
        thing = Thing()
        try:
            if handles_error:
                try:
                    raise ValueError
                except ValueError:
                    await call(thing)
            else:
                await call(thing)
        except KeyError:
            pass
        return [weakref.ref(thing)]

    with lease() as request:
        gc.collect()
        gc.disable()
        try:
            (ref,) = await make_call()
            # The thread releases a call when it waits for the next one.
            for _ in range(2):
                await request.run_sync(nothing)
            assert ref() is None
        finally:
            gc.enable()


# Django


async def test_the_guard_of_the_orm_can_be_turned_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``DJANGO_ALLOW_ASYNC_UNSAFE`` works on Trio as on asyncio."""
    with pytest.raises(SynchronousOnlyOperation):
        connection.cursor()
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
    connection.cursor().close()
    connection.close()


async def test_the_guard_in_functions_called_from_a_thread() -> None:
    """A function that a thread runs in Trio would block the loop, and is refused."""

    def code() -> None:
        with pytest.raises(SynchronousOnlyOperation):
            trio.from_thread.run_sync(connection.cursor)

    await sync_to_async(code)()


async def test_several_receivers_fail() -> None:
    """If several receivers fail at once, all the errors arrive, in a group."""
    signal = Signal()
    started: list[int] = []

    def receiver(number: int) -> Any:
        async def failing(**kwargs: object) -> None:
            started.append(number)
            try:
                if number == 2:
                    await wait_until(lambda: len(started) == 3)
                else:
                    await trio.sleep_forever()
            finally:
                raise LookupError(number)

        return failing

    for number in range(3):
        signal.connect(receiver(number), weak=False)
    with pytest.raises(BaseExceptionGroup) as caught:
        await signal.asend("sender")
    errors = leaves(caught.value)
    assert {type(error) for error in errors} == {LookupError}
    assert sorted(error.args[0] for error in errors) == [0, 1, 2]


@pytest.mark.parametrize("fails", ["sync", "async"])
async def test_the_siblings_of_a_failing_receiver_are_cancelled(fails: str) -> None:
    """When a receiver fails, `asend` cancels the others before it raises."""
    signal = Signal()
    order: list[str] = []

    def failing(**kwargs: object) -> None:
        order.append("fails")
        raise LookupError(fails)

    async def failing_async(**kwargs: object) -> None:
        await wait_until(lambda: "waits" in order)
        failing()

    async def waiting(**kwargs: object) -> None:
        order.append("waits")
        try:
            await trio.sleep_forever()
        finally:
            order.append("cancelled")

    signal.connect(waiting)
    signal.connect(failing if fails == "sync" else failing_async)
    with pytest.raises(LookupError, match=fails), trio.fail_after(SECONDS):
        await signal.asend("sender")
    if fails == "async":
        assert order == ["waits", "fails", "cancelled"]
    elif django.VERSION >= (6, 1):
        # There the sync receivers come first.
        assert order == ["fails"]
    else:
        assert sorted(order) in (["fails"], ["cancelled", "fails", "waits"])


@pytest.mark.parametrize("blocking", [False, True])
async def test_robust_signals_keep_errors(
    blocking: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The robust methods return errors as responses, and call all receivers."""
    signal = Signal()

    def failing(**kwargs: object) -> None:
        raise LookupError("sync")

    async def failing_async(**kwargs: object) -> None:
        await trio.lowlevel.checkpoint()
        raise LookupError("async")

    async def fine(**kwargs: object) -> str:
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        return "fine"

    for receiver in (failing, failing_async, fine):
        signal.connect(receiver)
    if blocking:
        responses = await sync_to_async(signal.send_robust)("sender")
    else:
        responses = await signal.asend_robust("sender")
    assert [receiver for receiver, _ in responses] == [failing, failing_async, fine]
    assert [repr(response) for _, response in responses] == [
        "LookupError('sync')",
        "LookupError('async')",
        "'fine'",
    ]
    assert [record.name for record in caplog.records] == ["django.dispatch"] * 2


@pytest.mark.parametrize("method", ["asend", "asend_robust", "send", "send_robust"])
async def test_a_cancelled_signal(method: str) -> None:
    """A cancellation reaches async receivers, and is not a receiver's error."""
    signal = Signal()
    cancelled: list[str] = []

    def receiver(name: str) -> Any:
        async def waiting(**kwargs: object) -> None:
            try:
                await trio.sleep_forever()
            finally:
                cancelled.append(name)

        return waiting

    def stop(**kwargs: object) -> None:
        trio.from_thread.run_sync(scope.cancel)

    signal.connect(receiver("one"), weak=False)
    signal.connect(receiver("other"), weak=False)
    signal.connect(stop)
    send: Any = getattr(signal, method)
    if not iscoroutinefunction(send):
        send = sync_to_async(send)
    with trio.CancelScope() as scope:
        await send("sender")
        pytest.fail("the cancellation got lost")
    assert scope.cancelled_caught
    assert sorted(cancelled) in (["one", "other"], [])


def test_the_async_orm_without_a_request() -> None:
    """The async ORM works in a plain `trio.run`, and its connection is closed."""
    wrappers: set[BaseDatabaseWrapper] = set()

    def create_table() -> None:
        with connection.schema_editor() as editor:
            editor.create_model(Session)
        wrappers.add(connections["default"])

    async def create(key: str) -> None:
        await Session.objects.acreate(session_key=key, expire_date=timezone.now())

    async def main() -> None:
        await sync_to_async(create_table)()
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(create, f"key {number}")
        assert await Session.objects.acount() == 5
        session = await Session.objects.aget(session_key="key 3")
        session.session_data = "changed"
        await session.asave()
        keys = [
            session.session_key
            async for session in Session.objects.order_by("session_key")
        ]
        assert keys == [f"key {number}" for number in range(5)]
        changed = await Session.objects.filter(session_data="changed").afirst()
        assert changed == session
        _, created = await Session.objects.aupdate_or_create(
            session_key="key 5", defaults={"expire_date": timezone.now()}
        )
        assert created
        with pytest.raises(Session.DoesNotExist):
            await Session.objects.aget(session_key="key 6")
        deleted, _ = await Session.objects.all().adelete()
        assert deleted == 6
        with pytest.raises(SynchronousOnlyOperation):
            Session.objects.count()

    trio.run(main)
    (wrapper,) = wrappers
    assert wrapper.connection is None


# The process


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_runs_coroutines_on_asyncio() -> None:
    """In a child that sync code forks, no task waits: asgiref works as usual."""
    output = run_script(
        """
        import asyncio, os, trio, trio_asgi, warnings
        from asgiref.sync import async_to_sync, sync_to_async

        # A process with threads should not be forked, says Python 3.12.
        warnings.simplefilter("ignore", DeprecationWarning)
        trio_asgi.install_bridge()

        async def coroutine():
            return asyncio.get_running_loop().is_running()

        def code():
            child = os.fork()
            if child == 0:
                os._exit(0 if async_to_sync(coroutine)() else 1)
            _, status = os.waitpid(child, 0)
            return os.waitstatus_to_exitcode(status)

        async def main():
            print("program", await sync_to_async(code)())
            print("Trio", await trio.to_thread.run_sync(code))

        trio.run(main)
        """
    )
    assert output == "program 0\nTrio 0\n"


def test_install_needs_no_settings() -> None:
    """The bridge works in a program that has no Django settings."""
    output = run_script(
        """
        import os
        os.environ.pop("DJANGO_SETTINGS_MODULE", None)
        import trio, trio_asgi
        from asgiref.sync import sync_to_async
        from django.conf import settings

        trio_asgi.install_bridge()
        for sensitive in (True, False):
            call = sync_to_async(lambda: "called", thread_sensitive=sensitive)
            print(trio.run(call))
        print(settings.configured)
        """
    )
    assert output == "called\ncalled\nFalse\n"

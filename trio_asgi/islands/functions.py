"""Islands of asyncio in a Trio program.

    Trio task                  asyncio task               Trio task
    asyncio_island(afn)()  ──>  afn()
                                  trio_island(f)()  ──>     f()
                                                    <──
                           <──

All islands of a Trio run share one loop: the host loop in a guest run, or else one of
trio-asyncio, in a system task, which the first one opens.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import weakref
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

import outcome
import trio
from asgiref.sync import iscoroutinefunction

from trio_asgi.errors import leaves
from trio_asgi.hosts.runs import island_run
from trio_asgi.threads.trio_state import (
    below_asyncio,
    in_host_task,
    in_trio_run,
    in_trio_task,
)
from trio_asgi.threads.turns import island_caller

from .context import restore_context
from .loop import open_loop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

P = ParamSpec("P")
T = TypeVar("T")


@overload
def asyncio_island(
    afn: Callable[P, Awaitable[T]],
) -> Callable[P, Coroutine[Any, Any, T]]: ...
@overload
def asyncio_island(afn: Callable[P, T]) -> Callable[P, T]: ...
def asyncio_island(afn: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function that is written for asyncio callable from Trio.

    Use it as a decorator, for example of a view, or in place:
    ``await asyncio_island(fetch)(url)``. The function runs in a new asyncio task, in
    the Trio thread. Called from asyncio code (in an island or under `asyncio.run`), it
    runs there directly.

    Changes of context variables come back. Django's async functions, `sync_to_async`
    and `async_to_sync` work inside; sync code runs in the request's thread. If the Trio
    task is cancelled, `asyncio.CancelledError` is raised once in the function, and the
    task waits for it to end. Trio's cancel scopes and deadlines do not reach inside.

    A decorated sync view still runs in the request's thread. `async_to_sync` in it runs
    asyncio code, and asyncio iterates what it streams.

    Args:
        afn: An async function of asyncio; or another function that returns an asyncio
            awaitable when called in its loop; or a sync view.

    Returns:
        An async function with the same arguments. It raises what ``afn`` raises, and:

        - `RuntimeError`: neither Trio nor asyncio runs in this thread.
        - `trio.Cancelled`: the Trio task was cancelled, and the function has ended
          with `asyncio.CancelledError`.
        - `asyncio.CancelledError`: asyncio code has cancelled the function.
    """

    @functools.wraps(afn)
    async def island(*args: Any, **kwargs: Any) -> Any:
        if in_trio_task():
            return await _run_on_asyncio(functools.partial(afn, *args, **kwargs))
        if asyncio._get_running_loop() is None:
            raise RuntimeError(
                f"The asyncio island {_name(afn)} was called where no event loop runs. "
                "Await it in a Trio task or an asyncio task."
            )
        return await afn(*args, **kwargs)

    return _mark("asyncio", afn, island)


@overload
def trio_island(
    afn: Callable[P, Awaitable[T]],
) -> Callable[P, Coroutine[Any, Any, T]]: ...
@overload
def trio_island(afn: Callable[P, T]) -> Callable[P, T]: ...
def trio_island(afn: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function that is written for Trio callable from an `asyncio_island`.

    Use it as a decorator, or in place: ``await trio_island(trio.sleep)(1)``. The
    function runs in a new Trio task. Called from a Trio task, it
    runs there directly. Under ``TRIO_ASGI["ASYNCIO_VIEWS"]`` it marks a view, async or
    sync, as written for Trio: then `async_to_sync` in it runs Trio code, and Trio
    iterates what it streams.

    Changes of context variables come back. If the asyncio task is cancelled, so is the
    function.

    Args:
        afn: An async function of Trio, or a sync view.

    Returns:
        An async function with the same arguments. It raises what ``afn`` raises, and:

        - `RuntimeError`: called neither in an island nor in a Trio task. Under an
          asyncio server, all tasks of the loop count once Trio runs there.
        - `asyncio.CancelledError`: the asyncio task was cancelled.
    """

    @functools.wraps(afn)
    async def island(*args: Any, **kwargs: Any) -> Any:
        if not (in_trio_run() or in_host_task()):
            raise RuntimeError(
                f"The Trio island {_name(afn)} was called outside Trio. Await it in a "
                "Trio task, or in an asyncio_island() below one."
            )

        async def run() -> Any:
            marker = below_asyncio.set(False)
            try:
                return await afn(*args, **kwargs)
            finally:
                below_asyncio.reset(marker)

        return await run() if in_trio_task() else await run_on_trio(run)

    return _mark("trio", afn, island)


def _mark(
    kind: str, fn: Callable[..., Any], island: Callable[..., Any]
) -> Callable[..., Any]:
    """Return the island, marked; for a sync function, one that also runs in threads."""
    marked: Any = island
    if not iscoroutinefunction(fn):

        @functools.wraps(fn)
        def marked(*args: Any, **kwargs: Any) -> Any:
            if in_trio_run() or asyncio._get_running_loop() is not None:
                return island(*args, **kwargs)
            marker = below_asyncio.set(kind == "asyncio")
            try:
                return fn(*args, **kwargs)
            finally:
                below_asyncio.reset(marker)

    marked._trio_asgi_island = kind
    return marked  # type: ignore[no-any-return]


def runs_on_trio(fn: Callable[P, T]) -> Callable[P, T]:
    """Mark an async function of this package: `async_to_sync` runs it on Trio."""
    fn._trio_asgi_island = "trio"  # type: ignore[attr-defined]
    return fn


def is_asyncio_island(fn: object) -> bool:
    """Whether `asyncio_island` made this, perhaps below decorators that use `wraps`."""
    return getattr(fn, "_trio_asgi_island", None) == "asyncio"


def is_trio_island(fn: object) -> bool:
    """Whether `trio_island` made this, perhaps below decorators that use `wraps`."""
    return getattr(fn, "_trio_asgi_island", None) == "trio"


def _name(fn: object) -> str:
    return getattr(fn, "__qualname__", None) or repr(fn)


async def _run_on_asyncio(afn: Callable[[], Awaitable[T]]) -> T:
    """Run ``afn()`` in an asyncio task. Trio task."""
    loop = await open_loop()
    call = _CrossCall(afn, asyncio.CancelledError)
    task = weakref.ref(trio.lowlevel.current_task())
    caller = island_caller.set((task, island_caller.get()))
    # Not set in the asyncio task: if that is left behind at a shutdown, it is closed in
    # another context, where the reset would fail.
    marker = below_asyncio.set(True)
    try:
        await loop.run_aio_coroutine(call.run())
    finally:
        call.restore_context()
        below_asyncio.reset(marker)
        island_caller.reset(caller)
    return call.take_result()  # type: ignore[no-any-return]


async def run_on_trio(afn: Callable[[], Awaitable[T]]) -> T:
    """Run ``afn()`` in a Trio task. Called in an asyncio task of an island's loop."""
    loop: Any = asyncio.get_running_loop()
    call = _CrossCall(afn, trio.Cancelled)
    try:
        if in_host_task():
            run = await island_run()
            await run.call(call.run, name="trio_asgi.trio_island")
        else:
            await loop.trio_as_future(call.run)
    finally:
        call.restore_context()
    return call.take_result()  # type: ignore[no-any-return]


class _CrossCall:
    """A function to run on the other side, then its result or error.

    Neither goes through asyncio's future: trio-asyncio keeps that in a reference cycle,
    and some errors end asyncio's loop.
    """

    def __init__(
        self, afn: Callable[[], Awaitable[Any]], cancelled: type[BaseException]
    ) -> None:
        self._afn: Callable[[], Awaitable[Any]] | None = afn
        #: The other side's cancellation error, which trio-asyncio must see.
        self._cancelled = cancelled
        self._result: outcome.Outcome[Any] | None = None
        self._context: contextvars.Context | None = None

    async def run(self) -> None:
        """Run the function, in the task of the other side."""
        afn, self._afn = self._afn, None
        assert afn is not None
        try:
            self._result = outcome.Value(await afn())
        except BaseException as error:
            if any(isinstance(leaf, self._cancelled) for leaf in leaves(error)):
                raise
            self._result = outcome.Error(error)
        finally:
            self._context = contextvars.copy_context()
            del afn

    def restore_context(self) -> None:
        """Take over the function's context variables, if it has run."""
        context, self._context = self._context, None
        if context is not None:
            restore_context(context)

    def take_result(self) -> Any:
        """Return the function's result, or raise its error."""
        result, self._result = self._result, None
        assert result is not None
        try:
            return result.unwrap()
        finally:
            # An error's traceback holds this frame: leave no cycle behind.
            del result

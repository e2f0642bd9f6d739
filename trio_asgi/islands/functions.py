"""Islands of asyncio in a Trio program, on a loop of trio-asyncio.

    Trio task                  asyncio task               Trio task
    asyncio_island(afn)()  ──>  afn()
                                  trio_island(f)()  ──>     f()
                                                    <──
                           <──

A call waits for the other side, as it would for a function of its own: the values of
context variables go with it, and changes come back. All islands of a Trio run share one
loop, a system task's, which the first one opens.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

import outcome
import trio
from asgiref.sync import iscoroutinefunction

from trio_asgi.errors import leaves
from trio_asgi.threads.trio_state import in_trio_run, in_trio_task

from .context import restore_context
from .loop import below_asyncio, open_loop

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

    As a decorator, of a view for example, or in place:
    ``await asyncio_island(fetch)(url)``. The function runs in an asyncio task of its
    own, in the Trio thread. In code of asyncio, in an island or under `asyncio.run`,
    the function is called as it is.

    Context variables go in, and changes come back. Django's async functions,
    `sync_to_async` and `async_to_sync` work inside; sync code runs in the request's
    thread. If the Trio task is cancelled, `asyncio.CancelledError` is raised once in
    the function, which is waited for. Cancel scopes and deadlines of Trio do not reach
    inside.

    A sync view can be decorated too. It runs in the request's thread, as without the
    decorator; `async_to_sync` in it runs code of asyncio, and what it streams is
    iterated by asyncio.

    Args:
        afn: An async function of asyncio, or another function that returns an awaitable
            of asyncio's when called in its loop; or a sync view.

    Returns:
        An async function with the same arguments. It raises what ``afn`` raises, and:

        - `RuntimeError`: neither Trio nor asyncio runs in this thread.
        - `trio.Cancelled`: the Trio task was cancelled, and the function has ended
          with `asyncio.CancelledError`.
        - `asyncio.CancelledError`: code of asyncio has cancelled the function.
    """

    @functools.wraps(afn)
    async def island(*args: Any, **kwargs: Any) -> Any:
        if in_trio_task():
            return await _run_on_asyncio(functools.partial(afn, *args, **kwargs))
        if asyncio._get_running_loop() is None:
            raise RuntimeError(
                f"The asyncio island {_name(afn)} was called where no event loop runs. "
                "Await it in a Trio task, or in one of asyncio."
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

    As a decorator, or in place: ``await trio_island(trio.sleep)(1)``. Under
    ``TRIO_ASGI["ASYNCIO_VIEWS"]`` it marks a view as one for Trio. The function runs in
    a Trio task of its own, of the loop's nursery. In a Trio task the function is called
    as it is.

    Context variables go in, and changes come back. If the asyncio task is cancelled, so
    is the function.

    A sync view can be decorated too: its `async_to_sync`, and what it streams, is
    Trio's.

    Args:
        afn: An async function of Trio, or a sync view.

    Returns:
        An async function with the same arguments. It raises what ``afn`` raises, and:

        - `RuntimeError`: called neither in an island nor in a Trio task.
        - `asyncio.CancelledError`: the asyncio task was cancelled.
    """

    @functools.wraps(afn)
    async def island(*args: Any, **kwargs: Any) -> Any:
        if not in_trio_run():
            raise RuntimeError(
                f"The Trio island {_name(afn)} was called outside Trio. It can be "
                "awaited in a Trio task, and in an asyncio_island() in one."
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
    """Return what is called: the island; and in sync code, a sync function as it is."""
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
    """Mark an async function of this package's, for `async_to_sync` to run on Trio."""
    fn._trio_asgi_island = "trio"  # type: ignore[attr-defined]
    return fn


def is_asyncio_island(fn: object) -> bool:
    """Whether a function, below decorators that copy attributes, is one of asyncio."""
    return getattr(fn, "_trio_asgi_island", None) == "asyncio"


def is_trio_island(fn: object) -> bool:
    """Whether a function, below decorators that copy attributes, is marked Trio's."""
    return getattr(fn, "_trio_asgi_island", None) == "trio"


def _name(fn: object) -> str:
    return getattr(fn, "__qualname__", None) or repr(fn)


async def _run_on_asyncio(afn: Callable[[], Awaitable[T]]) -> T:
    """Run ``afn()`` in an asyncio task. Trio task."""
    loop = await open_loop()
    call = _CrossCall(afn, asyncio.CancelledError)
    # Set and reset here, not in the asyncio task. If that is left behind at a shutdown,
    # it is closed in any context, where a reset fails.
    marker = below_asyncio.set(True)
    try:
        await loop.run_aio_coroutine(call.run())
    finally:
        call.restore_context()
        below_asyncio.reset(marker)
    return call.take_result()  # type: ignore[no-any-return]


async def run_on_trio(afn: Callable[[], Awaitable[T]]) -> T:
    """Run ``afn()`` in a Trio task. Code of asyncio on a loop of trio-asyncio."""
    loop: Any = asyncio.get_running_loop()
    call = _CrossCall(afn, trio.Cancelled)
    try:
        await loop.trio_as_future(call.run)
    finally:
        call.restore_context()
    return call.take_result()  # type: ignore[no-any-return]


class _CrossCall:
    """A function to run on the other side, then what has become of it.

    trio-asyncio keeps an call and its future in a cycle, and asyncio ends its loop
    for some errors. So what users have a hold of, and what they raise, goes this way.
    """

    def __init__(
        self, afn: Callable[[], Awaitable[Any]], cancelled: type[BaseException]
    ) -> None:
        self._afn: Callable[[], Awaitable[Any]] | None = afn
        #: What the other side raises for a cancellation: trio-asyncio has to see it.
        self._cancelled = cancelled
        self._result: outcome.Outcome[Any] | None = None
        self._context: contextvars.Context | None = None

    async def run(self) -> None:
        """Be the task of the other side."""
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
        """Have the function's context variables; none if it was never begun."""
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

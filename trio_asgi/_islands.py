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
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import outcome
import trio

from ._carry import restore_context
from ._errors import leaves
from ._native_calls import import_trio_asyncio
from ._trio_thread import in_trio_run, in_trio_task
from ._worker import current_pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    from trio_asyncio import TrioEventLoop

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger("trio_asgi")

#: Whether the nearest async code above is asyncio's: for `async_to_sync` in sync code.
below_asyncio: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "trio_asgi.below_asyncio", default=False
)


def asyncio_island(
    afn: Callable[P, Awaitable[T]],
) -> Callable[P, Coroutine[Any, Any, T]]:
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

    Args:
        afn: An async function of asyncio, or another function that returns an awaitable
            of asyncio's when called in its loop.

    Returns:
        An async function with the same arguments. It raises what ``afn`` raises, and:

        - `RuntimeError`: neither Trio nor asyncio runs in this thread.
        - `trio.Cancelled`: the Trio task was cancelled, and the function has ended
          with `asyncio.CancelledError`.
        - `asyncio.CancelledError`: code of asyncio has cancelled the function.
    """

    @functools.wraps(afn)
    async def island(*args: P.args, **kwargs: P.kwargs) -> T:
        if in_trio_task():
            return await _run_on_asyncio(functools.partial(afn, *args, **kwargs))
        if asyncio._get_running_loop() is None:
            raise RuntimeError(
                f"The asyncio island {_name(afn)} was called where no event loop runs. "
                "Await it in a Trio task, or in one of asyncio."
            )
        return await afn(*args, **kwargs)

    island._trio_asgi_island = "asyncio"  # type: ignore[attr-defined]
    return island


def trio_island(
    afn: Callable[P, Awaitable[T]],
) -> Callable[P, Coroutine[Any, Any, T]]:
    """Make a function that is written for Trio callable from an `asyncio_island`.

    As a decorator, or in place: ``await trio_island(trio.sleep)(1)``. Under
    ``TRIO_ASGI["ASYNCIO_VIEWS"]`` it marks a view as one for Trio. The function runs in
    a Trio task of its own, of the loop's nursery. In a Trio task the function is called
    as it is.

    Context variables go in, and changes come back. If the asyncio task is cancelled, so
    is the function.

    Args:
        afn: An async function of Trio.

    Returns:
        An async function with the same arguments. It raises what ``afn`` raises, and:

        - `RuntimeError`: called neither in an island nor in a Trio task.
        - `asyncio.CancelledError`: the asyncio task was cancelled.
    """

    @functools.wraps(afn)
    async def island(*args: P.args, **kwargs: P.kwargs) -> T:
        if in_trio_task():
            return await afn(*args, **kwargs)
        if not in_trio_run():
            raise RuntimeError(
                f"The Trio island {_name(afn)} was called outside Trio. It can be "
                "awaited in a Trio task, and in an asyncio_island() in one."
            )

        async def run() -> T:
            marker = below_asyncio.set(False)
            try:
                return await afn(*args, **kwargs)
            finally:
                below_asyncio.reset(marker)

        return await run_on_trio(run)

    island._trio_asgi_island = "trio"  # type: ignore[attr-defined]
    return island


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

    async def run() -> T:
        marker = below_asyncio.set(True)
        try:
            return await afn()
        finally:
            below_asyncio.reset(marker)

    loop = await _open_loop()
    errand = _Errand(run, asyncio.CancelledError)
    try:
        await loop.run_aio_coroutine(errand.run())
    finally:
        errand.restore_context()
    return errand.take_result()  # type: ignore[no-any-return]


async def run_on_trio(afn: Callable[[], Awaitable[T]]) -> T:
    """Run ``afn()`` in a Trio task. Code of asyncio on a loop of trio-asyncio."""
    loop: Any = asyncio.get_running_loop()
    errand = _Errand(afn, trio.Cancelled)
    try:
        await loop.trio_as_future(errand.run)
    finally:
        errand.restore_context()
    return errand.take_result()  # type: ignore[no-any-return]


class _Errand:
    """A function to run on the other side, then what has become of it.

    trio-asyncio keeps an errand and its future in a cycle, and asyncio ends its loop
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


# The loop


class _Loop:
    """The asyncio loop of one Trio run. A system task's, open until told to end."""

    def __init__(self) -> None:
        #: The loop, once opened; None if that failed.
        self.loop: TrioEventLoop | None = None
        self.is_open = trio.Event()
        self.shall_close = trio.Event()
        self.is_closed = trio.Event()

    async def live(self) -> None:
        """Be the system task."""
        import trio_asyncio  # noqa: PLC0415 - see import_trio_asyncio()

        try:
            async with trio_asyncio.open_loop() as loop:
                # trio-asyncio's own would end the loop, and with it the run.
                loop.set_exception_handler(_log_error)
                _let_nothing_end(loop)
                await loop.synchronize()
                self.loop = loop
                self.is_open.set()
                try:
                    await self.shall_close.wait()
                finally:
                    # trio-asyncio would cancel these too, but also the Trio tasks that
                    # their cleaning up may need.
                    seconds = current_pool().shutdown_seconds
                    with trio.move_on_after(seconds, shield=True):
                        await loop.run_aio_coroutine(_cancel_other_tasks())
        except Exception:
            # A system task that fails would end the run.
            logger.exception("The loop of the asyncio islands has ended")
        finally:
            self.loop = None
            self.is_open.set()
            self.is_closed.set()


_loop: trio.lowlevel.RunVar[_Loop | None] = trio.lowlevel.RunVar(
    "trio_asgi.island_loop"
)


async def _open_loop() -> TrioEventLoop:
    """Return the loop that the program has opened around the task, or else ours."""
    import_trio_asyncio()
    import trio_asyncio  # noqa: PLC0415 - see import_trio_asyncio()

    loop: TrioEventLoop | None = trio_asyncio.current_loop.get()
    if loop is not None and loop._token is trio.lowlevel.current_trio_token():
        return loop
    holder = _loop.get(None)
    if holder is None or holder.is_closed.is_set():
        holder = _Loop()
        try:
            trio.lowlevel.spawn_system_task(holder.live)
        except RuntimeError as error:
            raise RuntimeError(
                "An asyncio island was called at the end of the Trio run, when no loop "
                "can be opened any more."
            ) from error
        _loop.set(holder)
    await holder.is_open.wait()
    if holder.loop is None:
        raise RuntimeError("The loop of the asyncio islands could not be opened.")
    return holder.loop


async def _cancel_other_tasks() -> None:
    """Cancel all tasks of this loop, and wait for them. An asyncio task."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


async def close_loop() -> None:
    """Close the loop, if one was opened: cancel what runs in it, and wait for that."""
    holder = _loop.get(None)
    if holder is not None:
        holder.shall_close.set()
        await holder.is_closed.wait()


def _log_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Handle an error as asyncio's own loops do."""
    asyncio.BaseEventLoop.default_exception_handler(loop, context)  # type: ignore[arg-type]


def _let_nothing_end(loop: Any) -> None:
    """Log what asyncio lets through, from a task that nobody awaits.

    On a loop that has ended, all other islands would wait for ever.
    """
    from trio_asyncio._base import TrioAsyncioExit  # noqa: PLC0415 - see above

    main_loop_one = loop._main_loop_one

    async def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            await main_loop_one(*args, **kwargs)
        except TrioAsyncioExit:  # its own way to stop
            raise
        except (SystemExit, KeyboardInterrupt):
            logger.exception("A task of asyncio would have ended its loop")

    loop._main_loop_one = guarded


# Streams


class IslandStream:
    """An async iterator of asyncio's, for one Trio task.

    Iterated, and closed, in one asyncio task, for what its code holds open from one
    item to the next, a timeout for example, belongs to the task. Nothing runs ahead: an
    item is made when it is asked for. A cancellation while it is made cancels the
    asyncio task at `aclose`, which has to follow.
    """

    def __init__(self, iterator: AsyncIterator[Any]) -> None:
        self._iterator = iterator
        self._task: asyncio.Task[None] | None = None
        #: Done when the next item is asked for, and when it has come.
        self._asked: asyncio.Future[None]
        self._given: asyncio.Future[outcome.Outcome[Any]]

    def __aiter__(self) -> IslandStream:
        return self

    async def __anext__(self) -> Any:
        loop = await _open_loop()
        self._given = loop.create_future()
        if self._task is None:
            self._task = loop.create_task(self._iterate())
        else:
            self._asked.set_result(None)
        given = await loop.run_aio_future(self._given)
        try:
            return given.unwrap()
        finally:
            # An error's traceback holds this frame: leave no cycle behind.
            del given

    async def aclose(self) -> None:
        """Close the iterator; if it was begun, by cancelling it. Raises its errors."""
        loop = await _open_loop()
        if self._task is None:
            self._task = loop.create_task(self._close())
        else:
            self._task.cancel()
        with suppress(asyncio.CancelledError):
            await loop.run_aio_future(self._task)

    async def _iterate(self) -> None:
        """Be the asyncio task."""
        below_asyncio.set(True)
        end: outcome.Outcome[Any] = outcome.Error(StopAsyncIteration())
        try:
            async for item in self._iterator:
                self._asked = asyncio.get_running_loop().create_future()
                self._give(outcome.Value(item))
                await self._asked
        except Exception as error:
            if self._given.done():
                raise  # from the closing
            end = outcome.Error(error)
        finally:
            await self._close()
        self._give(end)

    async def _close(self) -> None:
        aclose = getattr(self._iterator, "aclose", None)
        if aclose is not None:
            await aclose()

    def _give(self, item: outcome.Outcome[Any]) -> None:
        if not self._given.done():
            self._given.set_result(item)

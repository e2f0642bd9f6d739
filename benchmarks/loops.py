"""The few functions of an event loop that the driver needs, on Trio and on asyncio."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


class AsyncioLoop:
    """asyncio, on its own event loop."""

    make_event = asyncio.Event
    sleep = staticmethod(asyncio.sleep)

    async def together(self, async_fns: list[Callable[[], Awaitable[Any]]]) -> None:
        """Run functions as tasks; return when all have ended."""
        # Python 3.10 has no TaskGroup.
        await asyncio.gather(*[async_fn() for async_fn in async_fns])

    @asynccontextmanager
    async def background(self) -> AsyncIterator[None]:
        """Run the tasks of `start_soon` inside this block: if one fails, all end."""
        self._main = asyncio.current_task()
        self._tasks: set[asyncio.Future[Any]] = set()
        try:
            yield
        finally:
            await asyncio.gather(*self._tasks)

    def start_soon(self, async_fn: Callable[[], Awaitable[Any]]) -> None:
        """Start a task in the background."""
        task = asyncio.ensure_future(async_fn())
        self._tasks.add(task)
        task.add_done_callback(self._on_end)

    def _on_end(self, task: asyncio.Future[Any]) -> None:
        if task.cancelled() or task.exception() is not None:
            assert self._main is not None
            self._main.cancel()
        else:
            self._tasks.discard(task)

    def run(self, async_fn: Callable[[], Awaitable[Any]]) -> None:
        """Run the loop until the function returns."""

        async def main() -> None:
            await async_fn()

        asyncio.run(main())


class TrioLoop:
    """Trio, imported only when it is used, to keep it out of asyncio's process."""

    def __init__(self) -> None:
        """Import Trio."""
        import trio  # noqa: PLC0415

        self._trio = trio
        self._nursery: Any = None
        self.make_event = trio.Event
        self.sleep = trio.sleep

    async def together(self, async_fns: list[Callable[[], Awaitable[Any]]]) -> None:
        """Run functions as tasks; return when all have ended."""
        async with self._trio.open_nursery() as nursery:
            for async_fn in async_fns:
                nursery.start_soon(async_fn)

    @asynccontextmanager
    async def background(self) -> AsyncIterator[None]:
        """Run the tasks of `start_soon` inside this block: if one fails, all end."""
        async with self._trio.open_nursery() as self._nursery:
            yield

    def start_soon(self, async_fn: Callable[[], Awaitable[Any]]) -> None:
        """Start a task in the background."""
        self._nursery.start_soon(async_fn)

    def run(self, async_fn: Callable[[], Awaitable[Any]]) -> None:
        """Run the loop until the function returns."""
        self._trio.run(async_fn)


Loop = AsyncioLoop | TrioLoop

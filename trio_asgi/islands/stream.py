"""Iterates async iterators of asyncio from a Trio task."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import outcome

from trio_asgi.threads.trio_state import below_asyncio

from .loop import open_loop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_STREAM_CANCELLED = "The asyncio code of a stream was cancelled before its end."


class IslandStream:
    """An async iterator of asyncio, for one Trio task.

    One asyncio task iterates and closes it, since a timeout, for example, that is open
    from one item to the next belongs to a task. Each item is made when it is asked for.
    If cancelled meanwhile, call `aclose`, which cancels the asyncio task.
    """

    def __init__(self, iterator: AsyncIterator[Any]) -> None:
        self._iterator = iterator
        self._loop: Any = None
        self._task: asyncio.Future[None] | None = None
        self._is_closed = False
        #: Done when the next item is asked for, and when it has come.
        self._asked: asyncio.Future[None] | None = None
        self._given: asyncio.Future[outcome.Outcome[Any]]

    def __aiter__(self) -> IslandStream:
        return self

    async def __anext__(self) -> Any:
        if self._task is not None and (self._asked is None or self._asked.done()):
            # Past its end; but a stream that was cut off must not look complete.
            if self._task.cancelled() or not self._task.done():
                raise RuntimeError(_STREAM_CANCELLED)
            raise StopAsyncIteration
        loop = self._loop = self._loop or await open_loop()
        self._given = loop.create_future()
        if self._asked is None:
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
        """Close the iterator, cancelling its task if there is one. Raises its errors.

        Further calls do nothing.
        """
        if self._is_closed:
            return
        if self._task is None:
            self._loop = await open_loop()
            self._task = self._loop.create_task(self._close())
        else:
            self._task.cancel()
        self._is_closed = True
        with suppress(asyncio.CancelledError):
            if self._task.done():
                self._task.result()  # its loop may be closed, so do not wait
            else:
                await self._loop.run_aio_future(self._task)

    async def _iterate(self) -> None:
        """Iterate, and always complete ``_given`` at the end. The asyncio task."""
        below_asyncio.set(True)
        end: outcome.Outcome[Any] = outcome.Error(StopAsyncIteration())
        try:
            try:
                async for item in self._iterator:
                    self._asked = asyncio.get_running_loop().create_future()
                    self._give(outcome.Value(item))
                    await self._asked
            finally:
                await self._close()
        except BaseException as error:
            if self._given.done():
                raise  # from the closing
            if isinstance(error, asyncio.CancelledError):
                # Not cancelled by the waiting task; and servers do not know this error.
                cancelled = RuntimeError(_STREAM_CANCELLED)
                cancelled.__cause__ = error
                end = outcome.Error(cancelled)
                del cancelled
            else:
                end = outcome.Error(error)
        self._give(end)
        del end

    async def _close(self) -> None:
        aclose = getattr(self._iterator, "aclose", None)
        if aclose is not None:
            await aclose()

    def _give(self, item: outcome.Outcome[Any]) -> None:
        if not self._given.done():
            self._given.set_result(item)

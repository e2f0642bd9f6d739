"""Asyncio tasks whose first step is done at once, on every Python."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import outcome

if TYPE_CHECKING:
    import contextvars

if sys.version_info >= (3, 12):

    def begin_task(
        coro: Any, loop: asyncio.AbstractEventLoop, context: contextvars.Context
    ) -> asyncio.Future[Any]:
        """Run a coroutine up to where it waits; return its task, perhaps done."""
        return asyncio.Task(coro, loop=loop, context=context, eager_start=True)

else:

    def begin_task(
        coro: Any, loop: asyncio.AbstractEventLoop, context: contextvars.Context
    ) -> asyncio.Future[Any]:
        """Run a coroutine up to where it waits; return its task, or a done future."""
        begun = _Begun(coro, context)
        task = asyncio.Task(begun, loop=loop)
        asyncio.tasks._enter_task(loop, task)
        try:
            result = begun.begin()
        finally:
            asyncio.tasks._leave_task(loop, task)
        if result is None:
            return task
        # The task, which the loop will still begin, has nothing left to do.
        future = loop.create_future()
        if isinstance(result, outcome.Error):
            future.set_exception(result.error)
        else:
            future.set_result(result.unwrap())
        return future

    class _Begun(Coroutine[Any, Any, Any]):
        """A coroutine whose first step is done before its task begins."""

        def __init__(self, coro: Any, context: contextvars.Context) -> None:
            self._coro = self.__wrapped__ = coro
            # All steps in one context, in which the task cannot be made on Python 3.10.
            self._context = context
            #: What the first step has yielded, until the task has taken it.
            self._yielded: list[Any] = []
            self._is_done = False

        def begin(self) -> outcome.Outcome[Any] | None:
            """Do the first step; return the outcome if it is the last."""
            self._is_done = True
            try:
                yielded = self._context.run(self._coro.send, None)
            except StopIteration as stop:
                return outcome.Value(stop.value)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # noqa: BLE001 - the outcome
                return outcome.Error(error)
            self._is_done = False
            self._yielded.append(yielded)
            return None

        def send(self, value: Any) -> Any:
            if self._is_done:
                raise StopIteration
            if self._yielded:
                return self._yielded.pop()
            return self._context.run(self._coro.send, value)

        def throw(self, *error: Any) -> Any:
            if self._is_done:
                raise StopIteration
            waits_for = self._yielded.pop() if self._yielded else None
            # The task was cancelled before it knew what the coroutine waits for.
            if waits_for is not None and waits_for.cancel():
                return waits_for
            return self._context.run(self._coro.throw, *error)

        def close(self) -> None:
            self._coro.close()

        def __await__(self) -> Any:
            raise AssertionError("awaited by its task only")

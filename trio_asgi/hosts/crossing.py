"""A Trio task of a guest run, and the asyncio task that waits for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import outcome
import trio

from trio_asgi.errors import split_ending

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .asyncio_calls import HostLoop


class Crossing:
    """A Trio task of the run, and the asyncio task that waits for it.

    Made by the asyncio task. If that is cancelled, it cancels the Trio task, and still
    waits for it.
    """

    def __init__(
        self,
        host: HostLoop,
        crossings: set[Crossing],
        *,
        end_error: Callable[[], BaseException],
        is_request: bool,
    ) -> None:
        """Start nothing yet; be one of ``crossings`` until the end.

        ``end_error()`` is what the asyncio task gets if the run ends.
        """
        self._end_error = end_error
        self.is_request = is_request
        self._host = host
        self._all = crossings
        crossings.add(self)
        self._scope = trio.CancelScope()
        self._outcome: outcome.Outcome[Any] | None = None
        #: What the asyncio task waits for, if it has to.
        self._done: asyncio.Future[None] | None = None
        self.is_cancelled = False
        #: Set at the end, if somebody waits for that in Trio.
        self._ended: trio.Event | None = None

    async def run(self, async_fn: Callable[..., Awaitable[Any]], *args: Any) -> None:
        """Run the function. The Trio task."""
        try:
            with self._scope:
                self.end(outcome.Value(await async_fn(*args)))
            if self._scope.cancelled_caught:
                self.end(outcome.Value(None))
        except BaseException as error:  # noqa: BLE001 - the asyncio task's
            self.end(outcome.Error(self._for_asyncio(error)))

    def _for_asyncio(self, error: BaseException) -> BaseException:
        """Return what the asyncio task gets for an error of the Trio task."""
        ending, rest = split_ending(error)
        if not isinstance(ending, trio.Cancelled):
            return error
        # The run is ending. Other Trio tasks may wait for the asyncio task.
        return rest or self._end_error()

    def end(self, result: outcome.Outcome[Any]) -> None:
        """Let the asyncio task go on with this result. Host thread."""
        self._outcome = result
        self._all.discard(self)
        if self._done is not None and not self._done.done():
            self._done.set_result(None)
        if self._ended is not None:
            self._ended.set()

    async def wait_ended(self) -> None:
        """Wait for the end. Another Trio task."""
        if self in self._all:
            if self._ended is None:
                self._ended = trio.Event()
            await self._ended.wait()

    async def wait(self) -> Any:
        """Wait for the Trio task; return its result. Asyncio task.

        Raises:
            asyncio.CancelledError: this task was cancelled, or the run is ending.
            Exception: what the Trio task has raised.
        """
        cancelled: asyncio.CancelledError | None = None
        while self._outcome is None:
            self._done = self._host.loop.create_future()
            try:
                await self._done
            except asyncio.CancelledError as error:
                cancelled = error
                self.is_cancelled = True
                self._host.ticks.soon(self._scope.cancel)
        result, self._outcome = self._outcome, None
        try:
            value = result.unwrap()
            if cancelled is not None:
                raise cancelled
            return value
        finally:
            # An error's traceback holds this frame: leave no cycle behind.
            del result, cancelled

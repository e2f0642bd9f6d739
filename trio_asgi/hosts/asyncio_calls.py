"""Asyncio code of the host loop, called from a Trio task of the guest run.

A server's ``send`` mostly ends without waiting. So the code begins at once, in the Trio
task's own step; if it has to wait, the host loop goes on with it, as an asyncio task.
Its task is asyncio's current one from the start: `asyncio.timeout` needs that.
"""

from __future__ import annotations

import asyncio
import contextvars
from types import CoroutineType
from typing import TYPE_CHECKING, Any

import outcome
import trio

from trio_asgi.threads.abandon import (
    AbandonableWait,
    describe_asyncio_task,
    forget_asyncio_task,
)

from .eager import begin_task
from .ticks import Ticks, outside_trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from trio_asgi.asgi.types import Message, Receive, Send


class HostLoop:
    """The host loop of a guest run, for calls from the run's Trio tasks."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ticks: Ticks) -> None:
        self.loop = loop
        self.ticks = ticks

    def begin(
        self, awaitable: Awaitable[Any], context: contextvars.Context | None = None
    ) -> asyncio.Future[Any]:
        """Run asyncio code up to where it waits; return its task, perhaps done.

        It runs in a copy of the given context, or of the caller's.
        """
        coro: Any = awaitable
        if type(coro) is not CoroutineType:
            coro = _await(awaitable)
        copy = contextvars.copy_context() if context is None else context.copy()
        return outside_trio(begin_task, coro, self.loop, copy)

    async def run(
        self, awaitable: Awaitable[Any], context: contextvars.Context | None = None
    ) -> Any:
        """Await asyncio code; see `begin`.

        A cancellation cancels its task, and waits for it. Not a checkpoint if it ends
        without waiting.

        Raises:
            trio.Cancelled: cancelled, and the code has ended with its CancelledError.
            asyncio.CancelledError: asyncio code has cancelled the task.
            Exception: from the code.
        """
        return await self.run_aio_future(self.begin(awaitable, context))

    # What a loop of trio-asyncio has, too

    def create_future(self) -> asyncio.Future[Any]:
        """Return a future of the loop."""
        return self.loop.create_future()

    def create_task(self, coro: Awaitable[Any]) -> asyncio.Future[Any]:
        """Begin a task; see `begin`."""
        return self.begin(coro)

    async def run_aio_coroutine(self, coro: Coroutine[Any, Any, Any]) -> Any:
        """As `run`, but it does not begin if the running task is cancelled."""
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
        except trio.Cancelled:
            coro.close()
            raise
        return await self.run(coro)

    async def run_aio_future(self, future: asyncio.Future[Any]) -> Any:
        """Wait for a future, which a cancellation cancels."""
        try:
            if not future.done():
                await HostWait(future, self.ticks).wait()
            return future.result()
        finally:
            # An error's traceback holds this frame: leave no cycle behind.
            del future


#: The host loop of a guest run; None in a run without.
host_loop: trio.lowlevel.RunVar[HostLoop | None] = trio.lowlevel.RunVar(
    "trio_asgi.host_loop", default=None
)


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


class HostWait(AbandonableWait):
    """A Trio task's wait for an asyncio task of the host loop."""

    def __init__(self, future: asyncio.Future[Any], ticks: Ticks) -> None:
        self._future = future
        self._ticks = ticks
        self._task = trio.lowlevel.current_task()
        self._raise_cancel: Callable[[], Any] | None = None

    async def wait(self) -> None:
        """Wait for its end; a cancellation cancels it first.

        Raises:
            trio.Cancelled: cancelled, and the asyncio task has ended as cancelled.
        """
        self._future.add_done_callback(self._on_done)
        await trio.lowlevel.wait_task_rescheduled(self._abort)
        if self._raise_cancel is not None and self._future.cancelled():
            self._raise_cancel()

    def _on_done(self, _: object) -> None:
        self._ticks.soon(trio.lowlevel.reschedule, self._task)

    def _abort(self, raise_cancel: Callable[[], Any]) -> trio.lowlevel.Abort:
        self._raise_cancel = raise_cancel
        self._future.cancel()
        return trio.lowlevel.Abort.FAILED

    @property
    def is_cancelled(self) -> bool:
        """Whether the Trio task was cancelled meanwhile."""
        return self._raise_cancel is not None

    def abandon_if_cancelled(self) -> bool:
        """Let the Trio task go on with its cancellation; False if impossible."""
        if self._raise_cancel is None or self._future.done():
            return False
        if not self._future.remove_done_callback(self._on_done):
            return False  # already abandoned, but the task has not gone on yet
        if isinstance(self._future, asyncio.Task):
            forget_asyncio_task(self._future)
        trio.lowlevel.reschedule(self._task, outcome.capture(self._raise_cancel))
        return True

    def __str__(self) -> str:
        if isinstance(self._future, asyncio.Task):
            return describe_asyncio_task(self._future)
        return f"{self._future!r}"


class HostReceive:
    """A server's ``receive``, for one request and one Trio task at a time.

    A cancelled call leaves the server's own to go on, and the next call takes its
    message: nothing is lost, and the cancellation is immediate.
    """

    def __init__(
        self, receive: Receive, host: HostLoop, context: contextvars.Context
    ) -> None:
        self._receive = receive
        self._host = host
        self._context = context
        self._future: asyncio.Future[Message] | None = None
        self._task: trio.lowlevel.Task | None = None

    async def __call__(self) -> Message:
        """Return the next message; a checkpoint only if it has to wait."""
        if self._future is None:
            self._future = self._host.begin(self._receive(), self._context)
            if not self._future.done():
                self._future.add_done_callback(self._on_done)
        if not self._future.done():
            self._task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abort)
        future, self._future = self._future, None
        try:
            return future.result()
        finally:
            # An error's traceback holds this frame: leave no cycle behind.
            del future

    def _on_done(self, _: object) -> None:
        task, self._task = self._task, None
        if task is not None:
            self._host.ticks.soon(trio.lowlevel.reschedule, task)

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def close(self) -> None:
        """End the call that nobody waits for. When the request has ended."""
        if self._future is not None:
            self._future.cancel()


class HostSend:
    """A server's ``send``, for one request."""

    def __init__(
        self, send: Send, host: HostLoop, context: contextvars.Context
    ) -> None:
        self._send = send
        self._host = host
        self._context = context

    async def __call__(self, message: Message) -> None:
        """Send a message; a checkpoint if the server has to wait, or in a stream.

        A server whose client has left drops what it gets without waiting: without a
        checkpoint, an endless stream would never let anybody notice.
        """
        await self._host.run(self._send(message), self._context)
        if message.get("more_body"):
            await trio.lowlevel.checkpoint()

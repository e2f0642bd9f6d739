"""The lifespan protocol, and the nursery for tasks that outlive requests."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import trio

from trio_asgi.errors import ends_more_than_request
from trio_asgi.threads.abandon import Abandoner
from trio_asgi.threads.offload import HeldLog, log

from .nursery import run_beside

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from .types import Receive, Send

logger = logging.getLogger("trio_asgi")


class Lifespan:
    """An application's life under a server.

    The task that the server starts for the lifespan scope owns the nursery. The nursery
    takes tasks from start-up to shutdown. Then they get some time to end, and are
    cancelled.
    """

    def __init__(
        self,
        context: Callable[[], AbstractAsyncContextManager[None]],
        *,
        started: Callable[[], None],
        shutdown_seconds: float,
        beside: Callable[[], Awaitable[None]],
        after: Callable[[], Awaitable[None]],
    ) -> None:
        """Prepare, but start nothing yet.

        Args:
            context: Entered at start-up and left at shutdown.
            started: Called when the context has been entered. Must not raise.
            shutdown_seconds: How long the nursery's tasks may run on at shutdown, and
                then how long cancelled tasks may wait for threads and asyncio code.
            beside: Runs all the time, and is cancelled at the end. Must not raise.
            after: Called when everything else has ended.
        """
        self._context = context
        self._started = started
        self._shutdown_seconds = shutdown_seconds
        self._beside = beside
        self._after = after
        self._nursery: trio.Nursery | None = None

    def start_soon(
        self, async_fn: Callable[..., Awaitable[Any]], *args: Any, name: object = None
    ) -> None:
        """Start a task in the nursery.

        Raises:
            RuntimeError: there is no nursery: before start-up, after shutdown, or
                because the server does not support lifespan.
        """
        if self._nursery is None:
            raise RuntimeError(
                "No nursery outlives this request: the server has sent no "
                "lifespan.startup, or is shutting down. Start the task in a nursery "
                "of the view, or use a server with lifespan support."
            )
        self._nursery.start_soon(async_fn, *args, name=name)

    async def run(self, receive: Receive, send: Send) -> None:
        """Exchange the protocol's messages with the server until shutdown.

        An error while entering the context is reported as a failed start-up, a later
        one as a failed shutdown; both are logged.
        """
        await receive()  # lifespan.startup
        phase = "startup"
        shutdown = trio.Event()

        async def live() -> None:
            nonlocal phase
            async with self._context(), trio.open_nursery() as nursery:
                self._started()
                phase = "shutdown"
                self._nursery = nursery
                await send({"type": "lifespan.startup.complete"})
                await receive()  # lifespan.shutdown
                shutdown.set()
                self._nursery = None
                nursery.cancel_scope.deadline = (
                    trio.current_time() + self._shutdown_seconds
                )
            await self._after()

        abandoner = Abandoner(trio.lowlevel.current_task(), self._shutdown_seconds)
        scope = trio.CancelScope(shield=True)

        async def abandon() -> None:
            try:
                await shutdown.wait()
            finally:  # a cancellation, too, begins the shutdown
                with scope:
                    await abandoner.run()

        async def live_bounded() -> None:
            await run_beside(abandon, live, stop=scope.cancel)

        failure = ""
        try:
            await run_beside(self._beside, live_bounded)
        except BaseException as error:
            if ends_more_than_request(error):
                raise
            async with HeldLog(lambda: self._shutdown_seconds):
                message = "The application's %s failed"
                log(logger, logging.ERROR, message, phase, error=error)
            failure = f"{type(error).__name__}: {error}"
        finally:
            self._nursery = None
        # Not sent in the handler above: servers raise an error here, whose log would
        # also show the one being handled.
        if failure:
            await send({"type": f"lifespan.{phase}.failed", "message": failure})
        else:
            await send({"type": "lifespan.shutdown.complete"})

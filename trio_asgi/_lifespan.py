"""The lifespan protocol, and the nursery for what outlives requests."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import trio

from ._beside import run_beside
from ._errors import ends_more
from ._leave import leave_beside
from ._offload import HeldLog, log
from ._sigterm import leave_sigterm_to_parent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from ._types import Receive, Send

logger = logging.getLogger("trio_asgi")


class Lifespan:
    """An application's life under a server.

    One task, the one that the server starts for the lifespan scope, owns the nursery.
    Tasks are put into it from start-up to shutdown; at shutdown they get some time to
    end by themselves, and are then cancelled.
    """

    def __init__(
        self,
        context: Callable[[], AbstractAsyncContextManager[None]],
        *,
        shutdown_seconds: float,
        after: Callable[[], Awaitable[None]],
    ) -> None:
        """Prepare, and start nothing yet.

        Args:
            context: Entered at start-up and left at shutdown.
            shutdown_seconds: How long the nursery's tasks may run on at shutdown, and
                then how long a cancelled task may wait for what does not end.
            after: Called at the very end, when everything else has ended.
        """
        self._context = context
        self._shutdown_seconds = shutdown_seconds
        self._after = after
        self._nursery: trio.Nursery | None = None

    def start_soon(
        self, async_fn: Callable[..., Awaitable[Any]], *args: Any, name: object = None
    ) -> None:
        """Start a task in the nursery.

        Raises:
            RuntimeError: there is none, before start-up, after shutdown, or because the
                server does not support lifespan.
        """
        if self._nursery is None:
            raise RuntimeError(
                "No nursery outlives this request: the server has sent no "
                "lifespan.startup, or is shutting down. Start the task in a nursery "
                "of the view, or use a server with lifespan support."
            )
        self._nursery.start_soon(async_fn, *args, name=name)

    async def run(self, receive: Receive, send: Send) -> None:
        """Speak the protocol with the server until shutdown.

        A context that cannot be entered is reported as a failed start-up, one that
        cannot be left as a failed shutdown; both are logged.
        """
        await receive()  # lifespan.startup
        phase = "startup"
        shutdown = trio.Event()

        async def live() -> None:
            nonlocal phase
            async with self._context(), trio.open_nursery() as nursery:
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

        async def live_bounded() -> None:
            await leave_beside(live, self._shutdown_seconds, begin=shutdown)

        failure = ""
        try:
            await run_beside(leave_sigterm_to_parent, live_bounded)
        except BaseException as error:
            if ends_more(error):
                raise
            async with HeldLog(lambda: self._shutdown_seconds):
                message = "The application's %s failed"
                log(logger, logging.ERROR, message, phase, error=error)
            failure = f"{type(error).__name__}: {error}"
        finally:
            self._nursery = None
        # Not sent above: a server raises an error here, which would be logged together
        # with the one that was being handled.
        if failure:
            await send({"type": f"lifespan.{phase}.failed", "message": failure})
        else:
            await send({"type": "lifespan.shutdown.complete"})

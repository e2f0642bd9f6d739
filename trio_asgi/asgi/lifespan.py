"""The lifespan protocol, and the nursery for tasks that outlive requests."""

from __future__ import annotations

import contextvars
import functools
import logging
from typing import TYPE_CHECKING, Any, Final

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

#: The lifespans that have a nursery, by their owners. Any thread may look.
running: Final[dict[object, Lifespan]] = {}

#: The owner in whose lifespan a task was started.
current_owner: contextvars.ContextVar[object] = contextvars.ContextVar(
    "trio_asgi.lifespan_owner", default=None
)


class Lifespan:
    """An application's life under a server.

    The task that the server starts for the lifespan scope owns the nursery. The nursery
    takes tasks from start-up to shutdown. Then they get some time to end, and are
    cancelled.
    """

    def __init__(  # noqa: PLR0913 - what differs between applications
        self,
        owner: object,
        context: Callable[[], AbstractAsyncContextManager[None]],
        *,
        started: Callable[[], None],
        shutdown_seconds: float,
        beside: Callable[[], Awaitable[None]],
        after: Callable[[], Awaitable[None]],
    ) -> None:
        """Prepare, but start nothing yet.

        Args:
            owner: The application.
            context: Entered at start-up and left at shutdown.
            started: Called when the context has been entered. Must not raise.
            shutdown_seconds: How long the nursery's tasks may run on at shutdown, and
                then how long cancelled tasks may wait for threads and asyncio code.
            beside: Runs all the time, and is cancelled at the end. Must not raise.
            after: Called when everything else has ended.
        """
        self._owner = owner
        self._context = context
        self._started = started
        self._shutdown_seconds = shutdown_seconds
        self._beside = beside
        self._after = after
        self._nursery: trio.Nursery | None = None
        self._token: trio.lowlevel.TrioToken | None = None

    def start_soon(
        self,
        context: contextvars.Context,
        async_fn: Callable[..., Awaitable[Any]],
        *args: Any,
        name: object = None,
    ) -> None:
        """Start a task in the nursery, in a copy of the context. Any thread.

        Raises:
            RuntimeError: there is no nursery: before start-up, after shutdown, or
                because the server does not support lifespan.
        """
        nursery = self._nursery
        if nursery is None or self._token is None:
            raise RuntimeError(
                "No nursery outlives this request: the server has sent no "
                "lifespan.startup, lifespan() has not reached its yield, or the server "
                "is shutting down. Start the task in a nursery of the view or of "
                "lifespan(), or use a server with lifespan support."
            )
        if (
            trio.lowlevel.in_trio_run()
            and trio.lowlevel.current_trio_token() is self._token
        ):
            context.run(
                functools.partial(nursery.start_soon, async_fn, *args, name=name)
            )
        else:
            trio.from_thread.run_sync(
                functools.partial(self.start_soon, context, async_fn, *args, name=name),
                trio_token=self._token,
            )

    def _open(self, nursery: trio.Nursery) -> None:
        self._nursery, self._token = nursery, trio.lowlevel.current_trio_token()
        running[self._owner] = self

    def _close(self) -> None:
        self._nursery = None
        running.pop(self._owner, None)

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
                self._open(nursery)
                await send({"type": "lifespan.startup.complete"})
                await receive()  # lifespan.shutdown
                shutdown.set()
                self._close()
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
        outer = current_owner.set(self._owner)
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
            self._close()
            current_owner.reset(outer)
        # Not sent in the handler above: servers raise an error here, whose log would
        # also show the one being handled.
        if failure:
            await send({"type": f"lifespan.{phase}.failed", "message": failure})
        else:
            await send({"type": "lifespan.shutdown.complete"})

"""A Trio run that is the guest of an asyncio loop."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import outcome
import trio

from trio_asgi.errors import leaves
from trio_asgi.threads.abandon import Abandoner
from trio_asgi.threads.current import current_pool

from .asyncio_calls import HostLoop, host_loop
from .crossing import Crossing
from .ticks import Ticks, watch

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable


logger = logging.getLogger("trio_asgi")


class GuestRun:
    """The Trio run of one host loop. Used in the loop's thread.

    Guarantees: it ends in order (requests, then what Trio ends last, such as the system
    tasks of islands and threads), and a crash reaches everybody that waits for it.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, on_end: Callable[[], object]
    ) -> None:
        """Start nothing yet. ``on_end()`` is called after the end, but not a crash."""
        self._on_end = on_end
        self.host = HostLoop(loop, Ticks())
        self._crossings: set[Crossing] = set()
        #: Where its tasks begin; None before and after its life.
        self._nursery: trio.Nursery | None = None
        #: Trio's hooks for async generators. A plain tuple: garbage collection passes
        #: over what `sys.get_asyncgen_hooks` returns.
        self._hooks: tuple[Any, ...] = ()
        self._stop = trio.Event()
        #: How many lifespans the run serves; the last one ends it.
        self.lifespans = 0
        #: Done when the run takes tasks, and when it has ended.
        self._ready: asyncio.Future[None] = loop.create_future()
        self._ended: asyncio.Future[None] = loop.create_future()
        #: The error with which the run has crashed.
        self.crash: BaseException | None = None
        self._holder: AsyncGenerator[None, None] | None = None

    # Its life

    @property
    def is_ending(self) -> bool:
        """Whether it takes no more tasks."""
        return self._stop.is_set()

    @property
    def is_ready(self) -> bool:
        """Whether it takes tasks, or did."""
        return self._ready.done()

    @property
    def takes_calls(self) -> bool:
        """Whether `call` works: also while the run ends, for code that cleans up."""
        return self._nursery is not None

    async def wait_ready(self) -> None:
        """Wait until it takes tasks. Asyncio task."""
        await asyncio.shield(self._ready)

    def start(self) -> None:
        """Begin the run.

        Raises:
            RuntimeError: another Trio run is going on in this thread.
        """
        # Closed by the loop at its end: the last chance to end the run in order.
        self._holder = self._hold()
        with suppress(StopIteration):
            self._holder.__anext__().send(None)
        # System tasks inherit the context: not that of the first request.
        try:
            contextvars.Context().run(self._start)
        except BaseException:
            self._ended.set_result(None)
            self._close_holder()
            raise
        self._end_with_twisted()

    def _start(self) -> None:
        loop = self.host.loop
        first: list[Callable[[], object]] = []

        def run_soon(fn: Callable[[], object]) -> None:
            if begun:
                loop.call_soon(fn)
            else:
                first.append(fn)

        begun = False
        trio.lowlevel.start_guest_run(
            self._main,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            run_sync_soon_not_threadsafe=run_soon,
            done_callback=self._on_done,
            host_uses_signal_set_wakeup_fd=True,
        )
        begun = True
        self._hooks = tuple(sys.get_asyncgen_hooks())
        [guest_tick] = first
        watched = watch(guest_tick, loop)
        if watched is None:
            loop.call_soon(guest_tick)
        else:
            self.host.ticks = watched
            watched.begin()

    async def _main(self) -> None:
        host_loop.set(self.host)
        try:
            async with trio.open_nursery() as ending:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    self._ready.set_result(None)
                    try:
                        await self._stop.wait()
                    except KeyboardInterrupt:  # from Trio's handler
                        self._stop.set()
                        raise
                    finally:
                        # Islands that are cancelled now may call Trio to clean up.
                        self._nursery = ending
                        nursery.cancel_scope.cancel()
                        # Asyncio code that belongs to no request may be here, too.
                        seconds = current_pool().shutdown_seconds
                        abandoner = Abandoner(trio.lowlevel.current_task(), seconds)
                        ending.start_soon(abandoner.run)
                ending.cancel_scope.cancel()
        finally:
            self._nursery = None

    async def end(self) -> None:
        """End the run, and wait for that, also when cancelled. Asyncio task."""
        cancelled: asyncio.CancelledError | None = None
        while not self._ended.done():
            self.host.ticks.soon(self._stop.set)
            try:
                await asyncio.shield(self._ended)
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            try:
                raise cancelled
            finally:
                del cancelled

    async def wait_ended(self) -> None:
        """Wait for the end of the run. Asyncio task."""
        await asyncio.shield(self._ended)

    async def _hold(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await self.end()

    def _close_holder(self) -> None:
        holder: Any = self._holder
        if not holder.ag_running:  # as when the loop closes it
            with suppress(StopIteration):
                holder.aclose().send(None)

    def _end_with_twisted(self) -> None:
        """End the run in order under daphne: Twisted closes no async generators."""
        loop, reactor = self.host.loop, sys.modules.get("twisted.internet.reactor")
        if getattr(reactor, "_asyncioEventloop", None) is not loop:
            return
        from twisted.internet.defer import Deferred  # noqa: PLC0415 - loaded already

        def end() -> Any:
            return Deferred.fromFuture(loop.create_task(self.end()))

        twisted: Any = reactor
        # Not "during": then the reactor stops the loop, and waits for nobody.
        twisted.addSystemEventTrigger("before", "shutdown", end)

    def _on_done(self, result: outcome.Outcome[None]) -> None:
        """Note the end of the run. Trio's callback."""
        ended = self._stop.is_set()
        self._stop.set()
        self._nursery = None
        interrupts: list[KeyboardInterrupt] = []
        for future in (self._ready, self._ended):
            if not future.done():
                future.set_result(None)
        if isinstance(result, outcome.Error):
            errors = leaves(result.error)
            interrupts = [err for err in errors if isinstance(err, KeyboardInterrupt)]
            if len(interrupts) < len(errors):
                self.crash = result.error
        elif not ended:
            self.crash = RuntimeError("Trio's main task has ended")
        if self.crash is None:
            self._on_end()
        else:
            logger.critical(
                "Trio's run in this process has crashed: every request fails until the "
                "process is started again",
                exc_info=self.crash,
            )
        for crossing in list(self._crossings):
            crossing.end(outcome.Error(self._end_error()))
        self._close_holder()
        if interrupts:
            try:
                raise interrupts[0]  # Ctrl-C is the host's
            finally:
                del interrupts, errors  # its traceback holds this frame

    @property
    def _ends_in_order(self) -> bool:
        """Whether it is ending, or has ended, without a crash."""
        return self.is_ending and self.crash is None

    def _end_error(self) -> BaseException:
        """Return what the asyncio tasks get that wait when the run ends."""
        return asyncio.CancelledError() if self._ends_in_order else self.crash_error()

    def crash_error(self) -> RuntimeError:
        """Return an error that says that the run has crashed."""
        error = RuntimeError(
            "Trio's run in this process has crashed; its first error is in the log. "
            "Start the process again."
        )
        error.__cause__ = self.crash
        return error

    # Its tasks

    async def call(
        self,
        async_fn: Callable[..., Awaitable[Any]],
        *args: Any,
        name: str,
        is_request: bool = False,
    ) -> Any:
        """Run a function in a Trio task, in a copy of this context. Asyncio task.

        Raises:
            RuntimeError: the run takes no more tasks, or has crashed.
            Exception: as `Crossing.wait`.
        """
        if self._nursery is None:
            if self._ends_in_order:
                raise RuntimeError("Trio has ended")
            raise self.crash_error()
        # The loop sets its own whenever it is run again, as granian does for requests.
        if sys.get_asyncgen_hooks() != self._hooks:
            sys.set_asyncgen_hooks(*self._hooks)
        crossing = Crossing(
            *(self.host, self._crossings),
            end_error=self._end_error,
            is_request=is_request,
        )
        start = functools.partial(self._nursery.start_soon, name=name)
        self.host.ticks.now(start, crossing.run, async_fn, *args)
        return await crossing.wait()

    async def wait_for_requests(self) -> None:
        """Wait until the present requests have ended. Trio task.

        Those that the server has not cancelled get ``shutdown_seconds`` at most.
        """
        requests = [crossing for crossing in self._crossings if crossing.is_request]
        with trio.move_on_after(current_pool().shutdown_seconds):
            for request in requests:
                await request.wait_ended()
        for request in requests:
            if request.is_cancelled:
                await request.wait_ended()

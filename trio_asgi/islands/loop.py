"""The asyncio loop of a Trio run's islands: when it opens, and how it ends."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import sys
import warnings
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import trio

from trio_asgi.errors import ends_more
from trio_asgi.threads.abandon import (
    ABANDONED,
    INTERVAL,
    describe_asyncio_task,
    forget_asyncio_task,
)
from trio_asgi.threads.current import current_pool
from trio_asgi.threads.lease import lease_of
from trio_asgi.threads.loop import current_loop
from trio_asgi.threads.offload import call_in_thread_soon, log

from .executor import make_executor

if TYPE_CHECKING:
    from trio_asyncio import TrioEventLoop

logger = logging.getLogger("trio_asgi")

#: Whether the nearest async code above is asyncio's, or Trio's, for `async_to_sync` in
#: sync code. None: nobody's; then the lease says what the project is written for.
below_asyncio: contextvars.ContextVar[bool | None] = contextvars.ContextVar(
    "trio_asgi.below_asyncio", default=None
)


class _Loop:
    """The asyncio loop of one Trio run. A system task's, open until told to end."""

    def __init__(self) -> None:
        #: The loop, while it is open to islands; None also if opening it failed.
        self.loop: TrioEventLoop | None = None
        self.is_open = trio.Event()
        self.shall_close = trio.Event()
        self.is_closed = trio.Event()
        #: Which application each task belongs to; None if to none.
        self._owners: WeakKeyDictionary[asyncio.Task[Any], object] = WeakKeyDictionary()

    async def live(self) -> None:
        """Be the system task."""
        import trio_asyncio  # noqa: PLC0415 - see import_trio_asyncio()

        try:
            async with trio_asyncio.open_loop() as loop:
                # trio-asyncio's own would end the loop, and with it the run.
                loop.set_exception_handler(_log_error)
                executor = make_executor()
                loop.set_default_executor(executor)
                loop.set_task_factory(self._make_task)
                _let_nothing_end(loop)
                _call_back_in(loop)
                _show_in_c(loop)
                await loop.synchronize()
                self.loop = loop
                self.is_open.set()
                try:
                    await self.shall_close.wait()
                finally:
                    # trio-asyncio would cancel these too, but also the Trio tasks that
                    # their cleaning up may need.
                    with trio.CancelScope(shield=True):
                        await self.end_tasks()
                        await executor.wait_idle(current_pool().shutdown_seconds)
                    # What would begin now, nobody would cancel or wait for.
                    self.loop = None
        except BaseException as error:
            if ends_more(error):
                raise
            # A system task that fails would end the run.
            message = "The loop of the asyncio islands has ended"
            log(logger, logging.ERROR, message, error=error)
        finally:
            self.loop = None
            self.is_open.set()
            self.is_closed.set()

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, coro: Any, **options: Any
    ) -> asyncio.Task[Any]:
        """Make each task of the loop, and note whose it is: its starter's."""
        task = asyncio.Task(coro, loop=loop, **options)
        context = options.get("context")
        place = current_loop.get() if context is None else context.get(current_loop)
        if place is not None:
            self._owners[task] = lease_of(place).owner
        return task

    async def end_tasks(self, owner: object = None) -> None:
        """Cancel tasks, and wait for them up to ``shutdown_seconds``.

        Args:
            owner: Whose; everybody's if None.
        """
        if self.loop is None:
            return
        tasks = [
            task
            for task in asyncio.all_tasks(self.loop)
            if owner is None or self._owners.get(task) is owner
        ]
        if tasks:
            # Calls of theirs are left by the same time: then they end in order.
            seconds = current_pool().shutdown_seconds + 5 * INTERVAL
            await self.loop.run_aio_coroutine(_cancel(tasks, seconds))


_loop: trio.lowlevel.RunVar[_Loop | None] = trio.lowlevel.RunVar(
    "trio_asgi.island_loop"
)


def import_trio_asyncio() -> None:
    """Import trio-asyncio, but keep the loops of `asyncio.run` asyncio's.

    Everywhere outside Trio they would be trio-asyncio's, in which `sync_to_async` does
    not work.
    """
    if "trio_asyncio" in sys.modules:
        return
    with warnings.catch_warnings():
        # It still asks for what Python 3.12 has deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        from trio_asyncio import _loop as theirs  # noqa: PLC0415 - few need it
    in_trio = theirs._trio_policy.new_event_loop

    def new_event_loop() -> asyncio.AbstractEventLoop:
        loop: asyncio.AbstractEventLoop
        if trio.lowlevel.in_trio_task():
            loop = in_trio()
        else:  # the policy that is set, or was when trio-asyncio was imported
            loop = theirs._new_policy_get().new_event_loop()
        return loop

    theirs._trio_policy.new_event_loop = new_event_loop


async def open_loop() -> TrioEventLoop:
    """Return the loop that the program has opened around the task, or else ours."""
    import_trio_asyncio()
    import trio_asyncio  # noqa: PLC0415 - see import_trio_asyncio()

    loop: TrioEventLoop | None = trio_asyncio.current_loop.get()
    if loop is not None and loop._token is trio.lowlevel.current_trio_token():
        return loop
    holder = _loop.get(None)
    if holder is None or holder.is_closed.is_set():
        holder = _Loop()
        # Which is there at the end, for sync code that a cleaning up may need.
        current_pool().ends_of_users.append(holder.is_closed)
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
        raise RuntimeError(
            "The loop of the asyncio islands could not be opened, or is being closed."
        )
    return holder.loop


async def _cancel(tasks: list[asyncio.Task[Any]], seconds: float) -> None:
    """Cancel tasks of this loop, and wait for them. An asyncio task."""
    for task in tasks:
        task.cancel()
    _, left = await asyncio.wait(tasks, timeout=seconds)
    for task in left:
        logger.error(ABANDONED, describe_asyncio_task(task), "nobody")
        forget_asyncio_task(task)


async def end_tasks(owner: object) -> None:
    """End what an application's code has begun in the loop, and nobody waits for."""
    holder = _loop.get(None)
    if holder is not None:
        await holder.end_tasks(owner)


async def close_loop() -> None:
    """Close the loop before the run ends, which else does that. For tests."""
    holder = _loop.get(None)
    if holder is not None:
        holder.shall_close.set()
        await holder.is_closed.wait()


def _log_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Handle an error as asyncio's own loops do."""
    handle: Any = asyncio.BaseEventLoop.default_exception_handler
    call_in_thread_soon(functools.partial(handle, loop, context))


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
        except (SystemExit, KeyboardInterrupt) as error:
            message = "A task of asyncio would have ended its loop"
            log(logger, logging.ERROR, message, error=error)

    loop._main_loop_one = guarded


def _call_back_in(loop: Any) -> None:
    """Have the loop's own task call what waits for a file, as it calls all else.

    trio-asyncio does that in a Trio task which has the context of the one who asked:
    there this loop does not run, since nobody has it around the program.
    """
    add_io_handler = loop._add_io_handler

    def add(
        set_handle: Any, wait_ready: Any, fd: Any, callback: Any, args: tuple[Any, ...]
    ) -> Any:
        def call() -> None:
            if not handle._cancelled:
                callback(*args)

        handle = add_io_handler(set_handle, wait_ready, fd, loop.call_soon, (call,))
        return handle

    loop._add_io_handler = add


def _show_in_c(loop: Any) -> None:
    """Let functions that were imported from asyncio by name find the loop.

    trio-asyncio answers where the module `asyncio` is asked. ``from asyncio import
    get_running_loop``, if it came first, has asyncio's own, which looks elsewhere.
    """
    from trio_asyncio._loop import _orig_run_get  # noqa: PLC0415 - see above

    queue_handle, call_soon_threadsafe = loop._queue_handle, loop.call_soon_threadsafe

    def call(callback: Any, *args: Any) -> Any:
        outer = _orig_run_get()  # of a host, in Trio's guest mode
        asyncio._set_running_loop(loop)
        try:
            return callback(*args)
        finally:
            asyncio._set_running_loop(outer)

    def queue(handle: Any) -> Any:
        # Its other kinds run a coroutine of Trio's.
        if type(handle) in (asyncio.Handle, asyncio.TimerHandle):
            handle._callback = functools.partial(call, handle._callback)
        return queue_handle(handle)

    loop._queue_handle = queue
    loop.call_soon_threadsafe = functools.partial(call_soon_threadsafe, call)

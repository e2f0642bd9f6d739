"""The asyncio loop of a Trio run's islands: when it opens, and how it ends."""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
import warnings
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import trio

from trio_asgi.errors import reraise, split_ending
from trio_asgi.hosts.asyncio_calls import HostLoop, host_loop
from trio_asgi.threads.abandon import INTERVAL
from trio_asgi.threads.current import current_pool
from trio_asgi.threads.lease import lease_of
from trio_asgi.threads.loop import current_loop
from trio_asgi.threads.offload import call_in_thread_soon, log

from .ending import cancel_tasks, end_host_tasks
from .executor import make_executor

if TYPE_CHECKING:
    from trio_asyncio import TrioEventLoop

logger = logging.getLogger("trio_asgi")


class _Loop:
    """The asyncio loop of one Trio run, in a system task."""

    def __init__(self) -> None:
        #: The loop, while islands may use it; None also if it could not be opened.
        self.loop: TrioEventLoop | None = None
        self.is_open = trio.Event()
        self.should_close = trio.Event()
        self.is_closed = trio.Event()
        #: The application of each task that has one.
        self._owners: WeakKeyDictionary[asyncio.Task[Any], object] = WeakKeyDictionary()

    async def run(self) -> None:
        """Keep the loop open until it is to close. The system task."""
        import trio_asyncio  # noqa: PLC0415 - see import_trio_asyncio()

        loop: TrioEventLoop | None = None
        try:
            async with trio_asyncio.open_loop() as loop:
                # trio-asyncio's handler would end the loop, and with it the run.
                loop.set_exception_handler(_log_error)
                executor = make_executor()
                loop.set_default_executor(executor)
                loop.set_task_factory(self._make_task)
                _log_exits(loop)
                _call_io_callbacks_in_loop(loop)
                _set_c_running_loop(loop)
                await loop.synchronize()
                self.loop = loop
                self.is_open.set()
                try:
                    await self.should_close.wait()
                finally:
                    # trio-asyncio would also cancel the Trio tasks that the clean-up of
                    # these tasks may need.
                    with trio.CancelScope(shield=True):
                        await self.end_tasks()
                        await executor.wait_idle(current_pool().shutdown_seconds)
                    # Nobody would cancel a task that starts now, or wait for it.
                    self.loop = None
        except BaseException as error:  # noqa: BLE001 - raised again, or logged
            # At the end of the run, a cancellation comes along with what fails then.
            ending, failure = split_ending(error)
            try:
                if failure is not None:
                    # A system task that fails would end the run.
                    message = "The loop of the asyncio islands has ended"
                    log(logger, logging.ERROR, message, error=failure)
                if ending is not None:
                    reraise(ending)
            finally:
                del ending, failure
        finally:
            self.loop = None
            if loop is not None:
                # A library may have replaced the loop's own, with one that has failed.
                type(loop).close(loop)
            self.is_open.set()
            self.is_closed.set()

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, coro: Any, **options: Any
    ) -> asyncio.Task[Any]:
        """Return a new task, and note the application that has started it."""
        task = asyncio.Task(coro, loop=loop, **options)
        context = options.get("context")
        place = current_loop.get() if context is None else context.get(current_loop)
        if place is not None:
            self._owners[task] = lease_of(place).owner
        return task

    async def end_tasks(self, owner: object = None) -> None:
        """Cancel an application's tasks, or all; wait up to ``shutdown_seconds``."""
        if self.loop is None:
            return
        tasks = [
            task
            for task in asyncio.all_tasks(self.loop)
            if owner is None or self._owners.get(task) is owner
        ]
        if tasks:
            # Their calls are left after shutdown_seconds; give them time to end then.
            seconds = current_pool().shutdown_seconds + 5 * INTERVAL
            await self.loop.run_aio_coroutine(cancel_tasks(tasks, seconds))


_loop: trio.lowlevel.RunVar[_Loop | None] = trio.lowlevel.RunVar(
    "trio_asgi.island_loop"
)


def import_trio_asyncio() -> None:
    """Import trio-asyncio, but let `asyncio.run` use asyncio's loops outside Trio.

    `sync_to_async` does not work in those that trio-asyncio would make there.
    """
    if "trio_asyncio" in sys.modules:
        return
    with warnings.catch_warnings():
        # It uses functions that Python 3.12 has deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        from trio_asyncio import _loop as theirs  # noqa: PLC0415 - few need it
    in_trio = theirs._trio_policy.new_event_loop

    def new_event_loop() -> Any:
        if trio.lowlevel.in_trio_task():
            return in_trio()
        # The policy that is set now, or was when trio-asyncio was imported.
        return theirs._new_policy_get().new_event_loop()

    theirs._trio_policy.new_event_loop = new_event_loop


async def open_loop() -> TrioEventLoop | HostLoop:
    """Return the loop for the running task's islands.

    That is the host loop in a guest run, or else the loop of trio-asyncio that the
    program has opened around the task, or else ours.

    Raises:
        RuntimeError: it cannot be opened, or is being closed.
    """
    host = host_loop.get()
    if host is not None:
        return host
    import_trio_asyncio()
    import trio_asyncio  # noqa: PLC0415 - see import_trio_asyncio()

    loop: TrioEventLoop | None = trio_asyncio.current_loop.get()
    if loop is not None and loop._token is trio.lowlevel.current_trio_token():
        return loop
    holder = _loop.get(None)
    if holder is None or holder.is_closed.is_set():
        holder = _Loop()
        # At the end, the pool waits for it: clean-up code may need threads.
        current_pool().ends_of_users.append(holder.is_closed)
        try:
            trio.lowlevel.spawn_system_task(holder.run)
        except RuntimeError as error:
            raise RuntimeError(
                "An asyncio island was called at the end of the Trio run, where its "
                "loop can no longer be opened."
            ) from error
        _loop.set(holder)
    await holder.is_open.wait()
    if holder.loop is None:
        message = "The loop of the asyncio islands failed to open, or is being closed."
        raise RuntimeError(message)
    return holder.loop


async def end_tasks(owner: object) -> None:
    """Cancel the asyncio tasks that an application has started, and wait for them."""
    host = host_loop.get()
    if host is not None:
        await end_host_tasks(host, owner)
        return
    holder = _loop.get(None)
    if holder is not None:
        await holder.end_tasks(owner)


async def close_loop() -> None:
    """Close the loop before the end of the run. For tests."""
    holder = _loop.get(None)
    if holder is not None:
        holder.should_close.set()
        await holder.is_closed.wait()


def _log_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Handle an error as asyncio's loops do, in a thread."""
    handle: Any = asyncio.BaseEventLoop.default_exception_handler
    call_in_thread_soon(functools.partial(handle, loop, context))


def _log_exits(loop: Any) -> None:
    """Log errors that would end the loop; then all islands would wait for ever.

    asyncio lets them through in a task that nobody awaits.
    """
    from trio_asyncio._base import TrioAsyncioExit  # noqa: PLC0415 - see above

    main_loop_one = loop._main_loop_one

    async def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            await main_loop_one(*args, **kwargs)
        except TrioAsyncioExit:  # its loop stops
            raise
        except (SystemExit, KeyboardInterrupt) as error:
            message = "A task of asyncio would have ended its loop"
            log(logger, logging.ERROR, message, error=error)

    loop._main_loop_one = guarded


def _call_io_callbacks_in_loop(loop: Any) -> None:
    """Let the loop's own task run the callbacks of ``add_reader`` and ``add_writer``.

    trio-asyncio runs them in Trio tasks with the caller's context, in which our loop
    is not the running one.
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


def _set_c_running_loop(loop: Any) -> None:
    """Set the running loop where asyncio's C code looks for it, too.

    trio-asyncio only replaces functions of the module `asyncio`. Code that had imported
    ``get_running_loop`` from it before has the original.
    """
    from trio_asyncio._loop import _orig_run_get  # noqa: PLC0415 - see above

    queue_handle, call_soon_threadsafe = loop._queue_handle, loop.call_soon_threadsafe

    def call(callback: Any, *args: Any) -> Any:
        outer = _orig_run_get()  # the host loop in Trio's guest mode
        asyncio._set_running_loop(loop)
        try:
            return callback(*args)
        finally:
            asyncio._set_running_loop(outer)

    def queue(handle: Any) -> Any:
        # trio-asyncio's other handles run Trio coroutines.
        if type(handle) in (asyncio.Handle, asyncio.TimerHandle):
            handle._callback = functools.partial(call, handle._callback)
        return queue_handle(handle)

    loop._queue_handle = queue
    loop.call_soon_threadsafe = functools.partial(call_soon_threadsafe, call)

"""What the loop leaves to a thread, because it may block: logging, closing files.

A handler of logging may take its time, as one that sends mail does, and so may the
system that frees a large file. Nobody needs the result, but both have to happen,
whatever is cancelled meanwhile.
"""

from __future__ import annotations

import contextvars
import functools
import sys
import traceback
from typing import TYPE_CHECKING

import trio

from .current import current_pool
from .lease import Lease
from .trio_state import in_trio_run

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Mapping

    from typing_extensions import Self


async def finish_in_thread(fn: Callable[[], object], seconds: float) -> None:
    """Have ``fn()`` called in a worker thread, once, whatever is cancelled.

    Waits for that, up to some seconds; then the thread goes on alone. The thread is not
    the request's, which may be busy or gone.

    Raises:
        Exception: what ``fn`` raises, if it has ended in time.
    """
    pool = current_pool()
    lease = Lease(pool)
    lease.impatient = True
    # Handlers of logging may use the database, too.
    call = functools.partial(pool.run_tidily, fn)
    try:
        with trio.move_on_after(seconds, shield=True):
            await lease.run_sync(call)
    finally:
        # No thread has begun if there was no token in time. Then one does without.
        lease.release(None if lease.calls or lease.abandoned else call)


#: Where the running task's records wait; None: nobody settles them.
_held: contextvars.ContextVar[HeldLog | None] = contextvars.ContextVar(
    "trio_asgi.held_log", default=None
)


class HeldLog:
    """An async context manager: the records made on the loop in one piece of work.

    Entered and left by one task. `log` adds to it in this task and in others that have
    its context. A thread handles the records when the task leaves, or calls `settle`.

    Guarantees: each record is handled once, in the order in which they were made, and
    before the task goes on, unless that takes too long.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        """Hold nothing yet.

        Args:
            seconds: Tells for how long to wait for the handlers.
        """
        self._seconds = seconds
        self._waiting: list[Callable[[], object]] = []
        #: Whether somebody will settle what is added.
        self.is_open = True

    def add(self, handle: Callable[[], object]) -> None:
        """Add what handles a record. Called in the Trio thread."""
        self._waiting.append(handle)

    async def settle(self) -> None:
        """Have a thread handle the records, and wait for it."""
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            handle = functools.partial(_handle_all, waiting)
            await finish_in_thread(handle, self._seconds())

    def begin(self) -> None:
        """Hold the records that are made from now on, until `end`."""
        self._outer = _held.set(self)

    def end(self) -> bool:
        """Hold no more, and say whether there is anything to `settle`.

        Later records are handled each by itself.
        """
        _held.reset(self._outer)
        self.is_open = False
        return bool(self._waiting)

    async def __aenter__(self) -> Self:
        """Begin."""
        self.begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        """End, and settle."""
        self.end()
        await self.settle()


def _handle_all(waiting: list[Callable[[], object]]) -> None:
    for handle in waiting:
        _handle(handle)


def _handle(handle: Callable[[], object]) -> None:
    try:
        handle()
    except BaseException:  # noqa: BLE001 - it is no error of the request's
        # Not logged: the handler that has failed would be called again.
        traceback.print_exc()


async def settle_log() -> None:
    """Have a thread handle the records that wait in the running task's context."""
    held = _held.get()
    if held is not None:
        await held.settle()


def log(
    logger: logging.Logger,
    level: int,
    message: str,
    *args: object,
    error: BaseException | None = None,
    extra: Mapping[str, object] | None = None,
) -> None:
    """Log, but have no handler called on the loop. Any thread.

    There the record is made now, and handled in a thread when the `HeldLog` of the
    running task settles; or else soon, by a system task.
    """
    if not logger.isEnabledFor(level):
        return
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    if not in_trio_run():
        logger.log(level, message, *args, exc_info=exc_info, extra=extra, stacklevel=2)
        return
    caller = sys._getframe(1)
    record = logger.makeRecord(
        logger.name,
        level,
        caller.f_code.co_filename,
        caller.f_lineno,
        message,
        args,
        exc_info,
        caller.f_code.co_name,
        None if extra is None else dict(extra),
    )
    handle = functools.partial(contextvars.copy_context().run, logger.handle, record)
    held = _held.get()
    if held is not None and held.is_open:
        held.add(handle)
    else:
        call_in_thread_soon(handle)


def call_in_thread_soon(fn: Callable[[], object]) -> None:
    """Have ``fn()`` called in a worker thread, if this is the loop. Any thread.

    At the end of the run that is waited for.
    """
    call = functools.partial(_handle, fn)
    if not in_trio_run():
        call()
        return
    seconds = current_pool().shutdown_seconds
    try:
        trio.lowlevel.spawn_system_task(finish_in_thread, call, seconds)
    except RuntimeError:  # the run is at its end, and nobody is there to be stopped
        call()

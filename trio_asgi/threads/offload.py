"""Work that may block, done in a thread whatever is cancelled: logging, closing files.

A logging handler may send mail, and the system may take long to free a large file.
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
    """Call ``fn()`` in a worker thread, once, whatever is cancelled.

    Waits for it up to ``seconds``; then the thread goes on alone. It is not the thread
    of the request, which may be busy or gone. If the system can start no more threads,
    ``fn`` is called here: to block the loop is better than not to call it.

    Raises:
        Exception: what ``fn`` raises, if it has ended in time.
    """
    pool = current_pool()
    lease = Lease(pool)
    lease.impatient = True
    # Logging handlers may use the database, too.
    call = functools.partial(pool.run_tidily, fn)
    ran_here = False
    try:
        with trio.move_on_after(seconds, shield=True):
            await lease.run_sync(call)
    except RuntimeError:
        if lease.calls:
            raise  # by ``fn``
        ran_here = True
        fn()
    finally:
        # If there was no token in time, it runs without one.
        began = lease.calls or lease.abandoned or ran_here
        lease.release(None if began else call)


#: Where the running task's records wait; None: nothing settles them.
_held: contextvars.ContextVar[HeldLog | None] = contextvars.ContextVar(
    "trio_asgi.held_log", default=None
)


class HeldLog:
    """An async context manager that holds the log records made on the loop.

    One task enters and leaves it. `log` adds the records of this task and of others
    with its context. A thread handles them when the task leaves, or calls `settle`.

    Guarantees: each record is handled once, in order, and before the task goes on,
    unless that takes too long.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        """Hold nothing yet; ``seconds()`` is how long to wait for the handlers."""
        self._seconds = seconds
        self._waiting: list[Callable[[], object]] = []
        #: Whether what is added will be settled.
        self.is_open = True

    def add(self, handle: Callable[[], object]) -> None:
        """Add a function that handles a record. Trio thread."""
        self._waiting.append(handle)

    async def settle(self) -> None:
        """Handle the records in a thread, and wait for it."""
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            call = functools.partial(_call_all, *waiting)
            await finish_in_thread(call, self._seconds())

    def begin(self) -> None:
        """Hold the records that are made from now on, until `end`."""
        self._outer = _held.set(self)

    def end(self) -> bool:
        """Hold no more records; return whether there is anything to `settle`."""
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


def _call_all(*fns: Callable[[], object]) -> None:
    for fn in fns:
        try:
            fn()
        except BaseException:  # noqa: BLE001, PERF203 - not the request's error
            # Not logged: that would call the failed handler again.
            traceback.print_exc()


async def settle_log() -> None:
    """`HeldLog.settle` the records that wait in the running task's context."""
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
    """Log, but call no handler on the loop. Any thread.

    On the loop the record is made now, and handled in a thread: when the running task's
    `HeldLog` settles, or else soon.

    A client chooses the path of its request. So strings are escaped as Django does it:
    a line break would begin a line that looks like another message (CVE-2025-48432).
    """
    if not logger.isEnabledFor(level):
        return
    args = tuple(
        arg.encode("unicode_escape").decode("ascii") if isinstance(arg, str) else arg
        for arg in args
    )
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
    """Call ``fn()``: on the loop soon and in a worker thread, elsewhere now.

    The end of the run waits for it.
    """
    call = functools.partial(_call_all, fn)
    if not in_trio_run():
        call()
        return
    seconds = current_pool().shutdown_seconds
    try:
        trio.lowlevel.spawn_system_task(finish_in_thread, call, seconds)
    except RuntimeError:  # the run is ending: blocking it harms nothing
        call()

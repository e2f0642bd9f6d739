"""Limits how long a cancelled task waits at a shutdown.

Sync code, threads of `trio.to_thread.run_sync`, and asyncio code cannot be stopped. If
one never ends, a cancelled task that waits for it would keep the process from exiting.
So an `Abandoner` ends the wait after some time. What the task waited for is logged and
goes on alone, in a thread that lets the process exit.

Tasks that ignore their cancellation, or wait in a shielded scope, are not affected.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import logging
import sys
from typing import TYPE_CHECKING, Any, Final

import outcome
import trio

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator
    from types import FrameType

logger = logging.getLogger("trio_asgi")

#: The log message: what was left, and the task or path that waited for it.
ABANDONED: Final = "Left behind because it does not end: %s, for %s"

#: Seconds between the checks of an `Abandoner`.
INTERVAL: Final = 0.1


class AbandonableWait:
    """A wait that can be ended: the ``self`` of the method in which the task waits.

    Called in the Trio thread, while the task waits. The log shows it as a string.
    """

    @property
    def is_cancelled(self) -> bool:
        """Whether the task was cancelled meanwhile."""
        raise NotImplementedError

    def abandon_if_cancelled(self) -> bool:
        """Let the task go on with its cancellation; False if that is impossible."""
        raise NotImplementedError


class _TrioThread(AbandonableWait):
    """A wait in `trio.to_thread.run_sync`: turns on ``abandon_on_cancel`` belatedly.

    Trio has no way to do so, so this reads the variables of Trio's function. If the
    abandoned code calls `trio.from_thread`, that ends the run; until it is abandoned,
    such a call raises `trio.Cancelled`.
    """

    def __init__(self, task: trio.lowlevel.Task, names: dict[str, Any]) -> None:
        self._task = task
        self._task_register = names["task_register"]
        self._cancel_register = names["cancel_register"]
        self._fn = names["sync_fn"]

    @property
    def is_cancelled(self) -> bool:
        return self._cancel_register[0] is not None

    def abandon_if_cancelled(self) -> bool:
        # If the task is scheduled, it already has its result.
        is_scheduled = self._task._next_send_fn is not None
        if not self.is_cancelled or is_scheduled:
            return False
        self._task_register[0] = None
        raise_cancel = self._cancel_register[0]
        trio.lowlevel.reschedule(self._task, outcome.capture(raise_cancel))
        return True

    def __str__(self) -> str:
        return f"trio.to_thread.run_sync({name_of(self._fn)})"


class _AsyncioFuture(AbandonableWait):
    """A wait in `trio_asyncio.run_aio_future`, usually for an asyncio task."""

    def __init__(self, task: trio.lowlevel.Task, names: dict[str, Any]) -> None:
        self._task = task
        self._future: asyncio.Future[Any] = names["future"]
        self._done_callback = names["done_cb"]
        self._raise_cancel = names["raise_cancel"]

    @property
    def is_cancelled(self) -> bool:
        return self._raise_cancel is not None

    def abandon_if_cancelled(self) -> bool:
        if not self.is_cancelled or self._future.done():
            return False
        if not self._future.remove_done_callback(self._done_callback):
            return False  # already abandoned, but the task has not gone on yet
        if isinstance(self._future, asyncio.Task):
            forget_asyncio_task(self._future)
        trio.lowlevel.reschedule(self._task, outcome.capture(self._raise_cancel))
        return True

    def __str__(self) -> str:
        if isinstance(self._future, asyncio.Task):
            return describe_asyncio_task(self._future)
        return f"{self._future!r}"


def _find_wait(task: trio.lowlevel.Task) -> AbandonableWait | None:
    """Return a task's wait, if it is one that can be ended."""
    waiting: FrameType | None = None
    for frame, _ in task.iter_await_frames():
        if frame.f_globals.get("__name__") != "trio._core._traps":
            waiting = frame
    if waiting is None:
        return None
    names, code = waiting.f_locals, waiting.f_code
    own = names.get("self")
    # isinstance() would evaluate a lazy object.
    if issubclass(type(own), AbandonableWait):
        return own
    trio_asyncio = sys.modules.get("trio_asyncio")
    try:
        if code is trio.to_thread.run_sync.__code__:
            return _TrioThread(task, names)
        if trio_asyncio is not None and code is trio_asyncio.run_aio_future.__code__:
            return _AsyncioFuture(task, names)
    except KeyError:  # it does not wait yet
        pass
    return None


def _descendants(root: trio.lowlevel.Task) -> Iterator[trio.lowlevel.Task]:
    """Yield a task and all below it, except the running one."""
    if root is not trio.lowlevel.current_task():
        yield root
    for nursery in root.child_nurseries:
        for task in nursery.child_tasks:
            yield from _descendants(task)


class Abandoner:
    """Ends the waits of a task and of all tasks below it, if they take too long.

    Used by one task of the same Trio run, which is itself not affected.
    """

    def __init__(
        self, root: trio.lowlevel.Task, seconds: float, *, whose: str | None = None
    ) -> None:
        """Abandon nothing yet.

        Args:
            root: The task at the top.
            seconds: How long a wait may take after it was first seen to be cancelled.
            whose: How the log names the task; by its name if None.
        """
        self._root = root
        self._seconds = seconds
        self._whose = whose
        #: When each task was first seen to wait although it was cancelled.
        self._since: dict[trio.lowlevel.Task, float] = {}

    @property
    def is_needed(self) -> bool:
        """Whether the last `look` found a cancelled task that waits."""
        return bool(self._since)

    def look(self) -> None:
        """End the waits that have taken too long."""
        now = trio.current_time()
        since, self._since = self._since, {}
        for task in _descendants(self._root):
            wait = _find_wait(task)
            if wait is None or not wait.is_cancelled:
                continue
            self._since[task] = since.get(task, now)
            what = str(wait)  # afterwards it could not say where its code is
            if now >= self._since[task] + self._seconds and wait.abandon_if_cancelled():
                logger.error(ABANDONED, what, self._whose or task.name)

    async def run(self) -> None:
        """`look` every `INTERVAL`, until cancelled."""
        while True:
            self.look()
            await trio.sleep(INTERVAL)


def forget_asyncio_task(task: asyncio.Task[Any]) -> None:
    """Make asyncio neither wait for a task when its loop closes, nor report it."""
    asyncio.tasks._unregister_task(task)  # documented for other kinds of tasks
    task._log_destroy_pending = False  # type: ignore[attr-defined]


def describe_asyncio_task(task: asyncio.Task[Any]) -> str:
    """Return the name of a task, and of the first function in it that is not ours."""
    coroutine: Any = inspect.unwrap(task.get_coro())  # type: ignore[arg-type]
    while (inner := getattr(coroutine, "cr_await", None)) is not None:
        if coroutine.cr_frame is None or not is_own_frame(coroutine.cr_frame):
            break
        coroutine = inner
    return f"code of asyncio, {name_of(coroutine)} in {task.get_name()}"


def describe_thread(thread: threading.Thread) -> str:
    """Return a thread's name, its first function that is not ours, and its line."""
    theirs = []
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        if not is_own_frame(frame):
            theirs.append(frame)
        frame = frame.f_back
    if not theirs:
        return thread.name
    # Outermost are the functions of `threading` that every thread begins with.
    called = next(
        (f for f in reversed(theirs) if f.f_globals.get("__name__") != "threading"),
        theirs[0],
    )
    name = f"{called.f_globals.get('__name__')}.{called.f_code.co_name}"
    code = theirs[0].f_code
    return f"{thread.name}, {name}, at {code.co_filename}:{theirs[0].f_lineno}"


def is_own_frame(frame: FrameType) -> bool:
    """Whether it is of this package, or of one that it calls through."""
    package = frame.f_globals.get("__name__", "").partition(".")[0]
    return package in ("trio_asgi", "asgiref", "outcome")


def name_of(fn: object) -> str:
    """Return a function's qualified name with its module's, or else its `repr`."""
    while isinstance(fn, functools.partial):
        # asyncio.to_thread() passes its function to Context.run().
        in_context = isinstance(getattr(fn.func, "__self__", None), contextvars.Context)
        fn = fn.args[0] if in_context and fn.args else fn.func
    name = getattr(fn, "__qualname__", None)
    if name is None:
        return repr(fn)
    module = getattr(fn, "__module__", None)
    return name if module is None else f"{module}.{name}"

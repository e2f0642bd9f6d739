"""Leaving behind what does not end: how every wait at a shutdown gets a bound.

A cancelled Trio task still waits for its sync code, for a thread of
`trio.to_thread.run_sync`, and for code of asyncio. None of these can be stopped. If one
never ends, then neither does the task, its nursery, the server and the process. So at a
shutdown an `Abandoner` looks at the tasks that must end. When one was cancelled long
enough ago, and still waits, it goes on without what it waits for.

What is left runs on alone, in a thread that does not keep the process from exiting. It
is logged by name.

Not left are tasks that ignore their cancellation, or wait in a shielded scope.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
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

#: What the log says: of what, and for whom it was.
ABANDONED: Final = "Left behind, since it does not end: %s, for %s"

#: How often a `Abandoner` looks, in seconds.
INTERVAL: Final = 0.1


class AbandonableWait:
    """What a task waits for: the ``self`` of the method that it waits in.

    Asked in the Trio thread, while the task waits there. Converted to a string it says
    in the log what it is.
    """

    @property
    def is_cancelled(self) -> bool:
        """Whether the task was cancelled meanwhile."""
        raise NotImplementedError

    def abandon_if_cancelled(self) -> bool:
        """Let the task go on with its cancellation; False if that cannot be."""
        raise NotImplementedError


class _TrioThread(AbandonableWait):
    """A wait in `trio.to_thread.run_sync`, as with ``abandon_on_cancel`` from now on.

    Trio has no way to say that later. So this reads the variables of Trio's function.
    If sync code that was left calls `trio.from_thread`, Trio ends the run; that code
    was told before, for the call in it had been cancelled.
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
        # The result may have come, and the task not have gone on yet.
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
    """A wait in `trio_asyncio.run_aio_future`: for an asyncio task, as a rule."""

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
            return False  # it was left, and the task has not gone on yet
        if isinstance(self._future, asyncio.Task):
            forget_asyncio_task(self._future)
        trio.lowlevel.reschedule(self._task, outcome.capture(self._raise_cancel))
        return True

    def __str__(self) -> str:
        if isinstance(self._future, asyncio.Task):
            return describe_asyncio_task(self._future)
        return f"{self._future!r}"


def _wait_of(task: trio.lowlevel.Task) -> AbandonableWait | None:
    """Return what a task waits for, if that can be left."""
    waiting: FrameType | None = None
    for frame, _ in task.iter_await_frames():
        if frame.f_globals.get("__name__") != "trio._core._traps":
            waiting = frame
    if waiting is None:
        return None
    names = waiting.f_locals
    own = names.get("self")
    if issubclass(
        type(own), AbandonableWait
    ):  # isinstance() would evaluate a lazy object
        return own
    trio_asyncio = sys.modules.get("trio_asyncio")
    try:
        if waiting.f_code is trio.to_thread.run_sync.__code__:
            return _TrioThread(task, names)
        if (
            trio_asyncio is not None
            and waiting.f_code is trio_asyncio.run_aio_future.__code__
        ):
            return _AsyncioFuture(task, names)
    except KeyError:  # it has not come to its wait yet
        pass
    return None


def _family(root: trio.lowlevel.Task) -> Iterator[trio.lowlevel.Task]:
    """Yield a task and all below it, but not the running one."""
    if root is not trio.lowlevel.current_task():
        yield root
    for nursery in root.child_nurseries:
        for task in nursery.child_tasks:
            yield from _family(task)


class Abandoner:
    """Looks at a task, and at all below it, and has them leave what does not end.

    Used by one task of the same Trio run.
    """

    def __init__(
        self, root: trio.lowlevel.Task, seconds: float, *, whose: str | None = None
    ) -> None:
        """Leave nothing yet.

        Args:
            root: The task; the running one, which looks, is left out.
            seconds: How long a cancelled task waits, since that was first seen.
            whose: What the log says of the task; its name if None.
        """
        self._root = root
        self._seconds = seconds
        self._whose = whose
        #: Since when each task waits, though it was cancelled.
        self._since: dict[trio.lowlevel.Task, float] = {}

    @property
    def is_needed(self) -> bool:
        """Whether a cancelled task waited for something when last looked at."""
        return bool(self._since)

    def look(self) -> None:
        """Leave what a task has waited for too long."""
        now = trio.current_time()
        since, self._since = self._since, {}
        for task in _family(self._root):
            wait = _wait_of(task)
            if wait is None or not wait.is_cancelled:
                continue
            self._since[task] = since.get(task, now)
            # Before it is left, while it says where it is.
            what = str(wait)
            if now >= self._since[task] + self._seconds and wait.abandon_if_cancelled():
                logger.error(ABANDONED, what, self._whose or task.name)

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            self.look()
            await trio.sleep(INTERVAL)


def forget_asyncio_task(task: asyncio.Task[Any]) -> None:
    """Have nobody wait for a task any more when its loop is closed."""
    asyncio.tasks._unregister_task(task)  # documented for other kinds of tasks
    # It was logged that it is left.
    task._log_destroy_pending = False  # type: ignore[attr-defined]


def describe_asyncio_task(task: asyncio.Task[Any]) -> str:
    """Return the name of a task, and of the first function in it that is not ours."""
    coroutine: Any = task.get_coro()
    while (inner := getattr(coroutine, "cr_await", None)) is not None:
        if coroutine.cr_frame is None or not _is_own(coroutine.cr_frame):
            break
        coroutine = inner
    return f"code of asyncio, {name_of(coroutine)} in {task.get_name()}"


def describe_thread(thread: threading.Thread) -> str:
    """Return a thread's name, its first function that is not ours, and its line."""
    frames = []
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    theirs = [frame for frame in frames if not _is_own(frame)]
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


def _is_own(frame: FrameType) -> bool:
    package = frame.f_globals.get("__name__", "").partition(".")[0]
    return package in ("trio_asgi", "asgiref", "outcome")


def name_of(fn: object) -> str:
    """Return a function's name with its module's, as far as there is one."""
    while isinstance(fn, functools.partial):
        in_context = isinstance(
            getattr(fn.func, "__self__", None), contextvars.Context
        )  # as asyncio.to_thread() calls it
        fn = fn.args[0] if in_context and fn.args else fn.func
    name = getattr(fn, "__qualname__", None)
    if name is None:
        return repr(fn)
    module = getattr(fn, "__module__", None)
    return name if module is None else f"{module}.{name}"

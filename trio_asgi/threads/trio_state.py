"""The task that waits for a thread, as `trio.from_thread` finds it.

Uses private names of Trio: they make `trio.from_thread` work in a thread that Trio did
not start. Trio's own threads can neither be kept for one request nor close their
connections when they end (docs/design/threads.md).
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import sniffio
import trio
from trio import _threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Whether the nearest async code above is asyncio's (or Trio's), for `async_to_sync` in
#: sync code. None if there is none above; then `Lease.for_asyncio` counts.
below_asyncio: contextvars.ContextVar[bool | None] = contextvars.ContextVar(
    "trio_asgi.below_asyncio", default=None
)

#: A thread-local: Trio's record of the task that waits for the thread.
trios_notes = _threads.PARENT_TASK_DATA

#: What `trio.from_thread` sends to the task: run an async, or a sync function.
Run = _threads.Run
RunSync = _threads.RunSync


class _Interrupts(threading.local):
    #: Called with True when a call's sync code begins to run, and with False when it
    #: ends or waits for a coroutine. Set in the main thread, which receives Ctrl-C.
    note_sync_code: Callable[[bool], object] | None = None


interrupts = _Interrupts()


def in_trio_thread() -> bool:
    """Whether `trio.from_thread` works in this thread. Any thread."""
    return "token" in vars(trios_notes)  # hasattr() is slow to say no


def in_trio_task() -> bool:
    """Whether Trio code runs here, not asyncio code of an island. Any thread."""
    # Under asyncio the first check suffices: Trio's takes longer.
    return sniffio.thread_local.name == "trio" and trio.lowlevel.in_trio_task()


def in_trio_run() -> bool:
    """Whether Trio code runs here, or asyncio code of an island. Any thread."""
    if sniffio.thread_local.name is not None:
        return trio.lowlevel.in_trio_task()
    return bool(below_asyncio.get()) and in_host_task()


def in_host_task() -> bool:
    """Whether asyncio code runs here, on a loop that has a guest run. Any thread."""
    return (
        asyncio._get_running_loop() is not None
        and sniffio.thread_local.name is None
        and trio.lowlevel.in_trio_run()
    )


def runs_for_a_thread() -> bool:
    """Whether the task is, or is below, a system task that runs for another thread.

    `trio.from_thread.run` starts such a task if it is given a token.
    """
    task = trio.lowlevel.current_task()
    while task.parent_nursery is not None:
        if getattr(task.coro, "cr_code", None) is Run.run_system.__code__:
            return True
        task = task.parent_nursery.parent_task
    return False


def switch_task(notes: dict[str, Any]) -> dict[str, Any]:
    """Replace this thread's `trios_notes`; return the old ones. Any thread."""
    known = vars(trios_notes)
    outer = known.copy()
    known.clear()
    known.update(notes)
    return outer


@contextmanager
def no_call() -> Iterator[None]:
    """Hide the task that waits for this thread. Any thread.

    Inside the block, another task or an asyncio loop waits for the thread.
    """
    outer = switch_task({})
    try:
        yield
    finally:
        switch_task(outer)


if hasattr(os, "register_at_fork"):  # not on Windows
    # In the child, no task waits for the copied thread.
    os.register_at_fork(after_in_child=lambda: vars(trios_notes).clear())

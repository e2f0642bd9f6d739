"""What a thread knows of the task that waits for it.

The one use of Trio's private names: they are what makes `trio.from_thread` work in a
thread that Trio did not start. A thread of Trio's own cache can neither be kept for one
request nor tell when it ends, so the threads have to be ours (docs/design).
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import sniffio
import trio
from trio._threads import PARENT_TASK_DATA, Run, RunSync

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "Run",
    "RunSync",
    "in_trio_run",
    "in_trio_task",
    "in_trio_thread",
    "interrupts",
    "no_call",
    "runs_for_a_thread",
    "switch_task",
    "trios_notes",
]


#: What Trio itself knows of the task.
trios_notes = PARENT_TASK_DATA


class _Interrupts(threading.local):
    #: Told True when the own code of a call begins to run, and False when it ends or
    #: waits for a coroutine. Set in the main thread, where Ctrl-C arrives.
    note_sync_code: Callable[[bool], object] | None = None


interrupts = _Interrupts()


def in_trio_thread() -> bool:
    """Whether `trio.from_thread` works in this thread. Any thread."""
    return "token" in vars(trios_notes)  # hasattr() takes long to say no


def in_trio_task() -> bool:
    """Whether the running code is Trio's. Any thread.

    Code of asyncio on a loop of trio-asyncio runs in a task of Trio, but is none.
    """
    # Trio has long to say no, too: under asyncio, the first answer is enough.
    return sniffio.thread_local.name == "trio" and trio.lowlevel.in_trio_task()


def in_trio_run() -> bool:
    """Whether a task of Trio runs here, for Trio or for an island. Any thread."""
    return sniffio.thread_local.name is not None and trio.lowlevel.in_trio_task()


def runs_for_a_thread() -> bool:
    """Whether the task, or one above it, is that of `trio.from_thread.run`'s token.

    For such a system task a thread waits, which is not one of its own.
    """
    task = trio.lowlevel.current_task()
    while task.parent_nursery is not None:
        if getattr(task.coro, "cr_code", None) is Run.run_system.__code__:
            return True
        task = task.parent_nursery.parent_task
    return False


def switch_task(notes: dict[str, Any]) -> dict[str, Any]:
    """Change what this thread knows of the task that waits for it. Any thread.

    Args:
        notes: What Trio shall know of the task.

    Returns:
        What was known before: the argument to change it back.
    """
    known = vars(trios_notes)
    outer = known.copy()
    known.clear()
    known.update(notes)
    return outer


@contextmanager
def no_call() -> Iterator[None]:
    """Let this thread know nothing of the task that waits for it. Any thread.

    What waits for the thread inside of this is something else: another task, or an
    asyncio loop. Afterwards everything is as it was.
    """
    outer = switch_task({})
    try:
        yield
    finally:
        switch_task(outer)


def _forget_trio() -> None:
    """In a forked child, no task waits for the thread that was copied."""
    vars(trios_notes).clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_trio)

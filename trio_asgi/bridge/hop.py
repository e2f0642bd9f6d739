"""A hop: the request's task has sync code run in the request's thread."""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING, TypeVar

from asgiref.sync import sync_to_async

from trio_asgi.islands.context import restore_context
from trio_asgi.threads.current import sensitive_loop
from trio_asgi.threads.lease import lease_of
from trio_asgi.threads.loop import current_loop
from trio_asgi.threads.trio_state import in_trio_task

from .sync_to_async import is_wrapped

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


async def hop(fn: Callable[[], T]) -> T:
    """Run ``fn()`` in the thread of the running task's request, and wait for it.

    What `sync_to_async` does, without what only its callers need: the context variables
    go in, and the changes come back, `Local` included.

    Raises:
        trio.Cancelled: if cancelled before the thread was free and had a token: then
            ``fn`` never runs. Once running it is waited for.
        RuntimeError: the thread waits for this very task.
        Exception: whatever ``fn`` raises.
    """
    if not in_trio_task() or is_wrapped():
        # Sync code has called this in a thread of its own, where asyncio was started;
        # or a tool wants to know what runs in the thread.
        return await sync_to_async(fn)()
    context = contextvars.copy_context()

    def call() -> T:
        restore_context(context)
        return fn()

    try:
        return await sensitive_loop().run_sync(call, context=context)
    finally:
        restore_context(context)


def was_left() -> bool:
    """Whether a hop was left whose thread runs on. In the task that has hopped."""
    return in_trio_task() and lease_of(sensitive_loop()).abandoned


def retire_thread() -> None:
    """Have the thread of the running code's request end with it. Any thread.

    For a request that was cut short: code that would have cleaned up in the thread did
    not run, and the next request must not find what is left, such as a tenant in a
    `threading.local`.
    """
    if (loop := current_loop.get()) is not None:
        lease_of(loop).retire = True


def note_unfinished() -> None:
    """Note that code has begun something in its request's thread. Worker thread.

    It will end that when the response comes back. See `Lease.unfinished`.
    """
    if (loop := current_loop.get()) is not None:
        lease_of(loop).unfinished = True

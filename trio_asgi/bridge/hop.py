"""A hop: the request's task runs sync code in the request's thread."""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING, TypeVar

from asgiref.sync import sync_to_async

from trio_asgi.islands.context import restore_context, take_locals
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

    A faster `sync_to_async`: changes of context variables and `Local` data come back.

    Raises:
        trio.Cancelled: cancelled before the call has begun: then ``fn`` never runs.
            Once it runs, it is waited for.
        RuntimeError: the thread waits for this very task.
        Exception: from ``fn``.
    """
    if not in_trio_task() or is_wrapped():
        # Sync code has started asyncio in another thread; or a tool measures the calls.
        return await sync_to_async(fn)()
    context = contextvars.copy_context()

    def call() -> T:
        take_locals(context)
        return fn()

    try:
        return await sensitive_loop().run_sync(call, context=context)
    finally:
        restore_context(context)


def was_left() -> bool:
    """Whether a hop was abandoned while its thread runs on. In the request's task."""
    return in_trio_task() and lease_of(sensitive_loop()).abandoned


def retire_thread() -> None:
    """End the thread of the running code's request with the request. Any thread.

    For a request that was cut short: clean-up code did not run in the thread, and the
    next request must not see what is left, such as a tenant in a `threading.local`.
    """
    if (loop := current_loop.get()) is not None:
        lease_of(loop).retire = True


def note_unfinished() -> None:
    """Set `Lease.unfinished`: code in the thread still waits for the response."""
    if (loop := current_loop.get()) is not None:
        lease_of(loop).unfinished = True

"""asgiref's `sync_to_async` on Trio.

What a call on Trio keeps of asgiref's meaning: the context variables go in and the
changes come back, `Local` included; ``sys.exc_info()`` is the caller's;
``thread_sensitive`` code runs in the request's thread, or in the thread that waits in
an `async_to_sync` above, or in one thread per program.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import sys
from typing import Any

import trio
from asgiref.sync import markcoroutinefunction

from ._carry import restore_context, with_current_error
from ._islands import run_on_trio
from ._trio_thread import in_trio_task
from ._worker import current_pool, sensitive_loop


def patch_call(original: Any) -> Any:
    """Return a fork in front of ``SyncToAsync.__call__``."""

    # Not a coroutine function, for it must not cost a frame outside Trio; but marked as
    # one, since asgiref asks that of an object's __call__.
    @markcoroutinefunction
    @functools.wraps(original)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        if trio.lowlevel.in_trio_task():
            return _call_on_trio(self, args, kwargs)
        if asyncio._get_running_loop() is None:
            return _when_awaited(original, self, args, kwargs)
        return original(self, *args, **kwargs)

    return __call__


async def _when_awaited(original: Any, bridge: Any, args: Any, kwargs: Any) -> Any:
    """Choose at the await: async_to_sync calls in a thread what a loop awaits."""
    if trio.lowlevel.in_trio_task():
        return await _call_on_trio(bridge, args, kwargs)
    return await original(bridge, *args, **kwargs)


def _call_on_trio(bridge: Any, args: Any, kwargs: Any) -> Any:
    """Return what is to be awaited. Trio task, or asyncio's code in an island."""
    call = functools.partial(_sync_to_async, bridge, args, kwargs, sys.exc_info()[1])
    return call() if in_trio_task() else run_on_trio(call)


async def _sync_to_async(
    bridge: Any, args: Any, kwargs: Any, error: BaseException | None
) -> Any:
    """Run ``bridge.func`` in the thread that it belongs to. Trio task."""
    given_context = getattr(bridge, "context", None)  # asgiref 3.9 has none to give
    context = contextvars.copy_context() if given_context is None else given_context

    def call() -> Any:
        restore_context(context)
        return with_current_error(
            error, functools.partial(bridge.func, *args, **kwargs)
        )

    try:
        if bridge._thread_sensitive:
            return await sensitive_loop().run_sync(call, context=context)
        return await current_pool().run_sync(
            call, context=context, executor=bridge._executor
        )
    finally:
        if given_context is None:
            restore_context(context)

"""asgiref's `sync_to_async` on Trio.

As with asgiref, changes of context variables and `Local` data come back,
``sys.exc_info()`` is the caller's, and ``thread_sensitive`` code runs in the request's
thread, in the thread that waits in an `async_to_sync` above, or in one per program.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import sys
import weakref
from typing import TYPE_CHECKING, Any

import asgiref.sync
from asgiref.sync import SyncToAsync, markcoroutinefunction

from trio_asgi.islands.context import error_restorer, restore_context
from trio_asgi.islands.functions import run_on_trio
from trio_asgi.threads.call import calling
from trio_asgi.threads.current import current_pool, sensitive_loop
from trio_asgi.threads.trio_state import (
    below_asyncio,
    in_trio_run,
    in_trio_task,
    runs_for_a_thread,
)

from .executor import ExecutorInbox
from .originals import Original

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_asgi.threads.call import Call
    from trio_asgi.threads.loop import CallLoop

#: The call whose sync code has started this task, directly or not; None if none has.
_call_above: contextvars.ContextVar[Callable[[], Call[Any] | None]] = (
    contextvars.ContextVar("trio_asgi.call_above", default=lambda: None)
)


def patch_call(original: Any) -> Any:
    """Return a ``SyncToAsync.__call__`` that stays on Trio where due."""

    # A sync function, which adds no frame outside Trio; marked, since asgiref expects
    # __call__ to be a coroutine function.
    @markcoroutinefunction
    @functools.wraps(original)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        if in_trio_task():
            return _call_in_trio_task(self, args, kwargs)
        if in_trio_run():
            return _call_in_island(self, args, kwargs)
        if asyncio._get_running_loop() is None:
            return _when_awaited(original, self, args, kwargs)
        return original(self, *args, **kwargs)

    return __call__


#: The code of our ``SyncToAsync.__call__``, and of asgiref's ``thread_handler``.
_CALL = Original(patch_call(SyncToAsync.__call__), sys.modules[__name__])
_HANDLER = Original(SyncToAsync.thread_handler, asgiref.sync)


def is_wrapped() -> bool:
    """Whether a tool has wrapped the calls, for example to measure them."""
    return not (
        _CALL.is_code_of(SyncToAsync.__call__)
        and _HANDLER.is_code_of(SyncToAsync.thread_handler)
    )


async def _when_awaited(original: Any, bridge: Any, args: Any, kwargs: Any) -> Any:
    """Choose at the await: a function called in a thread may be awaited in a loop."""
    if in_trio_task():
        return await _call_in_trio_task(bridge, args, kwargs)
    if in_trio_run():
        return await _call_in_island(bridge, args, kwargs)
    return await original(bridge, *args, **kwargs)


def _call_in_trio_task(bridge: Any, args: Any, kwargs: Any) -> Any:
    """Return a coroutine that runs the call. Trio task."""
    if below_asyncio.get():
        # Inherited: asyncio code has started this task in a Trio nursery.
        below_asyncio.set(False)
    return _sync_to_async(bridge, args, kwargs, sys.exc_info()[1])


def _call_in_island(bridge: Any, args: Any, kwargs: Any) -> Any:
    """Return a coroutine that runs the call. Asyncio task in an island."""
    error = sys.exc_info()[1]
    return run_on_trio(functools.partial(_sync_to_async, bridge, args, kwargs, error))


async def _sync_to_async(
    bridge: Any, args: Any, kwargs: Any, error: BaseException | None
) -> Any:
    """Run ``bridge.func`` in the thread that it belongs to. Trio task."""
    given_context = getattr(bridge, "context", None)  # asgiref 3.9 has none to give
    context = contextvars.copy_context() if given_context is None else given_context
    call = functools.partial(_call, bridge, args, kwargs, context, error)
    try:
        if bridge._thread_sensitive:
            loop = sensitive_loop()
            check_deadlock(loop)
            return await loop.run_sync(call, context=context)
        pool, inbox = current_pool(), None
        if bridge._executor is None:
            call = functools.partial(pool.run_tidily, call)
        else:
            inbox = ExecutorInbox(bridge._executor)
        return await pool.run_sync(call, context=context, inbox=inbox)
    finally:
        if given_context is None:
            restore_context(context)


def check_deadlock(loop: CallLoop) -> None:
    """Raise RuntimeError if sync code in the thread may wait for the running task.

    Then the task would wait for the thread, and the thread for the task. In the
    program's one thread this raises for each task that the sync code has started, as
    asgiref does. In a request's thread it raises for one that is known to be waited
    for: the system task of `trio.from_thread.run` with a token.
    """
    call = _call_above.get()()
    if call is None or call is not loop.running:
        return
    if runs_for_a_thread():
        raise RuntimeError(
            "This sync call would wait for ever for a thread that waits for this very "
            "task, in trio.from_thread.run(..., trio_token=...). Use "
            "asgiref.sync.async_to_sync() in that thread, or call with "
            "thread_sensitive=False."
        )
    if loop is current_pool()._program_lease:
        raise RuntimeError(
            "Single thread executor already being used, would deadlock: the sync code "
            "that has started this task still runs in the program's one thread. Start "
            "it with async_to_sync(), or call sync_to_async() after that code has "
            "ended, or with thread_sensitive=False."
        )


def _call(
    bridge: Any,
    args: Any,
    kwargs: Any,
    context: contextvars.Context,
    error: BaseException | None,
) -> Any:
    """Call ``bridge.func`` through its ``thread_handler``. Worker thread.

    Subclasses override that method, and tools wrap it. As in asgiref, it gets the call
    as a `functools.partial`, whose keywords they may change.
    """
    child = functools.partial(bridge.func, *args, **kwargs)
    exc_info = (type(error), error, error.__traceback__) if error else (None,) * 3
    restore_error = error_restorer(error)

    def in_context(child: Any) -> Any:
        restore_error()
        restore_context(context)
        running = calling()
        assert running is not None
        marker = _call_above.set(weakref.ref(running))
        try:
            return child()
        finally:
            _call_above.reset(marker)

    # asgiref's method raises the error around the call, and notes that no asyncio loop
    # waits for this thread. Restore the note about a loop further up afterwards.
    notes = vars(SyncToAsync.threadlocal)
    outer = notes.copy()
    try:
        return bridge.thread_handler(None, exc_info, [], in_context, child)
    finally:
        notes.clear()
        notes.update(outer)

"""asgiref's `async_to_sync` where a Trio task waits, and where no loop runs.

In a thread that a Trio task waits for, this task runs the coroutine, under its cancel
scopes.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import outcome
from asgiref.sync import AsyncToSync, SyncToAsync
from django.conf import settings

from trio_asgi import conf
from trio_asgi.errors import BACKEND_NOTE, note_asyncio
from trio_asgi.islands.context import restore_context, with_context
from trio_asgi.islands.functions import asyncio_island, is_trio_island
from trio_asgi.threads.call import calling
from trio_asgi.threads.current import current_pool
from trio_asgi.threads.lease import Lease, lease_of
from trio_asgi.threads.loop import current_loop
from trio_asgi.threads.new_run import run_in_new_run
from trio_asgi.threads.reentry import run_async, run_async_from_trio_thread
from trio_asgi.threads.trio_state import (
    below_asyncio,
    in_trio_task,
    in_trio_thread,
    no_call,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator


#: Runs coroutines where no loop runs: "asyncio" or "trio". Set by `install_bridge`.
async_to_sync_backend = "asyncio"


def patch_call(original: Any) -> Any:
    """Return an ``AsyncToSync.__call__`` that runs coroutines on Trio where due."""

    @functools.wraps(original)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        if in_trio_task():
            raise RuntimeError(
                "You cannot use AsyncToSync in the same thread as an async event loop "
                f"- this is a Trio task: just await {self.awaitable!r} directly, or "
                "run the sync code that calls it in a thread, with sync_to_async()."
            )
        if (
            async_to_sync_backend == "asyncio" and not in_trio_thread()
        ) or asyncio._get_running_loop() is not None:
            return original(self, *args, **kwargs)
        run = _find_run(self)
        if run is None:
            with _only_asyncio():
                return original(self, *args, **kwargs)
        return _run_on_trio(self, self.awaitable(*args, **kwargs), run)

    return __call__


def _find_run(bridge: AsyncToSync[..., Any]) -> Callable[..., Any] | None:
    """Return a function that runs a coroutine on Trio for this thread, or None."""
    if not bridge.force_new_loop:
        if calling() is not None:
            return run_async
        if in_trio_thread():
            # Thread-sensitive code of the coroutine runs in this thread.
            return functools.partial(
                run_async_from_trio_thread,
                loop=lambda inbox: Lease(current_pool(), inbox),
            )
        if _asyncio_waits():
            return None
    if async_to_sync_backend == "asyncio":
        return None
    return functools.partial(run_in_new_run, start_thread=_single_thread(bridge))


def _run_on_trio(
    bridge: AsyncToSync[..., Any], awaitable: Awaitable[Any], run: Callable[..., Any]
) -> Any:
    afn: Callable[[], Awaitable[Any]] = with_context(awaitable)
    if _wants_asyncio() and not is_trio_island(bridge.awaitable):
        afn = asyncio_island(afn)
    try:
        result, context = run(afn)
    except BaseException:
        # Nobody will await it. If it has begun, its task closes it.
        if (
            inspect.iscoroutine(awaitable)
            and inspect.getcoroutinestate(awaitable) == inspect.CORO_CREATED
        ):
            awaitable.close()
        raise
    restore_context(context)
    if isinstance(result, outcome.Error) and not in_trio_thread():
        note_asyncio(result.error, BACKEND_NOTE)
    try:
        return result.unwrap()
    finally:
        # An error's traceback holds this frame: leave no cycle behind.
        del result


def _wants_asyncio() -> bool:
    """Whether the async code above the running sync code is written for asyncio.

    If there is none, the project's setting says so.
    """
    below = below_asyncio.get()
    if below is not None:
        return below
    loop = current_loop.get()
    if loop is not None:
        return lease_of(loop).for_asyncio
    return settings.configured and bool(conf.get("ASYNCIO_VIEWS"))


def _asyncio_waits() -> bool:
    """Whether asgiref has noted an asyncio loop that waits for this thread.

    asgiref never removes its note, so the loop must also be running.
    """
    loop = getattr(SyncToAsync.threadlocal, "main_event_loop", None)
    pid = getattr(SyncToAsync.threadlocal, "main_event_loop_pid", None)
    return loop is not None and pid == os.getpid() and loop.is_running()


def _single_thread(bridge: AsyncToSync[..., Any]) -> Callable[..., object] | None:
    """Return the thread starter of an `AsyncSingleThreadContext`, if in one."""
    current = getattr(bridge, "async_single_thread_context", None)  # asgiref 3.10
    context = None if current is None else current.get(None)
    if context is None:
        return None
    # The context shuts it down at its end.
    threads = bridge.context_to_thread_executor
    if context not in threads:
        threads[context] = ThreadPoolExecutor(max_workers=1)
    return threads[context].submit


@contextmanager
def _only_asyncio() -> Iterator[None]:
    """Let asgiref run an asyncio loop below sync code of a Trio task.

    Calls of that loop in this thread then belong to the loop, not to the task. What
    asgiref notes about the loop is removed afterwards.
    """
    if not in_trio_thread():
        yield
        return
    with no_call():
        try:
            yield
        finally:
            vars(SyncToAsync.threadlocal).clear()

"""Replacements where asgiref and Django call asyncio, except in their two bridges."""

from __future__ import annotations

import contextvars
import functools
import sys
from typing import TYPE_CHECKING, Any

import trio
from asgiref.sync import SyncToAsync

from trio_asgi.errors import raise_sole_error
from trio_asgi.islands.context import restore_context
from trio_asgi.threads.current import current_pool, has_own_thread
from trio_asgi.threads.lease import Lease
from trio_asgi.threads.loop import current_loop, switch_context
from trio_asgi.threads.trio_state import in_trio_run, in_trio_task

from .executor import ExecutorInbox

if TYPE_CHECKING:
    from types import ModuleType

    from trio_asgi.threads.loop import CallLoop

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup


def patch_get_running_loop(original: Any) -> Any:
    """Let Django's `async_unsafe` raise `SynchronousOnlyOperation` on Trio, too."""

    @functools.wraps(original)
    def get_running_loop() -> Any:
        if in_trio_run():
            return trio.lowlevel.current_trio_token()
        return original()

    return get_running_loop


class _Asyncio:
    """The module `asyncio`, with some functions replaced."""

    def __init__(self, original: ModuleType, **replacements: Any) -> None:
        self._original = original
        vars(self).update(replacements)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


def patch_asyncio_of_local(original: ModuleType) -> Any:
    """Let ``Local(thread_critical=True)`` see that a Trio loop runs."""
    replacement = patch_get_running_loop(original.get_running_loop)
    return _Asyncio(original, get_running_loop=replacement)


# Signals


def patch_asyncio_of_dispatcher(original: ModuleType) -> Any:
    """Let signals up to Django 6.0 use a nursery instead of `asyncio.gather`."""

    def gather(*awaitables: Any) -> Any:
        return (_gather if in_trio_task() else original.gather)(*awaitables)

    return _Asyncio(original, gather=gather)


def patch_run_parallel(original: Any) -> Any:
    """Let signals of Django 6.1 use a nursery instead of a TaskGroup."""

    @functools.wraps(original)
    async def _run_parallel(*coros: Any) -> list[Any]:
        if in_trio_task():
            return await _gather(*coros, share_context=True)
        return await original(*coros)  # type: ignore[no-any-return]

    return _run_parallel


async def _gather(*awaitables: Any, share_context: bool = False) -> list[Any]:
    """Await all at the same time, and return their results in order.

    If one fails, the others are cancelled. A single error is raised without a group.
    """
    results: list[Any] = [None] * len(awaitables)
    context = contextvars.copy_context()

    async def run(index: int, awaitable: Any) -> None:
        if share_context:
            await switch_context(context)
        results[index] = await awaitable

    try:
        async with trio.open_nursery() as nursery:
            for index, awaitable in enumerate(awaitables):
                nursery.start_soon(run, index, awaitable)
    except BaseExceptionGroup as group:
        raise_sole_error(group)
        raise
    finally:
        if share_context:
            restore_context(context)
    return results


# ThreadSensitiveContext


def patch_aenter(original: Any) -> Any:
    """Let ``ThreadSensitiveContext.__aenter__`` work on Trio."""

    @functools.wraps(original)
    async def __aenter__(self: Any) -> Any:  # noqa: N807
        if in_trio_run():
            _enter(self)
            return self
        return await original(self)

    return __aenter__


def patch_aexit(original: Any) -> Any:
    """Let ``ThreadSensitiveContext.__aexit__`` work on Trio."""

    @functools.wraps(original)
    async def __aexit__(self: Any, *exc_info: Any) -> None:  # noqa: N807
        entered = vars(self).pop("_trio_asgi_entered", None)
        if entered is None:
            await original(self, *exc_info)
        else:
            _exit(self, *entered)

    return __aexit__


def _enter(context: Any) -> None:
    """Lease a thread for the context, where asgiref would make an executor.

    Below a request, an `async_to_sync` or another context there is a thread already;
    then only the caller's executor, if given, makes a difference.
    """
    executor = getattr(context, "_executor", None)  # new in asgiref 3.13
    lease = marker = None
    if executor is not None:
        if context.token is not None:
            raise RuntimeError("ThreadSensitiveContext is already entered")
        if context._exited:
            raise RuntimeError(
                "ThreadSensitiveContext with an executor cannot be entered again"
            )
        lease = Lease(current_pool(), ExecutorInbox(executor))
        lease.closed_error = (
            "ThreadSensitiveContext has exited. Tasks created inside a context with an "
            "executor must finish before it exits."
        )
    elif not has_own_thread():
        # A request that holds a slot may wait for the calls made here.
        lease = current_pool().lease(needs_slot=False)
    elif SyncToAsync.thread_sensitive_context.get(None) is not None:
        return
    context.token = SyncToAsync.thread_sensitive_context.set(context)
    if lease is not None:
        marker = current_loop.set(lease)
    context._trio_asgi_entered = lease, marker


def _exit(
    context: Any,
    lease: Lease | None,
    marker: contextvars.Token[CallLoop | None] | None,
) -> None:
    """End the thread of the context; the caller's executor stays open."""
    SyncToAsync.thread_sensitive_context.reset(context.token)
    context.token = None
    if lease is None or marker is None:
        return
    current_loop.reset(marker)
    context._exited = lease.closed_error is not None
    lease.retire = True
    lease.release()

"""The places where asgiref and Django call asyncio, other than the two bridges."""

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
    """Let `async_unsafe` see that a loop runs: the guard `SynchronousOnlyOperation`."""

    @functools.wraps(original)
    def get_running_loop() -> Any:
        if in_trio_run():
            return trio.lowlevel.current_trio_token()
        return original()

    return get_running_loop


class _Asyncio:
    """The module `asyncio`, but for what a subclass does instead."""

    def __init__(self, original: ModuleType) -> None:
        self._original = original

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


class AsyncioForLocal(_Asyncio):
    """The module `asyncio` for `asgiref.local`, where ``thread_critical`` asks it."""

    def __init__(self, original: ModuleType) -> None:
        super().__init__(original)
        self.get_running_loop = patch_get_running_loop(original.get_running_loop)


# Signals


class AsyncioForSignals(_Asyncio):
    """The module `asyncio` for `django.dispatch.dispatcher`, up to Django 6.0."""

    def gather(self, *awaitables: Any) -> Any:
        """Do as `asyncio.gather`, or await all in a nursery."""
        if in_trio_task():
            return _gather(*awaitables)
        return self._original.gather(*awaitables)


def patch_run_parallel(original: Any) -> Any:
    """Let signals of Django 6.1 use a nursery in place of a TaskGroup."""

    @functools.wraps(original)
    async def _run_parallel(*coros: Any) -> list[Any]:
        if in_trio_task():
            return await _gather(*coros, share_context=True)
        return await original(*coros)  # type: ignore[no-any-return]

    return _run_parallel


async def _gather(*awaitables: Any, share_context: bool = False) -> list[Any]:
    """Await all at the same time, and return their results in order.

    If one fails the others are cancelled, and the error is raised: alone if it is the
    only one, else all in a group.
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
    """Return a fork in front of ``ThreadSensitiveContext.__aenter__``."""

    @functools.wraps(original)
    async def __aenter__(self: Any) -> Any:  # noqa: N807
        if in_trio_run():
            _enter(self)
            return self
        return await original(self)

    return __aenter__


def patch_aexit(original: Any) -> Any:
    """Return a fork in front of ``ThreadSensitiveContext.__aexit__``."""

    @functools.wraps(original)
    async def __aexit__(self: Any, *exc_info: Any) -> None:  # noqa: N807
        entered = vars(self).pop("_trio_asgi_entered", None)
        if entered is None:
            await original(self, *exc_info)
        else:
            _exit(self, *entered)

    return __aexit__


def _enter(context: Any) -> None:
    """Take a thread for the context, as asgiref makes an executor for it.

    Below a request, an `async_to_sync` or another context there is one already, so that
    only an executor of the caller's makes a difference.
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
        lease = current_pool().lease()
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
    """End the thread, or leave the executor to the caller, whose it is."""
    SyncToAsync.thread_sensitive_context.reset(context.token)
    context.token = None
    if lease is None or marker is None:
        return
    current_loop.reset(marker)
    context._exited = lease.closed_error is not None
    lease.retire = True
    lease.release()

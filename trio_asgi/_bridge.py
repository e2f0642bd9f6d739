"""`sync_to_async` and `async_to_sync` on Trio.

asgiref's two classes, and the few places where Django itself calls asyncio, start with
the running asyncio loop. `install` puts a fork in front of each: in a Trio task, or in
a worker thread that a Trio task waits for, the call goes to `_worker`; everywhere else
to the original, unchanged. `uninstall` puts the originals back.

What a call on Trio keeps of asgiref's meaning: the context variables go in and the
changes come back, `Local` included; ``sys.exc_info()`` is the caller's;
``thread_sensitive`` code runs in the request's thread, or in the thread that waits in
an `async_to_sync` above, or in one thread per program. What Trio adds: a coroutine run
by `async_to_sync` belongs to the very task that waits for the thread, and is cancelled
with it.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import sys
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import asgiref.sync
import django.dispatch.dispatcher
import django.utils.asyncio
import outcome
import trio
from asgiref.sync import AsyncToSync, SyncToAsync

from . import _call, _worker
from ._errors import raise_sole_error, reraise

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

_lock = threading.Lock()
_originals: dict[tuple[Any, str], Any] = {}

# asgiref's own way to make a context's values the current ones. It also moves the
# storage of each `Local` to the running thread, and so has no equal elsewhere.
_restore_context: Final[Callable[[contextvars.Context], None]] = (
    asgiref.sync._restore_context
)


def install() -> None:
    """Make asgiref and Django work in Trio tasks; a second call does nothing.

    Needs no configured settings. Any thread may call it.
    """
    with _lock:
        if _originals:
            return
        for (owner, name), make in _patches().items():
            _originals[owner, name] = original = getattr(owner, name)
            setattr(owner, name, make(original))


def uninstall() -> None:
    """Undo `install`; without it, do nothing. Any thread may call it."""
    with _lock:
        while _originals:
            (owner, name), original = _originals.popitem()
            setattr(owner, name, original)


def _patches() -> dict[tuple[Any, str], Callable[[Any], Any]]:
    dispatcher = django.dispatch.dispatcher
    patches: dict[tuple[Any, str], Callable[[Any], Any]] = {
        (SyncToAsync, "__call__"): _patch_sync_to_async,
        (AsyncToSync, "__call__"): _patch_async_to_sync,
        # What `async_unsafe` asks whether a loop runs in this thread.
        (django.utils.asyncio, "get_running_loop"): _patch_get_running_loop,
    }
    if hasattr(dispatcher, "_run_parallel"):  # Django 6.1 and later
        patches[dispatcher, "_run_parallel"] = _patch_run_parallel
    else:
        patches[dispatcher, "asyncio"] = _patch_asyncio_of_signals
    return patches


# Threads


def _patch_sync_to_async(original: Any) -> Any:
    # Not a coroutine function, for it must not cost a frame outside Trio; but marked as
    # one, since asgiref asks that of an object's __call__.
    @asgiref.sync.markcoroutinefunction
    @functools.wraps(original)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        if trio.lowlevel.in_trio_task():
            return _sync_to_async(self, args, kwargs)
        if _call.in_trio_thread():
            return _when_awaited(original, self, args, kwargs)
        return original(self, *args, **kwargs)

    return __call__


async def _when_awaited(original: Any, bridge: Any, args: Any, kwargs: Any) -> Any:
    """Choose at the await: async_to_sync calls in a thread what a task awaits."""
    if trio.lowlevel.in_trio_task():
        return await _sync_to_async(bridge, args, kwargs)
    return await original(bridge, *args, **kwargs)


async def _sync_to_async(bridge: Any, args: Any, kwargs: Any) -> Any:
    """Run ``bridge.func`` in the thread that it belongs to. Trio task."""
    given_context = getattr(bridge, "context", None)  # asgiref 3.9 has none to give
    context = contextvars.copy_context() if given_context is None else given_context
    error = sys.exc_info()[1]

    def call() -> Any:
        _restore_context(context)
        return _with_current_error(
            error, functools.partial(bridge.func, *args, **kwargs)
        )

    try:
        if bridge._thread_sensitive:
            return await _worker.sensitive_loop().run_sync(call, context=context)
        pool = _worker.current_pool()
        if bridge._executor is not None:
            # A worker waits for the caller's executor: one thread more, no surprises.
            submit = bridge._executor.submit
            return await pool.run_sync(lambda: submit(context.run, call).result())
        return await pool.run_sync(call, context=context)
    finally:
        if given_context is None:
            _restore_context(context)


def _with_current_error(error: BaseException | None, fn: Callable[[], Any]) -> Any:
    """Call ``fn()``, with ``error`` as the one being handled. Any thread."""
    if error is None:
        return fn()
    traceback = error.__traceback__
    try:
        reraise(error)
    except BaseException:  # noqa: BLE001 - only there to be the current one
        # This detour is not part of the error's story.
        error.__traceback__ = traceback
        return fn()


# Coroutines


def _patch_async_to_sync(original: Any) -> Any:
    @functools.wraps(original)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        if trio.lowlevel.in_trio_task():
            raise RuntimeError(
                "You cannot use AsyncToSync in the same thread as an async event "
                "loop - just await the async function directly."
            )
        if self.force_new_loop or asyncio._get_running_loop() is not None:
            return original(self, *args, **kwargs)
        if _call.calling() is not None:
            run = _call.run_async
        elif _call.in_trio_thread():
            run = _run_from_trio_thread
        else:
            return original(self, *args, **kwargs)
        awaitable = self.awaitable(*args, **kwargs)
        try:
            result, context = run(_carried(awaitable))
        except BaseException:
            # Nobody is there to await it any more.
            if inspect.iscoroutine(awaitable):
                awaitable.close()
            raise
        _restore_context(context)
        try:
            return result.unwrap()
        finally:
            # An error's traceback holds this frame: leave no cycle behind.
            del result

    return __call__


def _carried(awaitable: Awaitable[Any]) -> Callable[[], Coroutine[Any, Any, Any]]:
    """Return what awaits this with the current error and context. Worker thread."""
    error = sys.exc_info()[1]

    async def carried() -> Any:
        # The task is in the thread's context already, but for each Local's storage.
        _restore_context(contextvars.copy_context())
        if error is None:
            return await awaitable
        traceback = error.__traceback__
        try:
            reraise(error)
        except BaseException:  # noqa: BLE001 - only there to be the current one
            error.__traceback__ = traceback
            return await awaitable

    return carried


def _run_from_trio_thread(
    afn: Callable[[], Awaitable[Any]],
) -> tuple[outcome.Outcome[Any], contextvars.Context]:
    """Do as `run_async`, in a thread of `trio.to_thread.run_sync`."""

    async def run() -> tuple[outcome.Outcome[Any], contextvars.Context]:
        return await outcome.acapture(afn), contextvars.copy_context()

    return trio.from_thread.run(run)


# Places where Django calls asyncio


def _patch_get_running_loop(original: Any) -> Any:
    @functools.wraps(original)
    def get_running_loop() -> Any:
        if trio.lowlevel.in_trio_task():
            return trio.lowlevel.current_trio_token()
        return original()

    return get_running_loop


def _patch_run_parallel(original: Any) -> Any:
    @functools.wraps(original)
    async def _run_parallel(*coros: Any) -> list[Any]:
        if trio.lowlevel.in_trio_task():
            return await _gather(*coros, share_context=True)
        return await original(*coros)  # type: ignore[no-any-return]

    return _run_parallel


def _patch_asyncio_of_signals(original: Any) -> Any:
    def gather(*awaitables: Any) -> Any:
        if trio.lowlevel.in_trio_task():
            return _gather(*awaitables)
        return original.gather(*awaitables)

    return SimpleNamespace(**{**vars(asyncio), "gather": gather})


async def _gather(*awaitables: Any, share_context: bool = False) -> list[Any]:
    """Await all at the same time, and return their results in order.

    If one fails the others are cancelled, and the error is raised: alone if it is the
    only one, else all in a group.
    """
    results: list[Any] = [None] * len(awaitables)
    context = contextvars.copy_context()

    async def run(index: int, awaitable: Any) -> None:
        if share_context:
            trio.lowlevel.current_task().context = context
            # A task enters its new context when it is next switched to.
            await trio.lowlevel.cancel_shielded_checkpoint()
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
            _restore_context(context)
    return results

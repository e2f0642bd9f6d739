"""What goes with a call from one side to the other: the context, the current error."""

from __future__ import annotations

import contextvars
import sys
from typing import TYPE_CHECKING, Any, Final, TypeVar

import asgiref.sync

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

T = TypeVar("T")

# asgiref's own way to make a context's values the current ones. It also moves the
# storage of each `Local` to the running thread, and so has no equal elsewhere.
restore_context: Final[Callable[[contextvars.Context], None]] = (
    asgiref.sync._restore_context
)


def with_locals(fn: Callable[[], T]) -> Callable[[], T]:
    """Return what calls ``fn()`` with the current context's `Local` data. Any thread.

    For what runs in a call's context before the call does, as `Lease.on_take`.
    """

    def call() -> T:
        restore_context(contextvars.copy_context())
        return fn()

    return call


def restorer(error: BaseException | None) -> Callable[[], None]:
    """Return what takes a later ``raise`` off an error again. Any thread.

    An error is raised to be the current one elsewhere. That is no part of its story.
    """
    if error is None:
        return lambda: None
    traceback, context = error.__traceback__, error.__context__

    def restore() -> None:
        error.__traceback__, error.__context__ = traceback, context

    return restore


def carried(awaitable: Awaitable[Any]) -> Callable[[], Coroutine[Any, Any, Any]]:
    """Return what awaits this with the current error and context. Any thread."""
    error = sys.exc_info()[1]

    async def run() -> Any:
        # The task is in the thread's context already, but for each Local's storage.
        restore_context(contextvars.copy_context())
        if error is None:
            return await awaitable
        restore_error = restorer(error)
        try:
            raise error
        except BaseException:  # noqa: BLE001 - only there to be the current one
            restore_error()
            return await awaitable

    return run

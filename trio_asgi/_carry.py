"""What goes with a call from one side to the other: the context, the current error."""

from __future__ import annotations

import contextvars
import sys
from typing import TYPE_CHECKING, Any, Final

import asgiref.sync

from ._errors import reraise

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

# asgiref's own way to make a context's values the current ones. It also moves the
# storage of each `Local` to the running thread, and so has no equal elsewhere.
restore_context: Final[Callable[[contextvars.Context], None]] = (
    asgiref.sync._restore_context
)


def with_current_error(error: BaseException | None, fn: Callable[[], Any]) -> Any:
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


def carried(awaitable: Awaitable[Any]) -> Callable[[], Coroutine[Any, Any, Any]]:
    """Return what awaits this with the current error and context. Any thread."""
    error = sys.exc_info()[1]

    async def run() -> Any:
        # The task is in the thread's context already, but for each Local's storage.
        restore_context(contextvars.copy_context())
        if error is None:
            return await awaitable
        traceback = error.__traceback__
        try:
            reraise(error)
        except BaseException:  # noqa: BLE001 - only there to be the current one
            error.__traceback__ = traceback
            return await awaitable

    return run

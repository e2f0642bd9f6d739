"""What goes with a call from one side to the other: the context, the current error."""

from __future__ import annotations

import contextvars
import sys
import threading
from typing import TYPE_CHECKING, Any, Final, TypeVar

import asgiref.local

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

T = TypeVar("T")

#: What a `Local` keeps in its context variable: data that is tagged with its thread.
#: None up to asgiref 3.11, where it is the data alone.
_Storage: Final[Any] = getattr(asgiref.local, "_Storage", None)
#: Returns the same data for the running thread.
_rehome: Final[Any] = getattr(asgiref.local, "_rehome", None)

#: The name of the context variable of each `Local`.
_LOCAL: Final = "asgiref.local"

#: What a context variable without a value is found to have.
_UNSET: Final = object()


def restore_context(context: contextvars.Context) -> None:
    """Make a context's values the current ones. Any thread.

    The data of each `Local` is moved to the running thread, so that it can be seen
    there.

    asgiref's function for this compares the values, or asks what they are instances of.
    Either evaluates a lazy object, as ``request.user`` is one: with a query, on the
    loop. So values are not touched here.
    """
    for variable, value in context.items():
        if type(value) is _Storage and value.thread_id != threading.get_ident():
            value = _rehome(value)  # noqa: PLW2901 - the same data
        if variable.get(_UNSET) is not value:
            variable.set(value)


def without_locals(context: contextvars.Context) -> contextvars.Context:
    """Return a copy of a context in which each `Local` is empty. Any thread."""
    copy = contextvars.Context()
    for variable, value in context.items():
        if variable.name != _LOCAL:
            copy.run(variable.set, value)
    return copy


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

"""Carry context variables and the current error across threads and event loops."""

from __future__ import annotations

import contextvars
import sys
import threading
from typing import TYPE_CHECKING, Any, Final, TypeVar

import asgiref.local

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

T = TypeVar("T")

#: The data of a `Local`, with its thread, in a context variable. None up to asgiref
#: 3.11, which keeps only the data.
_Storage: Final[Any] = getattr(asgiref.local, "_Storage", None)
#: Returns the same data for the running thread.
_rehome: Final[Any] = getattr(asgiref.local, "_rehome", None)

#: The name of the context variable of each `Local`.
_LOCAL: Final = "asgiref.local"

#: Stands for the value of a context variable that has none.
_UNSET: Final = object()


def restore_context(context: contextvars.Context) -> None:
    """Make a context's values the current ones, `Local` data included. Any thread.

    asgiref's function compares values, or checks their types. Either evaluates lazy
    objects such as ``request.user``, with a query on the loop. This one does not.
    """
    thread = threading.get_ident()
    for variable, value in context.items():
        current = variable.get(_UNSET)
        if type(value) is _Storage and value.thread_id != thread:
            if type(current) is _Storage and (
                current.thread_id == thread and current.data is value.data
            ):
                continue
            value = _rehome(value)  # noqa: PLW2901 - the same data
        if current is not value:
            variable.set(value)


def take_locals(context: contextvars.Context | None = None) -> None:
    """Move the current context's `Local` data to the running thread. Any thread.

    That is all that `restore_context` of the current context would do. A caller that
    has the current context gives it, which saves a copy.
    """
    if _Storage is None:
        return
    thread = threading.get_ident()
    for variable, value in (context or contextvars.copy_context()).items():
        if type(value) is _Storage and value.thread_id != thread:
            variable.set(_rehome(value))


def without_locals(context: contextvars.Context) -> contextvars.Context:
    """Return a copy of a context in which each `Local` is empty. Any thread."""
    copy = contextvars.Context()
    for variable, value in context.items():
        if variable.name != _LOCAL:
            copy.run(variable.set, value)
    return copy


def with_locals(fn: Callable[[], T]) -> Callable[[], T]:
    """Return a function that calls ``fn()`` with its context's `Local` data.

    For functions that run in a call's context before the call, such as `Lease.on_take`.
    """

    def call() -> T:
        take_locals()
        return fn()

    return call


def error_restorer(error: BaseException | None) -> Callable[[], None]:
    """Return a function that removes the traces of a later ``raise`` from an error.

    To be ``sys.exc_info()`` elsewhere, an error is raised again. That changes it.
    """
    if error is None:
        return lambda: None
    traceback, context = error.__traceback__, error.__context__

    def restore() -> None:
        error.__traceback__, error.__context__ = traceback, context

    return restore


def with_context(
    awaitable: Awaitable[Any],
) -> Callable[[], Coroutine[Any, Any, Any]]:
    """Return an async function that awaits this with the current error and context."""
    error = sys.exc_info()[1]

    async def run() -> Any:
        # The task has the thread's context; only the `Local` data must move.
        take_locals()
        if error is None:
            return await awaitable
        restore_error = error_restorer(error)
        try:
            raise error
        except BaseException:  # noqa: BLE001 - it is sys.exc_info() below
            restore_error()
            return await awaitable

    return run

"""The package's errors, and functions for groups of errors."""

from __future__ import annotations

import math
import signal
import sys
import traceback
from typing import Final

import trio

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup


class ASGIOrderError(AssertionError):
    """The application sent an ASGI message that is not allowed at this point."""


class ClientDisconnected(Exception):  # noqa: N818 - the ASGI term
    """The client has left: nothing will read what is sent."""


#: The message of errors for code that reads the body.
LEFT_EARLY: Final = "The client left before the request's body was complete."


class BodyTooLarge(Exception):  # noqa: N818 - as Django's RequestDataTooBig
    """A request's body is larger than ``TRIO_ASGI["MAX_BODY_SIZE"]``: answered 413."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"The request's body is larger than {limit} bytes: see MAX_BODY_SIZE in "
            "TRIO_ASGI, or the view's @limit_body."
        )


class BodyTimeout(Exception):  # noqa: N818 - as HTTP's "Request Timeout"
    """The client sends a body too slowly, or not at all: answered 408."""

    def __init__(self, seconds: float, rate: float = 0, *, total: bool = False) -> None:
        if total:
            seen, keys = "was not complete after", "BODY_TOTAL_TIMEOUT"
        elif rate:
            seen = f"arrived at fewer than {rate} bytes a second for"
            keys = "BODY_MIN_RATE and BODY_TIMEOUT"
        else:
            seen, keys = "made no progress for", "BODY_TIMEOUT"
        super().__init__(
            f"The request's body {seen} {seconds} seconds of waiting for the client: "
            f"see {keys} in TRIO_ASGI, or the view's @limit_body."
        )


class OutputTimeoutError(trio.TooSlowError, TimeoutError):
    """The application sent nothing in time; see `testing.ApplicationCommunicator`."""


def leaves(error: BaseException) -> list[BaseException]:
    """Return the errors in a group, at any depth; or the error itself."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]


def ends_more_than_request(error: BaseException) -> bool:
    """Whether an error ends more than the code that raised it, and so must propagate.

    True of a cancellation by an outer scope, and of an error from a signal handler,
    such as Ctrl-C. All others concern only that code, whatever their class: servers
    expect an `Exception`, and one of them ends its worker at any other error.
    """
    return any(map(_ends_more, leaves(error)))


def split_ending(
    error: BaseException,
) -> tuple[BaseException | None, BaseException | None]:
    """Return an error that ends more than the request, unwrapped, and the others."""
    if not isinstance(error, BaseExceptionGroup):
        return (error, None) if _ends_more(error) else (None, error)
    ending, rest = error.split(_ends_more)
    if ending is None:
        return None, rest
    return max(leaves(ending), key=is_from_signal), rest


def _ends_more(leaf: BaseException) -> bool:
    if not isinstance(leaf, trio.Cancelled):
        return is_from_signal(leaf)
    # One that was stored and is raised later cancels nothing.
    return (
        not trio.lowlevel.in_trio_task()
        or trio.current_effective_deadline() == -math.inf
    )


def is_from_signal(error: BaseException) -> bool:
    """Whether a signal handler, as that of Ctrl-C, has raised an error. Any thread."""
    if isinstance(error, Exception):
        return False
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    if signal.default_int_handler in handlers and isinstance(error, KeyboardInterrupt):
        return True  # it has no frame; a server runs with Trio's handler, or none
    codes = [
        getattr(getattr(handler, "func", handler), "__code__", None)
        for handler in handlers
    ]
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code in codes for frame, _ in frames)


#: How error messages begin or end when asyncio is used in a Trio task, and the methods
#: that asyncio calls there on a loop that is None.
_ASYNCIO_BEGINS: Final = (
    "no running event loop",
    "There is no current event loop",
    "trio.run received unrecognized yield message",
    "Task got bad yield: ",  # `asyncio.run` in a Trio task, and code of this package
    "You're within a Trio environment.",  # trio-asyncio
)
_ASYNCIO_ENDS: Final = "is bound to a different event loop"
_ASYNCIO_METHODS: Final = [
    "create_future",
    "create_task",
    "run_in_executor",
    "call_soon",
    "call_soon_threadsafe",
    "call_later",
    "call_at",
    "get_debug",
]

_ASYNCIO_NOTE: Final = (
    "asyncio does not run in a Trio task. If this was called in one, call it in "
    "trio_asgi.asyncio_island(), or use Trio's equivalent."
)


#: What else to do where `async_to_sync` has started Trio.
BACKEND_NOTE: Final = (
    "async_to_sync() has started Trio here. To have it start asyncio: "
    'TRIO_ASGI = {"ASYNC_TO_SYNC_BACKEND": "asyncio"}'
)


def note_asyncio(error: BaseException, *more: str) -> None:
    """Add advice to an error of asyncio in a Trio task, or to those in a group."""
    for leaf in leaves(error):
        if _is_from_asyncio(leaf):
            notes = getattr(leaf, "__notes__", [])
            # add_note() is new in Python 3.11; before, exceptiongroup shows notes.
            leaf.__notes__ = [*dict.fromkeys([*notes, _ASYNCIO_NOTE, *more])]


def _is_from_asyncio(error: BaseException) -> bool:
    # No class of the project's, whose methods may do anything.
    if type(error) is AttributeError:
        return error.obj is None and error.name in _ASYNCIO_METHODS
    text = (
        error.args[0] if type(error) in (RuntimeError, TypeError) and error.args else ""
    )
    return type(text) is str and (
        text.startswith(_ASYNCIO_BEGINS) or text.endswith(_ASYNCIO_ENDS)
    )


def raise_sole_error(group: BaseExceptionGroup[BaseException]) -> None:
    """Raise a group's only error; return if it has several."""
    found = leaves(group)
    try:
        if len(found) == 1:
            reraise(found[0])
    finally:
        del group, found


def reraise(error: BaseException) -> None:
    """Raise an error again with its original ``__context__``.

    A plain ``raise`` in an ``except`` block would replace it by the error's group.
    """
    context = error.__context__
    try:
        raise error
    finally:
        error.__context__ = context
        del error, context

"""Errors of this package, and what becomes of groups of errors."""

from __future__ import annotations

import sys
from typing import Final

import trio

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup


class ASGIOrderError(AssertionError):
    """The application sent an ASGI message that may not come at this point."""


class ClientDisconnected(Exception):  # noqa: N818 - the ASGI term
    """The client has left, and nobody will read what is sent."""


#: What code that reads a body is told then.
LEFT_EARLY: Final = "The client has left before the request's body was complete."


class BodyTooLarge(Exception):  # noqa: N818 - as Django's RequestDataTooBig
    """A request's body is larger than ``TRIO_ASGI["MAX_BODY_SIZE"]``: answered 413."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"The request's body is larger than {limit} bytes, which is MAX_BODY_SIZE "
            "in TRIO_ASGI, or what @limit_body says for the view."
        )


class BodyTimeout(Exception):  # noqa: N818 - as HTTP's "Request Timeout"
    """The client has sent nothing of a body for too long: answered 408."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"No byte of the request's body has come for {seconds} seconds, which is "
            "BODY_TIMEOUT in TRIO_ASGI, or what @limit_body says for the view."
        )


class OutputTimeoutError(trio.TooSlowError, TimeoutError):
    """The application sent nothing in time; see `testing.ApplicationCommunicator`."""


def leaves(error: BaseException) -> list[BaseException]:
    """Return the errors that a group holds, at any depth; or the error itself."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]


def raise_sole_error(group: BaseExceptionGroup[BaseException]) -> None:
    """Raise the one error that a group holds; return if it holds several."""
    found = leaves(group)
    try:
        if len(found) == 1:
            reraise(found[0])
    finally:
        del group, found


def reraise(error: BaseException) -> None:
    """Raise an error again, keeping the context in which it was raised first.

    A plain ``raise`` in an ``except`` block would put the group, out of which the error
    was taken, in the place of that context.
    """
    context = error.__context__
    try:
        raise error
    finally:
        error.__context__ = context
        del error, context

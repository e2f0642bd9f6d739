"""What becomes of errors that Django does not know: out of nurseries, or its own."""

from __future__ import annotations

import asyncio
import logging
import sys
import traceback
from typing import TYPE_CHECKING, Any

import trio
from django.conf import settings
from django.http import HttpResponse, HttpResponseServerError

from ._errors import BodyTimeout, BodyTooLarge, leaves, raise_sole_error, reraise

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

if TYPE_CHECKING:
    from types import TracebackType

    from django.http import HttpRequest, HttpResponseBase

logger = logging.getLogger("django.request")

#: Nothing of Trio's was cancelled then, and no server knows asyncio's error.
_ASYNCIO_CANCELLED = "The asyncio code of {} was cancelled by other code of asyncio."


class as_view_errors:  # noqa: N801 - a context manager
    """Has an error out of a view's own nursery count as the error itself.

    A class, for the block may begin on the loop and end in the thread.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Raise what the error amounts to, if it is another one."""
        if isinstance(error, asyncio.CancelledError):
            message = _ASYNCIO_CANCELLED.format(self._path)
            raise RuntimeError(message) from error  # noqa: TRY004 - not a wrong type
        if isinstance(error, BaseExceptionGroup):
            raise_from_group(error, self._path)


def raise_from_group(group: BaseExceptionGroup[Any], path: str) -> None:
    """Raise what a group amounts to: the one error in it, if there is only one.

    Errors beside a cancellation are logged, and the cancellation raised. Several errors
    are left in their group: a view's are answered with a 500 that shows them all.
    """
    cancelled, rest = group.split(trio.Cancelled)
    try:
        if cancelled is not None:
            if rest is not None:
                log_lost(rest, path)
            reraise(leaves(cancelled)[0])
        if group.split(asyncio.CancelledError)[0] is not None:
            raise RuntimeError(_ASYNCIO_CANCELLED.format(path)) from group
        raise_sole_error(group)
        raise group
    finally:
        del group, cancelled, rest


def log_lost(error: BaseException, path: str) -> None:
    """Log an error that cannot be answered any more."""
    logger.error("Error in a request that was cancelled: %s", path, exc_info=error)


def server_error(
    error: BaseException, path: str, request: HttpRequest | None
) -> HttpResponseBase:
    """Answer what Django did not: an error in a receiver, or in its own error handling.

    The server would answer 500 as well, but what it does if the client is just leaving
    can end hypercorn's worker.
    """
    give_up_form(request)
    extra = {"status_code": 500, "request": request}
    logger.error("Internal Server Error: %s", path, exc_info=error, extra=extra)
    text = "".join(traceback.format_exception(error))
    return HttpResponseServerError(
        text if settings.DEBUG else "Internal Server Error", content_type="text/plain"
    )


def give_up_form(request: HttpRequest | None) -> None:
    """Have what reports an error not wait for a form; see `RequestWithBody`."""
    # A request of Django's own class has no form to wait for.
    if (give_up := getattr(request, "give_up_form", None)) is not None:
        give_up()


def refuse_body(error: BodyTooLarge | BodyTimeout, path: str) -> HttpResponseBase:
    """Answer a body that was too large, or too slow, for its view to start."""
    response = body_refusal(error)
    assert response is not None
    extra = {"status_code": response.status_code, "request": None}
    logger.warning("%s: %s", response.reason_phrase, path, extra=extra)
    return response


def body_refusal(error: Exception) -> HttpResponseBase | None:
    """Answer what the reading of a body has raised; None if it was something else.

    In Django's words, and its log says why.
    """
    if isinstance(error, BodyTooLarge):
        return HttpResponse("413 Payload too large", status=413)
    if isinstance(error, BodyTimeout):
        return HttpResponse("408 Request timeout", status=408)
    return None


def raise_to_server(group: BaseExceptionGroup[BaseException], path: str) -> None:
    """Raise what a group amounts to, but no group: no server expects one."""
    try:
        raise_from_group(group, path)
    except BaseExceptionGroup as several:
        message = f"{len(leaves(several))} errors in the response to {path}"
        raise RuntimeError(message) from several

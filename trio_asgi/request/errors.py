"""Errors that Django does not handle: from nurseries, or from its own code."""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

from django.conf import settings
from django.http import HttpResponse, HttpResponseServerError, UnreadablePostError

from trio_asgi import conf
from trio_asgi.errors import (
    LEFT_EARLY,
    BodyTimeout,
    BodyTooLarge,
    ends_more_than_request,
    leaves,
    note_asyncio,
    reraise,
    split_ending,
)
from trio_asgi.threads.offload import HeldLog, log

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import TypeAlias

    from django.http import HttpRequest, HttpResponseBase

    from trio_asgi.asgi.types import Receive, Scope, Send

    #: A handler's method that handles one request.
    Handle: TypeAlias = Callable[[Any, Scope, Receive, Send], Coroutine[Any, Any, None]]

logger = logging.getLogger("django.request")

#: For an asyncio error that no server knows. Trio has cancelled nothing.
_ASYNCIO_CANCELLED = "The asyncio code of {} was cancelled by other asyncio code."


def raise_view_error(error: BaseException, path: str) -> None:
    """Raise what `_unwrap` finds in an error of a view, if that is another one.

    Only a group, which leaves the view's own nursery, and asyncio's cancellation have
    another.
    """
    unwrapped = _unwrap(error, path)
    try:
        if unwrapped is not error:
            reraise(unwrapped)
    finally:
        # Their tracebacks hold this frame: leave no cycle behind.
        del error, unwrapped


def _unwrap(error: BaseException, path: str) -> BaseException:
    """Return the only error in a group; or the group itself if it has several.

    If one of them ends more than the request, that is returned, and the others are
    logged. A view's group of several errors is answered with a 500 that shows them all.
    """
    ending, rest = split_ending(error)
    if ending is not None:
        if rest is not None:
            log_lost(rest, path)
        return ending
    found = leaves(error)
    if any(isinstance(leaf, asyncio.CancelledError) for leaf in found):
        cancelled = RuntimeError(_ASYNCIO_CANCELLED.format(path))
        cancelled.__cause__ = error
        return cancelled
    return found[0] if len(found) == 1 else error


def log_lost(error: BaseException, path: str) -> None:
    """Log an error that nobody is left to answer, except that the client has left."""
    rest: BaseException | None = error
    if isinstance(error, BaseExceptionGroup):
        rest = error.split(_client_left)[1]
    elif _client_left(error):
        return
    if rest is not None:
        message = "Error in a request that was cancelled: %s"
        log(logger, logging.ERROR, message, path, error=rest)


def server_error(
    error: BaseException, path: str, request: HttpRequest | None
) -> HttpResponseBase:
    """Answer an error of a receiver, or of Django's own error handling, and log it.

    If this was left to the server, and the client is just leaving, hypercorn's worker
    might end.
    """
    give_up_form(request)
    extra = {"status_code": 500, "request": request}
    message = "Internal Server Error: %s"
    log(logger, logging.ERROR, message, path, error=error, extra=extra)
    text = "".join(traceback.format_exception(error))
    return HttpResponseServerError(
        text if settings.DEBUG else "Internal Server Error", content_type="text/plain"
    )


def give_up_form(request: HttpRequest | None) -> None:
    """Keep code that reports an error from waiting for a form: `RequestWithBody`."""
    # Django's own request class never waits.
    if (give_up := getattr(request, "give_up_form", None)) is not None:
        give_up()


def refuse_body(error: BaseException, path: str) -> HttpResponseBase:
    """Answer an error in reading the body before the view starts, and log it."""
    response = answer_body_error(error)
    if response is None:
        return server_error(error, path, None)
    extra = {"status_code": response.status_code, "request": None}
    reason = response.reason_phrase
    log(logger, logging.WARNING, "%s: %s", reason, path, extra=extra)
    return response


def answer_body_error(error: BaseException) -> HttpResponseBase | None:
    """Answer an error in reading a body; return None for any other error.

    If the client has left, the error is sync code's cancellation. Nothing is logged, as
    if the client had left before the view.
    """
    if isinstance(error, BodyTooLarge):
        return HttpResponse("413 Payload too large", status=413)
    if isinstance(error, BodyTimeout):
        return HttpResponse("408 Request timeout", status=408)
    if not _client_left(error):
        return None
    response = HttpResponse(status=400)
    response._has_been_logged = True  # type: ignore[attr-defined]
    return response


def _client_left(error: BaseException) -> bool:
    return isinstance(error, UnreadablePostError) and error.args == (LEFT_EARLY,)


def guard_closers(response: Any) -> None:
    """Have ``response.close()`` call all closers, whatever one of them raises.

    Django ignores an `Exception`. Any other error would skip the other closers and the
    signal. Worker thread.
    """

    def guarded(closer: Callable[[], object]) -> None:
        try:
            closer()
        except Exception:
            raise
        except BaseException:
            logger.exception("Error in the closing of a response: %r", closer)

    closers = response._resource_closers
    closers[:] = [functools.partial(guarded, closer) for closer in closers]


def as_server_errors(handle: Handle) -> Handle:
    """Let a handler raise only what servers know, and log in a thread.

    Servers know an `Exception` that is not a group, and errors that end more than the
    request. Records logged meanwhile are handled before the server goes on.
    """

    @functools.wraps(handle)
    async def wrapper(handler: Any, scope: Scope, receive: Receive, send: Send) -> None:
        held = HeldLog(lambda: conf.get("CLEANUP_SECONDS"))
        held.begin()
        try:
            await handle(handler, scope, receive, send)
        except BaseException as error:  # noqa: BLE001 - raised again
            _raise_to_server(error, scope["path"])
        finally:
            if held.end():
                await held.settle()

    return wrapper


def _raise_to_server(error: BaseException, path: str) -> NoReturn:
    note_asyncio(error)  # a stream's; a view's was noted in the chain
    unwrapped = _unwrap(error, path)
    try:
        if isinstance(unwrapped, BaseExceptionGroup):
            message = f"{len(leaves(unwrapped))} errors in the response to {path}"
        elif isinstance(unwrapped, Exception) or ends_more_than_request(unwrapped):
            reraise(unwrapped)
        else:
            message = f"{type(unwrapped).__name__} in the response to {path}"
        raise RuntimeError(message) from unwrapped
    finally:
        # Their tracebacks hold this frame: leave no cycle behind.
        del error, unwrapped

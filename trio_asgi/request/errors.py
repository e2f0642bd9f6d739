"""What becomes of errors that Django does not know: out of nurseries, or its own."""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

from django.conf import settings
from django.http import (
    HttpResponse,
    HttpResponseServerError,
    UnreadablePostError,
)

from trio_asgi import conf
from trio_asgi.errors import (
    LEFT_EARLY,
    BodyTimeout,
    BodyTooLarge,
    ends_more,
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
    from types import TracebackType
    from typing import TypeAlias

    from django.http import HttpRequest, HttpResponseBase

    from trio_asgi.asgi.types import Receive, Scope, Send

    #: A method of the handler's, for one request.
    Handle: TypeAlias = Callable[[Any, Scope, Receive, Send], Coroutine[Any, Any, None]]

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
        if not isinstance(error, (asyncio.CancelledError, BaseExceptionGroup)):
            return
        amount = _amount(error, self._path)
        try:
            if amount is not error:
                reraise(amount)
        finally:
            # Their tracebacks hold this frame: leave no cycle behind.
            del error, amount


def _amount(error: BaseException, path: str) -> BaseException:
    """Return what an error amounts to: of a group the one in it, if there is only one.

    Errors beside one that ends more than the request are logged, and that is returned.
    Several errors are left in their group: a view's are answered with a 500 that shows
    them all.
    """
    ending, rest = split_ending(error)
    if ending is not None:
        if rest is not None:
            log_lost(rest, path)
        return ending
    found = leaves(error)
    if any(isinstance(leaf, asyncio.CancelledError) for leaf in found):
        amount = RuntimeError(_ASYNCIO_CANCELLED.format(path))
        amount.__cause__ = error
        return amount
    return found[0] if len(found) == 1 else error


def log_lost(error: BaseException, path: str) -> None:
    """Log an error that cannot be answered any more, unless it says just that."""
    rest: BaseException | None = error
    if isinstance(error, BaseExceptionGroup):
        rest = error.split(_tells_of_leaver)[1]
    elif _tells_of_leaver(error):
        return
    if rest is not None:
        message = "Error in a request that was cancelled: %s"
        log(logger, logging.ERROR, message, path, error=rest)


def server_error(
    error: BaseException, path: str, request: HttpRequest | None
) -> HttpResponseBase:
    """Answer what Django did not: an error in a receiver, or in its own error handling.

    The server would answer 500 as well, but what it does if the client is just leaving
    can end hypercorn's worker.
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
    """Have what reports an error not wait for a form; see `RequestWithBody`."""
    # A request of Django's own class has no form to wait for.
    if (give_up := getattr(request, "give_up_form", None)) is not None:
        give_up()


def refuse_body(error: BaseException, path: str) -> HttpResponseBase:
    """Answer a body that was too large, too slow or lost, for its view to start."""
    response = body_refusal(error)
    if response is None:
        return server_error(error, path, None)
    extra = {"status_code": response.status_code, "request": None}
    reason = response.reason_phrase
    log(logger, logging.WARNING, "%s: %s", reason, path, extra=extra)
    return response


def body_refusal(error: BaseException) -> HttpResponseBase | None:
    """Answer what the reading of a body has raised; None if it was something else.

    In Django's words, and its log says why.
    """
    if isinstance(error, BodyTooLarge):
        return HttpResponse("413 Payload too large", status=413)
    if isinstance(error, BodyTimeout):
        return HttpResponse("408 Request timeout", status=408)
    return None


def answer_to_nobody(error: Exception) -> HttpResponseBase | None:
    """Answer sync code that has read a body whose client has left; else None.

    It is cancelled, as async code is, but has to be told by an error. That is no error
    of the site's: nothing is logged, as nothing is if a client leaves before the view.
    """
    if not _tells_of_leaver(error):
        return None
    response = HttpResponse(status=400)
    response._has_been_logged = True  # type: ignore[attr-defined]
    return response


def _tells_of_leaver(error: BaseException) -> bool:
    return isinstance(error, UnreadablePostError) and error.args == (LEFT_EARLY,)


def guard_closers(response: Any) -> None:
    """Let ``response.close()`` come to its end, whatever one of the closers raises.

    Django goes on after an `Exception`, which it ignores. Anything else would skip the
    other closers, and the signal. Worker thread.
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
    """Let nothing leave a handler but what a server knows.

    That is an `Exception`, in no group, or what `ends_more` than the request. What is
    logged meanwhile is handled in a thread, before the server goes on.
    """

    @functools.wraps(handle)
    async def wrapper(handler: Any, scope: Scope, receive: Receive, send: Send) -> None:
        held = HeldLog(cleanup_seconds)
        held.begin()
        try:
            await handle(handler, scope, receive, send)
        except BaseException as error:  # noqa: BLE001 - raised again
            _raise_to_server(error, scope["path"])
        finally:
            if held.end():
                await held.settle()

    return wrapper


def cleanup_seconds() -> float:
    """Return how long a request waits for what it leaves to threads at its end."""
    seconds: float = conf.get("CLEANUP_SECONDS")
    return seconds


def _raise_to_server(error: BaseException, path: str) -> NoReturn:
    note_asyncio(error)  # of a stream
    amount = _amount(error, path)
    try:
        if isinstance(amount, BaseExceptionGroup):
            message = f"{len(leaves(amount))} errors in the response to {path}"
        elif isinstance(amount, Exception) or ends_more(amount):
            reraise(amount)
        else:
            message = f"{type(amount).__name__} in the response to {path}"
        raise RuntimeError(message) from amount
    finally:
        # Their tracebacks hold this frame: leave no cycle behind.
        del error, amount

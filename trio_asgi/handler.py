"""The ASGI handler: the life of a request on Trio.

Read `ASGIHandler.handle`, which tells it from the first byte to the last.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import sys
import tempfile
import traceback
from contextlib import asynccontextmanager, closing
from typing import IO, TYPE_CHECKING, Any

import django
import trio
from asgiref.sync import iscoroutinefunction, sync_to_async
from django.conf import settings
from django.core.exceptions import RequestAborted
from django.core.handlers import asgi
from django.core.handlers.asgi import get_script_prefix
from django.db import close_old_connections
from django.http import HttpResponseServerError
from django.urls import set_script_prefix

from . import _bridge, _call, _worker, conf
from ._errors import ClientDisconnected, leaves, raise_sole_error, reraise
from ._exchange import Exchange
from ._island_loop import close_loop
from ._islands import asyncio_island, is_asyncio_island, is_trio_island
from ._lifespan import Lifespan
from ._receive import read_body, wait_disconnect
from ._request import ASGIRequest
from ._response import close_stream, encode_headers, iterate_in_island, send_parts
from ._send import ResponseSender
from ._signals import RequestSignals, join_transaction
from ._websocket import refuse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from django.http import HttpResponseBase

    from ._types import Receive, Scope, Send

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

logger = logging.getLogger("django.request")

#: Nothing of Trio's was cancelled then, and no server knows asyncio's error.
_ASYNCIO_CANCELLED = "The asyncio code of {} was cancelled by other code of asyncio."


def get_asgi_application() -> ASGIHandler:
    """Set up Django, and return the application for a server's Trio worker.

    Takes the place of the function of this name in `django.core.asgi`.

    Raises:
        ImproperlyConfigured: the settings are wrong, ``TRIO_ASGI`` included.
    """
    django.setup(set_prefix=False)
    return ASGIHandler()


class ASGIHandler(asgi.ASGIHandler):
    """Django's ASGI handler, on Trio.

    What can be overridden in Django's can be here, with the same names and meanings:
    ``request_class``, ``chunk_size``, `handle`, `read_body`, ``create_request``,
    ``run_get_response``, `send_response`. New are `lifespan` and `start_soon`.
    """

    request_class: type[ASGIRequest] = ASGIRequest

    def __init__(self) -> None:
        """Check the settings, install the bridge and load the middleware."""
        conf.configure()
        _bridge.install(new_loops=conf.get("NEW_LOOPS"))
        super().__init__()
        self._lifespan = Lifespan(
            self.lifespan,
            shutdown_seconds=conf.get("SHUTDOWN_SECONDS"),
            after=_end_islands_and_threads,
        )

    # For users

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Surround the serving of requests; for overriding in a subclass.

        What stands before the ``yield`` runs at the server's start-up; if it raises,
        the server is told that the start-up failed. What stands after it runs at
        shutdown, when the requests and the tasks of `start_soon` have ended. A nursery
        may be open around the ``yield``. Not run by servers without lifespan support.
        """
        yield

    def start_soon(
        self, async_fn: Callable[..., Awaitable[Any]], *args: Any, name: object = None
    ) -> None:
        """Start a task that may outlive the request, as `trio.Nursery.start_soon`.

        The task has a thread of its own for its sync code. If it fails, that is logged,
        and harms no other task. At shutdown it may run on for
        ``TRIO_ASGI["SHUTDOWN_SECONDS"]``, then it is cancelled.

        Raises:
            RuntimeError: outside the server's lifespan, which is where such tasks live.
        """
        self._lifespan.start_soon(
            _run_in_background, async_fn, args, name=name or async_fn
        )

    # The life of a request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection: an HTTP request, or the server's lifespan.

        Raises:
            ValueError: the scope is of a type that ASGI does not know.
            RuntimeError: not called by Trio.
        """
        if not trio.lowlevel.in_trio_task():
            raise RuntimeError(
                "trio_asgi was called outside Trio. Serve it with a Trio worker, as "
                "'hypercorn -k trio' has, or use django.core.asgi on asyncio."
            )
        kind = scope["type"]
        if kind == "http":
            await self.handle(scope, receive, send)
        elif kind == "lifespan":
            await self._lifespan.run(receive, send)
        elif kind == "websocket":
            await refuse(receive, send)
        else:
            raise ValueError(
                f"Django can only handle ASGI/HTTP connections, not {kind}."
            )

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request.

        The body is read whole. Then everything happens between ``request_started`` and
        ``request_finished``, which are sent once each, in the request's own thread,
        whatever happens meanwhile. A disconnect cancels the view or the stream.

        Every error before the response has started is answered, as Django does it or,
        where Django itself fails, with a plain 500.

        Raises:
            trio.Cancelled: the server has cancelled the request.
            Exception: a stream failed, or a receiver of ``request_finished``.
        """
        await join_transaction()
        try:
            body_file = await self.read_body(receive)
        except RequestAborted:
            return
        lease = _worker.current_pool().lease()
        outer_loop = _call.current_loop.set(lease)
        signals = RequestSignals(type(self), keep_connections=lease.borrowed)
        request: ASGIRequest | None = None
        response: HttpResponseBase | None = None
        sender = ResponseSender(send)

        async def respond() -> None:
            nonlocal request, response
            try:
                set_script_prefix(get_script_prefix(scope))
                await sync_to_async(signals.send_started)(scope)
                request, response = self.create_request(scope, body_file)  # type: ignore[assignment]
                if request is not None:
                    response = await self.run_get_response(request)
                    if getattr(request, "in_island", False):
                        iterate_in_island(response)
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001
                # Answered, and logged: also what asyncio's code in middleware raises.
                response = _server_error(error, scope["path"], request)
            assert response is not None
            await self.send_response(response, sender)

        with closing(body_file):
            try:
                await Exchange(
                    wait_disconnect=functools.partial(wait_disconnect, receive),
                    is_complete=lambda: sender.complete,
                    lease=lease,
                    patience=conf.get("SHUTDOWN_SECONDS"),
                ).run(respond)
            except ClientDisconnected:
                pass
            except BaseExceptionGroup as group:
                _raise_to_server(group, scope["path"])
            finally:
                if response is None and request is not None:
                    # A request of Django's own class has none until the view returns.
                    response = getattr(request, "view_response", None)
                await self._end(scope["path"], response, signals, lease)
                _call.current_loop.reset(outer_loop)

    async def _end(
        self,
        path: str,
        response: HttpResponseBase | None,
        signals: RequestSignals,
        lease: _worker.Lease,
    ) -> None:
        """Close the response, send ``request_finished``, and give the thread back.

        No cancellation reaches this. What takes longer than ``CLEANUP_SECONDS`` is
        finished by the thread alone.
        """
        end = functools.partial(signals.send_finished, response)
        try:
            with trio.move_on_after(conf.get("CLEANUP_SECONDS"), shield=True):
                try:
                    await close_stream(response)
                finally:
                    if not lease.abandoned:
                        lease.impatient = True
                        await sync_to_async(end)()
        finally:
            if lease.abandoned or lease.others_abandoned:
                logger.error("Left sync code running that does not end: %s", path)
            lease.release(last=end if signals.pending else None)

    async def read_body(self, receive: Receive) -> IO[bytes]:
        """Read the body into a file, which is in memory up to a size, as in Django.

        What goes to disk is written in a thread.

        Raises:
            RequestAborted: the client left before the body was complete.
        """
        limit = settings.FILE_UPLOAD_MAX_MEMORY_SIZE
        body_file = tempfile.SpooledTemporaryFile(max_size=limit, mode="w+b")  # noqa: SIM115
        size = 0

        async def write(chunk: bytes) -> None:
            nonlocal size
            size += len(chunk)
            if size > limit > 0:
                await _worker.current_pool().run_sync(
                    functools.partial(body_file.write, chunk)
                )
            else:
                body_file.write(chunk)

        try:
            await read_body(receive, write)
        except ClientDisconnected as error:
            body_file.close()
            raise RequestAborted from error
        except BaseException:
            body_file.close()
            raise
        body_file.seek(0)
        return body_file

    def make_view_atomic(self, view: Callable[..., Any]) -> Callable[..., Any]:
        """Return the view as it is called: what Django's handler asks for each request.

        Besides Django's transaction, this adds what views on Trio need: an error out of
        the view's own nursery counts as the error itself, and neither the response nor
        an error is lost if the request is cancelled meanwhile. With ``ASYNCIO_VIEWS``,
        an async view becomes an island, unless it says that it is Trio's.
        """
        view = super().make_view_atomic(view)
        call: Callable[..., Awaitable[Any]]
        if not iscoroutinefunction(view):
            call = sync_to_async(view)
        elif conf.get("ASYNCIO_VIEWS") and not is_trio_island(view):
            call = asyncio_island(view)
        else:
            call = view

        async def wrapped(request: ASGIRequest, *args: Any, **kwargs: Any) -> Any:
            __traceback_hide__ = True
            request.in_island = is_asyncio_island(call)
            try:
                request.view_response = response = await call(request, *args, **kwargs)
            except asyncio.CancelledError as error:
                raise RuntimeError(_ASYNCIO_CANCELLED.format(request.path)) from error
            except BaseExceptionGroup as group:
                _raise_from_group(group, request.path)
            except Exception as error:
                if trio.current_effective_deadline() == -math.inf:
                    # Its answer would be cancelled before it is even made.
                    _log_lost(error, request.path)
                raise
            return response

        return wrapped

    async def send_response(self, response: HttpResponseBase, send: Send) -> None:
        """Send a response out over ASGI; the parts of a streamed one as they come."""
        await send(
            {
                "type": "http.response.start",
                "status": response.status_code,
                "headers": encode_headers(response),
            }
        )
        if not response.streaming:
            for chunk, last in self.chunk_bytes(response.content):  # type: ignore[attr-defined]
                await send(
                    {"type": "http.response.body", "body": chunk, "more_body": not last}
                )
            return

        async def send_part(part: bytes) -> None:
            for chunk, _ in self.chunk_bytes(part):
                await send(
                    {"type": "http.response.body", "body": chunk, "more_body": True}
                )

        await send_parts(
            response,  # type: ignore[arg-type]
            send_part,
            cleanup_seconds=conf.get("CLEANUP_SECONDS"),
        )
        await send({"type": "http.response.body"})


async def _end_islands_and_threads() -> None:
    await close_loop()
    await _worker.current_pool().retire_idle()


async def _run_in_background(
    async_fn: Callable[..., Awaitable[Any]], args: tuple[Any, ...]
) -> None:
    """Run a task of `ASGIHandler.start_soon`, with a thread of its own."""
    await join_transaction()
    lease = _worker.current_pool().lease()
    _call.current_loop.set(lease)
    try:
        await async_fn(*args)
    except (Exception, asyncio.CancelledError):
        logging.getLogger("trio_asgi").exception(
            "A background task failed: %r", async_fn
        )
    finally:
        # What the end of a request does for the thread that goes back.
        lease.release(last=close_old_connections if lease.has_thread else None)


def _server_error(
    error: BaseException, path: str, request: ASGIRequest | None
) -> HttpResponseBase:
    """Answer what Django did not: an error in a receiver, or in its own error handling.

    The server would answer 500 as well, but what it does if the client is just leaving
    can end hypercorn's worker.
    """
    extra = {"status_code": 500, "request": request}
    logger.error("Internal Server Error: %s", path, exc_info=error, extra=extra)
    text = "".join(traceback.format_exception(error))
    return HttpResponseServerError(
        text if settings.DEBUG else "Internal Server Error", content_type="text/plain"
    )


def _raise_from_group(group: BaseExceptionGroup[BaseException], path: str) -> None:
    """Raise what a group amounts to: the one error in it, if there is only one.

    Errors beside a cancellation are logged, and the cancellation raised. Several errors
    are left in their group: a view's are answered with a 500 that shows them all.
    """
    cancelled, rest = group.split(trio.Cancelled)
    try:
        if cancelled is not None:
            if rest is not None:
                _log_lost(rest, path)
            reraise(leaves(cancelled)[0])
        if group.split(asyncio.CancelledError)[0] is not None:
            raise RuntimeError(_ASYNCIO_CANCELLED.format(path)) from group
        raise_sole_error(group)
        raise group
    finally:
        del group, cancelled, rest


def _raise_to_server(group: BaseExceptionGroup[BaseException], path: str) -> None:
    """Raise what a group amounts to, but no group: no server expects one."""
    try:
        _raise_from_group(group, path)
    except BaseExceptionGroup as several:
        message = f"{len(leaves(several))} errors in the response to {path}"
        raise RuntimeError(message) from several


def _log_lost(error: BaseException, path: str) -> None:
    logger.error("Error in a request that was cancelled: %s", path, exc_info=error)

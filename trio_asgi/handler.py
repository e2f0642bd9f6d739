"""The ASGI handler: the life of a request on Trio, from top to bottom.

The server calls `ASGIHandler.__call__` for each request, and `handle` answers it. A
*lease* is the request's right to one worker thread, and a *hop* is a trip to it.
"""

from __future__ import annotations

import asyncio
import functools
import io
from contextlib import asynccontextmanager
from typing import IO, TYPE_CHECKING, Any, Final

from django.conf import settings
from django.core.exceptions import RequestAborted
from django.core.handlers import asgi
from django.core.handlers.asgi import get_script_prefix
from django.urls import set_script_prefix

from . import conf
from .asgi.lifespan import Lifespan
from .asgi.receive import Receiver
from .asgi.websocket import refuse
from .bridge.hop import hop
from .bridge.install import install_bridge
from .bridge.originals import Original
from .bridge.pool_options import configure_threads
from .chain.load import ChainHandler
from .debugging.watchdog import watch_loop
from .errors import ClientDisconnected, ends_more_than_request
from .hops.record import record_hops
from .hosts.guest import run_as_guest
from .hosts.sigterm import leave_sigterm_to_parent
from .request.background import end_islands_and_threads, start_in_background
from .request.body_file import spool_body, take_body
from .request.closing import disown_caches
from .request.errors import as_server_errors, refuse_body, server_error
from .request.request import ASGIRequest, makes_plain_requests
from .request.signals import RequestSignals
from .request.state import RequestState, send_answer
from .response.file_stream import LARGEST_BLOCK
from .response.send import send_over_asgi
from .threads.current import current_pool, reserve_lease, reserved_lease
from .threads.lease import Lease
from .threads.loop import current_loop
from .threads.trio_state import in_trio_task

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from django.http import HttpResponseBase

    from .asgi.types import Receive, Scope, Send

_DJANGO_CALL: Final = Original(asgi.ASGIHandler.__call__, asgi)


class ASGIHandler(ChainHandler):
    """Django's ASGI handler, on Trio.

    A subclass can override what it could override in Django's handler:
    ``request_class``, ``chunk_size``, `handle`, `read_body`, ``create_request``,
    ``run_get_response`` and `send_response`. `lifespan` and `start_soon` are new.
    """

    request_class: type[ASGIRequest] = ASGIRequest

    #: The largest message of a response, in bytes: 2 MiB. Servers spend time on each
    #: message, so Django's 64 KiB is too small.
    chunk_size = LARGEST_BLOCK

    #: Makes the requests' leases. One that records calls may take its place.
    _lease_type: Callable[..., Lease] = Lease

    def __init__(self) -> None:
        """Check the settings, install the bridge and load the middleware."""
        configure_threads()
        install_bridge(async_to_sync_backend=conf.get("ASYNC_TO_SYNC_BACKEND"))
        super().__init__()
        disown_caches()
        self._lifespan = Lifespan(
            self.lifespan,
            shutdown_seconds=conf.get("SHUTDOWN_SECONDS"),
            beside=leave_sigterm_to_parent,
            after=functools.partial(end_islands_and_threads, self),
        )
        if settings.DEBUG:
            record_hops(self)
            watch_loop(self)

    # The life of a request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve an HTTP request or the lifespan; refuse a WebSocket.

        Called in a Trio task, or in an asyncio task: then all of it runs in a Trio task
        of the loop's guest run.

        Raises:
            ValueError: ASGI does not define this type of scope.
            RuntimeError: neither Trio nor asyncio runs here.
        """
        if not in_trio_task():
            if asyncio._get_running_loop() is None:
                raise RuntimeError(
                    "trio_asgi was called where neither Trio nor asyncio runs. Serve "
                    "it with an ASGI server, such as uvicorn or 'hypercorn -k trio'."
                )
            await run_as_guest(self, scope, receive, send)
            return
        kind = scope["type"]
        if kind == "lifespan":
            await self._lifespan.run(receive, send)
            return
        if kind == "websocket":
            await refuse(receive, send)
            return
        overridden = type(self).handle is not ASGIHandler.handle
        wrapped = not _DJANGO_CALL.is_code_of(asgi.ASGIHandler.__call__)
        if kind == "http" and not (overridden or wrapped):
            # Django's own __call__ would do the same, more slowly.
            await self.handle(scope, receive, send)
            return
        # Monitoring tools wrap Django's __call__ to isolate requests. Their sync code
        # runs in the request's thread, too.
        with reserve_lease(self._lease_type):
            await super().__call__(scope, receive, send)

    @as_server_errors
    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request.

        The body is read first, unless its view starts early, as `stream_body` makes it.
        Everything else happens between ``request_started`` and ``request_finished``.
        Each is sent once, in the request's own thread, even after errors and
        cancellation. Each is left out where only Django's receivers are connected and
        would do nothing: see `RequestSignals`.

        A disconnect cancels the view or the stream. An error before the response has
        started is answered: by Django, or with a plain 500 where Django cannot.

        Raises:
            trio.Cancelled: the server has cancelled the request.
            KeyboardInterrupt, SystemExit: only if a signal handler raised it. If the
                request's code raises one, it counts like any other error.
            Exception: a stream or a receiver of ``request_finished`` failed.
        """
        # The body comes first. If it is refused, that is the response.
        receiver = Receiver(scope, receive)
        refusal: HttpResponseBase | None = None
        try:
            if (
                getattr(self.read_body, "__func__", None) is _READ_BODY
                and receiver.expects_no_body
                and await receiver.receive_first()
            ):
                body: IO[bytes] = io.BytesIO()  # the usual case, without detours
            else:
                urlconf = getattr(self.request_class, "urlconf", None)
                body = await take_body(scope, receiver, self.read_body, urlconf=urlconf)
        except (ClientDisconnected, RequestAborted):
            return
        except BaseException as error:
            if ends_more_than_request(error):
                raise
            body, refusal = io.BytesIO(), refuse_body(error, scope["path"])

        # The request gets the right to a thread, which its first sync call takes.
        lease = reserved_lease() or current_pool().lease(self._lease_type)
        lease.begin_request()
        lease.owner, lease.for_asyncio = self, self._asyncio_views
        outer_loop = current_loop.set(lease)
        signals = RequestSignals(type(self), scope, lease)
        state = RequestState(scope, receiver, send, signals, body)

        # The request is answered, unless the client leaves first.
        async def respond() -> None:
            state.response = await self._make_response(scope, state, refusal)
            await self._send(state)
            state.complete = True

        try:
            await state.run(respond)
        except ClientDisconnected:
            pass
        finally:
            # In any case: close the response, send the signal, free the thread.
            try:
                if not state.finished:
                    await state.finish()
            finally:
                current_loop.reset(outer_loop)

    async def _make_response(
        self, scope: Scope, state: RequestState, refusal: HttpResponseBase | None
    ) -> HttpResponseBase:
        """Make the request, and have the middleware and the view answer it."""
        try:
            if refusal is not None:
                await state.signals.start()
                return refusal
            set_script_prefix(get_script_prefix(scope))
            if not makes_plain_requests(self):
                # The project's own request class may depend on ``request_started``.
                await state.signals.start()
            if scope.get("query_string", b"").isascii():
                request, error = self.create_request(scope, state.body_file)
            else:
                # It may not be UTF-8. Django logs that, which the loop must not do.
                make = functools.partial(self.create_request, scope, state.body_file)
                request, error = await hop(make)
            if request is None:
                await state.signals.start()
                assert error is not None
                return error
            state.request = request
            request._signals = state.signals  # type: ignore[attr-defined]
            return await self.run_get_response(request)
        except BaseException as error:
            if ends_more_than_request(error):
                raise
            # Middleware hooks that clean up in the thread may have been skipped.
            state.lease.retire = True
            return server_error(error, state.path, state.request)

    async def _send(self, state: RequestState) -> None:
        """Send the response, or a plain 500 if it cannot even be started.

        Either way the response is closed when the request ends.
        """
        sender = state.sender
        send = self.send_response
        own = getattr(send, "__func__", None) is _SEND_RESPONSE
        try:
            await send_answer(state, send, small=self.chunk_size if own else -1)
        except BaseException as error:
            left = isinstance(error, ClientDisconnected)
            if sender.begun or left or ends_more_than_request(error):
                raise
            answer = server_error(error, state.path, state.request)
            await send_over_asgi(answer, sender, self.chunk_bytes)

    async def read_body(self, receive: Receive) -> IO[bytes]:
        """Read the body into a file, in memory up to a size as in Django, or on disk.

        A thread writes to disk. Not called for a view that starts early.

        Raises:
            RequestAborted: the client left before the body was complete.
            BodyTooLarge, BodyTimeout: answered with 413 and 408.
        """
        return await spool_body(receive)

    async def send_response(self, response: HttpResponseBase, send: Send) -> None:
        """Send a response over ASGI; a streaming response part by part.

        For HEAD no content is read. The server sends a whole file on disk, if it can.
        """
        await send_over_asgi(response, send, self.chunk_bytes)

    # For users: start-up, shutdown and background tasks

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Surround the serving of requests; for overriding in a subclass.

        The part before the ``yield`` runs at the server's start-up; if it raises, the
        server is told that the start-up failed. The part after it runs at shutdown,
        when the requests and the tasks of `start_soon` have ended. A nursery may be
        open around the ``yield``. Servers without lifespan support do not run this.
        """
        yield

    def start_soon(
        self, async_fn: Callable[..., Awaitable[Any]], *args: Any, name: object = None
    ) -> None:
        """Start a task that may outlive the request, as `trio.Nursery.start_soon` does.

        The task has its own thread for sync code, and its own caches. It gets the
        values of context variables, but not those of an asgiref `Local` or of a
        `threading.local`, except for the language, the time zone, the URLconf and the
        script prefix: pass the rest as arguments.

        If the task fails, the error is logged, and no other task is cancelled. At
        shutdown it may run for ``TRIO_ASGI["SHUTDOWN_SECONDS"]``, then it is cancelled.

        Raises:
            RuntimeError: called outside the server's lifespan.
        """
        name = name or async_fn
        start_in_background(self, self._lifespan, async_fn, args, name)


#: To see whether a subclass or a tool has replaced them.
_READ_BODY: Final = ASGIHandler.read_body
_SEND_RESPONSE: Final = ASGIHandler.send_response

"""The ASGI handler: the life of a request on Trio.

Read `ASGIHandler.handle`, which tells it from the first byte to the last.
"""

from __future__ import annotations

import functools
import io
from contextlib import asynccontextmanager
from typing import IO, TYPE_CHECKING, Any, Final

import trio
from django.conf import settings
from django.core.exceptions import RequestAborted
from django.core.handlers import asgi
from django.core.handlers.asgi import get_script_prefix
from django.urls import set_script_prefix

from . import conf
from .asgi.exchange import Exchange
from .asgi.lifespan import Lifespan
from .asgi.receive import Receiver
from .asgi.send import ResponseSender
from .asgi.websocket import refuse
from .bridge.hop import hop
from .bridge.install import install_bridge
from .bridge.originals import Original
from .bridge.pool_options import configure
from .chain.load import ChainHandler
from .errors import ClientDisconnected, ends_more
from .hops.record import record_hops
from .hosts.sigterm import leave_sigterm_to_parent
from .request.answer import send_answer
from .request.background import end_islands_and_threads, start_in_background
from .request.body_file import spool_body, take_body
from .request.errors import as_server_errors, refuse_body, server_error
from .request.request import ASGIRequest, makes_plain_requests
from .request.signals import RequestSignals, disown_caches
from .request.state import RequestState
from .response.file_stream import LARGEST_BLOCK
from .response.send import send_over_asgi
from .threads.current import current_pool, reserved_lease
from .threads.loop import current_loop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from django.http import HttpResponseBase

    from .asgi.types import Receive, Scope, Send

_CALL: Final = Original(asgi.ASGIHandler.__call__, asgi)


class ASGIHandler(ChainHandler):
    """Django's ASGI handler, on Trio.

    What can be overridden in Django's can be here, with the same names and meanings:
    ``request_class``, ``chunk_size``, `handle`, `read_body`, ``create_request``,
    ``run_get_response``, `send_response`. New are `lifespan` and `start_soon`.
    """

    request_class: type[ASGIRequest] = ASGIRequest

    #: How many bytes one message of a response holds at most. Servers take some time
    #: for each, so Django's 64 KiB are too few.
    chunk_size = LARGEST_BLOCK

    #: Whether the project's views are asyncio's, unless they say that they are not.
    _asyncio_views: bool = False

    def __init__(self) -> None:
        """Check the settings, install the bridge and load the middleware."""
        configure()
        install_bridge(async_to_sync_backend=conf.get("ASYNC_TO_SYNC_BACKEND"))
        self._asyncio_views = conf.get("ASYNCIO_VIEWS")
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

        The task has a thread of its own for its sync code, and caches of its own. The
        values of context variables come along; what is kept in a `Local` of asgiref's
        or in a `threading.local` does not, except for the language, the time zone, the
        URLconf and the script prefix: pass the rest as arguments.

        If the task fails, that is logged, and harms no other task. At shutdown it may
        run on for ``TRIO_ASGI["SHUTDOWN_SECONDS"]``, then it is cancelled.

        Raises:
            RuntimeError: outside the server's lifespan, which is where such tasks live.
        """
        name = name or async_fn
        start_in_background(self, self._lifespan, async_fn, args, name)

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
        if kind == "lifespan":
            await self._lifespan.run(receive, send)
            return
        if kind == "websocket":
            await refuse(receive, send)
            return
        plain = type(self).handle is ASGIHandler.handle
        if plain and kind == "http" and _CALL.is_code_of(asgi.ASGIHandler.__call__):
            # As Django wrote it, it would do no more, but at some cost.
            await self.handle(scope, receive, send)
            return
        # This is what tools wrap that keep requests apart.
        lease = current_pool().lease()
        lease.reserved = True
        outer_loop = current_loop.set(lease)
        try:
            await super().__call__(scope, receive, send)
        finally:
            current_loop.reset(outer_loop)
            if lease.reserved:
                # It came to nothing; code around it may have left something there.
                lease.retire = True
                lease.release()

    @as_server_errors
    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request.

        The body is read whole, unless its view wants to start before that, or it is
        larger or slower than allowed. Then everything happens between
        ``request_started`` and ``request_finished``, which are sent once each, in the
        request's own thread, whatever happens meanwhile. A disconnect cancels the view
        or the stream.

        Both signals, and the thread itself, are left out where nobody can tell: see
        `RequestSignals`.

        Every error before the response has started is answered, as Django does it or,
        where Django itself fails, or what it has made cannot be sent, with a plain 500.

        Raises:
            trio.Cancelled: the server has cancelled the request.
            KeyboardInterrupt, SystemExit: only if the handler of a signal has raised
                it. What the request's code raises counts as any other error.
            Exception: a stream failed, or a receiver of ``request_finished``.
        """
        lease = reserved_lease()
        receiver = Receiver(scope, receive)
        refusal: HttpResponseBase | None = None
        urlconf = getattr(self.request_class, "urlconf", None)
        try:
            body = await take_body(scope, receiver, self.read_body, urlconf=urlconf)
        except (ClientDisconnected, RequestAborted):
            return
        except BaseException as error:
            if ends_more(error):
                raise
            body, refusal = io.BytesIO(), refuse_body(error, scope["path"])
        lease = lease or current_pool().lease()
        lease.begin_request()
        lease.owner, lease.for_asyncio = self, self._asyncio_views
        outer_loop = current_loop.set(lease)
        sender = ResponseSender(
            send,
            receiver,
            wants_body=scope["method"] != "HEAD",
            takes_paths="http.response.pathsend" in (scope.get("extensions") or ()),
        )
        signals = RequestSignals(type(self), scope, lease)
        state = RequestState(scope["path"], signals, lease, sender, body)
        exchange = Exchange(
            wait_disconnect=receiver.wait_disconnect,
            is_complete=lambda: sender.settled,
            lease=lease,
            patience=lambda: conf.get("SHUTDOWN_SECONDS"),
            name=state.path,
        )
        receiver.on_disconnect = exchange.abort
        exchange.limit_sending(
            sender, lambda: conf.get("SEND_TIMEOUT"), state.end_early
        )

        async def respond() -> None:
            state.response = await self._make_response(scope, state, refusal)
            await self._send(state, exchange)
            state.complete = True

        try:
            await exchange.run(respond)
        except ClientDisconnected:
            pass
        finally:
            try:
                await state.finish()
            finally:
                # It refers to the exchange, which refers to it.
                receiver.on_disconnect = None
                current_loop.reset(outer_loop)

    async def _make_response(
        self, scope: Scope, state: RequestState, refusal: HttpResponseBase | None
    ) -> HttpResponseBase:
        """Make the request, and have the middleware chain and the view answer it."""
        try:
            if refusal is not None:
                await state.signals.start()
                return refusal
            set_script_prefix(get_script_prefix(scope))
            if not makes_plain_requests(self):
                await state.signals.start()
            if scope.get("query_string", b"").isascii():
                request, error = self.create_request(scope, state.body_file)
            else:
                # One that is not UTF-8 is logged there: not on the loop.
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
            if ends_more(error):
                raise
            # Hooks that would have cleaned up in the thread were skipped.
            state.lease.retire = True
            return server_error(error, state.path, state.request)

    async def _send(self, state: RequestState, exchange: Exchange) -> None:
        """Send the response, or a plain 500 for one that cannot even be started.

        It is closed, like any other, when the request ends.
        """
        sender, response = state.sender, state.response
        assert response is not None
        send = functools.partial(self.send_response, response, sender)
        try:
            await send_answer(state, exchange, send)
        except BaseException as error:
            left = isinstance(error, ClientDisconnected)
            if sender.begun or left or ends_more(error):
                raise
            answer = server_error(error, state.path, state.request)
            await send_over_asgi(answer, sender, self.chunk_bytes)

    async def read_body(self, receive: Receive) -> IO[bytes]:
        """Read the body into a file, which is in memory up to a size, as in Django.

        What goes to disk is written in a thread. Not called for a view that starts
        before the body is there.

        Raises:
            RequestAborted: the client left before the body was complete.
            BodyTooLarge, BodyTimeout: it is answered 413, or 408.
        """
        return await spool_body(receive)

    async def send_response(self, response: HttpResponseBase, send: Send) -> None:
        """Send a response out over ASGI; the parts of a streamed one as they come.

        Nothing is read for the answer to HEAD. A whole file on disk is left to the
        server, if it offers that.
        """
        await send_over_asgi(response, send, self.chunk_bytes)

"""One request: everything it has, the sending of its response, and its end."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import trio
from django.http import HttpResponse

from trio_asgi import conf
from trio_asgi.asgi.exchange import Exchange
from trio_asgi.asgi.send import ResponseSender
from trio_asgi.errors import ends_more_than_request
from trio_asgi.islands.context import with_locals
from trio_asgi.response.files import sends_file
from trio_asgi.response.send import close_stream, end_body
from trio_asgi.threads.offload import log, settle_log

from .body_file import close_body

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from django.http import HttpRequest, HttpResponseBase

    from trio_asgi.asgi.receive import Receiver
    from trio_asgi.asgi.types import Scope, Send
    from trio_asgi.threads.lease import Lease

    from .signals import RequestSignals

logger = logging.getLogger("django.request")


@dataclass
class RequestState:
    """One request, until it has ended. Used by its task alone."""

    path: str
    signals: RequestSignals
    lease: Lease
    sender: ResponseSender
    body_file: IO[bytes]
    request: HttpRequest | None = None
    response: HttpResponseBase | None = None
    #: Whether everything has run, and nothing was cut short.
    complete: bool = False

    @property
    def response_to_close(self) -> HttpResponseBase | None:
        """The response; if it was cancelled on its way from the view, the view's.

        Without either: an empty one that closes the request, whose form may have files.
        """
        if self.response is not None or self.request is None:
            return self.response
        # A request of Django's own class has no such attribute until the view returns.
        response: Any = getattr(self.request, "view_response", None) or HttpResponse()
        if self.request.close not in response._resource_closers:
            response._resource_closers.append(self.request.close)
        return response  # type: ignore[no-any-return] # it has private attributes

    async def finish(self) -> None:
        """End the request, close its body, and tell the server of a response cut short.

        Shielded from cancellation.
        """
        if not self.complete:
            self.lease.retire = True
        try:
            await self.end()
        finally:
            await close_body(self.body_file)
            if not self.sender.handed_over:
                await self.sender.finish_cut_off()

    async def end(self) -> None:
        """Close the response, send ``request_finished``, and give the thread back.

        Shielded from cancellation. After ``CLEANUP_SECONDS`` the thread finishes this
        alone. Does nothing the second time.
        """
        lease, signals, response = self.lease, self.signals, self.response_to_close
        if not lease.open:
            return
        try:
            streaming = response is not None and response.streaming
            if not streaming and signals.finish_nowait(response):
                return
            with trio.move_on_after(conf.get("CLEANUP_SECONDS"), shield=True):
                try:
                    await close_stream(response)
                finally:
                    if not (lease.abandoned or signals.finish_nowait(response)):
                        lease.impatient = True
                        await signals.finish(response)
        finally:
            if lease.abandoned or lease.others_abandoned:
                message = "Left sync code running that does not end: %s"
                log(logger, logging.ERROR, message, self.path)
            last: Callable[[], object] | None = None
            if signals.pending:
                last = with_locals(functools.partial(signals.send_finished, response))
            lease.release(last=last)

    async def end_early(self) -> None:
        """End the request while its client does not read; only the sending continues.

        Errors are logged.
        """
        try:
            await self.end()
        except BaseException as error:
            if ends_more_than_request(error):
                raise
            message = "Error at the end of a request: %s"
            log(logger, logging.ERROR, message, self.path, error=error)
        await settle_log()


def prepare_request(
    scope: Scope,
    receiver: Receiver,
    send: Send,
    signals: RequestSignals,
    body: IO[bytes],
) -> tuple[RequestState, Exchange]:
    """Return a request's state, and what cancels it when its client leaves.

    The context that the request runs in must be the current one.
    """
    sender = ResponseSender(
        send,
        receiver,
        wants_body=scope["method"] != "HEAD",
        takes_paths="http.response.pathsend" in (scope.get("extensions") or ()),
    )
    state = RequestState(scope["path"], signals, signals.lease, sender, body)
    exchange = Exchange(
        wait_disconnect=receiver.wait_disconnect,
        is_complete=lambda: sender.settled,
        lease=signals.lease,
        patience=lambda: conf.get("SHUTDOWN_SECONDS"),
        name=state.path,
    )
    receiver.on_disconnect = exchange.abort
    exchange.limit_sending(sender, lambda: conf.get("SEND_TIMEOUT"), state.end_early)
    return state, exchange


async def send_answer(
    state: RequestState, exchange: Exchange, send: Callable[[], Awaitable[None]]
) -> None:
    """Send the response by ``send()``, holding no thread for a client that is slow.

    The thread goes back first if nothing of the request is left in it, or else after a
    second. A stream keeps it to the end, unless it sends a file.
    """
    response, lease, sender = state.response, state.lease, state.sender
    assert response is not None
    in_one_piece = not (response.streaming and sender.wants_body)
    threadless = (in_one_piece or sends_file(response)) and (
        not lease.has_thread or state.signals.release_thread_early(response)
    )
    # Sync code does not notice that the request was cancelled; a view may not, either.
    await trio.lowlevel.checkpoint_if_cancelled()
    if not in_one_piece:
        try:
            await send()
        except trio.Cancelled:
            if getattr(response, "ends_cleanly", False) and not exchange.aborted:
                await end_body(sender)
            raise
        return
    sender.in_one_piece = True
    exchange.stop_watching()
    if threadless:
        await sender.beside_body(send)
        return
    with exchange.sending_last(state.end_early):
        await sender.beside_body(send)

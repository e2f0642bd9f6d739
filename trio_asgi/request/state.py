"""One request: everything it has, the sending of its response, and its end."""

from __future__ import annotations

import functools
import io
import logging
from typing import IO, TYPE_CHECKING, Any

import trio
from django.http import HttpResponse

from trio_asgi import conf
from trio_asgi.asgi.exchange import Exchange
from trio_asgi.asgi.send import ResponseSender
from trio_asgi.errors import ends_more_than_request
from trio_asgi.islands.context import with_locals
from trio_asgi.response.files import sends_file
from trio_asgi.response.headers import response_start
from trio_asgi.response.send import FIRST_PIECE, close_stream, end_body
from trio_asgi.threads.offload import log, settle_log

from .body_file import close_body

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import TypeAlias

    from django.http import HttpRequest, HttpResponseBase

    from trio_asgi.asgi.receive import Receiver
    from trio_asgi.asgi.types import Scope, Send

    from .signals import RequestSignals

    SendResponse: TypeAlias = Callable[[HttpResponseBase, Send], Awaitable[None]]

logger = logging.getLogger("django.request")


class RequestState(Exchange):
    """One request, until it has ended. Used by its task alone."""

    request: HttpRequest | None = None
    response: HttpResponseBase | None = None
    #: Whether everything has run, and nothing was cut short.
    complete = False

    def __init__(
        self,
        scope: Scope,
        receiver: Receiver,
        send: Send,
        signals: RequestSignals,
        body_file: IO[bytes],
    ) -> None:
        """Prepare a request; its ``response`` is sent by ``send``."""
        sender = ResponseSender(
            send,
            receiver,
            wants_body=scope["method"] != "HEAD",
            takes_paths="http.response.pathsend" in (scope.get("extensions") or ()),
        )
        super().__init__(receiver, sender, signals.lease, scope["path"])
        self.signals = signals
        self.body_file = body_file

    @property
    def patience(self) -> float:
        """``SHUTDOWN_SECONDS``."""
        seconds: float = conf.get("SHUTDOWN_SECONDS")
        return seconds

    @property
    def send_timeout(self) -> float | None:
        """``SEND_TIMEOUT``."""
        seconds: float | None = conf.get("SEND_TIMEOUT")
        return seconds

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

    @property
    def finished(self) -> bool:
        """Whether `finish` has nothing left to do."""
        return (
            self.complete
            and self.sender.handed_over
            and type(self.body_file) is io.BytesIO
            and not self.lease.open
        )

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
        if self.end_nowait():
            return
        lease, signals, response = self.lease, self.signals, self.response_to_close
        try:
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

    def end_nowait(self) -> bool:
        """End the request if only memory is left to free; return whether it has ended.

        Nobody can tell when that happens. The thread goes back.
        """
        lease, response = self.lease, self.response_to_close
        if lease.open:
            streaming = response is not None and response.streaming
            if (
                streaming
                or lease.others_abandoned
                or not self.signals.finish_nowait(response)
            ):
                return False
            lease.release()
            # While the server sends, they would be in the way of garbage collections.
            self.request = self.response = None
        return True

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


async def send_answer(
    state: RequestState, send_response: SendResponse, *, small: int = -1
) -> None:
    """Send the response by ``send_response``, holding no thread for a slow client.

    The thread goes back first if nothing of the request is left in it, or else after a
    second. A stream keeps it to the end, unless it sends a file.

    A body of at most ``small`` bytes may be sent in one message, without a call of
    ``send_response``. If possible, the request ends before that message.
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
            await send_response(response, sender)
        except trio.Cancelled:
            ends = getattr(response, "ends_cleanly", False) and not state.aborted
            if ends and sender.begun and not sender.complete:
                await end_body(sender)
            raise
        return
    sender.in_one_piece = True
    state.stop_watching()
    content: Any = None if response.streaming else response.content  # type: ignore[attr-defined]
    if (
        content is not None
        and len(content) <= min(small, FIRST_PIECE)
        and threadless
        and state.receiver.complete
    ):
        size = len(content) if sender.wants_body else None
        start = response_start(response, size=size, is_http1=sender.is_http1)
        # The last message is a checkpoint. Objects that wait there cost garbage
        # collections time: keep no reference.
        del response
        await sender.send_whole(start, content, before_last=state.end_nowait)
        return
    send = functools.partial(send_response, response, sender)
    if threadless:
        await sender.beside_body(send)
        return
    with state.sending_last():
        await sender.beside_body(send)

"""``request_started`` and ``request_finished``: once each, in the request's thread.

Django itself connects receivers to both, which tidy up the thread: its database
connections, the caches, the URLconf. As long as nobody else listens, and there is
nothing to tidy up, no thread has to be taken for them. So ``request_started`` is sent
when a thread is taken, before anything else runs there, and ``request_finished`` is
left out if it would do nothing.
"""

from __future__ import annotations

import time
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

from django.core import signals
from django.core.cache import caches, close_caches
from django.core.handlers.base import reset_urlconf
from django.db import close_old_connections, connections, reset_queries
from django.db.backends.base import base as database_base
from django.db.backends.base.base import BaseDatabaseWrapper
from django.dispatch import Signal, dispatcher
from django.urls import set_urlconf

from trio_asgi.bridge.connections import keep_connections, tidy_up
from trio_asgi.bridge.hop import hop
from trio_asgi.bridge.originals import Original
from trio_asgi.islands.context import with_locals

from .closing import close_on_loop, closes_anywhere, closes_nothing, has_caches_to_close
from .errors import guard_closers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.http.response import HttpResponseBase

    from trio_asgi.asgi.types import Scope
    from trio_asgi.threads.lease import Lease

_UNTIDY: Final = -1


class RequestSignals:
    """The two signals of one request.

    Made and asked in the request's task; what says "worker thread" runs in its thread,
    while that task waits.
    """

    def __init__(self, sender: type[Any], scope: Scope, lease: Lease) -> None:
        """Send nothing yet, but when the lease takes its thread.

        Args:
            sender: The handler's class, which is the sender of both.
            scope: The request's scope, which goes with ``request_started``.
            lease: Leads to the request's thread. If that and its connections are a
                test's, Django's receiver of both signals must not close them.
        """
        self._sender = sender
        self._scope = scope
        self._lease = lease
        self._around = keep_connections if lease.borrowed else nullcontext
        self._started = False
        self._finished = False
        #: After how many calls the thread was found to be tidy.
        self._tidy_calls = 0
        #: Whether somebody waits for ``request_started``: it comes before all else.
        self.start_first = not _djangos_of_start.are_alone()
        lease.on_take = with_locals(self._send_started)
        lease.on_return = self._note_tidiness

    @property
    def pending(self) -> bool:
        """Whether the request's end is still to be signalled."""
        return not self._finished and (self._started or not self.start_first)

    async def start(self) -> None:
        """Send ``request_started`` now, if somebody waits for it."""
        if self.start_first and not self._started:
            await hop(lambda: None)  # the lease's `on_take` does it

    def release_thread_early(self, response: HttpResponseBase) -> bool:
        """Give the thread back if nothing of the request is left in it; say whether.

        A file can be read in any thread; that it has to be closed is no reason to keep
        this one.
        """
        if self._lease.retire or not (closes_anywhere(response) and self._is_tidy()):
            return False
        self._lease.release_idle_thread(on_take=close_old_connections)
        return True

    def finish_nowait(self, response: HttpResponseBase | None) -> bool:
        """End the request here if its thread has nothing to do; say whether."""
        if not self.needs_no_thread(response):
            return False
        self._finished = True
        if response is not None:
            close_on_loop(response)
        set_urlconf(None)
        return True

    async def finish(self, response: HttpResponseBase | None) -> None:
        """Close the response and send ``request_finished``, once, if it has started."""
        if self.pending:
            await hop(lambda: self.send_finished(response))

    def _send_started(self) -> None:
        """Send ``request_started``. Worker thread."""
        # Noted first: even if a receiver fails, others may have been called, and want
        # to hear of the end.
        self._started = True
        # What a receiver begins in the thread, another ends with the request.
        self._lease.unfinished = self.start_first
        with self._around(), self._retiring():
            signals.request_started.send(sender=self._sender, scope=self._scope)

    @contextmanager
    def _retiring(self) -> Iterator[None]:
        """Retire the thread if a receiver fails: those after it are not called."""
        try:
            yield
        except BaseException:
            self._lease.retire = True
            raise

    def send_finished(self, response: HttpResponseBase | None) -> None:
        """Close the response, if there is one, and send ``request_finished`` once.

        Does nothing the second time, nor if the request has not started. Worker thread.
        """
        if not self.pending:
            return
        self._finished = True
        try:
            with self._around(), self._retiring():
                if response is None:
                    signals.request_finished.send(sender=self._sender)
                else:
                    # Django sends the signal from there.
                    response._handler_class = self._sender  # type: ignore[attr-defined]
                    guard_closers(response)
                    response.close()
        finally:
            if not self._lease.borrowed:
                tidy_up()

    def tidy_early(self, response: HttpResponseBase) -> None:
        """Tidy the thread up while the request is there. Worker thread.

        So its end needs no hop, if nothing else of the request runs there after this.
        """
        if closes_anywhere(response) and _djangos_of_finish.are_alone():
            self._tidy_up()

    def _tidy_up(self) -> None:
        with self._around():
            close_old_connections()

    def _note_tidiness(self) -> None:
        """Note whether the connections may stay as they are. Worker thread."""
        used = connections.all(initialized_only=True)
        tidy = all(_may_stay(connection) for connection in used)
        self._tidy_calls = self._lease.calls if tidy else _UNTIDY

    def needs_no_thread(self, response: HttpResponseBase | None) -> bool:
        """Whether the request's end has nothing to do there. The request's task."""
        return self._is_tidy() and (response is None or closes_nothing(response))

    def _is_tidy(self) -> bool:
        """Whether Django's receivers have nothing to do there, and no other listens."""
        return (
            self.pending
            and not self._lease.abandoned
            and (
                self._lease.calls == self._tidy_calls
                # It was given back, and tidied up then.
                or not (self._lease.has_thread or self._lease.borrowed)
            )
            and _djangos_of_finish.are_alone()
            and not has_caches_to_close()
        )


class _Djangos:
    """The receivers that Django itself connects to a signal."""

    def __init__(self, signal: Signal, *receivers: Callable[..., Any]) -> None:
        self._signal = signal
        self._keys = {(id(receiver), id(None)) for receiver in receivers}

    def are_alone(self) -> bool:
        """Whether all of them are connected, and no other, nor a tool that listens."""
        connected = self._signal.receivers
        return (
            len(connected) == len(self._keys)
            and all(entry[0] in self._keys for entry in connected)
            and are_sent_as_written()
        )


_SEND = Original(Signal.send, dispatcher)
_LIVE_RECEIVERS = Original(Signal._live_receivers, dispatcher)


def are_sent_as_written() -> bool:
    """Whether signals are sent by Django's code alone; if not, a tool listens."""
    return _SEND.is_code_of(Signal.send) and _LIVE_RECEIVERS.is_code_of(
        Signal._live_receivers
    )


_djangos_of_start = _Djangos(
    signals.request_started, reset_queries, close_old_connections
)
_djangos_of_finish = _Djangos(
    signals.request_finished, close_caches, close_old_connections, reset_urlconf
)


_CLOSE_IF_OBSOLETE = Original(
    BaseDatabaseWrapper.close_if_unusable_or_obsolete, database_base
)


def _may_stay(connection: BaseDatabaseWrapper) -> bool:
    """Whether `close_old_connections` would leave a connection alone."""
    if connection.connection is None:
        return True
    return not (
        connection.errors_occurred
        or connection.in_atomic_block
        or connection.autocommit != connection.settings_dict["AUTOCOMMIT"]
        or (connection.close_at is not None and time.monotonic() >= connection.close_at)
        # Another one may have more reasons.
        or not _CLOSE_IF_OBSOLETE.is_code_of(
            type(connection).close_if_unusable_or_obsolete
        )
    )


def disown_caches() -> None:
    """Close the caches that were used here, and have no request inherit them.

    A server's tasks have the context in which the server was started. A cache that was
    used at start-up would be the same one for all requests, in many threads at a time.
    """
    close_caches()
    for alias in caches.settings:
        if hasattr(caches._connections, alias):  # type: ignore[attr-defined]
            del caches[alias]

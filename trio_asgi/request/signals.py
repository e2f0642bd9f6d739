"""``request_started`` and ``request_finished``: once each, in the request's thread.

Django's own receivers tidy up the thread: its database connections, the caches, the
URLconf. If nobody else listens and there is nothing to tidy up, the signals need no
thread. So ``request_started`` is sent when a thread is taken, before anything else runs
there, and ``request_finished`` is left out if it would do nothing.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final

from django.core import signals
from django.core.cache import close_caches
from django.core.handlers.base import reset_urlconf
from django.db import close_old_connections, reset_queries
from django.db.backends.base import base as database_base
from django.db.backends.base.base import BaseDatabaseWrapper
from django.dispatch import Signal, dispatcher
from django.urls import set_urlconf

from trio_asgi.bridge.connections import keep_connections, tidy_up, used_connections
from trio_asgi.bridge.hop import hop
from trio_asgi.bridge.originals import Original
from trio_asgi.islands.context import take_locals
from trio_asgi.response.files import sends_file
from trio_asgi.threads.call import calling

from .closing import close_on_loop, closes_anywhere, closes_nothing, has_caches_to_close
from .errors import guard_closers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from django.http.response import HttpResponseBase

    from trio_asgi.asgi.types import Scope
    from trio_asgi.threads.lease import Lease

_UNSOUND: Final = -1


class RequestSignals:
    """The two signals of one request. Used by the request's task.

    Methods marked "worker thread" run in the request's thread while that task waits.
    """

    def __init__(self, sender: type[Any], scope: Scope, lease: Lease) -> None:
        """Send nothing until the lease takes its thread.

        The sender of both signals is the handler's class. If the lease has a thread of
        a test, Django's receivers do not close the connections there.
        """
        self._sender = sender
        self._scope = scope
        self.lease = lease
        self._around = keep_connections if lease.borrowed else nullcontext
        self._started = False
        self._finished = False
        #: How many calls had run when the connections were last found sound.
        self._sound_calls = 0
        #: Whether one of them was to be closed then.
        self._has_old = False
        #: Whether nothing of the request runs in the thread after the running call.
        self._ends_here = False
        #: The thread's connections, if they were just looked at.
        self._used: Sequence[BaseDatabaseWrapper] | None = None
        #: Whether ``request_started`` comes before all else, since others listen, too.
        self.start_first = not _djangos_of_start.are_alone()
        lease.on_take = self._send_started
        lease.on_return = self._note_tidiness

    @property
    def pending(self) -> bool:
        """Whether the request's end is still to be signalled."""
        return not self._finished and (self._started or not self.start_first)

    async def start(self) -> None:
        """Send ``request_started`` now, unless only Django listens."""
        if self.start_first and not self._started:
            await hop(lambda: None)  # the lease's `on_take` does it

    def release_thread_early(self, response: HttpResponseBase) -> bool:
        """Give the thread back if nothing of the request is left in it; say whether.

        A file that must be read and closed does not count: any thread can do that. Nor
        do old connections: the thread closes those before its next user comes.
        """
        lease = self.lease
        old = self._has_old and lease.has_thread
        if lease.retire or not closes_anywhere(response):
            return False
        if not self._ends_quietly(besides_old=old):
            return False
        last = tidy_up if old else None
        lease.release_idle_thread(last, on_take=close_old_connections)
        return True

    def finish_nowait(self, response: HttpResponseBase | None) -> bool:
        """End the request on the loop if the thread has nothing to do; say whether."""
        if not self._ends_quietly() or not (
            response is None or closes_nothing(response)
        ):
            return False
        self._finished = True
        if response is not None:
            close_on_loop(response)
        set_urlconf(None)
        return True

    async def finish(self, response: HttpResponseBase | None) -> None:
        """Close the response and send ``request_finished`` in the request's thread."""
        if self.pending:
            await hop(lambda: self.send_finished(response))

    def _send_started(self) -> None:
        """Send ``request_started``. Worker thread."""
        # Noted first: if one receiver fails, others may have been called before, and
        # need to know when the request ends.
        self._started = True
        # A receiver may begin something in the thread that ends only with the request.
        self.lease.unfinished = self.start_first
        try:
            if not self.lease.borrowed and _djangos_of_start.are_alone():
                # What sending would do, in a tenth of the time.
                if used_connections():
                    take_locals()
                    reset_queries()
                    close_old_connections()
                return
            take_locals()
            with self._around():
                signals.request_started.send(sender=self._sender, scope=self._scope)
        except BaseException:
            self.lease.retire = True  # later receivers are not called
            raise

    def send_finished(self, response: HttpResponseBase | None) -> None:
        """Close the response, if there is one, and send ``request_finished``.

        Does nothing unless the signal is `pending`. Worker thread.
        """
        if not self.pending:
            return
        self._finished = True
        try:
            with self._around():
                if response is None:
                    signals.request_finished.send(sender=self._sender)
                else:
                    # HttpResponseBase.close() sends the signal.
                    response._handler_class = self._sender  # type: ignore[attr-defined]
                    guard_closers(response)
                    response.close()
        except BaseException:
            self.lease.retire = True  # later receivers are not called
            raise
        finally:
            if not self.lease.borrowed:
                tidy_up()

    def tidy_early(self, response: HttpResponseBase, *, nothing_follows: bool) -> None:
        """Close old connections while the request is in its thread. Worker thread.

        Unless more of the request runs there later, its end then needs no hop, and the
        thread goes back when the running call ends: see `release_thread_early`.

        Args:
            response: What the middleware chain has returned.
            nothing_follows: Whether no code of the project runs between the end of the
                chain and the sending of the response.
        """
        if closes_anywhere(response) and _djangos_of_finish.are_alone():
            self._used = used_connections()
            with self._around():
                for connection in self._used:
                    connection.close_if_unusable_or_obsolete()
            is_stream = response.streaming and not sends_file(response)
            call = calling()
            self._ends_here = (
                nothing_follows
                and not (is_stream or self.lease.borrowed)
                and (call is not None and call.loop is self.lease)
            )

    def _note_tidiness(self) -> None:
        """Note whether the connections can stay open. Worker thread."""
        used, self._used = self._used, None
        if used is None:
            used = used_connections()
        sound = all(map(_is_sound, used))
        self._sound_calls = self.lease.calls if sound else _UNSOUND
        self._has_old = any(map(_is_old, used))
        if self._ends_here:
            # As `_ends_quietly`, without what `tidy_early` has just found.
            self._ends_here = False
            if (
                sound
                and self.pending
                and not (self._has_old or self.lease.abandoned or has_caches_to_close())
            ):
                self.lease.on_take, self.lease.done = close_old_connections, True

    def _ends_quietly(self, *, besides_old: bool = False) -> bool:
        """Whether Django's receivers have nothing to do, and nobody else listens.

        If ``besides_old``, closing old connections is nothing.
        """
        lease = self.lease
        return (
            self.pending
            and not lease.abandoned
            and (
                # The thread was given back, and tidied up then.
                not (lease.has_thread or lease.borrowed)
                or (
                    lease.calls == self._sound_calls
                    and (besides_old or not self._has_old)
                )
            )
            and _djangos_of_finish.are_alone()
            and not has_caches_to_close()
        )


class _DjangoReceivers:
    """The receivers that Django connects to a signal."""

    def __init__(self, signal: Signal, *receivers: Callable[..., Any]) -> None:
        self._signal = signal
        self._keys = {(id(receiver), id(None)) for receiver in receivers}
        #: What was connected when they were last found alone.
        self._alone: list[Any] = []

    def are_alone(self) -> bool:
        """Whether they are all connected, and neither others nor a tool listen."""
        connected = self._signal.receivers
        if connected != self._alone:
            # A copy: another thread may connect a receiver meanwhile.
            seen = [*connected]
            if {entry[0] for entry in seen} != self._keys:
                return False
            self._alone = seen
        return _SEND.is_code_of(Signal.send) and _LIVE_RECEIVERS.is_code_of(
            Signal._live_receivers
        )


#: Where one of these was replaced, a tool listens.
_SEND = Original(Signal.send, dispatcher)
_LIVE_RECEIVERS = Original(Signal._live_receivers, dispatcher)

_djangos_of_start = _DjangoReceivers(
    signals.request_started, reset_queries, close_old_connections
)
_djangos_of_finish = _DjangoReceivers(
    signals.request_finished, close_caches, close_old_connections, reset_urlconf
)


_CLOSE_IF_OBSOLETE = Original(
    BaseDatabaseWrapper.close_if_unusable_or_obsolete, database_base
)


def _is_sound(connection: BaseDatabaseWrapper) -> bool:
    """Whether `close_old_connections` can at most find that a connection is old.

    Otherwise it may talk to the database, which can take long.
    """
    if connection.connection is None:
        return True
    return not (
        connection.errors_occurred
        or connection.in_atomic_block
        or connection.autocommit != connection.settings_dict["AUTOCOMMIT"]
        # A backend's own method may have more reasons.
        or not _CLOSE_IF_OBSOLETE.is_code_of(
            type(connection).close_if_unusable_or_obsolete
        )
    )


def _is_old(connection: BaseDatabaseWrapper) -> bool:
    """Whether `close_old_connections` would close a connection for its age."""
    close_at = connection.close_at
    return (
        connection.connection is not None
        and close_at is not None
        and time.monotonic() >= close_at
    )

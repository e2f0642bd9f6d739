"""One request and its response, and what cancels them.

run(respond)                      the watcher, in the same nursery
────────────                      ────────────────────────────────
respond() runs                    starts after `WATCH_SECONDS`, and waits for the
                                  disconnect
   ◄──────────── cancels ───────  the client has left
respond() has ended ─ cancels ─►
   ◄── stops its waiting for ───  the server has cancelled both, and `patience`
     threads and asyncio code     seconds have passed
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import trio

from trio_asgi.threads.abandon import Abandoner

from .connection import reset_connection
from .nursery import run_in_nursery
from .timers import current_timer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from trio_asgi.threads.lease import Lease

    from .receive import Receiver
    from .send import ResponseSender
    from .timers import Timer

#: How long a request runs before its watcher starts; on a test's clock, not at all.
#: Most end before, and save the cost of a task.
WATCH_SECONDS: Final = 0.05

#: Seconds that a last message may wait for the client; then the request ends beside it.
SEND_SECONDS: Final = 1.0

#: How often to check on a waiting message within the time that it may take.
CHECKS: Final = 4


class Exchange(ABC):
    """Runs the code that answers a request, until it ends or the client leaves.

    Owned by the request's task. Adds no exception group around an error of ``respond``.
    """

    #: Whether to watch: until the response is made, if it is in one piece, or else
    #: until it is sent.
    _answering = True
    #: What the watching has raised.
    _error: Exception | None = None
    #: The watcher's shielded wait after the server has cancelled the request.
    _last_wait: trio.CancelScope | None = None
    #: Calls `_begin_to_watch`, and later `_check_sending`.
    _timer: Timer[Exchange]
    #: Which message waited at the last check, and at how many checks so far.
    _turn = _checks = 0
    #: When the request began, after its body if that is read first; by Trio's clock.
    began_at: float

    _nursery: trio.Nursery

    def __init__(
        self, receiver: Receiver, sender: ResponseSender, lease: Lease, path: str
    ) -> None:
        """Prepare, but start nothing yet.

        Args:
            receiver: Waits until the client has left.
            sender: Knows whether the server has got all of the response, or will. Then
                a disconnect must not cancel the sending.
            lease: The lease of the thread in which the request's sync code runs.
            path: The request's name in the log.
        """
        self.receiver = receiver
        self.sender = sender
        self.lease = lease
        self.path = path
        #: What a disconnect cancels.
        self._scope = trio.CancelScope()

    # For subclasses

    @property
    @abstractmethod
    def patience(self) -> float:
        """For how many seconds to wait for sync code that the server has cancelled.

        The server does that at its shutdown.
        """

    @property
    @abstractmethod
    def send_timeout(self) -> float | None:
        """How many seconds each message may wait for the client; None: no limit.

        At most a quarter more. After that, the request ends as if the client had left.
        """

    @abstractmethod
    async def end_early(self) -> None:
        """End the request while its client does not read; only the sending continues.

        Runs in a separate task, is waited for, and must not raise.
        """

    # For the request's task

    async def run(self, respond: Callable[[], Awaitable[None]]) -> None:
        """Run ``respond()`` to its end, or until a disconnect cancels it.

        Raises:
            Exception: from ``respond``, or else from the watching.
            trio.Cancelled: the server has cancelled the request.
        """

        async def respond_in_scope() -> None:
            with self._scope:
                await respond()

        self._timer = current_timer(WATCH_SECONDS, Exchange._begin_to_watch, real=True)
        if not self.receiver.complete:
            self.receiver.on_disconnect = self.abort
        try:
            await run_in_nursery(self._begin, respond_in_scope, stop=self.stop_watching)
        finally:
            self._timer.end(self)
            # It refers back to this object: leave no cycle behind.
            self.receiver.on_disconnect = None
        if self._error is not None:
            error, self._error = self._error, None
            try:
                raise error
            finally:
                # Its traceback holds this frame: leave no cycle behind.
                del error

    def _begin(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.began_at = self._timer.begin(self)

    def abort(self) -> None:
        """Cancel ``respond``, unless all of the response was handed to the server.

        Called when the client has left.
        """
        if not self.sender.settled:
            self._scope.cancel()

    @property
    def aborted(self) -> bool:
        """Whether the client has left, or waiting for that has failed."""
        return self._scope.cancel_called

    def stop_watching(self) -> None:
        """Start no watcher from now on. One that already runs stays.

        Also called when a response in one piece has been made: all that is left is to
        send it, which no server cancels.
        """
        self._answering = False
        if self._last_wait is not None:
            self._last_wait.cancel()

    @contextmanager
    def sending_last(self) -> Iterator[None]:
        """Call `end_early` once if the block takes longer than `SEND_SECONDS`.

        For the sending of a response in one piece: while the client does not read, the
        server blocks, and cannot be cancelled.
        """
        timer = current_timer(SEND_SECONDS, Exchange._start_end_early)
        timer.begin(self)
        try:
            yield
        finally:
            timer.end(self)

    # Beside the request's task

    def _start(self, async_fn: Callable[[], Awaitable[None]]) -> None:
        """Start a task in the nursery, in a copy of the request's context.

        It has the request's changes so far, such as the caches that it has used.
        """
        context = self._nursery.parent_task.context.copy()
        context.run(self._nursery.start_soon, async_fn)

    def _start_end_early(self) -> None:
        self._start(self.end_early)

    def _begin_to_watch(self) -> None:
        if (seconds := self.send_timeout) is not None:
            self._timer = current_timer(seconds / CHECKS, Exchange._check_sending)
            self._timer.begin(self)
        if self._answering:
            self._start(self._watch)

    def _check_sending(self) -> None:
        sender = self.sender
        if sender.waiting is None or sender.turn != self._turn:
            self._turn, self._checks = sender.turn, 0
        else:
            self._checks += 1
        if self._checks < CHECKS:
            self._timer.begin(self)
        else:
            self._give_up(sender)

    def _give_up(self, sender: ResponseSender) -> None:
        """End the waiting of the sender.

        Servers shield their writing in HTTP/1, so the connection is reset, an error
        that they handle. Otherwise the request is cancelled. If neither helps, the
        sending waits on, and the rest of the request ends beside it.
        """
        task = sender.waiting
        assert task is not None

        async def end_beside() -> None:
            await trio.sleep(SEND_SECONDS)
            if sender.waiting is task:
                await self.end_early()

        sender.given_up = True
        # An HTTP/2 connection also carries other requests.
        if not (sender.is_http1 and reset_connection(task)):
            self._scope.cancel()
        self._start(end_beside)

    async def _watch(self) -> None:
        try:
            try:
                await self.receiver.wait_disconnect()
            except Exception as error:  # noqa: BLE001 - run() raises it
                self._error = error
                self._scope.cancel()
            else:
                self.abort()
            await trio.sleep_forever()
        except trio.Cancelled:
            if self._answering:
                with trio.CancelScope(shield=True) as self._last_wait:
                    await trio.sleep(self.patience)
                    self.lease.stop_waiting()
                    task = self._nursery.parent_task
                    await Abandoner(task, 0, whose=self.path).run()
            raise

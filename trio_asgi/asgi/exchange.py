"""One request and its response: who cancels whom.

run(respond)                      the watcher, in the same nursery
────────────                      ────────────────────────────────
respond() runs                    starts when respond() has to wait, and waits for
                                  the disconnect
   ◄──────────── cancels ───────  the client has left
respond() has ended ─ cancels ─►
   ◄── stops its waiting for ───  the server has cancelled both, and ``patience()``
     threads and asyncio code     seconds have passed
"""

from __future__ import annotations

import contextvars
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from trio_asgi.threads.abandon import Abandoner

from .connection import reset_connection
from .nursery import run_in_nursery
from .timers import Timer, current_timers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from trio_asgi.threads.lease import Lease

    from .send import ResponseSender

    AsyncFn: TypeAlias = Callable[[], Awaitable[None]]

#: Seconds that a last message may wait for the client; then the request ends beside it.
SEND_SECONDS: Final = 1.0

#: How often to check on a waiting message within the time that it may take.
CHECKS: Final = 4


class Exchange:
    """Runs the code that answers a request, until it ends or the client leaves.

    Owned by the request's task. Adds no exception group around an error of ``respond``.
    """

    def __init__(
        self,
        *,
        wait_disconnect: AsyncFn,
        is_complete: Callable[[], bool],
        lease: Lease,
        patience: Callable[[], float],
        name: str,
    ) -> None:
        """Prepare, but start nothing yet.

        Args:
            wait_disconnect: Waits until the client has left. Called once.
            is_complete: Returns whether the server has got all of the response, or
                will. Then a disconnect must not cancel the sending.
            lease: The lease of the thread in which the request's sync code runs.
            patience: Returns for how many seconds to wait for sync code that still runs
                after the server has cancelled the request, as it does at its shutdown.
            name: The request's name in the log.
        """
        self._wait_disconnect = wait_disconnect
        self._is_complete = is_complete
        self._lease = lease
        self._patience = patience
        self._name = name
        #: Whether to watch: until the response is made, if it is in one piece, or else
        #: until it is sent.
        self._answering = True
        self._error: Exception | None = None
        #: What a disconnect cancels.
        self._scope = trio.CancelScope()
        #: The watcher's shielded wait after the server has cancelled the request.
        self._last_wait: trio.CancelScope | None = None
        self._nursery: trio.Nursery | None = None
        self._context = contextvars.copy_context()
        #: The arguments of `limit_sending`.
        self._limit: (
            tuple[ResponseSender, Callable[[], float | None], AsyncFn] | None
        ) = None
        #: Calls `_check_sending`; None if there is no limit.
        self._timer: Timer | None = None
        #: Which message waited at the last check, and at how many checks so far.
        self._turn = self._checks = 0

    async def run(self, respond: AsyncFn) -> None:
        """Run ``respond()`` to its end, or until a disconnect cancels it.

        Raises:
            Exception: from ``respond``, or else from ``wait_disconnect``.
            trio.Cancelled: the server has cancelled the request.
        """

        async def respond_in_scope() -> None:
            with self._scope:
                await respond()

        try:
            await run_in_nursery(self._begin, respond_in_scope, stop=self.stop_watching)
        finally:
            # It refers to the request, which should not live as long as this object.
            self._limit = None
            if self._timer is not None:
                self._timer.end(self._check_sending)
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            # Its traceback holds this frame: leave no cycle behind.
            del error

    def abort(self) -> None:
        """Cancel ``respond``, unless all of the response was handed to the server.

        Called when the client has left.
        """
        if not self._is_complete():
            self._scope.cancel()

    @property
    def aborted(self) -> bool:
        """Whether the client has left, or waiting for that has failed."""
        return self._scope.cancel_called

    @contextmanager
    def sending_last(self, end_early: AsyncFn) -> Iterator[None]:
        """Call ``end_early()`` once if the block takes longer than `SEND_SECONDS`.

        For the sending of a response in one piece: while the client does not read, the
        server blocks, and cannot be cancelled.

        Args:
            end_early: Runs in a separate task, is waited for, and must not raise.
        """
        nursery, timer = self._nursery, current_timers().timer(SEND_SECONDS)
        # With the request's changes so far, such as the caches that it has used.
        context = contextvars.copy_context()
        assert nursery is not None

        def begin() -> None:
            context.run(nursery.start_soon, end_early)

        timer.begin(begin)
        try:
            yield
        finally:
            timer.end(begin)

    def limit_sending(
        self,
        sender: ResponseSender,
        seconds: Callable[[], float | None],
        end_early: AsyncFn,
    ) -> None:
        """End ``respond`` as if the client had left, when a message waits too long.

        A timer checks on the sender, so sending a message costs no more than before.

        Args:
            sender: Sends the messages that may wait for the client.
            seconds: Returns how long each may wait, in seconds (a quarter more at
                most); None for no limit. Called if the request does not end at once.
            end_early: As in `sending_last`; called if nothing else ends the waiting.
        """
        self._limit = sender, seconds, end_early

    def _check_sending(self) -> None:
        assert self._limit is not None
        assert self._timer is not None
        sender, _, end_early = self._limit
        if sender.waiting is None or sender.turn != self._turn:
            self._turn, self._checks = sender.turn, 0
        else:
            self._checks += 1
        if self._checks < CHECKS:
            self._timer.begin(self._check_sending)
        else:
            self._give_up(sender, end_early)

    def _give_up(self, sender: ResponseSender, end_early: AsyncFn) -> None:
        """End the waiting of the sender.

        Servers shield their writing in HTTP/1, so the connection is reset, an error
        that they handle. Otherwise the request is cancelled. If neither helps, the
        sending waits on, and the rest of the request ends beside it.
        """
        nursery, task = self._nursery, sender.waiting
        assert nursery is not None
        assert task is not None

        async def end_beside() -> None:
            await trio.sleep(SEND_SECONDS)
            if sender.waiting is task:
                await end_early()

        sender.given_up = True
        # An HTTP/2 connection also carries other requests.
        if not (sender.is_http1 and reset_connection(task)):
            self._scope.cancel()
        task.context.copy().run(nursery.start_soon, end_beside)

    def _begin(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        current_timers().call_soon(self._begin_to_watch)

    def _begin_to_watch(self) -> None:
        if self._limit is not None and (seconds := self._limit[1]()) is not None:
            self._timer = current_timers().timer(seconds / CHECKS)
            self._timer.begin(self._check_sending)
        if self._answering:
            assert self._nursery is not None
            self._context.run(self._nursery.start_soon, self._watch)

    def stop_watching(self) -> None:
        """Start no watcher from now on. One that already runs stays.

        Also called when a response in one piece has been made: all that is left is to
        send it, which no server cancels.
        """
        self._answering = False
        if self._last_wait is not None:
            self._last_wait.cancel()

    async def _watch(self) -> None:
        try:
            try:
                await self._wait_disconnect()
            except Exception as error:  # noqa: BLE001 - run() raises it
                self._error = error
                self._scope.cancel()
            else:
                self.abort()
            await trio.sleep_forever()
        except trio.Cancelled:
            if self._answering:
                with trio.CancelScope(shield=True) as self._last_wait:
                    await trio.sleep(self._patience())
                    self._lease.stop_waiting()
                    assert self._nursery is not None
                    task = self._nursery.parent_task
                    await Abandoner(task, 0, whose=self._name).run()
            raise

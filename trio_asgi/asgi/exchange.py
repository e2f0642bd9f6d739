"""One request and its response: who cancels whom.

run(respond)                      a watcher, in the same nursery
────────────                      ──────────────────────────────
respond() runs                    comes when respond() has to wait for something,
                                  and waits for the disconnect
   ◄──────────── cancels ───────  the client has left
respond() has ended ─ cancels ─►
   ◄───── stops waiting for ────  the server has cancelled both, and the patience
     threads and asyncio's code   with what runs on all the same is at its end

A last message that is not taken for a second lets another task come, which ends what
can be ended before it is.
"""

from __future__ import annotations

import contextvars
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import trio

from trio_asgi.threads.abandon import Abandoner

from .connection import reset_connection
from .nursery import run_in_nursery
from .timers import current_timers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from trio_asgi.threads.lease import Lease

    from .send import ResponseSender


#: For how long a last message may wait for the client, before the rest is ended.
SEND_SECONDS: Final = 1.0

#: How often a message that is waited for is looked at, in the time that it may take.
LOOKS: Final = 4


class _Limit:
    """How long a client may leave a message of the response to the server."""

    def __init__(
        self,
        seconds: float,
        sender: ResponseSender,
        end_early: Callable[[], Awaitable[None]],
    ) -> None:
        #: What looks now and then.
        self.timer = current_timers().timer(seconds / LOOKS)
        self.sender = sender
        self.end_early = end_early
        #: Which message was waiting at the last look, and at how many looks it was.
        self._turn = self._looks = 0

    def is_over(self) -> bool:
        """Look; whether the same message has been waiting for too long."""
        if self.sender.waiting is None or self.sender.turn != self._turn:
            self._turn, self._looks = self.sender.turn, 0
            return False
        self._looks += 1
        return self._looks >= LOOKS


class Exchange:
    """Runs what answers a request, until it is done or the client has left.

    Owned by the request's task. No exception group leaves it that did not come out of
    ``respond`` as a group.
    """

    def __init__(
        self,
        *,
        wait_disconnect: Callable[[], Awaitable[None]],
        is_complete: Callable[[], bool],
        lease: Lease,
        patience: Callable[[], float],
        name: str,
    ) -> None:
        """Prepare, and start nothing yet.

        Args:
            wait_disconnect: Waits until the client has left. Called once.
            is_complete: Tells whether all of the response was handed to the server, or
                will be. Then a disconnect is no abort, and must not cancel the sending.
            lease: Whose thread the request's sync code runs in.
            patience: Tells for how many seconds to wait for sync code that runs on when
                the server cancels the request, as it does at its shutdown.
            name: What the log says of the request.
        """
        self._wait_disconnect = wait_disconnect
        self._is_complete = is_complete
        self._lease = lease
        self._patience = patience
        self._name = name
        #: Whether it is worth watching: until the response is made, if it is in one
        #: piece, and else until it is sent.
        self._answering = True
        self._error: Exception | None = None
        #: What a disconnect cancels.
        self._scope = trio.CancelScope()
        #: Where the watcher waits on after the server has cancelled the request.
        self._last_wait: trio.CancelScope | None = None
        self._nursery: trio.Nursery | None = None
        self._context = contextvars.copy_context()
        #: Makes the limit of `limit_sending`, if the request does not end at once.
        self._make_limit: Callable[[], _Limit | None] | None = None
        self._limit: _Limit | None = None

    async def run(self, respond: Callable[[], Awaitable[None]]) -> None:
        """Run ``respond()`` to its end, or until a disconnect has cut it short.

        Raises:
            Exception: what ``respond`` raised, or else ``wait_disconnect``.
            trio.Cancelled: the server has cancelled the request.
        """

        async def respond_in_scope() -> None:
            with self._scope:
                await respond()

        try:
            await run_in_nursery(self._begin, respond_in_scope, stop=self.stop_watching)
        finally:
            # It refers to the request, and this may be kept for a moment.
            self._make_limit = None
            limit, self._limit = self._limit, None
            if limit is not None:
                limit.timer.end(self._look_at_sending)
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            # Its traceback holds this frame: leave no cycle behind.
            del error

    def abort(self) -> None:
        """Cut ``respond`` short, unless all of the response was handed to the server.

        Called when the client has left.
        """
        if not self._is_complete():
            self._scope.cancel()

    @property
    def aborted(self) -> bool:
        """Whether the client has left, or what waits for that has failed."""
        return self._scope.cancel_called

    @contextmanager
    def sending_last(self, end_early: Callable[[], Awaitable[None]]) -> Iterator[None]:
        """Surround the sending of a response in one piece.

        Servers block the last message, and cannot be cancelled, while the client does
        not read.

        Args:
            end_early: Called once, in a task of its own, if it takes longer than
                `SEND_SECONDS`. It is waited for, and must not raise.
        """
        nursery, timer = self._nursery, current_timers().timer(SEND_SECONDS)
        # With what the request has left in it, as the caches that it has used.
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
        end_early: Callable[[], Awaitable[None]],
    ) -> None:
        """End ``respond`` as if the client had left, when it takes a message too late.

        That is looked at now and then, so that it costs no message anything; and a
        request that is over in a moment costs nothing either.

        Args:
            sender: What waits for the client.
            seconds: Tells for how long it may do so, and at most a quarter longer;
                None: for ever.
            end_early: Called as that of `sending_last`, if nothing ends the waiting.
        """

        def make_limit() -> _Limit | None:
            allowed = seconds()
            if allowed is None:
                return None
            return _Limit(allowed, sender, end_early)

        self._make_limit = make_limit

    def _look_at_sending(self) -> None:
        limit = self._limit
        assert limit is not None
        if limit.is_over():
            self._give_up(limit.sender, limit.end_early)
        else:
            limit.timer.begin(self._look_at_sending)

    def _give_up(
        self, sender: ResponseSender, end_early: Callable[[], Awaitable[None]]
    ) -> None:
        """Have the waiting end.

        A cancellation is no help while bytes are written, for servers shield that. So
        the connection is reset, which they know. Where neither helps, the sending waits
        on, and everything else is ended beside it.
        """
        nursery, task = self._nursery, sender.waiting
        assert nursery is not None
        assert task is not None

        async def end_beside() -> None:
            await trio.sleep(SEND_SECONDS)
            if sender.waiting is task:
                await end_early()

        sender.given_up = True
        # In HTTP/2 the connection is not the request's alone.
        if not (sender.is_http1 and reset_connection(task)):
            self._scope.cancel()
        task.context.copy().run(nursery.start_soon, end_beside)

    def _begin(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        current_timers().call_soon(self._begin_to_watch)

    def _begin_to_watch(self) -> None:
        if self._make_limit is not None and (limit := self._make_limit()) is not None:
            self._limit = limit
            limit.timer.begin(self._look_at_sending)
        if self._answering:
            assert self._nursery is not None
            self._context.run(self._nursery.start_soon, self._watch)

    def stop_watching(self) -> None:
        """Let no watcher come any more.

        Called too when the response is made, if it is in one piece: what is left then
        is one message, whose sending no server cancels. A watcher that is there stays.
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

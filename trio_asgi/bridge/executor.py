"""Calls that run in an executor of the caller's."""

from __future__ import annotations

from concurrent.futures import CancelledError
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import outcome
import trio

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor, Future

    from trio_asgi.threads.call import Call


class ExecutorInbox:
    """Leads to the threads of an executor that somebody else owns."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def put(self, call: Call[Any]) -> Callable[[], bool]:
        """Hand a call over; return what takes it back if it was not begun yet.

        Raises:
            RuntimeError: the executor was shut down.
        """
        #: Taken by whoever ends the call without its having begun: the task, which
        #: leaves it, or the executor, which has dropped it.
        claims = [None]

        def claim() -> bool:
            try:
                claims.pop()
            except IndexError:
                return False
            return True

        def withdraw() -> bool:
            # Claimed first, for the callback runs at once.
            if not claim():
                return False
            if future.cancel():
                return True
            claims.append(None)
            if future.done():
                # The callback may have come in vain.
                tell_if_dropped(future)
            return False

        def tell_if_dropped(future: Future[None]) -> None:
            if call.begun or not claim():
                return
            error: BaseException = CancelledError()
            if not future.cancelled():
                # It could not even run: an executor that is broken, or of processes.
                error = future.exception() or error
            # If nobody waits for the call any more, nobody misses it.
            with suppress(trio.RunFinishedError):
                call.tell(outcome.Error(error))

        future = self._executor.submit(call.run)
        future.add_done_callback(tell_if_dropped)
        return withdraw

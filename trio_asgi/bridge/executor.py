"""Run calls in an executor that the caller has given."""

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
    """The inbox of an executor's threads, for an executor that the caller owns."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def put(self, call: Call[Any]) -> Callable[[], bool]:
        """Submit a call; return a function that withdraws it unless it has begun.

        Raises:
            RuntimeError: the executor was shut down.
        """
        #: Popped by the side that ends a call that has not begun: the task that leaves
        #: it, or the executor that has dropped it.
        claims = [None]

        def claim() -> bool:
            try:
                claims.pop()
            except IndexError:
                return False
            return True

        def withdraw() -> bool:
            # Before the cancellation, which runs the callback at once.
            if not claim():
                return False
            if future.cancel():
                return True
            claims.append(None)
            if future.done():
                # The callback may have run, and not got the claim.
                tell_if_dropped(future)
            return False

        def tell_if_dropped(future: Future[None]) -> None:
            if call.begun or not claim():
                return
            error: BaseException = CancelledError()
            if not future.cancelled():
                # It could not run: the executor is broken, or has processes.
                error = future.exception() or error
            # At the end of the run nobody waits for the call any more.
            with suppress(trio.RunFinishedError):
                call.end(outcome.Error(error))

        future = self._executor.submit(call.run)
        future.add_done_callback(tell_if_dropped)
        return withdraw

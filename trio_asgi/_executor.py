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

    from ._call import Call


class ExecutorInbox:
    """Leads to the threads of an executor that somebody else owns."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def put(self, call: Call[Any]) -> Callable[[], bool]:
        """Hand a call over; return what takes it back if it was not begun yet.

        Raises:
            RuntimeError: the executor was shut down.
        """
        withdrawn = False

        def withdraw() -> bool:
            nonlocal withdrawn
            # Noted first, for the callback runs at once.
            withdrawn = True
            withdrawn = future.cancel()
            return withdrawn

        def tell_if_dropped(future: Future[None]) -> None:
            if future.cancelled() and not withdrawn:
                # If nobody waits for the call any more, nobody misses it.
                with suppress(trio.RunFinishedError):
                    call.tell(outcome.Error(CancelledError()))

        future = self._executor.submit(call.run)
        future.add_done_callback(tell_if_dropped)
        return withdraw

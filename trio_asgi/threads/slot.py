"""The right of a lease to hold a thread, where that is limited."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable


class Slot:
    """Held from before a lease takes a thread until that is idle again or has ended.

    Used in the Trio thread.
    """

    def __init__(self, limiter: trio.CapacityLimiter) -> None:
        """Hold nothing yet."""
        self._limiter = limiter
        #: Not the lease: it can take another thread, and so hold a second token, while
        #: its last thread is ending.
        self._borrower: object | None = None
        #: The scope of a task that waits in `acquire`.
        self._wait: trio.CancelScope | None = None

    async def acquire(self) -> None:
        """Wait until the lease may hold a thread, or is released. With its turn."""
        if self._borrower is None:
            borrower = object()
            try:
                with trio.CancelScope() as self._wait:
                    await self._limiter.acquire_on_behalf_of(borrower)
                    self._borrower = borrower
            finally:
                self._wait = None

    def hand_over(self) -> Callable[[], None]:
        """Hold nothing from now on; return the function that frees what was held."""
        borrower, self._borrower = self._borrower, None
        if self._wait is not None:
            # The lease is released: the call goes to another thread, without a slot.
            self._wait.cancel()

        def free() -> None:
            if borrower is not None:
                self._limiter.release_on_behalf_of(borrower)

        return free

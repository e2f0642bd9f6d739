"""The right of a lease to hold a thread, where that is limited."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio


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

    async def acquire(self) -> None:
        """Wait until the lease may hold a thread. With its turn."""
        if self._borrower is None:
            borrower = object()
            await self._limiter.acquire_on_behalf_of(borrower)
            self._borrower = borrower

    def hand_over(self) -> Callable[[], None]:
        """Hold nothing from now on; return the function that frees what was held."""
        borrower, self._borrower = self._borrower, None

        def free() -> None:
            if borrower is not None:
                self._limiter.release_on_behalf_of(borrower)

        return free

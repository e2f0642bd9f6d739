"""The tea exchange: a moving price, and the number of people who watch it."""

import math
import time
from collections.abc import AsyncIterator

import trio


class Market:
    """One per process. Only Trio tasks touch it, so it needs no lock."""

    def __init__(self) -> None:
        """Open with nobody watching."""
        self.watchers = 0

    def price(self, second: float) -> float:
        """Return a price that depends only on the time: everybody sees the same."""
        waves = ((2.4, 97), (1.1, 23), (0.6, 7.3), (0.3, 2.9))
        return 20 + sum(size * math.sin(second / length) for size, length in waves)

    async def watch(self) -> AsyncIterator[dict[str, object]]:
        """Yield the last minute's prices, each second while someone listens."""
        self.watchers += 1
        try:
            while True:
                now = time.time()
                prices = [self.price(now - ago) for ago in range(60, -1, -1)]
                yield {"prices": prices, "watchers": self.watchers}
                await trio.sleep(1)
        finally:
            # The visitor left, and trio_asgi cancelled the sleep.
            self.watchers -= 1

"""How worker threads wake the Trio thread: one write for all that wait for it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from collections.abc import Callable


class Wakeups:
    """Calls functions in the Trio thread, in the order of their posting.

    Does what `trio.lowlevel.TrioToken.run_sync_soon` does, which wakes the Trio thread
    anew for each function. When many threads have something to tell, those wake-ups
    cost more than what is told. Here the first one wakes it for all.

    Made in the Trio thread; any thread may post. Guarantee: what was posted without an
    error is called before the run ends.
    """

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._posted: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        #: Whether `_call_all` is on its way, and has not begun.
        self._coming = False

    def run_sync_soon(self, fn: Callable[..., object], *args: Any) -> None:
        """Have ``fn(*args)`` called in the Trio thread. Any thread.

        Raises:
            trio.RunFinishedError: the run has ended.
        """
        # Posted before it is asked who comes: who comes looks after saying so.
        self._posted.append((fn, args))
        if not self._coming:
            try:
                self._coming = True
                self._token.run_sync_soon(self._call_all)
            except BaseException:
                # Ctrl-C, perhaps, in a main thread that runs sync code. Nobody may come
                # now, and the next one must not rely on it.
                self._coming = False
                raise

    def _call_all(self) -> None:
        self._coming = False
        while self._posted:
            fn, args = self._posted.popleft()
            fn(*args)

"""How worker threads wake the Trio thread: one write for all that wait for it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from collections.abc import Callable


class Wakeups:
    """Calls functions in the Trio thread, in the order of their posting.

    `trio.lowlevel.TrioToken.run_sync_soon` wakes the Trio thread for each function,
    which costs more than the functions. Here the first one wakes it for all.

    Made in the Trio thread. Functions posted without an error run before the run ends.
    """

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._posted: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        #: Whether `_call_all` was asked for and has not begun.
        self._coming = False

    def run_sync_soon(self, fn: Callable[..., object], *args: Any) -> None:
        """Post a call of ``fn(*args)`` in the Trio thread. Any thread.

        Raises:
            trio.RunFinishedError: the run has ended.
        """
        # Before reading `_coming`: `_call_all` clears that before it looks here.
        self._posted.append((fn, args))
        if not self._coming:
            try:
                self._coming = True
                self._token.run_sync_soon(self._call_all)
            except BaseException:
                # Perhaps Ctrl-C, in a main thread that runs sync code. The next
                # function must wake the Trio thread again.
                self._coming = False
                raise

    def _call_all(self) -> None:
        self._coming = False
        while self._posted:
            fn, args = self._posted.popleft()
            fn(*args)

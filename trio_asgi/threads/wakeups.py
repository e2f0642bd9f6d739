"""How worker threads wake the Trio thread: one write for all that wait for it."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from collections.abc import Callable


class Wakeups:
    """Calls functions in the Trio thread, in the order of their posting.

    `trio.lowlevel.TrioToken.run_sync_soon` wakes the Trio thread for each function,
    which costs more than the functions. Here the first one wakes it for all.

    Made in the Trio thread. Functions posted without an error run before the run ends,
    if `wake` or `call_all` follows.
    """

    def __init__(self, then: Callable[[], object]) -> None:
        """Call ``then()`` in the Trio thread after functions were called."""
        self._token = trio.lowlevel.current_trio_token()
        self._posted: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._then = then
        #: Whether `call_all` was asked for and has not begun.
        self._coming = False

    def run_sync_soon(self, fn: Callable[..., object], *args: Any) -> None:
        """Post a call of ``fn(*args)``, and wake the Trio thread. Any thread.

        Raises:
            trio.RunFinishedError: the run has ended.
        """
        # Before reading `_coming`: `call_all` clears that before it looks here.
        self._posted.append((fn, args))
        self.wake()

    def post(self, fn: Callable[..., object], *args: Any) -> None:
        """Post a call of ``fn(*args)``, for the next `call_all`. Any thread."""
        self._posted.append((fn, args))

    def wake(self) -> None:
        """Have the Trio thread call all that was posted; raise as above. Any thread."""
        if not self._coming:
            try:
                self._coming = True
                self._token.run_sync_soon(self.call_all)
            except BaseException:
                # Perhaps Ctrl-C, in a main thread that runs sync code. The next
                # function must wake the Trio thread again; another thread's may have
                # relied on this one.
                self._coming = False
                if self._posted:
                    with suppress(trio.RunFinishedError):
                        self._token.run_sync_soon(self.call_all)
                raise

    @property
    def pending(self) -> bool:
        """Whether something was posted and not called yet. Any thread."""
        return bool(self._posted)

    def call_all(self) -> None:
        """Call what was posted, and then ``then()``. Trio thread."""
        self._coming = False
        while self._posted:
            fn, args = self._posted.popleft()
            fn(*args)
        self._then()

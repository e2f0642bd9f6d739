"""A test's clock while sync code runs."""

from __future__ import annotations

import math
from typing import Any

import trio


class HeldClock:
    """Keeps a test's clock from jumping while sync code runs.

    `trio.testing.MockClock` can jump to the next deadline when all tasks wait. It would
    do so even if one of them waits for a thread.
    """

    def __init__(self) -> None:
        clock: Any = trio.lowlevel.current_clock()
        can_jump = hasattr(clock, "autojump_threshold")
        second = clock.deadline_to_sleep_time(clock.current_time() + 1)
        #: Whether it is no test's clock, so that Trio's seconds are real ones.
        self.is_real = not can_jump and 0.5 < second < 2  # noqa: PLR2004
        self._clock = clock if can_jump else None
        self._holders = 0
        self._threshold = math.inf

    def hold(self) -> None:
        """Prevent jumps until `let_go` was called as often."""
        if self._clock is None:
            return
        if self._holders == 0:
            self._threshold = self._clock.autojump_threshold
            self._clock.autojump_threshold = math.inf
        self._holders += 1

    def let_go(self) -> None:
        """Allow jumps again if nothing else holds the clock."""
        if self._clock is None:
            return
        self._holders -= 1
        if self._holders == 0:
            self._clock.autojump_threshold = self._threshold

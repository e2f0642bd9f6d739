"""How other threads wake a guest run."""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class Wakeup:
    """How other threads wake the run: `TrioToken.run_sync_soon` in place of a socket.

    The host loop has a way already. Many calls wake it once.
    """

    def __init__(
        self,
        replaced: Any,
        now: Callable[..., object],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Take the place of Trio's object; wake the run's tasks with ``now``."""
        self._replaced = replaced
        self._now = now
        self._loop = loop
        self._context = contextvars.Context()
        #: Whether `_wake` will be called; whether it was, and nobody has waited since.
        self._coming = self._woken = False
        self._task: trio.lowlevel.Task | None = None
        # If Trio's task waits there already, it comes here now.
        replaced.wakeup_thread_and_signal_safe()

    def wakeup_thread_and_signal_safe(self) -> None:
        """Wake the run. Any thread, and in signal handlers."""
        if self._coming:
            return
        self._coming = True
        try:
            self._loop.call_soon_threadsafe(self._wake, context=self._context)
        except RuntimeError:
            self._coming = False
            raise trio.RunFinishedError("the host loop is closed") from None

    def _wake(self) -> None:
        self._coming = False
        self._woken = True
        task, self._task = self._task, None
        if task is not None:
            self._now(trio.lowlevel.reschedule, task)

    async def wait_woken(self) -> None:
        """Wait until the run was woken. Trio's task for `run_sync_soon`."""
        if not self._woken:
            self._task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abort)
        self._woken = False

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def close(self) -> None:
        """End with the run."""
        self._replaced.close()

"""A worker thread: it runs the calls that come to its inbox, one after the other."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from itertools import count
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_thread_numbers = count(1)


@dataclass(frozen=True)
class Stop:
    """The worker's thread shall end."""

    #: Called in the Trio thread then.
    then: Callable[[], object] | None = None


class Worker:
    """One OS thread of a pool, idle or leased to one lease at a time."""

    def __init__(
        self,
        *,
        idle_seconds: Callable[[], float],
        on_idle: Callable[[Worker], bool],
        on_end: Callable[[Worker, Callable[[], object] | None], object],
    ) -> None:
        """Start no thread yet.

        Args:
            idle_seconds: Returns how long to wait for the next call.
            on_idle: Called when none came; returns whether the thread ends then.
            on_end: Called as the last act, with what `stop` was given. All three are
                called in the worker thread.
        """
        self._idle_seconds = idle_seconds
        self._on_idle = on_idle
        self._on_end = on_end
        self.inbox: SimpleQueue[Any] = SimpleQueue()
        self.thread = threading.Thread(
            target=self._work,
            name=f"trio-asgi-worker-{next(_thread_numbers)}",
            # A sync view that never returns must not keep the process from exiting.
            daemon=True,
        )
        #: Whether a task has left a call that runs here: then nobody waits for the end.
        self.left = False

    def stop(self, then: Callable[[], object] | None = None) -> None:
        """End the thread when it has done what it was given; call ``then()`` here."""
        self.inbox.put(Stop(then))

    def _work(self) -> None:
        idle_seconds = self._idle_seconds()
        then = None
        try:
            while True:
                try:
                    job = self.inbox.get(timeout=idle_seconds)
                except Empty:
                    if self._on_idle(self):
                        return
                    # It is leased, perhaps for hours: look less and less often whether
                    # it has come back meanwhile.
                    idle_seconds = min(max(2 * idle_seconds, 0.1), 3600)
                    continue
                if isinstance(job, Stop):
                    then = job.then
                    return
                job.run()
                del job
                idle_seconds = self._idle_seconds()
        finally:
            self._on_end(self, then)

"""A worker thread, and the jobs that it takes from its inbox besides calls."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from itertools import count
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable

logger = logging.getLogger("trio_asgi")

_thread_numbers = count(1)

#: The least time, in seconds, after which a thread that a lease holds looks again.
SHORTEST_WAIT = 0.1


@dataclass(frozen=True)
class Detached:
    """The last call of a lease in a thread; nothing waits for it."""

    context: contextvars.Context
    fn: Callable[[], object]

    def run(self) -> None:
        """Run it. Worker thread."""
        try:
            self.context.run(self.fn)
        except BaseException:
            logger.exception("The last call of a lease failed: %r", self.fn)


@dataclass(frozen=True)
class Stop:
    """Ends the worker's thread."""

    #: Called in the Trio thread after that.
    then: Callable[[], object] | None = None


class Nothing:
    """Only wakes the worker's thread."""

    def run(self) -> None:
        """Do nothing. Worker thread."""


class Worker:
    """One thread of a pool, idle or held by one lease."""

    def __init__(
        self,
        *,
        idle_seconds: Callable[[], float],
        on_start: Callable[[], object],
        on_idle: Callable[[Worker], bool],
        on_end: Callable[[Worker, Callable[[], object] | None], object],
    ) -> None:
        """Start no thread yet.

        The thread first calls ``on_start()``, which must not raise. Then it waits for a
        call for ``idle_seconds()``. If none comes, it calls ``on_idle(self)``, and ends
        if that is true. ``on_end(self, then)`` is its last act, with the argument of
        `stop`.
        """
        self._idle_seconds = idle_seconds
        self._on_start = on_start
        self._on_idle = on_idle
        self._on_end = on_end
        self.inbox: SimpleQueue[Any] = SimpleQueue()
        self.thread = threading.Thread(
            target=self._work,
            name=f"trio-asgi-worker-{next(_thread_numbers)}",
            # A sync view that never returns must not keep the process from exiting.
            daemon=True,
        )
        #: Whether the thread has waited for long, because a lease holds it without
        #: calls: then it does not notice soon that it is idle.
        self.waits_long = False
        #: Whether a task has left a call here: then nothing waits for the thread's end.
        self.left = False

    def note_idle(self) -> None:
        """Have the thread, which `waits_long`, wait anew for the usual time."""
        self.inbox.put(Nothing())

    def stop(self, then: Callable[[], object] | None = None) -> None:
        """End the thread after its jobs; then call ``then()`` in the Trio thread."""
        self.inbox.put(Stop(then))

    def _work(self) -> None:
        idle_seconds = self._idle_seconds()
        then = None
        self._on_start()
        try:
            while True:
                try:
                    job = self.inbox.get(timeout=idle_seconds)
                except Empty:
                    self.waits_long = True  # first: it may become idle meanwhile
                    if self._on_idle(self):
                        return
                    # A lease holds it, perhaps for hours: look less and less often.
                    idle_seconds = min(max(2 * idle_seconds, SHORTEST_WAIT), 3600)
                    continue
                if isinstance(job, Stop):
                    then = job.then
                    return
                job.run()
                del job
                self.waits_long = False
                idle_seconds = self._idle_seconds()
        finally:
            self._on_end(self, then)

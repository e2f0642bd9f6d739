"""What worker threads run, seen from the Trio thread while they run it."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Final

from trio_asgi.threads import loop
from trio_asgi.threads.call import Call
from trio_asgi.threads.worker import Detached

from .frames import frames_of_stack, place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import FrameType

    from django.db.backends.base.base import BaseDatabaseWrapper

    from trio_asgi.threads.pool import WorkerPool
    from trio_asgi.threads.worker import Worker

_RUNS_CALL: Final = Call.run.__code__
_RUNS_LAST_CALL: Final = Detached.run.__code__
#: Where a thread waits in `async_to_sync`.
_WAITS: Final = loop._next_job.__code__


class Stacks:
    """The stacks of all threads of the process at one moment."""

    def __init__(self) -> None:
        """Take them."""
        #: The frames of each thread by its identifier, the outermost first.
        self._stacks = {
            ident: frames_of_stack(frame)
            for ident, frame in sys._current_frames().items()
        }
        #: The frames of each call that a thread runs; those of calls inside it are not
        #: among them. In a thread the innermost call is the last.
        self.calls: dict[Call[Any], list[FrameType]] = {}
        self._calls_of: dict[int, list[Call[Any]]] = {}
        for ident, stack in self._stacks.items():
            for frame in stack:
                if frame.f_code is _RUNS_CALL:
                    call = frame.f_locals["self"]
                    if not call.over:
                        self.calls[call] = []
                        self._calls_of.setdefault(ident, []).append(call)
                elif ident in self._calls_of:
                    self.calls[self._calls_of[ident][-1]].append(frame)

    def of_pool(
        self, pool: WorkerPool, whose: Callable[[Call[Any]], str | None]
    ) -> list[dict[str, Any]]:
        """Describe the threads of a pool, for a snapshot.

        Args:
            pool: The pool.
            whose: Returns what has made a call, if it is known.
        """
        workers = sorted(pool.workers, key=lambda worker: worker.thread.name)
        return [
            self._describe(worker, idle=worker in pool._idle, whose=whose)
            for worker in workers
        ]

    def _describe(
        self, worker: Worker, *, idle: bool, whose: Callable[[Call[Any]], str | None]
    ) -> dict[str, Any]:
        ident = worker.thread.ident or 0
        # It is idle already while it ends its last call.
        stack = [] if idle else self._stacks.get(ident, [])
        calls = [] if idle else self._calls_of.get(ident, [])
        codes = [frame.f_code for frame in stack]
        state = "idle" if idle else "held"
        if calls or _RUNS_LAST_CALL in codes:
            state = "waits for async code" if codes[-1] is _WAITS else "busy"
            if worker.left:
                state = "left behind"
        seconds = time.perf_counter() - calls[-1].began_at if calls else None
        return {
            "name": worker.thread.name,
            "state": state,
            "runs": place_of(stack),
            "for": next(filter(None, map(whose, calls)), None),
            "seconds": seconds and round(seconds, 3),
            "connections": _connections(worker.data),
        }


def _connections(opened: Any) -> list[dict[str, Any]]:
    """Describe the open connections of a thread, by its `opened_connections`."""
    theirs: Mapping[str, BaseDatabaseWrapper] = opened or {}
    return [
        {
            "alias": connection.alias,
            "vendor": connection.vendor,
            "in_transaction": connection.in_atomic_block,
        }
        for connection in list(theirs.values())
        if connection.connection is not None
    ]

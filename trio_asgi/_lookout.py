"""What looks after all requests of a Trio run: two tasks, however many requests.

A task for each request that waits for the disconnect costs more than a small request
itself. Most small requests are over before they ever wait for anything, and nobody
needs to watch them. So a request asks for its watcher here, and gets it when the
scheduler has come round once and the request is still there.

In the same way a request that is sending says by when it should have ended; only if the
time comes anything is done about it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable


class Lookout:
    """Calls back for requests that take longer than a moment. Trio thread.

    The callbacks are called in system tasks: they must be quick, and not raise.
    """

    def __init__(self) -> None:
        self._new: list[Callable[[], object]] = []
        self._new_came = trio.lowlevel.ParkingLot()
        #: By when each should have ended; the earliest stands first, for all are given
        #: the same time.
        self._timed: dict[Callable[[], object], float] = {}
        self._timed_came = trio.lowlevel.ParkingLot()

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Have a callback called when the other tasks have had their turn."""
        self._new.append(callback)
        if len(self._new) == 1:
            self._new_came.unpark()

    def call_after(self, callback: Callable[[], object], deadline: float) -> None:
        """Have a callback called at a time of Trio's clock; see `forget`.

        Deadlines must not come earlier than those before them.
        """
        self._timed[callback] = deadline
        if len(self._timed) == 1:
            self._timed_came.unpark()

    def forget(self, callback: Callable[[], object]) -> None:
        """Do not call what `call_after` has noted, unless it was called already."""
        self._timed.pop(callback, None)

    async def call_new(self) -> None:
        """Serve `call_soon`. A system task."""
        while True:
            while self._new:
                new, self._new = self._new, []
                for callback in new:
                    callback()
            await self._new_came.park()

    async def call_timed(self) -> None:
        """Serve `call_after`. A system task."""
        while True:
            while self._timed:
                callback, deadline = next(iter(self._timed.items()))
                if deadline <= trio.current_time():
                    del self._timed[callback]
                    callback()
                else:
                    await trio.sleep_until(deadline)
            await self._timed_came.park()


_lookout: trio.lowlevel.RunVar[Lookout] = trio.lowlevel.RunVar("trio_asgi.lookout")


def current_lookout() -> Lookout:
    """Return that of this Trio run; its first caller makes it."""
    try:
        return _lookout.get()
    except LookupError:
        lookout = Lookout()
        _lookout.set(lookout)
        trio.lowlevel.spawn_system_task(lookout.call_new)
        trio.lowlevel.spawn_system_task(lookout.call_timed)
        return lookout

"""What looks after all requests of a Trio run: a few tasks, however many requests.

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


class Timer:
    """Calls back for what takes longer than so many seconds. Trio thread.

    One for all that may take so long: so their deadlines come in the order in which
    they began, and it costs next to nothing to begin and to end.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        #: By when each should have ended; the earliest stands first.
        self._deadlines: dict[Callable[[], object], float] = {}
        self._begun = trio.lowlevel.ParkingLot()

    def begin(self, callback: Callable[[], object]) -> None:
        """Have a callback called when the time is over; see `end`."""
        self._deadlines[callback] = trio.current_time() + self._seconds
        if len(self._deadlines) == 1:
            self._begun.unpark()

    def end(self, callback: Callable[[], object]) -> None:
        """Do not call what `begin` has noted, unless it was called already."""
        self._deadlines.pop(callback, None)

    async def call(self) -> None:
        """Call back. A system task."""
        while True:
            while self._deadlines:
                callback, deadline = next(iter(self._deadlines.items()))
                if deadline <= trio.current_time():
                    del self._deadlines[callback]
                    callback()
                else:
                    await trio.sleep_until(deadline)
            await self._begun.park()


class Timers:
    """Calls back for requests that take longer than a moment. Trio thread.

    The callbacks are called in system tasks: they must be quick, and not raise.
    """

    def __init__(self) -> None:
        self._new: list[Callable[[], object]] = []
        self._new_came = trio.lowlevel.ParkingLot()
        self._timers: dict[float, Timer] = {}

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Have a callback called when the other tasks have had their turn."""
        self._new.append(callback)
        if len(self._new) == 1:
            self._new_came.unpark()

    def timer(self, seconds: float) -> Timer:
        """Return what calls back for what takes longer than so many seconds."""
        timer = self._timers.get(seconds)
        if timer is None:
            timer = self._timers[seconds] = Timer(seconds)
            trio.lowlevel.spawn_system_task(timer.call)
        return timer

    async def call_new(self) -> None:
        """Serve `call_soon`. A system task."""
        while True:
            while self._new:
                new, self._new = self._new, []
                for callback in new:
                    callback()
            await self._new_came.park()


_timers: trio.lowlevel.RunVar[Timers] = trio.lowlevel.RunVar("trio_asgi.timers")


def current_timers() -> Timers:
    """Return that of this Trio run; its first caller makes it."""
    try:
        return _timers.get()
    except LookupError:
        timers = Timers()
        _timers.set(timers)
        trio.lowlevel.spawn_system_task(timers.call_new)
        return timers

"""Callbacks for requests that take longer: a few tasks for all requests of a Trio run.

A task per request that waits for the disconnect costs more than a small request. Most
small requests end before they wait for anything. So a request asks here for its
watcher, which starts only if the request is still there after one pass of the
scheduler. The deadlines for sending work in the same way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable


class Timer:
    """Calls back when something takes longer than a number of seconds. Trio thread.

    As all its timeouts are equal, its deadlines expire in the order in which they were
    set, so `begin` and `end` cost next to nothing.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        #: The deadline of each callback, the earliest first.
        self._deadlines: dict[Callable[[], object], float] = {}
        self._begun = trio.lowlevel.ParkingLot()

    def begin(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` when the time is over, unless `end` is called first."""
        self._deadlines[callback] = trio.current_time() + self._seconds
        if len(self._deadlines) == 1:
            self._begun.unpark()

    def end(self, callback: Callable[[], object]) -> None:
        """Do not call ``callback`` any more."""
        self._deadlines.pop(callback, None)

    async def call(self) -> None:
        """Call the callbacks. A system task."""
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
    """The timers of a Trio run. Trio thread.

    Callbacks run in system tasks: they must be quick, and not raise.
    """

    def __init__(self) -> None:
        self._new: list[Callable[[], object]] = []
        self._new_came = trio.lowlevel.ParkingLot()
        self._timers: dict[float, Timer] = {}

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` when the other tasks have had their turn."""
        self._new.append(callback)
        if len(self._new) == 1:
            self._new_came.unpark()

    def timer(self, seconds: float) -> Timer:
        """Return the timer for a number of seconds."""
        timer = self._timers.get(seconds)
        if timer is None:
            timer = self._timers[seconds] = Timer(seconds)
            trio.lowlevel.spawn_system_task(timer.call)
        return timer

    async def call_new(self) -> None:
        """Call the callbacks of `call_soon`. A system task."""
        while True:
            while self._new:
                new, self._new = self._new, []
                for callback in new:
                    callback()
            await self._new_came.park()


_timers: trio.lowlevel.RunVar[Timers] = trio.lowlevel.RunVar("trio_asgi.timers")


def current_timers() -> Timers:
    """Return those of this Trio run; the first call makes them."""
    try:
        return _timers.get()
    except LookupError:
        timers = Timers()
        _timers.set(timers)
        trio.lowlevel.spawn_system_task(timers.call_new)
        return timers

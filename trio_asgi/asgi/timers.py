"""Callbacks for requests that take longer: a few tasks for all requests of a Trio run.

Setting a deadline costs a request two operations on a dict. Most requests end before
any of their deadlines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Timer(Generic[T]):
    """Calls a function with an object that takes longer than some seconds. Trio thread.

    As all its timeouts are equal, its deadlines expire in the order in which they were
    set, so `begin` and `end` cost next to nothing.
    """

    def __init__(self, seconds: float, function: Callable[[T], object]) -> None:
        """Call ``function`` in a system task: it must be quick, and not raise."""
        self._seconds = seconds
        self._function = function
        #: The deadline of each object, the earliest first.
        self._deadlines: dict[T, float] = {}
        self._begun = trio.lowlevel.ParkingLot()

    def begin(self, item: T) -> float:
        """Call the function with ``item`` when the time is over, unless `end` comes.

        Returns:
            The time by Trio's clock.
        """
        if not self._deadlines:
            self._begun.unpark()
        now = trio.current_time()
        self._deadlines[item] = now + self._seconds
        return now

    def end(self, item: T) -> None:
        """Do not call the function with ``item`` any more."""
        self._deadlines.pop(item, None)

    async def call(self) -> None:
        """Call the function. A system task."""
        while True:
            while self._deadlines:
                item, deadline = next(iter(self._deadlines.items()))
                if deadline <= trio.current_time():
                    del self._deadlines[item]
                    self._function(item)
                # It would keep the request in memory.
                del item
                await trio.sleep_until(deadline)
            await self._begun.park()


_timers: trio.lowlevel.RunVar[dict[Any, Timer[Any]]] = trio.lowlevel.RunVar(
    "trio_asgi.timers"
)


def current_timer(
    seconds: float, function: Callable[[T], object], *, real: bool = False
) -> Timer[T]:
    """Return this Trio run's timer for some seconds and a function.

    A test's clock may stand still. If it should not matter (``real``), the function is
    then called at once: when all other tasks have had their turn.
    """
    try:
        timers = _timers.get()
    except LookupError:
        timers = {}
        _timers.set(timers)
    timer = timers.get((seconds, function))
    if timer is None:
        is_test = hasattr(trio.lowlevel.current_clock(), "autojump_threshold")
        timer = Timer(0 if real and is_test else seconds, function)
        timers[seconds, function] = timer
        trio.lowlevel.spawn_system_task(timer.call)
    return timer

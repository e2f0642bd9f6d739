"""Runs Trio's guest run in steps on a host loop of asyncio, without a thread.

Trio's scheduler is a generator. Each step, a *tick*, runs the tasks that can go on, and
yields how many seconds it may then wait for I/O. `trio.lowlevel.start_guest_run` waits
in a thread, and two switches between threads wake the run. Here the host loop waits: it
watches the file in which Trio collects its I/O (epoll's or kqueue's) with
``add_reader``, and has one timer for Trio's next deadline.

The private attributes of Trio that this takes are all in this module. `watch` checks
them; where one is missing, as on Windows, Trio's own way is used.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import os
import sys
from typing import TYPE_CHECKING, Any, Final, TypeVar

import outcome
import sniffio
import trio
from trio._core import _run

from .wakeup import Wakeup

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

#: Ticks in a row, if tasks can go on after each, before the host loop has its turn.
_TICKS: Final = 8

#: What `GuestState.guest_tick` uses, and `Ticks` in its place.
_TICK_NAMES: Final = frozenset(
    (
        *("unrolled_run_gen", "unrolled_run_next_send", "done_callback", "runner"),
        *("main_task_outcome", "guest_tick_scheduled", "io_manager", "get_events"),
    )
)
_WAKEUP_NAMES: Final = ("wakeup_thread_and_signal_safe", "wait_woken", "close")


#: A thread-local: ``task`` is the running Trio task.
_run_context: Final[Any] = getattr(_run, "GLOBAL_RUN_CONTEXT", None)


class _Woken(tuple[Any, ...]):
    """No events, but something else has ended the wait: true, as Trio wants it."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return True


_WOKEN: Final = _Woken()
_TIMEOUT: Final[tuple[Any, ...]] = ()


class Ticks:
    """When a guest run goes on. This one leaves that to Trio's own thread.

    Host thread.
    """

    #: Whether a tick is running, or the run is over.
    running = False

    def soon(self, wake: Callable[..., object], *args: Any) -> None:
        """Call ``wake(*args)``, and let the run go on in the host loop's next pass.

        Use it, or `now`, for what wakes a task from outside the run: otherwise Trio
        wakes itself through a socket.
        """
        wake(*args)

    def now(self, wake: Callable[..., object], *args: Any) -> None:
        """Call ``wake(*args)``, and let the run go on at once, if possible."""
        wake(*args)


class WatchedTicks(Ticks):
    """The ticks of a run whose I/O the host loop watches."""

    def __init__(self, state: Any, loop: asyncio.AbstractEventLoop) -> None:
        """Watch the run.

        Raises:
            NotImplementedError: the loop cannot watch files.
        """
        self._state = state
        self._runner = state.runner
        self._send = state.unrolled_run_gen.send
        self._get_events = state.runner.io_manager.get_events
        self._loop = loop
        #: Callbacks would keep the context of the request that has scheduled them.
        self._context = contextvars.Context()
        #: Whether `_tick_scheduled` will be called.
        self._scheduled = False
        #: When the run is to go on by itself, and the timer for that time or earlier.
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_time = 0.0
        # A copy, since Trio closes its own before the run is done.
        self._file = os.dup(_io_file(state.runner.io_manager).fileno())
        try:
            loop.add_reader(self._file, self._on_io)
        except BaseException:
            os.close(self._file)
            raise
        queue = state.runner.entry_queue
        queue.wakeup = Wakeup(queue.wakeup, self.now, loop)

    def soon(self, wake: Callable[..., object], *args: Any) -> None:
        """Call ``wake(*args)``, and let the run go on in the host loop's next pass."""
        self._runner.guest_tick_scheduled = True
        try:
            wake(*args)
        finally:
            if not self.running:
                self._schedule()

    def now(self, wake: Callable[..., object], *args: Any) -> None:
        """Call ``wake(*args)``, and let the run go on at once.

        While the caller handles an error, soon: that is no other task's current error.
        """
        if sys.exc_info()[1] is not None:
            self.soon(wake, *args)
            return
        self._runner.guest_tick_scheduled = True
        try:
            wake(*args)
        finally:
            if not self.running:
                self._tick(_WOKEN)

    def begin(self) -> None:
        """Run the first tick."""
        self._tick(_WOKEN)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._tick_scheduled, context=self._context)

    def _tick_scheduled(self) -> None:
        if self._scheduled:  # and not run by now() meanwhile
            self._tick(_WOKEN)

    def _on_io(self) -> None:
        events = outcome.capture(self._get_events, 0)
        if isinstance(events, outcome.Error):
            self._send = lambda _: events.send(self._state.unrolled_run_gen)
            self._tick(_WOKEN)
        elif events.value:
            self._tick(events.value)

    def _on_timer(self) -> None:
        self._timer = None
        if self._scheduled:
            return  # the tick will set the timer
        if self._loop.time() < self._deadline:
            self._set_timer()
        else:
            self._tick(_TIMEOUT)

    def _tick(self, events: Any) -> None:
        """Run tasks that can go on; then see that the run goes on when it has to."""
        library = sniffio.thread_local
        outer, library.name = library.name, "trio"
        # The task that has called now(): to code of Trio there is none.
        task = asyncio.current_task(self._loop)
        if task is not None:
            asyncio.tasks._leave_task(self._loop, task)
        self.running = self._runner.guest_tick_scheduled = True
        self._scheduled = False
        result: outcome.Outcome[Any] | None = None
        try:
            for _ in range(_TICKS):
                timeout = self._send(events)
                if timeout > 0:
                    break
                events = _TIMEOUT  # of zero seconds
        except StopIteration:
            result = self._runner.main_task_outcome
        except trio.TrioInternalError as error:
            result = outcome.Error(error)
        finally:
            library.name = outer
            if task is not None:
                asyncio.tasks._enter_task(self._loop, task)
            self.running = False
        if result is not None:
            self._end(result)
        elif timeout > 0:
            # From now on Trio writes to a socket to be woken, except after soon().
            self._runner.guest_tick_scheduled = False
            self._deadline = self._loop.time() + timeout
            if self._timer is None or self._timer_time > self._deadline:
                self._set_timer()
        else:
            self._schedule()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_time = self._deadline
        # uvloop rounds to milliseconds. If its timer came too early, or if it got zero,
        # it would be set again and again until the deadline.
        delay = max(1, math.ceil((self._deadline - self._loop.time()) * 1000)) / 1000
        self._timer = self._loop.call_later(
            delay, self._on_timer, context=self._context
        )

    def _end(self, result: outcome.Outcome[Any]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._file)
        os.close(self._file)
        self.running = True  # so that there will be no other tick
        self._state.done_callback(result)


def outside_trio(fn: Callable[..., T], *args: Any) -> T:
    """Call ``fn(*args)`` in a Trio task, as if it were not: for code of asyncio."""
    library, context = sniffio.thread_local, _run_context
    outer, library.name = library.name, None
    task = None if context is None else context.__dict__.pop("task", None)
    try:
        return fn(*args)
    finally:
        library.name = outer
        if task is not None:
            context.task = task


def watch(
    guest_tick: Callable[[], object], loop: asyncio.AbstractEventLoop
) -> WatchedTicks | None:
    """Return the ticks of a run that has just been set up; None to use Trio's own way.

    Args:
        guest_tick: What `trio.lowlevel.start_guest_run` asked the host to call.
        loop: The running host loop.
    """
    if not _is_known(guest_tick):
        return None
    state: Any = guest_tick.__self__  # type: ignore[attr-defined]
    try:
        return WatchedTicks(state, loop)
    except NotImplementedError:  # asyncio's loop on Windows
        return None


def _is_known(guest_tick: Any) -> bool:
    """Whether all of Trio that `WatchedTicks` uses is there."""
    state = getattr(guest_tick, "__self__", None)
    code = getattr(guest_tick, "__code__", None)
    runner: Any = getattr(state, "runner", None)
    wakeup = getattr(getattr(runner, "entry_queue", None), "wakeup", None)
    return (
        code is not None
        and _TICK_NAMES.issubset(code.co_names)
        and runner.is_guest is True
        and _io_file(runner.io_manager) is not None
        and all(hasattr(wakeup, name) for name in _WAKEUP_NAMES)
    )


def _io_file(io_manager: Any) -> Any:
    """Return the object in which Trio collects its I/O; None where there is none."""
    return getattr(io_manager, "_epoll", None) or getattr(io_manager, "_kqueue", None)

"""The calls that wait for a thread, and how many may run at the same time.

Few threads at a time get more done than many: a hand-over between two threads costs
more than a short view, and only one of them can run Python. But a thread that waits,
for a database say, must not keep others from running. So calls begin one after the
other as long as calls end. While calls wait, a *tick* every millisecond lets more begin
if those that run are blocked.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from .clock import HeldClock
from .wakeups import Wakeups

if TYPE_CHECKING:
    from .protocols import Entry, QueuedCall

#: Seconds between two ticks; how late a tick is, besides the Trio thread's own work, if
#: no other thread holds the interpreter's lock; and which share of the time all threads
#: together then run at most.
TICK: Final = 0.001
LATE: Final = 0.002
BUSY: Final = 0.8

#: Seconds after which a call counts as blocked even if ticks were late.
LONG: Final = 0.02

#: Seconds after which half as many calls are active, unless they blocked meanwhile.
MEMORY: Final = 1.0


class CallQueue:
    """Calls in the order of asking, and the places in which they run.

    Guarantees:

    - Calls begin first come, first served. No more than ``threads`` run at the same
      time. A thread in `async_to_sync` has no place, nor has an idle lease. One in
      `trio.from_thread.run` keeps its own.
    - A call is either withdrawn from the queue, or begins; never both.
    - Of the running calls only a few are *active*: ``threads`` at most, and one at the
      start. If calls wait between two ticks though the processor is not busy, twice as
      many may be active. Calls that ran for two such ticks do not count, nor all that
      run if none ends. So calls that wait for others end if ``threads`` suffice. If
      threads in `trio.from_thread.run` hold all places, they must not wait for others.
    - The result of a call reaches its task when the thread finds no next call, or at
      the next tick. Under a test's clock there are no ticks: all calls may be active,
      and each result comes at once.

    The lock guards which calls wait and run, and which lease has which worker. It is
    only held briefly. It is reentrant, since a finalizer may run at any place. What
    ticks need changes in the Trio thread, in part without it.
    """

    def __init__(self) -> None:
        """Take calls. Trio thread."""
        self.lock = threading.RLock()
        self.wakeups = Wakeups(self.dispatch)
        self.clock = HeldClock()
        #: How many calls may run; set by `set_threads`.
        self.threads = 1
        #: How many run.
        self.running = 0
        self._waiting: OrderedDict[Entry, None] = OrderedDict()
        #: How many calls may be active.
        self._most_active: float = 1 if self.clock.is_real else math.inf
        #: Counts generations: one ends with an idle tick, or after `LONG`. A call that
        #: has run for one is *old*, and after two it is blocked.
        self._generation = 0
        self._old = self._blocked = 0
        #: Whether a call has ended since the generation began, and when that was.
        self._any_ended = False
        self._generation_began = self._adapted = time.perf_counter()
        #: Whether ticks come, which collect results. Changes in the Trio thread.
        self._ticking = False
        #: Where the task that ticks waits until ticks are of use.
        self._ticker = trio.lowlevel.ParkingLot()
        self._can_tick = self.clock.is_real
        if self._can_tick:
            try:
                trio.lowlevel.spawn_system_task(self._tick_forever)
            except RuntimeError:  # the run is ending
                self._stop_ticks()

    def set_threads(self, threads: int) -> None:
        """Change how many calls may run. Trio thread."""
        self.threads = threads
        self.dispatch()

    @property
    def waiting(self) -> int:
        """How many calls wait for a place. Any thread."""
        return len(self._waiting)

    # Trio thread

    def submit(self, entry: Entry) -> None:
        """Let a call begin now, or when there is a place and a thread.

        A test's clock is held until `leave`.
        """
        if not self.clock.is_real:
            self.clock.hold()
        with self.lock:
            self._waiting[entry] = None
            self._dispatch()
        if self._waiting and self._can_tick and not self._ticking:
            self._start_ticks()

    def leave(self, call: QueuedCall) -> None:
        """Note that the thread runs nothing for a call's task; free the place."""
        if not self.clock.is_real:
            self.clock.let_go()
        if call.generation is not None:
            with self.lock:
                self._give_up(call)
            self.dispatch()

    def withdraw(self, entry: Entry) -> bool:
        """Take a call back; False if it has begun."""
        with self.lock:
            return self._waiting.pop(entry, self) is None

    def dispatch(self) -> None:
        """Let calls begin for which there are places."""
        if not self._waiting:
            return
        with self.lock:
            self._dispatch()
        if self._waiting and self._can_tick and not self._ticking:
            self._start_ticks()

    # A call's thread

    def end(self, call: QueuedCall) -> None:
        """Post a call's result to its task; let the next calls begin."""
        with self.lock:
            left = not call.post_result()
            inbox = call.loop.end_call(left=left)
            self._give_up(call)
            self._any_ended = True
            if self._waiting:
                self._dispatch()
            if self._ticking and inbox is not None and not inbox.empty():
                return  # the thread goes on with the next call, and a tick will come
        with suppress(trio.RunFinishedError):
            self.wakeups.wake()

    # With the lock

    def _dispatch(self) -> None:
        waiting = self._waiting
        while (
            waiting
            and self.running < self.threads
            and self.running - self._blocked < self._most_active
        ):
            # Not popitem(): a signal handler's error could come before the assignment.
            entry = next(iter(waiting))
            # Before it begins: a finalizer may run in there, and cancel it.
            del waiting[entry]
            try:
                begun = entry.begin()
            except RuntimeError as error:
                entry.fail(error)
                continue
            except BaseException:  # of a signal handler, or there is no memory
                if not entry.handed_over:  # otherwise it runs, without a place
                    self._put_back(entry)
                with suppress(trio.RunFinishedError):
                    self.wakeups.wake()
                raise
            if not begun:
                # The Trio thread is being woken, and will start a thread.
                self._put_back(entry)
                return
            call = entry.call
            if not call.left:
                call.generation = self._generation
                self.running += 1

    def _put_back(self, entry: Entry) -> None:
        self._waiting[entry] = None
        self._waiting.move_to_end(entry, last=False)

    def _give_up(self, call: QueuedCall) -> None:
        if call.generation is None:
            return
        age, call.generation = self._generation - call.generation, None
        self.running -= 1
        if age == 1:
            self._old -= 1
        elif age > 1:
            self._blocked -= 1

    # Ticks

    def _start_ticks(self) -> None:
        self._generation_began, self._any_ended = time.perf_counter(), False
        self._ticking = True
        self._ticker.unpark()

    def _stop_ticks(self) -> None:
        """Do without ticks from now on: all calls may be active."""
        self._can_tick = False
        self._most_active = math.inf
        self._ticking = False
        self.wakeups.call_all()

    async def _tick_forever(self) -> None:
        """Tick while it is of use, until the run's main task has ended."""
        try:
            while True:
                if not self._ticking:
                    await self._ticker.park()
                began = time.perf_counter()
                own, used = time.thread_time(), time.process_time()
                await trio.sleep(TICK)
                took = time.perf_counter() - began
                own, used = time.thread_time() - own, time.process_time() - used
                self.wakeups.call_all()
                on_time = took - own < TICK + LATE
                self._tick(is_idle=on_time and used < BUSY * took)
        finally:
            self._stop_ticks()

    def _tick(self, *, is_idle: bool) -> None:
        """Adapt the number of active calls; note whether ticks are still of use.

        Args:
            is_idle: Whether there was time that no thread has used.
        """
        now = time.perf_counter()
        with self.lock:
            any_ended = self._any_ended
            while self._most_active > 1 and now - self._adapted > MEMORY:
                self._most_active //= 2
                self._adapted += MEMORY
            if is_idle or now - self._generation_began > LONG:
                if self._waiting and (is_idle or not any_ended):
                    self._most_active = min(2 * self._most_active, max(self.threads, 1))
                    self._adapted = now
                if self._waiting and not any_ended:
                    self._generation += 2
                    self._old, self._blocked = 0, self.running
                else:
                    self._generation += 1
                    young = self.running - self._old - self._blocked
                    self._blocked += self._old
                    self._old = young
                self._generation_began, self._any_ended = now, False
            self._dispatch()
            useless = not self._waiting or (
                self.running >= self.threads and not any_ended
            )
            self._ticking = self.wakeups.pending or not useless

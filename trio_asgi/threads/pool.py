"""Worker threads: where the sync code of a request runs.

Django's sync code keeps state in its thread, above all database connections, so all
sync code of one request runs in one thread: its `Lease` takes that from the
`WorkerPool`, and gives it back for the next request, with its connections. Everything
here is called in the Trio thread, unless a docstring says otherwise.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from .abandon import INTERVAL, Abandoner
from .call_queue import CallQueue
from .lease import Lease, lease_of
from .loop import current_loop
from .worker import Worker

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable

    from .loop import CallLoop
    from .protocols import Inbox

T = TypeVar("T")


class WorkerPool:
    """The worker threads of one Trio run, and the limit on calls that run in them.

    Guarantees:

    - The `CallQueue` limits the calls that run to ``threads``.
    - A thread that stays idle for ``idle_seconds`` ends, as do all threads at the end
      of the run; its last act is to call ``on_thread_exit``.
    - If ``leases`` is given, no more leases of `lease` than that hold a thread at the
      same time, first come, first served. A thread that is to end counts until it has.
    - The thread that came back last is taken first, so that few threads do the work.
    """

    def __init__(self, **options: Any) -> None:
        """Start no thread yet; see `configure` for the options."""
        #: Where calls wait for a place, and what guards the pool.
        self.queue = CallQueue()
        # Only for leases of `lease`: they may wait for the others, which run calls that
        # are not thread-sensitive, or code that belongs to no request.
        self.slots: trio.CapacityLimiter | None = None
        self.configure(**options)
        #: The workers whose thread has not ended. Each removes itself.
        self.workers: set[Worker] = set()
        #: Whether the run is ending: then no thread is kept.
        self.closed = False
        self._trio_thread = threading.get_ident()
        # A dict because popitem(), and del in a thread that has waited long enough, are
        # atomic: they cannot both get the same worker.
        self._idle: dict[Worker, None] = {}
        self._program_lease: Lease | None = None
        self._caller_lease: Lease | None = None
        self._caller_inbox: Inbox | None = None
        self._requests_inbox: Inbox | None = None
        self._shall_lend = False
        #: Each is set when a system task has ended that may call sync code until then.
        self.ends_of_users: list[trio.Event] = []

    def configure(  # noqa: PLR0913 - each is a setting, or a hook
        self,
        *,
        threads: int = 40,
        leases: int | None = None,
        idle_seconds: float = 30.0,
        shutdown_seconds: float = 10.0,
        tidy: Callable[[], object] = lambda: None,
        on_thread_start: Callable[[], object] = lambda: None,
        on_thread_exit: Callable[[], object] = lambda: None,
    ) -> None:
        """Change the options, also for existing threads.

        Args:
            threads: How many calls may run at the same time.
            leases: How many leases of `lease`, of those made from now on, may hold a
                thread; None: any number.
            idle_seconds: How long an idle thread waits for its next lease.
            shutdown_seconds: How long to wait for the threads' end.
            tidy: What `run_tidily` calls before and after. Must not raise.
            on_thread_start: Called first in each thread; returns the worker's `data`.
            on_thread_exit: Called last in each thread.
        """
        self.queue.set_threads(threads)
        if leases is None:
            self.slots = None
        elif self.slots is None:
            self.slots = trio.CapacityLimiter(leases)
        else:
            self.slots.total_tokens = leases
        self.idle_seconds = min(idle_seconds, threading.TIMEOUT_MAX)
        self.shutdown_seconds = shutdown_seconds
        self.tidy = tidy
        self.on_thread_start, self.on_thread_exit = on_thread_start, on_thread_exit

    def take(self) -> Worker | None:
        """Return an idle worker, or in the Trio thread a new one. With the lock.

        Raises:
            RuntimeError: the system can start no more threads.
        """
        try:
            worker, _ = self._idle.popitem()
        except KeyError:
            if threading.get_ident() != self._trio_thread:
                return None
            worker = Worker(
                idle_seconds=lambda: self.idle_seconds,
                on_start=self.on_thread_start,
                on_idle=self.forget_idle,
                on_end=self._on_thread_end,
            )
            worker.thread.start()
            # Only now: start() may fail. The thread cannot have ended yet.
            self.workers.add(worker)
        return worker

    def give_back(self, worker: Worker) -> None:
        """Let the next lease have this worker. Any thread, with the lock."""
        self._idle[worker] = None
        if worker.waits_long:
            worker.note_idle()

    def forget_idle(self, worker: Worker) -> bool:
        """Remove a worker that is to end; False if it was taken. Any thread."""
        try:
            del self._idle[worker]
        except KeyError:
            return False
        return True

    def _on_thread_end(self, worker: Worker, then: Callable[[], object] | None) -> None:
        """Call `on_thread_exit`, and ``then`` in the Trio thread. Worker thread."""
        try:
            self.on_thread_exit()
        finally:
            self.workers.discard(worker)
            if then is not None:
                with suppress(trio.RunFinishedError):
                    self.queue.wakeups.run_sync_soon(then)

    def work_for(self, inbox: Inbox, *, lend: bool = False) -> None:
        """Run sensitive code that belongs to no request in a given thread.

        Args:
            inbox: The thread's inbox.
            lend: Whether to `lend_to_requests` too, from the first request that comes
                while the thread runs nothing: code there might wait for the request.
        """
        self._caller_inbox = inbox
        self._caller_lease = Lease(self, inbox)
        self._shall_lend = lend

    def lend_to_requests(self) -> None:
        """Run requests' code, too, in the thread of `work_for`: a test's, if any."""
        self._requests_inbox = self._caller_inbox

    def lease(
        self, kind: Callable[..., Lease] = Lease, *, needs_slot: bool = True
    ) -> Lease:
        """Return a lease for a request, or for what needs no slot."""
        caller = self._caller_lease
        if self._shall_lend and caller is not None and caller.running is None:
            self._shall_lend = False
            self.lend_to_requests()
        if self._requests_inbox is not None:
            return kind(self, self._requests_inbox)
        return kind(self, slots=self.slots if needs_slot else None)

    def background_lease(self) -> Lease:
        """Return a lease for a background task, for which no code waits."""
        return Lease(self, self._caller_inbox) if self._shall_lend else self.lease()

    def program_lease(self) -> CallLoop:
        """Return the loop for sensitive code that belongs to no request."""
        if self._caller_lease is not None:
            return self._caller_lease
        if self.closed:
            return OneCallLease(self)
        if self._program_lease is None:
            self._program_lease = Lease(self)
        return self._program_lease

    def replace_program_lease(self, lease: CallLoop) -> None:
        """If this is the program's lease, give the program's next call a new one.

        The thread of the old one may never be free again.
        """
        program = self._program_lease
        if program is not None and program is lease:
            self._program_lease = None
            program.release()

    async def run_sync(
        self,
        fn: Callable[[], T],
        *,
        context: contextvars.Context | None = None,
        inbox: Inbox | None = None,
    ) -> T:
        """Run ``fn()`` as `CallLoop.run_sync`, in any worker thread or an inbox's."""
        return await OneCallLease(self, inbox).run_sync(fn, context=context)

    def run_tidily(self, fn: Callable[[], T]) -> T:
        """Call ``fn()`` between two calls of `tidy`. Worker thread.

        For users' code in `run_sync`: a request may be the next to take the thread.
        """
        self.tidy()
        try:
            return fn()
        finally:
            self.tidy()

    async def retire_idle(self) -> None:
        """End the idle threads, and wait for that up to ``shutdown_seconds``."""
        with self.queue.lock:  # no call takes one of them meanwhile
            retired = list(self._idle)
            self._idle.clear()
            for worker in retired:
                worker.stop()
        await self._join(retired)

    async def _join(self, workers: list[Worker]) -> None:
        """Wait for the end of threads up to ``shutdown_seconds``."""
        self.queue.clock.hold()
        try:
            with trio.move_on_after(self.shutdown_seconds):
                for worker in workers:
                    await trio.to_thread.run_sync(
                        worker.thread.join, abandon_on_cancel=True
                    )
        finally:
            self.queue.clock.let_go()

    async def close_at_end_of_run(self) -> None:
        """End all threads when the run's main task has ended. A system task."""
        try:
            await trio.sleep_forever()
        finally:
            if self._program_lease is not None:
                self._program_lease.release()
            # Other system tasks, and async generators that are finalized after them,
            # may still call sync code: the threads end with these calls.
            with self.queue.lock:
                self.closed = True
            with trio.CancelScope(shield=True):
                await self.retire_idle()
                await self._leave_system_tasks()
                # A copy: a thread that ends leaves the set.
                await self._join([one for one in [*self.workers] if not one.left])

    async def _leave_system_tasks(self) -> None:
        """Wait for other system tasks that call sync code; abandon their waits."""
        nursery = trio.lowlevel.current_task().parent_nursery
        assert nursery is not None
        abandoner = Abandoner(nursery.parent_task, self.shutdown_seconds)
        for event in self.ends_of_users:
            while not event.is_set():
                abandoner.look()
                with trio.move_on_after(INTERVAL):
                    await event.wait()
        abandoner.look()
        while abandoner.is_needed:
            await trio.sleep(INTERVAL)
            abandoner.look()


class OneCallLease(Lease):
    """A lease that ends with its first call; as `impatient` as the caller's lease."""

    done = True

    @trio.lowlevel.enable_ki_protection
    async def run_sync(
        self, fn: Callable[[], T], *, context: contextvars.Context | None = None
    ) -> T:
        """Run the call, as `CallLoop.run_sync` does, and end the lease."""
        loop = current_loop.get()
        above = None if loop is None else lease_of(loop)
        if above is None or not above.open:
            above = Lease(self.pool)
        above.others.add(self)
        self.impatient = above.impatient
        try:
            fn = above.wrap_call(fn, "in another thread")
            return await super().run_sync(fn, context=context)
        finally:
            above.others.discard(self)
            above.others_abandoned |= self.abandoned
            self.release()

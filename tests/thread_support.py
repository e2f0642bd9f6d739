"""What tests of worker threads share: pools, leases, and code that waits."""

from __future__ import annotations

import contextvars
import os
import subprocess
import sys
import textwrap
import threading
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_asgi.threads.lease import Lease
from trio_asgi.threads.loop import current_loop
from trio_asgi.threads.pool import WorkerPool
from trio_asgi.threads.reentry import run_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

T = TypeVar("T")

#: A test that still waits after this time has failed.
SECONDS = 10

variable: contextvars.ContextVar[str] = contextvars.ContextVar(
    "variable", default="default"
)


@asynccontextmanager
async def open_pool(**options: Any) -> AsyncIterator[WorkerPool]:
    """Open a separate pool for a test; its threads have ended when the block has."""
    pool = WorkerPool(**options)
    try:
        with trio.fail_after(SECONDS):
            yield pool
    finally:
        with trio.CancelScope(shield=True):
            if pool._program_lease is not None:
                pool._program_lease.release()
            await pool.retire_idle()
    for worker in list(pool.workers):
        await join(worker.thread)
    assert pool.workers == set()
    assert pool.queue.running == 0


@pytest.fixture
async def pool() -> AsyncIterator[WorkerPool]:
    """Provide a pool, and cancel a test that takes too long."""

    async def give_up() -> None:
        await trio.sleep(SECONDS)
        pytest.fail("this takes too long")

    async with trio.open_nursery() as nursery, open_pool() as pool:
        nursery.start_soon(give_up)
        yield pool
        nursery.cancel_scope.cancel()


@pytest.fixture
async def lease(pool: WorkerPool) -> AsyncIterator[Lease]:
    """Provide a lease of that pool."""
    with open_lease(pool) as lease:
        yield lease


@contextmanager
def open_lease(pool: WorkerPool) -> Iterator[Lease]:
    """Take out a lease for a block."""
    lease = Lease(pool)
    try:
        yield lease
    finally:
        lease.release()


class Gate(Generic[T]):
    """Sync code that reports its start, waits to be let go, then does its work."""

    def __init__(self, work: Callable[[], T]) -> None:
        self.entered = trio.Event()
        #: Where the code runs, or ran.
        self.thread: threading.Thread
        self._work = work
        self._open = threading.Event()

    def __call__(self) -> T:
        self.thread = threading.current_thread()
        trio.from_thread.run_sync(self.entered.set)
        assert self._open.wait(SECONDS)
        return self._work()

    def open(self) -> None:
        """Let the code go on."""
        self._open.set()


def nothing() -> None:
    """The work of a gate that has none."""


def cannot_start(self: threading.Thread) -> NoReturn:
    """Fail, in the place of `threading.Thread.start`, as it does beyond a limit."""
    raise RuntimeError("can't start new thread")


def in_task(afn: Callable[[], Awaitable[T]]) -> T:
    """Run a coroutine function in the task that waits for this thread."""
    result, _ = run_async(afn)
    try:
        return result.unwrap()
    finally:
        # An error's traceback holds this frame: leave no cycle behind.
        del result


async def in_thread(fn: Callable[[], T]) -> T:
    """Run sync code where the current task's sync code belongs."""
    loop = current_loop.get()
    assert loop is not None
    return await loop.run_sync(fn)


async def wait_running(pool: WorkerPool, number: int) -> None:
    """Wait until so many calls have a place, as they get while others block."""
    while pool.queue.running < number:
        await trio.sleep(0.001)
    await wait_all_tasks_blocked()


async def join(thread: threading.Thread) -> None:
    """Wait for a thread to end."""
    await trio.to_thread.run_sync(thread.join, SECONDS)
    assert not thread.is_alive()


async def wait_set(event: threading.Event) -> None:
    """Wait for a thread's effect that no task waits for."""
    assert await trio.to_thread.run_sync(event.wait, SECONDS)


async def leave(lease: Lease, gate: Gate[Any]) -> None:
    """Start a gate's code, and leave it when it runs."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lease.run_sync, gate)
        await gate.entered.wait()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await wait_all_tasks_blocked()
            assert nursery.child_tasks, "the code was left too early"
            lease.stop_waiting()
    assert lease.abandoned


def worker_threads() -> set[threading.Thread]:
    """Return the present worker threads of any pool."""
    return {
        thread
        for thread in threading.enumerate()
        if thread.name.startswith("trio-asgi-worker")
    }


def assert_ending(threads: set[threading.Thread]) -> None:
    """Check that threads that were not waited for are at their end, not just idle."""
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()


def assert_at_rest(pool: WorkerPool) -> None:
    """Check that the pool is unused: each thread is idle, or at its end."""
    assert pool.queue.running == 0
    assert_ending(
        {worker.thread for worker in list(pool.workers) if worker not in pool._idle}
    )


def error_of(fn: Callable[..., object], *args: Any) -> type[BaseException] | None:
    """Return the type of the error that a call raises."""
    try:
        fn(*args)
    except BaseException as error:
        return type(error)
    return None


def run_script(script: str, *args: str) -> str:
    """Run a script in a separate Python, and return its output."""
    # The tests may have been started in the background, with SIGINT ignored.
    first = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    done = subprocess.run(
        [sys.executable, "-c", first + textwrap.dedent(script), *args],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=6 * SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", done.stderr
    return done.stdout


_INTERRUPTED = """
import signal, sys, trio
from trio_asgi.threads import call, call_queue, host, lease as leases, loop, pool
from trio_asgi.threads import wakeups, worker
from trio_asgi.threads.current import current_pool

modules = [call, call_queue, host, leases, loop, pool, wakeups, worker]
files = {{module.__file__ for module in modules}}
remaining = 0

def count(frame, event, argument):
    global remaining
    if event == "line":
        remaining -= 1
        if remaining == 0:
            sys.settrace(None)
            signal.raise_signal(signal.SIGINT)
    return count

def trace(frame, event, argument):
    ours = frame.f_code.co_filename in files
    return count if ours and remaining > 0 else None

async def use(pool, lease):
    with trio.fail_after(5):
        {steps}
    assert not any([{free}])

async def main(line):
    global remaining
    pool = current_pool()
    {setup}
    await use(pool, lease)
    remaining = line
    sys.settrace(trace)
    try:
        {steps}; await trio.lowlevel.checkpoint()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    try:
        await trio.lowlevel.checkpoint()
    except KeyboardInterrupt:
        pass
    try:
        await use(pool, lease)
    except BaseException as error:
        sys.exit(f"after an interrupt at line event {{line}}: {{error!r}}")
    lease.release()
    return remaining > 0

for line in range(1, 1000):
    if trio.run(main, line):
        break
print(line)
"""


def interrupt_each_line(
    *, setup: str, steps: Sequence[str], free: Sequence[str]
) -> int:
    """Use a new lease for each line of code that this takes, with Control-C there.

    Afterwards the lease must be usable, and nothing may be held.

    Args:
        setup: Makes ``lease`` of ``pool``.
        steps: What is awaited, one after the other.
        free: What must all be 0 afterwards.

    Returns:
        At how many lines Control-C was tried.
    """
    script = _INTERRUPTED.format(
        setup=setup,
        steps="; ".join(f"await {step}" for step in steps),
        free=", ".join(free),
    )
    return int(run_script(script))


async def wait_all_tasks_blocked_and(then: Callable[[], object]) -> None:
    """Do something as soon as all tasks wait."""
    await wait_all_tasks_blocked()
    then()


async def cancel_later(scope: trio.CancelScope, steps: int) -> None:
    """Cancel a scope after some steps of the scheduler."""
    for _ in range(steps):
        await trio.lowlevel.checkpoint()
    scope.cancel()

"""The running task's pool, loop and lease."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import trio

from .lease import Lease
from .loop import current_loop
from .pool import WorkerPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .loop import CallLoop

_pool = trio.lowlevel.RunVar[WorkerPool | None]("trio_asgi.pool", default=None)

#: Returns the arguments of `WorkerPool` for a new pool. Set by `install_bridge`.
pool_options: Callable[[], dict[str, Any]] = dict


def existing_pool() -> WorkerPool | None:
    """Return the pool of this thread's Trio run, if there is one. Any thread."""
    return _pool.get() if trio.lowlevel.in_trio_run() else None


def current_pool() -> WorkerPool:
    """Return the pool of this Trio run; make it at the first call."""
    pool = _pool.get()
    if pool is None:
        pool = WorkerPool(**pool_options())
        _pool.set(pool)
        try:
            trio.lowlevel.spawn_system_task(pool.close_at_end_of_run)
        except RuntimeError:  # the run is already ending
            pool.closed = True
    return pool


def sensitive_loop() -> CallLoop:
    """Return the loop for thread-sensitive code of the running task."""
    pool = _pool.get() or current_pool()
    loop = current_loop.get()
    # Sync code of another Trio run may have started this run, with its context.
    if loop is None or loop.pool is not pool:
        return pool.program_lease()
    return loop


@contextmanager
def reserve_lease(make_lease: Callable[..., Lease]) -> Iterator[None]:
    """Reserve a lease for the request whose handler runs in the block.

    It is the running task's, and the handler takes it over: see `reserved_lease`. If
    the handler is not reached, the thread ends: other code may have left state in it.
    """
    lease = current_pool().lease(make_lease)
    lease.reserved = True
    outer_loop = current_loop.set(lease)
    try:
        yield
    finally:
        current_loop.reset(outer_loop)
        if lease.reserved:
            lease.retire = True
            lease.release()


def reserved_lease() -> Lease | None:
    """Return the lease of a request whose handler has not begun yet, if there is one.

    Until then, Django's ``ASGIHandler.__call__`` and tools' wrappers of it run.
    """
    loop = current_loop.get()
    if isinstance(loop, Lease) and loop.reserved and loop.pool is current_pool():
        return loop
    return None


def has_own_thread() -> bool:
    """Whether the running task has a loop in its pool, as in a request."""
    loop = current_loop.get()
    return loop is not None and loop.pool is current_pool()

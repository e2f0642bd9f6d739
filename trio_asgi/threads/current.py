"""What the running task has: the pool of its Trio run, its loop, its lease."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from .lease import Lease
from .loop import current_loop
from .pool import WorkerPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from .loop import CallLoop

_pool: trio.lowlevel.RunVar[WorkerPool] = trio.lowlevel.RunVar("trio_asgi.pool")

#: Returns what the pool of a Trio run is made with: the arguments of `WorkerPool`. Set
#: by `install_bridge`.
pool_options: Callable[[], dict[str, Any]] = dict


def existing_pool() -> WorkerPool | None:
    """Return the pool of the Trio run of this thread, if it has one. Any thread."""
    if not trio.lowlevel.in_trio_run():
        return None
    try:
        return _pool.get()
    except LookupError:
        return None


def current_pool() -> WorkerPool:
    """Return the pool of this Trio run; its first caller makes it."""
    try:
        return _pool.get()
    except LookupError:
        pool = WorkerPool(**pool_options())
        _pool.set(pool)
        try:
            trio.lowlevel.spawn_system_task(pool.close_at_end_of_run)
        except RuntimeError:  # the run is at its end already
            pool.closed = True
        return pool


def sensitive_loop() -> CallLoop:
    """Return where thread-sensitive code of the running task belongs."""
    pool = current_pool()
    loop = current_loop.get()
    if loop is None or loop.pool is not pool:
        # None, or inherited by a Trio run that sync code of another run has started.
        return pool.program_lease()
    return loop


def reserved_lease() -> Lease | None:
    """Return the lease of a request whose handler has not begun yet, if there is one.

    Django's own ``ASGIHandler.__call__`` stands between the making of the lease and the
    handling of the request, and with it whatever tools have put around it.
    """
    loop = current_loop.get()
    if isinstance(loop, Lease) and loop.reserved and loop.pool is current_pool():
        return loop
    return None


def has_own_thread() -> bool:
    """Whether a request or the like has a thread for the running task's code."""
    loop = current_loop.get()
    return loop is not None and loop.pool is current_pool()

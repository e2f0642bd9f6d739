"""Runs the sync code of a test in the thread that has the test's database.

Django's tests have their transaction, and an in-memory database, in the thread that
sets them up. `run` leaves that thread to sync code, and runs Trio in another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import trio

from trio_asgi.threads.current import current_pool
from trio_asgi.threads.new_run import run_in_new_run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


def run(async_fn: Callable[..., Awaitable[T]], *args: Any, **options: Any) -> T:
    """Run as `trio.run` does, but thread-sensitive code in the calling thread.

    Trio runs in another thread, as for ``async def`` tests of Django's `TestCase`. The
    calling thread runs all sync code, including that of requests and of `start_soon`.
    So all of it sees what that thread has, such as a database connection in a
    transaction.

    Ctrl-C in the main thread cancels the function; if sync code is running, it is
    raised there instead.

    Raises:
        RuntimeError: called in a Trio task.
        KeyboardInterrupt: Ctrl-C was pressed; the function has ended.
        BaseException: what the function raises.
    """
    __tracebackhide__ = True
    if trio.lowlevel.in_trio_task():
        raise RuntimeError(
            "trio_asgi.testing.run() was called in a Trio task: it would start another "
            f"run, and block this one meanwhile. Just await {async_fn!r}."
        )

    async def main() -> T:
        __tracebackhide__ = True
        current_pool().lend_to_requests()
        return await async_fn(*args)

    result, _ = run_in_new_run(main, **options)
    try:
        return result.unwrap()
    finally:
        # An error's traceback refers to this frame: avoid a cycle.
        del result

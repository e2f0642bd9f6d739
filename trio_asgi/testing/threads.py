"""Runs the sync code of a test in the thread that has the test's database.

Django's tests have their transaction, and an in-memory database, in the thread that
sets them up. `run` leaves that thread to sync code, and runs Trio in another.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import trio
from asgiref.sync import sync_to_async

from trio_asgi.threads.current import current_pool
from trio_asgi.threads.new_run import run_in_new_run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

P = ParamSpec("P")
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


@asynccontextmanager
async def sync_context(
    make: Callable[P, AbstractContextManager[T]], *args: P.args, **kwargs: P.kwargs
) -> AsyncIterator[T]:
    """Enter and leave a sync context manager in the thread of thread-sensitive code.

    Use it in a Trio task for one that needs the thread's database connection::

        async with sync_context(self.assertNumQueries, 2):
            await client.get("/books/")

    ``make`` is called in the same thread. Leaving is shielded from cancellation.

    Yields:
        What the context manager's ``__enter__`` returns.
    """
    stack = ExitStack()

    def enter() -> T:
        return stack.enter_context(make(*args, **kwargs))

    value = await sync_to_async(enter)()
    try:
        yield value
    except BaseException as error:
        with trio.CancelScope(shield=True):
            leave = sync_to_async(stack.__exit__)
            swallowed = await leave(type(error), error, error.__traceback__)
        if not swallowed:
            raise
    else:
        with trio.CancelScope(shield=True):
            await sync_to_async(stack.close)()

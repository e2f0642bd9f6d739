"""Where the sync code of a test runs: in the thread that has the test's database.

Django's tests keep their transaction in the thread that sets them up, where an
in-memory database is too. `run` leaves that thread to sync code, and runs Trio in
another.
"""

from __future__ import annotations

import functools
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
    """Do as `trio.run`, and have thread-sensitive code run in the calling thread.

    Trio runs in a thread of its own, as it does for ``async def`` tests of Django's
    `TestCase`. The calling thread runs the sync code, the code of requests and of
    `start_soon` included. What that thread holds, a database connection in a
    transaction for example, is there for all of it.

    Args:
        async_fn: An async function.
        args: Its arguments.
        options: Those of `trio.run`: ``clock``, ``instruments`` and so on.

    Ctrl-C in the main thread cancels the function, unless sync code runs: then it is
    raised there.

    Raises:
        RuntimeError: called in a Trio task.
        KeyboardInterrupt: Ctrl-C was pressed; the function has ended.
        BaseException: what the function raises.
    """
    __tracebackhide__ = True
    if trio.lowlevel.in_trio_task():
        raise RuntimeError(
            "trio_asgi.testing.run() was called in a Trio task: it starts another run, "
            f"and blocks this one meanwhile. Just await {async_fn!r}."
        )

    async def main() -> T:
        __tracebackhide__ = True
        current_pool().lend_to_requests()
        return await async_fn(*args)

    result, _ = run_in_new_run(main, **options)
    try:
        return result.unwrap()
    finally:
        # An error's traceback holds this frame: leave no cycle behind.
        del result


@asynccontextmanager
async def sync_context(
    make: Callable[P, AbstractContextManager[T]], *args: P.args, **kwargs: P.kwargs
) -> AsyncIterator[T]:
    """Enter and leave a sync context manager in the thread of thread-sensitive code.

    For what looks at the database connection of its thread, in a Trio task::

        async with sync_context(self.assertNumQueries, 2):
            await client.get("/books/")

    Args:
        make: Returns the context manager. It is called in the thread too.
        args: Its arguments.
        kwargs: Its keyword arguments.

    Yields:
        What the context manager's ``__enter__`` returns.

    Leaving is shielded from cancellation.
    """
    stack = ExitStack()
    enter = functools.partial(_enter, stack, make, *args, **kwargs)
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


def _enter(
    stack: ExitStack,
    make: Callable[P, AbstractContextManager[T]],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    return stack.enter_context(make(*args, **kwargs))

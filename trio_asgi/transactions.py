"""Sync context managers, and above all transactions, in async code."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import trio
from asgiref.sync import sync_to_async
from django.db import transaction

from . import conf
from .bridge.sync_to_async import check_deadlock
from .threads.current import sensitive_loop
from .threads.lease import lease_of
from .threads.loop import current_loop
from .threads.trio_state import in_trio_task

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import _AsyncGeneratorContextManager

P = ParamSpec("P")
T = TypeVar("T")


@asynccontextmanager
async def sync_context(
    make: Callable[P, AbstractContextManager[T]], *args: P.args, **kwargs: P.kwargs
) -> AsyncIterator[T]:
    """Enter and leave a sync context manager in the thread of thread-sensitive code.

    Use it in a Trio task for one that needs the request's thread, with its database
    connections and its `threading.local` data::

        async with sync_context(cache.lock, "stock", timeout=10):
            await restock()

    ``make(*args, **kwargs)`` is called in the same thread. If the task is cancelled
    before the manager has been entered, it never is. If it is cancelled later, the
    manager is left with that `trio.Cancelled`, which leaving does not interrupt: it
    may take ``TRIO_ASGI["CLEANUP_SECONDS"]``, or longer if its sync code has begun
    and does not end. If there is no thread for so long, it is left later, before the
    thread's next call.

    Yields:
        What the context manager's ``__enter__`` returns.

    Raises:
        RuntimeError: called outside a Trio task, in an asyncio island for example.
        Exception: what the context manager raises.
    """
    async with _entered(partial(make, *args, **kwargs)) as value:
        yield value


@asynccontextmanager
async def _entered(
    make: Callable[[], AbstractContextManager[T]],
    before_leaving: Callable[[], object] | None = None,
) -> AsyncIterator[T]:
    """Be what `sync_context` returns; call a function in the task that leaves it."""
    _check_task()
    loop = sensitive_loop()
    stack = ExitStack()

    def enter() -> T:
        return stack.enter_context(make())

    async def leave(*exc_info: Any) -> bool | None:
        # An async generator that was not closed is left in a task of Trio, which would
        # call another thread. So is this one, and perhaps before those around it.
        if before_leaving is not None:
            before_leaving()
        marker = current_loop.set(loop)
        try:
            return await sync_to_async(stack.__exit__)(*exc_info)
        finally:
            current_loop.reset(marker)

    value = await sync_to_async(enter)()
    try:
        yield value
        # Never begins if the task is cancelled: then it is left with that.
        await leave(None, None, None)
    except BaseException as error:
        # Left already, if leaving has raised this: then the stack is empty. A thread
        # that was left at a shutdown cannot be asked any more.
        if lease_of(loop).abandoned:
            raise
        with trio.move_on_after(conf.get("CLEANUP_SECONDS"), shield=True) as scope:
            swallowed = await leave(type(error), error, error.__traceback__)
        if scope.cancelled_caught:
            lease_of(loop).retire = True
            if loop.open:
                # Later calls must not be part of it. That needs no place in the queue.
                loop.post(partial(stack.__exit__, *sys.exc_info()))
            raise RuntimeError(
                f"{make!r} could not be left within CLEANUP_SECONDS, because its "
                "thread was busy. The thread ends with the request."
            ) from error
        if not swallowed:
            raise


def atomic(
    using: str | None = None,
    savepoint: bool = True,  # noqa: FBT001, FBT002 - as in Django
    durable: bool = False,  # noqa: FBT001, FBT002
) -> _AsyncGeneratorContextManager[None]:
    """Run a block of async code in a database transaction.

    Django's `django.db.transaction.atomic` (ticket 33882), for Trio tasks::

        async with trio_asgi.atomic():
            order = await Order.objects.acreate(...)
            await Stock.objects.filter(...).aupdate(...)

    The transaction is one of the request's thread and connection. Any exception, a
    cancellation included, rolls it back. Blocks nest, with each other and with
    Django's own in sync code; ``on_commit`` works as in Django. A decorated async
    function, ``@trio_asgi.atomic()``, runs in such a block.

    Sync calls, and so all queries, of this task and of tasks in nurseries that were
    opened inside the block, are part of the transaction, one after the other. If two
    of them open a block, the second waits for the end of the first. Sync calls of
    other tasks of the request wait until the block is left: nothing that they write is
    rolled back with it. So do not wait for such a task inside the block: if it makes a
    sync call, both wait for ever. After ten seconds that is logged.

    Args:
        using: The alias of the database; None: the default one.
        savepoint: Whether a nested block makes a savepoint.
        durable: Whether the block must be the outermost one.

    Raises:
        RuntimeError: it is durable, but inside another; or it was opened outside a Trio
            task; or its request has ended meanwhile, and rolled it back.
        trio.Cancelled: cancelled before the commit has begun: it was rolled back.
        Exception: what the database raises.
    """
    if callable(using):
        # At once: a decorated function is not entered.
        raise TypeError("Use @trio_asgi.atomic() as a decorator with parentheses.")
    return _atomic(using, savepoint, durable)


@asynccontextmanager
async def _atomic(*args: Any) -> AsyncIterator[None]:
    _check_task()
    loop = sensitive_loop()
    check_deadlock(loop)
    block = await loop.begin_block()
    try:
        async with _entered(partial(transaction.atomic, *args), block.move_here):
            yield
    finally:
        await block.end()


def _check_task() -> None:
    if not in_trio_task():
        raise RuntimeError(
            "trio_asgi.sync_context() and trio_asgi.atomic() need a Trio task. In "
            "asyncio code, call a sync function that has the block, with sync_to_async."
        )

"""The part of asyncio that asgiref's tests use, on Trio.

Replaces the module `asyncio` in asgiref's test modules. A name that is missing here
fails by name, and a name that is here must not be weaker than the original.

A task made by `create_task` is a Trio system task: it may outlive the function that
made it, its failure affects only itself, and it is cancelled at the end of the run, as
in `asyncio.run`. A cancelled asyncio task gets its `CancelledError` once, and may then
wait again; so code that waits here shields itself once a `Cancelled` has come out of
it. Code for Trio opens such a shield by hand.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast
from weakref import WeakKeyDictionary

import outcome
import trio

from trio_asgi.threads.current import current_pool

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import (
        AsyncIterator,
        Awaitable,
        Callable,
        Collection,
        Coroutine,
        Generator,
        Iterator,
    )
    from concurrent.futures import ThreadPoolExecutor

T = TypeVar("T")


class TaskCancelledError(BaseException):
    """The awaited task has been cancelled."""


CancelledError = (trio.Cancelled, TaskCancelledError)
TimeoutError = TimeoutError  # noqa: A001, PLW0127 - as asyncio has it


@contextmanager
def _cancelled_once() -> Iterator[None]:
    """Wait as in an asyncio task: a cancellation arrives once."""
    task = _tasks.get(trio.lowlevel.current_task())
    try:
        with trio.CancelScope(shield=task is not None and task.cancel_delivered):
            yield
    except trio.Cancelled:
        if task is not None:
            task.cancel_delivered = task.cancel_requested
        raise


async def _wait(event: trio.Event) -> None:
    with _cancelled_once():
        await event.wait()


class Event:
    """`asyncio.Event`."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def is_set(self) -> bool:
        return self._event.is_set()

    def set(self) -> None:
        self._event.set()

    async def wait(self) -> bool:
        await _wait(self._event)
        return True


class Barrier:
    """`asyncio.Barrier`, except for broken barriers."""

    def __init__(self, parties: int) -> None:
        self._parties = parties
        self._waiting = 0
        self._all_here = trio.Event()

    async def wait(self) -> int:
        index = self._waiting
        self._waiting += 1
        all_here = self._all_here
        if self._waiting == self._parties:
            self._waiting, self._all_here = 0, trio.Event()
            all_here.set()
        await _wait(all_here)
        return index


class Future(Generic[T]):
    """`asyncio.Future`."""

    def __init__(self) -> None:
        self._outcome: outcome.Outcome[T] | None = None
        self._ended = trio.Event()
        self._when_done: list[Callable[[], object]] = []

    def done(self) -> bool:
        return self._outcome is not None

    def set_result(self, result: T) -> None:
        self._end(outcome.Value(result))

    def result(self) -> T:
        if self._outcome is None:
            raise asyncio.InvalidStateError("Result is not set.")
        if self.failed_with(trio.Cancelled):
            # That exception belongs to the cancelled task, and to no other.
            raise TaskCancelledError
        # An outcome gives up its error only once, a future each time.
        if isinstance(self._outcome, outcome.Error):
            raise self._outcome.error
        return cast("outcome.Value[T]", self._outcome).value

    def error(self) -> BaseException | None:
        """Return the error that `result` raises, or None."""
        try:
            self.result()
        except BaseException as error:
            return error
        return None

    def failed_with(self, kind: type[BaseException] = BaseException) -> bool:
        """Whether the result is an error of this kind."""
        ended = self._outcome
        return isinstance(ended, outcome.Error) and isinstance(ended.error, kind)

    def call_when_done(self, fn: Callable[[], object]) -> None:
        """Call ``fn()`` at the end, or now if the future is done."""
        if self.done():
            fn()
        else:
            self._when_done.append(fn)

    def __await__(self) -> Generator[Any, Any, T]:
        return self.wait_and_get().__await__()

    async def wait_and_get(self) -> T:
        """Await it; cancelling the waiter does not cancel it."""
        await _wait(self._ended)
        return self.result()

    def _end(self, result: outcome.Outcome[T]) -> None:
        if self.done():
            raise asyncio.InvalidStateError("invalid state")
        self._outcome = result
        self._ended.set()
        for fn in self._when_done:
            fn()


class Task(Future[T]):
    """`asyncio.Task`."""

    def __init__(
        self,
        awaitable: Awaitable[T],
        *,
        context: contextvars.Context | None = None,
        nursery: trio.Nursery | None = None,
    ) -> None:
        super().__init__()
        self.cancel_requested = False
        #: Whether its code has received its `Cancelled`.
        self.cancel_delivered = False
        self._scope = trio.CancelScope()
        if nursery is None:
            trio.lowlevel.spawn_system_task(
                self._run, awaitable, context=context or contextvars.copy_context()
            )
        else:
            nursery.start_soon(self._run_in_group, awaitable)

    def cancel(self) -> bool:
        if self.done():
            return False
        if self.cancel_requested:
            raise NotImplementedError("On Trio, a task is cancelled once.")
        self.cancel_requested = True
        self._scope.cancel()
        return True

    def __await__(self) -> Generator[Any, Any, T]:
        return self._wait_or_cancel().__await__()

    async def _wait_or_cancel(self) -> T:
        """Await it; cancelling the waiter cancels it too."""
        try:
            await _wait(self._ended)
        except trio.Cancelled:
            if not self.cancel_requested:
                self.cancel()
            with trio.CancelScope(shield=True):
                await self._ended.wait()
            raise
        return self.result()

    async def _run(self, awaitable: Awaitable[T]) -> None:
        async def run() -> T:
            return await awaitable

        _tasks[trio.lowlevel.current_task()] = self
        with self._scope:
            result = await outcome.acapture(run)
        self._end(result)

    async def _run_in_group(self, awaitable: Awaitable[T]) -> None:
        await self._run(awaitable)
        if self.failed_with() and not self.failed_with(trio.Cancelled):
            self.result()


_tasks: WeakKeyDictionary[trio.lowlevel.Task, Task[Any]] = WeakKeyDictionary()


def create_task(
    coroutine: Coroutine[Any, Any, T],
    *,
    name: str | None = None,
    context: contextvars.Context | None = None,
) -> Task[T]:
    """`asyncio.create_task`."""
    return Task(coroutine, context=context)


def ensure_future(awaitable: Awaitable[T]) -> Future[T]:
    """`asyncio.ensure_future`."""
    return awaitable if isinstance(awaitable, Future) else Task(awaitable)


class _CurrentTask:
    """The running task, for cancelling it."""

    def cancelling(self) -> int:
        return int(trio.current_effective_deadline() == -float("inf"))

    def uncancel(self) -> int:
        raise NotImplementedError("On Trio, a cancellation is not taken back.")


def current_task() -> _CurrentTask:
    """`asyncio.current_task`."""
    return _CurrentTask()


async def sleep(seconds: float) -> None:
    """`asyncio.sleep`."""
    with _cancelled_once():
        await trio.sleep(seconds)
        # asyncio runs ready tasks in order, Trio shuffles them. After two rounds every
        # task that was ready before has had a turn.
        await trio.lowlevel.checkpoint()


@asynccontextmanager
async def timeout(seconds: float) -> AsyncIterator[None]:
    """`asyncio.timeout`."""
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise TimeoutError from None


async def wait_for(awaitable: Awaitable[T], timeout: float) -> T:  # noqa: ASYNC109
    """`asyncio.wait_for`."""
    try:
        with trio.fail_after(timeout):
            return await awaitable
    except trio.TooSlowError:
        raise TimeoutError from None


async def wait(
    tasks: Collection[Future[T]],
) -> tuple[set[Future[T]], set[Future[T]]]:
    """`asyncio.wait`."""
    for task in tasks:
        await _wait(task._ended)
    return set(tasks), set()


def gather(*awaitables: Awaitable[Any], return_exceptions: bool = False) -> Any:
    """`asyncio.gather`."""
    return _gather(list(map(ensure_future, awaitables)), return_exceptions)


async def _gather(futures: list[Future[Any]], return_exceptions: bool) -> list[Any]:
    enough = trio.Event()

    def look() -> None:
        failed = any(future.failed_with() for future in futures)
        if (failed and not return_exceptions) or all(f.done() for f in futures):
            enough.set()

    for future in futures:
        future.call_when_done(look)
    try:
        await _wait(enough)
    except trio.Cancelled:
        for future in futures:
            if isinstance(future, Task):
                future.cancel()
        raise
    for future in futures:
        if future.failed_with() and not return_exceptions:
            future.result()
    return [future.error() or future.result() for future in futures]


async def shield(task: Task[T]) -> T:
    """`asyncio.shield`."""
    return await task.wait_and_get()


class _TaskGroup:
    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def create_task(
        self, coroutine: Coroutine[Any, Any, T], *, name: str | None = None
    ) -> Task[T]:
        return Task(coroutine, nursery=self._nursery)


@asynccontextmanager
async def TaskGroup() -> AsyncIterator[_TaskGroup]:  # noqa: N802 - asyncio's name
    """`asyncio.TaskGroup`."""
    async with trio.open_nursery() as nursery:
        yield _TaskGroup(nursery)


async def to_thread(fn: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """`asyncio.to_thread`."""
    return await trio.to_thread.run_sync(functools.partial(fn, *args, **kwargs))


def wrap_future(future: concurrent.futures.Future[T]) -> Future[T]:
    """`asyncio.wrap_future`."""
    token = trio.lowlevel.current_trio_token()
    wrapped: Future[T] = Future()

    def done(future: concurrent.futures.Future[T]) -> None:
        token.run_sync_soon(wrapped._end, outcome.capture(future.result))

    future.add_done_callback(done)
    return wrapped


class _Loop:
    """What asgiref's tests use of the running loop."""

    #: Where calls without ``thread_sensitive`` run; here, in the pool's threads.
    _default_executor = None

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()

    def call_soon_threadsafe(self, fn: Callable[..., object], *args: Any) -> None:
        self._token.run_sync_soon(contextvars.copy_context().run, fn, *args)

    def call_later(self, seconds: float, fn: Callable[..., object], *args: Any) -> None:
        async def call() -> None:
            await trio.sleep(seconds)
            fn(*args)

        Task(call())

    def create_future(self) -> Future[Any]:
        return Future()

    def set_default_executor(self, executor: ThreadPoolExecutor) -> None:
        """Allow as many calls at a time as this executor does."""
        current_pool().queue.set_threads(executor._max_workers)


_loop: trio.lowlevel.RunVar[_Loop] = trio.lowlevel.RunVar("asgiref_suite.loop")


def get_running_loop() -> _Loop:
    """`asyncio.get_running_loop`."""
    if not trio.lowlevel.in_trio_task():
        raise RuntimeError("no running event loop")
    try:
        return _loop.get()
    except LookupError:
        loop = _Loop()
        _loop.set(loop)
        return loop


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`."""

    async def wait() -> T:
        return await main

    return trio.run(wait)

"""A Trio run for sync code that calls a coroutine where no loop runs.

The coroutine runs in a thread of its own. The calling thread waits for it, and runs the
thread-sensitive code that the coroutine calls: what the caller has in its thread, a
database connection in a transaction for example, is there for the coroutine too.
"""

from __future__ import annotations

import contextvars
import functools
import signal
import threading
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

import outcome
import trio

from ._call import Ended, serve
from ._trio_thread import no_call, thread_state
from ._worker import current_pool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping
    from types import FrameType

T = TypeVar("T")


class NewRun:
    """One coroutine in a Trio run of its own. Made and used in the calling thread.

    Guarantees: the calling thread goes on when the run and all that it has started have
    ended. Ctrl-C in the main thread is a `KeyboardInterrupt` in the sync code that runs
    there, or cancels the coroutine, and is raised when that has ended; a second one is
    raised at once. It never comes between two steps of this class, which would leave
    the run without the thread that it waits for.
    """

    def __init__(
        self, afn: Callable[[], Awaitable[Any]], trio_options: Mapping[str, Any]
    ) -> None:
        self._afn = afn
        self._trio_options = trio_options
        self._inbox: SimpleQueue[Any] = SimpleQueue()
        self._scope = trio.CancelScope()
        self._token: trio.lowlevel.TrioToken | None = None
        self._interrupts = 0

    def run(
        self, start_thread: Callable[[Callable[[], None]], object]
    ) -> tuple[outcome.Outcome[Any], contextvars.Context]:
        """Run it, and serve it.

        Args:
            start_thread: Calls a function in another thread.

        Returns:
            The outcome, and the context that the coroutine ran in, with its changes.
        """
        context = contextvars.copy_context()

        def run() -> None:
            run = functools.partial(context.run, trio.run, self._main)
            self._inbox.put(Ended(outcome.capture(run)))

        # The task that waits for this thread, if any, is not the one that runs here.
        with no_call(), self._handle_interrupts():
            start_thread(run)
            ended = serve(self._inbox)
        if self._interrupts:
            raise KeyboardInterrupt
        return ended.unwrap()  # type: ignore[no-any-return]

    async def _main(self) -> tuple[outcome.Outcome[Any], contextvars.Context]:
        self._token = trio.lowlevel.current_trio_token()
        if self._interrupts:
            self._scope.cancel()
        current_pool().work_for(self._inbox)
        with self._scope:
            result = await outcome.acapture(self._afn)
        return result, contextvars.copy_context()

    @contextmanager
    def _handle_interrupts(self) -> Iterator[None]:
        """Take the place of Python's own handler of Ctrl-C, if it is there."""
        outer: Any = None
        if threading.current_thread() is threading.main_thread():
            outer = signal.getsignal(signal.SIGINT)
        is_ours = isinstance(getattr(outer, "__self__", None), NewRun)
        if outer is not signal.default_int_handler and not is_ours:
            yield
            return
        signal.signal(signal.SIGINT, self._interrupted)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, outer)

    def _interrupted(self, _signum: int, _frame: FrameType | None) -> None:
        if thread_state.in_sync_code:
            raise KeyboardInterrupt
        self._interrupts += 1
        if self._interrupts > 1:
            raise KeyboardInterrupt
        if self._token is not None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._scope.cancel)


def run_in_new_run(
    afn: Callable[[], Awaitable[T]],
    start_thread: Callable[[Callable[[], None]], object] | None = None,
) -> tuple[outcome.Outcome[T], contextvars.Context]:
    """Do as `run_async`, in a Trio run of its own. Any thread without a running loop.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; the coroutine was cancelled first.
    """
    return NewRun(afn).run(start_thread or _start_thread)


def _start_thread(fn: Callable[[], None]) -> None:
    trio.lowlevel.start_thread_soon(fn, outcome.Outcome.unwrap, "trio_asgi.new_run")

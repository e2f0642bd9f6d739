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
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import outcome
import trio

from .current import current_pool
from .loop import Ended, current_loop, serve, switch_context
from .trio_state import interrupts, no_call

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping
    from types import FrameType

T = TypeVar("T")

#: Returns whether this thread has a transaction, as that of a test does, in which the
#: code of requests has to run then. Set by `install_bridge`.
in_transaction: Callable[[], bool] = bool


class NewRun:
    """One coroutine in a Trio run of its own. Made and used in the calling thread.

    Guarantees: the calling thread goes on when the run and all that it has started have
    ended. While the main thread runs sync code, Ctrl-C is what it was before: a
    `KeyboardInterrupt` in that code, or whatever the code makes of it. While the thread
    waits, Ctrl-C cancels the coroutine, and is raised when that has ended; a second one
    is raised at once. It never comes between two steps of this class, which would leave
    the run without the thread that it waits for.
    """

    def __init__(
        self, afn: Callable[[], Awaitable[Any]], trio_options: Mapping[str, Any]
    ) -> None:
        # Lists, out of which the one who goes on takes what nobody else shall keep.
        self._afn = [afn]
        self._context = contextvars.copy_context()
        self._result: list[outcome.Outcome[Any]] = []
        self._trio_options = trio_options
        self._lends_thread = in_transaction()
        self._inbox: SimpleQueue[Any] = SimpleQueue()
        self._scope = trio.CancelScope()
        self._token: trio.lowlevel.TrioToken | None = None
        self._interrupts = 0
        self._cancelled = False

    def run(
        self, start_thread: Callable[[Callable[[], None]], object]
    ) -> tuple[outcome.Outcome[Any], contextvars.Context]:
        """Run it, and serve it.

        Args:
            start_thread: Calls a function in another thread.

        Returns:
            The outcome, and the context that the coroutine ran in, with its changes.
        """

        def run() -> None:
            # What Trio's run knows lives on until the next garbage collection. So it
            # is given neither the context nor the result.
            run = functools.partial(trio.run, self._main, **self._trio_options)
            self._inbox.put(Ended(outcome.capture(contextvars.Context().run, run)))

        # The task that waits for this thread, if any, is not the one that runs here.
        with self._handle_interrupts(), no_call():
            try:
                start_thread(run)
                ended = serve(self._inbox)
            except BaseException:
                # Of a signal handler, a test's time-out for example: nobody serves the
                # run any more.
                self._cancel()
                raise
        if self._interrupts:
            self._raise_interrupt()
        ended.unwrap()
        return self._result.pop(), self._context

    def _raise_interrupt(self) -> NoReturn:
        """Raise KeyboardInterrupt; its cause is what the coroutine has raised."""
        try:
            for result in self._result:
                result.unwrap()
        except trio.Cancelled:
            pass
        except BaseException as error:
            raise KeyboardInterrupt from error
        raise KeyboardInterrupt

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        if self._cancelled:
            self._scope.cancel()
        pool = current_pool()
        pool.work_for(self._inbox, lend=self._lends_thread)
        outer = await switch_context(self._context)
        # Here code has a thread already: that of the caller.
        marker = current_loop.set(pool.program_lease())
        with self._scope:
            self._result.append(await outcome.acapture(self._afn.pop()))
        current_loop.reset(marker)
        trio.lowlevel.current_task().context = outer

    @contextmanager
    def _handle_interrupts(self) -> Iterator[None]:
        """Take the place of Python's own handler of Ctrl-C, if it is there."""
        if (
            threading.current_thread() is not threading.main_thread()
            or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        ):
            yield
            return
        outer, interrupts.note_sync_code = (
            interrupts.note_sync_code,
            self._note_sync_code,
        )
        try:
            self._note_sync_code(begins=False)
            yield
        finally:
            self._note_sync_code(begins=True)
            interrupts.note_sync_code = outer

    def _note_sync_code(self, begins: bool) -> None:  # noqa: FBT001 - see `interrupts`
        """Change the handler of Ctrl-C, but for one that sync code has set itself."""
        default, own = signal.default_int_handler, self._interrupted
        current, new = (own, default) if begins else (default, own)
        if signal.getsignal(signal.SIGINT) == current:
            signal.signal(signal.SIGINT, new)

    def _interrupted(self, _signum: int, _frame: FrameType | None) -> None:
        self._interrupts += 1
        if self._interrupts > 1:
            raise KeyboardInterrupt
        self._cancel()

    def _cancel(self) -> None:
        # Noted first, for the run may just begin.
        self._cancelled = True
        if self._token is not None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._scope.cancel)


def run_in_new_run(
    afn: Callable[[], Awaitable[T]],
    start_thread: Callable[[Callable[[], None]], object] | None = None,
    **trio_options: Any,
) -> tuple[outcome.Outcome[T], contextvars.Context]:
    """Do as `run_async`, in a Trio run of its own. Any thread without a running loop.

    Args:
        afn: An async function without arguments.
        start_thread: Calls a function in another thread; one of Trio's if None.
        trio_options: Given to `trio.run`.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; the coroutine was cancelled first.
    """
    return NewRun(afn, trio_options).run(start_thread or _start_thread)


def _start_thread(fn: Callable[[], None]) -> None:
    trio.lowlevel.start_thread_soon(fn, outcome.Outcome.unwrap, "trio_asgi.new_run")

"""A Trio run for sync code that calls a coroutine where no loop runs.

The coroutine runs in a separate thread. The calling thread waits for it, and runs the
thread-sensitive code that it calls: so that code finds the state of the caller's
thread, such as a database connection in a transaction.
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
from .loop import current_loop, serve, switch_context
from .trio_state import interrupts, no_call

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping
    from types import FrameType

T = TypeVar("T")

#: Returns whether this thread has a transaction, as a test's thread does. Then the code
#: of requests has to run in it. Set by `install_bridge`.
in_transaction: Callable[[], bool] = bool


class NewRun:
    """One coroutine in a new Trio run. Made and used in the calling thread.

    Guarantees: the calling thread goes on when the run and all that it has started have
    ended. While the main thread runs sync code, Ctrl-C does what it did before: it
    raises `KeyboardInterrupt` there, or calls the code's own handler. While the main
    thread waits, Ctrl-C cancels the coroutine, and `KeyboardInterrupt` is raised when
    that has ended; a second Ctrl-C raises it at once. It never comes between two steps
    of this class: that would leave the run without the thread that it waits for.
    """

    def __init__(
        self, afn: Callable[[], Awaitable[Any]], trio_options: Mapping[str, Any]
    ) -> None:
        # Lists, to be emptied by the code that goes on: no other reference may be left.
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
        """Run it in a thread that ``start_thread`` starts, and run the calls it makes.

        Returns:
            The outcome, and the context that the coroutine ran in, with its changes.
        """

        def run() -> None:
            # Trio's run is garbage that only a collection frees: so it gets references
            # to neither the context nor the result.
            run = functools.partial(trio.run, self._main, **self._trio_options)
            self._inbox.put(outcome.capture(contextvars.Context().run, run))

        # A task of another run may wait for this thread: the new run must not see it.
        with self._handle_interrupts(), no_call():
            try:
                start_thread(run)
                ended = serve(self._inbox)
            except BaseException:
                # From a signal handler, such as a test's time-out: no more calls run.
                self._cancel()
                raise
        if self._interrupts:
            self._raise_interrupt()
        ended.unwrap()
        return self._result.pop(), self._context

    def _raise_interrupt(self) -> NoReturn:
        """Raise KeyboardInterrupt from the error that the coroutine raised, if any."""
        errors = [res.error for res in self._result if isinstance(res, outcome.Error)]
        if errors and not isinstance(errors[0], trio.Cancelled):
            raise KeyboardInterrupt from errors[0]
        raise KeyboardInterrupt

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        if self._cancelled:
            self._scope.cancel()
        pool = current_pool()
        pool.work_for(self._inbox, lend=self._lends_thread)
        outer = await switch_context(self._context)
        # Code here already has a thread: that of the caller.
        marker = current_loop.set(pool.program_lease())
        with self._scope:
            self._result.append(await outcome.acapture(self._afn.pop()))
        current_loop.reset(marker)
        trio.lowlevel.current_task().context = outer

    @contextmanager
    def _handle_interrupts(self) -> Iterator[None]:
        """Replace the handler of Ctrl-C, if that is Python's default."""
        if (
            threading.current_thread() is not threading.main_thread()
            or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        ):
            yield
            return
        outer = interrupts.note_sync_code
        interrupts.note_sync_code = self._note_sync_code
        try:
            self._note_sync_code(begins=False)
            yield
        finally:
            self._note_sync_code(begins=True)
            interrupts.note_sync_code = outer

    def _note_sync_code(self, begins: bool) -> None:  # noqa: FBT001 - see `interrupts`
        """Switch the handler of Ctrl-C, unless sync code has set its own."""
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
        self._cancelled = True  # first: the run may just be starting
        if self._token is not None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._scope.cancel)


def run_in_new_run(
    afn: Callable[[], Awaitable[T]],
    start_thread: Callable[[Callable[[], None]], object] | None = None,
    **trio_options: Any,
) -> tuple[outcome.Outcome[T], contextvars.Context]:
    """As `run_async`, in a new Trio run. Any thread without a running loop.

    Args:
        afn: An async function without arguments.
        start_thread: Calls a function in another thread; one of Trio's if None.
        trio_options: The options of `trio.run`.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; the coroutine was cancelled first.
    """
    return NewRun(afn, trio_options).run(start_thread or _start_thread)


def _start_thread(fn: Callable[[], None]) -> None:
    trio.lowlevel.start_thread_soon(fn, outcome.Outcome.unwrap, "trio_asgi.new_run")

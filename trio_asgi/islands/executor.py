"""The threads of `asyncio.to_thread` in islands."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import trio

from trio_asgi.threads.abandon import ABANDONED, name_of

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("trio_asgi")


def make_executor() -> Any:
    """Return the loop's default executor. Trio thread.

    trio-asyncio's executor waits for a thread even after the waiting task was
    cancelled: a thread that never ends would keep the loop, and the process, from
    ending. With this one a cancelled task goes on at once, as under asyncio.
    """
    import trio_asyncio  # noqa: PLC0415 - see import_trio_asyncio()

    token = trio.lowlevel.current_trio_token()

    class Executor(trio_asyncio.TrioExecutor):  # type: ignore[misc]
        """An executor that does not wait for the threads of cancelled tasks."""

        def __init__(self) -> None:
            super().__init__()
            #: The running functions, by a key per call. The threads change it.
            self._running: dict[object, Callable[..., Any]] = {}
            self._idle = trio.Event()

        async def submit(self, func: Callable[..., Any], *args: Any) -> Any:
            key = object()

            def run() -> Any:
                self._running[key] = func
                try:
                    return func(*args)
                finally:
                    del self._running[key]
                    with suppress(trio.RunFinishedError):
                        token.run_sync_soon(self._note_end)

            return await trio.to_thread.run_sync(
                run, limiter=self._limiter, abandon_on_cancel=True
            )

        def _note_end(self) -> None:
            if not self._running:
                self._idle.set()

        async def wait_idle(self, seconds: float) -> None:
            """Wait for the threads for at most ``seconds``; then log those that run."""
            with trio.move_on_after(seconds):
                while self._running:
                    self._idle = trio.Event()
                    await self._idle.wait()
            for func in list(self._running.values()):
                logger.error(ABANDONED, f"asyncio.to_thread({name_of(func)})", "nobody")

    return Executor()

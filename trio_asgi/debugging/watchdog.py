"""A thread that logs, under ``DEBUG``, which code of the project blocks the loop.

It looks at the stack of the loop's thread every `INTERVAL`. If code of the project is
there, it asks the loop to answer. If no answer comes for `LIMIT`, and the code is still
there, that code blocks the loop. So the loop itself does nothing while it is idle, and
a loop that is merely not scheduled is hardly ever accused.
"""

from __future__ import annotations

import linecache
import logging
import sys
import threading
import time
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import trio

from trio_asgi.threads.abandon import is_own_frame

from .frames import describe_frame, frames_of_stack, is_project_file, package_of

if TYPE_CHECKING:
    from types import FrameType

    from trio_asgi.asgi.types import Receive, Scope, Send

logger = logging.getLogger("trio_asgi")

#: Seconds between two looks, and seconds after which the loop counts as blocked.
INTERVAL: Final = 0.05
LIMIT: Final = 0.1

#: Seconds after which a line is logged again.
AGAIN: Final = 60.0

#: Seconds that the end of the run waits for a logging handler.
END_SECONDS: Final = 1.0

#: Packages in whose functions a debugger waits for its user. Most are based on `bdb`.
_DEBUGGERS: Final = frozenset({"bdb", "pdb", "debugpy", "pydevd", "_pydevd_bundle"})


def watch_loop(handler: Any) -> None:
    """Watch the loop of each Trio run from a handler's first request there."""
    handle = handler.handle

    async def handle_watched(scope: Scope, receive: Receive, send: Send) -> None:
        start_watchdog()
        await handle(scope, receive, send)

    handler.handle = handle_watched


def start_watchdog() -> None:
    """Watch the loop of this Trio run until its end. Does nothing the second time.

    Nor does it if the run has a test's clock: such a test may stop the time.
    """
    if _is_watched.get():
        return
    _is_watched.set(True)
    if hasattr(trio.lowlevel.current_clock(), "autojump_threshold"):
        return
    watchdog = Watchdog()
    with suppress(RuntimeError):  # the run is ending, or there are too many threads
        trio.lowlevel.spawn_system_task(watchdog.end_with_run)
        # Not in that task: the first request may block the loop before it begins.
        watchdog.thread.start()


_is_watched = trio.lowlevel.RunVar[bool]("trio_asgi.is_watched", default=False)


class Watchdog:
    """Watches one Trio run, in a thread that ends with it."""

    def __init__(self) -> None:
        """Start no thread yet. Called in a task of the run."""
        self._token = trio.lowlevel.current_trio_token()
        self._loop_thread = threading.get_ident()
        coroutine: Any = trio.lowlevel.current_task().coro
        frames = frames_of_stack(sys._getframe())
        #: Code that runs all the time, such as the script that has started the loop.
        self._outside = {
            frame.f_code for frame in frames[: frames.index(coroutine.cr_frame)]
        }
        self._answered, self._ended = threading.Event(), threading.Event()
        #: When each line was last logged.
        self._logged: dict[tuple[str, int], float] = {}
        # A daemon: a slow logging handler must not keep the process from exiting.
        self.thread = threading.Thread(
            target=self._watch, name="trio-asgi-watchdog", daemon=True
        )

    async def end_with_run(self) -> None:
        """End the thread at the end of the run, and wait for that. A system task."""
        try:
            await trio.sleep_forever()
        finally:
            self._ended.set()
            if self.thread.is_alive():
                with trio.move_on_after(END_SECONDS, shield=True):
                    join = self.thread.join
                    await trio.to_thread.run_sync(join, abandon_on_cancel=True)

    # The thread

    def _watch(self) -> None:
        while not self._ended.wait(INTERVAL):
            # In a function: to keep frames would keep what their variables refer to.
            self._look()

    def _look(self) -> None:
        """Log the code that blocks the loop, if any does."""
        if self._suspects() and not self._loop_answers():
            suspects = self._suspects()
            if suspects:
                self._log(suspects)

    def _suspects(self) -> list[FrameType]:
        """Return the running frames from the project's outermost one on.

        Empty if the project has no frame there, or if a debugger waits for its user.
        """
        stack = frames_of_stack(sys._current_frames().get(self._loop_thread))
        suspects: list[FrameType] = []
        for frame in stack:
            if frame.f_code in self._outside:
                continue
            if package_of(frame) in _DEBUGGERS:
                return []
            if suspects or is_project_file(frame.f_code.co_filename):
                suspects.append(frame)
        return suspects

    def _loop_answers(self) -> bool:
        """Whether the loop runs other code within `LIMIT`, or the run has ended."""
        self._answered.clear()
        try:
            self._token.run_sync_soon(self._answered.set, idempotent=True)
        except trio.RunFinishedError:
            return True
        return self._answered.wait(LIMIT)

    def _log(self, suspects: list[FrameType]) -> None:
        """Log where the loop is blocked, unless that was logged a short time ago."""
        last = max(
            index
            for index, frame in enumerate(suspects)
            if is_project_file(frame.f_code.co_filename)
        )
        culprit = suspects[last]
        filename, line = culprit.f_code.co_filename, culprit.f_lineno
        now = time.monotonic()
        if now - self._logged.get((filename, line), -AGAIN) < AGAIN:
            return
        self._logged[filename, line] = now
        place = describe_frame(culprit)
        if last + 1 < len(suspects):
            inner = suspects[last + 1]
            module = inner.f_globals.get("__name__", "?")
            what = f"{module}.{inner.f_code.co_name} called at {place}"
        else:
            what = f"{linecache.getline(filename, line).strip()!r} at {place}"
        if last:
            what += f", below {describe_frame(suspects[0])}"
        frames = ((one, one.f_lineno) for one in suspects if not is_own_frame(one))
        stack = "".join(traceback.StackSummary.extract(frames).format())
        logger.warning(
            "The event loop has been blocked for more than %d ms: %s. Meanwhile no "
            "other request is served. Await an async function in its place, or call "
            "it with sync_to_async().\n%s",
            *(LIMIT * 1000, what, stack.rstrip()),
        )

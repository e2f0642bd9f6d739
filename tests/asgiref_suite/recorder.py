"""Note for each test where its coroutines ran, in whichever process."""

from __future__ import annotations

import asyncio
import copy
import functools
import os
from typing import TYPE_CHECKING, Any

import trio
from asgiref.sync import AsyncToSync

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_suite.journal import Journal


class Recorder:
    """Patched into asgiref, above the bridge, and into asyncio."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def install(self) -> None:
        bridge: Any = AsyncToSync
        bridge.__call__ = self._calling(bridge.__call__)
        loop: Any = asyncio.BaseEventLoop
        loop.run_forever = self._started_asyncio(loop.run_forever)

    def recorded(self, afn: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``afn`` with a note of where it runs."""

        async def recorded(*args: Any, **kwargs: Any) -> Any:
            self.note(_running_library())
            return await afn(*args, **kwargs)

        return recorded

    def note(self, library: str) -> None:
        # In pytest's format: the name, then the phase in brackets.
        test, _, _ = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")
        if test:
            self.journal.note_ran_on(test, library)

    def _calling(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``AsyncToSync.__call__`` with a note of where the coroutine runs."""

        @functools.wraps(original)
        def __call__(bridge: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
            recorded = copy.copy(bridge)
            recorded.awaitable = self.recorded(bridge.awaitable)
            return original(recorded, *args, **kwargs)

        return __call__

    def _started_asyncio(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return a wrapper that notes that an asyncio loop is run."""

        @functools.wraps(original)
        def run_forever(loop: asyncio.BaseEventLoop) -> None:
            self.note("asyncio")
            original(loop)

        return run_forever


def _running_library() -> str:
    if asyncio._get_running_loop() is not None:
        return "asyncio"
    return "trio" if trio.lowlevel.in_trio_task() else "nothing"

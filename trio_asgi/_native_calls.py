"""asyncio called where none runs: in a Trio task, outside an island.

asyncio says "no running event loop" then, or less. With the bridge, the error names
what to do. Outside Trio tasks every call goes to the original.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
from typing import TYPE_CHECKING, Any

from ._trio_thread import in_trio_task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_lock = threading.Lock()
#: What was replaced: owner and name, the original, the replacement.
_replaced: list[tuple[Any, str, Any, Any]] = []


def install() -> None:
    """Replace what asyncio's functions ask for the running loop or task."""
    with _lock:
        if not _replaced:
            for owner, name in _places():
                original = vars(owner)[name]
                replacement = _name_the_island(original)
                _replaced.append((owner, name, original, replacement))
                setattr(owner, name, replacement)


def uninstall() -> None:
    """Put the originals back, but for what trio-asyncio has replaced meanwhile."""
    with _lock:
        for owner, name, original, replacement in _replaced:
            if vars(owner)[name] is replacement:
                setattr(owner, name, original)
        _replaced.clear()


def import_trio_asyncio() -> None:
    """Import trio-asyncio, which replaces much the same: it goes below, we on top."""
    if "trio_asyncio" in sys.modules:
        return
    was_installed = bool(_replaced)
    uninstall()
    try:
        import trio_asyncio  # noqa: F401, PLC0415 - costly, and few need it
    finally:
        if was_installed:
            install()


def _places() -> Iterator[tuple[Any, str]]:
    for module, name in (
        (asyncio.events, "get_running_loop"),
        (asyncio.events, "get_event_loop"),
        (asyncio.events, "_get_event_loop"),  # what gather() asks up to Python 3.11
        (asyncio.tasks, "current_task"),
        (asyncio.tasks, "__sleep0"),  # sleep(0) asks for no loop
    ):
        for owner in (module, asyncio):
            if name in vars(owner):
                yield owner, name
    # What locks, events and queues ask when they have to wait.
    yield asyncio.mixins._LoopBoundMixin, "_get_loop"


def _name_the_island(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def ask(*args: Any, **kwargs: Any) -> Any:
        if in_trio_task() and not _in_loop_of_trio_asyncio():
            raise RuntimeError(
                "no running event loop: asyncio was called in a Trio task. Call it in "
                "trio_asgi.asyncio_island(), or use what Trio has for the same."
            )
        return original(*args, **kwargs)

    return ask


def _in_loop_of_trio_asyncio() -> bool:
    """Whether the program has opened a loop of trio-asyncio around the task."""
    trio_asyncio = sys.modules.get("trio_asyncio")
    return trio_asyncio is not None and trio_asyncio.current_loop.get() is not None

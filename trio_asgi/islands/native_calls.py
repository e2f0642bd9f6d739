"""asyncio called where none runs: in a Trio task, outside an island.

asyncio says "no running event loop" then, or less. With the bridge, the error names
what to do. Outside Trio tasks every call goes to the original.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any

import sniffio
import trio

from trio_asgi.threads.trio_state import in_trio_task

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
                replacement = _refuse_in_trio(original)
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
    """Import trio-asyncio, and keep what it does to asyncio within Trio tasks.

    It replaces much the same functions: it goes below, we on top. It also would have
    `asyncio.run` use loops of its own, in which `sync_to_async` does not work.
    """
    if "trio_asyncio" in sys.modules:
        return
    was_installed = bool(_replaced)
    uninstall()
    try:
        with warnings.catch_warnings():
            # It still asks for what Python 3.12 has deprecated.
            warnings.simplefilter("ignore", DeprecationWarning)
            from trio_asyncio import _loop as theirs  # noqa: PLC0415 - few need it
    finally:
        if was_installed:
            install()
    in_trio = theirs._trio_policy.new_event_loop

    def new_event_loop() -> asyncio.AbstractEventLoop:
        loop: asyncio.AbstractEventLoop
        if trio.lowlevel.in_trio_task():
            loop = in_trio()
        else:  # the policy that is set, or was when trio-asyncio was imported
            loop = theirs._new_policy_get().new_event_loop()
        return loop

    theirs._trio_policy.new_event_loop = new_event_loop


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


def _refuse_in_trio(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def ask(*args: Any, **kwargs: Any) -> Any:
        # Asked often, so that even a call more would be noticed.
        if sniffio.thread_local.name == "trio":
            _check()
        return original(*args, **kwargs)

    return ask


def _check() -> None:
    """Raise RuntimeError if this is a Trio task, outside all loops of trio-asyncio."""
    if in_trio_task() and not _in_loop_of_trio_asyncio():
        raise RuntimeError(
            "no running event loop: asyncio was called in a Trio task. Call it in "
            "trio_asgi.asyncio_island(), or use what Trio has for the same."
        )


def _in_loop_of_trio_asyncio() -> bool:
    """Whether the program has opened a loop of trio-asyncio around the task."""
    trio_asyncio = sys.modules.get("trio_asyncio")
    return trio_asyncio is not None and trio_asyncio.current_loop.get() is not None

"""What replaces on Trio the names that asgiref's test modules import.

Each module gets its counterparts right after its import, in every process that imports
it: some tests start other processes.
"""

from __future__ import annotations

import asyncio
import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import asgiref.current_thread_executor
import asgiref.sync
import asgiref.testing
import asgiref.timeout
import pytest

import trio_asgi.testing
from suite_support import hand_out
from trio_asgi.threads.call import calling
from trio_asgi.threads.current import current_pool
from trio_asgi.threads.lease import lease_of
from trio_asgi.threads.loop import CallLoop, current_loop
from trio_asgi.threads.trio_state import in_trio_task

from . import asyncio_on_trio

if TYPE_CHECKING:
    from pathlib import Path

    from trio_asgi.threads.pool import WorkerPool


class _Executors:
    """``AsyncToSync.executors``: which thread waits for the calling code."""

    @property
    def current(self) -> CallLoop | None:
        """The thread in which an outer `async_to_sync` waits, or None."""
        call = calling()
        if in_trio_task():
            pool = current_pool()
        elif call is not None:
            pool = cast("WorkerPool", lease_of(call.loop).pool)
        else:
            return None
        loop = current_loop.get()
        if loop is None or loop.pool is not pool:
            return None
        waits = loop.parent is not None or loop is pool._caller_lease
        return loop if waits else None


def counterparts() -> list[tuple[object, object]]:
    """Return the originals, each with its replacement."""
    return [
        (asyncio, asyncio_on_trio),
        (asgiref.timeout.timeout, asyncio_on_trio.timeout),
        (
            asgiref.testing.ApplicationCommunicator,
            trio_asgi.testing.ApplicationCommunicator,
        ),
        # The tests ask only this of the class; asgiref's own code does not.
        (asgiref.sync.AsyncToSync, SimpleNamespace(executors=_Executors())),
        (asgiref.current_thread_executor.CurrentThreadExecutor, CallLoop),
    ]


def install(tests: Path) -> None:
    """Give the counterparts to all modules that are imported from ``tests``."""
    # Needed only for excluded tests, whose modules are imported all the same.
    stub: Any = ModuleType("pytest_asyncio")
    stub.fixture = pytest.fixture
    sys.modules["pytest_asyncio"] = stub
    hand_out(tests, counterparts)

"""What replaces on Trio the asyncio names in Django's test modules.

A test that says ``asyncio.sleep`` means any sleep. So each of Django's test modules
gets, after its import, the Trio counterpart under the same name. A counterpart must not
be weaker than the original: names that are not listed here fail by name.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asgiref.testing
import django.contrib.staticfiles.handlers
import django.core.asgi
import django.core.handlers.asgi
import trio

import trio_asgi
import trio_asgi.testing
from suite_support import hand_out
from trio_asgi.asgi import exchange

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path


class Event:
    """A `trio.Event` that can be cleared, as asyncio's can."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def is_set(self) -> bool:
        return self._event.is_set()

    def set(self) -> None:
        self._event.set()

    def clear(self) -> None:
        if self.is_set():
            self._event = trio.Event()

    async def wait(self) -> bool:
        await self._event.wait()
        return True


class Loop:
    """The one use of asyncio's loop in Django's tests: a call from a thread."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()

    def call_soon_threadsafe(self, fn: Callable[..., object], *args: Any) -> None:
        self._token.run_sync_soon(fn, *args)


class AsyncioOnTrio:
    """Replaces the module `asyncio`."""

    CancelledError = trio.Cancelled
    Event = Event
    TimeoutError = trio.TooSlowError
    get_event_loop = Loop
    iscoroutine = staticmethod(asyncio.iscoroutine)
    sleep = staticmethod(trio.sleep)

    @staticmethod
    def run(main: Coroutine[Any, Any, Any]) -> Any:
        async def wait() -> Any:
            return await main

        return trio.run(wait)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"There is no Trio counterpart of asyncio.{name}; give it one in "
            f"{__name__}, as strict as the original."
        )


def counterparts() -> list[tuple[object, object]]:
    """Return the originals, each with its replacement."""
    staticfiles = django.contrib.staticfiles.handlers
    return [
        (asyncio, AsyncioOnTrio()),
        (
            asgiref.testing.ApplicationCommunicator,
            trio_asgi.testing.ApplicationCommunicator,
        ),
        (django.core.asgi.get_asgi_application, trio_asgi.get_asgi_application),
        (django.core.handlers.asgi.ASGIHandler, trio_asgi.ASGIHandler),
        (staticfiles.ASGIStaticFilesHandler, trio_asgi.ASGIStaticFilesHandler),
    ]


def install(tests: Path) -> None:
    """Give the counterparts to all modules that are imported from ``tests``."""
    # As Django's handler, which listens for the disconnect from the start.
    exchange.WATCH_SECONDS = 0  # type: ignore[misc]
    hand_out(tests, counterparts)

"""Where a request's parts run: how many calls in threads, which code in which."""

from __future__ import annotations

import sys
import threading
import types
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from django.http import HttpRequest, HttpResponse
from django.utils.module_loading import import_string

from trio_asgi.chain.loop_safe import DJANGO_HOOKS
from trio_asgi.threads.current import current_pool
from trio_asgi.threads.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Iterator

STARTPROJECT = (
    SECURITY := "django.middleware.security.SecurityMiddleware",
    SESSIONS := "django.contrib.sessions.middleware.SessionMiddleware",
    COMMON := "django.middleware.common.CommonMiddleware",
    CSRF := "django.middleware.csrf.CsrfViewMiddleware",
    AUTH := "django.contrib.auth.middleware.AuthenticationMiddleware",
    MESSAGES := "django.contrib.messages.middleware.MessageMiddleware",
    FRAMES := "django.middleware.clickjacking.XFrameOptionsMiddleware",
)

LOOP, THREAD = "loop", "thread"


def here() -> str:
    """Return where this is called."""
    name = threading.current_thread().name
    return THREAD if name.startswith("trio-asgi-worker") else LOOP


def hello(request: HttpRequest) -> HttpResponse:
    """A sync view."""
    return HttpResponse("hello")


async def async_hello(request: HttpRequest) -> HttpResponse:
    """An async view that waits for nothing."""
    return HttpResponse("hello")


# Middleware

_numbers = count()
_layers = sys.modules["hop_layers"] = types.ModuleType("hop_layers")


def path_of(middleware: Any) -> str:
    """Make middleware importable, and return where it is found."""
    name = f"middleware{next(_numbers)}"
    setattr(_layers, name, middleware)
    return f"{_layers.__name__}.{name}"


def djangos() -> dict[str, type]:
    """Return this Django's middleware whose hooks may run on the loop."""
    found = {}
    for name in DJANGO_HOOKS:
        with suppress(ImportError):
            found[name] = import_string(name)
    return found


def hooks_of(cls: type) -> list[str]:
    """Return the names of a middleware's hooks."""
    return [name for name in dir(cls) if name.startswith("process_")]


# What runs where


@dataclass
class Hops:
    """The calls that have begun to run in worker threads, including nested ones."""

    calls: list[tuple[Lease, threading.Thread]] = field(default_factory=list)

    @property
    def count(self) -> int:
        """The number of calls."""
        return len(self.calls)

    @property
    def threads(self) -> set[threading.Thread]:
        """The threads used."""
        return {thread for _, thread in self.calls}


async def thread_is_idle() -> None:
    """Return when the thread that was given back last has done what was left to do."""
    await current_pool().run_sync(lambda: None)


@contextmanager
def counted_hops() -> Iterator[Hops]:
    """Count the calls that run in worker threads during the block."""
    hops = Hops()
    begin_call = Lease.begin_call

    def note(lease: Lease) -> None:
        hops.calls.append((lease, threading.current_thread()))
        begin_call(lease)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lease, "begin_call", note)
        yield hops


@contextmanager
def watched_hooks() -> Iterator[dict[str, str]]:
    """Note where Django's hooks are called, as "Session.request"; replace none.

    Only in this thread, and in threads that start meanwhile.
    """
    codes = {
        method.__code__: (
            f"{cls.__name__.removesuffix('Middleware')}.{name.removeprefix('process_')}"
        )
        for cls in djangos().values()
        for name, method in vars(cls).items()
        if name.startswith("process_")
    }
    places: dict[str, str] = {}

    def note(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code in codes:
            name = codes[frame.f_code]
            assert name not in places, "called twice"
            places[name] = here()

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield places
    finally:
        sys.setprofile(None)
        threading.setprofile(None)

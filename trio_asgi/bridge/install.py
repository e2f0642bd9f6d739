"""Install and uninstall the bridge, which makes asgiref and Django work in Trio tasks.

It wraps asgiref's two classes, and the few places where Django and asgiref call
asyncio. In a Trio task, or in a thread that a Trio task waits for, calls stay on Trio;
everywhere else they go to the original.
"""

from __future__ import annotations

import asyncio
import re
import threading
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, Any, Literal

import asgiref
import asgiref.local
import asgiref.sync
import django.contrib.auth
import django.dispatch.dispatcher
import django.http.response
import django.utils.asyncio
import trio
from asgiref.sync import AsyncToSync, SyncToAsync, ThreadSensitiveContext
from django.http import StreamingHttpResponse

from trio_asgi.islands import context
from trio_asgi.threads import current, new_run

from . import (
    async_to_sync,
    asyncio_calls,
    connections,
    get_user,
    pool_options,
    streaming_content,
    sync_to_async,
)
from .originals import is_original

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

#: The oldest supported versions.
_OLDEST = {asgiref: (3, 9, 2), trio: (0, 31)}

_lock = threading.Lock()
_installed: list[Patch] = []


@dataclass
class Patch:
    """The replacement of one attribute."""

    owner: Any
    name: str
    #: Takes the original, returns its replacement.
    make: Callable[[Any], Any]
    #: Whether a value comes from asgiref or Django.
    is_original: Callable[[Any], bool]
    original: Any = None
    replacement: Any = None

    def __str__(self) -> str:
        return f"{getattr(self.owner, '__qualname__', self.owner.__name__)}.{self.name}"

    @property
    def current(self) -> Any:
        """The attribute's value now; None if there is none."""
        return vars(self.owner).get(self.name)

    def check(self) -> None:
        """Raise RuntimeError if another library has replaced the original."""
        found = self.current
        if not self.is_original(found):
            raise RuntimeError(
                f"trio_asgi.install_bridge() found {self} already replaced, by "
                f"{found!r}. Call install_bridge() before that, or undo that first."
            )


def install_bridge(
    *, async_to_sync_backend: Literal["asyncio", "trio"] | None = None
) -> None:
    """Make asgiref and Django work in Trio tasks.

    Needs no configured settings. Any thread may call it, any number of times.

    Args:
        async_to_sync_backend: What `async_to_sync` starts where no loop runs, as in a
            management command, a synchronous test or the shell. ``"trio"``: a Trio run
            in another thread, whose thread-sensitive code runs in the calling thread.
            ``"asyncio"``: as without the bridge. None: no change; asyncio at first.

    Raises:
        ValueError: ``async_to_sync_backend`` has another value.
        RuntimeError: asgiref or Trio is too old, or another library has replaced one of
            the functions. Then nothing is installed.
    """
    if async_to_sync_backend not in (None, "asyncio", "trio"):
        raise ValueError(
            "install_bridge() was given async_to_sync_backend="
            f"{async_to_sync_backend!r}: it must be 'asyncio' or 'trio'."
        )
    with _lock:
        if not _installed:
            _check_versions()
            patches = _patches()
            for patch in patches:
                patch.check()
            for patch in patches:
                patch.original = patch.current
                patch.replacement = patch.make(patch.original)
            for patch in patches:
                setattr(patch.owner, patch.name, patch.replacement)
            _installed.extend(patches)
            current.pool_options = pool_options.pool_options
            new_run.in_transaction = connections.in_transaction
        if async_to_sync_backend is not None:
            async_to_sync.async_to_sync_backend = async_to_sync_backend


def uninstall_bridge() -> None:
    """Undo `install_bridge`, if it was called. Any thread may call it.

    Raises:
        RuntimeError: another library has replaced one of the bridge's functions. Then
            everything stays.
    """
    with _lock:
        for patch in _installed:
            if patch.current is not patch.replacement:
                raise RuntimeError(
                    f"trio_asgi.uninstall_bridge() found {patch} replaced once more, "
                    f"by {patch.current!r}. Undo that first."
                )
        for patch in _installed:
            setattr(patch.owner, patch.name, patch.original)
        _installed.clear()
        async_to_sync.async_to_sync_backend = "asyncio"


def _patches() -> list[Patch]:
    calls, dispatcher = asyncio_calls, django.dispatch.dispatcher
    asgirefs = _defined_in(asgiref.sync)
    patches = [
        Patch(SyncToAsync, "__call__", sync_to_async.patch_call, asgirefs),
        Patch(AsyncToSync, "__call__", async_to_sync.patch_call, asgirefs),
        Patch(ThreadSensitiveContext, "__aenter__", calls.patch_aenter, asgirefs),
        Patch(ThreadSensitiveContext, "__aexit__", calls.patch_aexit, asgirefs),
        # For asyncio loops that asgiref starts below sync code of a request.
        Patch(
            asgiref.sync,
            "_restore_context",
            lambda _: context.restore_context,
            asgirefs,
        ),
        Patch(asgiref.local, "asyncio", calls.patch_asyncio_of_local, _is_asyncio),
        # Used by `async_unsafe`.
        Patch(
            django.utils.asyncio,
            "get_running_loop",
            calls.patch_get_running_loop,
            _is_asyncios,
        ),
        Patch(
            StreamingHttpResponse,
            "_set_streaming_content",
            streaming_content.patch_set_streaming_content,
            _defined_in(django.http.response),
        ),
        Patch(
            StreamingHttpResponse,
            "streaming_content",
            streaming_content.patch_streaming_content,
            _is_djangos_property,
        ),
    ]
    if hasattr(dispatcher, "_run_parallel"):  # Django 6.1 and later
        make, is_original = calls.patch_run_parallel, _defined_in(dispatcher)
        patches.append(Patch(dispatcher, "_run_parallel", make, is_original))
    else:
        make = calls.patch_asyncio_of_dispatcher
        patches.append(Patch(dispatcher, "asyncio", make, _is_asyncio))
    auths = _defined_in(django.contrib.auth)
    if auths(django.contrib.auth.aget_user):  # this one only saves a hop
        make = get_user.patch_aget_user
        patches.append(Patch(django.contrib.auth, "aget_user", make, auths))
    return patches


def _defined_in(module: ModuleType) -> Callable[[Any], bool]:
    return lambda value: is_original(value, module)


def _is_djangos_property(value: Any) -> bool:
    return type(value) is property and _defined_in(django.http.response)(value.fget)


def _is_asyncio(value: Any) -> bool:
    return value is asyncio


def _is_asyncios(value: Any) -> bool:
    # asyncio has one in C and one in Python, and trio-asyncio replaces it in asyncio.
    # Django may have imported any of these.
    if type(value) is BuiltinFunctionType:
        return value.__module__ == "_asyncio"
    return type(value) is FunctionType and value.__globals__["__name__"] in (
        "asyncio.events",
        "trio_asyncio._loop",
        "asyncio.fake.trio_asyncio._loop",  # what trio-asyncio 0.16 calls it
    )


def _check_versions() -> None:
    for module, oldest in _OLDEST.items():
        numbers = re.findall(r"\d+", module.__version__)
        if tuple(map(int, numbers[: len(oldest)])) < oldest:
            name, needed = module.__name__, ".".join(map(str, oldest))
            raise RuntimeError(
                f"trio_asgi needs {name} {needed} or newer, and found "
                f"{module.__version__}: pip install --upgrade {name}"
            )

"""Why code needs the request's thread: in words, for `trio_asgi_hops`.

What needs it is decided elsewhere: for hooks by `LoopSafety`, for the rest by whether
it is a coroutine function. Here a decision is only explained. Nothing of a project is
called; what its settings name is imported.
"""

from __future__ import annotations

import functools
import sys
import weakref
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final

from asgiref.sync import AsyncToSync, SyncToAsync, iscoroutinefunction
from django.conf import settings
from django.core.cache import caches
from django.core.signals import request_finished, request_started
from django.db import connections
from django.utils.module_loading import import_string

from . import _loop_safe, _signals
from ._as_written import is_as_written
from ._loop_safe import DECLARABLE, DJANGOS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from django.core.cache.backends.base import BaseCache
    from django.dispatch import Signal
    from django.http import HttpResponseBase

    from ._loop_safe import LoopSafety

# Names


def name_of(thing: Any) -> str:
    """Return the dotted name by which a project knows a class, function or object."""
    if isinstance(thing, functools.partial):
        return name_of(thing.func)
    if isinstance(thing, AsyncToSync):
        return name_of(thing.awaitable)
    named = getattr(thing, "view_class", thing)
    if not hasattr(named, "__qualname__"):
        named = type(named)
    return f"{named.__module__}.{named.__qualname__}"


def middleware_names(instances: Sequence[Any]) -> list[str]:
    """Return what ``settings.MIDDLEWARE`` calls these objects, outermost first.

    Some that it names may be missing: those that have refused to be used.
    """
    paths = list(settings.MIDDLEWARE)
    if len(paths) == len(instances):
        return paths
    names = []
    for instance in instances:
        place = next(
            (i for i, path in enumerate(paths) if _may_have_made(path, instance)), None
        )
        names.append(_own_name(instance) if place is None else paths[place])
        del paths[: 0 if place is None else place + 1]
    return names


def _may_have_made(path: str, instance: Any) -> bool:
    factory = import_string(path)
    if isinstance(factory, type):
        return isinstance(instance, factory)
    return _own_name(instance) == name_of(factory)


def _own_name(instance: Any) -> str:
    # A function that another one has made is known by that one's name.
    return name_of(instance).partition(".<locals>")[0]


# Middleware

#: Why a hook of Django's needs the thread where its condition does not hold.
CONDITIONS: Final[Mapping[Callable[..., bool], Callable[[Any], str]]] = {
    _loop_safe._has_safe_store: lambda _: _unsafe_store(),
    _loop_safe._saves_no_session: lambda request: (
        "saves the session, for it was changed"
        if request.session.modified
        else "saves the session: SESSION_SAVE_EVERY_REQUEST"
        if settings.SESSION_SAVE_EVERY_REQUEST
        else _unsafe_store()
    ),
    _loop_safe._has_safe_messages: lambda _: _unsafe_messages(),
    _loop_safe._stores_no_message: lambda request: (
        "stores messages" if _has_messages(request) else _unsafe_messages()
    ),
    _loop_safe._token_is_in_cookie: lambda _: _IN_SESSION,
    _loop_safe._checks_no_token: lambda request: (
        _IN_SESSION
        if settings.CSRF_USE_SESSIONS
        else f"checks the token of a {request.method}"
    ),
    _loop_safe._adds_no_www: lambda _: (
        "PREPEND_WWW: may resolve another URL"
        if settings.PREPEND_WWW
        else _UNKNOWN_HOSTS
    ),
    _loop_safe._knows_hosts: lambda _: _UNKNOWN_HOSTS,
    _loop_safe._was_found: lambda _: "resolves another URL for a 404",
}
_UNKNOWN_HOSTS: Final = (
    "the request's get_host(), ALLOWED_HOSTS or DISALLOWED_USER_AGENTS is not Django's"
)
_IN_SESSION: Final = "CSRF_USE_SESSIONS: the token is in the session"


def _unsafe_store() -> str:
    return f"{settings.SESSION_ENGINE} may do I/O (SESSION_ENGINE)"


def _unsafe_messages() -> str:
    return f"{settings.MESSAGE_STORAGE} may do I/O (MESSAGE_STORAGE)"


def _has_messages(request: Any) -> bool:
    storage = request._messages
    return bool(storage.used or storage.added_new or storage._queued_messages)


def why_hook(
    instance: Any,
    safety: LoopSafety | None,
    hook: str,
    request: Any,
    subject: Any = None,
) -> str | None:
    """Say why a sync hook needs the thread for this request; None if it does not.

    Args:
        instance: The middleware.
        safety: The middleware's; None if the hook is no method of any.
        hook: The hook's name.
        request: The request.
        subject: As for `LoopSafety.allows`.
    """
    if safety is None:
        return "sync"
    holds = safety.holds()
    if holds and safety.allows(hook, request, subject):
        return None
    cls = type(instance)
    condition = DJANGOS.get(name_of(cls), {}).get(hook)
    if condition is not None:
        if holds:
            return CONDITIONS[condition](request)
        return f"not as Django wrote it: {_changed(instance)} was replaced"
    if hook in vars(cls).get("loop_safe_hooks", ()) and not holds:
        return f"{_changed(instance)} was replaced after it was loaded"
    return _why_not_declared(cls, hook)


def _why_not_declared(cls: type, hook: str) -> str:
    if cls.__module__.startswith("django."):
        return "sync, and Django's own needs the thread here"
    if hook not in DECLARABLE:
        return "sync"
    if hook in vars(cls).get("loop_safe_hooks", ()):
        return "sync here, since the response's file is of a class of its own"
    if hook in getattr(cls, "loop_safe_hooks", ()):
        return "sync; loop_safe_hooks of a base class does not count"
    bases = [base for base in cls.__mro__ if hook in DJANGOS.get(name_of(base), {})]
    if bases:
        return f"sync; in a subclass of {bases[0].__name__}, and not in loop_safe_hooks"
    return "sync, and not in loop_safe_hooks"


def _changed(instance: Any) -> str:
    """Name what is not as it was written, as far as that can be seen."""
    cls = type(instance)
    hidden = [name for name in vars(instance) if callable(getattr(cls, name, None))]
    module = sys.modules[cls.__module__]
    replaced = [
        name
        for name, value in vars(cls).items()
        for code in _loop_safe._code_in(value)
        if not is_as_written(code, module)
    ]
    return ", ".join((*hidden, *replaced)) or "something in the class"


def why_sync(name: str, below: Sequence[str]) -> str:
    """Say why a middleware that is called as a whole is called in the thread.

    Args:
        name: What ``settings.MIDDLEWARE`` calls it.
        below: Those below it, the next one first.
    """
    if not _can_be_async(name):
        return "sync only: not async_capable"
    lower = next((lower for lower in below if not _can_be_async(lower)), None)
    return f"made for sync code, because {lower} is sync only"


def _can_be_async(name: str) -> bool:
    try:
        factory = import_string(name)
    except ImportError:
        return False
    return bool(getattr(factory, "async_capable", False))


# Views


def wrappers(view: Any) -> Iterator[Any]:
    """Yield a view, then what is below each decorator or partial around it."""
    while view is not None:
        yield view
        if isinstance(view, functools.partial):
            view = view.func
        elif isinstance(view, AsyncToSync):
            view = view.awaitable
        else:
            view = getattr(view, "__wrapped__", None)


def why_view(view: Any) -> str:
    """Say why a view that is no coroutine function is not, and what else it does."""
    reasons = [_why_sync_view(view)]
    atomic = atomic_databases(view)
    if atomic:
        reasons.append(f"in a transaction: ATOMIC_REQUESTS of {', '.join(atomic)}")
    return ", ".join(reasons)


def atomic_databases(view: Any) -> list[str]:
    """Return the databases in whose transactions a view runs."""
    left_out: set[str] = getattr(view, "_non_atomic_requests", set())
    return [
        alias
        for alias, options in connections.settings.items()
        if options["ATOMIC_REQUESTS"] and alias not in left_out
    ]


def unkept_databases() -> list[str]:
    """Return the databases whose connections are closed after each request."""
    return [
        alias
        for alias, options in connections.settings.items()
        if options["CONN_MAX_AGE"] == 0
    ]


def _why_sync_view(view: Any) -> str:
    around = None
    for layer in wrappers(view):
        if iscoroutinefunction(layer):
            return f"made sync by {_describe_wrapper(around)}"
        around = layer
    if iscoroutinefunction(getattr(around, "__call__", None)):  # noqa: B004
        return (
            "taken for sync: its async __call__ is not marked as a coroutine function"
        )
    cls = getattr(around, "view_class", None)
    if cls is None:
        return "a sync view"
    methods = [
        method
        for method in cls.http_method_names
        if method != "options" and hasattr(cls, method)
    ]
    return f"a view with sync handlers: {', '.join(methods) or 'none at all'}"


def _describe_wrapper(wrapper: Any) -> str:
    """Name the decorator that has made a function."""
    if isinstance(wrapper, AsyncToSync):
        return "async_to_sync"
    if not isinstance(wrapper, FunctionType):
        return name_of(wrapper)
    code = wrapper.__code__
    # The function's own name was copied from what it wraps; its code has kept its own.
    name = getattr(code, "co_qualname", code.co_name)
    module = wrapper.__globals__.get("__name__", "?")
    decorator = f"{module}.{name.partition('.<locals>')[0]}"
    cells = dict(zip(code.co_freevars, wrapper.__closure__ or (), strict=True))
    if "self" in cells:
        # A method of a class such as contextlib's, whose object is the decorator.
        return name_of(type(cells["self"].cell_contents))
    return f"{decorator} (line {code.co_firstlineno})"


def hops_itself(view: Any) -> bool:
    """Whether an async view is a sync one in `sync_to_async`, or a decorator's."""
    return any(isinstance(layer, SyncToAsync) for layer in wrappers(view))


# Signals


def receivers_of_others(signal: Signal, djangos: Any) -> list[str]:
    """Name the receivers of a signal that Django itself has not connected."""
    names = []
    for entry in signal.receivers:
        key, receiver = entry[0], entry[1]
        if key in djangos._keys:
            continue
        if isinstance(receiver, weakref.ReferenceType):
            receiver = receiver()
        if receiver is not None:
            names.append(name_of(receiver))
    return names


def why_start() -> str | None:
    """Say who waits for ``request_started``; None if nobody does."""
    return _why_signal(request_started, _signals._djangos_of_start)


def why_finish(response: HttpResponseBase) -> str:
    """Say why the request of this response ends in the thread."""
    others = _why_signal(request_finished, _signals._djangos_of_finish)
    if others is not None:
        return others
    made = caches._connections  # type: ignore[attr-defined]
    used = [alias for alias in closing_caches() if hasattr(made, alias)]
    if used:
        return f"closes what was used: cache {', '.join(used)}"
    if not _signals._closes_nothing(response):
        return "closes the response"
    return "closes old database connections of the thread, for sync code has run there"


def closing_caches() -> dict[str, type[BaseCache]]:
    """Return the backends that have something to close after a request, by alias."""
    backends = {
        alias: import_string(options["BACKEND"])
        for alias, options in caches.settings.items()
    }
    return {
        alias: backend
        for alias, backend in backends.items()
        if not _signals._CACHE_CLOSE.is_code_of(backend.close)
    }


def _why_signal(signal: Signal, djangos: Any) -> str | None:
    if djangos.are_alone():
        return None
    names = receivers_of_others(signal, djangos)
    if not _signals.are_sent_as_written():
        names.append("what has replaced a method of django.dispatch.Signal")
    if not names:
        return "a receiver of Django's own was disconnected"
    return f"received by {', '.join(names)}"

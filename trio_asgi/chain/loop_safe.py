"""Middleware hooks that need no thread.

A hook may run on the loop if it does no I/O, holds no lock for long, and keeps nothing
in its thread. That cannot be found out from outside, so nothing is guessed:

- `DJANGO_HOOKS` lists hooks of Django's own middleware, with reasons and conditions. It
  holds for Django's unmodified classes. Subclasses and modified classes take the
  thread. So do a project's own sessions, messages and caches.
- Other middleware declares its hooks in a class attribute:
  ``loop_safe_hooks = ("process_request",)``. A subclass must declare them again, since
  it may override methods that they call.

A middleware's class is checked for changes once, when the middleware is loaded.
"""

from __future__ import annotations

import inspect
import sys
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Final

from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, request as request_module
from django.utils.module_loading import import_string

from trio_asgi.bridge.originals import Original, class_name, is_original_class
from trio_asgi.conf import setting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    #: Takes the middleware, the request, and for some hooks the response or the view.
    Condition = Callable[..., bool]

#: Hooks that may be declared. The others run where a thread is needed anyway: to render
#: a template, or to answer an error.
DECLARABLE: Final = ("process_request", "process_view", "process_response")


class _DjangoClasses:
    """Classes of Django, by their names."""

    def __init__(self, package: str, *names: str) -> None:
        self._names = frozenset(f"{package}.{name}" for name in names)
        #: Where those that were asked for are: a module's names, and one of them.
        self._places: dict[str, tuple[dict[str, Any], str]] = {}
        #: Classes that were found to be unmodified.
        self._checked: set[type] = set()

    def find(self, name: str) -> Any:
        """Return the class of this name now; None, importing nothing, for others."""
        if name not in self._places:
            if name not in self._names:
                return None
            import_string(name)
            module, _, attribute = name.rpartition(".")
            self._places[name] = vars(sys.modules[module]), attribute
        names, attribute = self._places[name]
        return names[attribute]

    def __contains__(self, cls: Any) -> bool:
        """Whether this is one of these, and was unmodified at the first check."""
        if cls not in self._checked:
            if cls is None or class_name(cls) not in self._names:
                return False
            if not all(map(is_original_class, cls.__mro__[:-1])):
                return False
            self._checked.add(cls)
        return True


#: Making one of these does no I/O. The file store looks for its directory.
_SESSION_STORES: Final = _DjangoClasses(
    "django.contrib.sessions.backends",
    "db.SessionStore",
    "cache.SessionStore",
    "cached_db.SessionStore",
    "signed_cookies.SessionStore",
)
#: Nor does making one of these. The file cache makes its directory.
_CACHES: Final = _DjangoClasses(
    "django.core.cache.backends",
    "db.DatabaseCache",
    "dummy.DummyCache",
    "locmem.LocMemCache",
    "memcached.PyLibMCCache",
    "memcached.PyMemcacheCache",
    "redis.RedisCache",
)
#: Nor does making one of these, with Django's cookie signer.
_MESSAGE_STORAGES: Final = _DjangoClasses(
    "django.contrib.messages.storage",
    "fallback.FallbackStorage",
    "cookie.CookieStorage",
    "session.SessionStorage",
)
_SIGNER: Final = "django.core.signing.TimestampSigner"
_LISTS: Final = (list, tuple)
_CSRF_SAFE_METHODS: Final = frozenset(("GET", "HEAD", "OPTIONS", "TRACE"))
_GET_HOST: Final = Original(HttpRequest.get_host, request_module)


def _always(*_: Any) -> bool:
    return True


def _never(*_: Any) -> bool:
    return False


def _has_safe_store(middleware: Any, *_: Any) -> bool:
    # A new store reads nothing until it is used.
    store = middleware.SessionStore
    if store not in _SESSION_STORES:
        return False
    if not store.__module__.endswith(("cache", "cached_db")):
        return True
    # It uses a cache, which is made for the first store in a thread.
    try:
        backend = setting("CACHES")[setting("SESSION_CACHE_ALIAS")]["BACKEND"]
    except LookupError:
        return False
    return _CACHES.find(backend) in _CACHES


def _saves_no_session(_: Any, request: Any, __: Any) -> bool:
    # Then the hook only looks at flags, and may set headers.
    session = getattr(request, "session", None)
    return session is None or (
        type(session) in _SESSION_STORES
        and not session.modified
        and not setting("SESSION_SAVE_EVERY_REQUEST")
    )


def _has_safe_messages(*_: Any) -> bool:
    # A new storage, with its parts, reads nothing until it is used.
    storage = _MESSAGE_STORAGES.find(setting("MESSAGE_STORAGE"))
    return (
        storage in _MESSAGE_STORAGES
        and setting("SIGNING_BACKEND") == _SIGNER
        and all(map(_MESSAGE_STORAGES.__contains__, _parts_of(storage)))
    )


def _parts_of(storage: Any) -> Iterable[type]:
    return getattr(storage, "storage_classes", ())


def _stores_no_message(_: Any, request: Any, __: Any) -> bool:
    # No message was added, and none was read that the storage must now forget.
    messages = getattr(request, "_messages", None)
    return messages is None or (
        type(messages) in _MESSAGE_STORAGES
        and not messages.used
        and not messages.added_new
    )


def _token_is_in_cookie(*_: Any) -> bool:
    # The token is read from a header or made of random bytes, and set in a header. With
    # `CSRF_USE_SESSIONS` the session's store would be read or written.
    return not setting("CSRF_USE_SESSIONS")


def _checks_no_token(_: Any, request: Any, __: Any) -> bool:
    # With other methods the hook may read the body, and logs a refusal.
    return request.method in _CSRF_SAFE_METHODS and not setting("CSRF_USE_SESSIONS")


def _knows_hosts(_: Any, request: Any) -> bool:
    # The hook compares the URL with patterns, and may look for the host in a setting.
    # A project's own kind of list or request may look elsewhere.
    return (
        type(setting("ALLOWED_HOSTS")) in _LISTS
        and _GET_HOST.is_code_of(type(request).get_host)
        and "get_host" not in vars(request)
    )


def _adds_no_www(middleware: Any, request: Any) -> bool:
    # Then the hook compares the user agent with patterns, and may look for the host. To
    # add "www." it would resolve the URL, perhaps by the project's own converters.
    return (
        not setting("PREPEND_WWW")
        and type(setting("DISALLOWED_USER_AGENTS")) in _LISTS
        and _knows_hosts(middleware, request)
    )


def _was_found(_: Any, __: Any, response: Any) -> bool:
    # Then the hook only sets a header. For a 404 it looks for another URL, perhaps by
    # the project's own converters.
    return bool(response.status_code != 404)  # noqa: PLR2004 - HTTP's


#: Hooks of Django's middleware, and the condition under which each needs no thread.
DJANGO_HOOKS: Final[Mapping[str, Mapping[str, Condition]]] = {
    "django.middleware.security.SecurityMiddleware": {
        "process_request": _knows_hosts,
        # Sets headers.
        "process_response": _always,
    },
    "django.contrib.sessions.middleware.SessionMiddleware": {
        "process_request": _has_safe_store,
        "process_response": _saves_no_session,
    },
    "django.middleware.common.CommonMiddleware": {
        "process_request": _adds_no_www,
        "process_response": _was_found,
    },
    "django.middleware.csrf.CsrfViewMiddleware": {
        "process_request": _token_is_in_cookie,
        "process_view": _checks_no_token,
        "process_response": _token_is_in_cookie,
    },
    "django.contrib.auth.middleware.AuthenticationMiddleware": {
        # Adds two functions to the request, which read the user when they are called.
        "process_request": _always,
    },
    "django.contrib.messages.middleware.MessageMiddleware": {
        "process_request": _has_safe_messages,
        "process_response": _stores_no_message,
    },
    "django.middleware.clickjacking.XFrameOptionsMiddleware": {
        # Sets a header.
        "process_response": _always,
    },
    # From Django 6.0 on.
    "django.middleware.csp.ContentSecurityPolicyMiddleware": {
        # Adds a function to the request, and sets headers.
        "process_request": _always,
        "process_response": _always,
    },
}


class LoopSafety:
    """Knows which hooks of one middleware may run on the loop. Trio thread."""

    def __init__(self, middleware: Any) -> None:
        """Check the middleware's class.

        Raises:
            ImproperlyConfigured: its ``loop_safe_hooks`` are not all in `DECLARABLE`.
        """
        self._conditions = {
            hook: MethodType(condition, middleware)
            for hook, condition in _conditions(middleware).items()
        }
        #: Whether it is listed in `DJANGO_HOOKS`, or has declared hooks.
        self.known = bool(self._conditions)
        #: Like `allows`, for these two hooks.
        self.process_request = self._conditions.get("process_request", _never)
        self.process_response = self._conditions.get("process_response", _never)

    def allows(self, hook: str, request: Any, *subject: Any) -> bool:
        """Whether the hook needs no thread for this request.

        The subject is the response for ``process_response``, and the view for
        ``process_view``.
        """
        return bool(self._conditions.get(hook, _never)(request, *subject))


def _conditions(middleware: Any) -> Mapping[str, Condition]:
    if _hides_methods(middleware):
        return {}
    cls = type(middleware)
    name = class_name(cls)
    djangos = DJANGO_HOOKS.get(name)
    if djangos is not None:
        return djangos if is_original_class(cls) else {}
    declared = vars(cls).get("loop_safe_hooks", ())
    if not isinstance(declared, (tuple, list)) or not all(
        hook in DECLARABLE for hook in declared
    ):
        raise ImproperlyConfigured(
            f"{name}.loop_safe_hooks must be a tuple of some of {DECLARABLE}, "
            f"not {declared!r}."
        )
    # This package's own middleware may need a thread for some requests.
    return dict.fromkeys(declared, vars(cls).get("_is_loop_safe", _always))


def _hides_methods(instance: Any) -> bool:
    """Whether an attribute of an instance hides a method of its class."""
    cls = type(instance)
    return any(
        isinstance(inspect.getattr_static(cls, name, None), FunctionType)
        for name in getattr(instance, "__dict__", ())
    )

"""Middleware hooks that need no thread.

A hook may run on the loop if it does no I/O, takes no lock for long, and keeps nothing
in its thread. Nobody can see that from outside, so nothing is guessed:

- Most hooks of Django's own middleware do no I/O, some of them on conditions. They
  stand below, each with the reason. It counts for classes that are exactly Django's,
  and as Django wrote them: a subclass, or a class in which anything was replaced, takes
  the thread. So do sessions, messages and the like that are a project's own.
- Other middleware declares its hooks in a class attribute:
  ``loop_safe_hooks = ("process_request",)``. A subclass has to declare them anew, for
  it may override what they call.

Whether anything was replaced in the class of a middleware is looked at once, when the
middleware is loaded.
"""

from __future__ import annotations

import inspect
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, request as request_module
from django.utils.module_loading import import_string

from trio_asgi.bridge.originals import Original, class_name, is_original_class

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    #: Takes the middleware, the request, and the response or the view, if there is one.
    Condition = Callable[[Any, Any, Any], bool]

#: Those that may be declared. The others only run where a thread is taken anyway: for
#: rendering a template, or for answering an error.
DECLARABLE: Final = ("process_request", "process_view", "process_response")


class _Djangos:
    """Classes of Django's, by their names."""

    def __init__(self, package: str, *names: str) -> None:
        self._names = frozenset(f"{package}.{name}" for name in names)
        #: Those that were looked at.
        self._met: set[type] = set()

    def has_name(self, name: str) -> bool:
        """Whether a class of this name may be one of these. Imports nothing."""
        return name in self._names

    def __contains__(self, cls: type) -> bool:
        """Whether a class is one of these; as Django wrote it, when first met."""
        if cls not in self._met:
            if class_name(cls) not in self._names:
                return False
            if not all(map(is_original_class, cls.__mro__[:-1])):
                return False
            self._met.add(cls)
        return True


#: Making one of these does no I/O. A store of files looks for its directory.
_SESSION_STORES: Final = _Djangos(
    "django.contrib.sessions.backends",
    "db.SessionStore",
    "cache.SessionStore",
    "cached_db.SessionStore",
    "signed_cookies.SessionStore",
)
#: Nor does making one of these. A cache of files makes its directory.
_CACHES: Final = _Djangos(
    "django.core.cache.backends",
    "db.DatabaseCache",
    "dummy.DummyCache",
    "locmem.LocMemCache",
    "memcached.PyLibMCCache",
    "memcached.PyMemcacheCache",
    "redis.RedisCache",
)
#: Nor does making one of these, with Django's signer of cookies.
_MESSAGE_STORAGES: Final = _Djangos(
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


def _has_safe_store(middleware: Any, *_: Any) -> bool:
    # The store is made, and reads nothing until it is used.
    store = middleware.SessionStore
    if store not in _SESSION_STORES:
        return False
    if not store.__module__.endswith(("cache", "cached_db")):
        return True
    # It takes a cache, which is made if this is the first that takes it.
    try:
        backend = settings.CACHES[settings.SESSION_CACHE_ALIAS]["BACKEND"]
    except LookupError:
        return False
    return _CACHES.has_name(backend) and import_string(backend) in _CACHES


def _saves_no_session(_: Any, request: Any, __: Any) -> bool:
    # Then it only looks at flags, and may set headers.
    try:
        session = request.session
    except AttributeError:
        return True
    return (
        type(session) in _SESSION_STORES
        and not session.modified
        and not settings.SESSION_SAVE_EVERY_REQUEST
    )


def _has_safe_messages(*_: Any) -> bool:
    # The storage is made, with those that it is made of. It reads nothing until it is
    # used.
    name = settings.MESSAGE_STORAGE
    if not _MESSAGE_STORAGES.has_name(name) or settings.SIGNING_BACKEND != _SIGNER:
        return False
    storage = import_string(name)
    parts = (storage, *getattr(storage, "storage_classes", ()))
    return all(map(_MESSAGE_STORAGES.__contains__, parts))


def _stores_no_message(_: Any, request: Any, __: Any) -> bool:
    # No message was queued, and none was read that is to be taken out of the storage.
    try:
        messages = request._messages
    except AttributeError:
        return True
    return (
        type(messages) in _MESSAGE_STORAGES
        and not messages.used
        and not messages.added_new
    )


def _token_is_in_cookie(*_: Any) -> bool:
    # It is read from a header or made of random bytes, and set in a header. In a
    # session it would be read from, or written to, wherever that is kept.
    return not settings.CSRF_USE_SESSIONS


def _checks_no_token(_: Any, request: Any, __: Any) -> bool:
    # With other methods it may read the body, and shows or logs its refusal.
    return request.method in _CSRF_SAFE_METHODS and not settings.CSRF_USE_SESSIONS


def _knows_hosts(_: Any, request: Any, __: Any) -> bool:
    # It compares the URL with patterns, and may ask for the host, which is looked for
    # in a setting. A project's own kind of list, or of request, may look elsewhere.
    return (
        type(settings.ALLOWED_HOSTS) in _LISTS
        and _GET_HOST.is_code_of(type(request).get_host)
        and "get_host" not in vars(request)
    )


def _adds_no_www(middleware: Any, request: Any, _: Any) -> bool:
    # Then it matches the client's name with patterns, and asks for the host. A URL that
    # may need the "www." is resolved, maybe by converters of the project's own.
    return (
        not settings.PREPEND_WWW
        and type(settings.DISALLOWED_USER_AGENTS) in _LISTS
        and _knows_hosts(middleware, request, None)
    )


def _was_found(_: Any, __: Any, response: Any) -> bool:
    # Then it only sets a header. For a 404 it looks for another URL, maybe by
    # converters of the project's own.
    return bool(response.status_code != 404)  # noqa: PLR2004 - HTTP's


#: Hooks of Django's own middleware, and the condition on which each needs no thread.
DJANGOS: Final[Mapping[str, Mapping[str, Condition]]] = {
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
        # Puts two functions on the request, which read the user when they are called.
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
        # Puts a function on the request, and sets headers.
        "process_request": _always,
        "process_response": _always,
    },
}


class LoopSafety:
    """Which hooks of one middleware may run on the loop. Asked in the Trio thread."""

    def __init__(self, middleware: Any) -> None:
        """Look the middleware's class up.

        Raises:
            ImproperlyConfigured: its ``loop_safe_hooks`` are no hooks that it may name.
        """
        self._middleware = middleware
        self._conditions = (
            {} if _hides_methods(middleware) else _conditions(type(middleware))
        )
        #: Whether anything is known of it: it is Django's, or has declared its hooks.
        self.known = bool(self._conditions)

    def allows(self, hook: str, request: Any, subject: Any = None) -> bool:
        """Whether the hook needs no thread for this request.

        Args:
            hook: The hook's name.
            request: The request.
            subject: The response, for ``process_response``; the view, for
                ``process_view``.
        """
        condition = self._conditions.get(hook)
        return condition is not None and condition(self._middleware, request, subject)


def _conditions(cls: type) -> Mapping[str, Condition]:
    name = class_name(cls)
    djangos = DJANGOS.get(name)
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
    # Our own may need a thread for some requests.
    return dict.fromkeys(declared, vars(cls).get("_is_loop_safe", _always))


def _hides_methods(instance: Any) -> bool:
    """Whether an instance has put something in the place of a method of its class."""
    cls = type(instance)
    return any(
        isinstance(inspect.getattr_static(cls, name, None), FunctionType)
        for name in getattr(instance, "__dict__", ())
    )

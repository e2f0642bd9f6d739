"""Hooks that need no thread run on the loop; all others take the request's thread."""

from __future__ import annotations

import functools
import sys
import types
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import django
import pytest
from django.contrib import messages
from django.contrib.messages.storage.base import BaseStorage
from django.contrib.messages.storage.cookie import CookieStorage
from django.contrib.messages.storage.fallback import FallbackStorage
from django.contrib.sessions.backends import db, signed_cookies
from django.core.cache.backends.locmem import LocMemCache
from django.core.exceptions import ImproperlyConfigured
from django.core.signing import TimestampSigner
from django.http import HttpRequest, HttpResponse
from django.middleware.csrf import get_token
from django.test import override_settings
from django.urls import path
from django.utils.deprecation import MiddlewareMixin

from hop_support import (
    AUTH,
    COMMON,
    CSRF,
    FRAMES,
    LOOP,
    MESSAGES,
    SECURITY,
    SESSIONS,
    STARTPROJECT,
    THREAD,
    async_hello,
    counted_hops,
    djangos,
    here,
    hooks_of,
    path_of,
    watched_hooks,
)
from support import Answer, application, request
from trio_asgi.chain import loop_safe as _loop_safe
from trio_asgi.chain.loop_safe import DJANGO_HOOKS
from trio_asgi.threads.current import current_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from trio_asgi import ASGIHandler

CSP = "django.middleware.csp.ContentSecurityPolicyMiddleware"
CSRF_SECRET = "s" * 32


def header(name: str, value: str) -> dict[str, Any]:
    """Return a header of a scope."""
    return {"headers": [(name.encode(), value.encode())]}


async def run(
    *middleware: str,
    view: Any = async_hello,
    settings: dict[str, Any] | None = None,
    of_request: dict[str, Any] | None = None,
    **scope: Any,
) -> tuple[Answer, dict[str, str]]:
    """Make a request; return the answer, and where Django's hooks were called."""
    with override_settings(**settings or {}):
        app = application(path("", view), middleware=middleware)
        if of_request is not None:
            app.request_class = type("OwnRequest", (app.request_class,), of_request)
        with watched_hooks() as places:
            answer = await request(app, **scope)
    return answer, places


def in_thread(places: dict[str, str]) -> set[str]:
    """Return which hooks were called in a thread."""
    return {name for name, place in places.items() if place == THREAD}


# The list


def test_the_list_names_hooks_that_there_are() -> None:
    """Every entry is a middleware of the newest Django, and each hook exists in it."""
    found = djangos()
    if django.VERSION >= (6, 0):
        assert found.keys() == DJANGO_HOOKS.keys()
    for name, cls in found.items():
        assert f"{cls.__module__}.{cls.__qualname__}" == name
        assert DJANGO_HOOKS[name].keys() <= vars(cls).keys()


def test_the_list_is_complete() -> None:
    """Every hook of a listed middleware has a condition."""
    for name, cls in djangos().items():
        assert set(hooks_of(cls)) == DJANGO_HOOKS[name].keys()


# Without a thread


async def makes_token(request: HttpRequest) -> HttpResponse:
    """Use a CSRF token, which sets a cookie."""
    return HttpResponse(get_token(request))


async def asks_for_user(request: HttpRequest) -> HttpResponse:
    """Ask for the user, without a session."""
    user = await request.auser()
    return HttpResponse(str(user.is_anonymous))


async def reads_session(request: HttpRequest) -> HttpResponse:
    """Look into a session that is not there."""
    return HttpResponse(str(await request.session.aget("key", "nothing")))


async def reads_no_messages(request: HttpRequest) -> HttpResponse:
    """Ask for the number of messages, without reading them."""
    return HttpResponse(str(len(messages.get_messages(request))))


SCOPES: dict[str, dict[str, Any]] = {
    "GET": {"method": "GET"},
    "HEAD": {"method": "HEAD"},
    "OPTIONS": {"method": "OPTIONS"},
    "TRACE": {"method": "TRACE"},
    "with a session cookie": header("cookie", "sessionid=" + "a" * 32),
    "with a CSRF cookie": header("cookie", f"csrftoken={CSRF_SECRET}"),
    "with a wrong CSRF cookie": header("cookie", "csrftoken=!"),
    "with a messages cookie": header("cookie", "messages=nonsense"),
}


@pytest.mark.parametrize("scope", SCOPES.values(), ids=SCOPES)
@pytest.mark.parametrize("middleware", [(), STARTPROJECT], ids=["none", "startproject"])
async def test_an_async_view_takes_no_thread(
    middleware: Sequence[str], scope: dict[str, Any]
) -> None:
    """With startproject's middleware, or none, no thread is even started."""
    with counted_hops() as hops:
        answer, places = await run(*middleware, **scope)
    assert answer.status == 200
    assert answer.body == b"hello"
    assert set(places.values()) <= {LOOP}
    assert len(places) == (13 if middleware else 0)
    assert hops.count == 0
    assert current_pool().workers == set()


@pytest.mark.parametrize(
    ("view", "body"),
    [
        (makes_token, None),
        (asks_for_user, b"True"),
        (reads_session, b"nothing"),
        (reads_no_messages, b"0"),
    ],
)
async def test_what_a_view_asks_for_need_not_take_a_thread(
    view: Any, body: bytes | None
) -> None:
    """A new CSRF token, an anonymous user, a missing session: no thread."""
    answer, places = await run(*STARTPROJECT, view=view)
    assert answer.status == 200
    assert body is None or answer.body == body
    assert set(places.values()) == {LOOP}
    assert current_pool().workers == set()


async def test_the_cookie_of_a_token_is_set_without_a_thread() -> None:
    """The token that the view has made is in the cookie, and Vary names it."""
    answer, _ = await run(*STARTPROJECT, view=makes_token)
    headers = dict(answer.headers)
    assert headers[b"Set-Cookie"].startswith(b"csrftoken=")
    assert headers[b"Vary"] == b"Cookie"
    assert current_pool().workers == set()


async def test_a_redirect_to_https_takes_no_thread() -> None:
    """A middleware that answers on the loop is enough of a response."""
    answer, places = await run(SECURITY, COMMON, settings={"SECURE_SSL_REDIRECT": True})
    assert answer.status == 301
    assert dict(answer.headers)[b"Location"] == b"https://testserver/"
    assert in_thread(places) == set()
    assert current_pool().workers == set()


@pytest.mark.skipif(django.VERSION < (6, 0), reason="from Django 6.0 on")
async def test_a_content_security_policy_takes_no_thread() -> None:
    """Its nonce is made, and its header set, on the loop."""
    from django.middleware.csp import get_nonce  # noqa: PLC0415
    from django.utils.csp import CSP as POLICY  # noqa: PLC0415

    async def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(str(get_nonce(request)))

    answer, places = await run(
        CSP, view=view, settings={"SECURE_CSP": {"script-src": [POLICY.NONCE]}}
    )
    policy = dict(answer.headers)[b"Content-Security-Policy"]
    assert policy == b"script-src 'nonce-" + answer.body + b"'"
    assert len(places) == 2
    assert set(places.values()) == {LOOP}
    assert current_pool().workers == set()


async def test_a_view_may_do_without_session_and_messages() -> None:
    """If the view takes them off the request, nothing needs saving."""

    async def view(request: HttpRequest) -> HttpResponse:
        del request.session
        del request._messages  # type: ignore[attr-defined]
        return HttpResponse()

    answer, places = await run(SESSIONS, MESSAGES, view=view)
    assert answer.status == 200
    assert in_thread(places) == set()


#: The records of Python's audit hook, while it is a list.
_audited: list[str] | None = None


def _audit(event: str, arguments: Any) -> None:
    opens = event.startswith(("open", "os.", "shutil.", "socket.", "sqlite3."))
    if opens and _audited is not None and here() == LOOP:
        _audited.append(event)


@pytest.fixture(scope="module")
def _audit_hook() -> None:
    """Have Python report opened objects. Audit hooks cannot be removed."""
    sys.addaudithook(_audit)


@pytest.fixture
def opened(_audit_hook: None) -> Iterator[list[str]]:
    """Record what the loop does with files, sockets and databases."""
    global _audited  # noqa: PLW0603 - see there
    _audited = []
    try:
        yield _audited
    finally:
        _audited = None


ENGINES = ("db", "cache", "cached_db", "signed_cookies", "file")
CACHES = (
    "locmem.LocMemCache",
    "dummy.DummyCache",
    "db.DatabaseCache",
    "redis.RedisCache",
    "filebased.FileBasedCache",
)
STORAGES = (
    "fallback.FallbackStorage",
    "cookie.CookieStorage",
    "session.SessionStorage",
)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("engine", ENGINES)
async def test_nothing_is_opened_on_the_loop(
    engine: str, cache: str, storage: str, opened: list[str], tmp_path: Any
) -> None:
    """Wherever sessions and messages are kept, hooks on the loop open none of it."""
    kept_in_files = engine == "file" or (
        engine in {"cache", "cached_db"} and cache == "filebased.FileBasedCache"
    )
    settings = {
        "SESSION_ENGINE": f"django.contrib.sessions.backends.{engine}",
        "SESSION_FILE_PATH": str(tmp_path),
        "CACHES": {
            "default": {
                "BACKEND": f"django.core.cache.backends.{cache}",
                "LOCATION": str(tmp_path / "cache"),
            }
        },
        "MESSAGE_STORAGE": f"django.contrib.messages.storage.{storage}",
    }
    with override_settings(**settings):
        app = application(path("", async_hello), middleware=STARTPROJECT)
        scope = header("cookie", "sessionid=" + "a" * 32)
        with watched_hooks() as places:
            await request(app, **scope)  # imports
            places.clear()
            opened.clear()
            answer = await request(app, **scope)
        assert opened == []
    assert answer.status == 200
    assert bool(in_thread(places)) == kept_in_files


# Conditions


class OwnStore(signed_cookies.SessionStore):
    """A project's own store, which might do anything."""


class OwnCache(LocMemCache):
    """A project's own cache."""


class OwnFallbackStorage(FallbackStorage):
    """A project's own storage of messages."""


class OwnSigner(TimestampSigner):
    """A project's own signer, which might get its keys from elsewhere."""


class OwnList(list[Any]):
    """A list that might be kept in a database."""


class OwnSession:
    """Just enough of a session for Django's middleware."""

    accessed = modified = False

    def is_empty(self) -> bool:
        """Return that it is empty."""
        return True


class OwnMessages(BaseStorage):
    """Just enough of a storage for Django's middleware."""


own_engine = sys.modules["own_session_engine"] = types.ModuleType("own_session_engine")
own_engine.SessionStore = OwnStore  # type: ignore[attr-defined]


async def modifies_session(request: HttpRequest) -> HttpResponse:
    await request.session.aset("key", "value")
    return HttpResponse()


async def queues_message(request: HttpRequest) -> HttpResponse:
    messages.info(request, "news")
    return HttpResponse()


async def takes_message_back(request: HttpRequest) -> HttpResponse:
    messages.info(request, "news")
    request._messages._queued_messages.clear()  # type: ignore[attr-defined]
    return HttpResponse()


async def reads_messages(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str([*messages.get_messages(request)]))


async def replaces_session(request: HttpRequest) -> HttpResponse:
    request.session = OwnSession()  # type: ignore[assignment]
    return HttpResponse()


async def replaces_messages(request: HttpRequest) -> HttpResponse:
    request._messages = OwnMessages(request)  # type: ignore[attr-defined]
    return HttpResponse()


async def is_missing(request: HttpRequest) -> HttpResponse:
    return HttpResponse(status=404)


class ReplacesGetHost:
    """An async middleware that replaces a method of the request."""

    async_capable = True
    sync_capable = False

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    async def __call__(self, request: HttpRequest) -> Any:
        request.get_host = lambda: "testserver"  # type: ignore[method-assign]
        return await self.get_response(request)


@dataclass
class Case:
    """A request for which some hooks need a thread."""

    middleware: tuple[str, ...]
    #: The hooks that do.
    thread: set[str]
    settings: dict[str, Any] = field(default_factory=dict)
    view: Any = async_hello
    scope: dict[str, Any] = field(default_factory=dict)
    #: Attributes of the request's class.
    of_request: dict[str, Any] | None = None
    status: int = 200


SIGNED = {"SESSION_ENGINE": "django.contrib.sessions.backends.signed_cookies"}
IN_CACHE = {"SESSION_ENGINE": "django.contrib.sessions.backends.cache"}
IN_CACHED_DB = {"SESSION_ENGINE": "django.contrib.sessions.backends.cached_db"}
IN_COOKIE = {"MESSAGE_STORAGE": "django.contrib.messages.storage.cookie.CookieStorage"}
SESSION = {"Session.request", "Session.response"}
MESSAGE = {"Message.request", "Message.response"}
CSRF_HOOKS = {"CsrfView.request", "CsrfView.view", "CsrfView.response"}
WITH_TOKEN = {
    "headers": [
        (b"cookie", f"csrftoken={CSRF_SECRET}".encode()),
        (b"x-csrftoken", CSRF_SECRET.encode()),
    ]
}

CASES = {
    "session modified": Case(
        (SESSIONS,), {"Session.response"}, SIGNED, modifies_session
    ),
    "session cookie of a session that is modified": Case(
        (SESSIONS,),
        {"Session.response"},
        SIGNED,
        modifies_session,
        header("cookie", "sessionid=" + "a" * 32),
    ),
    "every session saved": Case(
        (SESSIONS,), {"Session.response"}, {"SESSION_SAVE_EVERY_REQUEST": True}
    ),
    "session in a file": Case(
        (SESSIONS,),
        SESSION,
        {"SESSION_ENGINE": "django.contrib.sessions.backends.file"},
    ),
    "session engine of one's own": Case(
        (SESSIONS,), SESSION, {"SESSION_ENGINE": own_engine.__name__}
    ),
    "session in a cache of one's own": Case(
        (SESSIONS,),
        {"Session.request"},
        {**IN_CACHE, "CACHES": {"default": {"BACKEND": f"{__name__}.OwnCache"}}},
    ),
    "session in the database and a cache of one's own": Case(
        (SESSIONS,),
        {"Session.request"},
        {**IN_CACHED_DB, "CACHES": {"default": {"BACKEND": f"{__name__}.OwnCache"}}},
    ),
    "session in a cache that is not there": Case(
        (SESSIONS,),
        {"Session.request", *CSRF_HOOKS},  # around the view of the 500
        {**IN_CACHE, "SESSION_CACHE_ALIAS": "nowhere"},
        status=500,
    ),
    "session replaced": Case((SESSIONS,), {"Session.response"}, view=replaces_session),
    "message queued": Case(
        (MESSAGES,), {"Message.response"}, IN_COOKIE, queues_message
    ),
    "message queued in the fallback": Case(
        (SESSIONS, MESSAGES),
        {"Message.response", "Session.response"},
        view=queues_message,
    ),
    "message queued and taken back": Case(
        (MESSAGES,), {"Message.response"}, IN_COOKIE, takes_message_back
    ),
    "messages read": Case((MESSAGES,), {"Message.response"}, IN_COOKIE, reads_messages),
    "message storage of one's own": Case(
        (SESSIONS, MESSAGES),
        {*MESSAGE, "Session.response"},
        {"MESSAGE_STORAGE": f"{__name__}.OwnFallbackStorage"},
    ),
    "messages signed by one's own": Case(
        (MESSAGES,),
        {"Message.request"},
        {**IN_COOKIE, "SIGNING_BACKEND": f"{__name__}.OwnSigner"},
    ),
    "messages replaced": Case(
        (MESSAGES,), {"Message.response"}, IN_COOKIE, replaces_messages
    ),
    "POST": Case((CSRF,), {"CsrfView.view"}, scope={"method": "POST", **WITH_TOKEN}),
    "DELETE": Case(
        (CSRF,), {"CsrfView.view"}, scope={"method": "DELETE", **WITH_TOKEN}
    ),
    "unknown method": Case(
        (CSRF,), {"CsrfView.view"}, scope={"method": "PURGE", **WITH_TOKEN}
    ),
    "POST without a token": Case(
        (CSRF,),
        {"CsrfView.view", "CsrfView.response"},
        scope={"method": "POST"},
        status=403,
    ),
    "token in the session": Case(
        (SESSIONS, CSRF),
        {*CSRF_HOOKS, "Session.response"},
        {"CSRF_USE_SESSIONS": True, **SIGNED},
    ),
    "token in the session, hook behind async code": Case(
        (SESSIONS, CSRF, path_of(ReplacesGetHost)),
        {*CSRF_HOOKS, "Session.response"},
        {"CSRF_USE_SESSIONS": True, **SIGNED},
    ),
    "www prepended": Case(
        (COMMON,),
        {"Common.request", "Common.response"},
        {"PREPEND_WWW": True},
        status=301,
    ),
    "www there already": Case(
        (COMMON,),
        {"Common.request"},
        {"PREPEND_WWW": True},
        scope=header("host", "www.example.com"),
    ),
    "nothing found": Case((COMMON,), {"Common.response"}, view=is_missing, status=404),
    "hosts in a list of one's own": Case(
        (SECURITY, COMMON),
        {"Security.request", "Common.request"},
        {"ALLOWED_HOSTS": OwnList(["*"])},
    ),
    "clients in a list of one's own": Case(
        (COMMON,), {"Common.request"}, {"DISALLOWED_USER_AGENTS": OwnList()}
    ),
    "get_host() of one's own": Case(
        (SECURITY, COMMON),
        {"Security.request", "Common.request"},
        of_request={"get_host": lambda self: "testserver"},
    ),
    "get_host() replaced": Case(
        (path_of(ReplacesGetHost), SECURITY, COMMON),
        {"Security.request", "Common.request"},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_a_hook_that_may_do_more_takes_the_thread(case: Case) -> None:
    """Exactly the hooks whose condition fails run in a thread."""
    answer, places = await run(
        *case.middleware,
        view=case.view,
        settings=case.settings,
        of_request=case.of_request,
        **case.scope,
    )
    assert answer.status == case.status
    assert in_thread(places) == case.thread


async def test_an_error_of_a_hook_on_the_loop_is_answered_in_the_thread() -> None:
    """The loop finds that a host is not allowed; the thread makes the 400."""
    settings = {"ALLOWED_HOSTS": ["example.com"]}
    with counted_hops() as hops:
        answer, places = await run(COMMON, settings=settings)
    assert answer.status == 400
    assert places["Common.request"] == LOOP
    assert hops.count == 1


# Django's hooks, unchanged

each_middleware = pytest.mark.parametrize("name", djangos())
each_hook = pytest.mark.parametrize(
    ("name", "hook"),
    [(name, hook) for name, cls in djangos().items() for hook in hooks_of(cls)],
)


def chain(name: str, middleware: str | None = None) -> list[str]:
    """Return a middleware that replaces one of Django's, and its dependencies."""
    before = [SESSIONS] if name in {AUTH, MESSAGES} else []
    return [*before, middleware or name]


def hooks_in_thread(name: str, places: dict[str, str]) -> set[str]:
    """Return which hooks of a middleware were called in a thread."""
    cls = name.rpartition(".")[2].removesuffix("Middleware")
    return {
        "process_" + hook.partition(".")[2]
        for hook in in_thread(places)
        if hook.startswith(cls + ".")
    }


@each_middleware
async def test_a_subclass_takes_the_thread(name: str) -> None:
    """All hooks of a subclass do, even if it overrides nothing."""
    cls = type("Sub", (djangos()[name],), {})
    _, places = await run(*chain(name, path_of(cls)))
    assert hooks_in_thread(name, places) == set(hooks_of(cls))


@each_middleware
async def test_a_subclass_by_the_same_name_takes_the_thread(name: str) -> None:
    """A class is not taken for Django's because of its name."""
    parent = djangos()[name]
    names = {"__module__": parent.__module__, "__qualname__": parent.__qualname__}
    cls = type(parent.__name__, (parent,), names)
    _, places = await run(*chain(name, path_of(cls)))
    assert hooks_in_thread(name, places) == set(hooks_of(cls))


@each_middleware
async def test_a_class_in_the_place_of_djangos_takes_the_thread(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor because it is found in the place of Django's."""
    parent = djangos()[name]
    names = {"__module__": parent.__module__, "__qualname__": parent.__qualname__}
    cls = type(parent.__name__, (parent,), {**names, "process_response": keep_response})
    monkeypatch.setattr(sys.modules[parent.__module__], parent.__name__, cls)
    where.clear()
    await run(*chain(name))
    assert where == [THREAD]


#: Where the functions below were called.
where: list[str] = []


def keep_response(self: Any, request: HttpRequest, response: Any) -> Any:
    """A process_response."""
    where.append(here())
    return response


def noting(method: Any) -> Any:
    """Wrap a method like libraries that measure it."""

    @functools.wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        where.append(here())
        return method(*args, **kwargs)

    return wrapper


@each_hook
async def test_a_hook_replaced_before_takes_the_thread(
    name: str, hook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hook replaced before the handler is made takes the thread, as do others."""
    cls = djangos()[name]
    monkeypatch.setattr(cls, hook, noting(vars(cls)[hook]))
    where.clear()
    _, places = await run(*chain(name))
    assert where == [THREAD]
    assert hooks_in_thread(name, places) == set(hooks_of(cls))


HELPERS = [
    (COMMON, "get_full_path_with_slash"),
    (CSRF, "_get_secret"),
    (CSRF, "allowed_origins_exact"),
    (FRAMES, "get_xframe_options_value"),
]


@pytest.mark.parametrize(("name", "helper"), HELPERS)
async def test_a_method_that_hooks_call_is_replaced(
    name: str, helper: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If any method of the class was replaced, all its hooks take the thread."""
    cls = djangos()[name]
    value = vars(cls)[helper]
    if hasattr(value, "func"):
        other: Any = property(noting(value.func))
    else:
        other = noting(value)
    monkeypatch.setattr(cls, helper, other)
    app = application(path("", async_hello), middleware=chain(name))
    with watched_hooks() as places:
        await request(app)
    assert hooks_in_thread(name, places) == set(hooks_of(cls))


def set_frames(self: Any, request: HttpRequest, response: Any) -> Any:
    """Another process_response."""
    return keep_response(self, request, response)


class Replacement:
    """An object in place of a method, which does not get the middleware."""

    def __call__(self, request: HttpRequest, response: Any) -> Any:
        return set_frames(self, request, response)


class Proxy:
    """A wrapper that pretends to be the wrapped object, like those of libraries."""

    def __init__(self, wrapped: Any) -> None:
        self.wrapped = wrapped

    @property  # type: ignore[misc] # like such libraries
    def __class__(self) -> Any:
        return type(self.wrapped)

    @property
    def __globals__(self) -> Any:
        return self.wrapped.__globals__

    @property
    def __code__(self) -> Any:
        return self.wrapped.__code__

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return functools.partial(set_frames, instance)


REPLACEMENTS: dict[str, Any] = {
    "function": lambda _: set_frames,
    "class method": lambda _: classmethod(set_frames),
    "static method": lambda _: staticmethod(functools.partial(set_frames, None)),
    "partial method": lambda _: functools.partialmethod(set_frames),
    "property": lambda _: property(lambda self: functools.partial(set_frames, self)),
    "object": lambda _: Replacement(),
    "proxy": Proxy,
}


@pytest.mark.parametrize("make", REPLACEMENTS.values(), ids=REPLACEMENTS)
async def test_whatever_a_hook_is_replaced_by(
    make: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the thread, whether or not it looks like a function."""
    cls = djangos()[FRAMES]
    monkeypatch.setattr(cls, "process_response", make(vars(cls)["process_response"]))
    app = application(path("", async_hello), middleware=[FRAMES])
    where.clear()
    answer = await request(app)
    assert answer.status == 200
    assert where == [THREAD]


@each_hook
async def test_a_hook_in_the_instance_takes_the_thread(name: str, hook: str) -> None:
    """An attribute of the instance hides the class's hook."""

    def make(get_response: Any) -> Any:
        instance = djangos()[name](get_response)
        setattr(instance, hook, noting(getattr(instance, hook)))
        return instance

    make.async_capable = True  # type: ignore[attr-defined]
    where.clear()
    await run(*chain(name, path_of(make)))
    assert where == [THREAD]


async def test_a_method_in_the_instance_that_a_hook_calls() -> None:
    """So does an attribute that hides what the hook calls."""

    def make(get_response: Any) -> Any:
        instance: Any = djangos()[FRAMES](get_response)
        instance.get_xframe_options_value = noting(instance.get_xframe_options_value)
        return instance

    make.async_capable = True  # type: ignore[attr-defined]
    where.clear()
    answer, _ = await run(path_of(make))
    assert dict(answer.headers)[b"X-Frame-Options"] == b"DENY"
    assert where == [THREAD]


async def test_a_store_in_the_instance_is_the_one_that_counts() -> None:
    """A factory may give Django's session middleware a custom store."""

    def make(get_response: Any) -> Any:
        instance = djangos()[SESSIONS](get_response)
        instance.SessionStore = OwnStore
        return instance

    make.async_capable = True  # type: ignore[attr-defined]
    _, places = await run(path_of(make))
    assert in_thread(places) == SESSION


async def test_a_factory_that_changes_nothing_takes_no_thread() -> None:
    """The class of the object that it makes counts."""

    def make(get_response: Any) -> Any:
        return djangos()[SESSIONS](get_response)

    make.async_capable = True  # type: ignore[attr-defined]
    _, places = await run(path_of(make))
    assert in_thread(places) == set()
    assert len(places) == 2


@pytest.fixture
def _nothing_met(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start as if no Django class had been checked."""
    for classes in (_loop_safe._SESSION_STORES, _loop_safe._MESSAGE_STORAGES):
        monkeypatch.setattr(classes, "_checked", set())


@pytest.mark.usefixtures("_nothing_met")
@pytest.mark.parametrize("method", ["__init__", "is_empty"])
async def test_a_store_with_a_replaced_method_takes_the_thread(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if it is replaced in a class that the store inherits from."""
    parent = db.SessionStore.__mro__[1]
    monkeypatch.setattr(parent, method, noting(vars(parent)[method]))
    where.clear()
    _, places = await run(SESSIONS)
    assert in_thread(places) == SESSION
    assert where == [THREAD]


@pytest.mark.usefixtures("_nothing_met")
async def test_a_fallback_to_storages_of_ones_own_takes_the_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The storage of messages is Django's, but the storages it uses are not."""

    class OwnCookieStorage(CookieStorage):
        def __init__(self, *args: Any) -> None:
            where.append(here())
            super().__init__(*args)

    monkeypatch.setattr(FallbackStorage, "storage_classes", (OwnCookieStorage,))
    where.clear()
    _, places = await run(SESSIONS, MESSAGES)
    assert places["Message.request"] == THREAD
    assert where == [THREAD]


# Other middleware


ALL = ("process_request", "process_view", "process_response")


class Noting(MiddlewareMixin):
    """Notes where its hooks are called."""

    def process_request(self, request: HttpRequest) -> None:
        """Note it."""
        where.append(f"request {here()}")

    def process_view(self, request: HttpRequest, *_: Any) -> None:
        """Note it."""
        where.append(f"view {here()}")

    def process_response(self, request: HttpRequest, response: Any) -> Any:
        """Note it."""
        where.append(f"response {here()}")
        return response


def declaring(hooks: Any, **attributes: Any) -> Any:
    """Return a middleware class that declares these hooks to be safe."""
    return type("Declaring", (Noting,), {"loop_safe_hooks": hooks, **attributes})


async def visited(app: ASGIHandler) -> list[str]:
    """Make a request; return where the hooks were called."""
    where.clear()
    answer = await request(app)
    assert answer.status == 200
    return [*where]


def app_with(cls: Any) -> ASGIHandler:
    """Return an application of an async view below one middleware."""
    return application(path("", async_hello), middleware=[path_of(cls)])


@pytest.mark.parametrize("kind", [tuple, list])
async def test_declared_hooks_run_on_the_loop(kind: type) -> None:
    """A request through a middleware that declares all its hooks takes no thread."""
    app = app_with(declaring(kind(ALL)))
    assert await visited(app) == ["request loop", "view loop", "response loop"]
    assert current_pool().workers == set()


@pytest.mark.parametrize("hooks", [(), None])
async def test_other_hooks_take_the_thread(hooks: Any) -> None:
    """Nothing is guessed of middleware that declares nothing."""
    app = app_with(Noting if hooks is None else declaring(hooks))
    assert await visited(app) == ["request thread", "view thread", "response thread"]


async def test_only_declared_hooks_run_on_the_loop() -> None:
    """Each hook is declared separately."""
    app = app_with(declaring(("process_request",)))
    assert await visited(app) == ["request loop", "view thread", "response thread"]
    app = app_with(declaring(("process_view", "process_response")))
    assert await visited(app) == ["request thread", "view thread", "response loop"]


async def test_a_subclass_has_to_declare_its_hooks_anew() -> None:
    """It may override methods that they call."""
    parent = declaring(ALL)
    sub = type("Sub", (parent,), {})
    assert set(await visited(app_with(sub))) == {
        "request thread",
        "view thread",
        "response thread",
    }
    anew = type("Sub", (parent,), {"loop_safe_hooks": parent.loop_safe_hooks})
    assert set(await visited(app_with(anew))) == {
        "request loop",
        "view loop",
        "response loop",
    }


async def test_a_view_hook_of_middleware_that_is_called_as_a_whole() -> None:
    """process_view may be declared by any class, with or without the mixin."""

    class Slotted:
        __slots__ = ("get_response",)
        async_capable = True
        sync_capable = False
        loop_safe_hooks = ("process_view",)

        def __init__(self, get_response: Any) -> None:
            self.get_response = get_response

        async def __call__(self, request: HttpRequest) -> Any:
            return await self.get_response(request)

        def process_view(self, *_: Any) -> None:
            where.append(f"view {here()}")

    assert await visited(app_with(Slotted)) == ["view loop"]
    assert current_pool().workers == set()


@pytest.mark.parametrize(
    "hooks",
    [
        "process_request",
        ("process_request", "process_exception"),
        ("process_template_response",),
        ("request",),
        (["process_request"],),
        {"process_request": True},
        iter(["process_request"]),
        True,
        None,
        5,
    ],
    ids=repr,
)
def test_a_wrong_declaration_is_an_error_at_start_up(hooks: Any) -> None:
    """It names the class, the allowed values, and the wrong one."""
    with pytest.raises(ImproperlyConfigured) as raised:
        app_with(declaring(hooks))
    assert str(raised.value) == (
        f"{__name__}.Declaring.loop_safe_hooks must be a tuple of some of "
        "('process_request', 'process_view', 'process_response'), "
        f"not {hooks!r}."
    )


async def test_data_of_a_class_may_change() -> None:
    """A class that counts its requests still runs on the loop."""

    def process_request(self: Any, request: HttpRequest) -> None:
        type(self).requests += 1
        type(self).latest = request
        where.append(f"request {here()}")

    cls = declaring(("process_request",), process_request=process_request, requests=0)
    app = app_with(cls)
    for requests in (1, 2, 3):
        assert (await visited(app))[0] == "request loop"
        assert cls.requests == requests

"""``manage.py trio_asgi_hops``: what it says is what a real request does."""

from __future__ import annotations

import functools
import logging
import re
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import trio
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib import messages
from django.contrib.messages.storage.fallback import FallbackStorage
from django.contrib.sessions.middleware import SessionMiddleware
from django.core.cache import cache
from django.core.cache.backends.locmem import LocMemCache
from django.core.exceptions import MiddlewareNotUsed
from django.core.handlers.base import BaseHandler, reset_urlconf
from django.core.management import CommandError, call_command
from django.core.signals import request_finished, request_started
from django.db import connections, transaction
from django.http import HttpResponse, StreamingHttpResponse
from django.middleware.security import SecurityMiddleware
from django.template.response import TemplateResponse
from django.test import override_settings
from django.urls import path
from django.utils.decorators import sync_and_async_middleware
from django.utils.deprecation import MiddlewareMixin
from django.views import View
from django.views.decorators.csrf import csrf_exempt
from hypothesis import HealthCheck, Phase, given, note, settings, strategies as st

import chains.project
from chains.notes import Recording, recording
from chains.project import chain_loaded, chain_project
from chains.specs import Act, Chain, Layer
from database_support import open_database
from hop_support import COMMON, STARTPROJECT
from project_support import run_python
from support import Answer, receive_answer
from trio_asgi import ASGIHandler, ASGIStaticFilesHandler, asyncio_island
from trio_asgi._hop_causes import CONDITIONS
from trio_asgi._hop_report import further_hops, report, scope_of
from trio_asgi._rehearsal import middleware_of, rehearse
from trio_asgi.chain.loop_safe import DJANGOS, _always
from trio_asgi.testing import ApplicationCommunicator
from trio_asgi.threads.loop import CallLoop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from django.http import HttpRequest

    from trio_asgi._stage import Course, Step

ROOT = Path(__file__).parent.parent

# A project's middleware


class Both(MiddlewareMixin):
    def process_request(self, request: HttpRequest) -> None:
        pass

    def process_response(self, request: HttpRequest, response: Any) -> Any:
        return response


class Before(MiddlewareMixin):
    def process_request(self, request: HttpRequest) -> None:
        pass


class Declared(Both):
    loop_safe_hooks = ("process_request", "process_response")


class DeclaredAbove(Declared):
    pass


class Views(MiddlewareMixin):
    def process_view(self, request: HttpRequest, *rest: Any) -> None:
        pass


class AsyncViews(MiddlewareMixin):
    async def process_view(self, request: HttpRequest, *rest: Any) -> None:
        pass


class Templates(MiddlewareMixin):
    def process_template_response(self, request: HttpRequest, response: Any) -> Any:
        return response


class Errors(MiddlewareMixin):
    def process_exception(self, request: HttpRequest, error: Exception) -> None:
        pass


class OwnCall(Both):
    def __call__(self, request: HttpRequest) -> Any:
        return super().__call__(request)


class Sessions(SessionMiddleware):
    pass


class Storage(FallbackStorage):
    pass


class SyncClass:
    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        return self.get_response(request)


class NotUsed(MiddlewareMixin):
    def __init__(self, get_response: Any) -> None:
        raise MiddlewareNotUsed


def sync_function(get_response: Callable[[HttpRequest], Any]) -> Any:
    def middleware(request: HttpRequest) -> Any:
        return get_response(request)

    return middleware


def async_function(get_response: Callable[[HttpRequest], Any]) -> Any:
    async def middleware(request: HttpRequest) -> Any:
        return await get_response(request)

    return middleware


async_function.sync_capable = False  # type: ignore[attr-defined]
async_function.async_capable = True  # type: ignore[attr-defined]


@sync_and_async_middleware
def both_functions(get_response: Any) -> Any:
    from asgiref.sync import iscoroutinefunction  # noqa: PLC0415

    made = async_function if iscoroutinefunction(get_response) else sync_function
    return made(get_response)


def own(*names: str) -> tuple[str, ...]:
    """Return the paths of middleware of this module."""
    return tuple(f"{__name__}.{name}" for name in names)


# Its views


def view(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


async def async_view(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


class ClassView(View):
    def get(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    post = get


class AsyncClassView(View):
    async def get(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse()


class CallableView:
    async def __call__(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse()


def audited(view: Any) -> Any:
    """Be a decorator that knows sync views only."""

    @functools.wraps(view)
    def inner(request: HttpRequest) -> Any:
        return view(request)

    return inner


# Predicted and counted


@contextmanager
def project(
    called: Any = async_view, *, middleware: tuple[str, ...] = (), **options: Any
) -> Iterator[ASGIHandler]:
    """Provide the handler of a project whose one view is at ``/page/``."""
    urls = type("Urls", (), {"urlpatterns": [path("page/", called)]})
    with override_settings(
        **{
            "MIDDLEWARE": middleware,
            "ROOT_URLCONF": urls,
            "SESSION_ENGINE": "django.contrib.sessions.backends.signed_cookies",
            **options,
        }
    ):
        yield ASGIHandler()


@dataclass
class Hops:
    """Hops that were counted."""

    count: int = 0


@contextmanager
def counted_hops() -> Iterator[Hops]:
    """Count the calls from tasks into threads, inner ones included."""
    hops = Hops()
    original = CallLoop.run_sync

    async def counted(loop: CallLoop, fn: Any, **options: Any) -> Any:
        hops.count += 1
        return await original(loop, fn, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CallLoop, "run_sync", counted)
        yield hops


async def count(
    app: ASGIHandler, path: str = "/page/", method: str = "GET", body: bytes = b""
) -> int:
    """Make the request that is rehearsed, and return its number of hops."""
    with counted_hops() as hops:
        await make_request(app, path, method, body)
    return hops.count


async def make_request(
    app: ASGIHandler, path: str, method: str, body: bytes = b""
) -> Answer:
    """Make the request that is rehearsed."""
    scope = scope_of(path, method)
    if body:
        scope["headers"] += [
            (b"content-type", b"multipart/form-data; boundary=end"),
            (b"content-length", str(len(body)).encode()),
        ]
    async with ApplicationCommunicator(app, scope) as communicator:
        await communicator.send_input({"type": "http.request", "body": body})
        answer = await receive_answer(communicator)
        await communicator.wait()
    return answer


def causes(course: Course) -> list[tuple[int | None, str, str]]:
    """Return the hops and what needs them, without this module's name."""
    return [
        (step.hop, step.name.replace(f"{__name__}.", ""), step.why)
        for step in course.steps
        if step.why is not None
    ]


CHAINS: dict[str, tuple[tuple[str, ...], Any, int]] = {
    "nothing, async": ((), async_view, 0),
    "nothing, sync": ((), view, 1),
    "startproject, async": (STARTPROJECT, async_view, 0),
    "startproject, sync": (STARTPROJECT, view, 1),
    "hooks on both sides, async": (own("Both"), async_view, 2),
    "hooks on both sides, sync": (own("Both"), view, 1),
    "a hook before": (own("Before"), async_view, 1),
    "hooks that share": (own("Both", "Both", "Views"), async_view, 2),
    "hooks apart": (own("Before", "async_function", "Before"), async_view, 2),
    "declared": (own("Declared"), async_view, 0),
    "declared above": (own("DeclaredAbove"), async_view, 2),
    "a hook for views": (own("Views"), async_view, 1),
    "an async hook for views, sync": (own("AsyncViews"), view, 1),
    "an async hook between": (own("Views", "AsyncViews", "Views"), async_view, 2),
    "hooks that are not asked": (own("Templates", "Errors"), async_view, 0),
    "a call of its own": (own("OwnCall"), async_view, 2),
    "subclass": ((*STARTPROJECT[:1], *own("Sessions"), *STARTPROJECT[2:]), view, 1),
    "async subclass": (
        (*STARTPROJECT[:1], *own("Sessions"), *STARTPROJECT[2:]),
        async_view,
        2,
    ),
    "sync function, async": (own("sync_function"), async_view, 1),
    "sync function, sync": (own("sync_function"), view, 1),
    "sync class below": ((*STARTPROJECT, *own("SyncClass")), async_view, 1),
    "sync class above": ((*own("SyncClass"), *STARTPROJECT), async_view, 1),
    "sync around hooks": (own("sync_function", "Both"), async_view, 2),
    "a hop within a hop": (
        own("sync_function", "async_function", "Both"),
        async_view,
        3,
    ),
    "sync function twice": (
        own("sync_function", "async_function", "sync_function"),
        async_view,
        2,
    ),
    "async function": (own("async_function"), view, 1),
    "functions of both kinds": (own("both_functions"), async_view, 0),
    "both kinds above sync": (own("both_functions", "SyncClass"), async_view, 1),
    "not used": (own("Before", "NotUsed", "Before"), async_view, 1),
    "sync class-based view": (STARTPROJECT, ClassView.as_view(), 1),
    "async class-based view": (STARTPROJECT, AsyncClassView.as_view(), 0),
    "partial": (STARTPROJECT, functools.partial(async_view), 0),
    "sync_to_async": (STARTPROJECT, sync_to_async(view), 1),
    "async_to_sync": (STARTPROJECT, async_to_sync(async_view), 1),
    "island": (STARTPROJECT, asyncio_island(async_view), 0),
}


@pytest.mark.parametrize(("middleware", "called", "hops"), CHAINS.values(), ids=CHAINS)
async def test_as_many_hops_as_are_said(
    middleware: tuple[str, ...], called: Any, hops: int
) -> None:
    """A real request takes the number of hops that the rehearsal says."""
    with project(called, middleware=middleware) as app:
        course = rehearse(app, scope_of("/page/"))
        assert (await count(app), course.hops) == (hops, hops)
        assert course.status == 200
        assert course.notes == []


@pytest.mark.parametrize("called", [view, async_view])
@pytest.mark.parametrize("signal", [request_started, request_finished])
async def test_receivers_of_the_project(signal: Any, called: Any) -> None:
    """A receiver that the project has connected costs a hop, and is named."""

    def receiver(**_: Any) -> None:
        pass

    signal.connect(receiver)
    try:
        with project(called, middleware=STARTPROJECT) as app:
            course = rehearse(app, scope_of("/page/"))
            assert await count(app) == course.hops
    finally:
        signal.disconnect(receiver)
    named = [(step, why) for _, step, why in causes(course) if "receiver" in why]
    name = "request_started" if signal is request_started else "request_finished"
    (cause,) = named
    assert cause[0] == name
    assert cause[1].endswith("test_receivers_of_the_project.<locals>.receiver")


async def test_a_request_class_of_its_own_comes_after_request_started() -> None:
    """Then a receiver of request_started has a hop for itself."""

    class Handler(ASGIHandler):
        def create_request(self, scope: Any, body_file: Any) -> Any:
            return super().create_request(scope, body_file)

    class Refusing(ASGIHandler):
        def create_request(self, scope: Any, body_file: Any) -> Any:
            return None, HttpResponse(status=400)

    def receiver(**_: Any) -> None:
        pass

    with project(view, middleware=STARTPROJECT):
        for handler, hops in ((Handler, (1, 2)), (Refusing, (0, 1))):
            app = handler()
            assert await count(app) == rehearse(app, scope_of("/page/")).hops == hops[0]
            request_started.connect(receiver)
            try:
                course = rehearse(app, scope_of("/page/"))
                assert await count(app) == course.hops == hops[1]
            finally:
                request_started.disconnect(receiver)
    assert course.status == 400
    assert course.notes == ["The request is refused by create_request()."]


@pytest.mark.parametrize("called", [view, async_view])
async def test_other_methods(called: Any) -> None:
    """A POST takes the thread, where its token is checked."""
    with project(csrf_exempt(called), middleware=STARTPROJECT) as app:
        course = rehearse(app, scope_of("/page/", "POST"))
        assert await count(app, method="POST") == course.hops
    cause = "django.middleware.csrf.CsrfViewMiddleware.process_view"
    assert causes(course)[0] == (1, cause, "checks the token of a POST")


@pytest.mark.parametrize(
    ("options", "step", "why"),
    [
        (
            {"SESSION_ENGINE": "django.contrib.sessions.backends.file"},
            "SessionMiddleware.process_request",
            "django.contrib.sessions.backends.file may do I/O (SESSION_ENGINE)",
        ),
        (
            {"SESSION_SAVE_EVERY_REQUEST": True},
            "SessionMiddleware.process_response",
            "saves the session: SESSION_SAVE_EVERY_REQUEST",
        ),
        (
            {"CSRF_USE_SESSIONS": True},
            "CsrfViewMiddleware.process_view",
            "CSRF_USE_SESSIONS: the token is in the session",
        ),
        (
            {"MESSAGE_STORAGE": f"{__name__}.Storage"},
            "MessageMiddleware.process_request",
            f"{__name__}.Storage may do I/O (MESSAGE_STORAGE)",
        ),
        (
            {"PREPEND_WWW": True, "ALLOWED_HOSTS": ["www.example.com"]},
            "CommonMiddleware.process_request",
            "PREPEND_WWW: may resolve another URL",
        ),
        (
            {"ALLOWED_HOSTS": type("Hosts", (list,), {})(["example.com"])},
            "SecurityMiddleware.process_request",
            "the request's get_host(), ALLOWED_HOSTS or DISALLOWED_USER_AGENTS is not "
            "Django's",
        ),
    ],
)
async def test_settings_that_cost_hops(
    options: dict[str, Any], step: str, why: str
) -> None:
    """The setting that keeps a hook of Django's from the loop is named."""
    with project(middleware=STARTPROJECT, **options) as app:
        course = rehearse(app, scope_of("/page/"))
        assert await count(app) == course.hops
    assert [w for _, name, w in causes(course) if name.endswith(step)] == [why]


async def test_a_patched_class_of_djangos(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was replaced in a class of Django's is named, whenever it was."""
    with project(middleware=STARTPROJECT) as app:
        monkeypatch.setattr(
            SecurityMiddleware, "process_response", Both.process_response
        )
        for handler in (app, ASGIHandler()):
            course = rehearse(handler, scope_of("/page/"))
            assert await count(handler) == course.hops == 2
            assert causes(course)[0] == (
                1,
                "django.middleware.security.SecurityMiddleware.process_request",
                "not as Django wrote it: process_response was replaced",
            )


@pytest.mark.parametrize("called", [view, async_view])
async def test_an_unknown_path(called: Any) -> None:
    """A 404 is rehearsed: it is answered and logged in the thread."""
    for middleware in ((), STARTPROJECT, own("async_function")):
        with project(called, middleware=middleware) as app:
            course = rehearse(app, scope_of("/nowhere/"))
            assert await count(app, "/nowhere/") == course.hops
        assert (course.status, course.view, course.view_step) == (404, None, None)
        names = [name for _, name, _ in causes(course)]
        assert {"the answer 404", "log: Not Found: /nowhere/"} < {*names, ""}


async def test_a_path_without_its_slash() -> None:
    """The redirect of APPEND_SLASH is what the real request gets."""
    with project(middleware=(*own("async_function"), *STARTPROJECT)) as app:
        course = rehearse(app, scope_of("/page"))
        assert await count(app, "/page") == course.hops
        assert course.status == 301
        assert f"  /page/ leads to {__name__}.async_view." in [*report(app, "/page")]


async def test_atomic_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ATOMIC_REQUESTS is named beside a sync view; an async one is not reached."""
    database = connections.settings["default"]
    # Not in memory, which would outlive the threads.
    monkeypatch.setitem(database, "NAME", str(tmp_path / "db.sqlite3"))
    monkeypatch.setitem(database, "ATOMIC_REQUESTS", True)
    with project(view) as app:
        course = rehearse(app, scope_of("/page/"))
        assert await count(app) == course.hops == 1
        expected = "a sync view, in a transaction: ATOMIC_REQUESTS of default"
        assert causes(course) == [(1, "view", expected)]
    with project(transaction.non_atomic_requests(view)) as app:
        course = rehearse(app, scope_of("/page/"))
        assert causes(course) == [(1, "view", "a sync view")]
    with project() as app:
        course = rehearse(app, scope_of("/page/"))
        assert await count(app) == course.hops == 1
        ((_, name, why),) = causes(course)
        assert (course.status, name) == (500, "the answer 500")
        assert "You cannot use ATOMIC_REQUESTS with async views" in why
        lines = [*report(app, "/page/")]
        assert lines[0].endswith(".async_view (async), which is not reached: 500")


#: Python 3.10 keeps only the last part of the name.
AUDITED = rf"made sync by {__name__}\.(audited|inner) \(line \d+\)"


@pytest.mark.parametrize(
    ("called", "why"),
    [
        (view, "a sync view"),
        (audited(view), "a sync view"),
        (ClassView.as_view(), "a view with sync handlers: get, post"),
        (audited(ClassView.as_view()), "a view with sync handlers: get, post"),
        (View.as_view(), "a view with sync handlers: none at all"),
        (audited(async_view), AUDITED),
        (audited(audited(async_view)), AUDITED),
        (
            transaction.atomic(async_view),
            "made sync by django.db.transaction.Atomic",
        ),
        (async_to_sync(async_view), "made sync by async_to_sync"),
        (
            CallableView(),
            "taken for sync: its async __call__ is not marked as a coroutine function",
        ),
    ],
)
def test_what_makes_a_view_sync(called: Any, why: str) -> None:
    """The decorator that makes an async view sync is named, or its sync handlers."""
    with project(called) as app:
        (cause,) = causes(rehearse(app, scope_of("/page/")))
    assert re.fullmatch(why, cause[2])


@pytest.mark.parametrize(
    ("name", "hook", "why"),
    [
        ("Both", "process_request", "sync, and not in loop_safe_hooks"),
        (
            "DeclaredAbove",
            "process_request",
            "sync; loop_safe_hooks of a base class does not count",
        ),
        (
            "Sessions",
            "process_request",
            "sync; in a subclass of SessionMiddleware, and not in loop_safe_hooks",
        ),
        ("Views", "process_view", "sync, and not in loop_safe_hooks"),
        (
            "OwnCall",
            "process_response",
            "its middleware has a __call__ of its own, and so it shares no hop",
        ),
    ],
)
def test_why_a_hook_needs_the_thread(name: str, hook: str, why: str) -> None:
    """What would have to be done for a hook is said."""
    with project(middleware=own(name)) as app:
        course = rehearse(app, scope_of("/page/"))
    assert (f"{name}.{hook}", why) in [cause[1:] for cause in causes(course)]


def test_hooks_of_djangos_that_nothing_is_known_of() -> None:
    """Not everything of Django's may run on the loop."""
    name = "django.middleware.locale.LocaleMiddleware"
    with project(middleware=(name,)) as app:
        course = rehearse(app, scope_of("/page/"))
    assert causes(course)[0] == (
        1,
        f"{name}.process_request",
        "sync, and Django's own needs the thread here",
    )


def test_a_hook_that_was_put_into_the_object() -> None:
    """A function that hides a declared hook is named."""
    with project(middleware=own("Declared")) as app:
        top = app._chain.plan.top
        assert top is not None
        vars(top.instance)["process_request"] = lambda request: None
        course = rehearse(app, scope_of("/page/"))
    why = "process_request was replaced after it was loaded"
    assert causes(course)[0] == (1, "Declared.process_request", why)


def test_hooks_for_errors() -> None:
    """They are asked in the thread, each by its name."""
    with project(middleware=own("Errors")) as app:
        course = rehearse(app, scope_of("/page/"), act=fail)
    assert causes(course) == [
        (1, "Errors.process_exception", "hooks for errors are sync"),
        (1, "the answer 500", "for an error: RuntimeError: from the view"),
    ]


def test_hooks_of_djangos_that_raise() -> None:
    """An error of Django's own hook is told, and the request goes on."""
    with project(middleware=STARTPROJECT, ALLOWED_HOSTS=["[]"]) as app:
        course = rehearse(app, scope_of("/page/"))
    assert course.status == 200
    assert course.notes[0].startswith(
        "django.middleware.common.CommonMiddleware.process_request has raised "
        "DisallowedHost: "
    )


@pytest.mark.parametrize(
    "options",
    [
        {"SECURE_SSL_REDIRECT": True},
        {
            "SECURE_SSL_REDIRECT": True,
            "SECURE_PROXY_SSL_HEADER": ("HTTP_X_FORWARDED_PROTO", "https"),
        },
        {"ALLOWED_HOSTS": [".example.com"]},
        {"DEBUG": True, "ALLOWED_HOSTS": []},
    ],
)
async def test_requests_come_to_the_view(options: dict[str, Any]) -> None:
    """The request is one that is neither redirected nor refused."""
    with project(middleware=STARTPROJECT, **options) as app:
        course = rehearse(app, scope_of("/page/"))
        assert course.notes == []
        assert course.view_step is not None
        assert (await make_request(app, "/page/", "GET")).status == 200


def test_a_disconnected_receiver_of_djangos() -> None:
    """Then the signals are sent, for that may be meant."""
    request_finished.disconnect(reset_urlconf)
    try:
        with project() as app:
            course = rehearse(app, scope_of("/page/"))
    finally:
        request_finished.connect(reset_urlconf)
    why = "a receiver of Django's own was disconnected"
    assert causes(course) == [(1, "request_finished", why)]


def test_logs_that_are_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hop is there all the same."""
    monkeypatch.setattr(logging.getLogger("django.request"), "disabled", True)
    with project(middleware=own("async_function")) as app:
        said = [*report(app, "/nowhere/")]
    assert said[1] == "2 hops"
    place = said.index("hop 2")
    assert said[place : place + 2] == ["hop 2", "  Django's log of the answer"]


def test_a_mistake_of_the_rehearsal() -> None:
    """What goes wrong here is not taken for an error of the project's."""

    def fails(*_: Any) -> Any:
        raise KeyError("a mistake")

    with project(middleware=own("Declared")) as app:
        top = app._chain.plan.top
        assert top is not None
        vars(top.safety)["allows"] = fails
        with pytest.raises(RuntimeError, match="rehearsal has failed: KeyError"):
            rehearse(app, scope_of("/page/"))


def test_why_middleware_is_called_in_the_thread() -> None:
    """Sync-only middleware is named, also for what it makes sync above it."""
    with project(middleware=own("both_functions", "SyncClass")) as app:
        course = rehearse(app, scope_of("/page/"))
    assert causes(course) == [
        (
            1,
            "both_functions",
            f"made for sync code, because {__name__}.SyncClass is sync only",
        ),
        (1, "SyncClass", "sync only: not async_capable"),
    ]
    assert course.turns == [*own("SyncClass")]
    assert course.view_step is not None
    assert course.steps[course.view_step].hop is None


def test_middleware_has_the_names_of_the_setting() -> None:
    """Also beside middleware that has refused to be used."""
    names = ("sync_function", "Before", "async_function", "SyncClass", "Before")
    for refused in (0, 2, 5):
        middleware = own(*names[:refused], "NotUsed", *names[refused:])
        with project(middleware=middleware) as app:
            assert [name for _, name in middleware_of(app)] == [*own(*names)]


def test_every_condition_has_its_words() -> None:
    """No hook of Django's is left unexplained."""
    conditions = {
        condition for hooks in DJANGOS.values() for condition in hooks.values()
    }
    assert conditions - {_always} == {*CONDITIONS}


@pytest.mark.parametrize("name", ["get_response_async", "_get_response_async"])
def test_a_handler_that_was_patched(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a tool has put around Django's handler is told, not rehearsed."""
    original = getattr(BaseHandler, name)

    @functools.wraps(original)
    async def patched(self: Any, request: HttpRequest) -> Any:
        return await original(self, request)

    monkeypatch.setattr(BaseHandler, name, patched)
    with project(middleware=own("Before")) as app:
        said = [*report(app, "/page/")]
    assert said[1] == "1 hop"
    assert f"  BaseHandler.{name} was replaced: not rehearsed." in said


def test_nothing_of_the_project_is_run() -> None:
    """Neither views nor middleware run, nor receivers, and nothing is logged."""
    ran = []

    def fail(*_: Any, **__: Any) -> Any:
        ran.append(1)

    kinds = own("Both", "Declared", "Views", "Templates", "SyncClass", "async_function")
    with project(fail, middleware=(*STARTPROJECT, *kinds)) as app:
        layer = app._chain.plan.top
        while layer is not None:
            for name in ("process_request", "process_response"):
                is_own = type(layer.instance).__module__ == __name__
                if is_own and hasattr(layer.instance, name):
                    vars(layer.instance)[name] = fail
            layer = layer.below
        for signal in (request_started, request_finished):
            signal.connect(fail)
        try:
            assert [*report(app, "/page/", verbosity=2)]
            assert [*report(app, "/nowhere/", verbosity=2)]
        finally:
            for signal in (request_started, request_finished):
                signal.disconnect(fail)
    assert ran == []


# What costs further hops


async def call_sync_code(request: HttpRequest) -> HttpResponse:
    await sync_to_async(int)()
    return HttpResponse()


async def call_it_twice(request: HttpRequest) -> HttpResponse:
    await sync_to_async(int)()
    await sync_to_async(int)()
    return HttpResponse()


def render_later(request: Any) -> Any:
    return TemplateResponse(request, "page.html")


def change_session(request: Any) -> Any:
    request.session["word"] = "changed"
    return HttpResponse()


def add_message(request: Any) -> Any:
    messages.info(request, "hello")
    return HttpResponse()


def answer_404(request: Any) -> Any:
    return HttpResponse(status=404)


def fail(*_: Any) -> Any:
    raise RuntimeError("from the view")


def stream(request: Any) -> Any:
    return StreamingHttpResponse(iter(["part"]))


def stream_async(request: Any) -> Any:
    async def parts() -> AsyncIterator[str]:
        yield "part"

    return StreamingHttpResponse(parts())


def use_cache(request: Any) -> Any:
    cache.get("word")
    return HttpResponse()


def use_files(request: Any) -> Any:
    return HttpResponse(str(len(request.FILES)))


def made_async(view: Any) -> Any:
    @functools.wraps(view)
    async def async_view(request: HttpRequest) -> Any:
        return view(request)

    return async_view


class ClosingCache(LocMemCache):
    def close(self, **_: Any) -> None:
        pass


OPTIONS: dict[str, Any] = {
    "TEMPLATES": [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "OPTIONS": {
                "loaders": [
                    ("django.template.loaders.locmem.Loader", {"page.html": "page"})
                ]
            },
        }
    ],
    "CACHES": {"default": {"BACKEND": f"{__name__}.ClosingCache"}},
}
FURTHER = {
    "the view returns a TemplateResponse": render_later,
    "the session is changed": change_session,
    "a message is added or shown": add_message,
    "the view's answer is a 404 or another error": answer_404,
    "the view raises an error": fail,
    "the response is a stream of an async iterator": stream_async,
    "the response is a stream of a sync iterator": stream,
    "a cache is used that is closed at the end: default": use_cache,
}


def numbers(lines: list[str]) -> dict[str, int]:
    """Return by their conditions the numbers of further hops."""
    found = {}
    for line in lines:
        match = re.fullmatch(r"\+(\d+)(?: or more)? (?:if )?(.*)", line)
        assert match is not None
        found[match[2]] = int(match[1])
    return found


@pytest.mark.parametrize("middleware", [(), STARTPROJECT, own("sync_function", "Both")])
@pytest.mark.parametrize("is_async", [True, False])
async def test_what_costs_further_hops(
    is_async: bool, middleware: tuple[str, ...]
) -> None:
    """A request that does one of these takes as many hops more as are said."""
    called = made_async if is_async else lambda view: view
    with project(called(view), middleware=middleware, **OPTIONS) as app:
        usual = rehearse(app, scope_of("/page/"))
        said = numbers([*further_hops(app, "/page/", "GET", usual)])
        fewest = await count(app)
    assert {*said} - {*FURTHER} <= {
        "for each call of sync code in the view, async methods of the ORM too",
        "at the end, if a database without CONN_MAX_AGE is used: default",
        "the method is POST, PUT, PATCH or DELETE",
    }
    for condition, acting in FURTHER.items():
        if acting in {change_session, add_message} and middleware != STARTPROJECT:
            assert condition not in said
            continue
        with project(called(acting), middleware=middleware, **OPTIONS) as app:
            # It may also take fewer: what follows an error is in the thread.
            more = max(await count(app) - fewest, 0)
            assert (condition, said.get(condition, 0)) == (condition, more)


@pytest.mark.parametrize("middleware", [(), STARTPROJECT, own("sync_function", "Both")])
async def test_calls_of_sync_code(middleware: tuple[str, ...]) -> None:
    """Each call in an async view is a hop."""
    with project(middleware=middleware) as app:
        usual = rehearse(app, scope_of("/page/"))
        said = numbers([*further_hops(app, "/page/", "GET", usual)])
    each = said["for each call of sync code in the view, async methods of the ORM too"]
    for calls, acting in ((1, call_sync_code), (2, call_it_twice)):
        with project(acting, middleware=middleware) as app:
            assert await count(app) == usual.hops + calls * each


@pytest.mark.parametrize(
    "middleware",
    [(), STARTPROJECT, own("sync_function", "Both"), own("async_function")],
)
@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("seconds", [0, 60])
async def test_use_of_databases(
    middleware: tuple[str, ...], is_async: bool, seconds: int, tmp_path: Path
) -> None:
    """A connection that is not kept may cost a hop at the end."""
    settings = {
        **connections.settings["default"],
        "NAME": str(tmp_path / "db.sqlite3"),
        "CONN_MAX_AGE": seconds,
    }
    async with open_database(settings) as alias:

        def use_database(request: HttpRequest) -> HttpResponse:
            connections[alias].ensure_connection()
            return HttpResponse()

        async def aview(request: HttpRequest) -> HttpResponse:
            return await sync_to_async(use_database)(request)

        with project(aview if is_async else use_database, middleware=middleware) as app:
            usual = rehearse(app, scope_of("/page/"))
            said = numbers([*further_hops(app, "/page/", "GET", usual)])
            names = ["default", alias] if seconds == 0 else ["default"]
            condition = "at the end, if a database without CONN_MAX_AGE is used: "
            more = said.get(condition + ", ".join(names), 0) if seconds == 0 else 0
            assert await count(app) == usual.hops + (1 if is_async else 0) + more


@pytest.mark.parametrize("is_async", [True, False])
async def test_methods_and_uploads(is_async: bool) -> None:
    """Other methods, and files, cost as many hops more as are said."""
    called = csrf_exempt(made_async(use_files) if is_async else use_files)
    file = b"""--end\r
Content-Disposition: form-data; name="file"; filename="file.txt"\r
Content-Type: text/plain\r
\r
content\r
--end--\r
"""
    with project(called, middleware=STARTPROJECT) as app:
        usual = rehearse(app, scope_of("/page/"))
        said = numbers([*further_hops(app, "/page/", "GET", usual)])
        more = said.get("the method is POST, PUT, PATCH or DELETE", 0)
        assert await count(app, method="POST") == usual.hops + more
        post = rehearse(app, scope_of("/page/", "POST"))
        said = numbers([*further_hops(app, "/page/", "POST", post)])
        hops = post.hops + said.get("files are uploaded", 0)
        assert (await make_request(app, "/page/", "POST", file)).body == b"1"
        assert await count(app, "/page/", "POST", file) == hops


# Random chains

KINDS = (
    "mixin",
    "mixin with super().__call__",
    "mixin with __acall__",
    "mixin with __call__",
    "sync function",
    "async function",
    "function of both kinds",
    "sync class",
    "async class",
    "class of both kinds",
    "not used",
)


@st.composite
def chain_layers(draw: st.DrawFn) -> Layer:
    """Draw a middleware that passes the request on, and does nothing else."""
    kind = draw(st.sampled_from(("mixin", "mixin", *KINDS)))
    names = [
        name
        for name in ("process_request", "process_response", "process_view")
        if draw(st.booleans())
    ]
    if kind == "mixin with __call__":
        # It does not ask its hooks.
        names = [name for name in names if name == "process_view"]
    in_instance = draw(st.booleans())
    # In a partial, not all versions of Python know a coroutine function.
    may_be_async = not in_instance and "function" not in kind
    hooks = tuple(
        (
            name,
            Act(
                is_async=name == "process_view" and may_be_async and draw(st.booleans())
            ),
        )
        for name in names
    )
    return Layer(kind, hooks, in_instance=in_instance)


djangos_layers = st.builds(
    Layer,
    st.sampled_from(
        (
            "django.middleware.http.ConditionalGetMiddleware",
            "django.middleware.locale.LocaleMiddleware",
            *(f"sub:{name}" for name in STARTPROJECT),
            *(f"patched:{name}" for name in STARTPROJECT),
        )
    ),
    st.sampled_from(
        ((), (("process_request", Act()),), (("process_response", Act()),))
    ),
)


@st.composite
def chain_projects(draw: st.DrawFn) -> Chain:
    """Draw a project: some of startproject's middleware, and others between."""
    sessions, *others = STARTPROJECT[1], STARTPROJECT[0], *STARTPROJECT[2:]
    layers = [Layer(name) for name in others if draw(st.booleans())]
    layers.insert(0, Layer(sessions))
    for layer in draw(st.lists(st.one_of(chain_layers(), djangos_layers), max_size=5)):
        layers.insert(draw(st.integers(1, len(layers))), layer)
    for layer in draw(st.lists(chain_layers(), max_size=1)):
        layers.insert(0, layer)
    names = ("sessions of its own", "save every session", "messages of its own")
    return Chain(
        layers=tuple(layers),
        settings=draw(st.sampled_from(((), (), *((name,) for name in names)))),
    )


@pytest.fixture
def chains_project(tmp_path: Path) -> Iterator[None]:
    """Provide the project of all chains."""
    with chain_project(tmp_path):
        yield


def recorded(app: ASGIHandler, notes: list[Recording]) -> Any:
    """Give the code of a chain what it makes its notes in."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        notes.append(Recording())
        recording.set(notes[0])
        await app(scope, receive, send)

    return application


def label_of(step: Step) -> str:
    """Return how a piece of a chain notes that it was called."""
    name = step.name.removeprefix("layers_of_the_chain.layer")
    if name.endswith(", after get_response"):
        return name.replace(", after get_response", ".after")
    return name if "." in name else f"{name}.before"


@settings(
    max_examples=300,
    deadline=None,
    database=None,
    print_blob=True,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
@given(
    chain=chain_projects(),
    called=st.sampled_from((view, async_view, ClassView.as_view())),
    url=st.sampled_from(("/0/", "/0/", "/0/", "/missing/", "/0")),
    receives=st.booleans(),
)
def test_any_chain_is_rehearsed_rightly(
    chains_project: None, chain: Chain, called: Any, url: str, receives: bool
) -> None:
    """Whatever the middleware, the hops are as many as are said."""
    note(repr(chain))
    if any(layer.kind.endswith(":" + COMMON) for layer in chain.layers):
        # It would redirect to the URL with its slash, and is not asked here.
        url = url.replace("/0", "/0/").replace("//", "/")
    receivers = [
        (request_started, chains.project._started),
        (request_finished, chains.project._finished),
    ]
    for signal, receiver in receivers:
        if not receives:
            signal.disconnect(receiver)
    try:
        # With Django's own handlers of errors.
        names = {"name": "urls", "urlpatterns": [path("0/", called)]}
        urls = type("Urls", (), names)
        with chain_loaded(chain), override_settings(ROOT_URLCONF=urls):
            app = ASGIHandler()
            course = rehearse(app, scope_of(url))
            for line in report(app, url, verbosity=2):
                note(line)
            notes: list[Recording] = []
            with counted_hops() as hops:
                trio.run(make_request, recorded(app, notes), url, "GET")
    finally:
        for signal, receiver in receivers:
            signal.connect(receiver)
    assert hops.count == course.hops
    assert course.notes == []
    ran = [(event.what, event.where == "loop") for event in notes[0].events]
    said = [(label_of(step), step.hop is None) for step in course.steps]
    # A class that was patched makes its notes for all its layers.
    labels = {
        label
        for label in dict(ran).keys() & dict(said).keys()
        if not chain.layers[int(label.split(".")[0])].kind.startswith("patched")
    }
    assert [one for one in said if one[0] in labels] == [
        one for one in ran if one[0] in labels
    ]


# The command


def output_of(*arguments: str, **options: Any) -> list[str]:
    """Run the command, and return the lines that it prints."""
    out = StringIO()
    call_command("trio_asgi_hops", *arguments, stdout=out, no_color=True, **options)
    return out.getvalue().splitlines()


def test_the_command_prints_the_report() -> None:
    """The causes of each hop are printed, and what else there may be."""
    with project(middleware=(*STARTPROJECT, *own("Both"))):
        assert (
            output_of("page/")
            == f"""\
GET /page/ -> {__name__}.async_view (async)
2 hops

hop 1, before the view
  {__name__}.Both.process_request
    sync, and not in loop_safe_hooks

hop 2, after the view
  {__name__}.Both.process_response
    sync, and not in loop_safe_hooks

On the loop
  SecurityMiddleware, SessionMiddleware, CommonMiddleware, CsrfViewMiddleware,
  AuthenticationMiddleware, MessageMiddleware, {__name__}.async_view

Further hops
  +1 for each call of sync code in the view, async methods of the ORM too
  +2 or more if the response is a stream of a sync iterator
""".splitlines()
        )


def test_the_command_says_less_or_more() -> None:
    """Verbosity 0 is the number alone, 2 is every step."""
    with project(middleware=own("sync_function")):
        goal = f"GET /page/ -> {__name__}.async_view (async)"
        count = "1 hop, 1 turn back to the loop"
        assert output_of("/page/", verbosity=0) == [goal, count]
        said = output_of("/page/", verbosity=2)
    assert said[-5:] == [
        "Steps",
        "  hop 1   request_started",
        f"  hop 1   {__name__}.sync_function",
        f"  loop    {__name__}.async_view",
        f"  hop 1   {__name__}.sync_function, after get_response",
    ]
    assert said[3] == "hop 1, around the view"


def test_the_command_takes_a_method() -> None:
    """The method is any, in small letters too."""
    with project(middleware=STARTPROJECT):
        said = output_of("/page/", method="put")
    assert said[0].startswith("PUT /page/ -> ")
    assert "    checks the token of a PUT" in said


def test_the_path_may_be_left_out() -> None:
    """Then it is the root, which need not lead to a view."""
    with project():
        assert output_of()[:2] == ["GET / -> no view (404)", "1 hop"]


@pytest.mark.parametrize("called", ["/page/?a=b", "/p%61ge/", "page/"])
def test_paths_are_as_in_a_browser(called: str) -> None:
    """A query string does no harm, and quoted characters are read."""
    with project():
        assert "async_view" in output_of(called)[0]


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("http://example.com/", "is no path: leave out the scheme and the host"),
        ("//example.com/", "is no path: leave out the scheme and the host"),
        ("/page/#part", "is no path: it has a space, or a fragment"),
        ("/a page/", "is no path: it has a space, or a fragment"),
    ],
)
def test_what_is_no_path(path: str, error: str) -> None:
    """Other things than paths are refused."""
    with project(), pytest.raises(CommandError, match=error):
        output_of(path)


def test_what_is_no_method() -> None:
    """Other things than methods are refused."""
    with project(), pytest.raises(CommandError, match="'G T' is no method of HTTP"):
        output_of("/page/", method="G T")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"TRIO_ASGI": {"THREDS": 1}}, "TRIO_ASGI has no key 'THREDS'"),
        ({"ROOT_URLCONF": "nothing.urls"}, "ModuleNotFoundError: No module named"),
        ({"MIDDLEWARE": ["nothing.Middleware"]}, "No module named 'nothing'"),
        ({"ASGI_APPLICATION": "nothing.asgi"}, "No module named 'nothing'"),
    ],
)
def test_a_project_that_cannot_be_loaded(options: dict[str, Any], error: str) -> None:
    """What is wrong in the settings is said."""
    with (
        project(),
        override_settings(**options),
        pytest.raises(CommandError, match=f"The project cannot be loaded.*{error}"),
    ):
        output_of()


class Handler(ASGIHandler):
    async def run_get_response(self, request: Any) -> Any:
        return await super().run_get_response(request)


def test_the_handler_of_the_project() -> None:
    """``ASGI_APPLICATION`` leads to it, also if files are served around it."""
    for made in (Handler, lambda: ASGIStaticFilesHandler(Handler())):
        with project():
            globals()["application"] = made()
            with override_settings(ASGI_APPLICATION=f"{__name__}.application"):
                said = " ".join("\n".join(output_of("/page/")).split())
        note = f"{__name__}.Handler.run_get_response overrides this package's"
        assert note in said


def test_an_application_of_something_else(capsys: pytest.CaptureFixture[str]) -> None:
    """Then a plain handler is looked at, and that is said."""
    with project(), override_settings(ASGI_APPLICATION=f"{__name__}.view"):
        err = StringIO()
        assert "async_view" in output_of("/page/", stderr=err)[0]
    assert f"is no handler of trio_asgi, but {__name__}.view" in err.getvalue()


def test_the_page_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the documentation shows is what is printed."""
    page = (ROOT / "docs/reference/hops.md").read_text(encoding="utf-8")
    (shown,) = re.findall(
        r"^```console\n\$ .* /orders/\n(.*?)^```$", page, re.MULTILINE | re.DOTALL
    )

    async def orders(request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    orders.__module__, orders.__qualname__ = "shop.views", "orders"
    shop = ModuleType("shop.middleware")
    vars(shop)["TenantMiddleware"] = Both
    monkeypatch.setitem(sys.modules, "shop", ModuleType("shop"))
    monkeypatch.setitem(sys.modules, "shop.middleware", shop)
    urls = type("Urls", (), {"urlpatterns": [path("orders/", orders)]})
    middleware = (*STARTPROJECT, "shop.middleware.TenantMiddleware")
    with project(middleware=middleware), override_settings(ROOT_URLCONF=urls):
        assert output_of("/orders/") == shown.splitlines()


def test_the_example_site() -> None:
    """The command runs as users run it, and changes nothing."""
    site = ROOT / "examples/site"
    done = run_python(site, "-W", "error", "manage.py", "trio_asgi_hops", "/quotes/")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:2] == ["GET /quotes/ -> shop.views.quotes (async)", "no hops"]
    done = run_python(site, "manage.py", "trio_asgi_hops", "http://localhost/")
    assert (done.returncode, done.stdout) == (1, "")
    assert "CommandError" in done.stderr

"""How many hops a request takes: none, if there is nothing for a thread to do."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import trio
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.contenttypes.models import ContentType
from django.core.cache import caches, close_caches
from django.core.cache.backends.locmem import LocMemCache
from django.core.cache.backends.memcached import BaseMemcachedCache
from django.core.exceptions import MiddlewareNotUsed, PermissionDenied
from django.core.handlers.base import reset_urlconf
from django.core.signals import request_finished, request_started
from django.db import (
    DatabaseError,
    close_old_connections,
    connections,
    reset_queries,
    transaction,
)
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    StreamingHttpResponse,
)
from django.template.response import TemplateResponse
from django.test import override_settings
from django.urls import path
from django.utils.decorators import sync_only_middleware
from django.utils.deprecation import MiddlewareMixin

from database_support import add_database, sqlite_in
from hop_support import (
    COMMON,
    CSRF,
    LOOP,
    SESSIONS,
    STARTPROJECT,
    THREAD,
    Hops,
    async_hello,
    counted_hops,
    hello,
    here,
    path_of,
    thread_is_idle,
)
from support import application, http_scope, request
from trio_asgi import ASGIHandler, release_thread
from trio_asgi.asgi.exchange import SEND_SECONDS
from trio_asgi.threads.current import current_pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    from django.dispatch import Signal
    from trio.testing import MockClock

    from trio_asgi.asgi.types import Message


pytestmark = pytest.mark.usefixtures("watching_at_once")


@pytest.fixture
def hops() -> Iterator[Hops]:
    """Count the calls in worker threads."""
    with counted_hops() as hops:
        yield hops


# Middleware of many kinds

#: What ran, in order.
steps: list[str] = []


class Requests(MiddlewareMixin):
    """A third party's middleware, with a hook on the way in."""

    def process_request(self, request: HttpRequest) -> None:
        """Note it."""
        steps.append(f"request in the {here()}")


class Responses(MiddlewareMixin):
    """A third party's middleware, with a hook on the way out."""

    def process_response(self, request: HttpRequest, response: Any) -> Any:
        """Note it."""
        steps.append(f"response in the {here()}")
        return response


class Both(Requests, Responses):
    """A third party's middleware, with both."""


class Views(MiddlewareMixin):
    """A third party's middleware, with a hook before the view."""

    def process_view(self, *_: Any) -> None:
        """Note it."""
        steps.append(f"view hook in the {here()}")


class Answers(MiddlewareMixin):
    """A third party's middleware, which answers in the place of the view."""

    def process_view(self, *_: Any) -> HttpResponse:
        """Answer."""
        return HttpResponse(status=204)


class Exceptions(MiddlewareMixin):
    """A third party's middleware, with a hook for errors."""

    def process_exception(self, *_: Any) -> HttpResponse:
        """Note it."""
        steps.append(f"exception in the {here()}")
        return HttpResponse("answered")


class Templates(MiddlewareMixin):
    """A third party's middleware, with a hook for templates."""

    def process_template_response(self, request: HttpRequest, response: Any) -> Any:
        """Note it."""
        steps.append(f"template in the {here()}")
        return response


@sync_only_middleware
def sync_function(get_response: Any) -> Any:
    """Make a sync-only middleware."""

    def middleware(request: HttpRequest) -> Any:
        steps.append(f"function in the {here()}")
        response = get_response(request)
        steps.append(f"function again in the {here()}")
        return response

    return middleware


class Async:
    """An async middleware that is no hooks."""

    async_capable = True
    sync_capable = False

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    async def __call__(self, request: HttpRequest) -> Any:
        steps.append(f"async in the {here()}")
        response = await self.get_response(request)
        steps.append(f"async again in the {here()}")
        return response


class Unused(MiddlewareMixin):
    """A middleware that refuses."""

    def __init__(self, get_response: Any) -> None:
        super().__init__(get_response)
        raise MiddlewareNotUsed("not today")

    def process_request(self, request: HttpRequest) -> None:
        """Must not be called."""
        raise AssertionError


REQUESTS = path_of(Requests)
RESPONSES = path_of(Responses)
BOTH = path_of(Both)
VIEWS = path_of(Views)
ANSWERS = path_of(Answers)
EXCEPTIONS = path_of(Exceptions)
TEMPLATES = path_of(Templates)
FUNCTION = path_of(sync_function)
ASYNC = path_of(Async)
UNUSED = path_of(Unused)

# Views


def raising(error: Exception) -> tuple[Any, Any]:
    """Return a sync and an async view that raise an error."""

    def view(request: HttpRequest) -> HttpResponse:
        raise error

    async def async_view(request: HttpRequest) -> HttpResponse:
        raise error

    return view, async_view


not_found, async_not_found = raising(Http404("nothing here"))
forbidden, async_forbidden = raising(PermissionDenied("not you"))
broken, async_broken = raising(ValueError("broken"))


async def async_status_404(request: HttpRequest) -> HttpResponse:
    """Say that there is nothing, without an error."""
    return HttpResponse(status=404)


def template(request: HttpRequest) -> TemplateResponse:
    """Leave a template to be rendered."""
    return TemplateResponse(request, "page.html")


async def async_template(request: HttpRequest) -> TemplateResponse:
    """Leave a template to be rendered."""
    return template(request)


def missing_template(request: HttpRequest) -> TemplateResponse:
    """Leave a template to be rendered that is not there."""
    return TemplateResponse(request, "missing.html")


class AsyncTemplateResponse(TemplateResponse):
    """A response that is rendered on the loop."""

    async def render(self) -> Any:  # type: ignore[override] # as Django allows it
        """Render nothing."""
        self.content = b""
        return self


async def async_rendering(request: HttpRequest) -> TemplateResponse:
    """Leave a template to be rendered by a coroutine function."""
    return AsyncTemplateResponse(request, "page.html")


async def calls_sync_code(request: HttpRequest) -> HttpResponse:
    """Call sync code once."""
    return HttpResponse(await sync_to_async(here)())


async def calls_sync_code_elsewhere(request: HttpRequest) -> HttpResponse:
    """Call sync code once, in any thread."""
    return HttpResponse(await sync_to_async(here, thread_sensitive=False)())


async def gives_thread_back(request: HttpRequest) -> HttpResponse:
    """Call sync code once, and do without the thread from then on."""
    await sync_to_async(here)()
    await release_thread()
    return HttpResponse()


async def async_stream(request: HttpRequest) -> StreamingHttpResponse:
    """Stream from an async iterator."""

    async def parts() -> AsyncIterator[bytes]:
        yield b"part"

    return StreamingHttpResponse(parts())


async def async_stream_with_closer(request: HttpRequest) -> StreamingHttpResponse:
    """Stream from an async iterator, and have something to be closed."""
    response = await async_stream(request)
    response._resource_closers.append(lambda: steps.append(f"closed in the {here()}"))  # type: ignore[attr-defined]
    return response


def stream(request: HttpRequest) -> StreamingHttpResponse:
    """Stream from a sync iterator."""
    return StreamingHttpResponse(iter([b"part"]))


@dataclass
class Case:
    """A request, and how many calls its thread runs."""

    hops: int
    view: Any
    middleware: Sequence[str] = ()
    status: int = 200
    scope: dict[str, Any] = field(default_factory=dict)


CASES = {
    # With sync views all is done in one hop.
    "sync view": Case(1, hello),
    "sync view, startproject": Case(1, hello, STARTPROJECT),
    "sync view, POST": Case(1, hello, [*STARTPROJECT[:3]], scope={"method": "POST"}),
    "sync view, sync hooks": Case(1, hello, [BOTH, *STARTPROJECT, BOTH, VIEWS]),
    "sync view, sync function": Case(1, hello, [FUNCTION]),
    "sync view, sync function between hooks": Case(
        1, hello, [BOTH, COMMON, FUNCTION, BOTH, VIEWS]
    ),
    "sync view, several sync functions": Case(1, hello, [FUNCTION, BOTH, FUNCTION]),
    "sync view, middleware that refuses": Case(1, hello, [BOTH, UNUSED, FUNCTION]),
    "sync view, template": Case(1, template, [BOTH, TEMPLATES, *STARTPROJECT]),
    "sync view, template not there": Case(1, missing_template, [BOTH], 500),
    "sync view, template not there, answered": Case(
        1, missing_template, [BOTH, EXCEPTIONS]
    ),
    "sync view, hook that answers": Case(1, hello, [BOTH, ANSWERS, VIEWS], 204),
    "sync view, not found": Case(1, not_found, [BOTH, *STARTPROJECT], 404),
    "sync view, forbidden": Case(1, forbidden, STARTPROJECT, 403),
    "sync view, broken": Case(1, broken, [BOTH, *STARTPROJECT], 500),
    "sync view, broken, answered": Case(1, broken, [EXCEPTIONS, BOTH]),
    # For async middleware that is no hooks the loop is wanted again.
    "sync view, async middleware": Case(1, hello, [ASYNC]),
    "sync view, async middleware between hooks": Case(3, hello, [BOTH, ASYNC, BOTH]),
    # With an async view, none;
    "async view": Case(0, async_hello),
    "async view, startproject": Case(0, async_hello, STARTPROJECT),
    "async view, async middleware": Case(0, async_hello, [ASYNC, *STARTPROJECT]),
    "async view, middleware that refuses": Case(
        0, async_hello, [SESSIONS, UNUSED, COMMON]
    ),
    "async view, hook for what does not come": Case(
        0, async_hello, [EXCEPTIONS, TEMPLATES]
    ),
    "async view, async template": Case(0, async_rendering, STARTPROJECT),
    "async view, stream": Case(0, async_stream, STARTPROJECT),
    # or one on the way out;
    "async view, sync hook behind it": Case(1, async_hello, [RESPONSES]),
    "async view, template": Case(1, async_template, [TEMPLATES, *STARTPROJECT]),
    "async view, not found": Case(1, async_not_found, STARTPROJECT, 404),
    "async view, no middleware, not found": Case(1, async_not_found, (), 404),
    "async view, status 404": Case(1, async_status_404, STARTPROJECT, 404),
    "async view, no middleware, status 404": Case(1, async_status_404, (), 404),
    "async view, forbidden": Case(1, async_forbidden, STARTPROJECT, 403),
    "async view, broken": Case(1, async_broken, STARTPROJECT, 500),
    "async view, broken, answered": Case(1, async_broken, [EXCEPTIONS, RESPONSES]),
    "async view, stream with something to close": Case(1, async_stream_with_closer),
    # or one on the way in and one on the way out,
    "async view, sync hooks": Case(2, async_hello, [BOTH]),
    "async view, many sync hooks": Case(
        2, async_hello, [BOTH, *STARTPROJECT, BOTH, VIEWS]
    ),
    # or one on the way in only, or by the view itself: without connections to databases
    # there is nothing to tidy up.
    "async view, sync hook before it": Case(1, async_hello, [REQUESTS]),
    "async view, sync hook just before it": Case(1, async_hello, [VIEWS]),
    "async view that calls sync code": Case(1, calls_sync_code, STARTPROJECT),
    "async view, sync code elsewhere": Case(1, calls_sync_code_elsewhere),
    "async view that gives its thread back": Case(2, gives_thread_back),
    # A sync function waits in the thread; what comes back to it does so in a call
    # within its own.
    "async view, sync function": Case(1, async_hello, [FUNCTION]),
    "async view, sync function above": Case(1, async_hello, [FUNCTION, *STARTPROJECT]),
    "async view, sync function below": Case(1, async_hello, [*STARTPROJECT, FUNCTION]),
    "async view, sync function above hooks": Case(2, async_hello, [FUNCTION, BOTH]),
    "async view, sync function below hooks": Case(1, async_hello, [BOTH, FUNCTION]),
    # Parts are pulled when they can be sent, and the end closes the iterator.
    "sync view, stream": Case(3, stream),
}

PAGES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "OPTIONS": {
            "loaders": [
                ("django.template.loaders.locmem.Loader", {"page.html": "a page"})
            ]
        },
    }
]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_how_many_hops(case: Case, hops: Hops) -> None:
    """So many calls run in worker threads, and all in the same one."""
    steps.clear()
    with override_settings(TEMPLATES=PAGES):
        app = application(path("", case.view), middleware=case.middleware)
        answer = await request(app, **case.scope)
    assert answer.status == case.status
    assert hops.count == case.hops
    assert len(hops.threads) == len(current_pool().workers) == min(case.hops, 1)
    for step in steps:
        assert step.startswith("async") == step.endswith(LOOP)


@pytest.mark.parametrize("view", [hello, async_hello, not_found, async_not_found])
async def test_no_hop_is_left_out_when_there_is_a_thread_again(
    view: Any, hops: Hops
) -> None:
    """The next requests take as many hops as the first, and the same thread."""
    app = application(path("", view), middleware=[BOTH, *STARTPROJECT])
    counts = []
    for _ in range(3):
        before = hops.count
        await request(app)
        counts.append(hops.count - before)
    assert len({*counts}) == 1
    assert len(hops.threads) == 1


async def test_the_thread_is_idle_when_the_response_is_sent() -> None:
    """A response in one piece is sent when the request holds no thread any more."""
    idle = []

    class Handler(ASGIHandler):
        async def send_response(self, *args: Any) -> None:
            pool = current_pool()
            idle.append((len(pool.workers), len(pool._idle)))
            await super().send_response(*args)

    app = application(path("", hello), middleware=STARTPROJECT, handler=Handler)
    await request(app)
    assert idle == [(1, 1)]


# Instances


@pytest.mark.parametrize("view", [hello, async_hello])
async def test_each_middleware_is_made_once(view: Any) -> None:
    """One instance serves both sides, and every request."""
    made: list[Any] = []
    called = set()

    class Own(MiddlewareMixin):
        loop_safe_hooks = ("process_request",)

        def __init__(self, get_response: Any) -> None:
            super().__init__(get_response)
            made.append(self)

        def process_request(self, request: HttpRequest) -> None:
            called.add((id(self), here()))

        def process_response(self, request: HttpRequest, response: Any) -> Any:
            called.add((id(self), here()))
            return response

    @sync_only_middleware
    def function(get_response: Any) -> Any:
        made.append(function)
        return get_response

    app = application(path("", view), middleware=[path_of(Own), path_of(function)])
    assert len(made) == 2
    for _ in range(2):
        await request(app)
    assert len(made) == 2
    own = next(instance for instance in made if instance is not function)
    assert called == {(id(own), LOOP), (id(own), THREAD)}


# Receivers


@dataclass
class Receiver:
    """A receiver of either signal, in each form that it may have."""

    hops: Hops
    #: Where it was called, and how many calls had begun in threads by then.
    calls: list[tuple[str, int]] = field(default_factory=list)

    def method(self, **kwargs: Any) -> None:
        """Receive a signal."""
        self.calls.append((here(), self.hops.count))
        steps.append("received")

    async def async_method(self, **kwargs: Any) -> None:
        """Receive a signal."""
        await trio.lowlevel.checkpoint()
        self.method()


both_signals = pytest.mark.parametrize(
    "signal", [request_started, request_finished], ids=["started", "finished"]
)
FORMS: dict[str, Callable[[Receiver], dict[str, Any]]] = {
    "weak method": lambda to: {"receiver": to.method},
    "function": lambda to: {"receiver": lambda **_: to.method(), "weak": False},
    "async": lambda to: {"receiver": to.async_method},
    "with an id": lambda to: {"receiver": to.method, "dispatch_uid": "mine"},
}


def disconnect(signal: Signal, **connected: Any) -> None:
    """Undo ``connect()``."""
    connected.pop("weak", None)
    assert signal.disconnect(**connected)


@both_signals
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("view", [hello, async_hello])
async def test_every_receiver_is_called_once_in_the_requests_thread(
    view: Any, form: str, signal: Signal, hops: Hops
) -> None:
    """Whatever its form; it shares the hop with what follows or has gone before."""
    app = application(path("", view), middleware=STARTPROJECT)
    receiver = Receiver(hops)
    connected = FORMS[form](receiver)
    signal.connect(**connected)
    try:
        answer = await request(app)
    finally:
        disconnect(signal, **connected)
    assert answer.status == 200
    ((place, hop),) = receiver.calls
    assert place == (LOOP if form == "async" else THREAD)
    if signal is request_started:
        assert hop == hops.count == 1
    else:
        assert hop == hops.count == (2 if view is hello else 1)
    assert len(hops.threads) == 1


@both_signals
async def test_a_receiver_for_this_handler_is_called(
    signal: Signal, hops: Hops
) -> None:
    """The sender is the handler's class."""
    app = application(path("", async_hello), middleware=())
    receiver = Receiver(hops)
    signal.connect(receiver.method, sender=type(app))
    try:
        await request(app)
    finally:
        assert signal.disconnect(receiver.method, sender=type(app))
    assert [place for place, _ in receiver.calls] == [THREAD]


@both_signals
async def test_a_receiver_for_another_sender_is_not_called(
    signal: Signal, hops: Hops
) -> None:
    """The request takes its thread, in which Django finds nobody to call."""
    app = application(path("", async_hello), middleware=())
    receiver = Receiver(hops)
    signal.connect(receiver.method, sender=ASGIHandler)
    try:
        answer = await request(app)
    finally:
        assert signal.disconnect(receiver.method, sender=ASGIHandler)
    assert answer.status == 200
    assert receiver.calls == []


@both_signals
@pytest.mark.parametrize("form", FORMS)
async def test_a_receiver_that_was_disconnected_is_forgotten(
    form: str, signal: Signal, hops: Hops
) -> None:
    """From then on requests take no thread again."""
    app = application(path("", async_hello), middleware=STARTPROJECT)
    receiver = Receiver(hops)
    connected = FORMS[form](receiver)
    signal.connect(**connected)
    disconnect(signal, **connected)
    await request(app)
    assert receiver.calls == []
    assert hops.count == 0


@both_signals
async def test_a_receiver_that_is_no_more_is_forgotten(
    signal: Signal, hops: Hops
) -> None:
    """Its owner has gone: at most one more request takes the thread for it."""
    app = application(path("", async_hello), middleware=())
    receiver = Receiver(hops)
    signal.connect(receiver.method)
    del receiver
    gc.collect()
    await request(app)
    before = hops.count
    await request(app)
    assert hops.count == before


async def test_request_started_comes_before_everything(hops: Hops) -> None:
    """Before hooks that need no thread, too."""

    class Own(Both):
        loop_safe_hooks = ("process_request",)

    def view(request: HttpRequest) -> HttpResponse:
        steps.append(f"view in hop {hops.count}")
        return HttpResponse()

    app = application(path("", view), middleware=[path_of(Own)])
    receiver = Receiver(hops)
    steps.clear()
    request_started.connect(receiver.method)
    try:
        await request(app)
    finally:
        request_started.disconnect(receiver.method)
    assert steps == [
        "received",
        "request in the thread",
        "view in hop 1",
        "response in the thread",
    ]
    assert hops.count == 1


async def test_request_finished_comes_after_everything(hops: Hops) -> None:
    """After the response was closed."""

    def view(request: HttpRequest) -> HttpResponse:
        response = HttpResponse()
        response._resource_closers.append(lambda: steps.append("closed"))  # type: ignore[attr-defined]
        return response

    app = application(path("", view), middleware=[BOTH])
    receiver = Receiver(hops)
    steps.clear()
    request_finished.connect(receiver.method)
    try:
        await request(app)
    finally:
        request_finished.disconnect(receiver.method)
    assert steps[-2:] == ["closed", "received"]
    assert hops.count == 2


async def test_a_receiver_that_the_view_connects_is_called(hops: Hops) -> None:
    """Who listens is asked at the request's end."""
    receiver = Receiver(hops)

    async def view(request: HttpRequest) -> HttpResponse:
        request_finished.connect(receiver.method)
        return HttpResponse()

    app = application(path("", view), middleware=STARTPROJECT)
    try:
        await request(app)
    finally:
        assert request_finished.disconnect(receiver.method)
    assert receiver.calls == [(THREAD, 1)]


async def test_a_receiver_that_the_view_disconnects_is_not_called(hops: Hops) -> None:
    """Nor is a thread taken for it."""
    receiver = Receiver(hops)

    async def view(request: HttpRequest) -> HttpResponse:
        assert request_finished.disconnect(receiver.method)
        return HttpResponse()

    app = application(path("", view), middleware=STARTPROJECT)
    request_finished.connect(receiver.method)
    await request(app)
    assert receiver.calls == []
    assert hops.count == 0


@pytest.mark.parametrize("view", [hello, async_hello])
async def test_a_request_that_could_not_start_is_answered_and_ends(
    view: Any, hops: Hops
) -> None:
    """An error of a receiver of request_started is a 500; request_finished follows."""
    receiver = Receiver(hops)

    def fail(**kwargs: Any) -> None:
        raise ValueError("not started")

    app = application(path("", view), middleware=[BOTH, COMMON])
    steps.clear()
    request_started.connect(fail)
    request_finished.connect(receiver.method)
    try:
        answer = await request(app)
    finally:
        request_started.disconnect(fail)
        request_finished.disconnect(receiver.method)
    assert answer.status == 500
    assert steps == ["received"]
    assert receiver.calls == [(THREAD, 2)]


@pytest.mark.parametrize(
    ("signal", "receiver"),
    [
        (request_started, reset_queries),
        (request_started, close_old_connections),
        (request_finished, close_old_connections),
        (request_finished, close_caches),
        (request_finished, reset_urlconf),
    ],
)
@pytest.mark.parametrize("view", [hello, async_hello])
async def test_djangos_own_receivers_may_be_disconnected(
    view: Any, signal: Signal, receiver: Any, hops: Hops
) -> None:
    """Then nothing is known of who listens, and the thread is taken for the signal."""
    app = application(path("", view), middleware=STARTPROJECT)
    assert signal.disconnect(receiver)
    try:
        answer = await request(app)
    finally:
        signal.connect(receiver)
    assert answer.status == 200
    assert hops.count >= 1
    assert len(hops.threads) == 1


# Caches


class ClosingCache(LocMemCache):
    """A project's own cache, which has something to close."""

    def close(self, **kwargs: Any) -> None:
        """Note it."""
        steps.append(f"closed in the {here()}")


class Library:
    """A client of memcached that knows no server."""

    class Client:
        """What a thread or request has."""

        def __init__(self, servers: Sequence[str]) -> None:
            self.servers = servers

        def get(self, key: str, default: Any) -> Any:
            """Find nothing."""
            return default

        def disconnect_all(self) -> None:
            """Note it."""
            steps.append(f"closed in the {here()}")


class Memcached(BaseMemcachedCache):
    """Django's cache on memcached, with that client."""

    def __init__(self, server: str, params: dict[str, Any]) -> None:
        super().__init__(server, params, Library, KeyError)  # type: ignore[arg-type]


def sync_cache_view(request: HttpRequest) -> HttpResponse:
    """Look into a cache."""
    return HttpResponse(caches["used"].get("key", "nothing"))


async def async_cache_view(request: HttpRequest) -> HttpResponse:
    """Look into a cache, on the loop."""
    return sync_cache_view(request)


@pytest.mark.parametrize("backend", [ClosingCache, Memcached])
@pytest.mark.parametrize(
    ("view", "count"), [(async_cache_view, 1), (sync_cache_view, 2)]
)
async def test_a_cache_that_was_used_is_closed(
    view: Any, count: int, backend: type, hops: Hops
) -> None:
    """In the request's thread, at the request's end, once."""
    name = f"{__name__}.{backend.__name__}"
    steps.clear()
    with override_settings(CACHES={"used": {"BACKEND": name}, "default": NO_CACHE}):
        app = application(path("", view), middleware=STARTPROJECT)
        answer = await request(app)
    assert answer.body == b"nothing"
    assert steps == ["closed in the thread"]
    assert hops.count == count
    assert len(hops.threads) == 1


NO_CACHE = {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}
LOCMEM = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}


@pytest.mark.parametrize("backend", [NO_CACHE, LOCMEM])
async def test_a_cache_that_closes_nothing_needs_no_thread(
    backend: dict[str, str], hops: Hops
) -> None:
    """Nothing has to be done for it at the end."""
    with override_settings(CACHES={"used": backend, "default": NO_CACHE}):
        app = application(path("", async_cache_view), middleware=STARTPROJECT)
        assert (await request(app)).body == b"nothing"
    assert hops.count == 0


UNUSED_CACHES = {
    "one that closes": {"BACKEND": f"{__name__}.ClosingCache"},
    "one that is nowhere": {"BACKEND": "nowhere.Cache"},
    "one without a backend": {},
}


@pytest.mark.parametrize("cache", UNUSED_CACHES.values(), ids=UNUSED_CACHES)
@pytest.mark.parametrize(("view", "count"), [(async_hello, 0), (hello, 1)])
async def test_a_cache_that_was_not_used_does_not_matter(
    view: Any, count: int, cache: dict[str, str], hops: Hops
) -> None:
    """It is not closed, nor even looked for."""
    with override_settings(CACHES={"default": LOCMEM, "other": cache}):
        app = application(path("", view), middleware=STARTPROJECT)
        assert (await request(app)).status == 200
    assert hops.count == count


async def test_a_cache_that_a_request_has_used_is_not_the_next_ones(
    hops: Hops,
) -> None:
    """Each request has caches of its own, as under Django's handler."""
    caches_used = {"used": {"BACKEND": f"{__name__}.ClosingCache"}, "default": LOCMEM}
    with override_settings(CACHES=caches_used):
        app = application(
            path("", async_hello), path("used", async_cache_view), middleware=()
        )
        await request(app, "/used")
        assert hops.count == 1
        await request(app)
    assert hops.count == 1


async def test_a_cache_is_closed_for_a_client_that_does_not_read(
    autojump_clock: MockClock,
) -> None:
    """The end that comes before the last bytes knows what the request has used."""
    taken = trio.Event()
    messages: list[Message] = [{"type": "http.request"}]

    async def receive() -> Message:
        return messages.pop() if messages else await trio.sleep_forever()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            await taken.wait()

    steps.clear()
    cache = {"BACKEND": f"{__name__}.ClosingCache"}
    with override_settings(CACHES={"used": cache, "default": NO_CACHE}):
        app = application(path("", sync_cache_view), middleware=STARTPROJECT)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(app, http_scope(), receive, send)
            await trio.sleep(2 * SEND_SECONDS)
            assert steps == ["closed in the thread"]
            taken.set()
    assert steps == ["closed in the thread"]


# What a response has to close


class OwnResponse(HttpResponse):
    """A response that closes something."""

    def close(self) -> None:
        """Note it."""
        steps.append(f"closed in the {here()}")
        super().close()


async def own_response(request: HttpRequest) -> HttpResponse:
    """Answer with a class of one's own."""
    return OwnResponse()


async def response_with_closer(request: HttpRequest) -> HttpResponse:
    """Answer with something to close."""
    response = HttpResponse()
    response._resource_closers.append(lambda: steps.append(f"closed in the {here()}"))  # type: ignore[attr-defined]
    return response


async def response_with_own_close(request: HttpRequest) -> HttpResponse:
    """Answer with a response whose method was replaced."""
    response = HttpResponse()
    close = response.close

    def own_close() -> None:
        steps.append(f"closed in the {here()}")
        close()

    response.close = own_close  # type: ignore[method-assign]
    return response


@pytest.mark.parametrize(
    "view", [own_response, response_with_closer, response_with_own_close]
)
async def test_a_response_that_closes_something_does_so_in_the_thread(
    view: Any, hops: Hops
) -> None:
    """A thread is taken for it, if there is none."""
    steps.clear()
    app = application(path("", view), middleware=STARTPROJECT)
    await request(app)
    assert steps == ["closed in the thread"]
    assert hops.count == 1


async def test_close_that_was_replaced_is_called(
    hops: Hops, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is if the method was replaced for all responses, as libraries do."""
    close = HttpResponseBase.close

    def own_close(self: HttpResponseBase) -> None:
        steps.append(f"closed in the {here()}")
        close(self)

    steps.clear()
    app = application(path("", async_hello), middleware=STARTPROJECT)
    monkeypatch.setattr(HttpResponseBase, "close", own_close)
    await request(app)
    assert steps == ["closed in the thread"]


async def test_a_request_that_closes_something_does_so_in_the_thread() -> None:
    """A request's class may have a close() of its own."""
    app = application(path("", async_hello), middleware=STARTPROJECT)
    steps.clear()

    class Request(app.request_class):  # type: ignore[misc, name-defined]
        def close(self) -> None:
            steps.append(f"closed in the {here()}")
            super().close()

    app.request_class = Request
    await request(app)
    assert steps == ["closed in the thread"]


async def test_uploaded_files_are_closed_in_the_thread(hops: Hops) -> None:
    """They may be on disk."""
    files: list[Any] = []

    async def view(request: HttpRequest) -> HttpResponse:
        files.append(request.FILES["file"])
        return HttpResponse()

    body = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        b"content\r\n--x--\r\n"
    )
    headers = [
        (b"content-type", b"multipart/form-data; boundary=x"),
        (b"content-length", str(len(body)).encode()),
    ]
    app = application(path("", view), middleware=())
    answer = await request(app, method="POST", body=body, headers=headers)
    assert answer.status == 200
    assert files[0].closed
    assert hops.count == 1


# Databases


@pytest.fixture(params=[0, 60])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Provide a database with a table; tell for how long connections are kept."""
    settings = sqlite_in(tmp_path, CONN_MAX_AGE=request.param)
    with add_database(settings) as alias:
        with connections[alias].schema_editor() as editor:
            editor.create_model(ContentType)
        connections[alias].close()
        yield alias, request.param


@pytest.mark.parametrize("middleware", [(), STARTPROJECT, [BOTH, FUNCTION]])
async def test_a_sync_view_that_queries_takes_one_hop(
    middleware: Sequence[str], database: tuple[str, int], hops: Hops
) -> None:
    """The connection is closed in that hop too, or kept, as CONN_MAX_AGE says."""
    alias, max_age = database
    wrappers = []

    def view(request: HttpRequest) -> HttpResponse:
        wrapper = connections[alias]
        wrappers.append((wrapper, wrapper.connection))
        return HttpResponse(ContentType.objects.using(alias).count())

    app = application(path("", view), middleware=middleware)
    for number in (1, 2):
        answer = await request(app)
        assert answer.body == b"0"
        assert hops.count == number
    (first, _), (second, connection) = wrappers
    assert first is second
    assert (connection is not None) == (second.connection is not None) == bool(max_age)


async def test_an_async_view_that_queries_takes_one_hop(
    database: tuple[str, int], hops: Hops
) -> None:
    """If the connection is to be closed then, the thread does that alone."""
    alias, max_age = database
    wrappers = []

    def count() -> int:
        wrappers.append(connections[alias])
        return ContentType.objects.using(alias).count()

    async def view(request: HttpRequest) -> HttpResponse:
        number = await sync_to_async(count)()
        assert hops.count == 1
        return HttpResponse(number)

    app = application(path("", view), middleware=STARTPROJECT)
    answer = await request(app)
    assert answer.body == b"0"
    assert hops.count == 1
    await thread_is_idle()
    assert (wrappers[0].connection is not None) == bool(max_age)


async def test_a_connection_that_did_not_work_is_looked_at_in_the_end(
    database: tuple[str, int], hops: Hops
) -> None:
    """After an error of the database, Django asks whether the connection is usable."""
    alias, max_age = database
    wrappers = []

    def fail() -> None:
        wrappers.append(connections[alias])
        with pytest.raises(DatabaseError), connections[alias].cursor() as cursor:
            cursor.execute("NONSENSE")

    async def view(request: HttpRequest) -> HttpResponse:
        await sync_to_async(fail)()
        return HttpResponse()

    app = application(path("", view), middleware=())
    await request(app)
    assert hops.count == 2
    assert not wrappers[0].errors_occurred
    assert (wrappers[0].connection is not None) == bool(max_age)


@pytest.mark.parametrize("leaves", ["autocommit off", "a transaction"])
async def test_a_connection_that_was_left_in_the_midst_is_closed(
    leaves: str, database: tuple[str, int], hops: Hops
) -> None:
    """The next request, in the same thread, has another one."""
    alias, _ = database
    wrappers: list[Any] = []

    def begin() -> None:
        wrappers.append(connections[alias])
        if leaves == "a transaction":
            transaction.atomic(using=alias).__enter__()
        else:
            transaction.set_autocommit(autocommit=False, using=alias)

    async def leave(request: HttpRequest) -> HttpResponse:
        await sync_to_async(begin)()
        return HttpResponse()

    def look(request: HttpRequest) -> HttpResponse:
        wrapper = connections[alias]
        assert ContentType.objects.using(alias).count() == 0
        return HttpResponse(f"{wrapper.in_atomic_block} {wrapper.get_autocommit()}")

    app = application(path("leave", leave), path("look", look), middleware=())
    await request(app, "/leave")
    assert hops.count == 2
    assert (await request(app, "/look")).body == b"False True"
    assert len(hops.threads) == 1


async def test_an_outer_call_queries_after_an_inner_one(
    database: tuple[str, int], hops: Hops
) -> None:
    """That nothing was left behind by the inner one says nothing of the outer one."""
    alias, max_age = database
    wrappers = []

    async def inner() -> None:
        await sync_to_async(int)()

    def outer() -> None:
        async_to_sync(inner)()
        wrappers.append(connections[alias])
        ContentType.objects.using(alias).count()

    async def view(request: HttpRequest) -> HttpResponse:
        await sync_to_async(outer)()
        return HttpResponse()

    app = application(path("", view), middleware=STARTPROJECT)
    await request(app)
    assert hops.count == 2
    await thread_is_idle()
    assert (wrappers[0].connection is not None) == bool(max_age)


async def test_an_async_view_that_queries_below_sync_hooks(
    database: tuple[str, int], hops: Hops
) -> None:
    """The hooks behind the view tidy up: there is no hop for the end."""
    alias, max_age = database
    wrappers = []

    def count() -> int:
        wrappers.append(connections[alias])
        return ContentType.objects.using(alias).count()

    async def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(await sync_to_async(count)())

    app = application(path("", view), middleware=[RESPONSES, *STARTPROJECT])
    await request(app)
    assert hops.count == 2
    assert (wrappers[0].connection is not None) == bool(max_age)


async def test_what_a_subclass_does_after_the_chain_is_tidied_up_too(
    database: tuple[str, int], hops: Hops
) -> None:
    """A query behind the middleware has the end look after the connection again."""
    alias, max_age = database
    wrappers = []

    def count() -> int:
        wrappers.append(connections[alias])
        return ContentType.objects.using(alias).count()

    class Handler(ASGIHandler):
        async def run_get_response(self, request: HttpRequest) -> HttpResponseBase:
            response = await super().run_get_response(request)
            await sync_to_async(count)()
            return response

    app = application(path("", hello), middleware=[CSRF], handler=Handler)
    await request(app)
    assert hops.count == 2
    await thread_is_idle()
    assert (wrappers[0].connection is not None) == bool(max_age)

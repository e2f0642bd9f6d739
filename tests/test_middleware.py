"""Middleware of every kind: what it may do, what it finds, and how it is cancelled."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.core.exceptions import SynchronousOnlyOperation
from django.core.handlers.base import BaseHandler
from django.http import Http404, HttpRequest, HttpResponse
from django.middleware.locale import LocaleMiddleware
from django.template.response import TemplateResponse
from django.test import override_settings
from django.urls import path, reverse
from django.utils.decorators import sync_and_async_middleware, sync_only_middleware
from django.utils.deprecation import MiddlewareMixin
from django.utils.translation import get_language
from trio.testing import wait_all_tasks_blocked

from hop_support import (
    COMMON,
    LOOP,
    STARTPROJECT,
    THREAD,
    counted_hops,
    here,
    path_of,
)
from support import application, http_scope, request, signal_log
from thread_support import Gate, assert_at_rest
from trio_asgi.testing import ApplicationCommunicator
from trio_asgi.threads.current import current_pool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_asgi import ASGIHandler

pytestmark = pytest.mark.usefixtures("watching_at_once")

DISCONNECT = {"type": "http.disconnect"}

#: What was called, in order, and where.
steps: list[str] = []


@pytest.fixture(autouse=True)
def _no_steps() -> None:
    steps.clear()


def step(name: str) -> None:
    """Note that this is called here."""
    steps.append(f"{name} {here()}")


# Kinds of middleware


class Hooks(MiddlewareMixin):
    """A middleware of sync hooks."""

    def process_request(self, request: HttpRequest) -> None:
        """Note it."""
        step("request")

    def process_view(self, *_: Any) -> None:
        """Note it."""
        step("view hook")

    def process_response(self, request: HttpRequest, response: Any) -> Any:
        """Note it."""
        step("response")
        return response


class Async:
    """An async middleware; a test defines what it does with its get_response."""

    async_capable = True
    sync_capable = False

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response
        markcoroutinefunction(self)

    async def __call__(self, request: HttpRequest) -> Any:
        try:
            step("async")
            response = await self.use(request)
            step("async again")
            return response
        finally:
            step("async left")

    async def use(self, request: HttpRequest) -> Any:
        """Call what is below once."""
        return await self.get_response(request)


@sync_only_middleware
def function(get_response: Any) -> Any:
    """Make a sync-only middleware."""

    def middleware(request: HttpRequest) -> Any:
        try:
            step("function")
            response = get_response(request)
            step("function again")
            return response
        finally:
            step("function left")

    return middleware


HOOKS, ASYNC, FUNCTION = map(path_of, (Hooks, Async, function))


def view(request: HttpRequest) -> HttpResponse:
    """A sync view that notes itself."""
    step("view")
    return HttpResponse("hello")


async def async_view(request: HttpRequest) -> HttpResponse:
    """An async view that notes itself."""
    await trio.lowlevel.checkpoint()
    step("view")
    return HttpResponse("hello")


both_views = pytest.mark.parametrize("view", [view, async_view], ids=["sync", "async"])


async def visit(*middleware: Any, view: Any = async_view, **scope: Any) -> Any:
    """Make a request through middleware, given as classes or paths."""
    paths = [each if isinstance(each, str) else path_of(each) for each in middleware]
    return await request(application(path("", view), middleware=paths), **scope)


# Calling get_response in other ways


@both_views
@pytest.mark.parametrize("below", [[], [HOOKS], [FUNCTION], [ASYNC, HOOKS]])
async def test_async_middleware_may_call_it_twice(below: list[str], view: Any) -> None:
    """Each call runs everything below, and the second's response is a different one."""

    class Twice(Async):
        async def use(self, request: HttpRequest) -> Any:
            first = await self.get_response(request)
            second = await self.get_response(request)
            assert first is not second
            return second

    answer = await visit(Twice, *below, view=view)
    assert answer.body == b"hello"
    calls = [name for name in steps if name.startswith("view ") and "hook" not in name]
    assert calls == [f"view {THREAD if view is not async_view else LOOP}"] * 2


@both_views
@pytest.mark.parametrize("below", [[], [HOOKS], [FUNCTION], [ASYNC, HOOKS]])
async def test_sync_middleware_may_call_it_twice(below: list[str], view: Any) -> None:
    """So may a function in the thread, whatever is below it."""

    @sync_only_middleware
    def twice(get_response: Any) -> Any:
        def middleware(request: HttpRequest) -> Any:
            assert get_response(request).content == b"hello"
            assert here() == THREAD
            return get_response(request)

        return middleware

    with counted_hops() as hops:
        answer = await visit(twice, *below, view=view)
    assert answer.body == b"hello"
    assert len(hops.threads) == 1
    calls = [name for name in steps if name.startswith("view ") and "hook" not in name]
    assert len(calls) == 2


@both_views
@pytest.mark.parametrize("above", [[], [FUNCTION], [HOOKS]])
@pytest.mark.parametrize("below", [[], [HOOKS], [FUNCTION], [ASYNC, HOOKS]])
async def test_async_middleware_may_call_it_in_tasks_at_once(
    below: list[str], above: list[str], view: Any
) -> None:
    """The calls share the request's thread, in which one runs at a time."""

    class AtOnce(Async):
        async def use(self, request: HttpRequest) -> Any:
            responses = []

            async def call() -> None:
                responses.append(await self.get_response(request))

            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(call)
            assert len({id(response) for response in responses}) == 3
            return responses[0]

    with counted_hops() as hops:
        answer = await visit(*above, AtOnce, *below, view=view)
    assert answer.body == b"hello"
    assert len(hops.threads) <= 1
    assert len(current_pool().workers) == len(hops.threads)
    calls = [name for name in steps if name.startswith("view ") and "hook" not in name]
    assert len(calls) == 3


@pytest.mark.parametrize("above", [[], [FUNCTION]])
async def test_middleware_may_cancel_what_is_below(above: list[str]) -> None:
    """The cancelled call ends where it is; the middleware answers itself."""

    class Impatient(Async):
        async def use(self, request: HttpRequest) -> Any:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.get_response, request)
                await waiting.wait()
                nursery.cancel_scope.cancel()
            return HttpResponse("too slow")

    async def slow(request: HttpRequest) -> HttpResponse:
        waiting.set()
        try:
            await trio.sleep_forever()
        finally:
            step("view left")
        raise AssertionError

    waiting = trio.Event()
    answer = await visit(*above, Impatient, HOOKS, ASYNC, view=slow)
    assert answer.body == b"too slow"
    below = [s for s in steps if not s.startswith("function")]
    assert below == [
        f"async {LOOP}",
        f"request {THREAD}",
        f"async {LOOP}",
        f"view hook {THREAD}",
        f"view left {LOOP}",
        f"async left {LOOP}",
        f"async again {LOOP}",
        f"async left {LOOP}",
    ]


async def test_of_two_ways_one_may_be_cancelled_while_it_waits_for_the_other() -> None:
    """A call that waits for the thread can be cancelled; the other one goes on."""
    entered, go_on = trio.Event(), threading.Event()

    def wait_in_thread(request: HttpRequest) -> HttpResponse:
        step("view")
        trio.from_thread.run_sync(entered.set)
        assert go_on.wait(10)
        return HttpResponse("first")

    class Race(Async):
        async def use(self, request: HttpRequest) -> Any:
            responses = []

            async def call() -> None:
                responses.append(await self.get_response(request))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(call)
                await entered.wait()
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as second:
                        second.start_soon(call)
                        await wait_all_tasks_blocked()
                        scope.cancel()
                go_on.set()
            return responses[0]

    answer = await visit(Race, HOOKS, view=wait_in_thread)
    assert answer.body == b"first"
    assert [name for name in steps if name.startswith("view ")].count(
        "view thread"
    ) == 1
    assert steps.count(f"request {THREAD}") == 1


@both_views
async def test_middleware_need_not_call_it(view: Any) -> None:
    """A middleware that answers itself keeps the request from everything below."""

    class Answers(Async):
        async def use(self, request: HttpRequest) -> Any:
            return HttpResponse("mine")

    answer = await visit(HOOKS, Answers, FUNCTION, view=view)
    assert answer.body == b"mine"
    assert [s.split()[0] for s in steps] == [
        "request",
        "async",
        "async",
        "async",
        "response",
    ]


@both_views
async def test_middleware_may_call_it_with_another_request(view: Any) -> None:
    """Some middleware does, to copy the request or wrap it."""
    import copy  # noqa: PLC0415

    class Copies(Async):
        async def use(self, request: HttpRequest) -> Any:
            other = copy.copy(request)
            other.note = "a copy"  # type: ignore[attr-defined]
            return await self.get_response(other)

    class Notes(MiddlewareMixin):
        def process_request(self, request: HttpRequest) -> None:
            assert request.note == "a copy"  # type: ignore[attr-defined]

    answer = await visit(HOOKS, Copies, Notes, *STARTPROJECT, view=view)
    assert answer.body == b"hello"


@both_views
@pytest.mark.parametrize("below", [[], [HOOKS], [FUNCTION, HOOKS]])
async def test_sync_middleware_may_call_it_in_a_thread_of_its_own(
    below: list[str], view: Any
) -> None:
    """For example to give up after a time. An async view runs on asyncio there.

    The same is true under Django's handler, because no loop runs in that thread.
    """
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    def sync_answer(request: HttpRequest) -> HttpResponse:
        return HttpResponse(threading.current_thread().name)

    async def async_answer(request: HttpRequest) -> HttpResponse:
        return sync_answer(request)

    answer = async_answer if view is async_view else sync_answer
    with ThreadPoolExecutor(1, "middleware") as executor:

        @sync_only_middleware
        def elsewhere(get_response: Any) -> Any:
            return lambda request: executor.submit(get_response, request).result()

        answered = await visit(elsewhere, *below, view=answer)
    assert answered.status == 200
    if view is not async_view:
        assert answered.body.startswith(b"middleware")


# Classes that do not leave the calling to Django


@both_views
async def test_middleware_may_wrap_its_get_response(view: Any) -> None:
    """Its replacement is called, on the side where it belongs."""

    class Wraps(Hooks):
        def __init__(self, get_response: Any) -> None:
            assert iscoroutinefunction(get_response)

            async def wrapped(request: HttpRequest) -> Any:
                step("wrapped")
                return await get_response(request)

            super().__init__(wrapped)

    answer = await visit(Wraps, view=view)
    assert answer.body == b"hello"
    assert steps[:3] == [f"request {THREAD}", f"wrapped {LOOP}", f"view hook {THREAD}"]
    assert steps[-1] == f"response {THREAD}"


@both_views
async def test_middleware_may_replace_its_get_response_when_it_is_made(
    view: Any,
) -> None:
    """The same, if it sets the attribute after Django's class has done so."""

    class Replaces(Hooks):
        def __init__(self, get_response: Any) -> None:
            super().__init__(get_response)

            async def wrapped(request: HttpRequest) -> Any:
                step("wrapped")
                return await get_response(request)

            self.get_response = wrapped

    await visit(Replaces, view=view)
    assert f"wrapped {LOOP}" in steps


@both_views
async def test_middleware_may_override_acall(view: Any) -> None:
    """Then it is called as a whole, and calls what it wants."""

    class Overrides(Hooks):
        async def __acall__(self, request: HttpRequest) -> Any:
            step("acall")
            return await super().__acall__(request)

    await visit(Overrides, view=view)
    assert steps[:2] == [f"acall {LOOP}", f"request {THREAD}"]
    assert steps[-1] == f"response {THREAD}"


@both_views
async def test_middleware_may_override_call(view: Any) -> None:
    """It is called on the loop, and its result is awaited."""

    class Overrides(Hooks):
        def __call__(self, request: HttpRequest) -> Any:
            step("call")
            return super().__call__(request)

    await visit(Overrides, view=view)
    assert steps[:2] == [f"call {LOOP}", f"request {THREAD}"]
    assert steps[-1] == f"response {THREAD}"


@both_views
async def test_middleware_may_be_for_sync_code_only(view: Any) -> None:
    """A sync-only class of hooks is called in the thread, as a whole."""

    class SyncOnly(Hooks):
        async_capable = False

    await visit(SyncOnly, view=view)
    assert steps[0] == f"request {THREAD}"
    assert steps[-1] == f"response {THREAD}"


@both_views
async def test_middleware_may_be_of_both_kinds(view: Any) -> None:
    """A factory is asked for the kind that fits the rest: under ASGI the async one."""

    @sync_and_async_middleware
    def either(get_response: Any) -> Any:
        assert iscoroutinefunction(get_response)

        async def middleware(request: HttpRequest) -> Any:
            step("either")
            return await get_response(request)

        return middleware

    await visit(either, view=view)
    assert steps[0] == f"either {LOOP}"


@both_views
@pytest.mark.parametrize("method", ["__call__", "__acall__"])
async def test_what_replaces_a_method_of_the_mixin_is_called(
    method: str, view: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with tools that measure, and with them every middleware of hooks."""
    real = getattr(MiddlewareMixin, method)

    def measured(self: Any, request: HttpRequest) -> Any:
        step("measured")
        return real(self, request)

    monkeypatch.setattr(MiddlewareMixin, method, measured)
    answer = await visit(Hooks, view=view)
    assert answer.body == b"hello"
    assert steps[:2] == [f"measured {LOOP}", f"request {THREAD}"]


@both_views
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("receivers", [False, True])
@pytest.mark.parametrize("method", ["get_response_async", "_get_response_async"])
async def test_what_replaces_a_method_of_djangos_handler_is_called(
    method: str, receivers: bool, late: bool, view: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for what Django's handler does around the middleware and inside it."""
    real = getattr(BaseHandler, method)

    async def measured(self: Any, request: HttpRequest) -> Any:
        step("measured")
        return await real(self, request)

    if not late:
        monkeypatch.setattr(BaseHandler, method, measured)
    app = application(path("", view), middleware=[HOOKS, *STARTPROJECT])
    monkeypatch.setattr(BaseHandler, method, measured)
    with maybe_signals(receivers) as names:
        answer = await request(app)
    assert answer.body == b"hello"
    assert names == (["started", "finished"] if receivers else [])
    # Django itself asks for the inner one when the handler is made.
    expected = 0 if late and method == "_get_response_async" else 1
    assert steps.count(f"measured {LOOP}") == expected
    assert steps[-1] == f"response {THREAD}"


@both_views
async def test_hooks_around_the_view_may_be_async(view: Any) -> None:
    """They are awaited on the loop, between sync ones that run in the thread."""

    class AsyncHooks(MiddlewareMixin):
        async def process_view(self, *_: Any) -> None:
            await trio.lowlevel.checkpoint()
            step("async view hook")

        async def process_template_response(
            self, request: HttpRequest, response: Any
        ) -> Any:
            await trio.lowlevel.checkpoint()
            step("async template hook")
            return response

    class SyncHooks(MiddlewareMixin):
        def process_view(self, *_: Any) -> None:
            step("view hook")

        def process_template_response(self, request: HttpRequest, response: Any) -> Any:
            step("template hook")
            return response

    def template(request: HttpRequest) -> TemplateResponse:
        step("view")
        return TemplateResponse(request, "page.html")

    async def async_template(request: HttpRequest) -> TemplateResponse:
        return template(request)

    rendered = async_template if view is async_view else template
    with override_settings(TEMPLATES=PAGES):
        answer = await visit(SyncHooks, AsyncHooks, SyncHooks, view=rendered)
    assert answer.body == b"a page"
    assert steps == [
        f"view hook {THREAD}",
        f"async view hook {LOOP}",
        f"view hook {THREAD}",
        f"view {LOOP if view is async_view else THREAD}",
        f"template hook {THREAD}",
        f"async template hook {LOOP}",
        f"template hook {THREAD}",
    ]


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


# State that hooks leave for others


@both_views
@pytest.mark.parametrize("middle", [[], [ASYNC], [FUNCTION], STARTPROJECT])
async def test_what_hooks_leave_in_their_thread_stays_there(
    middle: list[str], view: Any
) -> None:
    """A threading.local set by hooks is the same in every hook, and nowhere else."""
    local = threading.local()

    class Leaves(MiddlewareMixin):
        def process_request(self, request: HttpRequest) -> None:
            local.user = request

        def process_response(self, request: HttpRequest, response: Any) -> Any:
            assert local.user is request
            return response

    class Finds(MiddlewareMixin):
        def process_view(self, request: HttpRequest, *_: Any) -> None:
            assert local.user is request

    answer = await visit(Leaves, *middle, Finds, view=view)
    assert answer.body == b"hello"
    assert not hasattr(local, "user")


@both_views
async def test_the_language_of_a_hook_is_that_of_the_view(view: Any) -> None:
    """LocaleMiddleware sets it in the thread; the view and everything later have it."""
    languages = []

    class After(MiddlewareMixin):
        loop_safe_hooks = ("process_response",)

        def process_response(self, request: HttpRequest, response: Any) -> Any:
            languages.append(get_language())
            return response

    def answer(request: HttpRequest) -> HttpResponse:
        languages.append(get_language())
        return HttpResponse()

    async def async_answer(request: HttpRequest) -> HttpResponse:
        return answer(request)

    name = f"{LocaleMiddleware.__module__}.{LocaleMiddleware.__qualname__}"
    before = get_language()
    headers = [(b"accept-language", b"de")]
    await visit(
        name,
        COMMON,
        After,
        view=async_answer if view is async_view else answer,
        headers=headers,
    )
    assert languages == ["de", "de"]
    assert get_language() == before


@both_views
@pytest.mark.parametrize("safe", [(), ("process_request",)])
async def test_a_hook_may_choose_the_urlconf(safe: Any, view: Any) -> None:
    """The view is looked up there, and reverse() uses it, on either side."""

    class Chooses(MiddlewareMixin):
        loop_safe_hooks = safe

        def process_request(self, request: HttpRequest) -> None:
            request.urlconf = urls  # type: ignore[assignment] # Django takes objects

    def answer(request: HttpRequest) -> HttpResponse:
        return HttpResponse(reverse("other"))

    async def async_answer(request: HttpRequest) -> HttpResponse:
        return answer(request)

    chosen = async_answer if view is async_view else answer
    urls = type("Urls", (), {"urlpatterns": [path("other/", chosen, name="other")]})
    app = application(middleware=[path_of(Chooses), *STARTPROJECT])
    answered = await request(app, "/other/")
    assert answered.body == b"/other/"
    assert (await request(app, "/")).status == 404


async def test_the_user_of_a_session_is_not_read_on_the_loop() -> None:
    """An async view that accesses it the wrong way gets an error, as under Django."""
    errors = []

    async def wrong(request: HttpRequest) -> HttpResponse:
        try:
            bool(request.user.is_anonymous)
        except SynchronousOnlyOperation as error:
            errors.append(error)
        return HttpResponse()

    headers = [(b"cookie", b"sessionid=" + b"a" * 32)]
    answer = await visit(*STARTPROJECT, view=wrong, headers=headers)
    assert answer.status == 200
    assert len(errors) == 1


# Cancellation


class Request:
    """A request that a test cancels, as the client or as the server."""

    def __init__(self, app: ASGIHandler) -> None:
        self._communicator = ApplicationCommunicator(app, http_scope())

    async def start(self) -> None:
        """Start it."""
        await self._communicator.send_input({"type": "http.request"})

    async def cancel(self, by: str) -> None:
        """Let the client leave, or the server shut down; return when all tasks wait."""
        if by == "client":
            await self._communicator.send_input(DISCONNECT)
        else:
            self._communicator.stop()
        await wait_all_tasks_blocked()

    async def ended(self) -> None:
        """Wait for its end, and check that it was not answered."""
        await self._communicator.wait(10)
        assert not self._communicator._outputs
        assert_at_rest(current_pool())


both_sides = pytest.mark.parametrize("by", ["client", "server"])
with_or_without_receivers = pytest.mark.parametrize("receivers", [False, True])


@contextmanager
def maybe_signals(receivers: bool) -> Iterator[list[str]]:
    """Connect receivers to both signals, or only Django's own."""
    if not receivers:
        yield []
        return
    with signal_log() as log:
        yield (names := [])
        names += log.names


class BusyThreads:
    """Keeps sync code from starting, as if other requests had all the threads."""

    def __init__(self) -> None:
        self.begun = trio.Event()

    def begin(self) -> None:
        """Let no call begin."""
        queue = current_pool().queue
        self._threads = queue.threads
        queue.set_threads(0)
        self.begun.set()

    def end(self) -> None:
        """Let them begin."""
        current_pool().queue.set_threads(self._threads)


@both_sides
@with_or_without_receivers
@pytest.mark.parametrize("middleware", [(), STARTPROJECT, [HOOKS], [FUNCTION]])
async def test_cancelled_while_it_waits_for_the_first_hop(
    middleware: list[str], receivers: bool, by: str
) -> None:
    """None of it has run, so nothing has to end, and no thread was taken."""
    with maybe_signals(receivers) as names:
        ongoing = Request(application(path("", view), middleware=middleware))
        busy = BusyThreads()
        busy.begin()
        await ongoing.start()
        await wait_all_tasks_blocked()
        await ongoing.cancel(by)
        busy.end()
        await ongoing.ended()
    assert steps == []
    assert names == []
    assert current_pool().workers == set()


@both_sides
@with_or_without_receivers
async def test_cancelled_while_it_waits_for_the_hop_behind_the_view(
    receivers: bool, by: str
) -> None:
    """The hooks after the view do not run; the view's response is closed."""
    responses = []

    async def view(request: HttpRequest) -> HttpResponse:
        responses.append(response := HttpResponse())
        response._resource_closers.append(lambda: step("closed"))  # type: ignore[attr-defined]
        busy.begin()
        return response

    busy = BusyThreads()
    with maybe_signals(receivers) as names:
        ongoing = Request(application(path("", view), middleware=[ASYNC, HOOKS]))
        await ongoing.start()
        await busy.begun.wait()
        await ongoing.cancel(by)
        assert [response.closed for response in responses] == [False]
        busy.end()
        await ongoing.ended()
    assert [response.closed for response in responses] == [True]
    assert steps == [
        f"async {LOOP}",
        f"request {THREAD}",
        f"view hook {THREAD}",
        f"async left {LOOP}",
        f"closed {THREAD}",
    ]
    assert names == (["started", "finished"] if receivers else [])


@both_sides
@pytest.mark.parametrize("hooks", [[], [HOOKS]])
@pytest.mark.parametrize("kind", [ValueError, Http404])
async def test_cancelled_while_an_error_waits_to_be_answered(
    kind: type[Exception], hooks: list[str], by: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The error is logged, once, and not answered."""

    async def view(request: HttpRequest) -> HttpResponse:
        busy.begin()
        raise kind("lost")

    busy = BusyThreads()
    ongoing = Request(application(path("", view), middleware=hooks))
    await ongoing.start()
    await busy.begun.wait()
    await ongoing.cancel(by)
    busy.end()
    await ongoing.ended()
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert record.getMessage() == "Error in a request that was cancelled: /"
    assert record.exc_info is not None
    assert type(record.exc_info[1]) is kind
    assert f"response {THREAD}" not in steps


@both_sides
@with_or_without_receivers
@pytest.mark.parametrize(
    "middleware",
    [(), STARTPROJECT, [HOOKS], [FUNCTION], [ASYNC], [HOOKS, ASYNC, FUNCTION, HOOKS]],
)
async def test_cancelled_in_an_async_view(
    middleware: list[str], receivers: bool, by: str
) -> None:
    """Everything around the view is left, and not called again."""
    in_view = trio.Event()

    async def view(request: HttpRequest) -> HttpResponse:
        in_view.set()
        try:
            await trio.sleep_forever()
        finally:
            steps.append("view left")
        raise AssertionError

    with maybe_signals(receivers) as names:
        ongoing = Request(application(path("", view), middleware=middleware))
        await ongoing.start()
        await in_view.wait()
        begun = [*steps]
        await ongoing.cancel(by)
        await ongoing.ended()
    left = [s for s in reversed(begun) if s.startswith(("async", "function"))]
    assert steps == [
        *begun,
        "view left",
        *(s.replace(" ", " left ", 1) for s in left),
    ]
    assert names == (["started", "finished"] if receivers else [])
    if not receivers and HOOKS not in middleware and FUNCTION not in middleware:
        assert current_pool().workers == set()


@both_sides
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("view", [view, async_view])
async def test_cancelled_in_async_middleware(view: Any, when: str, by: str) -> None:
    """Before or after it has called the rest: everything around it is left."""
    waiting = trio.Event()

    class Waits(Async):
        async def use(self, request: HttpRequest) -> Any:
            if when == "after":
                responses.append(await self.get_response(request))
            waiting.set()
            return await trio.sleep_forever()

    responses: list[Any] = []
    paths = [HOOKS, FUNCTION, path_of(Waits), HOOKS]
    with signal_log() as log:
        ongoing = Request(application(path("", view), middleware=paths))
        await ongoing.start()
        await waiting.wait()
        begun = [*steps]
        await ongoing.cancel(by)
        await ongoing.ended()
    assert steps == [*begun, f"async left {LOOP}", f"function left {THREAD}"]
    assert all(response.closed for response in responses)
    assert log.names == ["started", "finished"]


@both_sides
async def test_cancelled_in_a_hook(by: str) -> None:
    """The hop is waited for. The view begins, and is left at its first checkpoint."""

    class Waits(MiddlewareMixin):
        def process_request(self, request: HttpRequest) -> None:
            gate()

        def process_response(self, request: HttpRequest, response: Any) -> Any:
            step("response")
            return response

    async def view(request: HttpRequest) -> HttpResponse:
        step("view")
        await trio.lowlevel.checkpoint()
        raise AssertionError

    gate = Gate(lambda: step("hook"))
    ongoing = Request(application(path("", view), middleware=[path_of(Waits)]))
    await ongoing.start()
    await gate.entered.wait()
    await ongoing.cancel(by)
    assert steps == []
    gate.open()
    await ongoing.ended()
    assert steps == [f"hook {THREAD}", f"view {LOOP}"]


@both_sides
async def test_cancelled_in_a_hook_before_a_view_without_a_checkpoint(by: str) -> None:
    """Such a view runs to its end; the hooks behind it do not."""

    class Waits(Hooks):
        def process_request(self, request: HttpRequest) -> None:
            gate()

    responses = []

    async def view(request: HttpRequest) -> HttpResponse:
        responses.append(response := HttpResponse())
        response._resource_closers.append(lambda: step("closed"))  # type: ignore[attr-defined]
        return response

    gate = Gate(lambda: step("hook"))
    ongoing = Request(application(path("", view), middleware=[path_of(Waits)]))
    await ongoing.start()
    await gate.entered.wait()
    await ongoing.cancel(by)
    gate.open()
    await ongoing.ended()
    assert steps == [f"hook {THREAD}", f"view hook {THREAD}", f"closed {THREAD}"]
    assert responses[0].closed


@both_sides
async def test_cancelled_in_a_sync_view(by: str) -> None:
    """The hop goes on to its end, with the hooks after the view, without an answer."""
    gate = Gate(lambda: step("view"))

    def view(request: HttpRequest) -> HttpResponse:
        gate()
        return HttpResponse()

    with signal_log() as log:
        ongoing = Request(application(path("", view), middleware=[HOOKS, FUNCTION]))
        await ongoing.start()
        await gate.entered.wait()
        await ongoing.cancel(by)
        gate.open()
        await ongoing.ended()
    assert steps[-4:] == [
        f"view {THREAD}",
        f"function again {THREAD}",
        f"function left {THREAD}",
        f"response {THREAD}",
    ]
    assert log.names == ["started", "finished"]


@pytest.mark.parametrize("view", [view, async_view])
async def test_a_way_that_its_task_has_left_is_the_threads_alone(
    view: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Its sync part goes on; anything for the loop is not done."""
    requests: list[weakref.ref[HttpRequest]] = []

    class Waits(MiddlewareMixin):
        def process_request(self, request: HttpRequest) -> None:
            requests.append(weakref.ref(request))
            gate()

        def process_response(self, request: HttpRequest, response: Any) -> Any:
            step("response")
            return response

    gate = Gate(lambda: step("hook"))
    with signal_log() as log:
        with override_settings(TRIO_ASGI={"SHUTDOWN_SECONDS": 0}):
            app = application(path("", view), middleware=[path_of(Waits)])
            async with trio.open_nursery() as nursery:
                ongoing = Request(app)
                nursery.start_soon(ongoing.start)
                await gate.entered.wait()
                (worker,) = current_pool().workers
                await ongoing.cancel("server")
                await ongoing._communicator.wait(10)
        assert "Left sync code running that does not end: /" in caplog.text
        assert steps == []
        gate.open()
        await trio.to_thread.run_sync(worker.thread.join, 10)
        assert log.names == ["started", "finished"]
    assert not worker.thread.is_alive()
    gc.collect()
    assert requests[0]() is None
    if view is async_view:
        assert steps == [f"hook {THREAD}"]
    else:
        assert steps == [f"hook {THREAD}", f"view {THREAD}", f"response {THREAD}"]
    assert len([r for r in caplog.records if r.levelno >= logging.ERROR]) == 1


class Cancelling(trio.abc.Instrument):
    """Cancels a scope when its task has run for the nth time."""

    def __init__(self, steps: int) -> None:
        self.steps_left = steps
        self.scope = trio.CancelScope()
        self._task: trio.lowlevel.Task | None = None

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count a step, and cancel at the last."""
        if task is self._task:
            self.steps_left -= 1
            if self.steps_left == 0:
                self.scope.cancel()

    async def serve(self, app: ASGIHandler, sent: list[Any]) -> None:
        """Make a request in the scope."""
        messages = [{"type": "http.request"}]

        async def receive() -> Any:
            await trio.lowlevel.checkpoint()
            return messages.pop() if messages else await trio.sleep_forever()

        async def send(message: Any) -> None:
            await trio.lowlevel.checkpoint()
            sent.append(message)

        self._task = trio.lowlevel.current_task()
        with self.scope:
            await app(http_scope(), receive, send)


class SyncOnly(Hooks):
    """Hooks that are called in the thread as a whole."""

    async_capable = False


@pytest.mark.parametrize("raises", [False, True])
@with_or_without_receivers
@pytest.mark.parametrize(
    "middleware",
    [
        [HOOKS],
        [ASYNC, HOOKS, COMMON, FUNCTION],
        [FUNCTION, HOOKS, ASYNC, *STARTPROJECT, HOOKS],
        [path_of(SyncOnly), ASYNC, FUNCTION, HOOKS],
    ],
)
@pytest.mark.parametrize("is_async", [False, True])
async def test_cancelled_at_every_checkpoint(
    is_async: bool,
    middleware: list[str],
    receivers: bool,
    raises: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Wherever it is cancelled, everything begun is left, and nothing is lost."""
    caplog.set_level(logging.ERROR)
    responses: list[HttpResponse] = []

    def view(request: HttpRequest) -> HttpResponse:
        step("view")
        if raises:
            raise ValueError("in the view")
        responses.append(HttpResponse())
        return responses[-1]

    async def async_view(request: HttpRequest) -> HttpResponse:
        await trio.lowlevel.checkpoint()
        return view(request)

    app = application(path("", async_view if is_async else view), middleware=middleware)
    count = 0
    cancelling = None
    while cancelling is None or cancelling.steps_left <= 0:
        count += 1
        steps.clear()
        caplog.clear()
        responses.clear()
        sent: list[Any] = []
        cancelling = Cancelling(count)
        trio.lowlevel.add_instrument(cancelling)
        with maybe_signals(receivers) as names:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancelling.serve, app, sent)
        trio.lowlevel.remove_instrument(cancelling)
        assert names in ([], ["started", "finished"])
        assert bool(names) == (receivers and bool(steps))
        for name in (f"async {LOOP}", f"function {THREAD}"):
            assert steps.count(name) == steps.count(name.replace(" ", " left "))
        assert all(response.closed for response in responses)
        errors = [r for r in caplog.records if r.levelno >= logging.ERROR]
        reached = f"view {LOOP if is_async else THREAD}" in steps
        assert len(errors) == (raises and reached)
        assert_at_rest(current_pool())
    assert count > 5
    assert [message["type"] for message in sent] == [
        "http.response.start",
        "http.response.body",
    ]

"""Measuring and reporting tools see everything that they would see of Django itself."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import django.core.asgi
import pytest
import trio
from asgiref.sync import sync_to_async
from django.core.handlers import asgi
from django.core.handlers.base import BaseHandler
from django.http import HttpRequest, HttpResponse
from django.urls import path

from support import application, http_scope, request, signal_log
from tools.site_of_many import COUNT, KINDS
from tools.wrapped import CODE_NAMES, NAMES
from trio_asgi import ASGIHandler, get_asgi_application
from trio_asgi.testing import ApplicationCommunicator
from trio_asgi.threads.current import current_pool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_asgi.threads.lease import Lease
    from trio_asgi.threads.worker import Worker

TESTS = Path(__file__).parent

#: No code runs in a thread here, so this is not called.
NOTHING_TO_SEE = {("asgiref.sync:SyncToAsync.thread_handler", "/async/")}

#: Django closes them in a context that does not have the request's caches.
CLOSE_CACHE = "django.core.cache.backends.base:BaseCache.close"

REPLACED = [
    *(("wrapper", name) for name in NAMES),
    *(("code", name) for name in CODE_NAMES),
]

early_and_late = pytest.mark.parametrize("when", ["early", "late"])


@functools.cache
def run(program: str, *arguments: str) -> Any:
    """Run a program of the package ``tools``, and return its output."""
    env = {k: v for k, v in os.environ.items() if k != "DJANGO_SETTINGS_MODULE"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", f"tools.{program}", *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=TESTS,
        env=env,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# Any kind of replacement


@early_and_late
@pytest.mark.parametrize(("kind", "name"), REPLACED)
def test_what_is_put_in_the_place_of_djangos_code_is_called(
    kind: str, name: str, when: str
) -> None:
    """For each request for which Django itself would call it, whether early or late."""
    expected = run("wrapped", "django", kind)[name]
    seen = run("wrapped", when, kind)[name]
    missed = {path for path in expected if path not in seen}
    assert {(name, path) for path in missed} <= NOTHING_TO_SEE


def test_the_comparison_has_something_to_compare() -> None:
    """Django calls each for some requests; one of them only from Django 6.1 on."""
    found = run("wrapped", "django", "wrapper")
    assert {name for name, paths in found.items() if not paths} <= {CLOSE_CACHE}


@early_and_late
@pytest.mark.parametrize("kind", ["wrapper", "code"])
def test_what_replaces_the_closing_of_caches_is_called(kind: str, when: str) -> None:
    """At the end of a request that has used one."""
    assert "/sync/" in run("wrapped", when, kind)[CLOSE_CACHE]


# Django's own __call__


async def hello(request: HttpRequest) -> HttpResponse:
    return HttpResponse("hello")


async def thread_of_view(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(await sync_to_async(trio.from_thread.run_sync)(thread)))


def thread() -> int:
    return len(current_pool().workers)


async def test_a_request_has_one_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """Django's own `ThreadSensitiveContext` around the handler takes no other."""
    app = application(path("", thread_of_view))
    pool = current_pool()
    leases = []
    real = pool.lease

    def lease(kind: Any) -> Lease:
        leases.append(real(kind))
        return leases[-1]

    monkeypatch.setattr(pool, "lease", lease)
    assert (await request(app)).body == b"1"
    assert len(leases) == 1
    assert not leases[0].open


def wrapping(
    handle: Callable[..., Awaitable[None]], before: Callable[[], Awaitable[Any]]
) -> type[ASGIHandler]:
    """Return a handler whose `handle` does something first."""

    class Handler(ASGIHandler):
        async def handle(self, *args: Any) -> None:
            await before()
            await handle(self, *args)

    return Handler


async def test_sync_code_around_the_handler_runs_in_the_requests_thread() -> None:
    """As in Django; ``request_started`` is still sent before everything else."""
    import threading  # noqa: PLC0415

    names = []

    def note() -> None:
        names.append(threading.current_thread().name)

    def view(request: HttpRequest) -> HttpResponse:
        note()
        return HttpResponse()

    handler = wrapping(ASGIHandler.handle, sync_to_async(note))
    app = application(path("", view), handler=handler)
    with signal_log() as log:
        await request(app)
    assert log.names == ["started", "finished"]
    assert len(names) == 2
    assert {*names, *(thread.name for thread in log.threads)} == {names[0]}


async def test_a_wrapper_may_answer_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """State that its sync code leaves in the thread is not found by other requests."""
    workers: list[Worker] = []

    async def refuse(self: Any, scope: Any, receive: Any, send: Any) -> None:
        await sync_to_async(int)()
        workers.extend(current_pool().workers)
        await send({"type": "http.response.start", "status": 403, "headers": []})
        await send({"type": "http.response.body"})

    app = application(path("", hello))
    monkeypatch.setattr(asgi.ASGIHandler, "__call__", refuse)
    assert (await request(app)).status == 403
    (worker,) = workers
    await trio.to_thread.run_sync(worker.thread.join, 10)
    assert not worker.thread.is_alive()


async def test_a_request_within_a_request_has_a_lease_of_its_own() -> None:
    """The inner one ends first, and leaves the outer one its thread."""
    inner = application(path("", thread_of_view))

    async def view(request: HttpRequest) -> HttpResponse:
        before = await sync_to_async(trio.from_thread.run_sync)(thread)
        async with ApplicationCommunicator(inner, http_scope("/")) as communicator:
            await communicator.send_input({"type": "http.request"})
            await communicator.receive_output(timeout=10)
            body = (await communicator.receive_output(timeout=10))["body"]
        return HttpResponse(f"{before} {body.decode()}")

    assert (await request(application(path("", view)))).body == b"1 2"


@pytest.mark.parametrize("name", ["handle", "read_body", "send_response"])
async def test_what_would_not_be_called_is_warned_of(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Django's own code uses asyncio there, so a wrapper of it cannot be called."""
    real = getattr(asgi.ASGIHandler, name)
    application(path("", hello))
    assert not caplog.records

    @functools.wraps(real)
    async def wrapper(*args: Any) -> Any:
        return await real(*args)

    monkeypatch.setattr(asgi.ASGIHandler, name, wrapper)
    application(path("", hello))
    (record,) = caplog.records
    assert f"ASGIHandler.{name}, but is not called" in record.getMessage()


async def test_an_agent_that_mixes_requests_up_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """New Relic's agent has one transaction for everything in the same thread."""
    monkeypatch.setitem(sys.modules, "newrelic.agent", types.ModuleType("agent"))
    application(path("", hello))
    (record,) = caplog.records
    assert "takes all requests that run at the same time for one" in record.getMessage()


async def test_a_tool_may_wrap_the_making_of_the_application(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wrapper of Django's `get_asgi_application` also wraps ours."""
    real = django.core.asgi.get_asgi_application
    made = []

    def wrapper() -> Any:
        made.append(real())
        return {"in": made[-1]}

    monkeypatch.setattr(django.core.asgi, "get_asgi_application", wrapper)
    assert get_asgi_application() == {"in": made[0]}  # type: ignore[comparison-overlap]
    assert type(made[0]) is ASGIHandler
    # For others it is Django's, as before.
    assert vars(django.core.asgi)["ASGIHandler"] is asgi.ASGIHandler
    assert type(real()) is asgi.ASGIHandler


async def test_ours_in_the_place_of_djangos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some tools put `trio_asgi.get_asgi_application` there themselves."""
    monkeypatch.setattr(django.core.asgi, "get_asgi_application", get_asgi_application)
    assert type(get_asgi_application()) is ASGIHandler


# Sentry


@pytest.fixture
def sentry(when: str) -> Any:
    """What Sentry has seen of requests that all ran at once."""
    return run("with_sentry", when)


@early_and_late
def test_sentry_has_each_error_once_with_its_own_request(sentry: Any) -> None:
    """Tag, body, user, name and breadcrumbs are those of the request that failed."""
    assert sentry["statuses"] == [500] * COUNT * len(KINDS)
    found = {}
    for event in sentry["event"]:
        value = event["exception"]["values"][-1]["value"]
        crumbs = [each["message"] for each in event["breadcrumbs"]["values"]]
        found[value] = (
            event["tags"]["number"],
            event["request"]["data"],
            event["user"]["username"],
            event["transaction"],
            [crumb for crumb in crumbs if crumb.isdecimal()],
        )
    assert found == {
        f"{kind} {number}": (
            number,
            {"name": f"{kind}-{number}"},
            f"user{number}",
            f"/{kind}/{{number}}/",
            [str(number)],
        )
        for kind in KINDS
        for number in range(COUNT)
    }
    assert len(sentry["event"]) == len(found)


@early_and_late
def test_sentry_has_a_transaction_of_each_request(sentry: Any) -> None:
    """Even of one whose client has disconnected, which is not an error."""
    assert Counter(each["transaction"] for each in sentry["transaction"]) == {
        "/async/{number}/": COUNT,
        "/sync/{number}/": COUNT,
        "/wait/": 1,
    }
    traces = {each["contexts"]["trace"]["trace_id"] for each in sentry["transaction"]}
    assert len(traces) == len(sentry["transaction"])


@early_and_late
def test_sentrys_spans_are_those_of_their_request(sentry: Any) -> None:
    """Middleware, view, queries and signals: each has its parent in the same trace."""
    errors = {
        event["contexts"]["trace"]["trace_id"]: event["contexts"]["trace"]["span_id"]
        for event in sentry["event"]
    }
    for transaction in sentry["transaction"]:
        trace = transaction["contexts"]["trace"]
        ids = {span["span_id"] for span in transaction["spans"]}
        parents = {*ids, trace["span_id"]}
        assert {span["trace_id"] for span in transaction["spans"]} == {
            trace["trace_id"]
        }
        assert {span["parent_span_id"] for span in transaction["spans"]} <= parents
        kinds = Counter(span["op"] for span in transaction["spans"])
        assert kinds["view.render"] == 1
        assert kinds["middleware.django"] == 8  # those of startproject; CSRF's has two
        if transaction["transaction"] == "/wait/":
            assert trace["trace_id"] not in errors
            continue
        assert kinds["db"] >= 1
        assert errors.pop(trace["trace_id"]) in parents
    assert errors == {}


@early_and_late
def test_async_views_stay_async_under_sentry(sentry: Any) -> None:
    """They run on the loop, all at once."""
    assert sentry["async"] == ["MainThread"]


# OpenTelemetry


@early_and_late
@pytest.mark.parametrize("instrumented", ["django", "asgi"])
def test_opentelemetrys_spans_are_those_of_their_request(
    instrumented: str, when: str
) -> None:
    """The view's spans have their own request's span as their parent, on both sides."""
    seen = run("with_opentelemetry", when, instrumented)
    assert seen["statuses"] == [500] * COUNT * len(KINDS)
    requests = {
        span["attributes"]["http.target"]: span
        for span in seen["spans"]
        if span["kind"] == "SERVER"
    }
    left = requests.pop("/wait/", None)  # Django's middleware does not end it
    assert (left is None) == (instrumented == "django")
    assert set(requests) == {
        f"/{kind}/{number}/" for kind in KINDS for number in range(COUNT)
    }
    assert len({span["trace"] for span in requests.values()}) == len(requests)
    for target, span in requests.items():
        _, kind, number, _ = target.split("/")
        assert span["parent"] is None
        assert span["attributes"]["http.status_code"] == 500
        if instrumented == "django":
            assert span["name"] == f"POST {kind}/<int:number>/"
        inner = [
            (each["name"], each["parent"], each["attributes"]["number"])
            for each in seen["spans"]
            if each["trace"] == span["trace"] and "number" in each["attributes"]
        ]
        assert inner == [
            (name, span["id"], int(number)) for name in ("before", "after")
        ]
    assert all(span["ended"] for span in seen["spans"])


def test_a_replaced_method_of_the_handler_costs_no_answer() -> None:
    """The programs above have run the real `BaseHandler`, unpatched in this process."""
    assert not hasattr(BaseHandler.get_response_async, "__wrapped__")

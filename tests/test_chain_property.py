"""A chain of middleware is called as Django's own handlers call it.

Order of calls, threads, context variables, the conversion of errors between layers, log
records, signals and the response: all are compared, for chains that hypothesis draws.

``TRIO_ASGI_CHAINS=20000`` in the environment tries more of them. A chain that fails is
shown in one line, which can be pasted into `EXAMPLES`.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import django
import pytest
from django.core.handlers.asgi import ASGIHandler as DjangoASGIHandler
from django.template.response import ContentNotRenderedError
from django.test import override_settings
from hypothesis import HealthCheck, Phase, given, note, settings

from chains.project import chain_loaded, chain_project
from chains.servers import (
    Outcome,
    Run,
    comparable,
    run_asyncio,
    run_trio,
    run_wsgi,
)
from chains.specs import SYNC_HOOKS, WRONG_KINDS, Act, Chain, Layer, Request, View
from chains.strategies import STARTPROJECT, chains
from trio_asgi import ASGIHandler

if TYPE_CHECKING:
    from collections.abc import Iterator

CHAINS = int(os.environ.get("TRIO_ASGI_CHAINS", "300"))

#: Hypothesis keeps all that it has drawn in one test: more tests need less memory.
TURNS = -(-CHAINS // 1000)


@pytest.fixture(scope="module", autouse=True)
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Provide the project of all chains."""
    with chain_project(tmp_path_factory.mktemp("chains")):
        yield


# The comparison

#: Up to Django 6.0, the ASGI handler sends request_started in one task, calls the chain
#: in another, and ends the request outside both: context variables do not pass from one
#: to the next. They do under WSGI, in Django 6.1, and here.
ONE_CONTEXT = django.VERSION >= (6, 1)


def story(
    outcome: Outcome, *, threads: bool = True, seen: bool = True, debug: bool = False
) -> list[str]:
    """Describe what happened, one line for each event.

    Args:
        outcome: The result of a request.
        threads: Whether to say where each thing was called.
        seen: Whether to say what it saw of the context.
        debug: Whether errors are answered with the page for developers.
    """
    lines = []
    for event in outcome.events:
        line = f"{event.what}: {event.detail}"
        if seen:
            line += f" [{event.seen}]"
        # The page for an error in DEBUG reads the user, in any of Django's threads.
        free = event.free or (debug and event.what == "user loaded")
        if threads and not free:
            line += f" in {event.where}"
        lines.append(line)
        if threads and event.what == "send end":
            # The rest is the end of the request.
            seen &= ONE_CONTEXT
    return lines


def answer(outcome: Outcome, *, debug: bool) -> Any:
    """Return the response; of a debug page only the part that is always the same."""
    headers = comparable(outcome.headers)
    body = b"".join(outcome.parts)
    if debug and outcome.status >= 400:
        of_body = {"Content-Length", "ETag"}
        headers = [header for header in headers if header[0] not in of_body]
        body = b""
    return outcome.status, headers, body, outcome.complete


def check(chain: Chain) -> None:
    """Run a chain's requests by the three handlers, and compare."""
    chain = without_head_of_streams(chain)
    with chain_loaded(chain):
        ours = run_trio(chain)
        check_as_asyncio(chain, ours, run_asyncio(chain))
        if not wsgi_differs(chain):
            check_as_wsgi(chain, ours, run_wsgi(chain))


def without_head_of_streams(chain: Chain) -> Chain:
    """Return a chain in which HEAD never requests a stream.

    Django's handlers iterate it, and the server drops the parts. Here it is left alone:
    see test_file_stream.py.
    """
    if not any("stream" in does.end for does in chain.acts):
        return chain
    requests = tuple(
        replace(request, method="GET") if request.method == "HEAD" else request
        for request in chain.requests
    )
    return replace(chain, requests=requests)


def check_as_asyncio(chain: Chain, ours: Run, theirs: Run) -> None:
    """Check that a run is the same as under Django's ASGI handler."""
    assert ours.made == theirs.made
    debug = "debug" in chain.settings
    seen = ONE_CONTEXT or "set variables at start" not in chain.settings
    for our, their in zip(ours.outcomes, theirs.outcomes, strict=True):
        if their.error is not None:
            check_escaped(our, their, seen=seen)
            if isinstance(their.error, ContentNotRenderedError):
                break  # its headers were sent, and their cookies come with the next
            continue
        assert our.error is None
        told = story(their, seen=seen, debug=debug)
        assert story(our, seen=seen, debug=debug) == told
        assert answer(our, debug=debug) == answer(their, debug=debug)
        for event, as_django in zip(our.events, their.events, strict=True):
            # Only code that Django has called on the loop, too, may be there.
            assert event.where == as_django.where or event.where != "loop"


def check_escaped(our: Outcome, their: Outcome, *, seen: bool) -> None:
    """Check the result of an error that Django's ASGI handler leaves to the server.

    Here it is answered, if the response has not started, and the request ends normally.
    """
    told = story(their, seen=seen)
    # Django may have started a response whose content is not available.
    unrendered = isinstance(their.error, ContentNotRenderedError)
    unrendered = unrendered and told[-1].startswith("send start")
    if unrendered:
        told.pop()
    assert story(our, seen=seen)[: len(told)] == told
    rest = [event.what for event in our.events[len(told) :]]
    if their.status and not unrendered:
        assert type(our.error) is type(their.error)
    else:
        assert our.error is None
        assert our.status == 500
        # The answer does not wait for what handles the log.
        assert rest[:2] == ["send start", "send end"]
        assert rest.pop() == "log django.request ERROR"
        assert type(their.error).__name__ in our.events[-1].detail
        del rest[:2]
    assert rest[-1] == "request_finished"
    assert all(what.endswith(" closed") for what in rest[:-1])


def wsgi_differs(chain: Chain) -> bool:
    """Return whether Django's own two handlers may differ, by their nature."""
    hooks = [named for layer in chain.layers for named in layer.hooks]
    effects = {effect for does in chain.acts for effect in does.does}
    return (
        # An object whose __call__ is a coroutine function is treated as sync code.
        # sync_to_async() refuses it, WSGI calls it and gets a coroutine.
        any(view.kind == "object" and view.act.is_async for view in chain.views)
        # The same with these hooks, which the mixin treats as sync code.
        or any(does.is_async and name in SYNC_HOOKS for name, does in hooks)
        # Nor does WSGI check whether a coroutine answers a failed render.
        or (
            any(does.is_async and name == "process_exception" for name, does in hooks)
            and any("template" in does.end for does in chain.acts)
        )
        # WSGI does not await a ``render`` that is a coroutine function.
        or any(does.end == "async template" for does in chain.acts)
        # The user of request.auser() is kept separately from that of request.user.
        or {"log in", "use user"} <= effects
        # These are patched only for async chains.
        or not {"patch the mixin", "patch the handler"}.isdisjoint(chain.settings)
        # Its override applies only to async chains.
        or any(layer.kind == "mixin with __acall__" for layer in chain.layers)
        # A task has its own context.
        or any(layer.in_task for layer in chain.layers)
        # A copy of an ASGI request cannot read the body again.
        or (
            any(layer.copies for layer in chain.layers)
            and any(request.method == "POST" for request in chain.requests)
        )
    )


def check_as_wsgi(chain: Chain, ours: Run, theirs: Run) -> None:
    """Check that a run is as under Django's WSGI handler, except for the threads."""
    debug = "debug" in chain.settings
    for our, their in zip(ours.outcomes, theirs.outcomes, strict=True):
        if isinstance(their.error, ContentNotRenderedError):
            break  # see check_as_asyncio()
        if their.error is None:
            assert story(our, threads=False) == story(their, threads=False)
            assert answer(our, debug=debug) == answer(their, debug=debug)


# Random chains


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("turn", range(TURNS))
@settings(
    max_examples=-(-CHAINS // TURNS),
    deadline=None,
    database=None,
    # Different chains each time, even where hypothesis detects CI.
    derandomize=False,
    print_blob=True,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
@given(chain=chains)
def test_any_chain_is_called_as_by_django(chain: Chain, turn: int) -> None:
    """Calls, threads, context, errors and responses are those of Django's handlers."""
    note(repr(chain))
    check(chain)


# Chains to read

PLAIN = tuple(Layer(path) for path in STARTPROJECT)
SECURITY = STARTPROJECT[0]
SYNC, ASYNC = View(), View(act=Act(is_async=True))
BOTH_VIEWS = (Request("/0/"), Request("/1/"), Request("/0/"))
ALL_HOOKS = (
    ("process_request", Act()),
    ("process_view", Act()),
    ("process_template_response", Act(does=("add callback",))),
    ("process_response", Act()),
    ("process_exception", Act()),
)
MIXIN = Layer("mixin", ALL_HOOKS)
SETTING_MIXIN = Layer(
    "mixin",
    tuple((name, Act(does=("set variable", "set local"))) for name, _ in ALL_HOOKS),
)


def mixin(**hooks: Act) -> Layer:
    """Return a layer with these hooks."""
    return Layer("mixin", tuple(hooks.items()))


def ends(end: str, *, is_async: bool = False) -> View:
    """Return a view that ends this way."""
    return View(act=Act(end, is_async=is_async))


EXAMPLES = {
    "no middleware": Chain(views=(SYNC, ASYNC), requests=BOTH_VIEWS),
    "startproject": Chain(PLAIN, views=(SYNC, ASYNC), requests=BOTH_VIEWS),
    "startproject, a POST with a token": Chain(
        PLAIN,
        views=(SYNC, ASYNC),
        requests=(
            Request("/0/", "POST", token=True),
            Request("/1/", "POST", token=True),
        ),
    ),
    "startproject, a POST without": Chain(
        PLAIN,
        views=(SYNC, ASYNC),
        requests=(Request("/0/", "POST"), Request("/1/", "POST")),
        settings=("csrf failure of its own",),
    ),
    "startproject, all that it does used": Chain(
        PLAIN,
        views=tuple(
            View(
                act=Act(does=("log in", "use messages", "use user"), is_async=is_async)
            )
            for is_async in (False, True)
        ),
        requests=BOTH_VIEWS,
        settings=("sessions of its own", "messages of its own"),
    ),
    "a sync function in the middle of startproject": Chain(
        (*PLAIN[:3], Layer("sync function", resets=True), *PLAIN[3:]),
        views=(SYNC, ASYNC),
        requests=BOTH_VIEWS,
    ),
    "an async function in the middle of startproject": Chain(
        (*PLAIN[:3], Layer("async function", resets=True), *PLAIN[3:]),
        views=(SYNC, ASYNC),
        requests=BOTH_VIEWS,
    ),
    "hooks set variables": Chain(
        (SETTING_MIXIN, MIXIN, Layer("async class"), MIXIN),
        views=(ends("template"), ends("template", is_async=True)),
        requests=BOTH_VIEWS,
    ),
    "the second of two process_request fails": Chain(
        (MIXIN, mixin(process_request=Act("raise Http404")), MIXIN)
    ),
    "what fails has set a variable before": Chain(
        (MIXIN, mixin(process_request=Act("raise Http404", ("set variable",))))
    ),
    "the second of two process_response fails": Chain(
        (MIXIN, mixin(process_response=Act("raise Oops")), MIXIN)
    ),
    "process_view fails, which is not process_exception's business": Chain(
        (MIXIN, mixin(process_view=Act("raise Oops")), MIXIN)
    ),
    "process_view returns what is false": Chain(
        (MIXIN, mixin(process_view=Act("falsy")), MIXIN)
    ),
    "process_request returns what is false": Chain(
        (MIXIN, mixin(process_request=Act("falsy")), MIXIN)
    ),
    "process_template_response returns None": Chain(
        (MIXIN, mixin(process_template_response=Act("none"))),
        views=(ends("template"), SYNC),
    ),
    "process_exception answers": Chain(
        (MIXIN, mixin(process_exception=Act("template")), MIXIN),
        views=(ends("raise Oops"), ends("raise Http404", is_async=True)),
        requests=BOTH_VIEWS,
    ),
    "rendering fails, which is process_exception's business": Chain(
        (MIXIN, MIXIN), views=(ends("template that fails"), SYNC)
    ),
    "middleware asks for content that was not rendered": Chain(
        (mixin(process_exception=Act("template that fails")), *PLAIN),
        views=(ends("raise Oops"), SYNC),
        settings=("propagate",),
    ),
    "a session is stored by a response that cannot be sent": Chain(
        (
            Layer("django.contrib.sessions.middleware.SessionMiddleware"),
            Layer("mixin with __call__", after=Act(does=("use session",))),
            Layer("sync function", after=Act(end="template")),
        ),
        requests=(Request(), Request()),
    ),
    "a hook of Django's is patched": Chain(
        (Layer(f"patched:{SECURITY}", ALL_HOOKS), *PLAIN[1:]), views=(ASYNC, ASYNC)
    ),
    "the mixin's calls are patched": Chain(
        (MIXIN, *PLAIN),
        views=(SYNC, ASYNC),
        requests=BOTH_VIEWS,
        settings=("patch the mixin",),
    ),
    "a method of the handler is patched": Chain(
        (MIXIN, *PLAIN),
        views=(SYNC, ASYNC),
        requests=BOTH_VIEWS,
        settings=("patch the handler",),
    ),
    "a stream sees the language that middleware has set": Chain(
        (Layer("django.middleware.locale.LocaleMiddleware"), SETTING_MIXIN),
        views=(ends("stream"), ends("async stream", is_async=True)),
        requests=(Request("/0/", language="de"), Request("/1/", language="de")),
    ),
    "views return what they should not": Chain(
        (MIXIN,), views=(ends("none"), ends("coroutine")), requests=BOTH_VIEWS
    ),
    "errors that Django's handler raises to the server": Chain(
        (MIXIN, mixin(process_response=Act("none"))),
        views=(SYNC, ends("stream that fails")),
        requests=BOTH_VIEWS,
    ),
    "a template response that nobody renders": Chain(
        (mixin(process_response=Act("template")),), requests=BOTH_VIEWS
    ),
}


@pytest.mark.parametrize("chain", EXAMPLES.values(), ids=EXAMPLES)
def test_this_chain_is_called_as_by_django(chain: Chain) -> None:
    """The property holds for the examples, whatever hypothesis draws."""
    check(chain)


def test_a_story_tells_it_all() -> None:
    """The comparison has every call, in order, with its thread and its context."""
    chain = Chain(
        (
            mixin(process_request=Act(does=("set variable",)), process_response=Act()),
            Layer("async function"),
            mixin(process_view=Act(), process_exception=Act("respond 404")),
        ),
        views=(View(act=Act("raise Oops", does=("cross",), is_async=True)), SYNC),
    )
    with chain_loaded(chain):
        run = run_trio(chain)
    assert run.made == ["2 async", "1 async", "0 async"]
    (outcome,) = run.outcomes
    assert answer(outcome, debug=False) == (
        404,
        [
            ("Content-Type", "text/html; charset=utf-8"),
            ("X-Passed", "1.after 0.process_response"),
        ],
        b"from 2.process_exception",
        True,
    )
    at_first = "-, -, en-us"
    then = "0.process_request, -, en-us"
    error = "OopsError while handling OopsError"
    at_last = "view 0 has crossed, -, en-us"
    assert story(outcome)[:-2] == [
        f"request_started:  [{at_first}, -] in request",
        f"0.process_request:  [{at_first}, root] in request",
        f"1.before:  [{then}, root] in loop",
        f"2.process_view:  [{then}, root] in request",
        f"view 0:  [{then}, root] in loop",
        f"view 0 crosses:  [{then}, root] in request",
        f"2.process_exception: {error} [{at_last}, root] in request",
        f"1.after: 404 [{at_last}, root] in loop",
        f"0.process_response: 404 [{at_last}, root] in request",
        f"log django.request WARNING: Not Found: /0/ NoneType [{at_last}, root]",
        f"send start: 404 [{at_last}, root] in loop",
        f"send end:  [{at_last}, root] in loop",
    ]
    assert [event.what for event in outcome.events[-2:]] == [
        "2.process_exception closed",
        "request_finished",
    ]


@pytest.mark.parametrize("kind", WRONG_KINDS)
def test_wrong_middleware_is_refused_as_by_django(kind: str) -> None:
    """An error when the handler is made is Django's own, with its text."""
    with chain_loaded(Chain((MIXIN, Layer(kind), MIXIN))):
        assert_same_error(ASGIHandler, DjangoASGIHandler)


def test_middleware_that_is_not_there_is_refused_as_by_django() -> None:
    """A path that leads nowhere is an ImportError when the handler is made."""
    with override_settings(MIDDLEWARE=["nowhere.Middleware"]):
        assert_same_error(ASGIHandler, DjangoASGIHandler)


def assert_same_error(ours: type[Any], theirs: type[Any]) -> None:
    """Check that two classes raise the same when they are instantiated."""
    with pytest.raises(Exception) as expected:
        theirs()
    with pytest.raises(type(expected.value)) as raised:
        ours()
    assert str(raised.value) == str(expected.value)

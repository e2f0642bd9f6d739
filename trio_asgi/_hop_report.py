"""The report of `trio_asgi_hops`: what a request's hops come from, as text."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from django.conf import settings
from django.core.cache import caches
from django.core.handlers import base
from django.core.handlers.base import BaseHandler
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import Resolver404, get_resolver

from ._hop_causes import closing_caches, name_of, unkept_databases
from ._passage import Kind
from ._rehearsal import middleware_of, rehearse, respond
from ._stand_ins import ViewError
from .handler import ASGIHandler
from .testing.scopes import http_scope

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ._rehearsal import Act
    from ._stage import Course, Stage
    from ._types import Scope

_WIDTH: Final = 79
#: What a project's handler may override, and is not rehearsed.
_NOT_REHEARSED: Final = (
    "handle",
    "read_body",
    "run_get_response",
    "get_response_async",
    "send_response",
)
#: What tools that measure replace; it takes further hops then.
_DJANGOS: Final = ("get_response_async", "_get_response_async")
_SAFE_METHODS: Final = ("GET", "HEAD", "OPTIONS", "TRACE")


# The request


def scope_of(path: str, method: str = "GET") -> Scope:
    """Return the scope of a request by somebody unknown, as a server would make it.

    It came over HTTPS, or else ``SECURE_SSL_REDIRECT`` would redirect it.

    Args:
        path: Begins with a slash; may have a query string.
        method: In capitals.
    """
    headers = {"Host": _host()}
    if settings.SECURE_PROXY_SSL_HEADER:
        name, value = settings.SECURE_PROXY_SSL_HEADER
        headers[name.removeprefix("HTTP_").replace("_", "-")] = value
    return http_scope(path, method=method, headers=headers, scheme="https")


def _host() -> str:
    """Return a host that ``ALLOWED_HOSTS`` allows, if there is one."""
    allowed = settings.ALLOWED_HOSTS or ["localhost"]
    if allowed[0] == "*":
        return "localhost"
    return str(allowed[0]).removeprefix(".")


# What it may do besides


@dataclass(frozen=True)
class Case:
    """Something that a view, or a request, may do and need not."""

    condition: str
    act: Act = respond
    method: str | None = None
    #: Whether there may be more hops than in the rehearsal.
    at_least: bool = False


def _use_sync_code(stage: Stage, _: Any) -> Any:
    with stage.hop():
        stage.step("sync code of the view", "sync")
    return HttpResponse()


def _change_session(_: Stage, request: Any) -> Any:
    if hasattr(request, "session"):
        request.session.modified = True
    return HttpResponse()


def _add_message(_: Stage, request: Any) -> Any:
    if hasattr(request, "_messages"):
        request._messages.added_new = True
    return HttpResponse()


class _TemplateResponse(HttpResponse):
    """Looks to the chain as one that is still to be rendered."""

    stage: Stage

    def render(self) -> HttpResponse:
        self.stage.step("the template", "templates are rendered in the thread")
        return self


def _render_later(stage: Stage, _: Any) -> Any:
    response = _TemplateResponse()
    response.stage = stage
    return response


def _use_caches(_: Stage, __: Any) -> Any:
    # Empty ones, which connect to nothing.
    for alias, backend in closing_caches().items():
        setattr(caches._connections, alias, backend.__new__(backend))  # type: ignore[attr-defined]
    return HttpResponse()


def _answer_404(_: Stage, __: Any) -> Any:
    return HttpResponse(status=404)


def _fail(_: Stage, __: Any) -> Any:
    raise ViewError


def _stream(_: Stage, __: Any) -> Any:
    return StreamingHttpResponse(iter(()))


def _stream_async(_: Stage, __: Any) -> Any:
    async def parts() -> Any:
        yield b""

    return StreamingHttpResponse(parts())


def _upload_files(_: Stage, request: Any) -> Any:
    request._files = [None]
    return HttpResponse()


def _cases(method: str) -> Iterator[Case]:
    """Yield what may happen to a request with this method."""
    yield Case("the view returns a TemplateResponse", _render_later)
    yield Case("the session is changed", _change_session)
    yield Case("a message is added or shown", _add_message)
    yield Case("the view's answer is a 404 or another error", _answer_404)
    yield Case("the view raises an error", _fail)
    yield Case("the response is a stream of an async iterator", _stream_async)
    stream = "the response is a stream of a sync iterator"
    yield Case(stream, _stream, at_least=True)
    names = ", ".join(closing_caches())
    yield Case(f"a cache is used that is closed at the end: {names}", _use_caches)
    if method in _SAFE_METHODS:
        yield Case("the method is POST, PUT, PATCH or DELETE", method="POST")
    else:
        yield Case("files are uploaded", _upload_files)


def _at_end(handler: ASGIHandler, scope: Scope, usual: Course) -> int:
    """Return the number of further hops if sync code uses a database."""
    calls = 1 if usual.view_is_async else 0
    act = _use_sync_code if calls else respond
    course = rehearse(handler, scope, act, uses_database=True)
    return course.hops - usual.hops - calls


def further_hops(
    handler: ASGIHandler, path: str, method: str, usual: Course
) -> Iterator[str]:
    """Yield what costs further hops, each with their number.

    Args:
        handler: As for `rehearse`.
        path: As for `scope_of`.
        method: The request's.
        usual: What comes of the request without any of this.
    """

    def more(case: Case) -> int:
        scope = scope_of(path, case.method or method)
        return rehearse(handler, scope, case.act).hops - usual.hops

    if usual.view_step is None:
        return
    if usual.view_is_async:
        yield "+1 for each call of sync code in the view, async methods of the ORM too"
    at_end = _at_end(handler, scope_of(path, method), usual)
    databases = ", ".join(unkept_databases())
    if at_end > 0 and databases:
        condition = f"if a database without CONN_MAX_AGE is used: {databases}"
        yield f"+{at_end} at the end, {condition}"
    for case in _cases(method):
        number = more(case)
        if number > 0:
            or_more = " or more" if case.at_least else ""
            yield f"+{number}{or_more} if {case.condition}"
    if method not in _SAFE_METHODS:
        yield "+1 for each part of a body over FILE_UPLOAD_MAX_MEMORY_SIZE"


# What is said


def report(
    handler: ASGIHandler, path: str, method: str = "GET", *, verbosity: int = 1
) -> Iterator[str]:
    """Yield the lines of the report.

    Args:
        handler: As for `rehearse`.
        path: As for `scope_of`.
        method: The request's.
        verbosity: 0 for the number of hops, 1 for their causes, 2 for every step.

    Raises:
        Exception: as `rehearse`.
    """
    course = rehearse(handler, scope_of(path, method))
    yield f"{method} {path} -> {_goal(course)}"
    yield _count(course)
    if verbosity == 0:
        return
    for number in range(1, course.hops + 1):
        yield ""
        yield f"hop {number}{_place(course, number)}"
        yield from _causes(course, number)
    for name in course.turns:
        yield ""
        yield "turn back to the loop"
        yield f"  {name}"
        yield "    is sync only, above async code: the thread waits for that"
    yield from _section("On the loop", _on_loop(course))
    further = [*further_hops(handler, path, method, course)]
    yield from _section("Further hops", further)
    yield from _section("Notes", [*_notes(handler, path, course)])
    if verbosity > 1:
        yield ""
        yield "Steps"
        yield from _steps(course)


def _goal(course: Course) -> str:
    if course.view is None:
        return f"no view ({course.status})"
    kind = "async" if course.view_is_async else "sync"
    if course.view_step is None:
        return f"{course.view} ({kind}), which is not reached: {course.status}"
    return f"{course.view} ({kind})"


def _count(course: Course) -> str:
    parts = [_number(course.hops, "hop")]
    if course.turns:
        parts.append(_number(len(course.turns), "turn") + " back to the loop")
    return ", ".join(parts)


def _number(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def _place(course: Course, number: int) -> str:
    places = [i for i, step in enumerate(course.steps) if step.hop == number]
    if course.view_step is None or not places:
        return ""
    if course.steps[course.view_step].hop == number:
        return ", with the view"
    if places[0] > course.view_step:
        return ", after the view"
    if places[-1] < course.view_step:
        return ", before the view"
    return ", around the view"


def _causes(course: Course, number: int) -> Iterator[str]:
    causes = [step for step in course.steps if step.hop == number and step.why]
    if not causes:
        # The one step that cannot be seen if its logger is turned off.
        yield "  Django's log of the answer"
    for step in causes:
        yield f"  {step.name}"
        yield f"    {step.why}"


def _on_loop(course: Course) -> list[str]:
    """Name what runs there: classes of middleware, rather than their hooks."""
    names: dict[str, None] = {}
    for step in course.steps:
        if step.hop is None:
            words = step.name.split(",")[0].split(".")
            is_hook = words[-1].startswith("process_")
            names[words[-2] if is_hook else ".".join(words)] = None
    return [", ".join(names)] if names else []


def _steps(course: Course) -> Iterator[str]:
    for step in course.steps:
        place = "loop" if step.hop is None else f"hop {step.hop}"
        yield f"  {place:<6}  {step.name}"


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    lines = [*lines]
    if lines:
        yield ""
        yield title
    for line in lines:
        yield from textwrap.wrap(
            line,
            _WIDTH,
            initial_indent="  ",
            subsequent_indent="     " if line.startswith("+") else "  ",
            break_long_words=False,
            break_on_hyphens=False,
        )


def _notes(handler: ASGIHandler, path: str, course: Course) -> Iterator[str]:
    yield from course.notes
    for layer, name in middleware_of(handler):
        if layer.kind is Kind.ASYNC:
            yield f"{name} is async: sync code that it calls itself is not counted."
    cls = type(handler)
    for method in _NOT_REHEARSED:
        if getattr(cls, method) is not getattr(ASGIHandler, method):
            yield f"{name_of(cls)}.{method} overrides this package's: not rehearsed."
    for method in _DJANGOS:
        function = getattr(BaseHandler, method)
        if getattr(function, "__globals__", None) is not vars(base):
            yield f"BaseHandler.{method} was replaced: not rehearsed."
    slashed = path.partition("?")[0] + "/"
    if course.view is None and not slashed.endswith("//"):
        try:
            match = get_resolver().resolve(slashed)
        except Resolver404:
            return
        yield f"{slashed} leads to {name_of(match.func)}."

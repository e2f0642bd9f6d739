"""The code of a chain: what hooks, functions and views do when called."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any

import trio
from asgiref.sync import async_to_sync, markcoroutinefunction, sync_to_async
from django.contrib import messages
from django.contrib.auth import BACKEND_SESSION_KEY, SESSION_KEY
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.middleware.csrf import get_token
from django.template.response import SimpleTemplateResponse, TemplateResponse
from django.views import View as DjangoView

from .notes import describe, local, note, recording, word
from .specs import ERRORS, MARKS, Act, OopsError, View

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

#: Which authentication backend "log in" uses.
LOGIN_BACKEND = "chains.project.NotingBackend"


async def checkpoint() -> None:
    """Let other tasks run, on asyncio or on Trio."""
    if trio.lowlevel.in_trio_task():
        await trio.lowlevel.checkpoint()
    else:
        await asyncio.sleep(0)


def closed_at_end(fn: Callable[..., Any]) -> Any:
    """Close a coroutine function's coroutines at the end, as some are never awaited.

    Django treats certain code as sync, whether it is or not.
    """

    @markcoroutinefunction
    @functools.wraps(fn)
    def call(*arguments: Any) -> Any:
        coroutine = fn(*arguments)
        recording.get().coroutines.append(coroutine)
        return coroutine

    return call


# Acts


def act(
    does: Act,
    label: str,
    request: HttpRequest,
    given: Any = None,
    otherwise: str = "pass",
) -> Any:
    """Perform an act in sync code.

    Args:
        does: The act.
        label: Of the piece of the chain.
        request: The request.
        given: What the code was called with: a response, an error, or None.
        otherwise: How "pass" ends, if not by returning ``given``.
    """
    note(label, describe(given))
    for effect in does.does:
        if effect in _CROSSINGS:
            try:
                async_to_sync(_cross_async)(label, **_CROSSINGS[effect])
            except OopsError:
                note(f"{label} failed there")
        elif effect == "use another thread":
            # As async code sees it.
            _cross(label, free=True)
        else:
            _EFFECTS[effect](label, request, given)
    return _end(does, label, request, given, otherwise)


async def act_async(
    does: Act,
    label: str,
    request: HttpRequest,
    given: Any = None,
    otherwise: str = "pass",
) -> Any:
    """Perform an act in async code; as `act`."""
    await checkpoint()
    note(label, describe(given))
    for effect in does.does:
        if effect in _CROSSINGS:
            try:
                await sync_to_async(_cross)(label, **_CROSSINGS[effect])
            except OopsError:
                note(f"{label} failed there")
                # Up to the next await, asyncio has lost the error of the code above.
                await checkpoint()
        elif effect == "use another thread":
            await sync_to_async(_cross, thread_sensitive=False)(label, free=True)
        elif effect == "use user" and hasattr(request, "auser"):
            note(f"{label} user", str(await request.auser()))
        elif effect.startswith(("use", "log")):
            await sync_to_async(_EFFECTS[effect])(label, request, given)
        else:
            _EFFECTS[effect](label, request, given)
    return _end(does, label, request, given, otherwise)


def _end(
    does: Act, label: str, request: HttpRequest, given: Any, otherwise: str
) -> Any:
    end = otherwise if does.end == "pass" else does.end
    if end != "pass":
        return respond(end, label, request)
    if given is None or isinstance(given, BaseException):
        return None
    given["X-Passed"] = f"{given.get('X-Passed', '')} {label}".strip()
    return given


# Effects

_CROSSINGS: dict[str, dict[str, bool]] = {
    "cross": {},
    "cross twice": {"back": True},
    "cross and fail": {"fails": True},
}


def _cross(
    label: str, *, back: bool = False, fails: bool = False, free: bool = False
) -> None:
    note(f"{label} crosses", describe(None), free=free)
    word.set(f"{label} has crossed")
    if back:
        async_to_sync(_cross_async)(f"{label} back")
    if fails:
        raise OopsError("there")


async def _cross_async(label: str, *, back: bool = False, fails: bool = False) -> None:
    await checkpoint()
    note(f"{label} crosses", describe(None))
    word.set(f"{label} has crossed")
    if back:
        await sync_to_async(_cross)(f"{label} back")
    if fails:
        raise OopsError("there")


def _set_variable(label: str, request: HttpRequest, given: Any) -> None:
    word.set(label)


def _set_local(label: str, request: HttpRequest, given: Any) -> None:
    local.word = label


def _set_urlconf(label: str, request: HttpRequest, given: Any) -> None:
    request.urlconf = OTHER_URLCONF  # type: ignore[assignment] # as a module


def _set_path(label: str, request: HttpRequest, given: Any) -> None:
    request.path_info = "/1/"


def _use_session(label: str, request: HttpRequest, given: Any) -> None:
    if hasattr(request, "session"):
        request.session["word"] = request.session.get("word", "") + label
        note(f"{label} session", request.session["word"])


def _use_messages(label: str, request: HttpRequest, given: Any) -> None:
    if hasattr(request, "_messages"):
        messages.info(request, label)


def _use_csrf_token(label: str, request: HttpRequest, given: Any) -> None:
    get_token(request)


def _use_user(label: str, request: HttpRequest, given: Any) -> None:
    if hasattr(request, "user"):
        note(f"{label} user", str(request.user))


def _use_post(label: str, request: HttpRequest, given: Any) -> None:
    note(f"{label} post", str(request.POST.dict()))


def _log_in(label: str, request: HttpRequest, given: Any) -> None:
    if hasattr(request, "session"):
        request.session[SESSION_KEY] = "1"
        request.session[BACKEND_SESSION_KEY] = LOGIN_BACKEND


def _add_callback(
    label: str, request: HttpRequest, given: Any, *, fails: bool = False
) -> None:
    def rendered(response: Any) -> None:
        note(f"{label} callback", describe(response))
        if fails:
            raise OopsError("in a callback")

    if not getattr(given, "is_rendered", True):
        given.add_post_render_callback(rendered)


_EFFECTS: dict[str, Callable[[str, HttpRequest, Any], None]] = {
    "set variable": _set_variable,
    "set local": _set_local,
    "set urlconf": _set_urlconf,
    "set path": _set_path,
    "use session": _use_session,
    "use messages": _use_messages,
    "use csrf token": _use_csrf_token,
    "use user": _use_user,
    "use post": _use_post,
    "log in": _log_in,
    "add callback": _add_callback,
    "add failing callback": functools.partial(_add_callback, fails=True),
}


# Responses that note when they are closed


class _Noted:
    label = ""

    def close(self) -> None:
        note(f"{self.label} closed")
        super().close()  # type: ignore[misc] # it stands before a response


class NotedResponse(_Noted, HttpResponse):
    pass


class FalsyResponse(NotedResponse):
    """A response that is false: Django tests some hooks' results for truth."""

    def __bool__(self) -> bool:
        return False


class NotedTemplateResponse(_Noted, TemplateResponse):
    pass


class NotedStream(_Noted, StreamingHttpResponse):
    pass


class AsyncTemplateResponse(_Noted, SimpleTemplateResponse):
    """A response whose ``render`` is a coroutine function, which Django allows."""

    async def render(self) -> Any:  # type: ignore[override] # it need not be sync
        await checkpoint()
        note(f"{self.label} async render")
        return super().render()


def respond(end: str, label: str, request: HttpRequest) -> Any:
    """Return the response that a piece of a chain makes itself, or raise."""
    kind, _, rest = end.partition(" ")
    if kind == "raise":
        raise ERRORS[rest](f"from {label}")
    if kind == "none":
        return None
    if kind == "coroutine":
        return closed_at_end(checkpoint)()
    response: Any
    if kind == "falsy":
        response = FalsyResponse(f"falsy from {label}")
    elif kind == "respond":
        response = _response_with_status(int(rest), label)
    elif "template" in end:
        response = _template_response(end, label, request)
    else:
        parts = _async_parts if kind == "async" else _parts
        response = NotedStream(parts(label, fails=end.endswith("fails")))
    response.label = label
    return response


def _response_with_status(status: int, label: str) -> HttpResponse:
    content = "" if status in {204, 304} else f"from {label}"
    headers = {"Location": "/elsewhere/"} if status == 302 else {}
    return NotedResponse(content, status=status, headers=headers)


def _template_response(end: str, label: str, request: HttpRequest) -> Any:
    def render_word() -> str:
        note(f"{label} rendered", free=label.startswith("handler"))
        if end.endswith("fails"):
            raise OopsError("in the template")
        return label

    context = {"word": render_word}
    if end.startswith("async"):
        return AsyncTemplateResponse("page.html", context)
    return NotedTemplateResponse(request, "page.html", context)


def _parts(label: str, *, fails: bool) -> Iterator[Any]:
    try:
        note(f"{label} part 1")
        yield f"first from {label}, "
        if fails:
            raise OopsError("in the stream")
        note(f"{label} part 2")
        yield b"second"
    finally:
        note(f"{label} stream ends")


async def _async_parts(label: str, *, fails: bool) -> AsyncIterator[Any]:
    try:
        await checkpoint()
        note(f"{label} part 1")
        yield f"first from {label}, "
        if fails:
            raise OopsError("in the stream")
        await checkpoint()
        note(f"{label} part 2")
        yield b"second"
    finally:
        note(f"{label} stream ends")


# Views


def make_view(view: View, label: str) -> Callable[..., Any]:
    """Return the callback of a URL."""
    made: Callable[..., Any] = _make_view(view, label)
    for mark in view.marks:
        made = MARKS[mark](made)
    return made


def _make_view(view: View, label: str) -> Any:
    def sync_view(request: HttpRequest) -> Any:
        return act(view.act, label, request, otherwise="respond 200")

    async def async_view(request: HttpRequest) -> Any:
        return await act_async(view.act, label, request, otherwise="respond 200")

    function = async_view if view.act.is_async else sync_view
    if view.kind == "class":
        method = staticmethod(function)
        methods = {"get": method, "post": method}
        return type("ClassView", (DjangoView,), methods).as_view()  # type: ignore[attr-defined] # the base has it
    if view.kind == "object":
        # Not marked as a coroutine function, if it is one: Django treats it as sync.
        call = closed_at_end(function) if view.act.is_async else function
        return type("Callable", (), {"__call__": staticmethod(call)})()
    if view.kind == "partial":
        return functools.partial(function)
    return function


# URLconfs


class Urlconf:
    """What a URLconf module has."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.urlpatterns: list[Any] = []
        #: By status: what the error handler does, if it is not Django's own.
        self.handlers: dict[int, Act] = {}

    def __getattr__(self, name: str) -> Any:
        status = name.removeprefix("handler")
        if not status.isdecimal():
            raise AttributeError(name)
        return functools.partial(self._handle, int(status))

    def _handle(
        self, status: int, request: HttpRequest, exception: Exception | None = None
    ) -> Any:
        label = f"handler{status} of {self.name}"
        note(label, describe(exception), free=True)
        end = self.handlers.get(status, Act()).end
        return respond(f"respond {status}" if end == "pass" else end, label, request)


ROOT_URLCONF = Urlconf("root")
OTHER_URLCONF = Urlconf("other")

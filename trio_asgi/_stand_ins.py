"""What stands in, while a request is rehearsed, for what a request would call.

All of these only note on a `Stage` that they were called, and pass the request on. See
`_rehearsal`, which puts them up.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.contrib.messages.middleware import MessageMiddleware
from django.contrib.messages.storage.base import BaseStorage
from django.contrib.sessions.backends.base import SessionBase
from django.contrib.sessions.middleware import SessionMiddleware
from django.core.exceptions import (
    BadRequest,
    PermissionDenied,
    SuspiciousOperation,
)
from django.http import Http404, HttpResponse
from django.http.multipartparser import MultiPartParserError
from django.middleware.common import CommonMiddleware
from django.utils.deprecation import MiddlewareMixin

from ._hop_causes import (
    atomic_databases,
    hops_itself,
    name_of,
    unkept_databases,
    why_hook,
    why_start,
    why_view,
)
from ._loop_safe import _SESSION_STORES, DJANGOS
from ._middleware import _HOOKS
from ._passage import THREAD, Ended, Kind, Passage, _advance
from ._signals import _UNTIDY, RequestSignals

if TYPE_CHECKING:
    from ._passage import Hook, Layer, Steps
    from ._stage import Stage
    from ._types import Scope

#: Statuses with which Django answers errors; all others are a 500.
_STATUSES: Final[tuple[tuple[type[Exception], int], ...]] = (
    (Http404, 404),
    (PermissionDenied, 403),
    (BadRequest, 400),
    (MultiPartParserError, 400),
    (SuspiciousOperation, 400),
)
_NOT_FOUND: Final = 404


class ViewError(Exception):
    """What a rehearsed view raises."""


class Mistake(BaseException):
    """An error of the rehearsal's own, which is not answered as a project's is."""


class _Answered(BaseException):
    """Takes an answer past the conversion of an error, which would call the project."""

    def __init__(self, response: HttpResponse) -> None:
        self.response = response


class StandInSignals(RequestSignals):
    """Decides as the real ones, and sends nothing."""

    def __init__(self, stage: Stage, sender: type, scope: Scope) -> None:
        super().__init__(sender, scope, stage.lease)  # type: ignore[arg-type]
        self._stage = stage
        self._is_tidied = False

    def start_in_hop(self) -> None:
        """Do as `start`."""
        if self.start_first and not self._started:
            with self._stage.hop():
                pass

    def _send_started(self) -> None:
        self._started = True
        self._stage.step("request_started", why_start())

    def _tidy_up(self) -> None:
        self._is_tidied = True

    def _note_tidiness(self) -> None:
        tidy = self._is_tidied or not self._stage.uses_database
        self._tidy_calls = self._lease.calls if tidy else _UNTIDY


class StandInPassage(Passage):
    """A way through a chain of stand-ins, without a loop or a thread."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage.chain)
        self._stage = stage
        self._asks_hooks = False

    def go(self, steps: Steps) -> Any:
        """Do as `drive`, and call what would be awaited."""
        return self._go_on(steps, _advance(steps.send, None))

    def _go_on(self, steps: Steps, wanted: Any) -> Any:
        while type(wanted) is not Ended:
            if wanted is THREAD:
                with self._stage.hop():
                    wanted = self._advance_here(steps)
                continue
            error: Exception | None = None
            try:
                value = wanted()
            except Exception as raised:  # noqa: BLE001 - it is the generator's
                error = raised
            if error is None:
                wanted = _advance(steps.send, value)
            else:
                wanted = _advance(steps.throw, error)
        return wanted.response

    def go_in_thread(self, steps: Steps) -> Any:
        """Do as `drive_in_thread`."""
        wanted = self._advance_here(steps)
        if type(wanted) is Ended:
            return wanted.response
        with self._stage.turn():
            return self._go_on(steps, wanted)

    def through(self, layer: Layer, request: Any) -> Steps:
        """Do as `Passage`, but leave the conversion of an error out."""
        try:
            return (yield from super().through(layer, request))
        except _Answered as answered:
            return answered.response

    def _take_to_thread(self, error: Exception, request: Any) -> Steps:
        if error is not self._stage.error:
            raise Mistake from error
        yield from super()._take_to_thread(error, request)
        if not self._asks_hooks:
            raise _Answered(self._answer(error))

    def _ask_exception_hooks(self, error: Exception, request: Any) -> Steps:
        self._asks_hooks = True
        try:
            return (yield from super()._ask_exception_hooks(error, request))
        finally:
            self._asks_hooks = False

    def _answer(self, error: Exception) -> HttpResponse:
        status = next(
            (code for kind, code in _STATUSES if isinstance(error, kind)), 500
        )
        if isinstance(error, Http404):
            why = "no URL pattern matches"
        elif isinstance(error, ViewError):
            why = "the view has raised"
        else:
            why = f"{type(error).__name__}: {error}"
        self._stage.step(f"the answer {status}", f"for an error: {why}")
        response = HttpResponse(status=status)
        # Django logs a 404 only when it has come out of the chain.
        response._has_been_logged = status != _NOT_FOUND  # type: ignore[attr-defined]
        return response


class StandInHandler:
    """Is a handler as far as a `Passage` asks it."""

    def __init__(self, stage: Stage, handler: Any) -> None:
        self._stage = stage
        self._handler = handler
        self._exception_middleware = handler._exception_middleware
        self.check_response = handler.check_response

    def resolve_request(self, request: Any) -> Any:
        """Find the view really."""
        with self._stage.project_errors():
            match = self._handler.resolve_request(request)
        self._stage.course.view = name_of(match.func)
        return match

    def make_view_atomic(self, view: Any) -> Any:
        """Return a stand-in of the same kind."""
        stage = self._stage
        stage.course.view_is_async = iscoroutinefunction(view)
        with stage.project_errors():
            is_async = iscoroutinefunction(self._handler.make_view_atomic(view))

        def stand_in(request: Any, *_: Any, **__: Any) -> Any:
            stage.course.view_step = len(stage.course.steps)
            if not is_async and atomic_databases(view):
                stage.uses_database = bool(unkept_databases())
            if is_async and hops_itself(view):
                stage.step(name_of(view))
                with stage.hop():
                    stage.step(f"{name_of(view)}, in sync_to_async", "a sync view")
            else:
                stage.step(name_of(view), None if is_async else why_view(view))
            with stage.project_errors():
                return stage.act(stage, request)

        if is_async:
            markcoroutinefunction(stand_in)
        return stand_in

    def process_exception_by_middleware(self, _: Exception, __: Any) -> None:
        """Note the hooks."""
        for hook in self._exception_middleware:
            self._stage.step(name_of(hook), "hooks for errors are sync")


class StandInMiddleware:
    """Has the hooks that a middleware has, and can be called like it."""

    def __init__(
        self, stage: Stage, layer: Layer, name: str, *, below: Layer, why: str | None
    ) -> None:
        """Be a middleware of a chain of stand-ins.

        Args:
            stage: Where all is noted.
            layer: The real one.
            name: The real one's.
            below: The next one of the stand-ins.
            why: Why it is called in the thread, if it is called there as a whole.
        """
        self._stage = stage
        self._layer = layer
        self._name = name
        self._below = below
        self._why = why
        self._hooks = [
            hook for hook in _HOOKS if getattr(layer.instance, hook, None) is not None
        ]
        for hook in self._hooks:
            setattr(self, hook, partial(self._call_hook, hook))

    def _call_hook(self, hook: str, request: Any, response: Any = None) -> Any:
        layer, instance = self._layer, self._layer.instance
        why = why_hook(instance, layer.safety, hook, request, response)
        self._stage.step(f"{self._name}.{hook}", why)
        if _may_run(layer, hook, request, response):
            try:
                given = (request,) if response is None else (request, response)
                return getattr(instance, hook)(*given)
            except Exception as error:  # noqa: BLE001 - told
                self._stage.course.notes.append(
                    f"{self._name}.{hook} has raised {type(error).__name__}: {error}"
                )
        elif hook == "process_request":
            _prepare(request, instance)
        return response

    def __call__(self, request: Any) -> Any:
        if self._layer.kind is Kind.SYNC:
            return self._call_in_thread(request)
        return self._call_on_loop(request)

    def _call_in_thread(self, request: Any) -> Any:
        self._stage.step(self._name, self._why)
        self._stage.waiting.append(self._name)
        passage = StandInPassage(self._stage)
        response = passage.go_in_thread(passage.through(self._below, request))
        self._stage.waiting.pop()
        self._stage.step(f"{self._name}, after get_response")
        return response

    def _call_on_loop(self, request: Any) -> Any:
        self._stage.step(self._name)
        # With a __call__ of its own, that does something around Django's: most do.
        calls_hooks = isinstance(self._layer.instance, MiddlewareMixin)
        if calls_hooks and "process_request" in self._hooks:
            self._hop_for("process_request")
        passage = StandInPassage(self._stage)
        response = passage.go(passage.through(self._below, request))
        if calls_hooks and "process_response" in self._hooks:
            self._hop_for("process_response")
        self._stage.step(f"{self._name}, after get_response")
        return response

    def _hop_for(self, hook: str) -> None:
        with self._stage.hop():
            self._stage.step(
                f"{self._name}.{hook}",
                "its middleware has a __call__ of its own, and so it shares no hop",
            )


class StandInHook:
    """Is a ``process_view`` or a ``process_template_response``."""

    def __init__(self, stage: Stage, hook: Hook, kind: str, name: str) -> None:
        """Be a hook.

        Args:
            stage: Where all is noted.
            hook: The real one.
            kind: Which hook.
            name: The real one's, with its middleware's.
        """
        self._stage = stage
        self._hook = hook
        self._kind = kind
        self._name = name

    def call(self, request: Any, subject: Any, *rest: Any) -> Any:
        """Be called. A method, for Django asks whose it is."""
        method = self._hook.method
        owner = getattr(method, "__self__", None)
        why = None
        if not self._hook.is_async:
            why = why_hook(owner, self._hook.safety, self._kind, request, subject)
        self._stage.step(self._name, why)
        if not self._hook.is_async and why is None and name_of(type(owner)) in DJANGOS:
            return method(request, subject, *rest)
        return subject if self._kind == "process_template_response" else None


def _may_run(layer: Layer, hook: str, request: Any, response: Any) -> bool:
    """Whether a hook is Django's own, and does no I/O for this request."""
    cls = type(layer.instance)
    if name_of(cls) not in DJANGOS:
        return False
    if cls is CommonMiddleware and hook == "process_response":
        # For a 404 it resolves another URL, as is done here for this one.
        response = HttpResponse()
    return layer.safety.holds() and layer.safety.allows(hook, request, response)


def _prepare(request: Any, instance: Any) -> None:
    """Put on a request what others look for, in the place of a hook that is not run."""
    if isinstance(instance, SessionMiddleware):
        store = import_module(settings.SESSION_ENGINE).SessionStore
        request.session = store() if store in _SESSION_STORES else SessionBase()
    elif isinstance(instance, MessageMiddleware):
        request._messages = BaseStorage(request)

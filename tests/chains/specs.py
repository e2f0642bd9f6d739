"""A chain as plain data, whose repr is one line."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from django.core.exceptions import (
    BadRequest,
    PermissionDenied,
    RequestDataTooBig,
    SuspiciousOperation,
)
from django.db import transaction
from django.http import Http404
from django.http.multipartparser import MultiPartParserError
from django.views.decorators.clickjacking import xframe_options_exempt
from django.views.decorators.csrf import csrf_exempt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Spec:
    """Data whose repr omits defaults."""

    def __repr__(self) -> str:
        shown = [
            f"{item.name}={value!r}"
            for item in fields(self)  # type: ignore[arg-type] # its subclasses have them
            if (value := getattr(self, item.name)) != item.default
        ]
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True, repr=False)
class Act(Spec):
    """What a hook, a function or a view does when it is called."""

    #: How it ends, one of `ENDS`. "pass" is the default of its kind.
    end: str = "pass"
    #: What it does first, some of `EFFECTS`.
    does: tuple[str, ...] = ()
    is_async: bool = False


@dataclass(frozen=True, repr=False)
class Layer(Spec):
    """One middleware."""

    #: One of `KINDS`; or the path of one of Django's classes; or that after ``sub:``,
    #: for a subclass of it; or that after ``patched:``, for the class itself, with
    #: hooks replaced by ones that call Django's.
    kind: str
    #: Its hooks, by name.
    hooks: tuple[tuple[str, Act], ...] = ()
    #: For middleware with its own ``__call__`` or function: what it does around
    #: ``get_response``, and how often it calls that.
    before: Act = Act()
    after: Act = Act()
    calls: int = 1
    #: Whether it catches what ``get_response`` raises, and answers itself.
    catches: bool = False
    #: Whether it sets the context variable only during the calls.
    resets: bool = False
    #: Whether the hooks are functions in the instance, rather than methods.
    in_instance: bool = False
    #: Whether it goes on with a copy of the request.
    copies: bool = False
    #: Whether its async code goes on in a separate task.
    in_task: bool = False


@dataclass(frozen=True, repr=False)
class View(Spec):
    """The view: a function, a class, an object that can be called, or a partial."""

    kind: str = "function"
    act: Act = Act()
    #: Some of `MARKS`.
    marks: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class Request(Spec):
    """A request to a chain's project."""

    path: str = "/0/"
    method: str = "GET"
    host: str = "testserver"
    language: str = "en"
    #: Whether it has a CSRF token.
    token: bool = False


@dataclass(frozen=True, repr=False)
class Chain(Spec):
    """A project's chain, and requests to it."""

    layers: tuple[Layer, ...] = ()
    #: The views at ``/0/`` and ``/1/``.
    views: tuple[View, ...] = (View(), View())
    #: All to the same handler.
    requests: tuple[Request, ...] = (Request(),)
    #: Whether the requests are made at the same time, by this project's handler.
    together: bool = False
    #: How error handlers end, by status.
    handlers: tuple[tuple[int, Act], ...] = ()
    #: Settings to set, some of `chains.project.SETTINGS_BY_NAME`.
    settings: tuple[str, ...] = ()

    @property
    def acts(self) -> Iterator[Act]:
        """All acts of the chain's pieces."""
        for layer in self.layers:
            yield layer.before
            yield layer.after
            yield from dict(layer.hooks).values()
        for view in self.views:
            yield view.act
        yield from dict(self.handlers).values()


#: Hooks that the mixin treats as sync code.
SYNC_HOOKS = frozenset({"process_request", "process_response"})

#: Kinds of `Layer` whose only Django code is the mixin.
KINDS = (
    "mixin",
    "mixin with __call__",
    "mixin with super().__call__",
    "mixin with __acall__",
    "mixin for sync code",
    "mixin for async code",
    "function that makes a mixin",
    "sync function",
    "marked sync function",
    "async function",
    "function of both kinds",
    "sync class",
    "async class",
    "class of both kinds",
    "not used",
)

#: Kinds of `Layer` that Django refuses when the handler is made.
WRONG_KINDS = ("function that makes nothing", "class for no code")


class OopsError(RuntimeError):
    """An error unknown to Django."""


ERRORS: dict[str, type[Exception]] = {
    "Http404": Http404,
    "PermissionDenied": PermissionDenied,
    "SuspiciousOperation": SuspiciousOperation,
    "RequestDataTooBig": RequestDataTooBig,
    "BadRequest": BadRequest,
    "MultiPartParserError": MultiPartParserError,
    "Oops": OopsError,
}

#: What code does before it ends.
EFFECTS = (
    "set variable",
    "set local",
    "set urlconf",
    "set path",
    "cross",  # from sync code to async code, or the other way
    "cross twice",
    "cross and fail",
    "use another thread",  # thread_sensitive=False, in async code
    "use session",
    "use messages",
    "use csrf token",
    "use user",
    "use post",
    "log in",
    "add callback",  # to a template response that is to be rendered
    "add failing callback",
)

ENDS = (
    "pass",
    *(f"respond {status}" for status in (200, 204, 302, 304, 400, 404, 500)),
    *(f"raise {name}" for name in ERRORS),
    "none",
    "coroutine",  # which is never awaited
    "falsy",  # a response that is false
    "template",
    "template that fails",
    "async template",
    "stream",
    "stream that fails",
    "async stream",
    "async stream that fails",
)

#: How decorators mark a view.
MARKS: dict[str, Callable[[Any], Any]] = {
    "csrf_exempt": csrf_exempt,
    "xframe_options_exempt": xframe_options_exempt,
    "non_atomic_requests": transaction.non_atomic_requests,
}

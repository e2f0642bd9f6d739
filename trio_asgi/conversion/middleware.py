"""Middleware that costs async views a thread, or breaks event streams."""

from __future__ import annotations

import ast
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final

import django
from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.core.checks import Info, Warning as CheckWarning
from django.utils.deprecation import MiddlewareMixin

from trio_asgi.chain.loop_safe import DECLARABLE

from .source import Place, Sources, code_in
from .views import is_projects, name_of, others_middleware, replacement_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.core.checks import CheckMessage

_WRITE_ASYNC: Final = (
    "Derive it from django.utils.deprecation.MiddlewareMixin, and write "
    "process_request() and process_response(); or make a function for both with "
    "django.utils.decorators.sync_and_async_middleware."
)
_GZIP: Final = "django.middleware.gzip.GZipMiddleware"


def check_threads(views: list[Any]) -> Iterator[CheckMessage]:
    """Yield advice for each middleware that costs async views a thread."""
    if not any(map(iscoroutinefunction, views)):
        return
    sources = Sources()
    for path, middleware in others_middleware():
        own = is_projects(middleware)
        place = sources.place_of(middleware) if own else None
        if not getattr(middleware, "async_capable", False):
            yield Info(
                f"The middleware {path} is sync only. So a thread waits while an async "
                "view runs, and release_thread() raises an error there.",
                hint=_WRITE_ASYNC if own else replacement_of(path),
                obj=place or "settings.MIDDLEWARE",
                id="trio_asgi.I015",
            )
        elif own and (hooks := _undeclared_hooks(middleware)):
            yield Info(
                f"Each request takes a thread for the hooks of the middleware {path}, "
                "also if its view is async.",
                hint="If they do no I/O, and keep nothing in their thread, write "
                f"loop_safe_hooks = {hooks!r} in the class; if they do, write "
                "loop_safe_hooks = ().",
                obj=place or "settings.MIDDLEWARE",
                id="trio_asgi.I016",
            )


def _undeclared_hooks(middleware: Any) -> tuple[str, ...]:
    """Return the sync hooks of a class, unless it declares which are loop-safe."""
    if not isinstance(middleware, type) or not issubclass(middleware, MiddlewareMixin):
        return ()
    if middleware.__call__ is not MiddlewareMixin.__call__:
        return ()  # it is called as a whole
    if "loop_safe_hooks" in vars(middleware):
        return ()
    hooks = (name for name in DECLARABLE if hasattr(middleware, name))
    return tuple(
        name for name in hooks if not iscoroutinefunction(getattr(middleware, name))
    )


def check_event_streams(views: list[Any]) -> Iterator[CheckMessage]:
    """Yield a warning for each event stream that `GZipMiddleware` breaks.

    Up to Django 5.2 it makes each part of an async stream a separate gzip file, and
    browsers read only the first. The parts of a sync stream it holds back.
    """
    if django.VERSION >= (6, 0) or _GZIP not in settings.MIDDLEWARE:
        return
    sources = Sources()
    for view in views:
        for function in _functions_of(view):
            node = sources.node_of(function)
            texts = {
                part.value: part.lineno
                for part in ast.walk(node or ast.Pass())
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
            }
            line = texts.get("text/event-stream")
            if line is None or "identity" in texts:
                continue
            yield CheckWarning(
                f"GZipMiddleware breaks the event stream of the view "
                f"{name_of(function)}: browsers see no event, or only the first.",
                hint="Return trio_asgi.EventStream, which is not compressed; or set "
                'the header "Content-Encoding": "identity".',
                obj=Place(function.__code__.co_filename, line),
                id="trio_asgi.W013",
            )


def _functions_of(view: Any) -> Iterator[FunctionType]:
    for code in code_in(view, is_projects):
        found = vars(code).values() if isinstance(code, type) else [code]
        yield from (one for one in found if isinstance(one, FunctionType))

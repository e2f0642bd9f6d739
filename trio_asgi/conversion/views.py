"""Views and middleware that use asyncio where Trio would run them."""

from __future__ import annotations

import inspect
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, Final

from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.core.checks import Warning as CheckWarning
from django.urls import URLPattern, get_resolver
from django.utils.module_loading import import_string

from trio_asgi import conf
from trio_asgi.islands.functions import is_trio_island

from .libraries import ON_TRIO
from .source import code_in
from .uses import Search, Use

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.core.checks import CheckMessage

_ASYNC: Final = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_INSTALLED: Final = {"site-packages", "dist-packages"}


def package_of(thing: Any) -> str:
    """Return the name of the top-level package of a class or function."""
    return str(thing.__module__ or "").partition(".")[0]


def is_projects(thing: Any) -> bool:
    """Whether a class or function is code of the project, and not of a package."""
    return _is_of_project(thing.__module__ or "", getattr(settings, "ROOT_URLCONF", ""))


@cache
def _is_of_project(module: str, root_urlconf: str) -> bool:
    package = module.partition(".")[0]
    if package in {"django", "trio_asgi", *sys.stdlib_module_names}:
        return False
    if package == root_urlconf.partition(".")[0]:
        return True  # also where the project itself is installed
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is not None and not _INSTALLED & {*Path(file).parts}


def all_views() -> list[Any]:
    """Return the callbacks of all URLs, each once.

    Raises:
        Exception: a URLconf cannot be imported.
    """
    if not getattr(settings, "ROOT_URLCONF", None):
        return []
    left, views = [*get_resolver().url_patterns], {}
    for pattern in left:
        if isinstance(pattern, URLPattern):
            views[id(pattern.callback)] = pattern.callback
        else:
            left += pattern.url_patterns
    return [*views.values()]


def others_middleware() -> Iterator[tuple[str, Any]]:
    """Yield the path and the class or function of middleware that is not Django's."""
    for path in settings.MIDDLEWARE:
        with suppress(ImportError):  # the application reports it when it is made
            middleware = import_string(path)
            if is_no_part_of_django(middleware):
                yield path, middleware


def check_views(views: list[Any]) -> Iterator[CheckMessage]:
    """Yield a warning for each view of the project that uses asyncio on Trio.

    Of an installed package, only the first view is reported.
    """
    kept_on_asyncio = conf.get("ASYNCIO_VIEWS")
    search = Search(is_projects)
    packages: dict[str, Search] = {}
    reported: set[str] = set()
    for view in views:
        if kept_on_asyncio and not is_trio_island(view):
            continue
        codes = [*code_in(view, is_no_part_of_django)]
        if own := [*filter(is_projects, codes)]:
            if use := next(search.uses_in(view), None):
                yield _warning_of_view(own, use, search)
            continue
        asynchronous = [code for code in codes if _is_async(view, code)]
        for package in {*map(package_of, asynchronous)} - reported:
            within = packages.setdefault(package, Search(_is_of(package)))
            if use := next(within.uses_in(view), None):
                reported.add(package)
                yield _warning_of_package(codes, use, within)


def _is_of(package: str) -> Callable[[Any], bool]:
    return lambda thing: package_of(thing) == package


def is_no_part_of_django(thing: Any) -> bool:
    """Whether a class or function is neither Django's nor this package's."""
    return package_of(thing) not in {"django", "trio_asgi"}


def _is_async(view: Any, code: Any) -> bool:
    """Whether a view is async, or refers to async functions of its module."""
    if iscoroutinefunction(view) or not isinstance(code, FunctionType):
        return iscoroutinefunction(view)
    names = map(code.__globals__.get, code.__code__.co_names)
    found = [one.__code__ for one in names if type(one) is FunctionType]
    found += [one for one in code.__code__.co_consts if isinstance(one, CodeType)]
    return any(one.co_flags & _ASYNC for one in found)


def _warning_of_view(codes: list[Any], use: Use, search: Search) -> CheckMessage:
    view = _view_among(codes, search)
    if isinstance(view, type):
        island = f"asyncio_island({view.__name__}.as_view()) in the URLs"
    else:
        place = search.sources.place_of(view)
        island = "@asyncio_island above the view" + (f" ({place})" if place else "")
    return CheckWarning(
        f"The view {name_of(view)} uses {use.name}, which does not work on Trio.",
        hint=_hint(
            use,
            f"keep the view on asyncio: write {island}, imported from trio_asgi; or "
            'TRIO_ASGI = {"ASYNCIO_VIEWS": True} for all views.',
        ),
        obj=use.place,
        id="trio_asgi.W011",
    )


def _view_among(codes: list[Any], search: Search) -> Any:
    """Return the class or function that a project's author calls the view."""
    written = [code for code in codes if search.sources.node_of(code)] or codes
    classes = [code for code in written if isinstance(code, type)]
    return [*reversed(written), *reversed(classes)][-1 if classes else 0]


def _warning_of_package(codes: list[Any], use: Use, search: Search) -> CheckMessage:
    view = _view_among(codes, search)
    return CheckWarning(
        f"Views of the package {package_of(view)}, such as {name_of(view)}, use "
        f"{use.name}, which does not work on Trio.",
        hint="Wrap the view in your URLs: asyncio_island(view), imported from "
        'trio_asgi; or set TRIO_ASGI = {"ASYNCIO_VIEWS": True}.',
        obj=use.place,
        id="trio_asgi.W011",
    )


def check_middleware() -> Iterator[CheckMessage]:
    """Yield a warning for each middleware with async code that uses asyncio."""
    for path, middleware in others_middleware():
        own = is_projects(middleware)
        search = Search(is_projects if own else _is_of(package_of(middleware)))
        if use := next(search.uses_in(middleware), None):
            yield CheckWarning(
                f"The middleware {path} uses {use.name}, which does not work on Trio.",
                hint=_hint(use, _IN_ISLAND) if own else replacement_of(path),
                obj=use.place,
                id="trio_asgi.W012",
            )


_IN_ISLAND: Final = (
    "call the asyncio code by way of trio_asgi.asyncio_island: "
    "await asyncio_island(function)(arguments). ASYNCIO_VIEWS is only about views."
)


def replacement_of(path: str) -> str:
    """Return what to write instead of the middleware of an installed package."""
    if path.startswith(("servestatic.", "whitenoise.")):
        return (
            "Write trio_asgi.servestatic.ServeStaticMiddleware. It needs ServeStatic."
        )
    return "Look for a newer version, or for another package."


def _hint(use: Use, otherwise: str) -> str:
    instead = ON_TRIO.get(use.name)
    if instead is None:
        return otherwise[0].upper() + otherwise[1:]
    if conf.get("ASYNCIO_VIEWS"):
        # It is about middleware, which tests may still run on asyncio.
        return f"Write AnyIO's equivalent of {instead}. Or {otherwise}"
    return f"On Trio, write {instead} instead. Or {otherwise}"


def name_of(code: Any) -> str:
    """Return the dotted name of a function or class, without enclosing functions."""
    return f"{code.__module__}.{code.__qualname__}".replace(".<locals>", "")

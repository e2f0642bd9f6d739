"""Decorators by which a view sets how the body of its requests is read."""

from __future__ import annotations

import functools
import math
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final, TypeVar

from asgiref.sync import iscoroutinefunction
from django.urls import get_resolver
from django.utils import translation

from trio_asgi import conf
from trio_asgi.asgi.receive import BodyLimits

if TYPE_CHECKING:
    from collections.abc import Callable

    View = TypeVar("View", bound=Callable[..., Any])

_OPTIONS: Final = "_trio_asgi_body_options"


class _AsSet:
    """Stands for the value in ``TRIO_ASGI``."""

    def __repr__(self) -> str:
        return "as in TRIO_ASGI"


AS_SET: Final[Any] = _AsSet()


#: Where a view sets nothing, the setting counts.
_SETTINGS: Final = {
    "stream": "STREAM_BODY",
    "max_size": "MAX_BODY_SIZE",
    "timeout": "BODY_TIMEOUT",
    "min_rate": "BODY_MIN_RATE",
    "total_timeout": "BODY_TOTAL_TIMEOUT",
}


class BodyOptions(dict[str, Any]):
    """The options that the decorators of a view have set; settings for the others."""

    def __missing__(self, name: str) -> Any:
        """Return the value of the setting."""
        return conf.get(_SETTINGS[name])

    @property
    def limits(self) -> BodyLimits:
        """The limits of the body."""
        total = self["total_timeout"]
        return BodyLimits(
            self["max_size"],
            self["timeout"],
            self["min_rate"],
            math.inf if total is None else total,
        )


def stream_body(view: View) -> View:
    """Start a view when the headers of its request are in; the view reads the body.

    ``TRIO_ASGI["STREAM_BODY"]`` does the same for all views. Async code reads
    ``async for chunk in request.stream()``, or awaits ``request.aread()`` before it
    uses ``request.body``, ``POST`` or ``FILES``. Sync code reads as usual, and waits in
    its own thread for bytes that have not come.

    For a class-based view: ``@method_decorator(stream_body, name="dispatch")``. The
    view is looked up by the path alone, before any middleware runs, in the URLconf of
    the project.
    """
    return _with_options(view, stream=True)


def limit_body(
    *,
    max_size: int | None = AS_SET,
    timeout: float = AS_SET,
    min_rate: float = AS_SET,
    total_timeout: float | None = AS_SET,
) -> Callable[[View], View]:
    """Limit the body of a view's requests, instead of the limits in ``TRIO_ASGI``.

    Args:
        max_size: Instead of ``MAX_BODY_SIZE``, in bytes; None: unlimited.
        timeout: Instead of ``BODY_TIMEOUT``: for how many seconds no byte may come.
        min_rate: Instead of ``BODY_MIN_RATE``, in bytes per second.
        total_timeout: Instead of ``BODY_TOTAL_TIMEOUT``: for how many seconds in all
            the server may wait for the client; None: unlimited.

    Raises:
        ValueError: an argument is invalid.
    """
    given = {
        "max_size": max_size,
        "timeout": timeout,
        "min_rate": min_rate,
        "total_timeout": total_timeout,
    }
    options = {name: value for name, value in given.items() if value is not AS_SET}
    for name, value in options.items():
        key = conf.KEYS[_SETTINGS[name]]
        if not key.is_valid(value):
            raise ValueError(
                f"limit_body() was given {name}={value!r}: it must be {key.allowed}."
            )
    return lambda view: _with_options(view, **options)


def options_of(view: object) -> BodyOptions:
    """Return the options that a view's decorators have set."""
    return BodyOptions(getattr(view, _OPTIONS, {}))


def options_for(path_info: str, urlconf: Any) -> BodyOptions:
    """Return the options of the view for a path, in ``urlconf`` or the project's."""
    # LocaleMiddleware will do the same; otherwise no language prefix would match.
    language = translation.get_language_from_path(path_info)
    try:
        with translation.override(language) if language else nullcontext():
            match = get_resolver(urlconf).resolve(path_info)
    except Exception:  # noqa: BLE001 - raised again, and answered, in the chain
        return BodyOptions()
    return options_of(match.func)


def _with_options(view: View, **options: Any) -> View:
    if iscoroutinefunction(view):

        @functools.wraps(view)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            return await view(*args, **kwargs)

    else:

        @functools.wraps(view)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return view(*args, **kwargs)

    setattr(wrapper, _OPTIONS, {**options_of(view), **options})
    return wrapper  # type: ignore[return-value]

"""What a view says about the body of its requests, before it is called."""

from __future__ import annotations

import functools
import math
from contextlib import nullcontext
from dataclasses import dataclass, replace
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
    """Stands for what ``TRIO_ASGI`` says."""

    def __repr__(self) -> str:
        return "as TRIO_ASGI says"


AS_SET: Final[Any] = _AsSet()


@dataclass(frozen=True)
class BodyOptions:
    """What the decorators of a view have said; else `AS_SET`."""

    stream: bool = AS_SET
    max_size: int | None = AS_SET
    timeout: float = AS_SET
    min_rate: float = AS_SET
    total_timeout: float | None = AS_SET

    @property
    def starts_early(self) -> bool:
        """Whether the view starts before the body is there."""
        return conf.get("STREAM_BODY") if self.stream is AS_SET else self.stream

    @property
    def limits(self) -> BodyLimits:
        """What the body may be at most."""
        total = _value(self.total_timeout, "BODY_TOTAL_TIMEOUT")
        return BodyLimits(
            _value(self.max_size, "MAX_BODY_SIZE"),
            _value(self.timeout, "BODY_TIMEOUT"),
            _value(self.min_rate, "BODY_MIN_RATE"),
            math.inf if total is None else total,
        )


def _value(given: Any, key: str) -> Any:
    return conf.get(key) if given is AS_SET else given


def stream_body(view: View) -> View:
    """Have a view start when the headers of its request are in, and read the body.

    For one view what ``TRIO_ASGI["STREAM_BODY"]`` is for all. Async code reads
    ``async for chunk in request.stream()``, or says ``await request.aread()`` before it
    asks for ``request.body``, ``POST`` or ``FILES``. Sync code reads as ever, and waits
    in its own thread for what has not come.

    As for other decorators of views, a class-based view takes
    ``@method_decorator(stream_body, name="dispatch")``. The view is looked up by the
    path alone before any middleware runs, in the URLconf of the project.
    """
    return _with_options(view, stream=True)


def limit_body(
    *,
    max_size: int | None = AS_SET,
    timeout: float = AS_SET,
    min_rate: float = AS_SET,
    total_timeout: float | None = AS_SET,
) -> Callable[[View], View]:
    """Give the body of a view's requests other limits than ``TRIO_ASGI`` does.

    What is not given stays as set.

    Args:
        max_size: How many bytes it may have, instead of ``MAX_BODY_SIZE``; None: any
            number.
        timeout: For how many seconds no byte may come, instead of ``BODY_TIMEOUT``.
        min_rate: How many bytes must come a second, instead of ``BODY_MIN_RATE``.
        total_timeout: For how many seconds the client may be waited for in all,
            instead of ``BODY_TOTAL_TIMEOUT``; None: any number.

    Raises:
        ValueError: one of them is no such number.
    """
    _check("max_size", max_size, "MAX_BODY_SIZE")
    _check("timeout", timeout, "BODY_TIMEOUT")
    _check("min_rate", min_rate, "BODY_MIN_RATE")
    _check("total_timeout", total_timeout, "BODY_TOTAL_TIMEOUT")
    return lambda view: _with_options(
        view,
        max_size=max_size,
        timeout=timeout,
        min_rate=min_rate,
        total_timeout=total_timeout,
    )


def _check(name: str, value: Any, setting: str) -> None:
    key = conf.KEYS[setting]
    if not (value is AS_SET or key.is_valid(value)):
        raise ValueError(
            f"limit_body() was given {name}={value!r}: it must be {key.allowed}."
        )


def options_of(view: object) -> BodyOptions:
    """Return what the decorators of a view have said."""
    options: BodyOptions = getattr(view, _OPTIONS, BodyOptions())
    return options


def options_for(path_info: str, urlconf: Any) -> BodyOptions:
    """Return what the view for a path says, if that can be told before middleware.

    Args:
        path_info: The path without the script prefix.
        urlconf: As ``request.urlconf``; None: the project's.
    """
    # As LocaleMiddleware will have it, without which no prefix of a language matches.
    language = translation.get_language_from_path(path_info)
    try:
        with translation.override(language) if language else nullcontext():
            match = get_resolver(urlconf).resolve(path_info)
    except Exception:  # noqa: BLE001 - the chain will meet it again, and answer it
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

    given = {name: value for name, value in options.items() if value is not AS_SET}
    setattr(wrapper, _OPTIONS, replace(options_of(view), **given))
    return wrapper  # type: ignore[return-value]

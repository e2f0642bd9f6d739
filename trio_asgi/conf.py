"""The settings of this package: one dict, ``settings.TRIO_ASGI``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.utils.functional import empty

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

#: The settings that were read, in Django's own cache. Django removes each that changes.
_read: Final[dict[str, Any]] = object.__getattribute__(settings, "__dict__")
_UNREAD: Final = object()


def setting(name: str) -> Any:
    """Return one of Django's settings, faster than an attribute of ``settings``."""
    value = _read.get(name, _UNREAD)
    return getattr(settings, name) if value is _UNREAD else value


@dataclass(frozen=True)
class Key:
    """One key of ``TRIO_ASGI``: its default, and which values are allowed."""

    default: Any
    allowed: str
    is_valid: Callable[[Any], bool]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _integer(default: int | None, unit: str, least: int) -> Key:
    return Key(
        default,
        f"a whole number of {unit}, {least} or more",
        lambda value: type(value) is int and value >= least,
    )


def _number(default: float, unit: str) -> Key:
    return Key(
        default,
        f"a number of {unit}, 0 or more",
        lambda value: _is_number(value) and value >= 0,
    )


def _timeout(default: float | None) -> Key:
    return Key(
        default,
        "a number of seconds, more than 0",
        lambda value: _is_number(value) and value > 0,
    )


def _or_none(key: Key) -> Key:
    return Key(
        key.default,
        f"{key.allowed}, or None for no limit",
        lambda value: value is None or key.is_valid(value),
    )


_FLAG: Final = Key(
    default=False,
    allowed="True or False",
    is_valid=lambda value: isinstance(value, bool),
)

KEYS: Final[Mapping[str, Key]] = {
    "THREADS": _integer(40, "threads", 1),
    "MAX_HELD_THREADS": _or_none(_integer(None, "threads", 1)),
    "THREAD_IDLE_SECONDS": _number(30.0, "seconds"),
    "ASYNCIO_VIEWS": _FLAG,
    "ASYNC_TO_SYNC_BACKEND": Key(
        None,
        "'asyncio' or 'trio', or None for the default",
        lambda value: value in (None, "asyncio", "trio"),
    ),
    "STREAM_BODY": _FLAG,
    "MAX_BODY_SIZE": _or_none(_integer(None, "bytes", 0)),
    "BODY_TIMEOUT": _timeout(60.0),
    "BODY_MIN_RATE": _number(240, "bytes a second"),
    "BODY_TOTAL_TIMEOUT": _or_none(_timeout(None)),
    "SEND_TIMEOUT": _or_none(_timeout(600.0)),
    "CLEANUP_SECONDS": _number(10.0, "seconds"),
    "SHUTDOWN_SECONDS": _number(10.0, "seconds"),
}


def problems() -> Iterator[tuple[str, str]]:
    """Yield the id of a check and a message for each error in ``TRIO_ASGI``."""
    configured = getattr(settings, "TRIO_ASGI", {})
    if not isinstance(configured, dict):
        yield "E001", f"TRIO_ASGI must be a dict, not {configured!r}."
        return
    for name, value in configured.items():
        key = KEYS.get(name)
        if key is None:
            known = ", ".join(KEYS)
            yield "E002", f"TRIO_ASGI has no key {name!r}. Known keys: {known}."
        elif not key.is_valid(value):
            yield "E003", f"TRIO_ASGI[{name!r}] must be {key.allowed}, not {value!r}."


def get(name: str) -> Any:
    """Return the value of a key, or its default."""
    configured = _read.get("TRIO_ASGI")
    if configured is None:
        wrapped = _read.get("_wrapped", empty)
        if wrapped is not empty and not hasattr(wrapped, "TRIO_ASGI"):
            return KEYS[name].default  # `settings` would take longer to find that out
        configured = getattr(settings, "TRIO_ASGI", {})
    return configured.get(name, KEYS[name].default)


def check() -> None:
    """Raise ImproperlyConfigured with every problem that the system check reports."""
    found = [message for _, message in problems()]
    if found:
        raise ImproperlyConfigured(" ".join(found))

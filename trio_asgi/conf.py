"""The settings of this package: one dict, ``settings.TRIO_ASGI``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


@dataclass(frozen=True)
class Key:
    """One key of ``TRIO_ASGI``: its default, and what is allowed."""

    default: Any
    allowed: str
    is_valid: Callable[[Any], bool]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _seconds(default: float) -> Key:
    return Key(
        default=default,
        allowed="a number of seconds, 0 or more",
        is_valid=lambda value: _is_number(value) and value >= 0,
    )


KEYS: Final[Mapping[str, Key]] = {
    "THREADS": Key(
        default=40,
        allowed="a whole number of threads, 1 or more",
        is_valid=lambda value: type(value) is int and value >= 1,
    ),
    "MAX_HELD_THREADS": Key(
        default=None,
        allowed="a whole number of threads, 1 or more, or None for no bound",
        is_valid=lambda value: value is None or (type(value) is int and value >= 1),
    ),
    "THREAD_IDLE_SECONDS": _seconds(30.0),
    "ASYNCIO_VIEWS": Key(
        default=False,
        allowed="True or False",
        is_valid=lambda value: isinstance(value, bool),
    ),
    "ASYNC_TO_SYNC_BACKEND": Key(
        default=None,
        allowed="'asyncio' or 'trio', or None for what install_bridge() was given",
        is_valid=lambda value: value is None or value in ("asyncio", "trio"),
    ),
    "STREAM_BODY": Key(
        default=False,
        allowed="True or False",
        is_valid=lambda value: isinstance(value, bool),
    ),
    "MAX_BODY_SIZE": Key(
        default=None,
        allowed="a whole number of bytes, 0 or more, or None for no limit",
        is_valid=lambda value: value is None or (type(value) is int and value >= 0),
    ),
    "BODY_TIMEOUT": Key(
        default=60.0,
        allowed="a number of seconds, more than 0",
        is_valid=lambda value: _is_number(value) and value > 0,
    ),
    "BODY_MIN_RATE": Key(
        default=240,
        allowed="a number of bytes a second, 0 or more",
        is_valid=lambda value: _is_number(value) and value >= 0,
    ),
    "BODY_TOTAL_TIMEOUT": Key(
        default=None,
        allowed="a number of seconds, more than 0, or None for no limit",
        is_valid=lambda value: value is None or (_is_number(value) and value > 0),
    ),
    "SEND_TIMEOUT": Key(
        default=600.0,
        allowed="a number of seconds, more than 0, or None for no limit",
        is_valid=lambda value: value is None or (_is_number(value) and value > 0),
    ),
    "CLEANUP_SECONDS": _seconds(10.0),
    "SHUTDOWN_SECONDS": _seconds(10.0),
}


def problems() -> Iterator[tuple[str, str]]:
    """Yield what is wrong in ``TRIO_ASGI``: a check's number, and a message."""
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
    configured: dict[str, Any] = getattr(settings, "TRIO_ASGI", {})
    return configured.get(name, KEYS[name].default)


def check() -> None:
    """Raise ImproperlyConfigured with every problem that the system check reports."""
    found = [message for _, message in problems()]
    if found:
        raise ImproperlyConfigured(" ".join(found))

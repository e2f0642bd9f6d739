"""The options of the worker threads, from the settings, and Django's hooks."""

from __future__ import annotations

from typing import Any, Final

from django.conf import settings

from trio_asgi import conf
from trio_asgi.threads.current import existing_pool

from .connections import close_connections, opened_connections, tidy_up


def configure_threads() -> None:
    """Check the settings, and apply them to worker threads, also existing ones.

    Raises:
        ImproperlyConfigured: lists every problem that the system check would report.
    """
    conf.check()
    global _options  # noqa: PLW0603 - there is one project in a process
    _options = _read_options()
    pool = existing_pool()
    if pool is not None:
        pool.configure(**_options)


#: Set by `configure_threads`.
_options: dict[str, Any] | None = None


def pool_options() -> dict[str, Any]:
    """Return the options of a new Trio run's worker threads.

    These are from the last `configure_threads`. Without one, as in a program that only
    uses the ORM, they are from the settings, if those are configured.

    Raises:
        ImproperlyConfigured: the settings are wrong.
    """
    if _options is not None:
        return _options
    if settings.configured:
        conf.check()
        return _read_options()
    return _HOOKS


def _read_options() -> dict[str, Any]:
    return {
        **_HOOKS,
        "threads": conf.get("THREADS"),
        "leases": conf.get("MAX_HELD_THREADS"),
        "idle_seconds": conf.get("THREAD_IDLE_SECONDS"),
        "shutdown_seconds": conf.get("SHUTDOWN_SECONDS"),
    }


_HOOKS: Final[dict[str, Any]] = {
    "tidy": tidy_up,
    "on_thread_start": opened_connections,
    "on_thread_exit": close_connections,
}

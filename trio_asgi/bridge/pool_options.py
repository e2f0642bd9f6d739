"""What the worker threads get from the settings, and what ties Django to them."""

from __future__ import annotations

from typing import Any, Final

from django.conf import settings

from trio_asgi import conf
from trio_asgi.threads.current import existing_pool

from .connections import close_connections, tidy_up


def configure() -> None:
    """Check the settings, and give them to the worker threads.

    Those of the running Trio run too: a program may have used the ORM before.

    Raises:
        ImproperlyConfigured: with every problem that the system check would report.
    """
    conf.check()
    global _options  # noqa: PLW0603 - there is one project in a process
    _options = _read_options()
    pool = existing_pool()
    if pool is not None:
        pool.configure(**_options)


#: What `configure` has read.
_options: dict[str, Any] | None = None


def pool_options() -> dict[str, Any]:
    """Return what the worker threads of a Trio run are made with.

    What `configure` has read last. Without it, for a program that only uses the ORM,
    what the settings say now, if they can be read.

    Raises:
        ImproperlyConfigured: they are wrong.
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
    "on_thread_exit": close_connections,
}

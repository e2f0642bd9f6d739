"""Settings that matter in production, and the project's ``asgi.py``."""

from __future__ import annotations

import ast
import importlib.util
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

from django.conf import settings
from django.core import mail
from django.core.checks import Info, Warning as CheckWarning
from django.db import connections
from django.utils.log import AdminEmailHandler, RequireDebugTrue

from trio_asgi.bridge.originals import is_original

from .source import Place

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.core.checks import CheckMessage

#: Engines that need no connection, or none that is slow to open.
_LOCAL: Final = ("sqlite", "spatialite", "dummy")

#: What makes an application on asyncio, by the modules of Django that have it.
_DJANGOS: Final = {
    "django.core.asgi": {"get_asgi_application"},
    "django.core.handlers.asgi": {"ASGIHandler"},
    "django.contrib.staticfiles.handlers": {"ASGIStaticFilesHandler"},
}


def check_connections() -> Iterator[CheckMessage]:
    """Yield advice for each database whose connections are opened for each request."""
    for alias, database in connections.settings.items():
        is_local = any(name in database["ENGINE"] for name in _LOCAL)
        # With a pool no connection may be kept; before a pooler none need be.
        pooled = database["OPTIONS"].get("pool") or database.get(
            "DISABLE_SERVER_SIDE_CURSORS"
        )
        if database["CONN_MAX_AGE"] == 0 and not is_local and not pooled:
            yield Info(
                f"A connection to the database {alias!r} is opened and closed for each "
                "request. Threads are reused here, so it can be kept.",
                hint='Write "CONN_MAX_AGE": 60, "CONN_HEALTH_CHECKS": True',
                obj=f"settings.DATABASES[{alias!r}]",
                id="trio_asgi.I017",
            )


def check_logging() -> Iterator[CheckMessage]:
    """Yield a warning if no handler takes the errors of views outside ``DEBUG``.

    A test run is left alone, since it turns ``DEBUG`` off.
    """
    if settings.DEBUG or hasattr(mail, "outbox") or _errors_are_logged():
        return
    yield CheckWarning(
        "Errors of views are logged nowhere: with DEBUG off, Django only mails them "
        "to ADMINS, which is empty.",
        hint='Write LOGGING = {"version": 1, "disable_existing_loggers": False, '
        '"handlers": {"console": {"class": "logging.StreamHandler"}}, '
        '"root": {"handlers": ["console"]}}',
        obj="settings.LOGGING",
        id="trio_asgi.W014",
    )


def _errors_are_logged() -> bool:
    """Whether an error of ``django.request`` reaches a handler."""
    if not is_original(logging.Logger.callHandlers, logging):
        return True  # a tool such as Sentry takes records there
    logger: logging.Logger | None = logging.getLogger("django.request")
    assert logger is not None
    if logger.disabled or not logger.isEnabledFor(logging.ERROR):
        return False
    handlers: list[logging.Handler] = []
    while logger is not None:
        handlers += logger.handlers
        logger = logger.parent if logger.propagate else None
    # Without any handler Python itself writes errors to stderr.
    return not handlers or any(map(_takes_errors, handlers))


def _takes_errors(handler: logging.Handler) -> bool:
    if isinstance(handler, logging.NullHandler) or handler.level > logging.ERROR:
        return False
    if isinstance(handler, AdminEmailHandler) and not settings.ADMINS:
        return False
    return not any(isinstance(one, RequireDebugTrue) for one in handler.filters)


def check_asgi_module() -> Iterator[CheckMessage]:
    """Yield a warning for each import in ``asgi.py`` of Django's own application."""
    file = _asgi_file()
    if file is None:
        return
    try:
        tree = ast.parse(Path(file).read_bytes())
    except (SyntaxError, ValueError):
        return  # the server reports it; commands do not need this module
    imports = [
        (node, node.module or "", {alias.name for alias in node.names})
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
    ]
    if any(module.partition(".")[0] == "trio_asgi" for _, module, _ in imports):
        return  # it may choose
    for node, module, names in imports:
        if names := names & _DJANGOS.get(module, set()):
            name = min(names)
            yield CheckWarning(
                f"{name} is imported from {module}: servers run it on asyncio.",
                hint=f"Write: from trio_asgi import {name}",
                obj=Place(file, node.lineno),
                id="trio_asgi.W010",
            )


def _asgi_file() -> str | None:
    """Return the file of the module that ``ASGI_APPLICATION`` names, or ``asgi.py``.

    It is not imported: that would make the application.
    """
    module = str(getattr(settings, "ASGI_APPLICATION", None) or "").rpartition(".")[0]
    if not module:
        wsgi = getattr(settings, "WSGI_APPLICATION", None)
        beside = (
            wsgi.rpartition(".")[0] if wsgi else getattr(settings, "ROOT_URLCONF", "")
        )
        module = ".".join([*beside.split(".")[:-1], "asgi"])
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    file = spec.origin if spec else None
    return file if file and file.endswith(".py") else None

"""The system check, and what the application logs at its start."""

from __future__ import annotations

import logging
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from django.apps import apps
from django.conf import settings

from trio_asgi import conf

from .middleware import check_event_streams, check_threads
from .project import check_asgi_module, check_connections, check_logging
from .views import all_views, check_middleware, check_views

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.core.checks import CheckMessage

#: How many findings the application logs.
_LOGGED: Final = 10

logger = logging.getLogger("trio_asgi")
_has_reported = False


def check_conversion(**_kwargs: Any) -> list[CheckMessage]:
    """Report what the project needs to run well on Trio.

    Raises:
        Exception: the URLconf cannot be imported.
    """
    global _has_reported  # noqa: PLW0603 - there is one project in a process
    _has_reported = True
    if any(conf.problems()):
        return []  # another check reports them, and no application can be made
    return [*check_asgi_module(), *_in_code(), *_in_settings()]


def log_findings() -> None:
    """Log what the checks say, unless this process has reported it. Never raises.

    Outside ``DEBUG`` these are only the checks of settings, which take no time. Called
    when the application has started, so that the views can import its module.
    """
    global _has_reported  # noqa: PLW0603
    if _has_reported:
        return
    _has_reported = True
    if not apps.is_installed("trio_asgi"):
        logger.info(
            'Add "trio_asgi" to INSTALLED_APPS: then tests, commands and runserver use '
            "Trio as well, and manage.py check --tag trio_asgi checks the project."
        )
    try:
        findings = _in_code() if settings.DEBUG else ()
        found = [one for one in [*findings, *_in_settings()] if not one.is_silenced()]
    except Exception:
        # The first request logs a URLconf that cannot be imported.
        logger.debug("The project could not be checked.", exc_info=True)
        return
    for message in found[:_LOGGED]:
        logger.log(message.level, "%s", message)  # both have the same numbers
    if (left := len(found) - _LOGGED) > 0:
        logger.warning("%d more: see manage.py check --tag trio_asgi", left)


def _in_code() -> Iterator[CheckMessage]:
    views = all_views()
    return chain(
        check_views(views),
        check_middleware(),
        check_event_streams(views),
        check_threads(views),
    )


def _in_settings() -> Iterator[CheckMessage]:
    return chain(check_connections(), check_logging())

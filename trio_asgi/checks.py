"""System checks: of ``settings.TRIO_ASGI``, and of the order of the apps."""

from __future__ import annotations

from typing import Any, Final

from django.apps import apps
from django.core.checks import CheckMessage, Error, Warning as CheckWarning

from . import conf

_STATICFILES: Final = "django.contrib.staticfiles"


def check_settings(**_kwargs: Any) -> list[CheckMessage]:
    """Report unknown keys and wrong values."""
    return [Error(message, id=f"trio_asgi.{id_}") for id_, message in conf.problems()]


def check_order_of_apps(**_kwargs: Any) -> list[CheckMessage]:
    """Report that ``runserver`` is that of Django, which does not run Trio."""
    names = [app.name for app in apps.get_app_configs()]
    found = [name for name in names if name in {"trio_asgi", _STATICFILES}]
    if found != [_STATICFILES, "trio_asgi"]:
        return []
    return [
        CheckWarning(
            "'trio_asgi' is after 'django.contrib.staticfiles' in INSTALLED_APPS, so "
            "'manage.py runserver' does not serve the site on Trio.",
            hint="Put 'trio_asgi' first in INSTALLED_APPS.",
            id="trio_asgi.W001",
        )
    ]

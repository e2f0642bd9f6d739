"""The Django app: ``"trio_asgi"`` in ``INSTALLED_APPS``."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import register

from . import conf
from .bridge.install import install_bridge
from .bridge.pool_options import configure_threads
from .checks import check_order_of_apps, check_settings
from .conversion.checks import check_conversion


class TrioAsgiConfig(AppConfig):
    """Installs the bridge for management commands and tests, and checks the project."""

    name = "trio_asgi"
    verbose_name = "Django on Trio"

    def ready(self) -> None:
        """Install the bridge; the system checks report what is wrong."""
        register(check_settings, "trio_asgi")
        register(check_order_of_apps, "trio_asgi")
        register(check_conversion, "trio_asgi")
        if any(conf.problems()):
            install_bridge()
        else:
            install_bridge(async_to_sync_backend=conf.get("ASYNC_TO_SYNC_BACKEND"))
            configure_threads()

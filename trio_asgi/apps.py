"""The Django app: ``"trio_asgi"`` in ``INSTALLED_APPS``."""

from __future__ import annotations

import sys
from typing import Any

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
        """Install the bridge; the system checks report what is wrong.

        The app stands for the whole project: so `async_to_sync` starts Trio where no
        loop runs, unless ``ASYNC_TO_SYNC_BACKEND`` says otherwise.
        """
        register(check_settings, "trio_asgi")
        register(check_order_of_apps, "trio_asgi")
        register(check_conversion, "trio_asgi")
        if any(conf.problems()):
            install_bridge()
        else:
            backend: Any = conf.get("ASYNC_TO_SYNC_BACKEND") or "trio"
            install_bridge(async_to_sync_backend=backend)
            configure_threads()
        if "django.test.testcases" in sys.modules:
            # A test runner, or a process that one has started, sets up Django.
            from .testing import install  # noqa: PLC0415 - not in production

            install()

"""Settings of Django's tests for PostgreSQL, located as by its own tools.

The environment says where the server is: ``PGHOST``, ``PGPORT``, ``PGUSER`` and
``PGPASSWORD``. Django creates separate databases there, and removes them.
"""

from __future__ import annotations

import os
from typing import Any

from .sqlite import *  # noqa: F403 - Django's settings are such names


def _database(name: str) -> dict[str, Any]:
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": name,
        "HOST": os.environ.get("PGHOST", ""),
        "PORT": os.environ.get("PGPORT", ""),
        "USER": os.environ.get("PGUSER", "postgres"),
        "PASSWORD": os.environ.get("PGPASSWORD", ""),
    }


DATABASES = {
    "default": _database("trio_asgi_suite"),
    "other": _database("trio_asgi_suite_other"),
}

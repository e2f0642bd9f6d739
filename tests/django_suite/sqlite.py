"""Settings of Django's tests for SQLite: its own test_sqlite, with caches.

Django tests the cache servers that its settings name. Here the environment names them
as ``host:port`` in ``DJANGO_SUITE_REDIS``, and in ``DJANGO_SUITE_PYMEMCACHE`` and
``DJANGO_SUITE_PYLIBMC`` for two memcached servers. The tests delete everything stored
there. ``DJANGO_SUITE_TRIO_ASGI`` may hold ``TRIO_ASGI``, as JSON.
"""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from typing import Any

import django

DATABASES = {
    "default": {"ENGINE": "django.db.backends.sqlite3"},
    "other": {"ENGINE": "django.db.backends.sqlite3"},
}
SECRET_KEY = "django_tests_secret_key"  # noqa: S105 - protects nothing
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
USE_TZ = False
if django.VERSION < (6, 0):
    DEFAULT_AUTO_FIELD = "django.db.models.AutoField"


#: The packages that clients of caches need, and Django's backends for them.
_CLIENTS = {
    "redis": "redis.RedisCache",
    "pymemcache": "memcached.PyMemcacheCache",
    "pylibmc": "memcached.PyLibMCCache",
}


def _caches() -> dict[str, dict[str, Any]]:
    backends = "django.core.cache.backends"
    caches = {"default": {"BACKEND": f"{backends}.locmem.LocMemCache"}}
    for package, backend in _CLIENTS.items():
        address = os.environ.get(f"DJANGO_SUITE_{package.upper()}")
        if address and find_spec(package):
            caches[package] = {
                "BACKEND": f"{backends}.{backend}",
                "LOCATION": f"redis://{address}" if package == "redis" else address,
            }
    return caches


CACHES = _caches()

#: Our own settings, as JSON.
TRIO_ASGI = json.loads(os.environ.get("DJANGO_SUITE_TRIO_ASGI", "{}"))

"""Django settings of the tests; each test overrides the ones it tests."""

from __future__ import annotations

from typing import Any

SECRET_KEY = "for the tests alone"  # noqa: S105
DEBUG = False
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "urls"
USE_TZ = True
INSTALLED_APPS = [
    "trio_asgi",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
]
MIDDLEWARE: list[str] = []
STATIC_URL = "static/"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
# Tests that start Trio by `async_to_sync` say so.
TRIO_ASGI: dict[str, Any] = {"ASYNC_TO_SYNC_BACKEND": "asyncio"}

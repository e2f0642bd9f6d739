"""Settings of a small project, whose database the environment chooses."""

from __future__ import annotations

import os

SECRET_KEY = "for the tests alone"
USE_TZ = True
ALLOWED_HOSTS = ["books.example"]
ROOT_URLCONF = "mysite.urls"
STATIC_URL = "static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "trio_asgi",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "books",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "mysite.middleware.sync_middleware",
]
if "POSTGRESQL_NAME" in os.environ:
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": os.environ["POSTGRESQL_NAME"],
            "HOST": os.environ["PGHOST"],
            "USER": os.environ["PGUSER"],
        }
    }
else:
    DATABASES = {
        "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
    }

"""The settings of ``startproject``, in production; the environment varies them.

A candidate's process gets these variables, see `candidates.environment`:

- ``BENCHMARK_MIDDLEWARE``: "none", or "seven" for those of ``startproject``.
- ``BENCHMARK_SQLITE``: the path of a SQLite file, or
- ``BENCHMARK_POSTGRESQL``: the name of a database on the server of ``PGHOST``,
  ``PGPORT``, ``PGUSER`` and ``PGPASSWORD``.
- ``BENCHMARK_CONN_MAX_AGE``: seconds.
- ``BENCHMARK_NAME``: the application's name for PostgreSQL.
- ``BENCHMARK_FILES``: the directory of the files that are downloaded.
"""

from __future__ import annotations

import os

SECRET_KEY = "for the benchmarks alone"  # noqa: S105 - there is nothing to protect
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "project.urls"
USE_TZ = True
TIME_ZONE = "UTC"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "project",
]
MIDDLEWARE = {
    "none": [],
    "seven": [
        "django.middleware.security.SecurityMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
        "django.middleware.clickjacking.XFrameOptionsMiddleware",
    ],
}[os.environ.get("BENCHMARK_MIDDLEWARE", "none")]

if "BENCHMARK_POSTGRESQL" in os.environ:
    DATABASE = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": os.environ["BENCHMARK_POSTGRESQL"],
        "HOST": os.environ.get("PGHOST", "127.0.0.1"),
        "PORT": os.environ.get("PGPORT", "5432"),
        "USER": os.environ.get("PGUSER", "postgres"),
        "PASSWORD": os.environ.get("PGPASSWORD", ""),
        "OPTIONS": {"application_name": os.environ.get("BENCHMARK_NAME", "benchmarks")},
    }
else:
    DATABASE = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("BENCHMARK_SQLITE", ":memory:"),
    }
DATABASES = {
    "default": {
        **DATABASE,
        "CONN_MAX_AGE": int(os.environ.get("BENCHMARK_CONN_MAX_AGE", "0")),
    }
}
# At "WARNING", asyncio logs a line for each message to a client that has left.
LOGGING = {"version": 1, "loggers": {"asyncio": {"level": "ERROR"}}}
FILES = os.environ.get("BENCHMARK_FILES", "")
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
# Tables are created from the models directly, which is quicker than migrations.
MIGRATION_MODULES = dict.fromkeys(["auth", "contenttypes", "sessions"])

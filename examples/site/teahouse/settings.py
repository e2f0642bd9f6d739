"""Settings of the example: startproject's, and a few lines more.

They are for a site on your own machine. Do not put it on the Internet like this.
"""

import os
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent.parent

DEBUG = True
SECRET_KEY = "for-the-example-only-everybody-can-read-it"
ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]"]

INSTALLED_APPS = [
    "trio_asgi",
    "shop",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
]

# Exactly the seven of startproject: none had to be removed or replaced.
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("TEAHOUSE_DB", BASE_DIR / "db.sqlite3"),
        # Worker threads outlive a request, so their connections can, too.
        "CONN_MAX_AGE": 60,
        # Several threads write. With a write-ahead log, readers do not wait for
        # writers; and a transaction that will write takes the lock when it begins.
        "OPTIONS": {
            "init_command": "PRAGMA journal_mode=WAL",
            "transaction_mode": "IMMEDIATE",
        },
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

TRIO_ASGI = {
    # Enough for all forms but the one that sends a file: its view sets its own limit.
    "MAX_BODY_SIZE": 2**20,
    # For the page Load: Django's own handler does not limit them, so this would not be
    # a fair comparison if only 40 reports could be made at a time.
    "THREADS": 200,
}

# Anybody can have files written by sending them to any form, but only so many bytes,
# and only for the duration of the request.
FILE_UPLOAD_HANDLERS = [
    "shop.progress.ProgressHandler",
    "trio_asgi.uploads.StorageUploadHandler",
]

# Where the page Load finds the same site under Django's own handler.
host, _, port = os.environ.get("TEAHOUSE_COMPARE", "127.0.0.1:8001").rpartition(":")
COMPARE_WITH = (host, int(port))

ASGI_APPLICATION = "teahouse.asgi.application"  # for runserver
ROOT_URLCONF = "teahouse.urls"
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = LOGOUT_REDIRECT_URL = "home"
STATIC_URL = "static/"
# Uploads wait here until they are hashed. No URL leads there.
MEDIA_ROOT = os.environ.get("TEAHOUSE_MEDIA", BASE_DIR / "media")
TIME_ZONE = "UTC"
USE_TZ = True

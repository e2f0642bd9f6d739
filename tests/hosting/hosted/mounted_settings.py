"""The hosted site's settings, with a database and views of its own."""

from __future__ import annotations

import os

from .settings import *  # noqa: F403

ROOT_URLCONF = "hosted.mounted_urls"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": f"{os.environ['HOSTED_JOURNAL']}.sqlite3",
    }
}

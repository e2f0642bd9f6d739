"""The hosted site's settings, with a database and views of its own."""

from __future__ import annotations

import os
from pathlib import Path

from hosted.settings import *  # noqa: F403

ROOT_URLCONF = "mounted.urls"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": Path(os.environ["HOSTED_JOURNAL"]).with_name("db.sqlite3"),
        "CONN_MAX_AGE": 60,
    }
}

"""The hosted site with static files, which are stored beside its journal."""

from __future__ import annotations

import os
from pathlib import Path

from django.conf import settings
from django.test import override_settings

from trio_asgi import ASGIHandler

from . import asgi  # noqa: F401 - sets Django up

with override_settings(
    STATIC_URL="/static/",
    STATIC_ROOT=Path(os.environ["HOSTED_JOURNAL"]).parent / "static",
    MIDDLEWARE=["trio_asgi.servestatic.ServeStaticMiddleware", *settings.MIDDLEWARE],
):
    application = ASGIHandler()

"""The system check of ``settings.TRIO_ASGI``."""

from __future__ import annotations

from typing import Any

from django.core.checks import CheckMessage, Error

from . import conf


def check_settings(**_kwargs: Any) -> list[CheckMessage]:
    """Report unknown keys and wrong values."""
    return [Error(message, id=f"trio_asgi.{id_}") for id_, message in conf.problems()]

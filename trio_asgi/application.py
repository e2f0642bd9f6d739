"""``get_asgi_application()``, which makes the application for a server."""

from __future__ import annotations

import threading
from typing import Final

import django
from django.core import asgi

from .bridge.originals import is_original
from .handler import ASGIHandler

_making: Final = threading.RLock()


def get_asgi_application() -> ASGIHandler:
    """Set up Django, and return the application for an ASGI server.

    Use it instead of Django's `django.core.asgi.get_asgi_application`. If a tool has
    wrapped that function, the wrapper is called, and its result returned.

    Raises:
        ImproperlyConfigured: the settings are wrong, ``TRIO_ASGI`` included.
    """
    make = asgi.get_asgi_application
    if make is get_asgi_application or is_original(make, asgi):
        django.setup(set_prefix=False)
        return ASGIHandler()
    # Inside the wrapper, Django's function makes the class that has this name.
    with _making:
        djangos, asgi.ASGIHandler = asgi.ASGIHandler, ASGIHandler  # type: ignore[attr-defined]
        try:
            return make()  # type: ignore[return-value] # or a wrapper around it
        finally:
            asgi.ASGIHandler = djangos  # type: ignore[attr-defined]

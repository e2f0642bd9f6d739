"""``get_asgi_application()``: what a server is given."""

from __future__ import annotations

import threading
from typing import Final

import django
from django.core import asgi

from .bridge.originals import is_original
from .handler import ASGIHandler

_making: Final = threading.RLock()


def get_asgi_application() -> ASGIHandler:
    """Set up Django, and return the application for a server's Trio worker.

    Takes the place of the function of this name in `django.core.asgi`. If a tool has
    wrapped that one, the wrapper is called here, and what it makes is returned.

    Raises:
        ImproperlyConfigured: the settings are wrong, ``TRIO_ASGI`` included.
    """
    make = asgi.get_asgi_application
    if make is get_asgi_application or is_original(make, asgi):
        django.setup(set_prefix=False)
        return ASGIHandler()
    # Below the wrapper is Django's function, which makes what it finds by this name.
    with _making:
        djangos, asgi.ASGIHandler = asgi.ASGIHandler, ASGIHandler  # type: ignore[attr-defined]
        try:
            return make()  # type: ignore[return-value] # or what is put around it
        finally:
            asgi.ASGIHandler = djangos  # type: ignore[attr-defined]

"""Puts this package's classes in the place of Django's, for a project's tests."""

from __future__ import annotations

from typing import Any

import django.test
from django.test import client, testcases

from trio_asgi.bridge.install import install_bridge

from .client import AsyncClient, AsyncRequestFactory
from .live_server import LiveServerThread

#: What is replaced in Django: where, the name and the new value.
_REPLACED: list[tuple[Any, str, Any]] = [
    (testcases.SimpleTestCase, "async_client_class", AsyncClient),
    (testcases.LiveServerTestCase, "server_thread_class", LiveServerThread),
    # For tests, and for pytest-django's fixtures, that name these classes.
    (testcases, "LiveServerThread", LiveServerThread),
    (testcases, "AsyncClient", AsyncClient),
    (client, "AsyncClient", AsyncClient),
    (client, "AsyncRequestFactory", AsyncRequestFactory),
    (django.test, "AsyncClient", AsyncClient),
    (django.test, "AsyncRequestFactory", AsyncRequestFactory),
]


def install() -> None:
    """Install the bridge, and give Django's test cases the classes of this package.

    `AsyncClient`, `AsyncRequestFactory` and `LiveServerThread` take the place of
    Django's classes of these names, for the rest of the process. ``manage.py test`` and
    the pytest plugin do this; call it in other test runners before tests are imported.
    Needs no configured settings. Any thread may call it, any number of times.
    """
    install_bridge()
    for owner, name, value in _REPLACED:
        setattr(owner, name, value)

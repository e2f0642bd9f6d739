"""``manage.py test``: Django's command, with this package's classes for tests."""

from __future__ import annotations

from typing import Any

from django.core.management.commands import test

from trio_asgi.testing import install


class Command(test.Command):
    """Runs tests as Django does, with this package's `AsyncClient` and live servers."""

    def handle(self, *test_labels: str, **options: Any) -> None:
        """Install the classes, and run Django's command."""
        install()
        super().handle(*test_labels, **options)

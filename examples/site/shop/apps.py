"""The app's configuration."""

from importlib import import_module

from django.apps import AppConfig


class ShopConfig(AppConfig):
    """The tea house."""

    name = "shop"

    def ready(self) -> None:
        """Import the views now, and httpx: the first request would block the loop."""
        import_module("shop.views")

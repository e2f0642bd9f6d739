"""The app's configuration."""

from contextlib import suppress
from importlib import import_module

from django.apps import AppConfig

try:
    import resource
except ImportError:  # Windows, which needs none of it
    resource = None


class ShopConfig(AppConfig):
    """The tea house."""

    name = "shop"

    def ready(self) -> None:
        """Prepare for the first request, and for the page Load."""
        # It takes a while to import httpx: a request would block the loop with it.
        import_module("shop.views")
        if resource is not None:
            allow_open_files(4096)


def allow_open_files(number: int) -> None:
    """Raise the soft limit: the 200 visitors of both servers need 1000 open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError):  # the hard limit is lower
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, number), hard))

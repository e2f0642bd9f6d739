"""``manage.py trio_asgi_hops``: how many hops a request takes, and what causes them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.urls import get_resolver
from django.utils.module_loading import import_string

from trio_asgi import ASGIHandler, ASGIStaticFilesHandler
from trio_asgi._hop_causes import name_of
from trio_asgi._hop_report import report

if TYPE_CHECKING:
    from django.core.management.base import CommandParser


class Command(BaseCommand):
    """Prints how many hops to the thread a request takes, and what causes each."""

    help = (
        "Says how many hops between the loop and the thread a request takes, and "
        "which middleware, decorator or receiver causes each. Makes no request: "
        "neither the view nor middleware of the project is run."
    )
    # What is wrong in the settings is said below, and shortly.
    requires_system_checks = []  # noqa: RUF012 - Django's

    def add_arguments(self, parser: CommandParser) -> None:
        """Take a path and a method."""
        parser.add_argument(
            "path", nargs="?", default="/", help='The path of the URL; "/" if left out.'
        )
        parser.add_argument(
            "--method", default="GET", help="The request's method; GET if left out."
        )

    def handle(self, *, path: str, method: str, verbosity: int, **_: Any) -> None:
        """Print the report.

        Raises:
            CommandError: this is no path or method, or the project cannot be loaded.
        """
        if not re.fullmatch(r"[A-Za-z]+", method):
            raise CommandError(f"{method!r} is no method of HTTP.")
        path = _checked(path)
        handler = self._handler()
        try:
            for line in report(handler, path, method.upper(), verbosity=verbosity):
                self.stdout.write(line)
        except Exception as error:
            raise CommandError(f"{path} cannot be rehearsed. {_said(error)}") from error

    def _handler(self) -> ASGIHandler:
        """Return the project's handler, or a new one.

        Raises:
            CommandError: neither can be had.
        """
        try:
            # Such errors would look like a page's.
            _ = get_resolver().url_patterns
            named = getattr(settings, "ASGI_APPLICATION", None)
            application = import_string(named) if named else ASGIHandler()
        except Exception as error:
            raise CommandError(
                f"The project cannot be loaded. {_said(error)}"
            ) from error
        while isinstance(application, ASGIStaticFilesHandler):
            application = application.application
        if isinstance(application, ASGIHandler):
            return application
        self.stderr.write(
            f"ASGI_APPLICATION is no handler of trio_asgi, but {name_of(application)}. "
            "This is about a plain trio_asgi.ASGIHandler."
        )
        return ASGIHandler()


def _checked(path: str) -> str:
    """Return a path as it stands in a request.

    Raises:
        CommandError: it is none.
    """
    if "://" in path.partition("?")[0] or path.startswith("//"):
        raise CommandError(f"{path!r} is no path: leave out the scheme and the host.")
    if re.search(r"[\s#]", path):
        raise CommandError(f"{path!r} is no path: it has a space, or a fragment.")
    return path if path.startswith("/") else f"/{path}"


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"

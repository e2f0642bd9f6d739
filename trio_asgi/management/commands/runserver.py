"""``manage.py runserver``: Django's, but the site is served on Trio."""

from __future__ import annotations

import io
import linecache
import re
import signal
import sys
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, Final

from django.apps import apps
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler as DjangosASGIHandler
from django.core.management.base import CommandError, OutputWrapper
from django.utils.module_loading import import_string

from trio_asgi import ASGIHandler, conf, get_asgi_application
from trio_asgi.management.reloading import in_child, run_children, terminal_restored
from trio_asgi.management.server import SHUTDOWN_SECONDS, DevelopmentServer

if apps.is_installed("django.contrib.staticfiles"):
    from django.contrib.staticfiles.management.commands.runserver import (
        Command as DjangosCommand,
    )
else:
    from django.core.management.commands.runserver import (  # type: ignore[assignment]
        Command as DjangosCommand,
    )

#: The imports to change in a project's ``asgi.py``.
_DJANGOS_IMPORT: Final = re.compile(
    r"\bdjango\.(core\.asgi|contrib\.staticfiles\.handlers)\b"
)


class Command(DjangosCommand):
    """Django's command; of `django.contrib.staticfiles`, if that is installed.

    Django's code parses the arguments, checks the project, and watches its files. It
    then makes a `server_cls`, and runs it with what `get_handler` returns.
    """

    help = "Starts a development server on Trio."

    _name = ""
    _server: DevelopmentServer | None = None

    def handle(self, *args: Any, **options: Any) -> None:
        """Check what Django's command does not know of, before any process starts.

        Raises:
            CommandError: hypercorn is not installed, or Django's own reasons.
        """
        if find_spec("hypercorn") is None:
            raise CommandError(
                "runserver serves the site on Trio with hypercorn, which is not "
                "installed: pip install 'hypercorn>=0.18'"
            )
        if not any(conf.problems()):
            # What does not end must not keep the lifespan from ending in time.
            seconds = min(conf.get("SHUTDOWN_SECONDS"), SHUTDOWN_SECONDS / 8)
            own = getattr(settings, "TRIO_ASGI", {})
            settings.TRIO_ASGI = {**own, "SHUTDOWN_SECONDS": seconds}
        super().handle(*args, **options)

    def run(self, **options: Any) -> None:
        """Run the server: here, or in a child process that is restarted at changes."""
        with terminal_restored():
            if not options["use_reloader"]:
                super().run(**options)
                return
            if not in_child():
                run_children(SHUTDOWN_SECONDS + 1)
            try:
                super().run(**options)
            finally:
                # The main thread ends: a file has changed, or a signal has come.
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # has been seen
                if self._server is not None:
                    with suppress(KeyboardInterrupt):
                        self._server.stop()

    def inner_run(self, *args: Any, **options: Any) -> None:
        """Check the project, and serve it until Ctrl-C. Any thread.

        Raises:
            CommandError: the application's lifespan failed.
        """
        from hypercorn.utils import (  # noqa: PLC0415 - optional
            LifespanFailureError,
            LifespanTimeoutError,
        )

        if not options["use_threading"]:
            self.stdout.write(
                self.style.NOTICE(
                    "--nothreading is ignored: on Trio, requests always run "
                    "concurrently."
                )
            )
        options["use_threading"] = False  # a mixin of Django's server
        try:
            super().inner_run(*args, **options)
        except (LifespanFailureError, LifespanTimeoutError) as error:
            raise CommandError(f"The application has ended. {error}") from None

    def get_handler(self, *_args: Any, **options: Any) -> Any:
        """Return the ASGI application to serve, with static files in front of it.

        Raises:
            CommandError: the application is Django's own handler.
            Exception: its module cannot be imported.
        """
        name = getattr(settings, "ASGI_APPLICATION", None)
        if name is None:
            self._name = "get_asgi_application()"
            application: Any = get_asgi_application()
        else:
            self._name = name
            try:
                application = import_string(name)
            except Exception:
                self.stderr.write(f"Cannot import ASGI_APPLICATION = {name!r}:")
                raise
            check_handler(application, name)
        if options.get("use_static_handler") and (
            settings.DEBUG or options["insecure_serving"]
        ):
            from trio_asgi import ASGIStaticFilesHandler  # noqa: PLC0415

            application = ASGIStaticFilesHandler(application)
        return application

    def server_cls(self, *args: Any, **kwargs: Any) -> DevelopmentServer:  # type: ignore[override]
        """Make the server, and keep it to stop it."""
        self._server = DevelopmentServer(*args, **kwargs)
        return self._server

    def on_bind(self, server_port: int) -> None:
        """Print what is served, and Django's text about where."""
        self.stdout.write(f"{self._name} runs on Trio, served by hypercorn.")
        text = io.StringIO()
        stdout, self.stdout = self.stdout, OutputWrapper(text)
        super().on_bind(server_port)
        self.stdout = stdout
        # From Django 6.1 on, it names the interface.
        said = text.getvalue().replace(
            "WSGI development server", "ASGI development server"
        )
        self.stdout.write(said, ending="")


def check_handler(application: object, name: str) -> None:
    """Raise CommandError if an application is Django's own handler, for asyncio.

    The error says which line of the module to change.
    """
    inner = getattr(application, "application", None)  # of a handler of static files
    for handler in (application, inner):
        if isinstance(handler, DjangosASGIHandler) and not isinstance(
            handler, ASGIHandler
        ):
            break
    else:
        return
    file = sys.modules[name.rpartition(".")[0]].__file__ or ""
    advice = f"In {file}, import it from trio_asgi."
    for number, line in enumerate(linecache.getlines(file), 1):
        if _DJANGOS_IMPORT.search(line):
            new = _DJANGOS_IMPORT.sub("trio_asgi", line).strip()
            advice = f"Write in {file}, line {number}:\n\n    {new}\n"
            break
    raise CommandError(
        f"{name} is Django's own handler: it needs asyncio, but runserver serves the "
        f"site on Trio. {advice}"
    )

"""The server of `LiveServerTestCase` and pytest-django's ``live_server``, on Trio."""

from __future__ import annotations

from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import trio
from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.staticfiles.handlers import StaticFilesHandlerMixin
from django.core.handlers.exception import response_for_exception
from django.db import connections
from django.http import Http404
from django.test import testcases

from trio_asgi import conf
from trio_asgi.bridge.connections import opened_connections
from trio_asgi.handler import ASGIHandler
from trio_asgi.hosts.hypercorn import serve
from trio_asgi.threads.current import current_pool

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponseBase
    from hypercorn.config import Config

    from trio_asgi.asgi.types import ASGIApplication, Receive, Scope, Send

_DJANGOS: Any = testcases.LiveServerThread

#: How long the end of a server may take besides what ``SHUTDOWN_SECONDS`` allows.
END_SECONDS = 5.0


class LiveServerThread(testcases.LiveServerThread):
    """Django's thread of a live server, with hypercorn on Trio as the server.

    It serves the project's views and middleware, its lifespan, static files as the test
    case's ``static_handler`` does, and the files in ``MEDIA_ROOT``. As in Django, an
    SQLite database in memory is used through the connection of the test's thread.

    A subclass that has a server, by ``server_class`` or ``_create_server``, keeps it.
    """

    #: What serves the requests. Name your own subclass if ``asgi.py`` has one.
    handler_class = ASGIHandler

    _token: trio.lowlevel.TrioToken | None = None
    _is_terminated = False

    def run(self) -> None:
        """Serve until `terminate`. An error is kept in ``error``."""
        if _has_own_server(type(self)):
            super().run()
            return
        self._scope = trio.CancelScope()
        self._share_connections()
        try:
            config = self._make_config()
            trio.run(self._serve, self._make_application(), config)
        except BaseException as error:  # noqa: BLE001 - the test case raises it
            self.error = error  # type: ignore[assignment] # any is raised
        finally:
            self.is_ready.set()
            connections.close_all()

    def _share_connections(self) -> None:
        """Let the running thread use connections of the test's thread. Any thread."""
        for alias, connection in (self.connections_override or {}).items():
            connections[alias] = connection

    def _start_thread(self) -> object:
        self._share_connections()
        return opened_connections()

    async def _serve(self, application: ASGIApplication, config: Config) -> None:
        current_pool().on_thread_start = self._start_thread
        with self._scope:
            self._token = trio.lowlevel.current_trio_token()
            if self._is_terminated:
                return
            status: Any = SimpleNamespace(started=self._note_ready)
            await serve(application, config=config, task_status=status)

    def _note_ready(self, urls: list[str]) -> None:
        self.port = int(urls[0].rpartition(":")[2])
        self.is_ready.set()

    def _make_application(self) -> ASGIApplication:
        files: list[Any] = []
        if settings.STATIC_URL:
            files.append(self.static_handler(None))
        if settings.MEDIA_ROOT:
            files.append(testcases._MediaFilesHandler(None))
        return FilesHandler(self.handler_class(), files)

    def _make_config(self) -> Config:
        try:
            from hypercorn.config import Config  # noqa: PLC0415 - optional
        except ImportError as error:
            raise ImportError(
                "A live server on Trio needs hypercorn: pip install 'hypercorn>=0.18'"
            ) from error
        config = Config()
        host = f"[{self.host}]" if ":" in self.host else self.host
        config.bind = [f"{host}:{self.port}"]
        config.graceful_timeout = 0
        config.loglevel = "WARNING"
        return config

    def terminate(self) -> None:
        """End the server, and wait for the thread. Open responses break off.

        Sync code that a request runs may go on for ``TRIO_ASGI["SHUTDOWN_SECONDS"]``.

        Raises:
            RuntimeError: the thread does not end, because code blocks its loop.
        """
        if _has_own_server(type(self)):
            super().terminate()
            return
        self._is_terminated = True  # first: the run may just be starting
        if self._token is not None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._scope.cancel)
        # For cancelled requests, for tasks of `start_soon`, and for threads.
        seconds = 3 * conf.get("SHUTDOWN_SECONDS") + END_SECONDS
        self.join(seconds)
        if self.is_alive():
            raise RuntimeError(
                f"The live server did not end within {seconds} seconds. Probably async "
                "code blocks its loop: look for calls without await in async views."
            )


class FilesHandler(ASGIHandler):
    """Answers requests for static and media files; an application answers the others.

    As in Django, a file that is missing is answered with 404 if the test case takes
    static files from the finders; elsewhere the application answers.
    """

    def __init__(self, application: ASGIHandler, files: list[Any]) -> None:
        """Take Django's WSGI handlers for files; only they know where those are."""
        # Not `super().__init__`: there is nothing else to prepare, as in Django's.
        self.application = application
        self._files = files

    def start_soon(self, *args: Any, **kwargs: Any) -> None:
        """Start a task in the application's lifespan; see `trio_asgi.start_soon`."""
        self.application.start_soon(*args, **kwargs)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Choose who answers. The lifespan is the application's."""
        if scope["type"] == "http" and self._handlers(scope["path"]):
            await super().__call__(scope, receive, send)
        else:
            await self.application(scope, receive, send)

    def _handlers(self, path: str) -> list[Any]:
        return [files for files in self._files if files._should_handle(path)]

    async def get_response_async(self, request: HttpRequest) -> HttpResponseBase:
        """Return the file; if there is none, the answer to that."""
        response: HttpResponseBase | None = await sync_to_async(self._open)(request)
        if response is None:
            return await self.application.get_response_async(request)
        response._resource_closers.append(request.close)  # type: ignore[attr-defined]
        return response

    def _open(self, request: HttpRequest) -> HttpResponseBase | None:
        """Return a file, or the answer to an error, or None. Worker thread."""
        files = self._handlers(request.path)[0]
        try:
            response: HttpResponseBase = files.serve(request)
        except Exception as error:  # noqa: BLE001 - Django logs and answers it
            is_missing = isinstance(error, Http404)
            if is_missing and not isinstance(files, StaticFilesHandlerMixin):
                return None
            return response_for_exception(request, error)
        return response


def _has_own_server(kind: Any) -> bool:
    return (
        kind.server_class is not _DJANGOS.server_class
        or kind._create_server is not _DJANGOS._create_server
    )

"""The server of ``manage.py runserver``: hypercorn, on Trio, in a separate thread."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import outcome
import trio
from django.core.servers.basehttp import WSGIServer

from trio_asgi.hosts.hypercorn import serve

if TYPE_CHECKING:
    from trio_asgi.asgi.types import ASGIApplication, Message, Receive, Scope, Send

logger = logging.getLogger("django.server")

#: How long the server may take to shut down, in seconds.
SHUTDOWN_SECONDS: Final = 2.0


class DevelopmentServer(WSGIServer):
    """Takes the place of Django's `WSGIServer`, but its application is one of ASGI.

    It binds its socket as Django's does, so an address in use is the same error. Trio
    runs in a thread that is never the main thread. So Ctrl-C and the autoreloader work
    while an async view blocks the loop, at a breakpoint say; and pdb cannot replace the
    handler of Ctrl-C, which it does in the main thread and does not undo.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._result: outcome.Outcome[None] | None = None

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Serve until the application's lifespan fails, or until `stop` is called.

        Ctrl-C, in the main thread, shuts the server down before it is raised.

        Args:
            poll_interval: After how many seconds Ctrl-C is noticed on Windows, which
                does not interrupt a thread that waits. Elsewhere it is noticed at once.

        Raises:
            Exception: what `trio_asgi.serve` raises.
        """
        threading.Thread(target=self._run, name="trio-runserver", daemon=True).start()
        try:
            while not self._ended.wait(poll_interval):
                pass
        finally:
            self.stop()
        if self._result is not None:
            self._result.unwrap()

    def stop(self) -> None:
        """Shut the server down. Any thread, also before it serves, and again.

        Requests are cancelled at once, and the application's lifespan ends. If that
        takes more than `SHUTDOWN_SECONDS`, it goes on in its thread.
        """
        self._stopping.set()
        if not self._ended.wait(SHUTDOWN_SECONDS):
            logging.getLogger("trio_asgi").warning(
                "The site has not shut down within %g seconds: not waiting longer.",
                SHUTDOWN_SECONDS,
            )

    def _run(self) -> None:
        self._result = outcome.capture(trio.run, self._serve)
        self.server_close()
        self._ended.set()

    async def _serve(self) -> None:
        from hypercorn.config import Config, Sockets  # noqa: PLC0415 - optional

        config = Config()
        config.create_sockets = lambda: Sockets([], [self.socket], [])  # type: ignore[method-assign]
        config.graceful_timeout = 0
        config.loglevel = "WARNING"

        async def wait_until_stopping() -> None:
            # With its own limiter, for the project may use up Trio's.
            await trio.to_thread.run_sync(
                self._stopping.wait,
                abandon_on_cancel=True,
                limiter=trio.CapacityLimiter(1),
            )

        application: Any = self.get_app()
        await serve(
            log_requests(application),
            config=config,
            shutdown_trigger=wait_until_stopping,
        )


def log_requests(application: ASGIApplication) -> ASGIApplication:
    """Wrap an ASGI application: log each request at its end, as Django's server does.

    A line has the status, and the size of the content in bytes. If the client has left
    before the end, or the response was cut off, the line says so.
    """

    async def logged(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await application(scope, receive, send)
            return
        status, size, ending = 0, 0, " (cut off)"

        async def counted(message: Message) -> None:
            nonlocal status, size, ending
            await send(message)
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                if scope["method"] != "HEAD":  # to which no content is sent
                    size += len(message.get("body", b""))
                if not message.get("more_body", False):
                    ending = ""

        try:
            await application(scope, receive, counted)
            if ending:
                ending = " (the client left)"
        finally:
            _log(scope, status, size, ending)

    return logged


def _log(scope: Scope, status: int, size: int, ending: str) -> None:
    target = scope.get("raw_path") or quote(scope["path"]).encode()
    if query := scope["query_string"]:
        target += b"?" + query
    if status >= 500:  # noqa: PLR2004 - as in Django
        level = logging.ERROR
    elif status >= 400:  # noqa: PLR2004
        level = logging.WARNING
    else:
        level = logging.INFO
    logger.log(
        level,
        '"%s %s HTTP/%s" %s %s%s',
        scope["method"],
        # Control characters, which HTTP/2 lets through, would reach the terminal.
        target.decode("latin-1").encode("unicode_escape").decode(),
        scope["http_version"],
        status or "-",
        size,
        ending,
        extra={
            "status_code": status,
            "server_time": time.strftime("%d/%b/%Y %H:%M:%S"),
        },
    )

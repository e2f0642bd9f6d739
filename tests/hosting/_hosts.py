"""The servers that can host the site, and how each is told what the tests ask for."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Host:
    """One server, with one event loop and one parser."""

    #: The module of its command.
    module: str
    #: Options that choose how it runs.
    choice: tuple[str, ...]
    #: What else has to be installed.
    needs: tuple[str, ...] = ()
    #: Its names for the tests' options; those that it lacks are left out.
    names: Mapping[str, str] = field(default_factory=dict)
    #: Matches the line of its log that says where it listens, for each worker.
    listening: str = r"Running on https?://127\.0\.0\.1:(\d+)"
    #: Whether only the parent process writes that line.
    listens_once: bool = False
    #: Whether it can choose a free port itself, and say which.
    knows_port: bool = True
    #: Its exit statuses after SIGTERM: some die of the signal that they have handled.
    ends_with: tuple[int, ...] = (0,)

    #: What the server cannot do, by the names that tests use, with its reason. Each was
    #: seen with a bare ASGI application, too.
    cannot: Mapping[str, str] = field(default_factory=dict)
    #: How its answer begins where a body is cut short or invalid.
    answers_bad_body: bytes = b"HTTP/1.1 400 "
    #: Whether it answers 400 to bytes after the last request, before the application's
    #: answer, for which its `send` then may raise an error.
    answers_junk: bool = False
    #: Whether it sends the head with the first part of the body, not before.
    holds_head: bool = False
    #: How much it queues for a client that reads.
    queued_megabytes: int = 0
    #: Matches the names of its own threads, as Python knows them.
    own_threads: re.Pattern[str] = re.compile(r"(?!)")
    #: Matches what it logs as errors whenever it cancels tasks at a shutdown.
    logs_cancelled: re.Pattern[str] | None = None

    @property
    def on_trio(self) -> bool:
        """Whether the server itself runs on Trio."""
        return "--worker-class=trio" in self.choice

    @property
    def is_installed(self) -> bool:
        """Whether it can be tested here."""
        return all(find_spec(name) for name in (self.module, *self.needs))

    def arguments(
        self, application: str, options: Mapping[str, object], port: int
    ) -> list[str]:
        """Return its command line, without Python."""
        given = {"host": "127.0.0.1", "port": port, **options}
        given["bind"] = f"{given['host']}:{given['port']}"
        named = [
            f"{self.names[name]}={value}"
            for name, value in given.items()
            if name in self.names
        ]
        return [self.module, *self.choice, *named, application]

    def free_port(self) -> int:
        """Return 0 if the server can choose a port, or else one that is free."""
        if self.knows_port:
            return 0
        with socket.create_server(("127.0.0.1", 0)) as sock:
            port: int = sock.getsockname()[1]
            return port


_NO_HTTP2 = {"http2": "the server has no HTTP/2"}
_UVICORNS = {
    **_NO_HTTP2,
    "closing unread": "it waits for a client that does not read before it closes",
    "clean parent": "the parent of its workers does not close its socket",
}
_HTTPTOOLS = {
    **_UVICORNS,
    "limited headers": "httptools waits for the end of headers of any length",
    "answer before error": "with httptools it sends 400 at once, and nothing else",
}
_UVICORN_CANCELS = re.compile(
    r"^.*ERROR.* (?:Cancel \d+ running task.*|Exception in ASGI application\n"
    r"Traceback(?:.*\n)*?asyncio\.exceptions\.CancelledError.*)\n",
    re.MULTILINE,
)

_HYPERCORNS = {
    "http2 back-pressure": "0.18 holds no stream of HTTP/2 back, but buffers it all",
}
_HYPERCORN_CANCELS = re.compile(
    r"^Exception in callback StreamReaderProtocol\..*\n(?:handle: .*\n)?"
    r"Traceback(?:.*\n)*?asyncio\.exceptions\.CancelledError.*\n",
    re.MULTILINE,
)

_HYPERCORN = {
    "bind": "--bind",
    "workers": "--workers",
    "graceful-timeout": "--graceful-timeout",
    "keep-alive": "--keep-alive",
    "certfile": "--certfile",
    "keyfile": "--keyfile",
}
_UVICORN = {
    "host": "--host",
    "port": "--port",
    "workers": "--workers",
    "graceful-timeout": "--timeout-graceful-shutdown",
    "keep-alive": "--timeout-keep-alive",
    "certfile": "--ssl-certfile",
    "keyfile": "--ssl-keyfile",
}
_GUNICORN = {
    "bind": "--bind",
    "workers": "--workers",
    "graceful-timeout": "--graceful-timeout",
    "keep-alive": "--keep-alive",
    "certfile": "--certfile",
    "keyfile": "--keyfile",
}
_GRANIAN = {
    "host": "--host",
    "port": "--port",
    "workers": "--workers",
    "graceful-timeout": "--workers-kill-timeout",
    "certfile": "--ssl-certificate",
    "keyfile": "--ssl-keyfile",
}


def _uvicorn(loop: str, http: str, cannot: Mapping[str, str], *needs: str) -> Host:
    return Host(
        "uvicorn",
        (f"--loop={loop}", f"--http={http}", "--no-access-log"),
        needs=needs,
        names=_UVICORN,
        listening=r"Uvicorn running on https?://127\.0\.0\.1:(\d+)",
        listens_once=True,
        ends_with=(0, -15),
        cannot=cannot,
        logs_cancelled=_UVICORN_CANCELS,
        answers_junk=http == "h11",
    )


HOSTS = {
    "hypercorn": Host(
        "hypercorn",
        ("--worker-class=trio",),
        names=_HYPERCORN,
        cannot=_HYPERCORNS,
    ),
    "anycorn": Host("anycorn", ("--worker-class=trio",), names=_HYPERCORN),
    "uvicorn": _uvicorn("uvloop", "httptools", _HTTPTOOLS, "uvloop", "httptools"),
    "uvicorn-asyncio-h11": _uvicorn("asyncio", "h11", _UVICORNS),
    "hypercorn-asyncio": Host(
        "hypercorn",
        ("--worker-class=asyncio",),
        names=_HYPERCORN,
        cannot={
            **_HYPERCORNS,
            "closing unread": "it waits for a client that does not read",
            "leaving a thread": "asyncio.run() waits for the threads of its executor",
        },
        logs_cancelled=_HYPERCORN_CANCELS,
    ),
    "granian": Host(
        "granian",
        ("--interface=asgi",),
        names=_GRANIAN,
        listening=r"Listening at: https?://127\.0\.0\.1:(\d+)",
        listens_once=True,
        knows_port=False,
        answers_bad_body=b"HTTP/1.1 500 ",
        holds_head=True,
        # Four messages, and those that hyper writes.
        queued_megabytes=12,
        cannot={
            "cancellation": "it kills workers that have not ended in time",
            "closing unread": "it waits for a client that does not read",
            "closing refused": "it keeps the connection of a refused handshake",
            "limited headers": "hyper waits for the end of up to 400 kB of headers",
            "requests of those who left": "it drops a request whose client has left",
        },
        # A thread of Rust gets such a name when it logs something.
        own_threads=re.compile(r"Dummy-\d+$"),
    ),
    "daphne": Host(
        "daphne",
        ("--access-log=/dev/null",),
        names={"port": "--port", "host": "--bind"},
        listening=r"Listening on TCP address 127\.0\.0\.1:(\d+)",
        cannot={
            **_NO_HTTP2,
            "lifespan": "it has no lifespan",
            "back-pressure": "it buffers all that a client does not read",
            "streamed uploads": "it takes the whole body first",
            "cutting off": "it keeps the connection when a started response fails",
            "grace period": "it cancels all requests at once",
            "cancellation": "it cancels all requests at once",
            "limited headers": "Twisted closes the connection without an answer",
            "leaving a thread": "Python waits for the threads of the executor",
            "closing unread": "it buffers all that a client does not read",
        },
    ),
    "gunicorn": Host(
        "gunicorn",
        ("--worker-class=uvicorn.workers.UvicornWorker",),
        needs=("uvicorn", "uvloop", "httptools"),
        names=_GUNICORN,
        cannot={
            **_HTTPTOOLS,
            "cancellation": "it kills workers that have not ended in time",
        },
        logs_cancelled=_UVICORN_CANCELS,
        listening=r"Listening at: https?://127\.0\.0\.1:(\d+)",
        listens_once=True,
    ),
}

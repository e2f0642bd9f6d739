"""Servers that are measured over HTTP: their configurations, and their processes.

Each server has one process that answers, and otherwise the configuration that its own
documentation shows first.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
from candidates import HERE, PATIENCE, Broken, environment
from databases import Skipped
from driver import OK
from works import WORKS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

#: Seconds for a server to start or end.
START_PATIENCE = 30


@dataclass(frozen=True)
class Configuration:
    """How a server is started: ``python -m`` the command, its address, the project."""

    #: For the report.
    title: str
    #: The module of `project` with the application.
    application: str
    command: tuple[str, ...]

    @property
    def is_ours(self) -> bool:
        """Whether it serves trio_asgi."""
        return self.application == "asgi_trio"

    @property
    def is_wsgi(self) -> bool:
        """Whether it serves WSGI, so that a thread runs each view."""
        return self.application == "wsgi_django"


_ONE_PROCESS = ("--workers", "0", "--log-level", "error")
_HYPERCORN = ("hypercorn", *_ONE_PROCESS)
_ON_TRIO = ("--worker-class", "trio", "--bind")
_UVICORN = (
    *("uvicorn", "--loop", "uvloop", "--http", "httptools", "--no-access-log"),
    *("--log-level", "warning", "--port"),
)


def _granian(interface: str) -> tuple[str, ...]:
    options = ("--workers", "1", "--log-level", "error", "--port")
    return ("granian", "--interface", interface, *options)


SERVERS = {
    "trio_asgi": Configuration(
        "trio_asgi under hypercorn", "asgi_trio", (*_HYPERCORN, *_ON_TRIO)
    ),
    "anycorn": Configuration(
        "trio_asgi under anycorn", "asgi_trio", ("anycorn", *_ONE_PROCESS, *_ON_TRIO)
    ),
    "trio_asgi-uvicorn": Configuration(
        "trio_asgi under uvicorn", "asgi_trio", _UVICORN
    ),
    "trio_asgi-granian": Configuration(
        "trio_asgi under granian", "asgi_trio", _granian("asgi")
    ),
    "uvicorn": Configuration("uvicorn with uvloop", "asgi_django", _UVICORN),
    "granian-asgi": Configuration("granian's ASGI", "asgi_django", _granian("asgi")),
    "hypercorn": Configuration(
        "hypercorn's asyncio worker",
        "asgi_django",
        (*_HYPERCORN, "--worker-class", "asyncio", "--bind"),
    ),
    "gunicorn": Configuration(
        "gunicorn, 4 threads",
        "wsgi_django",
        (
            *("gunicorn", "--worker-class", "gthread", "--threads", "4"),
            *("--workers", "1", "--log-level", "error", "--bind"),
        ),
    ),
    "granian": Configuration("granian's WSGI", "wsgi_django", _granian("wsgi")),
    "bare": Configuration(
        "hypercorn's Trio worker", "asgi_bare", (*_HYPERCORN, *_ON_TRIO)
    ),
    "bare-uvicorn": Configuration("uvicorn", "asgi_bare", _UVICORN),
    "bare-guest": Configuration("uvicorn, through the guest", "asgi_guest", _UVICORN),
}
#: The servers of the application that does nothing but answer.
BARE = tuple(name for name in SERVERS if name.startswith("bare"))
#: The servers that are compared. `bodies` measures hypercorn's asyncio worker.
CANDIDATES = tuple(name for name in SERVERS if name not in (*BARE, "hypercorn"))


def need_servers(*names: str) -> None:
    """Check that servers, or modules that they need, are installed.

    Raises:
        Skipped: one is missing.
    """
    modules = {SERVERS[name].command[0] for name in names}
    if "uvicorn" in names:
        modules.add("uvloop")
    for module in sorted(modules):
        if importlib.util.find_spec(module) is None:
            raise Skipped(f"no {module}")


class Server:
    """A server's processes: the one that was started, and its children."""

    def __init__(
        self, name: str, databases: Mapping[str, str], **variables: str
    ) -> None:
        """Start it, with more environment variables; `wait_ready` waits for it."""
        self.name = name
        self.configuration = SERVERS[name]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        command = self.configuration.command
        address = str(self.port)
        if command[-1] == "--bind":
            address = f"127.0.0.1:{address}"
        kind = "asyncio" if self.configuration.application == "asgi_django" else name
        self._process = psutil.Popen(
            [
                *(sys.executable, "-m", *command, address),
                f"project.{self.configuration.application}:application",
            ],
            cwd=HERE,
            env=environment(WORKS["seven-async"], kind, databases) | variables,
        )

    @property
    def pid(self) -> int:
        """The number of the process that was started."""
        return int(self._process.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        children = self._children()
        self._process.terminate()
        try:
            self._process.wait(START_PATIENCE)
        except psutil.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()

    def _children(self) -> list[Any]:
        try:
            return list(self._process.children(recursive=True))
        except psutil.NoSuchProcess:
            return []

    def cpu(self) -> float:
        """Return the seconds of CPU time that its processes have taken.

        Raises:
            Broken: it has ended.
        """
        try:
            times = [each.cpu_times() for each in (self._process, *self._children())]
        except psutil.NoSuchProcess:
            raise Broken(f"{self.name} has ended.") from None
        return float(sum(each.user + each.system for each in times))

    def wait_ready(self, path: str) -> None:
        """Wait until the server answers.

        Raises:
            Broken: it does not answer, or it has ended.
        """
        end = time.monotonic() + START_PATIENCE
        while self._process.poll() is None and time.monotonic() < end:
            with suppress(ConnectionError):
                self.get(path)
                return
            time.sleep(0.1)
        raise Broken(f"{self.name} does not start.")

    def get(self, path: str) -> bytes:
        """Fetch a page.

        Raises:
            Broken: its status is not 200.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, START_PATIENCE)
        try:
            connection.request("GET", f"/{path}/")
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        if response.status != OK:
            raise Broken(f"{self.name}, {path}: {response.status} {body[:200]!r}")
        return body

    def run_clients(self, script: str, name: str, **arguments: Any) -> dict[str, Any]:
        """Run a function of a script of clients, in another process.

        Raises:
            Broken: an answer was wrong, or none came.
        """
        arguments["port"] = self.port
        command = (sys.executable, HERE / script, name, json.dumps(arguments))
        try:
            done = subprocess.run(  # noqa: S603 - a script of ours
                command, capture_output=True, text=True, timeout=PATIENCE, check=False
            )
        except subprocess.TimeoutExpired:
            raise Broken(f"{self.name}: {name} does not end.") from None
        if done.returncode:
            raise Broken(f"{self.name}: {done.stderr}")
        result: dict[str, Any] = json.loads(done.stdout)
        return result

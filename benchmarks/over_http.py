"""Throughput over HTTP: whole servers, under the load of wrk.

Each server has one process, and all of them stay up. In each round, wrk loads one after
the other, in a new random order. As without servers, each round yields ratios. The
seven middleware of ``startproject`` are in use.

A bare application under hypercorn's Trio worker only answers. It shows the limit of
that worker: nothing under it can be faster.
"""

from __future__ import annotations

import http.client
import importlib.util
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from candidates import HERE, Broken, environment
from databases import Skipped
from driver import OK
from report import Line, Note, at_least, middle
from works import WORKS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from typing_extensions import Self

CONNECTIONS = 32
#: Seconds for a server to start or end, and for wrk to end after its time.
PATIENCE = 30

_HYPERCORN = ("hypercorn", "--workers", "0", "--log-level", "error")
_UVICORN = ("uvicorn", "--loop", "uvloop", "--no-access-log", "--log-level", "warning")
#: A server's name, its application, and its command up to the address.
SERVERS = {
    "trio_asgi": ("asgi_trio", *_HYPERCORN, "--worker-class", "trio", "--bind"),
    "uvicorn": ("asgi_django", *_UVICORN, "--port"),
    "hypercorn": ("asgi_django", *_HYPERCORN, "--worker-class", "asyncio", "--bind"),
    "bare": ("asgi_bare", *_HYPERCORN, "--worker-class", "trio", "--bind"),
}
#: A view, its title, and the target as a multiple of uvicorn's throughput.
VIEWS = {
    "hello_async": ("async view", at_least(3.5)),
    "hello": ("sync view", at_least(2.2)),
}
#: The bare application's answers: the number of messages, and the bytes of each.
SHAPES = ("1x5", "10x5", "1x65536", "16x4096")


def wrk_version() -> str:
    """Return the version of wrk.

    Raises:
        FileNotFoundError: it is not installed.
    """
    command = ("wrk", "--version")  # with a status of 1, as for a wrong option
    done = subprocess.run(  # noqa: S603 - a command of ours
        command, capture_output=True, text=True, check=False
    )
    return done.stdout.split()[1].removeprefix("debian/")


def need_modules(*names: str) -> None:
    """Check that servers, or modules that they need, are installed.

    Raises:
        Skipped: one is missing.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise Skipped(f"no {name}")


class Server:
    """A server's process."""

    def __init__(
        self, name: str, databases: Mapping[str, str], **variables: str
    ) -> None:
        """Start it, with more environment variables; `wait_ready` waits for it."""
        self.name = name
        application, *command = SERVERS[name]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        address = str(self.port)
        if command[-1] == "--bind":
            address = f"127.0.0.1:{address}"
        target = f"project.{application}:application"
        kind = "trio_asgi" if name == "trio_asgi" else "asyncio"
        self._process = subprocess.Popen(  # noqa: S603 - servers that we know
            [sys.executable, "-m", *command, address, target],
            cwd=HERE,
            env=environment(WORKS["seven-async"], kind, databases) | variables,
        )

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def wait_ready(self, path: str) -> None:
        """Wait until the server answers.

        Raises:
            Broken: it does not answer, or it has ended.
        """
        end = time.monotonic() + PATIENCE
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
        connection = http.client.HTTPConnection("127.0.0.1", self.port, PATIENCE)
        try:
            connection.request("GET", f"/{path}/")
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        if response.status != OK:
            raise Broken(f"{self.name}, {path}: {response.status} {body[:200]!r}")
        return body

    def load(self, path: str, seconds: int) -> float:
        """Return how many requests a second it answers.

        Raises:
            Broken: an answer had a status other than 200, or none came.
        """
        command = ("wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s")
        done = subprocess.run(  # noqa: S603 - a command of ours
            [*command, f"http://127.0.0.1:{self.port}/{path}/"],
            capture_output=True,
            text=True,
            timeout=seconds + PATIENCE,
            check=False,
        )
        rate = re.search(r"Requests/sec: +([\d.]+)", done.stdout)
        wrong = re.search(r"Non-2xx.*|Socket errors.*", done.stdout)
        if rate is None or not float(rate[1]) or wrong is not None:
            raise Broken(f"{self.name}, {path}: {done.stdout}{done.stderr}")
        return float(rate[1])


def measure(
    databases: Mapping[str, str], *, rounds: int, seconds: int
) -> Iterator[Line | Note]:
    """Measure the servers; yield the results.

    Raises:
        Skipped: a tool or a server is missing here.
        Broken: a server failed, or gave a wrong answer.
    """
    if shutil.which("wrk") is None:
        raise Skipped("no wrk: apt-get install wrk")
    need_modules("hypercorn", "uvicorn", "uvloop")
    shapes = SHAPES if rounds > 1 else SHAPES[:1]
    found: dict[tuple[str, str], list[float]] = {}
    with ExitStack() as stack:
        servers = [stack.enter_context(Server(name, databases)) for name in SERVERS]
        for server in servers:
            paths = shapes if server.name == "bare" else VIEWS
            server.wait_ready(next(iter(paths)))
            found |= {(server.name, path): [] for path in paths}
            _check(server, paths)
        by_name = {server.name: server for server in servers}
        for _ in range(rounds):
            for name, path in random.sample(list(found), len(found)):
                found[name, path].append(by_name[name].load(path, seconds))
        for server in servers:
            _check(server, shapes if server.name == "bare" else VIEWS)
    yield from _lines(found)


def _check(server: Server, paths: Iterable[str]) -> None:
    for path in paths:
        body = server.get(path)
        if server.name != "bare" and body != b"hello":
            raise Broken(f"{server.name}, {path}: {body[:200]!r}")


def _lines(found: dict[tuple[str, str], list[float]]) -> Iterator[Line | Note]:
    bound = found["bare", SHAPES[0]]
    for view, (title, target) in VIEWS.items():
        own = found["trio_asgi", view]
        for other, against in (
            ("uvicorn", "uvicorn with uvloop"),
            ("hypercorn", "hypercorn's asyncio worker"),
        ):
            yield Line(
                f"{title} / {against}",
                [us / them for us, them in zip(own, found[other, view], strict=True)],
                target=target if other == "uvicorn" else None,
                facts={"view": view, "against": other},
            )
        yield Line(
            "    of the maximum under hypercorn's Trio worker",
            [100 * us / most for us, most in zip(own, bound, strict=True)],
            unit="%",
            facts={"view": view, "against": "bare"},
        )
        rates = {name: found[name, view] for name in SERVERS if name != "bare"}
        figures = ", ".join(f"{name} {middle(rate)}" for name, rate in rates.items())
        yield Note(
            f"    requests a second: {figures}", facts={"view": view, "rates": rates}
        )
    shapes = {path: rate for (name, path), rate in found.items() if name == "bare"}
    for path, rate in shapes.items():
        messages, size = path.split("x")
        yield Line(
            f"bare application: {messages} message(s) of {size} bytes",
            rate,
            unit=" r/s",
            facts={"shape": path},
        )

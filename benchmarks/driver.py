"""Requests, made in the process of the application: no server, no socket.

The driver's own cost for a request (about two microseconds) is added to that of each
candidate, so it is kept small, and the same for both loops. One object is a request's
``receive`` and ``send``. It behaves as a server does: it gives an empty body, then
waits, and reports the disconnect once the response is complete.

As many tasks as the concurrency says call the application, each one request after the
other. The time is from the first request's start to the last one's end, so requests
that are under way when the time is up count with all of their time.
"""

from __future__ import annotations

import gc
import io
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from loops import Loop

#: As hypercorn passes on a browser's.
HEADERS = (
    (b"host", b"127.0.0.1:8000"),
    (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101"),
    (b"accept", b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
    (b"accept-language", b"en-US,en;q=0.5"),
    (b"accept-encoding", b"gzip, deflate, br"),
    (b"connection", b"keep-alive"),
)

OK = 200
_REQUEST = {"type": "http.request", "body": b"", "more_body": False}
_DISCONNECT = {"type": "http.disconnect"}


def make_scope(path: str, cookie: str = "") -> dict[str, Any]:
    """Return the scope of a GET request."""
    cookies = [(b"cookie", cookie.encode("ascii"))] if cookie else []
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("ascii"),
        "query_string": b"",
        "root_path": "",
        "headers": [*HEADERS, *cookies],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
        "extensions": {},
    }


def make_environ(path: str, cookie: str = "") -> dict[str, Any]:
    """Return the environment of the same request under WSGI."""
    headers = {
        f"HTTP_{name.decode('ascii').upper().replace('-', '_')}": value.decode("ascii")
        for name, value in make_scope(path, cookie)["headers"]
    }
    return {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        **headers,
    }


class WrongAnswer(Exception):  # noqa: N818 - it is the answer that is wrong
    """An application gave a wrong answer: no measurement counts."""


class _Link:
    """One request's ``receive`` and ``send``."""

    __slots__ = ("_left", "_make_event", "_requested", "body", "complete", "status")

    def __init__(self, make_event: Callable[[], Any]) -> None:
        self._make_event = make_event
        self._requested = False
        self._left: Any = None
        self.status = 0
        self.body = b""
        self.complete = False

    async def receive(self) -> dict[str, Any]:
        if not self._requested:
            self._requested = True
            return _REQUEST
        if not self.complete:
            self._left = self._make_event()
            await self._left.wait()
        return _DISCONNECT

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        self.body += message.get("body", b"")
        if not message.get("more_body", False):
            self.complete = True
            if self._left is not None:
                self._left.set()


class _Stopwatch:
    """Measures how much time this process takes for something."""

    def __init__(self) -> None:
        """Start, without garbage that was left before."""
        gc.collect()
        self._cpu = time.process_time()
        self._own_cpu = time.thread_time()
        self._start = time.perf_counter()

    def stop(self, requests: int) -> dict[str, float]:
        """Return the time, and the CPU time of all threads and of this one."""
        return {
            "requests": requests,
            "seconds": time.perf_counter() - self._start,
            "cpu": time.process_time() - self._cpu,
            "own_cpu": time.thread_time() - self._own_cpu,
        }


class Load:
    """Requests of one kind to an ASGI application."""

    def __init__(
        self,
        loop: Loop,
        app: Callable[..., Awaitable[None]],
        scope: dict[str, Any],
        body: str | None,
    ) -> None:
        """Expect this body; None means any."""
        self._loop = loop
        self._app = app
        self._scope = scope
        self._body = None if body is None else body.encode()

    async def request(self) -> bytes:
        """Make one request, and return the body.

        Raises:
            WrongAnswer: the answer is not the expected one.
        """
        link = _Link(self._loop.make_event)
        await self._app(dict(self._scope), link.receive, link.send)
        if link.status != OK or not link.complete:
            raise WrongAnswer(f"{self._scope['path']}: {link.status} {link.body!r}")
        if self._body not in (None, link.body):
            raise WrongAnswer(f"{self._scope['path']}: {link.body!r}")
        return link.body

    async def run_for(self, concurrency: int, seconds: float) -> dict[str, float]:
        """Make requests for some time; return their number, and their cost."""
        count = 0
        clock = time.perf_counter

        async def visitor() -> None:
            nonlocal count
            while clock() < end:
                await self.request()
                count += 1

        stopwatch = _Stopwatch()
        end = clock() + seconds
        await self._loop.together([visitor] * concurrency)
        return stopwatch.stop(count)

    async def run_count(self, concurrency: int, count: int) -> list[bytes]:
        """Make so many requests; return the bodies."""
        bodies: list[bytes] = []
        left = count

        async def visitor() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                bodies.append(await self.request())

        await self._loop.together([visitor] * concurrency)
        return bodies


class SyncLoad:
    """The same under WSGI: one request after the other, in this thread."""

    def __init__(
        self, app: Callable[..., Any], environ: dict[str, Any], body: str
    ) -> None:
        """Expect this body."""
        self._app = app
        self._environ = environ
        self._body = body.encode()

    def request(self) -> None:
        """Make one request.

        Raises:
            WrongAnswer: the answer is not the expected one.
        """
        environ = dict(self._environ)
        environ["wsgi.input"] = environ["wsgi.errors"] = io.BytesIO()
        seen = ""

        def start_response(status: str, _headers: list[tuple[str, str]]) -> None:
            nonlocal seen
            seen = status

        response = self._app(environ, start_response)
        body = b"".join(response)
        response.close()
        if seen != "200 OK" or body != self._body:
            raise WrongAnswer(f"{environ['PATH_INFO']}: {seen} {body!r}")

    def run_for(self, seconds: float) -> dict[str, float]:
        """Make requests for some time; return their number, and their cost."""
        count = 0
        clock = time.perf_counter
        stopwatch = _Stopwatch()
        end = clock() + seconds
        while clock() < end:
            self.request()
            count += 1
        return stopwatch.stop(count)

    def run_count(self, count: int) -> None:
        """Make so many requests."""
        for _ in range(count):
            self.request()

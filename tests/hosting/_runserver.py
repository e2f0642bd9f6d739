"""A small project, and its ``manage.py runserver`` in a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import sys
import termios
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

import trio_asgi

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Only something that hangs takes longer.
PATIENCE = float(os.environ.get("PATIENCE", "60"))

_ENVIRONMENT = {
    **{key: os.environ[key] for key in os.environ if not key.startswith("DJANGO")},
    "PYTHONPATH": os.pathsep.join(
        filter(
            None,
            [
                str(Path(trio_asgi.__file__).parents[1]),
                os.environ.get("PYTHONPATH"),
            ],
        )
    ),
    "PYTHONDONTWRITEBYTECODE": "1",
    "DJANGO_SETTINGS_MODULE": "settings",
    "PYTHON_COLORS": "0",  # pdb's, and those of tracebacks
    "TERM": "xterm",
    "COLUMNS": "80",
}

#: The project's files.
FILES = {
    "manage.py": """
import os, sys
from django.core.management import execute_from_command_line

if "WITHOUT_HYPERCORN" in os.environ:
    sys.modules["hypercorn"] = None
execute_from_command_line()
""",
    "settings.py": """
import os

SECRET_KEY = "runserver"
DEBUG = "NO_DEBUG" not in os.environ
ALLOWED_HOSTS = ["127.0.0.1", "::1"]
INSTALLED_APPS = os.environ.get("APPS", "trio_asgi django.contrib.staticfiles").split()
if "NO_ASGI_APPLICATION" not in os.environ:
    ASGI_APPLICATION = os.environ.get("ASGI_APPLICATION", "asgi.application")
ROOT_URLCONF = "urls"
STATIC_URL = "static/"
STATICFILES_DIRS = [os.path.join(os.path.dirname(__file__), "files")]
""",
    "files/style.css": "body { color: teal }",
    "asgi.py": """
from contextlib import asynccontextmanager
import os, trio
import django
django.setup()
from trio_asgi import ASGIHandler

class Handler(ASGIHandler):
    @asynccontextmanager
    async def lifespan(self):
        if "FAIL" in os.environ:
            raise ValueError("no tea")
        print("lifespan begins", flush=True)
        yield
        with trio.CancelScope(shield=True):
            if "STUCK" in os.environ:
                await trio.sleep_forever()
            # More than the quarter of a second after which Django kills the process.
            await trio.sleep(0.3)
        print("lifespan ends", flush=True)

application = Handler()
""",
    "urls.py": """
from django.urls import path
import views

NAMES = "hello first second wait events task debug adebug".split()
urlpatterns = [path(name + "/", getattr(views, name)) for name in NAMES]
""",
    "views.py": """
import threading
import trio
from django.http import HttpResponse
from trio_asgi import EventStream

met = {"first": threading.Event(), "second": threading.Event()}

def hello(request):
    return HttpResponse("hello")

def first(request):
    met["first"].set()
    assert met["second"].wait(30)
    return HttpResponse("first")

async def second(request):
    met["second"].set()
    assert await trio.to_thread.run_sync(met["first"].wait, 30)
    return HttpResponse("second")

async def wait(request):
    print("waiting", flush=True)
    await trio.sleep_forever()

async def events(request):
    async def endless():
        yield "event"
        await trio.sleep_forever()

    return EventStream(endless())

async def task(request):
    import asgi
    asgi.application.start_soon(trio.sleep_forever)
    return HttpResponse("started")

def debug(request):
    breakpoint()
    return HttpResponse("debugged")

async def adebug(request):
    breakpoint()
    return HttpResponse("debugged")
""",
    "other/__init__.py": "",
    "other/management/__init__.py": "",
    "other/management/commands/__init__.py": "",
    "other/management/commands/runserver.py": """
from django.core.management.base import BaseCommand

class Command(BaseCommand):
    def handle(self, **options):
        print("the other app's runserver")
""",
}


def write_project(directory: Path) -> Path:
    """Write the project's files into a directory."""
    for name, text in FILES.items():
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return directory


class Terminal:
    """A command of ``manage.py`` in a pseudo-terminal. Only `manage` makes one."""

    def __init__(self, project: Path, *arguments: str, **env: str) -> None:
        command = [sys.executable, "-X", "dev", "manage.py", *arguments]
        self.project = project
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            # A shell starts programs in the background with it ignored.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.chdir(project)
            os.execve(sys.executable, command, {**_ENVIRONMENT, **env})  # noqa: S606
        self.modes_at_start = self.modes
        self.output = ""
        self._seen = 0
        self._status: int | None = None
        self._clients: list[httpx.Client] = []

    @property
    def modes(self) -> list[Any]:
        """Whether the terminal shows what is typed, and more."""
        return termios.tcgetattr(self._terminal)

    def _read(self, seconds: float) -> bool:
        """Read what comes in time; return whether there may be more."""
        if not select.select([self._terminal], [], [], seconds)[0]:
            return True
        try:
            found = os.read(self._terminal, 65536)
        except OSError:  # on Linux, that no process has the terminal any more
            return False
        self.output += found.decode()
        return bool(found)

    def saw(self, pattern: str) -> re.Match[str] | None:
        """Look for text behind what was found last, and go behind it."""
        found = re.compile(pattern).search(self.output, self._seen)
        if found is not None:
            self._seen = found.end()
        return found

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait for text behind what was found last."""
        deadline = time.monotonic() + PATIENCE
        while (found := self.saw(pattern)) is None:
            ended = not self._read(0.1)
            assert time.monotonic() < deadline, (pattern, self.output)
            assert not ended or re.search(pattern, self.output[self._seen :]), (
                f"ended without {pattern!r}: {self.output}"
            )
        return found

    def type(self, keys: str) -> None:
        """Type keys; ``"\\x03"`` is Ctrl-C."""
        os.write(self._terminal, keys.encode())

    def wait_for_end(self) -> int:
        """Wait until the process has ended; return its exit status."""
        deadline = time.monotonic() + PATIENCE
        while self._read(0.05):
            assert time.monotonic() < deadline, f"does not end: {self.output}"
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
        else:
            status = os.waitpid(self.pid, 0)[1]
        while select.select([self._terminal], [], [], 0)[0] and self._read(0):
            pass
        self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def close(self) -> None:
        """Kill all that still runs."""
        for client in self._clients:
            client.close()
        if self._status is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._terminal)

    # runserver

    def wait_until_serving(self) -> httpx.Client:
        """Wait for the address, and for the lifespan; return a client."""
        url = self.wait_for(r"development server at (http://\S+)/\r\n")[1]
        self.wait_for("lifespan begins")
        client = httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False)
        self._clients.append(client)
        return client

    def edit(self, name: str, old: str, new: str) -> None:
        """Edit a file, and wait until the server notices."""
        file = self.project / name
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))
        # The reloader may look at the file for the first time after it was edited: then
        # it has to see a later time.
        modified = file.stat().st_mtime
        deadline = time.monotonic() + PATIENCE
        again = time.monotonic() + 1.5
        while not self.saw(f"{name} changed, reloading"):
            assert time.monotonic() < deadline, self.output
            self._read(0.1)
            if time.monotonic() > again:
                again += 1.5
                modified += 1
                os.utime(file, (modified, modified))


@contextmanager
def manage(project: Path, *arguments: str, **env: str) -> Iterator[Terminal]:
    """Run a command of ``manage.py``, and end it."""
    terminal = Terminal(project, *arguments, **env)
    try:
        yield terminal
    finally:
        terminal.close()
    # As with -X dev: of a socket that is not closed, say.
    assert not re.search("[a-z]Warning", terminal.output), terminal.output

"""The documentation's Python code runs, and does what the pages say.

A block's caption names the file that it belongs to: ``mysite/views.py`` is the module
``mysite.views``, and blocks of the same caption continue it. A block without a caption
belongs to the page itself. The examples meet the package as a project's own code does.
"""

from __future__ import annotations

import json
import re
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import trio
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connections
from django.http import HttpResponse
from django.test import override_settings
from django.urls import path

import trio_asgi
from project_support import counts, run_pytest, run_python
from support import application, http_scope, request
from trio_asgi import conf
from trio_asgi._worker import current_pool
from trio_asgi.testing import ApplicationCommunicator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from django.http import HttpRequest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_CODE = {
    "README.md",
    "docs/tutorial.md",
    "docs/howto/deployment.md",
    "docs/howto/from-asyncio.md",
    "docs/howto/islands.md",
    "docs/howto/testing.md",
    "docs/howto/threads-and-connections.md",
    "docs/howto/trio-program.md",
}

_BLOCK = re.compile(
    r"^```(?:python|\{code-block\} python)\n"
    r"(?P<options>(?::[^\n]*\n)*)(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_CAPTION = re.compile(r"^:caption: (?P<file>\S+)\.py$", re.MULTILINE)


def code_of(page: Path) -> Iterator[tuple[str, str]]:
    """Yield each Python block: the module that it belongs to, and the code.

    Empty lines before the code keep the line numbers of the page.
    """
    text = page.read_text(encoding="utf-8")
    for block in _BLOCK.finditer(text):
        caption = _CAPTION.search(block["options"])
        name = caption["file"].replace("/", ".") if caption else "page"
        yield name, "\n" * text[: block.start("code")].count("\n") + block["code"]


Site = dict[str, Any]


@pytest.fixture
def execute(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Site]]:
    """Run a page's code, and return the values of all names of its modules."""
    overrides: list[override_settings] = []

    def run(page_name: str) -> Site:
        page = ROOT / page_name
        modules: dict[str, ModuleType] = {}
        for name, code in code_of(page):
            if name not in modules:
                modules[name] = module = ModuleType(name)
                monkeypatch.setitem(sys.modules, name, module)
                package = name.rpartition(".")[0]
                if package and package not in sys.modules:
                    monkeypatch.setitem(sys.modules, package, ModuleType(package))
            exec(compile(code, page, "exec"), vars(modules[name]))  # noqa: S102
        if "mysite.urls" in modules:
            overrides.append(override_settings(ROOT_URLCONF="mysite.urls"))
            overrides[-1].enable()
        return {
            name: value
            for module in modules.values()
            for name, value in vars(module).items()
        }

    yield run
    for override in overrides:
        override.disable()


@pytest.fixture
async def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the views a database that all threads share."""
    monkeypatch.setitem(
        connections.databases["default"], "NAME", str(tmp_path / "db.sqlite3")
    )
    await sync_to_async(call_command)("migrate", verbosity=0)


@asynccontextmanager
async def running(app: trio_asgi.ASGIHandler) -> AsyncIterator[None]:
    """Start an application as a server does, and shut it down."""
    async with ApplicationCommunicator(app, {"type": "lifespan"}) as server:
        await server.send_input({"type": "lifespan.startup"})
        assert (await server.receive_output())["type"] == "lifespan.startup.complete"
        yield
        await server.send_input({"type": "lifespan.shutdown"})
        assert (await server.receive_output())["type"] == "lifespan.shutdown.complete"


def test_all_pages_with_code_are_run() -> None:
    """A page gets Python code only together with a test in this file."""
    with_code = {
        page.relative_to(ROOT).as_posix() for page in PAGES if any(code_of(page))
    }
    assert with_code == WITH_CODE


async def test_readme(execute: Callable[[str], Site]) -> None:
    """README: the view answers with what has come before its deadline."""
    shops = {"corner": 3, "market": 2, "palace": None}

    async def ask(shop: str) -> int:
        price = shops[shop]
        if price is None:
            await trio.sleep_forever()
        return price

    site = execute("README.md")
    site["prices"].__globals__.update(SHOPS=list(shops), ask=ask)
    answer = await request(application(path("", site["prices"])))
    assert json.loads(answer.body) == {"corner": 3, "market": 2}


async def test_tutorial_views(
    execute: Callable[[str], Site], database: None, autojump_clock: trio.abc.Clock
) -> None:
    """Tutorial: the views answer as the page says."""
    app = execute("docs/tutorial.md")["application"]
    assert (await request(app, "/hello/")).body == b"Hello, you are number 0.\n"
    answer = await request(app, "/weather/")
    assert answer.body == b'{"Oslo": "12 degrees", "Rome": "24 degrees"}'


async def test_tutorial_disconnect(
    execute: Callable[[str], Site], database: None, autojump_clock: trio.abc.Clock
) -> None:
    """Tutorial: a client that leaves cancels the view, whose clean-up ends."""
    site = execute("docs/tutorial.md")
    scope = http_scope("/watch/")
    async with ApplicationCommunicator(site["application"], scope) as communicator:
        await communicator.send_input({"type": "http.request"})
        assert await communicator.receive_nothing(5)
        assert site["watching"] == {"127.0.0.1"}
        await communicator.send_input({"type": "http.disconnect"})
        await communicator.wait()
    assert site["watching"] == set()


async def test_tutorial_events(
    execute: Callable[[str], Site], database: None, autojump_clock: trio.abc.Clock
) -> None:
    """Tutorial: the stream sends an event each second, until the client leaves."""
    app = execute("docs/tutorial.md")["application"]
    async with ApplicationCommunicator(app, http_scope("/events/")) as communicator:
        await communicator.send_input({"type": "http.request"})
        start = await communicator.receive_output()
        assert (b"Content-Type", b"text/event-stream") in start["headers"]
        for number in range(3):
            event = await communicator.receive_output(timeout=2)
            assert event["body"] == f"id: {number}\ndata: tick\n\n".encode()
        await communicator.send_input({"type": "http.disconnect"})
        await communicator.wait()


async def test_tutorial_background(
    execute: Callable[[str], Site], database: None
) -> None:
    """Tutorial: the task outlives its request; the lifespan keeps its own task."""
    site = execute("docs/tutorial.md")
    app = site["application"]
    async with running(app):
        assert (await request(app, "/order/", method="POST")).status == 202
        # Its end is in time for the shutdown, which waits for it.
        assert site["sent"] == []
    assert site["sent"] == ["receipt"]
    assert site["rates"] == {"minutes": 1}


async def test_deployment(execute: Callable[[str], Site]) -> None:
    """Deployment: the settings that the page shows are allowed."""
    site = execute("docs/howto/deployment.md")
    with override_settings(TRIO_ASGI=site["TRIO_ASGI"]):
        assert [*conf.problems()] == []
    assert site["DATABASES"]["default"]["CONN_MAX_AGE"] == 60


async def test_threads_declared_hooks(execute: Callable[[str], Site]) -> None:
    """Threads: with the page's middleware an async view takes no thread."""
    site = execute("docs/howto/threads-and-connections.md")

    async def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse("body")

    app = application(path("", view), middleware=site["MIDDLEWARE"])
    answer = await request(app)
    assert dict(answer.headers)[b"Server-Timing"].startswith(b"django;dur=")
    assert current_pool().workers == set()


async def test_threads_settings(execute: Callable[[str], Site]) -> None:
    """Threads: the settings that the page shows are allowed."""
    site = execute("docs/howto/threads-and-connections.md")
    with override_settings(TRIO_ASGI=site["TRIO_ASGI"]):
        assert [*conf.problems()] == []


async def test_threads_release(
    execute: Callable[[str], Site], database: None, autojump_clock: trio.abc.Clock
) -> None:
    """Threads: the view that waits holds no thread, and sees who has come."""
    execute("docs/howto/threads-and-connections.md")
    app = trio_asgi.get_asgi_application()
    async with ApplicationCommunicator(app, http_scope("/newcomers/")) as communicator:
        await communicator.send_input({"type": "http.request"})
        assert await communicator.receive_nothing(7)
        # The request's, and the one of this test's own calls.
        assert len(current_pool()._idle) == len(current_pool().workers) - 1
        await User.objects.acreate(username="new")
        assert (await communicator.receive_output(timeout=6))["status"] == 200
        body = (await communicator.receive_output())["body"]
    assert body == b'{"newcomers": 1}'


async def test_threads_release_in_a_stream(
    execute: Callable[[str], Site], database: None, autojump_clock: trio.abc.Clock
) -> None:
    """Threads: the stream holds no thread between its parts."""
    execute("docs/howto/threads-and-connections.md")
    app = trio_asgi.get_asgi_application()
    async with ApplicationCommunicator(app, http_scope("/events/")) as communicator:
        await communicator.send_input({"type": "http.request"})
        assert (await communicator.receive_output())["status"] == 200
        for _ in range(2):
            event = await communicator.receive_output(timeout=6)
            assert event["body"] == b"data: 0\n\n"
            assert len(current_pool()._idle) == len(current_pool().workers) - 1
        await communicator.send_input({"type": "http.disconnect"})
        await communicator.wait()


async def test_trio_program(execute: Callable[[str], Site]) -> None:
    """Trio program: serve() is started and stopped, and calls stay in the process."""
    pytest.importorskip("hypercorn")
    site = execute("docs/howto/trio-program.md")
    app = trio_asgi.get_asgi_application()
    with trio.fail_after(20):
        assert await site["ask"](app) == "Hello World!"
        async with trio.open_nursery() as nursery:
            stop = trio.Event()
            nursery.start_soon(site["main"], app, stop)
            stop.set()


@pytest.fixture
def testing_project(tmp_path: Path) -> Path:
    """Make the project that the page on testing shows, file by file."""
    captioned = re.compile(
        r"^```\{code-block\} \w+\n:caption: (\S+)\n\n(.*?)^```$",
        re.MULTILINE | re.DOTALL,
    )
    text = (ROOT / "docs/howto/testing.md").read_text(encoding="utf-8")
    files = dict(captioned.findall(text))
    # What startproject and startapp make, and the page leaves out.
    files["mysite/settings.py"] += """
SECRET_KEY = "for the tests alone"
ROOT_URLCONF = "mysite.urls"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
"""
    files["books/models.py"] = """
from django.db import models


class Book(models.Model):
    title = models.CharField(max_length=50)
"""
    for package in ("mysite", "books"):
        files[f"{package}/__init__.py"] = ""
    for name, code in files.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(code, encoding="utf-8")
    return tmp_path


def test_testing_by_pytest(testing_project: Path) -> None:
    """Testing: all tests of the page pass by pytest."""
    pytest.importorskip("hypercorn")
    done = run_pytest(testing_project, "-W", "error")
    assert counts(done) == {"passed": 10}, done.stdout + done.stderr


def test_testing_by_django(testing_project: Path) -> None:
    """Testing: the test case of the page passes by Django's runner."""
    options = ("--settings", "mysite.settings")
    done = run_python(
        testing_project, "-W", "error", "-m", "django", "test", "books", *options
    )
    assert done.returncode == 0, done.stderr
    assert "Ran 2 tests" in done.stderr


async def test_from_asyncio(
    execute: Callable[[str], Site], autojump_clock: trio.abc.Clock
) -> None:
    """From asyncio: each view of the page does what is written beside it."""
    site = execute("docs/howto/from-asyncio.md")
    app = trio_asgi.get_asgi_application()
    assert (await request(app, "/missing/")).status == 404
    answer = await request(app, "/slow/")
    assert (answer.status, answer.body) == (504, b"Too slow")

    async with ApplicationCommunicator(app, http_scope("/lock/")) as communicator:
        await communicator.send_input({"type": "http.request"})
        assert await communicator.receive_nothing()
        await communicator.send_input({"type": "http.disconnect"})
        await communicator.wait()
    assert site["released"] == ["lock"]


@pytest.mark.usefixtures("autojump_clock")
async def test_islands(execute: Callable[[str], Site]) -> None:
    """Islands: the views of the page, one by one and as a whole project."""
    execute("docs/howto/islands.md")
    app = trio_asgi.get_asgi_application()
    assert (await request(app, "/both/")).body == b"one and two"
    assert (await request(app, "/single/")).body == b"one"
    assert (await request(app, "/back/")).body == b"0.01"
    assert (await request(app, "/moved/")).body == b"on Trio"
    assert (await request(app, "/not-yet/")).status == 500
    with override_settings(TRIO_ASGI={"ASYNCIO_VIEWS": True}):
        app = trio_asgi.get_asgi_application()
        assert (await request(app, "/both/")).body == b"one and two"
        assert (await request(app, "/moved/")).body == b"on Trio"
        assert (await request(app, "/not-yet/")).body == b"on asyncio"
        assert (await request(app, "/streaming/")).body == b"0 1 2 "

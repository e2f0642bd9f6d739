"""The documentation's Python code runs, and works as the pages say.

A block's caption names its file: ``mysite/views.py`` is the module ``mysite.views``,
and blocks of the same caption continue it. A block without a caption belongs to the
page itself. The examples meet the package as a project's own code does.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import json
import re
import sys
import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.contrib.staticfiles.storage import staticfiles_storage
from django.core.management import call_command
from django.db import connections, models
from django.http import HttpResponse, StreamingHttpResponse
from django.middleware.csrf import get_token
from django.test import RequestFactory, override_settings
from django.test.utils import isolate_apps
from django.urls import path
from hypercorn.config import Config
from websockets.sync.client import connect as connect_websocket

import trio_asgi
from event_stream_parser import Dispatched, EventStreamParser
from hop_support import STARTPROJECT
from hosting._hosts import HOSTS
from hosting._server import serve
from multipart_support import END, field_part, file_part, form_headers, form_request
from project_support import counts, run_pytest, run_python
from support import application, http_scope, receive_answer, request
from trio_asgi import conf
from trio_asgi.testing import ApplicationCommunicator
from trio_asgi.threads.current import current_pool
from trio_asgi.uploads import StorageUploadedFile, StorageUploadHandler

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from django.http import HttpRequest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_CODE = {
    "README.md",
    "docs/design/servers.md",
    "docs/tutorial.md",
    "docs/howto/containers.md",
    "docs/howto/debugging.md",
    "docs/howto/converting.md",
    "docs/howto/deployment.md",
    "docs/howto/files.md",
    "docs/howto/from-asyncio.md",
    "docs/howto/httpx.md",
    "docs/howto/islands.md",
    "docs/howto/logging.md",
    "docs/howto/mounting.md",
    "docs/howto/packages.md",
    "docs/howto/servers.md",
    "docs/howto/server-sent-events.md",
    "docs/howto/streaming.md",
    "docs/howto/testing.md",
    "docs/howto/threads-and-connections.md",
    "docs/howto/transactions.md",
    "docs/howto/trio-program.md",
    "docs/howto/uploads.md",
}

_BLOCK = re.compile(
    r"^```(?:python|\{code-block\} python)\n"
    r"(?P<options>(?::[^\n]*\n)*)(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_CAPTION = re.compile(r"^:caption: (?P<file>\S+)\.py$", re.MULTILINE)


def code_of(page: Path) -> Iterator[tuple[str, str]]:
    """Yield each Python block: its module, and the code.

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
    """A page may have Python code only together with a test in this file."""
    with_code = {
        page.relative_to(ROOT).as_posix() for page in PAGES if any(code_of(page))
    }
    assert with_code == WITH_CODE


async def test_readme(execute: Callable[[str], Site]) -> None:
    """README: the view answers with what has arrived before its deadline."""
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
    assert (await request(app, "/hello/")).body == b"Hello! We have 0 users.\n"
    answer = await request(app, "/weather/")
    assert answer.body == b'{"Oslo": "12 degrees", "Rome": "24 degrees"}'


async def test_tutorial_disconnect(
    execute: Callable[[str], Site], database: None, autojump_clock: trio.abc.Clock
) -> None:
    """Tutorial: a disconnect cancels the view, whose clean-up ends."""
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
    """Tutorial: the stream sends an event each second, until the client disconnects."""
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
        # It ends in time for the shutdown, which waits for it.
        assert site["sent"] == []
    assert site["sent"] == ["receipt"]
    assert site["rates"] == {"minutes": 1}


#: Each block of ``asgi.py``, by its page and number; a reader pastes it as a file.
ASGI_FILES = {
    f"{page.stem} {number}": (page, code)
    for page in PAGES
    for number, code in enumerate(
        [code for name, code in code_of(page) if name == "mysite.asgi"], 1
    )
}


@pytest.mark.parametrize(("page", "code"), ASGI_FILES.values(), ids=ASGI_FILES)
def test_asgi_files(tmp_path: Path, page: Path, code: str) -> None:
    """Each block of asgi.py works as the whole file, in a new project."""
    run_python(tmp_path, "-m", "django", "startproject", "mysite", ".")
    # With the page's other new modules, which it may import.
    files = {f"{name.replace('.', '/')}.py": other for name, other in code_of(page)}
    new = {file for file in files if not (tmp_path / file).exists()} - {"page.py"}
    write_files(tmp_path, {file: files[file] for file in new})
    write_files(tmp_path, {"mysite/asgi.py": code})
    serve_once = """
import trio
from mysite.asgi import application
from trio_asgi.testing import ApplicationCommunicator, http_scope

async def main():
    async with ApplicationCommunicator(application, {"type": "lifespan"}) as server:
        await server.send_input({"type": "lifespan.startup"})
        print((await server.receive_output())["type"])
        scope = http_scope("/", headers={"host": "localhost"})
        async with ApplicationCommunicator(application, scope) as client:
            await client.send_input({"type": "http.request"})
            print((await client.receive_output())["status"])

trio.run(main)
"""
    done = run_python(tmp_path, "-c", serve_once)
    assert done.stdout.split() == ["lifespan.startup.complete", "200"], done.stderr


async def test_converting(execute: Callable[[str], Site]) -> None:
    """Converting: the views answer before and after."""
    site = execute("docs/howto/converting.md")
    app = application(
        path("before/", site["prices"]),
        path("after/", site["prices_on_trio"]),
        middleware=["mysite.middleware.limit"],
    )
    answers = [
        json.loads((await request(app, address)).body)
        for address in ("/before/", "/after/")
    ]
    prices = ["The price at north", "The price at south"]
    assert answers == [{"prices": prices}, {"prices": prices}]


def test_converting_settings(tmp_path: Path) -> None:
    """Converting: the checks have nothing to say of the settings that it leads to."""
    blocks = [
        code
        for page in ("docs/howto/converting.md", "docs/howto/logging.md")
        for name, code in code_of(ROOT / page)
        if name == "mysite.settings"
    ]
    settings = "\n".join([*blocks, 'SECRET_KEY = "for the tests alone"'])
    write_files(tmp_path, {"mysite/settings.py": settings})
    options = ("--settings", "mysite.settings", "--tag", "trio_asgi")
    command = ("-m", "django", "check", *options, "--fail-level", "INFO")
    done = run_python(tmp_path, *command)
    assert done.returncode == 0, done.stderr


async def test_deployment(execute: Callable[[str], Site]) -> None:
    """Deployment: the page's settings are valid."""
    try:
        site = execute("docs/howto/deployment.md")
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
    with override_settings(TRIO_ASGI=site["TRIO_ASGI"]):
        assert [*conf.problems()] == []
    assert site["DATABASES"]["default"]["CONN_MAX_AGE"] == 60


async def test_containers(execute: Callable[[str], Site]) -> None:
    """Containers: the first check needs no thread, the second one asks the database."""
    site = execute("docs/howto/containers.md")
    app = application(*site["urlpatterns"], middleware=())
    assert (await request(app, "/health/alive/")).status == 200
    assert current_pool().workers == set()
    assert (await request(app, "/health/ready/")).status == 200
    assert len(current_pool().workers) == 1


@pytest.fixture
async def service(nursery: trio.Nursery) -> AsyncIterator[Service]:
    """Serve another site in this program, with one view that waits."""
    pytest.importorskip("hypercorn")
    started, left = trio.Event(), trio.Event()

    async def price(request: HttpRequest) -> HttpResponse:
        return HttpResponse("4", content_type="application/json")

    async def parts() -> AsyncIterator[bytes]:
        try:
            yield b"token "
            started.set()
            await trio.sleep_forever()
        finally:
            left.set()

    async def tokens(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(parts())

    app = application(path("price/", price), path("tokens/", tokens))
    serving = functools.partial(trio_asgi.serve, bind="127.0.0.1:0")
    [address] = await nursery.start(serving, app)
    yield Service(address, started, left)
    nursery.cancel_scope.cancel()


@dataclass
class Service:
    """A site that the page's views ask."""

    address: str
    started: trio.Event
    left: trio.Event


async def test_httpx(execute: Callable[[str], Site], service: Service) -> None:
    """httpx: one client asks a service over the network, and closes at the end."""
    site = execute("docs/howto/httpx.md")
    site["SHOPS"].update(
        corner=f"{service.address}/price/", market=f"{service.address}/missing/"
    )
    app = site["application"]
    async with running(app):
        answer = await request(app, "/prices/")
        client = site["get_client"]()
    assert json.loads(answer.body) == {
        "corner": 4,
        "market": "not available: HTTPStatusError",
    }
    assert client.is_closed
    with pytest.raises(RuntimeError, match="is not open"):
        site["get_client"]()


async def test_httpx_deadline(execute: Callable[[str], Site], service: Service) -> None:
    """httpx: a view answers when its time is up, and keeps no connection."""
    site = execute("docs/howto/httpx.md")
    site["SHOPS"].clear()
    site["SHOPS"].update(market=f"{service.address}/tokens/")
    site["prices"].__globals__["SECONDS"] = 0.1
    app = site["application"]
    async with running(app):
        assert (await request(app, "/prices/")).body == b"{}"
        assert site["get_client"]()._transport._pool.connections == []


async def test_httpx_stream(execute: Callable[[str], Site], service: Service) -> None:
    """httpx: a visitor that leaves a stream stops the service, and frees its place."""
    site = execute("docs/howto/httpx.md")
    site["tokens"].__globals__["UPSTREAM"] = f"{service.address}/tokens/"
    app = site["application"]
    async with running(app):
        async with ApplicationCommunicator(app, http_scope("/tokens/")) as visitor:
            await visitor.send_input({"type": "http.request"})
            assert (await visitor.receive_output())["status"] == 200
            assert (await visitor.receive_output())["body"] == b"token "
            await service.started.wait()
            await visitor.send_input({"type": "http.disconnect"})
            await visitor.wait()
        assert site["get_client"]()._transport._pool.connections == []
        with trio.fail_after(20):
            await service.left.wait()


async def test_httpx_tests(execute: Callable[[str], Site]) -> None:
    """httpx: the page's own test passes."""
    await execute("docs/howto/httpx.md")["test_prices"]()


async def test_debugging(execute: Callable[[str], Site]) -> None:
    """Debugging: the page is there, and the view's figures are."""
    site = execute("docs/howto/debugging.md")
    app = application(middleware=STARTPROJECT)
    assert (await request(app, "/__tasks__/")).status == 302
    answer = await request(application(path("", site["metrics"])))
    assert answer.body.splitlines()[0] == b"mysite_requests 0"


async def test_streaming(
    execute: Callable[[str], Site], autojump_clock: trio.abc.Clock
) -> None:
    """Streaming: each of the three streams is complete."""
    site = execute("docs/howto/streaming.md")
    app = application(
        path("numbers/", site["numbers"]),
        path("countdown/", site["countdown"]),
        path("compare/", site["compare"]),
        middleware=(),
    )
    assert (await request(app, "/countdown/")).parts[:3] == [b"3\n", b"2\n", b"1\n"]
    assert trio.current_time() >= 3
    prices = (await request(app, "/compare/")).body.decode().splitlines()
    assert sorted(prices) == ["north: 3.20", "south: 3.20", "west: 3.20"]
    rows = (await request(app, "/numbers/")).body.splitlines()
    assert len(rows) == 1_000_000
    assert rows[-1] == b"999999,999998000001"


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
    """Threads: the page's settings are valid."""
    site = execute("docs/howto/threads-and-connections.md")
    with override_settings(TRIO_ASGI=site["TRIO_ASGI"]):
        assert [*conf.problems()] == []


async def test_threads_release(
    execute: Callable[[str], Site], database: None, autojump_clock: trio.abc.Clock
) -> None:
    """Threads: the waiting view holds no thread, and sees the new arrival."""
    execute("docs/howto/threads-and-connections.md")
    app = trio_asgi.get_asgi_application()
    async with ApplicationCommunicator(app, http_scope("/newcomers/")) as communicator:
        await communicator.send_input({"type": "http.request"})
        assert await communicator.receive_nothing(7)
        # The request's thread, and that of this test's own calls.
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


@isolate_apps("django.contrib.auth")
async def test_transactions(
    execute: Callable[[str], Site], database: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transactions: an order is placed whole, or not at all; its receipt follows it."""

    class Cup(models.Model):  # noqa: DJ008 - as short as can be
        stock = models.IntegerField()

        class Meta:
            app_label = "shop"

    class Order(models.Model):  # noqa: DJ008
        cup = models.ForeignKey(Cup, models.CASCADE)

        class Meta:
            app_label = "shop"

    def create_tables() -> None:
        with connections["default"].schema_editor() as editor:
            editor.create_model(Cup)
            editor.create_model(Order)
        Cup._default_manager.create(stock=1)

    await sync_to_async(create_tables)()
    module: Any = ModuleType("shop.models")
    module.Cup, module.Order = Cup, Order
    monkeypatch.setitem(sys.modules, "shop", ModuleType("shop"))
    monkeypatch.setitem(sys.modules, "shop.models", module)
    site = execute("docs/howto/transactions.md")
    app = application(path("<int:cup_id>/", site["order"]))
    async with running(app):
        assert (await request(app, "/1/")).status == 201
        assert (await request(app, "/1/")).status == 409
        with trio.fail_after(10):
            while not site["sent"]:
                await trio.lowlevel.checkpoint()
    assert site["sent"] == ["a receipt for order 1"]
    assert await Order._default_manager.acount() == 1
    count = await site["count_queries"](lambda _: Cup._default_manager.aget(), None)
    assert count == 1


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


def files_of(page_name: str) -> dict[str, str]:
    """Return the files of a page's project, by their captions."""
    captioned = re.compile(
        r"^```\{code-block\} \w+\n:caption: (\S+)\n\n(.*?)^```$",
        re.MULTILINE | re.DOTALL,
    )
    return dict(captioned.findall((ROOT / page_name).read_text(encoding="utf-8")))


def write_files(directory: Path, files: dict[str, str]) -> None:
    """Write a project."""
    for name, code in files.items():
        file = directory / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(code, encoding="utf-8")


PLAIN_ASGI = """
import os

from trio_asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
application = get_asgi_application()
"""
#: The output of startproject, which pages leave out.
SETTINGS = """
SECRET_KEY = "for the tests alone"
ROOT_URLCONF = "mysite.urls"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
"""


@pytest.fixture
def testing_project(tmp_path: Path) -> Path:
    """Make the project from the page on testing, file by file."""
    files = files_of("docs/howto/testing.md")
    # The output of startproject and startapp, which the page leaves out.
    files["mysite/settings.py"] += SETTINGS
    files["books/models.py"] = """
from django.db import models


class Book(models.Model):
    title = models.CharField(max_length=50)
"""
    for package in ("mysite", "books"):
        files[f"{package}/__init__.py"] = ""
    write_files(tmp_path, files)
    return tmp_path


def test_testing_by_pytest(testing_project: Path) -> None:
    """Testing: all tests of the page pass with pytest."""
    pytest.importorskip("hypercorn")
    done = run_pytest(testing_project, "-W", "error")
    assert counts(done) == {"passed": 13}, done.stdout + done.stderr


def test_testing_by_django(testing_project: Path) -> None:
    """Testing: the test cases of the page pass with Django's runner."""
    options = ("--settings", "mysite.settings")
    done = run_python(
        testing_project, "-W", "error", "-m", "django", "test", "books", *options
    )
    assert done.returncode == 0, done.stderr
    assert "Ran 5 tests" in done.stderr


async def test_servers_that_log_twice(
    execute: Callable[[str], Site], tmp_path: Path
) -> None:
    """Design, servers: hypercorn logs the bare application's requests twice."""
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.accesslog = str(tmp_path / "access.log")
    config.access_log_format = "%(s)s"
    app = execute("docs/design/servers.md")["application"]
    async with trio.open_nursery() as nursery:
        (url,) = await nursery.start(partial(trio_asgi.serve, app, config=config))
        for _ in range(20):
            stream = await trio.open_tcp_stream("127.0.0.1", int(url.split(":")[-1]))
            async with stream:
                await stream.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                received = b""
                while not received.endswith(b"hello"):
                    received += await stream.receive_some()
        nursery.cancel_scope.cancel()
    lines = Path(config.accesslog).read_text(encoding="utf-8").splitlines()
    statuses = [line.split()[-1] for line in lines]
    assert statuses.count("200") == 20
    assert "-" in statuses


@pytest.fixture
def mounting_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the project from the page on mounting, with two views."""
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE")
    files = files_of("docs/howto/mounting.md")
    files["mysite/__init__.py"] = ""
    files["mysite/settings.py"] = SETTINGS + 'ALLOWED_HOSTS = ["127.0.0.1"]'
    files["mysite/urls.py"] = """
from pathlib import Path

import trio
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path, reverse


async def view(request):
    await trio.sleep(0)
    return HttpResponse(reverse("view"))


async def parts():
    try:
        yield "part"
        await trio.sleep_forever()
    finally:
        Path("left").touch()


async def stream(request):
    return StreamingHttpResponse(parts())


urlpatterns = [path("view/", view, name="view"), path("stream/", stream)]
"""
    write_files(tmp_path, files)
    return tmp_path


def test_servers_gunicorn(
    mounting_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers: with the page's worker class, gunicorn's requests clean up in time."""
    pytest.importorskip("gunicorn")
    [code] = files_of("docs/howto/servers.md").values()
    code = code.replace("10}", "1}")
    write_files(mounting_project, {"mysite/worker.py": code})
    own = replace(HOSTS["gunicorn"], choice=("--worker-class=mysite.worker.Worker",))
    monkeypatch.setitem(HOSTS, "own", own)
    served, left = "mysite.asgi:application", mounting_project / "left"
    with (
        serve("own", mounting_project, application=served) as server,
        server.connect() as connection,
    ):
        connection.send_request("/stream/")
        connection.read_at_least(1)
        assert server.stop() == 0
        assert left.exists()


FAILING = """
import logging

import trio
from django.http import HttpResponse
from django.urls import path


async def fine(request):
    await trio.sleep(0)
    logging.getLogger("mysite").info("fine")
    return HttpResponse("fine")


async def failing(request):
    await trio.sleep(0)
    raise LookupError("no tea")


urlpatterns = [path("fine/", fine), path("failing/", failing)]
"""


def log_of_failing_site(tmp_path: Path, files: dict[str, str]) -> str:
    """Serve a project with a view that fails; return what the server has printed."""
    files["mysite/__init__.py"] = ""
    files["mysite/settings.py"] += SETTINGS + 'ALLOWED_HOSTS = ["127.0.0.1"]\n'
    files["mysite/urls.py"] = FAILING
    write_files(tmp_path, files)
    served = "mysite.asgi:application"
    with serve("uvicorn", tmp_path, application=served) as server:
        with server.connect() as connection:
            connection.send_request("/failing/")
            assert connection.read_response().status == 500
        assert server.get("/fine/") == b"fine"
        server.stop()
        return server.log


@pytest.mark.parametrize("queued", [False, True], ids=["plain", "queued"])
def test_logging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, queued: bool
) -> None:
    """Logging: errors of production are printed, from another thread with a queue."""
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE")
    files = files_of("docs/howto/logging.md")
    if not queued:
        files["mysite/asgi.py"] = PLAIN_ASGI
    # Where each record is handled, which the page does not show.
    files["mysite/settings.py"] += """
import logging
import threading

class Handler(logging.StreamHandler):
    def emit(self, record):
        self.setFormatter(None)
        super().emit(record)
        if record.name == "mysite":
            print("on the loop:", threading.current_thread() is threading.main_thread())

LOGGING["handlers"]["console"]["class"] = "mysite.settings.Handler"
"""
    log = log_of_failing_site(tmp_path, files)
    assert "Internal Server Error: /failing/\nTraceback" in log
    assert "\nLookupError: no tea\n" in log
    assert f"on the loop: {not queued}" in log


def test_packages_structlog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages: structlog prints JSON, with the id that the middleware binds."""
    pytest.importorskip("structlog")
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE")
    files = files_of("docs/howto/packages.md")
    files["mysite/settings.py"] += 'MIDDLEWARE = ["mysite.middleware.request_id"]\n'
    files["mysite/asgi.py"] = PLAIN_ASGI
    log = log_of_failing_site(tmp_path, files)
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    failed, fine = (
        next(line for line in lines if line["logger"] == name)
        for name in ("django.request", "mysite")
    )
    assert failed["event"] == "Internal Server Error: /failing/"
    assert failed["exception"][0]["exc_type"] == "LookupError"
    assert uuid.UUID(failed["request_id"]) != uuid.UUID(fine["request_id"])


def test_mounting_in_fastapi(mounting_project: Path) -> None:
    """Mounting: FastAPI serves its own route, and Django below its prefix."""
    with serve("uvicorn", mounting_project, application="mysite.main:app") as server:
        assert server.get("/api/tea/green") == b'{"kind":"green"}'
        assert server.get("/site/view/") == b"/site/view/"
        server.stop()
        assert "Traceback" not in server.log


def test_mounting_in_channels(mounting_project: Path) -> None:
    """Mounting: Channels serves WebSockets, and Django the rest."""
    served = "mysite.routing:application"
    with serve("uvicorn", mounting_project, application=served) as server:
        assert server.get("/view/") == b"/view/"
        address = f"ws://127.0.0.1:{server.port}/echo/"
        with connect_websocket(address, proxy=None) as websocket:
            websocket.send("tea")
            assert websocket.recv() == "tea"
        server.stop()
        assert "Traceback" not in server.log


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


async def events_of(
    path: str, count: int, *headers: tuple[bytes, bytes]
) -> list[Dispatched]:
    """Return the first events of a stream of the page, as a browser reads them."""
    app = trio_asgi.get_asgi_application()
    scope = http_scope(path, headers=headers)
    parser = EventStreamParser()
    async with ApplicationCommunicator(app, scope) as communicator:
        await communicator.send_input({"type": "http.request"})
        assert (await communicator.receive_output())["status"] == 200
        while len(parser.events) < count:
            parser.feed((await communicator.receive_output(timeout=20))["body"])
        await communicator.send_input({"type": "http.disconnect"})
        await communicator.wait()
    return parser.events


@pytest.mark.usefixtures("autojump_clock")
async def test_server_sent_events(
    execute: Callable[[str], Site], capsys: pytest.CaptureFixture[str]
) -> None:
    """Server-sent events: what the listeners get, until the browser disconnects."""
    execute("docs/howto/server-sent-events.md")
    assert await events_of("/seconds/", 2) == [
        Dispatched('{"second": 0}'),
        Dispatched('{"second": 1}'),
    ]
    assert capsys.readouterr().out == "The browser has left\n"
    assert await events_of("/delivery/", 2) == [
        Dispatched("Packed\nand sealed", "step", "1"),
        Dispatched('{"by": "bicycle"}', "step", "2"),
    ]
    headlines = await events_of("/headlines/", 2)
    told = {event.data for event in headlines}
    assert told == {"All quiet in Oslo", "All quiet in Rome"}


async def test_server_sent_events_go_on(
    execute: Callable[[str], Site], database: None, autojump_clock: trio.abc.Clock
) -> None:
    """Server-sent events: a browser that reconnects gets the events since then."""
    execute("docs/howto/server-sent-events.md")
    ids = [(await User.objects.acreate(username=name)).pk for name in ("a", "b", "c")]
    everybody = [
        Dispatched(json.dumps({"name": name}), last_event_id=str(pk))
        for name, pk in zip("abc", ids, strict=True)
    ]
    assert await events_of("/newcomers/", 3) == everybody
    last = (b"last-event-id", str(ids[0]).encode())
    assert await events_of("/newcomers/", 2, last) == everybody[1:]
    # A value that no browser would send is not an error.
    assert await events_of("/newcomers/", 3, (b"last-event-id", b"x")) == everybody


async def test_server_sent_events_hold_no_thread(
    execute: Callable[[str], Site], database: None, autojump_clock: trio.abc.Clock
) -> None:
    """Server-sent events: a stream that waits has given its thread back."""
    execute("docs/howto/server-sent-events.md")
    app = trio_asgi.get_asgi_application()
    async with ApplicationCommunicator(app, http_scope("/newcomers/")) as communicator:
        await communicator.send_input({"type": "http.request"})
        assert (await communicator.receive_output())["status"] == 200
        assert (await communicator.receive_output())["body"] == b""
        assert await communicator.receive_nothing(7)
        # The request's thread, and that of this test's own calls.
        assert len(current_pool()._idle) == len(current_pool().workers) - 1
        await User.objects.acreate(username="new")
        event = await communicator.receive_output(timeout=6)
        assert event["body"].endswith(b'data: {"name": "new"}\n\n')


@pytest.fixture
def uploads_page(execute: Callable[[str], Site], tmp_path: Path) -> Iterator[Site]:
    """Run the page on uploads, with all files in a directory of the test."""
    backend = "django.core.files.storage.FileSystemStorage"
    storages = {
        "default": {"BACKEND": backend},
        "incoming": {"BACKEND": backend, "OPTIONS": {"location": tmp_path}},
    }
    with override_settings(MEDIA_ROOT=tmp_path, STORAGES=storages):
        yield execute("docs/howto/uploads.md")


async def test_uploads_settings(uploads_page: Site) -> None:
    """Uploads: the page's settings are valid, and lead to its handler."""
    with override_settings(TRIO_ASGI=uploads_page["TRIO_ASGI"]):
        assert [*conf.problems()] == []
    names = uploads_page["FILE_UPLOAD_HANDLERS"]
    with override_settings(FILE_UPLOAD_HANDLERS=names):
        form = form_request(file_part(b"leaves", filename=b"a.jpg") + END)
        assert isinstance(form.FILES["file"], StorageUploadedFile)
        assert re.fullmatch(r"upload_\w{7}\.jpg", form.FILES["file"].stored_name)
        form.close()


async def test_uploads_bodies(uploads_page: Site, tmp_path: Path) -> None:
    """Uploads: the views that take a whole body read all of it."""
    app = trio_asgi.get_asgi_application()
    log = b"tea\n" * 1000
    answer = await request(app, "/backup/", method="POST", body=log)
    assert json.loads(answer.body) == {"sha256": hashlib.sha256(log).hexdigest()}
    assert [file.name for file in tmp_path.iterdir()] == ["backup.tar"]
    answer = await request(app, "/count-lines/", method="POST", body=log)
    assert json.loads(answer.body) == {"lines": 1000}


@pytest.mark.parametrize(
    ("form", "status", "kept"),
    [
        (file_part(b"leaves", name=b"photo"), 200, 1),
        (file_part(b"leaves", name=b"other"), 422, 0),
    ],
)
async def test_uploads_files(
    uploads_page: Site, tmp_path: Path, form: bytes, status: int, kept: int
) -> None:
    """Uploads: a photo is kept, other files are not."""
    visit = RequestFactory().get("/")
    token = field_part(get_token(visit).encode(), name=b"csrfmiddlewaretoken")
    cookie = b"csrftoken=" + visit.META["CSRF_COOKIE"].encode()
    body = token + form + END
    answer = await request(
        trio_asgi.get_asgi_application(),
        "/photos/",
        method="POST",
        body=body,
        headers=[*form_headers(len(body)), (b"cookie", cookie)],
    )
    assert answer.status == status
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) == kept


async def test_uploads_progress(uploads_page: Site) -> None:
    """Uploads: another request sees how much has arrived, and nothing at the end."""
    key, progress = uuid.uuid4(), uploads_page["progress"]

    @trio_asgi.stream_body
    async def view(request: trio_asgi.ASGIRequest) -> HttpResponse:
        request.upload_handlers = [
            progress.ProgressHandler(request),
            StorageUploadHandler(request),
        ]
        await request.aread()
        return HttpResponse()

    app = application(
        path("photos/", view), path("progress/<uuid:key>/", progress.progress)
    )

    async def seen() -> dict[str, int]:
        answer = await request(app, f"/progress/{key}/")
        return cast("dict[str, int]", json.loads(answer.body))

    body = file_part(bytes(300_000)) + END
    scope = http_scope(
        "/photos/",
        method="POST",
        query_string=f"progress={key}",
        headers=form_headers(len(body)),
    )
    async with ApplicationCommunicator(app, scope) as communicator:
        assert await seen() == {}
        await communicator.send_input(
            {"type": "http.request", "body": body[:200_000], "more_body": True}
        )
        with trio.fail_after(10):
            while not (now := await seen()):
                await trio.lowlevel.checkpoint()
        assert 0 < now["received"] <= 200_000
        assert now["total"] == len(body)
        await communicator.send_input({"type": "http.request", "body": body[200_000:]})
        assert (await receive_answer(communicator)).status == 200
        await communicator.wait()
    assert await seen() == {}


async def test_files(execute: Callable[[str], Site], tmp_path: Path) -> None:
    """Files: the view sends parts of a recording, the settings serve static files."""
    pytest.importorskip("servestatic")
    site = execute("docs/howto/files.md")
    (tmp_path / "song.ogg").write_bytes(bytes(range(100)))
    source = tmp_path / "source"
    source.mkdir()
    (source / "app.js").write_bytes(b"var answer = 42;" * 50)
    header = (b"range", b"bytes=10-19")
    with override_settings(
        MEDIA_ROOT=tmp_path,
        MIDDLEWARE=site["MIDDLEWARE"],
        STATIC_URL="/static/",
        STATIC_ROOT=tmp_path / "static",
        STATICFILES_DIRS=[source],
        STORAGES=site["STORAGES"],
    ):
        await sync_to_async(call_command)("collectstatic", verbosity=0)
        app = trio_asgi.get_asgi_application()
        answer = await request(app, "/recordings/song/", headers=[header])
        assert (answer.status, answer.body) == (206, bytes(range(10, 20)))
        assert (await request(app, "/recordings/none/")).status == 404
        storage: Any = staticfiles_storage
        name = storage.stored_name("app.js")
        answer = await request(
            app, f"/static/{name}", headers=[(b"accept-encoding", b"gzip")]
        )
    headers = dict(answer.headers)
    assert headers[b"Content-Encoding"] == b"gzip"
    assert headers[b"Cache-Control"].endswith(b"immutable")

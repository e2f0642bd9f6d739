"""What the system checks say about projects that are not, or not yet, made for Trio."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import django
import pytest
from django.core import mail
from django.core.checks import INFO, WARNING, CheckMessage, run_checks
from django.test import override_settings

from project_support import run_python
from support import application
from trio_asgi.conversion import checks
from trio_asgi.testing import ApplicationCommunicator

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    Check = Callable[..., list[CheckMessage]]
    Start = Callable[..., Awaitable[list[tuple[int, str]]]]

#: What every file of a test's project may use.
HEADER = """\
import asyncio
import functools

import redis.asyncio
import trio
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth.decorators import login_required
from django.http import HttpResponse, StreamingHttpResponse
from django.utils.decorators import (
    async_only_middleware, method_decorator, sync_and_async_middleware,
)
from django.utils.deprecation import MiddlewareMixin
from django.views import View

import trio_asgi
from trio_asgi import asyncio_island, trio_island
"""

URLS = """
from django.urls import path
from shop import views

view = views.view
urlpatterns = [path("", view.as_view() if hasattr(view, "as_view") else view)]
"""


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Check]:
    """Write the modules of the project `shop`, and return what the checks say."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    before = {*sys.modules}

    def check(files: dict[str, str], **settings: Any) -> list[CheckMessage]:
        for name, code in {"urls": URLS, **files}.items():
            file = tmp_path / (name if "/" in name else f"shop/{name}.py")
            file.parent.mkdir(parents=True, exist_ok=True)
            header = "" if name in {"urls", "asgi"} else HEADER
            file.write_text(header + dedent(code), encoding="utf-8")
        settings = {"ROOT_URLCONF": "shop.urls", "DEBUG": True, **settings}
        with override_settings(**settings):
            return run_checks(tags=["trio_asgi"])

    yield check
    for name in {*sys.modules} - before:
        if name.partition(".")[0] in {"shop", "parcels"}:
            del sys.modules[name]


def marked(name: str) -> str:
    """Return the place of the line of a file that ends with the mark."""
    lines = Path(name).read_text(encoding="utf-8").splitlines()
    [line] = [number for number, line in enumerate(lines, 1) if line.endswith("# !")]
    return f"{name}:{line}"


USES = {
    "in the view": (
        """
        async def view(request):
            one, two = await asyncio.gather(request.one(), request.two())  # !
        """,
        "asyncio.gather",
    ),
    "imported by name": (
        """
        from asyncio import sleep

        async def view(request):
            await sleep(1)  # !
        """,
        "asyncio.sleep",
    ),
    "imported in the view": (
        """
        async def view(request):
            import asyncio as aio
            await aio.sleep(1)  # !
        """,
        "asyncio.sleep",
    ),
    "a library that is imported in the view": (
        """
        async def view(request):
            from aiohttp import ClientSession  # !
        """,
        "aiohttp",
    ),
    "a client that the module holds": (
        """
        client = redis.asyncio.Redis()

        async def view(request):
            await client.get("tea")  # !
        """,
        "redis.asyncio",
    ),
    "in a function that it calls": (
        """
        async def ask():
            async with asyncio.timeout(1): ...  # !

        async def view(request):
            await ask()
        """
        if sys.version_info >= (3, 11)
        else """
        async def ask():
            await asyncio.wait_for(1, 1)  # !

        async def view(request):
            await ask()
        """,
        "asyncio.timeout" if sys.version_info >= (3, 11) else "asyncio.wait_for",
    ),
    "in a sync function that it calls": (
        """
        def later(coroutine):
            asyncio.create_task(coroutine)  # !

        async def view(request):
            later(request.send())
        """,
        "asyncio.create_task",
    ),
    "in a method of a class that it makes": (
        """
        class Supplier:
            async def ask(self):
                await asyncio.sleep(1)  # !

        async def view(request):
            supplier = Supplier()
            await supplier.ask()
        """,
        "asyncio.sleep",
    ),
    "in a method of an object that the module holds": (
        """
        class Supplier:
            async def ask(self):
                await self.retry()

            async def retry(self):
                await asyncio.sleep(1)  # !

        supplier = Supplier()

        async def view(request):
            await supplier.ask()
        """,
        "asyncio.sleep",
    ),
    "in a class-based view": (
        """
        class view(View):
            async def get(self, request):
                await self.ask()

            @staticmethod
            async def ask():
                await asyncio.sleep(1)  # !
        """,
        "asyncio.sleep",
    ),
    "below a decorator of Django": (
        """
        @login_required
        async def view(request):
            await asyncio.sleep(1)  # !
        """,
        "asyncio.sleep",
    ),
    "below a method decorator": (
        """
        @method_decorator(login_required, name="dispatch")
        class view(View):
            async def get(self, request):
                await asyncio.sleep(1)  # !
        """,
        "asyncio.sleep",
    ),
    "below a decorator that does not use wraps": (
        """
        def checked(view):
            async def checked_view(request):
                return await view(request)
            return checked_view

        @checked
        async def view(request):
            await asyncio.sleep(1)  # !
        """,
        "asyncio.sleep",
    ),
    "in the stream of an async view": (
        """
        async def ticks():
            while True:
                yield "tick"
                await asyncio.sleep(1)  # !

        async def view(request):
            return StreamingHttpResponse(ticks())
        """,
        "asyncio.sleep",
    ),
    "in the stream of a sync view": (
        """
        def view(request):
            async def ticks():
                yield "tick"
                await asyncio.sleep(1)  # !

            return StreamingHttpResponse(ticks())
        """,
        "asyncio.sleep",
    ),
    "below functools.partial": (
        """
        async def named(name, request):
            await asyncio.sleep(1)  # !

        view = functools.partial(named, "tea")
        """,
        "asyncio.sleep",
    ),
    "in a property": (
        """
        class Supplier:
            @property
            def answer(self):
                return asyncio.get_running_loop()  # !

        supplier = Supplier()

        async def view(request):
            return supplier.answer
        """,
        "asyncio.get_running_loop",
    ),
    "by async_to_sync in a sync view": (
        """
        @async_to_sync
        async def ask():
            await asyncio.sleep(1)  # !

        def view(request):
            ask()
        """,
        "asyncio.sleep",
    ),
}


@pytest.mark.parametrize(("code", "use"), USES.values(), ids=USES)
def test_asyncio_in_a_view(check: Check, code: str, use: str) -> None:
    """A view that Trio would run, and that uses asyncio, is reported with the line."""
    [message] = check({"views": code})
    assert str(message.obj) == marked("shop/views.py")
    name = "named" if "named" in code else "view"
    assert message.msg == (
        f"The view shop.views.{name} uses {use}, which does not work on Trio."
    )
    assert (message.id, message.level) == ("trio_asgi.W011", WARNING)


def test_asyncio_in_another_module(check: Check) -> None:
    """The line is that of the use; the hint says what to do, and where the view is."""
    clients = """
    async def ask():
        await asyncio.sleep(1)  # !
    """
    views = """
    from shop import clients

    @login_required
    async def view(request):  # !
        await clients.ask()
    """
    [message] = check({"clients": clients, "views": views})
    assert str(message.obj) == marked("shop/clients.py")
    assert message.hint == (
        "On Trio, write trio.sleep instead. Or keep the view on asyncio: write "
        f"@asyncio_island above the view ({marked('shop/views.py')}), imported from "
        'trio_asgi; or TRIO_ASGI = {"ASYNCIO_VIEWS": True} for all views.'
    )


def test_a_class_based_view_is_kept_on_asyncio_in_the_urls(check: Check) -> None:
    """The hint names what can be decorated."""
    code = """
    class view(View):
        async def get(self, request):
            await asyncio.open_connection()
    """
    [message] = check({"views": code})
    assert str(message.hint).startswith(
        "Keep the view on asyncio: write asyncio_island(view.as_view()) in the URLs"
    )


#: How DRF's ``api_view`` and django-ninja wrap functions, in few lines.
WRAPPERS = """
class Methods:
    pass

def api_view(function):
    cls = type("Wrapped", (View,), {"get": lambda self, request: function(request)})
    return cls.as_view()

class Operation:
    def __init__(self, view_func):
        self.view_func = view_func

class PathView:
    def __init__(self, function):
        self.operations = [Operation(function)]

    async def call(self, request):
        return await self.operations[0].view_func(request)

def ninja(function):
    return PathView(function).call
"""


@pytest.mark.parametrize("decorator", ["api_view", "ninja"])
def test_asyncio_below_a_wrapper_of_a_package(check: Check, decorator: str) -> None:
    """A function that a package keeps in an object or a class is found."""
    code = f"""
    from parcels import {decorator}

    @{decorator}
    async def view(request):
        await asyncio.sleep(1)  # !
    """
    files = {"site-packages/parcels/__init__.py": WRAPPERS, "views": code}
    [message] = check(files)
    assert str(message.obj) == marked("shop/views.py")
    assert message.msg.startswith("The view shop.views.view uses asyncio.sleep")


def test_code_that_many_views_share(check: Check) -> None:
    """Each view is reported; a wrapper's code is the same, but not what it wraps."""
    code = """
    def checked(view):
        async def checked_view(request):
            return await view(request)
        return checked_view

    async def ask():
        await asyncio.sleep(1)  # !

    @checked
    async def one(request):
        await ask()

    @checked
    async def two(request):
        await trio.sleep(1)

    @checked
    async def three(request):
        await ask()
    """
    urls = """
    from django.urls import path
    from shop.views import one, two, three

    urlpatterns = [path("1/", one), path("2/", two), path("3/", three)]
    """
    one, three = check({"views": code, "urls": urls})
    assert "shop.views.one " in one.msg
    assert "shop.views.three " in three.msg
    assert {str(message.obj) for message in (one, three)} == {marked("shop/views.py")}


def test_a_long_chain_of_calls(check: Check) -> None:
    """It is followed to its end, however long it is."""
    calls = "".join(
        f"async def step_{n}(): await step_{n + 1}()\n" for n in range(1000)
    )
    code = (
        calls
        + """
async def step_1000():
    await asyncio.sleep(1)  # !

async def view(request):
    await step_0()
"""
    )
    [message] = check({"views": code})
    assert str(message.obj) == marked("shop/views.py")


NO_USES = {
    "questions, errors and types": """
        async def view(request):
            task: asyncio.Task | None = None
            try:
                assert asyncio.iscoroutinefunction(view)
            except asyncio.CancelledError:
                raise
    """,
    "functions that trio-asyncio replaces": """
        async def view(request):
            assert not asyncio.iscoroutinefunction(asyncio.isfuture)
    """,
    "another view's": """
        async def other(request):
            await asyncio.sleep(1)

        async def view(request):
            await trio.sleep(1)
    """,
    "an island": """
        @asyncio_island
        async def view(request):
            await asyncio.sleep(1)
    """,
    "an island below a decorator": """
        @login_required
        @trio_asgi.asyncio_island
        async def view(request):
            await asyncio.sleep(1)
    """,
    "an island above a decorator": """
        @asyncio_island
        @login_required
        async def view(request):
            await asyncio.sleep(1)
    """,
    "an island that it calls": """
        async def ask():
            await asyncio.sleep(1)

        @asyncio_island
        async def ask_again():
            await asyncio.sleep(1)

        async def view(request):
            @asyncio_island
            async def ask_here():
                await asyncio.sleep(1)

            await asyncio_island(ask)()
            await ask_again()
            await ask_here()
    """,
    "asyncio.run in a sync view": """
        async def ask():
            await asyncio.sleep(1)

        def view(request):
            asyncio.run(ask())
    """,
    "a loop in a thread": """
        def ask():
            loop = asyncio.new_event_loop()

        async def view(request):
            await sync_to_async(ask)()
    """,
    "a local variable's name": """
        client = redis.asyncio.Redis()

        async def view(request):
            client = await request.client()
            await client.get("tea")
    """,
}


@pytest.mark.parametrize("code", NO_USES.values(), ids=NO_USES)
def test_no_asyncio_in_a_view(check: Check, code: str) -> None:
    """What does not use asyncio's loop, or uses it in an island, is not reported."""
    assert check({"views": code}) == []


ON_ASYNCIO = """
async def view(request):
    await asyncio.sleep(1)
"""


def test_asyncio_views(check: Check) -> None:
    """With ASYNCIO_VIEWS only views that are declared as Trio views are reported."""
    kept = {"TRIO_ASGI": {"ASYNCIO_VIEWS": True}}
    assert check({"views": ON_ASYNCIO}, **kept) == []


def test_a_trio_view_among_asyncio_views(check: Check) -> None:
    """A view that is declared too early is reported."""
    code = "@trio_island" + ON_ASYNCIO
    [message] = check({"views": code}, TRIO_ASGI={"ASYNCIO_VIEWS": True})
    assert message.id == "trio_asgi.W011"


def test_a_view_with_two_urls_is_reported_once(check: Check) -> None:
    """It has one message, also if it is included."""
    urls = """
    from django.urls import include, path
    from shop.views import view

    urls = [path("a/", view), path("b/", view)]
    urlpatterns = [path("", include(urls)), path("c/", include(urls))]
    """
    assert len(check({"views": ON_ASYNCIO, "urls": urls})) == 1


PACKAGE = """
async def one(request):
    await asyncio.sleep(1)

async def ticks():
    await asyncio.sleep(1)
    yield "tick"

def two(request):
    return StreamingHttpResponse(ticks())

def three(request):
    async def ticks():
        await asyncio.sleep(1)
        yield "tick"

    return StreamingHttpResponse(ticks())
"""


@pytest.mark.parametrize("name", ["one", "two", "three"])
def test_a_view_of_a_package(check: Check, name: str) -> None:
    """The hint says what can be written in the URLs; the package stays as it is."""
    urls = f"""
    from django.urls import path
    from parcels import {name}

    urlpatterns = [path("", {name}), path("again/", {name})]
    """
    [message] = check({"site-packages/parcels/__init__.py": PACKAGE, "urls": urls})
    assert message.msg == (
        f"Views of the package parcels, such as parcels.{name}, use asyncio.sleep, "
        "which does not work on Trio."
    )
    assert "asyncio_island(view)" in str(message.hint)
    assert "parcels/__init__.py:" in str(message.obj)


def test_a_package_is_reported_once(check: Check) -> None:
    """However many of its views use asyncio."""
    urls = """
    from django.urls import path
    from parcels import one, two

    urlpatterns = [path("one/", one), path("two/", two)]
    """
    files = {"site-packages/parcels/__init__.py": PACKAGE, "urls": urls}
    assert len(check(files)) == 1


def test_a_project_that_is_installed(check: Check) -> None:
    """The package with the URLconf is the project, wherever it is."""
    files = {
        "site-packages/parcels/__init__.py": PACKAGE,
        "site-packages/parcels/urls.py": """
        from django.urls import path
        from parcels import one, two

        urlpatterns = [path("one/", one), path("two/", two)]
        """,
    }
    found = check(files, ROOT_URLCONF="parcels.urls")
    assert [message.msg.split()[2] for message in found] == [
        "parcels.one",
        "parcels.two",
    ]


def test_a_function_of_asyncio_that_was_replaced(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    """trio-asyncio replaces some; they still have asyncio's names."""
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: None)
    code = """
    async def view(request):
        asyncio.get_running_loop()  # !
    """
    [message] = check({"views": code})
    assert "uses asyncio.get_running_loop," in message.msg


def test_wrong_settings_come_first(check: Check) -> None:
    """With settings that cannot be read, only they are reported."""
    [message] = check({"views": ON_ASYNCIO}, TRIO_ASGI=["ASYNCIO_VIEWS"])
    assert message.id == "trio_asgi.E001"


# Middleware

VIEW = "async def view(request): ..."
PATH = "shop.middleware.middleware"


def check_middleware(check: Check, code: str, views: str = VIEW) -> list[CheckMessage]:
    """Return what the checks say of a project with this middleware."""
    return check({"views": views, "middleware": code}, MIDDLEWARE=[PATH])


@pytest.mark.parametrize("kept", [False, True])
def test_asyncio_in_middleware(check: Check, kept: bool) -> None:
    """Middleware with async code that uses asyncio is reported, whatever the views."""
    code = """
    @async_only_middleware
    def middleware(get_response):
        async def call(request):
            await asyncio.sleep(1)  # !
            return await get_response(request)

        return call
    """
    with override_settings(TRIO_ASGI={"ASYNCIO_VIEWS": kept}):
        [message] = check_middleware(check, code)
    assert str(message.obj) == marked("shop/middleware.py")
    assert message.id == "trio_asgi.W012"
    assert PATH in message.msg
    assert "await asyncio_island(function)" in str(message.hint)


def test_asyncio_in_a_class_of_middleware(check: Check) -> None:
    """Its hooks and its __acall__ are searched."""
    code = """
    class middleware(MiddlewareMixin):
        loop_safe_hooks = ()

        async def __acall__(self, request):
            await asyncio.sleep(1)  # !
    """
    [message] = check_middleware(check, code)
    assert str(message.obj) == marked("shop/middleware.py")


SYNC_ONLY = """
class middleware:  # !
    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        return self.get_response(request)
"""


def test_sync_only_middleware(check: Check) -> None:
    """It is named with its line, if there are async views."""
    [message] = check_middleware(check, SYNC_ONLY)
    assert str(message.obj) == marked("shop/middleware.py")
    assert (message.id, message.level) == ("trio_asgi.I015", INFO)
    assert f"{PATH} is sync only" in message.msg
    assert "MiddlewareMixin" in str(message.hint)


def test_sync_only_middleware_above_sync_views(check: Check) -> None:
    """Where there is no async view, it costs nothing."""
    assert check_middleware(check, SYNC_ONLY, "def view(request): ...") == []


def test_sync_only_middleware_of_a_package(check: Check) -> None:
    """It cannot be changed, but perhaps be replaced."""
    path = "whitenoise.middleware.WhiteNoiseMiddleware"
    [message] = check({"views": VIEW}, MIDDLEWARE=[path])
    assert message.obj == "settings.MIDDLEWARE"
    assert "trio_asgi.servestatic.ServeStaticMiddleware" in str(message.hint)


@pytest.mark.parametrize(
    ("declared", "hooks"),
    [
        ("", ["('process_request', 'process_response')"]),
        ("loop_safe_hooks = ('process_request',)", []),
        ("loop_safe_hooks = ()", []),
    ],
)
def test_undeclared_hooks(check: Check, declared: str, hooks: list[str]) -> None:
    """Hooks that may need no thread are named, unless the class says what holds."""
    code = f"""
    class middleware(MiddlewareMixin):  # !
        {declared}

        def process_request(self, request): ...

        def process_response(self, request, response):
            return response

        async def process_view(self, request, *args): ...
    """
    found = check_middleware(check, code)
    assert [message.id for message in found] == ["trio_asgi.I016" for _ in hooks]
    for message, names in zip(found, hooks, strict=True):
        assert str(message.obj) == marked("shop/middleware.py")
        assert f"loop_safe_hooks = {names} in the class" in str(message.hint)


def test_hooks_that_its_own_call_calls(check: Check) -> None:
    """Nothing is said of them: the middleware is called as a whole."""
    code = """
    class middleware(MiddlewareMixin):
        def process_request(self, request): ...

        def __call__(self, request):
            return self.get_response(request)
    """
    assert check_middleware(check, code) == []


def test_middleware_that_costs_nothing(check: Check) -> None:
    """Nothing is said of async-capable middleware, nor of Django's own."""
    code = """
    @sync_and_async_middleware
    def middleware(get_response):
        async def call(request):
            return await get_response(request)

        return call
    """
    djangos = ["django.middleware.locale.LocaleMiddleware"]
    assert check({"views": VIEW, "middleware": code}, MIDDLEWARE=[PATH, *djangos]) == []


def test_middleware_that_cannot_be_imported(check: Check) -> None:
    """The application reports it when it is made; commands can still run."""
    assert check({"views": VIEW}, MIDDLEWARE=["shop.nothing.Middleware"]) == []


EVENTS = """
async def view(request):
    return StreamingHttpResponse(
        ticks(),
        content_type="text/event-stream",  # !
        HEADERS
    )

async def ticks():
    yield "data: tick"
"""
GZIP = "django.middleware.gzip.GZipMiddleware"


def test_compressed_event_streams(check: Check) -> None:
    """GZipMiddleware breaks event streams up to Django 5.2."""
    code = EVENTS.replace("HEADERS", "")
    found = check({"views": code}, MIDDLEWARE=[GZIP])
    assert [str(message.obj) for message in found] == (
        [] if django.VERSION >= (6, 0) else [marked("shop/views.py")]
    )
    for message in found:
        assert message.id == "trio_asgi.W013"
        assert "trio_asgi.EventStream" in str(message.hint)


def test_event_streams_that_are_not_compressed(check: Check) -> None:
    """Nothing is said where the header forbids it, or nothing compresses."""
    code = EVENTS.replace("HEADERS", 'headers={"Content-Encoding": "identity"},')
    assert check({"views": code}, MIDDLEWARE=[GZIP]) == []
    assert check({"views": EVENTS.replace("HEADERS", "")}) == []


# Settings

POSTGRESQL = {"ENGINE": "django.db.backends.postgresql", "NAME": "shop"}


@pytest.mark.parametrize(
    ("database", "ids"),
    [
        (POSTGRESQL, ["trio_asgi.I017"]),
        ({**POSTGRESQL, "CONN_MAX_AGE": 60}, []),
        ({**POSTGRESQL, "CONN_MAX_AGE": None}, []),
        ({**POSTGRESQL, "OPTIONS": {"pool": True}}, []),
        ({**POSTGRESQL, "DISABLE_SERVER_SIDE_CURSORS": True}, []),
        ({"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}, []),
    ],
)
def test_connections(tmp_path: Path, database: dict[str, Any], ids: list[str]) -> None:
    """Connections that could be kept are reported; not files, pools and poolers."""
    settings = f"""
SECRET_KEY, DEBUG = "for the tests alone", True
INSTALLED_APPS = ["trio_asgi"]
DATABASES = {{"default": {database!r}}}
"""
    (tmp_path / "shop.py").write_text(settings, encoding="utf-8")
    options = ("--settings", "shop", "--tag", "trio_asgi", "--fail-level", "INFO")
    done = run_python(tmp_path, "-m", "django", "check", *options)
    assert done.returncode == len(ids), done.stderr
    for id_ in ids:
        assert f"settings.DATABASES['default']: ({id_}) " in done.stderr
        assert '"CONN_MAX_AGE": 60' in done.stderr


CONSOLE = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["console"]},
}


SILENT = {"level": "CRITICAL"}


@pytest.mark.parametrize(
    ("settings", "ids"),
    [
        ({"LOGGING": {}}, ["trio_asgi.W014"]),
        ({"LOGGING": {}, "DEBUG": True}, []),
        ({"LOGGING": {}, "ADMINS": [("Ada", "ada@example.com")]}, []),
        ({"LOGGING": CONSOLE}, []),
        ({"LOGGING_CONFIG": None}, []),
        (
            {"LOGGING": {**CONSOLE, "loggers": {"django.request": SILENT}}},
            ["trio_asgi.W014"],
        ),
        (
            {"LOGGING": {**CONSOLE, "root": {}, "loggers": {"django.request": {}}}},
            ["trio_asgi.W014"],
        ),
    ],
)
def test_logging(tmp_path: Path, settings: dict[str, Any], ids: list[str]) -> None:
    """Outside DEBUG, errors of views must be logged somewhere."""
    lines = {"SECRET_KEY": "for the tests alone", "INSTALLED_APPS": ["trio_asgi"]}
    code = "\n".join(
        f"{name} = {value!r}" for name, value in {**lines, **settings}.items()
    )
    (tmp_path / "shop.py").write_text(code, encoding="utf-8")
    options = ("--settings", "shop", "--tag", "trio_asgi", "--fail-level", "WARNING")
    done = run_python(tmp_path, "-m", "django", "check", *options)
    assert done.returncode == len(ids), done.stderr
    for id_ in ids:
        assert f"settings.LOGGING: ({id_}) " in done.stderr


def test_logging_in_a_test_run(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    """Django's test runner turns DEBUG off, and checks the project afterwards."""
    monkeypatch.setattr(logging.root, "handlers", [])
    [message] = check({"views": VIEW}, DEBUG=False)
    assert message.id == "trio_asgi.W014"
    monkeypatch.setattr(mail, "outbox", [], raising=False)
    assert check({"views": VIEW}, DEBUG=False) == []


def test_logging_by_a_tool(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tools such as Sentry take records where the logger calls its handlers."""
    monkeypatch.setattr(logging.root, "handlers", [logging.NullHandler()])
    [message] = check({"views": VIEW}, DEBUG=False)
    assert message.id == "trio_asgi.W014"
    monkeypatch.setattr(logging.Logger, "callHandlers", lambda *_: None)
    assert check({"views": VIEW}, DEBUG=False) == []


# asgi.py

ASGI = "from django.core.asgi import get_asgi_application\n"


@pytest.mark.parametrize(
    "settings",
    [
        {"ASGI_APPLICATION": "shop.asgi.application", "ROOT_URLCONF": "urls"},
        {"WSGI_APPLICATION": "shop.wsgi.application", "ROOT_URLCONF": "urls"},
        {},
    ],
)
def test_asgi_module(check: Check, settings: dict[str, Any]) -> None:
    """The application of Django is found, with the line to change, by each setting."""
    [message] = check({"views": VIEW, "asgi": '"""ASGI."""\n' + ASGI}, **settings)
    assert str(message.obj) == "shop/asgi.py:2"
    assert message.id == "trio_asgi.W010"
    assert message.hint == "Write: from trio_asgi import get_asgi_application"


@pytest.mark.parametrize(
    "code",
    [
        "from trio_asgi import get_asgi_application",
        f"if 1:\n    {ASGI}else:\n    from trio_asgi import get_asgi_application",
        "from django.core.wsgi import get_wsgi_application",
    ],
)
def test_converted_asgi_module(check: Check, code: str) -> None:
    """One that uses this package, perhaps in one of two cases, is fine."""
    assert check({"views": VIEW, "asgi": code}) == []


def test_asgi_module_with_a_syntax_error(check: Check) -> None:
    """The server reports it; commands that do not need the module still run."""
    assert check({"views": VIEW, "asgi": ASGI + "if"}) == []


def test_asgi_module_that_is_not_there(check: Check) -> None:
    """Other checks report wrong settings."""
    assert check({"views": VIEW}, ASGI_APPLICATION="nothing.asgi.application") == []


# As a user sees it


def test_a_new_project(tmp_path: Path) -> None:
    """Of a new project with the app, only the line of asgi.py is reported."""
    run_python(tmp_path, "-m", "django", "startproject", "mysite", ".")
    settings = tmp_path / "mysite/settings.py"
    code = settings.read_text(encoding="utf-8")
    app = 'INSTALLED_APPS = [\n    "trio_asgi",'
    settings.write_text(code.replace("INSTALLED_APPS = [", app), encoding="utf-8")
    command = ("manage.py", "check", "--tag", "trio_asgi", "--fail-level", "INFO")
    done = run_python(tmp_path, *command)
    assert done.returncode == 1
    assert done.stderr.count("trio_asgi.") == 1
    assert f"{Path('mysite/asgi.py')}:12: (trio_asgi.W010) " in done.stderr

    asgi = tmp_path / "mysite/asgi.py"
    code = asgi.read_text(encoding="utf-8")
    asgi.write_text(code.replace("django.core.asgi", "trio_asgi"), encoding="utf-8")
    done = run_python(tmp_path, *command)
    assert done.returncode == 0, done.stderr


def test_the_example_site() -> None:
    """Nothing is said of a project that was written for Trio."""
    site = Path(__file__).parents[1] / "examples/site"
    command = ("manage.py", "check", "--tag", "trio_asgi", "--fail-level", "INFO")
    done = run_python(site, *command)
    assert done.returncode == 0, done.stderr


# At the application's start


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Start:
    """Return a function that starts an application, and returns what it has logged."""
    caplog.set_level(logging.INFO, "trio_asgi")

    async def start(*, reported: bool = False) -> list[tuple[int, str]]:
        monkeypatch.setattr(checks, "_has_reported", reported)
        caplog.clear()
        app = application()
        async with ApplicationCommunicator(app, {"type": "lifespan"}) as server:
            await server.send_input({"type": "lifespan.startup"})
            started = await server.receive_output()
            assert started == {"type": "lifespan.startup.complete"}
        return [(record.levelno, record.getMessage()) for record in caplog.records]

    return start


async def test_the_application_logs_the_same_once(check: Check, start: Start) -> None:
    """At its first start in the process, it logs what the checks say."""
    [message] = check({"views": ON_ASYNCIO})
    with override_settings(ROOT_URLCONF="shop.urls", DEBUG=True):
        assert await start(reported=checks._has_reported) == []  # the command has run
        assert await start() == [(logging.WARNING, str(message))]
        assert await start(reported=checks._has_reported) == []


async def test_no_code_is_searched_in_production(
    check: Check, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside DEBUG the start takes no time for it; settings are looked at."""
    check({"views": ON_ASYNCIO})
    monkeypatch.setattr(logging.getLogger("django"), "propagate", False)
    with override_settings(ROOT_URLCONF="shop.urls", DEBUG=False):
        [(level, text)] = await start()
    assert level == logging.WARNING
    assert text.startswith("settings.LOGGING: (trio_asgi.W014) ")


async def test_silenced_checks_are_not_logged(check: Check, start: Start) -> None:
    """SILENCED_SYSTEM_CHECKS counts for the log too."""
    check({"views": ON_ASYNCIO})
    silenced = {"SILENCED_SYSTEM_CHECKS": ["trio_asgi.W011"]}
    with override_settings(ROOT_URLCONF="shop.urls", DEBUG=True, **silenced):
        assert await start() == []


async def test_many_findings_are_not_all_logged(check: Check, start: Start) -> None:
    """After ten, the log says how many there are, and how to see them."""
    views = "".join(ON_ASYNCIO.replace("view", f"view_{n}") for n in range(12))
    urls = """
    from django.urls import path
    from shop import views

    urlpatterns = [path(f"{n}/", getattr(views, f"view_{n}")) for n in range(12)]
    """
    assert len(check({"views": views, "urls": urls})) == 12
    with override_settings(ROOT_URLCONF="shop.urls", DEBUG=True):
        logged = await start()
    assert len(logged) == 11
    more = "2 more: see manage.py check --tag trio_asgi"
    assert logged[-1] == (logging.WARNING, more)


async def test_the_app_is_not_installed(start: Start) -> None:
    """The log says what it is good for, as information."""
    with override_settings(INSTALLED_APPS=[], DEBUG=True):
        [(level, text)] = await start()
    assert level == logging.INFO
    assert text.startswith('Add "trio_asgi" to INSTALLED_APPS')


async def test_a_project_that_cannot_be_checked_starts(
    start: Start,
) -> None:
    """The first request reports a URLconf that cannot be imported, as before."""
    with override_settings(ROOT_URLCONF="shop.nothing", DEBUG=True):
        assert await start() == []

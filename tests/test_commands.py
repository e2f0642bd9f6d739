"""Async code in management commands, where the app has chosen Trio."""

from __future__ import annotations

import asyncio
import textwrap
from typing import TYPE_CHECKING

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.urls import path

import trio_asgi
from project_support import run_python
from support import application, request
from trio_asgi.errors import BACKEND_NOTE, leaves

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from django.http import HttpRequest, HttpResponse

MANAGE = """
import os, sys
from django.conf import settings
from django.core.management import execute_from_command_line

settings.configure(
    INSTALLED_APPS=["trio_asgi", "commands"],
    SILENCED_SYSTEM_CHECKS=["trio_asgi.W014"],  # no command may print anything else
    TRIO_ASGI=eval(os.environ.get("TRIO_ASGI", "{}")),
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db"}},
)
execute_from_command_line(sys.argv)
"""

COMMAND = """
import asyncio
import trio
from asgiref.sync import async_to_sync, sync_to_async
from django.core.management import BaseCommand
from django.db import connection
from trio_asgi import asyncio_island

def query():
    with connection.cursor() as cursor:
        cursor.execute("SELECT 'from the database'")
        return cursor.fetchone()[0]

async def on_trio():
    await trio.sleep(0)
    return await sync_to_async(query)()

async def on_asyncio():
    await asyncio.gather(asyncio.sleep(0.001), asyncio.to_thread(int))
    return await sync_to_async(query)()

async def in_a_group():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(on_asyncio)

async def there_and_back():
    return await sync_to_async(async_to_sync(on_asyncio))()

class Command(BaseCommand):
    def handle(self, **options):
        self.stdout.write(%s)
"""

#: The setting that the error names.
ASYNCIO = "{'ASYNC_TO_SYNC_BACKEND': 'asyncio'}"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Provide a project whose command is to be written."""
    commands = tmp_path / "commands" / "management" / "commands"
    commands.mkdir(parents=True)
    (tmp_path / "manage.py").write_text(MANAGE)
    (tmp_path / "commands" / "__init__.py").touch()
    return tmp_path


def run_command(project: Path, expression: str, **env: str) -> tuple[str, str]:
    """Run a command that prints the expression; return its output and its errors."""
    command = project / "commands" / "management" / "commands" / "show.py"
    command.write_text(COMMAND % expression)
    done = run_python(project, "manage.py", "show", **env)
    return done.stdout.strip(), done.stderr


@pytest.mark.parametrize(
    "expression",
    [
        "async_to_sync(on_trio)()",
        "async_to_sync(asyncio_island(on_asyncio))()",
        # What starts a loop by itself stays on asyncio.
        "asyncio.run(on_asyncio())",
        "asyncio.run(there_and_back())",
    ],
)
def test_what_works(project: Path, expression: str) -> None:
    """Trio code, islands, and a command that starts asyncio itself."""
    assert run_command(project, expression) == ("from the database", "")


@pytest.mark.parametrize(
    "expression", ["async_to_sync(on_asyncio)()", "async_to_sync(in_a_group)()"]
)
def test_asyncio_code(project: Path, expression: str) -> None:
    """The traceback of ``manage.py`` says what to do; the setting helps."""
    _, errors = run_command(project, expression)
    assert "trio_asgi.asyncio_island()" in errors
    assert errors.count(BACKEND_NOTE) == 1


def test_the_setting_that_the_error_names(project: Path) -> None:
    """With it, the same command runs."""
    output = run_command(project, "async_to_sync(on_asyncio)()", TRIO_ASGI=ASYNCIO)
    assert output == ("from the database", "")


def test_a_project_with_asyncio_views(project: Path) -> None:
    """All its async code is asyncio's, in commands too."""
    setting = "{'ASYNCIO_VIEWS': True}"
    output = run_command(project, "async_to_sync(on_asyncio)()", TRIO_ASGI=setting)
    assert output == ("from the database", "")


def test_asyncio_code_in_a_test(project: Path) -> None:
    """The report of a failed test says what to do."""
    (project / "commands" / "tests.py").write_text(
        textwrap.dedent(
            """
            import asyncio
            from django.test import SimpleTestCase

            class Tests(SimpleTestCase):
                async def test(self):
                    await asyncio.sleep(1)
            """
        )
    )
    done = run_python(project, "manage.py", "test")
    assert done.returncode == 1
    assert "trio_asgi.asyncio_island()" in done.stderr
    assert BACKEND_NOTE in done.stderr


# In this process


@pytest.fixture
def trio_backend() -> Iterator[None]:
    """Start Trio, as with the app's default."""
    trio_asgi.install_bridge(async_to_sync_backend="trio")
    yield
    trio_asgi.install_bridge(async_to_sync_backend="asyncio")


async def use_asyncio() -> None:
    """Make the usual mistake."""
    await asyncio.sleep(0.001)


def notes(error: BaseException) -> list[str]:
    """Return the notes of all errors in a group, in this order."""
    return [note for leaf in leaves(error) for note in getattr(leaf, "__notes__", [])]


@pytest.mark.usefixtures("trio_backend")
def test_nested_calls() -> None:
    """The note about the setting comes from the outermost call, and once."""

    async def outer() -> None:
        await sync_to_async(async_to_sync(use_asyncio))()

    with pytest.raises(RuntimeError, match="no running event loop") as caught:
        async_to_sync(outer)()
    assert notes(caught.value).count(BACKEND_NOTE) == 1
    assert len(notes(caught.value)) == 2


@pytest.mark.usefixtures("trio_backend")
def test_other_errors() -> None:
    """They get no note."""

    async def fail() -> None:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else") as caught:
        async_to_sync(fail)()
    assert notes(caught.value) == []


async def test_the_error_of_a_view() -> None:
    """In a request the setting would not help: the note does not name it."""
    seen: list[BaseException] = []

    def view(request: HttpRequest) -> HttpResponse:
        try:
            async_to_sync(use_asyncio)()
        except RuntimeError as error:
            seen.append(error)
            raise
        raise AssertionError

    answer = await request(application(path("", view)))
    assert answer.status == 500
    (error,) = seen
    assert BACKEND_NOTE not in notes(error)

"""The tests of a project: with Django's test cases, and with pytest.

`user_project` is one with both. Its tests state what users may rely on; here they are
run as by a user, on the available databases, and those that must fail do fail.
"""

from __future__ import annotations

import os
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import psycopg
import pytest
from psycopg import sql

from project_support import counts, run_pytest, run_python
from support import skip_without_server

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

PROJECT = Path(__file__).parent / "user_project"

Database = dict[str, str]


class Server:
    """A PostgreSQL server, on which test databases are made."""

    def __init__(self) -> None:
        self.env = {
            "PGHOST": os.environ.get("PGHOST", "127.0.0.1"),
            "PGUSER": os.environ.get("PGUSER", "postgres"),
            # The project's database, which is not created: Django creates "test_" and
            # this.
            "POSTGRESQL_NAME": f"trio_asgi_{uuid.uuid4().hex}",
        }
        self.test_database = f"test_{self.env['POSTGRESQL_NAME']}"

    def connect(self) -> psycopg.Connection:
        """Connect to the database that always exists."""
        return psycopg.connect(
            host=self.env["PGHOST"],
            user=self.env["PGUSER"],
            dbname="postgres",
            connect_timeout=5,
            autocommit=True,
        )

    def drop(self) -> bool:
        """Drop the test database; return whether it existed."""
        query = "SELECT 1 FROM pg_database WHERE datname = %s"
        drop = sql.SQL("DROP DATABASE {} WITH (FORCE)")
        with self.connect() as connection:
            exists = connection.execute(query, [self.test_database]).fetchone()
            if exists:
                connection.execute(drop.format(sql.Identifier(self.test_database)))
        return exists is not None


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """Provide the environment that chooses a database, which the tests drop."""
    if request.param == "sqlite":
        yield {}
        return
    server = Server()
    try:
        server.connect().close()
    except psycopg.OperationalError as error:
        skip_without_server(f"no PostgreSQL server answers: {error}")
    yield server.env
    assert not server.drop()


def failures(
    tmp_path: Path, *arguments: str, **env: str
) -> tuple[dict[str, str], subprocess.CompletedProcess[str]]:
    """Run the project's tests with pytest; return the failed ones with their text."""
    report = tmp_path / "report.xml"
    done = run_pytest(PROJECT, f"--junitxml={report}", *arguments, **env)
    failed = {
        str(case.get("name")): problem.text or ""
        for case in ET.parse(report).iter("testcase")  # noqa: S314 - pytest wrote it
        for problem in case
        if problem.tag in ("failure", "error")
    }
    return failed, done


def test_pytest(database: Database, tmp_path: Path) -> None:
    """The project's tests pass with pytest, including Django's test cases."""
    failed, done = failures(tmp_path, **database)
    assert failed == {}
    assert done.returncode == 0, done.stdout + done.stderr
    on_postgresql = int("POSTGRESQL_NAME" in database)
    assert counts(done) == {
        "passed": 41 + on_postgresql,
        "skipped": 3 - on_postgresql,
        "xfailed": 1,
    }


def test_django(database: Database) -> None:
    """Django's test cases pass with ``manage.py test``, with warnings as errors."""
    done = run_python(PROJECT, "-W", "error", "manage.py", "test", **database)
    assert done.returncode == 0, done.stderr
    assert "Ran 18 tests" in done.stderr


def test_in_parallel(database: Database) -> None:
    """They pass in several processes, which Django forks."""
    options = ("--parallel", "2")
    done = run_python(PROJECT, "-W", "error", "manage.py", "test", *options, **database)
    assert done.returncode == 0, done.stderr
    assert "Ran 18 tests" in done.stderr


SPAWNING = """
import multiprocessing
from django.core.management import execute_from_command_line

multiprocessing.set_start_method("spawn")
execute_from_command_line(["manage.py", "test", "--parallel", "2"])
"""


def test_in_parallel_where_processes_are_spawned() -> None:
    """They find this package's classes for tests there too, as on macOS."""
    settings = {"DJANGO_SETTINGS_MODULE": "mysite.settings"}
    done = run_python(PROJECT, "-c", SPAWNING, **settings)
    assert done.returncode == 0, done.stderr
    assert "Ran 18 tests" in done.stderr


def test_with_a_database_that_is_kept(database: Database) -> None:
    """It can be dropped later: a live server has left no connection."""
    for option in ("--keepdb", "--noinput"):
        tests = ("test", option, "books.tests.ServerTests")
        done = run_python(PROJECT, "manage.py", *tests, **database)
        assert done.returncode == 0, done.stderr


OTHER_RUNNER = """
import unittest
import django
from django.test.utils import setup_databases, setup_test_environment

django.setup()
{install}
setup_test_environment()
setup_databases(verbosity=0, interactive=False)
unittest.main("books.tests", argv=["tests", "ServerTests"])
"""


@pytest.mark.parametrize("install", ["", "import trio_asgi.testing as t; t.install()"])
def test_another_runner(install: str) -> None:
    """It calls `install`, unless it has imported Django's test cases before."""
    script = OTHER_RUNNER.format(install=install)
    if not install:
        script = f"import django.test\n{script}"
    settings = {"DJANGO_SETTINGS_MODULE": "mysite.settings"}
    done = run_python(PROJECT, "-c", script, **settings)
    assert done.returncode == 0, done.stderr
    assert "Ran 3 tests" in done.stderr


def test_failures_by_pytest(database: Database, tmp_path: Path) -> None:
    """A failure in a test on Trio is reported, and leaves no row."""
    failed, done = failures(tmp_path, "failing.py", **database)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert failed.keys() == {
        "test_assertion",
        "test_error",
        "test_task",
        "test_fixture",
    }
    assert "AssertionError: assert 'sync' == 'expected'" in failed["test_assertion"]
    assert "ValueError: the view failed" in failed["test_error"]
    assert "ValueError: a task failed" in failed["test_task"]
    assert "ValueError: a fixture failed" in failed["test_fixture"]


def test_failures_by_django() -> None:
    """A failure in an async test of Django's test case is reported."""
    done = run_python(PROJECT, "manage.py", "test", "books.failing")
    assert done.returncode == 1
    assert "AssertionError: 'seen' != 'expected'" in done.stderr
    assert "ValueError: the view failed" in done.stderr
    assert "ValueError: a task failed" in done.stderr
    assert "FAILED (failures=1, errors=2)" in done.stderr


def test_marked(tmp_path: Path) -> None:
    """Without pytest-trio's mode, marked tests run on Trio, and no others."""
    failed, done = failures(tmp_path, "-o", "trio_mode=false", "marked.py")
    assert failed == {}
    assert counts(done) == {"passed": 3}


def test_without_pytest_trio() -> None:
    """The plugin says what it needs."""
    done = run_pytest(PROJECT, "-p", "no:trio", "-o", "addopts=", "marked.py")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "needs pytest-trio: pip install pytest-trio" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
def test_interrupted(database: Database, tmp_path: Path) -> None:
    """A time-out fails its test; Ctrl-C ends the tests, after the test's clean-up."""
    failed, done = failures(tmp_path, "-s", "interrupted.py", **database)
    assert done.returncode == pytest.ExitCode.INTERRUPTED
    assert failed.keys() == {"test_too_long"}
    assert "Timeout" in failed["test_too_long"]
    assert counts(done) == {"failed": 1, "passed": 1}
    assert "cleaned up with 0" in done.stdout
    assert "KeyboardInterrupt" in done.stdout

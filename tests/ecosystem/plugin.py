"""The plugin for pytest that `run` gives to another package's tests.

What it is to do stands in the environment, for it does some of it when it is imported:
before any ``conftest.py``.
"""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django_suite.journal import Journal
from django_suite.recorder import Recorder

from . import handlers

if TYPE_CHECKING:
    from collections.abc import Iterator

import pytest

HANDLER = os.environ["ECOSYSTEM_HANDLER"]
notes = Recorder(Journal(Path(os.environ["ECOSYSTEM_JOURNAL"])))

handlers.install(HANDLER, Path(os.environ["ECOSYSTEM_TESTS"]), notes)


def pytest_configure(config: pytest.Config) -> None:
    """Know the markers of plugins that are not there."""
    config.addinivalue_line("markers", "forked: here, it is not")
    config.addinivalue_line("markers", "asyncio: run by this plugin on Trio")


@pytest.fixture(scope="session", autouse=True)
def _open_database(request: pytest.FixtureRequest) -> None:
    """Open the database, which pytest-django closes for tests that do not ask.

    Django looks at connections that earlier tests left, at each request. Packages whose
    tests each run in a process of their own (``forked``) have none; here there are.
    """
    if request.config.pluginmanager.hasplugin("django"):
        blocker = request.getfixturevalue("django_db_blocker")
        if blocker is not None:  # there are settings
            blocker.unblock()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Note under which test things happen."""
    notes.test = item.nodeid
    yield
    notes.test = None


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run coroutine tests on Trio."""
    if HANDLER != "trio" or not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}

    async def test() -> None:
        await pyfuncitem.obj(**arguments)

    handlers.run_test(notes, test)
    return True


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note how a test, or a phase of it, has ended."""
    if report.when == "call" or not report.passed:
        outcome = report.outcome
        if hasattr(report, "wasxfail"):
            outcome = "failed" if report.passed else "passed"
        notes.journal.note_outcome(report.nodeid, outcome, is_async=False)

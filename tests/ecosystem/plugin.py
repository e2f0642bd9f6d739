"""The pytest plugin that `run` gives to another package's tests.

Its options are in the environment, because some of its work is done at import,
before any ``conftest.py``.
"""

from __future__ import annotations

import inspect
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

from django_suite.journal import Journal
from django_suite.recorder import Recorder

from . import handlers

HANDLER = os.environ["ECOSYSTEM_HANDLER"]
notes = Recorder(Journal(Path(os.environ["ECOSYSTEM_JOURNAL"])))

handlers.install(HANDLER, Path(os.environ["ECOSYSTEM_TESTS"]), notes)


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers of plugins that are not installed."""
    config.addinivalue_line("markers", "forked: run in a process of its own")
    config.addinivalue_line("markers", "asyncio: run by this plugin on Trio")


def pytest_runtest_logstart(nodeid: str) -> None:
    """Note which test the next notes belong to."""
    notes.test = nodeid


def pytest_runtest_logfinish() -> None:
    """Note that the test has ended."""
    notes.test = None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Run tests with the marker ``forked`` in a separate process."""
    if item.get_closest_marker("forked") is None:
        return None
    names = {"nodeid": item.nodeid, "location": item.location}
    item.ihook.pytest_runtest_logstart(**names)
    for report in _reports_of_child(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(**names)
    return True


def _reports_of_child(item: pytest.Item) -> list[Any]:
    hook, config = item.config.hook, item.config
    with tempfile.TemporaryFile("w+") as file:
        child = os.fork()
        if child == 0:
            try:
                for report in runtestprotocol(item, log=False):
                    data = hook.pytest_report_to_serializable(
                        config=config, report=report
                    )
                    file.write(f"{json.dumps(data)}\n")
                file.flush()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        file.seek(0)
        lines = [json.loads(line) for line in file]
    return [
        hook.pytest_report_from_serializable(config=config, data=data) for data in lines
    ]


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

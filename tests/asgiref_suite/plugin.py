"""Run asgiref's async tests on Trio, except the excluded ones; note the results."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest
import trio

from .excluded import reason

if TYPE_CHECKING:
    from django_suite.journal import Journal

    from .recorder import Recorder


class Plugin:
    """The pytest plugin. An object, so that it can be given its tools."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._journal: Journal = recorder.journal
        self._async: set[str] = set()

    def pytest_addoption(self, parser: pytest.Parser) -> None:
        # What asgiref's configuration sets for the plugin that this one replaces.
        for name in ("asyncio_mode", "asyncio_default_fixture_loop_scope"):
            parser.addini(name, "ignored here")

    def pytest_configure(self, config: pytest.Config) -> None:
        config.addinivalue_line("markers", "asyncio: an async test")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        left_out = [i for i in items if reason(i.path.name, i.name) is not None]
        items[:] = [item for item in items if item not in left_out]
        for item in left_out:
            self._journal.note_outcome(item.nodeid, "excluded", is_async=False)
        for item in items:
            if inspect.iscoroutinefunction(getattr(item, "obj", None)):
                self._async.add(item.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.outcome != "passed":
            self._journal.note_outcome(report.nodeid, report.outcome, is_async=False)

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: Any) -> bool | None:
        test = pyfuncitem.obj
        if not inspect.iscoroutinefunction(test):
            return None
        names = inspect.signature(test).parameters
        arguments = {name: pyfuncitem.funcargs[name] for name in names}
        recorded = self._recorder.recorded(test)

        async def main() -> None:
            await recorded(**arguments)

        trio.run(main)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._journal.note_outcome(
                report.nodeid, report.outcome, is_async=report.nodeid in self._async
            )

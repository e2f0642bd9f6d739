"""Note how each test ended, and where each async test ran."""

from __future__ import annotations

import asyncio
import functools
import inspect
import unittest
from typing import TYPE_CHECKING, Any, ClassVar

import django.test.runner
import django.test.testcases
import trio
from asgiref.sync import AsyncToSync, async_to_sync, iscoroutinefunction

if TYPE_CHECKING:
    from collections.abc import Callable

    from .journal import Journal


def install(journal: Journal) -> Recorder:
    """Patch unittest, Django and asyncio with it, before any test is loaded."""
    _Results.journal = journal
    runner: Any = django.test.runner.DiscoverRunner
    get_resultclass = runner.get_resultclass

    def get_first_resultclass(self: Any) -> Any:
        # Later ones belong to tests of Django's test runner.
        runner.get_resultclass = get_resultclass
        return _Result if self.parallel <= 1 else None

    runner.get_resultclass = get_first_resultclass
    # Django's parallel test processes send their results to the main one, which on
    # Python 3.12.1 attributes them to other tests. So each keeps its own record.
    django.test.runner.RemoteTestRunner.resultclass = _RemoteResult
    recorder = Recorder(journal)
    recorder.install()
    return recorder


class Recorder:
    """Notes what the running test does. Each test process has a copy, by fork."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        #: The running test; a process runs one at a time.
        self.test: str | None = None

    def install(self) -> None:
        # Django calls this with each test method that is a coroutine function.
        django.test.testcases.async_to_sync = (  # type: ignore[attr-defined]
            lambda method: async_to_sync(self.recorded(method))
        )
        test_case: Any = django.test.testcases.SimpleTestCase
        test_case._setup_and_call = self.with_name(test_case._setup_and_call)
        loop: Any = asyncio.BaseEventLoop
        loop.run_forever = self.started_asyncio(loop.run_forever)

    def recorded(self, afn: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``afn`` with a note of where it runs."""

        @functools.wraps(afn)
        async def recorded(*args: Any, **kwargs: Any) -> Any:
            self.note(_running_library())
            return await afn(*args, **kwargs)

        return recorded

    def with_name(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return a wrapper that knows its test; record one that converts itself."""

        @functools.wraps(original)
        def _setup_and_call(test: unittest.TestCase, *args: Any, **kwargs: Any) -> None:
            self.test = test.id()
            method = _undecorated(test)
            original_awaitable = None
            if isinstance(method, AsyncToSync):
                original_awaitable = method.awaitable
                method.awaitable = self.recorded(original_awaitable)
            try:
                original(test, *args, **kwargs)
            finally:
                self.test = None
                if original_awaitable is not None:
                    method.awaitable = original_awaitable

        return _setup_and_call

    def started_asyncio(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return a wrapper that notes that an asyncio loop is run."""

        @functools.wraps(original)
        def run_forever(loop: asyncio.BaseEventLoop) -> None:
            self.note("asyncio")
            original(loop)

        return run_forever

    def note(self, library: str) -> None:
        if self.test is not None:
            self.journal.note_ran_on(self.test, library)

    def note_request(self, *, on_trio: bool) -> None:
        """Note that the sync client has made a request."""
        if self.test is not None:
            self.journal.note_request(self.test, on_trio=on_trio)

    def note_difference(self, difference: str) -> None:
        """Note that the messages sent differ from the response."""
        if self.test is not None:
            self.journal.note_difference(self.test, difference)


def _running_library() -> str:
    if asyncio._get_running_loop() is not None:
        return "asyncio"
    return "trio" if trio.lowlevel.in_trio_task() else "nothing"


def _undecorated(test: unittest.TestCase) -> Any:
    """Return the test's function without its decorators, except for async_to_sync."""
    name = getattr(test, "_testMethodName", "")
    return inspect.unwrap(inspect.getattr_static(test, name, None))


def _is_async(test: unittest.TestCase) -> bool:
    method = _undecorated(test)
    return isinstance(method, AsyncToSync) or iscoroutinefunction(method)


class _Results(unittest.TestResult):
    """Results, noted in the process in which the test has run."""

    journal: ClassVar[Journal]

    def _note(self, test: unittest.TestCase, outcome: str) -> None:
        test = getattr(test, "test_case", test)  # of a subtest
        self.journal.note_outcome(test.id(), outcome, is_async=_is_async(test))

    def addSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        self._note(test, "passed")
        super().addSuccess(test)

    def addExpectedFailure(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        self._note(test, "passed")
        super().addExpectedFailure(test, err)

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:  # noqa: N802
        self._note(test, "skipped")
        super().addSkip(test, reason)

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        self._note(test, "failed")
        super().addFailure(test, err)

    def addError(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        self._note(test, "failed")
        super().addError(test, err)

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        self._note(test, "failed")
        super().addUnexpectedSuccess(test)

    def addSubTest(  # noqa: N802
        self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any
    ) -> None:
        if err is not None:
            self._note(test, "failed")
        super().addSubTest(test, subtest, err)


class _Result(_Results, unittest.TextTestResult):
    """The results shown in the terminal."""


class _RemoteResult(_Results, django.test.runner.RemoteTestResult):
    """The results that a parallel test process sends to the main one."""

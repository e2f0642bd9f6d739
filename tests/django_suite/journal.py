"""What happened to each test: written by the test processes, judged by `run`.

Each fact is one line of JSON, appended in one write, so that Django's parallel test
processes can share the file.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Test:
    """All that is known about one test."""

    name: str
    is_async: bool = False
    #: "passed", "failed" or "skipped"; several if subtests differ.
    outcomes: set[str] = field(default_factory=set)
    #: Where its coroutine ran: "trio", "asyncio" or "nothing". Also "asyncio" if
    #: an asyncio loop was started anywhere in the process meanwhile.
    ran_on: set[str] = field(default_factory=set)
    #: How many requests of the sync client `ASGIHandler` has answered, and how many
    #: went to Django's own handler.
    requests: int = 0
    kept_requests: int = 0
    #: How the messages sent differ from the response object.
    differences: list[str] = field(default_factory=list)

    @property
    def outcome(self) -> str:
        """The worst outcome, except that a skipped subtest does not skip the test."""
        for outcome in ("failed", "passed", "skipped"):
            if outcome in self.outcomes:
                return outcome
        return "lost"


class Journal:
    """The file of facts. Any process may write to it, at any time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def note_outcome(self, test: str, outcome: str, *, is_async: bool) -> None:
        self._append({"test": test, "outcome": outcome, "is_async": is_async})

    def note_ran_on(self, test: str, library: str) -> None:
        self._append({"test": test, "ran_on": library})

    def note_request(self, test: str, *, on_trio: bool) -> None:
        self._append({"test": test, "on_trio": on_trio})

    def note_difference(self, test: str, difference: str) -> None:
        self._append({"test": test, "difference": difference})

    def read(self) -> dict[str, Test]:
        """Return all tests by name."""
        tests: dict[str, Test] = {}
        for line in self.path.read_text().splitlines():
            fact = json.loads(line)
            test = tests.setdefault(fact["test"], Test(fact["test"]))
            if "outcome" in fact:
                test.outcomes.add(fact["outcome"])
                test.is_async |= fact["is_async"]
            elif "on_trio" in fact:
                test.requests += fact["on_trio"]
                test.kept_requests += not fact["on_trio"]
            elif "difference" in fact:
                test.differences.append(fact["difference"])
            else:
                test.ran_on.add(fact["ran_on"])
        return tests

    def _append(self, fact: dict[str, object]) -> None:
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(file, f"{json.dumps(fact)}\n".encode())
        finally:
            os.close(file)


class Verdict:
    """Whether every async test ran on Trio, and every test passed."""

    def __init__(self, tests: dict[str, Test]) -> None:
        asynchronous = [test for test in tests.values() if test.is_async]
        self.skipped = [t for t in asynchronous if t.outcome == "skipped"]
        self.ran = [t for t in asynchronous if t.outcome != "skipped"]
        self.failed = [t for t in self.ran if t.outcome != "passed"]
        # A test that failed before its coroutine's first line ran nowhere.
        self.on_asyncio = [
            t
            for t in self.ran
            if t.ran_on != {"trio"} and (t.ran_on or t.outcome == "passed")
        ]
        self.passed_on_trio = [
            t for t in self.ran if t.outcome == "passed" and t.ran_on == {"trio"}
        ]
        others = [test for test in tests.values() if not test.is_async]
        self.others_failed = [
            t for t in others if t.outcome not in ("passed", "skipped")
        ]
        self.others_on_asyncio = [t for t in others if "asyncio" in t.ran_on]
        self.others_passed = [t for t in others if t.outcome == "passed"]

    @property
    def good(self) -> bool:
        """Whether this is a proof; without any test there is none."""
        bad = (self.failed, self.on_asyncio, self.others_failed, self.others_on_asyncio)
        return bool(self.passed_on_trio) and not any(bad)

    def __str__(self) -> str:
        return (
            f"async tests: passed on Trio {len(self.passed_on_trio)} of "
            f"{len(self.ran)}, failed {len(self.failed)}, ran on asyncio "
            f"{len(self.on_asyncio)}, skipped {len(self.skipped)}; "
            f"sync tests: passed {len(self.others_passed)}, "
            f"failed {len(self.others_failed)}, "
            f"started asyncio {len(self.others_on_asyncio)}"
        )

    def details(self) -> list[str]:
        """Return a line for each test that has a problem."""
        return [
            *(f"FAILED      {t.name}" for t in (*self.failed, *self.others_failed)),
            *(
                f"NOT ON TRIO {t.name} ({', '.join(sorted(t.ran_on)) or 'unknown'})"
                for t in (*self.on_asyncio, *self.others_on_asyncio)
            ),
        ]


class ClientVerdict:
    """How the tests went in which Django's sync client was answered on Trio.

    A failed test may also fail with Django's handler: only a run with that can tell.
    """

    def __init__(self, tests: dict[str, Test], accepted: dict[str, str]) -> None:
        """Judge.

        Args:
            tests: What happened to each test.
            accepted: The tests that must fail, each with the reason.
        """
        self.tests = tests
        failed = [t.name for t in tests.values() if t.outcome in {"failed", "lost"}]
        self.accepted = [name for name in failed if name in accepted]
        self.failed = [name for name in failed if name not in accepted]
        self.requests = sum(test.requests for test in tests.values())
        self.kept_requests = sum(test.kept_requests for test in tests.values())
        self.differing = [test for test in tests.values() if test.differences]
        #: Accepted tests that have not failed.
        self.needless = [
            name
            for name in accepted
            if name in tests and tests[name].outcome == "passed"
        ]

    @property
    def good(self) -> bool:
        """Whether there is no objection, apart from failed tests."""
        return bool(self.requests) and not (self.differing or self.needless)

    def __str__(self) -> str:
        return (
            f"tests {len(self.tests)}, requests {self.requests}, and by Django's "
            f"handler {self.kept_requests}; differences on the wire "
            f"{len(self.differing)}; differ by design {len(self.accepted)}"
        )

    def details(self) -> list[str]:
        """Return a line for each problem."""
        return [
            *(
                f"ON THE WIRE  {test.name}: {difference}"
                for test in self.differing
                for difference in test.differences
            ),
            *(f"NO LONGER    differs: {name}" for name in self.needless),
        ]


def lost_passes(before: dict[str, Test], after: dict[str, Test]) -> list[str]:
    """Return the names of the tests that passed before, and do not now."""
    return sorted(
        name
        for name, test in before.items()
        if test.outcome == "passed" and after.get(name, Test(name)).outcome != "passed"
    )


def count_failed(tests: dict[str, Test]) -> int:
    """Return how many tests failed, or did not finish."""
    return sum(test.outcome in {"failed", "lost"} for test in tests.values())

"""Run other packages' tests, with their requests answered on Trio and without.

    python -m ecosystem.run                          # all packages
    python -m ecosystem.run sentry-sdk adrf

Each package's tests run with Django's handlers, with Django's `ASGIHandler` only, and
with `trio_asgi.ASGIHandler`: see `handlers`. The exit status is 0 if no test fails only
on Trio, except those that `packages` accepts with a reason; if these do fail; and if
there were requests. The tests are those of the installed releases.
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from django_suite.journal import Journal, lost_passes
from suite_support import fetch_tests

from .handlers import HANDLERS
from .packages import PACKAGES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from django_suite.journal import Test

    from .packages import Package

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / ".nox" / ".cache" / "ecosystem"

#: How often a test that fails only on Trio is tried again: some tests measure time.
RETRIES = 2

HEADER = (
    "| package | whose tests | tests | requests on Trio | async tests on Trio "
    "| failed without Trio | failed with Django's ASGIHandler too "
    "| failed on Trio only | accepted |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m ecosystem.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    by_name = {package.name: package for package in PACKAGES}
    parser.add_argument("packages", nargs="*", metavar="package", default=[*by_name])
    parser.add_argument(
        "--sources", type=Path, default=SOURCES, help="where downloads are kept"
    )
    options = parser.parse_args()
    unknown = sorted({*options.packages} - {*by_name})
    if unknown:
        parser.error(f"unknown: {unknown}; known are {[*by_name]}")
    results = [
        Result.of(by_name[name], options.sources.resolve()) for name in options.packages
    ]
    lines = [line for result in results for line in result.details()]
    table = [HEADER, *map(str, results)]
    sys.stdout.write("\n".join(["", *lines, "", *table, ""]))
    sys.exit(not all(result.good for result in results))


@dataclass
class Result:
    """How the tests of a package went."""

    package: Package
    tests: dict[str, Test]
    failed_without: list[str]
    #: Tests that fail with Django's own `ASGIHandler` too.
    not_by_asgi: list[str]
    lost: list[str]
    late: list[str]
    accepted: list[str]
    needless: list[str]

    @classmethod
    def of(cls, package: Package, sources: Path) -> Result:
        """Run the tests, as often as needed, and compare."""
        folder = HERE
        if package.tests:
            release = version(package.name)
            folder = fetch_tests(package.name, release, sources).parent
        run = functools.partial(run_tests, package, folder, names=package.tests)
        with ThreadPoolExecutor(min(os.cpu_count() or 1, len(HANDLERS))) as threads:
            plain, asgi, on_trio = threads.map(run, HANDLERS)
        lost = set(lost_passes(plain, on_trio))
        not_by_asgi = lost & set(lost_passes(plain, asgi))
        accepted = {n for n in lost - not_by_asgi if _matches(n, package.accepted)}
        seemed = lost = lost - not_by_asgi - accepted
        for _ in range(RETRIES):
            if lost:
                again = run_tests(package, folder, "trio", sorted(lost))
                lost = {name for name in lost if name in lost_passes(plain, again)}
        failed = {pattern for pattern in package.accepted if _any(accepted, pattern)}
        return cls(
            package,
            on_trio,
            sorted(name for name, test in plain.items() if test.outcome == "failed"),
            sorted(not_by_asgi),
            sorted(lost),
            sorted(seemed - lost),
            sorted(accepted),
            sorted({*package.accepted} - failed),
        )

    @property
    def requests(self) -> int:
        """How many requests our handler has answered."""
        return sum(test.requests for test in self.tests.values())

    @property
    def on_trio(self) -> int:
        """How many async tests ran on Trio."""
        return sum("trio" in test.ran_on for test in self.tests.values())

    @property
    def good(self) -> bool:
        """Whether there is no objection."""
        tried = self.requests if self.package.has_requests else self.on_trio
        return bool(tried) and not self.lost and not self.needless

    def details(self) -> Iterator[str]:
        """Yield the lines worth reading."""
        for what, names in (
            ("NOT BY ASGI", self.not_by_asgi),
            ("ACCEPTED", self.accepted),
            ("PASSED LATE", self.late),
            ("ACCEPTED, BUT PASSES", self.needless),
            ("ONLY ON TRIO", self.lost),
        ):
            for name in names:
                yield f"{self.package.name}: {what}: {name}"

    def __str__(self) -> str:
        whose = "its own" if self.package.tests else "ours"
        numbers = [
            len(self.tests),
            self.requests,
            self.on_trio,
            *map(
                len, (self.failed_without, self.not_by_asgi, self.lost, self.accepted)
            ),
        ]
        name = f"{self.package.name} {version(self.package.name)}"
        return f"| {name} | {whose} | {' | '.join(map(str, numbers))} |"


def run_tests(
    package: Package, folder: Path, handler: str, names: Sequence[str]
) -> dict[str, Test]:
    """Run tests in a separate process; return what happened to each."""
    with tempfile.TemporaryDirectory() as temporary:
        journal = Journal(Path(temporary, "journal"))
        journal.path.touch()
        python = [sys.executable, "-W", "ignore", "-m"]
        if package.by_django:
            command = [*python, "ecosystem.launch", "--parallel", "1", *names]
        else:
            plugins = ["-p", "ecosystem.plugin", "-p", "no:trio", "-p", "no:forked"]
            if handler == "trio":
                plugins += ["-p", "no:asyncio"]
            options = ["-q", "--tb=short", "-W", "ignore", *plugins, *package.arguments]
            if not package.tests:
                options += ["-c", os.devnull, f"--rootdir={HERE}"]
                options += [f"--confcutdir={HERE}", "-p", "no:django"]
                names = names or [f"ours/with_{package.name.replace('-', '_')}.py"]
            command = [*python, "pytest", *options, *names]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(folder), str(HERE.parent)]),
            "ECOSYSTEM_HANDLER": handler,
            "ECOSYSTEM_JOURNAL": str(journal.path),
            "ECOSYSTEM_TESTS": str(folder / ("tests" if package.tests else "ours")),
        }
        environment.pop("DJANGO_SETTINGS_MODULE", None)
        if package.settings:
            environment["DJANGO_SETTINGS_MODULE"] = package.settings
        output = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ).stdout
        sys.stdout.write(f"\n== {package.name}, handler: {handler}\n{output}")
        sys.stdout.flush()
        return journal.read()


def _matches(name: str, patterns: dict[str, str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _any(names: set[str], pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


if __name__ == "__main__":
    main()

"""Run Django's own tests on Trio, and report how many really ran there.

    python -m django_suite.run                      # all that have async tests
    python -m django_suite.run --labels asgi async
    python -m django_suite.run --database postgresql
    python -m django_suite.run --all --compare      # with and without the bridge
    python -m django_suite.run --client             # Django's sync client, see below

The tests are those of the installed Django. The exit status is 0 if all tests passed
and every async test ran on Trio; with ``--compare``, if every test that passes without
the bridge passes with it, if need be when it is run again.

With ``--client``, each request of Django's sync test client is answered by
`trio_asgi.ASGIHandler`: see `sync_client`. The exit status is 0 if no test fails that
passes with Django's handler, except for those in `accepted`; if these do fail; if the
messages sent match the response; and if there were any requests.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import django

from suite_support import fetch_tests

from .accepted import ACCEPTED
from .journal import (
    ClientVerdict,
    Journal,
    Test,
    Verdict,
    count_failed,
    lost_passes,
)

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / ".nox" / ".cache" / "django"

#: The test folders for async code; others that have some are added.
LABELS = [
    "async",
    "asgi",
    "auth_tests",
    "sessions_tests",
    "decorators",
    "cache",
    "test_client",
    "middleware_exceptions",
    "handlers",
    "generic_relations",
    "basic",
    "signals",
    "staticfiles_tests",
    "logging_tests",
    "httpwrappers",
    "pagination",
    "tasks",
    "middleware",
    "deprecation",
]

#: Text that shows that a test uses the sync client.
CALL_OF_CLIENT = re.compile(
    r"\bclient\.(get|post|put|patch|delete|head|options|trace|generic|request|"
    r"login|force_login|logout)\("
)
#: The name of a class whose set-up has failed.
FAILED_CLASS = re.compile(r"setUpClass \((.*)\)")

#: How often a test that passed only without the bridge is tried again.
RETRIES = 3

SETTINGS = {name: f"django_suite.{name}" for name in ("sqlite", "postgresql")}


@dataclasses.dataclass(frozen=True)
class Suite:
    """The tests of one Django, and which of them to run on which database."""

    tests: Path
    database: str
    labels: list[str]
    parallel: int

    def run(self, *, bridge: bool, client: bool = False) -> dict[str, Test]:
        """Run them in a separate process; return what happened to each.

        Args:
            bridge: Whether to install the bridge.
            client: Whether the sync client's requests go through `ASGIHandler`.
        """
        with tempfile.TemporaryDirectory() as folder:
            journal = Journal(Path(folder, "journal"))
            journal.path.touch()
            command = [
                *(sys.executable, "-m", "django_suite.launch"),
                *("--tests", str(self.tests), "--journal", str(journal.path)),
                *(["--bridge"] if bridge else []),
                *(["--client"] if client else []),
                *("--settings", SETTINGS[self.database]),
                *("--parallel", str(self.parallel), "--noinput", *self.labels),
            ]
            status = subprocess.run(command, cwd=HERE.parent, check=False).returncode
            tests = journal.read()
        failed = any(test.outcome == "failed" for test in tests.values())
        if bool(status) != failed:
            raise SystemExit(f"runtests.py ended with {status}: see above.")
        return tests


def main() -> None:
    """Run the command line."""
    options = parse_arguments()
    tests = fetch_tests("Django", django.get_version(), options.sources.resolve())
    find_labels = client_labels if options.client else async_labels
    labels = options.labels or find_labels(tests)
    suite = Suite(
        tests, options.database, [] if options.all else labels, options.parallel
    )
    if options.client:
        lines, good = try_client(suite)
    elif options.compare:
        lines, good = compare(suite)
    else:
        lines, good = prove(suite)
    what = f"Django {django.get_version()}, {options.database}"
    sys.stdout.write("\n".join([*lines[:-1], f"{what}, {lines[-1]}", ""]))
    sys.exit(not good)


def prove(suite: Suite) -> tuple[list[str], bool]:
    """Return the problems and the summary; and whether the result is good."""
    verdict = Verdict(suite.run(bridge=True))
    return [*verdict.details(), str(verdict)], verdict.good


def compare(suite: Suite) -> tuple[list[str], bool]:
    """Return what passes only without the bridge, the summary, and the verdict.

    Some of Django's tests measure time. A test that seems to be lost is run again by
    itself, and is reported in any case.
    """
    with_bridge = suite.run(bridge=True)
    without = suite.run(bridge=False)
    lost = lost_passes(without, with_bridge)
    seemed = lost
    for _ in range(RETRIES):
        if lost:
            again = dataclasses.replace(suite, labels=lost, parallel=1)
            lost = sorted(set(lost) & set(lost_passes(without, again.run(bridge=True))))
    lines = [
        *(f"LOST        {name}" for name in lost),
        *(f"PASSED LATE {name}" for name in seemed if name not in lost),
        f"{len(without)} tests: failed with the bridge {count_failed(with_bridge)}, "
        f"without {count_failed(without)}; passed only without {len(lost)}, and "
        f"{len(seemed) - len(lost)} when run again",
    ]
    return lines, not lost


def try_client(suite: Suite) -> tuple[list[str], bool]:
    """Return the sync client's differences, the summary, and the verdict.

    Failed tests are run again with Django's handler. Those that pass then are tried
    again by themselves, since some of Django's tests measure time, and are reported in
    any case.
    """
    tests = suite.run(bridge=True, client=True)
    verdict = ClientVerdict(tests, ACCEPTED)
    without: dict[str, Test] = {}
    if verdict.failed:
        names = [FAILED_CLASS.sub(r"\1", name) for name in verdict.failed]
        alone = dataclasses.replace(suite, labels=names, parallel=1)
        without = alone.run(bridge=False)
    seemed = lost = lost_passes(without, tests)
    for _ in range(RETRIES):
        if lost:
            alone = dataclasses.replace(suite, labels=lost, parallel=1)
            again = lost_passes(without, alone.run(bridge=True, client=True))
            lost = sorted(set(lost) & set(again))
    late = [name for name in seemed if name not in lost]
    lines = [
        *(f"ONLY ON TRIO {name}" for name in lost),
        *(f"PASSED LATE  {name}" for name in late),
        *verdict.details(),
        f"the sync client through ASGIHandler: {verdict}; failed only on Trio "
        f"{len(lost)}, and {len(late)} but once",
    ]
    return lines, verdict.good and not lost


def parse_arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m django_suite.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--database", choices=SETTINGS, default="sqlite")
    parser.add_argument(
        "--client",
        action="store_true",
        help="have ASGIHandler answer Django's sync test client",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--labels", nargs="+", help="only these of Django's tests")
    which.add_argument("--all", action="store_true", help="Django's whole suite")
    parser.add_argument(
        "--compare", action="store_true", help="run once more, without the bridge"
    )
    parser.add_argument("--parallel", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--sources", type=Path, default=SOURCES, help="where downloads are kept"
    )
    return parser.parse_args()


def async_labels(tests: Path) -> list[str]:
    """Return the labels of all apps that have async tests."""
    found = {
        path.relative_to(tests).parts[0]
        for path in tests.glob("*/**/*.py")
        if "async def test_" in path.read_text(encoding="utf-8", errors="replace")
    }
    return sorted(found | {label for label in LABELS if (tests / label).is_dir()})


def client_labels(tests: Path) -> list[str]:
    """Return the labels of all tests that call the sync client."""
    found = {
        path.relative_to(tests).parts[0]
        for path in tests.glob("*/**/*.py")
        if CALL_OF_CLIENT.search(path.read_text("utf-8", "replace"))
    }
    # They need a separate database.
    return sorted(found - {"gis_tests"})


if __name__ == "__main__":
    main()

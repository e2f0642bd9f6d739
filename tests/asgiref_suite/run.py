"""Run asgiref's own tests on Trio, and report how many really ran there.

    python -m asgiref_suite.run
    python -m asgiref_suite.run -k executor     # further arguments are pytest's

The tests are those of the installed asgiref. The exit status is 0 if all tests
passed, and all that run a coroutine ran it on Trio.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import asgiref

from django_suite.journal import Journal, Test
from suite_support import fetch_tests

from .excluded import reason

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / ".nox" / ".cache" / "asgiref"

#: The run has failed after this time; it takes half a minute.
SECONDS = 600


class Verdict:
    """Whether every test passed, with its coroutines on Trio."""

    def __init__(self, tests: dict[str, Test]) -> None:
        self.excluded = [t for t in tests.values() if "excluded" in t.outcomes]
        rest = [t for t in tests.values() if "excluded" not in t.outcomes]
        self.skipped = [t for t in rest if t.outcome == "skipped"]
        ran = [t for t in rest if t.outcome != "skipped"]
        self.failed = [t for t in ran if t.outcome != "passed"]
        #: The tests that run a coroutine, whether or not they are async themselves.
        self.coroutines = [t for t in ran if t.is_async or t.ran_on]
        self.on_asyncio = [t for t in self.coroutines if t.ran_on != {"trio"}]
        self.passed_on_trio = [
            t for t in self.coroutines if t.outcome == "passed" and t.ran_on == {"trio"}
        ]
        self.others = len(ran) - len(self.coroutines)

    @property
    def good(self) -> bool:
        """Whether this is a proof; without any test there is none."""
        return bool(self.passed_on_trio) and not (self.failed or self.on_asyncio)

    def __str__(self) -> str:
        return (
            f"asgiref {asgiref.__version__}: {len(self.passed_on_trio)} of "
            f"{len(self.coroutines)} passed on Trio, {len(self.failed)} failed, "
            f"{len(self.on_asyncio)} on asyncio, {len(self.excluded)} excluded "
            f"({self.others} run no coroutine, {len(self.skipped)} were skipped)"
        )

    def details(self) -> list[str]:
        """Return a line for each test that has a problem, or is excluded."""
        return [
            *(f"EXCLUDED    {t.name}: {_reason(t)}" for t in self.excluded),
            *(f"FAILED      {t.name}" for t in self.failed),
            *(
                f"NOT ON TRIO {t.name} ({', '.join(sorted(t.ran_on)) or 'unknown'})"
                for t in self.on_asyncio
            ),
        ]


def _reason(test: Test) -> str | None:
    path, _, name = test.name.partition("::")
    return reason(Path(path).name, name)


def main() -> None:
    """Run the command line."""
    options, arguments = parse_arguments()
    tests = fetch_tests("asgiref", asgiref.__version__, options.sources.resolve())
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder, "journal"))
        journal.path.touch()
        command = [
            *(sys.executable, "-m", "asgiref_suite.launch"),
            *("--tests", str(tests), "--journal", str(journal.path)),
            *("-p", "pytest_timeout", "--timeout=60", "--timeout-method=thread"),
            *("-q", *arguments),
        ]
        # Other pytest plugins that are installed must not interfere.
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        done = subprocess.run(
            command, cwd=HERE.parent, env=environment, timeout=SECONDS, check=False
        )
        verdict = Verdict(journal.read())
    sys.stdout.write("\n".join([*verdict.details(), f"{verdict}\n"]))
    sys.exit(bool(done.returncode) or not verdict.good)


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """Return the command line's options, and the arguments left for pytest."""
    parser = argparse.ArgumentParser(
        prog="python -m asgiref_suite.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--sources", type=Path, default=SOURCES, help="where downloads are kept"
    )
    return parser.parse_known_args()


if __name__ == "__main__":
    main()

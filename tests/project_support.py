"""Support for tests that run a project's own tests, as its users do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

#: Variables that would choose settings or options for the project's tests.
_NOT_INHERITED = {"DJANGO_SETTINGS_MODULE", "PYTEST_ADDOPTS", "POSTGRESQL_NAME"}


def run_python(
    project: Path, *arguments: str, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run Python in a project's directory."""
    inherited = {
        key: value for key, value in os.environ.items() if key not in _NOT_INHERITED
    }
    return subprocess.run(
        [sys.executable, *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=project,
        env={**inherited, "PYTHONDONTWRITEBYTECODE": "1", **env},
        timeout=100,
    )


def run_pytest(
    project: Path, *arguments: str, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a project's tests by pytest."""
    options = ("-p", "no:cacheprovider", "--tb=short")
    return run_python(project, "-m", "pytest", *options, *arguments, **env)


def counts(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """Return how many tests passed, failed and so on, by pytest's last line."""
    last = done.stdout.strip().splitlines()[-1]
    return {word: int(number) for number, word in re.findall(r"(\d+) ([a-z]+)", last)}

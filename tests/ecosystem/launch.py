"""Run a package's tests by ``django-admin test``, as the package does.

Called by `run`, with the arguments for ``django-admin test``. The environment holds
the rest: see `plugin`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from django.core.management import execute_from_command_line

from django_suite import recorder
from django_suite.journal import Journal

from . import handlers


def main() -> None:
    """Prepare this process, and run the tests."""
    notes = recorder.install(Journal(Path(os.environ["ECOSYSTEM_JOURNAL"])))
    tests = Path(os.environ["ECOSYSTEM_TESTS"])
    handlers.install(os.environ["ECOSYSTEM_HANDLER"], tests, notes)
    execute_from_command_line(["django-admin", "test", *sys.argv[1:]])


if __name__ == "__main__":
    main()

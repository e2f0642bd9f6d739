"""Set up Django before the tests are imported."""

from __future__ import annotations

import gc
import os

import django

from thread_support import lease, pool

os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
django.setup()

__all__ = ["lease", "pool"]

# Until all tests are known, hardly anything is garbage.
gc.disable()


def pytest_collection_finish() -> None:
    """Exclude from garbage collection what exists now: it stays to the end."""
    gc.enable()
    gc.collect()
    gc.freeze()


#: A separate project, with tests that test_user_testing.py runs.
collect_ignore = ["user_project"]

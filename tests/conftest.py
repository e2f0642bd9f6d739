"""Set up Django before the tests are imported."""

from __future__ import annotations

import gc
import os

import django
import pytest

from thread_support import lease, pool

os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
django.setup()

__all__ = ["lease", "pool", "watching_at_once"]

# Until all tests are known, hardly anything is garbage.
gc.disable()


def pytest_collection_finish() -> None:
    """Exclude from garbage collection what exists now: it stays to the end."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture
def watching_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let requests watch for the disconnect as soon as they wait, not after 50 ms.

    A test that waits until all tasks are blocked then finds the watcher there.
    """
    monkeypatch.setattr("trio_asgi.asgi.exchange.WATCH_SECONDS", 0)


#: A separate project, with tests that test_user_testing.py runs.
collect_ignore = ["user_project"]

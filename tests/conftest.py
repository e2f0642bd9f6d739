"""Set up Django before the tests are imported."""

from __future__ import annotations

import os

import django

from thread_support import lease, pool

os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
django.setup()

__all__ = ["lease", "pool"]

#: A separate project, with tests that test_user_testing.py runs.
collect_ignore = ["user_project"]

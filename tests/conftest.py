"""Set up Django before the tests are imported."""

from __future__ import annotations

import os

import django

os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
django.setup()

"""Start pytest with asgiref's tests on Trio. Called by `run`.

Processes that a test starts with `multiprocessing` import this module too, as their
main module, and get the same preparation.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

import trio_asgi
from django_suite.journal import Journal

from . import counterparts
from .plugin import Plugin
from .recorder import Recorder

parser = argparse.ArgumentParser()
parser.add_argument("--tests", type=Path, required=True)
parser.add_argument("--journal", type=Path, required=True)
options, arguments = parser.parse_known_args()

trio_asgi.install_bridge(async_to_sync_backend="trio")
counterparts.install(options.tests)
recorder = Recorder(Journal(options.journal))
recorder.install()

if __name__ == "__main__":
    # Its way of importing test modules would bypass the counterparts.
    plain = ["--assert=plain", "-p", "no:cacheprovider"]
    sys.exit(pytest.main([*plain, *arguments, str(options.tests)], [Plugin(recorder)]))

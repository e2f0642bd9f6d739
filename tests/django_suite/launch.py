"""Run Django's ``runtests.py``, with the bridge and more if asked. Called by `run`."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import runpy
import sys
from pathlib import Path

import trio_asgi

from . import (
    counterparts,
    postgresql,  # noqa: F401 - settings, imported while they can be found
    recorder,
    sync_client,
)
from .journal import Journal


def main() -> None:
    """Prepare this process, and run ``runtests.py`` in it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tests", type=Path, required=True)
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--bridge", action="store_true")
    parser.add_argument("--client", action="store_true")
    options, arguments = parser.parse_known_args()

    # Django's parallel test processes inherit all this.
    if "fork" in multiprocessing.get_all_start_methods():
        multiprocessing.set_start_method("fork")
    if options.bridge:
        trio_asgi.install_bridge(async_to_sync_backend="trio")
        counterparts.install(options.tests)
    notes = recorder.install(Journal(options.journal))
    if options.client:
        sync_client.install(notes)

    script = str(options.tests / "runtests.py")
    ours = str(Path(sys.path[0]).resolve())
    os.chdir(options.tests)
    # As if the script had been started: tests come from its folder, not from ours.
    sys.path[0] = str(options.tests)
    # But processes that tests start must find our settings.
    path = filter(None, [os.environ.get("PYTHONPATH"), ours])
    os.environ["PYTHONPATH"] = os.pathsep.join(path)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()

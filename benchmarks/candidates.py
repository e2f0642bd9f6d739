"""The candidates, each in its own process, which stays alive and takes orders.

trio_asgi changes asgiref, so the baseline must not share its process. And code, threads
and connections must stay warm from round to round. So a candidate is a process that
runs `obedient.py`. It reads orders from a pipe and does nothing between them: only one
candidate works at a time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self
    from works import Work

HERE = Path(__file__).resolve().parent
#: Their names in the report.
TITLES = {
    "trio_asgi": "trio_asgi",
    "asyncio": "Django's ASGIHandler on asyncio",
    "wsgi": "Django's WSGIHandler",
}
#: Seconds for one order. Only an order that hangs takes so long.
PATIENCE = 300


class Broken(Exception):  # noqa: N818 - it is a candidate that is broken
    """A candidate failed; its standard error says why."""


def environment(work: Work, kind: str, databases: Mapping[str, str]) -> dict[str, str]:
    """Return a candidate's environment: see `project.settings`."""
    keeps = work.keeps_connections and kind != "asyncio"
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "project.settings",
        "BENCHMARK_MIDDLEWARE": work.middleware,
        f"BENCHMARK_{work.database.upper()}": databases[work.database],
        "BENCHMARK_CONN_MAX_AGE": "60" if keeps else "0",
        "BENCHMARK_NAME": f"benchmark {kind}",
    }


class Candidate:
    """A candidate's process, from outside."""

    def __init__(self, kind: str, work: Work, databases: Mapping[str, str]) -> None:
        """Start the process; `wait_ready` waits until it can take orders."""
        self.kind = kind
        self._process = subprocess.Popen(  # noqa: S603 - a script of ours
            [sys.executable, HERE / "obedient.py", kind, work.name],
            env=environment(work, kind, databases),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._process.kill()
        self._process.communicate()

    def wait_ready(self) -> None:
        """Wait until the application has answered some requests.

        Raises:
            Broken: it did not answer, or gave a wrong answer.
        """
        self._read()

    def order(self, name: str, **arguments: Any) -> Any:
        """Have the process call a method of `obedient.Obedient`; return the result.

        Raises:
            Broken: the process has ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([name, arguments]) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._broken() from None
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        watchdog = threading.Timer(PATIENCE, self._process.kill)
        watchdog.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        if not line:
            raise self._broken()
        return json.loads(line)

    def _broken(self) -> Broken:
        status = self._process.wait()
        return Broken(f"{TITLES[self.kind]} has ended with status {status}.")

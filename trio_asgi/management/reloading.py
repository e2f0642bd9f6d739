"""What `runserver` does differently from Django's autoreloader.

Django's parent process kills its child a quarter of a second after Ctrl-C, and at once
when it gets SIGTERM. Here the child has time to shut the application down.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn

from django.utils import autoreload

if TYPE_CHECKING:
    from collections.abc import Iterator

if sys.platform != "win32":
    import termios


def in_child() -> bool:
    """Whether this is the process that serves, which the autoreloader has started."""
    return os.environ.get(autoreload.DJANGO_AUTORELOAD_ENV) == "true"


def run_children(seconds: float) -> NoReturn:
    """Run the server in a child process, and anew whenever a file changes.

    As `autoreload.restart_with_reloader`, in the main thread of the parent process.
    After Ctrl-C or SIGTERM the child has ``seconds`` to end, and is then killed.

    Raises:
        SystemExit: with the child's exit status; with 0 after a signal.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    environ = {**os.environ, autoreload.DJANGO_AUTORELOAD_ENV: "true"}
    if getattr(sys.stdout, "write_through", False):  # python -u
        environ.setdefault("PYTHONUNBUFFERED", "1")
    status = 3
    while status == 3:  # noqa: PLR2004 - a file has changed
        command = autoreload.get_child_arguments()
        with subprocess.Popen(command, env=environ, close_fds=False) as child:  # noqa: S603
            try:
                status = child.wait()
            except (KeyboardInterrupt, SystemExit):
                status = 0
                end_child(child, seconds)
    sys.exit(status)


def end_child(child: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait for the child, which has seen the same signal; then kill it."""
    try:
        if sys.platform != "win32":  # where this would kill it
            child.terminate()  # in case only this process has seen the signal
        child.wait(seconds)
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        child.kill()


@contextmanager
def terminal_restored() -> Iterator[None]:
    """Leave the terminal as it was, if a debugger was at its prompt at the end."""
    if sys.platform == "win32" or not os.isatty(0):
        yield
        return
    modes = termios.tcgetattr(0)
    try:
        yield
    finally:
        # A process in the background would be stopped for changing them.
        with suppress(OSError, termios.error):
            if os.tcgetpgrp(0) == os.getpgrp():
                termios.tcsetattr(0, termios.TCSANOW, modes)

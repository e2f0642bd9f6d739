"""SIGTERM in the worker processes of a server."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from typing import Any, Final

import trio

#: The servers whose parent process sends SIGTERM to workers that are shutting down.
_SERVERS: Final = frozenset({"hypercorn", "anycorn"})


async def leave_sigterm_to_parent() -> None:
    """In a server's worker process, ignore SIGTERM as long as the parent lives.

    A server's parent process tells its workers by other means to shut down, and waits
    for them. But hypercorn 0.18 and anycorn 0.20 also send SIGTERM to the workers that
    are left when the first has ended, as systemd does to all processes of a unit: by
    its default action they would die in the middle of their requests.

    Returns at once in a process that is no such worker, or that handles the signal
    already. Another program's child process, which serves a site beside its work, is
    ended by ``Process.terminate()`` as ever.
    """
    parent = multiprocessing.parent_process()
    if (
        parent is None
        or not _is_worker()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        or threading.current_thread() is not threading.main_thread()
    ):
        return
    with trio.open_signal_receiver(signal.SIGTERM) as arrivals:
        async for _ in arrivals:
            if not parent.is_alive():
                break
    # An orphan has nobody else to listen to, and the default action is back.
    signal.raise_signal(signal.SIGTERM)


def _is_worker() -> bool:
    """Whether this process was started to run a function of a server's."""
    # Private, but the same since Python 2.6, and all that a worker knows of its origin.
    target: Any = getattr(multiprocessing.current_process(), "_target", None)
    module = getattr(target, "__module__", None) or ""
    return module.partition(".")[0] in _SERVERS

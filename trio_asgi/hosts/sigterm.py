"""SIGTERM in the worker processes of a server."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from typing import Any, Final

import trio

#: Servers whose parent process sends SIGTERM to workers that are shutting down.
_SERVERS: Final = frozenset({"hypercorn", "anycorn"})


async def leave_sigterm_to_parent() -> None:
    """Ignore SIGTERM in a server's worker process while its parent lives.

    The parent tells its workers by other means to shut down, and waits for them. But
    when the first has ended, hypercorn 0.18 and anycorn 0.20 also send SIGTERM to the
    others, and systemd sends it to all processes of a unit. The default action would
    kill them in the middle of their requests.

    Returns at once in other processes, and where the signal is handled already.
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
    # The parent is dead, and the default action is back.
    signal.raise_signal(signal.SIGTERM)


def _is_worker() -> bool:
    """Whether this process was started to run a server's function."""
    # Private, but unchanged since Python 2.6, and there is no other sign.
    target: Any = getattr(multiprocessing.current_process(), "_target", None)
    module = getattr(target, "__module__", None) or ""
    return module.partition(".")[0] in _SERVERS

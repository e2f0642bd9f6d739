"""SIGTERM in the worker processes of a server."""

from __future__ import annotations

import multiprocessing
import signal
import threading

import trio


async def leave_sigterm_to_parent() -> None:
    """In a worker process, ignore SIGTERM as long as the parent process lives.

    A server's parent process tells its workers by other means to shut down, and waits
    for them. But hypercorn 0.18 and anycorn 0.20 also send SIGTERM to the workers that
    are left when the first has ended, as systemd does to all processes of a unit: by
    its default action they would die in the middle of their requests.

    Returns at once in a process that is no worker, or that handles the signal already.
    """
    parent = multiprocessing.parent_process()
    if (
        parent is None
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

"""SIGTERM in worker processes."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from sigterm_worker import be_a_host, be_a_parent, spawn, work, worker_of
from trio_asgi.hosts.sigterm import leave_sigterm_to_parent

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no SIGTERM to send"
)


async def test_the_process_that_is_no_worker_is_left_alone() -> None:
    """Without a parent process, the signal's handling is unchanged."""
    await leave_sigterm_to_parent()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("server", ["hypercorn", "anycorn"])
def test_a_worker_outlives_the_signal(server: str) -> None:
    """While the parent lives, SIGTERM does not end a server's worker."""
    ours, theirs = spawn.Pipe()
    worker = worker_of(server, theirs)
    worker.start()
    theirs.close()
    pid = ours.recv()
    for _ in range(3):
        os.kill(pid, signal.SIGTERM)
    ours.send("end")
    worker.join(30)
    assert worker.exitcode == 0


@pytest.mark.parametrize("target", [work, be_a_host])
def test_another_programs_process_is_ended_by_the_signal(
    target: Callable[[Connection], None],
) -> None:
    """``Process.terminate()`` ends a child process that is not a server's worker."""
    ours, theirs = spawn.Pipe()
    child = spawn.Process(target=target, args=(theirs,))
    child.start()
    theirs.close()
    try:
        assert ours.recv() == child.pid
        child.terminate()
        child.join(30)
        assert child.exitcode == -signal.SIGTERM
    finally:
        child.kill()


def test_an_orphan_is_ended_by_the_signal() -> None:
    """When the parent is gone, SIGTERM has its default action again."""
    ours, theirs = spawn.Pipe()
    parent = spawn.Process(target=be_a_parent, args=(theirs,))
    parent.start()
    theirs.close()
    pid = ours.recv()
    parent.join(30)
    os.kill(pid, signal.SIGTERM)
    # The orphan held the pipe's other end, and does not any more.
    with pytest.raises(EOFError):
        ours.recv()

"""SIGTERM in worker processes."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from sigterm_worker import be_a_parent, spawn, work
from trio_asgi._sigterm import leave_sigterm_to_parent

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no SIGTERM to send"
)


async def test_the_process_that_is_no_worker_is_left_alone() -> None:
    """Without a parent process, nothing is done about the signal."""
    await leave_sigterm_to_parent()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_worker_outlives_the_signal() -> None:
    """While the parent lives, SIGTERM does not end the worker."""
    ours, theirs = spawn.Pipe()
    worker = spawn.Process(target=work, args=(theirs,))
    worker.start()
    theirs.close()
    pid = ours.recv()
    for _ in range(3):
        os.kill(pid, signal.SIGTERM)
    ours.send("end")
    worker.join(30)
    assert worker.exitcode == 0


def test_an_orphan_is_ended_by_the_signal() -> None:
    """When the parent is gone, SIGTERM has its default action again."""
    ours, theirs = spawn.Pipe()
    parent = spawn.Process(target=be_a_parent, args=(theirs,))
    parent.start()
    theirs.close()
    pid = ours.recv()
    parent.join(30)
    os.kill(pid, signal.SIGTERM)
    # The orphan held the pipe's other end, and does so no more.
    with pytest.raises(EOFError):
        ours.recv()

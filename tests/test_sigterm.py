"""SIGTERM in worker processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from trio_asgi._sigterm import leave_sigterm_to_parent

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no SIGTERM to send"
)
spawn = multiprocessing.get_context("spawn")


def work(pipe: Connection) -> None:
    """Be a worker that says when it listens, and ends when it is told to."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave_sigterm_to_parent)
            await trio.testing.wait_all_tasks_blocked()
            pipe.send(os.getpid())
            await trio.to_thread.run_sync(pipe.recv, abandon_on_cancel=True)
            nursery.cancel_scope.cancel()

    trio.run(main)


def be_a_parent(pipe: Connection) -> None:
    """Start a worker, and end before it."""
    worker = spawn.Process(target=work, args=(pipe,))
    worker.start()
    pipe.close()
    # Not joined: os._exit() leaves children alone.
    os._exit(0)


async def test_the_process_that_is_no_worker_is_left_alone() -> None:
    """Without a parent process, nothing is done about the signal."""
    await leave_sigterm_to_parent()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_worker_outlives_the_signal() -> None:
    """While the parent lives, SIGTERM does not end the worker."""
    ours, theirs = spawn.Pipe()
    worker = spawn.Process(target=work, args=(theirs,))
    worker.start()
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

"""Worker processes of the tests of SIGTERM; in a module that they can import."""

from __future__ import annotations

import multiprocessing
import os
from typing import TYPE_CHECKING

import trio
import trio.testing

from trio_asgi._sigterm import leave_sigterm_to_parent

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

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

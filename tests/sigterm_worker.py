"""Child processes for the tests of SIGTERM, in a module that they can import."""

from __future__ import annotations

import multiprocessing
import os
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import trio
import trio.testing

import trio_asgi
from trio_asgi.hosts.sigterm import leave_sigterm_to_parent

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

spawn = multiprocessing.get_context("spawn")


def work(pipe: Connection) -> None:
    """Run a process that reports when it listens, and ends when told to."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave_sigterm_to_parent)
            await trio.testing.wait_all_tasks_blocked()
            pipe.send(os.getpid())
            await trio.to_thread.run_sync(pipe.recv, abandon_on_cancel=True)
            nursery.cancel_scope.cancel()

    trio.run(main)


class _Config:
    """The config that `hypercorn.trio.run.trio_worker` and its like use."""

    wsgi_max_body_size = 0
    worker_class = "trio"

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    @property
    def application_path(self) -> str:
        """Do the work here: this is read first in the worker's process."""
        work(self.pipe)
        raise SystemExit(0)


def worker_of(server: str, pipe: Connection) -> Any:
    """Return a process that runs a server's own function for its Trio workers."""
    run: Any
    if server == "hypercorn":
        from hypercorn.trio.run import trio_worker  # noqa: PLC0415

        run = trio_worker
    else:
        from anycorn.run import anyio_worker  # noqa: PLC0415

        run = anyio_worker
    return spawn.Process(target=run, args=(_Config(pipe),))


def be_a_parent(pipe: Connection) -> None:
    """Start a worker, and end before it does."""
    worker = worker_of("hypercorn", pipe)
    worker.start()
    pipe.close()
    # Not joined: os._exit() leaves child processes alone.
    os._exit(0)


def be_a_host(pipe: Connection) -> None:
    """Act as a program's child process that serves a site besides its own work."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        """Act as a Django site, as far as its lifespan goes."""
        from trio_asgi.asgi.lifespan import Lifespan  # noqa: PLC0415
        from trio_asgi.hosts.sigterm import leave_sigterm_to_parent  # noqa: PLC0415

        async def nothing() -> None:
            await trio.lowlevel.checkpoint()

        life = Lifespan(
            application,
            nullcontext,
            started=lambda: None,
            shutdown_seconds=1,
            beside=leave_sigterm_to_parent,
            after=nothing,
        )
        await life.run(receive, send)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(trio_asgi.serve, application, "127.0.0.1:0")
            pipe.send(os.getpid())

    trio.run(main)

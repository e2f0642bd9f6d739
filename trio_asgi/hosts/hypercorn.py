"""Serve an application inside a Trio program, with hypercorn."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import trio

from trio_asgi.errors import raise_sole_error

from .hypercorn_connections import load_serve

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from hypercorn.config import Config

    from trio_asgi.asgi.types import ASGIApplication

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

_DEFAULT_BIND: Final = "127.0.0.1:8000"


async def serve(
    application: ASGIApplication,
    bind: str = _DEFAULT_BIND,
    *,
    config: Config | None = None,
    shutdown_trigger: Callable[[], Awaitable[Any]] | None = None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve an application until cancelled, or until a trigger returns.

    ``await nursery.start(trio_asgi.serve, application)`` runs a site beside a program's
    other tasks, in the same Trio run.

    Args:
        application: Any ASGI application that runs on Trio.
        bind: The address to listen on, ``"host:port"`` or ``"unix:path"``. Port 0 means
            any free port.
        config: A hypercorn configuration, for everything else. Its ``bind`` is used
            if the argument is not given.
        shutdown_trigger: The server shuts down when this returns.
        task_status: Started with the addresses, such as ``["http://127.0.0.1:8000"]``,
            when the server accepts connections.

    The shutdown is graceful, also after a cancellation: no new connections are
    accepted, running requests have ``config.graceful_timeout`` seconds (3 by default)
    until they are cancelled, and the lifespan ends last.

    If hypercorn fails in a connection, which some bytes from a client can cause, that
    is logged, and only this connection is closed.

    Raises:
        ImportError: hypercorn is not installed.
        ValueError: both ``bind`` and ``config.bind`` were given, and differ.
        OSError: the server cannot listen on the address.
        trio.Cancelled: after the graceful shutdown, if cancelled.
    """
    try:
        from hypercorn.config import Config  # noqa: PLC0415 - an optional dependency

        run_server = load_serve()
    except ImportError as error:
        raise ImportError(
            "trio_asgi.serve() needs hypercorn: pip install 'hypercorn>=0.18'"
        ) from error

    if config is None:
        config = Config()
        config.bind = [bind]
    elif bind != _DEFAULT_BIND and [bind] != config.bind:
        if config.bind != [_DEFAULT_BIND]:
            raise ValueError(
                f"serve() was given bind={bind!r} and a config with "
                f"bind={config.bind!r}: leave one of them out."
            )
        config.bind = [bind]

    stop = trio.Event()

    async def stop_when_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            stop.set()

    async def stop_when_triggered(trigger: Callable[[], Awaitable[Any]]) -> None:
        await trigger()
        stop.set()

    try:
        async with trio.open_nursery() as nursery:
            # Two tasks: a trigger may take long to be cancelled.
            nursery.start_soon(stop_when_cancelled)
            if shutdown_trigger is not None:
                nursery.start_soon(stop_when_triggered, shutdown_trigger)
            # The event turns a cancellation into a shutdown of the server.
            with trio.CancelScope(shield=True):
                await run_server(
                    application,
                    config,
                    shutdown_trigger=stop.wait,
                    task_status=task_status,
                    mode="asgi",
                )
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # An address in use, or a failed start-up, in three nurseries.
        raise_sole_error(group)
        raise

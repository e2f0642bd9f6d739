"""Hosting an application inside a Trio program, with hypercorn."""

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

    With ``await nursery.start(trio_asgi.serve, application)`` a program has a site
    beside its other tasks, in the same Trio run.

    Args:
        application: Any ASGI application that runs on Trio.
        bind: The address to listen at, ``"host:port"`` or ``"unix:path"``. Port 0 is
            any free one.
        config: A hypercorn configuration, for everything else. Its ``bind`` is used
            if the argument is not given.
        shutdown_trigger: Awaited beside the serving; when it returns, the server shuts
            down.
        task_status: Started with the addresses, as ``["http://127.0.0.1:8000"]``, when
            the server accepts connections.

    A shutdown is orderly, after a cancellation too: no new connections are accepted,
    requests in flight have ``config.graceful_timeout`` seconds (3 by default) to end,
    and are cancelled then, and the lifespan is left last.

    If hypercorn fails at a connection, as some bytes from a client make it, that is
    logged, and only the connection is closed.

    Raises:
        ImportError: hypercorn is not installed.
        ValueError: both ``bind`` and ``config.bind`` were given, and differ.
        OSError: the address cannot be listened at.
        trio.Cancelled: after the orderly shutdown, if cancelled.
    """
    try:
        from hypercorn.config import Config  # noqa: PLC0415 - an optional dependency

        run_server = load_serve()
    except ImportError as error:
        raise ImportError(
            "trio_asgi.serve() needs hypercorn: pip install 'trio-asgi[hypercorn]'"
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
            nursery.start_soon(stop_when_cancelled)
            if shutdown_trigger is not None:
                nursery.start_soon(stop_when_triggered, shutdown_trigger)
            # A cancellation reaches the server as a shutdown, by way of the event.
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
        # An address in use, a failed start-up: one error in three nurseries.
        raise_sole_error(group)
        raise

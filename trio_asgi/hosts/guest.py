"""Trio as a guest of an asyncio server: each request is a Trio task.

    the server's asyncio task       the request's Trio task
    application(scope, …) ──────>   application(scope, …)
      waits for its end     <────   receive(), send(): run in place, or as asyncio tasks

The run begins with the first lifespan or request. It ends with the last lifespan, or
when the loop closes its async generators. docs/design/guest-run.md has the order.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from typing import TYPE_CHECKING, Final

from .asyncio_calls import HostReceive, HostSend
from .runs import guest_run

if TYPE_CHECKING:
    from trio_asgi.asgi.types import ASGIApplication, Message, Receive, Scope, Send

    from .guest_run import GuestRun

logger = logging.getLogger("trio_asgi")

#: The messages that end a lifespan. They wait for the end of the run.
_LAST: Final = frozenset(
    {
        "lifespan.startup.failed",
        "lifespan.shutdown.complete",
        "lifespan.shutdown.failed",
    }
)


async def run_as_guest(
    application: ASGIApplication, scope: Scope, receive: Receive, send: Send
) -> None:
    """Run an application for Trio in the guest run of this loop. Asyncio task.

    The application's Trio task may call its ``receive`` and ``send``, which call the
    server's. If the asyncio task is cancelled, so is the application, and waited for.
    Where Trio cannot run, the server is told that the start-up has failed: it would
    take an exception for an application without lifespan, and go on.

    Raises:
        RuntimeError: asyncio does not run here, another Trio run is going on in this
            thread, or the loop's has crashed.
        asyncio.CancelledError: this task was cancelled, or the run has ended.
        Exception: from the application.
    """
    try:
        if asyncio._get_running_loop() is None:
            raise RuntimeError(
                "trio_asgi was called where neither Trio nor asyncio runs. Serve it "
                "with an ASGI server, such as uvicorn or 'hypercorn -k trio'."
            )
        run = await guest_run()
    except Exception as error:
        if scope["type"] != "lifespan":
            raise
        logger.exception("The application's startup failed")
        failure = f"{type(error).__name__}: {error}"
    else:
        serve = _live if scope["type"] == "lifespan" else _serve
        await serve(run, application, scope, receive, send)
        return
    await receive()  # lifespan.startup
    await send({"type": "lifespan.startup.failed", "message": failure})


async def _serve(
    run: GuestRun,
    application: ASGIApplication,
    scope: Scope,
    receive: Receive,
    send: Send,
) -> None:
    # What the application sets is not seen by later requests of the connection, whose
    # context the server may take from here.
    context = contextvars.copy_context()
    own_receive = HostReceive(receive, run.host, context)
    own_send = HostSend(send, run.host, context)
    try:
        await run.call(
            *(application, scope, own_receive, own_send),
            name=f"trio_asgi.{scope['type']}",
            is_request=scope["type"] != "lifespan",
        )
    finally:
        own_receive.close()


async def _live(
    run: GuestRun,
    application: ASGIApplication,
    scope: Scope,
    receive: Receive,
    send: Send,
) -> None:
    """Serve a lifespan. The last one ends the run before it is complete.

    It is told of the shutdown only when the requests have ended: uvicorn does not wait
    for those that it cancels, and granian not for the end of those that are answered.
    """
    last: list[Message] = []

    async def live(scope: Scope, receive: Receive, send: Send) -> None:
        async def receive_late() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await run.wait_for_requests()
            return message

        await application(scope, receive_late, send)

    async def send_or_hold(message: Message) -> None:
        if message["type"] in _LAST:
            last.append(message)
        else:
            await send(message)

    run.lifespans += 1
    try:
        await _serve(run, live, scope, receive, send_or_hold)
    finally:
        run.lifespans -= 1
        if not (run.lifespans or run.crash):
            await run.end()
    for message in last:
        await send(message)

"""An application's lifespan, around a test."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from .communicator import ApplicationCommunicator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_asgi.asgi.types import ASGIApplication


@asynccontextmanager
async def lifespan(application: ASGIApplication) -> AsyncIterator[None]:
    """Start an application as a server does, run the block, and shut it down.

    A test needs it for `ASGIHandler.lifespan` and for `trio_asgi.start_soon`, also if
    it makes its requests with `AsyncClient`::

        async with lifespan(application):
            response = await self.async_client.post("/order/")

    The shutdown waits for background tasks, as under a server. Trio task.

    Args:
        application: The project's, from ``asgi.py``, or an `ASGIHandler`.

    Raises:
        RuntimeError: the start-up or the shutdown failed; the log says more.
    """
    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    async with ApplicationCommunicator(application, scope) as server:
        for phase in ("startup", "shutdown"):
            await server.send_input({"type": f"lifespan.{phase}"})
            answer = await server.receive_output(timeout=math.inf)
            if answer["type"] != f"lifespan.{phase}.complete":
                raise RuntimeError(f"The {phase} failed: {answer.get('message')}")
            if phase == "startup":
                yield

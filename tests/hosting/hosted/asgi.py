"""The applications that the tests serve."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any

os.environ["DJANGO_SETTINGS_MODULE"] = "hosted.settings"

import trio

from trio_asgi import ASGIHandler, get_asgi_application

from . import journal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

journal.connect()
application = get_asgi_application()


class Failing(ASGIHandler):
    """A handler whose start-up fails."""

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Fail at start-up."""
        self._look_for_the_kettle()
        yield

    def _look_for_the_kettle(self) -> None:
        raise LookupError("the kettle is missing")


class Lasting(ASGIHandler):
    """A handler that records when it starts and ends, and has a nursery."""

    nursery: trio.Nursery
    context: Context

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Write one entry before the serving and one after it."""
        journal.write("startup", "lifespan")
        self.context = copy_context()
        async with trio.open_nursery() as self.nursery:
            yield
            self.nursery.cancel_scope.cancel()
        journal.write("shutdown", "lifespan", in_flight=sorted(journal.in_flight))


failing = Failing()
lasting = Lasting()


async def without_lifespan(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Serve like a server without lifespan: the handler never hears of it."""
    if scope["type"] == "lifespan":
        raise ValueError("no such thing")
    await application(scope, receive, send)

"""Applications on asyncio with the site inside."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

os.environ["DJANGO_SETTINGS_MODULE"] = "hosted.mounted_settings"

from asgi_lifespan import LifespanManager
from channels.generic.websocket import (  # type: ignore[import-untyped] # so it is
    AsyncWebsocketConsumer,
)
from channels.routing import (  # type: ignore[import-untyped] # so it is
    ProtocolTypeRouter,
    URLRouter,
)
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.urls import path
from fastapi import FastAPI, Request
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from trio_asgi import ASGIHandler, get_asgi_application

from . import journal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


class Lasting(ASGIHandler):
    """A handler that records when it starts and ends."""

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Write one entry before the serving and one after it."""
        journal.write("startup", "lifespan")
        yield
        journal.write("shutdown", "lifespan", in_flight=sorted(journal.in_flight))


journal.connect()
#: Starlette has its own type for applications.
application: Any = get_asgi_application()
other: Any = ASGIHandler()
lasting: Any = Lasting()
call_command("migrate", verbosity=0)


class Naming:
    """Middleware of ASGI that sets a context variable, and reads it again."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Say who calls."""
        journal.caller.set("middleware")
        await self.app(scope, receive, send)
        assert journal.caller.get() == "middleware"


async def through(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    """Starlette's own kind of middleware, which has tasks and streams between."""
    response = await call_next(request)
    response.headers["X-Through"] = "Starlette"
    return response


async def rest(request: Request) -> Response:
    """Wait a little on asyncio."""
    await asyncio.sleep(0)
    return PlainTextResponse("Starlette")


def middleware() -> list[Middleware]:
    """Return both kinds of middleware."""
    return [Middleware(Naming), Middleware(BaseHTTPMiddleware, dispatch=through)]


#: Two applications, and no lifespan for either.
plain = Starlette(
    routes=[
        Route("/rest/", rest),
        Mount("/inner/one", application),
        Mount("", other),
    ],
)
in_middleware = Starlette(routes=[Mount("/one", application)], middleware=middleware())


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Surround the mounted application's lifespan."""
    journal.write("outer startup", "lifespan")
    async with LifespanManager(lasting, startup_timeout=None, shutdown_timeout=None):
        yield
    journal.write("outer shutdown", "lifespan")


api = FastAPI(lifespan=lifespan)


@api.get("/items/{item}")
async def item(item: int) -> dict[str, int]:
    """Ask the database on asyncio."""
    users = await get_user_model().objects.acount()
    assert asyncio.current_task() is not None
    return {"item": item, "users": users}


api.mount("/one", lasting)


class Echo(AsyncWebsocketConsumer):  # type: ignore[misc] # untyped
    """Sends back what it gets, on asyncio."""

    async def receive(
        self, text_data: str | None = None, bytes_data: bytes | None = None
    ) -> None:
        """Send it back."""
        task = asyncio.current_task()
        assert task is not None
        await asyncio.sleep(0)
        await self.send(text_data=f"echo {text_data}")

    async def disconnect(self, code: int) -> None:
        """Note that the client has left."""
        journal.write("closed", "echo")


sockets = URLRouter([path("echo/", Echo.as_asgi())])
#: Without a lifespan: it refuses that scope.
channels = ProtocolTypeRouter({"http": application, "websocket": sockets})
channels_lasting = ProtocolTypeRouter(
    {"http": lasting, "websocket": sockets, "lifespan": lasting}
)

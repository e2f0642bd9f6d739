"""Django's `AsyncClient` and `AsyncRequestFactory`, with this package's requests."""

from __future__ import annotations

import functools
from types import FunctionType
from typing import TYPE_CHECKING, Any

from django.test import client

from trio_asgi import conf
from trio_asgi.bridge.streaming_content import contents
from trio_asgi.chain.load import as_island
from trio_asgi.request.request import ASGIRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_asgi.asgi.types import Scope


def _with_own_requests(function: Any) -> Any:
    """Return a copy of a function of Django that makes requests of this package.

    Django's functions have no hook for the class.
    """
    names = {**function.__globals__, "ASGIRequest": ASGIRequest}
    return FunctionType(function.__code__, names, function.__name__)


class AsyncClientHandler(client.AsyncClientHandler):
    """Calls the middleware and the view with a request of this package."""

    _call = _with_own_requests(client.AsyncClientHandler.__call__)

    async def __call__(self, scope: Scope) -> Any:
        """Return the response. One that streams async content has an ``aclose()``."""
        response = await self._call(scope)
        if getattr(response, "is_async", False):
            response.aclose = functools.partial(_close_stream, response)
        return response

    def make_view_atomic(self, view: Callable[..., Any]) -> Callable[..., Any]:
        """Return the view to call: an island, if ``ASYNCIO_VIEWS`` makes it one."""
        view = super().make_view_atomic(view)
        return as_island(view) if conf.get("ASYNCIO_VIEWS") else view


async def _close_stream(response: Any) -> None:
    """Close all async content of a response, in the task that has iterated it."""
    for content in [*contents(response)]:
        if hasattr(content, "aclose"):
            await content.aclose()


class AsyncClient(client.AsyncClient):
    """Django's `AsyncClient`, whose requests are `trio_asgi.ASGIRequest` objects.

    So views can use ``request.stream()`` and ``request.aread()``, as under a server.
    Everything else is Django's. The middleware and the view run in the calling task.

    A test iterates a stream as with Django: ``response.streaming_content``. If it
    leaves an endless one, ``await response.aclose()`` closes the view's generator, as a
    disconnect would; so does ``async with contextlib.aclosing(response)``.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        """Take the arguments of Django's class."""
        super().__init__(*args, **options)
        self.handler = AsyncClientHandler(self.handler.enforce_csrf_checks)


class AsyncRequestFactory(client.AsyncRequestFactory):
    """Django's `AsyncRequestFactory`, which makes `trio_asgi.ASGIRequest` objects."""

    request = _with_own_requests(client.AsyncRequestFactory.request)

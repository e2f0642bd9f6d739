"""Which handler answers the requests of another package's tests.

- ``django``: the Django handler that the tests use themselves. Nothing is changed.
- ``asgi``: Django's `ASGIHandler`, for WSGI requests too. A failure here depends on
  WSGI, and says nothing about Trio.
- ``trio``: `trio_asgi.ASGIHandler`; and async tests run on Trio.

Requests come from Django's two test clients, from WSGI applications that
``get_wsgi_application()`` returns, and from the ASGI applications that
``get_asgi_application()`` returns.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import unittest
from http.client import responses
from typing import TYPE_CHECKING, Any, ClassVar

import django.core.asgi
import django.core.wsgi
import django.test.testcases
import outcome
import trio
from asgiref.sync import async_to_sync
from django.test import client

import trio_asgi
import trio_asgi.testing
from django_suite import counterparts, sync_client
from django_suite.recorder import Recorder
from suite_support import hand_out
from trio_asgi.threads.current import current_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator
    from contextvars import Context
    from pathlib import Path

    Application = Callable[..., Any]

HANDLERS = ("django", "asgi", "trio")


def install(handler: str, tests: Path, notes: Recorder) -> None:
    """Let the handler answer the requests. Call it before any test is imported.

    Args:
        handler: One of `HANDLERS`.
        tests: The folder of the tests.
        notes: Receives requests and async tests.
    """
    if handler == "asgi":
        _answer(notes, on_trio=False)
    elif handler == "trio":
        trio_asgi.install_bridge(async_to_sync_backend="trio")
        _count_requests(notes)
        _answer(notes, on_trio=True)
        _answer_async_client()
        django.core.asgi.get_asgi_application = trio_asgi.get_asgi_application
        hand_out(tests, _counterparts)
        _run_async_test_cases(notes)
        _adapt_channels()
        _adapt_opentelemetry()


def _count_requests(notes: Recorder) -> None:
    handler: Any = trio_asgi.ASGIHandler
    original = handler.handle

    @functools.wraps(original)
    async def handle(self: Any, scope: Any, *args: Any) -> None:
        notes.note_request(on_trio=trio.lowlevel.in_trio_task())
        await original(self, scope, *args)

    handler.handle = handle


# Requests of sync code


class DjangoHandler(sync_client.Telling):
    """Django's own handler for ASGI."""


class UncheckedDjangoHandler(DjangoHandler):
    """The same, for clients without ``enforce_csrf_checks``."""

    async def get_response_async(self, request: Any) -> Any:
        request._dont_enforce_csrf_checks = True
        return await super().get_response_async(request)


class DjangoExchange(sync_client.Exchange):
    """A request that is answered on asyncio."""

    in_new_run: ClassVar[Any] = staticmethod(
        lambda async_fn, *args: async_to_sync(async_fn)(*args)
    )
    event: ClassVar[Any] = asyncio.Event
    checkpoint: ClassVar[Any] = functools.partial(asyncio.sleep, 0)


class WsgiApplication:
    """A WSGI application that hands each request to a handler for ASGI."""

    def __init__(self, handler: Any, exchange: Any) -> None:
        self._handler = handler
        self._exchange = exchange

    def load_middleware(self) -> None:
        """Load it again: the settings have changed."""
        self._handler.load_middleware(is_async=True)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        """Answer."""
        exchange = self._exchange(environ)
        exchange.run(self._handler)
        if exchange.stream_error is not None:
            raise exchange.stream_error
        start = exchange.messages[0]
        status: int = start["status"]
        start_response(
            f"{status} {responses.get(status, '')}",
            [(n.decode("latin-1"), v.decode("latin-1")) for n, v in start["headers"]],
        )
        parts: list[bytes] = exchange.parts
        return parts


def _answer(notes: Recorder, *, on_trio: bool) -> None:
    """Let a handler for ASGI answer WSGI applications and the sync client."""
    if on_trio:
        sync_client.install(_Quiet(notes))
        handler: Any = sync_client.Handler
        exchange: Any = sync_client.Exchange
    else:
        handler, exchange = DjangoHandler, DjangoExchange
        _answer_sync_client_on_asyncio()

    def get_wsgi_application() -> WsgiApplication:
        django.setup(set_prefix=False)
        return WsgiApplication(handler(), exchange)

    django.core.wsgi.get_wsgi_application = get_wsgi_application  # type: ignore[assignment]


class _Quiet(Recorder):
    """Passes on only differences: requests are counted in the handler."""

    def __init__(self, notes: Recorder) -> None:
        super().__init__(notes.journal)
        self._notes = notes

    def note_request(self, *, on_trio: bool) -> None:
        """Do nothing."""

    def note_difference(self, difference: str) -> None:
        """Note that the messages sent differ from the response."""
        self._notes.note_difference(difference)


def _answer_sync_client_on_asyncio() -> None:
    def __call__(self: Any, environ: dict[str, Any]) -> Any:  # noqa: N807
        handler = vars(self).get("_asgi_handler")
        if handler is None:
            checked = self.enforce_csrf_checks
            kind = DjangoHandler if checked else UncheckedDjangoHandler
            handler = self._asgi_handler = kind()
        exchange = DjangoExchange(environ)
        exchange.run(handler)
        return exchange.result()

    vars_of_class: Any = client.ClientHandler
    vars_of_class.__call__ = __call__


# Requests of async code


def _answer_async_client() -> None:
    """Let our handler answer Django's async client, in the test's Trio run."""
    original: Any = client.AsyncClientHandler.__call__

    async def __call__(self: Any, scope: dict[str, Any]) -> Any:  # noqa: N807
        if not trio.lowlevel.in_trio_task():
            return await original(self, scope)
        handler = vars(self).get("_asgi_handler")
        if handler is None:
            checked = self.enforce_csrf_checks
            kind = sync_client.Handler if checked else sync_client.UncheckedHandler
            handler = self._asgi_handler = kind()
        body_file = scope.pop("_body_file", None)
        body = body_file.read() if body_file is not None else b""
        current_pool().lend_to_requests()
        exchange = sync_client.Exchange({"REQUEST_METHOD": scope["method"]})
        await exchange.serve(handler, scope, body)
        response: Any = exchange.result()
        response.asgi_request = exchange.request
        return response

    vars_of_class: Any = client.AsyncClientHandler
    vars_of_class.__call__ = __call__


# Async tests


def run_test(notes: Recorder, async_fn: Callable[..., Any], *args: Any) -> Any:
    """Run a coroutine test on Trio, its sync code in this thread."""
    return trio_asgi.testing.run(notes.recorded(async_fn), *args)


class _Runner:
    """Replaces `asyncio.Runner` in unittest: each call is a Trio run."""

    def __init__(self, notes: Recorder) -> None:
        self._notes = notes

    def get_loop(self) -> None:
        """Do nothing: there is no loop between the calls."""

    def close(self) -> None:
        """Do nothing."""

    def run(self, coroutine: Coroutine[Any, Any, Any], *, context: Context) -> Any:
        """Run it."""

        async def wait() -> Any:
            return await coroutine

        return context.run(run_test, self._notes, wait)


def _run_async_test_cases(notes: Recorder) -> None:
    def set_up_runner(self: Any) -> None:
        self._asyncioRunner = _Runner(notes)

    # Each of these places has its own name for it, unittest's or Django's.
    isolated: Any = unittest.IsolatedAsyncioTestCase
    isolated._setupAsyncioRunner = set_up_runner
    django.test.testcases.async_to_sync = (  # type: ignore[attr-defined]
        lambda method: async_to_sync(notes.recorded(method))
    )


class _Task:
    """Replaces `asyncio.Task`: runs in the background, and can be awaited."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._ended = trio.Event()
        self._result: outcome.Outcome[Any]
        trio.lowlevel.spawn_system_task(
            self._run, coroutine, context=contextvars.copy_context()
        )

    async def _run(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        async def wait() -> Any:
            return await coroutine

        self._result = await outcome.acapture(wait)
        self._ended.set()

    def __await__(self) -> Generator[Any, Any, Any]:
        yield from self._ended.wait().__await__()
        return self._result.unwrap()


class AsyncioOnTrio(counterparts.AsyncioOnTrio):
    """What else these packages' tests use of asyncio."""

    create_task = _Task
    iscoroutinefunction = staticmethod(asyncio.iscoroutinefunction)

    @staticmethod
    async def gather(*awaitables: Any) -> list[Any]:
        results: dict[int, Any] = {}

        async def wait(number: int, awaitable: Any) -> None:
            results[number] = await awaitable

        async with trio.open_nursery() as nursery:
            for number, awaitable in enumerate(awaitables):
                nursery.start_soon(wait, number, awaitable)
        return [results[number] for number in range(len(awaitables))]


def _counterparts() -> list[tuple[object, object]]:
    return [*counterparts.counterparts(), (asyncio, AsyncioOnTrio())]


def _adapt_channels() -> None:
    """Make our communicator the base of that of channels."""
    try:
        from channels.testing import (  # type: ignore[import-untyped]  # noqa: PLC0415
            HttpCommunicator,
        )
    except ImportError:
        return
    HttpCommunicator.__bases__ = (trio_asgi.testing.ApplicationCommunicator,)


def _adapt_opentelemetry() -> None:
    """Give OpenTelemetry's base class for ASGI tests what its tests need."""
    try:
        from opentelemetry.test import asgitestutil  # noqa: PLC0415
    except ImportError:
        return
    module: Any = asgitestutil
    module.ApplicationCommunicator = trio_asgi.testing.ApplicationCommunicator
    module.asyncio = AsyncioOnTrio()

    def tear_down(self: Any) -> None:
        """Do nothing: the application has ended with the run."""

    module.AsyncAsgiTestBase.tearDown = tear_down

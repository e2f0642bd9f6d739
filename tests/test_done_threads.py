"""A thread that has ended a request gives itself back, and goes on with the next."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio
from asgiref.sync import sync_to_async
from django.core.handlers import asgi
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path
from trio.testing import wait_all_tasks_blocked

from support import application, request
from thread_support import Gate, leave, nothing, open_lease, open_pool
from trio_asgi import ASGIHandler
from trio_asgi.bridge.hop import retire_thread
from trio_asgi.threads import call_queue
from trio_asgi.threads.current import current_pool
from trio_asgi.threads.lease import Lease

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from django.http.response import HttpResponseBase

    from trio_asgi.threads.pool import WorkerPool

local = threading.local()
seen: list[threading.Thread] = []


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    """Forget what other tests have seen."""
    seen.clear()


def view(request: HttpRequest) -> HttpResponse:
    """Note the thread."""
    seen.append(threading.current_thread())
    return HttpResponse("whole")


@pytest.mark.parametrize(
    "middleware", [[], ["django.middleware.common.CommonMiddleware"]]
)
async def test_one_thread_ends_all_requests(
    monkeypatch: pytest.MonkeyPatch, middleware: list[str]
) -> None:
    """While requests wait for it, it sleeps between none of them."""
    monkeypatch.setattr(call_queue, "TICK", 1000.0)
    gate = Gate(nothing)

    def slow(request: HttpRequest) -> HttpResponse:
        gate()
        return view(request)

    app = application(path("", view), path("slow/", slow), middleware=middleware)
    bodies: list[bytes] = []

    async def visit(url: str) -> None:
        bodies.append((await request(app, url)).body)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(visit, "/slow/")
        await gate.entered.wait()
        for _ in range(10):
            nursery.start_soon(visit, "/")
        await wait_all_tasks_blocked()
        assert current_pool().queue.waiting == 10
        gate.open()
    assert bodies == [b"whole"] * 11
    assert set(seen) == {gate.thread}
    assert len(current_pool().workers) == len(current_pool()._idle) == 1


async def test_the_thread_is_free_before_the_response_is_sent() -> None:
    """The thread needs no task for that: a call that waits already runs there."""
    order: list[str] = []

    class Handler(ASGIHandler):
        async def send_response(self, response: HttpResponseBase, send: Any) -> None:
            order.append(f"sending, {len(current_pool()._idle)} idle")
            await super().send_response(response, send)

    app = application(path("", view), middleware=[], handler=Handler)
    await request(app)
    assert order == ["sending, 1 idle"]


async def test_a_thread_that_must_end_goes_on_with_nothing() -> None:
    """`retire_thread` wins: something may be left in the thread."""

    def retires(request: HttpRequest) -> HttpResponse:
        local.tenant = "secret"
        retire_thread()
        return view(request)

    def looks(request: HttpRequest) -> HttpResponse:
        view(request)
        return HttpResponse(getattr(local, "tenant", "nothing"))

    app = application(path("", retires), path("next/", looks), middleware=[])
    assert (await request(app)).body == b"whole"
    assert (await request(app, "/next/")).body == b"nothing"
    assert len(set(seen)) == 2


async def test_a_stream_keeps_its_thread() -> None:
    """The code of an async stream finds the view's thread."""

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(2):
            yield b"part "
            seen.append(await sync_to_async(threading.current_thread)())

    def streams(request: HttpRequest) -> StreamingHttpResponse:
        view(request)
        return StreamingHttpResponse(parts())

    app = application(path("", streams), middleware=[])
    with open_lease(current_pool()) as other:
        # Otherwise the only idle thread would be the same again.
        await other.run_sync(nothing)
        assert (await request(app)).body == b"part part "
    assert len(seen) == 3
    assert len(set(seen)) == 1


async def _runs(handler: Any, request: HttpRequest, run: Any) -> HttpResponseBase:
    response: HttpResponseBase = await run(handler, request)
    async with trio.open_nursery() as nursery:
        # Another lease would get the thread if it was free.
        gate = Gate(nothing)
        nursery.start_soon(current_pool().run_sync, gate)
        await gate.entered.wait()
        seen.append(await sync_to_async(threading.current_thread)())
        gate.open()
    return response


@pytest.mark.parametrize(
    "how",
    ["run_get_response", "get_response_async", "a tool", "an attribute", "neither"],
)
async def test_code_that_runs_after_the_chain_finds_the_thread(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """If a project or a tool may run code there, the thread stays."""
    original = asgi.ASGIHandler.run_get_response
    wrapped = ASGIHandler.get_response_async

    class Handler(ASGIHandler):
        if how == "run_get_response":

            async def run_get_response(self, request: HttpRequest) -> Any:
                return await _runs(self, request, original)

        if how == "get_response_async":

            async def get_response_async(self, request: HttpRequest) -> Any:
                return await _runs(self, request, wrapped)

    async def tool(self: Any, request: HttpRequest) -> Any:
        return await _runs(self, request, original)

    if how == "a tool":
        monkeypatch.setattr(asgi.ASGIHandler, "run_get_response", tool)
    app = application(path("", view), middleware=[], handler=Handler)
    if how == "an attribute":
        app.run_get_response = functools.partial(tool, app)  # type: ignore[method-assign]
    assert (await request(app)).body == b"whole"
    assert len(seen) == (1 if how == "neither" else 2)
    assert len(set(seen)) == 1


async def test_a_thread_whose_task_has_left_does_not_go_on(pool: WorkerPool) -> None:
    """Even if nothing would be left to do there, it ends."""

    def done() -> None:
        lease.done = True

    lease = Lease(pool)
    gate = Gate(done)
    await leave(lease, gate)
    gate.open()
    lease.release()
    await trio.to_thread.run_sync(gate.thread.join)
    assert await pool.run_sync(threading.current_thread) is not gate.thread


async def test_a_lease_takes_another_thread_afterwards(pool: WorkerPool) -> None:
    """A call after the end takes a thread again, and calls `on_take` there."""
    order: list[str] = []

    def done() -> None:
        lease.done = True
        lease.on_take = lambda: order.append("taken")

    with open_lease(pool) as lease, open_lease(pool) as other:
        await lease.run_sync(done)
        assert not lease.has_thread
        first = await other.run_sync(threading.current_thread)
        second = await lease.run_sync(threading.current_thread)
        assert second is not first
        assert await lease.run_sync(threading.current_thread) is second
    assert order == ["taken"]


async def test_its_slot_is_free_as_well() -> None:
    """With a bound on leases, the next one gets the thread."""
    async with open_pool(leases=1) as pool:
        assert pool.slots is not None
        lease, other = pool.lease(), pool.lease()

        def done() -> None:
            lease.done = True

        await lease.run_sync(done)
        assert pool.slots.borrowed_tokens == 0
        await other.run_sync(nothing)
        other.release()
        lease.release()


async def test_a_thread_that_gives_itself_back_while_it_is_described(
    pool: WorkerPool,
) -> None:
    """The description is for the log of a shutdown: it must not fail."""

    class Moving(Lease):
        """Its thread goes back as soon as somebody has looked at it."""

        def __getattribute__(self, name: str) -> Any:
            found = super().__getattribute__(name)
            if name == "_worker":
                self._worker = None
            return found

    with open_lease(pool) as lease:
        await lease.run_sync(nothing)
        worker = lease._worker
        assert worker is not None
        moving = Moving(pool)
        moving._worker = worker
        assert worker.thread.name in moving.describe_thread()
        assert "not the pool's" in moving.describe_thread()

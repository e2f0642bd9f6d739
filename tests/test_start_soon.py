"""`trio_asgi.start_soon`: from where it works, when it starts, and its errors."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio
from asgiref.sync import async_to_sync, sync_to_async
from django.core.signals import request_started
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path
from trio.testing import wait_all_tasks_blocked

from database_support import open_database, sqlite_in
from guest_support import run_in_guest
from support import application, request
from test_background import serving
from trio_asgi import ASGIHandler, asyncio_island, atomic, start_soon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SECONDS = 10


class Tasks:
    """Tasks that note that they have run."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._news = trio.Event()

    async def note(self, name: str) -> None:
        """Be such a task."""
        self.names.append(name)
        self._news.set()

    async def wait(self, *names: str) -> None:
        """Wait until exactly these have run."""
        with trio.fail_after(SECONDS):
            while sorted(self.names) != sorted(names):
                self._news = trio.Event()
                await self._news.wait()


@pytest.fixture
def tasks() -> Tasks:
    """Provide a place for notes."""
    return Tasks()


# From where


async def test_from_views_and_below(tasks: Tasks) -> None:
    """No code needs the application: async, sync, in threads, in islands, in tasks."""

    async def task_of_task() -> None:
        await tasks.note("task")
        start_soon(tasks.note, "task of task")

    async def async_view(request: HttpRequest) -> HttpResponse:
        start_soon(tasks.note, "async")
        await sync_to_async(start_soon)(tasks.note, "sync_to_async")
        await sync_to_async(start_soon, thread_sensitive=False)(tasks.note, "other")
        await trio.to_thread.run_sync(start_soon, tasks.note, "to_thread")
        await asyncio_island(in_island)()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_child)
        start_soon(task_of_task)
        return HttpResponse()

    async def in_child() -> None:
        start_soon(tasks.note, "child")

    async def in_island() -> None:
        start_soon(tasks.note, "island")
        await asyncio.to_thread(start_soon, tasks.note, "asyncio.to_thread")

    async def below_sync() -> None:
        start_soon(tasks.note, "async_to_sync")

    def sync_view(request: HttpRequest) -> HttpResponse:
        start_soon(tasks.note, "sync")
        async_to_sync(below_sync)()
        trio.from_thread.run_sync(start_soon, tasks.note, "from_thread")
        return HttpResponse()

    def receiver(**kwargs: Any) -> None:
        start_soon(tasks.note, "receiver")

    app = application(path("async/", async_view), path("sync/", sync_view))
    async with serving(app):
        assert (await request(app, "/async/")).status == 200
        request_started.connect(receiver)
        try:
            assert (await request(app, "/sync/")).status == 200
        finally:
            request_started.disconnect(receiver)
        await tasks.wait(
            *("async", "sync_to_async", "other", "to_thread", "island", "child"),
            *("asyncio.to_thread", "task", "task of task"),
            *("sync", "async_to_sync", "from_thread", "receiver"),
        )


async def test_from_tasks_of_the_lifespan(tasks: Tasks) -> None:
    """They belong to their application, however many the process has."""

    class Handler(ASGIHandler):
        name = ""

        @asynccontextmanager
        async def lifespan(self) -> AsyncIterator[None]:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.work)
                yield
                nursery.cancel_scope.cancel()

        async def work(self) -> None:
            await go.wait()
            start_soon(tasks.note, self.name)

    go = trio.Event()
    one, two = Handler(), Handler()
    one.name, two.name = "one", "two"
    async with serving(one), serving(two):
        go.set()
        await tasks.wait("one", "two")


async def test_from_other_code_of_a_process_with_one_application(tasks: Tasks) -> None:
    """A program's own task, or a thread of its own, that knows of no request."""
    async with serving(application()):
        start_soon(tasks.note, "task")
        thread = threading.Thread(target=start_soon, args=(tasks.note, "thread"))
        thread.start()
        await trio.to_thread.run_sync(thread.join)
        await tasks.wait("task", "thread")


async def test_two_applications_do_not_mix(tasks: Tasks) -> None:
    """A request's task runs in its own application, and ends with that."""
    ended: list[str] = []

    async def sleep(name: str) -> None:
        try:
            await tasks.note(name)
            await trio.sleep_forever()
        finally:
            ended.append(name)

    async def view(request: HttpRequest, name: str) -> HttpResponse:
        start_soon(sleep, name)
        return HttpResponse()

    with override_settings(TRIO_ASGI={"SHUTDOWN_SECONDS": 0}):
        one = application(path("<name>/", view))
        two = application(path("<name>/", view))
    async with serving(one):
        async with serving(two):
            await request(one, "/one/")
            await request(two, "/two/")
            await tasks.wait("one", "two")
            with pytest.raises(RuntimeError, match="this process has several"):
                start_soon(tasks.note, "whose?")
        assert ended == ["two"]
    assert ended == ["two", "one"]


# Errors


async def test_without_an_application_the_error_names_the_way(tasks: Tasks) -> None:
    """Before the start-up, after the shutdown, and in a request without a server."""
    with pytest.raises(RuntimeError, match="found no application with a nursery"):
        start_soon(tasks.note, "too early")
    app = application()
    async with serving(app):
        pass
    with pytest.raises(RuntimeError, match="asgi_lifespan"):
        start_soon(tasks.note, "too late")

    async def view(request: HttpRequest) -> HttpResponse:
        with pytest.raises(RuntimeError, match="No nursery outlives this request"):
            start_soon(tasks.note, "no lifespan")
        return HttpResponse()

    async with serving(app):  # another one, which is not this request's
        answer = await request(application(path("", view)))
    assert answer.status == 200
    assert tasks.names == []


def not_async() -> None:
    """Return nothing to wait for."""


async def asynchronous() -> None:
    """Do nothing."""


@pytest.mark.parametrize("on_commit", [False, True])
@pytest.mark.parametrize("in_thread", [False, True])
async def test_what_is_no_async_function_raises_at_the_call(
    on_commit: bool, in_thread: bool
) -> None:
    """With Trio's own words, in every thread."""

    async def start(what: Any, *args: Any) -> None:
        if in_thread:
            await sync_to_async(start_soon)(what, *args, on_commit=on_commit)
        else:
            start_soon(what, *args, on_commit=on_commit)

    async with serving(application()):
        with pytest.raises(TypeError, match="Trio expected an async function, but"):
            await start(not_async)
        with pytest.raises(TypeError, match="instead it got a coroutine object"):
            await start(asynchronous())
        with pytest.raises(TypeError, match="takes 0 positional arguments"):
            await start(asynchronous, 1)
        with pytest.raises(TypeError, match="not callable"):
            await start(None)


# on_commit


@pytest.fixture
async def alias(tmp_path: Path) -> AsyncIterator[str]:
    """Provide a database."""
    async with open_database(sqlite_in(tmp_path)) as alias:
        yield alias


def in_sync_code(tasks: Tasks, alias: str, *, fails: bool) -> None:
    """Start tasks in a transaction, and outside, in sync code."""
    start_soon(tasks.note, "before", on_commit=True, using=alias)
    with transaction.atomic(alias):
        start_soon(tasks.note, "outer", on_commit=True, using=alias)
        try:
            with transaction.atomic(alias):
                start_soon(tasks.note, "inner", on_commit=True, using=alias)
                if fails:
                    raise LookupError
        except LookupError:
            pass
        trio.from_thread.run(wait_all_tasks_blocked)
        assert tasks.names == ["before"]


async def in_async_code(tasks: Tasks, alias: str, *, fails: bool) -> None:
    """Do the same in async code."""
    start_soon(tasks.note, "before", on_commit=True, using=alias)
    async with atomic(alias):
        start_soon(tasks.note, "outer", on_commit=True, using=alias)
        try:
            async with atomic(alias):
                start_soon(tasks.note, "inner", on_commit=True, using=alias)
                if fails:
                    raise LookupError
        except LookupError:
            pass
        await wait_all_tasks_blocked()
        assert tasks.names == ["before"]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("code", [in_sync_code, in_async_code])
async def test_on_commit(tasks: Tasks, alias: str, code: Any, fails: bool) -> None:
    """It waits for the commit, and never starts after a rollback."""
    if code is in_sync_code:
        code = sync_to_async(code)

    async def view(request: HttpRequest) -> HttpResponse:
        await code(tasks, alias, fails=fails)
        return HttpResponse()

    app = application(path("", view))
    async with serving(app):
        assert (await request(app)).status == 200
        await tasks.wait("before", "outer", *([] if fails else ["inner"]))


async def test_on_commit_without_a_transaction_opens_no_connection(
    tasks: Tasks, alias: str
) -> None:
    """Neither in async nor in sync code; a thread may not be Django's at all."""

    def is_open() -> bool:
        return connections[alias].connection is not None

    def in_other_thread() -> bool:
        start_soon(tasks.note, "other thread", on_commit=True, using=alias)
        return is_open()

    async def view(request: HttpRequest) -> HttpResponse:
        assert not await sync_to_async(is_open)()
        start_soon(tasks.note, "async", on_commit=True, using=alias)
        await sync_to_async(start_soon)(tasks.note, "sync", on_commit=True, using=alias)
        assert not await sync_to_async(is_open)()
        assert not await trio.to_thread.run_sync(in_other_thread)
        return HttpResponse()

    app = application(path("", view))
    async with serving(app):
        assert (await request(app)).status == 200
        await tasks.wait("async", "sync", "other thread")


async def test_on_commit_of_the_sync_code_above(tasks: Tasks, alias: str) -> None:
    """Async code below a sync transaction waits for that."""

    async def below() -> None:
        start_soon(tasks.note, "below", on_commit=True, using=alias)
        await wait_all_tasks_blocked()
        assert tasks.names == []

    def sync_code(*, fails: bool) -> None:
        with transaction.atomic(alias):
            async_to_sync(below)()
            if fails:
                raise LookupError

    async with serving(application()):
        with pytest.raises(LookupError):
            await sync_to_async(sync_code)(fails=True)
        assert tasks.names == []
        await sync_to_async(sync_code)(fails=False)
        await tasks.wait("below")


async def test_on_commit_beside_the_block_of_another_task(
    tasks: Tasks, alias: str
) -> None:
    """A sibling's rollback does not keep a task from starting."""
    async with serving(application()), trio.open_nursery() as nursery:
        inside = trio.Event()

        async def sibling() -> None:
            await inside.wait()
            start_soon(tasks.note, "sibling", on_commit=True, using=alias)

        nursery.start_soon(sibling)
        with pytest.raises(LookupError):
            async with atomic(alias):
                inside.set()
                await tasks.wait("sibling")
                raise LookupError


@asynccontextmanager
async def rolled_back_child(alias: str) -> AsyncIterator[None]:
    """During the block, another task has a block open, which fails in the end."""
    inside, done = trio.Event(), trio.Event()

    async def child() -> None:
        with suppress(LookupError):
            async with atomic(alias):
                inside.set()
                await done.wait()
                raise LookupError

    async with trio.open_nursery() as nursery:
        nursery.start_soon(child)
        await inside.wait()
        yield
        done.set()


async def test_on_commit_during_the_savepoint_of_a_child(
    tasks: Tasks, alias: str
) -> None:
    """The child's rollback does not count: the task belongs to the outer block."""
    async with serving(application()):
        async with atomic(alias):
            async with rolled_back_child(alias):
                start_soon(tasks.note, "outer", on_commit=True, using=alias)
            await sync_to_async(int)()
            await wait_all_tasks_blocked()
            assert tasks.names == []
        await tasks.wait("outer")


async def test_on_commit_of_the_sync_code_above_beside_a_block(
    tasks: Tasks, alias: str
) -> None:
    """The transaction of the sync code counts, not the block of a sibling."""

    async def below() -> None:
        async with rolled_back_child(alias):
            start_soon(tasks.note, "below", on_commit=True, using=alias)

    def sync_code(*, fails: bool) -> None:
        with transaction.atomic(alias):
            async_to_sync(below)()
            trio.from_thread.run(wait_all_tasks_blocked)
            assert tasks.names == []
            if fails:
                raise LookupError

    async with serving(application()):
        with pytest.raises(LookupError):
            await sync_to_async(sync_code)(fails=True)
        await wait_all_tasks_blocked()
        assert tasks.names == []
        await sync_to_async(sync_code)(fails=False)
        await tasks.wait("below")


async def test_on_commit_of_a_request_that_has_ended(tasks: Tasks, alias: str) -> None:
    """Its transaction was rolled back: the task that outlives it is told."""
    inside, ended = trio.Event(), trio.Event()

    async def outlive() -> None:
        with pytest.raises(RuntimeError, match="The request has ended"):
            async with atomic(alias):
                inside.set()
                await ended.wait()
                start_soon(tasks.note, "outlive", on_commit=True, using=alias)
                pytest.fail("not told")

    async def view(request: HttpRequest) -> HttpResponse:
        nursery.start_soon(outlive)
        await inside.wait()
        return HttpResponse()

    app = application(path("", view))
    # The end of the request waits for so long for its turn.
    cleanup = override_settings(TRIO_ASGI={"CLEANUP_SECONDS": 0.05})
    async with serving(app), trio.open_nursery() as nursery:
        with cleanup:
            assert (await request(app)).status == 200
        ended.set()
    assert tasks.names == []


async def test_a_task_has_its_own_connection(tasks: Tasks, alias: str) -> None:
    """It is not part of the transaction in which it was started."""

    async def look() -> None:
        inside = await sync_to_async(lambda: connections[alias].in_atomic_block)()
        await tasks.note(f"in a transaction: {inside}")

    async with serving(application()), atomic(alias):
        start_soon(look)
        await tasks.wait("in a transaction: False")


# Under an asyncio server


def test_in_a_guest_run() -> None:
    """The same code, and the same islands, where asyncio's loop is the host."""

    async def main() -> None:
        with trio.fail_after(SECONDS):
            await test_from_views_and_below(Tasks())

    run_in_guest(main)

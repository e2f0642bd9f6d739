"""Calls with ``thread_sensitive=False`` leave nothing behind in their threads.

The next request takes the same thread, with its connections.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import OperationalError, connections, transaction
from django.http import HttpRequest, HttpResponse
from django.urls import path

from database_support import open_database, sqlite_in
from support import application, request
from trio_asgi.bridge.connections import keep_connections, tidy_up

if TYPE_CHECKING:
    from pathlib import Path

    from trio_asgi import ASGIHandler


def insensitive(fn: Any) -> Any:
    """Return a coroutine function that runs ``fn()`` in any thread."""
    return sync_to_async(fn, thread_sensitive=False)


def site(alias: str, fn: Any) -> ASGIHandler:
    """Return views that make this call, write a row, and count the rows."""

    async def call(request: HttpRequest) -> HttpResponse:
        await insensitive(fn)()
        threads.append(await insensitive(_thread)())
        return HttpResponse()

    def write(request: HttpRequest) -> HttpResponse:
        threads.append(_thread())
        connection = connections[alias]
        assert connection.get_autocommit()
        with transaction.atomic(using=alias), connection.cursor() as cursor:
            cursor.execute("INSERT INTO rows VALUES (1)")
        return HttpResponse()

    def count(request: HttpRequest) -> HttpResponse:
        connections[alias].close()
        return HttpResponse(str(rows(alias)))

    threads: list[threading.Thread] = []
    app = application(*(path(f"{v.__name__}/", v) for v in (call, write, count)))
    vars(app)["threads"] = threads
    return app


def _thread() -> threading.Thread:
    return threading.current_thread()


def rows(alias: str) -> int:
    """Count the rows that this thread's connection sees."""
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT COUNT(*) FROM rows")
        return int(cursor.fetchone()[0])


def create(alias: str) -> None:
    """Make the table."""
    with connections[alias].cursor() as cursor:
        cursor.execute("CREATE TABLE rows (number INTEGER)")
    connections[alias].close()


def without_autocommit(alias: str) -> None:
    """Leave the connection without autocommit."""
    transaction.set_autocommit(False, using=alias)


def in_transaction(alias: str) -> None:
    """Leave a transaction open."""
    transaction.atomic(using=alias).__enter__()


def broken(alias: str) -> None:
    """Leave a failed transaction open."""
    transaction.atomic(using=alias).__enter__()
    transaction.set_rollback(True, using=alias)


@pytest.mark.parametrize("leave", [without_autocommit, in_transaction, broken])
async def test_what_a_call_leaves_no_request_finds(tmp_path: Path, leave: Any) -> None:
    """The next request in that thread writes a row, and the row is there."""
    async with open_database(sqlite_in(tmp_path, CONN_MAX_AGE=None)) as alias:
        await insensitive(lambda: create(alias))()
        app = site(alias, lambda: leave(alias))
        for url in ("/call/", "/write/"):
            assert (await request(app, url)).status == 200
        called, wrote = vars(app)["threads"]
        assert called is wrote
        assert (await request(app, "/count/")).body == b"1"


@pytest.mark.parametrize("leave", [without_autocommit, in_transaction, broken])
async def test_the_next_call_finds_nothing_either(tmp_path: Path, leave: Any) -> None:
    """Rows that another call writes after that are not lost."""
    async with open_database(sqlite_in(tmp_path, CONN_MAX_AGE=None)) as alias:

        def write() -> None:
            with connections[alias].cursor() as cursor:
                cursor.execute("INSERT INTO rows VALUES (1)")

        def count() -> int:
            connections[alias].close()
            return rows(alias)

        await insensitive(lambda: create(alias))()
        await insensitive(lambda: leave(alias))()
        await insensitive(write)()
        assert await insensitive(count)() == 1


async def test_a_connection_that_became_too_old_is_closed_before(
    tmp_path: Path,
) -> None:
    """As when a request begins: the thread may have been idle for a long time."""
    async with open_database(sqlite_in(tmp_path, CONN_MAX_AGE=60)) as alias:

        def use() -> Any:
            connections[alias].ensure_connection()
            return connections[alias].connection

        first = await insensitive(use)()
        assert await insensitive(use)() is first
        # From outside, because the thread itself would be tidied up after that.
        connection = await insensitive(lambda: connections[alias])()
        connection.close_at = time.monotonic() - 1
        assert await insensitive(use)() is not first


async def test_a_call_within_a_call_leaves_its_transaction_alone(
    tmp_path: Path,
) -> None:
    """Only the end of the outer call ends its transaction."""
    async with open_database(sqlite_in(tmp_path, CONN_MAX_AGE=None)) as alias:

        def inner() -> bool:
            return connections[alias].in_atomic_block

        def outer() -> bool:
            create(alias)
            with transaction.atomic(using=alias):
                with connections[alias].cursor() as cursor:
                    cursor.execute("INSERT INTO rows VALUES (1)")
                return bool(async_to_sync(sync_to_async(inner))())

        assert await insensitive(outer)()
        assert await insensitive(lambda: rows(alias))() == 1


async def test_an_executor_of_the_callers_is_left_alone(tmp_path: Path) -> None:
    """Its threads serve no requests, and its owner may keep connections there."""
    async with open_database(sqlite_in(tmp_path, CONN_MAX_AGE=None)) as alias:
        with ThreadPoolExecutor(1) as executor:

            def run(fn: Any) -> Any:
                return sync_to_async(fn, thread_sensitive=False, executor=executor)()

            await run(lambda: in_transaction(alias))
            assert await run(lambda: connections[alias].in_atomic_block)
            await run(connections.close_all)


@pytest.mark.parametrize("in_atomic_block", [False, True])
async def test_a_connection_that_cannot_be_closed_is_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, in_atomic_block: bool
) -> None:
    """No later call finds it, and the call has its result."""

    def fail() -> None:
        raise OperationalError("the wire is cut")

    async with open_database(sqlite_in(tmp_path, CONN_MAX_AGE=0)) as alias:

        def use() -> Any:
            connection = connections[alias]
            connection.ensure_connection()
            connection.in_atomic_block = in_atomic_block
            connection.close = fail  # type: ignore[method-assign]
            return connection

        with caplog.at_level(logging.ERROR):
            first = await insensitive(use)()
        assert "could not be closed, and is dropped" in caplog.text
        assert await insensitive(lambda: connections[alias])() is not first
        first.connection.close()


async def test_connections_are_kept_for_nested_requests(tmp_path: Path) -> None:
    """In a test's thread one request may make another; both keep its connections."""
    async with open_database(sqlite_in(tmp_path, CONN_MAX_AGE=0)) as alias:

        def use() -> None:
            connection = connections[alias]
            connection.ensure_connection()
            with keep_connections():
                with keep_connections():
                    tidy_up()
                tidy_up()
                assert connection.connection is not None
            tidy_up()
            assert connection.connection is None

        await insensitive(use)()

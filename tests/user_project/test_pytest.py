"""Tests that a project may write with pytest, pytest-django and pytest-trio."""

from __future__ import annotations

import gc
import os
import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trio
from asgiref.sync import sync_to_async
from django.db import connection, transaction
from django.test import AsyncClient

from books.models import Book
from trio_asgi.testing import ApplicationCommunicator, http_scope, run, sync_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.contrib.auth.models import User
    from django.test import Client

    from trio_asgi import ASGIHandler

PostgreSQL = pytest.mark.skipif(
    "POSTGRESQL_NAME" not in os.environ, reason="asks PostgreSQL"
)


def in_main_thread() -> bool:
    """Whether this is pytest's thread."""
    return threading.current_thread() is threading.main_thread()


async def sync_code_is_in_main_thread() -> bool:
    """Whether thread-sensitive code runs in pytest's thread."""
    return bool(await sync_to_async(in_main_thread)())


async def receive_body(communicator: ApplicationCommunicator) -> bytes:
    """Return the whole body."""
    body, more = b"", True
    while more:
        message = await communicator.receive_output(timeout=61)
        body += message.get("body", b"")
        more = message["type"] == "http.response.start" or message.get("more_body")
    return body


@pytest.mark.django_db
async def test_requests_of_the_client_have_streams(async_client: AsyncClient) -> None:
    """A view that reads its body as it arrives can be tested like any other."""
    response = await async_client.post(
        "/count/", b"x" * 100_000, content_type="application/octet-stream"
    )
    assert response.json() == {"size": 100_000}
    response = await async_client.post("/count/", {"name": "Ada"})
    assert response.json() == {"form": ["name"]}
    response = await async_client.post("/count/")
    assert response.json() == {"form": []}
    response = await AsyncClient().post("/count/", "four", content_type="text/plain")
    assert response.json() == {"size": 4}


async def test_requests_of_the_factory_have_streams(async_rf: Any) -> None:
    """So can a view that is called without its URL."""
    request = async_rf.post("/count/", "four", content_type="text/plain")
    assert b"".join([part async for part in request.stream()]) == b"four"


@pytest.mark.django_db
@pytest.mark.parametrize("round_", [1, 2])
async def test_views_see_the_rows(async_client: AsyncClient, round_: int) -> None:
    """Test, async view, sync view and sync middleware share one transaction."""
    assert trio.lowlevel.in_trio_task()
    assert await sync_to_async(lambda: connection.in_atomic_block)()
    await Book.objects.acreate(title="by the test")
    response = await async_client.get("/books/")
    assert response.json() == {"titles": ["by the test"]}
    assert response["X-Books"] == "1"
    response = await async_client.post("/books/")
    assert response.json() == {"titles": ["by the test", "posted"]}
    assert (await async_client.get("/sync/")).json() == response.json()
    assert await Book.objects.acount() == 2


@pytest.mark.django_db(transaction=True)
async def test_transactional(async_client: AsyncClient, sync_book: Book) -> None:
    """It works the same without the transaction around the test."""
    assert not await sync_to_async(lambda: connection.in_atomic_block)()
    await async_client.post("/books/")
    response = await async_client.get("/books/")
    assert response.json() == {"titles": ["posted", "sync"]}


async def test_fixtures(
    sync_book: Book, async_book: Book, async_client: AsyncClient, nursery: trio.Nursery
) -> None:
    """Objects of sync and of async fixtures are there, even in tasks of the nursery."""
    answers = []

    async def ask() -> None:
        answers.append((await async_client.get("/books/")).json()["titles"])

    async def ask_in_background(*, task_status: trio.TaskStatus[None]) -> None:
        await ask()
        task_status.started()

    async with trio.open_nursery() as inner:
        for _ in range(10):
            inner.start_soon(ask)
    await nursery.start(ask_in_background)
    assert answers == [["async", "sync"]] * 11


async def test_cancelled_task(db: None) -> None:
    """A task that is cancelled between two queries leaves the rest undone."""
    written = trio.Event()

    async def write() -> None:
        await Book.objects.acreate(title="before")
        written.set()
        await trio.sleep_forever()
        await Book.objects.acreate(title="after")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await written.wait()
        nursery.cancel_scope.cancel()
    assert [book.title async for book in Book.objects.all()] == ["before"]


async def test_clock(
    sync_book: Book, async_client: AsyncClient, autojump_clock: trio.abc.Clock
) -> None:
    """The test's clock is pytest-trio's."""
    with trio.fail_after(3601):
        await trio.sleep(3600)
        await async_client.get("/books/")


async def test_users(
    admin_client: Client, async_client: AsyncClient, django_user_model: type[User]
) -> None:
    """Sync and async clients sign in users that the views know."""
    page = await sync_to_async(admin_client.get)("/me/")
    assert page.content == b"admin"
    user = await django_user_model.objects.acreate_user("eve", password="apple")
    await async_client.aforce_login(user)
    assert (await async_client.get("/me/")).content == b"eve"


@pytest.mark.django_db
def test_sync_client(client: Client, sync_book: Book) -> None:
    """A sync test calls async views on Trio, in its transaction."""
    assert client.get("/books/").json() == {"titles": ["sync"]}
    assert client.get("/books/")["X-Books"] == "1"


async def test_settings(
    settings: Any, async_client: AsyncClient, sync_book: Book
) -> None:
    """Settings of a test apply to the views too."""
    settings.MIDDLEWARE = []
    assert "X-Books" not in await async_client.get("/books/")


async def test_live_server(
    live_server: Any, sync_book: Book, async_client: AsyncClient
) -> None:
    """pytest-django's server sees the database too."""
    async with httpx.AsyncClient() as client:
        response = await client.get(f"{live_server.url}/books/")
        assert response.json() == {"titles": ["sync"]}
        assert response.headers["Server"].startswith("hypercorn")
        response = await client.get(f"{live_server.url}/static/cover.txt")
        assert response.text == "a cover\n"
        await client.post(f"{live_server.url}/books/")
    assert await Book.objects.acount() == 2


async def test_asgi_server(asgi_server: str, sync_book: Book) -> None:
    """The ASGI server's requests are in the test's transaction."""
    async with httpx.AsyncClient(base_url=asgi_server) as client:
        assert asgi_server == f"http://{(await client.get('/host/')).text}"
        for path in ("/books/", "/sync/"):
            assert (await client.get(path)).json() == {"titles": ["sync"]}
        await client.post("/books/")
    assert await sync_to_async(lambda: connection.in_atomic_block)()
    assert await Book.objects.acount() == 2


async def test_the_host_of_asgi_server_is_allowed_there_alone(settings: Any) -> None:
    """After such a test, the settings are as they were."""
    assert settings.ALLOWED_HOSTS == ["books.example", "testserver"]


async def test_communicator(
    asgi_application: ASGIHandler,
    asgi_lifespan: None,
    sync_book: Book,
    async_book: Book,
    autojump_clock: trio.abc.Clock,
) -> None:
    """A stream, and a task that outlives its request, are in the transaction."""
    scope = http_scope("/stream/")
    async with ApplicationCommunicator(asgi_application, scope) as communicator:
        await communicator.send_input({"type": "http.request"})
        assert await receive_body(communicator) == b"asyncsync"
    done = trio.Event()

    async def background() -> None:
        await Book.objects.acreate(title="in background")
        done.set()

    asgi_application.start_soon(background)
    await done.wait()
    assert await Book.objects.acount() == 3


async def test_queries(
    sync_book: Book,
    async_client: AsyncClient,
    django_assert_num_queries: Callable[..., Any],
) -> None:
    """Queries of async code are counted."""
    async with sync_context(django_assert_num_queries, 2) as captured:
        await async_client.get("/books/")
    assert all("books_book" in query["sql"] for query in captured.captured_queries)
    with pytest.raises(pytest.fail.Exception, match="Expected to perform 5 queries"):
        async with sync_context(django_assert_num_queries, 5):
            await Book.objects.acount()


async def test_on_commit(
    db: None, django_capture_on_commit_callbacks: Callable[..., Any]
) -> None:
    """Code that waits for the commit is captured and run."""
    called = []
    async with sync_context(django_capture_on_commit_callbacks, execute=True):
        await sync_to_async(transaction.on_commit)(lambda: called.append(1))
        assert called == []
    assert called == [1]


@pytest.fixture
def in_german() -> Iterator[None]:
    """Keep something in the thread."""
    local.language = "de"
    yield
    assert local.language == "fr"


local = threading.local()


async def test_thread_locals(db: None, in_german: None) -> None:
    """Sync code sees what sync fixtures have left in their thread."""

    def switch() -> str:
        language: str = local.language
        local.language = "fr"
        return language

    assert await sync_to_async(switch)() == "de"


async def test_without_database() -> None:
    """A test without the database runs in pytest's thread, as without the plugin."""
    assert in_main_thread()
    assert not await sync_code_is_in_main_thread()


async def test_blocked(async_client: AsyncClient) -> None:
    """pytest-django blocks the database for tests that did not request it."""
    with pytest.raises(RuntimeError, match="Database access not allowed"):
        await Book.objects.acount()
    assert (await async_client.get("/nothing/")).content == b"nothing"


@pytest.mark.trio(run=trio.run)
async def test_other_runner(db: None) -> None:
    """The user's choice of a runner is respected."""
    assert in_main_thread()


@pytest.mark.trio(run=run)
async def test_runner_of_choice() -> None:
    """So is the choice of this one, for a test without the database."""
    assert not in_main_thread()
    assert await sync_code_is_in_main_thread()


async def test_insensitive_threads(db: None) -> None:
    """Thread-insensitive code runs elsewhere, with its own connections."""
    insensitive = sync_to_async(in_main_thread, thread_sensitive=False)
    assert not await insensitive()


@pytest.mark.skip(reason="a test's own skip")
async def test_skipped(db: None) -> None:
    """Skips do not run."""
    raise AssertionError


@pytest.mark.xfail(strict=True)
async def test_expected_failure(db: None, async_client: AsyncClient) -> None:
    """An expected failure is one."""
    await async_client.get("/fails/")


async def test_skips_itself(db: None) -> None:
    """A test on Trio may skip itself."""
    await Book.objects.acreate(title="skipped")
    pytest.skip("by itself")


@PostgreSQL
@pytest.mark.django_db(transaction=True)
def test_no_connection_is_left() -> None:
    """After all those tests only pytest's thread has a connection.

    pytest-django runs the transactional ones last.
    """
    gc.collect()
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        )
        assert cursor.fetchone() == (1,)

"""Django's own test cases."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.request import urlopen

import trio
from asgiref.sync import sync_to_async
from django.contrib.staticfiles.testing import StaticLiveServerTestCase
from django.db import connection, transaction
from django.test import (
    AsyncClient,
    AsyncRequestFactory,
    LiveServerTestCase,
    SimpleTestCase,
    TestCase,
    TransactionTestCase,
)

from books.models import Book
from mysite.urls import count
from trio_asgi import ASGIHandler, start_soon
from trio_asgi.testing import (
    ApplicationCommunicator,
    http_scope,
    lifespan,
    sync_context,
)


class InTransactionTests(TestCase):
    """Tests with one transaction each, inside the class's."""

    @classmethod
    def setUpTestData(cls) -> None:
        cls.book = Book.objects.create(title="of the class")

    def setUp(self) -> None:
        Book.objects.create(title="of setUp")

    async def all_titles(self) -> list[str]:
        return [book.title async for book in Book.objects.order_by("title")]

    async def test_views_see_the_rows(self) -> None:
        """Test, async view, sync view and sync middleware share one transaction."""
        self.assertTrue(trio.lowlevel.in_trio_task())
        self.assertTrue(await sync_to_async(lambda: connection.in_atomic_block)())
        response = await self.async_client.post("/books/")
        titles = ["of setUp", "of the class", "posted"]
        self.assertEqual(response.json(), {"titles": titles})
        self.assertEqual(response["X-Books"], "2")
        response = await self.async_client.get("/sync/")
        self.assertEqual(response.json(), {"titles": titles})

    async def test_once_more(self) -> None:
        """The rows written by that test are gone."""
        self.assertEqual(await self.all_titles(), ["of setUp", "of the class"])
        await self.book.adelete()

    async def test_and_again(self) -> None:
        """The rows deleted by that test are back."""
        self.assertEqual(await self.all_titles(), ["of setUp", "of the class"])
        await self.book.arefresh_from_db()

    async def test_thread(self) -> None:
        """Sync code runs in the thread of setUp."""
        thread = await sync_to_async(threading.current_thread)()
        self.assertIs(thread, threading.main_thread())

    def test_sync_client(self) -> None:
        """The sync client calls async views on Trio."""
        response = self.client.get("/books/")
        self.assertEqual(response.json(), {"titles": ["of setUp", "of the class"]})

    async def test_queries(self) -> None:
        """Queries of async code are counted."""
        async with sync_context(self.assertNumQueries, 2):
            await self.async_client.get("/books/")
        with self.assertRaisesMessage(AssertionError, "1 queries executed, 5 expected"):
            async with sync_context(self.assertNumQueries, 5):
                await Book.objects.acount()

    async def test_on_commit(self) -> None:
        """Code that waits for the commit is captured and run."""
        called = []
        async with sync_context(self.captureOnCommitCallbacks, execute=True):
            await sync_to_async(transaction.on_commit)(lambda: called.append(1))
            self.assertEqual(called, [])
        self.assertEqual(called, [1])

    async def test_communicator(self) -> None:
        """The ASGI handler's requests are in the transaction."""
        scope = http_scope("/books/")
        async with ApplicationCommunicator(ASGIHandler(), scope) as communicator:
            await communicator.send_input({"type": "http.request"})
            await communicator.receive_output()
            answer = await communicator.receive_output()
        self.assertIn(b"of setUp", answer["body"])

    async def test_background_tasks(self) -> None:
        """They are in the transaction, too, while sync code of their request runs."""

        async def write() -> None:
            await Book.objects.acreate(title="in the background")

        app = ASGIHandler()
        async with lifespan(app):
            await sync_to_async(start_soon)(write)
            start_soon(write, on_commit=True)
            response = await self.async_client.post("/ordered/")
            self.assertEqual(response.status_code, 202)
        titles = [title for title in await self.all_titles() if "in the" in title]
        # Nothing is committed.
        self.assertEqual(titles, ["in the background"] * 2)

    async def test_bodies_and_event_streams(self) -> None:
        """Views can read their body as a stream, and answer with events."""
        for client in (self.async_client, AsyncClient()):
            response = await client.post("/count/", "four", content_type="text/plain")
            self.assertEqual(response.json(), {"size": 4})
        request = AsyncRequestFactory().post("/count/", "four", "text/plain")
        self.assertEqual((await count(request)).content, b'{"size": 4}')
        response = await self.async_client.get("/events/")
        parts = [part async for part in response.streaming_content]
        self.assertEqual(b"".join(parts), b"data: of setUp\n\ndata: of the class\n\n")

    async def test_errors(self) -> None:
        """The client raises a view's error."""
        with self.assertRaisesMessage(ValueError, "the view failed"):
            await self.async_client.get("/fails/")


class TransactionalTests(TransactionTestCase):
    """Tests without a transaction."""

    async def test_rows(self) -> None:
        """The view sees the rows."""
        self.assertFalse(await sync_to_async(lambda: connection.in_atomic_block)())
        await Book.objects.acreate(title="by the test")
        response = await self.async_client.post("/books/")
        self.assertEqual(response.json(), {"titles": ["by the test", "posted"]})

    async def test_once_more(self) -> None:
        """Either of the two finds an empty table."""
        self.assertEqual(await Book.objects.acount(), 0)
        await Book.objects.acreate(title="by the test")


class SimpleTests(SimpleTestCase):
    """Tests without a database."""

    async def test_view(self) -> None:
        """Test and view run on Trio."""
        self.assertTrue(trio.lowlevel.in_trio_task())
        response = await self.async_client.get("/nothing/")
        self.assertEqual(response.content, b"nothing")


class ServerTests(LiveServerTestCase):
    """Tests with a live server."""

    def read(self, path: str = "/books/") -> bytes:
        with urlopen(f"{self.live_server_url}{path}", timeout=30) as response:
            body: bytes = response.read()
            self.assertIn("hypercorn", response.headers["Server"])
        return body

    def test_sync(self) -> None:
        """The server runs async views on Trio, and sees the rows."""
        Book.objects.create(title="by the test")
        self.assertIn(b"by the test", self.read())
        self.assertIn(b"by the test", self.read("/sync/"))

    async def test_async(self) -> None:
        """So it does for a test on Trio."""
        await Book.objects.acreate(title="by the test")
        self.assertIn(b"by the test", await trio.to_thread.run_sync(self.read))
        self.assertIn(
            b"by the test", await trio.to_thread.run_sync(self.read, "/events/")
        )

    def test_at_the_same_time(self) -> None:
        """Many requests use the database at the same time."""
        Book.objects.create(title="by the test")
        with ThreadPoolExecutor(8) as executor:
            answers = [*executor.map(self.read, ["/books/", "/sync/"] * 8)]
        self.assertEqual({*answers}, {b'{"titles": ["by the test"]}'})


class StaticServerTests(StaticLiveServerTestCase):
    """Tests with a live server that finds static files."""

    def test_static_file(self) -> None:
        """A file of an app is served."""
        with urlopen(
            f"{self.live_server_url}/static/cover.txt", timeout=30
        ) as response:
            self.assertEqual(response.read(), b"a cover\n")
            self.assertIn("hypercorn", response.headers["Server"])

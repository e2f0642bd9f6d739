"""Django's own test cases, all of which fail."""

from __future__ import annotations

import trio
from django.test import TestCase

from books.models import Book


class FailingTests(TestCase):
    """Tests that fail."""

    async def test_assertion(self) -> None:
        await Book.objects.acreate(title="by a test that fails")
        self.assertEqual("seen", "expected")

    async def test_error(self) -> None:
        await self.async_client.get("/fails/")

    async def test_nursery(self) -> None:
        async def fail() -> None:
            raise ValueError("a task failed")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            await trio.sleep_forever()

"""Tests with pytest that fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from books.models import Book

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from django.test import AsyncClient

pytestmark = pytest.mark.django_db


async def test_assertion(sync_book: Book) -> None:
    await Book.objects.acreate(title="by a test that fails")
    assert sync_book.title == "expected"


async def test_error(async_client: AsyncClient) -> None:
    await async_client.get("/fails/")


async def test_task(nursery: trio.Nursery) -> None:
    async def fail() -> None:
        await Book.objects.acreate(title="by a task that fails")
        raise ValueError("a task failed")

    nursery.start_soon(fail)
    await trio.sleep_forever()


@pytest.fixture
async def fails_at_the_end() -> AsyncIterator[None]:
    yield
    await Book.objects.acreate(title="by a fixture that fails")
    raise ValueError("a fixture failed")


async def test_fixture(fails_at_the_end: None) -> None:
    assert await Book.objects.acount() == 0

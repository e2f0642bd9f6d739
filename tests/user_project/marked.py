"""Tests of a project that marks those on Trio."""

from __future__ import annotations

import pytest
import trio

from books.models import Book


@pytest.mark.trio
async def test_marked(sync_book: Book, async_book: Book) -> None:
    assert trio.lowlevel.in_trio_task()
    assert await Book.objects.acount() == 2


@pytest.mark.trio
class TestMarked:
    @pytest.mark.django_db
    async def test_of_a_class(self) -> None:
        await Book.objects.acreate(title="by the test")
        assert await Book.objects.acount() == 1


@pytest.mark.django_db
def test_sync() -> None:
    assert not trio.lowlevel.in_trio_task()
    Book.objects.create(title="by the test")

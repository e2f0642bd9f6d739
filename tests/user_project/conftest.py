"""Fixtures as in real projects: sync and async ones that make objects."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
import trio

from books.models import Book

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytest_plugins = ["trio_asgi.testing.pytest_plugin"]


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> None:
    """Check that no row of an earlier test is left."""
    fixtures = {"db", "transactional_db", "live_server"} & {*request.fixturenames}
    has_marker = request.node.get_closest_marker("django_db") is not None
    if request.cls is None and (fixtures or has_marker):
        request.getfixturevalue("db")
        assert Book.objects.count() == 0


@pytest.fixture
def sync_book(db: None) -> Iterator[Book]:
    """Make a book in pytest's thread, and change it there after the test."""
    assert threading.current_thread() is threading.main_thread()
    book = Book.objects.create(title="sync")
    yield book
    assert Book.objects.filter(pk=book.pk).update(title="torn down") == 1


@pytest.fixture
async def async_book(db: None) -> AsyncIterator[Book]:
    """Make a book on Trio, and change it there after the test."""
    assert trio.lowlevel.in_trio_task()
    book = await Book.objects.acreate(title="async")
    yield book
    assert await Book.objects.filter(pk=book.pk).aupdate(title="torn down") == 1

"""A test that is interrupted by Ctrl-C, and one that takes too long."""

from __future__ import annotations

import os
import signal

import pytest
import trio

from books.models import Book

pytestmark = pytest.mark.django_db

# A shell ignores Ctrl-C for background processes, and so does Python then.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.timeout(1, method="signal", func_only=True)
async def test_too_long() -> None:
    await Book.objects.acreate(title="by a test that takes too long")
    await trio.sleep_forever()


async def test_between() -> None:
    assert await Book.objects.acount() == 0


async def test_interrupted(nursery: trio.Nursery) -> None:
    async def interrupt() -> None:
        # Python may miss a signal that comes just when the main thread begins to wait.
        await trio.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    try:
        nursery.start_soon(interrupt)
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            count = await Book.objects.acount()
        print("cleaned up with", count)


async def test_after() -> None:
    raise AssertionError("pytest has been told to stop")

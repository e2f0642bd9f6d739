"""Run a test as a guest of asyncio's loop, in place of `trio.run`."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import trio

from trio_asgi.hosts.runs import guest_run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def run_in_guest(async_fn: Callable[[], Awaitable[Any]], **options: Any) -> Any:
    """Run an async function in the guest run of a new loop, and end both.

    Args:
        async_fn: The function, without arguments.
        options: Those of `trio.run`.
    """

    async def main() -> Any:
        begin = functools.partial(trio.lowlevel.start_guest_run, **options)
        with patch.object(trio.lowlevel, "start_guest_run", begin):
            run = await guest_run()
        try:
            return await run.call(async_fn, name="test")
        finally:
            await run.end()

    return asyncio.run(main())

"""What two servers do: this one, and Django's own handler in another process."""

import asyncio
import threading
from collections.abc import AsyncIterator

import httpx
import trio
from django.conf import settings

from trio_asgi.tasks import snapshot


class Counter:
    """Counts ``with`` blocks, in any thread, that are entered and not left."""

    def __init__(self) -> None:
        self.value = 0
        self.lock = threading.Lock()

    def __enter__(self) -> None:
        with self.lock:
            self.value += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.value -= 1


def figures_on_asyncio(reports: Counter) -> dict[str, int]:
    """Return what this process does, on asyncio."""
    return {
        "reports": reports.value,
        "tasks": len(asyncio.all_tasks()),
        # without the one that runs the loop
        "threads": threading.active_count() - 1,
    }


def figures_on_trio(reports: Counter) -> dict[str, int]:
    """Return what this process does, on Trio, without the request that asks."""
    counts = snapshot()["counts"]
    names = ("tasks", "threads", "connections")
    return {"reports": reports.value} | {name: counts[name] for name in names}


async def figures(
    reports: Counter, client: httpx.AsyncClient
) -> AsyncIterator[dict[str, dict[str, int] | None]]:
    """Yield the figures of both servers."""
    host, port = settings.COMPARE_WITH
    there = None
    while True:
        try:
            answer = await client.get(f"http://{host}:{port}/load/asyncio/", timeout=1)
            there = answer.raise_for_status().json()
        except httpx.TimeoutException:
            pass  # it is busy: its last figures stay
        except (httpx.HTTPError, ValueError):
            there = None  # it does not run
        yield {"trio": figures_on_trio(reports), "asyncio": there}
        await trio.sleep(0.2)

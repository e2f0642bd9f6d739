"""A candidate's own process: a script, which `candidates.Candidate` runs.

It makes the application, and takes orders. Each line of its standard input is an order:
the name of a method, and its arguments. Each line of its output is a result. Both are
JSON. While it waits for an order it blocks the whole loop, on purpose: a candidate does
nothing while another one is measured.
"""

from __future__ import annotations

import gc
import json
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from driver import Load, SyncLoad, make_environ, make_scope
from loops import AsyncioLoop, Loop, TrioLoop
from works import WORKS, Work

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

#: `project.prepare` makes its session.
COOKIE = "sessionid=0123456789abcdefghijklmnopqrstuv"


def make_application(kind: str) -> Any:
    """Return a candidate's application, without importing anything of the others."""
    if kind == "trio_asgi":
        import trio_asgi  # noqa: PLC0415

        return trio_asgi.get_asgi_application()
    if kind == "asyncio":
        from django.core.asgi import get_asgi_application  # noqa: PLC0415

        return get_asgi_application()
    from django.core.wsgi import get_wsgi_application  # noqa: PLC0415

    return get_wsgi_application()


def make_sync_load(work: Work) -> SyncLoad:
    """Return the requests of the floor."""
    cookie = COOKIE if work.signed_in else ""
    environ = make_environ(f"/{work.sync_view}/", cookie)
    return SyncLoad(make_application("wsgi"), environ, work.body)


def make_loop(kind: str) -> Loop:
    """Return the loop of an asynchronous candidate."""
    return TrioLoop() if kind == "trio_asgi" else AsyncioLoop()


def make_load(
    loop: Loop, app: Callable[..., Awaitable[None]], work: Work, view: str
) -> Load:
    """Return requests to a view, from this work's visitor.

    Only the work's own view must give its answer; for any other, any answer will do.
    """
    cookie = COOKIE if work.signed_in else ""
    return Load(
        loop,
        app,
        make_scope(f"/{view}/", cookie),
        work.body if view == work.view else None,
    )


class Obedient:
    """An asynchronous candidate: each order is the name of a method."""

    def __init__(self, kind: str, work: Work) -> None:
        """Make the application, and the loop that it will run on."""
        self.loop = make_loop(kind)
        self._app = make_application(kind)
        self._work = work
        self._usual = self._load(work.view)
        #: Requests that `hold` has started, and that have not ended.
        self._held = 0

    def _load(self, view: str) -> Load:
        return make_load(self.loop, self._app, self._work, view)

    async def obey(self) -> None:
        """Make the first requests, then carry out orders, until told to stop."""
        await self._usual.run_count(2, 10)
        answer("ready")
        async with self.loop.background():
            for name, arguments in orders():
                if name == "stop":
                    return
                answer(await getattr(self, name)(**arguments))

    async def warm_up(self, concurrency: int, count: int) -> None:
        """Make so many usual requests."""
        await self._usual.run_count(concurrency, count)

    async def run_for(self, concurrency: int, seconds: float) -> dict[str, float]:
        """Make usual requests for some time, and measure them."""
        return await self._usual.run_for(concurrency, seconds)

    async def bodies(self, view: str, concurrency: int, count: int) -> list[str]:
        """Make requests to a view; return the different answers."""
        found = await self._load(view).run_count(concurrency, count)
        return sorted({body.decode() for body in found})

    async def started_threads(self, concurrency: int, count: int) -> int:
        """Make usual requests; return how many threads were started meanwhile."""
        started = 0
        start = threading.Thread.start

        def counted(self: threading.Thread) -> None:
            nonlocal started
            started += 1
            start(self)

        threading.Thread.start = counted  # type: ignore[method-assign]
        try:
            await self._usual.run_count(concurrency, count)
        finally:
            threading.Thread.start = start  # type: ignore[method-assign]
        return started

    async def hold(self, count: int) -> None:
        """Start requests that wait in the view; return when all are waiting."""
        from project.views import gate  # noqa: PLC0415 - Django has to be set up

        if gate.opened is None:
            gate.opened = self.loop.make_event()
        load = self._load("wait")

        async def visitor() -> None:
            await load.request()
            self._held -= 1

        self._held += count
        for _ in range(count):
            self.loop.start_soon(visitor)
        while gate.waiting < self._held:
            await self.loop.sleep(0.01)

    async def release(self) -> None:
        """Let the waiting requests continue; return when all have been answered."""
        from project.views import gate  # noqa: PLC0415

        gate.opened.set()
        while self._held:
            await self.loop.sleep(0.01)
        gate.opened = None

    async def usage(self) -> dict[str, int]:
        """Return how many bytes of memory and how many threads the process has."""
        return usage()


def usage() -> dict[str, int]:
    """Return how many bytes of memory and how many threads this process has."""
    gc.collect()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return {
        "memory": int(fields["VmRSS"].split()[0]) * 1024,
        "threads": int(fields["Threads"]),
    }


def orders() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the orders, until the input ends."""
    for line in sys.stdin:
        yield tuple(json.loads(line))


def answer(result: Any) -> None:
    """Write the result of an order."""
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


def main(kind: str, work: Work) -> None:
    """Run a candidate. After "stop" the process stays, so that it can be inspected."""
    if kind == "wsgi":
        load = make_sync_load(work)
        load.run_count(10)
        answer("ready")
        for name, arguments in orders():
            answer(getattr(load, name)(**arguments))
        return
    obedient = Obedient(kind, work)
    obedient.loop.run(obedient.obey)
    answer("stopped")
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], WORKS[sys.argv[2]])

"""Views that sleep for 50 ms, over HTTP: all requests at once, or one in ten.

A sync view blocks its thread; its async counterpart awaits. WSGI's servers get the
sync views in place of the async ones. The clients run in another process,
`blocking_clients.py`.
"""

from __future__ import annotations

import random
import statistics
from contextlib import ExitStack
from typing import TYPE_CHECKING

from comparison import Figure, best, compare
from report import SERVED, Line, at_most
from servers import CANDIDATES, SERVERS, Server, need_servers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from report import Note

#: Clients, each with one request at a time.
CLIENTS = 32
#: The part of the requests that sleep, when they are mixed with fast ones.
SHARE = 0.1
#: Titles, and the ends of the names of their views.
VIEWS = {"async views": "_async", "sync views": ""}
#: Of a view's sleep.
MILLISECONDS = 50
#: The others are much like one of these.
MEASURED = tuple(name for name in CANDIDATES if name not in ("anycorn", "granian-asgi"))
WAVES = (
    Figure("first", "first wave", " ms at first", better="less"),
    Figure("later", "later waves", " ms later", better="less"),
)
MIXED = (
    Figure("rate", "fast requests", " fast requests a second", better="more"),
    Figure("p99", "99th percentile of their latency", " ms (p99)", better="less"),
    Figure("median", "their latency", " ms (median)"),
    Figure("cpu", "CPU time of a request", " ms of CPU", better="less"),
    Figure("clients", "CPU of the clients", "% of a core for the clients"),
)


def measure(
    databases: Mapping[str, str], *, rounds: int, waves: int, seconds: float
) -> Iterator[Line | Note]:
    """Measure waves of requests that sleep, then a mixed load; yield the results.

    Each round starts new servers, so that the first wave finds no threads.

    Raises:
        Skipped: a server is missing here.
        Broken: a server failed, or gave a wrong answer.
    """
    need_servers(*MEASURED)
    for title, view in VIEWS.items():
        found: dict[str, list[dict[str, float]]] = {name: [] for name in MEASURED}
        for _ in range(rounds):
            with ExitStack() as stack:
                servers = [
                    stack.enter_context(Server(name, databases)) for name in MEASURED
                ]
                for server in servers:
                    server.wait_ready("hello")
                for server in random.sample(servers, len(servers)):
                    fast, slow = _paths(server, view)
                    result = _measure_waves(server, slow, waves)
                    result |= _measure_mixed(server, fast, slow, seconds)
                    found[server.name].append(result)
        for work, figures in (("wave", WAVES), ("mixed", MIXED)):
            yield from compare(
                f"{title}, {figures[0].title}",
                found,
                figures,
                facts={"work": work, "views": title},
            )
        yield _first_wave(title, found)


def _first_wave(title: str, found: dict[str, list[dict[str, float]]]) -> Line:
    """Return how much longer than one view the first wave takes."""
    name = best(found, WAVES[0])
    ratios = [result["first"] / MILLISECONDS for result in found[name]]
    label = f"{CLIENTS} {title} that sleep {MILLISECONDS} ms, first wave / that time"
    return Line(
        f"first wave / {MILLISECONDS} ms, {SERVERS[name].title}",
        ratios,
        target=at_most(1.5),
        row=(SERVED, f"{label} ({SERVERS[name].title})"),
        facts={"work": "wave", "views": title, "server": name},
    )


def _paths(server: Server, view: str) -> tuple[str, str]:
    """Return the paths of a fast view and of one that sleeps."""
    suffix = "" if server.configuration.is_wsgi else view
    return f"/hello{suffix}/", f"/slow{suffix}/"


def _measure_waves(server: Server, slow: str, count: int) -> dict[str, float]:
    result = server.run_clients(
        "blocking_clients.py", "waves", path=slow, clients=CLIENTS, count=count
    )
    first, *later = result["waves"]
    return {"first": first, "later": statistics.median(later)}


def _measure_mixed(
    server: Server, fast: str, slow: str, seconds: float
) -> dict[str, float]:
    arguments = {"share": SHARE, "clients": CLIENTS, "seconds": seconds}
    before = server.cpu()
    result = server.run_clients(
        "blocking_clients.py", "mixed", fast=fast, slow=slow, **arguments
    )
    cpu = server.cpu() - before
    clients = 100 * result["cpu"] / result["seconds"]
    return {**result, "cpu": 1000 * cpu / result["requests"], "clients": clients}

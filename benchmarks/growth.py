"""What many requests take: threads, memory, connections, and time from each other.

These are counts, and one ratio. Counts are exact, so one round is enough for them. The
baseline's counts are shown for comparison.
"""

from __future__ import annotations

import statistics
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from candidates import Broken, Candidate
from databases import Skipped, connect
from report import SERVED, Line, Note, at_most
from works import WORKS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

KINDS = ("trio_asgi", "asyncio")
CONCURRENCY = 32
#: The default of ``TRIO_ASGI["THREADS"]``, which is not changed.
THREADS = 40
#: What a waiting request may take.
KIB = 21
#: Seconds for PostgreSQL to notice that a client is gone.
PATIENCE = 5


@contextmanager
def _candidate(
    kind: str, work: str, databases: Mapping[str, str]
) -> Iterator[Candidate]:
    with Candidate(kind, WORKS[work], databases) as candidate:
        candidate.wait_ready()
        yield candidate


def threads(databases: Mapping[str, str], *, requests: int) -> Iterator[Line | Note]:
    """Count the threads that requests start after a warm-up.

    Raises:
        Skipped: this system does not count threads.
        Broken: a candidate failed, or gave a wrong answer.
    """
    _need_proc()
    for work in ("seven-async", "seven-sync"):
        for kind in KINDS:
            with _candidate(kind, work, databases) as candidate:
                arguments = {"concurrency": CONCURRENCY, "count": requests}
                candidate.order("warm_up", **arguments)
                before = candidate.order("usage")["threads"]
                started = candidate.order("started_threads", **arguments)
                after = candidate.order("usage")["threads"]
            yield Line(
                f"{kind}, {WORKS[work].title}: threads started",
                [started],
                unit="",
                target=at_most(0) if kind == "trio_asgi" else None,
                facts={"work": work, "kind": kind, "requests": requests},
            )
            yield Note(f"    {requests:,} requests; threads {before}, then {after}")


def waiting(
    databases: Mapping[str, str], *, requests: int, rounds: int, seconds: float
) -> Iterator[Line | Note]:
    """Let requests wait in the view; measure what each takes, and what others notice.

    The baseline may fail, as it needs a thread for each; then it gets a fifth of them.

    Raises:
        Skipped: this system does not count threads and memory.
        Broken: trio_asgi failed, or a candidate gave a wrong answer.
    """
    _need_proc()
    yield from _waiting("trio_asgi", databases, requests, rounds, seconds)
    try:
        yield from _waiting("asyncio", databases, requests, 1, seconds)
    except Broken as error:
        yield Note(f"asyncio failed with {requests:,} waiting requests: {error}")
        yield from _waiting("asyncio", databases, requests // 5, 1, seconds)


def _waiting(
    kind: str,
    databases: Mapping[str, str],
    requests: int,
    rounds: int,
    seconds: float,
) -> Iterator[Line]:
    ratios: list[float] = []
    with _candidate(kind, "seven-async", databases) as candidate:

        def cost() -> float:
            """Return the seconds of one request, the median of three tries."""
            results = [
                candidate.order("run_for", concurrency=1, seconds=seconds)
                for _ in range(3)
            ]
            return statistics.median(
                float(result["seconds"] / result["requests"]) for result in results
            )

        cost()
        before = candidate.order("usage")
        for number in range(rounds):
            candidate.order("hold", count=1)
            alone = [cost()]
            candidate.order("hold", count=requests - 1)
            if number == 0:
                full = candidate.order("usage")
            crowded = cost()
            candidate.order("release")
            candidate.order("hold", count=1)
            alone.append(cost())
            candidate.order("release")
            ratios.append(crowded / statistics.mean(alone))
    own = kind == "trio_asgi"
    facts = {"kind": kind, "waiting": requests}
    target = at_most(KIB) if own else None
    yield Line(
        f"{kind}, {requests:,} requests wait: memory of each",
        [(full["memory"] - before["memory"]) / requests / 1024],
        unit=" KiB",
        target=target,
        row=target and (SERVED, f"memory of each of {requests:,} waiting requests"),
        facts=facts,
    )
    yield Line(
        f"{kind}, {requests:,} requests wait: threads",
        [full["threads"] - before["threads"]],
        unit="",
        facts=facts,
    )
    yield Line(
        f"{kind}, time of a request, {requests:,} waiting / 1 waiting",
        ratios,
        target=at_most(1.2) if own else None,
        facts=facts,
    )


def connections(
    databases: Mapping[str, str], *, requests: int
) -> Iterator[Line | Note]:
    """Count the connections to PostgreSQL that requests open, and those that stay.

    Raises:
        Skipped: there is no server.
        Broken: a candidate failed, or gave a wrong answer.
    """
    if "postgresql" not in databases:
        raise Skipped(databases["no postgresql"])
    name = databases["postgresql"]
    for kind in KINDS:
        own = kind == "trio_asgi"
        with _candidate(kind, "row-sync", databases) as candidate:
            arguments = {"concurrency": CONCURRENCY, "count": requests}
            seen = candidate.order("bodies", view="backend", **arguments)
            idle = _count_connections(name, kind)
            candidate.order("stop")
            left = _wait_closed(name, kind)
        yield Line(
            f"{kind}, {requests:,} requests: connections opened",
            [len(seen)],
            unit="",
            target=at_most(THREADS) if own else None,
            facts={"kind": kind, "requests": requests},
        )
        yield Line(
            f"{kind}: connections left after shutdown (before: {idle})",
            [left],
            unit="",
            target=at_most(0) if own else None,
            facts={"kind": kind},
        )


def _count_connections(database: str, kind: str) -> int:
    query = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = %s AND application_name = %s"
    )
    with connect() as server:
        (count,) = server.execute(query, [database, f"benchmark {kind}"]).fetchone()
    return int(count)


def _wait_closed(database: str, kind: str) -> int:
    """Wait while the server closes connections; return how many are left."""
    end = time.monotonic() + PATIENCE
    while (left := _count_connections(database, kind)) and time.monotonic() < end:
        time.sleep(0.05)
    return left


def _need_proc() -> None:
    if not Path("/proc/self/status").exists():
        raise Skipped("threads and memory are counted on Linux only")

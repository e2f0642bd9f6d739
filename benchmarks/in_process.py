"""Throughput without a server: trio_asgi beside Django's own handlers.

The candidates of one work are alive at the same time, but only one works at a time.
Each round measures each for a moment, in a new random order. Disturbances of the
machine affect neighbours alike, so each round yields ratios, and the report shows their
medians. WSGI's handler is the floor that the others are compared with. It has no
concurrency: one thread makes one request at a time.
"""

from __future__ import annotations

import random
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from candidates import Candidate
from report import BASELINE, FLOOR, Line, Note, middle

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from works import Work

KINDS = ("trio_asgi", "asyncio", "wsgi")
CONCURRENCIES = (1, 32)
WARM_UP = 64


def measure(
    work: Work, databases: Mapping[str, str], *, rounds: int, seconds: float
) -> Iterator[Line | Note]:
    """Measure one work; yield the results.

    Raises:
        Broken: a candidate failed, or gave a wrong answer.
    """
    if work.database not in databases:
        yield Note(f"{work.title}: skipped: {databases[f'no {work.database}']}")
        return
    found: dict[int, list[dict[str, Any]]] = {number: [] for number in CONCURRENCIES}
    with ExitStack() as stack:
        candidates = [
            stack.enter_context(Candidate(kind, work, databases)) for kind in KINDS
        ]
        for candidate in candidates:
            candidate.wait_ready()
            _warm_up(candidate)
        for _ in range(rounds):
            for concurrency in CONCURRENCIES:
                random.shuffle(candidates)
                results = {
                    candidate.kind: _run(candidate, concurrency, seconds)
                    for candidate in candidates
                }
                found[concurrency].append(results)
    for concurrency, rounds_found in found.items():
        yield from _lines(work, concurrency, rounds_found)


def _warm_up(candidate: Candidate) -> None:
    if candidate.kind == "wsgi":
        candidate.order("run_count", count=WARM_UP)
    else:
        candidate.order("warm_up", concurrency=max(CONCURRENCIES), count=WARM_UP)


def _run(candidate: Candidate, concurrency: int, seconds: float) -> Any:
    if candidate.kind == "wsgi":
        return candidate.order("run_for", seconds=seconds)
    return candidate.order("run_for", concurrency=concurrency, seconds=seconds)


def _lines(
    work: Work, concurrency: int, rounds: list[dict[str, Any]]
) -> Iterator[Line | Note]:
    def used(figure: str, kind: str) -> list[float]:
        """Return the milliseconds of a request, in each round."""
        return [1e3 * each[kind][figure] / each[kind]["requests"] for each in rounds]

    facts = {"work": work.name, "concurrency": concurrency}
    judged = concurrency == max(CONCURRENCIES)
    target = work.target if judged else None
    floor_target = work.floor_target if judged else None
    took = {kind: used("seconds", kind) for kind in KINDS}
    cpu = {kind: used("cpu", kind) for kind in KINDS}
    yield Line(
        f"{work.title}, {concurrency} at a time",
        _ratios(took["asyncio"], took["trio_asgi"]),
        target=target,
        better="more",
        row=target and (BASELINE, work.title),
        facts={**facts, "against": "asyncio"},
    )
    yield Line(
        "    the same per second of CPU time",
        _ratios(cpu["asyncio"], cpu["trio_asgi"]),
        facts={**facts, "against": "asyncio's CPU time"},
    )
    for kind in ("trio_asgi", "asyncio"):
        ours = kind == "trio_asgi"
        for title, times in (("time", took), ("CPU time", cpu)):
            goal = floor_target if ours and times is cpu else None
            yield Line(
                f"    {kind}: {title} over WSGI's handler",
                _ratios(times[kind], times["wsgi"]),
                target=goal,
                better="less" if ours else None,
                row=goal and (FLOOR, work.title),
                facts={**facts, "against": "wsgi", "kind": kind, "figure": title},
            )
    figures = ", ".join(
        f"{kind} {middle(took[kind])} ({middle(cpu[kind])})" for kind in KINDS
    )
    yield Note(
        f"    ms a request (of CPU): {figures}",
        facts={**facts, "milliseconds": took, "cpu_milliseconds": cpu},
    )


def _ratios(ones: list[float], others: list[float]) -> list[float]:
    return [one / other for one, other in zip(ones, others, strict=True)]

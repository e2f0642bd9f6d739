"""Measure trio_asgi beside Django's own handlers: everything, or some of it.

``nox -s benchmarks`` runs this; README.md says how to read the output. Each part is a
module that yields lines. They are printed at once, and kept for ``--output`` and
``--plot``. No figure is ever an error, but a wrong answer is.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import platform
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blocking
import bodies
import growth
import in_process
import over_http
import plot
from candidates import HERE, TITLES, Broken, environment
from databases import Skipped, connect, open_databases
from report import Line, Note, tables
from works import WORKS

import trio_asgi

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

PACKAGES = (
    *("Django", "asgiref", "trio", "Hypercorn"),
    *("anycorn", "uvicorn", "uvloop", "httptools", "gunicorn", "granian", "psycopg"),
)


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    rounds: int
    #: For one candidate in one round.
    seconds: float
    http_rounds: int
    http_seconds: int
    #: The settings of `over_http.MIDDLEWARE`.
    http_middleware: tuple[str, ...]
    blocking_rounds: int
    #: Of requests that sleep, in one round; and the seconds of the mixed load.
    waves: int
    mixed_seconds: float
    #: For the counts.
    requests: int
    #: How many requests wait at once.
    waiting: int
    waiting_rounds: int
    bridge_rounds: int
    bodies: bodies.Sizes


FULL = Scale(
    rounds=9,
    seconds=0.4,
    http_rounds=5,
    http_seconds=1,
    http_middleware=("seven", "none"),
    blocking_rounds=5,
    waves=10,
    mixed_seconds=2,
    requests=1000,
    waiting=5000,
    waiting_rounds=3,
    bridge_rounds=15,
    bodies=bodies.FULL,
)
#: All parts, but too little to judge by.
SHORT = Scale(
    rounds=2,
    seconds=0.05,
    http_rounds=1,
    http_seconds=1,
    http_middleware=("seven",),
    blocking_rounds=1,
    waves=3,
    mixed_seconds=0.5,
    requests=100,
    waiting=100,
    waiting_rounds=1,
    bridge_rounds=1,
    bodies=bodies.SHORT,
)


class Results:
    """Prints the lines of each part, and keeps them."""

    def __init__(self, *, judge: bool) -> None:
        """Print nothing yet; if ``judge``, lines say whether targets are reached."""
        self._judge = judge
        self.parts: dict[str, list[Line | Note]] = {}

    def section(self, part: str, title: str, lines: Iterable[Line | Note]) -> None:
        """Print the lines under a title, or the reason why there are none."""
        print(f"\n{title}")
        kept = self.parts.setdefault(part, [])
        try:
            for line in lines:
                text = line.show(judge=self._judge)
                print(f"  {text}", flush=True)
                kept.append(line)
        except Skipped as reason:
            print(f"  skipped: {reason}", flush=True)

    def summary(self) -> str:
        """Return the tables of the targets, in Markdown, and how many are reached."""
        verdicts = [
            line.is_reached
            for lines in self.parts.values()
            for line in lines
            if isinstance(line, Line) and line.target is not None
        ]
        lines = (line for lines in self.parts.values() for line in lines)
        shown = tables(lines, judge=self._judge)
        count = f"{sum(map(bool, verdicts))} of {len(verdicts)} targets reached"
        return f"{shown}\n\n{count}" if self._judge else shown

    def as_json(self) -> dict[str, Any]:
        """Return all lines."""
        return {
            part: [line.as_json() for line in lines]
            for part, lines in self.parts.items()
        }


# The parts: each takes the results to add to, the databases, how much to do, and the
# works to measure.


def run_in_process(
    results: Results, databases: Mapping[str, str], scale: Scale, works: Sequence[str]
) -> None:
    """Measure without a server."""

    def lines() -> Iterator[Line | Note]:
        for name in works:
            yield from in_process.measure(
                WORKS[name], databases, rounds=scale.rounds, seconds=scale.seconds
            )

    title = "In-process: throughput / that of Django's ASGIHandler on asyncio"
    results.section("in-process", title, lines())


def run_http(
    results: Results, databases: Mapping[str, str], scale: Scale, _works: Sequence[str]
) -> None:
    """Measure servers."""
    for middleware in scale.http_middleware:
        lines = over_http.measure(
            databases,
            middleware=middleware,
            rounds=scale.http_rounds,
            seconds=scale.http_seconds,
        )
        title = (
            f"Over HTTP, {over_http.CONNECTIONS} connections of wrk: "
            "throughput of trio_asgi under its best server / that of"
        )
        results.section("http", title, lines)


def run_blocking(
    results: Results, databases: Mapping[str, str], scale: Scale, _works: Sequence[str]
) -> None:
    """Measure servers whose views sleep."""
    lines = blocking.measure(
        databases,
        rounds=scale.blocking_rounds,
        waves=scale.waves,
        seconds=scale.mixed_seconds,
    )
    title = (
        f"Over HTTP, 7 middleware, {blocking.CLIENTS} clients: time of a wave of views "
        f"that sleep 50 ms; throughput of fast ones, with {blocking.SHARE:.0%} of these"
    )
    results.section("blocking", title, lines)


def run_growth(
    results: Results, databases: Mapping[str, str], scale: Scale, _works: Sequence[str]
) -> None:
    """Count threads, memory and connections."""
    results.section(
        "growth",
        f"Growth: threads, {growth.CONCURRENCY} requests at a time",
        growth.threads(databases, requests=scale.requests),
    )
    results.section(
        "growth",
        "Growth: requests that wait in an async view, 7 middleware",
        growth.waiting(
            databases,
            requests=scale.waiting,
            rounds=scale.waiting_rounds,
            seconds=scale.seconds,
        ),
    )
    results.section(
        "growth",
        f"Growth: PostgreSQL, sync view, {growth.CONCURRENCY} requests at a time, "
        "connections kept for 60 s (asyncio: not kept)",
        growth.connections(databases, requests=scale.requests),
    )


def run_bodies(
    results: Results, databases: Mapping[str, str], scale: Scale, _works: Sequence[str]
) -> None:
    """Measure the memory and time of large bodies."""
    sizes = scale.bodies
    titles = {
        "download": f"download of a file of {sizes.file // bodies.MIB:,} MiB",
        "upload": f"upload of {sizes.file // bodies.MIB:,} MiB, read by an async view",
        "rows": f"{sizes.rows:,} rows of CSV from a sync generator",
        "crowd": f"{sizes.fast} fast clients download, and as many slow (10 KiB/s)",
        "events": f"{sizes.streams:,} event streams, an event every {sizes.period:g} s",
    }

    def lines(name: str) -> Iterator[Line | Note]:
        for line in getattr(bodies.Works(databases, sizes), name)():
            line.facts["work"] = name
            yield line

    for name, title in titles.items():
        results.section("bodies", f"Bodies: {title}", lines(name))


def run_bridge(
    results: Results,
    _databases: Mapping[str, str],
    scale: Scale,
    _works: Sequence[str],
) -> None:
    """Measure the cost of the installed bridge for code on asyncio."""

    def lines() -> Iterator[Line]:
        import bridge_cost  # noqa: PLC0415 - changes asgiref

        found = asyncio.run(bridge_cost.measure(scale.bridge_rounds))
        for case, ratios in found.items():
            yield Line(case, ratios)

    results.section(
        "bridge", "On asyncio: time with the bridge installed / without", lines()
    )


PARTS = {
    "in-process": run_in_process,
    "http": run_http,
    "blocking": run_blocking,
    "growth": run_growth,
    "bodies": run_bodies,
    "bridge": run_bridge,
}


def versions() -> dict[str, str]:
    """Return the versions of all packages and programs involved."""
    installed = {
        distribution.name: distribution.version for distribution in distributions()
    }
    found = {"Python": platform.python_version(), "trio_asgi": trio_asgi.__version__}
    found |= {name: installed[name] for name in PACKAGES if name in installed}
    with suppress(FileNotFoundError):
        found["wrk"] = over_http.wrk_version()
    with suppress(Skipped), connect() as server:
        found["PostgreSQL"] = server.info.parameter_status("server_version")
    return found


def profile(databases: Mapping[str, str], options: argparse.Namespace) -> None:
    """Show where the time of one candidate goes."""
    work = WORKS[options.profile]
    numbers = (str(options.concurrency), str(options.seconds or FULL.seconds))
    subprocess.run(  # noqa: S603 - a script of ours
        [sys.executable, HERE / "profiling.py", options.candidate, work.name, *numbers],
        env=environment(work, options.candidate, databases),
        check=True,
    )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--short", action="store_true", help="all parts, but too little to judge by")
    add("--only", action="append", choices=PARTS, help="a part; can be repeated")
    add("--work", action="append", choices=WORKS, help="only this work, in-process")
    add("--rounds", type=int, help="of in-process, over HTTP, blocking and bodies")
    add("--seconds", type=float, help="of a candidate in one round, in-process")
    add("--output", type=Path, metavar="FILE", help="all figures as JSON")
    add("--plot", type=Path, metavar="FILE", help="a picture, in SVG")
    add("--profile", choices=WORKS, metavar="WORK", help="where the time goes")
    add("--candidate", choices=TITLES, default="trio_asgi", help="for --profile")
    add("--concurrency", type=int, default=1, help="for --profile")
    return parser.parse_args()


def choose_scale(options: argparse.Namespace) -> Scale:
    """Return how much to do."""
    scale = SHORT if options.short else FULL
    changes: dict[str, Any] = {}
    if options.rounds:
        changes |= {
            "rounds": options.rounds,
            "http_rounds": options.rounds,
            "blocking_rounds": options.rounds,
            "bodies": dataclasses.replace(scale.bodies, rounds=options.rounds),
        }
    if options.seconds:
        changes |= {"seconds": options.seconds}
    return dataclasses.replace(scale, **changes)


def measure(databases: Mapping[str, str], options: argparse.Namespace) -> None:
    """Run the chosen parts, and write the chosen files."""
    scale = choose_scale(options)
    header = versions()
    print(", ".join(f"{name} {number}" for name, number in header.items()))
    print(
        f"{os.cpu_count()} cores; {scale.rounds} rounds in-process, "
        f"{scale.http_rounds} over HTTP, {scale.blocking_rounds} of views that sleep, "
        f"{scale.bodies.rounds} of bodies; "
        "medians (and quartiles) of the rounds"
    )
    results = Results(judge=not options.short)
    only = ["in-process"] if options.work else options.only
    for part in only or PARTS:
        PARTS[part](results, databases, scale, options.work or list(WORKS))
        # After each part, since a run may be cut short.
        written = {
            "versions": header,
            "cores": os.cpu_count(),
            "scale": dataclasses.asdict(scale),
            "parts": results.as_json(),
        }
        if options.output:
            options.output.write_text(json.dumps(written, indent=1) + "\n")
        if options.plot:
            options.plot.write_text(plot.draw(written))
    print(results.summary())


def main() -> None:
    """Run the command line."""
    options = parse_arguments()
    try:
        with open_databases() as databases:
            if options.profile:
                profile(databases, options)
            else:
                measure(databases, options)
    except (Broken, Skipped) as error:
        sys.exit(f"Broken: {error}")


if __name__ == "__main__":
    main()

"""Throughput, CPU time and latency over HTTP: whole servers, under the load of wrk.

All servers stay up. In each round, wrk loads one after the other, in a new random
order, with one connection and with many. As without servers, each round yields ratios.
WSGI's servers get the sync view in place of the async one.

A bare application only answers. It shows the limit of a server: nothing under it can be
faster.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING

from candidates import Broken
from comparison import Figure, compare
from databases import Skipped
from report import GUEST, SERVED, Line, Note, at_least, at_most, middle
from servers import (
    BARE,
    CANDIDATES,
    SERVERS,
    START_PATIENCE,
    Server,
    need_servers,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from report import Target

CONNECTIONS = 32
#: A view, its title, and with seven middleware the targets: as multiples of a server's
#: throughput, and as a part of the bare application's under hypercorn.
VIEWS: dict[str, tuple[str, dict[str, Target]]] = {
    "hello_async": ("async view", {"granian": at_least(1), "bare": at_least(80)}),
    "hello": ("sync view", {"granian": at_least(0.75), "gunicorn": at_least(1.2)}),
}
#: Under uvicorn, with seven middleware: as multiples of another server's throughput.
ON_UVICORN = {
    "hello_async": {"uvicorn": at_least(8), "gunicorn": at_least(1.3)},
    "hello": {"uvicorn": at_least(5), "gunicorn": at_least(0.85)},
}
#: The settings of `project.settings`, and their names in the report.
MIDDLEWARE = {"seven": "7 middleware", "none": "no middleware"}
FIGURES = (
    Figure("rate", "throughput", " a second", better="more"),
    Figure("cpu", "CPU time of a request", " ms of CPU", better="less"),
    Figure("alone", "latency, one at a time", " ms of latency alone", better="less"),
    Figure("median", "latency", f" ms at {CONNECTIONS} (median)"),
    Figure("p99", "latency, 99th percentile", f" ms at {CONNECTIONS} (p99)"),
)
_MILLISECONDS = {"us": 1e-3, "ms": 1, "s": 1e3, "m": 6e4}

#: For each server and path, the figures of each round.
Found = dict[tuple[str, str], list[dict[str, float]]]


def wrk_version() -> str:
    """Return the version of wrk.

    Raises:
        FileNotFoundError: it is not installed.
    """
    command = ("wrk", "--version")  # with a status of 1, as for a wrong option
    done = subprocess.run(  # noqa: S603 - a command of ours
        command, capture_output=True, text=True, check=False
    )
    return done.stdout.split()[1].removeprefix("debian/")


def load(server: Server, path: str, connections: int, seconds: int) -> dict[str, float]:
    """Return requests a second, and milliseconds of CPU time and of latency.

    Raises:
        Broken: an answer had a status other than 200, or none came.
    """
    # Without a timeout: slow answers are no errors, and count in the latency.
    options = (f"-c{connections}", f"-d{seconds}s", f"--timeout={START_PATIENCE}s")
    command = ("wrk", "-t1", "--latency", *options)
    before = server.cpu()
    done = subprocess.run(  # noqa: S603 - a command of ours
        [*command, f"http://127.0.0.1:{server.port}/{path}/"],
        capture_output=True,
        text=True,
        timeout=seconds + START_PATIENCE,
        check=False,
    )
    cpu = server.cpu() - before
    count = re.search(r"(\d+) requests in", done.stdout)
    rate = re.search(r"Requests/sec: +([\d.]+)", done.stdout)
    wrong = re.search(r"Non-2xx.*|Socket errors.*", done.stdout)
    if count is None or rate is None or not int(count[1]) or wrong is not None:
        raise Broken(f"{server.name}, {path}: {done.stdout}{done.stderr}")
    return {
        "rate": float(rate[1]),
        "cpu": 1000 * cpu / int(count[1]),
        "median": _latency(done.stdout, 50),
        "p99": _latency(done.stdout, 99),
    }


def _latency(output: str, percent: int) -> float:
    """Return a percentile from wrk's output, in milliseconds."""
    found = re.search(rf"^ +{percent}% +([\d.]+)([a-z]+)", output, re.MULTILINE)
    if found is None:
        raise Broken(f"wrk has no latency: {output}")
    return float(found[1]) * _MILLISECONDS[found[2]]


def measure(
    databases: Mapping[str, str],
    *,
    middleware: str,
    rounds: int,
    seconds: int,
) -> Iterator[Line | Note]:
    """Measure the servers; yield the results.

    Raises:
        Skipped: a tool or a server is missing here.
        Broken: a server failed, or gave a wrong answer.
    """
    if shutil.which("wrk") is None:
        raise Skipped("no wrk: apt-get install wrk")
    names = (*CANDIDATES, *BARE)
    need_servers(*names)
    found: Found = {}
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(
                Server(name, databases, BENCHMARK_MIDDLEWARE=middleware)
            )
            for name in names
        }
        for server in servers.values():
            paths = views_of(server.name)
            server.wait_ready(paths[0])
            check(server, paths)
            found |= {(server.name, path): [] for path in paths}
        for _ in range(rounds):
            for name, path in random.sample(list(found), len(found)):
                result = load(servers[name], path, CONNECTIONS, seconds)
                if name not in BARE:
                    result["alone"] = load(servers[name], path, 1, seconds)["median"]
                found[name, path].append(result)
        for name, path in found:
            check(servers[name], [path])
    yield from _lines(found, middleware)


def views_of(name: str) -> list[str]:
    """Return the views that a server is measured with."""
    one = name in BARE or SERVERS[name].is_wsgi
    return ["hello"] if one else list(VIEWS)


def check(server: Server, paths: Iterable[str]) -> None:
    """Check a server's answers.

    Raises:
        Broken: one is wrong.
    """
    for path in paths:
        body = server.get(path)
        if body != b"hello":
            raise Broken(f"{server.name}, {path}: {body[:200]!r}")


def _lines(found: Found, middleware: str) -> Iterator[Line | Note]:
    for view, (title, targets) in VIEWS.items():
        full = f"{title}, {MIDDLEWARE[middleware]}"
        facts = {"view": view, "middleware": middleware}
        own = {
            name: found[name, view if view in views_of(name) else "hello"]
            for name in CANDIDATES
        }
        goals = targets if middleware == "seven" else {}
        yield from compare(full, own, FIGURES, facts=facts, targets=goals)
        target = goals.get("bare")
        limit = "of the maximum under hypercorn's Trio worker"
        rates = _ratios(own["trio_asgi"], found["bare", "hello"])
        yield Line(
            f"    {limit}",
            [100 * rate for rate in rates],
            unit="%",
            target=target,
            row=target and (SERVED, f"{full}, {limit}"),
            facts={**facts, "against": "bare"},
        )
        if goals:
            yield from _on_uvicorn(own, title, ON_UVICORN[view])
    if middleware == "seven":
        yield Line(
            "bare application through the guest / without",
            _ratios(found["bare-guest", "hello"], found["bare-uvicorn", "hello"]),
            target=at_least(0.5),
            row=(GUEST, "bare application through the guest / without"),
        )
    for name in BARE:
        rates = [result["rate"] for result in found[name, "hello"]]
        yield Note(
            f"a bare application under {SERVERS[name].title}: {middle(rates)} a second",
            facts={"server": name, "rates": rates},
        )


def _on_uvicorn(
    own: Mapping[str, list[dict[str, float]]], title: str, targets: Mapping[str, Target]
) -> Iterator[Line]:
    """Yield what trio_asgi under uvicorn is over others."""
    ours = own["trio_asgi-uvicorn"]
    for other, target in targets.items():
        over = f"{title} / {SERVERS[other].title}"
        yield Line(
            f"    under uvicorn: {over}",
            _ratios(ours, own[other]),
            target=target,
            row=(GUEST, f"{over}: throughput"),
        )
    over = f"{title} / {SERVERS['trio_asgi'].title}: latency, one at a time"
    yield Line(
        f"    under uvicorn: {over}",
        _ratios(ours, own["trio_asgi"], "alone"),
        target=at_most(1),
        row=(GUEST, over),
    )


def _ratios(
    ours: list[dict[str, float]], theirs: list[dict[str, float]], figure: str = "rate"
) -> list[float]:
    return [us[figure] / them[figure] for us, them in zip(ours, theirs, strict=True)]

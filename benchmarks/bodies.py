"""Large bodies over HTTP: how much memory and time they take.

Whole servers, one process each: trio_asgi under hypercorn's Trio worker, and Django's
own handler under its asyncio worker; for event streams, both under uvicorn. Each round
of a work starts new servers, since memory left over from one request would hide how
much the next one takes, and the baseline's memory would keep growing. The clients run
in another process, `body_clients.py`. Each round measures all candidates, in a new
random order.

Memory is the peak that the kernel saw of a server's process, less the memory that it
held after small requests of the same kind. One client's throughput depends on its CPU
time as well, so that is shown too: where it is close to the whole time, the figures
measure the client.
"""

from __future__ import annotations

import os
import random
import re
import statistics
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from candidates import Broken
from databases import Skipped
from report import Line, Note, Target, at_least, at_most, middle
from servers import Server, need_servers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

KIB, MIB = 2**10, 2**20
#: The servers of `servers.SERVERS`, and their names in the report.
CANDIDATES = {"trio_asgi": "trio_asgi", "hypercorn": "asyncio"}
#: The same for event streams.
UNDER_UVICORN = {"trio_asgi-uvicorn": "trio_asgi", "uvicorn": "asyncio"}
#: The memory that a body may take, whatever its size, in MiB.
MEMORY = at_most(16)
#: The size of a warm-up, in bytes, rows and streams; and how often it is done.
SMALL, SMALL_ROWS, FEW_STREAMS, WARM_UPS = 64 * KIB, 1000, 5, 3
#: A file that is compared byte for byte: large enough for several blocks of any size.
COMPARED = 3 * MIB + 123
#: Open files besides a connection for each stream.
OTHER_FILES = 500

#: The baseline reads whole files into memory, and warns about it.
QUIET = "ignore:StreamingHttpResponse must consume synchronous iterators"


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    rounds: int
    #: Bytes of the file that is downloaded, and of the body that is uploaded.
    file: int
    rows: int
    #: Fast clients, and as many slow ones; the size of the file that all download.
    fast: int
    crowd_file: int
    #: The same for the baseline, which holds it in memory for each client.
    baseline_crowd_file: int
    streams: int
    #: Seconds from one event to the next, and of the whole measurement.
    period: float
    stream_seconds: float


FULL = Sizes(
    rounds=3,
    file=1024 * MIB,
    rows=1_000_000,
    fast=50,
    crowd_file=100 * MIB,
    baseline_crowd_file=10 * MIB,
    streams=5000,
    period=2,
    stream_seconds=10,
)
#: All works, but too little to judge by.
SHORT = Sizes(
    rounds=1,
    file=32 * MIB,
    rows=20_000,
    fast=5,
    crowd_file=8 * MIB,
    baseline_crowd_file=4 * MIB,
    streams=50,
    period=0.2,
    stream_seconds=0.5,
)


@dataclass
class Trial:
    """The result of one order to the clients."""

    #: The clients' report: see `body_clients.py`.
    result: dict[str, Any]
    #: The server's peak over its idle memory, in MiB, and its seconds of CPU time.
    memory: float
    cpu: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return float(self.result["seconds"])


class Watched(Server):
    """A server, its process's memory, and its clients."""

    def __init__(self, name: str, databases: Mapping[str, str], files: Path) -> None:
        """Start the server, which serves the files of a directory."""
        super().__init__(
            name, databases, BENCHMARK_FILES=str(files), PYTHONWARNINGS=QUIET
        )
        self._proc = Path("/proc", str(self.pid))
        self._idle = 0.0

    def warm_up(self, make_orders: Callable[[Watched], object]) -> None:
        """Let clients do something small, then note the server's idle memory."""
        for _ in range(WARM_UPS):
            make_orders(self)
        self._idle = self._memory("VmRSS")

    def measure(self, name: str, **arguments: Any) -> Trial:
        """Let clients do something, and return what it took of the server.

        Raises:
            Broken: an answer was wrong, or none came.
        """
        # Forgets the peak: see proc_pid_clear_refs(5).
        (self._proc / "clear_refs").write_text("5")
        before = self.cpu()
        result = self.order(name, **arguments)
        # A short work may take less than one tick of the clock.
        cpu = max(self.cpu() - before, 1 / os.sysconf("SC_CLK_TCK"))
        return Trial(result, self._memory("VmHWM") - self._idle, cpu)

    def order(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Let clients run a function of `body_clients.py`.

        Raises:
            Broken: an answer was wrong, or none came.
        """
        return self.run_clients("body_clients.py", name, **arguments)

    def _memory(self, field: str) -> float:
        text = (self._proc / "status").read_text()
        found = re.search(rf"^{field}:\s+(\d+) kB$", text, re.MULTILINE)
        if found is None:
            raise Broken(f"{self.name} has ended.")
        return int(found[1]) / KIB


#: For each candidate, one trial a round.
Trials = dict[str, list[Trial]]


class Works:
    """The works, each on its own servers. Each method yields its results."""

    def __init__(self, databases: Mapping[str, str], sizes: Sizes) -> None:
        """Take the servers' databases, and how much to do.

        Raises:
            Skipped: memory cannot be measured here, or there is no server.
        """
        if not Path("/proc/self/clear_refs").exists():
            raise Skipped("peaks of memory are measured on Linux only")
        need_servers("hypercorn", "uvicorn")
        self._databases = databases
        self._sizes = sizes

    def download(self) -> Iterator[Line | Note]:
        """Download one file.

        Raises:
            Broken: a server failed, or did not answer as it should.
        """
        size = self._sizes.file

        def warm_up(server: Watched) -> None:
            server.order("download", path=f"/download/{SMALL}/")

        def trial(server: Watched) -> Trial:
            found = server.measure("download", path=f"/download/{size}/")
            _need(server, found.result["received"] == size)
            _need(server, server.get(f"download/{COMPARED}") == content(COMPARED))
            return found

        trials = self._rounds(warm_up, trial, size, SMALL, COMPARED)
        yield from _memory(trials)
        yield from _throughput(trials, size / MIB, "MiB", target=at_least(2))

    def upload(self) -> Iterator[Line | Note]:
        """Upload one body, which trio_asgi's view reads as it arrives.

        Raises:
            Broken: a server failed, or did not answer as it should.
        """
        size = self._sizes.file
        views = {"trio_asgi": "/upload_stream/", "hypercorn": "/upload/"}

        def warm_up(server: Watched) -> None:
            server.order("upload", path=views[server.name], size=SMALL)

        def trial(server: Watched) -> Trial:
            found = server.measure("upload", path=views[server.name], size=size)
            _need(server, found.result["answer"] == str(size))
            return found

        trials = self._rounds(warm_up, trial)
        yield from _memory(trials)
        yield from _throughput(trials, size / MIB, "MiB")

    def rows(self) -> Iterator[Line | Note]:
        """Download rows of CSV from a sync generator.

        Raises:
            Broken: a server failed, or did not answer as it should.
        """
        count = self._sizes.rows

        def warm_up(server: Watched) -> None:
            server.order("download", path=f"/rows/{SMALL_ROWS}/")

        def trial(server: Watched) -> Trial:
            found = server.measure("download", path=f"/rows/{count}/")
            _need(server, f"\n{count},Sencha,12.5\r\n" in found.result["tail"])
            lines = server.get(f"rows/{SMALL_ROWS}").split(b"\r\n")
            numbers = [line.partition(b",")[0] for line in lines]
            expected = [b"%d" % number for number in range(1, SMALL_ROWS + 1)]
            _need(server, numbers == [b"number", *expected, b""])
            return found

        trials = self._rounds(warm_up, trial)
        yield from _memory(trials)
        for name, title in CANDIDATES.items():
            yield Line(
                f"{title}: first byte after the view's start",
                [1000 * trial.result["first"] for trial in trials[name]],
                unit=" ms",
                target=at_most(50) if name == "trio_asgi" else None,
                facts={"kind": name},
            )
        yield from _throughput(trials, count, "rows", target=at_least(1.5))

    def crowd(self) -> Iterator[Line | Note]:
        """Download a file with fast clients, alone and beside slow ones.

        Raises:
            Broken: a server failed, or did not answer as it should.
        """
        fast = self._sizes.fast
        files = {
            "trio_asgi": self._sizes.crowd_file,
            "hypercorn": self._sizes.baseline_crowd_file,
        }
        alone: Trials = {name: [] for name in CANDIDATES}

        def warm_up(server: Watched) -> None:
            path = f"/download/{SMALL}/"
            server.order("crowd", path=path, fast=fast, slow=0)

        def trial(server: Watched) -> Trial:
            path = f"/download/{files[server.name]}/"
            found = {
                slow: server.measure("crowd", path=path, fast=fast, slow=slow)
                for slow in random.sample((0, fast), 2)
            }
            alone[server.name].append(found[0])
            return found[fast]

        trials = self._rounds(warm_up, trial, SMALL, *files.values())
        for name, title in CANDIDATES.items():
            pairs = list(zip(trials[name], alone[name], strict=True))
            size = files[name] // MIB
            yield Line(
                f"{title}, {size} MiB: the fast half / alone",
                [crowded.seconds / by_itself.seconds for crowded, by_itself in pairs],
                target=at_most(1.3) if name == "trio_asgi" else None,
                facts={"kind": name, "size": files[name]},
            )
            rates = [fast * size / by_itself.seconds for _, by_itself in pairs]
            memory = max(trial.memory for trial in trials[name])
            yield Note(
                f"    alone {middle(rates)} MiB a second; "
                f"with the slow ones, {memory:,.0f} MiB of memory over idle"
            )

    def events(self) -> Iterator[Line | Note]:
        """Hold event streams open.

        Raises:
            Skipped: a process may not open so many connections here.
            Broken: a server failed, or did not answer as it should.
        """
        sizes = self._sizes
        streams, period = sizes.streams, sizes.period
        _allow_files(streams + OTHER_FILES)

        def warm_up(server: Watched) -> None:
            server.order("events", streams=FEW_STREAMS, period=0.1, seconds=0.2)

        def trial(server: Watched) -> Trial:
            return server.measure(
                "events", streams=streams, period=period, seconds=sizes.stream_seconds
            )

        trials = self._rounds(warm_up, trial, candidates=UNDER_UVICORN)
        for name, title in UNDER_UVICORN.items():
            yield Line(
                f"{title}: memory of a stream",
                [trial.memory * KIB / streams for trial in trials[name]],
                unit=" KiB",
                facts={"kind": name, "streams": streams},
            )
        for name, title in UNDER_UVICORN.items():
            results = [trial.result for trial in trials[name]]
            yield Line(
                f"{title}: an event's delay, 99th percentile",
                [result["p99"] for result in results],
                unit=" ms",
                facts={"kind": name, "streams": streams},
            )
            median, longest = (
                middle([result[key] for result in results])
                for key in ("median", "longest")
            )
            events = sum(result["events"] for result in results)
            yield Note(
                f"    {events:,} events; median {median} ms, longest {longest} ms; "
                f"{_load(trials[name])}"
            )

    def _rounds(
        self,
        warm_up: Callable[[Watched], object],
        trial: Callable[[Watched], Trial],
        *files: int,
        candidates: Iterable[str] = CANDIDATES,
    ) -> Trials:
        """Measure all candidates in each round, on servers that were warmed up.

        They serve files of the given sizes; the size is the file's name.
        """
        trials: Trials = {name: [] for name in candidates}
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            for size in files:
                write_file(directory / str(size), size)
            for _ in range(self._sizes.rounds):
                with self._servers(directory, trials) as servers:
                    for server in servers:
                        server.warm_up(warm_up)
                    for server in random.sample(servers, len(servers)):
                        trials[server.name].append(trial(server))
        return trials

    @contextmanager
    def _servers(self, files: Path, names: Iterable[str]) -> Iterator[list[Watched]]:
        with ExitStack() as stack:
            servers = [
                stack.enter_context(Watched(name, self._databases, files))
                for name in names
            ]
            for server in servers:
                server.wait_ready("hello_async")
            yield servers


def content(size: int) -> bytes:
    """Return a file's content, of which no two blocks are the same."""
    numbers = range((size + 7) // 8)
    return b"".join(number.to_bytes(8, "big") for number in numbers)[:size]


def write_file(path: Path, size: int) -> None:
    """Write a file: `content`, repeated if the file is large."""
    block = content(min(size, COMPARED))
    with path.open("wb") as file:
        for start in range(0, size, len(block)):
            file.write(block[: size - start])


def _need(server: Watched, right: bool) -> None:  # noqa: FBT001 - as of an assert
    if not right:
        raise Broken(f"{server.name} gave a wrong answer.")


def _allow_files(count: int) -> None:
    """Allow this process, and its children, so many open files."""
    import resource  # noqa: PLC0415 - not on Windows, where this is not reached

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        if hard != resource.RLIM_INFINITY and hard < count:
            raise Skipped(f"only {hard:,} open files are allowed: ulimit -Hn")
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def _memory(trials: Trials) -> Iterator[Line]:
    for name, title in CANDIDATES.items():
        yield Line(
            f"{title}: memory over idle",
            [trial.memory for trial in trials[name]],
            unit=" MiB",
            target=MEMORY if name == "trio_asgi" else None,
            facts={"kind": name},
        )


def _throughput(
    trials: Trials, amount: float, unit: str, target: Target | None = None
) -> Iterator[Line | Note]:
    pairs = list(zip(trials["trio_asgi"], trials["hypercorn"], strict=True))
    yield Line(
        "throughput / that of asyncio",
        [them.seconds / us.seconds for us, them in pairs],
        target=target,
    )
    yield Line(
        "    the same per second of CPU time",
        [them.cpu / us.cpu for us, them in pairs],
    )
    for name, title in CANDIDATES.items():
        rates = [amount / trial.seconds for trial in trials[name]]
        yield Note(
            f"    {title}: {middle(rates)} {unit} a second; {_load(trials[name])}",
            facts={"kind": name, "unit": unit, "rates": rates},
        )


def _load(trials: list[Trial]) -> str:
    """Return how busy the server and the clients were."""
    server = statistics.median(trial.cpu / trial.seconds for trial in trials)
    clients = statistics.median(trial.result["cpu"] / trial.seconds for trial in trials)
    return f"CPU: server {server:.0%}, clients {clients:.0%}"

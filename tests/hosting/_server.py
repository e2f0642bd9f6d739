"""Servers as separate processes, on a free port, with their log and journal.

A server gets its own process group, and nothing of it outlives `serve`, whatever
happens in the test. It binds port 0, and its log tells the port.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import trustme

import trio_asgi

from ._hosts import HOSTS
from ._wire import Connection

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ._hosts import Host

T = TypeVar("T")
Connect = Callable[[], Connection]
#: A name in `HOSTS`.
Kind = str

HERE = Path(__file__).parent

#: Only something that hangs takes longer.
PATIENCE = float(os.environ.get("PATIENCE", "60"))

#: The names of the pool's threads: this, and a number.
_WORKER_THREAD = "trio-asgi-worker-"

#: The tasks of requests: of hypercorn and anycorn, and of a guest run.
_REQUEST_TASK = re.compile(r"\.task_group\._handle$|^trio_asgi\.http$")

#: The servers' own tasks for a connection, which last while it is kept alive.
_CONNECTION_TASK = re.compile(
    r"\._run_handler$|\.tcp_server_handler\.|\._idle_timeout$|\.send_task$"
)


def eventually(check: Callable[[], T | None], what: str) -> T:
    """Call ``check`` until it returns something true, and return that."""
    deadline = time.monotonic() + PATIENCE
    while not (found := check()):
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.01)
    return found


@dataclass(frozen=True)
class State:
    """What the hosted site reports about its process, during a request for it."""

    pid: int
    in_flight: list[str]
    tasks: list[str]
    threads: list[str]
    files: list[str]
    #: How many sockets are open; 0 where that cannot be seen.
    sockets: int
    peak_kilobytes: int

    @property
    def workers(self) -> int:
        """How many threads the pool has, idle or not."""
        return sum(name.startswith(_WORKER_THREAD) for name in self.threads)

    @property
    def is_alone(self) -> bool:
        """Whether the request for this state is the only one."""
        handlers = [name for name in self.tasks if _REQUEST_TASK.search(name)]
        return self.in_flight == ["state"] and len(handlers) == 1

    def lasting(self, host: Host) -> dict[str, list[str]]:
        """Return what must be the same whenever the server is idle.

        Left out are the idle threads of the pool, the host's own, and what belongs to
        connections, not to requests.
        """
        return {
            "in flight": self.in_flight,
            "tasks": [name for name in self.tasks if not _CONNECTION_TASK.search(name)],
            "threads": [
                name
                for name in self.threads
                if not name.startswith(_WORKER_THREAD)
                and not host.own_threads.match(name)
            ],
            "files": self.files,
        }


@dataclass
class Server:
    """A running server. Only `serve` makes one."""

    kind: Kind
    process: subprocess.Popen[bytes]
    log_file: Path
    journal_file: Path
    workers: int
    client_ssl: ssl.SSLContext | None
    port: int = 0
    #: How many tracebacks the tests have caused so far on purpose.
    tracebacks: int = 0
    _at_rest: State | None = field(default=None, repr=False)
    _journal: list[dict[str, Any]] = field(default_factory=list, repr=False)
    _journal_read: int = field(default=0, repr=False)  # bytes
    _ids: Iterator[int] = field(default_factory=lambda: count(1), repr=False)

    @property
    def log(self) -> str:
        """All that the server has written to stdout and stderr."""
        return self.log_file.read_text()

    @property
    def complaints(self) -> str:
        """The log without what the server itself logs about tasks that it cancels."""
        return self.without_cancelled(self.log)

    def without_cancelled(self, log: str) -> str:
        """Return a part of the log without those."""
        theirs = HOSTS[self.kind].logs_cancelled
        return log if theirs is None else theirs.sub("", log)

    @property
    def url(self) -> str:
        """The server's address."""
        scheme = "https" if self.client_ssl else "http"
        return f"{scheme}://127.0.0.1:{self.port}"

    # Its process

    @property
    def temporary_files(self) -> list[Path]:
        """The files left in the server's directory for temporary files."""
        return list((self.log_file.parent / "temporary").iterdir())

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self.process.poll() is None

    def wait_until_ready(self) -> None:
        """Wait until all workers accept connections."""

        def ready() -> list[str]:
            assert self.is_running, f"the server has ended:\n{self.log}"
            ports = re.findall(host.listening, self.log)
            return ports if len(ports) == expected else []

        host = HOSTS[self.kind]
        expected = 1 if host.listens_once else self.workers

        self.port = int(eventually(ready, "the server accepts connections")[0])

        def accepts() -> bool:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return True
            return False

        if host.listens_once:
            # Its parent process writes that line before its workers are there. Others
            # must not be tried: with TLS, anycorn logs an error for a lost handshake.
            eventually(accepts, "the server accepts connections")

    def terminate(self) -> None:
        """Send SIGTERM, as a service manager does."""
        self.process.terminate()

    def terminate_all(self) -> None:
        """Send SIGTERM to the worker processes too, as systemd does."""
        os.killpg(self.process.pid, signal.SIGTERM)

    def wait_for_end(self) -> int:
        """Wait until the process has ended; return its exit status."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the server does not end:\n{self.log}") from None

    def stop(self) -> int:
        """Send SIGTERM; return the exit status."""
        self.terminate()
        return self.wait_for_end()

    def kill(self) -> None:
        """End all processes of this server that are still running."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    # The state of its site

    def new_id(self) -> str:
        """Return an id for a request, by which its events are found."""
        return f"{next(self._ids)}"

    def events(self, identity: str) -> list[str]:
        """Return the names of the events of one request, in order."""
        return [entry["event"] for entry in self.journal if entry["id"] == identity]

    @property
    def journal(self) -> list[dict[str, Any]]:
        """Everything that the site has written down."""
        with suppress(FileNotFoundError), self.journal_file.open("rb") as file:
            file.seek(self._journal_read)
            # The last line may not be whole yet.
            new = file.read().rpartition(b"\n")[0]
            if new:
                self._journal_read += len(new) + 1
                self._journal += map(json.loads, new.split(b"\n"))
        return self._journal

    def journal_of(self, event: str) -> list[dict[str, Any]]:
        """Return the journal's entries for one event, of all requests."""
        return [entry for entry in self.journal if entry["event"] == event]

    def wait_for_event(self, event: str, identity: str) -> None:
        """Wait until a request has reached an event."""
        eventually(
            lambda: event in self.events(identity), f"{event!r} of request {identity}"
        )

    # Talking to it

    def connect(self) -> Connection:
        """Open a connection."""
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.client_ssl is not None:
            sock = self.client_ssl.wrap_socket(sock, server_hostname="127.0.0.1")
        return Connection(sock)

    def get(self, target: str) -> bytes:
        """Make one request on a new connection; return the body."""
        with self.connect() as connection:
            connection.send_request(target, "Connection: close")
            response = connection.read_response()
        assert response.status == 200, response
        return response.body

    def state(self) -> State:
        """Return the state of the process, including this request."""
        return State(**json.loads(self.get("/state/?id=state")))

    def note_state_at_rest(self) -> None:
        """Take the present state as the one to return to."""
        # The first request starts what stays, such as the pool's own task.
        assert self.get("/sync/hello/?id=first") == b"hello first"
        # The previous request may not be over yet although it is answered.
        self._at_rest = eventually(
            lambda: state if (state := self.state()).is_alone else None,
            "the first request is over",
        )

    def wait_for_temporary_files(self, count: int) -> None:
        """Wait until the process has that many open; that can only be seen on Linux."""
        if sys.platform == "linux":
            eventually(
                lambda: len(self.state().files) >= count, f"{count} temporary files"
            )

    def wait_for_rest(self) -> State:
        """Wait until nothing is left of earlier requests; return the state then.

        That is: only the request for the state is in flight, and the tasks, threads and
        temporary files are those from the start.
        """
        assert self._at_rest is not None
        host = HOSTS[self.kind]
        wanted = self._at_rest.lasting(host)
        deadline = time.monotonic() + PATIENCE
        while (state := self.state()).lasting(host) != wanted:
            assert time.monotonic() < deadline, (
                f"something stays behind:\nnow  {state.lasting(host)}\nonce {wanted}"
            )
            time.sleep(0.01)
        # The loop of a server logs an error a pass after the end of the request.
        return self.state()


@dataclass(frozen=True)
class Certificates:
    """A server's certificate and key, and the authority that clients trust."""

    authority: trustme.CA
    certificate_file: Path
    key_file: Path

    @classmethod
    def make(cls, directory: Path) -> Certificates:
        """Make them in a directory."""
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1")
        made = cls(authority, directory / "certificate.pem", directory / "key.pem")
        issued.private_key_pem.write_to_path(str(made.key_file))
        for pem in issued.cert_chain_pems:
            pem.write_to_path(str(made.certificate_file), append=True)
        return made

    def client_context(self) -> ssl.SSLContext:
        """Return a TLS context for clients that trusts the authority."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context


@contextmanager
def serve(  # noqa: PLR0913 - all but two are rarely given
    kind: Kind,
    directory: Path,
    *,
    application: str = "hosted.asgi:application",
    workers: int = 1,
    options: Mapping[str, object] | None = None,
    settings: Mapping[str, object] | None = None,
    certificates: Certificates | None = None,
    expect_start: bool = True,
) -> Iterator[Server]:
    """Run a server, and end it.

    Args:
        kind: Which server, of `HOSTS`.
        directory: For the log, the journal, and the server's temporary files.
        application: What to serve.
        workers: How many worker processes.
        options: More options of hypercorn's command line, which are translated:
            ``{"graceful-timeout": 1}``.
        settings: The site's ``TRIO_ASGI``.
        certificates: Enable TLS.
        expect_start: Whether to wait until the server accepts connections.
    """
    temporary = directory / "temporary"
    temporary.mkdir()
    log_file, journal_file = directory / "server.log", directory / "journal"
    arguments = {"workers": workers, **(options or {})}
    host = HOSTS[kind]
    if certificates is not None:
        arguments["certfile"] = certificates.certificate_file
        arguments["keyfile"] = certificates.key_file
    # The trio_asgi that the tests have imported, wherever it is installed.
    import_path = [
        str(Path(trio_asgi.__file__).parents[1]),
        str(HERE),
        *filter(None, [os.environ.get("PYTHONPATH")]),
    ]
    # A file rather than a pipe, which would have to be read all the time.
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-W",
                "always::ResourceWarning",
                "-m",
                *host.arguments(application, arguments, host.free_port()),
            ],
            # Not in HERE: granian would import the site as a part of its package.
            cwd=directory,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(import_path),
                "HOSTED_JOURNAL": str(journal_file),
                "HOSTED_TRIO_ASGI": json.dumps(settings or {}),
                "TMPDIR": str(temporary),
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(
        kind,
        process,
        log_file,
        journal_file,
        workers,
        certificates.client_context() if certificates else None,
    )
    try:
        if expect_start:
            server.wait_until_ready()
        yield server
    finally:
        server.kill()


@contextmanager
def serve_cleanly(kind: Kind, directory: Path, **options: Any) -> Iterator[Server]:
    """Run a server for many tests; they must leave it healthy.

    It ends with status 0, and has logged no leaks, and only tracebacks that the tests
    have caused on purpose.
    """
    with serve(kind, directory, **options) as server:
        server.note_state_at_rest()
        yield server
        assert server.is_running, f"the server has ended:\n{server.log}"
        logged = len(server.log)
        assert server.stop() in HOSTS[kind].ends_with, server.log
        log = server.log[:logged] + server.without_cancelled(server.log[logged:])
        assert log.count("Traceback") == server.tracebacks, log
        assert "ResourceWarning" not in server.log, server.log

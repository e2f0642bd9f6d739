"""Clients of views that sleep, on connections that are kept open.

As `body_clients.py`, a process for one measurement: ``blocking_clients.py NAME
ARGUMENTS``. A client makes one request after the other.
"""

from __future__ import annotations

import random
import re
import selectors
import time
from typing import TYPE_CHECKING, Any

from body_clients import BLOCK, HOST, PATIENCE, WrongAnswer, connect, run_order

if TYPE_CHECKING:
    from collections.abc import Iterator


class Client:
    """One connection."""

    def __init__(self, port: int) -> None:
        """Connect."""
        self.connection = connect(port)
        self.path = ""
        #: Whether an answer is still to come.
        self.is_waiting = False
        self._received = b""
        self._start = 0.0

    def send(self, path: str) -> None:
        """Send a request."""
        self.path, self.is_waiting, self._received = path, True, b""
        self._start = time.perf_counter()
        self.connection.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode("ascii")
        )

    def receive(self) -> float | None:
        """Receive what has come; return the answer's latency once it is whole.

        Raises:
            WrongAnswer: the connection is closed, or the status is not 200.
        """
        more = self.connection.recv(BLOCK)
        self._received += more
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
        if not more or (end and (b" 200 " not in head[:13] or length is None)):
            raise WrongAnswer(f"{self.path}: {self._received!r}")
        if length is None or not end or len(body) < int(length[1]):
            return None
        self.is_waiting = False
        return time.perf_counter() - self._start


class Clients:
    """Clients that one thread waits for."""

    def __init__(self, port: int, count: int) -> None:
        """Connect them."""
        self.all = [Client(port) for _ in range(count)]
        self._selector = selectors.DefaultSelector()
        for client in self.all:
            self._selector.register(client.connection, selectors.EVENT_READ, client)

    def answers(self) -> Iterator[tuple[Client, float]]:
        """Yield each client whose answer is whole, and its latency.

        It may send another request then. The iterator ends when all have their answers.

        Raises:
            WrongAnswer: an answer is wrong, or none comes.
        """
        while any(client.is_waiting for client in self.all):
            ready = self._selector.select(PATIENCE)
            if not ready:
                raise WrongAnswer("no answer comes")
            for key, _ in ready:
                latency = key.data.receive()
                if latency is not None:
                    yield key.data, latency


def mixed(  # noqa: PLR0913 - the whole load
    port: int, fast: str, slow: str, *, share: float, clients: int, seconds: float
) -> dict[str, Any]:
    """Request two paths at random for some time; ``share``: that of the slow one.

    Returns:
        The seconds in total; the number of requests; the fast answers a second, and the
        median and the 99th percentile of their latency in milliseconds.

    Raises:
        WrongAnswer: an answer is wrong, or none comes.
    """
    pick = random.Random(1)  # noqa: S311 - the same for all servers
    latencies = []
    count = 0
    connected = Clients(port, clients)

    def send(client: Client) -> None:
        client.send(slow if pick.random() < share else fast)

    start = time.perf_counter()
    for client in connected.all:
        send(client)
    for client, latency in connected.answers():
        count += 1
        if client.path == fast:
            latencies.append(1000 * latency)
        if time.perf_counter() < start + seconds:
            send(client)
    took = time.perf_counter() - start
    ranked = sorted(latencies)
    return {
        "seconds": took,
        "requests": count,
        "rate": len(ranked) / took,
        "median": ranked[len(ranked) // 2],
        "p99": ranked[len(ranked) * 99 // 100],
    }


def waves(port: int, path: str, *, clients: int, count: int) -> dict[str, Any]:
    """Send a request from all clients at once, so many times.

    Returns:
        The milliseconds of each wave, until the last answer.

    Raises:
        WrongAnswer: an answer is wrong, or none comes.
    """
    took = []
    connected = Clients(port, clients)
    for _ in range(count):
        start = time.perf_counter()
        for client in connected.all:
            client.send(path)
        for _answer in connected.answers():
            pass
        took.append(1000 * (time.perf_counter() - start))
    return {"waves": took}


if __name__ == "__main__":
    run_order({"mixed": mixed, "waves": waves})

"""Clients of large bodies, on plain sockets: ``body_clients.py NAME ARGUMENTS``.

`bodies.py` runs this script in a process for one measurement. It calls the function of
that name, with the arguments in JSON, and prints the result in JSON, with the CPU time
that the clients took. They look into bodies as little as possible, so that the server,
not the clients, sets the pace.

All times are those of `time.monotonic_ns`, which all processes of a machine share: the
views write it into their answers.
"""

from __future__ import annotations

import json
import re
import select
import socket
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

HOST = "127.0.0.1"
#: For how many seconds no byte may come.
PATIENCE = 120
#: How many bytes to read or write at once; a head comes with the first of them.
BLOCK = 2**20
#: How many bytes of the end are kept, to check them.
TAIL = 200
#: A slow client reads so many bytes at once, so many times a second; and the size of
#: its receive buffer.
SIP, SIPS, SLOW_ROOM = 1024, 10, 4096
#: How many streams to open at once: no more than fit into the server's backlog.
OPENING = 50


class WrongAnswer(Exception):  # noqa: N818 - it is the answer that is wrong
    """The server's answer is not the expected one."""


def connect(port: int, *, room: int | None = None) -> socket.socket:
    """Return a connection; ``room`` is the size of its receive buffer in bytes."""
    connection = socket.socket()
    if room is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    connection.settimeout(PATIENCE)
    connection.connect((HOST, port))
    return connection


def head(method: str, path: str, *more: str) -> bytes:
    """Return the head of a request that asks the server to close after its answer."""
    lines = (f"{method} {path} HTTP/1.1", f"Host: {HOST}", "Connection: close", *more)
    return "\r\n".join((*lines, "", "")).encode()


@dataclass
class Answer:
    """The head of an answer, and the part of the body that came with it."""

    fields: dict[str, str]
    start: bytes

    @classmethod
    def receive(cls, connection: socket.socket) -> Answer:
        """Receive a head.

        Raises:
            WrongAnswer: the status is not 200, or there is no head.
        """
        received = b""
        while b"\r\n\r\n" not in received:
            more = connection.recv(BLOCK)
            if not more:
                raise WrongAnswer(f"closed after {received[-TAIL:]!r}")
            received += more
        first, _, start = received.partition(b"\r\n\r\n")
        status, *lines = first.decode("latin-1").split("\r\n")
        if status.split()[1] != "200":
            raise WrongAnswer(f"{status} {start[:TAIL]!r}")
        fields = dict(line.lower().split(": ", 1) for line in lines)
        return cls(fields, start)

    @property
    def length(self) -> int | None:
        """How long the body is, unless it is chunked."""
        length = self.fields.get("content-length")
        return None if length is None else int(length)

    def check_end(self, received: int, tail: bytes) -> None:
        """Check that a body is whole.

        Raises:
            WrongAnswer: it is not.
        """
        whole = (
            tail.endswith(b"\r\n0\r\n\r\n")
            if self.length is None
            else received == self.length
        )
        if not whole:
            raise WrongAnswer(f"cut off after {received:,} bytes: {tail!r}")


def download(port: int, path: str) -> dict[str, Any]:
    """Download a body; ``first``: seconds from the view's start to the first byte."""
    buffer = bytearray(BLOCK)
    start = time.monotonic()
    with connect(port) as connection:
        connection.sendall(head("GET", path))
        answer = Answer.receive(connection)
        received, tail = len(answer.start), answer.start[-TAIL:]
        if not received:
            received = connection.recv_into(buffer)
            tail = bytes(buffer[max(0, received - TAIL) : received])
        first = time.monotonic_ns()
        while count := connection.recv_into(buffer):
            received += count
            last = bytes(buffer[max(0, count - TAIL) : count])
            tail = (tail + last)[-TAIL:]
    seconds = time.monotonic() - start
    answer.check_end(received, tail)
    began = int(answer.fields["x-began"])
    return {
        "seconds": seconds,
        "received": received,
        "first": (first - began) / 1e9,
        "tail": tail.decode("latin-1"),
    }


def upload(port: int, path: str, size: int) -> dict[str, Any]:
    """Send a body of so many bytes, and return the view's answer."""
    block = memoryview(bytes(BLOCK))
    start = time.monotonic()
    with connect(port) as connection:
        connection.sendall(head("POST", path, f"Content-Length: {size}"))
        for sent in range(0, size, BLOCK):
            connection.sendall(block[: size - sent])
        answer = Answer.receive(connection)
        body = answer.start
        while more := connection.recv(BLOCK):
            body += more
        answer.check_end(len(body), body[-TAIL:])
    return {"seconds": time.monotonic() - start, "answer": body.decode()}


def crowd(port: int, path: str, *, fast: int, slow: int) -> dict[str, Any]:
    """Download a file with fast clients, while slow clients download it too.

    The fast ones begin when each slow one has received something.

    Returns:
        The seconds until the last fast client was served, and how many bytes the slow
        ones had read by then; the kernel's buffers hold more.

    Raises:
        WrongAnswer: a fast client did not get the whole file, or a slow one did.
    """
    with ExitStack() as stack:
        sipping = [
            stack.enter_context(connect(port, room=SLOW_ROOM)) for _ in range(slow)
        ]
        for connection in sipping:
            connection.sendall(head("GET", path))
        for connection in sipping:
            Answer.receive(connection)
            connection.settimeout(0)
        start = time.monotonic()
        downloads = {}
        for _ in range(fast):
            connection = stack.enter_context(connect(port))
            connection.sendall(head("GET", path))
            downloads[connection.fileno()] = connection
        sipped = _drink(downloads, sipping)
        return {"seconds": time.monotonic() - start, "sipped": sipped}


def _drink(
    downloads: dict[int, socket.socket], sipping: Iterable[socket.socket]
) -> int:
    """Read whatever comes; slow clients take sips. Return the sum of the sips."""
    buffer = bytearray(BLOCK)
    poll = select.epoll()
    missing: dict[int, int] = {}
    for number in downloads:
        poll.register(number, select.EPOLLIN)
    sipped = 0
    next_sip = time.monotonic()
    while downloads:
        if time.monotonic() >= next_sip:
            next_sip += 1 / SIPS
            sipped += sum(map(_sip, sipping))
        for number, _ in poll.poll(max(0, next_sip - time.monotonic())):
            connection = downloads[number]
            if number not in missing:
                answer = Answer.receive(connection)
                missing[number] = (answer.length or 0) - len(answer.start)
                continue
            count = connection.recv_into(buffer)
            missing[number] -= count
            if not count:
                if missing[number]:
                    raise WrongAnswer(f"{missing[number]:,} bytes did not come")
                poll.unregister(number)
                del downloads[number]
    poll.close()
    return sipped


def _sip(connection: socket.socket) -> int:
    try:
        sip = connection.recv(SIP)
    except BlockingIOError:
        return 0
    if not sip:
        raise WrongAnswer("a slow client was done")
    return len(sip)


def events(port: int, *, streams: int, period: float, seconds: float) -> dict[str, Any]:
    """Keep event streams open, and measure each event's delay.

    Events count from one period after all streams are open, so that opening the streams
    does not delay them.

    Returns:
        The delays of all events that were sent in these seconds, in milliseconds: the
        median, the 99th percentile, the longest; the number of events; and the
        seconds in total, including the opening.

    Raises:
        WrongAnswer: a stream ended, or sends no more events.
    """
    start = time.monotonic()
    with ExitStack() as stack:
        poll = stack.enter_context(select.epoll())
        connections: dict[int, socket.socket] = {}
        while len(connections) < streams:
            opening = [
                stack.enter_context(connect(port))
                for _ in range(min(OPENING, streams - len(connections)))
            ]
            for connection in opening:
                connection.sendall(head("GET", f"/events/{round(1000 * period)}/"))
            for connection in opening:
                Answer.receive(connection)
                connections[connection.fileno()] = connection
                poll.register(connection, select.EPOLLIN)
        begin = time.monotonic_ns() + int(period * 1e9)
        delays = _receive_events(poll, connections, begin, begin + int(seconds * 1e9))
    ranked = sorted(delays)
    return {
        "seconds": time.monotonic() - start,
        "median": ranked[len(ranked) // 2] / 1e6,
        "p99": ranked[len(ranked) * 99 // 100] / 1e6,
        "longest": ranked[-1] / 1e6,
        "events": len(ranked),
    }


def _receive_events(
    poll: select.epoll, connections: dict[int, socket.socket], begin: int, end: int
) -> list[int]:
    """Return the delays of the events that were sent between two times.

    A stream is done when its first event after the end has come.
    """
    delays = []
    under_way = set(connections)
    give_up = end + int(PATIENCE * 1e9)
    while under_way:
        for number, _ in poll.poll(1):
            data = connections[number].recv(BLOCK)
            now = time.monotonic_ns()
            if not data:
                raise WrongAnswer("a stream ended")
            for sent in map(int, re.findall(rb"data: (\d+)\n", data)):
                if begin <= sent < end:
                    delays.append(now - sent)
                elif sent >= end:
                    under_way.discard(number)
        if time.monotonic_ns() > give_up:
            raise WrongAnswer(f"{len(under_way)} streams have no events any more")
    return delays


def run_order(functions: dict[str, Callable[..., dict[str, Any]]]) -> None:
    """Run the command line's function, and print its result."""
    _, name, arguments = sys.argv
    cpu = time.process_time()
    try:
        result = functions[name](**json.loads(arguments))
    except (WrongAnswer, OSError) as error:
        sys.exit(f"{name}: {error!r}")
    print(json.dumps(result | {"cpu": time.process_time() - cpu}))


if __name__ == "__main__":
    run_order(
        {"download": download, "upload": upload, "crowd": crowd, "events": events}
    )

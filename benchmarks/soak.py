"""Does anything grow? Many requests of all kinds under uvicorn; one in ten is left.

    python soak.py --requests 200000

After each tenth of them it prints what the server's process has. The first tenth is the
warm-up. It fails if tasks or descriptors stay, or if an answer was wrong.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import trio

HERE = Path(__file__).parent
CLIENTS = 16
#: What must not grow. Threads may, up to the number of clients.
COUNTS = ("descriptors", "Trio tasks", "asyncio tasks")
#: Seconds for what was left to end.
PATIENCE = 20

#: Path, size of the body, and what is in the answer. A large body is for few requests.
LARGE = ("/body/", 3_000_000, b"3000000 bytes")
KINDS = [
    ("/hello/", 0, b"async"),
    ("/query/", 0, b"row 42"),
    ("/body/", 20_000, b"20000 bytes"),
    ("/island/", 0, b"island"),
    ("/fail/", 0, b"HTTP/1.1 500"),
    ("/stream/", 0, b"part 4"),
    ("/sync_stream/", 0, b"part 4"),
    ("/events/", 0, b"data: part 4"),
]
ENDLESS = [
    "/wait/",
    *(f"/{name}/?endless" for name in ("stream", "sync_stream", "events")),
]


async def ask(stream: trio.SocketStream, target: str, size: int = 0) -> bytes:
    """Make a request; return the response as it came."""
    head = f"POST {target} HTTP/1.1\r\nHost: soak\r\nContent-Length: {size}\r\n\r\n"
    await stream.send_all(head.encode() + bytes(size))
    got = b""
    while part := await stream.receive_some():
        got += part
        start, end, rest = got.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", start)
        if end and (
            len(rest) >= int(length[1]) if length else rest.endswith(b"0" + end)
        ):
            break
    return got


async def client(port: int, numbers: list[int]) -> None:
    """Make a request for each number, together with other clients."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    while numbers:
        number = numbers.pop()
        if number % 10 == 0:
            with trio.move_on_after(random.random() / 50):  # noqa: S311
                await ask(stream, random.choice(ENDLESS), random.choice([0, 100]))  # noqa: S311
            await stream.aclose()
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            continue
        path, size, expected = LARGE if number % 500 == 1 else random.choice(KINDS)  # noqa: S311
        answer = await ask(stream, path, size)
        assert expected in answer, (path, answer[-500:])
    await stream.aclose()


async def state(port: int, first: dict[str, float] | None = None) -> dict[str, float]:
    """Return what the server has, when it has no more than at first, or in the end."""
    deadline = time.monotonic() + PATIENCE
    while True:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        found: dict[str, float] = json.loads(
            (await ask(stream, "/state/")).splitlines()[-1]
        )
        await stream.aclose()
        grown = first and any(found[name] > first[name] for name in COUNTS)
        if not grown or time.monotonic() > deadline:
            return found
        await trio.sleep(0.05)


async def soak(port: int, requests: int) -> bool:
    """Make the requests, and print; return whether nothing stays."""
    first: dict[str, float] | None = None
    for part in range(10):
        numbers, start = list(range(requests // 10)), time.monotonic()
        async with trio.open_nursery() as nursery:
            for _ in range(CLIENTS):
                nursery.start_soon(client, port, numbers)
        seconds = time.monotonic() - start
        await trio.sleep(1)  # what was left ends
        found = await state(port, first)
        if first is None:
            first = found
            print(f"{'requests':>10}", *(f"{name:>13}" for name in found), "  seconds")
        columns = (f"{value:>13,}" for value in found.values())
        print(
            f"{(part + 1) * (requests // 10):>10,}",
            *columns,
            f"{seconds:9.1f}",
            flush=True,
        )
    assert first is not None
    return all(found[name] <= first[name] for name in COUNTS)


def main() -> None:
    """Start the server, soak it, and end it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=20_000)
    requests = parser.parse_args().requests
    command = [sys.executable, "-m", "uvicorn", "--no-access-log", "--port=0"]
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory, "log")
        with log.open("wb") as output:
            server = subprocess.Popen(  # noqa: S603 - ours
                [*command, "soak_site:application"], stderr=output, cwd=HERE
            )
        try:
            while not (port := re.search(r"127\.0\.0\.1:(\d+)", log.read_text())):
                assert server.poll() is None, log.read_text()
                time.sleep(0.1)
            nothing_stays = trio.run(soak, int(port[1]), requests)
        finally:
            server.terminate()
            server.wait(60)
        if "Traceback" in log.read_text():
            sys.exit(log.read_text())
    if not nothing_stays:
        sys.exit("Something stays.")


if __name__ == "__main__":
    main()

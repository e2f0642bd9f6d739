"""A shutdown ends even if some code does not: that is left behind, and named."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from ._hosts import HOSTS
from ._server import serve

if TYPE_CHECKING:
    from pathlib import Path

    from ._server import Kind

#: More than all time limits of the settings below, in seconds.
BOUND = 15

EVERYTHING = ["sync", "other-sync", "trio-thread", "nested", "island", "asyncio-thread"]
PLACES = {
    "view": EVERYTHING,
    "stream": ["sync", "trio-thread", "island"],
    "task": EVERYTHING,
    "system": EVERYTHING,
    "asyncio": ["sync", "island", "asyncio-thread"],
    "lifespan": EVERYTHING,
}


#: What the server must be able to do before code of a place can be left.
NEEDS = dict.fromkeys(["view", "stream", "task", "asyncio"], "cancellation")
NEEDS["lifespan"] = "lifespan"


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(place, marks=pytest.mark.demands(NEEDS.get(place)))
        for place in PLACES
    ],
)
def test_what_does_not_end_is_left_behind(
    kind: Kind, tmp_path: Path, place: str
) -> None:
    """The server ends in bounded time, and its log says what was left."""
    everything = [
        what
        for what in PLACES[place]
        if what != "asyncio-thread" or "leaving a thread" not in HOSTS[kind].cannot
    ]
    with (
        serve(
            kind,
            tmp_path,
            application="hosted.asgi:lasting",
            options={"graceful-timeout": 1},
            settings={"SHUTDOWN_SECONDS": 0.5, "CLEANUP_SECONDS": 0.5},
        ) as server,
        ExitStack() as stack,
    ):
        for what in everything:
            connection = stack.enter_context(server.connect())
            connection.send_request(f"/stuck/{place}/{what}/?id={what}")
            event = "streaming" if place == "stream" else "entered"
            server.wait_for_event(event, what)
        begin = time.monotonic()
        server.terminate()
        assert server.wait_for_end() in HOSTS[server.kind].ends_with
        assert time.monotonic() < begin + BOUND, server.log
        assert "Traceback" not in server.complaints
        assert "never awaited" not in server.log
        if "lifespan" not in HOSTS[kind].cannot:
            assert server.events("lifespan") == ["startup", "shutdown"]
        for what in everything:
            if what == "asyncio-thread" and not HOSTS[server.kind].on_trio:
                # A thread of the server's loop, for which nobody waits any more.
                continue
            name = f"{what.replace('-', '_')}_hangs"
            if place in ("view", "stream") and what in ("sync", "other-sync"):
                name = f"does not end: /stuck/{place}/{what}/"
            assert name in server.log, server.log

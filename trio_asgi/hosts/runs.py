"""The guest run of each asyncio loop: begun when code on the loop first asks for it."""

from __future__ import annotations

import asyncio
import functools

from .guest_run import GuestRun

#: The run of each host loop; one that has crashed stays.
_runs: dict[asyncio.AbstractEventLoop, GuestRun] = {}


async def guest_run() -> GuestRun:
    """Return the guest run of the running loop; begin one if there is none.

    Raises:
        RuntimeError: another Trio run is going on in this thread.
    """
    loop = asyncio.get_running_loop()
    run = _runs.get(loop)
    while run is not None and run.is_ending and run.crash is None:
        await run.wait_ended()
        run = _runs.get(loop)
    if run is None:
        run = _begin(loop)
    if not run.is_ready:
        await run.wait_ready()
    return run


def _begin(loop: asyncio.AbstractEventLoop) -> GuestRun:
    run = GuestRun(loop, on_end=functools.partial(_runs.pop, loop, None))
    try:
        run.start()
    except RuntimeError as error:
        if not any(other.is_closed() for other in _runs):
            raise
        raise RuntimeError(
            "Trio still runs in this thread, for an event loop that was closed without "
            "shutdown_asyncgens(), which would have ended it. Close loops as "
            "asyncio.run() does."
        ) from error
    _runs[loop] = run
    return run


async def island_run() -> GuestRun:
    """As `guest_run`, for asyncio code that may be cleaning up while the run ends."""
    run = _runs.get(asyncio.get_running_loop())
    return run if run is not None and run.takes_calls else await guest_run()

"""The cost of the installed bridge for code that stays on asyncio.

Run it with ``nox -s benchmarks``. The same calls are timed with and without the bridge,
in turns within one process, so that both run under the same conditions. Each round
yields one ratio of the two times; the median of the rounds and the quartiles are
printed. A ratio of 1.00 is no cost. "no change" times the same code twice: its spread
is that of the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import statistics
import time
from typing import TYPE_CHECKING, Any

import asgiref
import trio
from asgiref.sync import ThreadSensitiveContext, async_to_sync, sync_to_async

import trio_asgi

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


#: A round times this many stretches of this many calls, with the bridge and without.
STRETCHES = 40
CALLS = 25


def nothing() -> None:
    """Do nothing, as the sync code that is called."""


async def nothing_async() -> None:
    """Do nothing, as the coroutine that is called."""


async def _sensitive(calls: int) -> None:
    bridged = sync_to_async(nothing)
    async with ThreadSensitiveContext():
        for _ in range(calls):
            await bridged()


async def _insensitive(calls: int) -> None:
    bridged = sync_to_async(nothing, thread_sensitive=False)
    for _ in range(calls):
        await bridged()


async def _made_for_each_call(calls: int) -> None:
    async with ThreadSensitiveContext():
        for _ in range(calls):
            await sync_to_async(nothing)()


async def _back_from_thread(calls: int) -> None:
    bridged = async_to_sync(nothing_async)

    def code() -> None:
        for _ in range(calls):
            bridged()

    async with ThreadSensitiveContext():
        await sync_to_async(code)()


#: The cases: a name, and a coroutine function that makes so many calls.
CASES: dict[str, Callable[[int], Awaitable[None]]] = {
    "sync_to_async": _sensitive,
    "sync_to_async, thread_sensitive=False": _insensitive,
    "sync_to_async, wrapped for each call": _made_for_each_call,
    "async_to_sync in sync_to_async": _back_from_thread,
}


async def time_calls(case: Callable[[int], Awaitable[None]], calls: int) -> float:
    """Return how many seconds so many calls take."""
    start = time.perf_counter()
    await case(calls)
    return time.perf_counter() - start


async def ratio(
    case: Callable[[int], Awaitable[None]], stretches: int, *, change: bool = True
) -> float:
    """Time stretches of calls in turns; return the ratio of the two medians.

    The stretches are short, so that a pause of the machine spoils few of them, which
    the median ignores.
    """
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for stretch in range(stretches):
        for installed in (bool(stretch % 2), not stretch % 2):
            if installed or not change:
                trio_asgi.install_bridge()
            else:
                trio_asgi.uninstall_bridge()
            await case(5)  # Python adapts its code to what it meets
            seconds[installed].append(await time_calls(case, CALLS))
    return statistics.median(seconds[True]) / statistics.median(seconds[False])


async def measure(rounds: int) -> dict[str, list[float]]:
    """Return the ratio of each round, for each case."""
    ratios: dict[str, list[float]] = {name: [] for name in [*CASES, "no change"]}
    for _ in range(rounds):
        for name, case in CASES.items():
            ratios[name].append(await ratio(case, STRETCHES))
        ratios["no change"].append(await ratio(_sensitive, STRETCHES, change=False))
    return ratios


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    options: Any = parser.parse_args()
    ratios = asyncio.run(measure(options.rounds))
    print(
        f"Python {platform.python_version()}, asgiref {asgiref.__version__}, "
        f"Trio {trio.__version__}: {options.rounds} rounds of {STRETCHES} stretches of "
        f"{CALLS} calls, with and without\n"
    )
    print(f"{'time with the bridge / without':40} {'median':>7}   quartiles")
    for name, values in ratios.items():
        low, median, high = statistics.quantiles(values, n=4)
        print(f"{name:40} {median:7.3f}   {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    main()

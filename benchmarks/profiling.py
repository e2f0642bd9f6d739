"""Where the time of one candidate goes, for one work.

``run.py --profile`` starts this script with the environment of a candidate. First it
measures without the profiler: CPU time, in the loop's thread and in all threads, and
context switches, in each of which a thread gave up the processor to wait. Then the same
requests run under `cProfile`. From Python 3.12 on it sees all threads, before that only
the loop's.
"""

from __future__ import annotations

import cProfile
import pstats
import resource
import sys

from obedient import make_application, make_load, make_loop, make_sync_load
from works import WORKS, Work

REQUESTS = 1000
LINES = 45


def main(kind: str, work: Work, concurrency: int, seconds: float) -> None:
    """Measure, profile, and print."""
    profiler = cProfile.Profile()

    def show_usage(result: dict[str, float], switches: int) -> None:
        requests = result["requests"]
        took, cpu, own = (
            1e6 * result[key] / requests for key in ("seconds", "cpu", "own_cpu")
        )
        print(
            f"{kind}, {work.title}, {concurrency} at a time, in microseconds a request:"
            f" {took:.0f}, of CPU {cpu:.0f}, in the loop's thread {own:.0f};"
            f" context switches {switches / requests:.1f}\n"
        )

    if kind == "wsgi":
        load = make_sync_load(work)
        load.run_count(REQUESTS)
        before = _switches()
        result = load.run_for(seconds)
        show_usage(result, _switches() - before)
        profiler.runcall(load.run_count, REQUESTS)
    else:
        loop = make_loop(kind)
        requests = make_load(loop, make_application(kind), work, work.view)

        async def run() -> None:
            await requests.run_count(concurrency, REQUESTS)
            before = _switches()
            result = await requests.run_for(concurrency, seconds)
            show_usage(result, _switches() - before)
            with profiler:
                await requests.run_count(concurrency, REQUESTS)

        loop.run(run)
    print(f"Profile of {REQUESTS} requests: a second here is a millisecond for each.")
    pstats.Stats(profiler).sort_stats("tottime").print_stats(LINES)


def _switches() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw


if __name__ == "__main__":
    main(sys.argv[1], WORKS[sys.argv[2]], int(sys.argv[3]), float(sys.argv[4]))

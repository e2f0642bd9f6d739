"""Worker threads and the process: forks, Control-C, the end of the program."""

from __future__ import annotations

import os

import pytest

from thread_support import interrupt_each_line, run_script


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_belongs_to_no_call() -> None:
    """In a child that sync code forks, the thread is neither a worker's nor Trio's."""
    output = run_script(
        """
        import os, sys, trio, warnings
        from trio_asgi.threads.call import calling
        from trio_asgi.threads.trio_state import in_trio_thread
        from trio_asgi.threads.current import current_pool

        # A process with threads should not be forked, says Python 3.12.
        warnings.simplefilter("ignore", DeprecationWarning)

        def code():
            assert calling() is not None and in_trio_thread()
            child = os.fork()
            if child == 0:
                free = calling() is None and not in_trio_thread()
                try:
                    trio.from_thread.run_sync(print)
                except RuntimeError:
                    os._exit(0 if free else 1)
                os._exit(2)
            _, status = os.waitpid(child, 0)
            # The parent goes on as before.
            assert calling() is not None
            trio.from_thread.run(trio.lowlevel.checkpoint)
            return os.waitstatus_to_exitcode(status)

        async def main():
            print(await current_pool().program_lease().run_sync(code))

        trio.run(main)
        """
    )
    assert output == "0\n"


INTERRUPTED = """
    import signal, sys, trio
    from trio_asgi.threads.reentry import run_async
    from trio_asgi.threads.current import current_pool

    def interrupt():
        signal.raise_signal(signal.SIGINT)
        # The main thread handles the signal, then tells the task that waits.
        for _ in range(3):
            trio.from_thread.run_sync(int)

    def code():
        interrupt()
        try:
            trio.from_thread.check_cancelled()
        except KeyboardInterrupt:
            print("told")
            # As nobody was told: it is raised once only.
            interrupt()
        print("call ended")
        return "result"

    async def main():
        run = trio.to_thread.run_sync
        if sys.argv[1] == "lease":
            run = current_pool().program_lease().run_sync
        print(await run(code))
        await trio.lowlevel.checkpoint()
        print("not interrupted")

    try:
        trio.run(main)
    except KeyboardInterrupt:
        print("interrupted")
    """


def test_an_interrupt_waits_for_the_call() -> None:
    """Control-C during a call is raised when the call is over, as in Trio's threads."""
    output = run_script(INTERRUPTED, "lease")
    assert output.split("\n") == ["told", "call ended", "result", "interrupted", ""]
    assert output == run_script(INTERRUPTED, "trio")


def test_an_interrupt_reaches_a_coroutine() -> None:
    """Control-C interrupts the code in `run_async`, and is raised in the thread."""
    output = run_script(
        """
        import signal, trio
        from trio_asgi.threads.reentry import run_async
        from trio_asgi.threads.current import current_pool

        async def coroutine():
            try:
                signal.raise_signal(signal.SIGINT)
            finally:
                print("coroutine")

        def code():
            try:
                run_async(coroutine)[0].unwrap()
            finally:
                print("code")

        async def main():
            lease = current_pool().program_lease()
            try:
                await lease.run_sync(code)
            except KeyboardInterrupt:
                print("task")
            print(await lease.run_sync(lambda: "usable"))

        trio.run(main)
        """
    )
    assert output.split() == ["coroutine", "code", "task", "usable"]


def test_an_interrupt_at_any_line_leaves_the_lease_usable() -> None:
    """Wherever Control-C hits the start of a call, no turn and no token is lost."""
    lines = interrupt_each_line(
        setup="lease = leases.Lease(pool)",
        steps=["lease.run_sync(int)"],
        free=["pool.queue.running"],
    )
    assert lines > 20

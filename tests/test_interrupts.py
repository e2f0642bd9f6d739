"""Ctrl-C while `async_to_sync` waits for a Trio run that it has started.

Each test is a script in a separate Python that sends itself the signal at one point.
"""

from __future__ import annotations

import os
import sys

import pytest

from thread_support import run_script

INTERRUPTS = """
    import contextlib, os, signal, sys, threading, time, trio, trio.testing
    import trio_asgi
    from asgiref.sync import async_to_sync, sync_to_async

    trio_asgi.install_bridge(async_to_sync_backend="trio")
    main_thread = threading.main_thread().ident
    done = threading.Event()

    def say(*words):
        # At once, for several threads do it.
        os.write(1, (" ".join(map(str, words)) + "\\n").encode())

    def press():
        signal.pthread_kill(main_thread, signal.SIGINT)

    def nudge():
        # Trio's own wait for an answer does not see a signal that comes just before it:
        # Python looks for signals when the next one interrupts the wait.
        signal.signal(signal.SIGUSR2, lambda *args: None)

        def send():
            while not done.wait(0.05):
                signal.pthread_kill(main_thread, signal.SIGUSR2)

        threading.Thread(target=send, daemon=True).start()

    def give_up():
        if not done.wait(8):
            import faulthandler
            faulthandler.dump_traceback()
            os._exit(3)

    threading.Thread(target=give_up, daemon=True).start()

    async def waits(name="coroutine"):
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
                await sync_to_async(say)(name, "cleaned up in the caller's thread")

    def finish(fn, *args):
        handler = signal.getsignal(signal.SIGINT)
        try:
            say("returned", fn(*args))
        except BaseException as error:
            say("raised", repr(error))
        assert signal.getsignal(signal.SIGINT) is handler
        # What comes after works as before.
        async def again():
            return await sync_to_async(lambda: "again")()
        say(async_to_sync(again)())
        try:
            press()
            time.sleep(20)
        except KeyboardInterrupt:
            say("Ctrl-C is as before")
        done.set()
"""

AFTER = "again\nCtrl-C is as before\n"


def interrupted(script: str) -> str:
    """Run a script about Ctrl-C, and return what it prints."""
    return run_script(INTERRUPTS + script)


posix = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="Ctrl-C cannot be sent to one's own thread"
)


@posix
def test_an_interrupt_in_the_coroutine() -> None:
    """Ctrl-C cancels a waiting coroutine; its clean-up runs, then it is raised."""
    output = interrupted(
        """
    async def coroutine():
        press()
        await waits()

    finish(async_to_sync(coroutine))
    """
    )
    assert output == (
        "coroutine cleaned up in the caller's thread\nraised KeyboardInterrupt()\n"
        + AFTER
    )


@posix
def test_an_interrupt_of_a_coroutine_that_ends_anyway() -> None:
    """If the coroutine does not wait any more, Ctrl-C is raised when it has ended."""
    output = interrupted(
        """
    async def coroutine():
        press()
        say("ended")
        return "result"

    finish(async_to_sync(coroutine))
    """
    )
    assert output == "ended\nraised KeyboardInterrupt()\n" + AFTER


@posix
def test_an_interrupt_of_a_coroutine_that_fails_then() -> None:
    """An error of its clean-up is the cause of the KeyboardInterrupt, and not lost."""
    output = interrupted(
        """
    async def coroutine():
        try:
            press()
            await trio.sleep_forever()
        finally:
            raise LookupError("in the clean-up")

    def code():
        try:
            async_to_sync(coroutine)()
        except KeyboardInterrupt as error:
            say(repr(error.__cause__))
            raise

    finish(code)
    """
    )
    assert output == (
        "LookupError('in the clean-up')\nraised KeyboardInterrupt()\n" + AFTER
    )


@posix
def test_an_interrupt_before_the_run_has_begun() -> None:
    """Ctrl-C while the thread of the run is started is not lost."""
    output = interrupted(
        """
    from trio_asgi.threads import new_run as _new_run
    start = _new_run._start_thread

    def start_thread(fn):
        press()
        for _ in range(100):
            pass
        start(fn)

    _new_run._start_thread = start_thread

    def program():
        async_to_sync(waits)()

    def once():
        try:
            program()
        finally:
            _new_run._start_thread = start

    finish(once)
    """
    )
    assert output == (
        "coroutine cleaned up in the caller's thread\nraised KeyboardInterrupt()\n"
        + AFTER
    )


@posix
def test_an_interrupt_in_sync_code() -> None:
    """In sync code in the main thread, Ctrl-C is raised there, and can be handled."""
    output = interrupted(
        """
    def code():
        try:
            press()
            time.sleep(20)
        except KeyboardInterrupt:
            say("handled")
        return "result"

    finish(async_to_sync(sync_to_async(code)))
    """
    )
    assert output == "handled\nreturned result\n" + AFTER


@posix
def test_an_interrupt_that_sync_code_does_not_handle() -> None:
    """Otherwise it is raised in the calling coroutine, and then by the bridge."""
    output = interrupted(
        """
    def code():
        press()
        time.sleep(20)

    async def coroutine():
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waits, "sibling")
                await trio.testing.wait_all_tasks_blocked()
                await sync_to_async(code)()
        except BaseExceptionGroup as group:
            say("coroutine", group.exceptions)
            raise

    if sys.version_info < (3, 11):
        from exceptiongroup import BaseExceptionGroup
    finish(async_to_sync(coroutine))
    """
    )
    assert output == (
        "sibling cleaned up in the caller's thread\n"
        "coroutine (KeyboardInterrupt(),)\n"
        "raised BaseExceptionGroup('Exceptions from Trio nursery', "
        "[KeyboardInterrupt()])\n" + AFTER
    )


@posix
def test_an_interrupt_in_a_nested_call() -> None:
    """Ctrl-C while sync code waits for its own coroutine cancels the run."""
    output = interrupted(
        """
    async def inner():
        press()
        await waits("inner")

    def code():
        try:
            async_to_sync(inner)()
        finally:
            say("sync code", type(sys.exc_info()[1]).__name__)

    async def outer():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waits, "sibling")
            await trio.testing.wait_all_tasks_blocked()
            await sync_to_async(code)()

    finish(async_to_sync(outer))
    """
    )
    # Both need the main thread: the sibling before or after the sync code's end.
    sibling = "sibling cleaned up in the caller's thread\n"
    assert sibling in output
    assert output.replace(sibling, "") == (
        "inner cleaned up in the caller's thread\nsync code Cancelled\n"
        "raised KeyboardInterrupt()\n" + AFTER
    )


@posix
def test_an_interrupt_in_a_nested_new_loop() -> None:
    """Ctrl-C ends the innermost run first, and is an error of the sync code there."""
    output = interrupted(
        """
    async def inner():
        press()
        await waits("inner")

    def code():
        try:
            async_to_sync(inner, force_new_loop=True)()
        except KeyboardInterrupt:
            say("sync code interrupted")
            raise

    async def outer():
        try:
            await sync_to_async(code)()
        except KeyboardInterrupt:
            say("outer interrupted")
            raise

    finish(async_to_sync(outer))
    """
    )
    assert output == (
        "inner cleaned up in the caller's thread\nsync code interrupted\n"
        "outer interrupted\nraised KeyboardInterrupt()\n" + AFTER
    )


@posix
def test_an_interrupt_during_from_thread_run() -> None:
    """Ctrl-C while sync code waits in `trio.from_thread.run` ends both."""
    output = interrupted(
        """
    nudge()

    async def inner():
        press()
        try:
            await trio.sleep_forever()
        finally:
            say("inner cleaned up")

    def code():
        try:
            trio.from_thread.run(inner)
        finally:
            say("sync code ended")

    finish(async_to_sync(sync_to_async(code)))
    """
    )
    lines = output.splitlines()
    assert sorted(lines[:2]) == ["inner cleaned up", "sync code ended"]
    assert "\n".join(lines[2:]) + "\n" == "raised KeyboardInterrupt()\n" + AFTER


@posix
def test_an_interrupt_during_from_thread_run_that_is_handled() -> None:
    """Sync code that handles it can go on, and use `trio.from_thread` again."""
    output = interrupted(
        """
    nudge()

    async def inner():
        press()
        try:
            await trio.sleep_forever()
        finally:
            say("inner cleaned up")

    async def answers():
        await trio.lowlevel.checkpoint()
        return "answers"

    def code():
        try:
            trio.from_thread.run(inner)
        except KeyboardInterrupt:
            say("handled")
        say(trio.from_thread.run_sync(lambda: "sync answers"))
        say(trio.from_thread.run(answers))
        say(async_to_sync(answers)())
        return "result"

    finish(async_to_sync(sync_to_async(code)))
    """
    )
    lines = output.splitlines()
    assert sorted(lines[:2]) == ["handled", "inner cleaned up"]
    assert "\n".join(lines[2:]) + "\n" == (
        "sync answers\nanswers\nanswers\nreturned result\n" + AFTER
    )


@posix
def test_two_interrupts() -> None:
    """A second Ctrl-C does not wait for the clean-up; nothing hangs."""
    output = interrupted(
        """
    release = threading.Event()

    async def coroutine():
        press()
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                press()
                await trio.to_thread.run_sync(release.wait, abandon_on_cancel=True)

    finish(async_to_sync(coroutine))
    release.set()
    """
    )
    assert output == "raised KeyboardInterrupt()\n" + AFTER


@posix
def test_an_interrupt_of_trio_in_sync_code() -> None:
    """A Trio run that sync code starts in the main thread has Trio's own Ctrl-C.

    It is never raised inside of Trio, and ends the run.
    """
    output = interrupted(
        """
    async def main():
        task = trio.lowlevel.current_task()

        def abort(raise_cancel):
            # Trio's own code, where no error may come in.
            press()
            for _ in range(100):
                pass
            return trio.lowlevel.Abort.SUCCEEDED

        with trio.CancelScope() as scope:
            scope.cancel()
            await trio.lowlevel.wait_task_rescheduled(abort)
        await trio.sleep_forever()

    finish(async_to_sync(sync_to_async(trio.run)), main)
    """
    )
    assert output == "raised KeyboardInterrupt()\n" + AFTER


@posix
def test_an_interrupt_of_asyncio_in_sync_code() -> None:
    """An asyncio loop that sync code starts is interrupted as usual."""
    script = """
    import asyncio

    async def main():
        press()
        try:
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            say("cancelled")
            raise

    def program():
        asyncio.run(main())

    finish(%s)
    """
    output = interrupted(script % "async_to_sync(sync_to_async(program))")
    assert output == interrupted(script % "program")
    if sys.version_info >= (3, 11):  # otherwise asyncio just dies of it
        assert output == "cancelled\nraised KeyboardInterrupt()\n" + AFTER


@posix
def test_handlers_of_the_program() -> None:
    """A handler that the program has set itself is kept, and called."""
    output = interrupted(
        """
    def handler(*args):
        say("handler")

    async def coroutine():
        press()
        await sync_to_async(press)()
        for _ in range(3):
            await sync_to_async(int)()
        return "result"

    signal.signal(signal.SIGINT, handler)
    try:
        say(async_to_sync(coroutine)())
    finally:
        assert signal.getsignal(signal.SIGINT) is handler
        signal.signal(signal.SIGINT, signal.default_int_handler)

    # One that sync code sets stays, too.
    def code():
        signal.signal(signal.SIGINT, handler)

    async def sets():
        await sync_to_async(code)()
        press()
        await sync_to_async(press)()
        return "result"

    say(async_to_sync(sets)())
    assert signal.getsignal(signal.SIGINT) is handler
    signal.signal(signal.SIGINT, signal.default_int_handler)
    finish(int)
    """
    )
    assert output == ("handler\nhandler\nresult\n" * 2) + "returned 0\n" + AFTER


@posix
def test_an_error_of_a_signal_handler() -> None:
    """An error of another handler while the thread waits is raised at once.

    The coroutine is cancelled, nothing hangs, and later calls work.
    """
    output = interrupted(
        """
    nudge()

    def handler(*args):
        raise TimeoutError("of a handler")

    signal.signal(signal.SIGUSR1, handler)

    def alarm():
        signal.pthread_kill(main_thread, signal.SIGUSR1)

    async def sleeps(name):
        alarm()
        try:
            await trio.sleep_forever()
        finally:
            say(name, "cleaned up")
            ended.set()

    for place in ("run", "nested", "from_thread"):
        ended = threading.Event()

        def code():
            try:
                if place == "nested":
                    async_to_sync(sleeps)(place)
                else:
                    trio.from_thread.run(sleeps, place)
            except TimeoutError:
                say("sync code")
                raise

        afn = sleeps if place == "run" else sync_to_async(code)
        args = (place,) if place == "run" else ()
        try:
            async_to_sync(afn)(*args)
        except TimeoutError as error:
            say(repr(error))
        assert ended.wait(20)
    finish(int)
    """
    )
    lines = output.splitlines()
    error = "TimeoutError('of a handler')"
    assert sorted(lines[:2]) == [error, "run cleaned up"]
    for number, place in ((2, "nested"), (5, "from_thread")):
        assert set(lines[number : number + 3]) == {
            "sync code",
            f"{place} cleaned up",
            error,
        }
    assert "\n".join(lines[8:]) + "\n" == "returned 0\n" + AFTER


@posix
def test_an_error_of_a_signal_handler_before_the_task_is_at_work() -> None:
    """If the thread gives up a call that was only requested, that ends at once."""
    output = interrupted(
        """
    nudge()

    from trio_asgi.threads.call import calling


    def handler(*args):
        raise TimeoutError("of a handler")

    signal.signal(signal.SIGUSR1, handler)
    blocked, go_on = threading.Event(), threading.Event()

    async def blocks():
        # Nothing that arrives is looked at meanwhile.
        blocked.set()
        assert go_on.wait(20)

    def alarm(call):
        while not call._posted:
            time.sleep(0.001)
        signal.pthread_kill(main_thread, signal.SIGUSR1)

    def code():
        assert blocked.wait(20)
        threading.Thread(target=alarm, args=[calling()]).start()
        try:
            trio.from_thread.run(trio.sleep_forever)
        except TimeoutError as error:
            say(repr(error))
        threading.Thread(target=release, args=[calling()]).start()
        return "result"

    def release(call):
        # Both messages are there.
        while call._posted < 2:
            time.sleep(0.001)
        go_on.set()

    async def coroutine():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            await blocks()

    async def call():
        say(await sync_to_async(code)())

    finish(async_to_sync(coroutine))
    """
    )
    assert output == "TimeoutError('of a handler')\nresult\nreturned None\n" + AFTER


@posix
def test_an_interrupt_in_another_thread_than_the_main() -> None:
    """Ctrl-C does not interrupt a run below another thread."""
    output = interrupted(
        """
    started, ended = threading.Event(), threading.Event()

    async def coroutine():
        started.set()
        await trio.to_thread.run_sync(ended.wait)
        return "result"

    def program():
        say(async_to_sync(coroutine)())

    thread = threading.Thread(target=program)
    thread.start()
    assert started.wait(20)
    try:
        press()
        time.sleep(20)
    except KeyboardInterrupt:
        say("main thread")
    ended.set()
    thread.join()
    finish(int)
    """
    )
    assert output == "main thread\nresult\nreturned 0\n" + AFTER


@posix
def test_an_interrupt_at_any_line() -> None:
    """Wherever Ctrl-C hits the start of a call, it is raised, and nothing hangs."""
    output = interrupted(
        """
    import trio_asgi.bridge.async_to_sync, trio_asgi.threads.loop
    import trio_asgi.threads.new_run, trio_asgi.threads.reentry
    import trio_asgi.threads.trio_state
    import warnings
    from pathlib import Path

    # Between making a coroutine and awaiting it, nobody can keep Ctrl-C away.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited")

    package = str(Path(trio_asgi.__file__).parent)
    remaining = 0

    def count(frame, event, argument):
        global remaining
        if event == "line":
            remaining -= 1
            if remaining == 0:
                sys.settrace(None)
                press()
        return count

    def trace(frame, event, argument):
        ours = frame.f_code.co_filename.startswith(package)
        return count if ours and remaining > 0 else None

    def code():
        return async_to_sync(inner)()

    async def inner():
        await trio.lowlevel.checkpoint()
        return await sync_to_async(int)()

    async def coroutine():
        await sync_to_async(code)()
        await trio.lowlevel.checkpoint()

    def interrupt_at(line):
        global remaining
        remaining = line
        outcome = "nothing"
        try:
            sys.settrace(trace)
            async_to_sync(coroutine)()
        except KeyboardInterrupt:
            outcome = "interrupt"
        finally:
            sys.settrace(None)
        return outcome

    unlike = []
    for line in range(1, 2000):
        outcome = interrupt_at(line)
        if remaining > 0:
            break
        if outcome != "interrupt":
            unlike.append((line, outcome))
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            unlike.append((line, "handler"))
            signal.signal(signal.SIGINT, signal.default_int_handler)
    say(line > 50, unlike)
    finish(int)
    """
    )
    assert output == "True []\nreturned 0\n" + AFTER

"""One request and its response: every arrow between the two, and what comes out."""

from __future__ import annotations

import contextvars
import gc
import sys
import threading
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from support import http_scope
from trio_asgi.asgi.exchange import Exchange
from trio_asgi.asgi.receive import Receiver
from trio_asgi.asgi.send import ResponseSender
from trio_asgi.errors import leaves
from trio_asgi.threads.current import current_pool
from trio_asgi.threads.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from trio_asgi.asgi.types import Message

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup, ExceptionGroup

#: A test that still waits after this time has failed.
SECONDS = 10

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")


class Client:
    """The end of the connection that an exchange watches."""

    def __init__(self) -> None:
        self.calls = 0
        self.watcher: trio.lowlevel.Task | None = None
        self.cancelled = False
        #: Set when the exchange watches, and when it has seen the client leave.
        self.watched, self.seen = trio.Event(), trio.Event()
        self._left = trio.Event()
        self._error: BaseException | None = None

    def leave(self, error: BaseException | None = None) -> None:
        """Disconnect; or make the watching fail."""
        self._error = error
        self._left.set()

    async def receive(self) -> Message:
        """Wait for the disconnect, as a server's ``receive`` after the body."""
        self.calls += 1
        self.watcher = trio.lowlevel.current_task()
        self.watched.set()
        try:
            await self._left.wait()
        except trio.Cancelled:
            self.cancelled = True
            raise
        self.seen.set()
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            # Its traceback holds this frame: leave no cycle behind.
            del error
        return {"type": "http.disconnect"}


class PatientExchange(Exchange):
    """An exchange with a client; after the server's cancellation it waits a minute."""

    patience = 60
    send_timeout = None

    def __init__(self, client: Client, lease: Lease) -> None:
        receiver = Receiver(http_scope(), client.receive)
        receiver.complete = True
        super().__init__(receiver, ResponseSender(self._send, receiver), lease, "/")

    async def _send(self, message: Message) -> None:
        """Take a message, as a server's ``send``."""

    async def end_early(self) -> None:
        """Do nothing: nothing is left to end."""


class SyncCode:
    """Sync code of the request, which runs until it is told to end."""

    def __init__(self) -> None:
        self.entered = trio.Event()
        self.thread: threading.Thread
        self._end = threading.Event()

    def __call__(self) -> str:
        self.thread = threading.current_thread()
        trio.from_thread.run_sync(self.entered.set)
        assert self._end.wait(SECONDS)
        return "result"

    def end(self) -> None:
        """Let it end."""
        self._end.set()


@contextmanager
def open_lease() -> Iterator[Lease]:
    """Take out a lease for a block."""
    lease = Lease(current_pool())
    try:
        yield lease
    finally:
        lease.release()


@pytest.fixture
def client() -> Client:
    """Provide a client that stays until told to leave."""
    return Client()


@pytest.fixture(name="lease")
async def make_lease() -> Lease:
    """Provide a lease that no sync code uses."""
    return Lease(current_pool())


async def wait_cancelled(then: Callable[[], object] = lambda: None) -> None:
    """Wait to be cancelled, and react to it."""
    try:
        await trio.sleep_forever()
    finally:
        then()


# Who cancels whom


async def test_the_response_ends(client: Client, lease: Lease) -> None:
    """When respond has ended the watcher is cancelled, and nothing is raised."""
    order: list[str] = []

    async def respond() -> None:
        await client.watched.wait()
        order.append("responded")

    await PatientExchange(client, lease).run(respond)
    assert order == ["responded"]
    assert client.calls == 1
    assert client.cancelled
    assert not lease.abandoned


async def test_respond_runs_in_the_requests_task(client: Client, lease: Lease) -> None:
    """Respond runs in the task and context of the caller, the watcher in another."""
    tasks: list[trio.lowlevel.Task] = []

    async def respond() -> None:
        await client.watched.wait()
        variable.set("response")
        tasks.append(trio.lowlevel.current_task())

    await PatientExchange(client, lease).run(respond)
    assert tasks == [trio.lowlevel.current_task()]
    assert client.watcher not in (None, *tasks)
    assert variable.get() == "response"


async def test_a_response_without_a_checkpoint(client: Client, lease: Lease) -> None:
    """A response that is there at once ends the exchange like any other."""

    async def respond() -> None:
        pass

    with trio.fail_after(SECONDS):
        await PatientExchange(client, lease).run(respond)


async def test_the_client_leaves(client: Client, lease: Lease) -> None:
    """A disconnect cancels respond, waits for its end, and raises nothing."""
    order: list[str] = []

    async def respond() -> None:
        client.leave()
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked()
            order.append("cleaned up")

    with trio.fail_after(SECONDS):
        await PatientExchange(client, lease).run(respond)
    assert order == ["cleaned up"]
    assert not client.cancelled


async def test_the_client_has_left_before(client: Client, lease: Lease) -> None:
    """A disconnect before the exchange cancels respond, too."""
    started: list[bool] = []

    async def respond() -> None:
        started.append(True)
        await trio.sleep_forever()

    client.leave()
    with trio.fail_after(SECONDS):
        await PatientExchange(client, lease).run(respond)
    assert started == [True]


async def test_the_client_leaves_while_the_response_completes(
    client: Client, lease: Lease
) -> None:
    """A disconnect is no abort once the whole response was passed on."""
    exchange = PatientExchange(client, lease)
    order: list[str] = []

    async def respond() -> None:
        await client.watched.wait()
        exchange.sender.in_one_piece = True
        await exchange.sender({"type": "http.response.start", "status": 200})
        client.leave()
        await client.seen.wait()
        await wait_all_tasks_blocked()
        order.append("sent")

    await exchange.run(respond)
    assert order == ["sent"]


async def test_the_client_leaves_twice(client: Client, lease: Lease) -> None:
    """After the disconnect, no other one is waited for."""

    async def respond() -> None:
        with trio.CancelScope(shield=True):
            client.leave()
            await client.seen.wait()
            await wait_all_tasks_blocked()
            client.leave()
            await wait_all_tasks_blocked()

    await PatientExchange(client, lease).run(respond)
    assert client.calls == 1


async def test_the_server_cancels(client: Client, lease: Lease) -> None:
    """A cancellation from outside reaches both, and goes on to its scope."""
    order: list[str] = []

    async def respond() -> None:
        await client.watched.wait()
        scope.cancel()
        await wait_cancelled(lambda: order.append("respond"))

    with trio.CancelScope() as scope:
        try:
            await PatientExchange(client, lease).run(respond)
        except trio.Cancelled:
            order.append("in no group")
            raise
    assert scope.cancelled_caught
    assert order == ["respond", "in no group"]
    assert client.cancelled
    assert not lease.abandoned
    assert not lease.impatient


async def test_the_server_cancels_as_the_client_leaves(
    client: Client, lease: Lease
) -> None:
    """If both happen at once, the server's cancellation is not lost."""

    async def respond() -> None:
        await client.watched.wait()
        client.leave()
        scope.cancel()
        await trio.sleep_forever()

    with trio.CancelScope() as scope:
        await PatientExchange(client, lease).run(respond)
        await trio.lowlevel.checkpoint()
        pytest.fail("the cancellation got lost")
    assert scope.cancelled_caught


async def test_the_server_cancels_a_response_that_ends(
    client: Client, lease: Lease
) -> None:
    """A response that ends anyway may or may not see the cancellation."""
    order: list[str] = []

    async def respond() -> None:
        scope.cancel()
        order.append("responded")

    with trio.CancelScope() as scope:
        await PatientExchange(client, lease).run(respond)
        await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert order == ["responded"]


# Patience with sync code


def run_on_a_stopped_clock(main: Callable[[MockClock], Awaitable[None]]) -> None:
    """Run a test whose clock advances only when told to; threads take no time."""
    clock = MockClock()
    trio.run(main, clock, clock=clock)


async def test_the_server_cancels_before_the_watcher_starts(client: Client) -> None:
    """Sync code that was cancelled so early is left in the end, too."""
    code = SyncCode()

    class ImpatientExchange(PatientExchange):
        patience = 0

    async def respond() -> None:
        await lease.run_sync(code)

    with open_lease() as lease:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ImpatientExchange(client, lease).run, respond)
            await code.entered.wait()
            nursery.cancel_scope.cancel()
        assert lease.abandoned
        code.end()


def test_the_client_leaves_sync_code() -> None:
    """If the client of sync code disconnects, the code is waited for, however long."""

    async def main(clock: MockClock) -> None:
        client, code = Client(), SyncCode()
        results: list[str] = []

        async def respond() -> None:
            results.append(await lease.run_sync(code))
            await trio.lowlevel.checkpoint()
            results.append("went on")

        with open_lease() as lease:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(PatientExchange(client, lease).run, respond)
                await code.entered.wait()
                await client.watched.wait()
                client.leave()
                await wait_all_tasks_blocked()
                clock.jump(1000)
                await wait_all_tasks_blocked()
                assert results == []
                code.end()
            assert results == ["result"]
            assert not lease.abandoned

    run_on_a_stopped_clock(main)


def test_the_server_has_patience_with_sync_code() -> None:
    """Sync code that the server cancels may run on for some seconds, then is left."""

    async def main(clock: MockClock) -> None:
        client, code = Client(), SyncCode()
        left: list[bool] = []
        with open_lease() as lease:
            async with trio.open_nursery() as nursery:

                async def request() -> None:
                    await PatientExchange(client, lease).run(respond)

                async def respond() -> None:
                    await lease.run_sync(code)

                nursery.start_soon(request)
                await code.entered.wait()
                await client.watched.wait()
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    await wait_all_tasks_blocked()
                    for seconds in (59, 2):
                        clock.jump(seconds)
                        await wait_all_tasks_blocked()
                        left.append(lease.abandoned)
            assert left == [False, True]
            assert code.thread.is_alive()
            code.end()

    run_on_a_stopped_clock(main)


def test_sync_code_that_ends_in_time() -> None:
    """The patience ends with the code, and its result is there."""

    async def main(clock: MockClock) -> None:
        client, code = Client(), SyncCode()
        results: list[str] = []

        async def respond() -> None:
            results.append(await lease.run_sync(code))
            await trio.lowlevel.checkpoint()

        with open_lease() as lease:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(PatientExchange(client, lease).run, respond)
                await code.entered.wait()
                await client.watched.wait()
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    await wait_all_tasks_blocked()
                    clock.jump(59)
                    code.end()
            assert results == ["result"]
            assert trio.current_time() < 60
            assert not lease.abandoned
            assert not lease.impatient

    run_on_a_stopped_clock(main)


def test_the_server_cancels_after_the_client_has_left() -> None:
    """If its client has left, sync code is still abandoned at the server's shutdown."""

    async def main(clock: MockClock) -> None:
        client, code = Client(), SyncCode()

        async def respond() -> None:
            await lease.run_sync(code)

        with open_lease() as lease:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(PatientExchange(client, lease).run, respond)
                await code.entered.wait()
                await client.watched.wait()
                client.leave()
                await wait_all_tasks_blocked()
                clock.jump(1000)
                await wait_all_tasks_blocked()
                seen = [lease.abandoned]
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    await wait_all_tasks_blocked()
                    clock.jump(61)
            assert [*seen, lease.abandoned] == [False, True]
            code.end()

    run_on_a_stopped_clock(main)


def test_sync_code_that_starts_after_the_patience() -> None:
    """Cancelled sync code in the clean-up that follows is not waited for either."""

    async def main(clock: MockClock) -> None:
        client, code, clean_up = Client(), SyncCode(), SyncCode()

        async def respond() -> None:
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await lease.run_sync(code)
                    with trio.move_on_after(5):
                        await lease.run_sync(clean_up)

        with open_lease() as lease:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(PatientExchange(client, lease).run, respond)
                await client.watched.wait()
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    await code.entered.wait()
                    await wait_all_tasks_blocked()
                    clock.jump(61)
                    await wait_all_tasks_blocked()
                    # It has a shield, and nothing else has cancelled it.
                    seen = [lease.impatient, lease.abandoned]
                    code.end()
                    await clean_up.entered.wait()
                    await wait_all_tasks_blocked()
                    clock.jump(6)
            assert [*seen, lease.abandoned] == [True, False, True]
            clean_up.end()

    run_on_a_stopped_clock(main)


# Errors


async def test_respond_fails(client: Client, lease: Lease) -> None:
    """An error of respond is raised unchanged: the same object, in no group."""
    error = LookupError("respond")

    async def respond() -> None:
        await client.watched.wait()
        raise error

    with pytest.raises(LookupError) as caught:
        await PatientExchange(client, lease).run(respond)
    assert caught.value is error
    assert error.__context__ is None
    assert error.__cause__ is None
    assert client.cancelled


async def test_respond_fails_with_a_group(client: Client, lease: Lease) -> None:
    """An exception group raised by respond is left alone."""
    group = ExceptionGroup("respond", [LookupError(), ValueError()])

    async def respond() -> None:
        raise group

    with pytest.raises(ExceptionGroup) as caught:
        await PatientExchange(client, lease).run(respond)
    assert caught.value is group
    assert len(group.exceptions) == 2


async def test_respond_fails_as_the_client_leaves(client: Client, lease: Lease) -> None:
    """If respond answers a disconnect with an error, that is raised."""

    async def respond() -> None:
        client.leave()
        try:
            await trio.sleep_forever()
        finally:
            raise LookupError("clean-up")

    with pytest.raises(LookupError, match="clean-up") as caught:
        await PatientExchange(client, lease).run(respond)
    assert isinstance(caught.value.__context__, trio.Cancelled)


async def test_respond_fails_as_the_server_cancels(
    client: Client, lease: Lease
) -> None:
    """If respond answers a cancellation with an error, that is not lost."""

    async def respond() -> None:
        scope.cancel()
        try:
            await trio.sleep_forever()
        finally:
            raise LookupError("clean-up")

    with pytest.raises(LookupError, match="clean-up"), trio.CancelScope() as scope:
        await PatientExchange(client, lease).run(respond)


async def test_some_of_respond_fails_as_the_server_cancels(
    client: Client, lease: Lease
) -> None:
    """In a group of errors and cancellations, the errors are not lost."""

    async def fail() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise LookupError("clean-up")

    async def respond() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            nursery.start_soon(trio.sleep_forever)
            await wait_all_tasks_blocked()
            scope.cancel()

    with pytest.raises(BaseExceptionGroup) as caught:  # noqa: SIM117 - what is raised
        with trio.CancelScope() as scope:
            await PatientExchange(client, lease).run(respond)
    assert [str(error) for error in leaves(caught.value)] == ["clean-up"]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
async def test_respond_exits(
    client: Client, lease: Lease, error: BaseException
) -> None:
    """Errors of respond that are not Exceptions are raised unchanged, too."""

    async def respond() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        await PatientExchange(client, lease).run(respond)
    assert caught.value is error


async def test_respond_exits_as_the_server_cancels(
    client: Client, lease: Lease
) -> None:
    """It is not lost in a cancellation, either."""

    async def respond() -> None:
        scope.cancel()
        raise SystemExit(3)

    with pytest.raises(SystemExit), trio.CancelScope() as scope:
        await PatientExchange(client, lease).run(respond)


async def test_the_watching_fails(client: Client, lease: Lease) -> None:
    """An error of `wait_disconnect` cancels respond, and is raised in no group."""
    order: list[str] = []
    error = AssertionError("an invalid message")

    async def respond() -> None:
        client.leave(error)
        await wait_cancelled(lambda: order.append("stopped"))

    with pytest.raises(AssertionError) as caught:
        await PatientExchange(client, lease).run(respond)
    assert caught.value is error
    assert error.__context__ is None
    assert order == ["stopped"]


async def test_both_fail(client: Client, lease: Lease) -> None:
    """An error of respond takes precedence over one of `wait_disconnect`."""

    async def respond() -> None:
        client.leave(AssertionError("an invalid message"))
        await wait_cancelled(fail)

    def fail() -> None:
        raise LookupError("respond")

    with pytest.raises(LookupError, match="respond"):
        await PatientExchange(client, lease).run(respond)


@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
async def test_the_watching_is_interrupted(
    client: Client, lease: Lease, error: BaseException, tasks: int
) -> None:
    """Control-C in the watcher is raised; no cancellation takes its place."""

    async def respond() -> None:
        client.leave(error)
        async with trio.open_nursery() as nursery:
            for _ in range(tasks):
                nursery.start_soon(trio.sleep_forever)

    with pytest.raises((type(error), BaseExceptionGroup)) as caught:
        await PatientExchange(client, lease).run(respond)
    assert leaves(caught.value) == [error]


# Memory


class Thing:
    """An object whose end can be observed."""


@pytest.mark.parametrize(
    "how", ["ends", "fails", "disconnect", "cancelled", "watching"]
)
async def test_an_exchange_leaves_nothing_in_memory(lease: Lease, how: str) -> None:
    """Objects held by respond are freed with the exchange; no cycle keeps them."""

    async def make() -> weakref.ref[Thing]:
        thing = Thing()
        client = Client()

        async def respond() -> None:
            if how == "fails":
                raise LookupError(thing)
            if how == "disconnect":
                client.leave()
            elif how == "watching":
                client.leave(LookupError(thing))
            elif how == "cancelled":
                scope.cancel()
            else:
                return
            await trio.sleep_forever()

        with trio.CancelScope() as scope:
            # Not `suppress`, which itself leaves a cycle on Python 3.12 and later.
            try:  # noqa: SIM105
                await PatientExchange(client, lease).run(respond)
            except LookupError:
                pass
        return weakref.ref(thing)

    gc.collect()
    gc.disable()
    try:
        ref = await make()
        await trio.lowlevel.checkpoint()
        assert ref() is None
    finally:
        gc.enable()

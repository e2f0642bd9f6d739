"""The parts of a streamed body: in time, bounded, and closed in the end."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from asgiref.sync import async_to_sync, sync_to_async
from django.http import FileResponse, StreamingHttpResponse
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_asgi.errors import leaves
from trio_asgi.response.message_size import SMALLEST
from trio_asgi.response.send import close_stream, send_parts
from trio_asgi.response.thread_stream import LARGEST, TURN
from trio_asgi.threads.current import current_pool
from trio_asgi.threads.lease import Lease
from trio_asgi.threads.loop import current_loop
from trio_asgi.threads.offload import HeldLog

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Awaitable,
        Callable,
        Iterator,
    )

pytestmark = pytest.mark.usefixtures("watching_at_once")

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

#: A test that still waits after this time has failed.
SECONDS = 10

PULL_BYTES = LARGEST


class Peer:
    """Takes the parts: at once, or one by one when told to."""

    def __init__(self, *, reads: bool = True) -> None:
        self.parts: list[bytes] = []
        #: If set, the part with this number has arrived, but may not have been read.
        self.come = [trio.Event() for _ in range(100)]
        self._reads = reads
        self._read = trio.Semaphore(0)

    async def send(self, part: bytes) -> None:
        """Take a part."""
        number = len(self.parts)
        self.parts.append(part)
        self.come[number].set()
        if self._reads:
            await trio.lowlevel.checkpoint()
        else:
            await self._read.acquire()

    @property
    def body(self) -> bytes:
        """All that has arrived."""
        return b"".join(self.parts)

    def read(self) -> None:
        """Read one part, after which the next is sent."""
        self._read.release()


@pytest.fixture(name="lease")
async def make_lease() -> AsyncIterator[Lease]:
    """Provide the request's lease."""
    lease = Lease(current_pool())
    yield lease
    lease.release()


async def send_all(
    parts: object,
    send: Callable[[bytes], Awaitable[None]],
    *,
    lease: Lease | None = None,
    cleanup_seconds: float = SECONDS,
) -> None:
    """Send the parts of an iterator, sync or async, as in the request of a lease."""
    current_loop.set(lease)
    response = StreamingHttpResponse(parts)  # type: ignore[arg-type]
    with trio.fail_after(SECONDS):
        await send_parts(response, send, cleanup_seconds=cleanup_seconds)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Free objects only by reference counting."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Thing:
    """An object whose end can be observed."""


# Sync iterators


async def test_a_sync_iterator_runs_in_the_requests_thread(lease: Lease) -> None:
    """All parts are made in the lease's thread, and sent in order."""
    threads: set[threading.Thread] = set()
    peer = Peer()

    def parts() -> Iterator[bytes]:
        for number in range(50):
            threads.add(threading.current_thread())
            yield b"part %d" % number

    await send_all(parts(), peer.send, lease=lease)
    assert peer.body == b"".join(b"part %d" % number for number in range(50))
    assert threads == {await lease.run_sync(threading.current_thread)}


async def test_a_sync_iterator_without_a_request() -> None:
    """Without a lease, the parts are made in the program's thread."""
    peer = Peer()

    def parts() -> Iterator[str]:
        yield threading.current_thread().name

    await send_all(parts(), peer.send)
    thread = await current_pool().program_lease().run_sync(threading.current_thread)
    assert peer.parts == [thread.name.encode()]


async def test_parts_are_sent_in_the_requests_task(lease: Lease) -> None:
    """The peer is served by the task that called for it."""
    tasks: set[trio.lowlevel.Task] = set()

    async def send(part: bytes) -> None:
        tasks.add(trio.lowlevel.current_task())
        await trio.lowlevel.checkpoint()

    await send_all([b"one", b"two"], send, lease=lease)
    assert tasks == {trio.lowlevel.current_task()}


@pytest.mark.parametrize("is_async", [False, True])
async def test_parts_are_encoded(lease: Lease, is_async: bool) -> None:
    """Parts may be bytes, text or anything that converts to text, as in Django."""
    peer = Peer()
    items: list[Any] = [b"bytes", "t\xe9xt", memoryview(b"view"), 42]

    async def generate() -> AsyncIterator[Any]:
        for item in items:
            yield item

    parts = generate() if is_async else iter(items)
    current_loop.set(lease)
    response = StreamingHttpResponse(parts, charset="latin-1")
    await send_parts(response, peer.send, cleanup_seconds=SECONDS)
    assert peer.body == b"bytest\xe9xtview42"


@pytest.mark.parametrize("parts", [[], [b""], [b"", b"", b"part", b""]])
async def test_nothing_to_send(lease: Lease, parts: list[bytes]) -> None:
    """A stream may have no parts, and parts no bytes."""
    peer = Peer()
    await send_all(parts, peer.send, lease=lease)
    assert peer.body == b"".join(parts)


async def test_a_part_is_sent_when_it_is_made(lease: Lease) -> None:
    """Each part is delivered before the next one is made, if that one takes time."""
    taken = [threading.Event() for _ in range(5)]
    peer = Peer()

    def parts() -> Iterator[bytes]:
        for number, event in enumerate(taken):
            yield b"part %d" % number
            assert event.wait(SECONDS)

    async def send(part: bytes) -> None:
        taken[len(peer.parts)].set()
        await peer.send(part)

    await send_all(parts(), send, lease=lease)
    assert len(peer.parts) == 5


async def wait_idle(lease: Lease) -> None:
    """Wait until the thread has pulled all that it wants."""
    while True:
        await wait_all_tasks_blocked(0.001)
        if lease.running is None:
            return


@pytest.mark.parametrize(
    "size", [2**12, 2**16, PULL_BYTES // 2 - 1, 200_000, PULL_BYTES, 3 * PULL_BYTES]
)
@pytest.mark.parametrize("slow_start", [False, True])
async def test_a_slow_client_holds_back_the_iterator(
    lease: Lease, size: int, slow_start: bool
) -> None:
    """No more than `PULL_BYTES` and one part wait for a client that does not read."""
    first_sent = threading.Event()
    peer = Peer(reads=False)
    made = 0

    def parts() -> Iterator[bytes]:
        nonlocal made
        for _ in range(3 * PULL_BYTES // size + 6):
            made += 1
            yield bytes(size)
            if slow_start:
                assert first_sent.wait(SECONDS)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_with, lease, parts(), peer.send)
        await peer.come[0].wait()
        first_sent.set()
        for number in range(4):
            await peer.come[number].wait()
            await wait_idle(lease)
            waiting = (made - len(peer.parts)) * size
            assert waiting <= PULL_BYTES + size
            # But enough is ready for a client that reads on.
            assert waiting >= min(size, PULL_BYTES // 2)
            peer.read()
        nursery.cancel_scope.cancel()


async def run_with(
    lease: Lease, parts: object, send: Callable[[bytes], Awaitable[None]]
) -> None:
    """Call `send_all`, in a form for `start_soon`."""
    await send_all(parts, send, lease=lease)


async def test_a_slow_client_leaves_the_thread_free(lease: Lease) -> None:
    """While the client reads, the thread does other work, and holds no token."""
    peer = Peer(reads=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_with, lease, [bytes(PULL_BYTES)] * 9, peer.send)
        await peer.come[0].wait()
        await wait_idle(lease)
        assert current_pool().queue.running == 0
        assert await lease.run_sync(lambda: "free") == "free"
        for number in range(9):
            await peer.come[number].wait()
            peer.read()
    assert len(peer.parts) == 9


class Slow:
    """Parts, or a file, that take a while for each byte, until told to end."""

    def __init__(self) -> None:
        self.end = threading.Event()
        self.threads: set[threading.Thread] = set()

    def read(self, size: int = -1) -> bytes:
        """Wait, and return a byte; nothing at the end."""
        self.threads.add(threading.current_thread())
        return b"" if self.end.wait(TURN) else b"x"

    def parts(self) -> Iterator[bytes]:
        """Yield bytes."""
        while part := self.read():
            yield part


@pytest.mark.parametrize("kind", ["iterator", "file"])
async def test_slow_parts_let_others_have_their_turn(lease: Lease, kind: str) -> None:
    """They hold a token only while one is made, and keep their thread all the time."""
    pool = current_pool()
    pool.queue.set_threads(1)
    peer, slow, other = Peer(), Slow(), Lease(pool)
    response = (
        FileResponse(slow, content_type="text/plain")
        if kind == "file"
        else StreamingHttpResponse(slow.parts())
    )

    async def stream() -> None:
        current_loop.set(lease)
        await send_parts(response, peer.send, cleanup_seconds=SECONDS)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream)
        await peer.come[0].wait()
        try:
            with trio.fail_after(SECONDS):
                for _ in range(3):
                    await other.run_sync(lambda: None)
        finally:
            slow.end.set()
    other.release()
    assert slow.threads == {await lease.run_sync(threading.current_thread)}


async def test_an_iterator_can_call_coroutines(lease: Lease) -> None:
    """`async_to_sync` works in an iterator; sync code below it uses its thread."""
    threads: set[threading.Thread] = set()
    peer = Peer()

    async def coroutine(number: int) -> bytes:
        threads.add(await sync_to_async(threading.current_thread)())
        return b"part %d" % number

    def parts() -> Iterator[bytes]:
        for number in range(3):
            yield async_to_sync(coroutine)(number)

    await send_all(parts(), peer.send, lease=lease)
    assert peer.body == b"part 0part 1part 2"
    assert threads == {await lease.run_sync(threading.current_thread)}


@pytest.mark.parametrize("number", [0, 1, 5])
async def test_a_sync_iterator_fails(lease: Lease, number: int) -> None:
    """An error comes after the earlier parts, unchanged, in no group."""
    peer = Peer()
    error = LookupError("iterator")

    def parts() -> Iterator[bytes]:
        for _ in range(number):
            yield b"part"
        raise error

    with pytest.raises(LookupError) as caught:
        await send_all(parts(), peer.send, lease=lease)
    assert caught.value is error
    assert error.__context__ is None
    assert peer.body == b"part" * number


async def test_a_sync_iterator_fails_for_a_slow_client(lease: Lease) -> None:
    """Waiting parts are not thrown away because of a later error."""
    first_sent = threading.Event()
    peer = Peer(reads=False)

    def parts() -> Iterator[bytes]:
        yield b"one"
        assert first_sent.wait(SECONDS)
        yield b"two"
        yield bytes(SMALLEST)
        raise LookupError("iterator")

    with pytest.raises(BaseExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_with, lease, parts(), peer.send)
            await peer.come[0].wait()
            first_sent.set()
            await wait_idle(lease)
            peer.read()
            await peer.come[1].wait()
            peer.read()
    assert [str(error) for error in leaves(caught.value)] == ["iterator"]
    assert peer.parts == [b"one", b"two" + bytes(SMALLEST)]


async def test_a_sync_iterator_exits(lease: Lease) -> None:
    """Errors that are not Exceptions come out of the thread, too."""
    peer = Peer()

    def parts() -> Iterator[bytes]:
        yield b"one"
        raise SystemExit(3)

    with pytest.raises((SystemExit, BaseExceptionGroup)) as caught:
        await send_all(parts(), peer.send, lease=lease)
    (error,) = leaves(caught.value)
    assert isinstance(error, SystemExit)


async def test_sending_fails(lease: Lease) -> None:
    """If a part cannot be sent, the error is raised ungrouped, and no more are made."""
    made: list[int] = []
    failed = threading.Event()
    error = OSError("the peer is gone")

    def parts() -> Iterator[bytes]:
        for number in range(50):
            made.append(number)
            yield b"part"
            assert failed.wait(SECONDS)

    async def send(part: bytes) -> None:
        token.run_sync_soon(failed.set)
        raise error

    token = trio.lowlevel.current_trio_token()
    with pytest.raises(OSError, match="the peer is gone") as caught:
        await send_all(parts(), send, lease=lease)
    assert caught.value is error
    assert error.__context__ is None
    # At most the one that was being made then.
    assert made in ([0], [0, 1])
    assert lease.running is None


class Maker:
    """A sync iterator whose parts are made one at a time, when told to."""

    def __init__(self) -> None:
        self.making = trio.Event()
        self.made = 0
        self.closed = False
        self.go_on = threading.Event()
        self._token = trio.lowlevel.current_trio_token()

    def parts(self) -> Iterator[bytes]:
        """Make one part at once, and then wait for each."""
        try:
            self.made += 1
            yield b"at once"
            while True:
                self._token.run_sync_soon(self.making.set)
                assert self.go_on.wait(SECONDS)
                self.made += 1
                yield b"part"
        finally:
            self.closed = True


async def test_a_cancellation_waits_for_the_part_being_made(lease: Lease) -> None:
    """A cancelled stream lets the thread finish its part, and makes no other."""
    maker, peer = Maker(), Peer()
    parts = maker.parts()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_with, lease, parts, peer.send)
        await peer.come[0].wait()
        await maker.making.wait()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await wait_all_tasks_blocked()
            assert nursery.child_tasks
            maker.go_on.set()
    assert maker.made == 2
    assert peer.parts == [b"at once"]
    assert lease.running is None
    # That is left to the response, which has the iterator.
    assert not maker.closed
    await lease.run_sync(parts.close)  # type: ignore[attr-defined] # a generator


async def test_a_part_that_does_not_end_can_be_left(lease: Lease) -> None:
    """If its lease stops waiting, the stream ends; its thread makes no other part."""
    maker, peer = Maker(), Peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_with, lease, maker.parts(), peer.send)
        await maker.making.wait()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await wait_all_tasks_blocked()
            lease.stop_waiting()
    assert lease.abandoned
    assert maker.made == 1
    done = threading.Event()
    lease.release(last=done.set)
    maker.go_on.set()
    assert await trio.to_thread.run_sync(done.wait, SECONDS)
    assert maker.made == 2


async def test_a_cancellation_while_the_client_reads(lease: Lease) -> None:
    """A stream that waits for its client is cancelled at once."""
    peer = Peer(reads=False)
    made: list[int] = []

    def parts() -> Iterator[bytes]:
        for number in range(50):
            made.append(number)
            yield bytes(PULL_BYTES)

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_with, lease, parts(), peer.send)
            await peer.come[0].wait()
            await wait_idle(lease)
            scope.cancel()
    assert scope.cancelled_caught
    assert len(made) <= 3
    assert lease.running is None


async def test_an_iterator_that_asks_for_the_cancellation(lease: Lease) -> None:
    """`check_cancelled` in an iterator ends it, and is not an error of the stream."""
    peer = Peer()
    order: list[str] = []
    maker = Maker()

    def parts() -> Iterator[bytes]:
        for part in maker.parts():
            try:
                trio.from_thread.check_cancelled()
            except trio.Cancelled:
                order.append("cancelled")
                raise
            yield part

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_with, lease, parts(), peer.send)
            await maker.making.wait()
            scope.cancel()
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked()
                maker.go_on.set()
    assert scope.cancelled_caught
    assert order == ["cancelled"]


async def test_sending_fails_as_the_server_cancels(lease: Lease) -> None:
    """If a cancellation is answered with an error, that is not lost."""
    maker = Maker()

    async def send(part: bytes) -> None:
        await maker.making.wait()
        scope.cancel()
        try:
            await trio.sleep_forever()
        finally:
            maker.go_on.set()
            raise LookupError("clean-up")

    with pytest.raises(LookupError, match="clean-up"), trio.CancelScope() as scope:
        await send_all(maker.parts(), send, lease=lease)


@pytest.mark.parametrize("how", ["ends", "iterator", "send", "cancelled"])
async def test_a_thread_stream_leaves_nothing_in_memory(lease: Lease, how: str) -> None:
    """The iterator is freed with the stream; no cycle keeps it."""

    async def make() -> weakref.ref[Thing]:
        thing = Thing()

        def parts() -> Iterator[bytes]:
            yield b"part"
            if how == "iterator":
                raise KeyError(thing)
            yield b"part"

        async def send(part: bytes) -> None:
            if how == "send":
                raise KeyError(thing)
            if how == "cancelled":
                scope.cancel()
            await trio.lowlevel.checkpoint()

        with trio.CancelScope() as scope:
            # Not `suppress`, which itself leaves a cycle on Python 3.12 and later.
            try:  # noqa: SIM105
                await send_all(parts(), send, lease=lease)
            except KeyError:
                pass
        return weakref.ref(thing)

    with no_garbage_collection():
        ref = await make()
        # The thread releases a call when it waits for the next one.
        for _ in range(2):
            await lease.run_sync(int)
        assert ref() is None


# Async iterators


class Log:
    """What an async generator does, and whether all of it was in its own task."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self._task = trio.lowlevel.current_task()

    def note(self, event: str) -> None:
        """Note an event."""
        assert trio.lowlevel.current_task() is self._task
        self.events.append(event)

    async def clean_up(self) -> None:
        """Run a clean-up that takes some time, and note its end."""
        self.note("clean-up begins")
        await wait_all_tasks_blocked()
        self.note("clean-up ends")


async def plain(log: Log) -> AsyncGenerator[bytes, None]:
    """Yield two parts, and clean up in a ``finally``."""
    try:
        yield b"one"
        yield b"two"
    finally:
        await log.clean_up()


async def in_scope(log: Log) -> AsyncGenerator[bytes, None]:
    """Hold a cancel scope open across the parts."""
    try:
        with trio.CancelScope():
            try:
                yield b"one"
                yield b"two"
            finally:
                await log.clean_up()
    finally:
        log.note("scope left")


async def in_deadline(log: Log) -> AsyncGenerator[bytes, None]:
    """Hold a deadline open across the parts, and shield the clean-up."""
    with trio.move_on_after(1000) as scope:
        try:
            yield b"one"
            yield b"two"
        finally:
            scope.shield = True
            await log.clean_up()


async def in_nursery(log: Log) -> AsyncGenerator[bytes, None]:
    """Hold a nursery open across the parts, with a task in it."""

    async def background() -> None:
        try:
            await trio.sleep_forever()
        finally:
            log.events.append("task ended")

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(background)
            yield b"one"
            yield b"two"
            nursery.cancel_scope.cancel()
    finally:
        log.note("nursery left")
        await log.clean_up()


KINDS = [plain, in_scope, in_deadline, in_nursery]


@pytest.mark.parametrize("kind", KINDS)
async def test_an_async_generator_ends(kind: Any) -> None:
    """An async generator is iterated in the request's task, to its end."""
    log, peer = Log(), Peer()
    await send_all(kind(log), peer.send)
    assert peer.parts == [b"one", b"two"]
    assert log.events[-2:] in (
        ["clean-up begins", "clean-up ends"],
        ["clean-up ends", "scope left"],
    )
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("kind", [plain, in_scope, in_deadline])
async def test_an_async_generator_is_closed_when_sending_fails(kind: Any) -> None:
    """If a part cannot be sent, the generator is closed before the error is raised."""
    log = Log()
    error = OSError("the peer is gone")

    async def send(part: bytes) -> None:
        await trio.lowlevel.checkpoint()
        log.note("sending fails")
        raise error

    with pytest.raises(OSError, match="the peer is gone") as caught:
        await send_all(kind(log), send)
    assert caught.value is error
    assert log.events[:3] == ["sending fails", "clean-up begins", "clean-up ends"]


@pytest.mark.parametrize("kind", KINDS)
async def test_an_async_generator_is_closed_at_a_cancellation(kind: Any) -> None:
    """It is closed at once, its awaits are shielded, and the scope catches it."""
    log = Log()

    async def send(part: bytes) -> None:
        scope.cancel()
        await trio.lowlevel.checkpoint()

    with trio.CancelScope() as scope:
        await send_all(kind(log), send)
        pytest.fail("the cancellation got lost")
    assert scope.cancelled_caught
    assert "clean-up begins" in log.events
    assert "clean-up ends" in log.events


async def test_a_generator_that_is_cancelled_itself() -> None:
    """If a cancellation hits the generator, it must shield itself against that."""
    log, peer = Log(), Peer()

    async def parts() -> AsyncIterator[bytes]:
        try:
            yield b"one"
            scope.cancel()
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await log.clean_up()

    with trio.CancelScope() as scope:
        await send_all(parts(), peer.send)
    assert scope.cancelled_caught
    assert log.events == ["clean-up begins", "clean-up ends"]
    assert peer.parts == [b"one"]


async def test_an_async_generator_fails() -> None:
    """An error comes after the earlier parts, unchanged, in no group."""
    log, peer = Log(), Peer()
    error = LookupError("generator")

    async def parts() -> AsyncIterator[bytes]:
        try:
            yield b"one"
            await trio.lowlevel.checkpoint()
            raise error
        finally:
            await log.clean_up()

    with pytest.raises(LookupError) as caught:
        await send_all(parts(), peer.send)
    assert caught.value is error
    assert error.__context__ is None
    assert peer.parts == [b"one"]
    assert log.events == ["clean-up begins", "clean-up ends"]


async def test_a_nursery_in_a_generator_when_sending_fails() -> None:
    """If a part cannot be sent, the generator's tasks end; the error is raised."""
    log = Log()

    async def send(part: bytes) -> None:
        await wait_all_tasks_blocked()
        raise OSError("the peer is gone")

    with pytest.raises(OSError, match="the peer is gone"):
        await send_all(in_nursery(log), send)
    assert log.events == [
        "task ended",
        "nursery left",
        "clean-up begins",
        "clean-up ends",
    ]


async def test_a_task_of_a_generator_fails_while_the_client_reads() -> None:
    """The stream raises the error of a task in the generator's nursery."""
    peer = Peer(reads=False)

    async def fail() -> None:
        await peer.come[0].wait()
        await wait_all_tasks_blocked()
        raise LookupError("task")

    async def parts() -> AsyncIterator[bytes]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            yield b"one"
            yield b"two"

    with pytest.raises((LookupError, BaseExceptionGroup)) as caught:
        await send_all(parts(), peer.send)
    assert [repr(error) for error in leaves(caught.value)] == ["LookupError('task')"]
    assert peer.parts == [b"one"]
    # No cancellation was left behind.
    await trio.lowlevel.checkpoint()


def test_the_deadline_of_a_generator_passes_while_the_client_reads() -> None:
    """A generator's own deadline ends the stream, and no cancellation escapes."""

    async def main() -> None:
        start = trio.current_time()
        log, peer = Log(), Peer(reads=False)

        async def parts() -> AsyncIterator[bytes]:
            try:
                with trio.move_on_after(5):
                    while True:
                        yield b"part"
            finally:
                await log.clean_up()

        await send_all(parts(), peer.send)
        assert trio.current_time() - start == 5
        assert peer.parts == [b"part"]
        assert log.events == ["clean-up begins", "clean-up ends"]
        await trio.lowlevel.checkpoint()

    trio.run(main, clock=MockClock(autojump_threshold=0))


class Parts:
    """An async iterator that is not a generator."""

    def __init__(self, *, fails: bool = False) -> None:
        self.closed = 0
        self._fails = fails
        self._parts = iter([b"one", b"two"])

    def __aiter__(self) -> Parts:
        return self

    async def __anext__(self) -> bytes:
        """Return a part."""
        await trio.lowlevel.checkpoint()
        for part in self._parts:
            return part
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Count how often this is called, and fail."""
        self.closed += 1
        await trio.lowlevel.checkpoint()
        if self._fails:
            raise LookupError("closing")


class EndlessParts:
    """An async iterator that cannot be closed."""

    def __aiter__(self) -> EndlessParts:
        return self

    async def __anext__(self) -> bytes:
        """Return a part."""
        return b"part"


async def test_an_iterator_that_is_no_generator() -> None:
    """Any async iterator is closed, once, if possible."""
    parts, peer = Parts(), Peer()
    await send_all(parts, peer.send)
    assert peer.parts == [b"one", b"two"]
    assert parts.closed == 1


async def test_an_iterator_that_cannot_be_closed() -> None:
    """An iterator without `aclose` is just not used any more."""

    async def send(part: bytes) -> None:
        raise OSError("the peer is gone")

    with pytest.raises(OSError, match="the peer is gone"):
        await send_all(EndlessParts(), send)


async def test_the_closing_fails() -> None:
    """An error of the closing is raised if there is no other."""
    peer = Peer()
    with pytest.raises(LookupError, match="closing"):
        await send_all(Parts(fails=True), peer.send)
    assert peer.parts == [b"one", b"two"]


async def test_sending_fails_and_then_the_closing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If sending has failed before, its error is raised, and the closing's logged."""

    async def send(part: bytes) -> None:
        raise OSError("the peer is gone")

    with pytest.raises(OSError, match="the peer is gone"):
        async with HeldLog(lambda: 10):
            await send_all(Parts(fails=True), send)
    (record,) = caplog.records
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "closing"


async def test_a_cancellation_and_then_the_closing_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither a cancellation is lost in an error of the closing, nor vice versa."""

    async def send(part: bytes) -> None:
        scope.cancel()
        await trio.lowlevel.checkpoint()

    with trio.CancelScope() as scope:
        async with HeldLog(lambda: 10):
            await send_all(Parts(fails=True), send)
    assert scope.cancelled_caught
    (record,) = caplog.records
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "closing"


def run_a_slow_closing(
    send: Callable[[bytes], Awaitable[None]], *, cleanup_seconds: float
) -> list[str]:
    """Send to a generator whose closing takes a minute, and return what it does."""
    events: list[str] = []

    async def parts() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"part"
        finally:
            start = trio.current_time()
            try:
                await trio.sleep(60)
                events.append("closed")
            except trio.Cancelled:
                events.append(f"cancelled after {trio.current_time() - start} s")
                raise

    async def main() -> None:
        response = StreamingHttpResponse(parts())
        try:
            await send_parts(response, send, cleanup_seconds=cleanup_seconds)
        except OSError as error:
            events.append(str(error))

    trio.run(main, clock=MockClock(autojump_threshold=0))
    return events


async def fail_to_send(part: bytes) -> None:
    """A peer that is gone."""
    raise OSError("the peer is gone")


def test_the_closing_may_take_some_time() -> None:
    """Within `cleanup_seconds` the closing runs to its end."""
    assert run_a_slow_closing(fail_to_send, cleanup_seconds=61) == [
        "closed",
        "the peer is gone",
    ]


def test_the_closing_takes_too_long() -> None:
    """After `cleanup_seconds` the closing is cancelled; the error stays the same."""
    assert run_a_slow_closing(fail_to_send, cleanup_seconds=10) == [
        "cancelled after 10.0 s",
        "the peer is gone",
    ]


def test_the_closing_of_a_cancelled_stream_takes_too_long() -> None:
    """Nor is a cancellation lost when the closing takes too long."""
    behind: list[str] = []

    async def main() -> None:
        async def parts() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"part"
            finally:
                await trio.sleep(60)

        async def cancel(part: bytes) -> None:
            scope.cancel()
            await trio.lowlevel.checkpoint()

        with trio.CancelScope() as scope:
            response = StreamingHttpResponse(parts())
            await send_parts(response, cancel, cleanup_seconds=10)
            behind.append("went on")
        assert scope.cancelled_caught

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert behind == []


async def test_closing_again() -> None:
    """`close_stream` does no harm to streams that are closed, or cannot be."""
    log, peer = Log(), Peer()
    response = StreamingHttpResponse(plain(log))
    await send_parts(response, peer.send, cleanup_seconds=SECONDS)
    await close_stream(response)
    await close_stream(StreamingHttpResponse(EndlessParts()))
    await close_stream(StreamingHttpResponse([b"sync"]))
    await close_stream(None)
    assert log.events == ["clean-up begins", "clean-up ends"]


@pytest.mark.parametrize("how", ["ends", "generator", "send", "cancelled", "closing"])
async def test_an_async_stream_leaves_nothing_in_memory(how: str) -> None:
    """The generator is freed with the stream; no cycle keeps it."""

    async def make() -> weakref.ref[Thing]:
        thing = Thing()

        async def parts() -> AsyncIterator[bytes]:
            try:
                yield b"part"
                if how == "generator":
                    raise KeyError(thing)
                yield b"part"
            finally:
                if how == "closing":
                    raise KeyError(thing)

        async def send(part: bytes) -> None:
            if how == "send":
                raise KeyError(thing)
            if how == "cancelled":
                scope.cancel()
            await trio.lowlevel.checkpoint()

        with trio.CancelScope() as scope:
            # Not `suppress`, which itself leaves a cycle on Python 3.12 and later.
            try:  # noqa: SIM105
                await send_all(parts(), send)
            except KeyError:
                pass
        return weakref.ref(thing)

    with no_garbage_collection():
        ref = await make()
        await trio.lowlevel.checkpoint()
        assert ref() is None


# Context managers, and middleware's wrappers around a stream


@trio.as_safe_channel
async def safe_channel(log: list[str], items: int = 3) -> AsyncGenerator[bytes, None]:
    """Yield inside a nursery, one of whose tasks never ends."""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            for number in range(items):
                yield b"%d" % number
            nursery.cancel_scope.cancel()
    finally:
        log.append("left")


@asynccontextmanager
async def manager(
    log: list[Any],
    parts: Any = (b"0", b"1", b"2"),
    *,
    cleanup: float = 0.0,
    shield: bool = True,
) -> AsyncIterator[AsyncIterator[bytes]]:
    """Yield an async iterable inside a nursery, and note how the block ends."""

    async def iterate() -> AsyncGenerator[bytes, None]:
        for part in parts:
            await trio.lowlevel.checkpoint()
            yield part

    log.append(trio.lowlevel.current_task())
    try:
        async with trio.open_nursery() as nursery, aclosing(iterate()) as iterator:
            nursery.start_soon(trio.sleep_forever)
            yield iterator
            nursery.cancel_scope.cancel()
    except BaseException as error:
        log.append([type(leaf) for leaf in leaves(error)])
        raise
    finally:
        with trio.CancelScope(shield=shield):
            await trio.sleep(cleanup)
            log.append(trio.lowlevel.current_task())


async def test_a_context_manager_is_content() -> None:
    """It is entered and exited in the sending task, and gives the parts."""
    log: list[Any] = []
    peer = Peer()
    await send_all(manager(log), peer.send)
    assert peer.body == b"012"
    task = trio.lowlevel.current_task()
    assert log == [task, task]


async def test_a_safe_channel_is_content() -> None:
    """The result of `trio.as_safe_channel` for a generator with a nursery."""
    log: list[str] = []
    peer = Peer()
    await send_all(safe_channel(log), peer.send)
    assert peer.body == b"012"
    assert log == ["left"]


async def test_a_context_manager_that_is_never_sent() -> None:
    """It is never entered, and closing the response does it no harm."""
    log: list[Any] = []
    response = StreamingHttpResponse(manager(log))  # type: ignore[arg-type]
    await close_stream(response)
    response.close()
    assert log == []


@pytest.mark.parametrize("make", [manager, safe_channel])
async def test_a_cancelled_context_manager(make: Any) -> None:
    """A disconnect exits it, with its clean-up; the cancellation goes on."""
    log: list[Any] = []
    peer = Peer(reads=False)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def disconnect() -> None:
                await peer.come[0].wait()
                scope.cancel()

            nursery.start_soon(disconnect)
            await send_all(make(log), peer.send)
            raise AssertionError("the cancellation was lost")
    assert scope.cancelled_caught
    if make is manager:
        assert set(log[1]) == {trio.Cancelled}


@pytest.mark.parametrize(("shield", "seconds"), [(True, 3), (False, 0)])
async def test_the_clean_up_of_a_cancelled_context_manager(
    autojump_clock: MockClock, shield: bool, seconds: int
) -> None:
    """It is cancelled as well, unless it has a shield: as in all Trio code."""
    log: list[Any] = []
    peer = Peer(reads=False)
    with trio.move_on_after(1) as scope:
        await send_all(manager(log, cleanup=3, shield=shield), peer.send)
    assert scope.cancelled_caught
    assert trio.current_time() == pytest.approx(1 + seconds, abs=0.1)


async def test_the_clean_up_of_a_context_manager_is_bounded(
    autojump_clock: MockClock,
) -> None:
    """By `cleanup_seconds`, if it was not cancelled; the error stays the same."""
    log: list[Any] = []
    with pytest.raises((OSError, BaseExceptionGroup)) as caught:
        await send_all(
            manager(log, cleanup=300, shield=False), fail_to_send, cleanup_seconds=5
        )
    assert [type(leaf) for leaf in leaves(caught.value)] == [OSError]
    assert trio.current_time() == pytest.approx(5, abs=0.1)


async def test_sending_fails_inside_a_context_manager() -> None:
    """It sees the error, and cannot hide it."""
    log: list[Any] = []

    async def send(part: bytes) -> None:
        raise OSError("the peer is gone")

    with pytest.raises((OSError, BaseExceptionGroup)) as caught:
        await send_all(manager(log), send)
    assert [type(leaf) for leaf in leaves(caught.value)] == [OSError]
    assert log[1] == [OSError]


async def test_a_task_of_a_context_manager_fails_while_the_client_reads() -> None:
    """The sending is cancelled, and the error is raised."""
    failing = trio.Event()
    peer = Peer(reads=False)

    @asynccontextmanager
    async def failing_manager() -> AsyncIterator[Any]:
        async def fail() -> None:
            await peer.come[0].wait()
            failing.set()
            raise LookupError("a task")

        async def parts() -> AsyncIterator[bytes]:
            yield b"one"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            yield parts()

    with pytest.raises((LookupError, BaseExceptionGroup)) as caught:
        await send_all(failing_manager(), peer.send)
    assert [type(leaf) for leaf in leaves(caught.value)] == [LookupError]
    assert failing.is_set()


async def test_a_context_manager_that_gives_nothing_to_iterate() -> None:
    """It is exited again, and the error shows what it has given."""
    log: list[str] = []

    @asynccontextmanager
    async def wrong() -> AsyncIterator[int]:
        try:
            yield 42
        finally:
            log.append("left")

    with pytest.raises(TypeError, match="int"):
        await send_all(wrong(), Peer().send)
    assert log == ["left"]


async def test_what_can_be_iterated_is_no_context_manager() -> None:
    """A memory channel is both, and is iterated as in Django."""
    send_channel, receive_channel = trio.open_memory_channel[bytes](2)
    with send_channel:
        await send_channel.send(b"one")
        await send_channel.send(b"two")
    peer = Peer()
    await send_all(receive_channel, peer.send)
    assert peer.body == b"onetwo"


async def test_a_context_manager_that_somebody_else_iterates() -> None:
    """A test client reads ``streaming_content``: that enters and exits it."""
    log: list[Any] = []
    response = StreamingHttpResponse(manager(log))  # type: ignore[arg-type]
    parts = [part async for part in response]
    assert b"".join(parts) == b"012"
    assert len(log) == 2


def test_other_content_is_refused_as_ever() -> None:
    """Django's own error is raised for invalid content."""
    with pytest.raises(TypeError):
        StreamingHttpResponse(42)  # type: ignore[arg-type]


def receive_all(parts: list[bytes]) -> trio.MemoryReceiveChannel[bytes]:
    """Return an async iterator that is not a generator."""
    send_channel, receive_channel = trio.open_memory_channel[bytes](len(parts))
    with send_channel:
        for part in parts:
            send_channel.send_nowait(part)
    return receive_channel


@pytest.mark.parametrize("kind", ["generator", "manager"])
@pytest.mark.parametrize("end", ["exhausted", "disconnect"])
@pytest.mark.filterwarnings("error")
async def test_all_that_middleware_puts_around_a_stream_is_closed(
    kind: str, end: str
) -> None:
    """In the sending task, from the outside in; nothing is left to be finalized."""
    log: list[str] = []
    tasks: set[Any] = set()

    async def wrap(name: str, content: Any) -> AsyncGenerator[bytes, None]:
        try:
            async for part in content:
                yield part
        finally:
            tasks.add(trio.lowlevel.current_task())
            await trio.lowlevel.checkpoint()
            log.append(name)

    managed: list[Any] = []
    parts = receive_all([b"one", b"two"])
    content = wrap("view", parts) if kind == "generator" else manager(managed)
    response = StreamingHttpResponse(content)  # type: ignore[arg-type]
    for name in ("gzip", "outermost"):
        response.streaming_content = wrap(name, response.streaming_content)
    peer = Peer(reads=end == "exhausted")
    with no_garbage_collection(), trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def disconnect() -> None:
                await peer.come[0].wait()
                scope.cancel()

            if end == "disconnect":
                nursery.start_soon(disconnect)
            await send_parts(response, peer.send, cleanup_seconds=SECONDS)
    names = ["outermost", "gzip", "view"]
    if end == "exhausted":
        names.reverse()
    assert log == [name for name in names if name != "view" or kind == "generator"]
    assert tasks == {trio.lowlevel.current_task()}
    assert len(managed) == {"generator": 0}.get(kind, 2 if end == "exhausted" else 3)


async def test_closed_content_is_let_go_of() -> None:
    """Django's generator refers to the response: no cycle is left behind."""
    things: list[weakref.ref[Any]] = []

    async def send_one() -> None:
        response = StreamingHttpResponse(safe_channel([]))  # type: ignore[arg-type]
        response.streaming_content = response.streaming_content
        things.append(weakref.ref(response))
        await send_parts(response, Peer().send, cleanup_seconds=SECONDS)

    with no_garbage_collection():
        await send_one()
        assert things[0]() is None


async def test_content_that_middleware_has_read_in_part_and_replaced() -> None:
    """It is closed, although the content sent is not async any more."""
    log: list[str] = []

    async def parts() -> AsyncGenerator[bytes, None]:
        try:
            yield b"one"
            yield b"two"
        finally:
            log.append("closed")

    response: Any = StreamingHttpResponse(parts())
    first = await anext(response.streaming_content)
    response.streaming_content = [first]
    with no_garbage_collection():
        await close_stream(response)
        assert log == ["closed"]

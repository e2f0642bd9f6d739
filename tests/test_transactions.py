"""`atomic` and `sync_context`: transactions in async code, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import gc
from contextlib import asynccontextmanager, contextmanager, suppress
from types import AsyncGeneratorType
from typing import TYPE_CHECKING, Any

import pytest
import trio
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied
from django.db import IntegrityError, connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path
from trio.testing import wait_all_tasks_blocked

from database_support import PostgreSQL, Server, open_database, open_server
from guest_support import run_in_guest
from support import application, request
from thread_support import Gate, nothing, open_lease
from trio_asgi import (
    asyncio_island,
    atomic,
    release_thread,
    sync_context,
    trio_island,
)
from trio_asgi.testing import ApplicationCommunicator, http_scope
from trio_asgi.threads.current import current_pool
from trio_asgi.threads.loop import current_loop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

SECONDS = 20


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Provide a database."""
    with open_server(PostgreSQL) as server:
        yield server


@pytest.fixture
async def alias(server: Server) -> AsyncIterator[str]:
    """Provide its alias, and an empty table."""
    with trio.fail_after(SECONDS):
        async with open_database(server.settings(CONN_MAX_AGE=None)) as alias:
            await sync_to_async(clear, thread_sensitive=False)(alias)
            yield alias


@asynccontextmanager
async def own_thread() -> AsyncIterator[None]:
    """Give a block a thread, as a request has it."""
    with open_lease(current_pool()) as lease:
        token = current_loop.set(lease)
        try:
            yield
        finally:
            current_loop.reset(token)


def rows(alias: str) -> Any:
    """Return the rows of the database."""
    return ContentType.objects.using(alias)


def clear(alias: str) -> None:
    """Delete all rows; the tables that refer to them do not exist."""
    rows(alias).all()._raw_delete(alias)


def close(alias: str) -> None:
    """Close the connection of this thread."""
    connections[alias].close()


async def add(alias: str, name: str) -> None:
    """Write a row, on the connection of the running task."""
    await rows(alias).acreate(app_label="tea", model=name)


async def stored(alias: str) -> set[str]:
    """Return the rows that were committed: those that another connection sees."""

    def read() -> set[str]:
        return set(rows(alias).values_list("model", flat=True))

    return await sync_to_async(read, thread_sensitive=False)()


async def in_transaction(alias: str) -> bool:
    """Whether the connection of the running task is in a transaction."""
    return await sync_to_async(lambda: connections[alias].in_atomic_block)()


# One task


async def test_a_block_commits_at_its_end(alias: str) -> None:
    """Nobody sees what it writes before; queries outside are not part of it."""
    async with own_thread():
        async with atomic(alias):
            await add(alias, "one")
            assert await in_transaction(alias)
            assert await stored(alias) == set()
        assert await stored(alias) == {"one"}
        assert not await in_transaction(alias)


async def test_an_error_rolls_back(alias: str) -> None:
    """The error goes on, and the connection is usable."""
    async with own_thread():
        with pytest.raises(LookupError, match="no more tea"):
            async with atomic(alias):
                await add(alias, "one")
                raise LookupError("no more tea")
        assert await stored(alias) == set()
        await add(alias, "two")
        assert await stored(alias) == {"two"}


async def test_an_error_of_the_database_ends_its_savepoint(alias: str) -> None:
    """As in Django, the block around it can go on."""
    async with own_thread():
        async with atomic(alias):
            await add(alias, "one")
            with pytest.raises(IntegrityError):
                async with atomic(alias):
                    await add(alias, "one")
            await add(alias, "two")
        assert await stored(alias) == {"one", "two"}


async def test_blocks_nest_as_in_django(alias: str) -> None:
    """A block inside is a savepoint, also one of Django's own in sync code."""

    def add_and_fail() -> None:
        with transaction.atomic(alias):
            rows(alias).create(app_label="tea", model="three")
            raise LookupError

    async with own_thread():
        async with atomic(alias):
            await add(alias, "one")
            with pytest.raises(LookupError):
                async with atomic(alias):
                    await add(alias, "two")
                    raise LookupError
            with pytest.raises(LookupError):
                await sync_to_async(add_and_fail)()
            async with atomic(alias):
                await add(alias, "four")
        assert await stored(alias) == {"one", "four"}


async def test_a_durable_block_must_be_the_outermost(alias: str) -> None:
    """Django's own error says so."""
    async with own_thread(), atomic(alias, durable=True):
        with pytest.raises(RuntimeError, match="durable"):
            async with atomic(alias, durable=True):
                pytest.fail("not entered")
        await add(alias, "one")
    assert await stored(alias) == {"one"}


async def test_on_commit_in_a_block(alias: str) -> None:
    """The functions run after the commit, and not after a rollback."""
    called: list[str] = []

    async def on_commit(name: str) -> None:
        await sync_to_async(transaction.on_commit)(
            lambda: called.append(name), using=alias
        )

    async with own_thread():
        async with atomic(alias):
            await on_commit("outer")
            with pytest.raises(LookupError):
                async with atomic(alias):
                    await on_commit("rolled back")
                    raise LookupError
            assert called == []
        assert called == ["outer"]


async def test_it_decorates_async_functions(alias: str) -> None:
    """With parentheses; without them the error says so."""

    @atomic(alias)
    async def write(name: str) -> None:
        await add(alias, name)
        if name == "bad":
            raise LookupError

    async with own_thread():
        await write("good")
        with pytest.raises(LookupError):
            await write("bad")
    assert await stored(alias) == {"good"}
    with pytest.raises(TypeError, match="with parentheses"):
        atomic(write)  # type: ignore[arg-type]


async def test_the_thread_stays_during_a_block(alias: str) -> None:
    """`release_thread` would give the transaction to another request."""
    async with own_thread():
        async with atomic(alias):
            await add(alias, "one")
            with pytest.raises(RuntimeError, match="in a transaction"):
                await release_thread()
            await add(alias, "two")
        await release_thread()
    assert await stored(alias) == {"one", "two"}


async def test_a_block_below_sync_code(alias: str) -> None:
    """The sync code's transaction is the outer one, in the same thread."""

    async def inner() -> None:
        with pytest.raises(LookupError):
            async with atomic(alias):
                await add(alias, "inner")
                raise LookupError
        async with atomic(alias):
            await add(alias, "kept")

    def outer() -> None:
        with transaction.atomic(alias):
            rows(alias).create(app_label="tea", model="outer")
            async_to_sync(inner)()

    async with own_thread():
        await sync_to_async(outer)()
        async with atomic(alias):
            await sync_to_async(async_to_sync(add))(alias, "below")
    assert await stored(alias) == {"outer", "kept", "below"}


# Cancellation


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope when a task has waited so many times."""

    def __init__(self, scope: trio.CancelScope, steps: int) -> None:
        self._task = trio.lowlevel.current_task()
        self._scope = scope
        self._steps = steps

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count the task's waits."""
        if task is self._task:
            self._steps -= 1
            if self._steps == 0:
                self._scope.cancel()


@contextmanager
def cancelled_at_step(steps: int) -> Iterator[trio.CancelScope]:
    """Cancel the block when it waits for the ``steps``-th time."""
    with trio.CancelScope() as scope:
        instrument = CancelAtStep(scope, steps)
        trio.lowlevel.add_instrument(instrument)
        try:
            yield scope
        finally:
            trio.lowlevel.remove_instrument(instrument)


async def test_a_cancellation_at_any_await_writes_all_or_nothing(alias: str) -> None:
    """Whenever it comes, nothing is left: no transaction, and no turn."""
    complete: list[bool] = []
    async with own_thread():
        for steps in range(1, 200):
            names = {f"{steps}-one", f"{steps}-two", f"{steps}-inner"}
            with cancelled_at_step(steps) as scope:
                async with atomic(alias):
                    await add(alias, f"{steps}-one")
                    async with atomic(alias):
                        await add(alias, f"{steps}-inner")
                    await add(alias, f"{steps}-two")
                await trio.lowlevel.checkpoint()
            assert not await in_transaction(alias)
            written = names & await stored(alias)
            assert written in (set(), names)
            complete.append(bool(written))
            if not scope.cancel_called:
                break
        else:
            pytest.fail("never complete")
    # Once late enough, it is too late.
    assert complete == sorted(complete)
    assert complete.count(True) >= 1
    assert complete.count(False) >= 6


async def test_a_query_that_runs_is_waited_for(alias: str) -> None:
    """A cancellation does not interrupt it; then the block is rolled back."""
    async with own_thread(), trio.open_nursery() as nursery:
        gate = Gate(lambda: rows(alias).create(app_label="tea", model="one"))
        ended = trio.Event()

        async def write() -> None:
            with trio.CancelScope() as scope:
                nursery.start_soon(cancel, scope)
                async with atomic(alias):
                    await sync_to_async(gate)()
                    await trio.lowlevel.checkpoint()
            assert scope.cancelled_caught
            ended.set()

        async def cancel(scope: trio.CancelScope) -> None:
            await gate.entered.wait()
            scope.cancel()
            await wait_all_tasks_blocked()
            assert not ended.is_set()
            gate.open()

        await write()
    assert await stored(alias) == set()


async def test_a_block_cancelled_while_it_waits_for_another(alias: str) -> None:
    """It never begins, and the next one does."""
    async with own_thread(), trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def wait() -> None:
            with scope:
                await add_in_block(alias, "cancelled")

        async with atomic(alias):
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            scope.cancel()
            await wait_all_tasks_blocked()
            await add(alias, "first")
        await add_in_block(alias, "next")
    assert await stored(alias) == {"first", "next"}


@contextmanager
def no_place_in_time(gate: Gate[None]) -> Iterator[None]:
    """Expect the error about a block that another call keeps from ending."""
    with (
        override_settings(TRIO_ASGI={"CLEANUP_SECONDS": 0.01}),
        pytest.raises(RuntimeError, match="within CLEANUP_SECONDS") as raised,
    ):
        yield
    assert isinstance(raised.value.__cause__, LookupError)
    gate.open()


async def add_and_fail(alias: str, nursery: trio.Nursery, gate: Gate[None]) -> None:
    """Write in a block that fails while other sync code has the only place."""
    async with atomic(alias):
        await add(alias, "one")
        current_pool().queue.set_threads(1)
        nursery.start_soon(sync_to_async(gate, thread_sensitive=False))
        await gate.entered.wait()
        raise LookupError


async def test_a_rollback_that_gets_no_place_raises(alias: str) -> None:
    """After ``CLEANUP_SECONDS``. It comes before the next call all the same."""
    async with own_thread(), trio.open_nursery() as nursery:
        gate = Gate(nothing)
        with no_place_in_time(gate):
            await add_and_fail(alias, nursery, gate)
        assert not await in_transaction(alias)
        await add(alias, "two")
    assert await stored(alias) == {"two"}


async def test_a_savepoint_that_gets_no_place_leaves_the_block_usable(
    alias: str,
) -> None:
    """The outer block does not end the inner one in the place of itself."""
    async with own_thread(), trio.open_nursery() as nursery:
        gate = Gate(nothing)
        async with atomic(alias):
            with no_place_in_time(gate):
                await add_and_fail(alias, nursery, gate)
            await add(alias, "two")
        assert not await in_transaction(alias)
    assert await stored(alias) == {"two"}


# Several tasks


async def add_in_block(alias: str, *names: str) -> None:
    """Write rows in a block."""
    async with atomic(alias):
        for name in names:
            await add(alias, name)


async def test_tasks_below_join_the_block(alias: str) -> None:
    """Children of nurseries in the block, at any depth, write into its transaction."""

    async def child(depth: int) -> None:
        await add(alias, f"child {depth}")
        if depth:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(child, depth - 1)

    async with own_thread():
        with pytest.raises(LookupError):
            async with atomic(alias):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(child, 2)
                    await nursery.start(started_child, alias)
                assert await sync_to_async(rows(alias).count)() == 5
                raise LookupError
        assert await stored(alias) == set()


async def started_child(
    alias: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Write before and after it has started."""
    await add(alias, "starting")
    task_status.started()
    await add(alias, "started")


async def test_a_siblings_write_is_not_rolled_back(alias: str) -> None:
    """A task that was there before waits until the block is left."""
    async with own_thread(), trio.open_nursery() as nursery:
        inside = trio.Event()

        async def sibling() -> None:
            await inside.wait()
            await add(alias, "sibling")

        nursery.start_soon(sibling)
        with pytest.raises(LookupError):
            async with atomic(alias):
                await add(alias, "one")
                inside.set()
                await wait_all_tasks_blocked()
                await add(alias, "two")
                raise LookupError
    assert await stored(alias) == {"sibling"}


async def test_a_task_that_may_outlive_the_block_is_outside(alias: str) -> None:
    """It was started inside, but in a nursery around the block."""
    async with own_thread(), trio.open_nursery() as nursery:
        with pytest.raises(LookupError):
            async with atomic(alias):
                nursery.start_soon(add, alias, "outside")
                await nursery.start(started_child, alias)
                await wait_all_tasks_blocked()
                raise LookupError
    # Until it had started, it was below the block, which waited for it.
    assert await stored(alias) == {"outside", "started"}


async def test_blocks_of_siblings_do_not_interleave(alias: str) -> None:
    """Whether they are savepoints or transactions: the second waits for the first."""
    log: list[str] = []

    async def block(name: str, error: type[Exception] | None) -> None:
        with suppress(LookupError):
            async with atomic(alias):
                log.append(f"{name} begins")
                await add(alias, f"{name} one")
                await wait_all_tasks_blocked()
                await add(alias, f"{name} two")
                log.append(f"{name} ends")
                if error is not None:
                    raise error

    async def both() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(block, "good", None)
            nursery.start_soon(block, "bad", LookupError)

    async with own_thread():
        await both()
        assert await stored(alias) == {"good one", "good two"}
        await sync_to_async(clear)(alias)
        async with atomic(alias):
            await both()
        assert await stored(alias) == {"good one", "good two"}
    steps = [entry.split()[1] for entry in log]
    assert steps == ["begins", "ends"] * 4


async def test_calls_and_blocks_wait_their_turn(alias: str) -> None:
    """A call that is made during a sibling's block comes before that one's next."""
    async with own_thread(), trio.open_nursery() as nursery:

        async def sibling() -> None:
            seen.append(await sync_to_async(rows(alias).count)())

        seen: list[int] = []
        async with atomic(alias):
            await add(alias, "one")
            nursery.start_soon(sibling)
            await wait_all_tasks_blocked()
            await add(alias, "two")
        async with atomic(alias):
            await add(alias, "three")
    assert seen == [2]


async def test_requests_have_their_own_transactions(alias: str) -> None:
    """Two requests are in a block at the same time, in two threads."""
    both: list[str] = []
    two = trio.Event()

    async def view(request: HttpRequest, name: str) -> HttpResponse:
        async with atomic(alias):
            await add(alias, name)
            both.append(name)
            if len(both) == 2:
                two.set()
            await two.wait()
            if name == "bad":
                raise PermissionDenied
        return HttpResponse()

    app = application(path("<name>/", view))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(request, app, "/bad/")
        answer = await request(app, "/good/")
    assert answer.status == 200
    assert await stored(alias) == {"good"}


async def test_a_disconnect_rolls_back(alias: str) -> None:
    """The view is cancelled, and nothing of it is left in the database."""
    inside = trio.Event()

    async def view(request: HttpRequest) -> HttpResponse:
        async with atomic(alias):
            await add(alias, "one")
            inside.set()
            await trio.sleep_forever()
        raise AssertionError

    app = application(path("", view))
    async with ApplicationCommunicator(app, http_scope()) as server:
        await server.send_input({"type": "http.request"})
        await inside.wait()
        await server.send_input({"type": "http.disconnect"})
        await server.wait(SECONDS)
    assert await stored(alias) == set()


async def test_a_task_that_outlives_its_request_is_told(
    alias: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The transaction was in the request's thread; its next call raises."""
    inside, ended = trio.Event(), trio.Event()
    errors: list[RuntimeError] = []

    async def outlive() -> None:
        try:
            async with atomic(alias):
                await add(alias, "one")
                inside.set()
                await ended.wait()
                await add(alias, "two")
        except RuntimeError as error:
            errors.append(error)

    async def view(request: HttpRequest) -> HttpResponse:
        nursery.start_soon(outlive)
        await inside.wait()
        return HttpResponse()

    app = application(path("", view))
    # The end of the request waits for so long for its turn.
    cleanup = override_settings(TRIO_ASGI={"CLEANUP_SECONDS": 0.05})
    async with trio.open_nursery() as nursery:
        with cleanup:
            await request(app)
        ended.set()
    [error] = errors
    assert "trio_asgi.start_soon()" in str(error)
    await current_pool().retire_idle()  # the thread has done what it has to
    assert "was left open" in caplog.text
    assert await stored(alias) == set()


# Async generators


async def numbers(alias: str, name: str) -> AsyncIterator[int]:
    """Give two numbers in a block."""
    async with atomic(alias):
        await add(alias, name)
        yield 1
        yield 2


async def begin(alias: str) -> None:
    """Begin such a generator, and leave it to Trio."""
    async for _ in numbers(alias, "dropped"):
        break


async def no_block(turns: Any) -> None:
    """Wait until no block has a turn there."""
    while turns.block is not None:
        await trio.lowlevel.checkpoint()


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
async def test_a_generator_that_was_not_closed(alias: str) -> None:
    """Trio closes it in another task; its block ends in the right thread."""
    async with own_thread():
        loop: Any = current_loop.get()
        await begin(alias)
        await no_block(loop)
        assert not await in_transaction(alias)
        await add(alias, "after")
        # The same in a block of the task.
        async with atomic(alias):
            await add(alias, "outer")
            await begin(alias)
            await no_block(loop.block)
            await add(alias, "last")
        assert await stored(alias) == {"after", "outer", "last"}


async def test_generators_that_are_closed_from_the_inside(alias: str) -> None:
    """Trio closes all that are garbage at the same time, in any order."""
    gc.collect()  # those of other tests
    async with own_thread():
        generator = numbers(alias, "one")
        await anext(generator)
        [inner] = [
            found
            for found in gc.get_objects()
            if type(found) is AsyncGeneratorType
            and found.__name__ == "_entered"
            and found.ag_frame
        ]
        trio.lowlevel.spawn_system_task(inner.aclose)
        while inner.ag_frame is not None:
            await trio.sleep(0.001)
        with pytest.raises(RuntimeError, match="didn't stop"):
            await generator.aclose()  # type: ignore[attr-defined]
        assert not await in_transaction(alias)
        await add(alias, "after")
    assert await stored(alias) == {"after"}


async def test_a_generator_closed_by_another_task(alias: str) -> None:
    """The block ends at once, and the next call does not wait."""
    async with own_thread():
        generator = numbers(alias, "one")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(anext, generator)
        await generator.aclose()  # type: ignore[attr-defined]
        assert not await in_transaction(alias)
    assert await stored(alias) == set()


async def test_generators_end_in_any_order(alias: str) -> None:
    """The one that began last goes on; others still wait for it."""
    async with own_thread(), trio.open_nursery() as nursery:
        first, second = (numbers(alias, name) for name in ("first", "second"))
        assert await anext(first) == await anext(second) == 1
        nursery.start_soon(add, alias, "outside")
        await wait_all_tasks_blocked()
        assert [number async for number in first] == [2]
        await wait_all_tasks_blocked()
        assert await stored(alias) == set()
        assert [number async for number in second] == [2]
    assert await stored(alias) == {"first", "second", "outside"}


# Outside requests, and asyncio


async def test_a_program_without_requests(alias: str) -> None:
    """All its tasks share a thread; the same rules hold."""
    async with trio.open_nursery() as nursery:
        with pytest.raises(LookupError):
            async with atomic(alias):
                nursery.start_soon(add, alias, "outside")
                await add(alias, "inside")
                raise LookupError
    assert await stored(alias) == {"outside"}
    await sync_to_async(close)(alias)


async def test_asyncio_code_below_a_block_joins_it(alias: str) -> None:
    """An island that the block calls writes into its transaction."""

    @asyncio_island
    async def island() -> None:
        await asyncio.gather(add(alias, "one"), add(alias, "two"))
        await trio_island(add)(alias, "three")
        await trio_island(asyncio_island(add))(alias, "four")

    async with own_thread():
        with pytest.raises(LookupError):
            async with atomic(alias):
                await island()
                assert await sync_to_async(rows(alias).count)() == 4
                raise LookupError
        await island()
    assert await stored(alias) == {"one", "two", "three", "four"}


async def test_asyncio_code_beside_a_block_waits(alias: str) -> None:
    """The island of a sibling is not part of the transaction."""
    async with own_thread(), trio.open_nursery() as nursery:
        with pytest.raises(LookupError):
            async with atomic(alias):
                nursery.start_soon(asyncio_island(add), alias, "outside")
                await wait_all_tasks_blocked()
                await add(alias, "inside")
                raise LookupError
    assert await stored(alias) == {"outside"}


async def test_an_asyncio_task_that_lives_on_is_outside_afterwards(alias: str) -> None:
    """It writes into the transaction while that is open, and then on its own."""
    left = trio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def live_on() -> None:
        await add(alias, "inside")
        await trio_island(left.wait)()
        await add(alias, "after")

    @asyncio_island
    async def start() -> None:
        tasks.append(asyncio.create_task(live_on()))
        while not await rows(alias).aexists():
            await asyncio.sleep(0)

    @asyncio_island
    async def join() -> None:
        await tasks[0]

    async with own_thread():
        with pytest.raises(LookupError):
            async with atomic(alias):
                await start()
                raise LookupError
        left.set()
        await join()
    assert await stored(alias) == {"after"}


async def test_asyncio_code_cannot_open_a_block(alias: str) -> None:
    """The error says what to do instead."""

    @asyncio_island
    async def island() -> None:
        async with atomic(alias):
            pytest.fail("not entered")

    with pytest.raises(RuntimeError, match="need a Trio task"):
        await island()


async def test_a_thread_that_waits_for_its_task_is_not_waited_for(alias: str) -> None:
    """Trio code below `trio.from_thread.run` cannot open a block: an error says so."""

    async def open_block() -> None:
        async with atomic(alias):
            pytest.fail("not entered")

    async with own_thread():
        with pytest.raises(RuntimeError, match="wait for ever"):
            await sync_to_async(trio.from_thread.run)(open_block)


# sync_context


async def test_a_context_that_was_not_entered_is_not_left() -> None:
    """A cancellation that comes before leaves nothing behind."""
    steps: list[str] = []

    @contextmanager
    def manager() -> Iterator[None]:
        steps.append("enter")
        yield
        steps.append("leave")

    async with own_thread():
        with trio.CancelScope() as scope:
            scope.cancel()
            async with sync_context(manager):
                pytest.fail("not entered")
        assert steps == []
        with trio.CancelScope() as scope, suppress(GeneratorExit):
            async with sync_context(manager):
                scope.cancel()
    # Cancelled before leaving had begun: the block of the manager was cancelled.
    assert steps == ["enter"]


async def test_a_cancellation_while_a_context_is_entered() -> None:
    """It is entered, and left with the cancellation."""
    seen: list[type[BaseException] | None] = []

    class Manager:
        def __enter__(self) -> None:
            gate()

        def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
            seen.append(kind)

    async with own_thread(), trio.open_nursery() as nursery:
        gate = Gate(lambda: None)
        scope = trio.CancelScope()

        async def cancel() -> None:
            await gate.entered.wait()
            scope.cancel()
            gate.open()

        nursery.start_soon(cancel)
        with scope:
            async with sync_context(Manager):
                await trio.lowlevel.checkpoint()
                pytest.fail("cancelled")
    assert seen == [trio.Cancelled]


@pytest.mark.parametrize(
    "test",
    [
        test_a_block_commits_at_its_end,
        test_asyncio_code_below_a_block_joins_it,
        test_asyncio_code_beside_a_block_waits,
        test_an_asyncio_task_that_lives_on_is_outside_afterwards,
    ],
)
def test_in_a_guest_run(server: Server, test: Any) -> None:
    """The same, where asyncio's loop is the host."""

    async def main() -> None:
        with trio.fail_after(SECONDS):
            async with open_database(server.settings(CONN_MAX_AGE=None)) as alias:
                await sync_to_async(clear, thread_sensitive=False)(alias)
                await test(alias)

    run_in_guest(main)

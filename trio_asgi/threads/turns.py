"""Turns: where sync calls run one at a time, or for a while those of one task only.

A block is a stretch of a task, such as a transaction, during which it has the turn.
Inside, its calls take turns with those of the tasks below it, and with their blocks::

    loop        call │ block ────────────────────────────────────── │ call
    block            │ call │ call of a child │ block of a child ─── │
    its block                                 │ call │ call │

Everything here is called in the Trio thread.
"""

from __future__ import annotations

import contextvars
import functools
import logging
import traceback
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable

logger = logging.getLogger("trio_asgi")

#: After this many seconds, a call that waits for a block's end logs where that waits.
PATIENCE: Final = 10

Caller: TypeAlias = "tuple[weakref.ref[trio.lowlevel.Task], Caller] | None"

#: The Trio task that has called this asyncio code, and so on outwards.
island_caller: contextvars.ContextVar[Caller] = contextvars.ContextVar(
    "trio_asgi.island_caller", default=None
)


class Turns:
    """Something that one call or block has at a time, in the order of asking."""

    #: Whether somebody has the turn.
    _has_turn = False
    #: The tasks that wait for it; None before there is one.
    _waiting: trio.lowlevel.ParkingLot | None = None
    #: What has the turn, if it is a block.
    block: Block | None = None

    def innermost(self) -> Turns:
        """Return the innermost block that the running task is in; itself if none."""
        turns = self
        while turns.block is not None and turns.block.has_running_task():
            turns = turns.block
        return turns

    async def _wait_turn(self) -> Turns:
        """Wait for a turn here, or in the block that the running task is in.

        Returns:
            Whose turn it is: the caller must `_pass_on` that.

        Raises:
            trio.Cancelled: cancelled before.
        """
        while True:
            turns = self.innermost()
            if not turns._has_turn:
                turns._has_turn = True
                return turns
            await turns._park()
            if not (isinstance(turns, Block) and turns.ended):
                return turns

    async def _park(self) -> None:
        """Wait until the turn was passed on, or a block has ended."""
        if self._waiting is None:
            self._waiting = trio.lowlevel.ParkingLot()
        if self.block is None:
            await self._waiting.park()
            return
        watch = trio.CancelScope()
        trio.lowlevel.spawn_system_task(_warn, watch, self.block)
        try:
            await self._waiting.park()
        finally:
            watch.cancel()

    def _pass_on(self) -> None:
        """Give the turn to the next that waits for it."""
        if self._waiting:
            self._waiting.unpark()
        else:
            self._has_turn = False


class Block(Turns):
    """Has the turn from `begin` to `end`, for the calls of one task and those below it.

    "Below" is a task in a nursery that was opened in the block. A task that was started
    in the block, but in a nursery around it, may outlive the block: so it is not below.
    Trio code that is called by an asyncio island is below if the island is.
    """

    #: Whether it has given back the turn.
    ended = False

    def __init__(self, parent: Turns) -> None:
        """Begin, with the turn of ``parent``. In the block's task."""
        self._parent = parent
        self.task = trio.lowlevel.current_task()
        self._outer_nurseries = len(self.task.child_nurseries)
        #: Called when it has ended, before calls that have waited for that.
        self.at_end: list[Callable[[], object]] = []
        parent.block = self

    def move_here(self) -> None:
        """Make the running task the block's: it may end what another has begun.

        Trio closes an async generator in a task of its own if nobody else does.
        """
        task = trio.lowlevel.current_task()
        if task is not self.task:
            self.task, self._outer_nurseries = task, len(task.child_nurseries)

    def has_running_task(self) -> bool:
        """Whether the running task is the block's, or below, or a block's inside."""
        # No task of Trio runs in the code of an island under an asyncio server.
        if trio.lowlevel.in_trio_task() and self._has(trio.lowlevel.current_task()):
            return True
        caller = island_caller.get()
        while caller is not None:
            ref, caller = caller
            task = ref()
            if task is not None and self._has(task):
                return True
        # It is not below if the block inside has moved.
        return self.block is not None and self.block.has_running_task()

    def _has(self, task: trio.lowlevel.Task) -> bool:
        while task is not self.task:
            nursery = task.parent_nursery
            if nursery is None:
                return False
            task = nursery.parent_task
            if task is self.task:
                return nursery in task.child_nurseries[self._outer_nurseries :]
        return True

    @trio.lowlevel.enable_ki_protection
    async def end(self) -> None:
        """Give back the turn, after the call that runs. Shielded from cancellation.

        Only asyncio tasks that live on can still make calls, which then run outside.
        """
        inner = self.block
        if inner is not None and inner.task is self.task:
            # The task does not end them in order, as with two async generators: waiting
            # would never end. The inner one goes on in the place of this one.
            inner._parent, self._parent.block = self._parent, inner
        else:
            if self._has_turn:
                with trio.CancelScope(shield=True):
                    await self._park()
            self._parent.block = None
            self._parent._pass_on()
        self.ended = True
        if self._waiting is not None:
            self._waiting.unpark_all()
        for fn in self.at_end:
            fn()


async def _warn(watch: trio.CancelScope, block: Block) -> None:
    """Log that a call waits long for a block, which may wait for the call. Its task."""
    with watch:
        await trio.sleep(PATIENCE)
        # Trio 0.31 fails at a task that has ended without ending the block.
        frames = block.task.iter_await_frames() if block.task.coro.cr_frame else ()
        stack = traceback.StackSummary.extract(frames)
        message = (
            "A sync call has waited %s seconds for the end of a transaction in %r. If "
            "that waits for the task of the call, both wait for ever: start the task "
            "in a nursery inside the transaction. The transaction's task is here:\n%s"
        )
        warn = functools.partial(
            logger.warning, message, PATIENCE, block.task.name, "".join(stack.format())
        )
        try:
            await trio.to_thread.run_sync(warn)
        except RuntimeError:  # the system can start no more threads
            warn()

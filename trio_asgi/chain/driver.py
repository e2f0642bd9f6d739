"""Runs a generator on the loop and in the request's thread.

The generator calls the code that belongs where it runs, and yields only where the next
code belongs on the other side.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from asgiref.sync import async_to_sync

from trio_asgi.bridge.hop import hop, retire_thread, was_left
from trio_asgi.errors import note_asyncio
from trio_asgi.islands.functions import runs_on_trio

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import TypeAlias

    #: Yields `THREAD`, or a function to call and await on the loop. Returns a response.
    Steps: TypeAlias = Generator[Any, Any, Any]

#: Yielded on the loop: go on in the thread.
THREAD: Final = "go on in the thread"

#: Instead of what is yielded: the generator has ended.
_END: Final = "the end"


class Driver:
    """Runs one generator to its end.

    The calling task runs it on the loop, and makes each hop, under its cancel scopes.
    If it leaves a hop whose thread runs on, the thread alone runs the generator.
    """

    #: Whether the request's thread runs the generator now.
    in_thread = False
    #: What the generator has returned.
    _response: Any = None

    @runs_on_trio
    async def drive(self, steps: Steps, wanted: Any = None) -> Any:
        """Run a generator to its end, and return the response. Trio task.

        If it has begun elsewhere, it has yielded ``wanted`` there.
        """
        try:
            if wanted is None:
                wanted = self._advance(steps.send, None)
            while wanted is not _END:
                resume, value = steps.send, None
                try:
                    if wanted is THREAD:
                        wanted = await hop(functools.partial(self._advance_here, steps))
                        continue
                    value = await wanted()
                except BaseException as error:
                    if wanted is not THREAD:
                        note_asyncio(error)
                    elif was_left():
                        raise  # the thread may still run the generator
                    resume, value = steps.throw, error
                # Outside the `except`, or all that follows would be handling the error.
                try:
                    wanted = self._advance(resume, value)
                finally:
                    # An error's traceback holds this frame: leave no cycle behind.
                    del value
        except BaseException:
            # An error that the generator could not answer: it has skipped hooks.
            retire_thread()
            raise
        return self._response

    def drive_in_thread(self, steps: Steps) -> Any:
        """Run a generator to its end, beginning in the thread. Worker thread."""
        try:
            wanted = self._advance_here(steps)
            if wanted is _END:
                return self._response
            return async_to_sync(self.drive)(steps, wanted)
        except BaseException:
            retire_thread()  # see drive()
            raise

    def _advance_here(self, steps: Steps) -> Any:
        """Run a generator until it wants the loop, or to its end. Worker thread."""
        self.in_thread = True
        try:
            return self._advance(steps.send, None)
        finally:
            self.in_thread = False

    def _advance(self, resume: Callable[[Any], Any], value: Any) -> Any:
        """Run a generator; return what it yields next, or `_END`."""
        try:
            return resume(value)
        except StopIteration as end:
            self._response = end.value
            return _END
        finally:
            # If it is an error, its traceback holds this frame: leave no cycle behind.
            del value

"""A request's body as a file that receives bytes when a thread reads them."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Final

import trio

from trio_asgi.errors import LEFT_EARLY, ClientDisconnected
from trio_asgi.threads.call import calling
from trio_asgi.threads.reentry import run_async
from trio_asgi.threads.trio_state import in_trio_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import TypeAlias

    from trio_asgi.asgi.receive import Receiver

    # The argument of `io.RawIOBase.readinto`: writable bytes.
    Buffer: TypeAlias = Any

#: About as much as servers give at a time, in bytes.
_BUFFER_SIZE: Final = 2**16


def open_body(receiver: Receiver) -> io.BufferedReader:
    """Return a body as a file for threads. Called in a Trio task.

    Reading blocks only the calling thread: the request's task receives, and the
    thread's token is free meanwhile. Reading raises the errors of `Receiver`, and
    ``OSError`` if the client has left, which Django turns into `UnreadablePostError`.
    Closing the file closes nothing else.
    """
    return BodyFile(_RawBody(receiver), _BUFFER_SIZE)


class BodyFile(io.BufferedReader):
    """The file of `open_body`."""

    def close(self) -> None:
        """Stop further reading. Unlike Python's, this does not wait for readers."""
        self.raw.close()


class _RawBody(io.RawIOBase):
    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        #: Whether a thread has read. Then the file's buffer may hold more bytes.
        self.was_read = False
        self._token = trio.lowlevel.current_trio_token()
        #: Received, but not read yet.
        self._received = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        """Read the bytes that are here, and wait only if there are none. Any thread.

        Raises:
            OSError: the client has left.
            RuntimeError: called on the loop, which must not wait.
        """
        self.was_read = True
        if not self._received:
            self._received = memoryview(self._wait_chunk())
        size = min(len(buffer), len(self._received))
        buffer[:size] = self._received[:size]
        self._received = self._received[size:]
        return size

    def _wait_chunk(self) -> bytes:
        try:
            return _run_in_task(self.receiver.read_chunk, self._token)
        except (ClientDisconnected, trio.Cancelled):
            # The disconnect itself may have cancelled the wait.
            if not self.receiver.disconnected:
                raise
            raise OSError(LEFT_EARLY) from None


def _run_in_task(
    afn: Callable[[], Awaitable[bytes]], token: trio.lowlevel.TrioToken
) -> bytes:
    """Run ``afn()`` in the task that waits for this thread, or else in another."""
    if calling() is not None:
        result, _ = run_async(afn)
        try:
            return result.unwrap()
        finally:
            # An error's traceback holds this frame: leave no cycle behind.
            del result, _
    if in_trio_thread():
        return trio.from_thread.run(afn)
    return trio.from_thread.run(afn, trio_token=token)

"""A request's body as a file: complete before the view starts, or as it comes."""

from __future__ import annotations

import functools
import io
import tempfile
from typing import IO, TYPE_CHECKING, Any, Final

import trio
from django.conf import settings
from django.core.exceptions import RequestAborted

from trio_asgi import conf
from trio_asgi.errors import LEFT_EARLY, ClientDisconnected
from trio_asgi.threads.call import calling
from trio_asgi.threads.current import current_pool
from trio_asgi.threads.offload import finish_in_thread
from trio_asgi.threads.reentry import run_async
from trio_asgi.threads.trio_state import in_trio_thread

from .body_options import BodyOptions, options_for
from .request import path_info_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import TypeAlias

    from trio_asgi.asgi.receive import Receiver
    from trio_asgi.asgi.types import Receive, Scope

    # The argument of `io.RawIOBase.readinto`: writable bytes.
    Buffer: TypeAlias = Any

#: About as much as servers give at a time, in bytes.
_BUFFER_SIZE: Final = 2**16


async def take_body(
    scope: Scope,
    receiver: Receiver,
    read_body: Callable[[Receive], Awaitable[IO[bytes]]],
    *,
    urlconf: Any = None,
) -> IO[bytes]:
    """Return the body as a file; a view that starts early reads it as it comes.

    The view for the path, in ``urlconf`` or the project's, sets the receiver's limits.
    ``read_body`` reads a whole body.

    Raises:
        ClientDisconnected, RequestAborted: the client has left.
        BodyTooLarge, BodyTimeout: the body is refused.
    """
    if not receiver.may_have_body:
        if not receiver.is_http1:
            # A client that breaks the rules may send one all the same.
            receiver.limits = BodyOptions().limits
        return await read_body(receiver)
    options = options_for(path_info_of(scope), urlconf)
    receiver.limits = options.limits
    await receiver.check_announced_size()
    if options["stream"]:
        return open_body(receiver)
    return await read_body(receiver)


async def spool_body(receive: Receive) -> IO[bytes]:
    """Read a body into a file, in memory up to ``FILE_UPLOAD_MAX_MEMORY_SIZE`` bytes.

    With 0 or less the first byte goes to disk, as in Django's upload handlers; with
    None no byte does. A thread does each write to disk.

    Raises:
        RequestAborted: the client left before the body was complete.
        Exception: any error of ``receive``.
    """
    limit: int | None = settings.FILE_UPLOAD_MAX_MEMORY_SIZE
    chunk, more_body = await _receive_chunk(receive)
    if not (chunk or more_body):
        return io.BytesIO()  # the usual case
    # Without a `max_size`: Python takes 0 to mean that everything stays in memory.
    file = tempfile.SpooledTemporaryFile(  # noqa: SIM115
        mode="w+b", dir=settings.FILE_UPLOAD_TEMP_DIR
    )
    size = 0
    try:
        while chunk or more_body:
            size += len(chunk)
            if limit is not None and size > limit:
                write = functools.partial(_write_to_disk, file, chunk)
                await current_pool().run_sync(write)
            else:
                file.write(chunk)
            if not more_body:
                break
            chunk, more_body = await _receive_chunk(receive)
    except BaseException:
        await close_body(file)
        raise
    file.seek(0)
    return file


async def close_body(file: IO[bytes]) -> None:
    """Close the file of a body. Shielded from cancellation.

    A file on disk is closed in a thread, since freeing gigabytes takes a while. After
    ``CLEANUP_SECONDS`` the thread continues alone.
    """
    if type(file) is io.BytesIO or file.closed:
        return
    if isinstance(file, (io.BytesIO, BodyFile)) or not getattr(file, "_rolled", True):
        file.close()
    else:
        await finish_in_thread(file.close, conf.get("CLEANUP_SECONDS"))


def _write_to_disk(file: tempfile.SpooledTemporaryFile[bytes], chunk: bytes) -> None:
    """Move a file to disk, unless it is there, and write. Worker thread."""
    file.rollover()
    file.write(chunk)


async def _receive_chunk(receive: Receive) -> tuple[bytes, bool]:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise RequestAborted
    return message.get("body") or b"", message.get("more_body", False)


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

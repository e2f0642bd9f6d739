"""The blocks of a file, read while those before them are being sent.

What the system has in memory is read on the loop: that takes less time than to ask a
thread for it. Everything else is read in a thread, and read ahead.
"""

from __future__ import annotations

import functools
import io
import os
import sys
import time
from typing import IO, TYPE_CHECKING, Any, Final

from trio_asgi.bridge.hop import hop

from .thread_stream import TURN, ThreadStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


#: How much of a file is read, and sent, at a time; bytes. Each block costs as much as
#: some 100 KiB of it, in the thread and in the server.
LARGEST_BLOCK: Final = 2**21

#: How much of a file the system reads from disk at a time, at least; bytes.
_READAHEAD: Final = 2**16

#: Whether Python can ask what is in memory. Only Linux can be asked, and Python knows
#: only what the C library knew that it was built with: many of its builds do not.
_CAN_ASK: Final = sys.platform == "linux" and all(
    hasattr(os, name) for name in ("RWF_NOWAIT", "preadv", "pread")
)


class FileStream(ThreadStream):
    """The blocks of a file. Owned by the task that calls `send_all`."""

    largest = LARGEST_BLOCK

    def __init__(
        self,
        file: IO[Any],
        make_bytes: Callable[[Any], bytes],
        *,
        size: int | None,
        run: Callable[[Callable[[], None]], Awaitable[None]] = hop,
    ) -> None:
        """Take a file where it stands; whoever opened it closes it.

        Args:
            file: Is read in blocks.
            make_bytes: Makes bytes of a block; called in the thread.
            size: How many bytes were announced to the client; None: to the file's end.
            run: Runs a function in the thread that the file may be read in.
        """
        super().__init__(iter(()), make_bytes)
        self._file = file
        self._left = size
        self._run = run

    async def _gather(self, until: float) -> None:
        """Wait for nothing: a block is large enough."""

    def _pull(self) -> None:
        """Read blocks until enough wait for being sent, for one turn. Worker thread.

        Raises:
            EOFError: the file has become shorter than what was announced.
            BlockingIOError: the file has no bytes yet, and does not wait for them.
        """
        until = time.perf_counter() + TURN
        while self._left != 0:
            block = self._read_block()
            self._note(block)
            if self._exhausted:
                return
            self._add(block)
            if self._stopped or self._is_full() or time.perf_counter() >= until:
                return
        self._exhausted = True

    # Others may have written the file's class: looked up in the thread, too.
    @functools.cached_property
    def _read(self) -> Callable[[int], Any]:
        return _reader(self._file)

    def _read_block(self) -> bytes:
        """Read a block: no more than was announced, whatever the file gives."""
        block = self._read(self._block_size())
        if block is None:
            raise BlockingIOError(
                f"The file {self._file!r} is non-blocking and has no bytes yet: its "
                "read() returned None. Give the response a file that waits for them."
            )
        return self._make_bytes(block)[: self._left]

    def _note(self, block: bytes) -> None:
        """Note what is left after a block; raise if the file has ended too early."""
        if self._left is None:
            self._exhausted = not block
        elif block:
            self._left = max(self._left - len(block), 0)
        else:
            name = getattr(self._file, "name", self._file)
            raise EOFError(
                f"The file {name!r} ended {self._left} bytes before the Content-Length "
                "that was sent already: it has become shorter meanwhile."
            )

    def _block_size(self) -> int:
        return self._limit if self._left is None else min(self._limit, self._left)


def _reader(file: Any) -> Callable[[int], Any]:
    """Return what reads a block; of a pipe or a socket, no more than has come."""
    read: Callable[[int], Any] = file.read
    return file.read1 if _has_read1(type(file)) and not file.seekable() else read


def _has_read1(kind: type) -> bool:
    """Whether ``read1()`` of a class gives the same bytes as its ``read()``.

    Where one class defines both, it does. Otherwise it may be the one of a base class
    that does not implement it, or read past a ``read()`` that decrypts.
    """
    definer: Any = next((base for base in kind.__mro__ if "read" in vars(base)), object)
    return "read1" in vars(definer) and definer is not io.BufferedIOBase


class DiskFileStream(FileStream):
    """The blocks of a file on disk.

    As long as they are in the system's memory they are read on the loop; from the first
    on that is not, in a thread.
    """

    def __init__(
        self,
        file: DiskFile,
        *,
        size: int | None,
        run: Callable[[Callable[[], None]], Awaitable[None]],
    ) -> None:
        """Take a file where it stands; see `FileStream`."""
        super().__init__(file, bytes, size=size, run=run)  # type: ignore[arg-type]
        self._disk_file = file

    async def send_all(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Send all blocks.

        Raises:
            EOFError: the file has become shorter than what was announced.
        """
        while self._left != 0 and self._disk_file.is_in_memory(self._block_size()):
            block = self._disk_file.read(self._block_size())
            self._note(block)
            if self._exhausted:
                return
            await self._send_batch(send, block)
        if self._left != 0:
            await super().send_all(send)


class DiskFile:
    """A file on disk, read by position: whatever its file object has in its buffer."""

    def __init__(self, file: IO[bytes]) -> None:
        """Read from where a file object stands.

        Raises:
            OSError: it has no number, or no position.
        """
        self.name = file.name
        self._file = file
        self._number = file.fileno()
        self._position = file.tell()
        self._byte = [bytearray(1)]

    def read(self, size: int) -> bytes:
        """Read up to so many bytes; none at the end. Any thread, one at a time.

        Raises:
            ValueError: the file was closed; its number may be another file's by now.
        """
        if self._file.closed:
            raise ValueError(f"The file {self.name!r} was closed while it was sent.")
        block = os.pread(self._number, size, self._position)
        self._position += len(block)
        return block

    def is_in_memory(self, size: int) -> bool:
        """Whether so many bytes can be read without waiting for a disk.

        That is asked for a byte here and there. It can change before they are read, and
        then the loop waits for the disk, as it does whenever the system swaps.
        """
        last = self._position + size - 1
        if self._file.closed:
            return False
        try:
            for position in (*range(self._position, last, _READAHEAD), last):
                os.preadv(self._number, self._byte, position, os.RWF_NOWAIT)
        except (OSError, NotImplementedError):
            # It would block; or the file system, or the system itself, cannot tell.
            return False
        return True


def disk_file(plain: object) -> DiskFile | None:
    """Return a plain file for `DiskFileStream`; None if a thread has to read it."""
    if _CAN_ASK and isinstance(plain, (io.BufferedReader, io.FileIO)):
        try:
            return DiskFile(plain)
        except (OSError, ValueError):  # a pipe; or it was closed, as reading will tell
            pass
    return None

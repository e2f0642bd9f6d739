"""The blocks of a file, read while earlier ones are being sent.

Blocks in the system's memory are read on the loop, which takes less time than to ask a
thread. All others are read ahead in a thread.
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


#: How much of a file is read and sent at a time; bytes. Each block costs as much as
#: some 100 KiB of it, in the thread and in the server.
LARGEST_BLOCK: Final = 2**21

#: The least that the system reads from disk at a time; bytes.
_READAHEAD: Final = 2**16

#: Whether Python can ask if bytes are in memory: only on Linux, and only if the C
#: library that it was built with has these functions, as many have not.
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
        """Read from the file's position; the file is not closed here.

        ``make_bytes`` makes bytes of a block, in the thread. ``size`` is the announced
        number of bytes; None means all. ``run`` runs a function in a thread that may
        read the file.
        """
        super().__init__(iter(()), make_bytes)
        self._file = file
        self._left = size
        self._run = run

    async def _gather(self, until: float) -> None:
        """Do nothing: a block is large enough."""

    def _pull(self) -> None:
        """Read blocks for one turn, or until enough wait to be sent. Worker thread.

        Raises:
            EOFError: the file has become shorter than announced.
            BlockingIOError: the file is non-blocking, and has no bytes yet.
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

    # Evaluated in the thread: the class of the file may be any.
    @functools.cached_property
    def _read(self) -> Callable[[int], Any]:
        """What reads a block: for a pipe or a socket, only the bytes that have come."""
        file: Any = self._file
        read: Callable[[int], Any] = file.read
        return file.read1 if _has_read1(type(file)) and not file.seekable() else read

    def _read_block(self) -> bytes:
        """Read a block, never more than was announced."""
        block = self._read(self._block_size())
        if block is None:
            raise BlockingIOError(
                f"The file {self._file!r} is non-blocking and has no bytes yet: its "
                "read() returned None. Give the response a blocking file."
            )
        return self._make_bytes(block)[: self._left]

    def _note(self, block: bytes) -> None:
        """Count a block; raise if the file has ended too early."""
        if self._left is None:
            self._exhausted = not block
        elif block:
            self._left = max(self._left - len(block), 0)
        else:
            name = getattr(self._file, "name", self._file)
            raise EOFError(
                f"The file {name!r} ended {self._left} bytes before the Content-Length "
                "that was already sent: it has become shorter meanwhile."
            )

    def _block_size(self) -> int:
        return self._limit if self._left is None else min(self._limit, self._left)


def _has_read1(kind: type) -> bool:
    """Return whether ``read1()`` of a class gives the same bytes as its ``read()``.

    It does where one class defines both. Otherwise it may come from a base class that
    does not implement it, or that bypasses a ``read()`` that decrypts.
    """
    definer: Any = next((base for base in kind.__mro__ if "read" in vars(base)), object)
    return "read1" in vars(definer) and definer is not io.BufferedIOBase


class DiskFileStream(FileStream):
    """The blocks of a file on disk.

    They are read on the loop until one is not in the system's memory, and from there on
    in a thread.
    """

    def __init__(
        self,
        file: DiskFile,
        *,
        size: int | None,
        run: Callable[[Callable[[], None]], Awaitable[None]],
    ) -> None:
        """Read from the file's position; see `FileStream`."""
        super().__init__(file, bytes, size=size, run=run)  # type: ignore[arg-type]
        self._disk_file = file

    async def send_all(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Send all blocks.

        Raises:
            EOFError: the file has become shorter than announced.
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
    """A file on disk, read by position: the file object's buffer is not used."""

    def __init__(self, file: IO[bytes]) -> None:
        """Read from the position of a file object.

        Raises:
            OSError: it has no file descriptor, or no position.
        """
        self.name = file.name
        self._file = file
        self._number = file.fileno()
        self._position = file.tell()
        self._byte = [bytearray(1)]

    def read(self, size: int) -> bytes:
        """Read up to ``size`` bytes; none at the end. Any thread, one at a time.

        Raises:
            ValueError: the file was closed; another may have its descriptor by now.
        """
        if self._file.closed:
            raise ValueError(f"The file {self.name!r} was closed while being sent.")
        block = os.pread(self._number, size, self._position)
        self._position += len(block)
        return block

    def is_in_memory(self, size: int) -> bool:
        """Return whether ``size`` bytes can be read without waiting for a disk.

        The system is asked about one byte in 64 KiB. If they leave memory before they
        are read, the loop waits for the disk, as it does whenever the system swaps.
        """
        last = self._position + size - 1
        if self._file.closed:
            return False
        try:
            for position in (*range(self._position, last, _READAHEAD), last):
                os.preadv(self._number, self._byte, position, os.RWF_NOWAIT)
        except (OSError, NotImplementedError):
            # It would block; or the file system or the kernel cannot tell.
            return False
        return True


def disk_file(plain: object) -> DiskFile | None:
    """Return a plain file for `DiskFileStream`; None if a thread must read it."""
    if _CAN_ASK and isinstance(plain, (io.BufferedReader, io.FileIO)):
        try:
            return DiskFile(plain)
        except (OSError, ValueError):  # a pipe, or a closed file: reading it will raise
            pass
    return None

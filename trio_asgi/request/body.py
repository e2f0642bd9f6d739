"""How a view gets at the body of its request, in async code and in sync code."""

from __future__ import annotations

import io
import sys
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, Final

import trio
from django.conf import settings
from django.core.exceptions import RequestDataTooBig, SynchronousOnlyOperation
from django.core.handlers import asgi
from django.http import RawPostDataException, UnreadablePostError

from trio_asgi.bridge.hop import hop
from trio_asgi.errors import LEFT_EARLY, BodyTimeout, BodyTooLarge, ClientDisconnected
from trio_asgi.threads.current import current_pool
from trio_asgi.threads.trio_state import in_trio_run, in_trio_task

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from trio_asgi.asgi.receive import Receiver
    from trio_asgi.asgi.types import Scope

#: How many bytes of a body that is on disk are read at a time.
_BLOCK_SIZE: Final = 2**18

_FORM: Final = "application/x-www-form-urlencoded"
_FORM_WITH_FILES: Final = "multipart/form-data"


class RequestWithBody(asgi.ASGIRequest):
    """Django's request, with two ways for async code to read the body.

    The body was read before, into a file. Or it comes while the view runs: then it is
    received as it is read, by one reader at a time.
    """

    #: What the body comes from while the view runs; None if it was read before.
    _receiver: Receiver | None = None
    # Django's own.
    _read_started: bool
    _stream: Any

    def __init__(self, scope: Scope, body_file: IO[bytes]) -> None:
        """Take the body from a file: one of `open_body`, or at its beginning."""
        super().__init__(scope, body_file)
        self._receiver = getattr(getattr(body_file, "raw", None), "receiver", None)

    # For async code

    def stream(self) -> AsyncIterator[bytes]:
        """Return the body's bytes as they come: ``async for chunk in ...``.

        For code of Trio. The chunks have the sizes that the server gives. A reader that
        takes its time holds the client back. Works as well if the body was read before
        the view; and goes on where sync code has left off.

        A disconnect cancels the view. The iterator can be left at any time. What a
        thread was reading when its task was cancelled is lost.

        Raises:
            UnreadablePostError: when iterated: the client has left, and the running
                task is none that is cancelled.
            BodyTooLarge: when iterated: the body is larger than ``MAX_BODY_SIZE``.
            BodyTimeout: when iterated: no byte has come for ``BODY_TIMEOUT``.
            RuntimeError: when iterated outside Trio.
        """
        return _Chunks(self)

    async def aread(self) -> bytes:
        """Read what the view asks for as ``body``, ``POST`` and ``FILES``.

        A form with files is parsed in the request's thread, by the upload handlers, as
        it comes in. Any other body is read into memory. After that all three are there
        for async code, too. Does nothing the second time.

        Returns:
            The body. Of a form with files nothing: that is in ``POST`` and ``FILES``.

        Raises:
            trio.Cancelled: the client has left, for example.
            RequestDataTooBig: no form with files, and larger than
                ``DATA_UPLOAD_MAX_MEMORY_SIZE``. Django answers 400.
            RawPostDataException: some of it was read as a stream.
            BodyTooLarge, BodyTimeout: as `stream`.
            RuntimeError: called outside Trio.
        """
        _check_trio("aread")
        is_form = self.method == "POST" and self.content_type == _FORM_WITH_FILES
        if is_form and hasattr(self, "_post"):
            return b""
        if self._read_started and not hasattr(self, "_body"):
            raise RawPostDataException(
                "You cannot use aread() after reading from the request's stream."
            )
        if is_form:
            await self._read_in_thread(self._load_post_and_files)
            return b""
        if not hasattr(self, "_body"):
            self._check_announced_size()
            limit = _memory_limit()
            size, chunks = 0, []
            async for chunk in self.stream():
                chunks.append(chunk)
                size += len(chunk)
                if limit is not None and size > limit:
                    break
            self._keep(b"".join(chunks))
        return self.body

    async def _read_in_thread(self, read: Callable[[], Any]) -> Any:
        try:
            return await hop(read)
        except OSError as error:
            # The disconnect has cancelled this task, most likely.
            await trio.lowlevel.checkpoint_if_cancelled()
            raise UnreadablePostError(*error.args) from error

    # What Django has, for sync code, and for async code when the body is there

    @property
    def body(self) -> bytes:
        """The whole body, as Django documents it.

        Raises:
            SynchronousOnlyOperation: async code has asked before the body was read.
        """
        if self._receiver is not None and not (
            hasattr(self, "_body") or self._read_started
        ):
            self._check_not_on_loop("body")
            self._check_announced_size()
            with self._noting_errors():
                self._keep(self._read_up_to_limit())
        with self._readable_content_length():
            return super().body

    def _read_up_to_limit(self) -> bytes:
        """Read a body that need not have announced its length."""
        limit, data = _memory_limit(), bytearray()
        while limit is None or len(data) <= limit:
            block = self.read(_BLOCK_SIZE)
            if not block:
                break
            data += block
        return bytes(data)

    def read(self, *args: Any, **kwargs: Any) -> bytes:
        """Read bytes of the body, as Django documents it. For sync code.

        Raises:
            SynchronousOnlyOperation: async code has asked before the body was read.
            UnreadablePostError: the client has left.
        """
        self._check_not_on_loop("read()")
        return super().read(*args, **kwargs)

    def readline(self, *args: Any, **kwargs: Any) -> bytes:
        """Read a line, as `read` reads."""
        self._check_not_on_loop("readline()")
        return super().readline(*args, **kwargs)

    def _load_post_and_files(self) -> None:
        is_form = self.method == "POST" and self.content_type in (
            _FORM,
            _FORM_WITH_FILES,
        )
        if is_form and not self._read_started:
            self._check_not_on_loop("POST or request.FILES")
        with self._noting_errors():
            super()._load_post_and_files()

    def parse_file_upload(self, META: Any, post_data: Any) -> Any:  # noqa: N803
        """Parse a form with files; close the last one if that fails.

        Django closes only those that were complete. And it takes a body without a
        ``Content-Length`` for empty, which a chunked one is not.
        """
        meta = META
        if "CONTENT_LENGTH" not in META:
            meta = {**META, "CONTENT_LENGTH": self._length()}
        try:
            return super().parse_file_upload(meta, post_data)
        except BaseException:
            for handler in self.upload_handlers:
                if (file := getattr(handler, "file", None)) is not None:
                    file.close()
            raise

    def _length(self) -> int:
        """Return how long the body is; if that is unknown, the most it could be."""
        if self._receiver is not None and not hasattr(self, "_body"):
            return sys.maxsize
        length: int = self._stream.seek(0, io.SEEK_END)
        self._stream.seek(0)
        return length

    def _check_not_on_loop(self, what: str) -> None:
        if self._receiver is not None and not hasattr(self, "_body") and in_trio_run():
            raise SynchronousOnlyOperation(
                f"Async code asked for request.{what} before the body was read: to "
                "wait for it would stop all other requests. Say 'await "
                "request.aread()' before, or read 'async for chunk in "
                "request.stream()'; in an island of asyncio, 'await "
                "trio_asgi.trio_island(request.aread)()'."
            )

    def _check_announced_size(self) -> None:
        """Raise what Django raises for its own reading of a body that is too large."""
        length = self.META.get("CONTENT_LENGTH") or ""
        if length.isdecimal():
            _check_size(int(length))

    def _keep(self, data: bytes) -> None:
        _check_size(len(data))
        self._body = data
        self._stream = io.BytesIO(data)

    def give_up_form(self) -> None:
        """Let what reports an error find an empty form, rather than wait for it.

        Or, on the loop, fail for it. Called before that, if the body is not read.
        """
        if self._receiver is not None and not (
            hasattr(self, "_body") or hasattr(self, "_post")
        ):
            self._mark_post_parse_error()  # type: ignore[attr-defined]

    @contextmanager
    def _noting_errors(self) -> Iterator[None]:
        """Let what answers an error find an empty form, and not meet it again."""
        try:
            yield
        except (BodyTimeout, BodyTooLarge, UnreadablePostError):
            self._mark_post_parse_error()  # type: ignore[attr-defined]
            raise

    @contextmanager
    def _readable_content_length(self) -> Iterator[None]:
        value = self.META.get("CONTENT_LENGTH")
        if not value or value.isdecimal():
            yield
            return
        self.META["CONTENT_LENGTH"] = ""
        try:
            yield
        finally:
            self.META["CONTENT_LENGTH"] = value


class _Chunks:
    """The body of a request, for an ``async for``."""

    def __init__(self, request: RequestWithBody) -> None:
        self._request = request

    def __aiter__(self) -> _Chunks:
        return self

    async def __anext__(self) -> bytes:
        _check_trio("stream")
        self._request._read_started = True
        chunk = await self._read_chunk()
        if not chunk:
            raise StopAsyncIteration
        return chunk

    async def _read_chunk(self) -> bytes:
        request = self._request
        receiver, file = request._receiver, request._stream
        if receiver is None or hasattr(request, "_body"):
            return await _read_block(file)
        if file.raw.was_read:
            # By sync code. There may be more in the file's buffer.
            chunk: bytes = await request._read_in_thread(file.read1)
            return chunk
        try:
            return await receiver.read_chunk()
        except ClientDisconnected:
            await trio.lowlevel.checkpoint_if_cancelled()
            raise UnreadablePostError(LEFT_EARLY) from None


async def _read_block(file: Any) -> bytes:
    """Read from a body that was read before: in a thread if it is on disk."""
    if isinstance(file, io.BytesIO) or not getattr(file, "_rolled", True):
        await trio.lowlevel.checkpoint()
        block: bytes = file.read(_BLOCK_SIZE)
    else:
        block = await current_pool().run_sync(lambda: file.read(_BLOCK_SIZE))
    return block


def _memory_limit() -> int | None:
    limit: int | None = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
    return limit


def _check_size(size: int) -> None:
    limit = _memory_limit()
    if limit is not None and size > limit:
        raise RequestDataTooBig(
            "Request body exceeded settings.DATA_UPLOAD_MAX_MEMORY_SIZE."
        )


def _check_trio(name: str) -> None:
    if not in_trio_task():
        raise RuntimeError(
            f"request.{name}() was called outside Trio. Code of asyncio calls it by "
            f"trio_asgi.trio_island(request.{name}); sync code has request.read()."
        )

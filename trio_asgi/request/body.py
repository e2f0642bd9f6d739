"""How async code and sync code read the body of a request."""

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

#: How many bytes of a body are read at a time.
_BLOCK_SIZE: Final = 2**18

_FORM_WITH_FILES: Final = "multipart/form-data"
_FORMS: Final = ("application/x-www-form-urlencoded", _FORM_WITH_FILES)


class RequestWithBody(asgi.ASGIRequest):
    """Django's request, with two ways for async code to read the body.

    Either the body was read into a file before the view started. Or it is received
    while it is read, by one reader at a time.
    """

    #: Where the body comes from while the view runs; None if it was read before.
    _receiver: Receiver | None = None
    # Django's attributes.
    _read_started: bool
    _stream: Any

    def __init__(self, scope: Scope, body_file: IO[bytes]) -> None:
        """Take the body from a file: `open_body`'s, or one at its beginning."""
        super().__init__(scope, body_file)
        self._receiver = getattr(getattr(body_file, "raw", None), "receiver", None)

    @property
    def _is_arriving(self) -> bool:
        """Whether reading the body means to wait for the client."""
        return self._receiver is not None and not hasattr(self, "_body")

    # For async code

    def stream(self) -> AsyncIterator[bytes]:
        """Return the body's bytes as they come: ``async for chunk in ...``.

        For Trio code. The server decides the sizes of chunks. A slow reader slows the
        client down. Also works for a body that was read before the view, and continues
        where sync code has stopped. The iterator can be left at any time.

        A disconnect cancels the view. Bytes that a thread was reading when the task was
        cancelled are lost. Errors are raised while iterating.

        Raises:
            UnreadablePostError: the client has left, but the task is not cancelled.
            BodyTooLarge, BodyTimeout: the body is too large, or comes too slowly.
            RuntimeError: not in a Trio task.
        """
        return _Chunks(self)

    async def aread(self) -> bytes:
        """Read the body, so that async code can use ``body``, ``POST`` and ``FILES``.

        The upload handlers parse a form with files in the request's thread, as it comes
        in. Any other body is read into memory. Does nothing the second time.

        Returns:
            The body; for a form with files, no bytes.

        Raises:
            trio.Cancelled: the client has left, for example.
            RequestDataTooBig: it is not a form with files, and is larger than
                ``DATA_UPLOAD_MAX_MEMORY_SIZE`` bytes. Django answers with 400.
            RawPostDataException: some of it was read as a stream.
            BodyTooLarge, BodyTimeout: as `stream`.
            RuntimeError: not called in a Trio task.
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
            data = bytearray()
            async for chunk in self.stream():
                data += chunk
                if _is_too_large(len(data)):
                    break
            self._keep(bytes(data))
        return self.body

    async def _read_in_thread(self, read: Callable[[], Any]) -> Any:
        try:
            return await hop(read)
        except OSError as error:
            # Most likely the disconnect has cancelled this task.
            await trio.lowlevel.checkpoint_if_cancelled()
            raise UnreadablePostError(*error.args) from error

    # Django's methods: for sync code, and for async code once the body was read

    @property
    def body(self) -> bytes:
        """The whole body, as Django documents it.

        Raises:
            SynchronousOnlyOperation: async code used this before the body was read.
        """
        if self._is_arriving and not self._read_started:
            self._check_not_on_loop("body")
            self._check_announced_size()
            with self._noting_errors():
                self._keep(self._read_up_to_limit())
        with self._readable_content_length():
            return super().body

    def _read_up_to_limit(self) -> bytes:
        """Read a body whose length may be unknown; stop soon after the limit."""
        data = bytearray()
        while block := self.read(_BLOCK_SIZE):
            data += block
            if _is_too_large(len(data)):
                break
        return bytes(data)

    def read(self, *args: Any, **kwargs: Any) -> bytes:
        """Read bytes of the body, as Django documents it. For sync code.

        Raises:
            SynchronousOnlyOperation: async code used this before the body was read.
            UnreadablePostError: the client has left.
        """
        self._check_not_on_loop("read()")
        return super().read(*args, **kwargs)

    def readline(self, *args: Any, **kwargs: Any) -> bytes:
        """Read a line, in the way of `read`."""
        self._check_not_on_loop("readline()")
        return super().readline(*args, **kwargs)

    def _load_post_and_files(self) -> None:
        is_form = self.method == "POST" and self.content_type in _FORMS
        if is_form and not self._read_started:
            self._check_not_on_loop("POST or request.FILES")
        with self._noting_errors():
            super()._load_post_and_files()

    def parse_file_upload(self, META: Any, post_data: Any) -> Any:  # noqa: N803
        """Parse a form with files; if that fails, close the incomplete file, too.

        Django closes only complete files. It also takes a body without
        ``Content-Length`` to be empty, but it may be chunked.
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
        """Return the body's length; if that is unknown, the largest possible one."""
        if self._is_arriving:
            return sys.maxsize
        length: int = self._stream.seek(0, io.SEEK_END)
        self._stream.seek(0)
        return length

    def _check_not_on_loop(self, what: str) -> None:
        if self._is_arriving and in_trio_run():
            raise SynchronousOnlyOperation(
                f"Async code asked for request.{what} before the body was read. "
                "Waiting for it would stop all other requests. Use 'await "
                "request.aread()' first, or 'async for chunk in request.stream()'; in "
                "asyncio code, 'await trio_asgi.trio_island(request.aread)()'."
            )

    def _check_announced_size(self) -> None:
        """Raise RequestDataTooBig, as Django does, if the body will be too large."""
        length = self.META.get("CONTENT_LENGTH") or ""
        if length.isdecimal():
            _check_size(int(length))

    def _keep(self, data: bytes) -> None:
        _check_size(len(data))
        self._body = data
        self._stream = io.BytesIO(data)

    def give_up_form(self) -> None:
        """Show an empty form to code that reports an error, and must not wait."""
        if self._is_arriving and not hasattr(self, "_post"):
            self._mark_post_parse_error()  # type: ignore[attr-defined]

    @contextmanager
    def _noting_errors(self) -> Iterator[None]:
        """Show an empty form to code that answers an error of the body."""
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
            # Sync code has read. There may be more in the file's buffer.
            chunk: bytes = await request._read_in_thread(file.read1)
            return chunk
        try:
            return await receiver.read_chunk()
        except ClientDisconnected:
            await trio.lowlevel.checkpoint_if_cancelled()
            raise UnreadablePostError(LEFT_EARLY) from None


async def _read_block(file: IO[bytes]) -> bytes:
    """Read from a body that was read before the view; in a thread if it is on disk."""
    if isinstance(file, io.BytesIO) or not getattr(file, "_rolled", True):
        await trio.lowlevel.checkpoint()
        return file.read(_BLOCK_SIZE)
    return await current_pool().run_sync(lambda: file.read(_BLOCK_SIZE))


def _is_too_large(size: int) -> bool:
    limit: int | None = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
    return limit is not None and size > limit


def _check_size(size: int) -> None:
    if _is_too_large(size):
        raise RequestDataTooBig(
            "Request body exceeded settings.DATA_UPLOAD_MAX_MEMORY_SIZE."
        )


def _check_trio(name: str) -> None:
    if not in_trio_task():
        raise RuntimeError(
            f"request.{name}() was called outside Trio. asyncio code can call "
            f"trio_asgi.trio_island(request.{name}); sync code has request.read()."
        )

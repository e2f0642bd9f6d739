"""Chooses the stream for the sync content of a response: an iterator or a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trio_asgi.threads.current import current_pool

from .file_stream import DiskFileStream, FileStream, disk_file
from .files import MAKE_BYTES, file_of, is_plain, plain_file
from .thread_stream import ThreadStream

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.http import StreamingHttpResponse


def thread_stream(response: StreamingHttpResponse) -> ThreadStream:
    """Return the stream that sends the sync content of a response."""
    make_bytes = _bytes_maker(response)
    file = file_of(response)
    if file is None:
        return ThreadStream(response._iterator, make_bytes)  # type: ignore[attr-defined]
    length = response.headers.get("Content-Length", "")
    size = int(length) if length.isdecimal() else None
    if not is_plain(file):
        return FileStream(file, make_bytes, size=size)
    run = current_pool().run_sync
    on_disk = disk_file(plain_file(file))
    if on_disk is not None:
        return DiskFileStream(on_disk, size=size, run=run)
    return FileStream(file, make_bytes, size=size, run=run)


def _bytes_maker(response: StreamingHttpResponse) -> Callable[[Any], bytes]:
    """Return the response's ``make_bytes``, or a faster equivalent of Django's.

    Django's looks up the charset for each part, which costs more than most rows of CSV.
    """
    make_bytes: Callable[[Any], bytes] = response.make_bytes
    if not MAKE_BYTES.is_code_of(type(response).make_bytes):
        return make_bytes
    charset = response.charset

    def make_bytes_of_part(part: Any) -> bytes:
        return part.encode(charset) if type(part) is str else make_bytes(part)

    return make_bytes_of_part

"""The file of a response: whether it has one, and which thread may read it."""

from __future__ import annotations

import io
import os
import tempfile
from typing import IO, Any, Final

from django.core.files import utils
from django.core.files.utils import FileProxyMixin
from django.http import FileResponse, response as response_module
from django.http.response import HttpResponseBase

from trio_asgi.bridge.originals import Original

from .byte_ranges import PieceReader

_PLAIN: Final = (io.BufferedReader, io.BufferedRandom, io.FileIO, io.BytesIO)
_BLOCKS_OF_A_FILE: Final = type(iter(int, 1))

# A tool, or the project, may have replaced these.
_READ: Final = Original(vars(FileProxyMixin)["read"].fget, utils)
MAKE_BYTES: Final = Original(HttpResponseBase.make_bytes, response_module)
_SET_CONTENT: Final = Original(
    FileResponse._set_streaming_content,  # type: ignore[attr-defined]
    response_module,
)


def file_of(response: HttpResponseBase) -> IO[Any] | None:
    """Return the file that a response sends; None if it sends something else.

    That includes a file that middleware has wrapped.
    """
    file: IO[Any] | None = getattr(response, "file_to_stream", None)
    if file is None or type(response._iterator) is not _BLOCKS_OF_A_FILE:  # type: ignore[attr-defined]
        return None
    # A subclass may send something else.
    kind: Any = type(response)
    if _SET_CONTENT.is_code_of(kind._set_streaming_content) and MAKE_BYTES.is_code_of(
        kind.make_bytes
    ):
        return file
    return None


def sends_file(response: HttpResponseBase) -> bool:
    """Return whether a response sends a plain file, which any thread may read."""
    file = file_of(response)
    return file is not None and is_plain(file)


def is_plain(file: object) -> bool:
    """Return whether a file, or the file of a `PieceReader`, is a plain one.

    Any thread may read it. A file of another class may read from something that belongs
    to the request's thread, such as a database.
    """
    if isinstance(file, PieceReader):
        file = file.file
    return plain_file(file) is not None


def path_to_send(file: object, length: str | None) -> str | None:
    """Return the path by which a server can send a whole file itself.

    None if its name no longer leads to it, or not all of it is to be sent: ``length``
    is the ``Content-Length``. Asks the file system, so it runs in a worker thread.
    """
    plain = plain_file(file)
    name = getattr(plain, "name", None)
    if plain is None or not isinstance(name, str):
        return None
    path = os.path.abspath(name)  # noqa: PTH100 - resolves no links
    try:
        status = os.fstat(plain.fileno())
        is_whole = plain.tell() == 0 and length == str(status.st_size)
        # The name may lead elsewhere by now, or may never have named a file.
        if is_whole and os.path.samestat(status, os.stat(path)):  # noqa: PTH116
            return path
    except (OSError, ValueError):
        pass
    return None


def plain_file(file: Any) -> Any:
    """Return the file inside the wrappers of Django and tempfile; None if not plain."""
    while type(file) not in _PLAIN:
        if type(file) is tempfile._TemporaryFileWrapper:
            file = file.file
        elif _forwards_reading(type(file)):
            # Not `file.file`, which would open the file of a model's field.
            file = vars(file).get("_file") or vars(file).get("file")
        else:
            return None
    # The raw file below the buffer may be of any class.
    raw = getattr(file, "raw", None)
    return file if raw is None or type(raw) is io.FileIO else None


def _forwards_reading(kind: type) -> bool:
    """Return whether a class forwards reading as Django's `File` does."""
    read = getattr(kind, "read", None)
    return type(read) is property and _READ.is_code_of(read.fget)

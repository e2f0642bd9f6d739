"""The files of responses: which are there, and what may be done with them."""

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

# A tool, or the project, may have put something in their place.
_READ: Final = Original(vars(FileProxyMixin)["read"].fget, utils)
MAKE_BYTES: Final = Original(HttpResponseBase.make_bytes, response_module)
_SET_CONTENT: Final = Original(
    FileResponse._set_streaming_content,  # type: ignore[attr-defined]
    response_module,
)


def file_of(response: HttpResponseBase) -> IO[Any] | None:
    """Return the file that a response sends; None if it sends something else.

    Middleware may have put something around the file: then it is no file any more.
    """
    file: IO[Any] | None = getattr(response, "file_to_stream", None)
    if file is None or type(response._iterator) is not _BLOCKS_OF_A_FILE:  # type: ignore[attr-defined]
        return None
    # A subclass may make something else of the file.
    kind: Any = type(response)
    if _SET_CONTENT.is_code_of(kind._set_streaming_content) and MAKE_BYTES.is_code_of(
        kind.make_bytes
    ):
        return file
    return None


def sends_file(response: HttpResponseBase) -> bool:
    """Whether a response sends a plain file, which any thread may read."""
    file = file_of(response)
    return file is not None and is_plain(file)


def is_plain(file: object) -> bool:
    """Whether any thread may read a file, since it is no more than that.

    Not so is a file of somebody's own class: what it reads from, a database for
    example, may belong to the request's thread. Sections of a file are what it is.
    """
    if isinstance(file, PieceReader):
        file = file.file
    return plain_file(file) is not None


def path_to_send(file: object, length: str | None) -> str | None:
    """Return the path under which a server can send a whole file by itself.

    Args:
        file: What the response would send.
        length: Its ``Content-Length``.

    Returns:
        None if it is not on disk under its name any more, or not to be sent from its
        beginning to its end. Asks the file system: for a worker thread.
    """
    plain = plain_file(file)
    name = getattr(plain, "name", None)
    if plain is None or not isinstance(name, str):
        return None
    path = os.path.abspath(name)  # noqa: PTH100 - resolves no links
    try:
        status = os.fstat(plain.fileno())
        is_whole = plain.tell() == 0 and length == str(status.st_size)
        # The name may lead elsewhere by now, or may never have been one of a file.
        if is_whole and os.path.samestat(status, os.stat(path)):  # noqa: PTH116
            return path
    except (OSError, ValueError):
        pass
    return None


def plain_file(file: Any) -> Any:
    """Take off what Django and tempfile put around a file; None if it is not plain."""
    while type(file) not in _PLAIN:
        if type(file) is tempfile._TemporaryFileWrapper:
            file = file.file
        elif _forwards_reading(type(file)):
            # Not `file.file`, which would open the file of a model's field.
            file = vars(file).get("_file") or vars(file).get("file")
        else:
            return None
    # Below the buffer there may be a class of somebody's own.
    raw = getattr(file, "raw", None)
    return file if raw is None or type(raw) is io.FileIO else None


def _forwards_reading(kind: type) -> bool:
    """Whether reading is left to the file below, as Django's `File` does it."""
    read = getattr(kind, "read", None)
    return type(read) is property and _READ.is_code_of(read.fget)

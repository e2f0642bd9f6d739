"""A request's body, read whole into a file before the view starts."""

from __future__ import annotations

import functools
import io
import tempfile
from typing import IO, TYPE_CHECKING

from django.conf import settings
from django.core.exceptions import RequestAborted

from . import conf
from ._body_stream import BodyFile
from ._offload import finish_in_thread
from ._worker import current_pool

if TYPE_CHECKING:
    from ._types import Receive


async def spool_body(receive: Receive) -> IO[bytes]:
    """Read a body into a file, which is in memory up to a size, as Django does it.

    Each write to disk happens in a thread.

    Raises:
        RequestAborted: the client left before the body was complete.
        Exception: what ``receive`` raises.
    """
    limit = settings.FILE_UPLOAD_MAX_MEMORY_SIZE
    chunk, more_body = await _receive_chunk(receive)
    if not (chunk or more_body):
        return io.BytesIO()  # as most are
    file = tempfile.SpooledTemporaryFile(max_size=limit, mode="w+b")  # noqa: SIM115
    size = 0
    try:
        while chunk or more_body:
            size += len(chunk)
            if size > limit > 0:
                await current_pool().run_sync(functools.partial(file.write, chunk))
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
    """Close the file of a body, whatever is cancelled.

    In a thread, if it is on disk: to free gigabytes there takes a while. After
    ``CLEANUP_SECONDS`` that goes on alone.
    """
    if file.closed:
        return
    if isinstance(file, (io.BytesIO, BodyFile)) or not getattr(file, "_rolled", True):
        file.close()
    else:
        await finish_in_thread(file.close, conf.get("CLEANUP_SECONDS"))


async def _receive_chunk(receive: Receive) -> tuple[bytes, bool]:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise RequestAborted
    return message.get("body") or b"", message.get("more_body", False)

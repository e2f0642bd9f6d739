"""Range requests for any `FileResponse`, under this package's handler or Django's."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, Final, TypeVar

from django.http.response import ResponseHeaders
from django.utils.http import parse_http_date_safe

from .response.byte_ranges import PieceReader, length, multipart, parse_ranges

if TYPE_CHECKING:
    from collections.abc import Sequence

    from django.http import HttpRequest
    from django.http.response import HttpResponseBase

    from .response.byte_ranges import Piece, Section

    Response = TypeVar("Response", bound=HttpResponseBase)

#: Checked by `ConditionalGetMiddleware`, unless the response is already an error.
_PRECONDITIONS: Final = (
    "HTTP_IF_MATCH",
    "HTTP_IF_NONE_MATCH",
    "HTTP_IF_MODIFIED_SINCE",
    "HTTP_IF_UNMODIFIED_SINCE",
)


def apply_range(request: HttpRequest, response: Response) -> Response:
    """Answer a range request: change the response, and return it.

    It becomes a 206 with the requested parts of the file, or a 416 if the file has none
    of them. It stays unchanged unless it answers GET or HEAD with status 200, a file
    that can seek, a Content-Length and no Content-Encoding, and without
    ``Accept-Ranges: none``. Otherwise it gets ``Accept-Ranges: bytes``, and middleware
    further out does not compress it: a client could not join such parts.

    Only asks the file whether it can seek, for its position, and for zero bytes, so it
    may be called on the loop, unless the file is of a class that waits for I/O then.
    The file is read when the response is sent, and closed with it.

    The request's Range and If-Range headers count. The response has the whole file.
    """
    size = _size(request, response)
    if size is None:
        return response
    response.headers["Accept-Ranges"] = "bytes"
    request.META["HTTP_ACCEPT_ENCODING"] = "identity"
    header = request.META.get("HTTP_RANGE")
    if header is None or request.method != "GET" or not _is_current(request, response):
        return response
    sections = parse_ranges(header, size)
    if sections:
        _make_partial(response, sections, size)
    elif sections is not None and request.META.keys().isdisjoint(_PRECONDITIONS):
        _make_unsatisfiable(response, size)
    return response


def _size(request: HttpRequest, response: Any) -> int | None:
    """Return the size of the file; None if the response cannot have ranges."""
    file = getattr(response, "file_to_stream", None)
    size = response.headers.get("Content-Length", "")
    if (
        file is None
        or response.status_code != 200  # noqa: PLR2004
        or request.method not in ("GET", "HEAD")
        or not size.isdecimal()
        or response.has_header("Content-Encoding")
        or response.headers.get("Accept-Ranges") == "none"
        or not _can_seek(file)
        # Positions in a text are not in bytes.
        or not isinstance(file.read(0), bytes)
    ):
        return None
    return int(size)


def _can_seek(file: Any) -> bool:
    # As `FileResponse` checks it.
    return (
        hasattr(file, "seek")
        and hasattr(file, "tell")
        and (not hasattr(file, "seekable") or file.seekable())
    )


def _is_current(request: HttpRequest, response: HttpResponseBase) -> bool:
    """Return whether the file still meets If-Range, or there is no such condition."""
    condition = request.META.get("HTTP_IF_RANGE")
    if condition is None:
        return True
    if condition.startswith('"'):
        return bool(condition == response.headers.get("ETag"))
    # A weak ETag is not a date, and never matches.
    date = parse_http_date_safe(condition)
    modified = parse_http_date_safe(response.headers.get("Last-Modified", ""))
    return date is not None and date == modified


def _make_partial(response: Any, sections: Sequence[Section], size: int) -> None:
    pieces: Sequence[Piece] = sections
    file, headers = response.file_to_stream, response.headers
    if len(sections) == 1:
        headers["Content-Range"] = sections[0].content_range(size)
    else:
        boundary = secrets.token_hex(16)
        content_type = headers.get("Content-Type")
        pieces = multipart(
            sections, size=size, content_type=content_type, boundary=boundary
        )
        headers["Content-Type"] = f"multipart/byteranges; boundary={boundary}"
    headers["Content-Length"] = str(length(pieces))
    response.status_code = 206
    _replace_content(response, PieceReader(file, pieces, offset=file.tell()))


def _make_unsatisfiable(response: Any, size: int) -> None:
    _replace_content(response, ())
    response.status_code = 416
    for name in ("Content-Type", "Content-Disposition"):
        response.headers.pop(name, None)
    # The view's caching headers are meant for the file.
    response.headers["Cache-Control"] = "no-store"
    response.headers["Content-Range"] = f"bytes */{size}"
    response.headers["Content-Length"] = "0"


def _replace_content(response: Any, content: Any) -> None:
    """Set the content; the file is still closed with the response."""
    headers = response.headers
    # Django would guess headers again, and replace the view's.
    response.headers = ResponseHeaders({})
    try:
        response.streaming_content = content
    finally:
        response.headers = headers

"""Range requests for any `FileResponse`.

`response.byte_ranges` says which sections a request gets; here is what becomes of the
response, under this package's handler or Django's own.
"""

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

_OK: Final = 200
_PARTIAL: Final = 206
_UNSATISFIABLE: Final = 416

#: What `ConditionalGetMiddleware` judges, unless the answer is an error already.
_PRECONDITIONS: Final = (
    "HTTP_IF_MATCH",
    "HTTP_IF_NONE_MATCH",
    "HTTP_IF_MODIFIED_SINCE",
    "HTTP_IF_UNMODIFIED_SINCE",
)


def apply_range(request: HttpRequest, response: Response) -> Response:
    """Answer a request for parts of a file.

    The response is changed, and returned. It becomes a 206 with what the request has
    asked for, or a 416 if the file has none of it. Any other response than one to GET
    or HEAD, of status 200, with a file that can seek, a Content-Length and no
    Content-Encoding is returned as it was; so is one that says ``Accept-Ranges: none``.
    What remains says that it can be asked for parts, and is not compressed by
    middleware further out: nobody could put such parts together.

    Does no I/O but to ask the file whether it can seek, and for its position, so it may
    be called on the loop, unless the file is of a class that waits for something then.
    The file is read when the response is sent, and closed with it.

    Args:
        request: The request; its Range and If-Range count.
        response: The whole answer to it.
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
    """Return the size of the file; None for what has no parts to be asked for."""
    file = getattr(response, "file_to_stream", None)
    size = response.headers.get("Content-Length", "")
    if (
        file is None
        or response.status_code != _OK
        or request.method not in ("GET", "HEAD")
        or not size.isdecimal()
        or response.has_header("Content-Encoding")
        or response.headers.get("Accept-Ranges") == "none"
        or not _can_seek(file)
        # In text positions are no bytes.
        or not isinstance(file.read(0), bytes)
    ):
        return None
    return int(size)


def _can_seek(file: Any) -> bool:
    # As Django asks before it looks for the size.
    return (
        hasattr(file, "seek")
        and hasattr(file, "tell")
        and (not hasattr(file, "seekable") or file.seekable())
    )


def _is_current(request: HttpRequest, response: HttpResponseBase) -> bool:
    """Whether the client has parts of this very file, or does not say: If-Range."""
    condition = request.META.get("HTTP_IF_RANGE")
    if condition is None:
        return True
    if condition.startswith('"'):
        return bool(condition == response.headers.get("ETag"))
    # A weak ETag is no date either.
    date = parse_http_date_safe(condition)
    modified = response.headers.get("Last-Modified")
    return (
        date is not None
        and modified is not None
        and (date == parse_http_date_safe(modified))
    )


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
    response.status_code = _PARTIAL
    _replace_content(response, PieceReader(file, pieces, offset=file.tell()))


def _make_unsatisfiable(response: Any, size: int) -> None:
    _replace_content(response, ())
    response.status_code = _UNSATISFIABLE
    for name in ("Content-Type", "Content-Disposition"):
        response.headers.pop(name, None)
    # What the view says of caching, it says of the file.
    response.headers["Cache-Control"] = "no-store"
    response.headers["Content-Range"] = f"bytes */{size}"
    response.headers["Content-Length"] = "0"


def _replace_content(response: Any, content: Any) -> None:
    """Set the content; the file stays among what is closed with the response."""
    headers = response.headers
    # Django takes the opportunity to guess headers anew, over those of the view.
    response.headers = ResponseHeaders({})
    try:
        response.streaming_content = content
    finally:
        response.headers = headers

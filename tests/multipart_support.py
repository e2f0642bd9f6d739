"""What tests of forms with files share: bodies, and requests that have one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from support import http_scope
from trio_asgi import ASGIRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from django.core.files.uploadhandler import FileUploadHandler

BOUNDARY = b"----leaves"
CONTENT_TYPE = b"multipart/form-data; boundary=" + BOUNDARY
END = b"--" + BOUNDARY + b"--\r\n"


def part(content: bytes, *headers: bytes) -> bytes:
    """Return one part of a body, with these headers unchanged."""
    return b"\r\n".join([b"--" + BOUNDARY, *headers, b"", content, b""])


def field_part(content: bytes, *, name: bytes = b"field") -> bytes:
    """Return a part that is a field."""
    return part(content, b'Content-Disposition: form-data; name="%s"' % name)


def file_part(
    content: bytes,
    *headers: bytes,
    name: bytes = b"file",
    filename: bytes = b"leaves.bin",
) -> bytes:
    """Return a part that is a file."""
    disposition = b'Content-Disposition: form-data; name="%s"; filename="%s"'
    return part(
        content,
        disposition % (name, filename),
        b"Content-Type: application/octet-stream",
        *headers,
    )


def form_headers(
    length: int, content_type: bytes = CONTENT_TYPE
) -> list[tuple[bytes, bytes]]:
    """Return the headers of a request with such a body."""
    return [
        (b"content-type", content_type),
        (b"content-length", b"%d" % length),
    ]


class Body:
    """A body that comes in pieces, and can fail in the middle of them."""

    def __init__(self, pieces: Iterable[bytes | BaseException]) -> None:
        self._pieces = iter(pieces)

    def read(self, size: int = -1) -> bytes:
        """Return the next piece, whatever its size."""
        piece = next(self._pieces, b"")
        if isinstance(piece, BaseException):
            raise piece
        return piece

    readline = read

    def close(self) -> None:
        """Do nothing, because nothing is open."""


def form_request(
    body: bytes | Iterable[bytes | BaseException],
    *,
    handlers: Sequence[Callable[[ASGIRequest], FileUploadHandler]] = (),
) -> ASGIRequest:
    """Return a request with a form, whole or in pieces, for these handlers to parse."""
    scope = http_scope(method="POST", headers=form_headers(2**40))
    stream: Any = Body([body] if isinstance(body, bytes) else body)
    request = ASGIRequest(scope, stream)
    if handlers:
        request.upload_handlers = [make(request) for make in handlers]
    return request

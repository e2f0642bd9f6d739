"""ServeStatic's middleware, which sends its files as this package sends any file.

ServeStatic finds the files and their headers: once, unless ``DEBUG`` is set. Its code
for each request is replaced by Django's or this package's; for the reasons see
``docs/design/files.md``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from asgiref.sync import sync_to_async
from django.http import FileResponse, Http404, HttpResponse
from django.utils.cache import get_conditional_response
from django.utils.http import parse_http_date_safe

# ServeStatic does not export its types.
from servestatic import middleware  # type: ignore[import-untyped]
from servestatic.responders import StaticFile  # type: ignore[import-untyped]

from .ranges import apply_range

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from django.http import HttpRequest
    from django.http.response import HttpResponseBase

#: Browsers need it even in a 304, if another site asks.
_ORIGIN: Final = "Access-Control-Allow-Origin"


class ServeStaticMiddleware(middleware.ServeStaticMiddleware):  # type: ignore[misc]
    """Serves static files in production; configured by ServeStatic's settings.

    Async: other requests pass it without a hop. Opening a file takes one hop; the file
    is then read like that of any `FileResponse`. 304 and HEAD take none.
    """

    def __init__(
        self, get_response: Callable[[HttpRequest], Awaitable[HttpResponseBase]]
    ) -> None:
        """Find all files, unless ``DEBUG`` is set."""

        async def call(request: HttpRequest) -> HttpResponseBase:
            return await get_response(request)

        # Below Python 3.12, ServeStatic takes a function that asgiref has adapted, as
        # for Django's test client, to be sync.
        super().__init__(call)

    def get_static_file(self, path: str, url: str, stat_cache: Any = None) -> Any:
        """Return a file with its headers and its compressed variants.

        ServeStatic does not know ``.zst``, which the tools of Zstandard write.
        """
        found = super().get_static_file(path, url, stat_cache=stat_cache)
        encodings = {name: path for name, path, _ in found.alternatives if name}
        if "zstd" in encodings:
            return found
        headers = next(headers for name, _, headers in found.alternatives if not name)
        encodings["zstd"] = f"{path}.zst"
        return StaticFile(path, headers, encodings, stat_cache)

    @staticmethod
    async def aserve(static_file: Any, request: HttpRequest) -> HttpResponseBase:
        """Answer a request for a file; called by ServeStatic.

        Raises:
            Http404: the file is gone.
        """
        is_file = isinstance(static_file, StaticFile)
        if not is_file or request.method not in ("GET", "HEAD"):
            serve = middleware.ServeStaticMiddleware.aserve
            return await serve(static_file, request)  # type: ignore[no-any-return]
        path, headers = _select(static_file, request)
        head = HttpResponse(headers=headers)
        answer = _conditional(request, head)
        if answer is not head or request.method == "HEAD":
            return answer
        try:
            file = await sync_to_async(lambda: Path(path).open("rb"))()  # noqa: SIM115
        except FileNotFoundError as error:
            # Pages may show this, so it names no path on disk.
            raise Http404(f"The file at {request.path_info} is gone.") from error
        return apply_range(request, _Response(file, headers=headers))


class _Response(FileResponse):
    """A response whose headers are known."""

    def set_headers(self, filelike: Any) -> None:
        """Guess no headers."""


def _select(static_file: Any, request: HttpRequest) -> tuple[str, dict[str, str]]:
    """Return the path and the headers of the file to send, perhaps a compressed one."""
    path, items = static_file.get_path_and_headers(request.META)
    headers = {name: value for name, value in items if value is not None}
    encoding, etag = headers.get("Content-Encoding"), headers.get("ETag")
    if encoding and etag:
        # ServeStatic gives all variants the same ETag, though their bytes differ.
        headers["ETag"] = f'{etag[:-1]}-{encoding}"'
    if not encoding:
        headers.setdefault("Accept-Ranges", "bytes")
    return path, headers


def _conditional(request: HttpRequest, head: HttpResponse) -> HttpResponseBase:
    """Return a 304 or 412 if the request's conditions demand it; otherwise the head."""
    modified = head.headers.get("Last-Modified")
    answer = get_conditional_response(
        request,
        etag=head.headers.get("ETag"),
        last_modified=parse_http_date_safe(modified) if modified else None,
        response=head,
    )
    assert answer is not None
    if answer is not head and _ORIGIN in head.headers:
        answer.headers[_ORIGIN] = head.headers[_ORIGIN]
    return answer

"""ServeStatic's middleware, with its files sent as this package sends any file.

ServeStatic knows which files there are, and their headers; that is looked up once,
outside ``DEBUG``. What it does itself per request is less good on Trio, and here is
Django's or this package's instead; ``docs/design/files.md`` has the measurements.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from asgiref.sync import sync_to_async
from django.http import FileResponse, Http404, HttpResponse
from django.utils.cache import get_conditional_response
from django.utils.http import parse_http_date_safe

# ServeStatic has no types for others.
from servestatic import middleware  # type: ignore[import-untyped]
from servestatic.responders import StaticFile  # type: ignore[import-untyped]

from .ranges import apply_range

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from django.http import HttpRequest
    from django.http.response import HttpResponseBase

#: What even a 304 has to say to a browser that asked from another site.
_ORIGIN: Final = "Access-Control-Allow-Origin"


class ServeStaticMiddleware(middleware.ServeStaticMiddleware):  # type: ignore[misc]
    """Serves static files in production; set up by ServeStatic's own settings.

    Async: requests for anything else pass it without a hop. A file takes one to be
    opened, and is then read as any `FileResponse` is; 304 and HEAD take none.
    """

    def __init__(
        self, get_response: Callable[[HttpRequest], Awaitable[HttpResponseBase]]
    ) -> None:
        """Look the files up, outside ``DEBUG``."""

        async def call(request: HttpRequest) -> HttpResponseBase:
            return await get_response(request)

        # Below Python 3.12, ServeStatic takes what Django has adapted with asgiref, as
        # for its test client, for sync.
        super().__init__(call)

    def get_static_file(self, path: str, url: str, stat_cache: Any = None) -> Any:
        """Return a file with its headers and its compressed neighbours.

        Those are the ones that ServeStatic knows, and ``.zst``, which is what the
        tools of Zstandard write.
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
        if request.method not in ("GET", "HEAD") or not isinstance(
            static_file, StaticFile
        ):
            return await middleware.ServeStaticMiddleware.aserve(  # type: ignore[no-any-return]
                static_file, request
            )
        path, headers = _select(static_file, request)
        head = HttpResponse(headers=headers)
        answer = _conditional(request, head)
        if answer is not head or request.method == "HEAD":
            return answer
        try:
            file = await sync_to_async(_open)(path)
        except FileNotFoundError as error:
            # Pages may show this: it names no path of the disk.
            raise Http404(f"The file at {request.path_info} is gone.") from error
        return apply_range(request, _Response(file, headers=headers))


def _open(path: str) -> IO[bytes]:
    return Path(path).open("rb")


class _Response(FileResponse):
    """A response whose headers are known."""

    def set_headers(self, filelike: Any) -> None:
        """Leave them alone."""


def _select(static_file: Any, request: HttpRequest) -> tuple[str, dict[str, str]]:
    """Return the file that the client gets, maybe a compressed one, and its headers."""
    path, items = static_file.get_path_and_headers(request.META)
    headers = {name: value for name, value in items if value is not None}
    encoding, etag = headers.get("Content-Encoding"), headers.get("ETag")
    if encoding and etag:
        # ServeStatic gives all of them the same, though their bytes are not.
        headers["ETag"] = f'{etag[:-1]}-{encoding}"'
    if not encoding:
        headers.setdefault("Accept-Ranges", "bytes")
    return path, headers


def _conditional(request: HttpRequest, head: HttpResponse) -> HttpResponseBase:
    """Return a 304 or 412 if the request's conditions ask for it, or else the head."""
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

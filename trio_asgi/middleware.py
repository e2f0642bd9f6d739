"""Middleware for ``settings.MIDDLEWARE``; it works under Django's own handlers too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from django.utils.deprecation import MiddlewareMixin

from .ranges import apply_range
from .response.files import is_plain

if TYPE_CHECKING:
    from django.http import HttpRequest
    from django.http.response import HttpResponseBase


class RangeMiddleware(MiddlewareMixin):
    """Answers range requests for every `FileResponse` of the project.

    See `apply_range`. Below `GZipMiddleware`, files are not compressed. Above it,
    compressed files have no ranges.
    """

    loop_safe_hooks: Final = ("process_response",)

    def process_response(
        self, request: HttpRequest, response: HttpResponseBase
    ) -> HttpResponseBase:
        """Send the ranges that the request asks for. A plain file needs no thread."""
        return apply_range(request, response)

    def _is_loop_safe(self, _: HttpRequest, response: HttpResponseBase) -> bool:
        # A file of another class may do I/O when it is asked for its position, or
        # whether it can seek: connect to a remote storage, for example.
        file = getattr(response, "file_to_stream", None)
        return file is None or is_plain(file)

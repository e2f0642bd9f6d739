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
    """Lets every `FileResponse` of the project be asked for parts: see `apply_range`.

    Above `GZipMiddleware`, what that has compressed has no parts. Below it, files are
    not compressed.
    """

    loop_safe_hooks: Final = ("process_response",)

    def process_response(
        self, request: HttpRequest, response: HttpResponseBase
    ) -> HttpResponseBase:
        """Give the request the parts that it asks for. Needs no thread for a file."""
        return apply_range(request, response)

    def _is_loop_safe(self, _: HttpRequest, response: HttpResponseBase) -> bool:
        # A file of somebody's own class may do anything when it is asked if it can
        # seek, or where it stands: connect to a storage elsewhere, for example.
        file = getattr(response, "file_to_stream", None)
        return file is None or is_plain(file)

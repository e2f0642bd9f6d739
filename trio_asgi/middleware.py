"""Middleware for ``settings.MIDDLEWARE``; it works under Django's own handlers too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from django.utils.deprecation import MiddlewareMixin

from .ranges import apply_range

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
        """Give the request the parts that it asks for. Needs no thread."""
        return apply_range(request, response)

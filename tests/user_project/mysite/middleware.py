"""Sync middleware, which makes async views run below `async_to_sync`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from books.models import Book

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.http import HttpRequest, HttpResponse


def sync_middleware(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """Count the books before the view runs, and put the number into a header."""

    def middleware(request: HttpRequest) -> HttpResponse:
        count = 0 if request.path == "/nothing/" else Book.objects.count()
        response = get_response(request)
        response["X-Books"] = str(count)
        return response

    return middleware

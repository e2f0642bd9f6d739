"""The views of `wrapped`."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, NoReturn

from django.core.cache import cache
from django.core.files import File
from django.db import connection
from django.http import (
    FileResponse,
    Http404,
    HttpRequest,
    HttpResponse,
    StreamingHttpResponse,
)
from django.urls import path

if TYPE_CHECKING:
    from django.http import HttpResponseBase


def sync(request: HttpRequest) -> HttpResponse:
    """Use objects that must be closed, and the host's name."""
    connection.ensure_connection()
    cache.get("key")
    return HttpResponse(request.get_host())


async def asynchronous(request: HttpRequest) -> HttpResponse:
    """Use nothing."""
    return HttpResponse("hello")


def fails(request: HttpRequest) -> NoReturn:
    """Fail."""
    raise ValueError("on purpose")


async def missing(request: HttpRequest) -> NoReturn:
    """Raise an error that Django answers itself."""
    raise Http404


def file(request: HttpRequest) -> HttpResponseBase:
    """Send a file as a Django file."""
    return FileResponse(File(io.BytesIO(b"content"), name="name"))


def stream(request: HttpRequest) -> HttpResponseBase:
    """Send a stream."""
    return StreamingHttpResponse(iter(["a", "b"]))


urlpatterns = [
    path("sync/", sync),
    path("async/", asynchronous),
    path("fails/", fails),
    path("missing/", missing),
    path("file/", file),
    path("stream/", stream),
]

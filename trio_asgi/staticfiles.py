"""Static files during development, as ``django.contrib.staticfiles`` serves them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.contrib.staticfiles import handlers
from django.core.exceptions import SuspiciousFileOperation
from django.core.handlers.exception import response_for_exception
from django.http import Http404

from .asgi.wsgi import refuse_wsgi
from .handler import ASGIHandler
from .ranges import apply_range

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from django.http import FileResponse, HttpRequest, HttpResponse, HttpResponseBase


class ASGIStaticFilesHandler(  # type: ignore[misc] # as in Django itself
    handlers.ASGIStaticFilesHandler, ASGIHandler
):
    """Wraps an ASGI application, and serves static files in its place.

    Like Django's, this is for development: it finds each file with the finders of
    ``django.contrib.staticfiles``, with or without ``DEBUG``. Everything else, the
    lifespan included, goes to the application.
    """

    application: ASGIHandler

    __call__ = refuse_wsgi(handlers.ASGIStaticFilesHandler.__call__)

    def start_soon(
        self,
        async_fn: Callable[..., Awaitable[Any]],
        *args: Any,
        name: object = None,
        on_commit: bool = False,
        using: str | None = None,
    ) -> None:
        """Start a task in the application's lifespan; see `trio_asgi.start_soon`."""
        self.application.start_soon(
            async_fn, *args, name=name, on_commit=on_commit, using=using
        )

    def serve(self, request: HttpRequest) -> HttpResponse | FileResponse:
        """Return the file that the path names, or the requested parts of it.

        Raises:
            Http404: no such file, or the path leads out of the static directories.
        """
        try:
            response = super().serve(request)
        except SuspiciousFileOperation as error:
            # Pages may show this. The original error names a path on disk.
            raise Http404(
                f"{request.path_info} leads out of the static directories."
            ) from error
        if "HTTP_RANGE" in request.META:
            return apply_range(request, response)
        return response  # with the same headers as Django's

    async def get_response_async(self, request: HttpRequest) -> HttpResponseBase:
        """Find the file and make the response in the request's thread."""
        response = await sync_to_async(self._get_response_in_thread)(request)
        response._resource_closers.append(request.close)  # type: ignore[attr-defined]
        return response

    def _get_response_in_thread(self, request: HttpRequest) -> HttpResponseBase:
        try:
            return self.serve(request)
        except Exception as error:  # noqa: BLE001 - Django logs and answers it
            return response_for_exception(request, error)

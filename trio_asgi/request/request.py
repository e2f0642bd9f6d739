"""Scope and body to a Django request."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any, Final

from django.core.handlers import asgi
from django.core.handlers.asgi import get_script_prefix

from trio_asgi.bridge.originals import Original

from .body import RequestWithBody

if TYPE_CHECKING:
    from django.http import HttpResponseBase

    from trio_asgi.asgi.types import Scope

    from .signals import RequestSignals


class ASGIRequest(RequestWithBody):
    """Django's request, with what Django 6.1 mended also on 5.2 and 6.0.

    These are: several ``Cookie`` headers, as HTTP/2 sends them, are joined with a
    semicolon; the script prefix is only taken off the path at a ``/``; and a
    ``Content-Length`` that is no number counts as none. New are `stream` and `aread`,
    by which async code reads the body.
    """

    #: The view's response, for closing if the request is cancelled before the handler
    #: has it. Set by the handler.
    view_response: HttpResponseBase | None = None

    #: Its two signals. Set by the handler.
    _signals: RequestSignals | None = None

    def __init__(self, scope: Scope, body_file: IO[bytes]) -> None:
        """Make a request of an ASGI scope and a file with the body, at its beginning.

        Raises:
            UnicodeDecodeError: the query string is not UTF-8.
        """
        super().__init__(_join_cookies(scope), body_file)
        self.scope = scope
        self.path_info = self.META["PATH_INFO"] = path_info_of(scope)


def _join_cookies(scope: Scope) -> Scope:
    cookies = [
        value.rstrip(b"; ")
        for name, value in scope.get("headers", [])
        if name == b"cookie"
    ]
    if len(cookies) < 2:  # noqa: PLR2004 - nothing to join
        return scope
    headers = [header for header in scope["headers"] if header[0] != b"cookie"]
    return {**scope, "headers": [*headers, (b"cookie", b"; ".join(cookies))]}


def path_info_of(scope: Scope) -> str:
    """Return a path without the script prefix, as URLs are resolved by it."""
    path: str = scope["path"]
    prefix = get_script_prefix(scope).rstrip("/")
    if path == prefix or path.startswith(prefix + "/"):
        return path[len(prefix) :]
    return path


_CREATE_REQUEST: Final = Original(asgi.ASGIHandler.create_request, asgi)


def makes_plain_requests(handler: Any) -> bool:
    """Whether nobody can tell that a request is made before ``request_started``.

    So that signal can share a hop with the first hooks.
    """
    return (
        _CREATE_REQUEST.is_code_of(type(handler).create_request)
        and handler.request_class.__init__ is ASGIRequest.__init__
    )

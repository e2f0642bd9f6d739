"""The request class, which makes a Django request from an ASGI scope and a body."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any, Final

import django
from django.core.handlers import asgi
from django.core.handlers.asgi import get_script_prefix

from trio_asgi.bridge.originals import Original

from .body import RequestWithBody

if TYPE_CHECKING:
    from django.http import HttpResponseBase

    from trio_asgi.asgi.types import Scope

    from .signals import RequestSignals


#: Whether Django itself joins cookies and looks for the prefix's end.
_HAS_FIXES: Final = django.VERSION >= (6, 1)


class ASGIRequest(RequestWithBody):
    """Django's request, with `stream` and `aread`, and with fixes of Django 6.1.

    On 5.2 and 6.0, too, several ``Cookie`` headers, as HTTP/2 sends them, are joined by
    semicolons; the script prefix is only removed from a path at a ``/``; and a
    ``Content-Length`` that is not a number is ignored.
    """

    #: The view's response, which must be closed if the request is cancelled before the
    #: handler gets it. Set by the handler.
    view_response: HttpResponseBase | None = None

    #: Set by the handler.
    _signals: RequestSignals | None = None

    def __init__(self, scope: Scope, body_file: IO[bytes]) -> None:
        """Make a request from an ASGI scope and the body's file, at its beginning.

        Raises:
            UnicodeDecodeError: the query string is not UTF-8.
        """
        if _HAS_FIXES:
            super().__init__(scope, body_file)
            return
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
    """Return the scope's path without the script prefix, for resolving URLs."""
    path: str = scope["path"]
    prefix = get_script_prefix(scope).rstrip("/")
    if path == prefix or path.startswith(prefix + "/"):
        return path[len(prefix) :]
    return path


_CREATE_REQUEST: Final = Original(asgi.ASGIHandler.create_request, asgi)


def makes_plain_requests(handler: Any) -> bool:
    """Whether no project code runs when a request is made.

    Then ``request_started`` can be sent later, and share a hop with the first hooks.
    """
    return (
        _CREATE_REQUEST.is_code_of(type(handler).create_request)
        and handler.request_class.__init__ is ASGIRequest.__init__
    )

"""Scope and body to a Django request."""

from __future__ import annotations

from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from django.core.handlers import asgi
from django.core.handlers.asgi import get_script_prefix

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.http import HttpResponseBase

    from ._signals import RequestSignals
    from ._types import Scope


class ASGIRequest(asgi.ASGIRequest):
    """Django's request, with what Django 6.1 mended also on 5.2 and 6.0.

    These are: several ``Cookie`` headers, as HTTP/2 sends them, are joined with a
    semicolon; the script prefix is only taken off the path at a ``/``; and a
    ``Content-Length`` that is no number counts as none.
    """

    #: The view's response, for closing if the request is cancelled before the handler
    #: has it. Set by the handler.
    view_response: HttpResponseBase | None = None

    #: Its two signals. Set by the handler.
    _signals: RequestSignals | None = None

    #: Whether the view is asyncio's, and with it what it streams. Set by the handler.
    in_island = False

    def __init__(self, scope: Scope, body_file: IO[bytes]) -> None:
        """Make a request of an ASGI scope and a file with the body, at its beginning.

        Raises:
            UnicodeDecodeError: the query string is not UTF-8.
        """
        super().__init__(_join_cookies(scope), body_file)
        self.scope = scope
        self.path_info = self.META["PATH_INFO"] = _path_info(scope)

    @property
    def body(self) -> bytes:
        """The whole body; as Django documents it."""
        with self._readable_content_length():
            return super().body

    @contextmanager
    def _readable_content_length(self) -> Iterator[None]:
        value = self.META.get("CONTENT_LENGTH")
        if not value or value.isdecimal():
            yield
            return
        self.META["CONTENT_LENGTH"] = ""
        try:
            yield
        finally:
            self.META["CONTENT_LENGTH"] = value


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


def _path_info(scope: Scope) -> str:
    path: str = scope["path"]
    prefix = get_script_prefix(scope).rstrip("/")
    if path == prefix or path.startswith(prefix + "/"):
        return path[len(prefix) :]
    return path

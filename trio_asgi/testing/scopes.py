"""Scopes, as a server makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trio_asgi.asgi.types import Scope


def http_scope(
    path: str = "/",
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    **others: Any,
) -> Scope:
    """Return the scope that a server makes of an HTTP request.

    Args:
        path: The path of the URL, with ``?`` and a query string if there is one.
        method: The HTTP method.
        headers: Besides ``Host: testserver``, which they may replace.
        others: Any other keys of the scope, or these with other values.
    """
    raw_path, _, query_string = quote(path, safe="/?%:@!$&'()*+,;=~").partition("?")
    sent = {"host": "testserver"}
    sent.update((name.lower(), value) for name, value in (headers or {}).items())
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(raw_path),
        "raw_path": raw_path.encode(),
        "root_path": "",
        "query_string": query_string.encode(),
        "headers": [
            (name.encode("latin-1"), value.encode("latin-1"))
            for name, value in sent.items()
        ],
        "client": ("127.0.0.1", 50000),
        "server": ("testserver", 80),
        **others,
    }

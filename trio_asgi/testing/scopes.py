"""ASGI scopes like those of a server."""

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
    """Return the scope of an HTTP request, as a server makes it.

    ``path`` may have a query string. ``headers`` are added to ``Host: testserver``, or
    replace it. ``others`` are further keys of the scope, and may replace any key.
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

"""The types of ASGI's call: scope, receive, send."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

#: What the server says about a connection. Values have many types, hence ``Any``.
Scope: TypeAlias = dict[str, Any]
#: One ASGI event: ``{"type": "http.request", ...}``.
Message: TypeAlias = Mapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApplication: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

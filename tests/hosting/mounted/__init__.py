"""The hosted site inside other applications, which run on asyncio."""

from __future__ import annotations

from contextvars import ContextVar

#: Set by middleware of the outer application.
caller: ContextVar[str] = ContextVar("caller", default="nobody")

"""Tools for testing Django projects and other ASGI applications on Trio."""

from __future__ import annotations

from .client import AsyncClient, AsyncRequestFactory
from .communicator import ApplicationCommunicator
from .install import install
from .live_server import LiveServerThread
from .scopes import http_scope
from .threads import run, sync_context

__all__ = [
    "ApplicationCommunicator",
    "AsyncClient",
    "AsyncRequestFactory",
    "LiveServerThread",
    "http_scope",
    "install",
    "run",
    "sync_context",
]

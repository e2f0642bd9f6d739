"""Tools for testing Django projects and other ASGI applications on Trio."""

from __future__ import annotations

from trio_asgi.transactions import sync_context

from .client import AsyncClient, AsyncRequestFactory
from .communicator import ApplicationCommunicator
from .install import install
from .lifespan import lifespan
from .live_server import LiveServerThread
from .scopes import http_scope
from .threads import run

__all__ = [
    "ApplicationCommunicator",
    "AsyncClient",
    "AsyncRequestFactory",
    "LiveServerThread",
    "http_scope",
    "install",
    "lifespan",
    "run",
    "sync_context",
]

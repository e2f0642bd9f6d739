"""Tools for testing Django projects and other ASGI applications on Trio."""

from __future__ import annotations

from trio_asgi.transactions import sync_context

from .communicator import ApplicationCommunicator
from .scopes import http_scope
from .threads import run

__all__ = ["ApplicationCommunicator", "http_scope", "run", "sync_context"]

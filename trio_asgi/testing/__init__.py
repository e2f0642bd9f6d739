"""Tools for testing Django projects and other ASGI applications on Trio."""

from __future__ import annotations

from .communicator import ApplicationCommunicator
from .scopes import http_scope
from .threads import run, sync_context

__all__ = ["ApplicationCommunicator", "http_scope", "run", "sync_context"]

"""Tools for testing ASGI applications on Trio."""

from __future__ import annotations

from .communicator import ApplicationCommunicator

__all__ = ["ApplicationCommunicator"]

"""Turning a response into ASGI messages."""

"""From a response to ASGI messages."""

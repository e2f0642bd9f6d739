"""The ASGI protocols: messages from and to the server. Needs Trio, not Django."""

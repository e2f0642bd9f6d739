"""The project on Trio, for a server."""

from __future__ import annotations

from trio_asgi import get_asgi_application

application = get_asgi_application()

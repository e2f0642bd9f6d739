"""Run any Django project natively on Trio.

In a project's ``asgi.py``::

    from trio_asgi import get_asgi_application  # was: django.core.asgi
    application = get_asgi_application()

and then ``uvicorn mysite.asgi:application``, or any other ASGI server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .application import get_asgi_application as get_asgi_application
    from .bridge.install import (
        install_bridge as install_bridge,
        uninstall_bridge as uninstall_bridge,
    )
    from .errors import BodyTimeout as BodyTimeout, BodyTooLarge as BodyTooLarge
    from .handler import ASGIHandler as ASGIHandler
    from .hosts.hypercorn import serve as serve
    from .islands.functions import (
        asyncio_island as asyncio_island,
        trio_island as trio_island,
    )
    from .ranges import apply_range as apply_range
    from .request.background import start_soon as start_soon
    from .request.body_options import (
        limit_body as limit_body,
        stream_body as stream_body,
    )
    from .request.release_thread import release_thread as release_thread
    from .request.request import ASGIRequest as ASGIRequest
    from .response.event_stream import EventStream as EventStream
    from .response.server_sent_event import (
        ServerSentEvent as ServerSentEvent,
        last_event_id as last_event_id,
    )
    from .staticfiles import ASGIStaticFilesHandler as ASGIStaticFilesHandler
    from .transactions import atomic as atomic, sync_context as sync_context

__version__ = "0.1.0"

# Public names and their modules, which are imported when first needed: importing this
# package imports neither Django nor Trio.
_MODULES = {
    "ASGIHandler": "handler",
    "ASGIRequest": "request.request",
    "ASGIStaticFilesHandler": "staticfiles",
    "BodyTimeout": "errors",
    "BodyTooLarge": "errors",
    "EventStream": "response.event_stream",
    "ServerSentEvent": "response.server_sent_event",
    "apply_range": "ranges",
    "atomic": "transactions",
    "asyncio_island": "islands.functions",
    "get_asgi_application": "application",
    "install_bridge": "bridge.install",
    "last_event_id": "response.server_sent_event",
    "limit_body": "request.body_options",
    "release_thread": "request.release_thread",
    "serve": "hosts.hypercorn",
    "start_soon": "request.background",
    "stream_body": "request.body_options",
    "sync_context": "transactions",
    "trio_island": "islands.functions",
    "uninstall_bridge": "bridge.install",
}

__all__ = ["__version__", *_MODULES]  # noqa: PLE0604 - they are all strings


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415

    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]

"""Run any Django project natively on Trio.

In a project's ``asgi.py``::

    from trio_asgi import get_asgi_application  # was: django.core.asgi
    application = get_asgi_application()

and then ``hypercorn -k trio mysite.asgi:application``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._application import get_asgi_application as get_asgi_application
    from ._body_options import limit_body as limit_body, stream_body as stream_body
    from ._bridge import install as install, uninstall as uninstall
    from ._errors import BodyTimeout as BodyTimeout, BodyTooLarge as BodyTooLarge
    from ._event_stream import EventStream as EventStream
    from ._islands import asyncio_island as asyncio_island, trio_island as trio_island
    from ._release import release_thread as release_thread
    from ._request import ASGIRequest as ASGIRequest
    from ._serve import serve as serve
    from ._server_sent_event import (
        ServerSentEvent as ServerSentEvent,
        last_event_id as last_event_id,
    )
    from .handler import ASGIHandler as ASGIHandler
    from .ranges import apply_range as apply_range
    from .staticfiles import ASGIStaticFilesHandler as ASGIStaticFilesHandler

__version__ = "0.1.0"

# Public names, and the modules that they are loaded from when first asked for:
# importing this package imports neither Django nor Trio.
_MODULES = {
    "ASGIHandler": "handler",
    "ASGIRequest": "_request",
    "ASGIStaticFilesHandler": "staticfiles",
    "BodyTimeout": "_errors",
    "BodyTooLarge": "_errors",
    "EventStream": "_event_stream",
    "ServerSentEvent": "_server_sent_event",
    "apply_range": "ranges",
    "asyncio_island": "_islands",
    "get_asgi_application": "_application",
    "install": "_bridge",
    "last_event_id": "_server_sent_event",
    "limit_body": "_body_options",
    "release_thread": "_release",
    "serve": "_serve",
    "stream_body": "_body_options",
    "trio_island": "_islands",
    "uninstall": "_bridge",
}

__all__ = [  # noqa: PLE0604 - they are all strings
    "__version__",
    *_MODULES,
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415

    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]

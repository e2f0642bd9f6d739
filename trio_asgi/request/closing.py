"""Whether closing a response, or the caches, needs the request's thread."""

from __future__ import annotations

from typing import Any

from django.core.cache import caches, close_caches
from django.core.cache.backends import base as cache_base
from django.core.cache.backends.base import BaseCache
from django.core.handlers import asgi
from django.core.handlers.asgi import ASGIRequest
from django.http import (
    HttpRequest,
    request as request_module,
    response as response_module,
)
from django.http.response import HttpResponseBase

from trio_asgi.bridge.originals import Original
from trio_asgi.response.files import is_plain, sends_file

# If a tool has replaced one of them, the replacement is called in the thread.
_RESPONSE_CLOSE = Original(HttpResponseBase.close, response_module)
_REQUEST_CLOSE = Original(HttpRequest.close, request_module)
_ASGI_REQUEST_CLOSE = Original(ASGIRequest.close, asgi)
_CACHE_CLOSE = Original(BaseCache.close, cache_base)


def closes_anywhere(response: HttpResponseBase) -> bool:
    """Whether a response can be closed in any thread."""
    return closes_nothing(response) or _closes_a_file(response)


def _has_djangos_close(response: HttpResponseBase) -> bool:
    # The method itself: an attribute of the object may hide it.
    return _RESPONSE_CLOSE.is_code_of(getattr(response.close, "__func__", None))


def closes_nothing(response: HttpResponseBase) -> bool:
    """Whether closing a response only frees memory.

    The handler closes async iterators before.
    """
    if response.streaming and not getattr(response, "is_async", False):
        return False
    if not _has_djangos_close(response):
        return False
    closers = response._resource_closers  # type: ignore[attr-defined]
    if not closers:
        return True
    request = getattr(closers[0], "__self__", None)
    close = getattr(closers[0], "__func__", None)
    return (
        len(closers) == 1
        and isinstance(request, ASGIRequest)
        and (close is HttpRequest.close or _ASGI_REQUEST_CLOSE.is_code_of(close))
        and _REQUEST_CLOSE.is_code_of(HttpRequest.close)
        # Uploaded files. Otherwise only the body is left, which the handler closes.
        and not getattr(request, "_files", None)
    )


def _closes_a_file(response: HttpResponseBase) -> bool:
    """Whether closing a response closes a plain file, which any thread may do."""
    return (
        sends_file(response)
        and _has_djangos_close(response)
        and all(
            isinstance(owner, ASGIRequest) or is_plain(owner)
            for owner in (
                getattr(closer, "__self__", None)
                for closer in response._resource_closers  # type: ignore[attr-defined]
            )
        )
    )


def has_caches_to_close() -> bool:
    """Whether this request used a cache whose ``close()`` does something; few do."""
    used: Any = caches._connections  # type: ignore[attr-defined]
    if used._storage._data.get(None) is None:
        return False  # the usual case; asking by `hasattr` takes ten times as long
    return any(
        hasattr(used, alias)
        and not _CACHE_CLOSE.is_code_of(type(getattr(used, alias)).close)
        for alias in caches.settings
    )


def close_on_loop(response: HttpResponseBase) -> None:
    """Close a response that `closes_nothing`, without sending the signal."""
    response._resource_closers.clear()  # type: ignore[attr-defined]
    response.closed = True


def disown_caches() -> None:
    """Close the caches that were used in this context, so that no request gets them.

    A server's tasks inherit the context of its start-up. A cache that was used there
    would be shared by all requests, in many threads at a time.
    """
    close_caches()
    for alias in caches.settings:
        if hasattr(caches._connections, alias):  # type: ignore[attr-defined]
            del caches[alias]

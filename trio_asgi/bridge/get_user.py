"""Django's `aget_user` in one hop: the session and the user are read in one call.

Django reads one after the other, each in a call to the request's thread. `get_user`
reads both in one. It takes the place of `aget_user` only where the two are known to do
the same: for Django's own session stores, and for authentication backends that keep
Django's pair of methods.
"""

from __future__ import annotations

import functools
from functools import cache
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib import auth
from django.db.models import manager, query
from django.utils.module_loading import import_string

from trio_asgi.threads.trio_state import in_trio_run

from .originals import Original, is_original, is_original_class

if TYPE_CHECKING:
    from django.http import HttpRequest


_GET_USER = Original(auth.get_user, auth)


def patch_aget_user(original: Any) -> Any:
    """Return an ``aget_user`` that makes one hop where it can."""

    @functools.wraps(original)
    async def aget_user(request: HttpRequest) -> Any:
        if in_trio_run() and _takes_two_calls(request):
            user = await sync_to_async(_get_user)(request)
            if user is not None:
                return user
        return await original(request)

    return aget_user


def _takes_two_calls(request: HttpRequest) -> bool:
    """Whether Django's own code would make a call for the session, and one more."""
    session = getattr(request, "session", None)
    store: Any = type(session)
    return (
        session is not None
        and _GET_USER.is_code_of(auth.get_user)
        and _is_djangos_store(store)
        and session.session_key is not None
        and "_session_cache" not in vars(session)
    )


@functools.wraps(auth.get_user)  # the record of hops shows its name
def _get_user(request: HttpRequest) -> Any:
    """Load the session; return the user, or None for Django to go on. Worker thread."""
    path: Any = request.session.get(auth.BACKEND_SESSION_KEY)
    if path in settings.AUTHENTICATION_BACKENDS:
        backend = import_string(path)
        pair = [getattr(backend, name, None) for name in ("get_user", "aget_user")]
        if not _reads_alike(*pair, auth.get_user_model()):
            return None
    return auth.get_user(request)


@cache
def _is_djangos_store(store: Any) -> bool:
    """Whether a session store is Django's, as Django wrote it."""
    return store.__module__.startswith("django.contrib.sessions.backends.") and all(
        map(is_original_class, store.__mro__[:-1])
    )


@cache
def _reads_alike(get_user: Any, aget_user: Any, model: Any) -> bool:
    """Whether a backend's ``aget_user`` reads the same user as its ``get_user``."""
    from django.contrib.auth import backends  # noqa: PLC0415 - it needs loaded apps

    if aget_user is backends.BaseBackend.aget_user:  # it calls get_user in the thread
        return is_original(aget_user, backends)
    users = model._default_manager
    return (
        get_user is backends.ModelBackend.get_user
        and aget_user is backends.ModelBackend.aget_user
        and is_original(get_user, backends)
        and is_original(aget_user, backends)
        and is_original(type(users).get, manager)
        and is_original(type(users).aget, manager)
        and is_original(type(users.get_queryset()).aget, query)
    )

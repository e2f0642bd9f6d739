"""The project in which chains are tested: everything but the chain."""

from __future__ import annotations

import logging
import sys
import types
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from django.contrib.auth.backends import BaseBackend
from django.contrib.messages.storage.fallback import FallbackStorage
from django.contrib.sessions.backends import signed_cookies
from django.contrib.sessions.models import Session
from django.core import signals
from django.db import connection, connections
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path

from . import notes
from .acts import LOGIN_BACKEND, OTHER_URLCONF, ROOT_URLCONF, act, make_view
from .layers import make_layer, patches
from .notes import STARTED, note, recording
from .specs import Act, Chain, OopsError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: What ``settings.MIDDLEWARE`` names.
_layers = types.ModuleType("layers_of_the_chain")


# The project's own classes, whose code must not run in the loop's thread


class SessionStore(signed_cookies.SessionStore):
    def __init__(self, session_key: str | None = None) -> None:
        note("session made")
        super().__init__(session_key)

    def load(self) -> Any:
        note("session loaded")
        return super().load()

    def save(self, must_create: bool = False) -> None:
        note("session saved")
        super().save(must_create)


class NotingStorage(FallbackStorage):
    """A storage of messages."""

    def __init__(self, request: HttpRequest) -> None:
        note("messages made")
        super().__init__(request)

    def update(self, response: Any) -> Any:
        note("messages updated")
        return super().update(response)


class NotingUser:
    """The only user, stored outside Django's database."""

    is_authenticated = True
    is_anonymous = False

    def __str__(self) -> str:
        return "Ada"


class NotingBackend(BaseBackend):
    def get_user(self, user_id: Any) -> Any:
        note("user loaded", str(user_id))
        return NotingUser()


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    note("csrf failure", reason)
    return HttpResponse(reason, status=403)


# URLs and settings


def _other_view(request: HttpRequest) -> Any:
    return act(Act("respond 200"), "other view", request)


_view_patterns = [path(f"{index}/", _other_view) for index in range(2)]
ROOT_URLCONF.urlpatterns = [*_view_patterns]
OTHER_URLCONF.urlpatterns = [path("0/", _other_view), path("other/", _other_view)]

_TEMPLATES = {"page.html": "A page of {{ word }}, {{ messages|length }}"}
SETTINGS: dict[str, Any] = {
    "ROOT_URLCONF": ROOT_URLCONF,
    "ALLOWED_HOSTS": ["testserver"],
    "SESSION_ENGINE": "django.contrib.sessions.backends.signed_cookies",
    "SECURE_HSTS_SECONDS": 60,
    "LOGIN_URL": "/login/",
    "AUTHENTICATION_BACKENDS": [LOGIN_BACKEND],
    "TEMPLATES": [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "OPTIONS": {
                "loaders": [("django.template.loaders.locmem.Loader", _TEMPLATES)],
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.messages.context_processors.messages",
                ],
            },
        }
    ],
}

SETTINGS_BY_NAME: dict[str, dict[str, Any]] = {
    "debug": {"DEBUG": True},
    "propagate": {"DEBUG_PROPAGATE_EXCEPTIONS": True},
    "sessions of its own": {"SESSION_ENGINE": __name__},
    "sessions in the database": {
        "SESSION_ENGINE": "django.contrib.sessions.backends.db"
    },
    "save every session": {"SESSION_SAVE_EVERY_REQUEST": True},
    "messages of its own": {"MESSAGE_STORAGE": f"{__name__}.NotingStorage"},
    "csrf in sessions": {"CSRF_USE_SESSIONS": True},
    "csrf failure of its own": {"CSRF_FAILURE_VIEW": f"{__name__}.csrf_failure"},
    "redirect to https": {"SECURE_SSL_REDIRECT": True},
    # A setting of the database.
    "atomic requests": {},
    # Not settings, but things that projects do
    "patch the mixin": {},
    "patch the handler": {},
    "set variables at start": {},  # in a receiver of request_started
    "fail at start": {},
}

USES_DATABASE = {"sessions in the database", "atomic requests"}


# Signals and logs

#: What the receiver of request_started does
_at_start: set[str] = set()


def _started(**kwargs: Any) -> None:
    note(STARTED)
    if "set variables at start" in _at_start:
        notes.word.set("from the start")
        notes.local.word = "from the start"
    if "fail at start" in _at_start:
        raise OopsError("at the start")


def _finished(**kwargs: Any) -> None:
    note("request_finished")


def _got_exception(**kwargs: Any) -> None:
    note("got_request_exception", type(sys.exc_info()[1]).__name__, free=True)


class _NotingHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        what = f"log {record.name} {record.levelname}"
        detail = f"{record.getMessage()} {type(error).__name__}"
        if recording.get(None) is None:
            notes.made.append(f"{what}: {detail}")
        else:
            note(what, detail, free=True)


# Set up


@contextmanager
def chain_project(directory: Path) -> Iterator[None]:
    """Set up the project, with a database in a directory."""
    with (
        _logs(),
        _receivers(),
        _database(directory / "db.sqlite3"),
        override_settings(**SETTINGS),
    ):
        sys.modules[_layers.__name__] = _layers
        try:
            yield
        finally:
            del sys.modules[_layers.__name__]


@contextmanager
def _logs() -> Iterator[None]:
    """Note the logs. Pytest would keep every error, with its frames."""
    loggers = [logging.getLogger(name) for name in ("django", "trio_asgi", "asyncio")]
    kept = [(logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [_NotingHandler()], False
    try:
        yield
    finally:
        for logger, (handlers, propagate) in zip(loggers, kept, strict=True):
            logger.handlers, logger.propagate = handlers, propagate


@contextmanager
def _receivers() -> Iterator[None]:
    receivers = [
        (signals.request_started, _started),
        (signals.request_finished, _finished),
        (signals.got_request_exception, _got_exception),
    ]
    for signal, receiver in receivers:
        signal.connect(receiver)
    try:
        yield
    finally:
        for signal, receiver in receivers:
            signal.disconnect(receiver)


@contextmanager
def _database(file: Path) -> Iterator[None]:
    """Let the connections of all threads use one file, not a memory database each."""
    options = connections.settings["default"]
    memory, in_memory = options["NAME"], connection.connection
    options["NAME"], connection.connection = str(file), None
    try:
        with connection.schema_editor() as editor:
            editor.create_model(Session)
        connection.close()
        yield
    finally:
        connection.close()
        options["NAME"], connection.connection = memory, in_memory


@contextmanager
def chain_loaded(chain: Chain) -> Iterator[None]:
    """Make new handlers use a chain during the block."""
    middleware = []
    for index, layer in enumerate(chain.layers):
        middleware.append(f"{_layers.__name__}.layer{index}")
        setattr(_layers, f"layer{index}", make_layer(layer, index))
    for index, view in enumerate(chain.views):
        _view_patterns[index].callback = make_view(view, f"view {index}")
    ROOT_URLCONF.handlers = OTHER_URLCONF.handlers = dict(chain.handlers)
    options: dict[str, Any] = {"MIDDLEWARE": middleware}
    for name in chain.settings:
        options.update(SETTINGS_BY_NAME[name])
    _at_start.clear()
    _at_start.update(chain.settings)
    database = connections.settings["default"]
    database["ATOMIC_REQUESTS"] = "atomic requests" in chain.settings
    try:
        with override_settings(**options), patches(chain):
            yield
    finally:
        database["ATOMIC_REQUESTS"] = False

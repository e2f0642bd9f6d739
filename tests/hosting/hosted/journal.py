"""The events in the site, in a file that outlives its process.

Each line is a JSON object: an event, the ``id`` from the query string of its request,
and facts. Tests read the file; the site only ever appends to it.
"""

from __future__ import annotations

import json
import os
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from django.core.signals import request_finished, request_started

if TYPE_CHECKING:
    from django.http import HttpRequest

_file = os.open(
    os.environ["HOSTED_JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600
)

#: The requests between their two signals, by id.
in_flight: set[str] = set()

#: Who calls, says middleware of an application in which the site is mounted.
caller: ContextVar[str] = ContextVar("caller", default="nobody")


class _Thread(threading.local):
    #: The request whose request_started came last on this thread.
    request: str | None = None


_thread = _Thread()


def write(event: str, request: str, **facts: Any) -> None:
    """Append an event. One write, so that lines of different threads do not mix."""
    line = {"event": event, "id": request, "pid": os.getpid(), **facts}
    os.write(_file, json.dumps(line).encode() + b"\n")


def note(event: str, request: HttpRequest, **facts: Any) -> None:
    """Append an event of a request."""
    write(event, request.GET.get("id", ""), **facts)


def _started(scope: dict[str, Any], **_: object) -> None:
    identity = parse_qs(scope["query_string"].decode()).get("id", [""])[0]
    if _thread.request is not None:
        write("started beside", _thread.request)
    _thread.request = identity
    in_flight.add(identity)
    write("started", identity)


def _finished(**_: object) -> None:
    # On another thread than request_started it does not know its request.
    identity, _thread.request = _thread.request, None
    in_flight.discard(identity or "")
    write("finished", identity or "a request of another thread")


def connect() -> None:
    """Record request_started and request_finished from now on."""
    request_started.connect(_started)
    request_finished.connect(_finished)

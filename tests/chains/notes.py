"""What the pieces of a chain write down when they are called."""

from __future__ import annotations

import contextvars
import sys
import threading
from dataclasses import dataclass, field
from typing import Any

from asgiref.local import Local
from asgiref.sync import iscoroutinefunction
from django.http import HttpResponseBase
from django.urls import get_urlconf
from django.utils.translation import get_language

#: What pieces of a chain set.
word: contextvars.ContextVar[str] = contextvars.ContextVar("word", default="-")
local = Local()

STARTED = "request_started"


@dataclass(frozen=True)
class Event:
    """A call of a piece of the chain, and what it saw."""

    what: str
    detail: str
    #: The context variable, the `Local`, the language and the URLconf at that time.
    seen: str
    #: "loop", "request" for the thread of request_started, or "other".
    where: str
    #: Whether Django may run this in any thread: logging, and answers to errors.
    free: bool


@dataclass
class Recording:
    """What happened in one request, in order."""

    loop_thread: int = field(default_factory=threading.get_ident)
    #: Coroutines that are never awaited, to be closed at the end.
    coroutines: list[Any] = field(default_factory=list)
    _notes: list[tuple[str, str, str, int, bool]] = field(default_factory=list)

    def note(self, what: str, detail: str, *, free: bool) -> None:
        """Note that something was called. Any thread."""
        urlconf: Any = get_urlconf()
        seen = (
            f"{word.get()}, {getattr(local, 'word', '-')}, {get_language()}, "
            f"{urlconf.name if urlconf else '-'}"
        )
        self._notes.append((what, detail, seen, threading.get_ident(), free))

    @property
    def events(self) -> list[Event]:
        """All that was noted, with threads named by their purpose."""
        started = [thread for what, _, _, thread, _ in self._notes if what == STARTED]

        def where(thread: int) -> str:
            if thread in started:
                return "request"
            return "loop" if thread == self.loop_thread else "other"

        return [
            Event(what, detail, seen, where(thread), free)
            for what, detail, seen, thread, free in self._notes
        ]


#: The recording of the current request. Without one, a note raises LookupError.
recording: contextvars.ContextVar[Recording] = contextvars.ContextVar("recording")


def note(what: str, detail: str = "", *, free: bool = False) -> None:
    """Note something in the current request's recording."""
    recording.get().note(what, detail, free=free)


#: What the current handler has made: each middleware, and the kind of its
#: ``get_response``.
made: list[str] = []


def note_made(label: str, get_response: Any) -> None:
    """Note that a middleware was made."""
    kind = "async" if iscoroutinefunction(get_response) else "sync"
    made.append(f"{label} {kind}")


def describe(given: object) -> str:
    """Describe what code sees of its argument and of the current error."""
    error = sys.exc_info()[1]
    handled = f" while handling {_describe(error)}" if error else ""
    return ("" if given is None else _describe(given)) + handled


def _describe(given: object) -> str:
    if isinstance(given, HttpResponseBase):
        rendered = getattr(given, "is_rendered", True)
        return f"{given.status_code}{'' if rendered else ' unrendered'}"
    return type(given).__name__

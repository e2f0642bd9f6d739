"""What has asked for a hop, in words."""

from __future__ import annotations

import functools
import inspect
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from asgiref.sync import AsyncToSync, SyncToAsync
from django.core.signals import request_finished, request_started

from trio_asgi.bridge import sync_to_async
from trio_asgi.bridge.hop import hop
from trio_asgi.chain.passage import Passage
from trio_asgi.request import body, body_file, closing, release_thread, signals
from trio_asgi.response import send
from trio_asgi.response.file_stream import FileStream
from trio_asgi.response.thread_stream import ThreadStream

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from django.dispatch import Signal

#: Whose functions are not the ones that have asked for a call.
_BENEATH: Final = {"asgiref", "contextlib", "django", "trio", "trio_asgi"}


@dataclass(frozen=True)
class Cause:
    """Something that has asked for a hop, or shares it and would have asked."""

    what: str
    #: How to save the hop; empty if there is nothing to be said.
    advice: str = ""


def name_of(thing: Any) -> str:
    """Return the dotted name by which a project knows a class, function or object."""
    if isinstance(thing, (functools.partial, SyncToAsync)):
        return name_of(thing.func)
    if isinstance(thing, AsyncToSync):
        return name_of(thing.awaitable)
    if inspect.ismethod(thing) and not inspect.isclass(thing.__self__):
        return f"{name_of(type(thing.__self__))}.{thing.__name__}"
    named = getattr(thing, "view_class", thing)
    if not hasattr(named, "__qualname__"):
        named = type(named)
    return f"{named.__module__}.{named.__qualname__}".removeprefix("builtins.")


def causes_of_call(frame: FrameType | None, fn: Callable[[], Any]) -> list[Cause]:
    """Tell by the stack of the task that calls ``fn()`` in a thread what has asked."""
    call = ""
    while frame is not None:
        code = frame.f_code
        if code is sync_to_async._sync_to_async.__code__:
            call = f"sync_to_async({name_of(frame.f_locals['bridge'].func)})"
        elif code is hop.__code__:
            call = ""  # it goes through sync_to_async, at which a tool looks
        elif code in _OWN:
            return [Cause(call, _BATCH)] if call else _OWN[code](frame.f_locals)
        elif call and not _is_beneath(frame):
            return [Cause(f"{call} at {_place(frame)}", _BATCH)]
        frame = frame.f_back
    return [Cause(call, _BATCH) if call else Cause(name_of(fn))]


def _is_beneath(frame: FrameType) -> bool:
    """Whether a function is none of the project's that has asked for a call."""
    package = str(frame.f_globals.get("__name__")).partition(".")[0]
    # Comprehensions have frames up to Python 3.11.
    return package in _BENEATH or frame.f_code.co_name.endswith(("comp>", "expr>"))


def _place(frame: FrameType) -> str:
    path = "/".join(Path(frame.f_code.co_filename).parts[-2:])
    return f"{path}:{frame.f_lineno}, in {frame.f_code.co_name}"


def causes_of_start() -> list[Cause]:
    """Return who else receives ``request_started``."""
    return _receivers(request_started, signals._djangos_of_start)


def _receivers(signal: Signal, djangos: Any) -> list[Cause]:
    """Return what receives a signal besides Django's own receivers."""
    if djangos.are_alone():
        return []
    name = "request_started" if signal is request_started else "request_finished"
    causes = []
    for key, receiver, *_ in signal.receivers:
        is_weak = isinstance(receiver, weakref.ReferenceType)
        found = receiver() if is_weak else receiver
        if key not in djangos._keys and found is not None:
            what = f"a receiver of {name}: {name_of(found)}"
            causes.append(Cause(what, "Do the same in an async middleware."))
    # A tool listens, or one of Django's was disconnected.
    return causes or [Cause(f"sending {name}")]


def _end_causes(names: dict[str, Any]) -> list[Cause]:
    """Return why a request ends in its thread."""
    causes = _receivers(request_finished, signals._djangos_of_finish)
    response = names["response"]
    if response is not None and not closing.closes_nothing(response):
        causes.append(Cause("closing the response"))
    if closing.has_caches_to_close():
        causes.append(Cause("closing a cache"))
    advice = "Keep them: set CONN_MAX_AGE."
    return causes or [Cause("closing old database connections", advice)]


def _stream_causes(names: dict[str, Any]) -> list[Cause]:
    if isinstance(names["self"], FileStream):
        return [Cause("reading the response's file")]
    return [Cause("reading the streamed response", "Stream from an async iterator.")]


def hook_cause(hook: Any, name: str) -> Cause:
    """Return what a middleware's sync hook asks for, as a bound method."""
    owner = type(hook.__self__)
    if owner.__module__.startswith("django."):
        advice = _DJANGOS.get(f"{owner.__name__}.{name}", "")
    elif name in ("process_exception", "process_template_response"):
        advice = "Write the hook async." if name != "process_exception" else ""
    else:
        advice = "If it does no I/O: declare it in loop_safe_hooks."
    return Cause(f"{name} of {name_of(owner)}", advice)


#: What Django's own hooks need the thread for.
_DJANGOS: Final = {
    "SessionMiddleware.process_response": "It saves the session, if that was changed.",
    "MessageMiddleware.process_response": "It stores messages.",
    "CsrfViewMiddleware.process_view": "It checks the token of a form.",
    "CommonMiddleware.process_response": "It looks for another URL for a 404.",
}

_BATCH: Final = "Calls that follow each other share a hop in one sync function."
_DISK: Final = "Bodies up to FILE_UPLOAD_MAX_MEMORY_SIZE stay in memory."

#: Functions of this package that have something called in a thread, and why, by their
#: local names.
_OWN: Final[dict[Any, Callable[[dict[str, Any]], list[Cause]]]] = {
    inspect.unwrap(function).__code__: causes
    for function, causes in (
        # Whatever runs in such a hop notes itself.
        (Passage._drive_on, lambda _: []),
        (signals.RequestSignals.start, lambda _: []),
        (signals.RequestSignals.finish, _end_causes),
        (ThreadStream._pull_all, _stream_causes),
        (body_file.spool_body, lambda _: [Cause("writing the body to disk", _DISK)]),
        (body._read_block, lambda _: [Cause("reading the body", _DISK)]),
        (
            body.RequestWithBody._read_in_thread,
            lambda _: [Cause("reading the form")],
        ),
        (
            send._path_for_server,
            lambda _: [Cause("looking up the path of the response's file")],
        ),
        (release_thread._release_thread, lambda _: [Cause("release_thread()")]),
    )
}

"""A record of a request's hops: what asked for each, and how long it took.

A real request is recorded, while it runs. It gets a `RecordingLease`, which sees each
call that goes to a thread, and a `RecordingPassage`, which sees the code that runs in
the request's thread. Other requests have neither.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
import threading
import time
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from types import (
    BuiltinFunctionType,
    FunctionType,
    MethodDescriptorType,
    MethodType,
)
from typing import TYPE_CHECKING, Any, Final

from asgiref.sync import AsyncToSync, SyncToAsync

from trio_asgi.bridge import sync_to_async
from trio_asgi.bridge.hop import hop
from trio_asgi.chain.passage import Passage
from trio_asgi.request import body, body_file, closing, release_thread, signals
from trio_asgi.response import send
from trio_asgi.response.thread_stream import ThreadStream
from trio_asgi.threads.current import reserve_lease, reserved_lease
from trio_asgi.threads.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from trio_asgi.asgi.types import Receive, Scope, Send
    from trio_asgi.chain.loop_safe import LoopSafety

#: How many hops the header shows, and how many characters of each description. Servers
#: and proxies limit the size of all headers together.
SHOWN_HOPS: Final = 18
DESCRIPTION: Final = 80

#: What a quoted string of a header cannot contain, though the name of a function may.
_UNQUOTED: Final = re.compile(r"[^ !#-\[\]-~]")

# What has asked for a hop, in words

#: How to save a hop, by what a cause begins with. The first that matches counts.
_ADVICE: Final = {
    r"process_\w+ of django\.": "It stores something, or checks a form or a 404.",
    "process_template_response": "Write the hook async.",
    "process_": "If it does no I/O: declare it in loop_safe_hooks.",
    "the sync middleware": "Write it for sync and async code.",
    "the sync view": "An async view needs no hop, unless it calls sync code.",
    "sync_to_async": "Calls that follow each other share a hop in one sync function.",
    "a receiver": "Do the same in an async middleware.",
    "closing old database connections": "Keep them: set CONN_MAX_AGE.",
    "reading the response": "Stream from an async iterator, or a file on disk.",
    "(writ|read)ing the body": "Up to FILE_UPLOAD_MAX_MEMORY_SIZE it is in memory.",
}

#: Packages whose functions only pass on what the project's have asked for.
_BENEATH: Final = {
    *("asgiref", "asyncio", "contextlib", "django"),
    *("outcome", "trio", "trio_asgi", "trio_asyncio"),
}


def advice_for(cause: str) -> str:
    """Return how to save a hop with this cause; empty if there is nothing to say."""
    found = (advice for start, advice in _ADVICE.items() if re.match(start, cause))
    return next(found, "")


def name_of(thing: Any) -> str:
    """Return the dotted name by which a project knows a class, function or object."""
    # By its type, and not by attributes that an object may compute.
    kind = type(thing)
    if issubclass(kind, (functools.partial, SyncToAsync)):
        return name_of(thing.func)
    if issubclass(kind, AsyncToSync):
        return name_of(thing.awaitable)
    if kind is MethodType and not issubclass(type(thing.__self__), type):
        return (
            f"{name_of(type(thing.__self__))}.{name_of(thing.__func__).split('.')[-1]}"
        )
    if kind is FunctionType:
        thing = vars(thing).get("view_class", thing)
    elif kind not in (BuiltinFunctionType, MethodDescriptorType) and not issubclass(
        kind, type
    ):
        thing = kind
    module = getattr(thing, "__module__", None) or "builtins"
    return f"{module}.{thing.__qualname__}".removeprefix("builtins.")


def causes_of_call(frame: FrameType | None, fn: Callable[[], Any]) -> list[str]:
    """Return what has asked for a call of ``fn``, by the stack of the calling task."""
    call = ""
    while frame is not None:
        code = frame.f_code
        if code is sync_to_async._sync_to_async.__code__:
            call = f"sync_to_async({name_of(frame.f_locals['bridge'].func)})"
        elif code is hop.__code__:
            call = ""  # it goes through sync_to_async only where a tool looks at that
        elif code in _OWN:
            return [call] if call else _OWN[code](frame.f_locals)
        elif (
            call and str(frame.f_globals.get("__name__")).split(".")[0] not in _BENEATH
        ):
            file = "/".join(Path(code.co_filename).parts[-2:])
            return [f"{call} at {file}:{frame.f_lineno}, in {code.co_name}"]
        frame = frame.f_back
    return [call or name_of(fn)]


def _receivers_besides(djangos: signals._DjangoReceivers) -> list[str]:
    """Return what receives a signal of a request besides Django's own receivers."""
    if djangos.are_alone():
        return []
    end = "finished" if djangos is signals._djangos_of_finish else "started"
    found = []
    for key, receiver, *_ in djangos._signal.receivers:
        alive = receiver() if isinstance(receiver, weakref.ReferenceType) else receiver
        if key not in djangos._keys and alive is not None:
            found.append(f"a receiver of request_{end}: {name_of(alive)}")
    # A tool listens, or one of Django's was disconnected.
    return found or [f"sending request_{end}"]


def _causes_of_end(names: dict[str, Any]) -> list[str]:
    causes = _receivers_besides(signals._djangos_of_finish)
    response = names["response"]
    if response is not None and not closing.closes_nothing(response):
        causes.append("closing the response")
    if closing.has_caches_to_close():
        causes.append("closing a cache")
    return causes or ["closing old database connections"]


#: Functions of this package that call something in a thread, and return why, by their
#: local variables. For the first two, the causes are noted while they run.
_OWN: Final[dict[Any, Callable[[dict[str, Any]], list[str]]]] = {
    inspect.unwrap(function).__code__: causes
    for function, causes in (
        (Passage.drive, lambda _: []),
        (signals.RequestSignals.start, lambda _: []),
        (signals.RequestSignals.finish, _causes_of_end),
        (ThreadStream._pull_all, lambda _: ["reading the response"]),
        (body_file.spool_body, lambda _: ["writing the body to disk"]),
        (body._read_block, lambda _: ["reading the body"]),
        (body.RequestWithBody._read_in_thread, lambda _: ["reading the form"]),
        (send._path_for_server, lambda _: ["looking up the path of the file"]),
        (release_thread._release_thread, lambda _: ["release_thread()"]),
    )
}


# Recording

#: Has the `RecordedHop` that this thread runs, the innermost, as ``hop``.
_running: Final = threading.local()


@dataclass(eq=False)
class RecordedHop:
    """One call in a thread that a request has waited for. The thread calls this."""

    fn: Any
    #: In the order in which they ran.
    causes: list[str]
    #: The request's hops that have begun, in that order.
    record: list[RecordedHop]
    #: Where it has run, if not by itself in the request's thread.
    place: str
    #: Times of `time.perf_counter`; 0 until it has begun, or ended.
    asked: float = field(default_factory=time.perf_counter)
    began: float = 0
    ended: float = 0

    @property
    def seconds(self) -> float:
        """How many seconds it took in the thread, or has taken until now."""
        return (self.ended or time.perf_counter()) - self.began

    def __call__(self, call: Callable[[Any], Any] = lambda fn: fn()) -> Any:
        """Run it, by way of ``call``, and take the time. Worker thread."""
        fn, self.fn = self.fn, None  # it may refer to what refers to the record
        outer = getattr(_running, "hop", None)
        if outer is not None:
            self.place = "within the hop that waits for it"
        _running.hop = self
        self.record.append(self)
        self.began = time.perf_counter()
        try:
            return call(fn)
        finally:
            self.ended = time.perf_counter()
            _running.hop = outer


def _note(*causes: str) -> None:
    """Add causes to the hop that runs in this thread. Worker thread."""
    running: RecordedHop | None = getattr(_running, "hop", None)
    if running is not None:
        running.causes += [one for one in causes if one not in running.causes]


class RecordingLease(Lease):
    """A lease that records its calls, and those that are made under it elsewhere."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Record nothing yet; see `Lease`."""
        super().__init__(*args, **kwargs)
        #: Those that have begun.
        self.hops: list[RecordedHop] = []

    def wrap_call(self, fn: Callable[[], Any], place: str = "") -> RecordedHop:
        """Return a call that is recorded when it runs. In the calling task."""
        return RecordedHop(fn, causes_of_call(sys._getframe(1), fn), self.hops, place)

    def run_call(self, fn: Any) -> Any:
        """Run a `RecordedHop`, with what is called around it. Worker thread."""
        return fn(super().run_call)

    def begin_call(self) -> None:
        """Note what receives ``request_started``, if it is sent now. Worker thread."""
        if self.on_take is not None and not self.calls:
            _note(*_receivers_besides(signals._djangos_of_start))
        super().begin_call()


class RecordingPassage(Passage):
    """A passage that notes the code that runs in the thread, in the hop there."""

    def note(
        self, what: str, code: Any, safety: LoopSafety | None = None, *seen: Any
    ) -> None:
        """Note it, unless it is a hook that could have run on the loop."""
        if safety is not None and safety.allows(what, *seen):
            return
        if what.startswith("process_"):
            what, code = f"{what} of", getattr(code, "__self__", code)
        # A function that another one has made is known by that one's name.
        _note(f"{what} {name_of(code).partition('.<locals>')[0]}")


def record_hops(handler: Any) -> None:
    """Record the hops of a handler's requests, and show them in a header.

    ``handler.last_hops`` are those of the latest request, in a list that grows while
    the request runs.
    """
    handle, make_response = handler.handle, handler._make_response
    handler.last_hops = []

    def make_lease(*args: Any, **kwargs: Any) -> RecordingLease:
        lease = RecordingLease(*args, **kwargs)
        handler.last_hops = lease.hops
        return lease

    async def handle_recorded(scope: Scope, receive: Receive, send: Send) -> None:
        if reserved_lease() is not None:  # of `__call__`, through which tools go
            await handle(scope, receive, send)
            return
        # From now on, to record what the body needs a thread for.
        with reserve_lease(make_lease):
            await handle(scope, receive, send)

    async def make_shown_response(scope: Any, state: Any, refusal: Any) -> Any:
        response = await make_response(scope, state, refusal)
        hops = state.lease.hops
        metrics = [f'hops;desc="{len(hops)} in all"']
        for number, one in enumerate(hops[:SHOWN_HOPS], 1):
            what = _UNQUOTED.sub("?", " + ".join(one.causes))[:DESCRIPTION]
            metrics.append(f'hop{number};desc="{what}";dur={1000 * one.seconds:.1f}')
        if own := response.headers.get("Server-Timing"):
            metrics.insert(0, own)
        response.headers["Server-Timing"] = ", ".join(metrics)
        return response

    handler.handle, handler._lease_type = handle_recorded, make_lease
    handler._make_response = make_shown_response
    handler._chain.passage_type = RecordingPassage

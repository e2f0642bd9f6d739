"""A record of a request's hops: what asked for each, and how long it took.

Recorded is a real request, while it runs. It gets a `RecordingLease`, which sees each
call that goes to a thread, and a `RecordingPassage`, which sees each hook that runs
there. A request that is not recorded has neither, and pays nothing.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from asgiref.sync import iscoroutinefunction

from trio_asgi.chain.passage import Passage
from trio_asgi.chain.plan import Kind
from trio_asgi.threads.current import current_pool, reserved_lease
from trio_asgi.threads.lease import Lease
from trio_asgi.threads.loop import CallLoop, current_loop

from .causes import Cause, causes_of_call, causes_of_start, hook_cause, name_of

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable, Iterator

    from trio_asgi.asgi.types import Receive, Scope, Send
    from trio_asgi.chain.passage import Steps
    from trio_asgi.chain.plan import Hook, Layer

T = TypeVar("T")

#: What the header shows at most: metrics, of which two are sums, and characters of each
#: description. Servers and proxies limit what all headers have together.
METRICS: Final = 20
DESCRIPTION: Final = 80

#: What cannot stand in a quoted string of a header. A project may call its functions
#: anything.
_UNQUOTED: Final = re.compile(r"[^ !#-\[\]-~]")

#: Where a hop of async code runs that sync code waits for.
NESTED: Final = "within the hop that waits for it"

# What is recorded


@dataclass(eq=False)
class RecordedHop:
    """One call in a thread that a request has waited for. Is what the thread calls."""

    fn: Callable[[], Any] | None
    #: In the order in which they ran.
    causes: list[Cause]
    #: The request's hops that have begun, in that order.
    record: list[RecordedHop]
    #: Where it has run, if not by itself in the request's thread.
    place: str = ""
    #: By `time.perf_counter`; 0 if it is not so far.
    asked: float = field(default_factory=time.perf_counter)
    began: float = 0
    ended: float = 0

    @property
    def seconds(self) -> float:
        """How many it took in the thread, or has taken until now."""
        return (self.ended or time.perf_counter()) - self.began

    @property
    def waited(self) -> float:
        """How many seconds the thread was waited for."""
        return self.began - self.asked

    def note(self, causes: list[Cause]) -> None:
        """Add what would have asked for the hop, if it did not share it."""
        self.causes += [cause for cause in causes if cause not in self.causes]

    @contextmanager
    def timed(self) -> Iterator[Callable[[], Any]]:
        """Surround the call of the function that is given, once. Worker thread."""
        fn, self.fn = self.fn, None  # it may refer to what refers to the record
        assert fn is not None
        self.began = time.perf_counter()
        self.record.append(self)
        try:
            yield fn
        finally:
            self.ended = time.perf_counter()

    def __call__(self) -> Any:
        """Run it. Worker thread."""
        with self.timed() as fn:
            return fn()


class _RecordingLoop(CallLoop):
    """A loop whose calls are recorded by its lease."""

    async def run_sync(
        self, fn: Callable[[], T], *, context: contextvars.Context | None = None
    ) -> T:
        # It was recorded if it comes from an inner loop that was closed.
        if not isinstance(fn, RecordedHop):
            fn = cast("RecordingLease", self.lease).recorded(fn)
        return await super().run_sync(fn, context=context)

    def inner_loop(self) -> CallLoop:
        return _RecordingLoop(self.pool, parent=self)


class RecordingLease(_RecordingLoop, Lease):
    """A lease that records what runs in its thread, and in others for it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Record nothing yet."""
        super().__init__(*args, **kwargs)
        self.hops: list[RecordedHop] = []
        #: What the thread runs, the innermost. Changes in the worker thread.
        self.running_hop: RecordedHop | None = None
        self._started = False

    def recorded(self, fn: Callable[[], Any], place: str = "") -> RecordedHop:
        """Return a call that is recorded when it runs. Called in the asking task."""
        return RecordedHop(fn, causes_of_call(sys._getframe(1), fn), self.hops, place)

    def around_other(self, fn: Callable[[], T]) -> Callable[[], T]:
        """Record a call that runs in any thread."""
        return self.recorded(fn, "in another thread")

    async def release_thread(
        self, last: Callable[[], object], *, on_take: Callable[[], object]
    ) -> None:
        """Record it, if there is a thread to release."""
        await super().release_thread(self.recorded(last), on_take=on_take)

    def run_call(self, fn: Callable[[], T]) -> T:
        """Time the call, with what comes before and after it. Worker thread."""
        call = fn if isinstance(fn, RecordedHop) else self.recorded(fn)
        outer, self.running_hop = self.running_hop, call
        if outer is not None:
            call.place = NESTED
        try:
            with call.timed() as timed_fn:
                result: T = super().run_call(timed_fn)
            return result
        finally:
            self.running_hop = outer

    def begin_call(self) -> None:
        """Note who receives ``request_started``, if it is sent now. Worker thread."""
        if self._fresh and self.on_take is not None and not self._started:
            self._started = True
            note_running(causes_of_start())
        super().begin_call()


def note_running(causes: list[Cause]) -> None:
    """Note what runs in the running hop, if that is recorded. Worker thread."""
    loop = current_loop.get()
    if loop is not None and isinstance(loop.lease, RecordingLease):
        running = loop.lease.running_hop
        if running is not None:
            running.note(causes)


class RecordingPassage(Passage):
    """A passage that notes what runs in the thread, and could not run on the loop."""

    def through(self, layer: Layer, request: Any) -> Steps:
        """Go through a layer."""
        instance = layer.instance
        if layer.kind is Kind.SYNC:
            # A function that another one has made is known by that one's name.
            name = name_of(instance).partition(".<locals>")[0]
            what = f"the sync middleware {name}"
            cause = Cause(what, "Write it for sync and async code.")
            instance = self._noted(instance, lambda *_: [cause])
        elif layer.kind is Kind.HOOKS:
            hooks = {
                name: self._noted_hook(getattr(instance, name), name, layer.safety)
                for name in ("process_request", "process_response")
                if hasattr(instance, name)
            }
            instance = SimpleNamespace(**hooks)
        layer = dataclasses.replace(layer, instance=instance)
        return super().through(layer, request)

    def _call_hook(self, hook: Hook, name: str, request: Any, *args: Any) -> Steps:
        if not hook.is_async:
            noted = self._noted_hook(hook.method, name, hook.safety)
            hook = dataclasses.replace(hook, method=noted)
        return super()._call_hook(hook, name, request, *args)

    def _call_view(self, view: Any, request: Any, args: Any, kwargs: Any) -> Steps:
        if not iscoroutinefunction(view):
            advice = "An async view needs no hop, unless it calls sync code."
            cause = Cause(f"the sync view {name_of(view)}", advice)
            view = self._noted(view, lambda *_, **__: [cause])
        return super()._call_view(view, request, args, kwargs)

    def _render_here(self, response: Any) -> Any:
        note_running([Cause(f"rendering a {name_of(type(response))}")])
        return super()._render_here(response)

    def _log(self, response: Any, request: Any) -> None:
        note_running([Cause(f"logging a status {response.status_code}")])
        super()._log(response, request)

    def _ask_exception_hooks(self, error: Exception, request: Any) -> Steps:
        response = yield from super()._ask_exception_hooks(error, request)
        for hook in self._plan.handler._exception_middleware:
            note_running([hook_cause(hook, "process_exception")])
        return response

    def _take_to_thread(self, error: Exception, request: Any) -> Steps:
        yield from super()._take_to_thread(error, request)
        note_running([Cause(f"answering a {name_of(type(error))}")])

    def _noted_hook(self, hook: Any, name: str, safety: Any) -> Any:
        def causes(request: Any, subject: Any = None, *_: Any) -> list[Cause]:
            if safety and safety.allows(name, request, subject):
                return []
            return [hook_cause(hook, name)]

        return self._noted(hook, causes)

    def _noted(self, fn: Any, causes: Callable[..., list[Cause]]) -> Any:
        """Return a function that is noted when it runs in the thread."""

        def noted(*args: Any, **kwargs: Any) -> Any:
            __traceback_hide__ = True
            if self.in_thread:
                note_running(causes(*args, **kwargs))
            return fn(*args, **kwargs)

        # A view says there what is to be done with it.
        vars(noted).update(getattr(fn, "__dict__", {}))
        return noted


# Recording


def record_hops(handler: Any, hops: list[RecordedHop] | None = None) -> None:
    """Record the hops of a handler's requests from now on.

    Args:
        handler: May record already.
        hops: Where to; None: a request's hops are shown in its response's header.
    """
    handle, make_response = handler.handle, handler._make_response

    async def handle_recorded(scope: Scope, receive: Receive, send: Send) -> None:
        if isinstance(reserved_lease(), RecordingLease):
            await handle(scope, receive, send)
            return
        lease = cast("RecordingLease", current_pool().lease(RecordingLease))
        lease.reserved = True
        lease.hops = [] if hops is None else hops
        outer_loop = current_loop.set(lease)
        try:
            await handle(scope, receive, send)
        finally:
            current_loop.reset(outer_loop)
            if lease.reserved:
                lease.release()  # the client has left before its body was there

    async def make_shown_response(scope: Any, state: Any, refusal: Any) -> Any:
        response = await make_response(scope, state, refusal)
        show_hops(response, state.lease.hops)
        return response

    handler.handle = handle_recorded
    if hops is None:
        handler._make_response = make_shown_response
    handler._chain.passage_type = RecordingPassage


def seconds_of(hops: list[RecordedHop]) -> float:
    """Return how long hops took in threads."""
    return sum(one.seconds for one in hops if one.place != NESTED)


def show_hops(response: Any, hops: list[RecordedHop]) -> None:
    """Add a ``Server-Timing``, in milliseconds, to what the response has of it."""
    metrics = [
        ("hops", f"{len(hops)} in all", seconds_of(hops)),
        ("wait", "waiting for threads", sum(one.waited for one in hops)),
    ]
    for number, one in enumerate(hops[: METRICS - len(metrics)], 1):
        what = " + ".join(cause.what for cause in one.causes)
        metrics.append((f"hop{number}", what, one.seconds))
    shown = [
        f'{name};desc="{_UNQUOTED.sub("?", what)[:DESCRIPTION]}"'
        f";dur={1000 * seconds:.1f}"
        for name, what, seconds in metrics
    ]
    own = response.headers.get("Server-Timing")
    response.headers["Server-Timing"] = ", ".join([own, *shown] if own else shown)

"""A rehearsal of a request: which steps it takes, and which of them hop to the thread.

What decides is the real thing: the generators of `Passage`, the chain as it was
planned, `LoopSafety` and `RequestSignals`. What they call are stand-ins:

    real                                     stand-in
    ────                                     ────────
    Passage's generators                     hooks, middleware functions, the view
    LoopSafety, asked about the real class   the answer to an error, and its log
    RequestSignals                           the receivers of both signals
    Django's hooks that do no I/O            the thread, the lease

So nothing of a project runs, but for what makes the request and finds its view: the
request's class, and converters of URLs. Hooks of Django's own that need no thread do
run, for they prepare the request for each other.

`_Rehearsal.run` follows `ASGIHandler.handle`; tests compare what comes of it with
requests that are really made.
"""

from __future__ import annotations

import contextvars
import io
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from django.core.handlers.asgi import get_script_prefix
from django.http import HttpResponse
from django.urls import set_script_prefix

from ._hop_causes import middleware_names, name_of, why_finish, why_sync
from ._middleware import Chain
from ._passage import Hook, Kind, Layer
from ._stage import Stage
from ._stand_ins import (
    Mistake,
    StandInHandler,
    StandInHook,
    StandInMiddleware,
    StandInPassage,
    StandInSignals,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._stage import Course
    from ._types import Scope
    from .handler import ASGIHandler

    #: What a rehearsed view does: it is given the stage and the request.
    Act = Callable[[Stage, Any], Any]


def respond(_: Stage, __: Any) -> HttpResponse:
    """Do what most views do."""
    return HttpResponse()


def rehearse(
    handler: ASGIHandler,
    scope: Scope,
    act: Act = respond,
    *,
    uses_database: bool = False,
) -> Course:
    """Find out what a request would do. No loop need run.

    Args:
        handler: The project's, with its middleware loaded.
        scope: The request's, as a server would send it.
        act: What the view does.
        uses_database: Whether code in the thread uses one, whose connection is to be
            closed at the end.

    Raises:
        RuntimeError: a mistake in this package.
    """
    # In a context of its own: a cache that was used here is nothing to the request.
    try:
        stage = Stage(act, uses_database=uses_database)
        return contextvars.Context().run(_Rehearsal(handler, scope, stage).run)
    except Mistake as mistake:
        error = mistake.__cause__
        raise RuntimeError(f"The rehearsal has failed: {error!r}") from error


def middleware_of(handler: ASGIHandler) -> list[tuple[Layer, str]]:
    """Return a handler's middleware, outermost first, each with its name."""
    layers = []
    layer = handler._chain.top
    while layer is not None:
        layers.append(layer)
        layer = layer.below
    # The innermost is the view.
    names = middleware_names([layer.instance for layer in layers[:-1]])
    return [*zip(layers[:-1], names, strict=True)]


class _Rehearsal:
    """One request that is rehearsed."""

    def __init__(self, handler: ASGIHandler, scope: Scope, stage: Stage) -> None:
        self._handler = handler
        self._scope = scope
        self._stage = stage
        self._middleware = middleware_of(handler)
        stage.chain = self._stand_in_chain()

    # The chain

    def _stand_in_chain(self) -> Chain:
        real = self._handler._chain
        chain = Chain(StandInHandler(self._stage, self._handler))  # type: ignore[arg-type]
        chain.top = self._stand_in_layers()
        chain._view_hooks = self._stand_in_hooks("process_view", real._view_hooks)
        chain._template_hooks = self._stand_in_hooks(
            "process_template_response", real._template_hooks
        )
        return chain

    def _stand_in_layers(self) -> Layer:
        names = [name for _, name in self._middleware]
        innermost = self._handler._chain.top
        while innermost is not None and innermost.below is not None:
            innermost = innermost.below
        assert innermost is not None, "a chain has a view"
        # Also if it is called as a whole, for it was replaced.
        below = Layer(Kind.VIEW, None, None, innermost.safety)
        for place, (layer, name) in reversed([*enumerate(self._middleware)]):
            is_sync = layer.kind is Kind.SYNC
            why = why_sync(name, names[place + 1 :]) if is_sync else None
            actor = StandInMiddleware(self._stage, layer, name, below=below, why=why)
            below = Layer(layer.kind, actor, below, layer.safety)
        return below

    def _stand_in_hooks(self, kind: str, hooks: list[Hook]) -> list[Hook]:
        stand_ins = []
        for hook in hooks:
            name = f"{self._owner_of(hook, kind)}.{kind}"
            stand_in = StandInHook(self._stage, hook, kind, name)
            stand_ins.append(Hook(stand_in.call, hook.is_async, hook.safety))
        return stand_ins

    def _owner_of(self, hook: Hook, kind: str) -> str:
        for layer, name in self._middleware:
            if getattr(layer.instance, kind, None) == hook.method:
                return name
        return name_of(hook.method)

    # The request

    def run(self) -> Course:
        """Do as `ASGIHandler.handle`."""
        stage = self._stage
        set_script_prefix(get_script_prefix(self._scope))
        signals = StandInSignals(stage, type(self._handler), self._scope)
        response = self._make_response(signals)
        stage.course.status = response.status_code
        if response.streaming and not response.is_async:
            with stage.hop():
                stage.step("the parts of the stream", "a sync iterator")
        elif not response.streaming and stage.lease.has_thread:
            signals.release_thread_early(response)
        if not signals.finish_nowait(response) and signals.pending:
            with stage.hop():
                stage.step("request_finished", why_finish(response))
        return stage.course

    def _make_response(self, signals: StandInSignals) -> Any:
        stage, handler = self._stage, self._handler
        if not handler._makes_plain_requests():
            signals.start_in_hop()
        request, refusal = handler.create_request(self._scope, io.BytesIO())
        if request is None:
            signals.start_in_hop()
            stage.course.notes.append("The request is refused by create_request().")
            return refusal
        request._signals = signals  # type: ignore[attr-defined]
        with self._log_as_step(request):
            passage = StandInPassage(stage)
            return passage.go(passage.all(request))

    @contextmanager
    def _log_as_step(self, request: Any) -> Iterator[None]:
        """Note that Django logs an answer, rather than have it logged."""

        def note(record: logging.LogRecord) -> bool:
            if getattr(record, "request", None) is not request:
                return True
            self._stage.step(f"log: {record.getMessage()}", "errors are logged there")
            return False

        logger = logging.getLogger("django.request")
        logger.addFilter(note)
        try:
            yield
        finally:
            logger.removeFilter(note)

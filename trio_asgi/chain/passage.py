"""A request's way through the middleware chain, with as few hops as possible.

It is a generator that runs on the loop or in the request's thread. It calls the code
that belongs there, and yields only where the next code belongs on the other side. So
adjacent hooks share a hop, and code that needs no thread causes none. The order of
calls and the handling of errors are Django's.
"""

from __future__ import annotations

import asyncio
import functools
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import trio
from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from django.conf import settings
from django.core.handlers import base, exception
from django.urls import set_urlconf
from django.utils.log import log_response

from trio_asgi.bridge.hop import hop, note_unfinished, retire_thread, was_left
from trio_asgi.bridge.originals import Original
from trio_asgi.errors import note_asyncio
from trio_asgi.islands.functions import is_asyncio_island, is_trio_island, runs_on_trio
from trio_asgi.request.errors import (
    answer_body_error,
    as_view_errors,
    give_up_form,
    log_lost,
)
from trio_asgi.response.send import iterate_in_island

from .plan import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import TypeAlias

    from .plan import Hook, Layer, Plan

    #: Yields `THREAD`, or a function to call and await on the loop. Returns a response.
    Steps: TypeAlias = Generator[Any, Any, Any]

#: Yielded on the loop: go on in the thread.
THREAD: Final = "go on in the thread"

_ASK_HOOKS: Final = Original(base.BaseHandler.process_exception_by_middleware, base)


class Ended(NamedTuple):
    """The end of a way through the chain."""

    response: Any


class Passage:
    """One request's way through the chain, or through the part below a middleware.

    The calling task runs the generators on the loop, and makes each hop, under its
    cancel scopes. If it leaves a hop whose thread runs on, the thread alone runs them.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        #: Whether the request's thread runs the generator now.
        self.in_thread = False

    async def drive(self, steps: Steps) -> Any:
        """Run a generator to its end, beginning on the loop; return the response."""
        try:
            return await self._drive_on(steps, _advance(steps.send, None))
        except BaseException:
            # `through` could not answer this error, so hooks were skipped.
            retire_thread()
            raise

    @runs_on_trio
    async def _drive_on(self, steps: Steps, wanted: Any) -> Any:
        """Run a generator, which has yielded ``wanted``, to its end. Trio task."""
        while type(wanted) is not Ended:
            resume, value = steps.send, None
            try:
                if wanted is THREAD:
                    wanted = await hop(functools.partial(self._advance_here, steps))
                    continue
                value = await wanted()
            except BaseException as error:
                if wanted is not THREAD:
                    note_asyncio(error)
                elif was_left():
                    raise  # the thread may still run the generator
                resume, value = steps.throw, error
            # Outside the `except`, or all that follows would be handling the error.
            try:
                wanted = _advance(resume, value)
            finally:
                # An error's traceback holds this frame: leave no cycle behind.
                del value
        return wanted.response

    def drive_in_thread(self, steps: Steps) -> Any:
        """Run a generator to its end, beginning in the thread. Worker thread."""
        try:
            wanted = self._advance_here(steps)
            if type(wanted) is Ended:
                return wanted.response
            return async_to_sync(self._drive_on)(steps, wanted)
        except BaseException:
            retire_thread()  # see drive()
            raise

    def _advance_here(self, steps: Steps) -> Any:
        """Run a generator until it wants the loop, or to its end. Worker thread."""
        self.in_thread = True
        try:
            return _advance(steps.send, None)
        finally:
            self.in_thread = False

    def all(self, request: Any) -> Steps:
        """Go through the whole chain, as `BaseHandler.get_response` does."""
        signals = getattr(request, "_signals", None)
        if signals is not None and signals.start_first:
            yield THREAD
        set_urlconf(settings.ROOT_URLCONF)
        layer: Any = self._plan.top
        response = yield from self.through(layer, request)
        response._resource_closers.append(request.close)
        logged = getattr(response, "_has_been_logged", False)
        if response.status_code >= 400 and not logged:  # noqa: PLR2004 - HTTP's
            if not self.in_thread:
                yield THREAD
            self.note("logging the status of a", type(response))
            texts = response.reason_phrase, request.path
            log_response("%s: %s", *texts, response=response, request=request)
        if self.in_thread and signals is not None:
            nothing_follows = self._plan.handler.nothing_follows
            signals.tidy_early(response, nothing_follows=nothing_follows)
        return response

    def note(self, what: str, code: Any, *hook: Any) -> None:
        """Do nothing, before sync code runs; see `hops.record`. Worker thread."""

    def through(self, layer: Layer, request: Any) -> Steps:
        """Go through a layer, and answer its errors, as Django does around each."""
        try:
            if layer.kind is Kind.HOOKS:
                response = yield from self._call_hooks(layer, request)
            elif layer.kind is Kind.VIEW:
                response = yield from self._call_inside(request)
            elif layer.kind is Kind.ASYNC:
                response = yield functools.partial(layer.instance, request)
            else:
                if not self.in_thread:
                    yield THREAD
                self.note("the sync middleware", layer.instance)
                response = layer.instance(request)
        except Exception as error:  # noqa: BLE001 - Django answers it
            yield from self._take_to_thread(error, request)
            give_up_form(request)
            response = answer_body_error(error)
            if response is None:
                response = exception.response_for_exception(request, error)
        return response

    def _call_hooks(self, layer: Layer, request: Any) -> Steps:
        """Call the hooks and the layer below, as `MiddlewareMixin.__call__` does."""
        middleware, safety, below = layer.instance, layer.safety, layer.below
        assert below is not None
        response = None
        process_request = getattr(middleware, "process_request", None)
        if process_request is not None:
            if not (self.in_thread or safety.allows("process_request", request)):
                yield THREAD
            if self.in_thread:
                self.note("process_request", middleware, safety, request)
                if not safety.known:
                    note_unfinished()
            response = process_request(request)
        response = response or (yield from self.through(below, request))
        process_response = getattr(middleware, "process_response", None)
        if process_response is not None:
            asked = "process_response", request, response
            if not (self.in_thread or safety.allows(*asked)):
                yield THREAD
            if self.in_thread:
                self.note("process_response", middleware, safety, request, response)
            response = process_response(request, response)
        return response

    def _call_inside(self, request: Any) -> Steps:
        """Call the view and its hooks, as `BaseHandler._get_response` does."""
        handler = self._plan.handler
        view, args, kwargs = handler.resolve_request(request)
        response = None
        called = "process_view", request, view, args, kwargs
        for hook in self._plan.view_hooks:
            response = yield from self._call_hook(hook, *called)
            if response:
                break
        if response is None:
            atomic = handler.make_view_atomic(view)
            if not (isinstance(atomic, FunctionType) or iscoroutinefunction(atomic)):
                # As in Django, this raises TypeError if its `__call__` is async.
                sync_to_async(atomic)
            try:
                response = yield from self._call_view(atomic, request, args, kwargs)
            except Exception as error:
                response = yield from self._ask_exception_hooks(error, request)
                if response is None:
                    raise
        handler.check_response(response, view)
        if callable(getattr(response, "render", None)):
            response = yield from self._render(response, request)
        if asyncio.iscoroutine(response):
            raise RuntimeError("Response is still a coroutine.")
        return response

    def _call_view(self, view: Any, request: Any, args: Any, kwargs: Any) -> Steps:
        __traceback_hide__ = True
        with as_view_errors(request.path):
            if iscoroutinefunction(view):
                response = yield functools.partial(view, request, *args, **kwargs)
            else:
                if not self.in_thread:
                    yield THREAD
                self.note("the sync view", view)
                response = view(request, *args, **kwargs)
        # A sync view may stream async code, too; middleware around that is Trio's.
        if getattr(response, "is_async", False) and (
            is_asyncio_island(view)
            or (self._plan.handler._asyncio_views and not is_trio_island(view))
        ):
            iterate_in_island(response)
        request.view_response = response
        return response

    def _render(self, response: Any, request: Any) -> Steps:
        """Render a template response, after the hooks for it."""
        handler = self._plan.handler
        what = "process_template_response"
        for hook in self._plan.template_hooks:
            response = yield from self._call_hook(hook, what, request, response)
            name = f"{type(hook.method.__self__).__name__}.{what}"
            handler.check_response(response, hook.method, name=name)
        try:
            if iscoroutinefunction(response.render):
                return (yield response.render)
            if not self.in_thread:
                yield THREAD
            self.note("rendering a", type(response))
            return response.render()
        except Exception as error:
            answer = yield from self._ask_exception_hooks(error, request)
            if answer is None:
                raise
            return answer

    def _call_hook(self, hook: Hook, name: str, request: Any, *args: Any) -> Steps:
        if hook.is_async:
            return (yield functools.partial(hook.method, request, *args))
        if not (self.in_thread or hook.safety.allows(name, request, args[0])):
            yield THREAD
        if self.in_thread:
            self.note(name, hook.method, hook.safety, request, args[0])
            if not hook.safety.known:
                note_unfinished()
        return hook.method(request, *args)

    def _ask_exception_hooks(self, error: Exception, request: Any) -> Steps:
        handler: Any = self._plan.handler
        ask = type(handler).process_exception_by_middleware
        if not handler._exception_middleware and _ASK_HOOKS.is_code_of(ask):
            return None
        yield from self._take_to_thread(error, request)
        return handler.process_exception_by_middleware(error, request)

    def _take_to_thread(self, error: Exception, request: Any) -> Steps:
        """Go on in the thread with an error; log it if a cancellation comes first."""
        if not self.in_thread:
            try:
                yield THREAD
            except trio.Cancelled:
                log_lost(error, request.path)
                raise
        self.note("answering a", type(error))


def _advance(resume: Callable[[Any], Any], value: Any) -> Any:
    """Run a generator; return what it yields next, or `Ended`."""
    try:
        return resume(value)
    except StopIteration as end:
        return Ended(end.value)
    finally:
        # If it is an error, its traceback holds this frame: leave no cycle behind.
        del value

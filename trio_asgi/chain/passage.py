"""A request's way through the middleware chain, with as few hops as possible.

It is a generator, run by a `Driver`: adjacent hooks share a hop, and code that needs no
thread causes none. The order of calls and the handling of errors are Django's.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from inspect import CO_COROUTINE
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final

import trio
from asgiref.sync import iscoroutinefunction, sync_to_async
from django.core.handlers import base, exception
from django.http.response import HttpResponseBase
from django.urls import set_urlconf
from django.utils.log import log_response

from trio_asgi.bridge.hop import note_unfinished
from trio_asgi.bridge.originals import Original
from trio_asgi.conf import setting
from trio_asgi.islands.functions import is_asyncio_island, is_trio_island
from trio_asgi.request.errors import (
    answer_body_error,
    give_up_form,
    log_lost,
    raise_view_error,
)
from trio_asgi.response.send import iterate_in_island

from .driver import THREAD, Driver
from .plan import Kind

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

if TYPE_CHECKING:
    from .driver import Steps
    from .plan import Hook, Plan, Section

_ASK_HOOKS: Final = Original(base.BaseHandler.process_exception_by_middleware, base)


class Passage(Driver):
    """One request's way through a section of the chain."""

    def __init__(self, plan: Plan, section: Section) -> None:
        self._plan = plan
        self._section = section
        #: How many of the section's layers are around the code that runs now.
        self._depth = 0

    def all(self, request: Any) -> Steps:
        """Go through the whole chain, as `BaseHandler.get_response` does."""
        signals = getattr(request, "_signals", None)
        if signals is not None and signals.start_first:
            yield THREAD
        set_urlconf(setting("ROOT_URLCONF"))
        response = yield from self.through(request)
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

    def through(self, request: Any) -> Steps:
        """Go inwards through the section and back out, as Django does."""
        try:
            response = yield from self._go_in(request)
        except Exception as error:  # noqa: BLE001 - Django answers it
            response = yield from self._answer(error, request)
        layers = self._section.layers
        while self._depth:
            self._depth -= 1
            layer = layers[self._depth]
            hook = getattr(layer.instance, "process_response", None)
            if hook is None:
                continue
            try:
                safety = layer.safety
                if not (self.in_thread or safety.process_response(request, response)):
                    yield THREAD
                if self.in_thread:
                    seen = safety, request, response
                    self.note("process_response", layer.instance, *seen)
                response = hook(request, response)
            except Exception as error:  # noqa: BLE001 - Django answers it
                response = yield from self._answer(error, request)
        return response

    def _go_in(self, request: Any) -> Steps:
        """Call the section's hooks for requests, and what the layers surround."""
        for layer in self._section.layers:
            hook = getattr(layer.instance, "process_request", None)
            response = None
            if hook is not None:
                safety = layer.safety
                if not (self.in_thread or safety.process_request(request)):
                    yield THREAD
                if self.in_thread:
                    self.note("process_request", layer.instance, safety, request)
                    if not safety.known:
                        note_unfinished()
                response = hook(request)
            self._depth += 1
            if response:
                return response
        inner = self._section.inner
        if inner.kind is Kind.VIEW:
            return (yield from self._call_inside(request))
        if inner.kind is Kind.ASYNC:
            return (yield functools.partial(inner.instance, request))
        if not self.in_thread:
            yield THREAD
        self.note("the sync middleware", inner.instance)
        return inner.instance(request)

    def _answer(self, error: Exception, request: Any) -> Steps:
        """Answer an error, as Django's wrapper around the current layer does.

        If that fails, the wrapper around the next layer answers the failure.
        """
        try:
            yield from self._take_to_thread(error, request)
            give_up_form(request)
            response = answer_body_error(error)
            return response or exception.response_for_exception(request, error)
        except Exception as failure:
            if not self._depth:
                raise
            self._depth -= 1
            return (yield from self._answer(failure, request))
        finally:
            # The traceback of a failure holds this frame: leave no cycle behind.
            del error

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
        if not isinstance(response, HttpResponseBase) and asyncio.iscoroutine(response):
            raise RuntimeError("Response is still a coroutine.")
        return response

    def _call_view(self, view: Any, request: Any, args: Any, kwargs: Any) -> Steps:
        __traceback_hide__ = True
        try:
            if _is_async(view):
                response = yield functools.partial(view, request, *args, **kwargs)
            else:
                if not self.in_thread:
                    yield THREAD
                self.note("the sync view", view)
                response = view(request, *args, **kwargs)
        except (asyncio.CancelledError, BaseExceptionGroup) as error:
            raise_view_error(error, request.path)
            raise
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
        self.note("answering", type(error))


def _is_async(view: Any) -> bool:
    # Most views are plain functions, which need no closer look.
    if type(view) is FunctionType:
        if view.__code__.co_flags & CO_COROUTINE:
            return True
        if not view.__dict__:  # where a mark would be
            return False
    return iscoroutinefunction(view)

"""A request's way through the middleware chain, with as few hops as it can be gone in.

Django's handler exists twice, for sync and for async code, and each sync hook under
async code hops to the thread and back. Here the way is written once, as a generator. It
runs on either side, calls what belongs there, and only where the next piece of code
belongs on the other side, it yields:

    on the loop                                in the request's thread
    ───────────                                ───────────────────────
    hooks that need no thread
    yield THREAD                           ──► sync hooks, the sync view, sync hooks
    response                               ◄── done, in one hop

    hooks that need no thread
    yield THREAD                           ──► sync hooks
    awaits an async view, or middleware    ◄── yield the view
    hooks that need no thread
    yield THREAD                           ──► sync hooks
    response                               ◄── done, in two hops

So hooks share a hop where they are adjacent, and what needs no thread never asks for
one. The order of calls, and what becomes of errors between layers, is Django's.
"""

from __future__ import annotations

import asyncio
import functools
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final

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
    answer_to_nobody,
    as_view_errors,
    body_refusal,
    give_up_form,
    log_lost,
)
from trio_asgi.response.send import iterate_in_island

from .plan import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import TypeAlias

    from .loop_safe import LoopSafety
    from .plan import Hook, Layer, Plan

    #: Yields `THREAD`, or what is to be awaited on the loop; returns a response.
    Steps: TypeAlias = Generator[Any, Any, Any]

#: Yielded on the loop: go on in the thread.
THREAD: Final = "go on in the thread"

_BAD_REQUEST: Final = 400

_ASK_HOOKS: Final = Original(base.BaseHandler.process_exception_by_middleware, base)


class Ended:
    """What a way through the chain has come to."""

    __slots__ = ("response",)

    def __init__(self, response: Any) -> None:
        self.response = response


class Passage:
    """One way through the chain, or through what is below a middleware.

    The generators below run on one side at a time, and find in `in_thread` which it is.
    On the loop it is driven by the task that called, and each hop is made by that task,
    under its cancel scopes. If the task leaves a hop whose thread runs on, the passage
    is the thread's alone.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        #: Whether the generator is run by the request's thread just now.
        self.in_thread = False

    # Driving

    async def drive(self, steps: Steps) -> Any:
        """Go the whole way from the loop; hop where the thread is wanted."""
        try:
            return await self._drive_on(steps, _advance(steps.send, None))
        except BaseException:
            # Whatever `through` could not answer has skipped hooks.
            retire_thread()
            raise

    @runs_on_trio
    async def _drive_on(self, steps: Steps, wanted: Any) -> Any:
        """Go on from the loop, where something is wanted first."""
        while type(wanted) is not Ended:
            error: BaseException | None = None
            try:
                if wanted is THREAD:
                    wanted = await hop(functools.partial(self._advance_here, steps))
                    continue
                value = await wanted()
            except BaseException as raised:
                if wanted is THREAD and was_left():
                    raise  # the thread may still run the generator
                if wanted is not THREAD:
                    note_asyncio(raised)
                error = raised
            # Not within the `except`, or all that follows would be handling the error.
            if error is None:
                wanted = _advance(steps.send, value)
                continue
            try:
                wanted = _advance(steps.throw, error)
            finally:
                # Its traceback holds this frame: leave no cycle behind.
                del error
        return wanted.response

    def drive_in_thread(self, steps: Steps) -> Any:
        """Go the whole way from the thread; back to the loop where that is wanted."""
        try:
            wanted = self._advance_here(steps)
            if type(wanted) is Ended:
                return wanted.response
            return async_to_sync(self._drive_on)(steps, wanted)
        except BaseException:
            retire_thread()  # see drive()
            raise

    def _advance_here(self, steps: Steps) -> Any:
        """Go on until something is wanted that the loop has. Worker thread."""
        self.in_thread = True
        try:
            return _advance(steps.send, None)
        finally:
            self.in_thread = False

    # The way

    def all(self, request: Any) -> Steps:
        """Go all the way, as `BaseHandler.get_response` does."""
        signals = getattr(request, "_signals", None)
        if signals is not None and signals.start_first:
            yield THREAD
        set_urlconf(settings.ROOT_URLCONF)
        layer = self._plan.top
        assert layer is not None
        response = yield from self.through(layer, request)
        response._resource_closers.append(request.close)
        if response.status_code >= _BAD_REQUEST and not _was_logged(response):
            if not self.in_thread:
                yield THREAD
            self.note("logging the status of a", type(response))
            log_response(
                "%s: %s",
                response.reason_phrase,
                request.path,
                response=response,
                request=request,
            )
        if self.in_thread and signals is not None:
            signals.tidy_early(response)
        return response

    def note(
        self, what: str, code: Any, safety: LoopSafety | None = None, *seen: Any
    ) -> None:
        """Do nothing, before sync code runs; `hops.record` overrides it. Worker thread.

        A hook comes with its name, and with what says whether it needs the thread.
        """

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
            response = (
                body_refusal(error)
                or answer_to_nobody(error)
                or exception.response_for_exception(request, error)
            )
        return response

    def _call_hooks(self, layer: Layer, request: Any) -> Steps:
        """Do as `MiddlewareMixin.__call__`."""
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
            if not (
                self.in_thread or safety.allows("process_response", request, response)
            ):
                yield THREAD
            if self.in_thread:
                self.note("process_response", middleware, safety, request, response)
            response = process_response(request, response)
        return response

    def _call_inside(self, request: Any) -> Steps:
        """Do as `BaseHandler._get_response`: call the view, and the hooks around it."""
        handler = self._plan.handler
        view, args, kwargs = handler.resolve_request(request)
        response = None
        for hook in self._plan.view_hooks:
            response = yield from self._call_hook(
                hook, "process_view", request, view, args, kwargs
            )
            if response:
                break
        if response is None:
            atomic_view = handler.make_view_atomic(view)
            if not isinstance(atomic_view, FunctionType) and not iscoroutinefunction(
                atomic_view
            ):
                # Raises TypeError, as it does for Django, if it is async after all.
                sync_to_async(atomic_view)
            try:
                response = yield from self._call_view(
                    atomic_view, request, args, kwargs
                )
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
        # A sync view may stream async code, too. What middleware puts around that is
        # Trio's.
        if getattr(response, "is_async", False) and (
            is_asyncio_island(view)
            or (self._plan.asyncio_views and not is_trio_island(view))
        ):
            iterate_in_island(response)
        request.view_response = response
        return response

    def _render(self, response: Any, request: Any) -> Steps:
        """Render a template response, after the hooks for it."""
        handler = self._plan.handler
        for hook in self._plan.template_hooks:
            response = yield from self._call_hook(
                hook, "process_template_response", request, response
            )
            owner = type(hook.method.__self__).__name__  # type: ignore[attr-defined]
            name = f"{owner}.process_template_response"
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
        safety = hook.safety
        if not self.in_thread and not (
            safety is not None and safety.allows(name, request, args[0])
        ):
            yield THREAD
        if self.in_thread:
            self.note(name, hook.method, safety, request, args[0])
            if safety is None or not safety.known:
                note_unfinished()
        return hook.method(request, *args)

    def _ask_exception_hooks(self, error: Exception, request: Any) -> Steps:
        handler: Any = self._plan.handler
        if not handler._exception_middleware and _ASK_HOOKS.is_code_of(
            type(handler).process_exception_by_middleware
        ):
            return None
        yield from self._take_to_thread(error, request)
        return handler.process_exception_by_middleware(error, request)

    def _take_to_thread(self, error: Exception, request: Any) -> Steps:
        """Go on in the thread with an error; log it if it is lost on the way."""
        if not self.in_thread:
            try:
                yield THREAD
            except trio.Cancelled:
                log_lost(error, request.path)
                raise
        self.note("answering a", type(error))


def _advance(resume: Callable[[Any], Any], value: Any) -> Any:
    """Run a generator up to what it wants next, or to its end."""
    try:
        return resume(value)
    except StopIteration as end:
        return Ended(end.value)
    finally:
        # If it is an error, its traceback holds this frame: leave no cycle behind.
        del value


def _was_logged(response: Any) -> bool:
    return getattr(response, "_has_been_logged", False)

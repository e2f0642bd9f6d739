"""The middleware chain: Django's, planned once at start-up.

Django's own loader makes the middleware and decides which is sync. It asks `Chain.link`
for each ``get_response``, so the chain learns of each layer. If a `MiddlewareMixin`
keeps Django's ``__call__``, its hooks are called one by one. Any other middleware is
called as a whole: on the loop if it is async, or else in the thread.

`chain.passage` takes requests through the layers.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, Final

from asgiref.sync import SyncToAsync, iscoroutinefunction
from django.core.handlers import asgi, base, exception
from django.core.handlers.base import BaseHandler
from django.utils import deprecation
from django.utils.deprecation import MiddlewareMixin

from trio_asgi import conf
from trio_asgi.bridge.originals import Original, is_original
from trio_asgi.islands.functions import asyncio_island, is_trio_island

from .loop_safe import LoopSafety
from .passage import Passage
from .plan import Hook, Kind, Layer, Plan, Section

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.http import HttpRequest, HttpResponseBase

#: The hooks that `MiddlewareMixin` calls. Django's handler calls the others.
_HOOKS: Final = ("process_request", "process_response")

#: If a tool has replaced it, the replacement is called.
_GET_RESPONSE: Final = Original(BaseHandler.get_response_async, base)

#: What calls `ChainHandler.get_response_async`, and passes its response on.
_RUN: Final = Original(asgi.ASGIHandler.run_get_response, asgi)

#: Methods of Django's handler that use asyncio. `ASGIHandler` has its own, except for
#: the last, which nothing calls.
_NOT_CALLED: Final = ("handle", "read_body", "send_response", "listen_for_disconnect")

logger = logging.getLogger("django.request")


class Chain:
    """The middleware of one handler; Django's loader adds layers, innermost first."""

    def __init__(self, handler: BaseHandler) -> None:
        """Begin without any layer."""
        self.plan = Plan(handler)
        #: The class that takes requests through. `record_hops` replaces it.
        self.passage_type: type[Passage] = Passage
        self._top_handler: Any = None
        self._top_link: Callable[[Any], Any] | None = None

    def link(
        self, handler: Any, *, handler_is_async: bool, to_async: bool
    ) -> Callable[[Any], Any]:
        """Return the ``get_response`` that leads to the outermost layer so far.

        ``handler`` is that layer in Django's wrapper. With ``to_async`` a coroutine
        function is returned, or else a function for the thread.
        """
        # It is the same again if the last middleware raised `MiddlewareNotUsed`.
        if handler is not self._top_handler:
            instance = handler
            if is_original(handler, exception):
                # Without Django's wrapper: `Passage` turns errors into responses, too.
                instance = getattr(handler, "__wrapped__", handler)
            kind = self._kind(instance, is_async=handler_is_async)
            layer = Layer(kind, instance, LoopSafety(instance))
            self.plan.top = Section.around(self.plan.top, layer)
            self._top_handler = handler
        section = self.plan.top

        async def get_response_async(request: HttpRequest) -> Any:
            passage = self.passage(section)
            return await passage.drive(passage.through(request))

        def get_response(request: HttpRequest) -> Any:
            passage = self.passage(section)
            return passage.drive_in_thread(passage.through(request))

        self._top_link = get_response_async if to_async else get_response
        return self._top_link

    def passage(self, section: Section | None = None) -> Passage:
        """Return a new request's way through a section; by default the outermost."""
        section = section or self.plan.top
        assert section is not None
        return self.passage_type(self.plan, section)

    def _kind(self, instance: Any, *, is_async: bool) -> Kind:
        function = getattr(instance, "__func__", None)
        if self.plan.top is None and is_original(function, base):
            return Kind.VIEW
        if _keeps_djangos_call(instance) and instance.get_response is self._top_link:
            return Kind.HOOKS
        return Kind.ASYNC if is_async else Kind.SYNC


class ChainHandler(asgi.ASGIHandler):
    """Django's handler, with a `Chain` instead of nested functions."""

    #: Whether async views are asyncio code, unless they are declared as Trio views. In
    #: a handler for static files, which loads no chain, it stays False.
    _asyncio_views = False

    def load_middleware(self, is_async: bool = False) -> None:  # noqa: FBT001, FBT002
        """Load the middleware as Django does, and plan the chain.

        Raises:
            ImproperlyConfigured: Django's errors, or invalid ``loop_safe_hooks``.
        """
        _warn_of_tools()
        self._chain = Chain(self)
        self._asyncio_views = conf.get("ASYNCIO_VIEWS")
        super().load_middleware(is_async)
        handler: Any = self
        self._chain.plan.view_hooks = _hooks(handler._view_middleware)
        self._chain.plan.template_hooks = _hooks(handler._template_response_middleware)

    def adapt_method_mode(
        self,
        is_async: bool,  # noqa: FBT001 - Django's signature
        method: Callable[..., Any],
        method_is_async: bool | None = None,  # noqa: FBT001
        debug: bool = False,  # noqa: ARG002, FBT001, FBT002
        name: str | None = None,  # noqa: ARG002 - for a log message that is left out
    ) -> Callable[..., Any]:
        """Return the ``get_response`` for a middleware, or a hook around the view.

        Called by Django's loader.
        """
        if method_is_async is None:
            return super().adapt_method_mode(is_async, method)
        return self._chain.link(
            method, handler_is_async=method_is_async, to_async=is_async
        )

    def make_view_atomic(self, view: Callable[..., Any]) -> Callable[..., Any]:
        """Return the view to call for a request: in a transaction, if Django says so.

        With ``ASYNCIO_VIEWS`` an async view becomes an asyncio island, unless it is
        declared as a Trio view.
        """
        view = super().make_view_atomic(view)
        return as_island(view) if self._asyncio_views else view

    @property
    def nothing_follows(self) -> bool:
        """Whether no code of the project runs between the chain and the sending."""
        # The methods themselves: attributes of the handler may hide them.
        get_response = getattr(self.get_response_async, "__func__", None)
        return (
            _RUN.is_code_of(getattr(self.run_get_response, "__func__", None))
            and get_response is ChainHandler.get_response_async
        )

    async def get_response_async(self, request: HttpRequest) -> HttpResponseBase:
        """Answer a request through the middleware chain. Called in the request's task.

        Raises:
            trio.Cancelled: the request was cancelled.
            Exception: of a receiver of ``request_started``, or of Django's own error
                handling.
        """
        if not _GET_RESPONSE.is_code_of(BaseHandler.get_response_async):
            # A tool has wrapped it. This way takes a hop or two more.
            if (signals := getattr(request, "_signals", None)) is not None:
                await signals.start()
            return await super().get_response_async(request)
        passage = self._chain.passage()
        response: HttpResponseBase = await passage.drive(passage.all(request))
        return response


def as_island(view: Callable[..., Any]) -> Callable[..., Any]:
    """Return an async view as an asyncio island, unless it is declared as Trio's."""
    if iscoroutinefunction(view) and not is_trio_island(view):
        return asyncio_island(view)
    return view


def _warn_of_tools() -> None:
    """Log tools that have replaced methods that are not called, or mix requests up."""
    if "newrelic.agent" in sys.modules:
        logger.error(
            "New Relic's agent was imported. It tells requests apart by asyncio tasks. "
            "On Trio it takes all requests that run at the same time for one, and its "
            "reports mix up their data. Do not start it in this process."
        )
    for name in _NOT_CALLED:
        found = vars(asgi.ASGIHandler).get(name)
        if not is_original(found, asgi):
            logger.warning(
                "%r replaces django.core.handlers.asgi.ASGIHandler.%s, but is not "
                "called on Trio. Replace handle, read_body or send_response of "
                "trio_asgi.ASGIHandler instead.",
                found,
                name,
            )


def _hooks(adapted: Any) -> list[Hook]:
    """Return the hooks that Django's loader has adapted, sync ones unwrapped."""
    hooks = []
    for method in adapted:
        is_async = not isinstance(method, SyncToAsync)
        bare = method if is_async else method.func
        owner = getattr(bare, "__self__", bare)
        hooks.append(Hook(bare, is_async, LoopSafety(owner)))
    return hooks


def _keeps_djangos_call(instance: Any) -> bool:
    """Whether only `MiddlewareMixin` calls the middleware's hooks."""
    kind = type(instance)
    return (
        isinstance(instance, MiddlewareMixin)
        and is_original(kind.__call__, deprecation)
        and is_original(kind.__acall__, deprecation)
        and not any(
            iscoroutinefunction(getattr(instance, hook, None)) for hook in _HOOKS
        )
    )

"""The middleware chain: Django's, planned once at start-up.

Django's own loader makes the instances, each once, and decides which are sync. It asks
`Chain.link` for the ``get_response`` of each; so the chain comes to know them. A layer
is driven hook by hook if it is a `MiddlewareMixin` that leaves the calling to Django.
Any other is called as it is: on the loop if it is async, and otherwise in the thread,
where its ``get_response`` goes on as far as what follows is sync.

How a request goes through the layers is told in `chain.passage`.
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
from .plan import Hook, Kind, Layer, Plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.http import HttpRequest, HttpResponseBase

#: What a `MiddlewareMixin` calls itself; hooks around the view are the handler's.
_HOOKS: Final = ("process_request", "process_response")

#: If something was put in its place, that is called.
_GET_RESPONSE: Final = Original(BaseHandler.get_response_async, base)


#: Methods of Django's handler that ask asyncio. `ASGIHandler` has others.
_NOT_CALLED: Final = ("handle", "read_body", "send_response", "listen_for_disconnect")

logger = logging.getLogger("django.request")


class Chain:
    """The middleware of one handler, and the ways through it."""

    def __init__(self, handler: BaseHandler) -> None:
        """Know no middleware yet; Django's loader tells them from the inside out."""
        self.plan = Plan(handler, asyncio_views=conf.get("ASYNCIO_VIEWS"))
        #: Goes the ways; one that records its hops may be put in its place.
        self.passage_type: type[Passage] = Passage
        self._top_handler: Any = None
        self._top_link: Any = None

    # While Django loads the middleware

    def link(
        self, handler: Any, *, handler_is_async: bool, to_async: bool
    ) -> Callable[[Any], Any]:
        """Return the ``get_response`` that leads to a handler of Django's.

        Args:
            handler: What Django has wrapped around the outermost layer so far.
            handler_is_async: Whether Django takes that layer for async.
            to_async: Whether a coroutine function is wanted, or a function for the
                thread.
        """
        # The same again, if the middleware that got it has refused to be used.
        if handler is not self._top_handler:
            instance = _without_conversion(handler)
            kind = self._kind(instance, is_async=handler_is_async)
            self.plan.top = Layer(kind, instance, self.plan.top, LoopSafety(instance))
            self._top_handler = handler
        layer = self.plan.top
        assert layer is not None

        async def get_response_async(request: HttpRequest) -> Any:
            passage = self.passage_type(self.plan)
            return await passage.drive(passage.through(layer, request))

        def get_response(request: HttpRequest) -> Any:
            passage = self.passage_type(self.plan)
            return passage.drive_in_thread(passage.through(layer, request))

        link = get_response_async if to_async else get_response
        self._top_link = link
        return link

    def _kind(self, instance: Any, *, is_async: bool) -> Kind:
        if self.plan.top is None and _is_djangos_view_layer(instance):
            return Kind.VIEW
        if _leaves_calling_to_django(instance) and (
            instance.get_response is self._top_link
        ):
            return Kind.HOOKS
        return Kind.ASYNC if is_async else Kind.SYNC

    def complete(self) -> None:
        """Take over the hooks around the view. Called when all layers are loaded."""
        handler = self.plan.handler
        self.plan.view_hooks = _hooks(handler._view_middleware)
        self.plan.template_hooks = _hooks(handler._template_response_middleware)

    # When a request comes

    async def respond(self, request: Any) -> HttpResponseBase:
        """Do as `BaseHandler.get_response`. Called by the request's task.

        Raises:
            trio.Cancelled: the request was cancelled.
            Exception: what even Django's conversion of errors could not answer, or a
                receiver of ``request_started``.
        """
        passage = self.passage_type(self.plan)
        response: HttpResponseBase = await passage.drive(passage.all(request))
        return response


class ChainHandler(asgi.ASGIHandler):
    """Django's handler with a `Chain` in the place of its nested functions."""

    def load_middleware(self, is_async: bool = False) -> None:  # noqa: FBT001, FBT002
        """Load the middleware, each once, as Django does, and plan their chain.

        Raises:
            ImproperlyConfigured: as Django has it, or ``loop_safe_hooks`` are wrong.
        """
        _warn_of_what_is_not_called()
        self._chain = Chain(self)
        super().load_middleware(is_async)
        self._chain.complete()

    def adapt_method_mode(
        self,
        is_async: bool,  # noqa: FBT001 - Django's signature
        method: Callable[..., Any],
        method_is_async: bool | None = None,  # noqa: FBT001
        debug: bool = False,  # noqa: ARG002, FBT001, FBT002
        name: str | None = None,  # noqa: ARG002 - nothing to log: none is adapted yet
    ) -> Callable[..., Any]:
        """Return what a middleware gets as its ``get_response``.

        Django's loader asks this for each layer, and for each hook around the view.
        """
        if method_is_async is None:
            return super().adapt_method_mode(is_async, method)
        return self._chain.link(
            method, handler_is_async=method_is_async, to_async=is_async
        )

    def make_view_atomic(self, view: Callable[..., Any]) -> Callable[..., Any]:
        """Return the view as it is called: what Django's handler asks for each request.

        Besides Django's transaction: with ``ASYNCIO_VIEWS``, an async view becomes an
        island, unless it says that it is Trio's.
        """
        view = super().make_view_atomic(view)
        if (
            self._chain.plan.asyncio_views
            and iscoroutinefunction(view)
            and not is_trio_island(view)
        ):
            return asyncio_island(view)
        return view

    async def get_response_async(self, request: HttpRequest) -> HttpResponseBase:
        """Answer a request by way of the middleware chain; see `chain.load`."""
        if not _GET_RESPONSE.is_code_of(BaseHandler.get_response_async):
            # Tools that measure put something around it; it takes a hop or two more.
            if (signals := getattr(request, "_signals", None)) is not None:
                await signals.start()
            return await super().get_response_async(request)
        return await self._chain.respond(request)


def _warn_of_what_is_not_called() -> None:
    """Say so if a tool has replaced what this handler has no use for.

    Or if it is known to mix requests up, so that one user's data is reported with
    another's.
    """
    if "newrelic.agent" in sys.modules:
        logger.error(
            "New Relic's agent was imported. It tells requests apart by the tasks of "
            "asyncio, so on Trio it takes all that run at the same time for one, and "
            "mixes up what it reports of them. Do not start it in this process."
        )
    for name in _NOT_CALLED:
        found = vars(asgi.ASGIHandler).get(name)
        if not is_original(found, asgi):
            logger.warning(
                "%r is in the place of django.core.handlers.asgi.ASGIHandler.%s, and "
                "is not called on Trio. Replace that method of trio_asgi.ASGIHandler.",
                found,
                name,
            )


def _hooks(adapted: Any) -> list[Hook]:
    """Take off what Django's loader puts around sync hooks."""
    hooks = []
    for method in adapted:
        is_async = not isinstance(method, SyncToAsync)
        bare = method if is_async else method.func
        owner = getattr(bare, "__self__", None)
        safety = None if is_async or owner is None else LoopSafety(owner)
        hooks.append(Hook(bare, is_async, safety))
    return hooks


def _without_conversion(handler: Any) -> Any:
    """Take off what Django's loader puts around a layer: errors become responses.

    `Passage` does the same. What a tool has put there instead is called with the layer.
    """
    if is_original(handler, exception):
        return getattr(handler, "__wrapped__", handler)
    return handler


def _is_djangos_view_layer(instance: Any) -> bool:
    return is_original(getattr(instance, "__func__", None), base)


def _leaves_calling_to_django(instance: Any) -> bool:
    """Whether a middleware consists of hooks, as `MiddlewareMixin` calls them."""
    kind = type(instance)
    return (
        isinstance(instance, MiddlewareMixin)
        and is_original(kind.__call__, deprecation)
        and is_original(kind.__acall__, deprecation)
        and not any(
            iscoroutinefunction(getattr(instance, hook, None)) for hook in _HOOKS
        )
    )

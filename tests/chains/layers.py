"""The middleware of a chain, of every kind."""

from __future__ import annotations

import asyncio
import copy
import functools
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import outcome
import trio
from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.core.exceptions import MiddlewareNotUsed
from django.core.handlers.base import BaseHandler
from django.utils.decorators import (
    async_only_middleware,
    sync_and_async_middleware,
    sync_only_middleware,
)
from django.utils.deprecation import MiddlewareMixin
from django.utils.module_loading import import_string

from .acts import act, act_async, closed_at_end, respond
from .notes import note, note_made, word
from .specs import Act, Chain, Layer, OopsError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from django.http import HttpRequest


def make_layer(layer: Layer, index: int) -> Any:
    """Return the object that ``settings.MIDDLEWARE`` names."""
    prefix, _, path = layer.kind.rpartition(":")
    if prefix == "sub":
        return _subclass(layer, index, import_string(path))
    if path.startswith("django."):
        return import_string(path)
    if layer.kind == "function that makes nothing":
        return lambda get_response: None
    if layer.kind == "function that makes a mixin":
        make: Callable[[Any], Any] = _class(layer, index, Mixin)
        # Not the class itself, which says which kind of code it is for.
        return functools.partial(make)
    if layer.kind in _MARKS:
        return _function(layer, index)
    return _class(layer, index, _BASES[layer.kind])


# Hooks


def _hook(does: Act, label: str) -> Callable[..., Any]:
    """Return a method for a hook, which takes its subject as the last argument."""

    def given(arguments: tuple[Any, ...]) -> Any:
        is_view_hook = label.endswith("process_view")
        return None if is_view_hook or not arguments else arguments[-1]

    def hook(self: Any, request: HttpRequest, *arguments: Any) -> Any:
        return act(does, label, request, given(arguments))

    @closed_at_end
    async def async_hook(self: Any, request: HttpRequest, *arguments: Any) -> Any:
        return await act_async(does, label, request, given(arguments))

    return async_hook if does.is_async else hook


def _hook_before(does: Act, label: str, method: Callable[..., Any] | None) -> Any:
    """Return a hook that does something, then calls another hook, if there is one."""
    own = _hook(does, label)
    goes_on = does.end == "pass" and method is not None

    def hook(self: Any, *arguments: Any) -> Any:
        result = own(self, *arguments)
        return method(self, *arguments) if goes_on and method else result

    @closed_at_end
    async def async_hook(self: Any, *arguments: Any) -> Any:
        result = own(self, *arguments)
        if does.is_async:
            result = await result
        if goes_on and method:
            result = method(self, *arguments)
            if iscoroutinefunction(method):
                result = await result
        return result

    return async_hook if does.is_async or iscoroutinefunction(method) else hook


# Classes


class _Described:
    """A middleware that has a description of what to do."""

    layer: Layer
    label: str


def _class(layer: Layer, index: int, base: type[Any]) -> type[Any]:
    hooks = {name: _hook(does, f"{index}.{name}") for name, does in layer.hooks}

    def __init__(self: Any, get_response: Any) -> None:  # noqa: N807
        if layer.in_instance:
            # Functions, which have no __self__.
            for name, hook in hooks.items():
                setattr(self, name, functools.partial(hook, self))
        base.__init__(self, get_response)

    names: dict[str, Any] = {"layer": layer, "label": str(index), "__init__": __init__}
    return type(
        f"Layer{index}", (base,), names if layer.in_instance else {**names, **hooks}
    )


class Mixin(_Described, MiddlewareMixin):
    def __init__(self, get_response: Any) -> None:
        super().__init__(get_response)
        note_made(self.label, get_response)


class MixinForSyncCode(Mixin):
    async_capable = False


class MixinForAsyncCode(Mixin):
    sync_capable = False


class MixinWithCall(Mixin):
    """Overrides both ways of being called."""

    def __call__(self, request: HttpRequest) -> Any:
        if self.async_mode:
            return self.__acall__(request)
        return _around(self.layer, self.label, self.get_response, request)

    async def __acall__(self, request: HttpRequest) -> Any:
        get_response: Any = self.get_response
        return await _around_async(self.layer, self.label, get_response, request)


class MixinWithSuperCall(Mixin):
    """Does something before it is called, in either way, as many old ones do."""

    def __call__(self, request: HttpRequest) -> Any:
        note(f"{self.label}.__call__")
        word.set(f"{self.label}.__call__")
        return super().__call__(request)


class MixinWithAcall(Mixin):
    """Does something around the mixin's work in an async chain."""

    async def __acall__(self, request: HttpRequest) -> Any:
        label = f"{self.label}.__acall__"
        return await _around_async(self.layer, label, super().__acall__, request)


class SyncClass(_Described):
    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response
        note_made(self.label, get_response)

    def __call__(self, request: HttpRequest) -> Any:
        return _around(self.layer, self.label, self.get_response, request)


class AsyncClass(_Described):
    sync_capable = False
    async_capable = True

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response
        markcoroutinefunction(self)
        note_made(self.label, get_response)

    async def __call__(self, request: HttpRequest) -> Any:
        return await _around_async(self.layer, self.label, self.get_response, request)


class ClassOfBothKinds(_Described):
    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)
        note_made(self.label, get_response)

    def __call__(self, request: HttpRequest) -> Any:
        around: Any = _around_async if self.is_async else _around
        return around(self.layer, self.label, self.get_response, request)


class ClassForNoCode(SyncClass):
    sync_capable = False
    async_capable = False


class NotUsed(_Described):
    """Raises `MiddlewareNotUsed`, once the chain has been adapted to it."""

    async_capable = True

    def __init__(self, get_response: Any) -> None:
        note_made(self.label, get_response)
        raise MiddlewareNotUsed(self.label)


_BASES: dict[str, type[Any]] = {
    "mixin": Mixin,
    "mixin with __call__": MixinWithCall,
    "mixin with super().__call__": MixinWithSuperCall,
    "mixin with __acall__": MixinWithAcall,
    "mixin for sync code": MixinForSyncCode,
    "mixin for async code": MixinForAsyncCode,
    "sync class": SyncClass,
    "async class": AsyncClass,
    "class of both kinds": ClassOfBothKinds,
    "class for no code": ClassForNoCode,
    "not used": NotUsed,
}


# Django's classes


def _subclass(layer: Layer, index: int, base: type[Any]) -> type[Any]:
    """Return a subclass of a Django middleware, whose hooks call Django's."""

    def __init__(self: Any, get_response: Any) -> None:  # noqa: N807
        base.__init__(self, get_response)
        note_made(str(index), get_response)

    names: dict[str, Any] = {
        name: _hook_before(does, f"{index}.{name}", getattr(base, name, None))
        for name, does in layer.hooks
    }
    return type(f"Layer{index}", (base,), {**names, "__init__": __init__})


@contextmanager
def patches(chain: Chain) -> Iterator[None]:
    """Replace Django's code for a time, as measuring tools do: what a chain says."""
    kept: list[tuple[type[Any], str, Any]] = []

    def patch(cls: type[Any], name: str, replacement: Any) -> None:
        kept.append((cls, name, vars(cls).get(name)))
        setattr(cls, name, replacement)

    for index, layer in enumerate(chain.layers):
        if layer.kind.startswith("patched:"):
            cls = import_string(layer.kind.removeprefix("patched:"))
            for name, does in layer.hooks:
                method = getattr(cls, name, None)
                patch(cls, name, _hook_before(does, f"{index}.{name}", method))
    if "patch the mixin" in chain.settings:
        patch(MiddlewareMixin, "__call__", _noted(MiddlewareMixin.__call__))
        patch(MiddlewareMixin, "__acall__", _noted(MiddlewareMixin.__acall__))
    if "patch the handler" in chain.settings:
        original = BaseHandler.get_response_async
        patch(BaseHandler, "get_response_async", _noted(original))
    try:
        yield
    finally:
        for cls, name, original in reversed(kept):
            if original is None:
                delattr(cls, name)
            else:
                setattr(cls, name, original)


def _noted(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that notes that it is called."""

    @functools.wraps(method)
    def call(self: Any, *arguments: Any) -> Any:
        note(method.__qualname__)
        return method(self, *arguments)

    return call


# Functions

_MARKS: dict[str, Callable[[Any], Any]] = {
    "sync function": lambda factory: factory,
    "marked sync function": sync_only_middleware,
    "async function": async_only_middleware,
    "function of both kinds": sync_and_async_middleware,
}


def _function(layer: Layer, index: int) -> Any:
    """Return the factory of a function, as Django's documentation writes it."""
    label = str(index)

    def make(get_response: Any) -> Any:
        note_made(label, get_response)

        def sync_middleware(request: HttpRequest) -> Any:
            return _around(layer, label, get_response, request)

        async def async_middleware(request: HttpRequest) -> Any:
            return await _around_async(layer, label, get_response, request)

        is_async = layer.kind == "async function" or (
            layer.kind == "function of both kinds" and iscoroutinefunction(get_response)
        )
        middleware: Any = async_middleware if is_async else sync_middleware
        # A function may have hooks too.
        for name, does in layer.hooks:
            hook = functools.partial(_hook(does, f"{label}.{name}"), None)
            setattr(middleware, name, hook)
        return middleware

    return _MARKS[layer.kind](make)


# What middleware does around the rest of the chain


def _around(
    layer: Layer,
    label: str,
    get_response: Callable[[HttpRequest], Any],
    request: HttpRequest,
) -> Any:
    """Act as the ``__call__`` of a sync middleware."""
    early = act(layer.before, f"{label}.before", request)
    if early is not None:
        return early
    token = word.set(f"{label} for a time") if layer.resets else None
    inner_request = copy.copy(request) if layer.copies else request
    response = None
    try:
        for _ in range(layer.calls):
            response = get_response(inner_request)
    except OopsError:
        note(f"{label}.catches")
        if not layer.catches:
            raise
        response = respond("respond 200", f"{label}.catches", request)
    finally:
        if token is not None:
            word.reset(token)
    return act(layer.after, f"{label}.after", request, response)


async def _around_async(
    layer: Layer,
    label: str,
    get_response: Callable[[HttpRequest], Awaitable[Any]],
    request: HttpRequest,
) -> Any:
    """Act as the ``__call__`` of an async middleware."""
    early = await act_async(layer.before, f"{label}.before", request)
    if early is not None:
        return early
    token = word.set(f"{label} for a time") if layer.resets else None
    inner_request = copy.copy(request) if layer.copies else request
    if layer.in_task:
        get_response = functools.partial(_in_task, get_response)
    response = None
    try:
        for _ in range(layer.calls):
            response = await get_response(inner_request)
    except OopsError:
        note(f"{label}.catches")
        if not layer.catches:
            raise
        response = respond("respond 200", f"{label}.catches", request)
    finally:
        if token is not None:
            word.reset(token)
    return await act_async(layer.after, f"{label}.after", request, response)


async def _in_task(fn: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
    """Await a coroutine in a separate task, on asyncio or on Trio."""
    if not trio.lowlevel.in_trio_task():
        return await asyncio.ensure_future(fn(*arguments))
    outcomes: list[outcome.Outcome[Any]] = []

    async def capture() -> None:
        outcomes.append(await outcome.acapture(fn, *arguments))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(capture)
    return outcomes[0].unwrap()

"""Whether a function is unchanged since its module was written: its code tells."""

from __future__ import annotations

import functools
import sys
import types
from types import FunctionType
from typing import TYPE_CHECKING, Any

import asgiref.sync
import pytest
from django.core.handlers import base
from django.core.handlers.base import BaseHandler
from django.utils import deprecation
from django.utils.deprecation import MiddlewareMixin

from trio_asgi.bridge.originals import Original, _code_of, is_original

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.mark.parametrize(
    ("function", "module"),
    [
        (MiddlewareMixin.__call__, deprecation),
        (MiddlewareMixin.__acall__, deprecation),
        (BaseHandler.get_response, base),
        (base.reset_urlconf, base),
        (asgiref.sync.SyncToAsync.thread_handler, asgiref.sync),
    ],
)
def test_what_the_source_says_is_original(function: Any, module: Any) -> None:
    """Functions and methods, sync and async, even after many calls."""
    assert is_original(function, module)
    assert Original(function, module).is_code_of(function)


def wrapped(function: Any) -> Any:
    """Return a wrapper that has the names of the wrapped function."""

    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


def with_globals(function: Any) -> Any:
    """Return a copy of a function, under another module's name."""
    return FunctionType(function.__code__, {"__name__": function.__module__})


class Proxy:
    """Has all attributes of the object it wraps, like wrapt's proxies."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return FunctionType


@pytest.mark.parametrize("make", [wrapped, with_globals, Proxy, functools.partial])
def test_what_pretends_to_be_it_is_not(make: Callable[[Any], Any]) -> None:
    """A wrapper has the names, a copy the code, a proxy all attributes."""
    function = BaseHandler.get_response
    assert not is_original(make(function), base)
    if make is not with_globals:
        assert not Original(function, base).is_code_of(make(function))
    # Nor is it taken for the original if it was there first.
    early = Original(make(function), base)
    assert not early.is_code_of(make(function))
    assert not early.is_code_of(function)


@pytest.fixture
def swapped() -> Iterator[Any]:
    """Put other code into one of Django's functions, keeping its names."""
    function = BaseHandler.check_response
    code = function.__code__

    def other(self: Any, response: Any, callback: Any, name: Any = None) -> None:
        pass

    function.__code__ = other.__code__.replace(
        co_name=code.co_name,
        co_filename=code.co_filename,
        co_firstlineno=code.co_firstlineno,
    )
    yield function
    function.__code__ = code


def test_other_code_in_the_function_is_seen(swapped: Any) -> None:
    """Some tools leave the function in place, and replace its code."""
    assert not is_original(swapped, base)
    assert not Original(swapped, base).is_code_of(swapped)


def test_code_that_is_replaced_later_is_seen() -> None:
    """So is the moment when it is put back."""
    function = BaseHandler.check_response
    code, written = function.__code__, Original(BaseHandler.check_response, base)
    function.__code__ = code.replace(co_name="other")
    try:
        assert not written.is_code_of(function)
    finally:
        function.__code__ = code
    assert written.is_code_of(function)


@pytest.mark.parametrize("value", [None, len, BaseHandler, 1, property(len)])
def test_what_is_no_function(value: Any) -> None:
    """An object that is not a function was not written as one."""
    assert not is_original(value, base)
    assert not Original(value, base).is_code_of(value)


class OtherLoader:
    """Replaces a module's loader, as tools do that wait for its import."""

    def exec_module(self, module: Any) -> None:
        raise NotImplementedError


def test_a_loader_of_a_tools_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It need not know the module's code."""
    _code_of.cache_clear()
    monkeypatch.setattr(deprecation.__spec__, "loader", OtherLoader())
    assert is_original(MiddlewareMixin.__call__, deprecation)


def test_a_module_without_source_has_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that cannot be compared counts as replaced: that is slower, but correct."""
    module = types.ModuleType("made_at_run_time")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec("def function(): pass", vars(module))  # noqa: S102
    assert not is_original(module.function, module)

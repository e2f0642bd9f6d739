"""Whether a function is still the one that its module's source defines.

Monitoring tools wrap functions of Django and asgiref. This package skips such a
function only if it is the original: otherwise the tool would miss the call.

Names prove nothing, since wrappers copy them. Nor does an earlier value: the tool may
have come first. Nor does the function itself: some tools replace its ``__code__``. So
the code is compared with the module's compiled source, from its loader.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib.machinery import PathFinder
from types import CodeType, FunctionType, GetSetDescriptorType
from typing import TYPE_CHECKING, Any

from django.utils.functional import cached_property
from django.utils.module_loading import import_string

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType


def is_original(function: object, module: ModuleType) -> bool:
    """Whether a value is a function, and has code from the module's source.

    The first call for a module takes about a millisecond.
    """
    return (
        type(function) is FunctionType
        and function.__globals__ is vars(module)
        and function.__code__ in _code_of(module.__name__)
    )


class Original:
    """An original function, to compare with the current one.

    Reads the source once; comparing is fast enough for each request.
    """

    __slots__ = ("_code",)

    def __init__(self, function: Any, module: ModuleType) -> None:
        # self is no code, so a function that is not original never compares equal.
        self._code = function.__code__ if is_original(function, module) else self

    def is_code_of(self, function: object) -> bool:
        """Whether a function has the original's code."""
        return type(function) is FunctionType and function.__code__ is self._code


@cache
def _code_of(name: str) -> frozenset[CodeType]:
    """Return the code of all functions in a module's source."""
    package = name.rpartition(".")[0]
    path = sys.modules[package].__path__ if package else None
    # Tools with import hooks put their loader into the module's spec. The finder of
    # files and archives returns the original one.
    for spec in (PathFinder.find_spec(name, path), sys.modules[name].__spec__):
        loader: Any = None if spec is None else spec.loader
        code = loader.get_code(name) if hasattr(loader, "get_code") else None
        if code is not None:
            return frozenset(_codes_in(code))
    return frozenset()


def _codes_in(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes_in(constant)


def is_original_class(cls: type) -> bool:
    """Whether all code of a class, without its bases, is from its module's source."""
    if import_string(class_name(cls)) is not cls:
        return False
    module = sys.modules[cls.__module__]
    return all(
        is_original(code, module)
        for value in vars(cls).values()
        for code in _code_in(value)
    )


def _code_in(value: Any) -> tuple[Any, ...]:
    """Return the functions that an attribute of a class calls."""
    if type(value) is property:
        return tuple(filter(None, (value.fget, value.fset, value.fdel)))
    if type(value) is cached_property:
        return (value.func,)
    if type(value) in (classmethod, staticmethod):
        return (value.__func__,)
    if isinstance(value, (type, GetSetDescriptorType)):
        return ()
    return (value,) if callable(value) or hasattr(value, "__get__") else ()


def class_name(cls: type) -> str:
    """Return the dotted name of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"

"""Whether code is as its module was written, or something was put in its place.

Tools that measure or report put their own functions around those of Django and asgiref.
What this package does in another way than Django is done that way only where nobody
can tell. So before it leaves out a function of Django's, it asks here.

Names prove nothing: a wrapper copies them. Nor does it prove anything that a function
was there first, since the tool may have been earlier. Nor do a function and its
globals: some tools put another ``__code__`` into the function. So the code itself is
compared with what the module's source compiles to, which its loader has at hand.
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
    """Whether a value is a function, and what the source of a module made of it.

    Takes about a millisecond for a module that was not asked for before.
    """
    return (
        type(function) is FunctionType
        and function.__globals__ is vars(module)
        and function.__code__ in _code_of(module.__name__)
    )


class Original:
    """A function as it was written, to be compared with what stands in its place.

    Looks at the source once; to compare is quick enough for each request.
    """

    __slots__ = ("_code",)

    def __init__(self, function: Any, module: ModuleType) -> None:
        """Note the code, if the function is as written; else nothing is equal to it."""
        self._code = function.__code__ if is_original(function, module) else self

    def is_code_of(self, function: object) -> bool:
        """Whether the function, as a class has it, still has this code."""
        return type(function) is FunctionType and function.__code__ is self._code


@cache
def _code_of(name: str) -> frozenset[CodeType]:
    """Return the code of all functions that a module's source has."""
    for loader in _loaders(name):
        code = loader.get_code(name) if hasattr(loader, "get_code") else None
        if code is not None:
            return frozenset(_codes_in(code))
    return frozenset()


def _loaders(name: str) -> Iterator[Any]:
    # Tools that wait for imports put a loader of their own into the module. What finds
    # files, or members of an archive, knows nothing of that.
    package = name.rpartition(".")[0]
    path = sys.modules[package].__path__ if package else None
    for spec in (PathFinder.find_spec(name, path), sys.modules[name].__spec__):
        if spec is not None:
            yield spec.loader


def _codes_in(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes_in(constant)


def is_original_class(cls: type) -> bool:
    """Whether all code of a class was written in its own module.

    What it inherits is not looked at.
    """
    if import_string(class_name(cls)) is not cls:
        return False
    module = sys.modules[cls.__module__]
    return all(
        is_original(code, module)
        for value in vars(cls).values()
        for code in _code_in(value)
    )


def _code_in(value: Any) -> tuple[Any, ...]:
    """Return what an attribute of a class calls, if anything."""
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

"""The source of views and middleware, found by the objects that were imported."""

from __future__ import annotations

import ast
import inspect
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    #: Whether a class or function is code of the project, or of one package.
    IsOwn = Callable[[Any], bool]

#: Attributes in which wrappers keep what they wrap: those of functools and asgiref, of
#: the class-based views of Django and DRF, and of django-ninja.
_WRAPPED: Final = (
    *("__wrapped__", "awaitable", "view_class", "cls", "operations", "view_func"),
)

FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Place:
    """A line of a file."""

    file: str
    line: int

    def __str__(self) -> str:
        """Return ``shop/views.py:12``, seen from the current directory if possible."""
        path = Path(self.file)
        if path.is_relative_to(Path.cwd()):
            path = path.relative_to(Path.cwd())
        return f"{path}:{self.line}"


class Sources:
    """Parses each file once."""

    def __init__(self) -> None:
        """Begin without any file."""
        self._files: dict[str, dict[int | str, Any]] = {}

    def node_of(self, code: Any) -> Any:
        """Return the syntax tree of a function or class; None if there is no source."""
        is_function = isinstance(code, FunctionType)
        key = code.__code__.co_firstlineno if is_function else code.__name__
        return self._nodes(_file_of(code)).get(key)

    def place_of(self, code: Any) -> Place | None:
        """Return where a function or class begins; None if there is no source."""
        node = self.node_of(code)
        return Place(_file_of(code), node.lineno) if node else None

    def _nodes(self, file: str) -> dict[int | str, Any]:
        """Return the functions of a file by their first lines, the classes by names."""
        if file in self._files:
            return self._files[file]
        nodes: dict[int | str, Any] = {}
        self._files[file] = nodes
        with suppress(OSError, SyntaxError, ValueError):
            for node in ast.walk(ast.parse(Path(file).read_bytes())):
                if isinstance(node, FUNCTIONS):
                    parts = [node, *node.decorator_list]
                    nodes[min(part.lineno for part in parts)] = node
                elif isinstance(node, ast.ClassDef):
                    nodes[node.name] = node
        return nodes


def _file_of(code: Any) -> str:
    if isinstance(code, FunctionType):
        return code.__code__.co_filename
    return getattr(sys.modules.get(code.__module__), "__file__", None) or ""


def code_in(thing: Any, is_own: IsOwn) -> Iterator[Any]:
    """Yield own functions and classes that a callable consists of, outermost first.

    It may be wrapped by decorators, also by those that use no `functools.wraps`. What
    is in an island is left out.
    """
    left, seen = [thing], {id(thing)}
    for one in left:
        if inspect.getattr_static(one, "_trio_asgi_island", None) == "asyncio":
            continue
        if issubclass(type(one), (FunctionType, type)) and is_own(one):
            yield one
        for part in _parts_of(one):
            if id(part) not in seen:
                seen.add(id(part))
                left.append(part)


def _parts_of(thing: Any) -> Iterator[Any]:
    """Yield what a callable may call."""
    # By its type, and not by attributes that a lazy object would compute.
    kind = type(thing)
    for name in _WRAPPED:
        value = inspect.getattr_static(thing, name, None)
        yield from value if type(value) is list else [value]
    if issubclass(kind, (MethodType, staticmethod, classmethod)):
        yield from (thing.__func__, getattr(thing, "__self__", None))
    elif issubclass(kind, partial):
        yield from (thing.func, *thing.args)
    elif issubclass(kind, property):
        yield thing.fget
    elif issubclass(kind, FunctionType):
        yield from closure_of(thing).values()
    elif issubclass(kind, type):  # DRF's `api_view` makes one of functions
        yield from filter(callable, vars(thing).values())


def methods_of(cls: type, is_own: IsOwn) -> Iterator[FunctionType]:
    """Yield the methods of a class and of its own base classes, without decorators."""
    for base in filter(is_own, cls.__mro__):
        for value in vars(base).values():
            for code in code_in(value, is_own):
                if isinstance(code, FunctionType):
                    yield code


def closure_of(function: FunctionType) -> dict[str, Any]:
    """Return the variables of enclosing functions that a function uses."""
    found = {}
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    for name, cell in cells:
        with suppress(ValueError):  # it is still empty
            found[name] = cell.cell_contents
    return found

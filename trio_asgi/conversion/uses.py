"""Where code of a project uses asyncio: its source is read, and nothing is run.

The search begins at a view or a middleware, and follows the names in its code: to other
functions, to the methods of a class that is called, and to objects that modules hold.
What runs in an island, or by `asyncio.run`, does not count. What a local variable
refers to is unknown, and left out.
"""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import inspect
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, Final

from asgiref.sync import sync_to_async

from trio_asgi.islands.functions import asyncio_island

from .libraries import HARMLESS, library_of, needs_asyncio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Attributes in which wrappers keep what they wrap: those of functools and asgiref, of
#: the class-based views of Django and DRF, and of django-ninja.
_WRAPPED: Final = (
    *("__wrapped__", "awaitable", "view_class", "cls", "operations", "view_func"),
)

_FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef)
_UNKNOWN: Final = object()


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


@dataclass(frozen=True)
class Use:
    """A use of asyncio, such as ``asyncio.gather``."""

    name: str
    place: Place


def code_in(thing: Any, is_own: Callable[[Any], bool]) -> Iterator[Any]:
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
    if issubclass(kind, MethodType):
        yield from (thing.__func__, thing.__self__)
    elif issubclass(kind, partial):
        yield from (thing.func, *thing.args)
    elif issubclass(kind, property):
        yield thing.fget
    elif issubclass(kind, FunctionType):
        yield from _closure_of(thing).values()
    elif issubclass(kind, type):  # DRF's `api_view` makes one of functions
        yield from filter(callable, vars(thing).values())


def _closure_of(function: FunctionType) -> dict[str, Any]:
    found = {}
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    for name, cell in cells:
        with suppress(ValueError):  # it is empty yet
            found[name] = cell.cell_contents
    return found


class Search:
    """Searches code for uses of asyncio; reads each file once."""

    def __init__(self, is_own: Callable[[Any], bool]) -> None:
        """Take what tells whether a class or function is own code, to be searched."""
        self.is_own = is_own
        self._files: dict[str, dict[int | str, Any]] = {}
        self._seen: set[Any] = set()

    def uses_in(self, thing: Any) -> Iterator[Use]:
        """Yield the uses in what an async or sync callable runs on the loop.

        In sync code these are the uses in the async functions that it refers to.
        """
        self._seen.clear()
        yield from self.follow(thing, on_loop=False)

    def follow(self, thing: Any, *, on_loop: bool) -> Iterator[Use]:
        """Yield the uses in something that code refers to."""
        for code in code_in(thing, self.is_own):
            if isinstance(code, type):
                yield from self.in_class(code, on_loop=on_loop)
            else:
                yield from self.in_function(code, on_loop=on_loop)

    def in_class(self, cls: type, *, on_loop: bool) -> Iterator[Use]:
        """Yield the uses in all methods of a class."""
        for base in filter(self.is_own, cls.__mro__):
            for value in vars(base).values():
                method = getattr(value, "__func__", value)
                for function in code_in(method, self.is_own):
                    if isinstance(function, FunctionType):
                        yield from self.in_function(function, cls, on_loop=on_loop)

    def in_function(
        self, function: FunctionType, cls: type | None = None, *, on_loop: bool
    ) -> Iterator[Use]:
        """Yield the uses in a function, or a method of a class."""
        node = self.node_of(function)
        key = function.__code__, on_loop
        if node is not None and key not in self._seen:
            self._seen.add(key)
            yield from _Reader(self, function, node, cls).read(node, on_loop=on_loop)

    def node_of(self, code: Any) -> Any:
        """Return the syntax tree of a function or class; None if there is no source."""
        function = isinstance(code, FunctionType)
        key = code.__code__.co_firstlineno if function else code.__name__
        return self._nodes(_file_of(code)).get(key)

    def place_of(self, code: Any) -> Place | None:
        """Return where a function or class begins; None if there is no source."""
        node = self.node_of(code)
        return Place(_file_of(code), node.lineno) if node else None

    def _nodes(self, file: str) -> dict[int | str, Any]:
        """Return the functions of a file by their first lines, the classes by names."""
        if file not in self._files:
            nodes = self._files[file] = {}
            try:
                tree = ast.parse(Path(file).read_bytes())
            except (OSError, SyntaxError, ValueError):
                return nodes
            for node in ast.walk(tree):
                if isinstance(node, _FUNCTIONS):
                    parts = [node, *node.decorator_list]
                    nodes[min(part.lineno for part in parts)] = node
                elif isinstance(node, ast.ClassDef):
                    nodes[node.name] = node
        return self._files[file]


def _file_of(code: Any) -> str:
    if isinstance(code, FunctionType):
        return code.__code__.co_filename
    return getattr(sys.modules.get(code.__module__), "__file__", None) or ""


class _Reader:
    """Reads one function."""

    def __init__(
        self, search: Search, function: FunctionType, node: Any, cls: type | None
    ) -> None:
        self._search = search
        self._function = function
        self._names: dict[str, Any] = _closure_of(function)
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                self._names[part.id] = _UNKNOWN
            elif isinstance(part, ast.arg):
                self._names[part.arg] = _UNKNOWN
        name = function.__qualname__.rpartition(".")[0]
        cls = cls or function.__globals__.get(name)
        if cls is not None and node.args.args:
            self._names[node.args.args[0].arg] = cls  # self

    def read(self, node: ast.AST, *, on_loop: bool) -> Iterator[Use]:
        """Yield the uses below a node of the tree; only those that the loop runs."""
        if self._starts_asyncio(node):
            return
        children: Any = ast.iter_child_nodes(node)
        if isinstance(node, _FUNCTIONS):
            on_loop = on_loop or isinstance(node, ast.AsyncFunctionDef)
            children = node.body
        elif isinstance(node, ast.AnnAssign):
            children = filter(None, [node.value])
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from self._read_import(node, on_loop=on_loop)
        elif isinstance(node, ast.Call):
            called = self._value_of(node.func)
            if issubclass(type(called), type) and self._search.is_own(called):
                yield from self._search.in_class(called, on_loop=on_loop)
            on_loop = on_loop and called is not sync_to_async
        elif (value := self._value_of(node)) is not _UNKNOWN:
            yield from self._read_value(node, value, on_loop=on_loop)
            return
        for child in children:
            yield from self.read(child, on_loop=on_loop)

    def _starts_asyncio(self, node: ast.AST) -> bool:
        """Whether it calls `asyncio.run`, or calls or decorates with an island."""
        if isinstance(node, ast.Call):
            called = self._value_of(node.func)
            return called is asyncio_island or called is asyncio.run
        decorators = getattr(node, "decorator_list", ())
        return any(self._value_of(one) is asyncio_island for one in decorators)

    def _read_value(self, node: Any, value: Any, *, on_loop: bool) -> Iterator[Use]:
        name = needs_asyncio(value)
        if (
            isinstance(node, ast.Attribute)
            and self._value_of(node.value) is asyncio
            and issubclass(type(value), (FunctionType, BuiltinFunctionType))
        ):
            # By this name, since trio-asyncio replaces some of the functions.
            name = "" if node.attr in HARMLESS else f"asyncio.{node.attr}"
        if not name and not issubclass(type(value), type):
            yield from self._search.follow(value, on_loop=on_loop)
        elif name and on_loop:
            yield self._use(name, node)

    def _read_import(self, node: Any, *, on_loop: bool) -> Iterator[Use]:
        """Bind the names of an import inside the function."""
        base = getattr(node, "module", None) or ""
        if getattr(node, "level", 0):
            package = self._function.__globals__.get("__package__") or ""
            base = importlib.util.resolve_name("." * node.level + base, package)
        for alias in node.names:
            name = f"{base}.{alias.name}".strip(".")
            if on_loop and (library := library_of(name)):
                yield self._use(library, node)
            if base:
                value = getattr(sys.modules.get(base), alias.name, _UNKNOWN)
            else:
                name = name if alias.asname else name.partition(".")[0]
                value = sys.modules.get(name, _UNKNOWN)
            self._names[alias.asname or alias.name.partition(".")[0]] = value

    def _value_of(self, node: ast.AST) -> Any:
        """Return what an expression refers to, if the source shows that."""
        if isinstance(node, ast.Name):
            known = self._function.__globals__
            return self._names.get(node.id, known.get(node.id, _UNKNOWN))
        if not isinstance(node, ast.Attribute):
            return _UNKNOWN
        owner = self._value_of(node.value)
        if type(owner) is ModuleType:
            return getattr(owner, node.attr, _UNKNOWN)
        if not issubclass(type(owner), type):
            if needs_asyncio(owner):
                return _UNKNOWN  # the object itself is the use
            owner = type(owner)
        if not self._search.is_own(owner):
            return _UNKNOWN
        value = inspect.getattr_static(owner, node.attr, _UNKNOWN)
        return getattr(value, "__func__", value)

    def _use(self, name: str, node: Any) -> Use:
        return Use(name, Place(self._function.__code__.co_filename, node.lineno))

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
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Final

from asgiref.sync import sync_to_async

from trio_asgi.islands.functions import asyncio_island

from .libraries import HARMLESS, library_of, needs_asyncio
from .source import FUNCTIONS, Place, Sources, closure_of, code_in, methods_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .source import IsOwn

_UNKNOWN: Final = object()


@dataclass(frozen=True)
class Use:
    """A use of asyncio, such as ``asyncio.gather``."""

    name: str
    place: Place


#: A function to read, the class that calls it as a method, and whether the loop runs it
#: even if it is sync.
_Step = tuple[FunctionType, "type | None", bool]


class Search:
    """Searches own code for uses of asyncio; reads each function once."""

    def __init__(self, is_own: IsOwn) -> None:
        """Take what tells own code from other code, which is not searched."""
        self.is_own = is_own
        self.sources = Sources()
        self._read: dict[_Step, tuple[list[Use], list[_Step]]] = {}

    def uses_in(self, thing: Any) -> Iterator[Use]:
        """Yield the uses in what an async or sync callable runs on the loop.

        In sync code these are the uses in the async functions that it refers to.
        """
        # In a list, not by recursion: calls may be nested deeply.
        steps = [*self._steps_to(thing, on_loop=False)]
        seen = set()
        for step in steps:
            if step not in seen:
                seen.add(step)
                uses, further = self._uses_at(step)
                yield from uses
                steps += further

    def _uses_at(self, step: _Step) -> tuple[list[Use], list[_Step]]:
        """Return the uses in one function, and what it refers to."""
        if step not in self._read:
            function, cls, on_loop = step
            further: list[_Step] = []
            uses: list[Use] = []
            if node := self.sources.node_of(function):
                reader = _Reader(self.is_own, function, node, cls)
                reader.read(node, on_loop=on_loop)
                uses = reader.uses
                for referred, below_loop in reader.referred:
                    further += self._steps_to(referred, on_loop=below_loop)
            self._read[step] = uses, further
        return self._read[step]

    def _steps_to(self, thing: Any, *, on_loop: bool) -> Iterator[_Step]:
        for code in code_in(thing, self.is_own):
            if isinstance(code, FunctionType):
                yield code, None, on_loop
            else:
                for method in methods_of(code, self.is_own):
                    yield method, code, on_loop


class _Reader:
    """Reads one function."""

    def __init__(
        self, is_own: IsOwn, function: FunctionType, node: Any, cls: type | None
    ) -> None:
        self._is_own = is_own
        self._function = function
        self.uses: list[Use] = []
        #: What it refers to, and whether the loop runs that if it is sync.
        self.referred: list[tuple[Any, bool]] = []
        #: What local names refer to.
        self._names: dict[str, Any] = closure_of(function)
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                self._names[part.id] = _UNKNOWN
            elif isinstance(part, ast.arg):
                self._names[part.arg] = _UNKNOWN
        owner = function.__globals__.get(function.__qualname__.rpartition(".")[0])
        owner = cls or owner
        if isinstance(owner, type) and node.args.args:
            self._names[node.args.args[0].arg] = owner  # self

    def read(self, node: ast.AST, *, on_loop: bool) -> None:
        """Read a node of the tree, and what is below it."""
        if self._starts_asyncio(node):
            return
        children: Any = ast.iter_child_nodes(node)
        if isinstance(node, FUNCTIONS):
            on_loop = on_loop or isinstance(node, ast.AsyncFunctionDef)
            children = node.body
        elif isinstance(node, ast.AnnAssign):
            children = filter(None, [node.value])
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            self._read_import(node, on_loop=on_loop)
        elif isinstance(node, ast.Call):
            called = self._value_of(node.func)
            if issubclass(type(called), type):
                self.referred.append((called, on_loop))
            on_loop = on_loop and called is not sync_to_async
        elif (value := self._value_of(node)) is not _UNKNOWN:
            self._read_value(node, value, on_loop=on_loop)
            return
        for child in children:
            self.read(child, on_loop=on_loop)

    def _starts_asyncio(self, node: ast.AST) -> bool:
        """Whether it calls `asyncio.run`, or calls or decorates with an island."""
        if isinstance(node, ast.Call):
            called = self._value_of(node.func)
            return called is asyncio_island or called is asyncio.run
        decorators = getattr(node, "decorator_list", ())
        return any(self._value_of(one) is asyncio_island for one in decorators)

    def _read_value(self, node: Any, value: Any, *, on_loop: bool) -> None:
        name = needs_asyncio(value)
        if (
            isinstance(node, ast.Attribute)
            and self._value_of(node.value) is asyncio
            and issubclass(type(value), (FunctionType, BuiltinFunctionType))
        ):
            # By this name, since trio-asyncio replaces some of the functions.
            name = "" if node.attr in HARMLESS else f"asyncio.{node.attr}"
        if name:
            self._note(name, node, on_loop=on_loop)
        elif not issubclass(type(value), type):  # the methods count if it is called
            self.referred.append((value, on_loop))

    def _read_import(self, node: Any, *, on_loop: bool) -> None:
        """Bind the names of an import inside the function."""
        base = getattr(node, "module", None) or ""
        if getattr(node, "level", 0):
            package = self._function.__globals__.get("__package__") or ""
            base = importlib.util.resolve_name("." * node.level + base, package)
        for alias in node.names:
            name = f"{base}.{alias.name}".strip(".")
            self._note(library_of(name), node, on_loop=on_loop)
            top = alias.name.partition(".")[0]
            if base:
                value = getattr(sys.modules.get(base), alias.name, _UNKNOWN)
            else:
                value = sys.modules.get(name if alias.asname else top, _UNKNOWN)
            self._names[alias.asname or top] = value

    def _note(self, name: str, node: Any, *, on_loop: bool) -> None:
        if name and on_loop:
            file = self._function.__code__.co_filename
            self.uses.append(Use(name, Place(file, node.lineno)))

    def _value_of(self, node: ast.AST) -> Any:
        """Return what an expression refers to, if the source shows that."""
        if isinstance(node, ast.Name):
            known = self._function.__globals__
            return self._names.get(node.id, known.get(node.id, _UNKNOWN))
        if not isinstance(node, ast.Attribute):
            return _UNKNOWN
        owner = self._value_of(node.value)
        # By its type, and not by attributes that a lazy object would compute.
        if issubclass(type(owner), ModuleType):
            return vars(owner).get(node.attr, _UNKNOWN)
        if not issubclass(type(owner), type):
            if needs_asyncio(owner):
                return _UNKNOWN  # the object itself is the use
            owner = type(owner)
        if not self._is_own(owner):
            return _UNKNOWN
        return inspect.getattr_static(owner, node.attr, _UNKNOWN)

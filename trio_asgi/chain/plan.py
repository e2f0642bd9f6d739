"""The plan of a middleware chain: its layers and hooks at start-up."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loop_safe import LoopSafety


class Kind(Enum):
    """How a layer is run."""

    HOOKS = "its hooks are called one by one"
    SYNC = "it is called in the thread"
    ASYNC = "it is called on the loop"
    VIEW = "the view and the hooks around it"


@dataclass(frozen=True)
class Layer:
    """One middleware, or the view, which is the innermost layer."""

    kind: Kind
    instance: Any
    safety: LoopSafety


@dataclass(frozen=True)
class Section:
    """The part of the chain that is run without a call of a middleware as a whole."""

    #: Those whose hooks are called one by one, from the outside in; perhaps none.
    layers: tuple[Layer, ...]
    #: What they surround: a layer of another kind.
    inner: Layer

    @classmethod
    def around(cls, below: Section | None, layer: Layer) -> Section:
        """Return the section that begins with a layer around another section."""
        if layer.kind is Kind.HOOKS:
            assert below is not None
            return cls((layer, *below.layers), below.inner)
        return cls((), layer)


@dataclass(frozen=True)
class Hook:
    """A hook of the innermost layer: the view's, or a template response's."""

    method: Any
    is_async: bool
    safety: LoopSafety


@dataclass
class Plan:
    """The layers that a request goes through, and the hooks around the view.

    Written while Django loads the middleware, and only read afterwards.
    """

    #: Django's handler, which resolves, checks and wraps the view.
    handler: Any
    #: The outermost section so far.
    top: Section | None = None
    view_hooks: list[Hook] = field(default_factory=list)
    template_hooks: list[Hook] = field(default_factory=list)

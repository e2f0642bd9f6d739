"""The plan of a middleware chain: its layers and hooks, as they were at start-up."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from .loop_safe import LoopSafety


class Kind(Enum):
    """How a layer is run."""

    HOOKS = "its hooks are called one by one"
    SYNC = "it is called in the thread"
    ASYNC = "it is called on the loop"
    VIEW = "the view and the hooks around it"


@dataclass(frozen=True)
class Layer:
    """One middleware; the innermost is the view."""

    kind: Kind
    instance: Any
    below: Layer | None
    safety: LoopSafety


@dataclass(frozen=True)
class Hook:
    """A hook of the innermost layer: the view's, or a template response's."""

    method: Callable[..., Any]
    is_async: bool
    #: None: no middleware's, but a function.
    safety: LoopSafety | None


@dataclass
class Plan:
    """What a request goes through: layers from the outside in, and the view's hooks.

    Written while Django loads the middleware; afterwards only read.
    """

    #: Django's handler, which has the view resolved, checked and wrapped.
    handler: Any
    #: Whether the project's views are asyncio's, unless they say that they are not.
    asyncio_views: bool
    #: The outermost layer so far.
    top: Layer | None = None
    view_hooks: list[Hook] = field(default_factory=list)
    template_hooks: list[Hook] = field(default_factory=list)

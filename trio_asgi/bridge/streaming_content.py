"""All that a streamed response has for its content, from the inside out.

Middleware that compresses a stream, for example, puts a generator of its own around the
view's. When the stream is cut off, only the outermost is at hand, and whatever it was
iterating would be left to the garbage collector: it is not closed by an ``async for``
that ends. So Django's response class is made to note each, for the handler to close
them in the task that iterated them. In the same place content that is an async context
manager becomes something that Django takes.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from .managed_stream import ManagedStream, is_manager

if TYPE_CHECKING:
    from collections.abc import Callable

_NOTED = "_trio_asgi_contents"


def contents(response: Any) -> list[Any]:
    """Return the async iterators of a response, the innermost first."""
    noted: list[Any] = vars(response).get(_NOTED, [])
    iterator = response._iterator
    # Not noted if the bridge was not installed when it was set.
    return noted if iterator in noted else [*noted, iterator]


def replace_contents(response: Any, iterator: Any) -> None:
    """Have an iterator stand for all content."""
    response._iterator = iterator
    forget_contents(response)


def forget_contents(response: Any) -> None:
    """Let go of what was noted: a generator of Django's refers to the response."""
    vars(response).pop(_NOTED, None)


def patch_set_streaming_content(original: Callable[[Any, Any], None]) -> Any:
    """Take context managers, and note what the iterator is."""

    @functools.wraps(original)
    def _set_streaming_content(self: Any, value: Any) -> None:
        original(self, ManagedStream(value) if is_manager(value) else value)
        if self.is_async:
            _note(self, self._iterator)

    return _set_streaming_content


def patch_streaming_content(original: property) -> property:
    """Note the generator that ``streaming_content`` gives to middleware."""
    assert original.fget is not None
    get = original.fget

    def streaming_content(self: Any) -> Any:
        content = get(self)
        if self.is_async:
            _note(self, content)
        return content

    return property(streaming_content, original.fset, original.fdel, original.__doc__)


def _note(response: Any, content: Any) -> None:
    vars(response).setdefault(_NOTED, []).append(content)

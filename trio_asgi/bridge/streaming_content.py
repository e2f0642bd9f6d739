"""Keep track of all iterators of a streamed response, and accept context managers.

Middleware may wrap the view's generator, for example to compress it. When a stream is
cut off, closing the outermost generator does not close those that it iterates: ``async
for`` leaves that to the garbage collector. So Django's response class notes each, and
the handler closes them in the task that has iterated them.
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
    # Not noted if it was set before the bridge was installed.
    return noted if iterator in noted else [*noted, iterator]


def replace_contents(response: Any, iterator: Any) -> None:
    """Replace all content by one iterator."""
    response._iterator = iterator
    forget_contents(response)


def forget_contents(response: Any) -> None:
    """Forget the iterators: a generator of Django refers to the response."""
    vars(response).pop(_NOTED, None)


def patch_set_streaming_content(original: Callable[[Any, Any], None]) -> Any:
    """Accept context managers, and note the iterator."""

    @functools.wraps(original)
    def _set_streaming_content(self: Any, value: Any) -> None:
        original(self, ManagedStream(value) if is_manager(value) else value)
        if self.is_async:
            _note(self, self._iterator)

    return _set_streaming_content


def patch_streaming_content(original: property) -> property:
    """Note the generator that ``streaming_content`` returns to middleware."""
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

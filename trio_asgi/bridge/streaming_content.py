"""All iterators of a streamed response; and content that is a context manager.

Middleware may wrap the view's generator, for example to compress it. When a stream is
cut off, closing the outermost generator does not close those that it iterates: ``async
for`` leaves that to the garbage collector. So Django's response class notes each, and
the handler closes them in the task that has iterated them.

An async generator must not yield inside a nursery. Content that needs one can be a
context manager, as `trio.as_safe_channel` returns, which is entered around the sending.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from typing_extensions import Self, TypeIs

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


def is_manager(content: object) -> TypeIs[AbstractAsyncContextManager[Any]]:
    """Whether content is such a context manager, and Django cannot iterate it itself.

    A memory channel, for example, can be iterated without being entered.
    """
    kind = type(content)
    return (
        hasattr(kind, "__aenter__")
        and hasattr(kind, "__aexit__")
        and not hasattr(kind, "__aiter__")
        and not hasattr(kind, "__iter__")
    )


class ManagedStream:
    """The async iterator that Django gets for such a context manager.

    The handler enters it around the sending, in the request's task, also if middleware
    has wrapped it. Iterated by other code, such as a test client, it enters the manager
    at the first item, and leaves it at the end or at `aclose`.
    """

    def __init__(self, manager: AbstractAsyncContextManager[Any]) -> None:
        self._manager = manager
        self._iterator: AsyncIterator[Any] | None = None
        #: The same, if code other than the handler iterates.
        self._alone: AsyncGenerator[Any, None] | None = None

    async def __aenter__(self) -> Self:
        """Enter the manager; TypeError if it does not return an async iterable."""
        iterable = await self._manager.__aenter__()
        try:
            self._iterator = aiter(iterable)
        except TypeError as error:
            await self._manager.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> bool | None:
        """Leave the manager; it may suppress the error."""
        return await self._manager.__aexit__(*exc_info)  # type: ignore[arg-type]

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if self._iterator is None:
            self._iterator = self._alone = self._iterate_alone()
        return await anext(self._iterator)

    async def aclose(self) -> None:
        """Leave the manager, if the iteration has entered it."""
        if self._alone is not None:
            await self._alone.aclose()

    async def _iterate_alone(self) -> AsyncGenerator[Any, None]:
        async with self._manager as iterable:
            async for item in iterable:
                yield item

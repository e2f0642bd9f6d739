"""Content of a response that is an async context manager around an async iterable.

An async generator must not yield inside a nursery. Content that needs one can be a
context manager, as `trio.as_safe_channel` returns, which is entered around the sending.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from typing_extensions import Self, TypeIs


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

"""Tell a WSGI server that it has been given an ASGI application."""

from __future__ import annotations

import functools
import inspect
import sys
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Call = TypeVar("Call", bound=Callable[..., Awaitable[None]])


#: Not None, which a test may give.
_MISSING: Final = object()


def refuse_wsgi(call: Call) -> Call:
    """Return the method ``__call__`` of an ASGI application, which now refuses WSGI.

    A WSGI server calls it with two arguments. Python's own error would say only that
    one is missing. Before Python 3.12 it does: servers recognise an ASGI application by
    its async ``__call__``, and no other function could be marked as one.
    """
    if sys.version_info >= (3, 12):

        @functools.wraps(call)
        def __call__(  # noqa: N807 - it takes its place
            self: object, scope: Any, receive: Any, send: Any = _MISSING
        ) -> Any:
            if send is _MISSING:
                raise TypeError(
                    "trio_asgi was called as a WSGI application, with two arguments. "
                    "Serve it with an ASGI server, such as uvicorn; with gunicorn, "
                    "choose a worker class for ASGI: "
                    "gunicorn -k uvicorn.workers.UvicornWorker."
                )
            return call(self, scope, receive, send)

        return cast("Call", inspect.markcoroutinefunction(__call__))
    else:  # noqa: RET505 - mypy knows only one branch
        return call

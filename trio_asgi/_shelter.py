"""hypercorn's server, in which an error of one connection ends that connection alone.

hypercorn lets whatever its protocols raise out of the connection's task. That ends the
server, and here the program around it. Some errors any client can cause: an ``Upgrade:
h2c`` with settings that cannot be decoded, or leaving at the wrong moment.
"""

from __future__ import annotations

import logging
import sys
from types import FunctionType
from typing import Any

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

logger = logging.getLogger("trio_asgi")


def sheltered_serve() -> Any:
    """Return `hypercorn.trio.serve`, whose connections end alone.

    The function, and the one below it, are hypercorn's own; they find another class
    under the name of the one for a connection. Nothing is changed in hypercorn itself,
    which others in the program may use.
    """
    import hypercorn.trio  # noqa: PLC0415 - an optional dependency
    import hypercorn.trio.run  # noqa: PLC0415
    from hypercorn.trio.tcp_server import TCPServer  # noqa: PLC0415

    class Connection(TCPServer):
        """A connection that raises nothing but cancellations and the like."""

        async def run(self) -> None:
            try:
                await super().run()
            except Exception as error:  # noqa: BLE001
                _log(error)
            except BaseExceptionGroup as group:
                errors, rest = group.split(Exception)
                if errors is not None:
                    _log(errors)
                if rest is not None:
                    raise rest from None

    worker_serve = _with_names(hypercorn.trio.run.worker_serve, TCPServer=Connection)
    return _with_names(hypercorn.trio.serve, worker_serve=worker_serve)


def _with_names(function: Any, **names: object) -> FunctionType:
    """Return a function with other values for some of the module's names it uses."""
    missing = names.keys() - set(function.__code__.co_names)
    assert not missing, f"this hypercorn is made differently: {missing}"
    copy = FunctionType(function.__code__, {**function.__globals__, **names})
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _log(error: BaseException) -> None:
    logger.warning("hypercorn has failed, and closed one connection", exc_info=error)

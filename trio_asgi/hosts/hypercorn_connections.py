"""hypercorn's server, with two changes.

hypercorn does not catch what its protocols raise. Such an error ends the server, and
the program around it. Clients can cause some: by an ``Upgrade: h2c`` with settings that
cannot be decoded, or by leaving at the wrong moment. Here it ends only the connection.

If the application's start-up fails, hypercorn says for a moment that it is ready. Here
it does not.
"""

from __future__ import annotations

import logging
import sys
from types import FunctionType
from typing import Any

import trio

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

logger = logging.getLogger("trio_asgi")


def load_serve() -> Any:
    """Return a copy of `hypercorn.trio.serve` with other classes.

    hypercorn itself stays unchanged: the program may use it elsewhere.
    """
    import hypercorn.trio  # noqa: PLC0415 - an optional dependency
    import hypercorn.trio.run  # noqa: PLC0415
    from hypercorn.trio.lifespan import Lifespan  # noqa: PLC0415
    from hypercorn.trio.tcp_server import TCPServer  # noqa: PLC0415

    class OwnLifespan(Lifespan):
        """A lifespan that does not let the server go on after a failed start-up."""

        has_failed = False

        async def asgi_send(self, message: Any) -> None:
            self.has_failed = message["type"] == "lifespan.startup.failed"
            await super().asgi_send(message)

        async def wait_for_startup(self) -> None:
            await super().wait_for_startup()
            if self.has_failed:
                await trio.sleep_forever()  # the error is on its way

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

    serve, worker_serve = hypercorn.trio.serve, hypercorn.trio.run.worker_serve
    if not (
        {"TCPServer", "Lifespan"} <= {*worker_serve.__code__.co_names}
        and "worker_serve" in serve.__code__.co_names
    ):
        logger.warning(
            "This version of hypercorn is not known to trio_asgi.serve(): an error in "
            "one connection can end the server. Is there a newer trio_asgi?"
        )
        return serve
    worker_serve = _with_names(worker_serve, TCPServer=Connection, Lifespan=OwnLifespan)
    return _with_names(serve, worker_serve=worker_serve)


def _with_names(function: Any, **names: object) -> Any:
    """Return a copy of a function with other values for some of its globals."""
    copy = FunctionType(function.__code__, {**function.__globals__, **names})
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _log(error: BaseException) -> None:
    logger.warning("hypercorn failed, and closed one connection", exc_info=error)

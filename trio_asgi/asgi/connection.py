"""End connections that no ASGI message can end.

In two cases a server keeps a connection that is of no use any more:

- The client does not read. Servers wait for it in their ``send``, shielded from
  cancellation, which would cut a message into pieces.
- The client has sent its next request, and resets the connection during the first
  response. The reader of hypercorn and anycorn waits for the end of a response before
  it reads on, without limit.

Both show in the frames in which Trio tasks wait.
"""

from __future__ import annotations

import gc
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio.lowlevel import Task

#: The tasks in which these servers run an application. The parent of each reads from
#: the connection.
_HANDLERS: Final = {
    "hypercorn.trio.task_group._handle",
    "anycorn.task_group._handle",
}

#: Makes closing a socket reset the connection, and drop what was not sent.
_RESET: Final = struct.pack("ii", 1, 0)

#: The attributes of coroutines, generators and async generators.
_KINDS: Final = (("cr", "cr_await"), ("gi", "gi_yieldfrom"), ("ag", "ag_await"))


def reset_connection(task: Task) -> bool:
    """Reset the connection on which a task waits; return whether it waits on one.

    To the server this looks like a client that has left.
    """
    for owner in _awaited(task):
        if isinstance(owner, trio.socket.SocketType):
            owner.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            owner.close()
            return True
    return False


def shut_down_unread_connection() -> bool:
    """Shut down the running task's connection if its reader waits for the task to end.

    For HTTP/1, and the servers in `_HANDLERS`.

    Returns:
        Whether it was shut down. Then nothing reaches the client any more.
    """
    task = trio.lowlevel.current_task()
    nursery = task.parent_nursery
    if task.name not in _HANDLERS or nursery is None:
        return False
    awaited = list(_awaited(nursery.parent_task))
    if not any(isinstance(owner, trio.Event) for owner in awaited):
        return False
    found = next(filter(None, map(_socket_of, awaited)), None)
    if found is None:
        return False
    with suppress(OSError):  # already shut down, or closed
        found.shutdown(socket.SHUT_RDWR)
    return True


def _awaited(task: Task) -> Iterator[object]:
    """Yield the objects in whose methods a task waits, outermost first.

    `Task.iter_await_frames` stops at wrappers written in C, such as the one that the
    ``__await__`` of a hypercorn class returns.
    """
    waiting: Any = task.coro
    while waiting is not None:
        for kind, inner in _KINDS:
            frame = getattr(waiting, f"{kind}_frame", None)
            if frame is not None:
                yield frame.f_locals.get("self")
                waiting = getattr(waiting, inner)
                break
        else:
            waiting = next(filter(_has_frame, gc.get_referents(waiting)), None)


def _has_frame(found: object) -> bool:
    return any(hasattr(found, f"{kind}_frame") for kind, _ in _KINDS)


def _socket_of(server: object) -> Any:
    """Return the socket of a server's connection object; None for other objects."""
    stream = getattr(server, "stream", None)
    stream = getattr(stream, "transport_stream", stream)  # below TLS
    return getattr(stream, "socket", None) or getattr(stream, "_trio_socket", None)

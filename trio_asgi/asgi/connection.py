"""Connections that no message of ASGI can end, and how they are ended.

An application can only send messages, and return. Two things that a client does leave
its server with a connection that is of no use to anybody, and that it keeps:

- A client does not read. Servers wait for it in their ``send``, which they let nobody
  cancel, since that would cut a message into pieces.
- A client sends its next request, and resets the connection during the first response.
  The reader of hypercorn, and of anycorn, waits for the end of a response before it
  goes on to the next request; for ever, if there is no end.

Both are found by what tasks wait for, which Trio tells everybody.
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

#: The tasks in which these servers run an application, each in a nursery of the task
#: that reads from its connection.
_HANDLERS: Final = {
    "hypercorn.trio.task_group._handle",
    "anycorn.task_group._handle",
}

#: Closes a socket with a reset, and frees what it has not sent.
_RESET: Final = struct.pack("ii", 1, 0)


#: The attributes of coroutines, generators and async generators.
_KINDS: Final = (("cr", "cr_await"), ("gi", "gi_yieldfrom"), ("ag", "ag_await"))


def reset_connection(task: Task) -> bool:
    """Reset the connection that a task waits for to take bytes; say whether it does.

    The server meets an error that it knows, of a client that has gone.
    """
    for owner in _awaited(task):
        if isinstance(owner, trio.socket.SocketType):
            owner.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            owner.close()
            return True
    return False


def shut_down_unread_connection() -> bool:
    """Shut the connection of the running task down if its reader waits for the task.

    For HTTP/1, and for servers of which it is known what their reader waits for.
    Nothing that is sent to the server after that comes to the client.

    Returns:
        Whether the reader waits, and nothing can come to the client any more.
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
    with suppress(OSError):  # it is shut down, or closed
        found.shutdown(socket.SHUT_RDWR)
    return True


def _awaited(task: Task) -> Iterator[object]:
    """Yield the objects in whose methods a task waits, the outermost first.

    What Trio's `Task.iter_await_frames` does, but for what C code wraps: hypercorn has
    a class with an ``__await__`` that returns such a wrapper.
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
    """Return the socket of a server's object for a connection, if it is that."""
    stream = getattr(server, "stream", None)
    # Below TLS, and below AnyIO.
    stream = getattr(stream, "transport_stream", stream)
    return getattr(stream, "socket", None) or getattr(stream, "_trio_socket", None)

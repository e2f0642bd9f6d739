"""Sends Django's responses: the headers, and the parts of a streamed body."""

from __future__ import annotations

import functools
import logging
import sys
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any, Final

import outcome
import trio

from trio_asgi import conf
from trio_asgi.asgi.exchange import SEND_SECONDS
from trio_asgi.bridge.streaming_content import (
    ManagedStream,
    contents,
    forget_contents,
    replace_contents,
)
from trio_asgi.errors import ClientDisconnected, ends_more_than_request, leaves
from trio_asgi.islands.stream import IslandStream
from trio_asgi.threads.current import current_pool
from trio_asgi.threads.offload import log

from .file_stream import LARGEST_BLOCK
from .files import file_of, path_to_send
from .headers import response_start
from .message_size import next_size
from .sync_content import thread_stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from django.http import StreamingHttpResponse
    from django.http.response import HttpResponseBase

    from trio_asgi.asgi.types import Send

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

logger = logging.getLogger("django.request")

#: The most that the first message of a response in one piece holds; bytes.
FIRST_PIECE: Final = 2**16


def iterate_in_island(response: HttpResponseBase) -> None:
    """Make asyncio iterate and close the async content of an asyncio view."""
    # An event stream runs on Trio; only its events are asyncio code.
    wrap_events = getattr(contents(response)[0], "wrap_events", None)
    if wrap_events is not None:
        wrap_events(IslandStream)
    else:
        replace_contents(response, IslandStream(response._iterator))  # type: ignore[attr-defined]


async def send_over_asgi(
    response: HttpResponseBase,
    send: Send,
    chunk_bytes: Callable[[Any], Iterator[tuple[Any, bool]]],
) -> None:
    """Send a response, without closing it, in ASGI messages.

    ``send`` may be a `ResponseSender`, which knows what the server accepts.
    ``chunk_bytes`` splits bytes for several messages, and tells which is the last.
    """
    path = None
    wants_body = getattr(send, "wants_body", True)
    if wants_body and getattr(send, "takes_paths", False):
        path = await _path_for_server(response)
    content: bytes | None = None
    if not response.streaming:
        content = response.content  # type: ignore[attr-defined]
    # Nothing may fail between this and sending it.
    start = response_start(
        response,
        size=len(content) if content is not None and wants_body else None,
        is_http1=getattr(send, "is_http1", True),
    )
    await send(start)
    if path is not None:
        await send({"type": "http.response.pathsend", "path": path})
    elif content is not None:
        if len(content) > FIRST_PIECE:
            content = await _send_pieces(content, _part_sender(send, chunk_bytes))
        for chunk, last in chunk_bytes(content):
            await send(
                {"type": "http.response.body", "body": chunk, "more_body": not last}
            )
    else:
        if wants_body:
            await send_parts(
                response,  # type: ignore[arg-type]
                _part_sender(send, chunk_bytes),
                cleanup_seconds=conf.get("CLEANUP_SECONDS"),
            )
        await send({"type": "http.response.body"})


def _part_sender(
    send: Send, chunk_bytes: Callable[[Any], Iterator[tuple[Any, bool]]]
) -> Callable[[bytes], Awaitable[None]]:
    """Return a function that sends a part of a body; more of it follows."""

    async def send_part(part: bytes) -> None:
        for chunk, _ in chunk_bytes(part):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})

    return send_part


async def _send_pieces(
    content: bytes, send_part: Callable[[bytes], Awaitable[None]]
) -> bytes:
    """Send bytes in pieces whose sizes suit the client, and return the last piece.

    Each is a copy, which the server keeps until the client takes it.
    """
    sent, size = 0, FIRST_PIECE
    while len(content) - sent > size:
        begun = trio.current_time()
        await send_part(content[sent : sent + size])
        sent += size
        seconds = trio.current_time() - begun
        size = next_size(size, size, seconds=seconds, taken=sent, largest=LARGEST_BLOCK)
    return content[sent:]


async def _path_for_server(response: HttpResponseBase) -> str | None:
    """Return the path if the server can send a file; looked up in a worker thread."""
    file = file_of(response)
    if file is None:
        return None
    length = response.headers.get("Content-Length")
    return await current_pool().run_sync(functools.partial(path_to_send, file, length))


async def end_body(send: Send) -> None:
    """End the body of a stream that the server has cancelled, within a second.

    An endless stream may end anywhere: its client reconnects, to another server.
    """
    with trio.move_on_after(SEND_SECONDS, shield=True), suppress(ClientDisconnected):
        await send({"type": "http.response.body"})


async def send_parts(
    response: StreamingHttpResponse,
    send: Callable[[bytes], Awaitable[None]],
    *,
    cleanup_seconds: float,
) -> None:
    """Send each part of a streamed body as it comes.

    An async iterator is iterated and closed in this task; a context manager is entered
    and left in it. A sync iterator is iterated in the request's thread, no faster than
    parts are sent; so is a file, unless it is plain: then any thread reads it, or on
    Linux the loop, where it is in memory. ``response.close()`` closes both.

    Closing async content may take ``cleanup_seconds``; generators are closed behind a
    shield.
    """
    if not response.is_async:
        await thread_stream(response).send_all(send)
        return
    # Not `streaming_content`, which wraps the iterator in another generator.
    iterator: AsyncIterator[Any] = response._iterator  # type: ignore[attr-defined]
    sent: outcome.Outcome[None] = outcome.Value(None)
    closed: outcome.Outcome[None] = outcome.Value(None)
    leaving = trio.CancelScope()

    async def send_all() -> None:
        async for part in iterator:
            await send(response.make_bytes(part))

    async def send_managed() -> None:
        nonlocal sent, closed
        async with AsyncExitStack() as stack:
            stack.enter_context(leaving)
            for content in contents(response):
                if isinstance(content, ManagedStream):
                    await stack.enter_async_context(content)
            with trio.CancelScope() as scope:
                sent = await outcome.acapture(send_all)
                # This scope was entered before those of the generator: a new one around
                # the closing would break their nesting. A manager is left without a
                # shield, like any cancelled code. Behind a shield its nursery would
                # absorb the cancellation, and go on as if everything had been sent.
                scope.shield = True
                scope.deadline = trio.current_time() + cleanup_seconds
                closed = await _capture_closing(response)
            leaving.deadline = trio.current_time() + cleanup_seconds
            if isinstance(sent, outcome.Error):
                raise sent.error

    ended: outcome.Outcome[None] = await outcome.acapture(send_managed)
    try:
        if isinstance(sent, outcome.Error) and (
            leaving.cancelled_caught or _is_cancelled(ended)
        ):
            # The closing took too long; or both outcomes are the same cancellation.
            ended = sent
        await _raise_what_counts(ended, closed)
    finally:
        del ended, sent, closed


async def _raise_what_counts(
    ended: outcome.Outcome[None], closed: outcome.Outcome[None]
) -> None:
    """Raise the error of a stream, or of its closing; if both failed, log the latter.

    Called outside the scope around the stream, which would absorb a cancellation.
    """
    try:
        if _is_cancelled(ended):
            # A cancellation may come from a scope of the generator, and end there: only
            # one of this task is raised.
            ended = await outcome.acapture(trio.lowlevel.checkpoint_if_cancelled)
        if isinstance(ended, outcome.Error) and isinstance(closed, outcome.Error):
            message = "Error while closing a stream"
            log(logger, logging.ERROR, message, error=closed.error)
        ended.unwrap()
        closed.unwrap()
    finally:
        del ended, closed


def _is_cancelled(ended: outcome.Outcome[None]) -> bool:
    """Return whether only cancellations ended it; a nursery groups even one."""
    return isinstance(ended, outcome.Error) and all(
        isinstance(leaf, trio.Cancelled) for leaf in leaves(ended.error)
    )


async def close_stream(response: HttpResponseBase | None) -> None:
    """Close the async content of a response, if any; a second call does no harm.

    The wrappers of middleware are closed before the view's content. A sync iterator is
    left to ``response.close()``, because it belongs to a thread.
    """
    if response is None or not response.streaming:
        return
    async with AsyncExitStack() as stack:
        for content in contents(response):
            if hasattr(content, "aclose"):
                stack.push_async_callback(_close_content, content)
        forget_contents(response)


async def _capture_closing(response: HttpResponseBase) -> outcome.Outcome[None]:
    try:
        await close_stream(response)
    except BaseException as error:
        if ends_more_than_request(error):
            raise
        return outcome.Error(error)
    return outcome.Value(None)


async def _close_content(content: Any) -> None:
    try:
        await content.aclose()
    except BaseExceptionGroup as group:
        # A nursery that is open in the generator wraps even its GeneratorExit.
        rest = group.split(GeneratorExit)[1]
        try:
            if rest is not None:
                raise rest
        finally:
            del rest

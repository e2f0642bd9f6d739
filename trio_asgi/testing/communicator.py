"""asgiref's `ApplicationCommunicator`, for Trio."""

from __future__ import annotations

import contextvars
from collections import deque
from typing import TYPE_CHECKING, Any

import outcome
import trio

from trio_asgi.asgi.order import SendOrder
from trio_asgi.errors import OutputTimeoutError

if TYPE_CHECKING:
    from typing_extensions import Self

    from trio_asgi.asgi.types import ASGIApplication, Message, Scope


class ApplicationCommunicator:
    """Runs an ASGI application, sends it messages and receives those that it sends.

    Names and meanings are those of `asgiref.testing.ApplicationCommunicator`::

        async with ApplicationCommunicator(application, scope) as communicator:
            await communicator.send_input({"type": "http.request"})
            start = await communicator.receive_output()

    Leaving the block cancels the application, waits for its end, and raises what it
    raised. Without a block, call `wait` at the end, as with asgiref.

    The order of the application's messages is checked, unless the scope's type is
    unknown. A message out of order raises `ASGIOrderError` in the application, with the
    broken rule; the next call of a method raises it too.

    As under a server, a client that has disconnected gets nothing: messages that the
    application sends before it has received the disconnect are dropped.

    The application runs in a fresh context, as under a server. With an autojump
    `trio.testing.MockClock`, time stands still while sync code runs.
    """

    def __init__(self, application: ASGIApplication, scope: Scope) -> None:
        """Prepare to run an ASGI 3 application. The first method call starts it."""
        self.application = application
        self.scope = scope
        self._input_send, self._input = trio.open_memory_channel[Any](2**16)
        self._outputs: deque[Message] = deque()
        #: Set at each output and at the application's end.
        self._news = trio.Event()
        #: Whether the application has yet to receive a disconnect, and whether it has
        #: sent something meanwhile: then all further output is dropped.
        self._has_left = self._drops = False
        self._order: SendOrder | None = None
        if scope.get("type") in ("http", "websocket", "lifespan"):
            self._order = SendOrder(scope["type"])
        self._started = False
        self._cancel_scope = trio.CancelScope()
        self._done = trio.Event()
        self._ended: outcome.Outcome[None] | None = None

    async def __aenter__(self) -> Self:
        self._start()
        return self

    async def __aexit__(self, kind: object, error: object, traceback: object) -> None:
        await self._cancel_and_wait()
        if error is None:
            self._raise_error()

    async def send_input(self, message: Message) -> None:
        """Send the application a message, or raise what it has raised."""
        self._start()
        self._raise_error()
        if message.get("type") == "http.disconnect":
            self._has_left = True
        await self._input_send.send(message)

    async def receive_output(self, timeout: float = 1) -> Message:  # noqa: ASYNC109
        """Return the next message that the application sends.

        Waits ``timeout`` seconds at most.

        Raises:
            OutputTimeoutError: none came in time. The application, which did not fail,
                was cancelled. It is a `trio.TooSlowError` and a `TimeoutError`.
            Exception: the application has raised it, and sends no more.
        """
        self._start()
        if await self._wait_output(timeout):
            return self._outputs.popleft()
        has_ended = self._done.is_set()
        await self._cancel_and_wait()
        self._raise_error()
        raise OutputTimeoutError(
            "The application has ended, and sends nothing more."
            if has_ended
            else f"The application sent nothing within {timeout} s."
        )

    async def receive_nothing(
        self,
        timeout: float = 0.1,  # noqa: ASYNC109
        interval: float = 0.01,
    ) -> bool:
        """Return whether the application sends nothing within ``timeout`` seconds.

        ``interval`` is not used; asgiref polls with it.
        """
        del interval
        self._start()
        self._raise_error()
        return not await self._wait_output(timeout)

    async def wait(self, timeout: float = 1) -> None:  # noqa: ASYNC109
        """Wait for the application to end, and raise what it raises.

        After ``timeout`` seconds it is cancelled; as in asgiref, that raises nothing.
        """
        self._start()
        with trio.move_on_after(timeout):
            await self._done.wait()
        await self._cancel_and_wait()
        self._raise_error()

    def stop(self, exceptions: bool = True) -> None:  # noqa: FBT001, FBT002
        """Cancel the application, without waiting for its end.

        If it has already ended, raise what it raised, unless ``exceptions`` is false.
        """
        if self._ended is None:
            self._cancel_scope.cancel()
        elif exceptions:
            self._raise_error()

    def _start(self) -> None:
        if not self._started:
            self._started = True
            # A system task, since this class can be used without a block. It raises
            # nothing, and ends with the run at the latest.
            trio.lowlevel.spawn_system_task(
                self._run, name=self.application, context=contextvars.Context()
            )

    async def _run(self) -> None:
        async def run() -> None:
            with self._cancel_scope:
                await self.application(self.scope, self._receive, self._send)

        self._ended = await outcome.acapture(run)
        self._done.set()
        self._news.set()

    async def _receive(self) -> Message:
        message: Message = await self._input.receive()
        if message.get("type") == "http.disconnect":
            self._has_left = False
        return message

    async def _send(self, message: Message) -> None:
        if self._order is not None:
            self._order.advance(message)
        self._drops = self._drops or self._has_left
        if not self._drops:
            self._outputs.append(message)
            self._news.set()
        await trio.lowlevel.checkpoint()

    async def _wait_output(self, timeout: float) -> bool:  # noqa: ASYNC109
        """Wait for an output; return whether there is one."""
        with trio.move_on_after(timeout):
            while not self._outputs and not self._done.is_set():
                self._news = trio.Event()
                await self._news.wait()
        return bool(self._outputs)

    async def _cancel_and_wait(self) -> None:
        self._cancel_scope.cancel()
        if self._started:
            with trio.CancelScope(shield=True):
                await self._done.wait()

    def _raise_error(self) -> None:
        if isinstance(self._ended, outcome.Error):
            # Raised only once: a second time it would tell nothing new.
            ended, self._ended = self._ended, outcome.Value(None)
            ended.unwrap()

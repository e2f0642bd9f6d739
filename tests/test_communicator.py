"""The communicator: asgiref's, on Trio."""

from __future__ import annotations

import contextvars
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from django.http import HttpRequest, HttpResponse
from django.urls import path

from support import application, http_scope, request
from trio_asgi.errors import ASGIOrderError
from trio_asgi.testing import ApplicationCommunicator

if TYPE_CHECKING:
    from trio_asgi.asgi.types import Receive, Scope, Send

START = {"type": "http.response.start", "status": 200}
BODY = {"type": "http.response.body"}


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer, then send back what is received, until told to stop."""
    await send(START)
    while (message := await receive())["type"] != "stop":
        await send({"type": "http.response.body", "more_body": True, "body": message})
    await send(BODY)


async def fail(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer half, then fail."""
    await send(START)
    raise ValueError("half")


async def hang(scope: Scope, receive: Receive, send: Send) -> None:
    """Do nothing."""
    await trio.sleep_forever()


async def test_inputs_and_outputs() -> None:
    """Inputs reach the application, and its outputs arrive in order."""
    async with ApplicationCommunicator(echo, http_scope()) as communicator:
        assert await communicator.receive_output() == START
        for number in range(3):
            await communicator.send_input({"type": "x", "number": number})
        for number in range(3):
            body = (await communicator.receive_output())["body"]
            assert body == {"type": "x", "number": number}
        await communicator.send_input({"type": "stop"})
        assert await communicator.receive_output() == BODY
        await communicator.wait()


async def test_a_client_that_has_left_gets_nothing() -> None:
    """What was sent before the disconnect was received is dropped, and all after it."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        assert await receive() == {"type": "http.disconnect"}
        await send(BODY)

    async with ApplicationCommunicator(answer, http_scope()) as communicator:
        await communicator.send_input({"type": "http.disconnect"})
        await communicator.wait()
        assert await communicator.receive_nothing()


async def test_what_is_sent_to_a_client_known_to_have_left_comes_out() -> None:
    """The application has received the disconnect, and should not send any more."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(START)

    async with ApplicationCommunicator(answer, http_scope()) as communicator:
        await communicator.send_input({"type": "http.disconnect"})
        assert await communicator.receive_output() == START


async def test_receiving_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """It says whether something was sent, and takes nothing away."""
    async with ApplicationCommunicator(echo, http_scope()) as communicator:
        assert not await communicator.receive_nothing()
        await communicator.receive_output()
        assert await communicator.receive_nothing()


async def test_a_timeout_cancels_the_application(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """No output in time is both kinds of time-out, and ends the application."""
    for error in (trio.TooSlowError, TimeoutError):
        communicator = ApplicationCommunicator(hang, http_scope())
        with pytest.raises(error, match="sent nothing within 2 s"):
            await communicator.receive_output(timeout=2)
        await communicator.wait()


async def test_the_end_of_the_application_is_no_reason_to_wait() -> None:
    """When the application has ended, waiting for output fails at once."""
    async with ApplicationCommunicator(echo, http_scope()) as communicator:
        await communicator.send_input({"type": "stop"})
        await communicator.receive_output()
        await communicator.receive_output()
        with pytest.raises(trio.TooSlowError, match="has ended"):
            await communicator.receive_output(timeout=1000)


async def test_an_error_comes_out_once_after_the_outputs() -> None:
    """The application's error is raised by the next call that has nothing else."""
    communicator = ApplicationCommunicator(fail, http_scope())
    assert await communicator.receive_output() == START
    with pytest.raises(ValueError, match="half"):
        await communicator.receive_output()
    await communicator.wait()


@pytest.mark.parametrize("method", ["send_input", "receive_nothing", "wait", "stop"])
async def test_every_method_raises_the_error(method: str) -> None:
    """The error is not lost, whichever method is called next."""
    communicator = ApplicationCommunicator(fail, http_scope())
    await communicator.receive_output()
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(ValueError, match="half"):
        if method == "send_input":
            await communicator.send_input({"type": "x"})
        elif method == "stop":
            communicator.stop()
        else:
            await getattr(communicator, method)()


async def test_leaving_the_block_raises_the_error() -> None:
    """The error of the application is raised at the end of the block at the latest."""
    with pytest.raises(ValueError, match="half"):
        async with ApplicationCommunicator(fail, http_scope()):
            await trio.testing.wait_all_tasks_blocked()


async def test_leaving_the_block_with_an_error_keeps_that_error() -> None:
    """The application's error does not hide the test's own failure."""
    with pytest.raises(KeyError):
        async with ApplicationCommunicator(fail, http_scope()):
            await trio.testing.wait_all_tasks_blocked()
            raise KeyError


async def test_leaving_the_block_ends_the_application() -> None:
    """An application that waits is cancelled, and has ended, after the block."""
    ended = []

    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(True)

    async with ApplicationCommunicator(wait, http_scope()):
        await trio.testing.wait_all_tasks_blocked()
    assert ended == [True]


async def test_stop_cancels_without_waiting() -> None:
    """stop() is sync, and the application ends soon after."""
    communicator = ApplicationCommunicator(hang, http_scope())
    communicator.stop()
    await communicator.send_input({"type": "x"})
    communicator.stop()
    await communicator.wait()
    communicator.stop()


async def test_waiting_too_long_cancels(autojump_clock: trio.testing.MockClock) -> None:
    """wait() with an application that does not end cancels it, and raises nothing."""
    start = trio.current_time()
    await ApplicationCommunicator(hang, http_scope()).wait(timeout=3)
    assert trio.current_time() - start == pytest.approx(3)


async def test_a_wrong_order_is_an_error_with_its_rule() -> None:
    """A message out of order fails in the application, and the test gets the error."""

    async def twice(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        await send(START)

    communicator = ApplicationCommunicator(twice, http_scope())
    with pytest.raises(ASGIOrderError, match="start may not be sent when the response"):
        await communicator.wait()


async def test_a_scope_of_another_type_is_not_checked() -> None:
    """An application of a custom protocol can be tested too."""

    async def other(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "other.message"})

    async with ApplicationCommunicator(other, {"type": "other"}) as communicator:
        assert await communicator.receive_output() == {"type": "other.message"}


async def test_the_application_has_a_fresh_context() -> None:
    """Context variables of the test are not seen, as under a server."""
    variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable")
    variable.set("of the test")
    seen = []

    async def look(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(variable.get(None))

    await ApplicationCommunicator(look, http_scope()).wait()
    assert seen == [None]


async def test_sync_code_takes_no_time_on_a_mock_clock(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A view in a thread may take longer than the clock's jump to the deadline."""

    def slow(request: HttpRequest) -> HttpResponse:
        time.sleep(0.05)  # real time, in which the mock clock would jump endlessly
        return HttpResponse("slow")

    app = application(path("", slow))
    assert (await request(app)).body == b"slow"

"""A Django site inside a Trio program, over real sockets."""

from __future__ import annotations

import functools
import gc
import subprocess
import sys
import warnings
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trio
from django.http import HttpRequest, HttpResponse
from django.urls import path
from hypercorn.config import Config

import trio_asgi
from support import application, request
from test_lifespan import Recording

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

EXAMPLE = Path(__file__).parent.parent / "examples" / "single_file.py"
shared: dict[str, Any] = {}


def show(request: HttpRequest) -> HttpResponse:
    """Show the program's shared object."""
    return HttpResponse(str(shared["value"]))


async def get(url: str) -> httpx.Response:
    """Make a request with a real client."""
    async with httpx.AsyncClient(timeout=10) as client:
        return await client.get(url)


async def test_a_program_hosts_a_site_beside_its_tasks() -> None:
    """The site answers at the returned address, shares objects, and in-process too."""
    app = application(path("", show))
    async with trio.open_nursery() as nursery:
        (address,) = await nursery.start(trio_asgi.serve, app, "127.0.0.1:0")
        shared["value"] = "from the program"
        assert (await get(address)).text == "from the program"
        assert (await request(app)).body == b"from the program"
        nursery.cancel_scope.cancel()


async def test_cancelling_shuts_down_in_order() -> None:
    """Requests in flight are answered, and the lifespan is exited, before it ends."""
    Recording.events, Recording.fail_at = [], ""
    reached, go_on = trio.Event(), trio.Event()

    async def view(request: HttpRequest) -> HttpResponse:
        reached.set()
        await go_on.wait()
        return HttpResponse("answered")

    app = application(path("", view), handler=Recording)
    answers = []

    async def client(address: str) -> None:
        answers.append((await get(address)).text)

    async with trio.open_nursery() as clients:
        async with trio.open_nursery() as nursery:
            (address,) = await nursery.start(trio_asgi.serve, app, "127.0.0.1:0")
            clients.start_soon(client, address)
            await reached.wait()
            nursery.cancel_scope.cancel()
            go_on.set()
        assert Recording.events == ["enter", "exit"]
    assert answers == ["answered"]


async def test_a_trigger_shuts_down() -> None:
    """serve() returns after its shutdown_trigger does."""
    stop = trio.Event()
    async with trio.open_nursery() as nursery:

        async def serve(task_status: Any) -> None:
            await trio_asgi.serve(
                application(),
                "127.0.0.1:0",
                shutdown_trigger=stop.wait,
                task_status=task_status,
            )

        await nursery.start(serve)
        stop.set()


async def test_a_trigger_that_is_slow_to_be_cancelled() -> None:
    """Cancelling shuts the server down at once, whatever its trigger still does."""
    Recording.events, Recording.fail_at = [], ""
    go_on = trio.Event()

    async def trigger() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await go_on.wait()

    async with trio.open_nursery() as nursery:
        await nursery.start(
            functools.partial(
                trio_asgi.serve,
                application(path("", show), handler=Recording),
                "127.0.0.1:0",
                shutdown_trigger=trigger,
            )
        )
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True), trio.fail_after(10):
            while Recording.events != ["enter", "exit"]:
                await trio.lowlevel.checkpoint()
        go_on.set()


async def test_a_config_is_used() -> None:
    """A hypercorn Config is used, with its own bind or the given one."""
    for bind in ([], ["127.0.0.1:0"]):
        config = Config()
        config.root_path = "/prefix"
        if not bind:
            config.bind = ["127.0.0.1:0"]

        async def serve(config: Config, bind: list[str], task_status: Any) -> None:
            await trio_asgi.serve(
                application(), *bind, config=config, task_status=task_status
            )

        async with trio.open_nursery() as nursery:
            (address,) = await nursery.start(serve, config, bind)
            assert (await get(address)).text == "Hello World!"
            nursery.cancel_scope.cancel()


async def test_two_binds_are_an_error() -> None:
    """A bind beside a config with a different one is refused, by name."""
    config = Config()
    config.bind = ["127.0.0.1:8001"]
    with pytest.raises(ValueError, match=r"bind='127\.0\.0\.1:8002' and a config with"):
        await trio_asgi.serve(application(), "127.0.0.1:8002", config=config)


async def test_an_address_in_use_is_an_os_error() -> None:
    """The operating system's error about the address is raised, ungrouped."""
    async with trio.open_nursery() as nursery:
        (address,) = await nursery.start(trio_asgi.serve, application(), "127.0.0.1:0")
        with warnings.catch_warnings():
            # hypercorn leaves open the socket that it could not bind.
            warnings.simplefilter("ignore", ResourceWarning)
            with pytest.raises(OSError, match="in use"):
                await trio_asgi.serve(application(), address.removeprefix("http://"))
            gc.collect()
        nursery.cancel_scope.cancel()


async def test_a_start_up_that_fails() -> None:
    """`trio.Nursery.start` raises the error; it does not say that the server runs."""

    class Failing(trio_asgi.ASGIHandler):
        @asynccontextmanager
        async def lifespan(self) -> AsyncIterator[None]:
            raise ValueError("the start-up failed")
            yield  # type: ignore[unreachable] # makes it a generator

    started = False
    with pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            await nursery.start(trio_asgi.serve, Failing(), "127.0.0.1:0")
            started = True
    assert not started
    assert "the start-up failed" in str(caught.value.exceptions[0])


async def test_without_hypercorn_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """hypercorn is an extra, which the error names."""
    monkeypatch.setitem(sys.modules, "hypercorn.trio", None)
    with pytest.raises(ImportError, match=r"pip install 'hypercorn>=0.18'"):
        await trio_asgi.serve(application())


BAD_UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n"
    b"Upgrade: h2c\r\nHTTP2-Settings: AAA\r\n\r\n"
)


async def test_an_error_of_hypercorns_ends_one_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A client that makes hypercorn fail is cut off; the program and others go on."""
    reached, go_on = trio.Event(), trio.Event()

    async def view(request: HttpRequest) -> HttpResponse:
        reached.set()
        await go_on.wait()
        return HttpResponse("answered")

    answers: list[str] = []

    async def client(address: str) -> None:
        answers.append((await get(address)).text)

    async with trio.open_nursery() as nursery:
        app = application(path("", view))
        (address,) = await nursery.start(trio_asgi.serve, app, "127.0.0.1:0")
        async with trio.open_nursery() as clients:
            clients.start_soon(client, address)
            await reached.wait()
            port = int(address.rpartition(":")[2])
            with trio.fail_after(10):
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    await stream.send_all(BAD_UPGRADE)
                    received = b"".join([data async for data in stream])
            go_on.set()
        assert received.startswith(b"HTTP/1.1 101")
        assert (await get(address)).text == "answered"
        nursery.cancel_scope.cancel()
    assert answers == ["answered"]
    (record,) = [found for found in caplog.records if found.name == "trio_asgi"]
    assert record.getMessage() == "hypercorn failed, and closed one connection"
    assert record.exc_info


async def test_hypercorn_itself_is_left_as_it_is() -> None:
    """Other users of hypercorn in the program get hypercorn's own classes."""
    import hypercorn.trio.run  # noqa: PLC0415
    from hypercorn.trio.tcp_server import TCPServer  # noqa: PLC0415

    async with trio.open_nursery() as nursery:
        await nursery.start(trio_asgi.serve, application(), "127.0.0.1:0")
        assert vars(hypercorn.trio.run)["TCPServer"] is TCPServer
        nursery.cancel_scope.cancel()


async def test_a_hypercorn_that_is_made_in_another_way(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It serves without that protection, and the log says so."""
    import hypercorn.trio  # noqa: PLC0415
    import hypercorn.trio.run  # noqa: PLC0415

    async def worker_serve(*args: Any, **kwargs: Any) -> None:
        await made(*args, **kwargs)

    made = hypercorn.trio.run.worker_serve
    monkeypatch.setattr(hypercorn.trio.run, "worker_serve", worker_serve)
    async with trio.open_nursery() as nursery:
        (url,) = await nursery.start(trio_asgi.serve, application(), "127.0.0.1:0")
        async with httpx.AsyncClient() as client:
            assert (await client.get(url)).status_code == 200
        nursery.cancel_scope.cancel()
    assert "an error in one connection can end the server" in caplog.text


def test_the_example_in_one_file_is_short() -> None:
    """It has at most forty lines."""
    assert len(EXAMPLE.read_text().splitlines()) <= 40


def test_the_example_in_one_file_works() -> None:
    """Both views show the value that the program's task counts up."""
    code = f"""
import runpy, trio, httpx, trio_asgi
example = runpy.run_path({str(EXAMPLE)!r}, run_name="__main__not")
import sys, types
module = types.ModuleType("__main__not")
vars(module).update(example)
sys.modules["__main__not"] = module

async def main():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(example["count"])
        app = trio_asgi.get_asgi_application()
        (address,) = await nursery.start(trio_asgi.serve, app, "127.0.0.1:0")
        async with httpx.AsyncClient() as client:
            while (await client.get(address + "/json/")).json()["seconds"] < 1:
                await trio.sleep(0.1)
            print((await client.get(address)).text, end="")
        nursery.cancel_scope.cancel()

trio.run(main)
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert result.stdout.startswith("Up for ")

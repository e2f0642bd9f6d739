"""What runs: the snapshot, and the page that shows it to staff."""

from __future__ import annotations

import functools
import json
import os
import threading
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
import trio
from asgiref.sync import async_to_sync, sync_to_async
from django.conf import settings
from django.contrib import auth
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import close_old_connections, connection, connections, transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import override_settings
from django.urls import include, path
from trio.testing import wait_all_tasks_blocked

from hop_support import STARTPROJECT
from support import application, http_scope, request
from thread_support import Gate, assert_at_rest, leave, nothing
from trio_asgi import asyncio_island, views
from trio_asgi.tasks import snapshot
from trio_asgi.testing import ApplicationCommunicator
from trio_asgi.threads.current import current_pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator
    from pathlib import Path

    from trio_asgi import ASGIHandler
    from trio_asgi.asgi.types import Message


@asynccontextmanager
async def requested(
    app: ASGIHandler, path: str = "/", **scope: Any
) -> AsyncIterator[ApplicationCommunicator]:
    """Run a block during a request; then its client leaves."""
    async with ApplicationCommunicator(app, http_scope(path, **scope)) as client:
        await client.send_input({"type": "http.request"})
        yield client


async def only_request() -> dict[str, Any]:
    """Wait until all tasks wait; return the only request that runs."""
    await wait_all_tasks_blocked()
    [found] = snapshot()["requests"]
    return found  # type: ignore[no-any-return]


def gated(gate: Gate[Any]) -> Any:
    """Return a sync view that waits at a gate."""

    def held(request: HttpRequest) -> HttpResponse:
        gate()
        return HttpResponse()

    return held


# Requests and their states


async def test_an_async_view_and_its_tasks(watching_at_once: None) -> None:
    """Each task says where it waits; nothing is left after the request."""

    async def look_up(depth: int) -> None:
        if not depth:
            await trio.sleep_forever()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look_up, depth - 1, name=f"at {depth - 1}")

    async def view(request: HttpRequest) -> HttpResponse:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look_up, 1, name="at 1")
            nursery.start_soon(trio.sleep_forever)
        return HttpResponse()

    app = application(path("shop/", view))
    async with requested(app, "/shop/", method="POST"):
        found = await only_request()
        assert (found["method"], found["path"]) == ("POST", "/shop/")
        assert found["state"] == "in async code"
        assert found["where"].startswith("test_tasks_page.py:")
        assert found["where"].endswith(" in view")
        tasks = {task["name"]: task for task in found["tasks"]}
        [inner] = tasks["at 1"]["tasks"]
        assert inner["name"] == "at 0"
        assert inner["where"].endswith(" in look_up")
        assert tasks["trio.sleep_forever"]["where"] is None
        assert snapshot()["counts"]["tasks"] == 4
    counts = snapshot()["counts"]
    assert counts["requests"] == counts["tasks"] == 0


async def test_the_server_s_tasks_are_not_the_request_s() -> None:
    """A nursery around the handler is no part of the request."""

    async def view(request: HttpRequest) -> HttpResponse:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever, name="inside")
        return HttpResponse()

    app = application(path("", view))

    async def middleware(*args: Any) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever, name="around")
            await app(*args)

    async with ApplicationCommunicator(middleware, http_scope()) as client:
        await client.send_input({"type": "http.request"})
        [task] = (await only_request())["tasks"]
        assert task["name"] == "inside"


async def test_the_age_of_a_request(autojump_clock: trio.testing.MockClock) -> None:
    """It counts from the request's beginning, by Trio's clock."""

    async def view(request: HttpRequest) -> HttpResponse:
        await trio.sleep_forever()
        raise AssertionError

    async with requested(application(path("", view))):
        await trio.sleep(70)
        assert (await only_request())["seconds"] == 70


async def test_a_sync_view_in_a_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request and its thread say where the code is, and the thread what it has."""
    name = str(tmp_path / "db.sqlite3")
    monkeypatch.setitem(connections.databases["default"], "NAME", name)
    gate = Gate(nothing)

    def view(request: HttpRequest) -> HttpResponse:
        with transaction.atomic():
            connection.ensure_connection()
            gate()
        return HttpResponse()

    async with requested(application(path("", view))) as client:
        await gate.entered.wait()
        one = await only_request()
        assert one["state"] == "in sync code"
        # A gate is code of these tests, too.
        assert one["where"].startswith("thread_support.py:")
        state = snapshot()
        [thread] = state["threads"]
        assert thread["name"] == gate.thread.name
        assert (thread["state"], thread["for"]) == ("busy", "GET /")
        assert thread["runs"] == one["where"]
        assert 0 < thread["seconds"] < 60
        assert thread["connections"] == [
            {"alias": "default", "vendor": "sqlite", "in_transaction": True}
        ]
        counts = state["counts"]
        assert counts["busy_threads"] == counts["used_places"] == 1
        assert counts["connections"] == counts["held_threads"] == 1
        gate.open()
        await client.receive_output()
        await client.receive_output()
        await client.wait()
    state = snapshot()
    assert state["threads"][0]["state"] == "idle"
    assert state["threads"][0]["runs"] is state["threads"][0]["seconds"] is None
    counts = state["counts"]
    assert counts["busy_threads"] == counts["held_threads"] == 0
    assert counts["used_places"] == counts["connections"] == 0


@pytest.mark.parametrize(
    ("limit", "waiting"),
    [
        ({"THREADS": 1}, {"waiting_calls": 1, "places": 1, "used_slots": 0}),
        ({"MAX_HELD_THREADS": 1}, {"waiting_calls": 1, "slots": 1, "used_slots": 1}),
    ],
)
async def test_waiting_for_a_thread(
    limit: dict[str, int], waiting: dict[str, int]
) -> None:
    """A request says so, for each of the two limits."""
    gate = Gate(nothing)
    with override_settings(TRIO_ASGI=limit):
        app = application(
            path("", gated(gate)), path("late/", lambda _: HttpResponse())
        )
    async with requested(app), requested(app, "/late/"):
        await gate.entered.wait()
        await wait_all_tasks_blocked()
        state = snapshot()
        states = {one["path"]: one["state"] for one in state["requests"]}
        assert states == {"/": "in sync code", "/late/": "waiting for a thread"}
        assert waiting.items() <= state["counts"].items()
        gate.open()


async def test_waiting_for_the_request_s_own_thread() -> None:
    """A second call of the same request waits for its turn."""
    gate = Gate(nothing)

    async def view(request: HttpRequest) -> HttpResponse:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sync_to_async(gate), name="first")
            await gate.entered.wait()
            nursery.start_soon(sync_to_async(nothing), name="second")
        return HttpResponse()

    async with requested(application(path("", view))):
        await gate.entered.wait()
        found = await only_request()
        states = {task["name"]: task["state"] for task in found["tasks"]}
        assert states == {"first": "in sync code", "second": "waiting for a thread"}
        gate.open()


async def test_reading_the_body(autojump_clock: trio.testing.MockClock) -> None:
    """Before the request begins, its age is the time that the body has taken."""
    app = application(path("", lambda _: HttpResponse()))
    scope = http_scope(method="POST", headers=[(b"content-length", b"10")])
    async with ApplicationCommunicator(app, scope) as client:
        await client.send_input({"type": "http.request", "more_body": True})
        await trio.sleep(3)
        await client.send_input(
            {"type": "http.request", "body": b"x", "more_body": True}
        )
        await trio.sleep(2)
        found = await only_request()
        assert (found["state"], found["seconds"]) == ("reading the body", 5)
        assert found["where"] is None


async def test_streaming_and_sending() -> None:
    """A stream waits for its next part, or for the client to read."""
    go_on, reads = trio.Event(), trio.Event()

    async def parts() -> AsyncIterator[str]:
        yield "one"
        await go_on.wait()
        yield "two"

    async def view(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(parts())

    messages = [{"type": "http.request"}]

    async def receive() -> Message:
        if not messages:
            await trio.sleep_forever()
        return messages.pop()

    async def send(message: Message) -> None:
        if message.get("body") == b"two":
            await reads.wait()

    app = application(path("", view))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app, http_scope(), receive, send)
        found = await only_request()
        assert found["state"] == "streaming"
        assert found["where"].endswith(" in parts")
        go_on.set()
        found = await only_request()
        assert found["state"] == "sending to a client that does not read"
        assert found["where"] is None
        reads.set()


async def test_async_code_below_a_sync_view() -> None:
    """The request is in the async code; its thread waits for that."""

    async def below() -> None:
        await trio.sleep_forever()

    def view(request: HttpRequest) -> HttpResponse:
        async_to_sync(below)()
        return HttpResponse()

    async with requested(application(path("", view))):
        while "below" not in str((await only_request())["where"]):
            await trio.sleep(0.001)
        assert (await only_request())["state"] == "in async code"
        [thread] = snapshot()["threads"]
        assert thread["state"] == "waits for async code"
        assert thread["runs"].endswith(" in view")
        assert snapshot()["counts"]["busy_threads"] == 0


async def test_an_asyncio_view() -> None:
    """The line is that of the asyncio code."""

    @asyncio_island
    async def view(request: HttpRequest) -> HttpResponse:
        entered.set()
        await import_module("asyncio").sleep(60)
        return HttpResponse()

    entered = trio.Event()
    async with requested(application(path("", view))):
        await entered.wait()
        found = await only_request()
        assert found["state"] == "in async code"
        assert found["where"].endswith(" in view")
        assert snapshot()["counts"]["islands"] == 1
    assert snapshot()["counts"]["islands"] == 0


async def test_a_thread_of_trio() -> None:
    """The function that runs there is named."""
    gate = Gate(nothing)

    async def view(request: HttpRequest) -> HttpResponse:
        await trio.to_thread.run_sync(gate)
        return HttpResponse()

    async with requested(application(path("", view))):
        await gate.entered.wait()
        found = await only_request()
        assert found["state"] == "in sync code"
        assert "Gate" in found["where"]
        gate.open()


async def test_a_held_thread() -> None:
    """It waits for its request's next call."""

    async def view(request: HttpRequest) -> HttpResponse:
        await sync_to_async(nothing)()
        called.set()
        await trio.sleep_forever()
        raise AssertionError

    called = trio.Event()
    async with requested(application(path("", view))):
        await called.wait()
        assert (await only_request())["state"] == "in async code"
        state = snapshot()
        assert [thread["state"] for thread in state["threads"]] == ["held"]
        assert state["threads"][0]["runs"] is None
        counts = state["counts"]
        assert (counts["busy_threads"], counts["held_threads"]) == (0, 1)


async def test_a_thread_that_was_left_behind() -> None:
    """Nothing waits for it any more."""
    gate = Gate(nothing)
    lease = current_pool().lease()
    await leave(lease, gate)
    lease.release()
    [thread] = snapshot()["threads"]
    assert (thread["state"], thread["for"]) == ("left behind", None)
    assert thread["runs"].endswith(" in __call__")
    gate.open()


class Awaitable:
    """Has a coroutine that nothing refers to by an attribute."""

    def __init__(self, by: str) -> None:
        self._by = by

    def __await__(self) -> Generator[Any, Any, None]:
        inner = self.wait().__await__()
        return inner if self._by == "coroutine" else self.pass_on(inner)

    def pass_on(self, inner: Any) -> Generator[Any, Any, None]:
        yield from inner

    async def wait(self) -> None:
        await trio.sleep_forever()


class Ring:
    """An iterator that refers to the coroutine which awaits it."""

    __slots__ = ("awaiter", "inner")

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.awaiter = self.wait()

    async def wait(self) -> None:
        await self

    def __await__(self) -> Any:
        return self

    def __next__(self) -> Any:
        return self.inner.send(None)

    def send(self, value: Any) -> Any:
        return self.inner.send(value)

    def throw(self, *error: Any) -> Any:
        return self.inner.throw(*error)


async def test_an_object_that_refers_back() -> None:
    """The search for the line ends."""

    async def view(request: HttpRequest) -> HttpResponse:
        await Ring(Awaitable("coroutine").wait()).awaiter
        return HttpResponse()

    async with requested(application(path("", view))):
        assert "test_tasks_page.py" in (await only_request())["where"]


@pytest.mark.parametrize("by", ["coroutine", "generator"])
async def test_objects_that_can_be_awaited(by: str) -> None:
    """The line is found behind them."""

    async def view(request: HttpRequest) -> HttpResponse:
        await Awaitable(by)
        return HttpResponse()

    async with requested(application(path("", view))):
        assert (await only_request())["where"].endswith(" in wait")


async def test_background_tasks() -> None:
    """They are listed with their tasks, until they end."""
    go_on = trio.Event()

    async def tick() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(go_on.wait)

    app = application()
    lifespan = {"type": "lifespan", "asgi": {}, "state": {}}
    async with ApplicationCommunicator(app, lifespan) as server:
        await server.send_input({"type": "lifespan.startup"})
        await server.receive_output()
        app.start_soon(tick, name="ticks")
        await wait_all_tasks_blocked()
        [found] = snapshot()["background"]
        assert found["name"] == "ticks"
        assert found["where"].endswith(" in tick")
        assert len(found["tasks"]) == 1
        go_on.set()
        await wait_all_tasks_blocked()
        assert snapshot()["background"] == []
        await server.send_input({"type": "lifespan.shutdown"})
        await server.receive_output()


async def test_who_asks_is_left_out() -> None:
    """A request that asks is not in the snapshot, nor is one that asks in a child."""

    async def view(request: HttpRequest) -> HttpResponse:
        found = [snapshot()]

        async def ask() -> None:
            found.append(snapshot())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
        return HttpResponse(json.dumps([one["counts"]["tasks"] for one in found]))

    answer = await request(application(path("", view)))
    assert json.loads(answer.body) == [0, 0]


def test_outside_trio() -> None:
    """There is an error, not an empty answer."""
    with pytest.raises(RuntimeError):
        snapshot()


# The page


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Give all threads the same database; return the headers of its visitors."""
    name = str(tmp_path / "db.sqlite3")
    monkeypatch.setitem(connections.databases["default"], "NAME", name)
    found: dict[str, Any] = {"nobody": []}

    def prepare() -> None:
        call_command("migrate", verbosity=0)
        for user in (
            User.objects.create_user("leaf"),
            User.objects.create_user("staff", is_staff=True),
        ):
            session = import_module(settings.SESSION_ENGINE).SessionStore()
            session[auth.SESSION_KEY] = str(user.pk)
            session[auth.BACKEND_SESSION_KEY] = settings.AUTHENTICATION_BACKENDS[0]
            session[auth.HASH_SESSION_KEY] = user.get_session_auth_hash()
            session.save()
            cookie = f"sessionid={session.session_key}".encode()
            found[user.username] = [(b"cookie", cookie)]
        close_old_connections()

    thread = threading.Thread(target=prepare)
    thread.start()
    thread.join()
    return found


def site(*urls: Any, **options: Any) -> ASGIHandler:
    """Return an application with the page, behind startproject's middleware."""
    page = path("__tasks__/", include("trio_asgi.urls"))
    with override_settings(TRIO_ASGI=options):
        return application(page, *urls, middleware=STARTPROJECT)


async def test_staff_see_the_page(users: dict[str, Any]) -> None:
    """It shows the requests, and is never cached."""
    gate = Gate(nothing)
    app = site(path("a&b/", gated(gate)))
    async with requested(app, "/a&b/"):
        await gate.entered.wait()
        answer = await request(app, "/__tasks__/", headers=users["staff"])
        gate.open()
    assert answer.status == 200
    text = answer.body.decode()
    assert f"process {os.getpid()}" in text
    assert "GET /a&amp;b/" in text
    assert "in sync code <code>thread_support.py:" in text
    headers = dict(answer.headers)
    assert b"no-store" in headers[b"Cache-Control"]


@pytest.mark.parametrize("how", [{"query_string": b"format=json"}, {}])
async def test_scripts_get_json(users: dict[str, Any], how: dict[str, Any]) -> None:
    """By the query string, or by what they accept."""
    headers = users["staff"]
    if not how:
        headers = [*headers, (b"accept", b"application/json")]
    answer = await request(site(), "/__tasks__/", headers=headers, **how)
    found = json.loads(answer.body)
    assert found["pid"] == os.getpid()
    assert found["requests"] == []
    assert found["counts"]["requests"] == 0


async def test_the_page_can_reload_itself(users: dict[str, Any]) -> None:
    """Only if asked to."""
    ask = functools.partial(request, site(), "/__tasks__/", headers=users["staff"])
    assert b'http-equiv="refresh"' in (await ask(query_string=b"reload")).body
    assert b'http-equiv="refresh"' not in (await ask()).body


async def test_others_do_not_see_the_page(users: dict[str, Any]) -> None:
    """Anonymous visitors are sent to the login page, others get 403."""
    app = site()
    ask = functools.partial(request, app, "/__tasks__/", query_string=b"format=json")
    answer = await ask()
    assert answer.status == 302
    location = dict(answer.headers)[b"Location"]
    assert location == b"/accounts/login/?next=/__tasks__/%3Fformat%3Djson"
    answer = await ask(headers=users["leaf"])
    assert answer.status == 403
    assert b"requests" not in answer.body


async def test_the_login_page_of_the_admin() -> None:
    """Where a project has one, it is the login page."""
    login = path(
        "admin/",
        include(([path("in/", lambda _: HttpResponse(), name="login")], "admin")),
    )
    answer = await request(site(login), "/__tasks__/")
    assert dict(answer.headers)[b"Location"] == b"/admin/in/?next=/__tasks__/"


async def test_the_page_needs_no_free_thread(
    users: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While sync code holds all places, a thread beyond the limit looks up who asks."""
    monkeypatch.setattr(views, "PATIENCE", 0.01)
    gate = Gate(nothing)
    app = site(path("", gated(gate)), THREADS=1)
    async with requested(app):
        await gate.entered.wait()
        for visitor, status in [("staff", 200), ("nobody", 302)]:
            answer = await request(app, "/__tasks__/", headers=users[visitor])
            assert answer.status == status
        gate.open()
    assert_at_rest(current_pool())
    assert snapshot()["counts"]["held_threads"] == 0


@pytest.mark.parametrize("leaves", [False, True])
async def test_a_database_that_does_not_answer(
    users: dict[str, Any], monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    """There is an answer all the same, which says so; or the visitor may leave."""
    monkeypatch.setattr(views, "PATIENCE", 0.01)
    monkeypatch.setattr(views, "LAST_PATIENCE", 60 if leaves else 0.01)
    gate, entered, answers = Gate(nothing), threading.Event(), threading.Event()

    def get_user(request: HttpRequest) -> Any:
        entered.set()
        assert answers.wait(10)
        return User()

    monkeypatch.setattr("django.contrib.auth.middleware.get_user", get_user)
    other = path("other/", lambda _: HttpResponse())
    app = site(path("", gated(gate)), other, THREADS=1)
    async with requested(app):
        await gate.entered.wait()
        if leaves:
            async with requested(app, "/__tasks__/", headers=users["staff"]) as client:
                await trio.to_thread.run_sync(entered.wait, 10)
                await client.send_input({"type": "http.disconnect"})
                await client.wait()
        else:
            answer = await request(app, "/__tasks__/", headers=users["staff"])
            assert answer.status == 503
            assert b"does not answer" in answer.body
        assert snapshot()["counts"]["requests"] == 1
        gate.open()
        # Nobody else waits for the thread.
        assert (await request(app, "/other/")).status == 200
    assert entered.is_set()
    answers.set()


async def test_a_page_for_asyncio_projects(users: dict[str, Any]) -> None:
    """It works where views run on asyncio."""
    app = site(ASYNCIO_VIEWS=True)
    query, headers = b"format=json", users["staff"]
    answer = await request(app, "/__tasks__/", query_string=query, headers=headers)
    assert json.loads(answer.body)["requests"] == []


async def test_a_project_without_users(caplog: pytest.LogCaptureFixture) -> None:
    """The log says what is missing."""
    page = path("__tasks__/", include("trio_asgi.urls"))
    answer = await request(application(page), "/__tasks__/")
    assert answer.status == 500
    assert "add SessionMiddleware and AuthenticationMiddleware" in caplog.text

"""django-structlog: each request's id is bound to its log events, and to no others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import structlog
from django.conf import settings

settings.configure(
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="none",
    INSTALLED_APPS=["django_structlog"],
    MIDDLEWARE=["django_structlog.middlewares.RequestMiddleware"],
    LOGGING_CONFIG=None,
    DJANGO_STRUCTLOG_TRUST_UPSTREAM_REQUEST_ID=True,
)

import django

django.setup()

from asgiref.testing import ApplicationCommunicator
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client
from django.urls import path

pytestmark = pytest.mark.asyncio

events: list[dict[str, Any]] = []


def keep(logger: Any, name: str, event: Any) -> Any:
    events.append(dict(event))
    raise structlog.DropEvent


structlog.configure(processors=[structlog.contextvars.merge_contextvars, keep])
logger = structlog.get_logger()


def sync_view(request: HttpRequest) -> HttpResponse:
    logger.info("view", asked=request.headers.get("X-Request-Id"))
    return HttpResponse("sync")


async def async_view(request: HttpRequest) -> HttpResponse:
    logger.info("view", asked=request.headers.get("X-Request-Id"))
    await asyncio.sleep(0.01)
    logger.info("view later", asked=request.headers.get("X-Request-Id"))
    return HttpResponse("async")


async def slow(request: HttpRequest) -> HttpResponse:
    logger.info("slow")
    await asyncio.sleep(60)
    return HttpResponse("too late")


def failing(request: HttpRequest) -> HttpResponse:
    raise LookupError("no tea")


urlpatterns = [
    path("sync/", sync_view),
    path("async/", async_view),
    path("slow/", slow),
    path("failing/", failing),
]


@pytest.fixture(autouse=True)
def _no_events() -> None:
    events.clear()


def named(name: str) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == name]


async def test_concurrent_requests_keep_their_ids() -> None:
    """Each event of twenty concurrent requests has its own request's id."""

    async def ask(number: int) -> Any:
        name = "async" if number % 2 else "sync"
        headers = {"X-Request-Id": f"request {number}"}
        return await AsyncClient().get(f"/{name}/", headers=headers)

    await asyncio.gather(*map(ask, range(20)))
    wanted = {f"request {number}" for number in range(20)}
    for name in ("request_started", "view", "request_finished"):
        assert {event["request_id"] for event in named(name)} == wanted
        assert len(named(name)) == 20
    views = named("view") + named("view later")
    assert all(event["asked"] == event["request_id"] for event in views)
    assert structlog.contextvars.get_contextvars() == {}


@pytest.mark.parametrize("name", ["sync", "async"])
def test_sync_clients_get_ids(name: str) -> None:
    """So do the requests of Django's sync client."""
    response = Client().get(f"/{name}/", headers={"X-Request-Id": "one"})
    assert response.content == name.encode()
    assert {event["request_id"] for event in events} == {"one"}


async def test_failures_are_logged_with_the_id() -> None:
    """The event of a failing view has its request's id."""
    client = AsyncClient(raise_request_exception=False)
    response = await client.get("/failing/", headers={"X-Request-Id": "bad"})
    assert response.status_code == 500
    (event,) = named("request_failed")
    assert event["request_id"] == "bad"


async def leave() -> None:
    """Request a slow page, and disconnect when its view has started."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/slow/",
        "raw_path": b"/slow/",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"x-request-id", b"leaver")],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 80),
    }
    communicator = ApplicationCommunicator(get_asgi_application(), scope)
    await communicator.send_input({"type": "http.request"})
    while not named("slow"):
        await asyncio.sleep(0.01)
    await communicator.send_input({"type": "http.disconnect"})
    await communicator.wait(10)


async def test_leaving_clients_leave_no_id_behind() -> None:
    """A client that disconnects has its id; the next request has another."""
    await leave()
    assert {event["request_id"] for event in events} == {"leaver"}
    events.clear()
    await AsyncClient().get("/async/", headers={"X-Request-Id": "next"})
    assert {event["request_id"] for event in events} == {"next"}


async def test_leaving_clients_are_logged() -> None:
    """A disconnect is logged."""
    await leave()
    assert named("request_cancelled")

"""django-eventstream: its view runs in an island; events come from any view."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from django.conf import settings

settings.configure(
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="none",
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django_eventstream",
    ],
)

import django

django.setup()

from asgiref.sync import sync_to_async
from asgiref.testing import ApplicationCommunicator
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient
from django.urls import path
from django_eventstream import send_event
from django_eventstream.views import events, get_listener_manager

from trio_asgi import asyncio_island

pytestmark = pytest.mark.asyncio


def sync_send(request: HttpRequest, channel: str) -> HttpResponse:
    send_event(channel, "message", {"from": "sync"})
    return HttpResponse()


async def async_send(request: HttpRequest, channel: str) -> HttpResponse:
    await sync_to_async(send_event)(channel, "message", {"from": "async"})
    return HttpResponse()


urlpatterns = [
    path("events/<channel>/", asyncio_island(events)),
    path("sync/<channel>/", sync_send),
    path("async/<channel>/", async_send),
]


def listeners(channel: str) -> int:
    manager = get_listener_manager()
    with manager.lock:
        return len(manager.listeners_by_channel.get(channel, ()))


class Stream:
    """A client that reads the events of a channel until it leaves."""

    def __init__(self, channel: str) -> None:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": f"/events/{channel}/",
            "raw_path": b"",
            "root_path": "",
            "query_string": b"",
            "headers": [],
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 80),
        }
        self._server = ApplicationCommunicator(get_asgi_application(), scope)
        self._channel = channel
        self._text = ""

    async def open(self) -> None:
        await self._server.send_input({"type": "http.request"})
        start = await self._server.receive_output(10)
        assert start["status"] == 200
        await self.read_until("event: stream-open")
        while not listeners(self._channel):
            await asyncio.sleep(0.01)

    async def read_until(self, wanted: str) -> str:
        while wanted not in self._text:
            part: dict[str, Any] = await self._server.receive_output(10)
            self._text += part["body"].decode()
        return self._text

    async def leave(self) -> None:
        await self._server.send_input({"type": "http.disconnect"})
        await self._server.wait(10)


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_events_arrive(kind: str) -> None:
    """What a view of either kind sends arrives at each listener."""
    streams = [Stream(kind), Stream(kind)]
    for stream in streams:
        await stream.open()
    await AsyncClient().get(f"/{kind}/{kind}/")
    for stream in streams:
        await stream.read_until(json.dumps({"from": kind}))
        await stream.leave()


async def test_leaving_clients_are_forgotten() -> None:
    """A client that disconnects leaves no listener behind."""
    stream = Stream("leaver")
    await stream.open()
    assert listeners("leaver") == 1
    await stream.leave()
    assert listeners("leaver") == 0


async def test_channels_are_separate() -> None:
    """An event arrives in its channel only."""
    one, other = Stream("one"), Stream("other")
    await one.open()
    await other.open()
    for channel in ("one", "other"):
        await AsyncClient().get(f"/sync/{channel}/")
        await AsyncClient().get(f"/async/{channel}/")
    for stream in (one, other):
        text = await stream.read_until('"async"')
        assert text.count("event: message") == 2
        await stream.leave()

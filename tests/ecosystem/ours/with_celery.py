"""Celery: views of both kinds send tasks; a worker in the same process runs them."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

settings.configure(
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="none",
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(Path(tempfile.mkdtemp(), "db")),
            "OPTIONS": {"timeout": 30},
        }
    },
    CELERY_BROKER_URL="memory://",
    CELERY_BROKER_TRANSPORT_OPTIONS={"polling_interval": 0.01},
    CELERY_RESULT_BACKEND="cache+memory://",
    LOGGING_CONFIG=None,
    USE_TZ=True,
)

import django

django.setup()

from asgiref.sync import async_to_sync, sync_to_async
from celery import Celery
from celery.contrib.django.task import DjangoTask
from celery.contrib.testing.worker import start_worker
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client
from django.urls import path

pytestmark = pytest.mark.asyncio

app = Celery("shop", task_cls=DjangoTask)
app.config_from_object("django.conf:settings", namespace="CELERY")
worker_threads: set[threading.Thread] = set()


@app.task
def count(extra: int) -> int:
    worker_threads.add(threading.current_thread())
    return User.objects.count() + extra


@app.task
def count_in_async_code(extra: int) -> int:
    async def add() -> int:
        await asyncio.sleep(0)
        return await User.objects.acount() + extra

    return async_to_sync(add)()


#: How long a view waits for a result, and how often it looks: in seconds.
WAIT = {"timeout": 20, "interval": 0.01}
tasks = {"plain": count, "async": count_in_async_code}


def sync_view(request: HttpRequest, name: str, extra: int) -> HttpResponse:
    return HttpResponse(tasks[name].delay(extra).get(**WAIT))


async def async_view(request: HttpRequest, name: str, extra: int) -> HttpResponse:
    result = await sync_to_async(tasks[name].delay)(extra)
    return HttpResponse(await sync_to_async(result.get)(**WAIT))


def on_commit(request: HttpRequest) -> HttpResponse:
    with transaction.atomic():
        User.objects.create(username="committed")
        count.delay_on_commit(0)
        assert not worker_threads
    return HttpResponse()


urlpatterns = [
    path("sync/<name>/<int:extra>/", sync_view),
    path("async/<name>/<int:extra>/", async_view),
    path("commit/", on_commit),
]


@pytest.fixture(scope="module", autouse=True)
def _worker() -> Iterator[None]:
    call_command("migrate", verbosity=0)
    with start_worker(app, pool="solo", perform_ping_check=False):
        yield


@pytest.fixture(autouse=True)
def _one_user() -> None:
    User.objects.all().delete()
    User.objects.create(username="ada")
    worker_threads.clear()


@pytest.mark.parametrize("task", ["plain", "async"])
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_results(kind: str, task: str) -> None:
    """Views of both kinds get the results of tasks, also of those with async code."""
    response = await AsyncClient().get(f"/{kind}/{task}/10/")
    assert response.content == b"11"


def test_sync_clients() -> None:
    """So does a view that answers Django's sync client."""
    assert Client().get("/async/plain/1/").content == b"2"


async def test_delay_on_commit() -> None:
    """A task that is sent on commit starts after it, and sees what was written."""
    await AsyncClient().get("/commit/")
    response = await AsyncClient().get("/sync/plain/0/")  # the next one in the queue
    assert response.content == b"2"
    assert worker_threads


async def test_concurrent_requests() -> None:
    """Each of many requests gets its own task's result."""

    async def ask(number: int) -> Any:
        kind = ("sync", "async")[number % 2]
        return await AsyncClient().get(f"/{kind}/plain/{number}/")

    responses = await asyncio.gather(*map(ask, range(10)))
    assert [int(each.content) for each in responses] == list(range(1, 11))

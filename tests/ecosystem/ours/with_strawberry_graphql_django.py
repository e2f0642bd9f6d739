"""strawberry: its async view runs in an island, its sync view in a thread."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path
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
        "strawberry_django",
    ],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(Path(tempfile.mkdtemp(), "db")),
        }
    },
    USE_TZ=True,
)

import django

django.setup()

import strawberry
import strawberry_django
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import AsyncClient, Client
from django.urls import path
from strawberry.django.views import AsyncGraphQLView, GraphQLView
from strawberry.subscriptions import GRAPHQL_SSE_PROTOCOL
from strawberry_django.optimizer import DjangoOptimizerExtension

from trio_asgi import asyncio_island

pytestmark = pytest.mark.asyncio


@strawberry_django.type(User)
class UserType:
    id: strawberry.auto
    username: strawberry.auto


@strawberry.type
class AsyncQuery:
    users: list[UserType] = strawberry_django.field()

    @strawberry.field
    async def count(self) -> int:
        return await User.objects.acount()

    @strawberry.field
    async def first(self) -> str:
        return (await User.objects.order_by("pk").aget(pk=1)).username


@strawberry.type
class Query:
    users: list[UserType] = strawberry_django.field()

    @strawberry.field
    def count(self) -> int:
        return User.objects.count()


@strawberry.type
class Mutation:
    @strawberry.mutation
    async def rename(self, name: str) -> UserType:
        user = await User.objects.aget(pk=2)
        user.username = name
        await user.asave()
        return user


@strawberry.type
class Subscription:
    @strawberry.subscription
    async def names(self) -> AsyncGenerator[str, None]:
        async for user in User.objects.order_by("pk"):
            yield user.username


EXTENSIONS = [DjangoOptimizerExtension]
schema = strawberry.Schema(AsyncQuery, Mutation, Subscription, extensions=EXTENSIONS)
view = AsyncGraphQLView.as_view(
    schema=schema, subscription_protocols=[GRAPHQL_SSE_PROTOCOL]
)
sync_schema = strawberry.Schema(Query, extensions=EXTENSIONS)
urlpatterns = [
    path("async/", asyncio_island(view)),
    path("sync/", GraphQLView.as_view(schema=sync_schema)),
]


@pytest.fixture(scope="module", autouse=True)
def _users() -> None:
    call_command("migrate", verbosity=0)
    for name in ("ada", "grace"):
        User.objects.create(username=name)


async def ask(kind: str, query: str, **headers: str) -> Any:
    return await AsyncClient().post(
        f"/{kind}/",
        json.dumps({"query": query}),
        content_type="application/json",
        headers=headers,
    )


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_queries(kind: str) -> None:
    """Fields of models and of functions are answered."""
    response = await ask(kind, "{users{id username} count}")
    data = response.json()["data"]
    assert data["count"] == len(data["users"]) == 2


async def test_async_fields_at_once() -> None:
    """Several async fields are resolved at once."""
    response = await ask("async", "{count again: count first}")
    assert response.json() == {"data": {"count": 2, "again": 2, "first": "ada"}}


async def test_mutations() -> None:
    """An async mutation writes."""
    response = await ask("async", 'mutation{rename(name: "hopper"){username}}')
    assert response.json() == {"data": {"rename": {"username": "hopper"}}}
    assert await User.objects.filter(username="hopper").aexists()


async def test_subscriptions() -> None:
    """A subscription is sent as server-sent events."""
    response = await ask("async", "subscription{names}", accept="text/event-stream")
    text = b"".join([part async for part in response.streaming_content]).decode()
    assert text.count("event: next") == 2
    assert "event: complete" in text


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_sync_clients(kind: str) -> None:
    """Django's sync client gets the same."""
    response = Client().post(
        f"/{kind}/", json.dumps({"query": "{count}"}), content_type="application/json"
    )
    assert response.json() == {"data": {"count": 2}}


async def test_concurrent_requests() -> None:
    """Many requests at once are each answered."""
    queries = (ask(("sync", "async")[n % 2], "{count}") for n in range(20))
    responses = await asyncio.gather(*queries)
    assert all(each.json() == {"data": {"count": 2}} for each in responses)

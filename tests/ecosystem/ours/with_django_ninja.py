"""django-ninja: sync and async operations, by HTTP requests to a handler."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from django.conf import settings

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="none")

import django

django.setup()

from django.core.files.base import ContentFile
from django.http import HttpRequest
from django.test import AsyncClient, Client
from django.urls import path
from ninja import File, NinjaAPI, Schema, UploadedFile
from ninja.security import HttpBearer

pytestmark = pytest.mark.asyncio


class Order(Schema):
    tea: str
    cups: int


class Token(HttpBearer):
    def authenticate(self, request: HttpRequest, token: str) -> str | None:
        return token if token == "oat" else None


class AsyncToken(HttpBearer):
    async def authenticate(self, request: HttpRequest, token: str) -> str | None:
        await asyncio.sleep(0)
        return token if token == "oat" else None


api = NinjaAPI()


@api.post("/sync", auth=Token())
def order(request: HttpRequest, order: Order) -> dict[str, Any]:
    return {"by": request.auth, **order.dict()}  # type: ignore[attr-defined]


@api.post("/async", auth=AsyncToken())
async def async_order(request: HttpRequest, order: Order) -> dict[str, Any]:
    await asyncio.sleep(0.01)
    return {"by": request.auth, **order.dict()}  # type: ignore[attr-defined]


@api.post("/upload")
async def upload(request: HttpRequest, leaves: File[UploadedFile]) -> dict[str, Any]:
    return {"name": leaves.name, "size": len(leaves.read())}


@api.get("/fails")
async def fails(request: HttpRequest) -> None:
    raise LookupError("no tea")


@api.exception_handler(LookupError)
def on_lookup_error(request: HttpRequest, error: Any) -> Any:
    return api.create_response(request, {"error": str(error)}, status=410)


urlpatterns = [path("api/", api.urls)]

ORDER = {"tea": "sencha", "cups": 2}
OAT = {"Authorization": "Bearer oat"}


@pytest.mark.parametrize("name", ["sync", "async"])
async def test_operations_parse_check_and_answer(name: str) -> None:
    """Schema, validation and authentication work in operations of both kinds."""
    client = AsyncClient()
    url = f"/api/{name}"
    kind = {"content_type": "application/json"}
    good = await client.post(url, ORDER, headers=OAT, **kind)
    assert good.json() == {"by": "oat", **ORDER}
    bad = await client.post(url, {"tea": "sencha"}, headers=OAT, **kind)
    assert bad.status_code == 422
    assert bad.json()["detail"][0]["loc"] == ["body", "order", "cups"]
    assert (await client.post(url, ORDER, **kind)).status_code == 401


@pytest.mark.parametrize("name", ["sync", "async"])
def test_operations_answer_sync_clients(name: str) -> None:
    """Django's sync client gets the same."""
    response = Client().post(
        f"/api/{name}", ORDER, content_type="application/json", headers=OAT
    )
    assert response.json() == {"by": "oat", **ORDER}


async def test_concurrent_requests_keep_their_own() -> None:
    """Each of many concurrent requests gets its own answer."""

    async def ask(cups: int) -> Any:
        data = {"tea": "sencha", "cups": cups}
        name = "async" if cups % 2 else "sync"
        response = await AsyncClient().post(
            f"/api/{name}", data, content_type="application/json", headers=OAT
        )
        return response.json()["cups"]

    assert await asyncio.gather(*map(ask, range(20))) == list(range(20))


async def test_uploads_and_errors_are_answered() -> None:
    """A file arrives whole, and an exception handler answers its error."""
    file = ContentFile(b"leaf" * 50_000, name="leaves.txt")
    response = await AsyncClient().post("/api/upload", {"leaves": file})
    assert response.json() == {"name": "leaves.txt", "size": 200_000}
    response = await AsyncClient().get("/api/fails")
    assert (response.status_code, response.json()) == (410, {"error": "no tea"})

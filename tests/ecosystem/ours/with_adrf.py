"""adrf: async views of Django REST framework, with serializers and authentication."""

from __future__ import annotations

import asyncio
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
        "rest_framework",
        "adrf",
    ],
)

import django

django.setup()

from adrf.decorators import api_view
from adrf.serializers import Serializer
from adrf.views import APIView
from django.contrib.auth.models import User
from django.test import AsyncClient, Client
from django.urls import path
from rest_framework import serializers
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.permissions import IsAuthenticated
from rest_framework.response import Response

pytestmark = pytest.mark.asyncio


class ByName(BaseAuthentication):
    def authenticate(self, request: Any) -> Any:
        name = request.headers.get("X-Name")
        if name == "nobody":
            raise AuthenticationFailed("nobody is nobody")
        return (User(pk=1, username=name), None) if name else None

    def authenticate_header(self, request: Any) -> str:
        return "Name"


class AsyncByName(ByName):
    async def authenticate(self, request: Any) -> Any:
        await asyncio.sleep(0.01)
        return super().authenticate(request)


class OrderSerializer(Serializer):
    tea = serializers.CharField()
    cups = serializers.IntegerField(min_value=1)


class Orders(APIView):
    authentication_classes = [AsyncByName]  # noqa: RUF012
    permission_classes = [IsAuthenticated]  # noqa: RUF012

    async def post(self, request: Any) -> Response:
        serializer = OrderSerializer(data=request.data)
        if not serializer.is_valid():
            return Response(serializer.errors, status=400)
        await asyncio.sleep(0)
        return Response({"by": request.user.username, **await serializer.adata})


class SyncOrders(APIView):
    authentication_classes = [ByName]  # noqa: RUF012
    permission_classes = [IsAuthenticated]  # noqa: RUF012

    def post(self, request: Any) -> Response:
        serializer = OrderSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        return Response({"by": request.user.username, **serializer.data})


@api_view(["GET"])
async def hello(request: Any) -> Response:
    await asyncio.sleep(0)
    return Response({"hello": request.query_params["name"]})


urlpatterns = [
    path("async/", Orders.as_view()),
    path("sync/", SyncOrders.as_view()),
    path("hello/", hello),
]

ORDER = {"tea": "sencha", "cups": 2}


async def post(name: str, data: Any, **headers: str) -> Any:
    return await AsyncClient().post(
        f"/{name}/", data, content_type="application/json", headers=headers
    )


@pytest.mark.parametrize("name", ["sync", "async"])
async def test_views_authenticate_serialize_and_answer(name: str) -> None:
    """Users, permissions, serializers and errors work in views of both kinds."""
    good = await post(name, ORDER, **{"X-Name": "ada"})
    assert good.json() == {"by": "ada", **ORDER}
    bad = await post(name, {"tea": "sencha", "cups": 0}, **{"X-Name": "ada"})
    assert (bad.status_code, [*bad.json()]) == (400, ["cups"])
    assert (await post(name, ORDER)).status_code == 401
    refused = await post(name, ORDER, **{"X-Name": "nobody"})
    assert refused.json() == {"detail": "nobody is nobody"}


async def test_function_views_answer() -> None:
    """Views made by `api_view` answer, and refuse other methods."""
    response = await AsyncClient().get("/hello/?name=ada")
    assert response.json() == {"hello": "ada"}
    assert (await AsyncClient().post("/hello/")).status_code == 405


@pytest.mark.parametrize("name", ["sync", "async"])
def test_views_answer_sync_clients(name: str) -> None:
    """Django's sync client gets the same."""
    response = Client().post(
        f"/{name}/", ORDER, content_type="application/json", headers={"X-Name": "ada"}
    )
    assert response.json() == {"by": "ada", **ORDER}


async def test_concurrent_requests_keep_their_users() -> None:
    """Each of many concurrent requests keeps its own user."""

    async def ask(number: int) -> Any:
        name = "async" if number % 2 else "sync"
        response = await post(name, ORDER, **{"X-Name": f"user {number}"})
        return response.json()["by"]

    names = await asyncio.gather(*map(ask, range(20)))
    assert names == [f"user {number}" for number in range(20)]

"""django-allauth: people sign up, in and out; its middleware is async."""

from __future__ import annotations

import asyncio
import tempfile
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
        "django.contrib.sessions",
        "django.contrib.messages",
        "allauth",
        "allauth.account",
    ],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
        "allauth.account.middleware.AccountMiddleware",
    ],
    AUTHENTICATION_BACKENDS=["allauth.account.auth_backends.AuthenticationBackend"],
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ]
            },
        }
    ],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(Path(tempfile.mkdtemp(), "db")),
            "OPTIONS": {"timeout": 30},
        }
    },
    CACHES={"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}},
    EMAIL_BACKEND="django.core.mail.backends.locmem.EmailBackend",
    LOGIN_REDIRECT_URL="/async/",
    USE_TZ=True,
)

import django

django.setup()

from allauth.core import context
from django.contrib.auth.models import User
from django.core.management import call_command
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client
from django.urls import include, path

pytestmark = pytest.mark.asyncio


async def async_view(request: HttpRequest) -> HttpResponse:
    user = await request.auser()
    await asyncio.sleep(0.01)
    assert context.request is request
    return HttpResponse(f"async {user}")


def sync_view(request: HttpRequest) -> HttpResponse:
    assert context.request is request
    return HttpResponse(f"sync {request.user}")


urlpatterns = [
    path("async/", async_view),
    path("sync/", sync_view),
    path("accounts/", include("allauth.urls")),
]
PASSWORD = "correct horse battery"


@pytest.fixture(scope="module", autouse=True)
def _users() -> None:
    call_command("migrate", verbosity=0)
    for number in range(6):
        User.objects.create_user(f"user{number}", password=PASSWORD)


async def log_in(name: str, password: str = PASSWORD) -> Any:
    client = AsyncClient()
    data = {"login": name, "password": password}
    return client, await client.post("/accounts/login/", data)


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_sign_up_and_out(kind: str) -> None:
    """After signing up, the user is signed in, and signs out."""
    client = AsyncClient()
    name = f"new-{kind}"
    data = {"username": name, "email": "", "password1": PASSWORD, "password2": PASSWORD}
    response = await client.post("/accounts/signup/", data)
    assert (response.status_code, response.headers["Location"]) == (302, "/async/")
    assert (await client.get(f"/{kind}/")).content == f"{kind} {name}".encode()
    assert (await client.post("/accounts/logout/")).status_code == 302
    assert b"AnonymousUser" in (await client.get(f"/{kind}/")).content


async def test_wrong_password() -> None:
    """A wrong password shows the form again."""
    _, response = await log_in("user0", "wrong")
    assert response.status_code == 200
    assert b"errorlist" in response.content


async def test_redirect_by_the_middleware() -> None:
    """The middleware redirects from the prefix, which is no page."""
    response = await AsyncClient().get("/accounts/")
    assert (response.status_code, response.headers["Location"]) == (
        302,
        "/accounts/login/",
    )


def test_sync_clients() -> None:
    """Django's sync client signs in, too."""
    client = Client()
    data = {"login": "user1", "password": PASSWORD}
    assert client.post("/accounts/login/", data).status_code == 302
    assert client.get("/sync/").content == b"sync user1"


async def test_concurrent_users() -> None:
    """Users who sign in at once each see themselves, and allauth their request."""

    async def ask(number: int) -> bytes:
        client, _ = await log_in(f"user{number}")
        kind = ("sync", "async")[number % 2]
        return (await client.get(f"/{kind}/")).content.split()[1]

    names = await asyncio.gather(*map(ask, range(6)))
    assert names == [f"user{number}".encode() for number in range(6)]

"""WhiteNoise: static files, their ranges and headers, and a manifest's hashed names."""

from __future__ import annotations

import asyncio
import gzip
import tempfile
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

FOLDER = Path(tempfile.mkdtemp(prefix="whitenoise-"))
SOURCES = FOLDER / "sources"
SOURCES.mkdir()
TEXT = b"".join(b"line %d\n" % number for number in range(50_000))
(SOURCES / "tea.txt").write_bytes(TEXT)
(SOURCES / "tea.css").write_text("body { color: green }\n" * 100)

MANIFEST = "whitenoise.storage.CompressedManifestStaticFilesStorage"
settings.configure(
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="none",
    INSTALLED_APPS=["django.contrib.staticfiles"],
    MIDDLEWARE=[
        "whitenoise.middleware.WhiteNoiseMiddleware",
        "django.middleware.common.CommonMiddleware",
    ],
    STATIC_URL="/static/",
    STATIC_ROOT=FOLDER / "root",
    STATICFILES_DIRS=[SOURCES],
    STORAGES={"staticfiles": {"BACKEND": MANIFEST}},
)

import django

django.setup()

from django.contrib.staticfiles.storage import staticfiles_storage
from django.core.management import call_command
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client
from django.urls import path

call_command("collectstatic", verbosity=0)

pytestmark = pytest.mark.asyncio


async def view(request: HttpRequest) -> HttpResponse:
    return HttpResponse("no file")


urlpatterns = [path("", view)]


async def read(response: Any) -> bytes:
    """Return the body, whichever kind of iterator it comes from."""
    if not response.streaming:
        return bytes(response.content)
    if response.is_async:
        return b"".join([part async for part in response.streaming_content])
    return b"".join(response.streaming_content)


async def get(url: str, **headers: str) -> Any:
    return await AsyncClient().get(url, headers=headers)


async def test_files_come_whole_and_views_still_answer() -> None:
    """A file is sent unchanged; other paths go to Django."""
    response = await get("/static/tea.txt")
    assert response.status_code == 200
    assert await read(response) == TEXT
    assert await read(await get("/")) == b"no file"
    assert (await get("/static/none.txt")).status_code == 404


async def test_ranges_come_in_part() -> None:
    """A range is sent by itself, and an impossible one is refused."""
    response = await get("/static/tea.txt", Range="bytes=10-70000")
    assert response.status_code == 206
    assert response["Content-Range"] == f"bytes 10-70000/{len(TEXT)}"
    assert await read(response) == TEXT[10:70001]
    response = await get("/static/tea.txt", Range=f"bytes={len(TEXT)}-")
    assert response.status_code == 416


async def test_known_files_are_not_sent_again() -> None:
    """A client that has the file gets 304, by ETag or date."""
    first = await get("/static/tea.txt")
    await read(first)
    since = {"If-Modified-Since": first["Last-Modified"]}
    assert (await get("/static/tea.txt", **since)).status_code == 304


async def test_hashed_and_compressed_files_come_from_the_manifest() -> None:
    """A hashed name is cacheable for ever, and its compressed file is chosen."""
    url = staticfiles_storage.url("tea.css")
    assert url != "/static/tea.css"
    response = await get(url, **{"Accept-Encoding": "gzip"})
    assert "immutable" in response["Cache-Control"]
    assert response["Content-Encoding"] == "gzip"
    content = gzip.decompress(await read(response))
    assert content == (SOURCES / "tea.css").read_bytes()


async def test_concurrent_requests_get_their_own_parts() -> None:
    """Concurrent range requests do not mix."""

    async def ask(number: int) -> bool:
        start = number * 1000
        wanted = f"bytes={start}-{start + 99_999}"
        response = await get("/static/tea.txt", Range=wanted)
        return await read(response) == TEXT[start : start + 100_000]

    assert all(await asyncio.gather(*map(ask, range(20))))


def test_sync_clients_get_files() -> None:
    """Django's sync client gets files, too."""
    response: Any = Client().get("/static/tea.txt")
    assert b"".join(response) == TEXT
    response = Client().head("/static/tea.txt")
    assert response["Content-Length"] == str(len(TEXT))

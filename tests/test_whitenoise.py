"""WhiteNoise's middleware, as its users install it: sync, in front of everything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path

from support import Answer, application, request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trio_asgi import ASGIHandler

pytest.importorskip("whitenoise")

CONTENT = bytes(range(256)) * 1000


async def hello(_: HttpRequest) -> HttpResponse:
    """Answer that no file was served."""
    return HttpResponse("hello")


@pytest.fixture
def app(tmp_path: Path) -> Iterator[ASGIHandler]:
    """Serve one file, and one view."""
    (tmp_path / "film.mp4").write_bytes(CONTENT)
    with override_settings(WHITENOISE_ROOT=tmp_path):
        yield application(
            path("", hello), middleware=["whitenoise.middleware.WhiteNoiseMiddleware"]
        )


async def get(app: ASGIHandler, wanted: str | None = None) -> Answer:
    """Request the file, or a range of it."""
    headers = [] if wanted is None else [(b"range", wanted.encode())]
    return await request(app, "/film.mp4", headers=headers)


async def test_a_whole_file(app: ASGIHandler) -> None:
    """It is sent like any other."""
    answer = await get(app)
    assert (answer.status, answer.body) == (200, CONTENT)


@pytest.mark.parametrize(
    ("wanted", "part"),
    [
        ("bytes=10-99", slice(10, 100)),
        ("bytes=100000-", slice(100_000, None)),
        ("bytes=-5", slice(-5, None)),
    ],
)
async def test_a_range_is_sent_whole(
    app: ASGIHandler, wanted: str, part: slice
) -> None:
    """Its file inherits a `read1` that it does not implement."""
    answer = await get(app, wanted)
    assert (answer.status, answer.body) == (206, CONTENT[part])
    assert dict(answer.headers)[b"Content-Length"] == str(len(CONTENT[part])).encode()


async def test_other_requests_go_to_the_view(app: ASGIHandler) -> None:
    """The middleware lets them pass."""
    assert (await request(app)).body == b"hello"

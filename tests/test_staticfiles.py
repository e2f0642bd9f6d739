"""Static files during development."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import django.contrib.staticfiles.handlers
import pytest
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path
from django.utils.http import http_date

from support import application, http_scope, request
from trio_asgi import ASGIStaticFilesHandler
from trio_asgi.testing import ApplicationCommunicator

if TYPE_CHECKING:
    from collections.abc import Iterator

FILES = Path(__file__).parent / "files"
FILE = FILES / "file.txt"


def dynamic(request: HttpRequest) -> HttpResponse:
    """Answer that no static file was served."""
    return HttpResponse("dynamic")


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    with override_settings(STATIC_URL="static/", STATICFILES_DIRS=[FILES]):
        yield


@pytest.fixture
def static() -> ASGIStaticFilesHandler:
    """A static files handler around an application."""
    return ASGIStaticFilesHandler(application(path("", dynamic)))


def test_the_handler_is_django_s(static: ASGIStaticFilesHandler) -> None:
    """isinstance holds for Django's class, and handles_files is true as there."""
    cls = django.contrib.staticfiles.handlers.ASGIStaticFilesHandler
    assert isinstance(static, cls)
    assert static.handles_files


async def test_a_static_file(static: ASGIStaticFilesHandler) -> None:
    """A file has length, type, disposition, modification time, and its bytes."""
    answer = await request(static, "/static/file.txt")
    assert answer.status == 200
    assert sorted(answer.headers) == [
        (b"Content-Disposition", b'inline; filename="file.txt"'),
        (b"Content-Length", str(FILE.stat().st_size).encode()),
        (b"Content-Type", b"text/plain"),
        (b"Last-Modified", http_date(FILE.stat().st_mtime).encode()),
    ]
    assert answer.body == FILE.read_bytes()


async def test_a_file_that_was_not_modified(static: ASGIStaticFilesHandler) -> None:
    """If-Modified-Since with the file's time is answered 304, an older one 200."""
    time = FILE.stat().st_mtime
    for since, status in ((time, 304), (time - 10, 200)):
        header = (b"if-modified-since", http_date(since).encode())
        answer = await request(static, "/static/file.txt", headers=[header])
        assert answer.status == status


@pytest.mark.parametrize(
    ("ranges", "where"), [(b"bytes=0-0", slice(1)), (b"bytes=-1", slice(-1, None))]
)
async def test_a_part_of_a_static_file(
    static: ASGIStaticFilesHandler, ranges: bytes, where: slice
) -> None:
    """The first byte, and the last."""
    answer = await request(static, "/static/file.txt", headers=[(b"range", ranges)])
    content = FILE.read_bytes()
    start, stop, _ = where.indices(len(content))
    assert (answer.status, answer.body) == (206, content[where])
    assert dict(answer.headers)[b"Content-Range"] == (
        f"bytes {start}-{stop - 1}/{len(content)}".encode()
    )


async def test_a_part_that_a_static_file_has_not(
    static: ASGIStaticFilesHandler,
) -> None:
    """A range beyond the end is answered 416, and not logged as an error."""
    header = (b"range", b"bytes=1000-")
    answer = await request(static, "/static/file.txt", headers=[header])
    assert (answer.status, answer.body) == (416, b"")
    size = FILE.stat().st_size
    assert dict(answer.headers)[b"Content-Range"] == f"bytes */{size}".encode()


@pytest.mark.parametrize(
    "outside",
    [
        "/static/../test_staticfiles.py",
        "/static/../../etc/passwd",
        "/static/x/../../test_staticfiles.py",
        "/static/%2e%2e/test_staticfiles.py",
        "/static/..%2ftest_staticfiles.py",
        "/static//etc/passwd",
        "/static/" + str(FILES.parent / "test_staticfiles.py"),
        "/static/\0",
        "/static/file.txt\0.png",
        "/static/%00",
        "/static/",
        "/static/none.txt",
        "/static/..",
        "/static/\\..\\test_staticfiles.py",
        "/static/" + "x" * 5000,
    ],
)
async def test_a_path_outside_the_static_directories(
    static: ASGIStaticFilesHandler, outside: str
) -> None:
    """Paths that lead to no file in a static directory are answered 404."""
    answer = await request(static, outside)
    assert answer.status == 404
    assert b"A path outside" not in answer.body


async def test_a_refusal_names_no_path_of_the_disk(
    static: ASGIStaticFilesHandler,
) -> None:
    """The page may show the error: that has the client's path, and no more."""
    with override_settings(DEBUG=True):
        answer = await request(static, "/static/../test_staticfiles.py")
    assert answer.status == 404
    assert (
        b"/static/../test_staticfiles.py leads out of the static directories"
        in answer.body
    )
    assert str(FILES).encode() not in answer.body


async def test_other_paths_go_to_the_application(
    static: ASGIStaticFilesHandler,
) -> None:
    """Paths not under STATIC_URL belong to the application."""
    assert (await request(static, "/")).body == b"dynamic"


async def test_a_broken_finder_is_a_500(
    static: ASGIStaticFilesHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error while looking for a file is answered, and not left to the server."""

    def fail(self: Any, request: HttpRequest) -> None:
        raise PermissionError

    mixin = django.contrib.staticfiles.handlers.StaticFilesHandlerMixin
    monkeypatch.setattr(mixin, "serve", fail)
    assert (await request(static, "/static/file.txt")).status == 500


async def test_the_lifespan_is_the_applications(static: ASGIStaticFilesHandler) -> None:
    """A task can be started in the application's lifespan by either handler."""
    ran = []

    async def task(value: int) -> None:
        ran.append(value)

    async with ApplicationCommunicator(static, {"type": "lifespan"}) as communicator:
        await communicator.send_input({"type": "lifespan.startup"})
        await communicator.receive_output()
        static.start_soon(task, 1)
        static.application.start_soon(task, 2)
        await communicator.send_input({"type": "lifespan.shutdown"})
        await communicator.receive_output()
    assert sorted(ran) == [1, 2]


async def test_websockets_go_to_the_application(
    static: ASGIStaticFilesHandler,
) -> None:
    """A WebSocket under STATIC_URL is refused as elsewhere."""
    scope = http_scope("/static/file.txt", type="websocket")
    async with ApplicationCommunicator(static, scope) as communicator:
        await communicator.send_input({"type": "websocket.connect"})
        assert (await communicator.receive_output())["type"] == "websocket.close"

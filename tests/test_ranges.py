"""Range requests for files: by a call in a view, or by the middleware."""

from __future__ import annotations

import asyncio
import gzip
import io
import warnings
from typing import IO, TYPE_CHECKING, Any, cast
from wsgiref.util import FileWrapper

import pytest
from asgiref import testing
from django.core.files.base import ContentFile, File
from django.core.handlers.asgi import ASGIHandler as DjangoASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import FileResponse, HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import RequestFactory, override_settings
from django.urls import path
from django.utils.http import http_date
from hypothesis import given, strategies as st

from hop_support import counted_hops
from range_support import parts_of
from support import Answer, application, http_scope, request
from trio_asgi.middleware import RangeMiddleware
from trio_asgi.ranges import apply_range

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from django.http.response import HttpResponseBase

RANGES = "trio_asgi.middleware.RangeMiddleware"
CONDITIONAL = "django.middleware.http.ConditionalGetMiddleware"
GZIP = "django.middleware.gzip.GZipMiddleware"

CONTENT = bytes(range(256)) * 8
LAST_MODIFIED = http_date(1_000_000_000)


class Counted(io.BytesIO):
    """A file that counts how often it is closed."""

    closings = 0

    def close(self) -> None:
        """Count; a file may be closed again."""
        self.closings += 1
        super().close()


def get(header: str | None = None, method: str = "get", **headers: str) -> HttpRequest:
    """Return a request for a range."""
    if header is not None:
        headers["Range"] = header
    found = getattr(RequestFactory(), method)("/", headers=headers)
    assert isinstance(found, HttpRequest)
    return found


def body_of(response: HttpResponseBase) -> bytes:
    """Return the whole body."""
    assert isinstance(response, (HttpResponse, StreamingHttpResponse))
    return response.getvalue()


# The resulting responses


@given(
    content=st.binary(min_size=1, max_size=500),
    skipped=st.integers(min_value=0, max_value=20),
    first=st.integers(min_value=0, max_value=600),
    more=st.integers(min_value=0, max_value=600),
)
def test_a_section_is_what_slicing_gives(
    content: bytes, skipped: int, first: int, more: int
) -> None:
    """From the file's position: all three forms, and 416 beyond the end."""
    size = len(content)
    for header, where in (
        (f"bytes={first}-{first + more}", slice(first, first + more + 1)),
        (f"bytes={first}-", slice(first, None)),
        (f"bytes=-{more}", slice(-more, None) if more else slice(0)),
    ):
        file = Counted(bytes(skipped) + content)
        file.seek(skipped)
        response = apply_range(get(header), FileResponse(file))
        start, stop, _ = where.indices(size)
        if start < stop:
            assert response.status_code == 206
            assert response["Content-Range"] == f"bytes {start}-{stop - 1}/{size}"
        else:
            assert response.status_code == 416
            assert response["Content-Range"] == f"bytes */{size}"
        assert body_of(response) == content[where]
        assert response["Content-Length"] == str(len(content[where]))
        response.close()
        assert file.closings == 1


def test_several_sections_are_parts(tmp_path: Path) -> None:
    """Each part has the file's type and its Content-Range."""
    file = tmp_path / "film.mp4"
    file.write_bytes(CONTENT)
    response = apply_range(get("bytes=1000-1099,0-0,-1"), FileResponse(file.open("rb")))
    body = body_of(response)
    response.close()
    assert response.status_code == 206
    assert "Content-Range" not in response
    assert response["Content-Length"] == str(len(body))
    assert parts_of(response["Content-Type"], body) == [
        ("bytes 1000-1099/2048", CONTENT[1000:1100]),
        ("bytes 0-0/2048", CONTENT[:1]),
        ("bytes 2047-2047/2048", CONTENT[-1:]),
    ]
    assert body.count(b"\r\nContent-Type: video/mp4\r\n") == 3


def test_other_headers_stay() -> None:
    """Headers set by the view are not guessed again."""
    response = FileResponse(
        io.BytesIO(CONTENT), as_attachment=True, filename="a film.mp4"
    )
    response["Content-Type"] = "video/special"
    response["X-Own"] = "own"
    response.set_cookie("cookie", "value")
    before = dict(response.items())
    apply_range(get("bytes=5-9"), response)
    response.close()
    assert dict(response.items()) == before | {
        "Accept-Ranges": "bytes",
        "Content-Length": "5",
        "Content-Range": "bytes 5-9/2048",
    }
    assert response.cookies["cookie"].value == "value"


def test_an_unsatisfiable_range_is_416() -> None:
    """The answer has the size, no content type, and must not be stored."""
    file = Counted(CONTENT)
    response = FileResponse(file, filename="film.mp4", as_attachment=True)
    response["Cache-Control"] = "max-age=1000000"
    apply_range(get("bytes=2048-"), response)
    assert response.status_code == 416
    assert body_of(response) == b""
    assert dict(response.items()) == {
        "Accept-Ranges": "bytes",
        "Cache-Control": "no-store",
        "Content-Length": "0",
        "Content-Range": "bytes */2048",
    }
    response.close()
    assert file.closings == 1


@pytest.mark.parametrize(
    ("header", "method"),
    [
        (None, "get"),
        ("bytes=5-3", "get"),
        ("lines=0-1", "get"),
        ("bytes=0-1", "head"),
    ],
)
def test_without_a_range_a_file_says_that_it_has_parts(
    header: str | None, method: str
) -> None:
    """The whole file is the answer, even to an invalid range, and to HEAD."""
    response = apply_range(get(header, method), FileResponse(io.BytesIO(CONTENT)))
    assert response.status_code == 200
    assert response["Accept-Ranges"] == "bytes"
    assert body_of(response) == CONTENT
    response.close()


class Pipe(io.RawIOBase):
    """A file that cannot seek."""

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Return the end of the file."""
        return 0


def with_headers(response: HttpResponseBase, **headers: str) -> HttpResponseBase:
    """Return a response with headers."""
    for name, value in headers.items():
        response[name.replace("_", "-")] = value
    return response


@pytest.mark.parametrize(
    "make",
    [
        lambda: HttpResponse(CONTENT),
        lambda: StreamingHttpResponse([CONTENT]),
        lambda: FileResponse([CONTENT]),
        lambda: FileResponse(io.BytesIO(CONTENT), status=404),
        lambda: FileResponse(io.BytesIO(CONTENT), status=206),
        lambda: FileResponse(Pipe()),
        lambda: with_headers(FileResponse(Pipe()), Content_Length="5"),
        lambda: FileResponse(io.StringIO("text")),
        lambda: FileResponse(ContentFile("text")),
        lambda: with_headers(
            FileResponse(io.BytesIO(CONTENT)), Content_Encoding="gzip"
        ),
    ],
)
def test_what_has_no_parts_stays_as_it_is(
    make: Callable[[], HttpResponseBase],
) -> None:
    """Neither status nor headers of such a response change."""
    response = make()
    before = response.status_code, dict(response.items())
    assert apply_range(get("bytes=0-1"), response) is response
    assert (response.status_code, dict(response.items())) == before
    response.close()


def test_a_post_has_no_parts() -> None:
    """Ranges apply to GET; other answers are not files to be resumed."""
    response = apply_range(get("bytes=0-1", "post"), FileResponse(io.BytesIO(CONTENT)))
    assert response.status_code == 200
    assert "Accept-Ranges" not in response
    response.close()


def test_a_view_can_refuse_ranges() -> None:
    """Accept-Ranges: none stays, and the file is sent whole."""
    response = FileResponse(io.BytesIO(CONTENT), headers={"Accept-Ranges": "none"})
    apply_range(get("bytes=0-1"), response)
    assert (response.status_code, response["Accept-Ranges"]) == (200, "none")
    response.close()


def test_ranges_are_applied_once() -> None:
    """A view's own sections are not cut again by the middleware."""
    http_request = get("bytes=2-3")
    response = apply_range(http_request, FileResponse(io.BytesIO(CONTENT)))
    middleware = RangeMiddleware(lambda _: response)
    assert middleware(http_request) is response
    assert body_of(response) == CONTENT[2:4]
    response.close()


def compressed(name: Path) -> IO[bytes]:
    """Return a file whose bytes differ from those on disk."""
    name.write_bytes(gzip.compress(CONTENT))
    return cast("IO[bytes]", gzip.GzipFile(name))


@pytest.mark.parametrize(
    "open_file",
    [
        lambda name: name.open("rb"),
        lambda name: name.open("rb", buffering=0),
        lambda name: File(name.open("rb")),
        compressed,
    ],
)
def test_files_of_any_class_have_parts(
    open_file: Callable[[Path], IO[bytes]], tmp_path: Path
) -> None:
    """Python's files, Django's, and ones made while they are read."""
    name = tmp_path / "file"
    name.write_bytes(CONTENT)
    file = open_file(name)
    response = apply_range(get("bytes=300-309"), FileResponse(file))
    assert response["Content-Range"] == "bytes 300-309/2048"
    assert body_of(response) == CONTENT[300:310]
    response.close()
    assert file.closed


@pytest.mark.parametrize(
    ("condition", "validators", "status"),
    [
        ('"one"', {"ETag": '"one"'}, 206),
        ('"one"', {"ETag": '"two"'}, 200),
        ('"one"', {}, 200),
        ('"one"', {"ETag": 'W/"one"'}, 200),
        ('W/"one"', {"ETag": 'W/"one"'}, 200),
        ('W/"one"', {"ETag": '"one"'}, 200),
        (LAST_MODIFIED, {"Last-Modified": LAST_MODIFIED}, 206),
        (LAST_MODIFIED, {"Last-Modified": http_date(999_999_999)}, 200),
        (LAST_MODIFIED, {"Last-Modified": http_date(1_000_000_001)}, 200),
        (LAST_MODIFIED, {"ETag": '"one"'}, 200),
        ("yesterday", {"Last-Modified": "yesterday"}, 200),
        ("", {"ETag": ""}, 200),
    ],
)
def test_if_range(condition: str, validators: dict[str, str], status: int) -> None:
    """Parts are of the file that the client knows; otherwise it gets the whole file."""
    headers = {"If-Range": condition}
    response = FileResponse(io.BytesIO(CONTENT), headers=validators)
    apply_range(get("bytes=0-0", **headers), response)
    assert response.status_code == status
    assert len(body_of(response)) == (1 if status == 206 else len(CONTENT))
    response.close()


# Together with Django's middleware


def through(
    http_request: HttpRequest, *middleware: str, **headers: str
) -> tuple[HttpResponseBase, bytes]:
    """Send a request to a file with validators, through middleware."""
    file = io.BytesIO(CONTENT)

    def view(_: HttpRequest) -> FileResponse:
        return FileResponse(file, headers=headers)

    with override_settings(MIDDLEWARE=list(middleware)):
        handler = WSGIHandler()
        http_request.urlconf = (path("", view),)  # type: ignore[assignment] # as Django takes it
        response = handler.get_response(http_request)
    body = body_of(response)
    response.close()
    # Django does not close a response that was replaced.
    file.close()
    return response, body


both_orders = pytest.mark.parametrize(
    "order", [(RANGES, CONDITIONAL), (CONDITIONAL, RANGES)]
)


@both_orders
@pytest.mark.parametrize("ranges", ["bytes=0-1", "bytes=9999-", "nonsense"])
def test_a_file_that_the_client_has_is_304(order: tuple[str, str], ranges: str) -> None:
    """If-None-Match and If-Modified-Since come before Range, in both orders."""
    for headers in (
        {"If-None-Match": '"one"'},
        {"If-Modified-Since": LAST_MODIFIED},
    ):
        response, body = through(
            get(ranges, **headers),
            *order,
            **{"ETag": '"one"', "Last-Modified": LAST_MODIFIED},
        )
        assert (response.status_code, body) == (304, b"")
        assert "Content-Range" not in response


@both_orders
def test_a_file_that_has_changed_is_sent_in_parts(order: tuple[str, str]) -> None:
    """The conditions do not hold, and the Range counts."""
    headers = {"If-None-Match": '"other"', "If-Modified-Since": LAST_MODIFIED}
    response, body = through(get("bytes=0-1", **headers), *order, ETag='"one"')
    assert (response.status_code, body) == (206, CONTENT[:2])


@both_orders
def test_a_failed_precondition_is_412(order: tuple[str, str]) -> None:
    """If-Match takes precedence over Range too."""
    headers = {"If-Match": '"other"'}
    response, _ = through(get("bytes=0-1", **headers), *order, ETag='"one"')
    assert response.status_code == 412


def test_what_was_compressed_has_no_parts() -> None:
    """Compression below the ranges: the whole file, compressed."""
    headers = {"Accept-Encoding": "gzip"}
    response, body = through(get("bytes=0-1", **headers), RANGES, GZIP)
    assert response.status_code == 200
    assert "Accept-Ranges" not in response
    assert gzip.decompress(body) == CONTENT


def test_what_has_parts_is_not_compressed() -> None:
    """Compression above the ranges: neither the parts nor the whole file."""
    headers = {"Accept-Encoding": "gzip"}
    for ranges, status, content in (
        ("bytes=0-999", 206, CONTENT[:1000]),
        (None, 200, CONTENT),
    ):
        response, body = through(get(ranges, **headers), GZIP, RANGES)
        assert (response.status_code, body) == (status, content)
        assert "Content-Encoding" not in response


# Under the handlers


def file_view(http_request: HttpRequest) -> HttpResponseBase:
    """Send a file in parts by the call."""
    return apply_range(http_request, FileResponse(io.BytesIO(CONTENT)))


def plain_file_view(http_request: HttpRequest) -> HttpResponseBase:
    """Send a file, and leave the parts to the middleware."""
    return FileResponse(io.BytesIO(CONTENT))


both_ways = pytest.mark.parametrize(
    ("view", "middleware"), [(file_view, []), (plain_file_view, [RANGES])]
)


def assert_is_section(answer: Answer) -> None:
    """Check that an answer is the section that was requested."""
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    assert answer.status == 206
    assert headers["Content-Range"] == "bytes 100-199/2048"
    assert headers["Content-Length"] == "100"
    assert answer.body == CONTENT[100:200]


ASKED = [(b"range", b"bytes=100-199")]


@both_ways
async def test_on_trio(
    view: Callable[..., HttpResponseBase], middleware: list[str]
) -> None:
    """This package's handler sends the section, and no more."""
    app = application(path("", view), middleware=middleware)
    assert_is_section(await request(app, headers=ASKED))


@both_ways
def test_on_asyncio(
    view: Callable[..., HttpResponseBase], middleware: list[str]
) -> None:
    """Django's ASGI handler sends it too."""
    answer = Answer()

    async def serve() -> None:
        communicator: Any = testing.ApplicationCommunicator(  # type: ignore[no-untyped-call]
            DjangoASGIHandler(), http_scope("/", headers=ASKED)
        )
        await communicator.send_input({"type": "http.request"})
        while not answer.is_complete:
            answer.messages.append(await communicator.receive_output(10))
        await communicator.wait()

    urls = type("urls", (), {"urlpatterns": [path("", view)]})
    with (
        override_settings(MIDDLEWARE=middleware, ROOT_URLCONF=urls),
        warnings.catch_warnings(),
    ):
        # From a sync iterator, which Django reads whole.
        warnings.simplefilter("ignore", Warning)
        asyncio.run(serve())
    assert_is_section(answer)


@both_ways
@pytest.mark.parametrize("wrapper", [None, FileWrapper])
def test_on_wsgi(
    view: Callable[..., HttpResponseBase],
    middleware: list[str],
    wrapper: type[FileWrapper] | None,
) -> None:
    """Django's WSGI handler does, even where the server reads the file itself."""
    environ = RequestFactory().get("/", headers={"Range": "bytes=100-199"}).environ
    if wrapper is not None:
        environ["wsgi.file_wrapper"] = wrapper
    started: list[Any] = []

    def start_response(*args: Any) -> Any:
        started.append(args)

    urls = type("urls", (), {"urlpatterns": [path("", view)]})
    with override_settings(MIDDLEWARE=middleware, ROOT_URLCONF=urls):
        parts: Any = WSGIHandler()(environ, start_response)
        body = b"".join(parts)
        parts.close()
    [(status, headers)] = started
    assert status == "206 Partial Content"
    assert dict(headers)["Content-Range"] == "bytes 100-199/2048"
    assert body == CONTENT[100:200]


async def test_the_middleware_needs_no_thread() -> None:
    """An async view takes no hop with it; its file in parts no more than whole."""

    async def hello(_: HttpRequest) -> HttpResponse:
        return HttpResponse("hello")

    async def file(_: HttpRequest) -> FileResponse:
        return FileResponse(io.BytesIO(CONTENT))

    urls = (path("", hello), path("file/", file))
    with_ranges = application(*urls, middleware=[RANGES])
    without = application(*urls, middleware=[])
    with counted_hops() as hops:
        await request(with_ranges, headers=ASKED)
    assert hops.count == 0
    with counted_hops() as whole:
        await request(without, "/file/", headers=ASKED)
    with counted_hops() as section:
        answer = await request(with_ranges, "/file/", headers=ASKED)
    assert answer.status == 206
    assert section.count <= whole.count

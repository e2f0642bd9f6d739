"""Static files in production: ServeStatic's middleware, sent by this package."""

from __future__ import annotations

import gzip
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from django.contrib.staticfiles.storage import staticfiles_storage
from django.core.handlers.wsgi import WSGIHandler
from django.core.management import call_command
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory, override_settings
from django.urls import path

from hop_support import counted_hops
from range_support import parts_of
from support import Answer, application, request

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from trio_asgi import ASGIHandler

pytest.importorskip("servestatic")

MIDDLEWARE = "trio_asgi.servestatic.ServeStaticMiddleware"
GZIP = "django.middleware.gzip.GZipMiddleware"
CONDITIONAL = "django.middleware.http.ConditionalGetMiddleware"

SCRIPT = b"var answer = 42;\n" * 100
#: Only the existence of compressed neighbours matters, not their content.
BROTLI, ZSTANDARD = b"as brotli would make it", b"as zstd would"
FILM = bytes(range(256)) * 100


def stored_name(name: str) -> str:
    """Return the name with the hash."""
    storage: Any = staticfiles_storage
    return str(storage.stored_name(name))


async def hello(_: HttpRequest) -> HttpResponse:
    """Answer that no static file was served."""
    return HttpResponse("hello")


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """The directory of collectstatic, with compressed neighbours for some files."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "app.js").write_bytes(SCRIPT)
    (source / "film.mp4").write_bytes(FILM)
    (source / "empty.txt").write_bytes(b"")
    collected = tmp_path / "collected"
    manifest = "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"
    with override_settings(
        STATIC_URL="/static/",
        STATIC_ROOT=str(collected),
        STATICFILES_DIRS=[source],
        STORAGES={"staticfiles": {"BACKEND": manifest}},
    ):
        call_command("collectstatic", interactive=False, verbosity=0)
        for script in collected.glob("app*.js"):
            (collected / f"{script.name}.gz").write_bytes(gzip.compress(SCRIPT))
            (collected / f"{script.name}.br").write_bytes(BROTLI)
            (collected / f"{script.name}.zst").write_bytes(ZSTANDARD)
        yield collected


@pytest.fixture
def app(root: Path) -> ASGIHandler:
    """Serve the files, and one view."""
    return application(path("", hello), middleware=[MIDDLEWARE])


async def get(
    app: ASGIHandler, name: str, method: str = "GET", **headers: str
) -> tuple[Answer, dict[str, str]]:
    """Request a file; return the answer, and its headers also as text."""
    encoded = [
        (name.replace("_", "-").encode(), value.encode())
        for name, value in headers.items()
    ]
    answer = await request(app, f"/static/{name}", method=method, headers=encoded)
    return answer, {key.decode(): value.decode() for key, value in answer.headers}


# Headers


async def test_a_hashed_name_is_kept_for_ever(app: ASGIHandler) -> None:
    """The name with the hash is immutable; the plain one is revalidated soon."""
    _, headers = await get(app, stored_name("app.js"))
    assert headers["Cache-Control"] == "max-age=315360000, public, immutable"
    answer, headers = await get(app, "app.js")
    assert headers["Cache-Control"] == "max-age=60, public"
    assert answer.body == SCRIPT


@pytest.mark.parametrize(
    ("accepted", "encoding", "body"),
    [
        ("", None, SCRIPT),
        ("identity", None, SCRIPT),
        ("gzip", "gzip", gzip.compress(SCRIPT)),
        ("gzip, br", "br", BROTLI),
        ("gzip, deflate, br, zstd", "zstd", ZSTANDARD),
        ("gzip, br;q=0, zstd;q=0", "gzip", gzip.compress(SCRIPT)),
        ("zstd;q=0.1, br;q=0.0", "zstd", ZSTANDARD),
        ("gzip-like, brotli, xzstd", None, SCRIPT),
    ],
)
async def test_compressed_neighbours(
    app: ASGIHandler, accepted: str, encoding: str | None, body: bytes
) -> None:
    """The smallest that the client accepts, and Vary with each of them."""
    for name in ("app.js", stored_name("app.js")):
        answer, headers = await get(app, name, accept_encoding=accepted)
        assert headers.get("Content-Encoding") == encoding
        assert headers["Content-Length"] == str(len(answer.body))
        assert headers["Content-Type"].startswith("text/javascript")
        assert headers["Vary"] == "Accept-Encoding"
        if encoding == "gzip":
            assert gzip.decompress(answer.body) == SCRIPT
        else:
            assert answer.body == body


async def test_zstandard_by_the_name_that_servestatic_gives_it(root: Path) -> None:
    """Beside a ``.zstd`` the ``.zst`` is ignored."""
    (root / "app.js.zstd").write_bytes(b"made by ServeStatic")
    app = application(path("", hello), middleware=[MIDDLEWARE])
    answer, headers = await get(app, "app.js", accept_encoding="zstd")
    assert headers["Content-Encoding"] == "zstd"
    assert answer.body == b"made by ServeStatic"


async def test_a_file_without_neighbours_does_not_vary(app: ASGIHandler) -> None:
    """It is the same for every client."""
    answer, headers = await get(app, "film.mp4", accept_encoding="gzip, br, zstd")
    assert answer.body == FILM
    assert "Vary" not in headers
    assert "Content-Encoding" not in headers


async def test_files_are_looked_up_once(app: ASGIHandler, root: Path) -> None:
    """The headers are those from start-up; a deleted file is answered 404."""
    _, before = await get(app, "film.mp4", "HEAD")
    os.utime(root / "film.mp4", (0, 0))
    _, after = await get(app, "film.mp4", "HEAD")
    assert after == before
    (root / "film.mp4").unlink()
    with override_settings(DEBUG_PROPAGATE_EXCEPTIONS=False, DEBUG=True):
        answer, _ = await get(app, "film.mp4")
    assert answer.status == 404
    assert b"The file at /static/film.mp4 is gone." in answer.body
    assert str(root).encode() not in answer.body
    (root / "new.txt").write_text("new")
    answer, _ = await get(app, "new.txt")
    assert answer.status == 404


async def test_head_reads_nothing(app: ASGIHandler, root: Path) -> None:
    """The headers are those of GET, even if the file cannot be opened any more."""
    _, headers = await get(app, "film.mp4")
    shutil.rmtree(root)
    answer, headers_alone = await get(app, "film.mp4", "HEAD")
    assert (answer.status, answer.body) == (200, b"")
    assert headers["Accept-Ranges"] == "bytes"
    assert headers_alone == headers


async def test_other_methods_are_405(app: ASGIHandler) -> None:
    """A file cannot be posted to."""
    answer, headers = await get(app, "film.mp4", "POST")
    assert (answer.status, headers["Allow"]) == (405, "GET, HEAD")


# Conditions


async def test_a_file_that_the_client_has_is_304(app: ASGIHandler) -> None:
    """By ETag, even in a list or weak, and by time; with CORS headers."""
    _, headers = await get(app, "app.js")
    etag, modified = headers["ETag"], headers["Last-Modified"]
    conditions = [
        {"if_none_match": etag},
        {"if_none_match": f'"other", W/{etag}'},
        {"if_none_match": "*"},
        {"if_modified_since": modified},
    ]
    for condition in conditions:
        answer, headers = await get(app, "app.js", range="bytes=0-1", **condition)
        assert (answer.status, answer.body) == (304, b"")
        assert headers["ETag"] == etag
        assert headers["Vary"] == "Accept-Encoding"
        assert headers["Access-Control-Allow-Origin"] == "*"
    answer, _ = await get(app, "app.js", if_none_match='"other"')
    assert answer.status == 200


async def test_each_encoding_has_its_etag(app: ASGIHandler) -> None:
    """Parts of different encodings would not fit together."""
    etags = {}
    for encoding in ("identity", "gzip", "br", "zstd"):
        _, headers = await get(app, "app.js", accept_encoding=encoding)
        etags[encoding] = headers["ETag"]
        answer, _ = await get(
            app, "app.js", accept_encoding=encoding, if_none_match=headers["ETag"]
        )
        assert answer.status == 304
    assert len(set(etags.values())) == 4
    answer, _ = await get(
        app, "app.js", range="bytes=0-9", if_range=etags["br"], accept_encoding=""
    )
    assert (answer.status, answer.body) == (200, SCRIPT)


# Ranges


@pytest.mark.parametrize(
    ("ranges", "where"),
    [
        ("bytes=0-0", slice(1)),
        ("bytes=-1", slice(-1, None)),
        ("bytes=100-", slice(100, None)),
        ("bytes=100-199", slice(100, 200)),
    ],
)
async def test_a_section(app: ASGIHandler, ranges: str, where: slice) -> None:
    """A range in any form is a 206 with exactly its bytes."""
    answer, headers = await get(app, "film.mp4", range=ranges)
    start, stop, _ = where.indices(len(FILM))
    assert (answer.status, answer.body) == (206, FILM[where])
    assert headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(FILM)}"


async def test_several_sections(app: ASGIHandler) -> None:
    """They arrive as parts."""
    answer, headers = await get(app, "film.mp4", range="bytes=0-9,1000-1009")
    assert answer.status == 206
    assert parts_of(headers["Content-Type"], answer.body) == [
        (f"bytes 0-9/{len(FILM)}", FILM[:10]),
        (f"bytes 1000-1009/{len(FILM)}", FILM[1000:1010]),
    ]


async def test_a_range_beyond_the_end(app: ASGIHandler) -> None:
    """It is a 416; an empty file can only be sent whole."""
    answer, headers = await get(app, "film.mp4", range="bytes=99999-")
    assert (answer.status, answer.body) == (416, b"")
    assert headers["Content-Range"] == f"bytes */{len(FILM)}"
    answer, _ = await get(app, "empty.txt", range="bytes=0-")
    assert (answer.status, answer.body) == (200, b"")


async def test_a_download_is_resumed_if_the_file_is_the_same(app: ASGIHandler) -> None:
    """If-Range, by the ETag and by the time."""
    _, headers = await get(app, "film.mp4")
    for validator, status, body in (
        (headers["ETag"], 206, FILM[9:]),
        (headers["Last-Modified"], 206, FILM[9:]),
        ('"older"', 200, FILM),
    ):
        answer, _ = await get(app, "film.mp4", range="bytes=9-", if_range=validator)
        assert (answer.status, answer.body) == (status, body)


async def test_a_compressed_file_is_sent_whole(app: ASGIHandler) -> None:
    """If the client accepts an encoding and requests a part, it gets the whole file."""
    answer, headers = await get(
        app, "app.js", range="bytes=0-1", accept_encoding="br", if_range='"x"'
    )
    assert (answer.status, answer.body) == (200, BROTLI)
    assert "Accept-Ranges" not in headers


# Together with other code


async def test_it_costs_a_page_no_hop(app: ASGIHandler) -> None:
    """An async view below it takes no thread; nor do 304 and HEAD of a file."""
    _, headers = await get(app, "film.mp4")
    with counted_hops() as hops:
        assert (await request(app)).body == b"hello"
        answer, _ = await get(app, "film.mp4", if_none_match=headers["ETag"])
        assert answer.status == 304
        await get(app, "film.mp4", "HEAD")
    assert hops.count == 0


@pytest.mark.parametrize(
    "middleware", [[CONDITIONAL, MIDDLEWARE], [MIDDLEWARE, GZIP], [GZIP, MIDDLEWARE]]
)
async def test_below_and_above_others(root: Path, middleware: Sequence[str]) -> None:
    """Django's middleware around it breaks neither files nor parts of them."""
    app = application(path("", hello), middleware=middleware)
    for ranges, status, body in (
        ("", 200, FILM),
        ("bytes=0-999", 206, FILM[:1000]),
        ("bytes=99999-", 416, b""),
    ):
        answer, _ = await get(app, "film.mp4", range=ranges, accept_encoding="gzip")
        assert (answer.status, answer.body) == (status, body)


def test_on_wsgi(root: Path) -> None:
    """The same middleware serves under Django's WSGI handler."""
    environ = RequestFactory().get("/static/film.mp4", headers={"Range": "bytes=-5"})
    started: list[Any] = []

    def start_response(*args: Any) -> Any:
        started.append(args)

    with override_settings(MIDDLEWARE=[MIDDLEWARE]):
        parts: Any = WSGIHandler()(environ.environ, start_response)
        body = b"".join(parts)
        parts.close()
    assert started[0][0] == "206 Partial Content"
    assert body == FILM[-5:]


def test_by_the_test_client(root: Path) -> None:
    """Django's sync client gets files, and other pages."""
    urls = type("urls", (), {"urlpatterns": [path("", hello)]})
    with override_settings(MIDDLEWARE=[MIDDLEWARE], ROOT_URLCONF=urls):
        client = Client()
        response = client.get("/static/film.mp4", headers={"Range": "bytes=-5"})
        assert response.getvalue() == FILM[-5:]
        response.close()
        assert client.get("/").content == b"hello"


async def test_what_collectstatic_compresses_is_served(root: Path) -> None:
    """ServeStatic's storage makes the neighbours, and the files' metadata."""
    storage = "servestatic.storage.CompressedManifestStaticFilesStorage"
    with override_settings(STORAGES={"staticfiles": {"BACKEND": storage}}):
        call_command("collectstatic", interactive=False, verbosity=0, clear=True)
        app = application(path("", hello), middleware=[MIDDLEWARE])
        name = stored_name("app.js")
        answer, headers = await get(app, name, accept_encoding="gzip")
    assert headers["Content-Encoding"] == "gzip"
    assert headers["Cache-Control"].endswith("immutable")
    assert gzip.decompress(answer.body) == SCRIPT
    assert (root / f"{name}.gz").exists()


async def test_while_debugging_files_are_found_where_they_lie(root: Path) -> None:
    """With DEBUG nothing must be collected, and a new file is seen at once."""
    source = root.parent / "source"
    shutil.rmtree(root)
    with (
        override_settings(DEBUG=True),
        pytest.warns(UserWarning, match="'servestatic' is not in"),
    ):
        app = application(path("", hello), middleware=[MIDDLEWARE])
    with override_settings(DEBUG=True):
        (source / "new.txt").write_bytes(b"new")
        answer, headers = await get(app, "new.txt", range="bytes=1-")
    assert (answer.status, answer.body) == (206, b"ew")
    assert headers["Cache-Control"] == "max-age=0, public"


async def test_an_index_file_is_redirected_to(root: Path) -> None:
    """Paths other than ServeStatic's files are left to it."""
    (root / "docs").mkdir()
    (root / "docs" / "index.html").write_bytes(b"index")
    with override_settings(
        SERVESTATIC_INDEX_FILE=True, SERVESTATIC_USE_STATIC_ROOT=True
    ):
        app = application(path("", hello), middleware=[MIDDLEWARE])
    answer, headers = await get(app, "docs")
    assert (answer.status, headers["Location"]) == (302, "docs/")
    answer, _ = await get(app, "docs/")
    assert answer.body == b"index"

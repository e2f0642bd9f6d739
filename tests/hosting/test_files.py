"""Files from real servers: resumed downloads, parts, and static files."""

from __future__ import annotations

import gzip
import hashlib
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import httpx
import pytest

from range_support import parts_of

from ._hosts import HOSTS
from ._server import eventually, serve_cleanly

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._server import Connect, Kind, Server

MEGABYTE = 2**20
LARGE = 2048 * MEGABYTE

#: Bytes that differ by their position.
FILM = b"".join(b"%15d\n" % place for place in range(0, 20 * MEGABYTE, 16))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the files."""
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def film(directory: Path) -> Path:
    """A file of 20 MB."""
    file = directory / "film.mp4"
    file.write_bytes(FILM)
    return file


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    """A client that keeps its connection."""
    with httpx.Client(base_url=server.url, trust_env=False, timeout=30) as connected:
        yield connected


def url_of(file: Path) -> str:
    """Return the URL under which the hosted site sends a file."""
    return f"/file/?path={quote(str(file))}"


def wait_until_closed(server: Server, file: Path) -> None:
    """Wait until the server has closed the file; this works only on Linux."""
    if sys.platform != "linux":
        return
    links = Path(f"/proc/{server.state().pid}/fd")

    def is_closed() -> bool:
        open_now = []
        for link in links.iterdir():
            # It may have been closed since it was listed.
            with suppress(FileNotFoundError):
                open_now.append(str(link.readlink()))
        return not any(name.startswith(str(file)) for name in open_now)

    eventually(is_closed, f"{file} is closed")


# Tests that check the process's peak memory come first.


@pytest.mark.demands("back-pressure")
def test_large_sections_in_constant_memory(
    server: Server, directory: Path, client: httpx.Client
) -> None:
    """Hundreds of megabytes, in one section or two, need a few megabytes of memory."""
    large = directory / "large"
    with large.open("wb") as file:
        file.truncate(LARGE)
        file.seek(-4, os.SEEK_END)
        file.write(b"last")
    before = server.state().peak_kilobytes
    for ranges in (
        f"{LARGE - 300 * MEGABYTE}-",
        f"0-{100 * MEGABYTE},-{MEGABYTE * 99}",
    ):
        headers = {"Range": f"bytes={ranges}"}
        with client.stream("GET", url_of(large), headers=headers) as response:
            assert response.status_code == 206
            size, end = 0, b""
            for block in response.iter_raw():
                size += len(block)
                end = (end + block)[-100:]
        assert str(size) == response.headers["Content-Length"]
        assert b"last" in end
    assert (
        server.wait_for_rest().peak_kilobytes - before
        < (20 + HOSTS[server.kind].queued_megabytes) * 1024
    )
    wait_until_closed(server, large)
    large.unlink()


def test_an_interrupted_download_is_resumed(
    server: Server, film: Path, client: httpx.Client
) -> None:
    """Each time it continues where the last connection broke: the file is whole."""
    received = b""
    validator = client.head(url_of(film)).headers["Last-Modified"]
    for goal in (1, 5 * MEGABYTE, 12 * MEGABYTE):
        headers = [f"Range: bytes={len(received)}-", f"If-Range: {validator}"]
        with server.connect() as connection:
            connection.send_request(url_of(film), *headers)
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += connection.read_some()
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 206")
            received += body
            while len(received) < goal:
                received += connection.read_some()
            connection.reset()
    rest = client.get(
        url_of(film),
        headers={"Range": f"bytes={len(received)}-", "If-Range": validator},
    )
    assert rest.status_code == 206
    digest = hashlib.sha256(received + rest.content).hexdigest()
    assert digest == hashlib.sha256(FILM).hexdigest()
    server.wait_for_rest()
    wait_until_closed(server, film)


def test_another_file_is_not_resumed(
    server: Server, directory: Path, client: httpx.Client
) -> None:
    """If the file has changed since the first part, it is sent whole."""
    file = directory / "changing"
    file.write_bytes(b"before")
    os.utime(file, (1_000_000_000, 1_000_000_000))
    validator = client.get(url_of(file)).headers["Last-Modified"]
    file.write_bytes(b"afterwards")
    headers = {"Range": "bytes=3-", "If-Range": validator}
    response = client.get(url_of(file), headers=headers)
    assert (response.status_code, response.content) == (200, b"afterwards")
    wait_until_closed(server, file)


@pytest.mark.parametrize(
    ("ranges", "where"),
    [
        ("bytes=0-0", slice(1)),
        ("bytes=-1", slice(-1, None)),
        ("bytes=1000000-1999999", slice(1_000_000, 2_000_000)),
    ],
)
def test_a_section(client: httpx.Client, film: Path, ranges: str, where: slice) -> None:
    """Exactly these bytes arrive."""
    response = client.get(url_of(film), headers={"Range": ranges})
    assert response.status_code == 206
    assert response.content == FILM[where]


def test_several_sections(client: httpx.Client, film: Path) -> None:
    """They arrive as parts, large ones too."""
    ranges = f"bytes=-3,0-0,1000000-{3 * MEGABYTE}"
    response = client.get(url_of(film), headers={"Range": ranges})
    size = len(FILM)
    assert parts_of(response.headers["Content-Type"], response.content) == [
        (f"bytes {size - 3}-{size - 1}/{size}", FILM[-3:]),
        (f"bytes 0-0/{size}", FILM[:1]),
        (f"bytes 1000000-{3 * MEGABYTE}/{size}", FILM[1000000 : 3 * MEGABYTE + 1]),
    ]


def test_bad_ranges_spoil_no_connection(
    server: Server, connect: Connect, film: Path
) -> None:
    """Each gets its answer, and the next request on the connection works."""
    connection = connect()
    size = len(FILM)
    for ranges, status in (
        ("bytes=5-3", 200),
        ("bytes=x", 200),
        ("chapters=1-2", 200),
        ("bytes=" + ",".join(["0-"] * 500), 200),
        ("bytes=" + "9" * 5000 + "-", 200),
        (f"bytes={size}-", 416),
        ("bytes=-0", 416),
        ("bytes=" + ",".join(["0-"] * 100), 206),
    ):
        connection.send_request(url_of(film), f"Range: {ranges}")
        response = connection.read_response()
        assert response.status == status
        if status == 416:
            assert response.body == b""
            assert response.headers["content-range"] == f"bytes */{size}"
        else:
            assert response.body == FILM
    server.wait_for_rest()
    wait_until_closed(server, film)


def test_head_and_range(connect: Connect, film: Path) -> None:
    """HEAD reports the whole file's length, and that ranges are supported."""
    connection = connect()
    connection.send_request(url_of(film), "Range: bytes=0-1", method="HEAD")
    response = connection.read_response("HEAD")
    assert (response.status, response.body) == (200, b"")
    assert response.headers["content-length"] == str(len(FILM))
    assert response.headers["accept-ranges"] == "bytes"
    connection.send_request(url_of(film), "Range: bytes=1-2")
    assert connection.read_response().body == FILM[1:3]


@pytest.mark.parametrize("ranges", ["10-", f"0-9,{MEGABYTE}-"])
@pytest.mark.demands("cutting off")
def test_a_file_that_shrinks_ends_the_connection(
    server: Server, directory: Path, ranges: str
) -> None:
    """The client notices that the section is incomplete, and nothing is left behind."""
    file = directory / "shrinking"
    with file.open("wb") as made:
        made.truncate(200 * MEGABYTE)
    with server.connect() as connection:
        connection.send_request(url_of(file), f"Range: bytes={ranges}")
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += connection.read_some()
        # Much more is still to come than fits into any buffer on the way.
        os.truncate(file, 20 * MEGABYTE)
        assert len(connection.read_to_end()) < 100 * MEGABYTE
    server.tracebacks += 1
    server.wait_for_rest()
    wait_until_closed(server, file)


# Static files


@pytest.fixture(scope="module")
def static_server(
    kind: Kind, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Serve static files too."""
    pytest.importorskip("servestatic")
    directory = tmp_path_factory.mktemp(f"static-{kind}")
    root = directory / "static"
    root.mkdir()
    (root / "film.mp4").write_bytes(FILM)
    (root / "app.0123456789ab.js").write_bytes(b"var a;\n" * 1000)
    (root / "app.0123456789ab.js.gz").write_bytes(gzip.compress(b"var a;\n" * 1000))
    (root / "app.0123456789ab.js.zst").write_bytes(b"as zstd would")
    application = "hosted.static_asgi:application"
    with serve_cleanly(kind, directory, application=application) as running:
        yield running


def test_static_files(static_server: Server) -> None:
    """Whole, compressed, unchanged, in part, and missing: on one connection."""
    with httpx.Client(base_url=static_server.url, trust_env=False) as client:
        headers = {"Accept-Encoding": "gzip"}
        response = client.get("/static/app.0123456789ab.js", headers=headers)
        assert response.headers["Content-Encoding"] == "gzip"
        assert response.headers["Vary"] == "Accept-Encoding"
        assert response.content == b"var a;\n" * 1000
        headers["If-None-Match"] = response.headers["ETag"]
        response = client.get("/static/app.0123456789ab.js", headers=headers)
        assert (response.status_code, response.content) == (304, b"")
        assert client.get("/static/film.mp4").content == FILM
        response = client.get("/static/film.mp4", headers={"Range": "bytes=0-0,-1"})
        assert [
            content
            for _, content in parts_of(
                response.headers["Content-Type"], response.content
            )
        ] == [FILM[:1], FILM[-1:]]
        headers = {"Range": f"bytes={len(FILM)}-"}
        assert client.get("/static/film.mp4", headers=headers).status_code == 416
        assert client.get("/static/none.mp4").status_code == 404
        assert client.get("/hello/?id=1").text == "hello 1"
    static_server.wait_for_rest()


def test_a_client_that_leaves_a_static_file(static_server: Server) -> None:
    """In the middle of it: the file is closed, and the next client is served."""
    for headers in ([], ["Range: bytes=5-"]):
        with static_server.connect() as connection:
            connection.send_request("/static/film.mp4", *headers)
            connection.read_at_least(MEGABYTE)
            connection.reset()
    static_server.wait_for_rest()
    wait_until_closed(static_server, static_server.log_file.parent / "static")
    assert static_server.get("/static/film.mp4") == FILM

"""What clients may do with HTTP/1.1 and HTTP/2, and get their answers."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import httpx
import pytest
import trio

from ._wire import request_bytes

if TYPE_CHECKING:
    from ._server import Server

MEGABYTE = 2**20

both_digests = pytest.mark.parametrize("path", ["/digest/", "/sync/digest/"])
both_hellos = pytest.mark.parametrize("path", ["/hello/", "/sync/hello/"])


@both_digests
def test_a_chunked_upload_is_read_whole_in_constant_memory(
    server: Server, path: str
) -> None:
    """50 MB without a Content-Length arrive unchanged; on disk, not in memory."""
    chunk = bytes(range(256)) * (MEGABYTE // 256)
    expected = hashlib.sha256(chunk * 50).hexdigest()
    before = server.state().peak_kilobytes
    with server.connect() as connection:
        connection.send_request(path, "Transfer-Encoding: chunked", method="POST")
        for _ in range(50):
            connection.send(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        connection.send(b"0\r\n\r\n")
        assert connection.read_response().body == expected.encode()
    assert server.wait_for_rest().peak_kilobytes - before < 20 * 1024


def test_an_uploaded_file_leaves_no_temporary_file(server: Server) -> None:
    """A file of a form goes to a temporary file, which the request's end removes."""
    content = bytes(range(256)) * 4096 * 5
    answer = httpx.post(f"{server.url}/upload/", files={"file": content})
    assert answer.text == hashlib.sha256(content).hexdigest()
    assert server.wait_for_rest().files == []


@both_hellos
def test_200_requests_on_one_connection(server: Server, path: str) -> None:
    """A connection is kept alive, and each answer is the one to its request."""
    with server.connect() as connection:
        for number in range(200):
            connection.send_request(f"{path}?id={number}")
            response = connection.read_response()
            assert (response.status, response.body) == (200, b"hello %d" % number)
    for number in range(200):
        assert server.events(f"{number}").count("finished") >= 1
    server.wait_for_rest()

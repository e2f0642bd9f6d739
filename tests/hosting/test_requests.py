"""What clients may do with HTTP/1.1 and HTTP/2, and the answers they get."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import httpx
import pytest
import trio

from ._wire import request_bytes

if TYPE_CHECKING:
    from ._server import Certificates, Server

MEGABYTE = 2**20
SOME_BYTES = bytes(range(256)) * (MEGABYTE // 256)

both_digests = pytest.mark.parametrize("path", ["/digest/", "/sync/digest/"])
both_hellos = pytest.mark.parametrize("path", ["/hello/", "/sync/hello/"])


# Large bodies come first: these tests check the process's peak memory.


@both_digests
@pytest.mark.demands("streamed uploads")
def test_a_chunked_upload_is_read_whole_in_constant_memory(
    server: Server, path: str
) -> None:
    """50 MB without a Content-Length arrive unchanged: on disk, not in memory."""
    before = server.state().peak_kilobytes
    with server.connect() as connection:
        connection.send_request(path, "Transfer-Encoding: chunked", method="POST")
        for _ in range(50):
            connection.send(b"%x\r\n%b\r\n" % (len(SOME_BYTES), SOME_BYTES))
        connection.send(b"0\r\n\r\n")
        digest = connection.read_response().body
    assert digest.decode() == hashlib.sha256(SOME_BYTES * 50).hexdigest()
    assert server.wait_for_rest().peak_kilobytes - before < 20 * 1024


def test_an_uploaded_file_leaves_no_temporary_file(server: Server) -> None:
    """A form's large file goes to a temporary file, removed with the request."""
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        answer = client.post("/upload/", files={"file": SOME_BYTES * 5})
    assert answer.text == hashlib.sha256(SOME_BYTES * 5).hexdigest()
    server.wait_for_rest()


@both_hellos
def test_a_connection_is_kept_alive(server: Server, path: str) -> None:
    """200 requests on one connection: answers, signals, and threads that are reused."""
    ids = [server.new_id() for _ in range(200)]
    workers_before = server.wait_for_rest().workers
    with server.connect() as connection:
        for identity in ids:
            connection.send_request(f"{path}?id={identity}")
            response = connection.read_response()
            assert response.status == 200
            assert response.body.decode() == f"hello {identity}"
    # A request may begin before the last has ended, on a busy machine a few.
    assert server.wait_for_rest().workers <= workers_before + 10
    for identity in ids:
        assert server.events(identity) == ["started", "finished"]


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    """Requests of all sorts, sent at once, get their answers one after the other."""
    ids = [server.new_id() for _ in range(30)]
    sent, expected = b"", []
    for number, identity in enumerate(ids):
        path = ["/hello/", "/sync/hello/", "/digest/"][number % 3]
        target = f"{path}?id={identity}"
        if path == "/digest/":
            body = identity.encode() * 1000
            head = request_bytes(target, f"Content-Length: {len(body)}", method="POST")
            sent += head + body
            expected.append(hashlib.sha256(body).hexdigest())
        else:
            sent += request_bytes(target)
            expected.append(f"hello {identity}")
    with server.connect() as connection:
        connection.send(sent)
        answers = [connection.read_response().body.decode() for _ in ids]
    assert answers == expected
    server.wait_for_rest()


@both_digests
def test_a_client_is_told_to_continue(server: Server, path: str) -> None:
    """Expect: 100-continue is answered before the body comes."""
    with server.connect() as connection:
        connection.send_request(
            path, "Content-Length: 4", "Expect: 100-continue", method="POST"
        )
        assert b" 100 " in connection.read_some()
        connection.send(b"body")
        response = connection.read_response()
    assert response.status == 200
    assert response.body.decode() == hashlib.sha256(b"body").hexdigest()


@both_hellos
def test_head_is_answered_without_a_body(server: Server, path: str) -> None:
    """The response to HEAD has the headers of GET, and the next one follows at once."""
    with server.connect() as connection:
        connection.send_request(f"{path}?id=1", method="HEAD")
        connection.send_request(f"{path}?id=2")
        response = connection.read_response("HEAD")
        assert (response.status, response.body) == (200, b"")
        assert response.headers["content-length"] == str(len("hello 1"))
        assert connection.read_response().body == b"hello 2"


def http2_client(server: Server, certificates: Certificates) -> httpx.AsyncClient:
    """Return a client of HTTP/2 over TLS."""
    return httpx.AsyncClient(
        base_url=server.url,
        verify=certificates.client_context(),
        http1=False,
        http2=True,
        trust_env=False,
        timeout=30,
    )


@pytest.mark.demands("http2")
async def test_50_streams_of_http2_run_at_once(
    tls_server: Server, certificates: Certificates
) -> None:
    """50 requests on one HTTP/2 connection over TLS, each of which waits for all."""
    answers: dict[int, str] = {}
    async with http2_client(tls_server, certificates) as client:

        async def meet(number: int) -> None:
            answer = await client.get(f"/meet/?place=h2&crowd=50&id={number}")
            assert answer.http_version == "HTTP/2"
            answers[number] = answer.text

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(meet, number)
    assert answers == {number: f"met {number}" for number in range(50)}


@pytest.mark.demands("http2")
async def test_50_streams_of_http2_share_the_threads(
    tls_server: Server, certificates: Certificates
) -> None:
    """50 sync requests at once on one HTTP/2 connection get their own answers."""
    answers: dict[int, str] = {}
    async with http2_client(tls_server, certificates) as client:

        async def greet(number: int) -> None:
            answers[number] = (await client.get(f"/sync/hello/?id={number}")).text

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(greet, number)
    assert answers == {number: f"hello {number}" for number in range(50)}
    await trio.to_thread.run_sync(tls_server.wait_for_rest)

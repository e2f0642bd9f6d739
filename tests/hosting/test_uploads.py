"""Uploads through real servers: whole ones, malformed ones, and those that break off.

In every case, nothing is left behind, and the next request is answered.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from multipart_support import (
    BOUNDARY,
    CONTENT_TYPE,
    END,
    field_part,
    file_part,
    part,
)

from ._wire import Connection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._server import Connect, Server

PATHS = ["/store/", "/sync/store/", "/store/later/"]
views = pytest.mark.parametrize("path", PATHS)
streaming_views = pytest.mark.parametrize("path", PATHS[:2])
leaving = pytest.mark.parametrize(
    "leave", [Connection.close, Connection.reset], ids=["fin", "rst"]
)
Leave = Callable[[Connection], None]

FORM = f"Content-Type: {CONTENT_TYPE.decode()}"
WHOLE = field_part(b"green") + file_part(b"leaves")
#: Larger than all buffers on the way together.
LARGE = 30_000_000

#: What Django logs about refused forms, and about sync code that cannot read on.
LOGGED = re.compile(
    r"^(?:django\.http\.multipartparser\.MultiPartParserError"
    r"|django\.core\.exceptions\.TooMany(?:Fields|Files)Sent"
    r"|OSError|django\.http\.request\.UnreadablePostError): ",
    re.MULTILINE,
)


@pytest.fixture(autouse=True)
def _healthy_afterwards(server: Server) -> Iterator[None]:
    """Whatever a test does, the server is at rest afterwards, and serves others."""
    yield
    server.wait_for_rest()
    for path in PATHS:
        with server.connect() as connection:
            send_form(connection, path, WHOLE + END)
            assert connection.read_response("POST").status == 200
    server.wait_for_rest()
    server.tracebacks = len(LOGGED.findall(server.log))
    assert server.log.count("Traceback") == server.tracebacks, server.log


def send_form(
    connection: Connection, path: str, body: bytes, *headers: str, form: str = FORM
) -> None:
    """Send a whole form."""
    length = f"Content-Length: {len(body)}"
    connection.send_request(path, form, length, *headers, method="POST")
    connection.send(body)


@views
def test_a_large_file(server: Server, connect: Connect, path: str) -> None:
    """It arrives unchanged, and is gone when the request is over."""
    content = os.urandom(1_000_000) * 30
    connection = connect()
    send_form(connection, path, file_part(content) + END)
    found = json.loads(connection.read_response("POST").body)
    assert found["files"] == {"file": hashlib.sha256(content).hexdigest()}


@views
@pytest.mark.parametrize(
    ("body", "form", "status"),
    [
        (WHOLE + END, "Content-Type: multipart/form-data", 400),
        (WHOLE + file_part(b"tea").replace(BOUNDARY, b"lea"), FORM, 200),
        (WHOLE + b"--" + BOUNDARY + b"\r\n" + b"X" * 100_000, FORM, 400),
        (WHOLE + file_part(b"x" * 100_000), FORM, 200),
        (file_part(b"x") * 10_000 + END, FORM, 400),
        (WHOLE + part(b"x", b"\x00\x01: y") * 10_000 + END, FORM, 400),
        (file_part(b"x" * 1_000_000) * 11 + END, FORM, 200),
    ],
    ids=[
        "no-boundary",
        "broken-boundary",
        "headers-without-end",
        "file-without-end",
        "ten-thousand-files",
        "ten-thousand-nothings",
        "eleven-files",
    ],
)
def test_a_malformed_form(
    connect: Connect, path: str, body: bytes, form: str, status: int
) -> None:
    """The answer is Django's, and it comes however much of the form is left unread."""
    connection = connect()
    send_form(connection, path, body, form=form)
    assert connection.read_response("POST").status == status


@views
def test_a_header_name_with_control_characters(
    server: Server, connect: Connect, path: str
) -> None:
    """The server refuses it: no view is called."""
    identity = server.new_id()
    connection = connect()
    send_form(connection, f"{path}?id={identity}", WHOLE + END, "X-\x01\x1f: tea")
    assert connection.read_to_end().startswith(b"HTTP/1.1 400")
    assert server.events(identity) == []


def begin_large_file(connection: Connection, target: str, *headers: str) -> None:
    """Send a form up to the middle of its second file."""
    connection.send_request(target, FORM, *headers, method="POST")
    connection.send(WHOLE + file_part(bytes(LARGE))[: LARGE // 10])


@leaving
@streaming_views
@pytest.mark.demands("streamed uploads")
def test_a_client_that_leaves_midway(
    server: Server, connect: Connect, path: str, leave: Leave
) -> None:
    """The view has begun, and two files are in the storage; both are deleted."""
    identity = server.new_id()
    connection = connect()
    begin_large_file(
        connection, f"{path}?id={identity}", f"Content-Length: {2 * LARGE}"
    )
    server.wait_for_event("entered", identity)
    server.wait_for_temporary_files(2)
    leave(connection)
    server.wait_for_event("finished", identity)
    assert server.events(identity) == ["started", "entered", "finished"]


@views
def test_a_chunked_form(server: Server, connect: Connect, path: str) -> None:
    """It is handled like other forms, though its length is not announced."""
    connection = connect()
    connection.send_request(path, FORM, "Transfer-Encoding: chunked", method="POST")
    body = WHOLE + END
    connection.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
    found = json.loads(connection.read_response("POST").body)
    assert found["fields"] == ["field"]
    assert found["files"] == {"file": hashlib.sha256(b"leaves").hexdigest()}


@pytest.mark.parametrize("path", [*PATHS, "/take/", "/sync/take/"])
@pytest.mark.parametrize(
    "ending", [b"", b"5\r\nlea", b"ZZ\r\n"], ids=["end", "short", "malformed"]
)
def test_a_chunked_body_that_stops_short(
    server: Server, connect: Connect, path: str, ending: bytes
) -> None:
    """No view takes it for a complete one."""
    identity = server.new_id()
    connection = connect()
    connection.send_request(
        f"{path}?id={identity}", FORM, "Transfer-Encoding: chunked", method="POST"
    )
    connection.send(b"%x\r\n%b\r\n" % (len(WHOLE), WHOLE) + ending)
    connection.end_sending()
    connection.read_to_end()
    server.wait_for_rest()
    assert "arrived" not in server.events(identity)

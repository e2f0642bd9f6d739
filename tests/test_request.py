"""From scope and body to a request, as in Django 6.1, on every supported Django."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
from django.core.exceptions import RequestDataTooBig
from django.core.handlers import asgi
from django.test import override_settings

from support import http_scope
from trio_asgi import ASGIRequest


def make_request(body: bytes = b"", **scope: Any) -> ASGIRequest:
    """Return a request of a scope with these values."""
    return ASGIRequest(http_scope(**scope), BytesIO(body))


def test_repeated_headers_are_joined_with_a_comma() -> None:
    """Two headers of one name are one value in META."""
    request = make_request(headers=[(b"referer", b"Scotland"), (b"referer", b"Wales")])
    assert request.META["HTTP_REFERER"] == "Scotland,Wales"
    assert request.headers["Referer"] == "Scotland,Wales"


@pytest.mark.parametrize("end", [b"", b";", b"; "])
def test_cookie_headers_are_joined_with_a_semicolon(end: bytes) -> None:
    """HTTP/2 sends several Cookie headers, some with a semicolon at their end."""
    cookies = [b"a=abc", b"b=def", b"c=ghi"]
    request = make_request(headers=[(b"cookie", cookie + end) for cookie in cookies])
    assert request.META["HTTP_COOKIE"] == "a=abc; b=def; c=ghi"
    assert request.COOKIES == {"a": "abc", "b": "def", "c": "ghi"}


def test_the_scope_of_a_request_is_the_servers() -> None:
    """Joining cookies leaves the scope, and the request's reference to it, alone."""
    scope = http_scope(headers=[(b"cookie", b"a=1"), (b"cookie", b"b=2")])
    request = ASGIRequest(scope, BytesIO())
    assert request.scope is scope
    assert scope["headers"] == [(b"cookie", b"a=1"), (b"cookie", b"b=2")]


def test_names_with_an_underscore_are_dropped() -> None:
    """A header that matches another only after conversion for META is dropped."""
    request = make_request(headers=[(b"some_header", b"1"), (b"x_forwarded_for", b"2")])
    assert "HTTP_SOME_HEADER" not in request.META
    assert "HTTP_X_FORWARDED_FOR" not in request.META
    assert "Some-Header" not in request.headers


@pytest.mark.parametrize(
    ("values", "joined"),
    [
        ([b"10", b"20"], "10,20"),
        ([b"abc"], "abc"),
        ([b"-1"], "-1"),
        (["²".encode("latin-1")], "²"),
        ([b" 16 "], " 16 "),
    ],
)
def test_a_malformed_content_length_does_not_crash(
    values: list[bytes], joined: str
) -> None:
    """Body and POST can be read, and META shows the header as sent."""
    headers = [(b"content-type", b"text/plain")]
    headers += [(b"content-length", value) for value in values]
    request = make_request(b"hello world body", method="POST", headers=headers)
    assert dict(request.POST) == {}
    assert request.body == b"hello world body"
    assert request.META["CONTENT_LENGTH"] == joined


def test_a_malformed_content_length_is_no_way_around_the_limit() -> None:
    """DATA_UPLOAD_MAX_MEMORY_SIZE counts the actual bytes."""
    headers = [(b"content-length", b"1"), (b"content-length", b"2")]
    request = make_request(b"x" * 10, method="POST", headers=headers)
    limit = override_settings(DATA_UPLOAD_MAX_MEMORY_SIZE=5)
    with limit, pytest.raises(RequestDataTooBig):
        _ = request.body
    assert request.META["CONTENT_LENGTH"] == "1,2"


def test_many_headers_are_taken_in_linear_time() -> None:
    """META is not written to once for each of 200,000 headers."""
    writes = 0

    class CountingDict(dict[str, Any]):
        def __setitem__(self, key: str, value: Any) -> None:
            nonlocal writes
            writes += 1
            super().__setitem__(key, value)

    class Request(ASGIRequest):
        @property
        def META(self) -> dict[str, Any]:  # noqa: N802
            return self._meta

        @META.setter
        def META(self, value: dict[str, Any]) -> None:  # noqa: N802
            self._meta = CountingDict(value)

    scope = http_scope(headers=[(b"foo", b"bar")] * 200_000)
    request = Request(scope, BytesIO())
    assert request.headers["foo"].count("bar") == 200_000
    assert writes < 100


PREFIXES = [
    # script name, path, the rest of the path
    ("", "/some/path", "/some/path"),
    ("/some", "/some/path", "/path"),
    ("/some/", "/some/path", "/path"),
    ("/some", "/some", ""),
    ("/some", "/somewhere/else", "/somewhere/else"),
    ("/some", "/other/some/path", "/other/some/path"),
    ("/a/b", "/a/b/c", "/c"),
]


@pytest.mark.parametrize(("prefix", "path", "rest"), PREFIXES)
def test_root_path_is_taken_off_at_a_path_boundary(
    prefix: str, path: str, rest: str
) -> None:
    """The server's root_path is the script name, removed only at a slash."""
    request = make_request(path=path, root_path=prefix)
    assert request.script_name == request.META["SCRIPT_NAME"] == prefix
    assert request.path == path
    assert request.path_info == request.META["PATH_INFO"] == rest


@pytest.mark.parametrize(("prefix", "path", "rest"), PREFIXES[1:])
def test_force_script_name_goes_before_root_path(
    prefix: str, path: str, rest: str
) -> None:
    """FORCE_SCRIPT_NAME has the same effect, and overrides root_path."""
    with override_settings(FORCE_SCRIPT_NAME=prefix):
        request = make_request(path=path, root_path="/ignored")
    assert request.script_name == prefix
    assert request.path_info == request.META["PATH_INFO"] == rest


@pytest.mark.parametrize("path", ["/", "/some/päth"])
@pytest.mark.parametrize(
    "headers",
    [
        [],
        [
            (b"host", b"example.org"),
            (b"content-type", b"text/plain; charset=latin-1"),
            (b"content-length", b"4"),
            (b"accept", b"text/html"),
            (b"accept", b"text/plain"),
            (b"x_hidden", b"no"),
            (b"cookie", b"a=1; b=2"),
        ],
    ],
)
def test_every_attribute_is_djangos(
    headers: list[tuple[bytes, bytes]], path: str
) -> None:
    """Where nothing is mended, the request has the same state as Django's own."""
    scope = http_scope(path=path, headers=headers, query_string=b"a=1", method="post")
    body = BytesIO(b"body")
    ours, djangos = ASGIRequest(scope, body), asgi.ASGIRequest(scope, body)
    assert vars(ours) == {**vars(djangos), "_receiver": None}
    assert list(ours.META) == list(djangos.META)

"""Django's sync test client through the handler: what the net catches, and what not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from django.core.handlers.wsgi import WSGIRequest
from django.http import HttpResponse, StreamingHttpResponse
from django.middleware.csrf import CsrfViewMiddleware
from django.test import Client, RequestFactory, override_settings
from django.test.client import ClientHandler, FakePayload
from django.urls import path

import trio_asgi
from django_suite import sync_client
from django_suite.journal import Journal
from django_suite.recorder import Recorder
from trio_asgi.testing import run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from django.http import HttpRequest, HttpResponseBase


def plain(request: HttpRequest) -> HttpResponse:
    """Answer with a cookie and the body."""
    response = HttpResponse(request.body, status=201, headers={"X-Part": "one"})
    response.set_cookie("flavour", "oat")
    response.set_cookie("size", "large")
    return response


def failing(request: HttpRequest) -> HttpResponse:
    """Fail."""
    raise KeyError(request.path)


def parts(*, fail: bool) -> Iterator[bytes]:
    """Yield a part, and one more or an error."""
    yield b"one, "
    if fail:
        raise ValueError("no second part")
    yield b"two"


async def async_parts(*, fail: bool) -> AsyncIterator[bytes]:
    """Yield the same."""
    for part in parts(fail=fail):
        yield part


def stream(request: HttpRequest) -> StreamingHttpResponse:
    """Stream as the query string says."""
    make: Any = async_parts if "async" in request.GET else parts
    return StreamingHttpResponse(make(fail="fail" in request.GET))


urlpatterns = [
    path("", plain),
    path("failing/", failing),
    path("stream/", stream),
]

settings = override_settings(ROOT_URLCONF=__name__)


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """Send the client's requests through our handler, and note what happens."""
    monkeypatch.setattr(ClientHandler, "__call__", ClientHandler.__call__)
    recorder = Recorder(Journal(tmp_path / "journal"))
    recorder.test = "the test"
    recorder.journal.path.touch()
    sync_client.install(recorder)
    with settings:
        yield recorder


def facts(notes: Recorder) -> list[dict[str, Any]]:
    """Return the notes, except the name of the test."""
    lines = notes.journal.path.read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert all(fact.pop("test") == "the test" for fact in found)
    return found


# The request


class Environs(RequestFactory):
    """Makes no request, but records what Django's client gives to its handler."""

    def request(self, **request: Any) -> Any:
        """Return the environ."""
        return self._base_environ(**request)  # type: ignore[attr-defined] # private


@pytest.mark.parametrize(
    ("url", "extra"),
    [
        ("/a%2Fb/%E2%99%A5/?q=%C3%A9&q=2", {}),
        ("", {"SCRIPT_NAME": "/site"}),
        ("/inner/", {"SCRIPT_NAME": "/site/"}),
        ("//two//slashes/", {}),
        ("/", {"HTTP_HOST": "example.org:8000", "HTTP_X_PART": "one"}),
        ("/", {"HTTP_COOKIE": "a=1; b=2", "REMOTE_ADDR": "::1"}),
        ("/", {"SERVER_NAME": "inner", "SERVER_PORT": "8000"}),
        ("/", {"wsgi.url_scheme": "https", "SERVER_PORT": "443"}),
        ("/", {"REQUEST_METHOD": "options"}),
    ],
)
@pytest.mark.parametrize("forced", [None, "/forced/"])
def test_a_scope_says_what_the_environ_says(
    url: str, extra: dict[str, str], forced: str | None
) -> None:
    """The request made from the scope equals the one from the environ."""
    with override_settings(FORCE_SCRIPT_NAME=forced):
        check_scope(url, extra)


def check_scope(url: str, extra: dict[str, str]) -> None:
    """Make both requests, and compare them."""
    environ: Any = Environs().get(url)
    environ |= extra
    scope = sync_client.scope_of(dict(environ))
    ours = trio_asgi.ASGIRequest(scope, FakePayload())  # type: ignore[arg-type]
    theirs = WSGIRequest(environ)

    def told(request: HttpRequest) -> list[Any]:
        return [
            request.method,
            request.path,
            request.path_info,
            request.get_full_path(),
            request.build_absolute_uri(),
            request.GET,
            request.COOKIES,
            {name: value for name, value in request.headers.items() if value},
            request.META["REMOTE_ADDR"],
            request.META["SCRIPT_NAME"],
        ]

    assert told(ours) == told(theirs)


@pytest.mark.usefixtures("notes")
def test_a_body_comes_in_several_messages() -> None:
    """A large body arrives whole, and no more of it than announced."""
    body = bytes(range(256)) * 1000
    client = Client()
    announced: dict[str, Any] = {"CONTENT_LENGTH": str(len(body) - 1)}
    for extra, expected in ({}, body), (announced, body[:-1]):
        response = client.post("/", body, "application/octet-stream", **extra)
        assert response.content == expected


@pytest.mark.usefixtures("notes")
def test_csrf_is_checked_if_the_client_says_so() -> None:
    """``enforce_csrf_checks`` works as with Django's handler."""
    middleware = f"{CsrfViewMiddleware.__module__}.{CsrfViewMiddleware.__qualname__}"
    with override_settings(MIDDLEWARE=[middleware]):
        assert Client().post("/").status_code == 201
        assert Client(enforce_csrf_checks=True).post("/").status_code == 403


def test_a_variable_that_asgi_does_not_know_is_carried(notes: Recorder) -> None:
    """Any other key of the environ is in the request's META."""
    response = Client().get("/", TICKET="4711")
    assert response.wsgi_request.META["TICKET"] == "4711"
    assert facts(notes) == [{"on_trio": True}]


# The response


def test_the_test_gets_the_response_object(notes: Recorder) -> None:
    """The response is the view's, with everything that Django's client adds to it."""
    client = Client()
    response = client.get("/")
    assert isinstance(response.wsgi_request, trio_asgi.ASGIRequest)
    assert response.resolver_match.func is plain
    assert response.closed
    assert (response.status_code, response["X-Part"]) == (201, "one")
    assert client.cookies["flavour"].value == "oat"
    assert facts(notes) == [{"on_trio": True}]


def test_errors_are_raised_in_the_test(notes: Recorder) -> None:
    """A view's error is raised, or kept beside the answer, as the client wants."""
    with pytest.raises(KeyError, match="/failing/"):
        Client().get("/failing/")
    response: Any = Client(raise_request_exception=False).get("/failing/")
    assert response.status_code == 500
    assert response.exc_info[0] is KeyError
    # An error that Django propagates would reach a server.
    with override_settings(DEBUG_PROPAGATE_EXCEPTIONS=True), pytest.raises(KeyError):
        Client().get("/failing/")
    assert facts(notes) == [{"on_trio": True}] * 3


@pytest.mark.parametrize("query", ["", "?async"])
def test_a_stream_is_read_from_what_was_sent(notes: Recorder, query: str) -> None:
    """The test reads the parts that were sent; HEAD gets none."""
    response = Client().get(f"/stream/{query}")
    assert collect(response) == b"one, two"
    assert collect(Client().head(f"/stream/{query}")) == b""
    assert facts(notes) == [{"on_trio": True}] * 2


@pytest.mark.usefixtures("notes")
@pytest.mark.parametrize("query", ["?fail", "?fail&async"])
def test_a_stream_fails_where_the_test_reads_it(query: str) -> None:
    """The error of a stream is raised by the reading, as with Django's handler."""
    response = Client().get(f"/stream/{query}")
    assert response.status_code == 200
    with pytest.raises(ValueError, match="no second part"):
        collect(response)


def collect(response: Any) -> bytes:
    """Read a streamed response."""
    if not response.is_async:
        return b"".join(response)

    async def read() -> bytes:
        return b"".join([part async for part in response])

    return run(read)


# What is sent


def other_status(message: dict[str, Any]) -> dict[str, Any]:
    """Send another status."""
    return message | {"status": 200} if "status" in message else message


def no_cookies(message: dict[str, Any]) -> dict[str, Any]:
    """Send no cookies."""
    kept = [pair for pair in message.get("headers", ()) if pair[0] != b"Set-Cookie"]
    return message | {"headers": kept} if "headers" in message else message


def reversed_body(message: dict[str, Any]) -> dict[str, Any]:
    """Send other bytes."""
    return message | {"body": message["body"][::-1]} if "body" in message else message


def no_end(message: dict[str, Any]) -> dict[str, Any]:
    """Send no end."""
    return message | {"more_body": True}


@pytest.mark.parametrize(
    ("wrong", "difference"),
    [
        (other_status, "the status is 201, sent was 200"),
        (no_cookies, "the headers are "),
        (reversed_body, "the body is b'body', sent was b'ydob'"),
        (no_end, "not only the last message is the last"),
    ],
)
def test_what_is_sent_must_be_what_the_response_says(
    notes: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    wrong: Callable[[dict[str, Any]], dict[str, Any]],
    difference: str,
) -> None:
    """A message that differs from the response fails the test, and is noted."""
    send_response = sync_client.Handler.send_response

    async def send_wrong(self: Any, response: HttpResponseBase, send: Any) -> None:
        sent = send._send

        async def spoiled(message: dict[str, Any]) -> None:
            await sent(wrong(message))

        send._send = spoiled
        await send_response(self, response, send)

    monkeypatch.setattr(sync_client.Handler, "send_response", send_wrong)
    with pytest.raises(sync_client.WireError, match=difference):
        Client().post("/", b"body", "text/plain")
    counted, noted = facts(notes)
    assert counted == {"on_trio": True}
    assert noted["difference"].startswith(difference)


def test_another_response_must_not_be_sent(
    notes: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The object that is sent must be the one that the middleware has returned."""
    send_response = sync_client.Handler.send_response

    async def send_other(self: Any, response: HttpResponseBase, send: Any) -> None:
        await send_response(self, HttpResponse("other"), send)

    monkeypatch.setattr(sync_client.Handler, "send_response", send_other)
    with pytest.raises(sync_client.WireError, match="returned was "):
        Client().get("/")
    assert len(facts(notes)) == 2


async def test_a_call_in_a_trio_task_is_left_to_django(notes: Recorder) -> None:
    """The sync client of an async test would stop its loop either way."""
    assert Client().get("/").status_code == 201
    assert facts(notes) == [{"on_trio": False}]

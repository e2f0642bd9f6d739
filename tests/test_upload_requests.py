"""Whole requests with uploads: when a file is in the storage, and when deleted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import trio
from django.core.files.base import File
from django.core.files.storage import FileSystemStorage
from django.http import HttpRequest, HttpResponse, UnreadablePostError
from django.middleware.csrf import get_token
from django.test import RequestFactory, override_settings
from django.urls import path
from django.views.decorators.csrf import csrf_exempt, csrf_protect

import trio_asgi
from multipart_support import END, field_part, file_part, form_headers
from support import Answer, application, http_scope, receive_answer, request
from trio_asgi.testing import ApplicationCommunicator
from trio_asgi.uploads import StorageUploadedFile, StorageUploadHandler

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from trio_asgi import ASGIHandler

WHOLE = file_part(b"leaves") + END
View = Callable[..., Any]


class WatchedStorage(FileSystemStorage):
    """A storage that tells a test when a file has grown."""

    def __init__(self, location: Path) -> None:
        super().__init__(location)
        self.written = trio.Event()

    def _open(self, name: str, mode: str = "rb") -> File[Any]:
        storage = self

        class Watched(File[Any] if TYPE_CHECKING else File):  # type: ignore[misc]
            def write(self, data: bytes) -> int:
                size: int = self.file.write(data)
                trio.from_thread.run_sync(storage.written.set)
                return size

        return Watched(Path(self.path(name)).open(mode))


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Provide the directory of the default storage."""
    with override_settings(MEDIA_ROOT=tmp_path):
        yield tmp_path


def uploaded(request: HttpRequest) -> StorageUploadedFile:
    """Return the form's file."""
    file = request.FILES["file"]
    assert isinstance(file, StorageUploadedFile)
    return file


async def post(
    app: ASGIHandler, body: bytes, headers: Sequence[tuple[bytes, bytes]] = ()
) -> Answer:
    """Send a form, and return the whole answer."""
    headers = [*form_headers(len(body)), *headers]
    return await request(app, method="POST", body=body, headers=headers)


def use_storage(request: HttpRequest) -> None:
    """Send the files of this request's form to the storage."""
    request.upload_handlers = [StorageUploadHandler(request)]


# After the end of a request


def keep(request: HttpRequest) -> HttpResponse:
    """Keep the file."""
    use_storage(request)
    return HttpResponse(uploaded(request).keep())


async def akeep(request: HttpRequest) -> HttpResponse:
    """Keep the file, in an async view."""
    use_storage(request)
    return HttpResponse(uploaded(request).keep())


@pytest.mark.parametrize("view", [keep, akeep])
async def test_a_kept_file_outlives_its_request(directory: Path, view: View) -> None:
    """It is where `keep` has said."""
    answer = await post(application(path("", view)), WHOLE)
    assert [file.name for file in directory.iterdir()] == [answer.body.decode()]
    assert (directory / answer.body.decode()).read_bytes() == b"leaves"


def forget(request: HttpRequest) -> HttpResponse:
    """Only read the file."""
    use_storage(request)
    return HttpResponse(uploaded(request).read())


async def aforget(request: HttpRequest) -> HttpResponse:
    """Only read the file, in an async view."""
    return forget(request)


def fail(request: HttpRequest) -> NoReturn:
    """Fail with the file in the storage."""
    use_storage(request)
    assert uploaded(request)
    raise LookupError


async def afail(request: HttpRequest) -> NoReturn:
    """Fail with the file in the storage, in an async view."""
    fail(request)


@pytest.mark.parametrize(
    ("view", "status"), [(forget, 200), (aforget, 200), (fail, 500), (afail, 500)]
)
async def test_a_file_ends_with_its_request(
    directory: Path, view: View, status: int
) -> None:
    """Whether the view ignores it or fails, it is deleted."""
    answer = await post(application(path("", view)), WHOLE)
    assert answer.status == status
    assert [*directory.iterdir()] == []


async def test_a_file_ends_with_a_cancelled_request(directory: Path) -> None:
    """A client that disconnects when all has arrived leaves no file."""
    entered = trio.Event()

    async def view(request: HttpRequest) -> NoReturn:
        use_storage(request)
        assert Path(directory, uploaded(request).stored_name).exists()
        entered.set()
        await trio.sleep_forever()

    app = application(path("", view))
    scope = http_scope(method="POST", headers=form_headers(len(WHOLE)))
    async with ApplicationCommunicator(app, scope) as communicator:
        await communicator.send_input({"type": "http.request", "body": WHOLE})
        await entered.wait()
        await communicator.send_input({"type": "http.disconnect"})
        await communicator.wait()
    assert [*directory.iterdir()] == []


# CSRF


@csrf_protect
def protected(request: HttpRequest) -> HttpResponse:
    """Keep the file if the token is right."""
    return HttpResponse(uploaded(request).keep())


@csrf_exempt
def exempt(request: HttpRequest) -> HttpResponse:
    """Set the handler before the token is checked."""
    use_storage(request)
    return protected(request)


@csrf_protect
async def aprotected(request: HttpRequest) -> HttpResponse:
    """Keep the file if the token is right."""
    return HttpResponse(uploaded(request).keep())


@csrf_exempt
@trio_asgi.stream_body
async def aexempt(request: trio_asgi.ASGIRequest) -> HttpResponse:
    """Set the handler, and let it run, before the token is checked."""
    use_storage(request)
    await request.aread()
    return await aprotected(request)


@pytest.mark.parametrize("is_right", [True, False], ids=["right", "wrong"])
@pytest.mark.parametrize("view", [exempt, aexempt])
async def test_the_token_is_in_the_form(
    directory: Path, view: View, is_right: bool
) -> None:
    """It is checked when all has arrived; if it is wrong, the file is deleted."""
    other = RequestFactory().get("/")
    token = get_token(other).encode()
    secret = other.META["CSRF_COOKIE"].encode()
    sent = field_part(token if is_right else b"x", name=b"csrfmiddlewaretoken")
    app = application(
        path("", view), middleware=["django.middleware.csrf.CsrfViewMiddleware"]
    )
    answer = await post(app, sent + WHOLE, [(b"cookie", b"csrftoken=" + secret)])
    assert answer.status == (200 if is_right else 403)
    assert len([*directory.iterdir()]) == is_right


# While the client sends


def streaming_view(
    storage: FileSystemStorage, errors: list[Exception], *, is_async: bool
) -> View:
    """Return a view that starts before the form has come, and notes its error."""

    @contextmanager
    def noting_errors() -> Iterator[None]:
        try:
            yield
        except Exception as error:
            errors.append(error)
            raise

    @trio_asgi.stream_body
    def view(request: HttpRequest) -> HttpResponse:
        request.upload_handlers = [StorageUploadHandler(request, storage=storage)]
        with noting_errors():
            return HttpResponse(str(uploaded(request).size))

    @trio_asgi.stream_body
    async def aview(request: trio_asgi.ASGIRequest) -> HttpResponse:
        request.upload_handlers = [StorageUploadHandler(request, storage=storage)]
        with noting_errors():
            await request.aread()
        return HttpResponse(str(uploaded(request).size))

    return aview if is_async else view


LARGE = file_part(bytes(300_000)) + END
in_both_kinds = pytest.mark.parametrize(
    "is_async", [False, True], ids=["sync", "async"]
)


@asynccontextmanager
async def half_sent(
    storage: WatchedStorage, view: View, *, length: int = len(LARGE)
) -> AsyncIterator[ApplicationCommunicator]:
    """Send half of a file, until some of that is in the storage."""
    scope = http_scope(method="POST", headers=form_headers(length))
    app = application(path("", view))
    async with ApplicationCommunicator(app, scope) as communicator:
        await communicator.send_input(
            {"type": "http.request", "body": LARGE[:150_000], "more_body": True}
        )
        await storage.written.wait()
        (file,) = Path(storage.location).iterdir()
        assert file.stat().st_size > 50_000
        yield communicator
        await communicator.wait()
    assert [*Path(storage.location).iterdir()] == []


@in_both_kinds
async def test_a_file_is_stored_while_the_client_sends(
    tmp_path: Path, is_async: bool
) -> None:
    """The first half is there before the second is sent."""
    storage = WatchedStorage(tmp_path)
    view = streaming_view(storage, [], is_async=is_async)
    async with half_sent(storage, view) as communicator:
        await communicator.send_input({"type": "http.request", "body": LARGE[150_000:]})
        assert (await receive_answer(communicator)).body == b"300000"


@in_both_kinds
async def test_a_client_that_leaves_midway(tmp_path: Path, is_async: bool) -> None:
    """Half of a file is deleted; sync code gets an error, async code is cancelled."""
    storage = WatchedStorage(tmp_path)
    errors: list[Exception] = []
    view = streaming_view(storage, errors, is_async=is_async)
    async with half_sent(storage, view) as communicator:
        await communicator.send_input({"type": "http.disconnect"})
    told = [] if is_async else [UnreadablePostError]
    assert [type(error) for error in errors] == told


@in_both_kinds
async def test_a_body_that_grows_too_large(tmp_path: Path, is_async: bool) -> None:
    """The parts that came earlier are deleted, and the answer is 413."""
    storage = WatchedStorage(tmp_path)
    view = streaming_view(storage, [], is_async=is_async)
    limited = trio_asgi.limit_body(max_size=200_000)(view)
    # Like a client that announces less than it sends.
    async with half_sent(storage, limited, length=200_000) as communicator:
        await communicator.send_input({"type": "http.request", "body": LARGE[150_000:]})
        assert (await receive_answer(communicator)).status == 413

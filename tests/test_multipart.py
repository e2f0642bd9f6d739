"""Malformed forms: Django's answer, nothing left behind, and the next request works.

Each is given to a sync and to an async view, whether or not the body is read before the
view starts, and to Django's upload handlers as well as to ours.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.http import HttpRequest, JsonResponse
from django.test import Client, override_settings
from django.urls import path

from multipart_support import (
    BOUNDARY,
    CONTENT_TYPE,
    END,
    field_part,
    file_part,
    form_headers,
    part,
)
from support import Answer, application, http_scope, receive_answer, request
from thread_support import assert_at_rest
from trio_asgi import ASGIHandler, ASGIRequest, stream_body
from trio_asgi.testing import ApplicationCommunicator
from trio_asgi.threads.current import current_pool
from trio_asgi.uploads import StorageUploadHandler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OK = 200
#: How much of a body comes at a time.
PIECE = 10_000

DISPOSITION = b'Content-Disposition: form-data; name="field"'
NAMED = b'Content-Disposition: form-data; name="file"; filename="leaves.bin"'


@dataclass(frozen=True)
class Case:
    """A malformed request."""

    body: bytes
    content_type: bytes = CONTENT_TYPE
    status: int = 200
    #: What the view finds, if it is called.
    fields: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    @property
    def report(self) -> dict[str, list[str]]:
        """What the view reports."""
        return {"fields": [*self.fields], "files": [*self.files]}


WHOLE = field_part(b"green") + file_part(b"leaves")
CASES = {
    "no-boundary": Case(WHOLE + END, b"multipart/form-data", status=400),
    "long-boundary": Case(
        WHOLE + END, b"multipart/form-data; boundary=" + b"x" * 300, status=400
    ),
    "boundary-not-ascii": Case(
        WHOLE + END, b"multipart/form-data; boundary=\xe9", status=400
    ),
    # All of it is one part, and the file is part of a field.
    "other-boundary": Case(
        WHOLE + END, b"multipart/form-data; boundary=other", fields=("field",)
    ),
    "boundary-broken-midway": Case(
        WHOLE + file_part(b"tea", name=b"second").replace(BOUNDARY, b"lea"),
        fields=("field",),
    ),
    "ten-thousand-fields": Case(field_part(b"x") * 10_000 + END, status=400),
    "ten-thousand-files": Case(file_part(b"x") * 10_000 + END, status=400),
    "ten-thousand-nothings": Case(part(b"x", b"X: y") * 10_000 + END, status=400),
    "field-without-end": Case(field_part(b"green"), fields=("field",)),
    "file-without-end": Case(
        WHOLE + file_part(b"x" * 200_000, name=b"second"),
        fields=("field",),
        files=("file",),
    ),
    "no-end-of-headers": Case(
        WHOLE + b"--" + BOUNDARY + b"\r\n" + b"X" * 5000, status=400
    ),
    "endless-headers": Case(
        WHOLE + part(b"x", *[b"X: " + b"y" * 100] * 100) + END, status=400
    ),
    "control-in-header-name": Case(
        WHOLE + part(b"x", DISPOSITION.replace(b"Dis", b"\x00\x07Dis")) + END,
        fields=("field",),
        files=("file",),
    ),
    "control-in-field-name": Case(
        part(b"x", DISPOSITION.replace(b"field", b"fi\x00eld")) + END,
        fields=("fi\x00eld",),
    ),
    "control-in-file-name": Case(
        part(b"x", NAMED.replace(b"leaves", b"\x01\x02\x1f")) + END, files=("file",)
    ),
    "header-not-utf-8": Case(part(b"x", DISPOSITION.replace(b"field", b"\xff")) + END),
    "bad-base64": Case(
        WHOLE + file_part(b"a", b"Content-Transfer-Encoding: base64") + END, status=400
    ),
    "nothing-but-boundaries": Case((b"--" + BOUNDARY) * 1000),
    "binary": Case(bytes(range(256)) * 100, status=400),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def report(request: HttpRequest) -> JsonResponse:
    """Return what is in the form; parse it in the request's thread."""
    return JsonResponse(
        {"fields": sorted(request.POST), "files": sorted(request.FILES)}
    )


async def areport(request: ASGIRequest) -> JsonResponse:
    """Do the same in an async view."""
    await request.aread()
    return report(request)


def store(request: HttpRequest) -> JsonResponse:
    """Return what is in the form, with files going straight to the storage."""
    request.upload_handlers = [StorageUploadHandler(request)]
    return report(request)


async def astore(request: ASGIRequest) -> JsonResponse:
    """Do the same in an async view."""
    request.upload_handlers = [StorageUploadHandler(request)]
    return await areport(request)


VIEWS: dict[str, Callable[..., Any]] = {
    "report": report,
    "areport": areport,
    "store": store,
    "astore": astore,
    "report/streamed": stream_body(report),
    "areport/streamed": stream_body(areport),
    "store/streamed": stream_body(store),
    "astore/streamed": stream_body(astore),
}
views = pytest.mark.parametrize("view", VIEWS)


@pytest.fixture
def app() -> ASGIHandler:
    """Serve all of the views."""
    return application(*(path(f"{name}/", view) for name, view in VIEWS.items()))


@pytest.fixture(autouse=True)
def directory(tmp_path: Path) -> Iterator[Path]:
    """Provide the only directory for all files; they are on disk from a KiB on."""
    with override_settings(
        FILE_UPLOAD_MAX_MEMORY_SIZE=1024,
        FILE_UPLOAD_TEMP_DIR=tmp_path,
        MEDIA_ROOT=tmp_path,
    ):
        yield tmp_path


@pytest.fixture(autouse=True)
def spooled_in(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Python's own temporary files go to the same directory."""
    monkeypatch.setattr(tempfile, "tempdir", str(directory))


def open_files(directory: Path) -> list[str]:
    """Return the files in a directory: the visible ones, and those without a name."""
    found = [str(file) for file in directory.iterdir()]
    for link in Path("/proc/self/fd").glob("*"):
        with suppress(FileNotFoundError):  # it was the one opened to list these
            found.append(str(link.readlink()))
    return [name for name in found if name.startswith(str(directory))]


async def send_form(app: ASGIHandler, view: str, case: Case) -> Answer:
    """Send a form in pieces, and return the whole answer."""
    scope = http_scope(
        f"/{view}/",
        method="POST",
        headers=form_headers(len(case.body), case.content_type),
    )
    async with ApplicationCommunicator(app, scope) as communicator:
        for start in range(0, len(case.body), PIECE):
            await communicator.send_input(
                {
                    "type": "http.request",
                    "body": case.body[start : start + PIECE],
                    "more_body": start + PIECE < len(case.body),
                }
            )
        answer = await receive_answer(communicator)
        await communicator.wait()
    return answer


async def assert_healthy(app: ASGIHandler, view: str, directory: Path) -> None:
    """Check that nothing is left of earlier requests, and the next one is answered."""
    assert open_files(directory) == []
    assert_at_rest(current_pool())
    case = Case(WHOLE + END)
    answer = await send_form(app, view, case)
    assert json.loads(answer.body) == {"fields": ["field"], "files": ["file"]}
    assert open_files(directory) == []


@views
@cases
async def test_a_malformed_form(
    app: ASGIHandler, directory: Path, view: str, case: Case
) -> None:
    """It is refused, or the view finds the valid part of it; nothing is left."""
    answer = await send_form(app, view, case)
    assert answer.status == case.status
    if case.status == OK:
        assert json.loads(answer.body) == case.report
    await assert_healthy(app, view, directory)


@cases
def test_the_answer_is_djangos(case: Case) -> None:
    """Django's own handler gives the same answer."""
    content_type = case.content_type.decode("latin-1")
    # It would leave a file on disk open for some time if the parsing failed.
    in_memory = override_settings(FILE_UPLOAD_MAX_MEMORY_SIZE=2**30)
    with in_memory, override_settings(ROOT_URLCONF=(path("", report),)):
        answer = Client(raise_request_exception=False).generic(
            "POST", "/", case.body, content_type=content_type
        )
    assert answer.status_code == case.status
    if case.status == OK:
        assert answer.json() == case.report


@views
async def test_a_client_that_leaves_midway(
    app: ASGIHandler, directory: Path, view: str
) -> None:
    """Nothing is left of the data it sent."""
    body = WHOLE + file_part(b"x" * 200_000, name=b"second")
    scope = http_scope(f"/{view}/", method="POST", headers=form_headers(2 * len(body)))
    async with ApplicationCommunicator(app, scope) as communicator:
        await communicator.send_input(
            {"type": "http.request", "body": body, "more_body": True}
        )
        await communicator.send_input({"type": "http.disconnect"})
        await communicator.wait()
    await assert_healthy(app, view, directory)


@views
async def test_header_names_with_control_characters(
    app: ASGIHandler, directory: Path, view: str
) -> None:
    """No server lets them through; if one did, the form would be read anyway."""
    body = WHOLE + END
    answer = await request(
        app,
        f"/{view}/",
        method="POST",
        body=body,
        headers=[(b"x-\x00\r\n\x1f", b"tea"), *form_headers(len(body))],
    )
    assert json.loads(answer.body) == {"fields": ["field"], "files": ["file"]}
    await assert_healthy(app, view, directory)

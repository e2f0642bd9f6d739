"""Views that do one thing each, and write down how it went."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import trio
from django.core.files.uploadedfile import TemporaryUploadedFile
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.views.decorators.csrf import csrf_exempt

from . import journal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from django.http import HttpRequest


async def hello(request: HttpRequest) -> HttpResponse:
    """Greet."""
    return HttpResponse(f"hello {request.GET.get('id')}")


def sync_hello(request: HttpRequest) -> HttpResponse:
    """Greet, in a thread."""
    return HttpResponse(f"hello {request.GET.get('id')}")


# Bodies


def _digest(request: HttpRequest) -> HttpResponse:
    journal.note("entered", request)
    found = hashlib.sha256()
    while chunk := request.read(2**16):
        found.update(chunk)
    return HttpResponse(found.hexdigest())


@csrf_exempt
async def digest(request: HttpRequest) -> HttpResponse:
    """Return the hash of the body."""
    return _digest(request)


@csrf_exempt
def sync_digest(request: HttpRequest) -> HttpResponse:
    """Return the hash of the body, in a thread."""
    return _digest(request)


@csrf_exempt
def upload(request: HttpRequest) -> HttpResponse:
    """Return the hash of an uploaded file, which must have gone to disk."""
    file = request.FILES["file"]
    assert isinstance(file, TemporaryUploadedFile)
    assert Path(file.temporary_file_path()).exists()
    return HttpResponse(hashlib.sha256(b"".join(file.chunks())).hexdigest())


# Waiting

_met: dict[str, trio.Event] = {}
_waiting: dict[str, int] = {}


async def meet(request: HttpRequest) -> HttpResponse:
    """Wait until as many requests are here as each of them says."""
    place, crowd = request.GET["place"], int(request.GET["crowd"])
    met = _met.setdefault(place, trio.Event())
    _waiting[place] = _waiting.get(place, 0) + 1
    if _waiting[place] == crowd:
        met.set()
    await met.wait()
    return HttpResponse(f"met {request.GET['id']}")


@csrf_exempt
async def wait(request: HttpRequest) -> NoReturn:
    """Wait for ever."""
    journal.note("entered", request)
    try:
        await trio.sleep_forever()
    except trio.Cancelled:
        journal.note("cancelled", request)
        raise
    finally:
        journal.note("cleaned up", request)


async def wait_for_file(request: HttpRequest) -> HttpResponse:
    """Wait until a file is there."""
    journal.note("entered", request)
    path = trio.Path(request.GET["path"])
    while not await path.exists():
        await trio.sleep(0.01)
    return HttpResponse("it is there")


class _Farewell(HttpResponse):
    """A response that says when it is closed."""

    def __init__(self, request: HttpRequest) -> None:
        super().__init__("too late")
        self._request = request

    def close(self) -> None:
        journal.note("response closed", self._request)
        super().close()


@csrf_exempt
def sync_wait(request: HttpRequest) -> HttpResponse:
    """Wait in a thread until the request is cancelled, and go on regardless."""
    journal.note("entered", request)
    try:
        while True:
            trio.from_thread.check_cancelled()
            time.sleep(0.01)
    except trio.Cancelled:
        journal.note("cancelled", request)
    journal.note("ran on", request, body=request.body.decode())
    return _Farewell(request)


def sync_hang(request: HttpRequest) -> NoReturn:
    """Wait for ever in a thread, whatever happens."""
    journal.note("entered", request)
    while True:
        threading.Event().wait()


# Streams


async def stream(request: HttpRequest) -> StreamingHttpResponse:
    """Stream one part, and then nothing for ever."""

    async def parts() -> AsyncIterator[bytes]:
        try:
            yield b"first part"
            journal.note("entered", request)
            await trio.sleep_forever()
        finally:
            journal.note("cleaned up", request)

    return StreamingHttpResponse(parts())


def sync_stream(request: HttpRequest) -> StreamingHttpResponse:
    """Stream parts from a thread without end."""

    def parts() -> Iterator[bytes]:
        try:
            yield b"first part"
            journal.note("entered", request)
            while True:
                time.sleep(0.01)
                yield b"another part"
        finally:
            journal.note("cleaned up", request)

    return StreamingHttpResponse(parts())


async def flood(request: HttpRequest) -> StreamingHttpResponse:
    """Stream large parts without end, and clean up with an await."""

    async def parts() -> AsyncIterator[bytes]:
        try:
            journal.note("entered", request)
            while True:
                yield bytes(100_000)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.01)
            journal.note("cleaned up", request)

    return StreamingHttpResponse(parts())


def sync_flood(request: HttpRequest) -> StreamingHttpResponse:
    """Stream large parts from a thread without end."""

    def parts() -> Iterator[bytes]:
        try:
            journal.note("entered", request)
            while True:
                yield bytes(100_000)
        finally:
            journal.note("cleaned up", request)

    return StreamingHttpResponse(parts())


async def large(request: HttpRequest) -> HttpResponse:
    """Return a large body at once, of as many bytes as asked for."""
    journal.note("entered", request)
    return HttpResponse(b"x" * int(request.GET.get("bytes", 200_000)))


def sync_large(request: HttpRequest) -> HttpResponse:
    """Return a large body from a thread, of as many bytes as asked for."""
    journal.note("entered", request)
    return HttpResponse(b"x" * int(request.GET["bytes"]))


# Errors


async def boom(request: HttpRequest) -> NoReturn:
    """Fail."""
    raise LookupError("the async kettle is broken")


def sync_boom(request: HttpRequest) -> NoReturn:
    """Fail in a thread."""
    raise LookupError("the sync kettle is broken")


# The state of the process


async def state(request: HttpRequest) -> JsonResponse:
    """Return what there is in this process, this request included."""
    return JsonResponse(
        {
            "pid": os.getpid(),
            "in_flight": sorted(journal.in_flight),
            "tasks": sorted(_task_names(trio.lowlevel.current_root_task())),
            "threads": sorted(thread.name for thread in threading.enumerate()),
            "files": sorted(_temporary_files()),
            "peak_kilobytes": _peak_kilobytes(),
        }
    )


def _task_names(task: trio.lowlevel.Task | None) -> Iterator[str]:
    assert task is not None
    yield task.name
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from _task_names(child)


def _temporary_files() -> Iterator[str]:
    """Yield the temporary files: the visible ones, and the open ones without a name."""
    directory = Path(tempfile.gettempdir())
    yield from map(str, directory.iterdir())
    for link in Path("/proc/self/fd").glob("*"):
        try:
            target = str(link.readlink())
        except FileNotFoundError:
            continue  # the one that listed the directory
        if target.startswith(f"{directory}/"):
            yield target


def _peak_kilobytes() -> int:
    """Return the most memory that the process has used; 0 where nobody knows."""
    try:
        status = Path("/proc/self/status").read_text()
    except FileNotFoundError:
        return 0
    return int(status.partition("VmHWM:")[2].split()[0])

"""Views that do one thing each, and record how it went."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import trio
from django.core.files.uploadedfile import TemporaryUploadedFile
from django.http import (
    FileResponse,
    HttpResponse,
    JsonResponse,
    StreamingHttpResponse,
)
from django.utils.http import http_date
from django.views.decorators.csrf import csrf_exempt

from trio_asgi.ranges import apply_range
from trio_asgi.response.event_stream import EventStream
from trio_asgi.response.server_sent_event import ServerSentEvent, last_event_id
from trio_asgi.tasks import snapshot

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
    """Return the hash of an uploaded file, which must have been written to disk."""
    file = request.FILES["file"]
    assert isinstance(file, TemporaryUploadedFile)
    assert Path(file.temporary_file_path()).exists()
    return HttpResponse(hashlib.sha256(b"".join(file.chunks())).hexdigest())


# Waiting

_met: dict[str, trio.Event] = {}
_waiting: dict[str, int] = {}


async def meet(request: HttpRequest) -> HttpResponse:
    """Wait until as many requests are here as each of them demands."""
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
    """Wait until a file exists."""
    journal.note("entered", request)
    path = trio.Path(request.GET["path"])
    while not await path.exists():
        await trio.sleep(0.01)
    return HttpResponse("it is there")


class _Farewell(HttpResponse):
    """A response that records when it is closed."""

    def __init__(self, request: HttpRequest) -> None:
        super().__init__("too late")
        self._request = request

    def close(self) -> None:
        journal.note("response closed", self._request)
        super().close()


@csrf_exempt
def sync_wait(request: HttpRequest) -> HttpResponse:
    """Wait in a thread until the request is cancelled, and then continue anyway."""
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
    """Wait for ever in a thread, despite any cancellation."""
    journal.note("entered", request)
    while True:
        threading.Event().wait()


# Streams


async def stream(request: HttpRequest) -> StreamingHttpResponse:
    """Stream one part, and then nothing more, for ever."""

    async def parts() -> AsyncIterator[bytes]:
        try:
            yield b"first part"
            journal.note("entered", request)
            await trio.sleep_forever()
        finally:
            journal.note("cleaned up", request)

    return StreamingHttpResponse(parts())


def sync_stream(request: HttpRequest) -> StreamingHttpResponse:
    """Stream parts from a thread endlessly."""

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
    """Stream large parts endlessly, and clean up with an await."""

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
    """Stream large parts from a thread endlessly."""

    def parts() -> Iterator[bytes]:
        try:
            journal.note("entered", request)
            while True:
                yield bytes(100_000)
        finally:
            journal.note("cleaned up", request)

    return StreamingHttpResponse(parts())


async def large(request: HttpRequest) -> HttpResponse:
    """Return a large body at once, of as many bytes as requested."""
    journal.note("entered", request)
    return HttpResponse(b"x" * int(request.GET.get("bytes", 200_000)))


def sync_large(request: HttpRequest) -> HttpResponse:
    """Return a large body from a thread, of as many bytes as requested."""
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
    """Return the state of this process, including this request."""
    return JsonResponse(
        {
            "pid": os.getpid(),
            "in_flight": sorted(journal.in_flight),
            "tasks": sorted(_task_names(trio.lowlevel.current_root_task())),
            "threads": sorted(thread.name for thread in threading.enumerate()),
            "files": sorted(_temporary_files()),
            "sockets": sum(name.startswith("socket:") for name in _open_files()),
            "peak_kilobytes": _peak_kilobytes(),
        }
    )


async def tasks(request: HttpRequest) -> JsonResponse:
    """Return what runs in this process, without this request."""
    return JsonResponse(snapshot())


def _task_names(task: trio.lowlevel.Task | None) -> Iterator[str]:
    """Yield the names of tasks, but for timers: each stays from its first use on."""
    assert task is not None
    if task.name != "trio_asgi.asgi.timers.Timer.call":
        yield task.name
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from _task_names(child)


def _temporary_files() -> Iterator[str]:
    """Yield the temporary files: the visible ones, and the open ones without a name."""
    directory = Path(tempfile.gettempdir())
    yield from map(str, directory.iterdir())
    for target in _open_files():
        if target.startswith(f"{directory}/"):
            yield target


def _open_files() -> Iterator[str]:
    """Yield Linux's names for the open files; elsewhere nothing."""
    for link in Path("/proc/self/fd").glob("*"):
        with suppress(FileNotFoundError):  # the one opened to list the directory
            yield str(link.readlink())


def _peak_kilobytes() -> int:
    """Return the most memory that the process has used; 0 where that is unknown."""
    try:
        status = Path("/proc/self/status").read_text()
    except FileNotFoundError:
        return 0
    return int(status.partition("VmHWM:")[2].split()[0])


# Server-sent events


EVENTS_PAGE = """<!doctype html>
<title>Events</title>
<script>
const query = location.search;
const seen = [];
const note = event => seen.push([event.type, event.data, event.lastEventId]);
const source = new EventSource("/events/for/browser/" + query);
source.onopen = () => seen.push(["open"]);
source.onerror = () => seen.push(["error", source.readyState]);
source.onmessage = note;
source.addEventListener("caf\xe9", note);
source.addEventListener("done", event => {
  note(event);
  fetch("/events/seen/" + query, {method: "POST", body: JSON.stringify(seen)});
});
</script>
"""


async def events_page(request: HttpRequest) -> HttpResponse:
    """Return a page that listens to events, and finally reports what it has seen."""
    return HttpResponse(EVENTS_PAGE)


@csrf_exempt
async def events_seen(request: HttpRequest) -> HttpResponse:
    """Record what a page has seen."""
    journal.note("seen", request, events=json.loads(request.body))
    return HttpResponse(status=204)


async def events_for_browser(request: HttpRequest) -> EventStream:
    """Stream events of all kinds, and the last one when the browser reconnects."""
    last = last_event_id(request)
    journal.note("connected", request, last_event_id=last)
    return EventStream(_last_events(request) if last else _first_events(request))


async def _first_events(request: HttpRequest) -> AsyncIterator[object]:
    yield ServerSentEvent(retry=50)
    yield "plain"
    yield " one\ntwo\r\n\rfour\n"
    yield ""
    yield "\ufeff\u2615 \U0001f375 \0 \x85 \u2028 :"
    yield {"price": 1.5, "name": "\u2615\n"}
    yield ServerSentEvent(comment="nobody sees this\ndata: nor this")
    yield ServerSentEvent("typed", event="caf\xe9")
    yield ServerSentEvent("not listened to", event="other")
    yield ServerSentEvent("with an id", id="caf\xe9 \u2615")
    yield "with the same id"
    if request.GET["then"] == "fail":
        raise LookupError("the browser's kettle is empty")
    if request.GET["then"] == "stay":
        journal.note("entered", request)
        try:
            await trio.sleep_forever()
        finally:
            journal.note("cleaned up", request)


async def _last_events(request: HttpRequest) -> AsyncIterator[object]:
    yield ServerSentEvent("done", event="done", id="")
    await trio.sleep_forever()


async def events(request: HttpRequest) -> EventStream:
    """Stream an event, and then nothing more, for ever."""
    return EventStream(_one_event(request), keep_alive=60)


def sync_events(request: HttpRequest) -> EventStream:
    """Do the same in a thread."""
    return EventStream(_one_event(request), keep_alive=60)


async def _one_event(request: HttpRequest) -> AsyncIterator[str]:
    try:
        yield "first"
        journal.note("entered", request)
        await trio.sleep_forever()
    finally:
        journal.note("cleaned up", request)


async def no_events(request: HttpRequest) -> EventStream:
    """Stream only comments."""

    async def wait() -> AsyncIterator[str]:
        await trio.sleep(math.inf)
        yield "never"

    return EventStream(wait(), keep_alive=float(request.GET["keep_alive"]))


async def many_events(request: HttpRequest) -> EventStream:
    """Stream large events endlessly."""

    async def make() -> AsyncIterator[str]:
        journal.note("entered", request)
        try:
            while True:
                yield "x" * 100_000
        finally:
            journal.note("cleaned up", request)

    return EventStream(make())


async def failing_events(request: HttpRequest) -> EventStream:
    """Stream an event, and fail."""

    async def fail() -> AsyncIterator[str]:
        yield "first"
        raise LookupError("the kettle is empty")

    return EventStream(fail())


# Files


def file(request: HttpRequest) -> FileResponse:
    """Send a file, whole or in parts."""
    name = Path(request.GET["path"])
    response = FileResponse(name.open("rb"))
    response["Last-Modified"] = http_date(name.stat().st_mtime)
    return apply_range(request, response)

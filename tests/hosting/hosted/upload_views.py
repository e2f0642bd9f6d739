"""Views that take uploads while they arrive, in the storage of the temporary files."""

from __future__ import annotations

import hashlib
import tempfile
from typing import TYPE_CHECKING

from django.core.files.storage import FileSystemStorage
from django.http import HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt

import trio_asgi
from trio_asgi.uploads import StorageUploadedFile, StorageUploadHandler

from . import journal

if TYPE_CHECKING:
    from django.http import HttpRequest

    from trio_asgi import ASGIRequest

_storage = FileSystemStorage(tempfile.gettempdir())


def _enter(request: HttpRequest) -> None:
    journal.note("entered", request)
    request.upload_handlers = [StorageUploadHandler(request, storage=_storage)]


def _digests(request: HttpRequest) -> JsonResponse:
    """Return the names of the fields, and the hash of each file."""
    digests = {}
    for name, file in request.FILES.items():
        assert isinstance(file, StorageUploadedFile)
        digests[name] = hashlib.sha256(b"".join(file.chunks())).hexdigest()
    journal.note("arrived", request)
    return JsonResponse({"fields": [*request.POST], "files": digests})


@csrf_exempt
@trio_asgi.stream_body
async def store(request: ASGIRequest) -> JsonResponse:
    """Store files as they arrive."""
    _enter(request)
    await request.aread()
    return _digests(request)


@csrf_exempt
@trio_asgi.stream_body
def sync_store(request: HttpRequest) -> JsonResponse:
    """Store files as they arrive, in a thread."""
    _enter(request)
    return _digests(request)


@csrf_exempt
def store_later(request: HttpRequest) -> JsonResponse:
    """Store files once the whole body has arrived."""
    _enter(request)
    return _digests(request)


# Bodies that are not forms


@csrf_exempt
@trio_asgi.stream_body
async def take(request: ASGIRequest) -> HttpResponse:
    """Return the hash of a body, taken as it arrives."""
    journal.note("entered", request)
    digest = hashlib.sha256()
    async for chunk in request.stream():
        digest.update(chunk)
    journal.note("arrived", request)
    return HttpResponse(digest.hexdigest())


@csrf_exempt
@trio_asgi.stream_body
def sync_take(request: HttpRequest) -> HttpResponse:
    """Return the hash of a body, taken as it arrives, in a thread."""
    journal.note("entered", request)
    digest = hashlib.sha256()
    while chunk := request.read(2**16):
        digest.update(chunk)
    journal.note("arrived", request)
    return HttpResponse(digest.hexdigest())

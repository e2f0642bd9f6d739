"""The progress of an upload, in the cache, where other requests find it."""

import time
from typing import Any, Final
from uuid import UUID

from django.core.cache import cache
from django.core.files.uploadhandler import FileUploadHandler
from django.http import HttpRequest

# Seconds between two writes: the cache may be on another machine.
SECONDS: Final = 0.25
# Seconds until an entry expires. A handler is not told when an upload is cut off.
FORGOTTEN: Final = 60


class ProgressHandler(FileUploadHandler):
    """Counts the bytes on their way to the handlers after this one.

    The form's URL has a key: ?progress= and a UUID. Nobody can guess one, so nobody
    sees the progress of others' uploads.
    """

    def __init__(self, request: HttpRequest) -> None:
        super().__init__(request)
        self.received = self.total = 0
        self.written = float("-inf")
        try:
            self.key = self.cache_key(UUID(request.GET.get("progress", "")))
        except ValueError:
            self.key = ""

    @staticmethod
    def cache_key(key: UUID) -> str:
        return f"upload-progress:{key}"

    @classmethod
    async def aget(cls, key: UUID) -> dict[str, int]:
        """Return the bytes received and the total; empty if nothing is known."""
        return await cache.aget(cls.cache_key(key), {})

    # Django calls the rest, in the thread that parses the form

    def handle_raw_input(
        self,
        input_data: Any,
        META: dict[str, Any],  # noqa: N803
        content_length: int,
        boundary: bytes,
        encoding: str | None = None,
    ) -> None:
        self.total = content_length

    def receive_data_chunk(self, raw_data: bytes, start: int) -> bytes:
        self.received += len(raw_data)
        if self.key and time.monotonic() > self.written + SECONDS:
            self.written = time.monotonic()
            value = {"received": self.received, "total": self.total}
            cache.set(self.key, value, FORGOTTEN)
        return raw_data

    def file_complete(self, file_size: int) -> None:
        """Leave the file to the handlers after this one."""

    def upload_complete(self) -> None:
        if self.key:
            cache.delete(self.key)

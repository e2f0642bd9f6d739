"""Uploads that go straight to a storage, and stay there only if they are kept."""

from __future__ import annotations

import errno
import functools
import io
import logging
import re
import time
import tracemalloc
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from django.core.exceptions import (
    RequestDataTooBig,
    SuspiciousFileOperation,
    TooManyFilesSent,
)
from django.core.files.base import File
from django.core.files.storage import FileSystemStorage, InMemoryStorage, Storage
from django.core.files.uploadedfile import InMemoryUploadedFile, SimpleUploadedFile
from django.core.files.uploadhandler import (
    FileUploadHandler,
    MemoryFileUploadHandler,
    SkipFile,
    StopFutureHandlers,
    StopUpload,
)
from django.http import UnreadablePostError
from django.http.multipartparser import MultiPartParserError
from django.test import override_settings

from multipart_support import END, field_part, file_part, form_request
from trio_asgi.uploads import StorageUploadedFile, StorageUploadHandler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from trio_asgi import ASGIRequest

KIB = 2**10


@pytest.fixture(params=["files", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """Return an empty storage, of each of Django's kinds."""
    if request.param == "files":
        return FileSystemStorage(tmp_path)
    return InMemoryStorage(tmp_path)


def into(
    storage: Storage, **options: Any
) -> Callable[[ASGIRequest], StorageUploadHandler]:
    """Return a function that makes a request's handler for a storage."""
    return functools.partial(StorageUploadHandler, storage=storage, **options)


def content_of(storage: Storage, directory: str = "") -> dict[str, bytes]:
    """Return all files in a storage."""
    directories, files = storage.listdir(directory)
    found = {}
    for name in files:
        path = f"{directory}/{name}".lstrip("/")
        with storage.open(path) as file:
            found[path] = file.read()
    for name in directories:
        found |= content_of(storage, f"{directory}/{name}".lstrip("/"))
    return found


def uploaded(request: ASGIRequest, name: str = "file") -> StorageUploadedFile:
    """Return a file of a request, made by the handler under test."""
    file = request.FILES[name]
    assert isinstance(file, StorageUploadedFile)
    return file


# Arriving files


def test_a_file_is_in_the_storage(storage: Storage) -> None:
    """The form has the file, with all that Django's files have, and its location."""
    body = field_part(b"green") + file_part(b"leaves") + END
    request = form_request(body, handlers=[into(storage)])
    assert request.POST.dict() == {"field": "green"}
    file = uploaded(request)
    assert (file.name, file.size) == ("leaves.bin", 6)
    assert file.content_type == "application/octet-stream"
    assert file.storage is storage
    assert content_of(storage) == {file.stored_name: b"leaves"}


def test_a_file_can_be_read_again_and_again(storage: Storage) -> None:
    """All ways in which Django reads its files work."""
    lines = b"first\nsecond\n"
    request = form_request(file_part(lines) + END, handlers=[into(storage)])
    file = uploaded(request)
    assert file.read(5) == b"first"
    assert b"".join(file.chunks()) == lines
    assert file.open().read() == lines
    assert list(file) == lines.splitlines(keepends=True)
    file.close()


def test_each_chunk_is_written_before_the_next_is_read(tmp_path: Path) -> None:
    """All bytes so far are in the storage, except a possible part of a boundary."""
    chunk = bytes(64 * KIB)
    sizes: list[int] = []

    def pieces() -> Iterator[bytes]:
        yield file_part(b"")[:-2]
        for _ in range(10):
            yield chunk
            sizes.extend(file.stat().st_size for file in tmp_path.iterdir())
        yield b"\r\n" + END

    request = form_request(pieces(), handlers=[into(FileSystemStorage(tmp_path))])
    assert uploaded(request).size == 10 * len(chunk)
    assert all(
        size >= (number - 1) * len(chunk) for number, size in enumerate(sizes)
    ), sizes
    assert sizes[-1] > 8 * len(chunk)


def test_the_memory_does_not_depend_on_the_size(tmp_path: Path) -> None:
    """A file of 64 MiB uses less than one."""

    def pieces() -> Iterator[bytes]:
        yield file_part(b"")[:-2]
        for _ in range(1024):
            yield bytes(64 * KIB)
        yield b"\r\n" + END

    request = form_request(pieces(), handlers=[into(FileSystemStorage(tmp_path))])
    tracemalloc.start()
    try:
        assert uploaded(request).size == 64 * KIB * KIB
        assert tracemalloc.get_traced_memory()[1] < KIB * KIB
    finally:
        tracemalloc.stop()


def test_base64_is_decoded(storage: Storage) -> None:
    """The storage has the file itself, not its encoding."""
    body = file_part(b"bGVhdmVz", b"Content-Transfer-Encoding: base64") + END
    request = form_request(body, handlers=[into(storage)])
    assert uploaded(request).size == 6
    assert [*content_of(storage).values()] == [b"leaves"]


# Files that stay


def test_a_file_goes_with_the_request(storage: Storage) -> None:
    """It was not kept, so the end of the request deletes it."""
    request = form_request(file_part(b"leaves") + END, handlers=[into(storage)])
    file = uploaded(request)
    file.read()
    request.close()
    assert content_of(storage) == {}
    request.close()
    file.delete()


def test_a_kept_file_stays(storage: Storage) -> None:
    """`keep` returns its location, and then closing the file only closes it."""
    request = form_request(file_part(b"leaves") + END, handlers=[into(storage)])
    name = uploaded(request).keep()
    uploaded(request).read()
    request.close()
    assert uploaded(request).closed
    assert content_of(storage) == {name: b"leaves"}
    assert uploaded(request).keep() == name
    uploaded(request).delete()
    assert content_of(storage) == {}


def test_a_deleted_file_can_be_neither_kept_nor_read(storage: Storage) -> None:
    """The error says what should have been done before."""
    request = form_request(file_part(b"leaves") + END, handlers=[into(storage)])
    uploaded(request).close()
    with pytest.raises(ValueError, match=r"'leaves.bin' was deleted.*call keep\(\)"):
        uploaded(request).keep()
    with pytest.raises(ValueError, match="was deleted"):
        uploaded(request).read()
    with pytest.raises(ValueError, match="was deleted"):
        uploaded(request).open()


def test_saving_a_form_moves_the_file(tmp_path: Path) -> None:
    """A ``FileField`` in the file system takes the file itself, not a copy."""
    incoming, kept = tmp_path / "incoming", FileSystemStorage(tmp_path / "kept")
    request = form_request(
        file_part(b"leaves") + END, handlers=[into(FileSystemStorage(incoming))]
    )
    before = (incoming / uploaded(request).stored_name).stat().st_ino
    kept.save("tea", uploaded(request))
    request.close()
    assert (tmp_path / "kept" / "tea").stat().st_ino == before
    assert content_of(kept) == {"tea": b"leaves"}
    assert [*incoming.iterdir()] == []


def test_saving_a_form_copies_a_kept_file(storage: Storage, tmp_path: Path) -> None:
    """It is copied, too, if the storage has no files that can be moved."""
    copies = FileSystemStorage(tmp_path / "copies")
    request = form_request(file_part(b"leaves") + END, handlers=[into(storage)])
    assert hasattr(uploaded(request), "temporary_file_path") == isinstance(
        storage, FileSystemStorage
    )
    name = uploaded(request).keep()
    copies.save("copy", uploaded(request))
    assert content_of(copies) == {"copy": b"leaves"}
    request.close()
    assert content_of(storage)[name] == b"leaves"


# Failing uploads


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        (
            [file_part(b"a", b"Content-Transfer-Encoding: base64") + END],
            MultiPartParserError,
        ),
        ([field_part(b"x" * 20 * KIB) + END], RequestDataTooBig),
        ([file_part(b"leaves") * 2 + END], TooManyFilesSent),
        ([OSError("the client has left")], UnreadablePostError),
        ([file_part(bytes(KIB))[:-KIB], OSError("has left")], UnreadablePostError),
        ([file_part(bytes(KIB)), KeyboardInterrupt()], KeyboardInterrupt),
    ],
    ids=["base64", "field", "files", "left", "left-midway", "interrupt"],
)
@override_settings(DATA_UPLOAD_MAX_MEMORY_SIZE=10 * KIB, DATA_UPLOAD_MAX_NUMBER_FILES=2)
def test_a_form_that_fails_leaves_nothing(
    storage: Storage,
    pieces: Sequence[bytes | BaseException],
    error: type[BaseException],
) -> None:
    """Neither the file that was already complete nor the incomplete one."""
    first = file_part(b"leaves", name=b"first")
    request = form_request([first, *pieces], handlers=[into(storage)])
    with pytest.raises(error):
        _ = request.POST
    assert content_of(storage) == {}
    request.close()


def test_a_part_without_end_leaves_nothing(storage: Storage) -> None:
    """As with Django's handlers, the form lacks it, and has everything before."""
    body = file_part(b"leaves", name=b"first") + file_part(bytes(100 * KIB))[:-KIB]
    request = form_request(body, handlers=[into(storage)])
    assert [*request.FILES] == ["first"]
    assert [*content_of(storage).values()] == [b"leaves"]
    request.close()
    assert content_of(storage) == {}


class SecondFileHandler(FileUploadHandler):
    """Does something with the second file of a form; passes on the others."""

    files = 0

    def new_file(self, *args: Any, **kwargs: Any) -> None:
        """Count."""
        self.files += 1

    def receive_data_chunk(self, raw_data: bytes, start: int) -> bytes | None:
        """Leave the chunk alone, or do this handler's work."""
        return self.take(raw_data) if self.files == 2 else raw_data

    def take(self, raw_data: bytes) -> bytes | None:
        """Do this handler's work."""
        raise NotImplementedError

    def file_complete(self, file_size: int) -> Any:
        """Return no file."""


class Skipping(SecondFileHandler):
    """Skips the rest of the second file."""

    def take(self, raw_data: bytes) -> NoReturn:
        """Skip."""
        raise SkipFile


class Stopping(SecondFileHandler):
    """Stops at the second file."""

    def take(self, raw_data: bytes) -> NoReturn:
        """Stop."""
        raise StopUpload


class Replacing(SecondFileHandler):
    """Replaces the second file."""

    def take(self, raw_data: bytes) -> None:
        """Drop the content."""

    def file_complete(self, file_size: int) -> Any:
        """Return another file."""
        return SimpleUploadedFile("other", b"") if self.files == 2 else None


@pytest.mark.parametrize(
    ("handler", "names"),
    [
        (Skipping, ["first", "third"]),
        (Stopping, ["first"]),
        (Replacing, ["first", "second", "third"]),
    ],
)
def test_what_another_handler_does_not_want_is_deleted(
    storage: Storage, handler: type[FileUploadHandler], names: list[str]
) -> None:
    """The storage has only the files that are in the form."""
    body = b"".join(
        file_part(name + bytes(100 * KIB), name=name)
        for name in (b"first", b"second", b"third")
    )
    request = form_request(body + END, handlers=[handler, into(storage)])
    assert [*request.FILES] == names
    assert sorted(content[:5] for content in content_of(storage).values()) == sorted(
        name.encode()[:5] for name in names if name != "second"
    )
    request.close()
    assert content_of(storage) == {}


def test_a_handler_before_this_one_has_its_files(storage: Storage) -> None:
    """Small files stay in memory if Django's handler for that comes first."""
    small = file_part(b"leaves") + END

    def request_of(limit: int) -> ASGIRequest:
        request = form_request(small, handlers=[MemoryFileUploadHandler, into(storage)])
        with override_settings(FILE_UPLOAD_MAX_MEMORY_SIZE=limit):
            assert request.FILES
        return request

    assert isinstance(request_of(2**40).FILES["file"], InMemoryUploadedFile)
    assert content_of(storage) == {}
    assert isinstance(request_of(0).FILES["file"], StorageUploadedFile)


def test_a_handler_that_takes_a_file_and_gives_none(storage: Storage) -> None:
    """No file is made up in its place."""

    class Taking(FileUploadHandler):
        def new_file(self, *args: Any, **kwargs: Any) -> NoReturn:
            raise StopFutureHandlers

        def receive_data_chunk(self, raw_data: bytes, start: int) -> bytes:
            return raw_data

        def file_complete(self, file_size: int) -> None:
            """Return no file."""

    body = file_part(b"leaves") + END
    request = form_request(body, handlers=[Taking, into(storage)])
    assert [*request.FILES] == []
    assert content_of(storage) == {}


class Full(FileSystemStorage):
    """A storage on a full disk: files can be created, but have no room for content."""

    def _open(self, name: str, mode: str = "rb") -> File[bytes]:
        class Raw(io.RawIOBase):
            def writable(self) -> bool:
                return True

            def write(self, data: object) -> NoReturn:
                raise OSError(errno.ENOSPC, "No space left on device")

        return File(io.BufferedWriter(Raw()))


@pytest.mark.parametrize("size", [1, 100 * KIB], ids=["at-close", "at-write"])
def test_a_full_disk(tmp_path: Path, size: int) -> None:
    """The error is the disk's, and the file is deleted."""
    body = file_part(bytes(size)) + END
    request = form_request(body, handlers=[into(Full(tmp_path))])
    with pytest.raises(OSError, match="No space left"):
        _ = request.FILES
    assert [*tmp_path.iterdir()] == []


def test_a_storage_that_does_not_delete(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """That is logged; the error raised is the one that made the form fail."""

    class Frozen(FileSystemStorage):
        def delete(self, name: str) -> NoReturn:
            raise PermissionError(name)

    body = file_part(b"a", b"Content-Transfer-Encoding: base64") + END
    request = form_request(body, handlers=[into(Frozen(tmp_path))])
    with (
        caplog.at_level(logging.ERROR, "trio_asgi"),
        pytest.raises(MultiPartParserError),
    ):
        _ = request.FILES
    (message,) = caplog.messages
    assert re.fullmatch(r"Error while deleting an upload: leaves_\w{7}\.bin", message)


# Names


@pytest.mark.parametrize(
    ("filename", "name"),
    [
        (b"../../etc/passwd", r"passwd_\w{7}"),
        (b"C:\\\\Tea\\\\leaves.bin", r"leaves_\w{7}\.bin"),
        (b"green tea?.bin", r"green_tea_\w{7}\.bin"),
        (b"leaves\x00\x07.bin", r"leaves_\w{7}\.bin"),
        ("茶.bin".encode(), r"茶_\w{7}\.bin"),
        (b"x" * 300 + b".bin", r"x{85}_\w{7}\.bin"),
    ],
)
def test_a_name_is_made_safe(storage: Storage, filename: bytes, name: str) -> None:
    """Django sanitizes the client's name, and it cannot be guessed."""
    body = file_part(b"leaves", filename=filename) + END
    request = form_request(body, handlers=[into(storage, upload_to="in")])
    assert re.fullmatch(f"in/{name}", uploaded(request).stored_name)


def test_a_name_that_cannot_be_used(storage: Storage) -> None:
    """Nothing is left of it after Django's sanitizing, so the form is refused."""
    body = file_part(b"leaves") + file_part(b"leaves", filename=b"???") + END
    request = form_request(body, handlers=[into(storage)])
    with pytest.raises(SuspiciousFileOperation):
        _ = request.FILES
    assert content_of(storage) == {}


def test_where_files_go(storage: Storage) -> None:
    """`upload_to` may have a date, and `generate_filename` decides finally."""

    class Renaming(StorageUploadHandler):
        upload_to = "%Y"

        def generate_filename(self, filename: str) -> str:
            return super().generate_filename("leaf" + filename[-4:])

    handler = functools.partial(Renaming, storage=storage)
    request = form_request(file_part(b"leaves") + END, handlers=[handler])
    name = time.strftime(r"%Y/leaf_\w{7}\.bin")
    assert re.fullmatch(name, uploaded(request).stored_name)
    assert uploaded(request).name == "leaves.bin"


def test_the_handler_can_be_in_the_settings(tmp_path: Path) -> None:
    """By its path, for all forms; files go to the default storage."""
    with override_settings(
        FILE_UPLOAD_HANDLERS=["trio_asgi.uploads.StorageUploadHandler"],
        MEDIA_ROOT=tmp_path,
    ):
        request = form_request(file_part(b"leaves") + END)
        assert (tmp_path / uploaded(request).stored_name).read_bytes() == b"leaves"
        request.close()
    assert [*tmp_path.iterdir()] == []

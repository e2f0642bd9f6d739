"""Uploads that go straight to a storage.

Django's own handlers collect a file in memory or in a temporary directory. From there
it is copied when a form is saved. Here each chunk is written to the storage as it
comes: a file is written once, and there is never more than a chunk of it in memory.

What is in a storage does not go away by itself, and there are many ways for an upload
to come to nothing: the client leaves, a later part is malformed, the form's token is
wrong, the view raises. So such a file is the request's, and is deleted with it, until
the view says that it keeps it.
"""

from __future__ import annotations

import enum
import functools
import logging
import posixpath
import time
from itertools import chain
from typing import IO, TYPE_CHECKING, Any

from django.core.files.base import ContentFile
from django.core.files.storage import FileSystemStorage, default_storage
from django.core.files.uploadedfile import UploadedFile
from django.core.files.uploadhandler import FileUploadHandler, StopFutureHandlers
from django.http.multipartparser import MultiPartParser

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.core.files.storage import Storage
    from django.http import HttpRequest, QueryDict
    from django.utils.datastructures import MultiValueDict

logger = logging.getLogger("trio_asgi")


class _State(enum.Enum):
    TEMPORARY = enum.auto()
    KEPT = enum.auto()
    DELETED = enum.auto()


class StorageUploadedFile(UploadedFile):  # type: ignore[type-arg] # in stubs alone
    """An uploaded file that is in a storage already.

    Closing it deletes it, as with Django's `TemporaryUploadedFile`, unless `keep` was
    called. Django closes all files of a request at its end.

    Its methods do the storage's work in the thread that calls them, but for `keep`,
    which async code may call as well. One thread at a time may use it.

    Attributes:
        name: The client's name for it, without directories. Not to be trusted.
        storage: Where it is.
        stored_name: Its name there.
        size: How many bytes it has.
        content_type: What the client says that it is. Not to be trusted.
    """

    def __init__(self, storage: Storage, stored_name: str, **description: Any) -> None:
        """Describe a file of a storage, without opening it.

        Args:
            storage: Where it is.
            stored_name: Its name there.
            description: What `UploadedFile` takes, but for the file.
        """
        self.storage = storage
        self.stored_name = stored_name
        self._state = _State.TEMPORARY
        super().__init__(None, **description)

    def keep(self) -> str:
        """Let the file stay in the storage, and return its name there.

        Raises:
            ValueError: it was deleted, as it is when it is closed.
        """
        self._check_exists()
        self._state = _State.KEPT
        return self.stored_name

    def delete(self) -> None:
        """Delete the file from the storage. Does nothing the second time."""
        if self._state is not _State.DELETED:
            self._state = _State.DELETED
            try:
                self._close_opened()
            finally:
                self.storage.delete(self.stored_name)

    def close(self) -> None:
        """Close the file; if it is not kept, delete it.

        An error while deleting is logged. Django closes files on its way out of other
        errors, which are more important.
        """
        if self._state is not _State.TEMPORARY:
            self._close_opened()
            return
        try:
            self.delete()
        except Exception:
            logger.exception("Error while deleting an upload: %s", self.stored_name)

    def open(  # type: ignore[override] # of Django's, some take more, some do not
        self, mode: str | None = None
    ) -> StorageUploadedFile:
        """Go to the beginning, for reading it anew."""
        self._close_opened()
        self._open(mode or "rb")
        return self

    @property
    def temporary_file_path(self) -> Callable[[], str]:
        """What Django's `FileSystemStorage` asks a file for, to move it, not copy it.

        So a form that is saved keeps the file without further ado.

        Raises:
            AttributeError: there is no such path, or the file is to stay there.
        """
        storage = self.storage
        # Other storages have paths as well, but not of files.
        if self._state is not _State.TEMPORARY or not isinstance(
            storage, FileSystemStorage
        ):
            raise AttributeError("temporary_file_path")
        return functools.partial(storage.path, self.stored_name)

    # What UploadedFile's methods read from is opened when it is first needed.

    @property
    def file(self) -> IO[Any]:
        """The storage's file."""
        return self._open("rb") if self._opened is None else self._opened

    @file.setter
    def file(self, file: IO[Any] | None) -> None:
        self._opened = file

    @property
    def closed(self) -> bool:
        """Whether nothing of it is open."""
        return self._opened is None

    def _open(self, mode: str) -> IO[Any]:
        self._check_exists()
        self._opened = self.storage.open(self.stored_name, mode)
        return self._opened

    def _check_exists(self) -> None:
        if self._state is _State.DELETED:
            raise ValueError(
                f"The upload {self.name!r} was deleted. To have it longer than the "
                "request, and after close(), call keep() before."
            )

    def _close_opened(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()


class StorageUploadHandler(FileUploadHandler):
    """Writes each part of a form that is a file to a storage, as it arrives.

    ``request.FILES`` then has a `StorageUploadedFile` for each. Those that do not get
    there are deleted at once: a part that is cut off or skipped, and all parts of a
    form that cannot be parsed to its end, whatever the reason.

    All its work is done in the thread that parses the form.

    To be set before the form is parsed, in ``request.upload_handlers``; or, with its
    path or that of a subclass, in the setting ``FILE_UPLOAD_HANDLERS``. No handler
    behind it in that list gets files.
    """

    request: HttpRequest

    #: Where the files go.
    storage: Storage = default_storage

    #: The directory in the storage, where `time.strftime` fills in the date.
    upload_to = ""

    #: How long a name in the storage may be: what a ``FileField`` has room for.
    max_length: int | None = 100

    def __init__(
        self,
        request: HttpRequest,
        *,
        storage: Storage | None = None,
        upload_to: str | None = None,
    ) -> None:
        """Prepare for the one form of a request.

        Args:
            request: The request, with this handler among its ``upload_handlers``.
            storage: Takes the place of the class's.
            upload_to: Takes the place of the class's.
        """
        super().__init__(request)
        if storage is not None:
            self.storage = storage
        if upload_to is not None:
            self.upload_to = upload_to
        #: Everything that was begun in the storage; None before the parsing.
        self._begun: list[StorageUploadedFile] | None = None
        #: What chunks belong to.
        self._incoming: StorageUploadedFile | None = None

    def generate_filename(self, filename: str) -> str:
        """Return the name under which to store a file; for overriding.

        The storage adds something random to it, before the extension.

        Args:
            filename: The client's name. Django has removed directories from it.

        Raises:
            SuspiciousFileOperation: nothing of the name can be used.
        """
        directory = time.strftime(self.upload_to)
        return self.storage.generate_filename(posixpath.join(directory, filename))

    # What Django calls

    def handle_raw_input(
        self,
        input_data: Any,
        META: dict[str, Any],  # noqa: N803 - Django's name
        content_length: int,  # noqa: ARG002 - Django gives it
        boundary: bytes | str,  # noqa: ARG002
        encoding: str | None = None,
    ) -> tuple[QueryDict, MultiValueDict[str, UploadedFile[Any]]] | None:
        """Have the form parsed, and delete what did not get into ``request.FILES``.

        Django's parser tells its handlers of few of the ways in which it can end. So
        the first time it calls this, it is called in turn, which shows all of them.
        """
        if self._begun is not None:
            return None
        self._begun = []
        files: MultiValueDict[str, UploadedFile[Any]] | None = None
        try:
            post, files = _parser_class(self.request)(
                META, input_data, self.request.upload_handlers, encoding
            ).parse()
            return post, files
        finally:
            self._delete_all_but(files)

    def new_file(self, *args: Any, **kwargs: Any) -> None:
        """Reserve a name in the storage.

        Raises:
            StopFutureHandlers: always, as the file has found its handler.
        """
        super().new_file(*args, **kwargs)
        assert self._begun is not None
        assert self.file_name is not None
        root, extension = posixpath.splitext(self.generate_filename(self.file_name))
        # Random: nobody can ask for a file that nobody has checked. And when a saved
        # form has moved the file away, no later one has its name and is deleted for it.
        name = self.storage.get_alternative_name(root, extension)
        # An empty file: saving it is how a storage finds a free name, makes
        # directories and sets permissions.
        stored_name = self.storage.save(
            name, ContentFile(b""), max_length=self.max_length
        )
        self._incoming = StorageUploadedFile(
            self.storage,
            stored_name,
            name=self.file_name,
            content_type=self.content_type,
            size=0,
            charset=self.charset,
            content_type_extra=self.content_type_extra,
        )
        self._begun.append(self._incoming)
        self._incoming._open("wb")
        raise StopFutureHandlers

    def receive_data_chunk(
        self,
        raw_data: bytes,
        start: int,  # noqa: ARG002 - the chunks come in order
    ) -> bytes | None:
        """Write a chunk; pass it on if the file is another handler's."""
        if self._incoming is None:
            return raw_data
        self._incoming.write(raw_data)
        return None

    def file_complete(self, file_size: int) -> StorageUploadedFile | None:
        """Return the file, with all of it in the storage."""
        file, self._incoming = self._incoming, None
        if file is not None:
            file.size = file_size
            file._close_opened()
        return file

    def _delete_all_but(
        self, files: MultiValueDict[str, UploadedFile[Any]] | None
    ) -> None:
        arrived = files.lists() if files is not None else ()
        kept = [*chain.from_iterable(uploads for _, uploads in arrived)]
        assert self._begun is not None
        for file in self._begun:
            if file not in kept:
                file.close()


def _parser_class(request: HttpRequest) -> type[MultiPartParser]:
    # From Django 6.1 on, a request can have another one.
    return getattr(request, "multipart_parser_class", MultiPartParser)

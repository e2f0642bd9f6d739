"""Uploads that go straight to a storage.

Django's own handlers collect a file in memory or in a temporary directory, and saving a
form copies it from there. Here each chunk goes to the storage when it comes: a file is
written once, and no more than a chunk of it is in memory.

Many uploads fail: the client disconnects, a later part is malformed, the CSRF token is
wrong, the view raises. So the file is deleted at the end of the request, unless the
view keeps it.
"""

from __future__ import annotations

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


class StorageUploadedFile(UploadedFile):  # type: ignore[type-arg] # in stubs alone
    """An uploaded file that is already in a storage.

    Closing it deletes it, as with Django's `TemporaryUploadedFile`, unless `keep` was
    called. Django closes all files of a request at its end.

    Its methods access the storage in the calling thread. Only `keep` does not, so async
    code may call it too. One thread at a time may use the file.

    Attributes:
        name: The client's name for it, without directories. Do not trust it.
        storage: The storage that has it.
        stored_name: Its name in the storage.
        size: Its size in bytes.
        content_type: Its type, as the client gives it. Do not trust it.
    """

    def __init__(self, storage: Storage, stored_name: str, **description: Any) -> None:
        """Describe a file of a storage, without opening it.

        ``description`` has the arguments of `UploadedFile`, except the file.
        """
        self.storage = storage
        self.stored_name = stored_name
        self._is_kept = self._is_deleted = False
        super().__init__(None, **description)

    def keep(self) -> str:
        """Keep the file in the storage, and return its name there.

        Raises:
            ValueError: it was deleted, for example by `close`.
        """
        self._check_exists()
        self._is_kept = True
        return self.stored_name

    def delete(self) -> None:
        """Delete the file from the storage. Does nothing the second time."""
        if not self._is_deleted:
            self._is_deleted = True
            try:
                self._close_opened()
            finally:
                self.storage.delete(self.stored_name)

    def close(self) -> None:
        """Close the file; delete it unless it is kept.

        An error while deleting is logged, not raised: Django may be handling a more
        important error when it closes files.
        """
        if self._is_kept or self._is_deleted:
            self._close_opened()
            return
        try:
            self.delete()
        except Exception:
            logger.exception("Error while deleting an upload: %s", self.stored_name)

    def open(  # type: ignore[override] # of Django's, some take more, some do not
        self, mode: str | None = None
    ) -> StorageUploadedFile:
        """Open the file again, at its beginning."""
        self._close_opened()
        self._open(mode or "rb")
        return self

    @property
    def temporary_file_path(self) -> Callable[[], str]:
        """Lets Django's `FileSystemStorage` move the file instead of copying it.

        So a form that is saved keeps the file without a call of `keep`.

        Raises:
            AttributeError: there is no such path, or the file was kept or deleted.
        """
        # Other storages may have a `path` too, but not on disk.
        is_on_disk = isinstance(self.storage, FileSystemStorage)
        if self._is_kept or self._is_deleted or not is_on_disk:
            raise AttributeError("temporary_file_path")
        return functools.partial(self.storage.path, self.stored_name)

    # UploadedFile's methods read `file`, which is opened when first needed.

    @property
    def file(self) -> IO[Any]:
        """The storage's file."""
        return self._open("rb") if self._opened is None else self._opened

    @file.setter
    def file(self, file: IO[Any] | None) -> None:
        self._opened = file

    @property
    def closed(self) -> bool:
        """Whether the storage's file is not open."""
        return self._opened is None

    def _open(self, mode: str) -> IO[Any]:
        self._check_exists()
        self._opened = self.storage.open(self.stored_name, mode)
        return self._opened

    def _check_exists(self) -> None:
        if self._is_deleted:
            raise ValueError(
                f"The upload {self.name!r} was deleted. To have it after the request, "
                "or after close(), call keep() first."
            )

    def _close_opened(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()


class StorageUploadHandler(FileUploadHandler):
    """Writes each file of a form to a storage as it arrives.

    ``request.FILES`` then has a `StorageUploadedFile` for each. Files that do not get
    there are deleted at once: one that is cut off or skipped, and all files of a form
    that cannot be parsed to its end.

    Everything runs in the thread that parses the form.

    Set it before the form is parsed, in ``request.upload_handlers``; or put its path,
    or that of a subclass, into the setting ``FILE_UPLOAD_HANDLERS``. Handlers after it
    in the list get no files.
    """

    request: HttpRequest

    #: The storage for the files.
    storage: Storage = default_storage

    #: The directory in the storage. `time.strftime` fills in the date.
    upload_to = ""

    #: The most characters of a name in the storage; by default, as in a ``FileField``.
    max_length: int | None = 100

    def __init__(
        self,
        request: HttpRequest,
        *,
        storage: Storage | None = None,
        upload_to: str | None = None,
    ) -> None:
        """Prepare for the form of a request.

        ``storage`` and ``upload_to`` override those of the class.
        """
        super().__init__(request)
        if storage is not None:
            self.storage = storage
        if upload_to is not None:
            self.upload_to = upload_to
        #: All files that were begun in the storage; None before the parsing.
        self._begun: list[StorageUploadedFile] | None = None
        #: The file that chunks are written to.
        self._incoming: StorageUploadedFile | None = None

    def generate_filename(self, filename: str) -> str:
        """Return the name for a file in the storage. Subclasses may override this.

        The storage inserts something random before the extension.

        Args:
            filename: The client's name. Django has removed directories from it.

        Raises:
            SuspiciousFileOperation: no part of the name can be used.
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
        """Parse the form, and delete files that did not get into ``request.FILES``.

        Django's parser tells its handlers of only a few of its possible endings. So
        the first call of this method runs a second parser, and sees how it ends.
        """
        if self._begun is not None:
            return None
        self._begun = []
        arrived: list[Any] = []
        # From Django 6.1 on, a request may have another parser.
        parser = getattr(self.request, "multipart_parser_class", MultiPartParser)
        handlers = self.request.upload_handlers
        try:
            post, files = parser(META, input_data, handlers, encoding).parse()
            arrived = [*chain.from_iterable(uploads for _, uploads in files.lists())]
            return post, files
        finally:
            for file in self._begun:
                if file not in arrived:
                    file.close()

    def new_file(self, *args: Any, **kwargs: Any) -> None:
        """Reserve a name in the storage.

        Raises:
            StopFutureHandlers: always, so that no other handler gets the file.
        """
        super().new_file(*args, **kwargs)
        assert self._begun is not None
        assert self.file_name is not None
        root, extension = posixpath.splitext(self.generate_filename(self.file_name))
        # A random name: nobody can request an unchecked file. And if a saved form has
        # moved the file away, no later file has this name and is deleted by mistake.
        name = self.storage.get_alternative_name(root, extension)
        # Saving an empty file lets the storage find a free name, make directories and
        # set permissions.
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
        """Write a chunk; pass it on if another handler has the file."""
        if self._incoming is None:
            return raw_data
        self._incoming.write(raw_data)
        return None

    def file_complete(self, file_size: int) -> StorageUploadedFile | None:
        """Return the file, which is complete in the storage."""
        file, self._incoming = self._incoming, None
        if file is not None:
            file.size = file_size
            file._close_opened()
        return file

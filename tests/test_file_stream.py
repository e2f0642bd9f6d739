"""Files and sync iterators: made in a thread while the client reads."""

from __future__ import annotations

import contextvars
import io
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from django.core.files import File
from django.core.files.base import ContentFile
from django.http import FileResponse, HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path

from support import Answer, application, http_scope, receive_answer, request, signal_log
from trio_asgi.response.file_stream import LARGEST_BLOCK, DiskFile
from trio_asgi.response.files import is_plain, path_to_send
from trio_asgi.response.message_size import SMALLEST
from trio_asgi.response.sync_content import thread_stream
from trio_asgi.response.thread_stream import LARGEST, ThreadStream
from trio_asgi.testing import ApplicationCommunicator
from trio_asgi.threads.current import current_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trio_asgi.threads.lease import Lease

SECONDS = 10

PATHSEND: dict[str, Any] = {"extensions": {"http.response.pathsend": {}}}


@pytest.fixture(name="content", scope="module")
def make_content() -> bytes:
    """Provide more than any buffer holds, with a different content in each block."""
    return b"".join(number.to_bytes(4, "big") for number in range(2**20))


@pytest.fixture(name="file")
def make_file(tmp_path: Path, content: bytes) -> Path:
    """Provide a file with that content."""
    file = tmp_path / "file.bin"
    file.write_bytes(content)
    return file


def serving(make: Callable[[], FileResponse], **options: Any) -> Any:
    """Return an application whose only view answers with a file."""
    return application(path("", lambda request: make()), **options)


def opened(file: Path) -> dict[str, Callable[[], Any]]:
    """Return ways to open a file that a response can send."""
    return {
        "buffered": lambda: file.open("rb"),
        "for writing, too": lambda: file.open("r+b"),
        "raw": lambda: file.open("rb", buffering=0),
        "Django's": lambda: File(file.open("rb")),
        "in memory": lambda: io.BytesIO(file.read_bytes()),
        "Django's in memory": lambda: ContentFile(file.read_bytes()),
        "temporary": lambda: _copied(file, tempfile.NamedTemporaryFile()),
        "of another class": lambda: Strange(file),
        "without a size": lambda: Endless(file),
    }


def _copied(file: Path, copy: Any) -> Any:
    copy.write(file.read_bytes())
    copy.seek(0)
    return copy


class Strange:
    """A user-defined file, which belongs to its thread."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("rb")
        self.thread = threading.current_thread()
        self.closed_in: threading.Thread | None = None
        self.tell, self.seek = self._file.tell, self._file.seek

    def read(self, size: int = -1) -> bytes:
        """Read, in the thread that opened it."""
        assert threading.current_thread() is self.thread
        return self._file.read(size)

    def close(self) -> None:
        """Close."""
        self.closed_in = threading.current_thread()
        self._file.close()


class Endless:
    """A file that does not know its size."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("rb")
        self.read = self._file.read
        self.close = self._file.close


@pytest.mark.parametrize("kind", opened(Path()))
async def test_a_file_is_sent_whole(kind: str, file: Path, content: bytes) -> None:
    """Whatever it is: in messages no larger than necessary, and closed."""
    files: list[Any] = []

    def make() -> FileResponse:
        files.append(opened(file)[kind]())
        return FileResponse(files[0])

    answer = await request(serving(make))
    assert answer.body == content
    assert max(len(part) for part in answer.parts) <= LARGEST_BLOCK
    assert len(answer.parts) < 40
    if isinstance(files[0], Strange):
        assert files[0].closed_in is files[0].thread
    elif not isinstance(files[0], (Endless, ContentFile)):
        assert files[0].closed


@pytest.mark.parametrize("kind", opened(Path()))
def test_which_files_are_plain(kind: str, file: Path) -> None:
    """Those of Python and of Django; other classes are unknown."""
    opened_file = opened(file)[kind]()
    assert is_plain(opened_file) == (kind not in ("of another class", "without a size"))
    opened_file.close()


async def test_a_file_from_where_it_stands(file: Path, content: bytes) -> None:
    """Bytes read from it before are not sent."""

    def make() -> FileResponse:
        opened_file = file.open("rb")
        opened_file.seek(1000)
        return FileResponse(opened_file)

    answer = await request(serving(make))
    assert answer.body == content[1000:]


async def test_an_empty_file(tmp_path: Path) -> None:
    """It has a length, and no bytes."""
    (tmp_path / "empty").touch()
    answer = await request(
        serving(lambda: FileResponse((tmp_path / "empty").open("rb")))
    )
    assert dict(answer.headers)[b"Content-Length"] == b"0"
    assert answer.body == b""


async def test_a_file_that_grows(file: Path, content: bytes) -> None:
    """No more is sent than was announced."""

    def make() -> FileResponse:
        response = FileResponse(file.open("rb"))
        with file.open("ab") as more:
            more.write(b"more")
        return response

    answer = await request(serving(make))
    assert answer.body == content


async def test_a_file_that_shrinks(file: Path) -> None:
    """It raises an error, so the server ends the connection; nothing stays open."""
    responses: list[Any] = []

    def make() -> Any:
        responses.append(FileResponse(file.open("rb")))
        with file.open("r+b") as shorter:
            shorter.truncate(100_000)
        return responses[0]

    with signal_log() as log:
        async with ApplicationCommunicator(serving(make), http_scope()) as client:
            await client.send_input({"type": "http.request"})
            with pytest.raises(EOFError, match=r"file\.bin' ended \d+ bytes before"):
                await client.wait()
    assert responses[0].file_to_stream.closed
    assert log.names == ["started", "finished"]


async def test_middleware_that_takes_the_content(file: Path, content: bytes) -> None:
    """Then its iterator is sent, and not the file."""
    app = serving(
        lambda: FileResponse(file.open("rb")),
        middleware=["test_file_stream.upper"],
    )
    answer = await request(app)
    assert answer.body == b"first" + content


def upper(get_response: Any) -> Any:
    """Wrap a file."""

    def middleware(request: HttpRequest) -> Any:
        response = get_response(request)
        content = response.streaming_content

        def parts() -> Iterator[bytes]:
            yield b"first"
            yield from content

        response.streaming_content = parts()
        del response.headers["Content-Length"]
        return response

    return middleware


# HEAD


class Unread(io.BytesIO):
    """A file that must not be read."""

    def read(self, size: int | None = -1) -> bytes:
        raise AssertionError("the file was read")


async def parts_of_nothing() -> Any:
    """An async generator that must not run."""
    yield never()


@pytest.mark.parametrize(
    "make",
    [
        lambda: FileResponse(Unread(b"content")),
        lambda: StreamingHttpResponse(parts_of_nothing()),
        lambda: StreamingHttpResponse(never() for _ in range(3)),
    ],
)
async def test_nothing_is_read_for_head(make: Any) -> None:
    """It has the headers of GET, and its body is closed unread."""
    responses: list[Any] = []

    def view(request: HttpRequest) -> Any:
        responses.append(make())
        return responses[0]

    answer = await request(application(path("", view)), method="HEAD")
    assert answer.body == b""
    assert len(answer.messages) == 2
    file: Any = getattr(responses[0], "file_to_stream", None)
    if file is not None:
        assert dict(answer.headers)[b"Content-Length"] == b"7"
        assert file.closed


def never() -> bytes:
    """A function that must not be called."""
    raise AssertionError("the iterator was run")


# The server sends the file itself


async def ask(app: Any, **scope: Any) -> list[Any]:
    """Return all messages of an answer."""
    async with ApplicationCommunicator(app, http_scope(**scope)) as client:
        await client.send_input({"type": "http.request"})
        await client.wait()
        messages = []
        while not await client.receive_nothing():
            messages.append(await client.receive_output())
    return messages


@pytest.mark.parametrize("kind", ["buffered", "raw", "Django's", "temporary"])
async def test_a_whole_file_is_left_to_the_server(kind: str, file: Path) -> None:
    """If it offers ``http.response.pathsend``; the path is absolute."""
    files: list[Any] = []

    def make() -> FileResponse:
        files.append(opened(file)[kind]())
        return FileResponse(files[0])

    start, sent = await ask(serving(make), **PATHSEND)
    assert start["status"] == 200
    assert sent["type"] == "http.response.pathsend"
    assert Path(sent["path"]) == Path(files[0].name)
    assert files[0].closed


async def test_a_relative_path(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server may have another working directory later."""
    monkeypatch.chdir(file.parent)
    app = serving(lambda: FileResponse(Path(file.name).open("rb")))  # noqa: SIM115
    _, sent = await ask(app, **PATHSEND)
    assert sent["path"] == str(file)


def _moved(file: Path) -> Any:
    opened_file = file.open("rb")
    file.rename(file.with_name("other"))
    return opened_file


def _replaced(file: Path) -> Any:
    opened_file = file.open("rb")
    file.rename(file.with_name("other"))
    file.write_bytes(b"other")
    return opened_file


def _begun(file: Path) -> Any:
    opened_file = file.open("rb")
    opened_file.read(1)
    return opened_file


NOT_WHOLE: dict[str, Callable[[Path], Any]] = {
    "moved": _moved,
    "replaced": _replaced,
    "begun": _begun,
    "in memory": lambda file: io.BytesIO(file.read_bytes()),
    "nameless": lambda file: _copied(file, tempfile.TemporaryFile()),  # noqa: SIM115
    "of another class": Strange,
}


@pytest.mark.parametrize("kind", NOT_WHOLE)
async def test_other_files_are_read(kind: str, file: Path) -> None:
    """The server has no path that leads to exactly these bytes."""
    app = serving(lambda: FileResponse(NOT_WHOLE[kind](file)))
    messages = await ask(app, **PATHSEND)
    assert {message["type"] for message in messages[1:]} == {"http.response.body"}
    assert sum(len(message["body"]) for message in messages[1:-1]) >= 2**22 - 1


async def test_other_answers_are_not_left_to_the_server(file: Path) -> None:
    """HEAD has no body, a part of a file no path, nor does text."""
    app = serving(lambda: FileResponse(file.open("rb")))
    messages = await ask(app, method="HEAD", **PATHSEND)
    assert messages[1:] == [{"type": "http.response.body"}]

    def make() -> FileResponse:
        response = FileResponse(file.open("rb"))
        response.headers["Content-Length"] = "10"
        return response

    messages = await ask(serving(make), **PATHSEND)
    assert b"".join(m.get("body", b"") for m in messages) == file.read_bytes()[:10]


def test_a_path_that_cannot_be_asked_for(file: Path) -> None:
    """A closed file, for example, raises its error when it is read."""
    opened_file = file.open("rb")
    opened_file.close()
    assert path_to_send(opened_file, "1") is None


# The thread


async def test_a_file_is_read_without_the_requests_thread(file: Path) -> None:
    """While the client reads, the thread and its connection are free for others."""
    free: list[bool] = []
    app = serving(lambda: FileResponse(file.open("rb")))
    leases: list[Lease] = []
    pool = current_pool()
    make_lease = pool.lease

    def lease(kind: Any) -> Lease:
        leases.append(make_lease(kind))
        return leases[-1]

    pool.lease = lease  # type: ignore[method-assign, assignment]
    received = False

    async def receive() -> Any:
        nonlocal received
        if received:
            await trio.sleep_forever()
        received = True
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        await trio.lowlevel.checkpoint()
        if message.get("body"):
            free.append(not leases[0].has_thread)

    await app(http_scope(), receive, send)
    assert all(free)
    assert len(free) > 5


async def test_somebody_who_listens_keeps_the_thread(file: Path) -> None:
    """Both signals come in the thread of the view."""
    seen: list[Any] = []

    def make() -> FileResponse:
        seen.append(threading.current_thread())
        return FileResponse(file.open("rb"))

    with signal_log() as log:
        await request(serving(make))
    assert log.threads == {seen[0]}


# Batches


class Consumer:
    """Takes batches, and can be slow on Trio's clock, or wait to be told."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.batches: list[bytes] = []
        self._seconds = seconds

    async def send(self, batch: bytes) -> None:
        """Take one."""
        self.batches.append(batch)
        await trio.sleep(self._seconds)


async def test_many_small_parts_are_sent_in_few_messages() -> None:
    """A million rows do not take a million messages, and none is too large."""
    consumer = Consumer()
    stream = ThreadStream(iter([b"x" * 20] * 100_000), bytes)
    await stream.send_all(consumer.send)
    assert b"".join(consumer.batches) == b"x" * 2_000_000
    assert len(consumer.batches) < 2000
    assert max(map(len, consumer.batches)) <= LARGEST


async def test_the_limit_follows_the_client() -> None:
    """It grows while the client is quick, and shrinks for a slow one."""
    stream = ThreadStream(iter([bytes(SMALLEST)] * 64), bytes)
    quick = Consumer()
    await stream.send_all(quick.send)
    assert stream._limit == LARGEST
    stream._exhausted, stream._iterator = False, iter([bytes(2**16)] * 8)
    await stream.send_all(Consumer(0.11).send)
    assert stream._limit == SMALLEST


async def test_a_files_limit_goes_further(file: Path) -> None:
    """Each call in a thread costs as much as reading a block.

    But only for a client that has taken much: data that its side has only buffered does
    not show that it reads.
    """
    with file.open("wb") as large:
        large.truncate(LARGEST * 32 * 8)
    response = FileResponse(file.open("rb"))
    stream = thread_stream(response)
    consumer = Consumer()
    await stream.send_all(consumer.send)
    response.close()
    assert stream._limit > LARGEST
    taken = 0
    for part in consumer.batches:
        assert len(part) <= max(LARGEST, taken // 16)
        taken += len(part)


async def test_answers_of_all_kinds_are_complete(file: Path, content: bytes) -> None:
    """Ten concurrent clients each get their own answer."""
    app = serving(lambda: FileResponse(file.open("rb")))
    answers: list[Answer] = []

    async def client() -> None:
        async with ApplicationCommunicator(app, http_scope()) as communicator:
            await communicator.send_input({"type": "http.request"})
            answers.append(await receive_answer(communicator))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(client)
    assert [answer.body == content for answer in answers] == [True] * 10


# Files in the system's cache


on_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux can be asked what is in memory"
)


@on_linux
async def test_what_is_in_memory_takes_no_thread(file: Path, content: bytes) -> None:
    """It is read at once: only the view and the closing used a thread."""
    pool = current_pool()
    calls: list[object] = []
    run_sync = pool.run_sync

    async def noting(fn: Any, **options: Any) -> Any:
        calls.append(fn)
        return await run_sync(fn, **options)

    pool.run_sync = noting  # type: ignore[method-assign]
    answer = await request(serving(lambda: FileResponse(file.open("rb"))))
    assert answer.body == content
    assert calls == []


@on_linux
@pytest.mark.parametrize("in_memory", [0, 1, 3])
async def test_from_the_first_block_that_is_not_a_thread_reads(
    file: Path, content: bytes, in_memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost or sent twice where one takes over from the other."""
    asked = 0

    def is_in_memory(self: DiskFile, size: int) -> bool:
        nonlocal asked
        asked += 1
        return asked <= in_memory

    monkeypatch.setattr(DiskFile, "is_in_memory", is_in_memory)
    reads: list[str] = []
    read = DiskFile.read

    def noting(self: DiskFile, size: int) -> bytes:
        reads.append(threading.current_thread().name)
        return read(self, size)

    monkeypatch.setattr(DiskFile, "read", noting)
    answer = await request(serving(lambda: FileResponse(file.open("rb"))))
    assert answer.body == content
    here = threading.current_thread().name
    assert reads[:in_memory] == [here] * in_memory
    assert here not in reads[in_memory:]


@on_linux
def test_a_file_system_that_cannot_tell(file: Path) -> None:
    """Then nothing counts as cached: a closed file has no descriptor to ask with."""
    opened_file = file.open("rb")
    disk_file = DiskFile(opened_file)
    assert disk_file.is_in_memory(2**16)
    opened_file.close()
    assert not disk_file.is_in_memory(2**16)


@on_linux
async def test_a_pipe_is_no_file_on_disk(content: bytes) -> None:
    """It has a descriptor, but no position: it is read in a thread as it comes."""
    read_end, write_end = os.pipe()

    def make() -> FileResponse:
        threading.Thread(target=write).start()
        return FileResponse(os.fdopen(read_end, "rb"))

    def write() -> None:
        with os.fdopen(write_end, "wb") as pipe:
            pipe.write(content[: 2**17])

    answer = await request(serving(make))
    assert answer.body == content[: 2**17]


# Content of other kinds


async def test_an_iterator_that_begins_anew_is_asked_once() -> None:
    """As in Python's tutorial, ``iter()`` starts from the beginning."""

    class Again:
        def __iter__(self) -> Again:
            self.number = 0
            return self

        def __next__(self) -> bytes:
            self.number += 1
            if self.number > 1000:
                raise StopIteration
            return b"%100d" % self.number

    view = lambda request: StreamingHttpResponse(Again())  # noqa: E731
    answer = await request(application(path("", view)))
    assert answer.body == b"".join(b"%100d" % number for number in range(1, 1001))


VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="")


async def test_the_closing_sees_what_the_iterator_has_left_in_its_context() -> None:
    """Caches are kept there, and closed at the end of the request."""
    seen: list[str] = []

    class Parts:
        def __init__(self) -> None:
            self._parts = iter([b"one", b"two"])

        def __iter__(self) -> Parts:
            return self

        def __next__(self) -> bytes:
            VARIABLE.set("set while it was iterated")
            return next(self._parts)

        def close(self) -> None:
            seen.append(VARIABLE.get())

    view = lambda request: StreamingHttpResponse(Parts())  # noqa: E731
    assert (await request(application(path("", view)))).body == b"onetwo"
    assert seen == ["set while it was iterated"]


class Shout(io.RawIOBase):
    """A user-defined raw file whose bytes are not those on disk."""

    def __init__(self, file: Path) -> None:
        self._raw = io.FileIO(file)
        self.name = str(file)

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._raw.seek(offset, whence)

    def close(self) -> None:
        super().close()
        self._raw.close()

    def readinto(self, buffer: Any) -> int:
        data = self._raw.read(len(buffer)) or b""
        buffer[: len(data)] = data.upper()
        return len(data)


class ShoutingTemporary(tempfile._TemporaryFileWrapper):  # type: ignore[type-arg]
    """A temporary file with a `read` that is not Python's."""

    def read(self, size: int = -1) -> bytes:
        """Read what is on disk, and change it."""
        return bytes(self.file.read(size)).upper()


def _shouting_temporary(file: Path) -> Any:
    return ShoutingTemporary(file.open("rb"), str(file), delete=False)


class ShoutingPipe(io.BufferedReader):
    """A pipe with a `read` that is not Python's, and Python's `read1`."""

    def read(self, size: int | None = -1) -> bytes:
        """Read what comes, and change it."""
        return super().read(size).upper()


def _shouting_pipe(file: Path) -> Any:
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "wb") as pipe:
        pipe.write(file.read_bytes())
    return ShoutingPipe(io.FileIO(read_end))


class ShoutingProxy:
    """Passes on all attributes of a pipe, except `read`."""

    def __init__(self, file: Path) -> None:
        self._pipe: Any = _shouting_pipe(file)

    def read(self, size: int = -1) -> bytes:
        """Read what comes, changed."""
        return bytes(self._pipe.read(size))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)


class ShoutingResponse(FileResponse):
    """A response that changes its file's bytes."""

    def make_bytes(self, value: Any) -> bytes:
        return bytes(value).upper()


class IteratingResponse(FileResponse):
    """A response that reads its file in its own way."""

    def _set_streaming_content(self, value: Any) -> None:
        super()._set_streaming_content(value)  # type: ignore[misc] # not in the stubs
        if hasattr(value, "read"):
            self._iterator = iter(lambda: value.read(4).upper(), b"")


@pytest.mark.parametrize(
    "make",
    [
        lambda file: FileResponse(io.BufferedReader(Shout(file))),
        lambda file: FileResponse(_shouting_temporary(file)),
        lambda file: FileResponse(_shouting_pipe(file)),
        lambda file: FileResponse(ShoutingProxy(file)),
        lambda file: ShoutingResponse(file.open("rb")),
        lambda file: IteratingResponse(file.open("rb")),
    ],
    ids=["file", "temporary", "pipe", "proxy", "make_bytes", "iterator"],
)
@pytest.mark.parametrize("scope", [{}, PATHSEND], ids=["read", "sent by the server"])
async def test_bytes_that_are_not_those_on_disk(
    make: Any, scope: dict[str, Any], tmp_path: Path
) -> None:
    """Neither the server nor our shortcuts bypass a user-defined `read`."""
    file = tmp_path / "file"
    file.write_bytes(b"quiet words")
    messages = await ask(serving(lambda: make(file)), **scope)
    assert b"".join(m.get("body", b"") for m in messages) == b"QUIET WORDS"


async def test_a_closer_of_the_views_keeps_the_thread(file: Path) -> None:
    """The view's clean-up runs in the thread where the view ran."""
    seen: dict[str, threading.Thread] = {}
    app: Any = None

    def view(request: HttpRequest) -> Any:
        seen["view"] = threading.current_thread()
        response: Any = FileResponse(file.open("rb"))
        response._resource_closers.append(
            lambda: seen.setdefault("closer", threading.current_thread())
        )
        return response

    async def other() -> None:
        await request(app, "/other/")

    app = application(
        path("", view), path("other/", lambda request: HttpResponse("other"))
    )
    async with ApplicationCommunicator(app, http_scope()) as client:
        await client.send_input({"type": "http.request"})
        await client.receive_output(timeout=SECONDS)
        await other()
        await receive_rest(client)
    assert seen["closer"] is seen["view"]


async def receive_rest(client: ApplicationCommunicator) -> None:
    """Receive the rest of an answer."""
    while (await client.receive_output(timeout=SECONDS)).get("more_body"):
        pass
    await client.wait()


@pytest.mark.skipif(sys.platform == "win32", reason="pipes are no files there")
async def test_a_pipes_bytes_leave_as_they_come() -> None:
    """They are sent before a block is full."""
    read_end, write_end = os.pipe()
    app = serving(lambda: FileResponse(os.fdopen(read_end, "rb")))
    with os.fdopen(write_end, "wb", buffering=0) as pipe:
        async with ApplicationCommunicator(app, http_scope()) as client:
            await client.send_input({"type": "http.request"})
            await client.receive_output(timeout=SECONDS)
            for part in (b"one", b"two"):
                pipe.write(part)
                message = await client.receive_output(timeout=SECONDS)
                assert message["body"] == part
            pipe.close()
            await receive_rest(client)


class Inherits(io.BufferedIOBase):
    """A file that has `read`, and inherits an unimplemented `read1`."""

    def __init__(self) -> None:
        self._rest = io.BytesIO(TEXT)

    def read(self, size: int | None = -1) -> bytes:
        """Read, with a short block now and then."""
        return self._rest.read(min(size or 0, 7))


class Bare:
    """A file that has only `read`."""

    def __init__(self) -> None:
        self._rest = io.BytesIO(TEXT)

    def read(self, size: int = -1) -> Any:
        """Read."""
        return self._rest.read(size)


class Unsure(Bare):
    """A file that fails when asked for anything else."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in ("close", "seek", "tell", "getbuffer"):
            raise AttributeError(name)
        raise OSError(f"asked for {name}")


class View(Bare):
    """A file that returns memoryviews of its bytes."""

    def read(self, size: int = -1) -> Any:
        """Read."""
        return memoryview(self._rest.read(size))


class Text(Bare):
    """A file that returns text."""

    def read(self, size: int = -1) -> Any:
        """Read."""
        return self._rest.read(size).decode()


class Generous(Bare):
    """A file that returns everything, however little is requested."""

    def __init__(self) -> None:
        self._rest = io.BytesIO(TEXT + b"and more than was announced")

    def read(self, size: int = -1) -> Any:
        """Read all."""
        return self._rest.read()


class Socket(Bare):
    """A file with a `read1`, which does not know whether it can seek."""

    def read1(self, size: int = -1) -> bytes:
        """Read."""
        return self._rest.read(size)

    def seekable(self) -> bool:
        """Say that it is not a file on disk."""
        return False


TEXT = bytes(range(32, 127)) * 1000


@pytest.mark.parametrize("kind", [Inherits, Bare, Unsure, View, Text, Generous, Socket])
async def test_a_file_of_somebodys_own_is_sent_whole(kind: Any) -> None:
    """It needs only a `read`: whatever else it lacks, inherits or refuses."""

    def make() -> Any:
        response = FileResponse(content_type="text/plain")
        response.headers["Content-Length"] = str(len(TEXT))
        response.file_to_stream = file = kind()
        response._iterator = iter(lambda: file.read(4096), b"")  # type: ignore[attr-defined]
        return response

    assert (await request(serving(make))).body == TEXT


async def test_a_files_attributes_are_asked_for_in_its_thread() -> None:
    """For example, accessing those of a model's file field opens the file."""
    threads: list[threading.Thread] = []

    class Opens:
        @property
        def read(self) -> Any:
            threads.append(threading.current_thread())
            return io.BytesIO(TEXT).read

    view_threads: list[threading.Thread] = []

    def make() -> FileResponse:
        view_threads.append(threading.current_thread())
        return FileResponse(Opens(), content_type="text/plain")

    await request(serving(make))
    assert set(threads) == set(view_threads)


@pytest.mark.skipif(sys.platform == "win32", reason="pipes are no files there")
async def test_a_file_that_does_not_wait_for_its_bytes() -> None:
    """It returns None while there are no bytes: that is not sent as text."""
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    raw = io.FileIO(read_end)
    with (
        os.fdopen(write_end, "wb"),
        raw,
        pytest.raises(BlockingIOError, match=r"non-blocking.*returned None"),
        trio.fail_after(SECONDS),
    ):
        await thread_stream(FileResponse(raw)).send_all(Consumer().send)


async def test_a_file_that_was_closed_before_it_is_sent(file: Path) -> None:
    """The read in the thread raises that, like any other error of a file."""
    opened_file = file.open("rb")
    response = FileResponse(opened_file)
    opened_file.close()
    stream = thread_stream(response)
    with pytest.raises(ValueError, match="closed file"):
        await stream.send_all(Consumer().send)


# Files on systems that cannot be asked about their cache

WITHOUT_ASKING = """
import errno, io, os, sys, trio

{change}

from trio_asgi.response.file_stream import disk_file, DiskFileStream
from trio_asgi.threads.current import current_pool
from trio_asgi.response.file_stream import FileStream

async def main():
    parts = []
    async def send(part):
        parts.append(part)
        await trio.lowlevel.checkpoint()
    with open(sys.argv[1], "rb") as file:
        on_disk = disk_file(file)
        run = current_pool().run_sync
        if on_disk is None:
            stream = FileStream(file, bytes, size=None, run=run)
        else:
            stream = DiskFileStream(on_disk, size=None, run=run)
        await stream.send_all(send)
        assert b"".join(parts) == open(sys.argv[1], "rb").read()
        print("thread" if on_disk is None else "asked")

trio.run(main)
"""


def refusing(error: str) -> str:
    """Return code that makes the system refuse to say what is cached."""
    return f"def refuse(*args): raise {error}\nos.preadv = refuse"


@on_linux
@pytest.mark.parametrize(
    ("change", "how"),
    [
        ("del os.RWF_NOWAIT", "thread"),
        ("del os.preadv", "thread"),
        ("del os.pread", "thread"),
        ("sys.platform = 'darwin'", "thread"),
        (refusing("OSError(errno.EOPNOTSUPP, 'the file system')"), "asked"),
        (refusing("OSError(errno.ENOSYS, 'an old kernel')"), "asked"),
        (refusing("OSError(errno.EINVAL, 'another')"), "asked"),
        (refusing("NotImplementedError('preadv2 is not available')"), "asked"),
    ],
)
def test_a_system_that_cannot_be_asked(change: str, how: str, file: Path) -> None:
    """Some builds of Python and some systems cannot: then a thread reads the file."""
    if change.startswith("del ") and not hasattr(os, change[7:]):
        pytest.skip("this Python cannot ask anyway")
    code = WITHOUT_ASKING.format(change=change)
    result = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stdout.strip() == how


@on_linux
async def test_a_file_that_is_closed_while_it_is_sent(file: Path) -> None:
    """Its descriptor may be another file's by then: nothing is read."""
    opened_file = file.open("rb")
    response = FileResponse(opened_file)

    async def send(part: bytes) -> None:
        opened_file.close()
        await trio.lowlevel.checkpoint()

    with pytest.raises(ValueError, match="was closed while being sent"):
        await thread_stream(response).send_all(send)


async def test_a_server_that_cannot_open_the_file(file: Path) -> None:
    """That is not a disconnect: the error is raised, and the server logs it."""

    asked = 0

    async def receive() -> Any:
        nonlocal asked
        asked += 1
        if asked > 1:
            await trio.sleep_forever()
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        await trio.lowlevel.checkpoint()
        if message["type"] == "http.response.pathsend":
            raise FileNotFoundError(2, "No such file", message["path"])

    app = serving(lambda: FileResponse(file.open("rb")))
    with pytest.raises(FileNotFoundError):
        await app(http_scope(**PATHSEND), receive, send)

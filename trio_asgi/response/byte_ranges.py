"""Byte ranges, as RFC 9110 has them in section 14, without Django and without I/O.

A request asks for ranges, and gets sections: what of the ranges lies in the file, in
few pieces that do not overlap. So no request makes the server send more than the file
and a hundred heads of parts, however often it names the same bytes. A header that makes
no sense is ignored, as the RFC wants it: then the whole file is the answer.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: More ranges than this are ignored, as if none had been asked for.
MAX_RANGES: Final = 100

#: Ranges are joined with at most this many bytes between them: the head of one more
#: part would be longer.
MAX_GAP: Final = 80

# Numbers longer than that are no positions, and take long to read.
_RANGE: Final = re.compile("([0-9]{0,100})-([0-9]{0,100})")


class Section(NamedTuple):
    """Bytes of a file, with both ends as in a slice."""

    start: int
    stop: int

    def content_range(self, size: int) -> str:
        """Return the value of Content-Range, for a file of this size."""
        return f"bytes {self.start}-{self.stop - 1}/{size}"


def parse_ranges(header: str, size: int) -> list[Section] | None:
    """Return the sections to be sent, in the order in which they are asked for.

    Args:
        header: The value of a Range header.
        size: How many bytes the file has.

    Returns:
        None if the header is to be ignored; nothing if no range lies in the file.
    """
    unit, _, ranges = header.partition("=")
    if unit.strip().lower() != "bytes" or ranges.count(",") >= MAX_RANGES:
        return None
    # A list may have empty elements.
    wanted = [text for part in ranges.split(",") if (text := part.strip(" \t"))]
    sections = []
    for text in wanted:
        section = _parse_range(text, size)
        if section is None:
            return None
        if section.start < section.stop:
            sections.append(section)
    # None of the ranges of an empty file could be named in a Content-Range.
    return _join(sections) if wanted and size else None


def _parse_range(text: str, size: int) -> Section | None:
    """Return the section that a range names, maybe an empty one; None if it is none."""
    match = _RANGE.fullmatch(text)
    if match is None or text == "-":
        return None
    first, last = match.groups()
    if not first:
        return Section(max(size - int(last), 0), size)
    start = int(first)
    if not last:
        return Section(start, size)
    return Section(start, min(int(last) + 1, size)) if start <= int(last) else None


def _join(sections: Iterable[Section]) -> list[Section]:
    """Join what overlaps or nearly touches; the first of each decides the order."""
    joined: list[tuple[int, Section]] = []
    for order, section in sorted(enumerate(sections), key=lambda item: item[1]):
        if joined and section.start <= joined[-1][1].stop + MAX_GAP:
            earlier, (start, stop) = joined[-1]
            joined[-1] = min(earlier, order), Section(start, max(stop, section.stop))
        else:
            joined.append((order, section))
    return [section for _, section in sorted(joined)]


# What is sent

#: Bytes to be sent as they are, or a section of the file.
Piece = bytes | Section


def multipart(
    sections: Sequence[Section], *, size: int, content_type: str | None, boundary: str
) -> list[Piece]:
    """Return the body of a ``multipart/byteranges`` with these sections.

    Args:
        sections: One for each part.
        size: How many bytes the file has.
        content_type: The file's; None to leave it out.
        boundary: What separates the parts.
    """
    type_line = f"Content-Type: {content_type}\r\n" if content_type else ""
    pieces: list[Piece] = []
    for section in sections:
        head = (
            f"\r\n--{boundary}\r\n{type_line}"
            f"Content-Range: {section.content_range(size)}\r\n\r\n"
        )
        pieces += [head.encode("latin-1"), section]
    return [*pieces, f"\r\n--{boundary}--\r\n".encode("latin-1")]


def length(pieces: Iterable[Piece]) -> int:
    """Return how many bytes pieces are together."""
    return sum(
        piece.stop - piece.start if isinstance(piece, Section) else len(piece)
        for piece in pieces
    )


class PieceReader:
    """Pieces, some of them from a file, to be read as if they were a file themselves.

    It holds no more than what one call of `read` returns. It is used by one thread at a
    time, and does not close the file, which belongs to whoever has opened it.
    """

    def __init__(self, file: Any, pieces: Iterable[Piece], *, offset: int = 0) -> None:
        """Read nothing yet.

        Args:
            file: What the sections are of; it can seek.
            pieces: What is to be read.
            offset: Where in the file position 0 of the sections is.
        """
        #: For messages about the file.
        self.name = getattr(file, "name", "")
        #: For those who ask in which thread it may be read.
        self.file = file
        self._pieces = deque(pieces)
        self._offset = offset

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes: at most so many, and fewer only at the end.

        If the file has become too short for a section, that is the end: what follows
        must not stand where bytes of the file should.
        """
        blocks = []
        while size and (block := self._read_some(size)):
            blocks.append(block)
            if size > 0:
                size -= len(block)
        return b"".join(blocks)

    def _read_some(self, size: int) -> bytes:
        if not self._pieces:
            return b""
        piece = self._pieces.popleft()
        if isinstance(piece, Section):
            block, rest = self._read_section(piece, size)
        else:
            end = size if size > 0 else len(piece)
            block, rest = piece[:end], piece[end:]
        if not block:
            self._pieces.clear()
        elif length([rest]):
            self._pieces.appendleft(rest)
        return block

    def _read_section(self, section: Section, size: int) -> tuple[bytes, Piece]:
        wanted = length([section])
        self.file.seek(self._offset + section.start)
        wanted = min(wanted, size) if size > 0 else wanted
        # Some give more than they are asked for.
        block: bytes = self.file.read(wanted)[:wanted]
        return block, Section(section.start + len(block), section.stop)

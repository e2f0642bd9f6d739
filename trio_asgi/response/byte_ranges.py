"""Byte ranges as in RFC 9110, section 14, without Django and without I/O.

The ranges of a request become sections of the file that do not overlap. So an answer
has at most the bytes of the file and the heads of a hundred parts, however often the
request names the same bytes. A header that makes no sense is ignored, as the RFC
allows: the answer is the whole file.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: A header with more ranges than this is ignored.
MAX_RANGES: Final = 100

#: Ranges with at most this many bytes between them are joined: the head of another part
#: would be longer.
MAX_GAP: Final = 80

# Longer numbers are not positions, and take long to parse.
_RANGE: Final = re.compile("([0-9]{0,100})-([0-9]{0,100})")


class Section(NamedTuple):
    """A slice of a file, in bytes."""

    start: int
    stop: int

    def content_range(self, size: int) -> str:
        """Return the value of Content-Range for a file of this size."""
        return f"bytes {self.start}-{self.stop - 1}/{size}"


def parse_ranges(header: str, size: int) -> list[Section] | None:
    """Return the sections to send for a Range header, in the order of its ranges.

    None means that the header is to be ignored. The list is empty if no range lies in
    the file of ``size`` bytes.
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
    # A Content-Range cannot name any range of an empty file.
    return _join(sections) if wanted and size else None


def _parse_range(text: str, size: int) -> Section | None:
    """Return the section, perhaps empty, of a range; None if it makes no sense."""
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
    """Join sections that overlap or nearly touch, in the place of the first of them."""
    joined: list[tuple[int, Section]] = []
    for order, section in sorted(enumerate(sections), key=lambda item: item[1]):
        if joined and section.start <= joined[-1][1].stop + MAX_GAP:
            earlier, (start, stop) = joined[-1]
            joined[-1] = min(earlier, order), Section(start, max(stop, section.stop))
        else:
            joined.append((order, section))
    return [section for _, section in sorted(joined)]


#: Bytes to send, or a section of the file.
Piece = bytes | Section


def multipart(
    sections: Sequence[Section], *, size: int, content_type: str | None, boundary: str
) -> list[Piece]:
    """Return a ``multipart/byteranges`` body, with a part for each section.

    ``size`` and ``content_type`` are those of the file.
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
    """Return the total length of pieces in bytes."""
    return sum(
        piece.stop - piece.start if isinstance(piece, Section) else len(piece)
        for piece in pieces
    )


class PieceReader:
    """A file-like object that reads pieces one after another.

    It holds no more than one call of `read` returns. One thread at a time may use it.
    It does not close the file.
    """

    def __init__(self, file: Any, pieces: Iterable[Piece], *, offset: int = 0) -> None:
        """Read nothing yet. The file must be able to seek.

        ``offset`` is the position in the file that is 0 for the sections.
        """
        #: For error messages.
        self.name = getattr(file, "name", "")
        #: Decides in which thread the pieces may be read.
        self.file = file
        self._pieces = deque(pieces)
        self._offset = offset

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes: at most ``size``, and fewer only at the end.

        If the file has become too short for a section, the reading ends there: later
        pieces must not take the place of missing bytes.
        """
        blocks = []
        while size and (block := self._read_some(size)):
            blocks.append(block)
            if size > 0:
                size -= len(block)
        return b"".join(blocks)

    def _read_some(self, size: int) -> bytes:
        block: bytes
        if not self._pieces:
            return b""
        piece = self._pieces.popleft()
        wanted = min(length([piece]), size) if size > 0 else length([piece])
        rest: Piece
        if isinstance(piece, Section):
            self.file.seek(self._offset + piece.start)
            # Some files return more than they are asked for.
            block = self.file.read(wanted)[:wanted]
            rest = Section(piece.start + len(block), piece.stop)
        else:
            block, rest = piece[:wanted], piece[wanted:]
        if not block:
            self._pieces.clear()
        elif length([rest]):
            self._pieces.appendleft(rest)
        return block

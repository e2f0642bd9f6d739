"""Byte ranges without Django: what a header requests, and the resulting bytes."""

from __future__ import annotations

import io
from itertools import pairwise

import pytest
from hypothesis import example, given, strategies as st

from range_support import parts_of
from trio_asgi.response.byte_ranges import (
    MAX_GAP,
    MAX_RANGES,
    Piece,
    PieceReader,
    Section,
    length,
    multipart,
    parse_ranges,
)

ALPHABET = bytes(range(256))

numbers = st.integers(min_value=0, max_value=1200)
#: A range in a header, and the same as a Python slice.
ranges = st.one_of(
    st.builds(
        lambda first, more: (f"{first}-{first + more}", slice(first, first + more + 1)),
        numbers,
        numbers,
    ),
    numbers.map(lambda first: (f"{first}-", slice(first, None))),
    numbers.map(lambda last: (f"-{last}", slice(-last, None) if last else slice(0))),
)
separators = st.sampled_from([",", ", ", " ,\t", ",,", " , , "])


def file_of(size: int) -> bytes:
    """Return a content in which most positions differ."""
    return (ALPHABET + b"\r\n--x\r\n\x00" * 7)[: max(size, 0)] + ALPHABET * 8


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, list[slice]]:
    """Draw a valid header, and the slices that it requests."""
    wanted = draw(st.lists(ranges, min_size=1, max_size=12))
    header = draw(st.sampled_from(["bytes=", "Bytes=", "BYTES= "]))
    for number, (text, _) in enumerate(wanted):
        header += (draw(separators) if number else "") + text
    return header, [where for _, where in wanted]


@given(request=requests(), size=st.integers(min_value=1, max_value=1000))
@example(request=("bytes=0-0", [slice(0, 1)]), size=1)
@example(request=("bytes=-1", [slice(-1, None)]), size=1000)
@example(request=("bytes=0-0,-1", [slice(1), slice(-1, None)]), size=1000)
def test_the_sections_are_what_slicing_gives(
    request: tuple[str, list[slice]], size: int
) -> None:
    """All requested bytes, no others except small gaps, and none twice."""
    header, slices = request
    wanted = {place for where in slices for place in range(size)[where]}
    sections = parse_ranges(header, size)
    assert sections is not None
    sent = [place for section in sections for place in range(*section)]
    assert len(sent) == len(set(sent))
    assert wanted <= set(sent) <= set(range(size))
    for section in sections:
        assert {section.start, section.stop - 1} <= wanted
        places = [place for place in range(*section) if place in wanted]
        assert all(after - before - 1 <= MAX_GAP for before, after in pairwise(places))
    # No two of them were worth joining.
    for before, after in pairwise(sorted(sections)):
        assert after.start - before.stop > MAX_GAP


@given(
    request=requests(),
    size=st.integers(min_value=1, max_value=1000),
    blocks=st.lists(st.integers(min_value=1, max_value=300), min_size=1),
    offset=st.integers(min_value=0, max_value=20),
)
def test_sections_are_read_in_blocks_of_any_size(
    request: tuple[str, list[slice]], size: int, blocks: list[int], offset: int
) -> None:
    """Reading gives the parts with their heads, however many bytes are read at once."""
    sections = parse_ranges(request[0], size)
    assert sections is not None
    content = file_of(size)[:size]
    pieces = multipart(
        sections, size=size, content_type="text/x", boundary="boundary-of-the-test"
    )
    reader = PieceReader(io.BytesIO(bytes(offset) + content), pieces, offset=offset)
    body = b""
    number = 0
    while block := reader.read(blocks[number % len(blocks)]):
        # Only the last block is short.
        assert len(block) == blocks[number % len(blocks)] or (
            len(body) + len(block) == length(pieces)
        )
        body += block
        number += 1
    assert len(body) == length(pieces)
    assert reader.read(10) == reader.read() == b""
    if sections:
        assert parts_of(
            "multipart/byteranges; boundary=boundary-of-the-test", body
        ) == [
            (section.content_range(size), content[slice(*section)])
            for section in sections
        ]


@pytest.mark.parametrize(
    "header",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=,",
        "bytes= , ",
        "bytes=-",
        "bytes=0",
        "bytes=5-3",
        "bytes=0-1,5-3",
        "bytes=0-1,x",
        "bytes=a-b",
        "bytes=--5",
        "bytes=+1-2",
        "bytes=1_0-20",
        "bytes=1 -2",
        "bytes=1- 2",
        "bytes=1-2-3",
        "bytes=0x0-0x5",
        "bytes=\u0661-",
        "bytes=-\u0661",
        "bytes=\u00b2-\u00b3",
        "bytes=0-1;2-3",
        "bytes=0-1,bytes=2-3",
        "bytes 0-1/10",
        "=0-1",
        "items=0-1",
        "bytes:0-1",
        "bytes=0-" + "9" * 101,
        "bytes=" + "9" * 100_000 + "-",
    ],
)
def test_a_header_that_makes_no_sense_is_ignored(header: str) -> None:
    """All of it is ignored, without an error."""
    assert parse_ranges(header, 1000) is None


@given(header=st.text() | st.text("bytes=0123456789-, \t").map("bytes={}".format))
def test_any_header_can_be_read(header: str) -> None:
    """Anything a client sends is ignored, or gives sections of the file."""
    for section in parse_ranges(header, 100) or ():
        assert 0 <= section.start < section.stop <= 100


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-20,99-", "bytes=-0"])
def test_ranges_beyond_the_file_give_no_section(header: str) -> None:
    """That is a distinct result, not the same as no range."""
    assert parse_ranges(header, 10) == []


@pytest.mark.parametrize("header", ["bytes=0-", "bytes=0-0", "bytes=-1"])
def test_of_an_empty_file_there_are_no_ranges(header: str) -> None:
    """It is sent whole, because no range could name any of its bytes."""
    assert parse_ranges(header, 0) is None


def test_positions_far_beyond_the_file_are_understood() -> None:
    """A last position of a hundred digits means the end."""
    assert parse_ranges("bytes=1-" + "9" * 100, 10) == [Section(1, 10)]
    assert parse_ranges("bytes=-" + "9" * 100, 10) == [Section(0, 10)]


def test_parts_come_in_the_order_in_which_they_are_asked_for() -> None:
    """Joined ranges take the place of the first of them."""
    header = "bytes=900-,500-509,0-9,505-519,-50"
    assert parse_ranges(header, 1000) == [
        Section(900, 1000),
        Section(500, 520),
        Section(0, 10),
    ]


def test_the_same_bytes_are_sent_once() -> None:
    """However often they are requested; more ranges than the bound are ignored."""
    assert parse_ranges("bytes=" + ",".join(["0-"] * MAX_RANGES), 10**9) == [
        Section(0, 10**9)
    ]
    assert parse_ranges("bytes=" + ",".join(["0-"] * (MAX_RANGES + 1)), 10**9) is None


def test_a_file_that_has_become_short_ends_the_reading() -> None:
    """The head of a later part never replaces the missing bytes of the file."""
    pieces = multipart(
        [Section(0, 10), Section(200, 300), Section(0, 10)],
        size=300,
        content_type=None,
        boundary="b",
    )
    reader = PieceReader(io.BytesIO(bytes(250)), pieces)
    body = reader.read()
    assert body.endswith(b"bytes 200-299/300\r\n\r\n" + bytes(50))
    assert reader.read() == b""


def test_reading_holds_no_more_than_a_block() -> None:
    """From a section of a large file, only as much is read as is requested."""

    class Counting(io.BytesIO):
        largest = 0

        def read(self, size: int | None = -1) -> bytes:
            assert size is not None
            self.largest = max(self.largest, size)
            return super().read(size)

    file = Counting(bytes(100_000))
    reader = PieceReader(file, [b"head", Section(0, 100_000), b"end"])
    assert sum(map(len, iter(lambda: reader.read(1000), b""))) == 100_007
    assert 0 < file.largest <= 1000


def test_a_file_that_gives_more_than_it_is_asked_for() -> None:
    """A section never exceeds its end."""

    class Generous(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read()

    pieces: list[Piece] = [b"head", Section(10, 30), b"|", Section(50, 60)]
    reader = PieceReader(Generous(ALPHABET), pieces)
    body = b"".join(iter(lambda: reader.read(8), b""))
    assert body == b"head" + ALPHABET[10:30] + b"|" + ALPHABET[50:60]

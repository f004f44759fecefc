"""The contents of memfs files against the simplest thing that does the same: an array of bytes and one of page states."""

from __future__ import annotations

import os

from hypothesis import given, settings
from hypothesis import strategies as st

from pyfusekit.core import Data
from pyfusekit.fs.memfs.data import CHUNK, CHUNK_PAGES, PAGE, Contents

PAGES = 3 * CHUNK_PAGES
END = PAGES * PAGE
FREE, RESERVED, HELD = range(3)

BOUNDARIES = [
    at + by for at in (0, PAGE, 5 * PAGE, CHUNK, CHUNK + PAGE, 2 * CHUNK, END - PAGE) for by in (-1, 0, 1) if at + by >= 0
]
OFFSETS = st.one_of(st.sampled_from(BOUNDARIES), st.integers(0, END - 1))
LENGTHS = st.one_of(st.sampled_from((1, PAGE - 1, PAGE, PAGE + 1, CHUNK, CHUNK + PAGE)), st.integers(1, 2 * CHUNK))
STEPS = st.lists(
    st.tuples(st.sampled_from(("write", "write", "punch", "blank", "reserve", "cut")), OFFSETS, LENGTHS, st.integers(1, 255)),
    max_size=25,
)


class Model:
    """What Contents promises, without its economy."""

    def __init__(self) -> None:
        self.data = bytearray(END)
        self.pages = [FREE] * PAGES

    def write(self, start: int, stop: int, fill: int) -> int:
        self.data[start:stop] = bytes([fill]) * (stop - start)
        return self.mark(start // PAGE, -(-stop // PAGE), HELD)

    def mark(self, first: int, last: int, state: int) -> int:
        new = self.pages[first:last].count(FREE)
        self.pages[first:last] = [max(page, state) for page in self.pages[first:last]]
        return new

    def punch(self, start: int, stop: int) -> int:
        self.data[start:stop] = bytes(stop - start)
        first, last = -(-start // PAGE), stop // PAGE
        if first >= last:
            return 0
        gone = last - first - self.pages[first:last].count(FREE)
        self.pages[first:last] = [FREE] * (last - first)
        return gone

    def blank(self, start: int, stop: int) -> None:
        self.data[start:stop] = bytes(stop - start)
        for page in range(-(-start // PAGE), stop // PAGE):
            self.pages[page] = min(self.pages[page], RESERVED)

    def next_page(self, offset: int, is_data: bool) -> int:
        """Return the first offset from *offset* on in a page that is, or is not, data; the end if there is none."""
        for page in range(offset // PAGE, PAGES):
            if (self.pages[page] == HELD) == is_data:
                return max(offset, page * PAGE)
        return END


def joined(read: Data | list[Data]) -> bytes:
    return b"".join(read) if isinstance(read, list) else bytes(read)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(steps=STEPS, offset=OFFSETS, length=LENGTHS)
def test_any_steps_leave_what_they_leave_in_an_array(steps: list[tuple[str, int, int, int]], offset: int, length: int) -> None:
    contents, model = Contents(), Model()
    for step, start, size, fill in steps:
        stop = min(start + size, END)
        first, last = start // PAGE, -(-stop // PAGE)
        if step == "write":
            assert contents.write(start, memoryview(bytes([fill]) * (stop - start))) == model.write(start, stop, fill)
        elif step == "punch":
            assert contents.punch(start, stop) == model.punch(start, stop)
        elif step == "cut":
            assert contents.punch(start, None) == model.punch(start, END)
        elif step == "blank":
            contents.blank(start, stop)
            model.blank(start, stop)
        else:
            assert contents.missing(first, last) == model.pages[first:last].count(FREE)
            assert contents.reserve(first, last) == model.mark(first, last, RESERVED)
    assert joined(contents.read(0, END)) == model.data
    assert joined(contents.read(offset, length)) == model.data[offset : offset + length].ljust(length, b"\0")
    assert contents.missing(0, PAGES) == model.pages.count(FREE)
    data = contents.next_data(offset, END)
    assert (END if data is None else data) == model.next_page(offset, True)
    assert contents.next_hole(offset, END) == model.next_page(offset, False)
    at = 0
    for start, stop, is_data in contents.segments(0, END):
        assert start == at
        assert {page == HELD for page in model.pages[start // PAGE : -(-stop // PAGE)]} == {is_data}
        at = stop
    assert at == END


def test_stored_bytes_are_those_of_written_pages_only() -> None:
    contents = Contents()
    for page in (31, 0, 17, 5):
        contents.write(page * PAGE, memoryview(b"x" * PAGE))
    assert [len(chunk.data) for chunk in contents.chunks.values()] == [4 * PAGE]
    contents.punch(17 * PAGE, 18 * PAGE)
    assert [len(chunk.data) for chunk in contents.chunks.values()] == [3 * PAGE]
    contents.punch(0, None)
    assert contents.chunks == {}


def test_short_file_stores_its_bytes_and_no_page() -> None:
    contents = Contents()
    contents.write(0, memoryview(b"short"))
    assert bytes(contents.chunks[0].data) == b"short"


def test_reserved_pages_store_nothing() -> None:
    contents = Contents()
    assert contents.reserve(0, 10 * CHUNK_PAGES) == 10 * CHUNK_PAGES
    assert sum(len(chunk.data) for chunk in contents.chunks.values()) == 0


def test_hole_of_eight_tib_is_found_and_punched_at_once() -> None:
    contents = Contents()
    end = 8 << 40
    contents.write(end - 1, memoryview(b"!"))
    assert contents.next_data(0, end) == end - PAGE
    assert contents.next_hole(0, end) == 0
    assert contents.missing(0, end // PAGE) == end // PAGE - 1
    assert contents.punch(0, end) == 1


def test_whole_chunks_are_read_without_copying() -> None:
    contents = Contents()
    contents.write(0, memoryview(os.urandom(3 * CHUNK)))
    pieces = contents.read(0, 3 * CHUNK)
    assert isinstance(pieces, list)
    for piece, chunk in zip(pieces, contents.chunks.values(), strict=True):
        assert isinstance(piece, memoryview)
        assert piece.obj is chunk.data


def test_reader_that_still_holds_a_piece_neither_stops_nor_sees_growth() -> None:
    contents = Contents()
    contents.write(0, memoryview(b"old"))
    held = contents.read(0, 3)
    contents.write(3, memoryview(b"new"))  # appends
    contents.write(5 * PAGE, memoryview(b"far"))
    also_held = contents.read(5 * PAGE, 3)
    contents.write(2 * PAGE, memoryview(b"between"))  # moves what is behind
    contents.punch(2 * PAGE, 3 * PAGE)
    assert joined(held) == b"old"
    assert joined(also_held) == b"far"
    assert joined(contents.read(0, 6)) == b"oldnew"
    assert joined(contents.read(5 * PAGE, 3)) == b"far"

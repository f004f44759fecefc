"""What a file holds: bytes, holes and reserved pages, at the price of the pages that were written.

A file is cut into chunks of 128 KiB, kept in a dict by number, so that a chunk nobody wrote costs nothing and a file of
8 TiB may be a page long. A chunk keeps only its written pages, packed one behind the other, and says by the bits of a
number which pages they are:

    pages of the chunk     0   1   2   3   4   5 ...
    held                   1   0   0   1   1   0        bits of an int, page 0 is bit 0
    data                   [0][3][4                     the last pages may be stored short: what is not there is zero

A page's place is the number of held pages below it, and a chunk written from its start has every page in its own place.
Reserved pages (fallocate) are in use and read as zeros, but nothing is stored for them.

A page has 4 KiB, as in tmpfs: it is the unit of holes, of st_blocks and of the limit on size.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from pyfusekit.core import Data

PAGE_SHIFT = 12
PAGE = 1 << PAGE_SHIFT
CHUNK_SHIFT = 17
CHUNK = 1 << CHUNK_SHIFT
CHUNK_PAGES = CHUNK >> PAGE_SHIFT

_IN_PAGE = PAGE - 1
_IN_CHUNK = CHUNK - 1
_ALL_PAGES = (1 << CHUNK_PAGES) - 1
_ZEROS = memoryview(bytes(1 << 20))


class Chunk:
    """The written pages of 128 KiB of a file."""

    __slots__ = ("data", "held", "reserved")

    def __init__(self, data: bytearray, held: int, reserved: int) -> None:
        self.data = data
        """The held pages in order. INVARIANT: at most one page for each bit of held; what is missing at the end is zero."""
        self.held = held
        self.reserved = reserved
        """Pages in use that were never written. INVARIANT: held & reserved == 0, and not both are 0."""

    def place(self, at: int) -> int:
        """Return where in data the byte *at* of the chunk is, or would be."""
        page = at >> PAGE_SHIFT
        return ((self.held & ((1 << page) - 1)).bit_count() << PAGE_SHIFT) | (at & _IN_PAGE)

    def splice(self, start: int, stop: int, new: Data) -> None:
        """Replace data[start:stop], although a reader may still hold a view of it: then in a copy."""
        try:
            self.data[start:stop] = new
        except BufferError:  # a bytearray with views may not change its length
            self.data = bytearray(self.data)
            self.data[start:stop] = new

    def hold(self, want: int) -> int:
        """Make room for the pages *want*, one run of bits, and return how many of them were not in use before."""
        fresh = want & ~self.held
        new = (fresh & ~self.reserved).bit_count()
        self.reserved &= ~fresh
        while fresh:
            page = (fresh & -fresh).bit_length() - 1
            if not self.held >> page:  # nothing is held behind it: no page has to move
                self.held |= fresh
                break
            place = self.place(page << PAGE_SHIFT)
            if place < len(self.data):
                self.splice(place, place, bytes(PAGE))
            self.held |= 1 << page
            fresh &= fresh - 1
        return new

    def write(self, at: int, data: memoryview) -> int:
        """Write *data* at byte *at*, within the chunk, and return how many pages came into use."""
        size = len(data)
        want = (2 << ((at + size - 1) >> PAGE_SHIFT)) - (1 << (at >> PAGE_SHIFT))
        new = self.hold(want) if want & ~self.held else 0
        start = self.place(at)
        stored = len(self.data)
        if start + size <= stored:
            # Through a view: bytearray's own slice assignment copies the bytes twice.
            memoryview(self.data)[start : start + size] = data
            return new
        if start < stored:
            memoryview(self.data)[start:] = data[: stored - start]
            data = data[stored - start :]
        elif start > stored:
            self.splice(stored, stored, bytes(start - stored))
        try:
            self.data += data
        except BufferError:
            self.data = bytearray(self.data)
            self.data += data
        return new

    def drop(self, gone: int) -> None:
        """Forget what the pages *gone* hold."""
        gone &= self.held
        while gone:
            page = gone.bit_length() - 1  # from the end, where it may take no moving at all
            place = self.place(page << PAGE_SHIFT)
            if place < len(self.data):
                self.splice(place, place + PAGE, b"")
            self.held ^= 1 << page
            gone ^= 1 << page

    def blank(self, start: int, stop: int) -> None:
        """Make the bytes from *start* to *stop*, which are in one page, zero."""
        if self.held >> (start >> PAGE_SHIFT) & 1:
            place = self.place(start)
            end = min(place + stop - start, len(self.data))
            if place < end:
                self.data[place:end] = bytes(end - place)

    def pieces(self, start: int, stop: int) -> Iterator[memoryview]:
        """Yield the bytes from *start* to *stop*."""
        while start < stop:
            bits = self.held >> (start >> PAGE_SHIFT)
            if not bits:
                end = stop
            elif bits & 1:
                pages = (~bits & (bits + 1)).bit_length() - 1
                end = min(stop, ((start >> PAGE_SHIFT) + pages) << PAGE_SHIFT)
                place = self.place(start)
                stored = memoryview(self.data)[place : place + end - start]
                if stored:
                    yield stored
                start += len(stored)
            else:
                pages = (bits & -bits).bit_length() - 1
                end = min(stop, ((start >> PAGE_SHIFT) + pages) << PAGE_SHIFT)
            if start < end:
                yield _ZEROS[: end - start]
                start = end


def _pages(start: int, stop: int) -> int:
    """Return the bits of the pages from *start* to *stop*, numbers within a chunk."""
    return (1 << stop) - (1 << start)


class Contents:
    """The bytes of one file, without its size: behind what is stored there are zeros, for ever."""

    __slots__ = ("_order", "chunks")

    def __init__(self) -> None:
        self.chunks: dict[int, Chunk] = {}
        self._order: list[int] | None = None  # the numbers of the chunks, sorted, while none comes or goes

    def read(self, offset: int, size: int) -> Data | list[Data]:
        """Return *size* bytes from *offset*: views, to be sent before anything is written."""
        start = offset & _IN_CHUNK
        stop = start + size
        if stop <= CHUNK:
            chunk = self.chunks.get(offset >> CHUNK_SHIFT)
            if chunk is None:
                return _ZEROS[:size]
            held = chunk.held
            if not held & (held + 1) and stop <= len(chunk.data):
                return memoryview(chunk.data)[start:stop]
        return self._read_pieces(offset, size)

    def _read_pieces(self, offset: int, size: int) -> list[Data]:
        pieces: list[Data] = []
        chunks = self.chunks
        while size > 0:
            start = offset & _IN_CHUNK
            length = min(CHUNK - start, size)
            chunk = chunks.get(offset >> CHUNK_SHIFT)
            if chunk is None:
                pieces.append(_ZEROS[:length])
            elif not chunk.held & (chunk.held + 1) and start + length <= len(chunk.data):
                view = memoryview(chunk.data)
                pieces.append(view if length == len(view) else view[start : start + length])
            else:
                pieces.extend(chunk.pieces(start, start + length))
            offset += length
            size -= length
        return pieces

    def write(self, offset: int, data: memoryview) -> int:
        """Write *data*, not empty, at *offset* and return how many pages came into use."""
        start = offset & _IN_CHUNK
        if start + len(data) <= CHUNK:
            return self._write_chunk(offset >> CHUNK_SHIFT, start, data)
        new = done = 0
        while done < len(data):
            start = (offset + done) & _IN_CHUNK
            piece = data[done : done + CHUNK - start]
            new += self._write_chunk((offset + done) >> CHUNK_SHIFT, start, piece)
            done += len(piece)
        return new

    def _write_chunk(self, index: int, start: int, data: memoryview) -> int:
        chunk = self.chunks.get(index)
        if chunk is not None:
            return chunk.write(start, data)
        want = (2 << ((start + len(data) - 1) >> PAGE_SHIFT)) - (1 << (start >> PAGE_SHIFT))
        lead = start & _IN_PAGE
        stored = bytearray(data)
        if lead:
            stored[:0] = bytes(lead)
        self.chunks[index] = Chunk(stored, want, 0)
        self._order = None
        return want.bit_count()

    def missing(self, first: int, last: int) -> int:
        """Return how many of the pages from number *first* up to *last*, not included, are not in use."""
        total = last - first
        for index, start, stop in self._spans(first << PAGE_SHIFT, last << PAGE_SHIFT):
            chunk = self.chunks[index]
            used = (chunk.held | chunk.reserved) & _pages(start >> PAGE_SHIFT, stop >> PAGE_SHIFT)
            total -= used.bit_count()
        return total

    def reserve(self, first: int, last: int) -> int:
        """Bring the pages from number *first* up to *last* into use and return how many were not."""
        new = 0
        while first < last:
            index, start = divmod(first, CHUNK_PAGES)
            stop = min(CHUNK_PAGES, start + last - first)
            want = _pages(start, stop)
            chunk = self.chunks.get(index)
            if chunk is None:
                self.chunks[index] = Chunk(bytearray(), 0, want)
                self._order = None
                new += stop - start
            else:
                fresh = want & ~(chunk.held | chunk.reserved)
                chunk.reserved |= fresh
                new += fresh.bit_count()
            first += stop - start
        return new

    def punch(self, start: int, stop: int | None) -> int:
        """Zero the bytes from *start* to *stop* (None: for ever), and return how many pages went out of use.

        Pages that lie in the range whole are given back, those on its edges keep their place.
        """
        return self._clear(start, stop, keep=False)

    def blank(self, start: int, stop: int) -> None:
        """Zero the bytes from *start* to *stop*; pages in use stay in use."""
        self._clear(start, stop, keep=True)

    def _clear(self, start: int, stop: int | None, *, keep: bool) -> int:
        gone = 0
        for index, low, high in list(self._spans(start, stop)):
            chunk = self.chunks[index]
            first = (low + _IN_PAGE) >> PAGE_SHIFT
            last = high >> PAGE_SHIFT
            if first > last:  # within one page
                chunk.blank(low, high)
                continue
            if low & _IN_PAGE:
                chunk.blank(low, first << PAGE_SHIFT)
            if high & _IN_PAGE:
                chunk.blank(last << PAGE_SHIFT, high)
            whole = _pages(first, last)
            used = whole & (chunk.held | chunk.reserved)
            if keep:
                chunk.drop(whole)
                chunk.reserved |= used
                continue
            gone += used.bit_count()
            if not (chunk.held | chunk.reserved) & ~whole:
                del self.chunks[index]
                self._order = None
                continue
            chunk.drop(whole)
            chunk.reserved &= ~whole
        return gone

    def segments(self, start: int, stop: int) -> Iterator[tuple[int, int, bool]]:
        """Yield (from, to, whether it is data) for the bytes from *start* to *stop*, in order and without gaps."""
        while start < stop:
            data = self.next_data(start, stop)
            if data is None:
                yield start, stop, False
                return
            if data > start:
                yield start, data, False
            start = min(self.next_hole(data, stop), stop)
            yield data, start, True

    def next_data(self, offset: int, stop: int) -> int | None:
        """Return the first offset from *offset* on, below *stop*, in a page that was written, or None."""
        chunks = self.chunks
        order = self._order
        if order is None:
            order = self._order = sorted(chunks)
        for at in range(bisect_left(order, offset >> CHUNK_SHIFT), len(order)):
            base = order[at] << CHUNK_SHIFT
            first = max(offset - base, 0) >> PAGE_SHIFT
            bits = chunks[order[at]].held >> first
            if bits:
                page = first + (bits & -bits).bit_length() - 1
                found = max(base + (page << PAGE_SHIFT), offset)
                return found if found < stop else None
            if base >= stop:
                break
        return None

    def next_hole(self, offset: int, stop: int) -> int:
        """Return the first offset from *offset* on in a page that was not written, or *stop*."""
        while offset < stop:
            chunk = self.chunks.get(offset >> CHUNK_SHIFT)
            if chunk is None:
                return offset
            first = (offset & _IN_CHUNK) >> PAGE_SHIFT
            free = (chunk.held ^ _ALL_PAGES) >> first
            if free:
                page = first + (free & -free).bit_length() - 1
                return min(max((offset & ~_IN_CHUNK) + (page << PAGE_SHIFT), offset), stop)
            offset = (offset | _IN_CHUNK) + 1
        return stop

    def _spans(self, start: int, stop: int | None) -> Iterator[tuple[int, int, int]]:
        """Yield (chunk number, first byte in it, byte behind the last) for the chunks there are between two offsets."""
        first = start >> CHUNK_SHIFT
        chunks = self.chunks
        if stop is not None and start >= stop:
            return
        last = None if stop is None else (stop - 1) >> CHUNK_SHIFT
        numbers: Iterator[int]
        if last is not None and last - first < len(chunks):
            numbers = (index for index in range(first, last + 1) if index in chunks)
        else:
            numbers = (index for index in chunks if index >= first and (last is None or index <= last))
        for index in numbers:
            low = start & _IN_CHUNK if index == first else 0
            high = ((stop - 1) & _IN_CHUNK) + 1 if stop is not None and index == last else CHUNK
            yield index, low, high


__all__ = ["CHUNK", "CHUNK_PAGES", "PAGE", "PAGE_SHIFT", "Contents"]

"""Sets of bytes of a file: sorted, disjoint ranges that do not touch."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class Extents:
    """A set of offsets, kept as ranges [start, end).

    INVARIANT: _starts and _ends have the same length, and _starts[i] < _ends[i] < _starts[i + 1].
    """

    __slots__ = ("_ends", "_starts", "total")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.total = 0
        """How many offsets are in the set."""
        for start, end in ranges:
            self.add(start, end)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(zip(self._starts, self._ends, strict=True)))

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __len__(self) -> int:
        """Return how many ranges there are."""
        return len(self._starts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Extents) and self._starts == other._starts and self._ends == other._ends

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Extents({list(self)})"

    def copy(self) -> Extents:
        """Return a set of its own with the same offsets."""
        twin = Extents()
        twin._starts = self._starts.copy()
        twin._ends = self._ends.copy()
        twin.total = self.total
        return twin

    @property
    def end(self) -> int:
        """The offset behind the last one; 0 when empty."""
        return self._ends[-1] if self._ends else 0

    @property
    def start(self) -> int:
        """The first offset; 0 when empty."""
        return self._starts[0] if self._starts else 0

    def add(self, start: int, end: int) -> int:
        """Add [start, end); return how many of its offsets were not in the set."""
        if start >= end:
            return 0
        if self._ends and self._ends[-1] == start:  # A sequential writer: the last range grows.
            self._ends[-1] = end
            self.total += end - start
            return end - start
        first = bisect_left(self._ends, start)  # The first range that touches or lies behind.
        last = bisect_right(self._starts, end)  # The first range that begins behind.
        had = sum(min(self._ends[i], end) - max(self._starts[i], start) for i in range(first, last))
        if first < last:
            low, high = min(start, self._starts[first]), max(end, self._ends[last - 1])
        else:
            low, high = start, end
        self._starts[first:last] = [low]
        self._ends[first:last] = [high]
        new = end - start - had
        self.total += new
        return new

    def remove(self, start: int, end: int) -> int:
        """Remove [start, end); return how many of its offsets were in the set."""
        if start >= end:
            return 0
        first = bisect_right(self._ends, start)
        last = bisect_left(self._starts, end)
        if first >= last:
            return 0
        had = sum(min(self._ends[i], end) - max(self._starts[i], start) for i in range(first, last))
        starts: list[int] = []
        ends: list[int] = []
        if self._starts[first] < start:
            starts.append(self._starts[first])
            ends.append(start)
        if self._ends[last - 1] > end:
            starts.append(end)
            ends.append(self._ends[last - 1])
        self._starts[first:last] = starts
        self._ends[first:last] = ends
        self.total -= had
        return had

    def covers(self, start: int, end: int) -> bool:
        """Return whether all of [start, end) is in the set; of nothing, all is."""
        if start >= end:
            return True
        index = bisect_right(self._starts, start) - 1
        return index >= 0 and self._ends[index] >= end

    def overlaps(self, start: int, end: int) -> bool:
        """Return whether any of [start, end) is in the set."""
        index = bisect_right(self._ends, start)
        return start < end and index < len(self._starts) and self._starts[index] < end

    def within(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return what of [start, end) is in the set, as ranges in order."""
        if start >= end:
            return []
        first = bisect_right(self._ends, start)
        last = bisect_left(self._starts, end)
        return [(max(self._starts[i], start), min(self._ends[i], end)) for i in range(first, last)]

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return what of [start, end) is not in the set, as ranges in order."""
        found = []
        position = start
        for low, high in self.within(start, end):
            if position < low:
                found.append((position, low))
            position = high
        if position < end:
            found.append((position, end))
        return found


__all__ = ["Extents"]

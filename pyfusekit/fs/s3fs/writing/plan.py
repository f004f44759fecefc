"""How a file becomes an object: one PUT, or the parts of a multipart upload. Pure.

The rules are S3's ("multipart upload limits"): at most 10,000 parts of at most 5 GiB, each of them but the last at least
5 MiB. A byte that did not change is copied inside the store; a changed run shorter than a part grows by reading neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..remote.store import MAX_PART, MAX_PARTS, MIN_PART

PUT_MAX = 8 << 20
"""Bytes of the largest file that goes out in one request: a multipart upload costs two more."""
_MIB = 1 << 20
_COPY = 512 * _MIB
_TIERS = ((1000, 1, 0), (2000, 4, 0), (4000, 16, 0), (MAX_PARTS, 128, 1 << 30))
"""Up to which part number, how many times part_size, and at least how many bytes. An upload that begins before the size is
known thus holds 5 TiB, whatever part_size is, and small files still have small parts."""


class Put(NamedTuple):
    """One request with all bytes [0, end)."""

    end: int


class PutPart(NamedTuple):
    """Send the bytes [start, end)."""

    number: int
    start: int
    end: int


class CopyPart(NamedTuple):
    """Copy the bytes [start, end) of the base, which stand at the same offsets."""

    number: int
    start: int
    end: int


Step = PutPart | CopyPart


def put_limit(part_size: int) -> int:
    """Return the bytes of the largest file that is one PUT."""
    return max(PUT_MAX, min(part_size, MAX_PART))


def part_bytes(number: int, part_size: int) -> int:
    """Return how many bytes part *number* has where nothing else decides."""
    for last, times, least in _TIERS:
        if number <= last:
            # MIN_PART is left free below MAX_PART for a rest that is too short for a part of its own.
            return min(max(part_size, MIN_PART) * times if not least else max(part_size * times, least), MAX_PART - MIN_PART)
    raise ValueError(f"there is no part {number}")


def plan(size: int, copyable: Sequence[tuple[int, int]], part_size: int) -> list[Put] | list[Step]:
    """Return the steps that make *size* bytes, of which the ranges *copyable* may be copied from the base.

    *copyable* is sorted and disjoint; everything else is sent. The steps cover [0, size) in order. What the plan says of a
    prefix does not depend on how much is appended behind the last copyable byte, so parts can be sent while a file grows.
    """
    if size <= put_limit(part_size):
        return [Put(size)]
    least = MIN_PART
    while True:
        steps = _steps(_runs(size, copyable, least), part_size)
        if steps is not None:
            return steps
        # Too many pieces: what lies between close changes is sent with them.
        least *= 2


def _runs(size: int, copyable: Sequence[tuple[int, int]], least: int) -> list[tuple[bool, int, int]]:
    """Return (copied, start, end) in order, covering [0, size), each but the last of MIN_PART bytes or more.

    Copies shorter than *least* are sent instead.
    """
    runs: list[tuple[bool, int, int]] = []
    position = 0
    for low, high in copyable:
        start, end = max(low, position), min(high, size)
        last = end == size
        if end - start < least and not (last and least == MIN_PART):
            continue
        if position < start < position + MIN_PART:  # A run too short for a part takes from what follows.
            start = position + MIN_PART
        if start >= end or (end - start < MIN_PART and not last):
            continue
        if position < start:
            runs.append((False, position, start))
        runs.append((True, start, end))
        position = end
    if position < size:
        runs.append((False, position, size))
    return runs


def _steps(runs: Sequence[tuple[bool, int, int]], part_size: int) -> list[Step] | None:
    """Return the parts of *runs*, or None when there are more than MAX_PARTS."""
    steps: list[Step] = []
    copied = sum(end - start for copy, start, end in runs if copy)
    chunk = min(max(_COPY, -(-copied // 128 // _MIB) * _MIB), MAX_PART)
    for index, (copy, start, end) in enumerate(runs):
        last = index == len(runs) - 1
        while start < end:
            number = len(steps) + 1
            if number > MAX_PARTS:
                return None
            stop = min(end, start + (chunk if copy else part_bytes(number, part_size)))
            if not last and 0 < end - stop < MIN_PART:
                stop = end if end - start <= MAX_PART else end - MIN_PART
            steps.append(CopyPart(number, start, stop) if copy else PutPart(number, start, stop))
            start = stop
    return steps


__all__ = ["PUT_MAX", "CopyPart", "Put", "PutPart", "Step", "part_bytes", "plan", "put_limit"]

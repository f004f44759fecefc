"""Sets of byte ranges, against a bytearray that has a 1 for each byte of the set."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pyfusekit.fs.s3fs.writing.extents import Extents

SPACE = 48
ranges = st.tuples(st.integers(0, SPACE), st.integers(0, SPACE)).map(lambda pair: (min(pair), max(pair)))
steps = st.lists(st.tuples(st.sampled_from(["add", "remove"]), ranges), max_size=20)


def runs(model: bytes, start: int, end: int, value: int) -> list[tuple[int, int]]:
    """Return the ranges within [start, end) where *model* has *value*."""
    found: list[tuple[int, int]] = []
    for offset in range(start, end):
        if model[offset] == value:
            if found and found[-1][1] == offset:
                found[-1] = (found[-1][0], offset + 1)
            else:
                found.append((offset, offset + 1))
    return found


@given(steps, ranges)
@settings(max_examples=300, deadline=None)
def test_extents_are_a_set_of_bytes(done: list[tuple[str, tuple[int, int]]], asked: tuple[int, int]) -> None:
    model = bytearray(SPACE)
    extents = Extents()
    for word, (start, end) in done:
        before = extents.copy()
        if word == "add":
            assert extents.add(start, end) == model[start:end].count(0)
            model[start:end] = b"\1" * (end - start)
        else:
            assert extents.remove(start, end) == model[start:end].count(1)
            model[start:end] = bytes(end - start)
        assert (extents == before) == (bytes(model) == bytes(was(before)))
        assert list(extents) == runs(bytes(model), 0, SPACE, 1)
        assert extents.total == model.count(1)
    start, end = asked
    assert extents.within(start, end) == runs(bytes(model), start, end, 1)
    assert extents.gaps(start, end) == runs(bytes(model), start, end, 0)
    assert extents.covers(start, end) == (0 not in model[start:end])
    assert extents.overlaps(start, end) == (1 in model[start:end])
    assert extents.end == model.rfind(1) + 1
    assert extents.start == max(model.find(1), 0)
    assert len(extents) == len(list(extents))
    assert bool(extents) == (1 in model)
    assert Extents(list(extents)) == extents


def was(extents: Extents) -> bytearray:
    model = bytearray(SPACE)
    for start, end in extents:
        model[start:end] = b"\1" * (end - start)
    return model


def test_a_sequential_writer_has_one_range() -> None:
    extents = Extents()
    for start in range(0, 1 << 20, 1 << 10):
        extents.add(start, start + (1 << 10))
    assert list(extents) == [(0, 1 << 20)]


def test_copies_are_apart() -> None:
    extents = Extents([(0, 4)])
    twin = extents.copy()
    twin.add(8, 9)
    assert list(extents) == [(0, 4)]
    assert repr(twin) == "Extents([(0, 4), (8, 9)])"

"""Parts of multipart uploads: whatever the file, S3's rules hold and every byte is there once, from where it may come."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfusekit.fs.s3fs.remote.store import MAX_OBJECT, MAX_PART, MAX_PARTS, MIN_PART
from pyfusekit.fs.s3fs.writing.plan import CopyPart, Put, PutPart, part_bytes, plan, put_limit

MIB = 1 << 20
GIB = 1 << 30
part_sizes = st.sampled_from([5 * MIB, 8 * MIB, 64 * MIB, 5 * GIB])
# Near the edges that matter, and anywhere.
lengths = st.one_of(
    st.integers(0, 40 * MIB),
    st.integers(0, 200 * GIB),
    st.sampled_from([1, MIN_PART - 1, MIN_PART, MIN_PART + 1, MAX_PART, MAX_PART + 1, 3 * MAX_PART + 5]),
)


@st.composite
def files(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    """A size, and which ranges may be copied; the last may reach beyond the size."""
    position = 0
    copyable = []
    for copied, length in draw(st.lists(st.tuples(st.booleans(), lengths), max_size=12)):
        if copied and length and (not copyable or copyable[-1][1] < position):
            copyable.append((position, position + length))
        position += length
    return min(position, MAX_OBJECT), [(start, end) for start, end in copyable if start < MAX_OBJECT]


def check(size: int, copyable: list[tuple[int, int]], part_size: int) -> list[PutPart | CopyPart]:
    steps = plan(size, copyable, part_size)
    if size <= put_limit(part_size):
        assert steps == [Put(size)]
        return []
    position = 0
    for index, step in enumerate(steps):
        assert isinstance(step, PutPart | CopyPart)
        assert step.number == index + 1
        assert step.start == position < step.end
        assert step.end - step.start <= MAX_PART
        assert step.end - step.start >= MIN_PART or index == len(steps) - 1
        if isinstance(step, CopyPart):
            assert any(start <= step.start and step.end <= end for start, end in copyable)
        position = step.end
    assert position == size
    assert len(steps) <= MAX_PARTS
    return [step for step in steps if not isinstance(step, Put)]


@given(files(), part_sizes)
@settings(max_examples=400, deadline=None)
def test_every_byte_is_in_one_step_and_the_rules_of_s3_hold(file: tuple[int, list[tuple[int, int]]], part_size: int) -> None:
    size, copyable = file
    steps = check(size, copyable, part_size)
    sent = sum(step.end - step.start for step in steps if isinstance(step, PutPart))
    changed = size - sum(max(0, min(end, size) - start) for start, end in copyable)
    assert sent <= changed + 15 * MIB * (len(copyable) + 1), "each change costs its neighbourhood at most"


@given(st.integers(0, 3 * MAX_PART), st.integers(0, 10 * GIB), st.integers(0, 10 * GIB))
@settings(max_examples=100, deadline=None)
def test_a_prefix_of_the_plan_does_not_depend_on_what_is_appended(base: int, one: int, more: int) -> None:
    copyable = [(0, base)] if base else []
    if base + one <= put_limit(8 * MIB):
        return
    short = plan(base + one, copyable, 8 * MIB)
    long = plan(base + one + more, copyable, 8 * MIB)
    assert short[:-1] == long[: len(short) - 1]


@pytest.mark.parametrize("part_size", [1, 5 * MIB, 8 * MIB, 512 * MIB, 5 * GIB])
def test_the_largest_object_has_at_most_10_000_parts(part_size: int) -> None:
    assert len(check(MAX_OBJECT, [], part_size)) <= MAX_PARTS
    with pytest.raises(ValueError, match="no part"):
        part_bytes(MAX_PARTS + 1, part_size)


def test_up_to_8_mib_is_one_request() -> None:
    assert plan(0, [], 5 * MIB) == [Put(0)]
    assert plan(8 * MIB, [], 5 * MIB) == [Put(8 * MIB)]
    assert plan(8 * MIB + 1, [], 5 * MIB) == [PutPart(1, 0, 5 * MIB), PutPart(2, 5 * MIB, 8 * MIB + 1)]
    assert plan(60 * MIB, [(0, 60 * MIB)], 64 * MIB) == [Put(60 * MIB)]


def test_a_change_in_the_middle_sends_one_small_part() -> None:
    size = 256 * MIB
    assert plan(size, [(0, 100 * MIB), (100 * MIB + 4096, size)], 8 * MIB) == [
        CopyPart(1, 0, 100 * MIB),
        PutPart(2, 100 * MIB, 105 * MIB),
        CopyPart(3, 105 * MIB, size),
    ]


def test_a_change_at_the_beginning_takes_what_follows_and_one_at_the_end_may_be_short() -> None:
    size = 100 * MIB
    assert plan(size, [(1, size)], 8 * MIB) == [PutPart(1, 0, 5 * MIB), CopyPart(2, 5 * MIB, size)]
    assert plan(size, [(0, size - 1)], 8 * MIB) == [CopyPart(1, 0, size - 1), PutPart(2, size - 1, size)]


def test_an_append_to_a_terabyte_is_some_200_copies() -> None:
    steps = check((1 << 40) + 100, [(0, 1 << 40)], 8 * MIB)
    assert 200 <= len(steps) <= 210
    assert isinstance(steps[-1], PutPart)
    assert sum(isinstance(step, PutPart) for step in steps) == 1


def test_more_changes_than_parts_are_sent_with_what_lies_between() -> None:
    copyable = [(start + 1, start + 20 * MIB) for start in range(0, 15_000 * 20 * MIB, 20 * MIB)]
    steps = check(15_000 * 20 * MIB, copyable, 8 * MIB)
    assert len(steps) <= MAX_PARTS

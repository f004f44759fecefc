"""The window ahead of readers, and the memory they share: on a file that is a function of its offsets."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from pyfusekit.cache.memory import Budget
from pyfusekit.cache.prefetch import FIRST_WINDOW, KEEP_BEHIND, LARGEST_PART, SMALLEST_PART, Prefetcher

KIB = 1 << 10
MIB = 1 << 20
PATTERN = random.Random(7).randbytes(1 << 20)


def expected(start: int, end: int) -> bytes:
    """Return the bytes of the file: PATTERN over and over, each copy with its number in front."""
    found = []
    while start < end:
        number, inside = divmod(start, len(PATTERN))
        taken = (PATTERN if inside >= 8 else number.to_bytes(8, "big"))[inside : inside + end - start]
        found.append(taken)
        start += len(taken)
    return b"".join(found)


class Source:
    """A remote file: counts requests, can be held back, fails when told to."""

    def __init__(self, piece: int = 64 * KIB) -> None:
        self.piece = piece
        self.requests: list[tuple[int, int]] = []
        self.under_way = 0
        self.cancelled = 0
        self.gate: asyncio.Event | None = None
        self.fail: list[OSError] = []
        self.turns = 1
        self.watch: Callable[[], None] = lambda: None

    async def fetch(self, start: int, end: int, sink: Callable[[bytes], None]) -> None:
        self.requests.append((start, end))
        if self.fail:
            raise self.fail.pop(0)
        self.under_way += 1
        try:
            for at in range(start, end, self.piece):
                for _ in range(self.turns):
                    await asyncio.sleep(0)
                if self.gate is not None:
                    await self.gate.wait()
                sink(expected(at, min(end, at + self.piece)))
                self.watch()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1

    def open(self, size: int, limit: int = 8 * MIB, budget: Budget | None = None, **more: Any) -> Prefetcher:
        return Prefetcher(self.fetch, size, limit, budget or Budget(128 * MIB), set(), name="it", **more)


async def read(file: Prefetcher, offset: int, size: int) -> bytes:
    found = file.read(offset, size)
    return b"".join(await found if isinstance(found, Coroutine) else found)


async def drain(file: Prefetcher, size: int, step: int) -> None:
    for offset in range(0, size, step):
        assert await read(file, offset, step) == expected(offset, min(size, offset + step))


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("size", [0, 1, 4095, MIB, MIB + 1, 5 * MIB + 77])
@pytest.mark.parametrize("limit", [0, 100_000, 8 * MIB])
@pytest.mark.parametrize("piece", [1000, 64 * KIB, 300_001])
async def test_reads_in_order_bring_the_file(size: int, limit: int, piece: int) -> None:
    source = Source(piece)
    budget = Budget(128 * MIB)
    file = source.open(size, limit, budget)
    await drain(file, size, 128 * KIB)
    assert await read(file, size, 1) == b""
    file.close()
    await turns()
    assert (budget.used, budget.flights) == (0, 0)


async def test_reads_in_any_order_bring_the_right_bytes() -> None:
    source = Source()
    rng = random.Random(1)
    budget = Budget(12 * MIB)
    file = source.open(9 * MIB, budget=budget)
    spans = [(rng.randrange(9 * MIB), rng.choice((1, 4096, 128 * KIB, MIB))) for _ in range(150)]
    spans += [(start + n * 128 * KIB, 128 * KIB) for start in (0, 3 * MIB, 700_001) for n in range(20)]
    parts = await asyncio.gather(*(read(file, offset, size) for offset, size in spans))
    for (offset, size), part in zip(spans, parts, strict=True):
        assert part == expected(offset, min(9 * MIB, offset + size))
    assert budget.most_used <= 12 * MIB
    assert file.held == budget.used
    file.close()
    assert budget.used == 0


async def test_window_grows_while_the_reader_waits_up_to_its_limit() -> None:
    source = Source()
    source.turns = 3
    file = source.open(200 * MIB, 32 * MIB)
    windows = []
    for offset in range(0, 150 * MIB, 128 * KIB):
        await read(file, offset, 128 * KIB)
        assert file.held <= file.window + LARGEST_PART + KEEP_BEHIND + MIB
        windows.append(file.window // MIB)
    assert sorted(set(windows)) == [1, 4, 16, 32]
    assert windows == sorted(windows)
    assert max(end - start for start, end in source.requests) == LARGEST_PART


async def test_many_readers_who_wait_at_once_widen_the_window_once() -> None:
    source = Source()
    file = source.open(200 * MIB, 64 * MIB)
    await read(file, 0, 128 * KIB)
    await asyncio.gather(*(read(file, offset, 128 * KIB) for offset in range(128 * KIB, 2 * MIB, 128 * KIB)))
    assert file.window == 4 * MIB


async def test_reader_who_never_waits_keeps_the_small_window() -> None:
    source = Source()
    file = source.open(16 * MIB)
    await read(file, 0, 64 * KIB)
    for offset in range(64 * KIB, 8 * MIB, 64 * KIB):
        await turns(30)
        assert not isinstance(file.read(offset, 64 * KIB), Coroutine)
    assert file.window == FIRST_WINDOW


async def test_read_in_the_middle_of_a_part_is_answered_when_its_bytes_are_there() -> None:
    source = Source(64 * KIB)
    source.gate = asyncio.Event()
    file = source.open(MIB)
    waiting = asyncio.ensure_future(read(file, 256 * KIB, 4096))
    first = asyncio.ensure_future(read(file, 0, 4096))
    await turns()
    assert not first.done()
    source.gate.set()
    assert await first == expected(0, 4096)
    assert file._streams[0].parts[0].filled < MIB
    assert await waiting == expected(256 * KIB, 256 * KIB + 4096)


async def test_jump_fetches_just_what_was_asked_for() -> None:
    source = Source()
    file = source.open(50 * MIB)
    await read(file, 30 * MIB, 4096)
    await read(file, 10 * MIB, 4096)
    assert source.requests == [(30 * MIB, 30 * MIB + 4096), (10 * MIB, 10 * MIB + 4096)]
    assert file.held == 0


async def test_jump_fetches_whole_blocks_when_they_are_to_be_kept() -> None:
    source = Source()
    file = source.open(50 * MIB + 5, align=128 * KIB)
    assert await read(file, 30 * MIB + 5000, 4096) == expected(30 * MIB + 5000, 30 * MIB + 9096)
    await read(file, 50 * MIB + 1, 4096)
    assert source.requests == [(30 * MIB, 30 * MIB + 128 * KIB), (50 * MIB, 50 * MIB + 5)]


async def test_random_reader_at_the_start_of_the_file_fetches_no_more_there_than_elsewhere() -> None:
    source = Source()
    file = source.open(50 * MIB)
    for number in range(1, 5):
        await read(file, number * 7 * MIB, 4096)
    source.requests.clear()
    await read(file, 0, 4096)
    assert source.requests == [(0, 4096)]


async def test_jumps_that_read_on_for_a_while_are_fetched_at_once_and_no_further() -> None:
    source = Source()
    file = source.open(200 * MIB)

    async def run(start: int) -> None:
        for offset in range(start, start + 512 * KIB, 128 * KIB):
            await read(file, offset, 128 * KIB)

    for number in range(1, 6):
        await run(number * 20 * MIB)
    source.requests.clear()
    await run(150 * MIB)
    assert source.requests == [(150 * MIB, 150 * MIB + 512 * KIB)]


async def test_reader_who_goes_on_after_a_jump_is_fetched_for() -> None:
    source = Source()
    file = source.open(200 * MIB, 64 * MIB)
    for offset in range(100 * MIB, 140 * MIB, 128 * KIB):
        assert await read(file, offset, 128 * KIB) == expected(offset, offset + 128 * KIB)
    assert file.window > 4 * MIB
    assert len(source.requests) < 40


async def test_two_readers_of_one_file_have_a_window_each() -> None:
    source = Source()
    file = source.open(200 * MIB)
    for step in range(0, 10 * MIB, 128 * KIB):
        for start in (0, 100 * MIB):
            assert await read(file, start + step, 128 * KIB) == expected(start + step, start + step + 128 * KIB)
    assert [stream.window >= 2 * MIB for stream in file._streams] == [True, True]
    assert sum(end - start for start, end in source.requests) < 2 * 10 * MIB + 2 * 12 * MIB


async def test_readers_of_one_place_share_a_request() -> None:
    source = Source()
    file = source.open(50 * MIB)
    found = await asyncio.gather(*(read(file, 30 * MIB, 4096) for _ in range(10)))
    assert set(found) == {expected(30 * MIB, 30 * MIB + 4096)}
    assert len(source.requests) == 1


async def test_read_a_little_behind_is_there_still() -> None:
    source = Source()
    file = source.open(50 * MIB)
    await drain(file, 4 * MIB, 128 * KIB)
    count = len(source.requests)
    assert await read(file, 4 * MIB - 512 * KIB, 128 * KIB) == expected(4 * MIB - 512 * KIB, 4 * MIB - 384 * KIB)
    assert len(source.requests) == count


async def test_what_is_far_behind_is_given_back_piece_by_piece() -> None:
    source = Source()
    source.turns = 3
    file = source.open(200 * MIB, 64 * MIB)
    await drain(file, 100 * MIB, 128 * KIB)
    stream = file._streams[0]
    assert stream.position - stream.parts[0].start <= KEEP_BEHIND + 256 * KIB
    assert stream.held == sum(part.held for part in stream.parts) == stream.reach - stream.parts[0].start


async def test_more_readers_than_are_told_apart_get_their_bytes() -> None:
    source = Source()
    file = source.open(100 * MIB)
    for step in range(0, MIB, 128 * KIB):
        for start in range(40):
            offset = start * 2 * MIB + step
            assert await read(file, offset, 128 * KIB) == expected(offset, offset + 128 * KIB)
    assert len(file._streams) == 16
    assert file.held == file.budget.used


# Failures and interrupts.


async def test_failed_request_is_its_readers_error_and_the_next_read_tries_again() -> None:
    source = Source()
    file = source.open(50 * MIB)
    source.fail = [OSError(errno.EBUSY, "slow down")]
    with pytest.raises(OSError, match="slow down") as info:
        await read(file, 0, 4096)
    assert info.value.errno == errno.EBUSY
    source.fail.clear()
    assert await read(file, 0, 4096) == expected(0, 4096)
    file.close()
    assert file.budget.used == 0


async def test_request_ahead_that_fails_hurts_nobody_who_does_not_read_there() -> None:
    source = Source()
    file = source.open(50 * MIB)
    await read(file, 0, 4096)
    await turns(40)
    source.fail = [OSError(errno.EIO, "lost")]
    await read(file, MIB, 4096)
    await turns(40)
    assert not source.fail
    await drain(file, 5 * MIB, 128 * KIB)


@pytest.mark.parametrize("wrong", [-1, 1])
async def test_request_that_brings_another_number_of_bytes_is_eio(wrong: int) -> None:
    async def fetch(start: int, end: int, sink: Callable[[bytes], None]) -> None:
        sink(bytes(end - start + wrong))

    file = Prefetcher(fetch, MIB, 0, Budget(MIB), set(), name="it")
    with pytest.raises(OSError, match="bytes") as info:
        await read(file, 0, 4096)
    assert info.value.errno == errno.EIO


async def test_interrupted_reader_ends_his_requests() -> None:
    source = Source()
    source.gate = asyncio.Event()
    file = source.open(50 * MIB)
    for offset in (0, 30 * MIB):
        task = asyncio.ensure_future(read(file, offset, 4096))
        await turns()
        assert source.under_way > 0
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        assert source.under_way == 0
        assert file.budget.used == 0


async def test_interrupted_reader_leaves_the_others_their_bytes() -> None:
    source = Source()
    source.gate = asyncio.Event()
    file = source.open(4 * MIB)
    one = asyncio.ensure_future(read(file, 0, 4096))
    other = asyncio.ensure_future(read(file, 4096, 4096))
    await turns()
    one.cancel()
    with pytest.raises(asyncio.CancelledError):
        await one
    source.gate.set()
    assert await other == expected(4096, 8192)
    await turns(100)
    count = len(source.requests)
    assert await read(file, 8192, MIB) == expected(8192, 8192 + MIB)
    assert len(source.requests) == count


async def test_close_ends_what_nobody_waits_for() -> None:
    source = Source()
    file = source.open(50 * MIB)
    await read(file, 0, 4096)
    source.gate = asyncio.Event()
    waiting = asyncio.ensure_future(read(file, MIB, MIB))
    await turns()
    assert source.under_way > 1
    file.close()
    await turns()
    assert source.under_way == 1
    source.gate.set()
    assert await waiting == expected(MIB, 2 * MIB)
    await turns()
    assert (source.under_way, file.budget.used, file.budget.flights, len(file._tasks)) == (0, 0, 0, 0)


async def test_cancelled_requests_end_those_who_wait() -> None:
    source = Source()
    source.gate = asyncio.Event()
    file = source.open(50 * MIB)
    waiting = asyncio.ensure_future(read(file, 0, MIB))
    for count in (0, 5):
        if count:
            waiting = asyncio.ensure_future(read(file, 0, MIB))
        await turns(count + 1)
        for task in file._tasks:
            task.cancel()
        with pytest.raises(OSError, match="closed") as info:
            await waiting
        assert info.value.errno == errno.EINTR


async def test_small_file_is_begun_whole() -> None:
    source = Source()
    file = source.open(300 * KIB, limit=0)
    await file.begin()
    assert await read(file, 0, 4096) == expected(0, 4096)
    assert await read(file, 4096, MIB) == expected(4096, 300 * KIB)
    assert source.requests == [(0, 300 * KIB)]
    assert file.held == 0


# Memory.


@pytest.mark.parametrize("limit", [2 * MIB, 16 * MIB, 128 * MIB])
async def test_a_hundred_readers_in_order_keep_to_the_limit_and_all_end(limit: int) -> None:
    source = Source(32 * KIB)
    budget = Budget(limit)
    files = [source.open(2 * MIB + number, 64 * MIB, budget) for number in range(100)]

    def watch() -> None:
        held = sum(file.held for file in files)
        assert held <= budget.used <= limit

    source.watch = watch
    order = random.Random(3)

    async def one(file: Prefetcher) -> None:
        offset = 0
        while offset < file.size:
            step = order.choice((4096, 128 * KIB, 200_000))
            assert await read(file, offset, step) == expected(offset, min(file.size, offset + step))
            offset += step
        file.close()

    await asyncio.gather(*(one(file) for file in files))
    assert (budget.used, budget.waiting, budget.flights) == (0, 0, 0)
    # Nobody was fetched for in vain over and over because the others took his memory.
    assert sum(end - start for start, end in source.requests) < 1.5 * sum(file.size for file in files)


async def test_files_that_nobody_reads_any_more_give_their_memory_to_who_does() -> None:
    source = Source()
    budget = Budget(16 * MIB)
    idle = [source.open(50 * MIB, 8 * MIB, budget) for _ in range(12)]
    for file in idle:
        for offset in range(0, 2 * MIB, 128 * KIB):
            await read(file, offset, 128 * KIB)
    await turns(300)
    assert budget.used > 8 * MIB
    busy = source.open(50 * MIB, 8 * MIB, budget)
    for stream in (stream for file in idle for stream in file._streams):
        stream.used_at -= 60
    await drain(busy, 30 * MIB, 128 * KIB)
    assert busy.window == 8 * MIB
    assert max(end - start for start, end in source.requests) == 4 * MIB
    for file in idle:
        assert await read(file, 2 * MIB, 4096) == expected(2 * MIB, 2 * MIB + 4096)


async def test_read_larger_than_the_limit_is_answered_alone() -> None:
    source = Source()
    budget = Budget(100_000)
    files = [source.open(4 * MIB, 8 * MIB, budget) for _ in range(5)]
    found = await asyncio.gather(*(read(file, 12_345, MIB) for file in files for _ in range(3)))
    assert set(found) == {expected(12_345, 12_345 + MIB)}
    assert budget.most_used <= MIB
    for file in files:
        file.close()
    assert budget.used == 0


async def test_memory_a_reader_needs_no_more_goes_to_who_waits() -> None:
    source = Source()
    source.gate = asyncio.Event()
    budget = Budget(3 * MIB // 2)
    one, other = source.open(50 * MIB, MIB, budget), source.open(50 * MIB, 0, budget)
    first = asyncio.ensure_future(read(one, 0, 4096))
    await turns()
    second = asyncio.ensure_future(read(other, 0, MIB))
    await turns()
    assert budget.waiting == 1
    # While somebody waits, nothing is fetched ahead.
    assert not budget.take(1, one._streams[0], ahead=True)
    source.gate.set()
    assert await first == expected(0, 4096)
    # The rest of that reader's part is wanted by nobody now.
    assert await second == expected(0, MIB)


async def test_interrupted_while_waiting_for_memory_leaves_the_line() -> None:
    source = Source()
    source.gate = asyncio.Event()
    budget = Budget(MIB)
    file = source.open(50 * MIB, 0, budget)
    first = asyncio.ensure_future(read(file, 0, MIB))
    await turns()
    others = [asyncio.ensure_future(read(file, number * 2 * MIB, MIB)) for number in range(1, 5)]
    await turns()
    assert budget.waiting == 4
    others[0].cancel()
    others[2].cancel()
    await turns()
    assert budget.waiting == 2
    source.gate.set()
    assert await first == expected(0, MIB)
    assert await others[1] == expected(4 * MIB, 5 * MIB)
    assert await others[3] == expected(8 * MIB, 9 * MIB)
    assert budget.used == 0


async def test_interrupted_at_the_very_moment_the_memory_came_gives_it_back() -> None:
    budget = Budget(100)
    assert budget.claim(100)
    task = asyncio.ensure_future(budget.wait(60))
    await turns()
    budget.give(100)
    assert budget.used == 60
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert budget.used == 0


async def test_two_hundred_random_readers_of_ten_files_with_little_memory_all_end() -> None:
    source = Source(16 * KIB)
    budget = Budget(SMALLEST_PART * 3)
    files = [source.open(3 * MIB, 2 * MIB, budget) for _ in range(10)]
    rng = random.Random(5)

    async def one(file: Prefetcher) -> None:
        for _ in range(10):
            offset, size = rng.randrange(3 * MIB), rng.choice((100, 4096, 128 * KIB, MIB))
            task = asyncio.ensure_future(read(file, offset, size))
            if rng.random() < 0.2:
                await turns(rng.randrange(6))
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            else:
                assert await task == expected(offset, min(file.size, offset + size))

    await asyncio.gather(*(one(file) for file in files for _ in range(20)))
    for file in files:
        file.close()
    await turns()
    assert (budget.used, budget.waiting, budget.flights) == (0, 0, 0)

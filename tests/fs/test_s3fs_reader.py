"""Reading an object: one version or ESTALE, interrupts that end requests, the disk cache, and neighbours fetched ahead."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest
from fakestore import FakeStore, slow_down

from pyfusekit.cache import BLOCK, BlockCache, Budget, Entry
from pyfusekit.fs.s3fs.reader import AHEAD, IN_ORDER, Neighbours, Reader
from pyfusekit.fs.s3fs.remote.store import Object

MIB = 1 << 20
DATA = random.Random(1).randbytes(9 * MIB + 5)


class Files:
    """Readers of a store in memory."""

    def __init__(self, limit: int = 8 * MIB, memory: int = 128 * MIB) -> None:
        self.store = FakeStore()
        self.limit = limit
        self.budget = Budget(memory)
        self.tasks: set[asyncio.Task[Any]] = set()

    def open(self, item: Object, entry: Entry | None = None) -> Reader:
        return Reader(self.store, item, limit=self.limit, budget=self.budget, tasks=self.tasks, entry=entry)

    def seed(self, data: bytes, key: str = "f") -> Reader:
        return self.open(self.store.seed(key, data))


async def read(reader: Reader, offset: int, size: int) -> bytes:
    found = reader.read(offset, size)
    found = await found if isinstance(found, Coroutine) else found
    return found if isinstance(found, bytes) else b"".join(found)


async def content(reader: Reader, step: int = 131072) -> bytes:
    data = b""
    while part := await read(reader, len(data), step):
        data += part
    return data


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("size", [0, 1, 4095, MIB, MIB + 1, 5 * MIB + 77])
@pytest.mark.parametrize("limit", [0, 8 * MIB])
async def test_sequential_reads_bring_the_object(size: int, limit: int) -> None:
    assert await content(Files(limit).seed(DATA[:size])) == DATA[:size]


async def test_random_reads_bring_the_right_bytes_whatever_the_order() -> None:
    files = Files()
    reader = files.seed(DATA)
    rng = random.Random(1)
    spans = [(rng.randrange(10 * MIB), rng.choice((1, 4096, 131072, MIB))) for _ in range(100)]
    # Runs that go on where another ended, many at once, mixed with jumps.
    spans += [(start + n * 131072, 131072) for start in (0, 3 * MIB, 700_001) for n in range(20)]
    parts = await asyncio.gather(*(read(reader, offset, size) for offset, size in spans))
    for (offset, size), part in zip(spans, parts, strict=True):
        assert part == DATA[offset : offset + size]
    assert files.store.most_under_way > 10


async def test_small_object_is_one_request() -> None:
    files = Files()
    reader = files.seed(b"small")
    await reader.begin()
    assert await read(reader, 0, 131072) == b"small"
    assert files.store.calls == ["GET f 0+5"]


async def test_readers_at_once_are_as_many_requests_at_once() -> None:
    files = Files()
    readers = [files.seed(bytes([number]) * 1000, f"f{number}") for number in range(40)]
    files.store.gate = asyncio.Event()
    waiting = [asyncio.ensure_future(content(reader)) for reader in readers]
    await turns()
    assert files.store.under_way == 40
    files.store.gate.set()
    assert await asyncio.gather(*waiting) == [bytes([number]) * 1000 for number in range(40)]


async def test_replaced_object_is_estale_and_never_a_mixture() -> None:
    files = Files()
    reader = files.seed(b"1" * (8 * MIB))
    assert await read(reader, 0, 4096) == b"1" * 4096
    files.store.put_plain("f", b"2" * (8 * MIB))
    with pytest.raises(OSError, match="Precondition") as info:
        await read(reader, 7 * MIB, 4096)
    assert info.value.errno == errno.ESTALE


async def test_whole_object_is_at_hand_when_it_was_fetched_and_not_before() -> None:
    files = Files()
    reader = files.seed(b"0123456789")
    assert reader.at_hand() is None
    await reader.begin()
    await turns()
    assert reader.at_hand() == b"0123456789"
    assert files.store.calls == ["GET f 0+10"]
    reader.close()


async def test_copy_under_another_key_is_read_on() -> None:
    files = Files()
    reader = files.seed(DATA)
    assert await read(reader, 0, MIB) == DATA[:MIB]
    copy = files.store.seed("g", DATA)
    del files.store.objects["f"]
    reader.item = copy
    assert await read(reader, 7 * MIB, 4096) == DATA[7 * MIB : 7 * MIB + 4096]


async def test_older_version_is_asked_for_by_its_id() -> None:
    files = Files()
    files.store.versioned = True
    old = files.store.put_plain("f", b"old bytes")
    name = files.store.objects["f"].version
    files.store.put_plain("f", b"new")
    reader = Reader(files.store, old, limit=0, budget=files.budget, tasks=files.tasks, version=name)
    assert await content(reader) == b"old bytes"


async def test_interrupted_reader_ends_its_request() -> None:
    files = Files()
    reader = files.seed(DATA)
    store = files.store
    store.gate = asyncio.Event()
    for offset in (0, 3 * MIB):
        task = asyncio.ensure_future(read(reader, offset, 4096))
        await turns()
        assert store.under_way > 0
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await turns(5)
        assert (store.under_way, files.budget.used) == (0, 0)
    store.gate.set()
    assert await read(reader, 0, 4096) == DATA[:4096]


async def test_interrupted_reader_leaves_the_others_their_bytes() -> None:
    files = Files()
    reader = files.seed(DATA)
    files.store.gate = asyncio.Event()
    one = asyncio.ensure_future(read(reader, 0, 4096))
    other = asyncio.ensure_future(read(reader, 4096, 4096))
    await turns()
    one.cancel()
    with pytest.raises(asyncio.CancelledError):
        await one
    files.store.gate.set()
    assert await other == DATA[4096:8192]
    assert files.store.count("GET f 0+") == 1


async def test_failed_request_is_its_readers_errno_and_the_next_read_tries_again() -> None:
    files = Files()
    reader = files.seed(DATA)
    files.store.fail = [slow_down(), slow_down()]
    with pytest.raises(OSError, match="SlowDown") as info:
        await read(reader, 0, 4096)
    assert info.value.errno == errno.EBUSY
    files.store.fail = []
    assert await read(reader, 0, 4096) == DATA[:4096]


async def test_close_ends_what_was_fetched_ahead() -> None:
    files = Files()
    reader = files.seed(DATA)
    await read(reader, 0, MIB)
    files.store.gate = asyncio.Event()
    task = asyncio.ensure_future(read(reader, 2 * MIB, MIB))
    await turns()
    task.cancel()
    reader.close()
    await asyncio.gather(task, return_exceptions=True)
    await turns()
    assert (files.store.under_way, len(files.tasks), files.budget.used) == (0, 0, 0)


# The disk cache.


class Cached(Files):
    """The same with a disk cache; another() is another mount, later."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory
        self.cache = BlockCache(directory, 100 * MIB)

    def another(self) -> Cached:
        made = Cached(self.directory)
        made.store = self.store
        self.store.calls.clear()
        return made

    def cached(self, item: Object) -> Reader:
        return self.open(item, self.cache.open("bucket", item.key, item.etag, item.size))


def damage(directory: Path, offset: int) -> None:
    (data,) = directory.glob("??/*.data")
    with data.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(BLOCK))


def close(reader: Reader) -> None:
    """Close a reader and wait until the cache has what it got."""
    assert reader.entry is not None
    cache = reader.entry._cache
    reader.close()
    reader.entry.close()
    cache.close()


async def test_what_was_read_is_not_asked_for_by_another_mount(tmp_path: Path) -> None:
    files = Cached(tmp_path)
    item = files.store.seed("f", DATA)
    reader = files.cached(item)
    assert await content(reader) == DATA
    files.cache.close()
    assert reader.entry is not None
    assert reader.entry.complete
    assert os.pread(reader.entry.fd, len(DATA), 0) == DATA
    close(reader)
    files = files.another()
    reader = files.cached(item)
    assert reader.entry is not None
    assert reader.entry.complete
    assert not isinstance(reader.read(0, MIB), Coroutine)
    assert await content(reader, 100_001) == DATA
    assert files.store.calls == []
    close(reader)


async def test_new_version_is_not_read_from_the_old_ones_cache(tmp_path: Path) -> None:
    files = Cached(tmp_path)
    reader = files.cached(files.store.seed("f", b"1" * 1000))
    assert await content(reader) == b"1" * 1000
    close(reader)
    reader = files.cached(files.store.put_plain("f", b"2" * 1000))
    assert await content(reader) == b"2" * 1000
    close(reader)


async def test_only_what_is_missing_is_asked_for(tmp_path: Path) -> None:
    files = Cached(tmp_path)
    item = files.store.seed("f", DATA)
    reader = files.cached(item)
    for offset in (2 * MIB + 5, 2 * MIB + BLOCK + 5, 6 * MIB + 5):
        assert await read(reader, offset, 10) == DATA[offset : offset + 10]
    assert files.store.calls == [f"GET f {at}+{BLOCK}" for at in (2 * MIB, 2 * MIB + BLOCK, 6 * MIB)]
    close(reader)
    files = files.another()
    reader = files.cached(item)
    assert await content(reader) == DATA
    asked = sum(int(call.partition("+")[2]) for call in files.store.calls)
    # What lies between two gaps is fetched again when it is smaller than a request is worth.
    assert len(DATA) - 3 * BLOCK <= asked <= len(DATA)
    files.cache.close()
    assert reader.entry is not None
    assert reader.entry.complete
    close(reader)


async def test_ranges_that_lie_close_are_one_request(tmp_path: Path) -> None:
    files = Cached(tmp_path)
    item = files.store.seed("f", DATA)
    reader = files.cached(item)
    assert reader.entry is not None
    # There: the second block and the second MiB.
    for start, end in ((BLOCK, 2 * BLOCK), (MIB, 2 * MIB)):
        reader.entry.write(start, DATA[start:end])
    assert await read(reader, 0, 3 * MIB) == DATA[: 3 * MIB]
    assert [call for call in files.store.calls if call < "GET f 3"] == [f"GET f 0+{MIB}", f"GET f {2 * MIB}+{MIB}"]
    close(reader)


async def test_reader_who_leaves_what_was_cached_has_a_window_at_once(tmp_path: Path) -> None:
    files = Cached(tmp_path)
    item = files.store.seed("f", DATA)
    reader = files.cached(item)
    assert reader.entry is not None
    reader.entry.write(0, DATA[: 4 * MIB])
    assert await read(reader, 0, 4 * MIB) == DATA[: 4 * MIB]
    assert files.store.calls == []
    assert await read(reader, 4 * MIB, BLOCK) == DATA[4 * MIB : 4 * MIB + BLOCK]
    assert files.store.calls[0] == f"GET f {4 * MIB}+{MIB}"
    assert await content(reader) == DATA
    close(reader)


async def test_opening_asks_the_store_although_the_cache_has_the_bytes(tmp_path: Path) -> None:
    files = Cached(tmp_path)
    item = files.store.seed("f", b"bytes")
    reader = files.cached(item)
    await content(reader)
    close(reader)
    reader = files.cached(item)
    await reader.begin()
    assert files.store.calls == ["GET f 0+5", "HEAD f"]
    files.store.put_plain("f", b"other")
    with pytest.raises(OSError, match="replaced") as info:
        await reader.begin()
    assert info.value.errno == errno.ESTALE
    close(reader)


async def test_bytes_that_come_after_the_close_are_kept_by_nobody(tmp_path: Path) -> None:
    files = Cached(tmp_path)
    item = files.store.seed("f", DATA)
    reader = files.cached(item)
    files.store.gate = asyncio.Event()
    task = asyncio.ensure_future(read(reader, 0, MIB))
    await turns()
    close(reader)
    files.store.gate.set()
    assert await task == DATA[:MIB]
    assert os.listdir(tmp_path) == []


async def test_damaged_cache_is_read_around(tmp_path: Path) -> None:
    files = Cached(tmp_path)
    item = files.store.seed("f", DATA)
    reader = files.cached(item)
    await content(reader)
    close(reader)
    damage(tmp_path, 5 * BLOCK)
    files = files.another()
    files.cache.boot ^= 1
    reader = files.cached(item)
    assert await content(reader) == DATA
    assert files.store.calls == [f"GET f {5 * BLOCK}+{BLOCK}"]
    close(reader)


# Neighbours.


class Directory(Files):
    """Small files in one directory, opened as a mount opens them."""

    def __init__(self, count: int, believed: float = 60.0) -> None:
        super().__init__()
        self.items = [self.store.seed(f"d/{number:03}", b"%03d" % number * 100) for number in range(count)]
        self.neighbours = Neighbours(self.open, believed)

    def following(self, key: str, count: int) -> Sequence[Object]:
        return [item for item in self.items if item.key > key][:count]

    async def cat(self, number: int) -> None:
        item = self.items[number]
        self.neighbours.opened("d/", item, self.following)
        reader = self.neighbours.take(item) or self.open(item)
        await reader.begin()
        assert await content(reader) == b"%03d" % number * 100
        reader.close()


async def test_files_opened_in_order_are_fetched_before_they_are_opened() -> None:
    files = Directory(100)
    for number in range(IN_ORDER - 1):
        await files.cat(number)
    assert files.store.count("GET") == IN_ORDER - 1
    await files.cat(IN_ORDER - 1)
    assert files.store.count("GET") == IN_ORDER + AHEAD
    for number in range(IN_ORDER, 100):
        await files.cat(number)
    assert files.store.count("GET") == 100
    assert files.store.most_under_way >= AHEAD // 2
    await turns()
    assert files.budget.used == 0


async def test_files_opened_by_several_who_walk_together_are_in_order() -> None:
    files = Directory(100)
    for start in range(0, 96, 4):
        await asyncio.gather(*(files.cat(number) for number in (start + 2, start, start + 3, start + 1)))
    assert files.store.most_under_way > AHEAD // 2
    assert files.store.count("GET") <= 100


async def test_files_opened_in_no_order_are_fetched_when_they_are_opened() -> None:
    files = Directory(100)
    for number in [*random.Random(1).sample(range(100), 100), *range(0, 90, 10)]:
        await files.cat(number)
    assert files.store.count("GET") == 109


async def test_what_was_fetched_is_not_believed_for_longer_than_metadata() -> None:
    files = Directory(100)
    for number in range(IN_ORDER):
        await files.cat(number)
    for name, (until, reader) in list(files.neighbours._ready.items()):
        files.neighbours._ready[name] = (until - 120, reader)
    before = files.store.count("GET")
    await files.cat(IN_ORDER)
    assert files.store.calls[before:].count(f"GET d/{IN_ORDER:03} 0+300") == 1
    files.neighbours.close()
    assert files.budget.used == 0


async def test_neighbour_replaced_meanwhile_is_estale_when_it_is_opened() -> None:
    files = Directory(100)
    for number in range(IN_ORDER - 1):
        await files.cat(number)
    files.store.put_plain(f"d/{IN_ORDER:03}", b"new")
    await files.cat(IN_ORDER - 1)
    with pytest.raises(OSError, match="Precondition") as info:
        await files.cat(IN_ORDER)
    assert info.value.errno == errno.ESTALE
    files.neighbours.close()


async def test_without_belief_nothing_is_fetched_unopened() -> None:
    files = Directory(40, believed=0.0)
    for number in range(40):
        await files.cat(number)
        assert files.store.count("GET") == number + 1


async def test_neighbours_take_only_memory_that_is_free() -> None:
    files = Directory(40)
    files.budget.limit = 1000
    for number in range(40):
        await files.cat(number)
    assert files.budget.most_used <= 1000
    files.neighbours.close()
    assert files.budget.used == 0

"""A file read through memory and the disk cache: only what is missing is fetched, and what was fetched is kept."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from pyfusekit.cache import BLOCK, BlockCache, Budget, CachedReader, Entry

MIB = 1 << 20
DATA = random.Random(2).randbytes(6 * MIB + 1234)


class Afar:
    """Where the bytes are; counts what is asked for."""

    def __init__(self, limit: int = 4 * MIB, piece: int = 100_001) -> None:
        self.asked: list[tuple[int, int]] = []
        self.error: OSError | None = None
        self.piece = piece
        self.limit = limit
        self.budget = Budget(64 * MIB)
        self.tasks: set[asyncio.Task[Any]] = set()

    async def fetch(self, start: int, end: int, sink: Callable[[bytes], None]) -> None:
        self.asked.append((start, end))
        for at in range(start, end, self.piece):
            await asyncio.sleep(0)
            sink(DATA[at : min(end, at + self.piece)])
            if self.error is not None:
                raise self.error

    def reader(self, entry: Entry | None = None) -> CachedReader:
        return CachedReader(
            self.fetch, len(DATA), limit=self.limit, budget=self.budget, tasks=self.tasks, entry=entry, name="'file'"
        )


async def read(reader: CachedReader, offset: int, size: int) -> bytes:
    found = reader.read(offset, size)
    found = await found if isinstance(found, Coroutine) else found
    return found if isinstance(found, bytes) else b"".join(found)


async def content(reader: CachedReader, step: int = BLOCK) -> bytes:
    data = b""
    while piece := await read(reader, len(data), step):
        data += piece
    return data


@pytest.mark.parametrize("limit", [0, 4 * MIB])
@pytest.mark.parametrize("piece", [777, 100_001, 3 * MIB])
async def test_without_an_entry_it_is_what_is_fetched(limit: int, piece: int) -> None:
    afar = Afar(limit, piece)
    assert await content(afar.reader()) == DATA
    assert sum(end - start for start, end in afar.asked) == len(DATA)


@pytest.mark.parametrize("piece", [777, 100_001, 3 * MIB])
async def test_what_was_fetched_is_kept_and_not_fetched_again(tmp_path: Path, piece: int) -> None:
    cache = BlockCache(tmp_path, 64 * MIB)
    afar = Afar(piece=piece)
    entry = cache.open("afar", "file", "v1", len(DATA))
    reader = afar.reader(entry)
    assert await content(reader) == DATA
    reader.close()
    cache.close()
    assert entry.complete
    afar.asked.clear()
    again = afar.reader(entry)
    assert again.read(MIB - 5, 10) == DATA[MIB - 5 : MIB + 5], "at once"
    assert again.cached() == again.at_hand() == DATA
    assert await content(again, 100_003) == DATA
    assert afar.asked == []
    again.close()
    entry.close()


async def test_small_read_fetches_its_blocks_and_no_more(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 64 * MIB)
    afar = Afar()
    entry = cache.open("afar", "file", "v1", len(DATA))
    reader = afar.reader(entry)
    assert await read(reader, 3 * MIB + 4096, 4096) == DATA[3 * MIB + 4096 : 3 * MIB + 8192]
    assert await read(reader, len(DATA) - 10, 4096) == DATA[-10:]
    assert afar.asked == [(3 * MIB, 3 * MIB + BLOCK), (len(DATA) // BLOCK * BLOCK, len(DATA))]
    reader.close()
    entry.close()
    cache.close()


async def test_gap_in_the_cache_is_all_that_is_fetched(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 64 * MIB)
    afar = Afar()
    entry = cache.open("afar", "file", "v1", len(DATA))
    entry.write(0, DATA[: 2 * MIB])
    entry.write(3 * MIB, DATA[3 * MIB :])
    reader = afar.reader(entry)
    assert reader.cached() is None
    assert await content(reader) == DATA
    assert sum(end - start for start, end in afar.asked) == MIB
    reader.close()
    cache.close()
    assert entry.complete
    entry.close()


async def test_what_came_before_a_failure_is_kept(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 64 * MIB)
    afar = Afar(limit=0, piece=2 * BLOCK)
    afar.error = OSError(5, "the line broke")
    entry = cache.open("afar", "file", "v1", len(DATA))
    reader = afar.reader(entry)
    with pytest.raises(OSError, match="the line broke"):
        await read(reader, 0, MIB)
    cache.close()
    assert entry.read(0, 2 * BLOCK) == DATA[: 2 * BLOCK]
    assert entry.read(0, 2 * BLOCK + 1) is None
    reader.close()
    entry.close()


async def test_doubtful_entry_is_verified_beside_the_reading(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 64 * MIB)
    entry = cache.open("afar", "file", "v1", len(DATA))
    entry.write(0, DATA)
    entry.close()
    later = BlockCache(tmp_path, 64 * MIB)
    later.boot = cache.boot ^ 1
    entry = later.open("afar", "file", "v1", len(DATA))
    assert entry.doubtful
    afar = Afar()
    reader = afar.reader(entry)
    assert not entry.doubtful
    assert await content(reader) == DATA
    assert afar.asked == []
    reader.close()
    entry.close()

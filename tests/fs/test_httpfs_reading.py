"""Open files of a web directory: the window, the disk cache, spools and streams, mirrors and digests."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile import DATA, OTHER, SIZE, File, HostileServer
from httpreading import MIB, Reading, content, errno_name, read

from pyfusekit.cache import BLOCK
from pyfusekit.core import Size
from pyfusekit.fs.httpfs.contents.reading import OpenFile


@pytest.fixture(scope="module")
def server() -> Iterator[HostileServer]:
    with HostileServer() as made:
        yield made


def gets(server: HostileServer, mode: str, name: str) -> list[Any]:
    return [one for one in server.asked("GET", mode) if one.path.endswith(f"/{name}") and not is_probe(one)]


def is_probe(asked: Any) -> bool:
    return asked.headers.get("range") == "bytes=0-0"


async def settled(reading: Reading, file: OpenFile) -> None:
    """Wait until what was fetched is on the disk, and adopted."""
    while reading.tasks:
        await asyncio.wait(set(reading.tasks), timeout=5)
    if reading.cache is not None:
        await asyncio.to_thread(reading.cache.close)


def on_disk(directory: Path) -> list[Path]:
    return list(directory.glob("??/*"))


def damage(directory: Path, offset: int) -> None:
    (data,) = directory.glob("??/*.data")
    with data.open("r+b") as raw:
        raw.seek(offset)
        raw.write(b"damage")


# What a server says of a file.


async def test_probe_tells_size_version_time_and_type(server: HostileServer) -> None:
    async with Reading(server, None) as reading:
        found = await reading.files.probe(server.url("honest"))
        assert (found.size, found.validator.etag, found.validator.settled) == (SIZE, '"v1"', True)
        assert found.mtime_ns == 1704103200 * 10**9
        assert found.content_type == "application/octet-stream"
        assert found.final_url == found.url == server.url("honest")
        before = len(server.seen)
        await reading.files.probe(server.url("honest", "another.bin"))
        assert [one.method for one in server.seen[before:]] == ["HEAD"]


async def test_first_probe_of_a_host_compares_head_with_get(server: HostileServer) -> None:
    async with Reading(server, None, known=False) as reading:
        before = len(server.seen)
        assert (await reading.files.probe(server.url("head-lies"))).size == SIZE
        assert (await reading.files.probe(server.url("head-lies"))).size == SIZE
        assert [one.method for one in server.seen[before:]] == ["HEAD", "GET", "GET"]


@pytest.mark.parametrize("mode", ["head-405", "head-404", "head-zero"])
async def test_refused_head_is_followed_by_a_get_of_one_byte(server: HostileServer, mode: str) -> None:
    async with Reading(server, None) as reading:
        found = await reading.files.probe(server.url(mode))
        assert (found.size, found.ranges, found.validator.etag) == (SIZE, True, '"v1"')
        assert server.asked("GET", mode)[-1].headers["range"] == "bytes=0-0"


async def test_missing_file_is_enoent(server: HostileServer) -> None:
    async with Reading(server, None) as reading:
        with pytest.raises(OSError, match="404") as info:
            await reading.files.probe(server.url("nowhere"))
        assert info.value.errno == errno.ENOENT


@pytest.mark.parametrize("mode", ["chunked", "gzip-always", "until-close"])
async def test_length_of_something_else_is_not_believed(server: HostileServer, mode: str) -> None:
    async with Reading(server, None) as reading:
        found = await reading.files.probe(server.url(mode))
        assert found.size is None
        file = await reading.files.open(found)
        assert file.size is None
        assert await file.whole() == file.size == SIZE
        assert await read(file, SIZE - 3, 100) == DATA[-3:]
        file.close()


async def test_empty_file_is_no_request_more(server: HostileServer) -> None:
    async with Reading(server, None) as reading:
        found = await reading.files.probe(server.url("empty"))
        assert found.size == 0
        before = len(server.seen)
        file = await reading.files.open(found)
        assert await read(file, 0, 4096) == b""
        assert file.backing_fd() == -1
        file.close()
        assert len(server.seen) == before


# Ranges.


async def test_small_reads_here_and_there_fetch_a_block_each(server: HostileServer, tmp_path: Path) -> None:
    async with Reading(server, tmp_path, name="random") as reading:
        file = await reading.open("honest")
        for offset in (5 * MIB + 7, MIB + 4096, 3 * MIB, 7 * MIB + 100_000):
            assert await read(file, offset, 4096) == DATA[offset : offset + 4096]
        spans = [one.span(SIZE) for one in gets(server, "honest", "random.bin")]
        assert len(spans) == 4
        assert all(end - start <= BLOCK for start, end in spans)
        file.close()


async def test_interleaved_readers_in_order_have_several_ranges_in_flight(server: HostileServer) -> None:
    async with Reading(server, None, name="walk") as reading:
        file = await reading.open("honest")

        async def walk(start: int, end: int) -> bytes:
            pieces = []
            while start < end:
                pieces.append(await read(file, start, min(131072, end - start)))
                start += len(pieces[-1])
            return b"".join(pieces)

        half = SIZE // 2
        found = await asyncio.gather(walk(0, half), walk(half, SIZE), walk(MIB, 3 * MIB))
        assert b"".join(found[:2]) == DATA
        assert found[2] == DATA[MIB : 3 * MIB]
        assert len(gets(server, "honest", "walk.bin")) < 40
        file.close()


async def test_memory_stays_within_its_limit(server: HostileServer) -> None:
    async with Reading(server, None, name="tight", memory=2 * MIB) as reading:
        files = [await reading.open("honest", f"tight{number}.bin") for number in range(4)]
        assert await asyncio.gather(*map(content, files)) == [DATA] * 4
        assert reading.budget.most_used <= 2 * MIB
        for file in files:
            file.close()


async def test_interrupted_read_ends_its_request(server: HostileServer) -> None:
    async with Reading(server, None, name="interrupted") as reading:
        file = await reading.open("silent")
        assert await read(file, 0, 10) == DATA[:10]
        task = asyncio.ensure_future(read(file, 5 * MIB, 4096))
        await asyncio.sleep(0.05)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 1)
        file.close()


async def test_two_who_open_one_version_share_it(server: HostileServer) -> None:
    async with Reading(server, None, name="shared") as reading:
        one, other = await reading.open("honest"), await reading.open("honest")
        assert one is other
        one.close()
        assert await read(other, 0, 10) == DATA[:10]
        other.close()
        assert await reading.open("honest") is not one


async def test_stale_file_stays_stale_and_a_new_open_reads_the_new_version(server: HostileServer, tmp_path: Path) -> None:
    async with Reading(server, tmp_path, name="twice") as reading:
        server.files["/honest/twice.bin"] = File()
        old = await reading.open("honest")
        assert await read(old, 0, MIB) == DATA[:MIB]
        server.files["/honest/twice.bin"] = File(OTHER, '"v2"')
        new = await reading.open("honest")
        assert await content(new) == OTHER
        with pytest.raises(OSError, match='"v1" then, "v2" now'):
            await read(old, 6 * MIB, 4096)
        server.files["/honest/twice.bin"] = File()
        with pytest.raises(OSError, match="replaced") as info:
            await read(old, 0, 10)
        assert info.value.errno == errno.ESTALE
        back = await reading.open("honest")
        assert back is not old
        assert await content(back) == DATA
        for file in (old, new, back):
            file.close()


# The disk cache.


async def test_cached_file_is_read_while_the_host_is_gone(tmp_path: Path) -> None:
    with HostileServer() as server:
        async with Reading(server, tmp_path) as reading:
            file = await reading.open("honest")
            resource = file.resource
            assert await content(file) == DATA
            await settled(reading, file)
            assert os.pread(file.backing_fd(), SIZE, 0) == DATA
            file.close()
    async with Reading(server, tmp_path, known=False) as reading:
        file = await reading.files.open(resource)
        assert not isinstance(file.read(MIB, 4096), Coroutine)
        assert await content(file) == DATA
        assert os.pread(file.backing_fd(), 10, MIB) == DATA[MIB : MIB + 10]
        file.close()


async def test_what_is_not_cached_of_a_host_that_is_gone_is_its_error(tmp_path: Path) -> None:
    with HostileServer() as server:
        async with Reading(server, tmp_path) as reading:
            file = await reading.open("honest")
            assert await read(file, 3 * MIB, 4096) == DATA[3 * MIB : 3 * MIB + 4096]
            await settled(reading, file)
            resource = file.resource
            file.close()
    async with Reading(server, tmp_path, known=False) as reading:
        file = await reading.files.open(resource)
        assert await read(file, 3 * MIB, 4096) == DATA[3 * MIB : 3 * MIB + 4096]
        with pytest.raises(OSError, match="refused") as info:
            await read(file, 0, 4096)
        assert info.value.errno == errno.ECONNREFUSED
        file.close()


@pytest.mark.parametrize("mode", ["no-validator", "fresh"])
async def test_file_without_a_version_is_not_kept_on_the_disk(server: HostileServer, tmp_path: Path, mode: str) -> None:
    async with Reading(server, tmp_path) as reading:
        file = await reading.open(mode)
        assert await content(file) == DATA
        file.close()
    assert not on_disk(tmp_path)


async def test_damaged_block_is_fetched_again(server: HostileServer, tmp_path: Path) -> None:
    async with Reading(server, tmp_path, name="damaged") as reading:
        file = await reading.open("honest")
        assert await content(file) == DATA
        await settled(reading, file)
        file.close()
    damage(tmp_path, 3 * BLOCK)
    async with Reading(server, tmp_path, name="damaged") as reading:
        assert reading.cache is not None
        reading.cache.boot ^= 1
        before = len(gets(server, "honest", "damaged.bin"))
        file = await reading.open("honest")
        assert await content(file) == DATA
        spans = [one.span(SIZE) for one in gets(server, "honest", "damaged.bin")[before:]]
        assert spans == [(3 * BLOCK, 4 * BLOCK)]
        file.close()


# Servers without ranges.


async def test_all_openers_share_one_spool(server: HostileServer, tmp_path: Path) -> None:
    async with Reading(server, tmp_path, name="spooled") as reading:
        resource = await reading.files.probe(server.url("ignores-range", "spooled.bin"))
        before = len(server.asked("GET", "ignores-range"))
        files = [await reading.files.open(resource) for _ in range(3)]
        parts = await asyncio.gather(*map(content, files), read(files[0], 6 * MIB, 100))
        assert parts == [DATA, DATA, DATA, DATA[6 * MIB : 6 * MIB + 100]]
        # The first ones asked for ranges before they knew.
        whole = [one for one in server.asked("GET", "ignores-range")[before:] if "range" not in one.headers]
        assert len(whole) == 1
        assert os.pread(files[0].backing_fd(), SIZE, 0) == DATA
        await settled(reading, files[0])
        for file in files:
            file.close()
        count = len(server.seen)
        file = await reading.files.open(resource)
        assert await content(file) == DATA
        assert file.backing_fd() >= 0
        file.close()
        assert len(server.seen) == count, "it was kept in the cache"


async def test_file_larger_than_spool_size_is_efbig(server: HostileServer) -> None:
    async with Reading(server, None, spool_size=Size(MIB)) as reading:
        known = (await reading.files.probe(server.url("ignores-range")))._replace(ranges=False)
        with pytest.raises(OSError, match="larger than --spool-size") as info:
            await reading.files.open(known)
        assert info.value.errno == errno.EFBIG
        file = await reading.open("chunked")
        with pytest.raises(OSError, match="larger than --spool-size") as info:
            await content(file)
        assert info.value.errno == errno.EFBIG
        file.close()


async def test_norange_fail_says_what_to_do(server: HostileServer) -> None:
    async with Reading(server, None, norange="fail") as reading:
        file = await reading.open("ignores-range")
        with pytest.raises(OSError, match="serves no ranges; --norange spool") as info:
            await read(file, MIB, 10)
        assert info.value.errno == errno.EOPNOTSUPP
        file.close()
        with pytest.raises(OSError, match="serves no ranges"):
            await reading.open("chunked")
        honest = await reading.open("honest")
        assert await content(honest) == DATA
        honest.close()


@pytest.mark.parametrize("mode", ["ignores-range", "chunked", "chunked-unversioned", "gzip-always"])
async def test_stream_is_one_get_for_who_reads_in_order(server: HostileServer, mode: str) -> None:
    async with Reading(server, None, name="stream", norange="stream") as reading:
        resource = (await reading.files.probe(server.url(mode, "stream.bin")))._replace(ranges=False)
        before = len(server.seen)
        file = await reading.files.open(resource)
        assert await content(file) == DATA
        assert await read(file, SIZE - MIB, 4096) == DATA[SIZE - MIB : SIZE - MIB + 4096], "what was just read is kept"
        assert len(server.seen) == before + 1
        file.close()


async def test_stream_goes_back_when_the_version_stands(server: HostileServer) -> None:
    async with Reading(server, None, name="back", norange="stream") as reading:
        file = await reading.open("chunked")
        assert await read(file, 6 * MIB, 4096) == DATA[6 * MIB : 6 * MIB + 4096]
        assert await read(file, 0, 4096) == DATA[:4096]
        assert await content(file) == DATA
        server.files["/chunked/back.bin"] = File(OTHER, '"v2"')
        with pytest.raises(OSError, match="replaced") as info:
            await read(file, 0, 4096)
        assert info.value.errno == errno.ESTALE
        file.close()


async def test_stream_without_a_version_does_not_go_back(server: HostileServer) -> None:
    async with Reading(server, None, norange="stream") as reading:
        file = await reading.open("chunked-unversioned")
        assert await read(file, 6 * MIB, 4096) == DATA[6 * MIB : 6 * MIB + 4096]
        with pytest.raises(OSError, match="went by") as info:
            await read(file, 0, 4096)
        assert info.value.errno == errno.ESPIPE
        file.close()


async def test_spool_ends_with_its_last_reader(server: HostileServer) -> None:
    async with Reading(server, None, name="ended") as reading:
        file = await reading.open("ignores-range")
        task = asyncio.ensure_future(read(file, 0, 10))
        assert await task == DATA[:10]
        file.close()
        for _ in range(100):
            if not reading.tasks:
                break
            await asyncio.sleep(0.01)
        assert not reading.tasks


# Mirrors and digests.


def digest(data: bytes = DATA) -> tuple[tuple[str, str], ...]:
    return (("md5", "0" * 32), ("sha-256", hashlib.sha256(data).hexdigest()))


async def test_mirror_takes_over_where_the_first_one_fails(server: HostileServer) -> None:
    async with Reading(server, None, name="mirrored") as reading:
        url = server.url("hangs-up", "mirrored.bin")
        mirrors = [server.url("nowhere"), server.url("empty"), server.url("honest", "mirror.bin")]
        file = await reading.files.open(await reading.files.probe(url, mirrors))
        assert await content(file) == DATA
        file.close()
        gone = await reading.files.probe(server.url("nowhere"), mirrors)
        assert (gone.size, gone.url) == (0, mirrors[1])


@pytest.mark.parametrize("mode", ["honest", "ignores-range", "chunked", "cut", "short-206"])
async def test_verified_file_is_read_and_kept_by_its_digest(server: HostileServer, tmp_path: Path, mode: str) -> None:
    async with Reading(server, tmp_path, name="verified") as reading:
        resource = await reading.files.probe(server.url(mode, "verified.bin"), hashes=digest())
        file = await reading.files.open(resource)
        assert await read(file, 5 * MIB, 4096) == DATA[5 * MIB : 5 * MIB + 4096]
        assert await content(file) == DATA
        await settled(reading, file)
        file.close()
        before = len(server.seen)
        file = await reading.files.open(resource._replace(size=SIZE))
        assert await content(file) == DATA
        assert file.backing_fd() >= 0
        assert len(server.seen) == before
        file.close()


async def test_wrong_digest_is_eio_and_not_a_byte_is_handed_out(server: HostileServer, tmp_path: Path) -> None:
    async with Reading(server, tmp_path, name="forged") as reading:
        resource = await reading.files.probe(server.url("honest"), hashes=digest(OTHER))
        file = await reading.files.open(resource)
        for offset in (0, 5 * MIB):
            with pytest.raises(OSError, match=r"sha256 of what came is .* was promised") as info:
                await read(file, offset, 10)
            assert errno_name(info.value) == "EIO"
            assert hashlib.sha256(DATA).hexdigest()[:12] in str(info.value)
            assert hashlib.sha256(OTHER).hexdigest()[:12] in str(info.value)
        file.close()


async def test_forged_mirror_is_passed_over(server: HostileServer) -> None:
    async with Reading(server, None, name="forged") as reading:
        server.files["/honest/forgery.bin"] = File(OTHER, '"v9"')
        url = server.url("honest", "forgery.bin")
        resource = await reading.files.probe(url, [server.url("honest", "right.bin")], digest())
        file = await reading.files.open(resource)
        assert await content(file) == DATA
        file.close()


async def test_random_reads_of_all_kinds_are_right(server: HostileServer, tmp_path: Path) -> None:
    rng = random.Random(7)
    async with Reading(server, tmp_path, name="mix") as reading:
        for mode in ("honest", "multipart", "short-206", "ignores-range"):
            file = await reading.open(mode)
            spans = [(rng.randrange(SIZE), rng.choice((1, 4096, 131072, MIB))) for _ in range(40)]
            parts = await asyncio.gather(*(read(file, *span) for span in spans))
            for (offset, size), part in zip(spans, parts, strict=True):
                assert part == DATA[offset : offset + size]
            file.close()

"""Open files of s3fs on a store in memory: reading one version, writing, publishing, and what each costs in requests."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakestore import FakeStore, Fault, denied, failed_condition, lost, slow_down
from s3user import ME, MIB, Fd, User, eventually, refusal, using

from pyfusekit.core import FOPEN_KEEP_CACHE, abi
from pyfusekit.fs.s3fs import files as files_module
from pyfusekit.fs.s3fs.reader import IN_ORDER
from pyfusekit.fs.s3fs.remote.errors import StoreError
from pyfusekit.fs.s3fs.remote.store import Condition
from pyfusekit.fs.s3fs.writing import conflicts, feeding, publish

NEW = os.O_WRONLY | os.O_CREAT
PART = 5 * MIB


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


async def stored(user: User, key: str, data: bytes) -> None:
    """Wait until the store holds *data* under a key."""
    await eventually(lambda: key in user.store.objects and user.store.data(key) == data, f"{key!r} in the store")


# What it costs.


async def test_new_small_file_is_exactly_one_put_in_a_directory_that_is_known(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("listed/old", b"x")
    async with using(store, tmp_path) as user:
        await user.names("listed")
        await user.mkdir("made")
        for directory in ("listed", "made"):
            assert user.calls
            for number in range(20):
                await user.write(f"{directory}/f{number}", b"hello")
                assert user.calls == [f"PUT {directory}/f{number} 5"]
                assert (await user.stat(f"{directory}/f{number}")).size == 5
            assert user.calls == []
            await user.stat(directory)
            assert sorted(await user.names(directory))[:2] in (["f0", "f1"], ["f0", "f1"])
        assert store.data("made/f19") == store.data("listed/f0") == b"hello"


async def test_new_file_in_an_unknown_directory_asks_once_for_its_name(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("d/old", b"x")
    async with using(store, tmp_path) as user:
        await user.stat("d")
        assert user.calls == ["LIST d", "HEAD d/"]
        await user.write("d/new", b"x")
        assert user.calls == ["LIST d/new", "PUT d/new 1"]


async def test_empty_new_file_is_one_put(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path) as user:
        await user.names()
        assert user.calls == ["LIST"]
        await user.close(await user.open("f", NEW))
        assert user.calls == ["PUT f 0"]
        assert await user.read("f") == b""
        assert user.calls == []


async def test_small_files_read_is_one_get_when_its_metadata_is_known(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"small")
    async with using(store, tmp_path) as user:
        await user.ls_l()
        assert user.calls == ["LIST", "HEAD f"]
        assert await user.read("f") == b"small"
        assert user.calls == ["GET f 0+5"]


async def test_large_file_is_opened_with_a_head_and_read_by_ranges(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", data := noise(3 * MIB))
    async with using(store, tmp_path) as user:
        await user.ls_l()
        user.calls.clear()
        fd = await user.open("f")
        assert user.calls == ["HEAD f"]
        assert await user.pread(fd, 4096, 2 * MIB) == data[2 * MIB : 2 * MIB + 4096]
        assert user.calls == [f"GET f {2 * MIB}+4096"]


async def test_opening_to_write_only_asks_nothing(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"old")
    async with using(store, tmp_path) as user:
        await user.stat("f")
        user.calls.clear()
        fd = await user.open("f", os.O_WRONLY)
        assert user.calls == []
        await user.close(fd)
        assert user.calls == []
        await user.write("f", b"new")
        assert user.calls == ["PUT f 3"]


async def test_second_close_and_fsync_without_changes_cost_nothing(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path) as user:
        await user.names()
        fd = await user.open("f", NEW)
        await user.pwrite(fd, b"data", 0)
        user.calls.clear()
        await user.flush(fd)
        assert user.calls == ["PUT f 4"]
        await user.flush(fd)
        await user.fsync(fd)
        await user.close(fd)
        assert user.calls == []


async def test_files_of_a_walk_are_fetched_before_they_are_opened(tmp_path: Path) -> None:
    store = FakeStore()
    for number in range(60):
        store.seed(f"d/f{number:02}", b"%02d" % number)
    async with using(store, tmp_path) as user:
        await user.ls_l("d")
        user.calls.clear()
        for number in range(60):
            assert await user.read(f"d/f{number:02}") == b"%02d" % number
            if number == IN_ORDER + 2:
                assert store.count("GET") > IN_ORDER + 8
        assert store.count("GET") == 60
        assert store.most_under_way > 4


# One version, or ESTALE.


async def test_object_replaced_while_open_is_estale_and_never_a_mixture(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"1" * (8 * MIB))
    async with using(store, tmp_path) as user:
        old = await user.open("f")
        assert await user.pread(old, 4096, 0) == b"1" * 4096
        store.put_plain("f", b"2" * (8 * MIB))
        with refusal(errno.ESTALE):
            await user.pread(old, 4096, 7 * MIB)
        # The name is another inode: the kernel's pages of the old one are not the new one's.
        new = await user.open("f")
        assert new.ino != old.ino
        assert await user.pread(new, 4096, 7 * MIB) == b"2" * 4096
        # The old descriptor still has its own size, and the old inode goes away with it.
        assert (await user.fstat(old)).size == 8 * MIB
        await user.close(old)
        user.kernel.forget(old.ino)
        await user.stat("f")
        assert old.ino not in user.fs.tree.nodes


async def test_new_version_seen_by_a_lookup_leaves_the_open_file_what_it_was(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"1" * 100)
    async with using(store, tmp_path, metadata_ttl=0.0) as user:
        old = await user.open("f")
        store.put_plain("f", b"2" * 200)
        new = await user.stat("f")
        assert (new.ino != old.ino, new.size) == (True, 200)
        assert (await user.fstat(old)).size == 100
        assert await user.pread(old, 1000, 0) == b"1" * 100
        with refusal(errno.ESTALE):
            await user.open_ino(old.ino)
        await user.close(old)
        assert (await user.stat("f")).ino == new.ino


async def test_object_replaced_before_open_is_estale_once_and_then_the_new_one(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"old")
    store.seed("big", bytes(2 * MIB))
    async with using(store, tmp_path) as user:
        for key in ("f", "big"):
            ino = await user.ino(key)
            store.put_plain(key, b"newer")
            with refusal(errno.ESTALE):
                await user.open_ino(ino)
            # Nobody had it open: it is the same inode.
            assert await user.ino(key) == ino
            assert await user.read(key) == b"newer"


async def test_object_deleted_while_open_is_estale_and_the_name_is_gone(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", bytes(2 * MIB))
    async with using(store, tmp_path) as user:
        fd = await user.open("f")
        del store.objects["f"]
        with refusal(errno.ESTALE):
            await user.pread(fd, 10, 0)
        with refusal(errno.ENOENT):
            await user.stat("f")


async def test_kernel_keeps_its_pages_while_the_etag_stands(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"same")
    async with using(store, tmp_path) as user:
        assert (await user.open("f")).open_flags == 0
        user.calls.clear()
        assert (await user.open("f")).open_flags == FOPEN_KEEP_CACHE
        assert user.calls == []


async def test_kernel_keeps_the_pages_of_what_it_wrote_itself(tmp_path: Path) -> None:
    async with using(FakeStore(), tmp_path) as user:
        await user.write("f", b"one")
        assert (await user.open("f")).open_flags == FOPEN_KEEP_CACHE
        await user.append("f", b"two")
        assert (await user.open("f")).open_flags == FOPEN_KEEP_CACHE
        assert await user.read("f") == b"onetwo"


async def test_new_version_of_the_same_size_does_not_keep_the_pages(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"aaaa")
    async with using(store, tmp_path, metadata_ttl=0.0) as user:
        await user.read("f")
        store.seed("f", b"bbbb")
        fd = await user.open("f")
        assert fd.open_flags == 0
        assert await user.pread(fd, 10, 0) == b"bbbb"


# Reading that fails, or is given up.


async def test_interrupted_reader_ends_its_request(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", bytes(4 * MIB))
    async with using(store, tmp_path) as user:
        fd = await user.open("f")
        store.gate = asyncio.Event()
        for offset in (0, 3 * MIB):
            waiting = user.ask(abi.READ, fd.ino, fh=fd.fh, offset=offset, size=4096)
            await eventually(lambda: store.under_way)
            assert (await user.stat("f")).size == 4 * MIB
            user.kernel.interrupt(waiting)
            with refusal(errno.EINTR):
                await waiting
            await eventually(lambda: not store.under_way)
        store.gate.set()
        assert await user.pread(fd, 4096, 0) == bytes(4096)


async def test_interrupted_reader_leaves_the_others_their_bytes(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"x" * (4 * MIB))
    async with using(store, tmp_path) as user:
        fd = await user.open("f")
        store.gate = asyncio.Event()
        one = user.ask(abi.READ, fd.ino, fh=fd.fh, offset=0, size=4096)
        other = user.ask(abi.READ, fd.ino, fh=fd.fh, offset=4096, size=4096)
        await eventually(lambda: store.under_way)
        user.kernel.interrupt(one)
        with refusal(errno.EINTR):
            await one
        store.gate.set()
        assert (await other).data == b"x" * 4096


async def test_interrupted_open_ends_its_request_and_leaves_nothing_open(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"small")
    async with using(store, tmp_path) as user:
        ino = await user.ino("f")
        store.gate = asyncio.Event()
        waiting = user.ask(abi.OPEN, ino, flags=os.O_RDONLY)
        await eventually(lambda: store.under_way)
        user.kernel.interrupt(waiting)
        with refusal(errno.EINTR):
            await waiting
        assert (store.under_way, user.fs.files) == (0, {})
        store.gate.set()
        assert await user.read("f") == b"small"


async def test_failed_fetch_is_its_readers_errno_and_the_next_read_tries_again(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"y" * (4 * MIB))
    async with using(store, tmp_path) as user:
        fd = await user.open("f")
        store.fail = [Fault("GET", slow_down(), times=9)]
        with refusal(errno.EBUSY):
            await user.pread(fd, 4096, 0)
        store.fail = []
        assert await user.pread(fd, 4096, 0) == b"y" * 4096


async def test_refused_file_fails_to_open_with_its_errno(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"frozen", storage_class="GLACIER")
    async with using(store, tmp_path) as user:
        with refusal(errno.ENODATA):
            await user.open("f")
        assert user.fs.files == {}
        store.seed("f", b"frozen", headers={"x-amz-restore": 'ongoing-request="false"'}, storage_class="GLACIER")
        assert await user.read("f") == b"frozen"


async def test_release_ends_what_was_fetched_ahead(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", bytes(8 * MIB))
    async with using(store, tmp_path) as user:
        fd = await user.open("f")
        await user.pread(fd, MIB // 2, 0)
        store.gate = asyncio.Event()
        waiting = user.ask(abi.READ, fd.ino, fh=fd.fh, offset=4 * MIB, size=4096)
        await eventually(lambda: store.under_way)
        user.kernel.interrupt(waiting)
        with refusal(errno.EINTR):
            await waiting
        await user.close(fd)
        await eventually(lambda: not store.under_way and not user.fs.tasks)
        assert user.fs.files == {}


async def test_many_files_are_read_at_once(tmp_path: Path) -> None:
    store = FakeStore()
    for number in range(40):
        store.seed(f"f{number}", bytes([number]) * 1000)
    async with using(store, tmp_path) as user:
        await user.ls_l()
        store.gate = asyncio.Event()
        readers = [asyncio.ensure_future(user.read(f"f{number}")) for number in range(40)]
        await eventually(lambda: store.under_way == 40)
        store.gate.set()
        assert await asyncio.gather(*readers) == [bytes([number]) * 1000 for number in range(40)]


async def test_memory_for_data_on_its_way_is_limited(tmp_path: Path) -> None:
    store = FakeStore()
    for number in range(6):
        store.seed(f"f{number}", noise(6 * MIB, number))
    async with using(store, tmp_path, memory_limit=4 * MIB, readahead=16 * MIB) as user:
        read = await asyncio.gather(*(user.read(f"f{number}") for number in range(6)))
        assert read == [noise(6 * MIB, number) for number in range(6)]
        assert user.fs.budget.limit == 4 * MIB


# Writing.


async def test_what_is_written_is_read_back_before_and_after_it_is_published(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path) as user:
        fd = await user.open("f", NEW)
        await user.pwrite(fd, b"hello world", 0)
        assert await user.read("f") == b"hello world"
        assert "f" not in store.objects
        assert (await user.stat("f")).size == 11
        assert await user.names() == ["f"]
        await user.close(fd)
        assert store.data("f") == await user.read("f") == b"hello world"


async def test_rewrite_in_the_middle_leaves_the_rest_and_sends_little(tmp_path: Path) -> None:
    store = FakeStore()
    data = bytearray(noise(30 * MIB))
    store.seed("f", bytes(data))
    async with using(store, tmp_path) as user:
        fd = await user.open("f", os.O_RDWR)
        await user.pwrite(fd, b"CHANGED", 17 * MIB + 5)
        data[17 * MIB + 5 : 17 * MIB + 12] = b"CHANGED"
        assert await user.pread(fd, 20, 17 * MIB) == data[17 * MIB : 17 * MIB + 20]
        user.calls.clear()
        await user.close(fd)
        sent = sum(int(call.split()[-1]) for call in store.calls if call.startswith("PART "))
        assert store.data("f") == data
        assert sent <= 8 * MIB
        assert store.count("COPY_PART") >= 2
        assert await user.read("f") == data


async def test_append_to_a_small_file_is_one_get_and_one_put(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("log", b"one\n")
    async with using(store, tmp_path) as user:
        await user.stat("log")
        user.calls.clear()
        await user.append("log", b"two\n")
        assert store.data("log") == b"one\ntwo\n"
        assert user.calls == ["GET log 0+4", "PUT log 8"]
        # What was just published is still here.
        await user.append("log", b"three\n")
        assert user.calls == ["PUT log 14"]
        assert store.data("log") == b"one\ntwo\nthree\n"
        # What a file was opened with to be read is not fetched again.
        store.seed("other", b"words")
        await user.stat("other")
        user.calls.clear()
        fd = await user.open("other", os.O_RDWR)
        await user.pwrite(fd, b"W", 0)
        await user.close(fd)
        assert user.calls == ["GET other 0+5", "PUT other 5"]
        assert store.data("other") == b"Words"


class NoTwoAlike(FakeStore):
    """No two versions have the same ETag, as where they are encrypted."""

    def _keep(self, data: bytes, item: Any, attributes: Any) -> Any:
        return super()._keep(data, item._replace(etag=f"v{item.mtime_ns}"), attributes)


@pytest.mark.parametrize("kind", [FakeStore, NoTwoAlike])
async def test_small_file_that_was_just_written_is_read_and_copied_without_a_get(tmp_path: Path, kind: type[FakeStore]) -> None:
    store = kind()
    async with using(store, tmp_path, metadata_ttl=3600.0) as user:
        await user.write("f", b"words")
        await user.set("f", mode=0o600)
        await user.rename("f", "g")
        user.calls.clear()
        assert await user.read("g") == b"words"
        assert user.calls == []


async def test_small_file_that_somebody_replaced_is_read_as_it_is_now(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path, metadata_ttl=0.0) as user:
        await user.write("f", b"words")
        store.seed("f", b"other")
        assert await user.read("f") == b"other"
        await user.write("f", b"again")
        assert await user.read("f") == b"again"


async def test_long_sequential_write_is_sent_while_it_is_written(tmp_path: Path) -> None:
    store = FakeStore()
    data = noise(33 * MIB)
    async with using(store, tmp_path, part_size=PART) as user:
        fd = await user.open("f", NEW)
        for start in range(0, len(data), MIB):
            await user.pwrite(fd, data[start : start + MIB], start)
        await eventually(lambda: store.count("PART") >= 5)
        assert "f" not in store.objects
        await user.close(fd)
        assert store.data("f") == data
        assert (store.count("CREATE"), store.count("COMPLETE"), store.count("PUT")) == (1, 1, 0)
        assert store.uploading == {}


@pytest.mark.parametrize("work", ["shorten", "begin anew", "overwrite", "sync and go on", "shorten after sync", "read behind"])
async def test_long_write_that_does_not_stay_sequential_is_right(work: str, tmp_path: Path) -> None:
    store = FakeStore()
    model = bytearray(noise(12 * MIB))
    more = noise(7 * MIB, 2)
    async with using(store, tmp_path, part_size=PART) as user:
        fd = await user.open("f", os.O_RDWR | os.O_CREAT)
        await user.pwrite(fd, bytes(model), 0)
        await eventually(lambda: store.count("PART") >= 2)
        if "sync" in work:
            await user.fsync(fd)
            assert store.data("f") == model
        if work in ("shorten", "shorten after sync"):
            del model[6 * MIB + 3 :]
            await user.set(fd, size=len(model))
        elif work == "begin anew":
            model.clear()
            await user.set(fd, size=0)
        elif work == "overwrite":
            model[1000 : 1000 + len(more)] = more
            await user.pwrite(fd, more, 1000)
        elif work == "read behind":
            assert await user.pread(fd, 4096, MIB) == model[MIB : MIB + 4096]
        await user.pwrite(fd, more, len(model))
        model += more
        assert await user.read("f") == model
        await user.close(fd)
        assert store.data("f") == model == await user.read("f")
        await eventually(lambda: store.uploading == {})


async def test_what_is_written_while_it_is_published_is_published_too(tmp_path: Path) -> None:
    store = FakeStore()
    gate = asyncio.Event()
    async with using(store, tmp_path) as user:
        one, other = await user.open("f", NEW), await user.open("f", os.O_WRONLY)
        await user.pwrite(one, b"0123456789", 0)
        store.fail = [Fault("PUT", gate=gate)]
        closing = asyncio.ensure_future(user.close(one))
        await eventually(lambda: store.count("PUT"))
        writing = asyncio.ensure_future(user.pwrite(other, b"XY", 4))
        await asyncio.sleep(0.02)
        gate.set()
        await asyncio.gather(closing, writing)
        assert store.data("f") in (b"0123456789", b"0123XY6789")
        await user.close(other)
        assert store.data("f") == await user.read("f") == b"0123XY6789"


async def test_file_written_backwards_is_right(tmp_path: Path) -> None:
    store = FakeStore()
    data = noise(12 * MIB)
    async with using(store, tmp_path, part_size=PART) as user:
        fd = await user.open("f", NEW)
        for start in reversed(range(0, len(data), MIB)):
            await user.pwrite(fd, data[start : start + MIB], start)
        await user.close(fd)
        assert store.data("f") == data


async def test_overwritten_file_is_one_put_over_the_version_that_was_seen(tmp_path: Path) -> None:
    store = FakeStore()
    old = store.seed("f", b"old contents")
    async with using(store, tmp_path) as user:
        await user.stat("f")
        conditions = []
        put = store.put

        async def watched(key: str, body: object, attributes: object, condition: Condition) -> object:
            conditions.append(condition)
            return await put(key, body, attributes, condition)  # type: ignore[arg-type]

        store.put = watched  # type: ignore[method-assign, assignment]
        await user.write("f", b"new")
        await user.write("g", b"new")
        assert conditions == [Condition(match=old.etag), Condition(absent=True)]
        assert store.data("f") == b"new"


async def test_fsync_publishes_and_writing_goes_on(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path) as user:
        fd = await user.open("f", NEW)
        await user.pwrite(fd, b"one", 0)
        await user.fsync(fd)
        assert store.data("f") == b"one"
        await user.pwrite(fd, b"two", 3)
        await user.close(fd)
        assert store.data("f") == b"onetwo"


async def test_hole_is_zeros(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path) as user:
        fd = await user.open("f", os.O_RDWR | os.O_CREAT)
        await user.pwrite(fd, b"end", 100_000)
        assert await user.pread(fd, 6, 99_997) == b"\0\0\0end"
        await user.close(fd)
        assert store.data("f") == bytes(100_000) + b"end"


async def test_all_who_have_it_open_see_one_file(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"0123456789")
    async with using(store, tmp_path) as user:
        reader = await user.open("f")
        assert await user.pread(reader, 10, 0) == b"0123456789"
        one, other = await user.open("f", os.O_RDWR), await user.open("f", os.O_RDWR)
        assert reader.ino == one.ino == other.ino
        await user.pwrite(one, b"AB", 2)
        await user.pwrite(other, b"YZ", 7)
        for fd in (reader, one, other):
            assert await user.pread(fd, 10, 0) == b"01AB456YZ9"
        await user.close(one)
        await user.close(other)
        assert await user.pread(reader, 10, 0) == store.data("f") == b"01AB456YZ9"


async def test_full_staging_area_is_enospc_and_loses_nothing(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path, staging_size=MIB) as user:
        fd = await user.open("f", NEW)
        await user.pwrite(fd, bytes(512 << 10), 0)
        with refusal(errno.ENOSPC):
            await user.pwrite(fd, bytes(MIB), 512 << 10)
        size = (await user.fstat(fd)).size
        await user.close(fd)
        assert store.data("f") == bytes(size)
        assert 512 << 10 <= size <= MIB
        await user.write("g", bytes(1000))


async def test_many_writers_send_side_by_side(tmp_path: Path) -> None:
    store = FakeStore()
    gate = asyncio.Event()
    async with using(store, tmp_path) as user:
        await user.names()
        store.fail = [Fault("PUT", gate=gate, times=20)]
        writers = [asyncio.ensure_future(user.write(f"f{number}", bytes([number]) * 100)) for number in range(20)]
        await eventually(lambda: store.busiest["PUT"] == 20)
        gate.set()
        await asyncio.gather(*writers)
        assert [store.data(f"f{number}") for number in range(20)] == [bytes([number]) * 100 for number in range(20)]


async def test_writer_waits_while_too_much_is_on_its_way_and_can_be_interrupted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(feeding, "BACKLOG", MIB)
    store = FakeStore()
    gate = asyncio.Event()
    data = noise(24 * MIB)
    async with using(store, tmp_path, part_size=PART, uploads=1) as user:
        fd = await user.open("f", NEW)
        store.fail = [Fault("PART", gate=gate, times=100)]
        written = 0
        while True:
            piece = data[written : written + MIB // 16]
            waiting = user.ask(abi.WRITE, fd.ino, fh=fd.fh, offset=written, size=len(piece), data=piece)
            await asyncio.wait([asyncio.wrap_future(waiting.future)], timeout=0.3)
            if not waiting.future.done():
                break
            written += len(piece)
            assert written < len(data), "nobody ever waits"
        assert written >= 2 * PART
        user.kernel.interrupt(waiting)
        with refusal(errno.EINTR):
            await waiting
        gate.set()
        await user.pwrite(fd, data[written : written + 1000], written)
        await user.close(fd)
        assert store.data("f") == data[: written + 1000]


# Truncating.


@pytest.mark.parametrize("size", [0, 3, 10, 25])
async def test_truncate_by_path_publishes_at_once(size: int, tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"0123456789")
    async with using(store, tmp_path) as user:
        await user.set("f", size=size)
        assert store.data("f") == b"0123456789"[:size].ljust(size, b"\0")
        assert (await user.stat("f")).size == size
        assert await user.read("f") == store.data("f")
        assert (store.count("PUT"), user.fs.files) == (size != 10, {})


async def test_failed_truncate_by_path_leaves_the_file(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"0123456789")
    async with using(store, tmp_path) as user:
        await user.stat("f")
        store.fail = [Fault("PUT", denied())]
        with refusal(errno.EACCES):
            await user.set("f", size=4)
        assert (await user.stat("f")).size == 10
        assert await user.read("f") == b"0123456789"
        assert user.fs.files == {}


async def test_truncate_of_an_open_file_waits_for_its_close(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"0123456789")
    async with using(store, tmp_path) as user:
        fd = await user.open("f", os.O_RDWR)
        await user.set(fd, size=4)
        await user.pwrite(fd, b"xy", 4)
        assert store.data("f") == b"0123456789"
        await user.set("f", size=5)
        await user.close(fd)
        assert store.data("f") == b"0123x"


@pytest.mark.parametrize("access", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
async def test_open_with_o_trunc_is_published_empty_at_close(access: int, tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"0123456789")
    async with using(store, tmp_path) as user:
        fd = await user.open("f", access | os.O_TRUNC)
        assert (await user.stat("f")).size == 0
        assert store.data("f") == b"0123456789"
        await user.close(fd)
        assert store.data("f") == b""
        assert store.count("GET") == 0


async def test_truncation_by_another_open_is_seen_by_who_writes(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path) as user:
        fd = await user.open("f", NEW)
        await user.pwrite(fd, b"first words", 0)
        other = await user.open("f", os.O_WRONLY | os.O_TRUNC)
        assert (await user.fstat(fd)).size == 0
        await user.pwrite(other, b"later", 0)
        await user.close(other)
        await user.close(fd)
        assert store.data("f") == b"later"


@pytest.mark.parametrize(
    ("mode", "offset", "length", "expected"),
    [
        (0, 5, 10, b"0123456789" + bytes(5)),
        (0, 2, 3, b"0123456789"),
        (0x01, 5, 100, b"0123456789"),
        (0x03, 2, 3, b"01\0\0\x0056789"),
        (0x03, 8, 30, b"01234567\0\0"),
        (0x10, 8, 4, b"01234567\0\0\0\0"),
        (0x11, 8, 4, b"01234567\0\0"),
    ],
)
async def test_fallocate_lengthens_or_makes_zeros(mode: int, offset: int, length: int, expected: bytes, tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"0123456789")
    async with using(store, tmp_path) as user:
        fd = await user.open("f", os.O_RDWR)
        await user.fallocate(fd, mode, offset, length)
        assert await user.pread(fd, 100, 0) == expected
        await user.close(fd)
        assert store.data("f") == expected


# Conflicts.


async def test_file_changed_by_others_is_estale_at_close_and_the_copy_is_kept(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("d/f", b"base")
    async with using(store, tmp_path) as user:
        fd = await user.open("d/f", os.O_RDWR)
        await user.pwrite(fd, b"mine", 0)
        store.put_plain("d/f", b"theirs")
        with refusal(errno.ESTALE):
            await user.close(fd)
        assert store.data("d/f") == b"theirs"
        assert await user.read("d/f") == b"theirs"
        (problem,) = [problem for problem in user.fs.problems if problem.errno == errno.ESTALE]
        (kept,) = [path for path in (tmp_path / "staging").rglob("*") if path.is_file() and path.read_bytes() == b"mine"]
        assert str(kept) in problem.cause
        assert problem.path == "d/f"
        assert user.fs.waiting() == (0, 0)
    # Who mounts it next is told of the copy.
    async with using(store, tmp_path) as user:
        assert [str(kept) in problem.cause for problem in user.fs.problems] == [True]


async def test_new_file_that_others_made_meanwhile_is_estale_at_close(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path) as user:
        fd = await user.open("f", NEW)
        await user.pwrite(fd, b"mine", 0)
        store.put_plain("f", b"theirs")
        with refusal(errno.ESTALE):
            await user.close(fd)
        assert store.data("f") == await user.read("f") == b"theirs"


async def test_file_removed_by_others_is_estale_at_close_and_not_made_again(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"base")
    async with using(store, tmp_path) as user:
        fd = await user.open("f", os.O_RDWR)
        await user.pwrite(fd, b"mine", 0)
        del store.objects["f"]
        with refusal(errno.ESTALE):
            await user.close(fd)
        assert "f" not in store.objects
        with refusal(errno.ENOENT):
            await user.stat("f")


async def test_lost_answer_of_a_put_is_no_conflict(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path) as user:
        await user.names()
        store.fail = [Fault("PUT", failed_condition(), after=True)]
        await user.write("f", b"mine")
        assert store.data("f") == await user.read("f") == b"mine"
        assert list(user.fs.problems) == []


@pytest.mark.parametrize("policy", ["rename", "overwrite", "append-merge"])
async def test_on_conflict_is_done_without_an_error(policy: str, tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"base\n")
    async with using(store, tmp_path, on_conflict=policy, metadata_ttl=0.0) as user:
        fd = await user.open("f", os.O_RDWR)
        await user.pwrite(fd, b"mine\n", 5)
        store.put_plain("f", b"base\ntheirs\n")
        await user.close(fd)
        names = await user.names()
        assert "f" in names
        contents = {name: store.data(name) for name in names}
        if policy == "rename":
            assert sorted(contents.values()) == [b"base\nmine\n", b"base\ntheirs\n"]
            assert contents["f"] == b"base\ntheirs\n"
        else:
            assert contents == {"f": b"base\nmine\n" if policy == "overwrite" else b"base\ntheirs\nmine\n"}
        assert await user.read("f") == contents["f"]
        assert [problem.errno for problem in user.fs.problems] == [errno.ESTALE]


# Failures of the store.


async def test_hopeless_failure_is_close_s_error_and_a_copy_is_kept(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"old")
    async with using(store, tmp_path) as user:
        for name in ("f", "new"):
            fd = await user.open(name, os.O_RDWR | os.O_CREAT)
            await user.pwrite(fd, b"mine", 0)
            store.fail = [Fault("PUT", denied(), times=9)]
            with refusal(errno.EACCES):
                await user.close(fd)
            store.fail = []
        # Nothing waits for ever, and what the store has is shown again.
        assert user.fs.waiting() == (0, 0)
        assert await user.names() == ["f"]
        assert await user.read("f") == b"old"
        kept = [path for path in (tmp_path / "staging").rglob("*") if path.is_file() and path.read_bytes() == b"mine"]
        assert len(kept) == 2
        for problem, name in zip(user.fs.problems, ("f", "new"), strict=True):
            assert (problem.errno, problem.path) == (errno.EACCES, name)
            assert any(str(path) in problem.cause for path in kept)


@pytest.mark.parametrize("failing", ["keep", "fsync"])
async def test_what_cannot_be_kept_among_the_conflicts_waits_in_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    store = FakeStore()
    store.seed("f", b"old")

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    async with using(store, tmp_path) as user:
        for name, fault, expected in (("f", Fault("PUT", denied(), times=9), errno.EACCES), ("g", None, errno.ESTALE)):
            fd = await user.open(name, os.O_RDWR | os.O_CREAT)
            await user.pwrite(fd, b"mine", 0)
            if fault is None:
                store.seed(name, b"theirs")
            store.fail = [fault] if fault is not None else []
            with monkeypatch.context() as patch:
                if failing == "keep":
                    patch.setattr(conflicts, "keep", fail)
                else:
                    patch.setattr(publish, "os", SimpleNamespace(**{**vars(os), "fsync": fail}))
                with refusal(expected):
                    await user.close(fd)
                store.fail = []
        # Nothing was lost: what the store takes now is there, and of the other a copy can be kept by now.
        await stored(user, "f", b"mine")
        await eventually(lambda: user.fs.waiting() == (0, 0))
        assert store.data("g") == b"theirs"
        conflicting = [path for path in (tmp_path / "staging").rglob("*") if path.is_file() and path.read_bytes() == b"mine"]
        assert len(conflicting) == 1


async def test_passing_failure_is_close_s_error_and_the_file_is_uploaded_later(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path) as user:
        await user.names()
        fd = await user.open("f", NEW)
        await user.pwrite(fd, b"mine", 0)
        store.fail = [Fault("PUT", slow_down(), times=2)]
        with refusal(errno.EBUSY):
            await user.close(fd)
        assert await user.read("f") == b"mine"
        await stored(user, "f", b"mine")
        await eventually(lambda: user.fs.waiting() == (0, 0))
        assert (await user.stat("f")).size == 4


async def test_close_that_failed_may_be_repeated_by_fsync(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path) as user:
        fd = await user.open("f", NEW)
        await user.pwrite(fd, b"mine", 0)
        store.fail = [Fault("PUT", denied())]
        with refusal(errno.EACCES):
            await user.fsync(fd)
        await user.fsync(fd)
        assert store.data("f") == b"mine"
        await user.close(fd)
        assert list((tmp_path / "staging").rglob("*.json")) == []


async def test_interrupted_close_keeps_the_file_for_the_journal(tmp_path: Path) -> None:
    store = FakeStore()
    gate = asyncio.Event()
    async with using(store, tmp_path) as user:
        fd = await user.open("f", NEW)
        await user.pwrite(fd, b"mine", 0)
        store.fail = [Fault("PUT", gate=gate)]
        waiting = user.ask(abi.FLUSH, fd.ino, fh=fd.fh, lock_owner=7)
        await eventually(lambda: store.count("PUT"))
        user.kernel.interrupt(waiting)
        with refusal(errno.EINTR):
            await waiting
        gate.set()
        await user.release(fd)
        await stored(user, "f", b"mine")
        await eventually(lambda: user.fs.waiting() == (0, 0))
        assert await user.read("f") == b"mine"


async def test_unreachable_store_at_unmount_leaves_the_file_to_the_next_mount(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path) as user:
        await user.names()
        fd = await user.open("f", NEW)
        await user.pwrite(fd, b"mine", 0)
        store.fail = [Fault("PUT", StoreError(errno.EHOSTDOWN, "down"), times=1000)]
        with refusal(errno.EHOSTDOWN):
            await user.close(fd)
        assert user.fs.waiting() == (1, 4)
    store.fail = []
    async with using(store, tmp_path) as user:
        assert await user.read("f") == b"mine"
        await stored(user, "f", b"mine")


# Names that change while a file is open.


async def test_small_file_unlinked_while_open_is_read_on(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", data := noise(3 * MIB))
    async with using(store, tmp_path) as user:
        fd = await user.open("f")
        await user.unlink("f")
        assert "f" not in store.objects
        assert await user.read_fd(fd) == data
        assert (await user.fstat(fd)).nlink == 0
        store.calls.clear()
        await user.close(fd)
        assert user.calls == []
        assert list(store.objects) == []


async def test_large_file_unlinked_while_open_is_estale(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(files_module, "KEPT_WHEN_UNLINKED", MIB)
    store = FakeStore()
    store.seed("f", noise(3 * MIB))
    async with using(store, tmp_path) as user:
        fd = await user.open("f")
        await user.unlink("f")
        assert store.count("GET") == 0
        with refusal(errno.ESTALE):
            await user.read_fd(fd)


async def test_new_file_unlinked_while_open_never_reaches_the_store(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path) as user:
        fd = await user.open("f", os.O_RDWR | os.O_CREAT)
        await user.pwrite(fd, b"scratch", 0)
        await user.unlink("f")
        await user.pwrite(fd, b"paper", 7)
        assert await user.pread(fd, 100, 0) == b"scratchpaper"
        assert await user.names() == []
        await user.close(fd)
        assert list(store.objects) == []
        assert store.count("PUT") == 0


async def test_name_unlinked_while_open_can_be_used_again(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"old")
    async with using(store, tmp_path) as user:
        old = await user.open("f", os.O_RDWR)
        await user.unlink("f")
        await user.write("f", b"new")
        await user.pwrite(old, b"ghost", 0)
        assert await user.pread(old, 10, 0) == b"ghost"
        await user.close(old)
        assert store.data("f") == await user.read("f") == b"new"


async def test_long_upload_of_an_unlinked_file_is_aborted(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path, part_size=PART) as user:
        fd = await user.open("f", NEW)
        await user.pwrite(fd, noise(12 * MIB), 0)
        await eventually(lambda: store.count("PART") >= 2)
        await user.unlink("f")
        await user.close(fd)
        await eventually(lambda: store.uploading == {})
        assert list(store.objects) == []


async def test_file_renamed_while_it_is_written_is_published_under_the_new_name_only(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path) as user:
        await user.mkdir("d")
        fd = await user.open("a", NEW)
        await user.pwrite(fd, b"one", 0)
        user.calls.clear()
        await user.rename("a", "d/b")
        assert [call for call in user.calls if not call.startswith(("LIST", "HEAD"))] == []
        await user.pwrite(fd, b"two", 3)
        await user.close(fd)
        assert {key: store.data(key) for key in store.objects} == {"d/": b"", "d/b": b"onetwo"}


async def test_long_upload_goes_on_under_the_new_name(tmp_path: Path) -> None:
    store = FakeStore()
    data = noise(14 * MIB)
    async with using(store, tmp_path, part_size=PART) as user:
        fd = await user.open("a", NEW)
        await user.pwrite(fd, data[: 12 * MIB], 0)
        await eventually(lambda: store.count("PART") >= 2)
        await user.rename("a", "b")
        await user.pwrite(fd, data[12 * MIB :], 12 * MIB)
        await user.close(fd)
        assert {key: store.data(key) == data for key in store.objects} == {"b": True}
        await eventually(lambda: store.uploading == {})


async def test_file_renamed_while_it_is_read_is_read_on(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("a", data := noise(3 * MIB))
    async with using(store, tmp_path) as user:
        fd = await user.open("a")
        assert await user.pread(fd, 4096, 0) == data[:4096]
        await user.rename("a", "b")
        assert await user.read_fd(fd) == data
        assert (await user.stat("b")).ino == fd.ino
        assert await user.read("b") == data


async def test_changed_file_renamed_while_open_has_both_changes(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("a", b"0123456789")
    async with using(store, tmp_path) as user:
        fd = await user.open("a", os.O_RDWR)
        await user.pwrite(fd, b"AB", 0)
        await user.rename("a", "b")
        await user.pwrite(fd, b"YZ", 8)
        await user.close(fd)
        assert {key: store.data(key) for key in store.objects} == {"b": b"AB234567YZ"}


# Write-back.


async def test_write_back_closes_without_a_request_and_uploads_afterwards(tmp_path: Path) -> None:
    store = FakeStore()
    gate = asyncio.Event()
    async with using(store, tmp_path, write_back=True) as user:
        await user.names()
        store.fail = [Fault("PUT", gate=gate)]
        await user.write("f", b"mine")
        assert "f" not in store.objects
        assert user.fs.waiting() == (1, 4)
        assert await user.read("f") == b"mine"
        assert (await user.stat("f")).size == 4
        gate.set()
        await stored(user, "f", b"mine")
        await eventually(lambda: user.fs.waiting() == (0, 0) and not user.fs.files)
        assert store.count("PUT") == 1
        assert (await user.stat("f")).size == 4


async def test_write_back_folds_what_comes_within_its_delay(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path, write_back=True, write_back_delay=60.0) as user:
        await user.names()
        user.calls.clear()
        await user.write("f", b"one")
        await user.append("f", b"two")
        await user.set("f", mode=0o600)
        await user.set("f", mtime_ns=10**18)
        await user.rename("f", "g")
        await user.write("scratch", b"paper")
        await user.unlink("scratch")
        assert [call for call in user.calls if not call.startswith("LIST")] == []
        assert user.fs.waiting() == (1, 6)
        await user.fs.drain(asyncio.get_running_loop().time() + 20)
        assert [call for call in user.calls if not call.startswith("LIST")] == ["PUT g 6"]
        assert {key: store.data(key) for key in store.objects} == {"g": b"onetwo"}
        assert store.objects["g"].metadata["mtime"].startswith("1000000000")
        assert int(store.objects["g"].metadata["mode"]) & 0o7777 == 0o600
        assert user.fs.waiting() == (0, 0)


async def test_what_write_back_did_not_send_is_sent_by_the_next_mount(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("old", b"old")
    async with using(store, tmp_path, write_back=True, write_back_delay=60.0) as user:
        await user.mkdir("d")
        await user.write("d/f", b"mine")
        await user.write("old", b"changed")
    assert (store.data("old"), "d/f" in store.objects) == (b"old", False)
    async with using(store, tmp_path) as user:
        assert await user.read("d/f") == b"mine"
        assert await user.read("old") == b"changed"
        await stored(user, "d/f", b"mine")
        await stored(user, "old", b"changed")
        await eventually(lambda: user.fs.waiting() == (0, 0))


async def test_write_back_conflict_is_found_by_the_upload_and_told(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"base")
    async with using(store, tmp_path, write_back=True, write_back_delay=60.0) as user:
        await user.write("f", b"mine")
        store.put_plain("f", b"theirs")
        await user.fs.drain(asyncio.get_running_loop().time() + 20)
        assert await user.read("f") == store.data("f") == b"theirs"
        assert {problem.errno for problem in user.fs.problems} == {errno.ESTALE}
        assert user.fs.waiting() == (0, 0)
    kept = [path for path in (tmp_path / "staging").rglob("*") if path.is_file() and path.read_bytes() == b"mine"]
    assert len(kept) == 1


async def test_write_back_file_written_again_while_it_is_sent_is_sent_again(tmp_path: Path) -> None:
    store = FakeStore()
    gate = asyncio.Event()
    async with using(store, tmp_path, write_back=True) as user:
        await user.names()
        store.fail = [Fault("PUT", gate=gate)]
        await user.write("f", b"first")
        await eventually(lambda: store.count("PUT"))
        again = asyncio.ensure_future(user.append("f", b" second"))
        await asyncio.sleep(0.02)
        gate.set()
        await again
        await stored(user, "f", b"first second")
        await eventually(lambda: user.fs.waiting() == (0, 0))
        assert await user.read("f") == b"first second"


# The disk cache, and the kernel reading by itself.


async def test_second_mount_reads_from_the_disk_cache(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("small", b"small")
    store.seed("large", large := noise(3 * MIB))
    async with using(store, tmp_path, cache_size=64 * MIB) as user:
        await user.ls_l()
        assert (await user.read("small"), await user.read("large")) == (b"small", large)
    async with using(store, tmp_path, cache_size=64 * MIB) as user:
        await user.ls_l()
        assert (await user.read("small"), await user.read("large")) == (b"small", large)
        # Opening asks whether it is still that version.
        assert sorted(user.calls) == ["HEAD large", "HEAD small", "LIST"]


async def test_what_was_written_is_in_the_disk_cache(tmp_path: Path) -> None:
    store = FakeStore()
    data = noise(2 * MIB)
    async with using(store, tmp_path, cache_size=64 * MIB) as user:
        await user.write("f", data)
        assert await user.read("f") == data
    async with using(store, tmp_path, cache_size=64 * MIB) as user:
        assert await user.read("f") == data
    assert store.count("GET") == 0


class Backing:
    """What the core makes of a cache file for the kernel."""

    def __init__(self, fd: int) -> None:
        self.data = os.pread(fd, 1 << 20, 0)
        self.closed = False

    def close(self) -> None:
        self.closed = True


async def test_kernel_reads_by_itself_only_while_nobody_else_has_it_open(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"whole")
    async with using(store, tmp_path, cache_size=64 * MIB) as user:
        fs = user.fs
        fs.backing = Backing  # type: ignore[method-assign, assignment]
        ino = await user.ino("f")

        async def opened(flags: int = os.O_RDONLY) -> object:
            found = fs.open(ME, ino, flags)
            return found if not asyncio.iscoroutine(found) else await found

        first = await opened()
        assert first.backing is None  # nothing of it was on the disk yet
        read = fs.read(ME, ino, first.handle, 0, 100)
        assert b"".join(await read if asyncio.iscoroutine(read) else read if isinstance(read, list) else [read]) == b"whole"
        await eventually(lambda: first.handle.file.entry.complete)
        second = await opened()
        assert second.backing is None  # one mode for all who have it open: the kernel's rule
        for one in (first, second):
            fs.release(ME, ino, one.handle)
        third, fourth = await opened(), await opened()
        assert third.backing.data == b"whole"
        assert (fourth.backing, third.flags) == (third.backing, 0)
        # The kernel takes no writer beside it: who writes gets another inode of that name.
        with refusal(errno.ESTALE):
            await opened(os.O_RDWR)
        assert await user.ino("f") != ino
        await user.write("f", b"written")
        for one in (third, fourth):
            fs.release(ME, ino, one.handle)
        assert third.backing.closed
        assert store.data("f") == await user.read("f") == b"written"


async def read_by_kernel(user: User, path: str) -> Any:
    """Open a file that is whole in the disk cache, as the kernel does that reads it by itself; return its inode and handle."""
    assert await user.read(path)
    ino = await user.ino(path)
    while True:  # a thread puts what was read on the disk
        opened = user.fs.open(ME, ino, os.O_RDONLY)
        opened = await opened if asyncio.iscoroutine(opened) else opened
        if opened.backing is not None:
            return ino, opened.handle
        user.fs.release(ME, ino, opened.handle)
        await asyncio.sleep(0.01)


async def test_truncating_what_the_kernel_reads_is_another_file_of_that_name(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"0123456789")
    async with using(store, tmp_path, cache_size=64 * MIB) as user:
        user.fs.backing = Backing  # type: ignore[method-assign, assignment]
        ino, handle = await read_by_kernel(user, "f")
        with refusal(errno.ESTALE):
            await user.set("f", size=4)
        # At ESTALE the kernel looks again.
        await user.set("f", size=4)
        assert store.data("f") == await user.read("f") == b"0123"
        assert await user.ino("f") != ino
        assert (await user.fstat(Fd(ino, 0, 0, 0), by_fh=False)).size == 10
        user.fs.release(ME, ino, handle)


async def test_what_the_kernel_reads_may_be_removed_renamed_and_given_another_mode(tmp_path: Path) -> None:
    store = FakeStore()
    for name in ("f", "g", "h"):
        store.seed(name, b"0123456789")
    async with using(store, tmp_path, cache_size=64 * MIB) as user:
        user.fs.backing = Backing  # type: ignore[method-assign, assignment]
        opened = {name: await read_by_kernel(user, name) for name in ("f", "g", "h")}
        gets = store.count("GET")
        await user.unlink("f")
        await user.rename("g", "moved")
        await user.set("h", mode=0o600)
        assert (await user.ino("moved"), await user.ino("h")) == (opened["g"][0], opened["h"][0])
        assert store.count("GET") == gets
        for ino, handle in opened.values():
            assert not handle.file.backing.closed
            user.fs.release(ME, ino, handle)
        assert await user.read("moved") == b"0123456789"


async def test_empty_and_unfinished_files_are_never_the_kernels(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("empty", b"")
    store.seed("f", noise(2 * MIB))
    async with using(store, tmp_path, cache_size=64 * MIB) as user:
        fs = user.fs
        fs.backing = Backing  # type: ignore[method-assign, assignment]
        for name in ("empty", "f"):
            fd = await user.open(name)
            await user.pread(fd, 4096, 0)
            assert fs.files[fd.ino].backing is None
            await user.close(fd)


async def test_transfer_that_breaks_at_close_is_tried_by_nobody_but_the_journal(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path) as user:
        await user.names()
        fd = await user.open("f", NEW)
        await user.pwrite(fd, b"mine", 0)
        # Done, but the answer is lost: whether it was ours is seen by its mark.
        store.fail = [Fault("PUT", lost(), after=True)]
        await user.close(fd)
        assert store.data("f") == b"mine"
        assert store.count("PUT") == 1
        assert user.fs.waiting() == (0, 0)

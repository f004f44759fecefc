"""s3fs on a store in memory: names, listings, versions, ranges and interrupts, handler by handler."""

from __future__ import annotations

import asyncio
import errno
import random
import stat
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest
from fakestore import SECOND, FakeStore

from pyfusekit.core import FOPEN_KEEP_CACHE, Attr, DirEntry, Duration, Mode, MountError, Opened, Request, Size, abi, codec
from pyfusekit.fs.s3fs import S3FS, S3Options
from pyfusekit.fs.s3fs.errors import BY_CODE, BY_STATUS, StoreError, row_of
from pyfusekit.fs.s3fs.options import parse_source
from pyfusekit.testing.kernel import FakeKernel

ME = Request(2, 1000, 1000, 4711)
MIB = 1 << 20


async def done(result: Any) -> Any:
    """Return a handler's value, whether it had to wait or not."""
    return await result if isinstance(result, Coroutine) else result


async def mounted(store: FakeStore, source: str = "bucket", **options: Any) -> S3FS:
    fs = S3FS(source, S3Options(**options), store=store)
    await fs.init()
    store.calls.clear()
    return fs


async def find(fs: S3FS, path: str) -> Attr:
    """Look *path* up as the kernel does, from the root, name by name."""
    attr = Attr(ino=1)
    for name in path.split("/"):
        attr = await done(fs.lookup(ME, attr.ino, name.encode()))
        assert attr is not None, path
    return attr


async def opened(fs: S3FS, ino: int) -> Opened:
    result = await done(fs.open(ME, ino, 0))
    assert isinstance(result, Opened)
    return result


async def read(fs: S3FS, ino: int, handle: Any, offset: int, size: int) -> bytes:
    data = await done(fs.read(ME, ino, handle, offset, size))
    return b"".join(data) if isinstance(data, list) else bytes(data)


async def content(fs: S3FS, path: str, step: int = 131072) -> bytes:
    attr = await find(fs, path)
    handle = (await opened(fs, attr.ino)).handle
    data = b""
    while part := await read(fs, attr.ino, handle, len(data), step):
        data += part
    fs.release(ME, attr.ino, handle)
    return data


async def listed(fs: S3FS, ino: int, plus: bool = False, reply: int = 10_000) -> list[DirEntry]:
    """Walk a directory in replies of at most *reply* entries, as the core does, and count what readdirplus gave."""
    handle = fs.opendir(ME, ino, 0)
    entries: list[DirEntry] = []
    cookie = 0
    while True:
        taken = 0
        source: AsyncIterator[DirEntry] = (fs.readdirplus if plus else fs.readdir)(ME, ino, handle, cookie)  # type: ignore[assignment]
        async for entry in source:
            if taken == reply:
                break
            taken += 1
            cookie = entry.offset
            entries.append(entry)
            if plus and entry.name not in (b".", b".."):
                fs.entered(entry.ino)
        if not taken:
            break
    fs.releasedir(ME, ino, handle)
    return entries


def names(entries: list[DirEntry]) -> list[bytes]:
    return [entry.name for entry in entries if entry.name not in (b".", b"..")]


def raised(info: pytest.ExceptionInfo[OSError]) -> int | None:
    return info.value.errno


# What is mounted.


@pytest.mark.parametrize(
    ("text", "bucket", "prefix"),
    [
        ("photos", "photos", ""),
        ("photos/2026", "photos", "2026/"),
        ("s3://photos", "photos", ""),
        ("s3://photos/a/b/", "photos", "a/b/"),
    ],
)
def test_source_names_a_bucket_and_a_prefix(text: str, bucket: str, prefix: str) -> None:
    assert parse_source(text) == (bucket, prefix)


@pytest.mark.parametrize("text", [None, "", "s3://", "/x", "http://host/bucket"])
def test_source_without_bucket_is_refused(text: str | None) -> None:
    with pytest.raises(MountError) as info:
        S3FS(text)
    assert info.value.kind == "source-missing"
    assert "BUCKET" in info.value.remedy


async def test_prefix_without_keys_is_not_mounted() -> None:
    store = FakeStore()
    store.put("photos/a.jpg", b"x")
    with pytest.raises(MountError, match="begins with 'fotos/'") as info:
        await S3FS("bucket/fotos", store=store).init()
    assert info.value.kind == "source-missing"
    assert store.closed


async def test_empty_bucket_is_mounted_and_empty() -> None:
    fs = await mounted(FakeStore())
    assert names(await listed(fs, 1)) == []


async def test_prefix_mount_shows_only_what_is_below_it() -> None:
    store = FakeStore()
    for key in ("a/1", "a/b/2", "ab/3", "4"):
        store.put(key, key.encode())
    fs = await mounted(store, "bucket/a")
    assert names(await listed(fs, 1)) == [b"1", b"b"]
    assert await content(fs, "b/2") == b"a/b/2"


# Names.


async def test_missing_name_is_a_negative_entry_after_one_request() -> None:
    store = FakeStore()
    fs = await mounted(store)
    assert await done(fs.lookup(ME, 1, b"nothing")) is None
    assert store.calls == ["LIST nothing"]


async def test_file_has_size_time_owner_and_mode() -> None:
    store = FakeStore()
    store.put("f", b"12345", second=1_600_000_000)
    fs = await mounted(store, uid=7, gid=8, file_mode=Mode(0o640))
    attr = await find(fs, "f")
    assert (attr.size, attr.blocks, attr.mtime_ns) == (5, 1, 1_600_000_000 * SECOND)
    assert (attr.uid, attr.gid, attr.mode) == (7, 8, stat.S_IFREG | 0o640)


async def test_directory_is_there_without_a_marker_and_with_only_a_marker(caplog: pytest.LogCaptureFixture) -> None:
    store = FakeStore()
    store.put("implicit/deep/file", b"x")
    store.put("empty/")
    fs = await mounted(store)
    for path in ("implicit", "implicit/deep", "empty"):
        assert stat.S_ISDIR((await find(fs, path)).mode)
    assert names(await listed(fs, (await find(fs, "empty")).ino)) == []
    assert caplog.messages == []


async def test_directory_behind_more_names_than_a_lookup_asks_for_is_found() -> None:
    store = FakeStore()
    for number in range(50):
        store.put(f"a-{number:02}", b"x")
    store.put("a/b", b"x")
    fs = await mounted(store)
    assert stat.S_ISDIR((await find(fs, "a")).mode)
    assert store.calls == ["LIST a", "LIST a/"]


async def test_name_before_many_longer_ones_costs_one_request() -> None:
    store = FakeStore()
    for number in range(50):
        store.put(f"a{number:02}", b"x")
    store.put("a", b"x")
    fs = await mounted(store)
    assert stat.S_ISREG((await find(fs, "a")).mode)
    assert store.calls == ["LIST a"]


async def test_directory_wins_over_an_object_of_its_name(caplog: pytest.LogCaptureFixture) -> None:
    store = FakeStore(page_size=2)
    for key in ("a", "a-1", "a-2", "a.txt", "a/b", "a0", "b"):
        store.put(key, key.encode())
    fs = await mounted(store)
    assert stat.S_ISDIR((await find(fs, "a")).mode)
    for plus in (False, True):
        entries = await listed(fs, 1, plus)
        kinds = {entry.name: stat.S_ISDIR(entry.mode) for entry in entries if entry.name not in (b".", b"..")}
        assert kinds == {b"a": True, b"a-1": False, b"a-2": False, b"a.txt": False, b"a0": False, b"b": False}
        assert len(entries) == 8
    assert [line for line in caplog.messages if "'a'" in line] == ["the key 'a' is hidden: there is a directory of that name"]


async def test_keys_that_make_no_name_are_hidden_and_the_others_stay(caplog: pytest.LogCaptureFixture) -> None:
    store = FakeStore()
    long = "x" * 255
    for key in ("a//b", "a/./c", "a/../d", "a/n\0ul", f"a/{long}y", f"a/{long}", "/root", "a/good", "a/sur\udc80"):
        store.put(key, b"x")
    fs = await mounted(store)
    a = await find(fs, "a")
    assert sorted(names(await listed(fs, a.ino))) == sorted([b"good", long.encode()])
    assert names(await listed(fs, 1)) == [b"a"]
    assert sum("is hidden" in line for line in caplog.messages) == 7
    for name in (b".", b"..", b"\xff", b"n\0ul"):
        assert await done(fs.lookup(ME, a.ino, name)) is None
    with pytest.raises(OSError, match="255") as info:
        await done(fs.lookup(ME, a.ino, long.encode() + b"y"))
    assert raised(info) == errno.ENAMETOOLONG


async def test_key_longer_than_s3_allows_is_not_asked_for() -> None:
    store = FakeStore()
    fs = await mounted(store, "bucket")
    ino = 1
    store.put("/".join(["d" * 200] * 5) + "/f", b"x")
    for _ in range(5):
        ino = (await done(fs.lookup(ME, ino, b"d" * 200))).ino
    before = len(store.calls)
    assert fs.lookup(ME, ino, b"e" * 100) is None
    assert len(store.calls) == before


async def test_unknown_parent_is_estale() -> None:
    fs = await mounted(FakeStore())
    with pytest.raises(OSError, match="not known") as info:
        fs.lookup(ME, 4711, b"x")
    assert raised(info) == errno.ESTALE


# Listings.


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("reply", [1, 7, 10_000])
async def test_every_name_is_listed_once_whatever_the_size_of_replies_and_pages(plus: bool, reply: int) -> None:
    store = FakeStore(page_size=10)
    expected = {f"f{number:04}" for number in range(57)} | {"dir", "dir-x", "dir.y"}
    for name in expected - {"dir"}:
        store.put(f"top/{name}", b"x")
    store.put("top/dir/below", b"x")
    fs = await mounted(store)
    top = await find(fs, "top")
    entries = await listed(fs, top.ino, plus, reply)
    assert [entry.name for entry in entries[:2]] == [b".", b".."]
    assert sorted(names(entries)) == sorted(name.encode() for name in expected)
    assert [entry.offset for entry in entries] == list(range(1, len(entries) + 1))


async def test_first_entries_come_before_the_last_page_is_in() -> None:
    store = FakeStore(page_size=10)
    for number in range(30):
        store.put(f"f{number:02}", b"x")
    fs = await mounted(store)
    store.list_gate = asyncio.Event()
    walk = fs.opendir(ME, 1, 0)
    source = walk.entries(0, plus=True)
    first = [await anext(source) for _ in range(11)]
    assert names(first) == [b"f%02d" % number for number in range(9)]
    waiting = asyncio.ensure_future(anext(source))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    store.list_gate.set()
    assert (await waiting).name == b"f09"


async def test_interrupted_listing_goes_on_where_it_was() -> None:
    store = FakeStore(page_size=10)
    for number in range(30):
        store.put(f"f{number:02}", b"x")
    fs = await mounted(store)
    store.list_gate = asyncio.Event()
    walk = fs.opendir(ME, 1, 0)

    async def all_behind(offset: int) -> list[DirEntry]:
        return [entry async for entry in walk.entries(offset, plus=False)]

    task = asyncio.ensure_future(all_behind(0))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    store.list_gate.set()
    assert len(await all_behind(2)) == 30
    # Going back to an earlier cookie finds the same names behind it.
    assert names(await all_behind(12)) == [b"f%02d" % number for number in range(10, 30)]


async def test_two_readers_of_one_handle_fetch_each_page_once() -> None:
    store = FakeStore(page_size=10)
    for number in range(30):
        store.put(f"f{number:02}", b"x")
    fs = await mounted(store)
    walk = fs.opendir(ME, 1, 0)

    async def all_names() -> list[bytes]:
        return names([entry async for entry in walk.entries(0, plus=False)])

    one, other = await asyncio.gather(all_names(), all_names())
    assert one == other == [b"f%02d" % number for number in range(30)]
    assert store.count("LIST") == 3


async def test_listing_answers_lookups_and_misses_without_requests() -> None:
    store = FakeStore()
    store.put("d/file", b"123")
    store.put("d/sub/x", b"x")
    fs = await mounted(store)
    d = await find(fs, "d")
    await listed(fs, d.ino)
    store.calls.clear()
    assert fs.lookup(ME, d.ino, b"file").size == 3  # type: ignore[union-attr]
    assert stat.S_ISDIR(fs.lookup(ME, d.ino, b"sub").mode)  # type: ignore[union-attr]
    assert fs.lookup(ME, d.ino, b"nothing") is None
    assert store.calls == []


async def test_readdirplus_and_readdir_and_lookup_agree_on_inodes() -> None:
    store = FakeStore()
    store.put("f", b"x")
    store.put("d/x", b"x")
    fs = await mounted(store)
    plain = {entry.name: entry.ino for entry in await listed(fs, 1)}
    plus = {entry.name: entry.ino for entry in await listed(fs, 1, plus=True)}
    assert plain == plus
    assert plain[b"f"] == (await find(fs, "f")).ino
    d = await find(fs, "d")
    assert plain[b"d"] == d.ino
    assert [entry.ino for entry in await listed(fs, d.ino)][:2] == [d.ino, 1]


async def test_lookups_are_counted_and_forgotten_exactly() -> None:
    store = FakeStore()
    for number in range(5):
        store.put(f"f{number}", b"x")
    fs = await mounted(store)
    attr = await find(fs, "f0")
    await listed(fs, 1, plus=True, reply=2)
    node = fs.tree.nodes[attr.ino]
    assert node.nlookup == 2
    fs.forget(attr.ino, 1)
    assert fs.tree.nodes[attr.ino] is node
    fs.forget(attr.ino, 1)
    assert attr.ino not in fs.tree.nodes
    # What was offered beyond the end of a reply, or was never asked for, is not kept.
    for number in range(1, 5):
        fs.forget(fs.tree.ino_of(f"f{number}"), 1)
    assert list(fs.tree.nodes) == [1]
    assert list(fs.tree._by_key) == [""]


async def test_inode_numbers_are_the_same_in_another_mount() -> None:
    store = FakeStore()
    store.put("d/f", b"x")
    inos = {(await find(await mounted(store), "d/f")).ino for _ in range(2)}
    assert len(inos) == 1
    assert inos.pop() > 1


async def test_rewound_directory_shows_what_came_meanwhile() -> None:
    store = FakeStore()
    store.put("a", b"x")
    fs = await mounted(store, metadata_ttl=Duration(0.0))
    walk = fs.opendir(ME, 1, 0)
    assert names([entry async for entry in walk.entries(0, plus=False)]) == [b"a"]
    store.put("b", b"x")
    assert names([entry async for entry in walk.entries(0, plus=False)]) == [b"a", b"b"]


async def test_metadata_is_asked_again_after_its_time_to_live() -> None:
    store = FakeStore()
    store.put("f", b"1")
    fs = await mounted(store, metadata_ttl=Duration(0.0))
    attr = await find(fs, "f")
    store.put("f", b"22", second=1_800_000_000)
    again = await done(fs.getattr(ME, attr.ino, None))
    assert (again.ino, again.size, again.mtime_ns) == (attr.ino, 2, 1_800_000_000 * SECOND)
    del store.objects["f"]
    with pytest.raises(OSError, match="gone") as info:
        await done(fs.getattr(ME, attr.ino, None))
    assert raised(info) == errno.ENOENT


async def test_kernel_is_told_what_is_left_of_the_time_to_live() -> None:
    store = FakeStore()
    store.put("f", b"1")
    fs = await mounted(store, metadata_ttl=Duration(100.0))
    attr = await find(fs, "f")
    assert attr.entry_ttl is not None
    assert 99 < attr.entry_ttl <= 100
    assert attr.attr_ttl == attr.entry_ttl
    fs.tree.nodes[attr.ino].expires -= 60
    attr = await find(fs, "f")
    assert attr.entry_ttl is not None
    assert 39 < attr.entry_ttl <= 40


async def test_names_looked_up_one_after_the_other_are_asked_for_by_the_page() -> None:
    store = FakeStore(page_size=100)
    for number in range(1000):
        store.put(f"d/f{number:04}", b"x" * number)
    store.put("d/f0500-/x", b"x")
    fs = await mounted(store)
    d = await find(fs, "d")
    store.calls.clear()
    for number in range(1000):
        attr = await done(fs.lookup(ME, d.ino, b"f%04d" % number))
        assert attr.size == number
    assert store.count("LIST") < 30
    assert stat.S_ISDIR((await find(fs, "d/f0500-")).mode)
    assert await done(fs.lookup(ME, d.ino, b"f0500+")) is None


async def test_names_looked_up_in_no_order_are_asked_for_one_by_one() -> None:
    store = FakeStore(page_size=10)
    for number in range(3000):
        store.put(f"f{number:04}", b"x")
    fs = await mounted(store)
    order = random.Random(3).sample(range(3000), 300)
    for number in order:
        assert (await find(fs, f"f{number:04}")).size == 1
    assert store.count("LIST") < 320
    assert sum(">" in call for call in store.calls) < 10


async def test_many_lookups_at_once_share_a_page() -> None:
    store = FakeStore()
    for number in range(500):
        store.put(f"f{number:04}", b"x" * number)
    fs = await mounted(store)
    found = await asyncio.gather(*(done(fs.lookup(ME, 1, b"f%04d" % number)) for number in range(500)))
    assert [attr.size for attr in found] == list(range(500))
    assert store.count("LIST") < 20


async def test_page_of_neighbours_knows_an_object_from_a_directory_of_its_name() -> None:
    store = FakeStore(page_size=20)
    for number in range(40):
        store.put(f"n{number:02}", b"x")
    for number in range(30):
        store.put(f"n30-{number:02}", b"x")
    store.put("n30/x", b"x")
    fs = await mounted(store)
    for number in range(40):
        assert stat.S_ISDIR((await find(fs, f"n{number:02}")).mode) == (number == 30)


# Reading.


@pytest.mark.parametrize("size", [0, 1, 4095, MIB, MIB + 1, 5 * MIB + 77])
@pytest.mark.parametrize("readahead", [0, 8 * MIB])
async def test_sequential_reads_bring_the_object(size: int, readahead: int) -> None:
    store = FakeStore()
    data = random.Random(size).randbytes(size)
    store.put("f", data)
    fs = await mounted(store, readahead=Size(readahead))
    assert await content(fs, "f") == data


async def test_random_reads_bring_the_right_bytes_whatever_the_order() -> None:
    store = FakeStore()
    rng = random.Random(1)
    data = rng.randbytes(9 * MIB)
    store.put("f", data)
    fs = await mounted(store)
    attr = await find(fs, "f")
    handle = (await opened(fs, attr.ino)).handle
    spans = [(rng.randrange(10 * MIB), rng.choice((1, 4096, 131072, MIB))) for _ in range(100)]
    # Runs that go on where another ended, many at once, mixed with jumps.
    spans += [(start + n * 131072, 131072) for start in (0, 3 * MIB, 700_001) for n in range(20)]
    parts = await asyncio.gather(*(read(fs, attr.ino, handle, offset, size) for offset, size in spans))
    for (offset, size), part in zip(spans, parts, strict=True):
        assert part == data[offset : offset + size]
    assert store.most_under_way > 10


async def test_small_file_costs_one_request_when_its_size_is_known() -> None:
    store = FakeStore()
    store.put("f", b"small")
    fs = await mounted(store)
    attr = await find(fs, "f")
    store.calls.clear()
    handle = (await opened(fs, attr.ino)).handle
    assert await read(fs, attr.ino, handle, 0, 131072) == b"small"
    assert store.calls == ["GET f 0+5"]


async def test_jump_fetches_just_what_was_asked_for() -> None:
    store = FakeStore()
    store.put("f", bytes(50 * MIB))
    fs = await mounted(store)
    attr = await find(fs, "f")
    handle = (await opened(fs, attr.ino)).handle
    store.calls.clear()
    await read(fs, attr.ino, handle, 30 * MIB, 4096)
    await read(fs, attr.ino, handle, 10 * MIB, 4096)
    assert store.calls == [f"GET f {30 * MIB}+4096", f"GET f {10 * MIB}+4096"]


async def test_window_grows_while_the_reader_waits_and_stays_within_its_limit() -> None:
    store = FakeStore()
    store.put("f", bytes(64 * MIB))
    fs = await mounted(store, readahead=Size(8 * MIB))
    attr = await find(fs, "f")
    handle = (await opened(fs, attr.ino)).handle
    for offset in range(0, 40 * MIB, 131072):
        await read(fs, attr.ino, handle, offset, 131072)
        held = sum(len(fetch.buffer) for fetch in handle._stream)
        assert held <= 8 * MIB + 4 * MIB + 2 * MIB
    assert handle.window == 8 * MIB
    assert store.count("GET") < 40


async def test_reader_who_never_waits_keeps_the_small_window() -> None:
    store = FakeStore()
    store.put("f", bytes(16 * MIB))
    fs = await mounted(store)
    attr = await find(fs, "f")
    handle = (await opened(fs, attr.ino)).handle
    await read(fs, attr.ino, handle, 0, 65536)
    window = handle.window
    for offset in range(65536, 8 * MIB, 65536):
        for _ in range(20):
            await asyncio.sleep(0)
        await read(fs, attr.ino, handle, offset, 65536)
    assert handle.window == window


async def test_many_files_are_read_at_once() -> None:
    store = FakeStore()
    for number in range(40):
        store.put(f"f{number}", bytes([number]) * 1000)
    fs = await mounted(store)
    store.gate = asyncio.Event()
    readers = [asyncio.ensure_future(content(fs, f"f{number}")) for number in range(40)]
    for _ in range(1000):
        if store.under_way == 40:
            break
        await asyncio.sleep(0.001)
    assert store.under_way == 40
    store.gate.set()
    assert await asyncio.gather(*readers) == [bytes([number]) * 1000 for number in range(40)]


# One version, or ESTALE.


async def test_object_replaced_while_open_is_estale_and_never_a_mixture() -> None:
    store = FakeStore()
    store.put("f", b"1" * (8 * MIB))
    fs = await mounted(store)
    attr = await find(fs, "f")
    handle = (await opened(fs, attr.ino)).handle
    assert await read(fs, attr.ino, handle, 0, 4096) == b"1" * 4096
    store.put("f", b"2" * (8 * MIB))
    with pytest.raises(OSError, match="Precondition") as info:
        await read(fs, attr.ino, handle, 7 * MIB, 4096)
    assert raised(info) == errno.ESTALE
    # The name is looked up again and is another inode: the kernel's pages of the old one are not the new one's.
    new = await find(fs, "f")
    assert new.ino != attr.ino
    assert (await content(fs, "f"))[:4096] == b"2" * 4096
    # The old descriptor still has its own size, and the old inode goes away with it.
    assert (await done(fs.getattr(ME, attr.ino, handle))).size == 8 * MIB
    fs.release(ME, attr.ino, handle)
    fs.forget(attr.ino, 1)
    assert attr.ino not in fs.tree.nodes


async def test_new_version_seen_by_a_lookup_leaves_the_open_file_what_it_was() -> None:
    store = FakeStore()
    store.put("f", b"1" * 100)
    fs = await mounted(store, metadata_ttl=Duration(0.0))
    old = await find(fs, "f")
    handle = (await opened(fs, old.ino)).handle
    store.put("f", b"2" * 200)
    new = await find(fs, "f")
    assert (new.ino != old.ino, new.size, old.size) == (True, 200, 100)
    assert (await done(fs.getattr(ME, old.ino, handle))).size == 100
    assert await read(fs, old.ino, handle, 0, 1000) == b"1" * 100
    with pytest.raises(OSError, match="replaced") as info:
        fs.open(ME, old.ino, 0)
    assert raised(info) == errno.ESTALE
    fs.release(ME, old.ino, handle)
    assert (await find(fs, "f")).ino == new.ino


async def test_object_replaced_before_open_is_estale_once_and_then_the_new_one() -> None:
    store = FakeStore()
    store.put("f", b"old")
    store.put("big", bytes(2 * MIB))
    fs = await mounted(store)
    for key in ("f", "big"):
        attr = await find(fs, key)
        store.put(key, b"newer")
        with pytest.raises(OSError, match=r".") as info:
            await opened(fs, attr.ino)
        assert raised(info) == errno.ESTALE
        # The kernel answers ESTALE by looking up and opening again. Nobody had it open: it is the same inode.
        assert (await find(fs, key)).ino == attr.ino
        assert await content(fs, key) == b"newer"


async def test_object_deleted_while_open_is_estale_and_the_name_is_gone() -> None:
    store = FakeStore()
    store.put("f", bytes(2 * MIB))
    fs = await mounted(store)
    attr = await find(fs, "f")
    handle = (await opened(fs, attr.ino)).handle
    del store.objects["f"]
    with pytest.raises(OSError, match=r".") as info:
        await read(fs, attr.ino, handle, 0, 10)
    assert raised(info) == errno.ESTALE
    assert await done(fs.lookup(ME, 1, b"f")) is None


async def test_kernel_keeps_its_pages_while_the_etag_stands() -> None:
    store = FakeStore()
    store.put("f", b"same")
    fs = await mounted(store)
    attr = await find(fs, "f")
    assert (await opened(fs, attr.ino)).flags == 0
    store.calls.clear()
    again = fs.open(ME, attr.ino, 0)
    assert isinstance(again, Opened)
    assert again.flags == FOPEN_KEEP_CACHE
    assert store.calls == []


async def test_new_version_of_the_same_size_and_time_does_not_keep_the_pages() -> None:
    store = FakeStore()
    store.put("f", b"aaaa")
    fs = await mounted(store, metadata_ttl=Duration(0.0))
    attr = await find(fs, "f")
    fs.release(ME, attr.ino, (await opened(fs, attr.ino)).handle)
    store.put("f", b"bbbb")
    attr = await find(fs, "f")
    fresh = await opened(fs, attr.ino)
    assert fresh.flags == 0
    assert await read(fs, attr.ino, fresh.handle, 0, 10) == b"bbbb"


async def test_file_that_became_a_directory_is_one() -> None:
    store = FakeStore()
    store.put("f", b"x")
    fs = await mounted(store, metadata_ttl=Duration(0.0))
    attr = await find(fs, "f")
    del store.objects["f"]
    store.put("f/g", b"x")
    with pytest.raises(OSError, match=r".") as info:
        await done(fs.getattr(ME, attr.ino, None))
    assert raised(info) == errno.ESTALE
    assert stat.S_ISDIR((await find(fs, "f")).mode)


# Failures and interrupts.


async def test_interrupted_reader_ends_its_request() -> None:
    store = FakeStore()
    store.put("f", bytes(4 * MIB))
    fs = await mounted(store)
    attr = await find(fs, "f")
    handle = (await opened(fs, attr.ino)).handle
    store.gate = asyncio.Event()
    for offset in (0, 3 * MIB):
        task = asyncio.ensure_future(read(fs, attr.ino, handle, offset, 4096))
        await asyncio.sleep(0.01)
        assert store.under_way > 0
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        assert store.under_way == 0
    store.gate.set()
    assert await read(fs, attr.ino, handle, 0, 4096) == bytes(4096)


async def test_interrupted_reader_leaves_the_others_their_bytes() -> None:
    store = FakeStore()
    store.put("f", b"x" * (4 * MIB))
    fs = await mounted(store)
    attr = await find(fs, "f")
    handle = (await opened(fs, attr.ino)).handle
    store.gate = asyncio.Event()
    one = asyncio.ensure_future(read(fs, attr.ino, handle, 0, 4096))
    other = asyncio.ensure_future(read(fs, attr.ino, handle, 4096, 4096))
    await asyncio.sleep(0.01)
    one.cancel()
    with pytest.raises(asyncio.CancelledError):
        await one
    store.gate.set()
    assert await other == b"x" * 4096


async def test_failed_fetch_is_its_readers_errno_and_the_next_read_tries_again() -> None:
    store = FakeStore()
    store.put("f", b"y" * (4 * MIB))
    fs = await mounted(store)
    attr = await find(fs, "f")
    handle = (await opened(fs, attr.ino)).handle
    store.fail = [StoreError(errno.EBUSY, "SlowDown")] * 2
    with pytest.raises(OSError, match="SlowDown") as info:
        await read(fs, attr.ino, handle, 0, 4096)
    assert raised(info) == errno.EBUSY
    store.fail = []
    assert await read(fs, attr.ino, handle, 0, 4096) == b"y" * 4096


async def test_refused_file_fails_to_open_with_its_errno() -> None:
    store = FakeStore()
    store.put("f", b"frozen")
    fs = await mounted(store)
    attr = await find(fs, "f")
    store.fail = [StoreError(errno.ENODATA, "InvalidObjectState")]
    with pytest.raises(OSError, match="InvalidObjectState") as info:
        await opened(fs, attr.ino)
    assert raised(info) == errno.ENODATA
    assert await content(fs, "f") == b"frozen"


async def test_failing_lookup_and_listing_are_errnos_and_not_empty_answers() -> None:
    store = FakeStore()
    store.put("f", b"x")
    fs = await mounted(store)
    store.fail = [StoreError(errno.EACCES, "AccessDenied")]
    with pytest.raises(OSError, match="AccessDenied"):
        await done(fs.lookup(ME, 1, b"f"))
    store.fail = [StoreError(errno.EACCES, "AccessDenied")]
    with pytest.raises(OSError, match="AccessDenied"):
        await listed(fs, 1)
    assert names(await listed(fs, 1)) == [b"f"]


async def test_release_ends_what_was_fetched_ahead() -> None:
    store = FakeStore()
    store.put("f", bytes(8 * MIB))
    fs = await mounted(store)
    attr = await find(fs, "f")
    handle = (await opened(fs, attr.ino)).handle
    await read(fs, attr.ino, handle, 0, MIB)
    store.gate = asyncio.Event()
    task = asyncio.ensure_future(read(fs, attr.ino, handle, MIB, MIB))
    await asyncio.sleep(0.01)
    task.cancel()
    fs.release(ME, attr.ino, handle)
    await asyncio.gather(task, return_exceptions=True)
    for _ in range(10):  # turns of the loop: a cancelled task ends in one, or in a few where tasks begin eagerly
        await asyncio.sleep(0)
    assert (store.under_way, len(fs._tasks)) == (0, 0)


async def test_destroy_ends_everything_and_closes_the_store() -> None:
    store = FakeStore()
    store.put("f", bytes(8 * MIB))
    fs = await mounted(store)
    attr = await find(fs, "f")
    handle = (await opened(fs, attr.ino)).handle
    store.gate = asyncio.Event()
    task = asyncio.ensure_future(read(fs, attr.ino, handle, 0, MIB))
    await asyncio.sleep(0.01)
    await fs.destroy()
    with pytest.raises(OSError, match="closed"):
        await task
    assert (store.under_way, store.closed) == (0, True)


async def test_opening_for_writing_is_erofs() -> None:
    store = FakeStore()
    store.put("f", b"x")
    fs = await mounted(store)
    with pytest.raises(OSError, match="read-only") as info:
        fs.open(ME, (await find(fs, "f")).ino, 1)
    assert raised(info) == errno.EROFS


async def test_df_shows_room() -> None:
    fs = await mounted(FakeStore())
    totals = fs.statfs(ME, 1)
    assert totals.blocks * totals.frsize == 1 << 50
    assert (totals.bavail, totals.namelen) == (totals.blocks, 255)


# The table of errors.


@pytest.mark.parametrize(
    ("code", "status", "number"),
    [
        ("NoSuchKey", 404, errno.ENOENT),
        ("404", 404, errno.ENOENT),
        ("AccessDenied", 403, errno.EACCES),
        ("InvalidObjectState", 403, errno.ENODATA),
        ("PreconditionFailed", 412, errno.ESTALE),
        ("SlowDown", 503, errno.EBUSY),
        ("SomethingNew", 503, errno.EBUSY),
        ("SomethingNew", 418, errno.EIO),
        ("", 0, errno.EIO),
    ],
)
def test_code_decides_and_else_the_status(code: str, status: int, number: int) -> None:
    assert row_of(code, status).errno == number


def test_every_row_has_an_errno_that_programs_survive() -> None:
    for row in (*BY_CODE.values(), *BY_STATUS.values()):
        assert row.errno in errno.errorcode
        assert row.errno not in (errno.ENOSYS, errno.EAGAIN, errno.EINTR)


# Through the core, to the bytes the kernel sees.


async def test_walk_over_the_wire_counts_every_lookup_and_forgets_all() -> None:
    store = FakeStore(page_size=100)
    for number in range(450):
        store.put(f"a rather long name of a file, number {number:04}", b"x" * number)
    fs = S3FS("bucket", store=store)
    await fs.init()
    async with FakeKernel(fs) as kernel:
        opened_dir = await kernel.request(abi.OPENDIR, 1, flags=0)
        found: list[dict[str, Any]] = []
        offset = 0
        while True:
            reply = await kernel.request(abi.READDIRPLUS, 1, fh=opened_dir.fields["fh"], offset=offset, size=4096)
            if not reply.data:
                break
            found += codec.decode_dirents(reply.data, plus=True)
            offset = found[-1]["dirent_off"]
        await kernel.request(abi.RELEASEDIR, 1, fh=opened_dir.fields["fh"])
        files = [entry for entry in found if entry["name"] not in (b".", b"..")]
        assert [entry["entry_out_attr_size"] for entry in files] == list(range(450))
        assert len({entry["entry_out_nodeid"] for entry in files}) == 450
        assert sum(kernel.lookups.values()) == sum(node.nlookup for node in fs.tree.nodes.values()) - 1 == 450
        kernel.forget_all()
        await kernel.settle()
        await kernel.request(abi.STATFS, 1)
        assert list(fs.tree.nodes) == [1]
        kernel.check()


async def test_read_over_the_wire_can_be_interrupted_while_others_are_answered() -> None:
    store = FakeStore()
    store.put("big", b"b" * (4 * MIB))
    store.put("small", b"s")
    fs = S3FS("bucket", store=store)
    await fs.init()
    async with FakeKernel(fs) as kernel:
        big = (await kernel.request(abi.LOOKUP, 1, names=[b"big"])).fields["nodeid"]
        fh = (await kernel.request(abi.OPEN, big, flags=0)).fields["fh"]
        store.gate = asyncio.Event()
        waiting = kernel.send(abi.READ, big, fh=fh, offset=MIB, size=4096)
        assert (await kernel.request(abi.LOOKUP, 1, names=[b"small"])).fields["attr_size"] == 1
        assert store.under_way == 1
        kernel.interrupt(waiting)
        with pytest.raises(OSError, match=r".") as info:
            await waiting
        assert raised(info) == errno.EINTR
        assert store.under_way == 0
        store.gate.set()
        reply = await kernel.request(abi.READ, big, fh=fh, offset=4 * MIB - 10, size=4096)
        assert reply.data == b"b" * 10
        await kernel.request(abi.RELEASE, big, fh=fh)
        kernel.forget_all()
        await kernel.settle()
        kernel.check()

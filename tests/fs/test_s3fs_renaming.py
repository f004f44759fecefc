"""Renames as a program sees them, on a store in memory: what moves, what it costs, and who wins when two are at it."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest
from fakestore import FakeStore, Fault, denied
from s3user import refusal, using

NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
NEW = os.O_WRONLY | os.O_CREAT


def contents(store: FakeStore) -> dict[str, bytes]:
    return {key: store.data(key) for key in store.objects.in_order()}


async def test_file_is_copied_and_deleted_with_all_that_describes_it(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("a", b"data", metadata={"theirs": "kept"}, headers={"content-type": "x/y", "cache-control": "no-store"})
    store.seed("d/", b"")
    async with using(store, tmp_path) as user:
        ino = await user.ino("a")
        await user.names("d")
        user.calls.clear()
        await user.rename("a", "d/b")
        assert user.calls == ["COPY a d/b", "DELETE a"]
        assert contents(store) == {"d/": b"", "d/b": b"data"}
        assert store.objects["d/b"].metadata["theirs"] == "kept"
        assert dict(store.objects["d/b"].headers) == {"content-type": "x/y", "cache-control": "no-store"}
        with refusal(errno.ENOENT):
            await user.stat("a")
        assert await user.ino("d/b") == ino
        assert await user.read("d/b") == b"data"


async def test_file_takes_the_place_of_another(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("a", b"new")
    store.seed("b", b"old")
    async with using(store, tmp_path) as user:
        reader = await user.open("b")
        with refusal(errno.EEXIST):
            await user.rename("a", "b", NOREPLACE)
        await user.rename("a", "b")
        assert contents(store) == {"b": b"new"}
        assert await user.read("b") == b"new"
        assert await user.pread(reader, 10, 0) == b"old"


async def test_writer_of_a_file_that_was_replaced_does_not_undo_that(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("a", b"new")
    store.seed("b", b"old")
    async with using(store, tmp_path) as user:
        existing = await user.open("b", os.O_RDWR)
        await user.pwrite(existing, b"LOST", 0)
        await user.rename("a", "b")
        assert await user.pread(existing, 10, 0) == b"LOST"
        await user.close(existing)
        assert contents(store) == {"b": b"new"}
        fresh = await user.open("c", NEW)
        await user.pwrite(fresh, b"LOST", 0)
        await user.rename("b", "c")
        await user.close(fresh)
        assert contents(store) == {"c": b"new"}
        assert await user.read("c") == b"new"


@pytest.mark.parametrize("work", ["rename", "unlink"])
@pytest.mark.parametrize("write_back", [False, True])
async def test_what_an_unpublished_file_replaced_does_not_come_back(work: str, write_back: bool, tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"old")
    async with using(store, tmp_path, write_back=write_back, write_back_delay=60.0) as user:
        fd = await user.open("new", NEW)
        await user.pwrite(fd, b"new", 0)
        if write_back:
            await user.fsync(fd)
        await user.rename("new", "f")
        if work == "rename":
            await user.rename("f", "elsewhere")
        else:
            await user.unlink("f")
        await user.close(fd)
        await user.fs.drain(asyncio.get_running_loop().time() + 20)
        assert contents(store) == ({"elsewhere": b"new"} if work == "rename" else {})
        assert await user.names() == (["elsewhere"] if work == "rename" else [])


async def test_editors_way_of_saving_leaves_one_file(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"old")
    async with using(store, tmp_path) as user:
        await user.write("f.tmp", b"new")
        await user.rename("f", "f~")
        await user.rename("f.tmp", "f")
        await user.unlink("f~")
        assert contents(store) == {"f": b"new"}
        assert await user.names() == ["f"]


@pytest.mark.parametrize("flags", [EXCHANGE, WHITEOUT])
async def test_exchange_and_whiteout_are_einval(flags: int, tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("a", b"1")
    store.seed("b", b"2")
    async with using(store, tmp_path) as user:
        with refusal(errno.EINVAL):
            await user.rename("a", "b", flags)
        assert contents(store) == {"a": b"1", "b": b"2"}


async def test_kinds_do_not_replace_each_other(tmp_path: Path) -> None:
    store = FakeStore()
    for key in ("d/x", "e/y", "f"):
        store.seed(key, b"x")
    async with using(store, tmp_path) as user:
        for old, new, number in (
            ("f", "d", errno.EISDIR),
            ("d", "f", errno.ENOTDIR),
            ("d", "e", errno.ENOTEMPTY),
            ("d", "d/below", errno.EINVAL),
        ):
            with refusal(number):
                await user.rename(old, new)
        assert sorted(store.objects) == ["d/x", "e/y", "f"]


@pytest.mark.parametrize("which", ["source", "target", "new target"])
async def test_others_change_is_ebusy_and_nothing_is_lost(which: str, tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("a", b"mine")
    if which == "target":
        store.seed("b", b"old")
    async with using(store, tmp_path) as user:
        await user.ls_l()
        store.put_plain("a" if which == "source" else "b", b"theirs")
        with refusal(errno.EBUSY):
            await user.rename("a", "b")
        assert contents(store) == ({"a": b"theirs"} if which == "source" else {"a": b"mine", "b": b"theirs"})


async def test_failed_copy_leaves_everything_as_it_was(tmp_path: Path) -> None:
    store = FakeStore()
    for key in ("a", "d/1", "d/2"):
        store.seed(key, key.encode())
    async with using(store, tmp_path) as user:
        for old, new in (("a", "b"), ("d", "e")):
            store.fail = [Fault("COPY", denied(), times=9)]
            with refusal(errno.EACCES):
                await user.rename(old, new)
            store.fail = []
        assert contents(store) == {"a": b"a", "d/1": b"d/1", "d/2": b"d/2"}
        assert await user.names() == ["a", "d"]
        assert await user.read("d/2") == b"d/2"


async def test_directory_moves_with_all_that_is_below_it(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("d/", b"")
    for number in range(50):
        store.seed(f"d/deep/f{number:02}", b"%d" % number)
    async with using(store, tmp_path) as user:
        assert await user.read("d/deep/f07") == b"7"
        user.calls.clear()
        await user.rename("d", "e")
        assert store.busiest["COPY"] > 10
        assert (store.count("COPY"), store.count("GET"), store.count("PUT")) == (51, 0, 0)
        assert store.objects.in_order() == ["e/", *(f"e/deep/f{number:02}" for number in range(50))]
        assert await user.names() == ["e"]
        assert len(await user.names("e/deep")) == 50
        assert await user.read("e/deep/f07") == b"7"
        with refusal(errno.ENOENT):
            await user.stat("d")


async def test_directory_moves_with_what_no_listing_shows_yet(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("d/old", b"x")
    async with using(store, tmp_path) as user:
        await user.names("d")
        store.lie()
        await user.write("d/new", b"y")
        await user.mkdir("d/sub")
        await user.rename("d", "e")
        assert sorted(store.objects) == ["e/new", "e/old", "e/sub/"]
        store.honest()
        assert await user.names("e") == ["new", "old", "sub"]
        assert await user.read("e/new") == b"y"


async def test_directory_that_takes_the_place_of_an_empty_one_is_seen_with_all_it_holds(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("d/f", b"1")
    async with using(store, tmp_path) as user:
        await user.mkdir("e")
        await user.rename("d", "e")
        assert await user.read("e/f") == b"1"
        assert (await user.names(), await user.names("e")) == (["e"], ["f"])


async def test_directory_moved_into_one_made_anew_is_seen_with_all_it_holds(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("d/f", b"1")
    async with using(store, tmp_path) as user:
        await user.mkdir("p")
        await user.rmdir("p")
        await user.mkdir("p")
        await user.rename("d", "p/d")
        assert await user.names("p/d") == ["f"]
        assert await user.read("p/d/f") == b"1"
        # And what is removed with all of it stays away.
        await user.rename("p", "q")
        store.lie()
        with refusal(errno.ENOENT):
            await user.stat("p")


async def test_open_files_move_with_their_directory(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("d/old", b"0123456789")
    async with using(store, tmp_path) as user:
        new = await user.open("d/new", NEW)
        await user.pwrite(new, b"new", 0)
        changed = await user.open("d/old", os.O_RDWR)
        await user.pwrite(changed, b"AB", 0)
        reader = await user.open("d/old")
        await user.rename("d", "e")
        await user.pwrite(new, b"er", 3)
        await user.pwrite(changed, b"Z", 9)
        assert await user.pread(reader, 10, 0) == b"AB2345678Z"
        await user.close(new)
        await user.close(changed)
        assert contents(store) == {"e/new": b"newer", "e/old": b"AB2345678Z"}
        assert await user.names("e") == ["new", "old"]


async def test_last_file_moved_out_leaves_its_directory(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("d/f", b"1")
    async with using(store, tmp_path) as user:
        await user.rename("d/f", "f")
        assert (await user.names(), await user.names("d")) == (["d", "f"], [])


async def test_directory_without_keys_moves_too(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("d/f", b"1")
    async with using(store, tmp_path) as user:
        await user.unlink("d/f")
        await user.rename("d", "e")
        assert await user.names() == ["e"]
        await user.write("e/g", b"2")
        assert store.data("e/g") == b"2"


async def test_link_moves_as_it_is(tmp_path: Path) -> None:
    async with using(FakeStore(), tmp_path) as user:
        await user.symlink("target", "link")
        await user.rename("link", "moved")
        assert await user.readlink("moved") == "target"

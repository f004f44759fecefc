"""The life of an s3fs mount on a store in memory: what is mounted, what is said of it, what a dead server left, two mounts."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from fakestore import FakeStore, Fault, denied
from s3user import User, eventually, refusal, using

from pyfusekit.core import MountError, abi
from pyfusekit.fs.s3fs import S3FS, S3Options
from pyfusekit.fs.s3fs.options import parse_source
from pyfusekit.fs.s3fs.remote import probe as probe_module
from pyfusekit.fs.s3fs.remote.errors import BY_CODE, BY_STATUS, StoreError, row_of
from pyfusekit.fs.s3fs.remote.store import Attributes, Features, Object
from pyfusekit.testing.kernel import FakeKernel

NEW = os.O_WRONLY | os.O_CREAT


def now() -> float:
    return asyncio.get_running_loop().time()


def places(home: Path) -> dict[str, Any]:
    return {"cache_dir": str(home / "cache"), "staging_dir": str(home / "staging")}


# What is mounted.


@pytest.mark.parametrize(
    ("text", "bucket", "prefix", "name"),
    [
        ("photos", "photos", "", "s3://photos"),
        ("photos/2026", "photos", "2026/", "s3://photos/2026"),
        ("s3://photos", "photos", "", "s3://photos"),
        ("s3://photos/a/b/", "photos", "a/b/", "s3://photos/a/b"),
        (None, "", "", "s3://"),
        ("", "", "", "s3://"),
        ("s3://", "", "", "s3://"),
    ],
)
def test_source_names_a_bucket_and_a_prefix_or_all_buckets(text: str | None, bucket: str, prefix: str, name: str) -> None:
    source = parse_source(text)
    assert source == (bucket, prefix)
    assert str(source) == name


@pytest.mark.parametrize("text", ["/x", "http://host/bucket", "s3:///x"])
def test_source_without_bucket_is_refused(text: str) -> None:
    with pytest.raises(MountError) as info:
        S3FS(text)
    assert info.value.kind == "source-missing"
    assert "BUCKET" in info.value.remedy


async def test_prefix_without_keys_is_not_mounted(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("photos/a.jpg", b"x")
    with pytest.raises(MountError, match="begins with 'fotos/'") as info:
        await S3FS("bucket/fotos", S3Options(**places(tmp_path)), store=store).init()
    assert info.value.kind == "source-missing"
    assert store.closed
    assert not (tmp_path / "staging").exists()


async def test_empty_bucket_is_mounted_and_empty(tmp_path: Path) -> None:
    async with using(FakeStore(), tmp_path) as user:
        assert await user.names() == []
        assert stat.S_ISDIR((await user.stat("")).mode)


async def test_df_shows_room(tmp_path: Path) -> None:
    async with using(FakeStore(), tmp_path) as user:
        totals = (await user.ask(abi.STATFS, 1)).fields
        assert totals["st_blocks"] * totals["st_frsize"] == 1 << 50
        assert (totals["st_bavail"], totals["st_namelen"]) == (totals["st_blocks"], 255)


async def test_unmounting_ends_every_request_and_closes_the_store(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", bytes(8 << 20))
    async with using(store, tmp_path) as user:
        fd = await user.open("f")
        store.gate = asyncio.Event()
        waiting = user.ask(abi.READ, fd.ino, fh=fd.fh, offset=0, size=4096)
        await eventually(lambda: store.under_way)
        await user.fs.destroy()
        with pytest.raises(OSError, match=r"."):
            await waiting
        assert (store.under_way, store.closed, user.fs.tasks) == (0, True, set())


# What the server honours.


@pytest.mark.parametrize(("read_only", "probe", "asked"), [(True, True, False), (False, False, False), (False, True, True)])
async def test_what_the_server_passes_over_is_asked_and_said_at_mount_unless_nothing_may_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, read_only: bool, probe: bool, asked: bool
) -> None:
    said = "this server ignores If-Match on PutObject"

    async def features(*_: object) -> list[str]:
        return [said]

    monkeypatch.setattr(probe_module, "features", features)
    fs = S3FS("bucket", S3Options(probe=probe, **places(tmp_path)), store=FakeStore())
    fs.read_only = read_only
    await fs.init()
    assert fs.notes == fs.details()["notes"] == ([said] if asked else [])
    await fs.destroy()


async def test_conflicts_are_found_where_the_server_passes_over_conditions(tmp_path: Path) -> None:
    store = FakeStore(does=Features(put_if_match=False, put_if_absent=False))
    store.features = store.does
    store.seed("f", b"base")
    async with using(store, tmp_path) as user:
        fd = await user.open("f", os.O_RDWR)
        await user.pwrite(fd, b"mine", 0)
        store.put_plain("f", b"theirs")
        with refusal(errno.ESTALE):
            await user.close(fd)
        assert store.data("f") == b"theirs"


# What the operator asks.


async def test_waiting_counts_what_is_acknowledged_and_drain_sends_it(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path, write_back=True, write_back_delay=60.0) as user:
        assert user.fs.waiting() == (0, 0)
        for number in range(5):
            await user.write(f"f{number}", bytes(100))
        assert user.fs.waiting() == (5, 500)
        await user.fs.drain(now() + 20)
        assert user.fs.waiting() == (0, 0)
        assert len(store.objects) == 5


async def test_drain_ends_at_its_deadline_and_what_is_left_waits(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path, write_back=True, write_back_delay=60.0) as user:
        await user.write("f", b"data")
        store.fail = [Fault("PUT", StoreError(errno.EHOSTDOWN, "down"), times=10_000)]
        await user.fs.drain(now() + 0.2)
        assert user.fs.waiting() == (1, 4)
        assert [(problem.errno, problem.path) for problem in user.fs.problems] == [(errno.EHOSTDOWN, "f")]
        store.fail = []
        await user.fs.drain(now() + 20)
        assert user.fs.waiting() == (0, 0)
        # It succeeded since: there is no problem any more.
        assert list(user.fs.problems) == []


async def test_refresh_has_everything_below_asked_for_again(tmp_path: Path) -> None:
    store = FakeStore()
    for key in ("d/f", "d/deep/g", "e/h"):
        store.seed(key, b"old")
    async with using(store, tmp_path, metadata_ttl=3600.0) as user:
        for key in ("d/f", "d/deep/g", "e/h"):
            assert await user.read(key) == b"old"
        await user.names("d")
        for key in ("d/f", "d/deep/g", "e/h"):
            store.put_plain(key, b"newer")
        store.seed("d/another", b"x")
        assert (await user.stat("d/f")).size == 3
        inos = {await user.ino(path) for path in ("d", "d/f", "d/deep", "d/deep/g")}
        assert await user.fs.refresh(b"d") >= 4
        await eventually(lambda: inos <= {note.fields.get("ino") for note in user.kernel.notifications})
        # Names that are not there are looked up again too.
        assert abi.NOTIFY_INC_EPOCH in {note.code for note in user.kernel.notifications}
        assert (await user.read("d/f"), await user.read("d/deep/g")) == (b"newer", b"newer")
        assert await user.names("d") == ["another", "deep", "f"]
        assert (await user.stat("e/h")).size == 3
        # What is not known is asked for anyway.
        assert await user.fs.refresh(b"e/nothing/there") >= 1
        assert await user.read("e/h") == b"newer"
        store.put_plain("e/h", b"newest")
        await user.fs.refresh(b"")
        assert await user.read("e/h") == b"newest"


async def test_refresh_keeps_what_waits_to_be_published(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path, metadata_ttl=3600.0) as user:
        fd = await user.open("f", NEW)
        await user.pwrite(fd, b"mine", 0)
        await user.set(fd, mode=0o600)
        await user.fs.refresh(b"")
        assert (await user.stat("f"))[1] & 0o7777 == 0o600
        assert await user.read("f") == b"mine"
        await user.close(fd)
        assert store.data("f") == b"mine"


async def test_details_count_what_is_known(tmp_path: Path) -> None:
    store = FakeStore()
    for number in range(5):
        store.seed(f"f{number}", b"x")
    async with using(store, tmp_path) as user:
        await user.names()
        details = user.fs.details()
        assert details["listed"] == 5
        assert details["nodes"] >= 1


async def test_failures_are_problems_until_they_are_mended(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path) as user:
        fd = await user.open("f", NEW)
        await user.pwrite(fd, b"mine", 0)
        store.fail = [Fault("PUT", denied(), times=9)]
        with refusal(errno.EACCES):
            await user.close(fd)
        store.fail = []
        assert [(problem.operation, problem.path, problem.errno_name) for problem in user.fs.problems] == [
            ("close", "f", "EACCES")
        ]
        await user.write("f", b"mine")
        assert list(user.fs.problems) == []


# What a dead server left.


async def test_what_a_server_that_died_acknowledged_is_there_at_once_and_sent(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("d/old", b"old")
    dead = S3FS("bucket", S3Options(write_back=True, write_back_delay=60.0, probe=False, **places(tmp_path)), store=store)
    async with FakeKernel(dead) as kernel:
        user = User(dead, kernel, store)
        await user.write("d/new", b"mine")
        await user.append("d/old", b" and new")
        # It dies: nobody drains. The lock of its journal goes with it.
        kernel.forget_all()
    async with using(store, tmp_path) as user:
        assert await user.names("d") == ["new", "old"]
        assert (await user.read("d/new"), await user.read("d/old")) == (b"mine", b"old and new")
        await eventually(lambda: user.fs.waiting() == (0, 0))
        assert (store.data("d/new"), store.data("d/old")) == (b"mine", b"old and new")


async def test_unfinished_uploads_of_a_dead_server_are_aborted_and_others_are_not(tmp_path: Path) -> None:
    store = FakeStore()
    await store.create_upload("somebody-elses", Attributes())
    fs = S3FS("bucket", S3Options(probe=False, part_size=5 << 20, **places(tmp_path)), store=store)
    async with FakeKernel(fs) as kernel:
        user = User(fs, kernel, store)
        fd = await user.open("f", NEW)
        await user.pwrite(fd, bytes(11 << 20), 0)
        await eventually(lambda: store.count("PART"))

        async def no(*arguments: object) -> None:
            raise StoreError(errno.EHOSTDOWN, "down")

        abort, store.abort = store.abort, no  # type: ignore[method-assign, assignment]
        kernel.forget_all()
    store.abort = abort  # type: ignore[method-assign]
    assert {upload.key for upload in store.uploading.values()} == {"somebody-elses", "f"}
    async with using(store, tmp_path) as user:
        await eventually(lambda: {upload.key for upload in store.uploading.values()} == {"somebody-elses"})


# Two mounts.


async def test_two_mounts_of_one_bucket_see_each_other_and_never_undo_each_other(tmp_path: Path) -> None:
    store = FakeStore()
    async with (
        using(store, tmp_path / "one", metadata_ttl=0.0) as one,
        using(store, tmp_path / "other", metadata_ttl=0.0) as other,
    ):
        await one.write("f", b"one")
        assert await other.read("f") == b"one"
        await other.append("f", b" other")
        assert await one.read("f") == b"one other"
        mine, theirs = await one.open("f", os.O_RDWR), await other.open("f", os.O_RDWR)
        await one.pwrite(mine, b"ONE", 0)
        await other.pwrite(theirs, b"OTHER", 4)
        await one.close(mine)
        with refusal(errno.ESTALE):
            await other.close(theirs)
        assert await other.read("f") == await one.read("f") == b"ONE other"
        await one.mkdir("d")
        with refusal(errno.EEXIST):
            await other.mkdir("d")
        await other.rename("f", "d/f")
        assert await one.names("d") == ["f"]


def kept_whole(fs: S3FS, item: Object) -> bool:
    assert fs.cache is not None
    entry = fs.cache.open(fs.cache_source, item.key, item.etag, item.size)
    try:
        return entry.complete
    finally:
        entry.close()


async def test_two_mounts_share_a_cache_directory(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", os.urandom(2 << 20))
    async with using(store, tmp_path, cache_size=64 << 20) as one, using(store, tmp_path, cache_size=64 << 20) as other:
        assert await one.read("f") == store.data("f")
        await eventually(lambda: kept_whole(other.fs, store.objects["f"].item))
        gets = store.count("GET")
        assert await other.read("f") == store.data("f")
        assert store.count("GET") == gets


# All buckets.


async def test_all_buckets_are_directories_that_are_neither_made_nor_removed(tmp_path: Path) -> None:
    store = FakeStore()
    for key in ("photos/2026/a.jpg", "photos/b.jpg", "music/c.mp3"):
        store.seed(key, key.encode())
    async with using(store, tmp_path, None) as user:
        assert await user.names() == ["music", "photos"]
        assert await user.read("photos/2026/a.jpg") == b"photos/2026/a.jpg"
        await user.write("music/new", b"x")
        await user.rename("music/new", "photos/new")
        assert store.data("photos/new") == b"x"
        for work in (user.mkdir("new"), user.write("file", b"x"), user.rmdir("music"), user.rename("music", "noise")):
            with refusal(errno.EPERM):
                await work
        assert sorted({key.split("/")[0] for key in store.objects}) == ["music", "photos"]


# Older versions.


async def test_older_versions_are_read_under_their_own_directory_and_cannot_be_changed(tmp_path: Path) -> None:
    store = FakeStore()
    store.versioned = True
    store.put_plain("d/f", b"first")
    async with using(store, tmp_path, versions=True, metadata_ttl=0.0) as user:
        await user.write("d/f", b"second version")
        assert await user.names() == ["d"]
        assert await user.names(".versions/d") == ["f"]
        older = await user.names(".versions/d/f")
        assert len(older) == 2
        assert [await user.read(f".versions/d/f/{name}") for name in older] == [b"first", b"second version"]
        for work in (
            user.unlink(f".versions/d/f/{older[0]}"),
            user.write(".versions/new", b"x"),
            user.mkdir(".versions/new"),
            user.set(f".versions/d/f/{older[0]}", mode=0o600),
        ):
            with refusal(errno.EROFS):
                await work
        assert await user.read("d/f") == b"second version"
    async with using(store, tmp_path) as user:
        with refusal(errno.ENOENT):
            await user.stat(".versions")


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

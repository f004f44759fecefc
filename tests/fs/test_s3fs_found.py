"""What the model of two mounts (test_s3fs_model.py) and the bad days (test_s3fs_faults.py) found, each in the fewest steps."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fakestore import FakeStore, Fault, denied, lost
from namespace import Clock
from s3user import MIB, User, eventually, refusal, using

from pyfusekit.fs.s3fs import S3FS, S3Options
from pyfusekit.fs.s3fs.writing.conflicts import kept
from pyfusekit.testing.kernel import FakeKernel

GRACE = 6.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    made.install(monkeypatch)
    return made


@asynccontextmanager
async def two(store: FakeStore, home: Path, **options: object) -> AsyncIterator[tuple[User, User]]:
    """Mount a store twice."""
    given = {"metadata_ttl": 0.0, **options}
    async with using(store, home / "a", **given) as a, using(store, home / "b", **given) as b:
        yield a, b


def copy_of(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


async def test_upload_under_way_at_unmount_is_aborted_and_leaves_no_record(tmp_path: Path) -> None:
    store = FakeStore()
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context))
    home = {"cache_dir": str(tmp_path / "cache"), "staging_dir": str(tmp_path / "staging")}
    fs = S3FS("bucket", S3Options(probe=False, **home), store=store)
    async with FakeKernel(fs) as kernel:
        user = User(fs, kernel, store)
        fd = await user.open("f", os.O_WRONLY | os.O_CREAT)
        await user.pwrite(fd, bytes(17 * MIB), 0)
        await eventually(lambda: store.uploading, "no upload began")
    await asyncio.sleep(0)
    assert store.uploading == {}
    assert failures == []
    assert [path for path in (tmp_path / "staging" / "s3").glob("*/*") if path.is_dir()] == []


async def test_file_that_a_lagging_listing_still_shows_is_enoent_once_it_is_gone(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"x")
    async with using(store, tmp_path, metadata_ttl=0.0) as user:
        store.lie()
        store.objects.pop("f")
        with refusal(errno.ENOENT):
            await user.read("f")
        await user.write("f", b"made here")
        assert store.data("f") == b"made here"


@pytest.mark.parametrize("look", [User.names, lambda user: user.stat("d")], ids=["ls", "stat"])
async def test_directory_that_is_only_remembered_gives_way_to_a_file_of_its_name(
    tmp_path: Path, clock: Clock, look: Callable[[User], Awaitable[object]]
) -> None:
    store = FakeStore()
    store.seed("d/f", b"x")
    async with using(store, tmp_path, metadata_ttl=1.0) as user:
        await user.unlink("d/f")
        assert await user.names() == ["d"]
        store.put_plain("d", b"a file")
        clock.now += GRACE
        await look(user)
        clock.now += GRACE
        assert await user.read("d") == b"a file"
        assert await user.names() == ["d"]


async def test_directory_is_remembered_for_what_was_made_in_it_while_listings_may_lag(tmp_path: Path, clock: Clock) -> None:
    store = FakeStore()
    store.seed("d/f", b"x")
    async with using(store, tmp_path, metadata_ttl=1.0) as user:
        assert await user.names("d") == ["f"]
        store.lie()
        store.objects.pop("d/f")
        await user.write("d/new", b"new")
        assert await user.names() == ["d"]
        store.honest()
        store.objects.pop("d/new")
        clock.now += 2 * GRACE
        assert await user.names() == []


async def test_directory_that_somebody_else_moved_cannot_be_renamed(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("d/f", b"x")
    async with two(store, tmp_path) as (a, b):
        await a.write("d/f", b"mine")
        await b.rename("d", "theirs")
        with refusal(errno.ENOENT):
            await a.rename("d", "mine")
    assert sorted(store.objects) == ["theirs/f"]


async def test_open_file_that_others_changed_is_not_the_one_that_moves_with_its_directory(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("d/f", b"1" * (2 * MIB))
    async with using(store, tmp_path, metadata_ttl=0.0, readahead=0) as user:
        fd = await user.open("d/f")
        assert await user.pread(fd, 10, 0) == b"1" * 10
        store.put_plain("d/f", b"2" * (2 * MIB))
        await user.rename("d", "e")
        with refusal(errno.ESTALE):
            await user.pread(fd, 10, MIB)
        assert await user.read("e/f") == b"2" * (2 * MIB)


async def test_open_file_whose_name_was_given_up_takes_no_more_writes(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path, metadata_ttl=0.0, write_back=True) as user:
        fd = await user.open("f", os.O_RDWR | os.O_CREAT)
        store.put_plain("f", b"theirs")
        await user.pwrite(fd, b"mine", 0)
        await user.fsync(fd)
        await eventually(lambda: kept(str(tmp_path / "staging" / "conflicts")), "no copy is kept")
        await eventually(lambda: user.fs.waiting() == (0, 0), "it still waits")
        with refusal(errno.ESTALE):
            await user.pwrite(fd, b"more", 4)
    assert store.data("f") == b"theirs"


@pytest.mark.parametrize("error", [denied(), lost()], ids=["for good", "for now"])
async def test_file_whose_old_attributes_cannot_be_had_at_close_is_not_lost(
    tmp_path: Path, error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FakeStore()
    store.seed("f", b"old")
    async with using(store, tmp_path, metadata="s3fs") as user:
        fd = await user.open("f", os.O_WRONLY)
        await user.pwrite(fd, b"new", 0)
        old_head = user.fs.old_head

        async def fail(node: object) -> None:
            raise error

        monkeypatch.setattr(user.fs, "old_head", fail)
        with refusal(error.errno or 0):
            await user.flush(fd)
        await user.release(fd)
        monkeypatch.setattr(user.fs, "old_head", old_head)
        copies = kept(str(tmp_path / "staging" / "conflicts"))
        if error.errno == errno.EACCES:
            assert copy_of(copies[0].path) == b"new"
            assert any(copies[0].path in problem.cause for problem in user.fs.problems)
        else:
            await eventually(lambda: store.data("f") == b"new", "it was never uploaded")


async def test_listing_of_a_bucket_that_is_gone_is_not_an_empty_directory(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"x")
    async with using(store, tmp_path, metadata_ttl=0.0) as user:
        gone = denied()
        gone.errno, gone.code = errno.ENOENT, "NoSuchBucket"
        store.fail.append(Fault("^LIST", gone))
        with refusal(errno.ESTALE):
            await user.names()
        assert await user.names() == ["f"]


async def test_object_deleted_while_it_is_read_is_told(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", bytes(2 * MIB))
    async with using(store, tmp_path, readahead=0) as user:
        fd = await user.open("f")
        store.objects.pop("f")
        with refusal(errno.ESTALE):
            await user.pread(fd, 10, MIB)
        assert [(problem.path, problem.errno) for problem in user.fs.problems] == [("f", errno.ESTALE)]


async def test_open_file_whose_changes_are_given_up_shows_no_other_version(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"the first version")
    async with using(store, tmp_path, metadata_ttl=0.0, write_back=True) as user:
        fd = await user.open("f", os.O_RDWR | os.O_TRUNC)
        store.put_plain("f", b"theirs")
        await user.pwrite(fd, b"mine", 0)
        await user.fsync(fd)
        await eventually(lambda: user.fs.waiting() == (0, 0), "it still waits")
        for work in (user.pread(fd, 100, 0), user.fstat(fd), user.pwrite(fd, b"more", 4), user.fsync(fd), user.flush(fd)):
            with refusal(errno.ESTALE):
                await work
        assert await user.read("f") == b"theirs"
        await user.write("f", b"after")
    assert [copy_of(copy.path) for copy in kept(str(tmp_path / "staging" / "conflicts"))] == [b"mine"]
    assert store.data("f") == b"after"

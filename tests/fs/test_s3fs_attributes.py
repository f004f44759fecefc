"""Modes, owners, times and xattrs in s3fs on a store in memory: where they are kept, and what a change costs."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from pathlib import Path

import pytest
from fakestore import FakeStore, Fault, denied
from s3user import Fd, eventually, refusal, using

from pyfusekit.core import FOPEN_KEEP_CACHE

NEW = os.O_WRONLY | os.O_CREAT
THEN = 1_234_567_890_123_456_789


def mode_of(store: FakeStore, key: str) -> int:
    return stat.S_IMODE(int(store.objects[key].metadata["mode"]))


# chmod, chown, utimens.


async def test_chmod_is_one_copy_of_the_object_onto_itself(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"data", metadata={"theirs": "kept"}, headers={"content-type": "x/y", "content-language": "de"})
    async with using(store, tmp_path) as user:
        await user.stat("f")
        user.calls.clear()
        await user.set("f", mode=0o600)
        assert user.calls == ["COPY f f"]
        assert (await user.stat("f")).mode == stat.S_IFREG | 0o600
        stored = store.objects["f"]
        assert (stored.data, mode_of(store, "f"), stored.metadata["theirs"]) == (b"data", 0o600, "kept")
        assert dict(stored.headers) == {"content-type": "x/y", "content-language": "de"}
        # The time of the contents is what it was, whenever the copy was made.
        assert (await user.stat("f")).mtime_ns == 1_700_000_000 * 10**9
        user.calls.clear()
        await user.set("f", mode=0o600)
        assert user.calls == []
    async with using(store, tmp_path) as user:
        found = await user.stat("f")
        assert (found.mode, found.mtime_ns) == (stat.S_IFREG | 0o600, 1_700_000_000 * 10**9)


async def test_chown_and_utimens_are_kept(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"data")
    async with using(store, tmp_path) as user:
        await user.set("f", uid=5, gid=6)
        await user.set("f", mtime_ns=THEN, atime_ns=THEN + 1)
    async with using(store, tmp_path) as user:
        found = await user.stat("f")
        assert (found.uid, found.gid, found.mtime_ns, found.atime_ns) == (5, 6, THEN, THEN + 1)


async def test_cp_p_is_one_put(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path) as user:
        await user.names()
        user.calls.clear()
        fd = await user.open("f", NEW, 0o600)
        await user.pwrite(fd, b"data", 0)
        await user.set(fd, mtime_ns=THEN, atime_ns=THEN)
        await user.set(fd, uid=5, gid=6)
        await user.set(fd, mode=0o640)
        await user.close(fd)
        assert user.calls == ["PUT f 4"]
        found = await user.stat("f")
        assert (found.mode, found.uid, found.gid, found.mtime_ns) == (stat.S_IFREG | 0o640, 5, 6, THEN)
    async with using(store, tmp_path) as user:
        assert (await user.stat("f"))[:8] == found[:8]


async def test_times_set_by_path_while_it_is_written_are_in_the_one_put(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path) as user:
        await user.names()
        user.calls.clear()
        fd = await user.open("f", NEW)
        await user.pwrite(fd, b"data", 0)
        await user.set("f", mtime_ns=THEN)
        await user.close(fd)
        assert user.calls == ["PUT f 4"]
        assert (await user.stat("f")).mtime_ns == THEN


async def test_times_set_after_the_first_part_was_sent_are_exact(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path, part_size=5 << 20) as user:
        fd = await user.open("f", NEW)
        await user.pwrite(fd, bytes(11 << 20), 0)
        await eventually(lambda: store.count("PART"))
        await user.set(fd, mtime_ns=THEN)
        await user.close(fd)
        assert (await user.stat("f")).mtime_ns == THEN
        # A file whose time nobody set by hand is not copied for a second of difference.
        store.calls.clear()
        await user.write("g", bytes(11 << 20))
        assert store.count("COPY") == 0
    async with using(store, tmp_path) as user:
        assert (await user.stat("f")).mtime_ns == THEN


async def test_writing_takes_the_time_of_a_file_forward(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path) as user:
        await user.write("f", b"data")
        await user.set("f", mtime_ns=THEN)
        await user.append("f", b"more")
        now = (await user.stat("f")).mtime_ns
        assert now > THEN
    async with using(store, tmp_path) as user:
        assert (await user.stat("f")).mtime_ns == now


async def test_chmod_after_close_within_the_delay_of_write_back_costs_no_request(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path, write_back=True, write_back_delay=60.0) as user:
        await user.names()
        await user.write("f", b"data")
        user.calls.clear()
        await user.set("f", mode=0o600)
        assert user.calls == []
        await user.fs.drain(asyncio.get_running_loop().time() + 20)
        assert user.calls == ["PUT f 4"]
        assert mode_of(store, "f") == 0o600


async def test_chmod_of_what_others_changed_is_estale_and_theirs_stays(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"seen", metadata={"mode": str(0o100644)})
    async with using(store, tmp_path) as user:
        await user.stat("f")
        theirs = store.put_plain("f", b"theirs", {"mode": str(0o100640)})
        with refusal(errno.ESTALE):
            await user.set("f", mode=0o600)
        assert store.objects["f"].item == theirs
        # As the kernel does at ESTALE: once more.
        await user.set("f", mode=0o600)
        assert (store.data("f"), mode_of(store, "f")) == (b"theirs", 0o600)


async def test_failed_chmod_shows_the_old_mode(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"data", metadata={"mode": str(0o100644)})
    async with using(store, tmp_path) as user:
        await user.stat("f")
        store.fail = [Fault("COPY", denied())]
        with refusal(errno.EACCES):
            await user.set("f", mode=0o600)
        assert (await user.stat("f")).mode == stat.S_IFREG | 0o644


async def test_file_open_for_reading_is_read_on_after_a_chmod(tmp_path: Path) -> None:
    store = FakeStore()
    data = os.urandom(3 << 20)
    store.seed("f", data)
    async with using(store, tmp_path) as user:
        fd = await user.open("f")
        assert await user.pread(fd, 4096, 0) == data[:4096]
        await user.set("f", mode=0o600)
        assert await user.read_fd(fd) == data
        assert (await user.open("f")).open_flags == FOPEN_KEEP_CACHE


async def test_chmod_of_an_unlinked_file_touches_nothing(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path) as user:
        fd = await user.open("f", NEW)
        await user.unlink("f")
        await user.set(fd, mode=0o600)
        assert (await user.fstat(fd)).mode == stat.S_IFREG | 0o600
        await user.close(fd)
        assert list(store.objects) == []


async def test_directory_keeps_its_mode_in_its_marker(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("implicit/f", b"x")
    store.seed("marked/", metadata={"theirs": "kept"})
    store.seed("file/", b"a marker with bytes")
    store.seed("file/x", b"x")
    async with using(store, tmp_path) as user:
        for name in ("implicit", "marked", "file"):
            await user.set(name, mode=0o700)
            assert (await user.stat(name)).mode == stat.S_IFDIR | 0o700
    async with using(store, tmp_path) as user:
        for name in ("implicit", "marked", "file"):
            assert (await user.stat(name)).mode == stat.S_IFDIR | 0o700
    assert store.objects["marked/"].metadata["theirs"] == "kept"
    assert store.data("file/") == b"a marker with bytes"


async def test_root_keeps_its_mode_as_long_as_the_mount(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path) as user:
        await user.set("", mode=0o700)
        assert (await user.stat("")).mode == stat.S_IFDIR | 0o700
    assert list(store.objects) == []


@pytest.mark.parametrize(
    ("flavour", "change", "number"),
    [
        ("none", {"mode": 0o600}, errno.EPERM),
        ("none", {"uid": 5}, errno.EPERM),
        ("none", {"mtime_ns": THEN}, errno.EPERM),
        ("none", {"mode": 0o644}, 0),
        ("rclone", {"mtime_ns": THEN}, 0),
        ("s3fs", {"gid": 5}, 0),
    ],
)
async def test_what_is_not_kept_is_eperm(flavour: str, change: dict[str, int], number: int, tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"data")
    async with using(store, tmp_path, metadata=flavour) as user:
        if number:
            with refusal(number):
                await user.set("f", **change)
        else:
            await user.set("f", **change)
        assert store.data("f") == b"data"


async def test_rclones_time_is_in_its_own_words(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path, metadata="rclone") as user:
        await user.write("f", b"data")
        await user.set("f", mtime_ns=THEN)
        assert store.objects["f"].metadata["mtime"] == "1234567890.123456789"
        assert (await user.stat("f")).mtime_ns == THEN


async def test_none_writes_no_metadata(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path, metadata="none") as user:
        await user.write("f", b"data")
        await user.mkdir("d")
        words = {word for key in store.objects for word in store.objects[key].metadata}
        assert words <= {"pyfusekit-txn"}
        assert store.count("HEAD") == 0
        assert (await user.stat("f")).size == 4


# Extended attributes.


async def test_users_attributes_are_kept_and_read_back(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"data")
    store.seed("d/x", b"data")
    async with using(store, tmp_path) as user:
        for path in ("f", "d"):
            await user.setxattr(path, b"user.note", b"\0binary\xff")
            await user.setxattr(path, b"user.gone", b"x")
            await user.removexattr(path, b"user.gone")
            with refusal(errno.ENODATA):
                await user.removexattr(path, b"user.gone")
            assert await user.listxattr(path) == [b"user.note"]
    async with using(store, tmp_path) as user:
        for path in ("f", "d"):
            assert await user.getxattr(path, b"user.note") == b"\0binary\xff"
        assert await user.read("f") == b"data"


async def test_attributes_of_a_file_that_is_written_go_with_its_put(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path) as user:
        await user.names()
        fd = await user.open("f", NEW)
        await user.pwrite(fd, b"data", 0)
        user.calls.clear()
        await user.setxattr("f", b"user.note", b"1")
        assert user.calls == []
        await user.close(fd)
        assert user.calls == ["PUT f 4"]
        assert await user.getxattr("f", b"user.note") == b"1"


async def test_s3s_own_words_are_read(tmp_path: Path) -> None:
    store = FakeStore()
    item = store.seed("f", b"data", headers={"content-type": "text/x"}, metadata={"colour": "red"})
    async with using(store, tmp_path) as user:
        for name, value in {
            b"etag": item.etag,
            b"key": "f",
            b"size": "4",
            b"content-type": "text/x",
            b"storage-class": "STANDARD",
            b"meta.colour": "red",
        }.items():
            assert await user.getxattr("f", b"user.s3." + name) == value.encode()
        with refusal(errno.ENODATA):
            await user.getxattr("f", b"user.s3.version-id")
        with refusal(errno.EPERM):
            await user.setxattr("f", b"user.s3.etag", b"x")
        assert await user.listxattr("f") == []


async def test_content_type_and_others_metadata_can_be_set(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"data", metadata={"colour": "red"})
    async with using(store, tmp_path) as user:
        await user.setxattr("f", b"user.s3.content-type", b"text/x")
        await user.setxattr("f", b"user.s3.meta.colour", b"blue")
        stored = store.objects["f"]
        assert (stored.data, stored.headers["content-type"], stored.metadata["colour"]) == (b"data", "text/x", "blue")
        assert await user.getxattr("f", b"user.s3.content-type") == b"text/x"
        # They stay when the contents change.
        await user.append("f", b" and more")
        stored = store.objects["f"]
        assert (stored.headers["content-type"], stored.metadata["colour"]) == ("text/x", "blue")


async def test_header_of_a_file_that_is_written_is_set_on_what_was_written(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"old")
    async with using(store, tmp_path) as user:
        fd = await user.open("f", os.O_RDWR)
        await user.pwrite(fd, b"NEW", 0)
        await user.setxattr("f", b"user.s3.content-type", b"text/x")
        assert (store.data("f"), store.objects["f"].headers["content-type"]) == (b"NEW", "text/x")
        await user.close(fd)
        assert (store.data("f"), store.objects["f"].headers["content-type"]) == (b"NEW", "text/x")


async def test_tags_are_s3s_tags(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"data")
    async with using(store, tmp_path) as user:
        await user.setxattr("f", b"user.s3.tag.project", b"alpha")
        assert store.objects["f"].tags == {"project": "alpha"}
        assert await user.getxattr("f", b"user.s3.tag.project") == b"alpha"
        assert store.count("COPY") == 0
        await user.removexattr("f", b"user.s3.tag.project")
        assert store.objects["f"].tags == {}
        with refusal(errno.ENODATA):
            await user.getxattr("f", b"user.s3.tag.project")


async def test_tags_stay_with_a_file_that_is_changed_by_chmod(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"data")
    async with using(store, tmp_path) as user:
        await user.setxattr("f", b"user.s3.tag.project", b"alpha")
        await user.set("f", mode=0o600)
        assert store.objects["f"].tags == {"project": "alpha"}


async def test_kernels_questions_before_every_write_cost_nothing(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"data")
    async with using(store, tmp_path) as user:
        await user.stat("f")
        user.calls.clear()
        for name in (b"security.capability", b"security.selinux", b"trusted.overlay.opaque", b"user.none"):
            with refusal(errno.ENODATA):
                await user.getxattr("f", name)
        with refusal(errno.EOPNOTSUPP):
            await user.getxattr("f", b"system.posix_acl_access")
        assert user.calls == []


@pytest.mark.parametrize(
    ("name", "number"),
    [(b"system.posix_acl_access", errno.EOPNOTSUPP), (b"user.s3.size", errno.EPERM), (b"os2.x", errno.EOPNOTSUPP)],
)
async def test_attributes_that_cannot_be_kept_are_refused(name: bytes, number: int, tmp_path: Path) -> None:
    store = FakeStore()
    before = store.seed("f", b"data")
    async with using(store, tmp_path) as user:
        with refusal(number):
            await user.setxattr("f", name, b"x")
        assert store.objects["f"].item == before


async def test_more_than_the_metadata_hold_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    store = FakeStore()
    before = store.seed("f", b"data")
    async with using(store, tmp_path) as user:
        with refusal(errno.ENOSPC):
            await user.setxattr("f", b"user.big", bytes(3000))
        assert store.objects["f"].item == before
        assert await user.listxattr("f") == []


async def test_sizes_set_by_path_and_modes_do_not_disturb_each_other(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"0123456789")
    async with using(store, tmp_path) as user:
        await user.set("f", mode=0o600)
        await user.set("f", size=4)
        found = await user.fstat(Fd(await user.ino("f"), 0, 0, 0), by_fh=False)
        assert (found.size, found.mode) == (4, stat.S_IFREG | 0o600)
        assert (store.data("f"), mode_of(store, "f")) == (b"0123", 0o600)

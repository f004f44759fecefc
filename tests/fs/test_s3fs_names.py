"""Names in s3fs on a store in memory: looking up, making, removing, listing, and what each costs in requests."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from pathlib import Path

import pytest
from fakestore import SECOND, FakeStore, Fault, denied
from s3user import CALLER, Fd, eventually, refusal, using

from pyfusekit.core import abi

NEW = os.O_WRONLY | os.O_CREAT


# Looking up.


async def test_file_has_size_time_owner_and_mode_of_the_options(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("d/f", b"12345", second=1_600_000_000)
    async with using(store, tmp_path, uid=7, gid=8, file_mode=0o640, dir_mode=0o750) as user:
        found = await user.stat("d/f")
        assert (found.size, found.mtime_ns) == (5, 1_600_000_000 * SECOND)
        assert (found.uid, found.gid, found.mode) == (7, 8, stat.S_IFREG | 0o640)
        assert (await user.stat("d")).mode == stat.S_IFDIR | 0o750


async def test_missing_name_is_enoent_after_one_request(tmp_path: Path) -> None:
    async with using(FakeStore(), tmp_path) as user:
        for _ in range(2):
            with refusal(errno.ENOENT):
                await user.stat("nothing")
        assert user.calls == ["LIST nothing"]


async def test_missing_name_that_others_make_is_there_after_its_time(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path, negative_ttl=0.0) as user:
        with refusal(errno.ENOENT):
            await user.stat("f")
        store.seed("f", b"x")
        assert (await user.stat("f")).size == 1


async def test_prefix_mount_shows_only_what_is_below_it(tmp_path: Path) -> None:
    store = FakeStore()
    for key in ("a/1", "a/b/2", "ab/3", "4"):
        store.seed(key, key.encode())
    async with using(store, tmp_path, "bucket/a") as user:
        assert await user.names() == ["1", "b"]
        assert await user.read("b/2") == b"a/b/2"
        await user.write("b/new", b"x")
        await user.mkdir("made")
        assert {"a/b/new", "a/made/"} < set(store.objects)


async def test_kernel_is_told_what_is_left_of_the_time_to_live(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"1")
    async with using(store, tmp_path, metadata_ttl=100.0) as user:
        found = await user.entry(1, b"f")
        assert found is not None
        assert 99 <= found["entry_valid"] + found["entry_valid_nsec"] / 1e9 <= 100
        assert found["attr_valid"] == found["entry_valid"]
        user.fs.tree.nodes[found["nodeid"]].expires -= 60
        found = await user.entry(1, b"f")
        assert found is not None
        assert 39 <= found["entry_valid"] + found["entry_valid_nsec"] / 1e9 <= 40


async def test_metadata_is_asked_again_after_its_time_to_live(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"1")
    async with using(store, tmp_path, metadata_ttl=0.0) as user:
        ino = await user.ino("f")
        store.seed("f", b"22", second=1_800_000_000)
        again = await user.fstat(Fd(ino, 0, 0, 0), by_fh=False)
        assert (again.ino, again.size, again.mtime_ns) == (ino, 2, 1_800_000_000 * SECOND)
        del store.objects["f"]
        with refusal(errno.ENOENT):
            await user.fstat(Fd(ino, 0, 0, 0), by_fh=False)


async def test_file_that_became_a_directory_is_one(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"x")
    async with using(store, tmp_path, metadata_ttl=0.0) as user:
        ino = await user.ino("f")
        del store.objects["f"]
        store.seed("f/g", b"x")
        with refusal(errno.ENOENT):
            await user.fstat(Fd(ino, 0, 0, 0), by_fh=False)
        assert stat.S_ISDIR((await user.stat("f")).mode)
        assert await user.read("f/g") == b"x"


async def test_inode_numbers_are_the_same_in_another_mount(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("d/f", b"x")
    inos = set()
    for _ in range(2):
        async with using(store, tmp_path) as user:
            inos.add((await user.ino("d"), await user.ino("d/f")))
    assert len(inos) == 1


async def test_failing_lookup_and_listing_are_errnos_and_not_empty_answers(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"x")
    async with using(store, tmp_path) as user:
        store.fail = [Fault("LIST", denied())]
        with refusal(errno.EACCES):
            await user.stat("f")
        store.fail = [Fault("LIST", denied())]
        with refusal(errno.EACCES):
            await user.names()
        assert await user.names() == ["f"]


async def test_walk_counts_every_lookup_and_forgets_all(tmp_path: Path) -> None:
    store = FakeStore(page_size=100)
    for number in range(450):
        store.seed(f"a rather long name of a file, number {number:04}", b"x" * number)
    async with using(store, tmp_path, metadata="none") as user:
        found = await user.list()
        assert [found[name]["entry_out_attr_size"] for name in sorted(found)] == list(range(450))
        assert len({entry["entry_out_nodeid"] for entry in found.values()}) == 450
        nodes = user.fs.tree.nodes
        assert sum(user.kernel.lookups.values()) == sum(node.nlookup for node in nodes.values()) - 1 == 450
        assert store.count("LIST") == 5
        user.kernel.forget_all()
        await user.kernel.request(abi.STATFS, 1)
        assert list(nodes) == [1]


# Odd keys.


async def test_every_key_has_a_name_that_brings_it_back(tmp_path: Path) -> None:
    store = FakeStore()
    keys = ["a//b", "a/./c", "a/../d", "x", "x/y", "n\0l", "/root", "z" * 300, "m/", "\u241b"]
    for number, key in enumerate(keys):
        store.seed(key, b"%d" % number)
    async with using(store, tmp_path) as user:
        found = {}

        async def walk(directory: str) -> None:
            for name, entry in (await user.list(directory)).items():
                path = f"{directory}/{name}"
                if stat.S_ISDIR(entry["dirent_type"] << 12):
                    await walk(path)
                else:
                    found[await user.getxattr(path, b"user.s3.key")] = await user.read(path)

        await walk("")
        assert found == {key.encode(): b"%d" % number for number, key in enumerate(keys)}


async def test_odd_names_can_be_made_changed_and_removed(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("x", b"file")
    store.seed("x/y", b"below")
    async with using(store, tmp_path) as user:
        assert await user.names() == ["x", "x\u241bf"]
        await user.append("x\u241bf", b" more")
        assert store.data("x") == b"file more"
        await user.write("x/\u241be", b"marker with bytes")
        assert store.data("x/") == b"marker with bytes"
        await user.unlink("x\u241bf")
        assert sorted(store.objects) == ["x/", "x/y"]
        long = "w" * 255
        await user.write(long, b"long")
        assert store.data(long) == b"long"


@pytest.mark.parametrize(
    ("name", "number"),
    [("w" * 256, errno.ENAMETOOLONG), ("\u241bq", errno.EINVAL), ("\udcff", errno.EILSEQ), ("q\u241bf", errno.EINVAL)],
)
async def test_name_that_no_key_can_have_is_refused(name: str, number: int, tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path) as user:
        with refusal(number):
            await user.write(name, b"x")
        with refusal(number):
            await user.mkdir(name)
        assert list(store.objects) == []


async def test_keys_hide_leaves_them_out_and_keys_error_fails_the_listing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = FakeStore()
    for key in ("d//b", "d/good", "fine/x"):
        store.seed(key, b"x")
    async with using(store, tmp_path, keys="hide") as user:
        assert await user.names("d") == ["good"]
    assert [line for line in caplog.messages if "is hidden" in line]
    async with using(store, tmp_path, keys="error") as user:
        with refusal(errno.EIO):
            await user.names("d")
        assert [(problem.path, problem.errno) for problem in user.fs.problems] == [("d//", errno.EIO)]
        assert await user.names("fine") == ["x"]


# Making.


async def test_new_file_is_its_makers_with_the_umask_and_the_type_of_its_extension(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path) as user:
        await user.close(await user.open("a.html", NEW, 0o666))
        made = await user.stat("a.html")
        assert (made.mode, made.uid, made.gid) == (stat.S_IFREG | 0o644, CALLER[0], CALLER[1])
        metadata = store.objects["a.html"].metadata
        assert (int(metadata["mode"]), metadata["uid"], metadata["gid"]) == (stat.S_IFREG | 0o644, "1000", "1000")
        assert store.objects["a.html"].headers["content-type"] == "text/html"
    async with using(store, tmp_path) as user:
        again = await user.stat("a.html")
        assert again[:6] == made[:6]
        assert again.mtime_ns == made.mtime_ns


async def test_exclusive_creation_of_a_name_that_is_there_is_eexist(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"x")
    async with using(store, tmp_path) as user:
        with refusal(errno.EEXIST):
            await user.open("f", NEW | os.O_EXCL)
        # Also when the kernel did not know better.
        store.seed("g", b"x")
        with refusal(errno.EEXIST):
            await user.ask(abi.CREATE, 1, names=[b"g"], flags=NEW | os.O_EXCL, mode=stat.S_IFREG | 0o644, umask=0)
        made = await user.ask(abi.CREATE, 1, names=[b"g"], flags=os.O_RDWR | os.O_CREAT, mode=stat.S_IFREG | 0o644, umask=0)
        fd = Fd(made.fields["entry_nodeid"], made.fields["open_fh"], os.O_RDWR, 0)
        user.fds.append(fd)
        assert await user.pread(fd, 10, 0) == b"x"


async def test_directory_is_a_marker_of_one_put(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path) as user:
        await user.names()
        user.calls.clear()
        await user.mkdir("d", 0o777)
        assert user.calls == ["PUT d/ 0"]
        marker = store.objects["d/"]
        assert marker.headers["content-type"] == "application/x-directory"
        assert int(marker.metadata["mode"]) == stat.S_IFDIR | 0o755
        assert await user.names("d") == []
        with refusal(errno.EEXIST):
            await user.mkdir("d")
    async with using(store, tmp_path) as user:
        assert (await user.stat("d")).mode == stat.S_IFDIR | 0o755
        assert (await user.stat("d")).uid == CALLER[0]


async def test_what_others_made_meanwhile_is_eexist_and_stays(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path) as user:
        await user.names()
        store.seed("d/", b"")
        store.seed("link", b"theirs")
        for work in (user.mkdir("d"), user.symlink("x", "link"), user.mknod("link", stat.S_IFREG | 0o644)):
            with refusal(errno.EEXIST):
                await work
        assert store.data("link") == b"theirs"


async def test_symbolic_link_is_an_object_with_its_target(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path) as user:
        await user.symlink("../some/where", "link")
        assert store.data("link") == b"../some/where"
        assert stat.S_ISLNK(int(store.objects["link"].metadata["mode"]))
        assert await user.readlink("link") == "../some/where"
        with refusal(errno.ENAMETOOLONG):
            await user.symlink("x" * 4096, "longer")
    async with using(store, tmp_path) as user:
        assert await user.readlink("link") == "../some/where"
        assert (await user.stat("link")).mode == stat.S_IFLNK | 0o777
        store.seed("f", b"x")
        with refusal(errno.EINVAL):
            await user.readlink("f")


async def test_special_files_are_kept_in_the_metadata(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path) as user:
        await user.mknod("fifo", stat.S_IFIFO | 0o600)
        await user.mknod("null", stat.S_IFCHR | 0o666, 0x103)
        await user.mknod("plain", stat.S_IFREG | 0o600)
    async with using(store, tmp_path) as user:
        assert stat.S_ISFIFO((await user.stat("fifo")).mode)
        assert stat.S_ISCHR((await user.stat("null")).mode)
        assert stat.S_ISREG((await user.stat("plain")).mode)
        entry = await user.entry(1, b"null")
        assert entry is not None
        assert entry["attr_rdev"] == 0x103


@pytest.mark.parametrize("flavour", ["rclone", "none"])
async def test_what_the_metadata_do_not_keep_is_eperm(flavour: str, tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path, metadata=flavour) as user:
        with refusal(errno.EPERM):
            await user.mknod("fifo", stat.S_IFIFO | 0o600)
        if flavour == "none":
            with refusal(errno.EPERM):
                await user.symlink("x", "link")
        await user.mknod("plain", stat.S_IFREG | 0o600)
        await user.mkdir("d")
        assert set(store.objects) >= {"d/", "plain"}


async def test_set_group_id_directory_hands_its_group_on(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("d/", metadata={"mode": str(stat.S_IFDIR | 0o2775), "uid": "5", "gid": "42"})
    async with using(store, tmp_path) as user:
        await user.write("d/f", b"x")
        await user.mkdir("d/e")
        assert (await user.stat("d/f")).gid == (await user.stat("d/e")).gid == 42
        assert (await user.stat("d/e")).mode & stat.S_ISGID
        assert not (await user.stat("d/f")).mode & stat.S_ISGID


async def test_hard_link_is_eperm(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"x")
    async with using(store, tmp_path) as user:
        with refusal(errno.EPERM):
            await user.ask(abi.LINK, 1, oldnodeid=await user.ino("f"), names=[b"other"])


# Removing.


async def test_unlink_is_one_delete_of_the_version_that_was_seen(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("d/f", b"x")
    async with using(store, tmp_path) as user:
        await user.names("d")
        await user.stat("d/f")
        user.calls.clear()
        await user.unlink("d/f")
        assert user.calls == ["DELETE d/f"]
        with refusal(errno.ENOENT):
            await user.stat("d/f")
        # The directory had nothing else, and no marker.
        assert await user.names("d") == []
        assert stat.S_ISDIR((await user.stat("d")).mode)
        await user.rmdir("d")
        assert await user.names() == []


async def test_unlink_of_what_others_changed_meanwhile_leaves_their_version(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"seen")
    async with using(store, tmp_path) as user:
        await user.stat("f")
        store.put_plain("f", b"theirs")
        with refusal(errno.ESTALE):
            await user.unlink("f")
        assert store.data("f") == await user.read("f") == b"theirs"
        await user.unlink("f")
        assert list(store.objects) == []


async def test_failed_unlink_leaves_the_file(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("f", b"x")
    async with using(store, tmp_path) as user:
        fd = await user.open("f")
        store.fail = [Fault("DELETE", denied())]
        with refusal(errno.EACCES):
            await user.unlink("f")
        assert await user.pread(fd, 10, 0) == b"x"
        await user.close(fd)
        assert await user.read("f") == b"x"
        assert store.count("PUT") == 0
        assert user.fs.waiting() == (0, 0)


async def test_directory_with_anything_in_it_is_not_removed(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("d/")
    store.seed("d/f", b"x")
    store.seed("e/deep/er/f", b"x")
    async with using(store, tmp_path) as user:
        await user.mkdir("new")
        fd = await user.open("new/unpublished", NEW)
        for name in ("d", "e", "new"):
            with refusal(errno.ENOTEMPTY):
                await user.rmdir(name)
        with refusal(errno.ENOTDIR):
            await user.rmdir("d/f")
        with refusal(errno.EISDIR):
            await user.ask(abi.UNLINK, 1, names=[b"d"])
        await user.close(fd)
        assert sorted(store.objects) == ["d/", "d/f", "e/deep/er/f", "new/", "new/unpublished"]


async def test_nothing_can_be_made_in_a_directory_that_was_removed(tmp_path: Path) -> None:
    store = FakeStore()
    async with using(store, tmp_path) as user:
        await user.mkdir("d")
        ino = await user.ino("d")
        await user.rmdir("d")
        assert list(store.objects) == []
        for opcode, fields in ((abi.MKDIR, {"mode": 0o755}), (abi.CREATE, {"mode": stat.S_IFREG | 0o644, "flags": NEW})):
            with refusal(errno.ENOENT):
                await user.ask(opcode, ino, names=[b"x"], umask=0, **fields)


# Listings.


async def test_what_was_done_here_is_listed_although_the_store_lies(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("old", b"x")
    store.seed("gone", b"x")
    async with using(store, tmp_path, metadata_ttl=0.0) as user:
        store.lie()
        await user.write("new", b"x")
        await user.unlink("gone")
        await user.mkdir("d")
        assert await user.names() == ["d", "new", "old"]
        assert await user.read("new") == b"x"
        with refusal(errno.ENOENT):
            await user.stat("gone")
        store.honest()
        assert await user.names() == ["d", "new", "old"]


async def test_rewound_directory_shows_what_came_meanwhile(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("a", b"x")
    async with using(store, tmp_path, metadata_ttl=0.0) as user:
        fh = (await user.ask(abi.OPENDIR, 1, flags=0)).fields["fh"]

        async def entries() -> int:
            return len((await user.ask(abi.READDIR, 1, fh=fh, offset=0, size=4096)).data) // 24

        before = await entries()
        store.seed("b", b"x")
        assert await entries() > before
        await user.ask(abi.RELEASEDIR, 1, fh=fh)


async def test_large_directory_is_listed_whole_through_small_replies(tmp_path: Path) -> None:
    store = FakeStore(page_size=1000)
    for number in range(2500):
        store.seed(f"d/k{number:04}", b"x" * (number % 7))
    async with using(store, tmp_path) as user:
        assert await user.names("d") == [f"k{number:04}" for number in range(2500)]
        assert store.count("LIST d/") == 3


async def test_interrupted_listing_ends_its_request(tmp_path: Path) -> None:
    store = FakeStore(page_size=10)
    for number in range(30):
        store.seed(f"f{number:02}", b"x")
    async with using(store, tmp_path) as user:
        store.list_gate = asyncio.Event()
        fh = (await user.ask(abi.OPENDIR, 1, flags=0)).fields["fh"]
        offset = 0
        waiting = user.ask(abi.READDIR, 1, fh=fh, offset=offset, size=65536)
        await eventually(lambda: store.count("LIST") == 2)
        user.kernel.interrupt(waiting)
        with refusal(errno.EINTR):
            await waiting
        store.list_gate.set()
        await user.ask(abi.RELEASEDIR, 1, fh=fh)
        assert len(await user.names()) == 30

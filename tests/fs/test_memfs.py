"""memfs's handlers, called as the core calls them: what no caller of a mount can see, or only by luck."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest

from pyfusekit.core import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    ROOT_ID,
    SETXATTR_ACL_KILL_SGID,
    WRITE_KILL_SUIDGID,
    Ioctl,
    Mode,
    Request,
    Result,
    SetAttr,
    Size,
    StatFs,
)
from pyfusekit.fs.memfs import MemFS, MemOptions, acl, flags
from pyfusekit.fs.memfs.data import PAGE
from pyfusekit.fs.memfs.fs import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE
from pyfusekit.fs.memfs.nodes import LINK_MAX, Node

T = TypeVar("T")

ROOT = Request(2, 0, 0, 1)
USER = Request(2, 1000, 1000, 1)
MASKED_ACL = acl.build(
    [
        (acl.USER_OBJ, 7, 0xFFFFFFFF),
        (acl.USER, 7, 1234),
        (acl.GROUP_OBJ, 5, 0xFFFFFFFF),
        (acl.MASK, 5, 0xFFFFFFFF),
        (acl.OTHER, 5, 0xFFFFFFFF),
    ]
)


def now(result: Result[T]) -> T:
    """Return what a handler returned that did not have to wait."""
    assert not isinstance(result, Coroutine)
    return result


class Tree:
    """A memfs with few pages and inodes, and short words for what its tests do with it."""

    def __init__(self, pages: int = 16, inodes: int = 16) -> None:
        self.fs = MemFS(None, MemOptions(size=Size(pages * PAGE), nr_inodes=inodes, mode=Mode(0o777), uid=0, gid=0))

    def node(self, ino: int) -> Node:
        return self.fs.nodes[ino]

    def file(
        self, name: bytes = b"file", data: bytes = b"", *, parent: int = ROOT_ID, mode: int = 0o644, who: Request = ROOT
    ) -> int:
        ino = now(self.fs.mknod(who, parent, name, stat.S_IFREG | mode, 0, 0)).ino
        if data:
            assert self.write(ino, data) == len(data)
        return ino

    def directory(self, name: bytes = b"directory", *, parent: int = ROOT_ID, mode: int = 0o755) -> int:
        return now(self.fs.mkdir(ROOT, parent, name, mode, 0)).ino

    def write(self, ino: int, data: bytes, offset: int = 0, who: Request = ROOT) -> int:
        return now(self.fs.write(who, ino, None, offset, memoryview(data)))

    def read(self, ino: int, offset: int = 0, size: int = 1 << 20) -> bytes:
        found = self.fs.read(ROOT, ino, None, offset, size)
        assert not isinstance(found, Coroutine)
        return b"".join(found) if isinstance(found, list) else bytes(found)

    def fallocate(self, ino: int, mode: int, offset: int, length: int) -> None:
        now(self.fs.fallocate(ROOT, ino, None, mode, offset, length))

    def names(self, ino: int = ROOT_ID) -> list[bytes]:
        return [name for name, _ in self.walk(ino)][2:]

    def walk(self, ino: int, offset: int = 0) -> Iterator[tuple[bytes, int]]:
        """Yield (name, cookie) as from a reply that has room for everything."""
        entries = self.fs.readdir(ROOT, ino, None, offset)
        assert not isinstance(entries, Coroutine)
        for entry in entries:  # type: ignore[union-attr]
            yield entry.name, entry.offset

    def forget(self, ino: int) -> None:
        self.fs.forget(ino, self.node(ino).nlookup)

    def totals(self) -> tuple[int, int]:
        """Return the pages and inodes that are free."""
        found: StatFs = now(self.fs.statfs(ROOT, ROOT_ID))
        return found.bfree, found.ffree

    def set_flags(self, ino: int, value: int) -> None:
        now(self.fs.ioctl(ROOT, ino, None, flags.SETFLAGS, 0, memoryview(struct.pack("=I", value))))


@pytest.fixture
def tree() -> Tree:
    return Tree()


@contextmanager
def fails(number: int) -> Iterator[None]:
    with pytest.raises(OSError, match=rf"^\[Errno {number}\]"):
        yield


# Lookups and forgets.


def test_each_answer_with_attributes_counts_one_lookup(tree: Tree) -> None:
    ino = tree.file()
    assert tree.node(ino).nlookup == 1
    assert tree.fs.lookup(ROOT, ROOT_ID, b"file") is tree.node(ino)
    assert now(tree.fs.link(ROOT, ino, ROOT_ID, b"link")).ino == ino
    tree.fs.entered(ino)
    assert tree.node(ino).nlookup == 4
    tree.fs.getattr(ROOT, ino, None)
    assert tree.fs.lookup(ROOT, ROOT_ID, b"none") is None
    assert tree.node(ino).nlookup == 4


def test_forgotten_node_with_a_name_keeps_its_contents(tree: Tree) -> None:
    ino = tree.file(data=b"kept")
    tree.forget(ino)
    found = tree.fs.lookup(ROOT, ROOT_ID, b"file")
    assert found is not None
    assert (found.ino, tree.read(ino)) == (ino, b"kept")


def test_node_without_a_name_lives_until_it_is_forgotten(tree: Tree) -> None:
    ino = tree.file(data=b"kept")
    tree.fs.unlink(ROOT, ROOT_ID, b"file")
    assert tree.read(ino) == b"kept"
    tree.forget(ino)
    with fails(errno.ESTALE):
        tree.fs.getattr(ROOT, ino, None)


def test_node_the_kernel_does_not_know_goes_with_its_last_name(tree: Tree) -> None:
    ino = tree.file(data=b"x")
    tree.forget(ino)
    tree.fs.unlink(ROOT, ROOT_ID, b"file")
    assert ino not in tree.fs.nodes
    assert tree.totals() == (16, 15)


def test_numbers_are_never_used_again(tree: Tree) -> None:
    seen = set()
    for _ in range(40):
        ino = tree.file()
        assert ino not in seen
        seen.add(ino)
        tree.fs.unlink(ROOT, ROOT_ID, b"file")
        tree.forget(ino)


def test_forget_of_an_unknown_node_is_nothing(tree: Tree) -> None:
    ino = tree.file()
    tree.fs.forget(4711, 1)
    assert (tree.node(ino).nlookup, 4711 in tree.fs.nodes) == (1, False)


def test_dot_finds_any_node_and_dotdot_the_parent(tree: Tree) -> None:
    directory = tree.directory()
    ino = tree.file(parent=directory)
    tree.forget(ino)
    assert tree.fs.lookup(ROOT, ino, b".") is tree.node(ino)
    assert tree.fs.lookup(ROOT, directory, b"..") is tree.node(ROOT_ID)
    assert tree.fs.lookup(ROOT, ROOT_ID, b"..") is tree.node(ROOT_ID)


def test_dot_of_a_node_without_a_name_is_estale(tree: Tree) -> None:
    ino = tree.file()
    tree.fs.unlink(ROOT, ROOT_ID, b"file")
    with fails(errno.ESTALE):
        tree.fs.lookup(ROOT, ino, b".")


def test_name_of_256_bytes_is_enametoolong_everywhere(tree: Tree) -> None:
    ino = tree.file()
    name = b"n" * 256
    for call in (
        lambda: tree.fs.lookup(ROOT, ROOT_ID, name),
        lambda: tree.fs.mknod(ROOT, ROOT_ID, name, 0o644, 0, 0),
        lambda: tree.fs.mkdir(ROOT, ROOT_ID, name, 0o755, 0),
        lambda: tree.fs.symlink(ROOT, ROOT_ID, name, b"target"),
        lambda: tree.fs.link(ROOT, ino, ROOT_ID, name),
        lambda: tree.fs.rename(ROOT, ROOT_ID, b"file", ROOT_ID, name, 0),
    ):
        with fails(errno.ENAMETOOLONG):
            call()
    assert tree.names() == [b"file"]


def test_lookup_below_a_file_is_enotdir(tree: Tree) -> None:
    with fails(errno.ENOTDIR):
        tree.fs.lookup(ROOT, tree.file(), b"name")


def test_nothing_is_made_in_a_removed_directory(tree: Tree) -> None:
    directory = tree.directory()
    other = tree.file(b"other")
    tree.fs.rmdir(ROOT, ROOT_ID, b"directory")
    for call in (
        lambda: tree.fs.mknod(ROOT, directory, b"name", 0o644, 0, 0),
        lambda: tree.fs.tmpfile(ROOT, directory, 0o644, 0, 0),
        lambda: tree.fs.link(ROOT, other, directory, b"name"),
        lambda: tree.fs.rename(ROOT, ROOT_ID, b"other", directory, b"name", 0),
    ):
        with fails(errno.ENOENT):
            call()


def test_file_has_at_most_as_many_names_as_the_protocol_can_count(tree: Tree) -> None:
    ino = tree.file()
    tree.node(ino).nlink = LINK_MAX
    with fails(errno.EMLINK):
        tree.fs.link(ROOT, ino, ROOT_ID, b"link")
    tree.node(ROOT_ID).nlink = LINK_MAX
    with fails(errno.EMLINK):
        tree.directory()


# Space.


async def test_write_without_room_waits_for_the_forget_of_what_was_removed() -> None:
    tree = Tree(pages=2)
    old, new = tree.file(b"old", b"o" * 2 * PAGE), tree.file(b"new")
    tree.fs.unlink(ROOT, ROOT_ID, b"old")
    writing = tree.fs.write(ROOT, new, None, 0, memoryview(b"n" * 2 * PAGE))
    assert isinstance(writing, Coroutine)
    task = asyncio.ensure_future(writing)
    await asyncio.sleep(0)
    tree.forget(old)
    assert await task == 2 * PAGE
    assert tree.read(new) == b"n" * 2 * PAGE


async def test_write_without_room_beside_an_open_unlinked_file_is_enospc() -> None:
    tree = Tree(pages=2)
    old, new = tree.file(b"old", b"o" * 2 * PAGE), tree.file(b"new")
    tree.fs.unlink(ROOT, ROOT_ID, b"old")
    writing = tree.fs.write(ROOT, new, None, 0, memoryview(b"n"))
    assert isinstance(writing, Coroutine)
    with fails(errno.ENOSPC):
        await writing
    assert tree.read(old) == b"o" * 2 * PAGE


async def test_creating_without_an_inode_waits_for_the_forget_of_what_was_removed() -> None:
    tree = Tree(inodes=2)
    old = tree.file(b"old")
    tree.fs.unlink(ROOT, ROOT_ID, b"old")
    making = tree.fs.mknod(ROOT, ROOT_ID, b"new", 0o644, 0, 0)
    assert isinstance(making, Coroutine)
    task = asyncio.ensure_future(making)
    await asyncio.sleep(0)
    tree.forget(old)
    assert (await task).nlink == 1


async def test_totals_wait_for_the_forget_of_what_was_removed() -> None:
    tree = Tree()
    old = tree.file(b"old", b"o")
    tree.fs.unlink(ROOT, ROOT_ID, b"old")
    counting = tree.fs.statfs(ROOT, ROOT_ID)
    assert isinstance(counting, Coroutine)
    task = asyncio.ensure_future(counting)
    await asyncio.sleep(0)
    tree.forget(old)
    assert (await task).bfree == 16


def test_write_is_cut_to_the_pages_that_are_left() -> None:
    tree = Tree(pages=3)
    ino = tree.file(data=b"x")
    assert tree.write(ino, b"y" * 5 * PAGE, 10) == 3 * PAGE - 10
    assert tree.node(ino).size == 3 * PAGE
    with fails(errno.ENOSPC):
        tree.write(ino, b"z", 3 * PAGE)
    assert tree.write(ino, b"z" * 3 * PAGE) == 3 * PAGE  # what is in use can be written again


def test_empty_write_is_nothing(tree: Tree) -> None:
    ino = tree.file()
    assert tree.write(ino, b"", 100) == 0
    assert tree.node(ino).size == 0


def test_failed_fallocate_leaves_nothing_behind(tree: Tree) -> None:
    ino = tree.file(data=b"x")
    with fails(errno.ENOSPC):
        tree.fallocate(ino, 0, 0, 17 * PAGE)
    assert (tree.node(ino).size, tree.node(ino).blocks, tree.totals()[0]) == (1, 8, 15)


def test_long_symlink_takes_a_page_and_gives_it_back(tree: Tree) -> None:
    short = now(tree.fs.symlink(ROOT, ROOT_ID, b"short", b"t" * 127))
    long = now(tree.fs.symlink(ROOT, ROOT_ID, b"long", b"t" * 128))
    assert (short.blocks, long.blocks, tree.totals()) == (0, 8, (15, 13))
    tree.fs.unlink(ROOT, ROOT_ID, b"long")
    tree.forget(long.ino)
    assert tree.totals() == (16, 14)


def test_further_names_and_xattrs_count_as_inodes_do(tree: Tree) -> None:
    ino = tree.file()
    now(tree.fs.link(ROOT, ino, ROOT_ID, b"link"))
    assert tree.totals()[1] == 13
    tree.fs.setxattr(ROOT, ino, b"user.x", memoryview(b"v" * 1000), 0)
    assert tree.totals()[1] == 11
    tree.fs.setxattr(ROOT, ino, b"user.x", memoryview(b""), 0)
    assert tree.totals()[1] == 12
    tree.fs.unlink(ROOT, ROOT_ID, b"link")
    tree.fs.unlink(ROOT, ROOT_ID, b"file")
    tree.forget(ino)
    assert tree.totals()[1] == 15


def test_xattr_without_room_is_enospc_and_keeps_the_old_value() -> None:
    tree = Tree(inodes=3)
    ino = tree.file()
    tree.fs.setxattr(ROOT, ino, b"user.x", memoryview(b"old"), 0)
    with fails(errno.ENOSPC):
        tree.fs.setxattr(ROOT, ino, b"user.x", memoryview(b"v" * 1000), 0)
    assert tree.fs.getxattr(ROOT, ino, b"user.x") == b"old"


def test_limits_are_half_of_the_memory_by_default() -> None:
    totals = now(MemFS().statfs(ROOT, ROOT_ID))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert (totals.blocks, totals.files) == (memory // 2 // PAGE, memory // 2 // PAGE)
    assert (totals.bfree, totals.ffree) == (totals.blocks, totals.files - 1)


def test_without_a_limit_the_memory_is_what_df_shows() -> None:
    fs = MemFS(None, MemOptions(size=Size(0), nr_inodes=0))
    now(fs.mknod(ROOT, ROOT_ID, b"file", 0o644, 0, 0))
    assert fs.write(ROOT, 2, None, 0, memoryview(b"x")) == 1
    totals = now(fs.statfs(ROOT, ROOT_ID))
    assert totals.blocks == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // PAGE
    assert (totals.bfree, totals.bavail) == (totals.blocks - 1, totals.blocks - 1)
    assert (totals.files, totals.ffree) == (0, 0)


def test_size_is_rounded_up_to_pages() -> None:
    assert now(MemFS(None, MemOptions(size=Size(1))).statfs(ROOT, ROOT_ID)).blocks == 1


def test_root_is_the_mounters_unless_options_say_otherwise() -> None:
    root = MemFS().nodes[ROOT_ID]
    assert (root.mode, root.uid, root.gid) == (stat.S_IFDIR | 0o755, os.geteuid(), os.getegid())
    root = MemFS(None, MemOptions(mode=Mode(0o1777), uid=5, gid=6)).nodes[ROOT_ID]
    assert (root.mode, root.uid, root.gid) == (stat.S_IFDIR | 0o1777, 5, 6)


def test_empty_file_costs_less_than_one_and_a_half_kib() -> None:
    count = 100_000
    program = f"""
from pyfusekit.core import ROOT_ID, Request, Size
from pyfusekit.fs.memfs import MemFS, MemOptions
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
fs = MemFS(None, MemOptions(nr_inodes=0))
request = Request(2, 1000, 1000, 1)
before = resident()
for at in range({count}):
    fs.mknod(request, ROOT_ID, b"file-%d" % at, 0o100644, 0, 0o022)
print((resident() - before) // {count})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=50)
    assert 100 < int(done.stdout) < 1536


def test_memory_of_removed_files_is_returned() -> None:
    program = """
import os
from pyfusekit.core import ROOT_ID, Request
from pyfusekit.fs.memfs import MemFS, MemOptions
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 >> 20
fs = MemFS(None, MemOptions(nr_inodes=0))
request = Request(2, 1000, 1000, 1)
before = resident()
for at in range(4096):
    ino = fs.mknod(request, ROOT_ID, b"%d" % at, 0o100644, 0, 0).ino
    fs.write(request, ino, None, 0, memoryview(os.urandom(65536)))
full = resident()
for at in range(4095):  # the last one stays, and everything lies before it
    fs.unlink(request, ROOT_ID, b"%d" % at)
    fs.forget(ino - 4095 + at, 1)
print(full - before, resident() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=50)
    full, left = map(int, done.stdout.split())
    assert full >= 256
    assert left < 256 * 0.3  # at most 64 MiB wait to be returned


# Directories.


def test_walk_of_100_000_names_sees_each_that_stays_once_while_others_come_and_go() -> None:
    tree = Tree(inodes=0)
    count = 100_000
    for at in range(count):
        tree.file(b"%d" % at)
    seen: list[bytes] = []
    offset = 0
    while True:
        page = []
        for name, cookie in tree.walk(ROOT_ID, offset):  # a reply has room for a thousand
            page.append(name)
            offset = cookie
            if len(page) == 1000:
                break
        if not page:
            break
        seen += page
        done = len(seen) // 1000
        for at in range(done * 500, done * 500 + 400):  # from behind, some already seen, some not
            tree.fs.unlink(ROOT, ROOT_ID, b"%d" % (count - 1 - 2 * at)) if 2 * at < count // 2 else None
        if done < 50:
            tree.file(b"new-%d" % done)
    assert len(seen) == len(set(seen))
    stayed = {b"%d" % at for at in range(count)} & set(tree.names())
    assert 60_000 < len(stayed) < 90_000
    assert stayed <= set(seen)


def test_walk_goes_on_when_most_names_behind_it_are_gone(tree: Tree) -> None:
    tree = Tree(inodes=0)
    for at in range(1000):
        tree.file(b"%d" % at)
    walk = tree.walk(ROOT_ID)
    first = [next(walk) for _ in range(502)]
    for name, _ in first[2:]:
        tree.fs.unlink(ROOT, ROOT_ID, name)
    for at in range(500, 900):
        tree.fs.unlink(ROOT, ROOT_ID, b"%d" % at)
    rest = [name for name, _ in tree.walk(ROOT_ID, first[-1][1])]
    assert rest == [b"%d" % at for at in range(900, 1000)]


def test_walk_sees_a_replaced_name_once(tree: Tree) -> None:
    for name in (b"a", b"b", b"c"):
        tree.file(name)
    walk = dict(tree.walk(ROOT_ID))
    tree.fs.rename(ROOT, ROOT_ID, b"c", ROOT_ID, b"a", 0)
    assert [name for name, _ in tree.walk(ROOT_ID, walk[b"a"])] == [b"b"]
    assert tree.names() == [b"a", b"b"]


def test_name_removed_and_made_again_comes_last(tree: Tree) -> None:
    for name in (b"a", b"b"):
        tree.file(name)
    assert tree.names() == [b"a", b"b"]
    tree.fs.unlink(ROOT, ROOT_ID, b"a")
    tree.file(b"a")
    assert tree.names() == [b"b", b"a"]


def test_readdirplus_has_the_attributes_of_all_but_the_dots(tree: Tree) -> None:
    ino = tree.file()
    entries = tree.fs.readdirplus(ROOT, ROOT_ID, None, 0)
    assert not isinstance(entries, Coroutine)
    assert [entry.attr for entry in entries] == [None, None, tree.node(ino)]  # type: ignore[union-attr]
    assert tree.node(ino).nlookup == 1  # the core counts what it sends


def test_directory_size_is_twenty_bytes_a_name(tree: Tree) -> None:
    tree.file()
    directory = tree.directory()
    assert (tree.node(ROOT_ID).size, tree.node(directory).size) == (80, 40)
    tree.fs.rename(ROOT, ROOT_ID, b"file", directory, b"moved", 0)
    assert (tree.node(ROOT_ID).size, tree.node(directory).size) == (60, 60)


# Renaming.


def test_directory_does_not_move_into_itself(tree: Tree) -> None:
    outer = tree.directory(b"outer")
    inner = tree.directory(b"inner", parent=outer)
    tree.file(b"file", parent=inner)
    for flag in (0, RENAME_EXCHANGE):
        with fails(errno.EINVAL):
            tree.fs.rename(ROOT, ROOT_ID, b"outer", inner, b"file", flag)
    with fails(errno.EINVAL):
        tree.fs.rename(ROOT, inner, b"file", ROOT_ID, b"outer", RENAME_EXCHANGE)


@pytest.mark.parametrize(
    "flag", [8, RENAME_EXCHANGE | RENAME_NOREPLACE, RENAME_EXCHANGE | RENAME_WHITEOUT], ids=["unknown", "refuse", "leave"]
)
def test_rename_flags_without_a_meaning_are_einval(tree: Tree, flag: int) -> None:
    tree.file(b"a")
    tree.file(b"b")
    with fails(errno.EINVAL):
        tree.fs.rename(ROOT, ROOT_ID, b"a", ROOT_ID, b"b", flag)


def test_exchanged_directories_change_parents_and_link_counts(tree: Tree) -> None:
    left, right = tree.directory(b"left"), tree.directory(b"right")
    moved = tree.directory(b"moved", parent=left)
    ino = tree.file(parent=right)
    tree.fs.rename(ROOT, left, b"moved", right, b"file", RENAME_EXCHANGE)
    assert tree.fs.lookup(ROOT, moved, b"..") is tree.node(right)
    assert tree.fs.lookup(ROOT, left, b"moved") is tree.node(ino)
    assert (tree.node(left).nlink, tree.node(right).nlink) == (2, 3)


def test_whiteout_is_a_device_that_counts_as_an_inode(tree: Tree) -> None:
    tree.file()
    tree.fs.rename(ROOT, ROOT_ID, b"file", ROOT_ID, b"moved", RENAME_WHITEOUT)
    left = tree.fs.lookup(ROOT, ROOT_ID, b"file")
    assert left is not None
    assert (left.mode, left.rdev, tree.totals()[1]) == (stat.S_IFCHR, 0, 13)


def test_whiteout_without_an_inode_moves_nothing() -> None:
    tree = Tree(inodes=2)
    tree.file()
    with fails(errno.ENOSPC):
        tree.fs.rename(ROOT, ROOT_ID, b"file", ROOT_ID, b"moved", RENAME_WHITEOUT)
    assert tree.names() == [b"file"]


# Contents.


def test_zeroed_range_is_reserved_and_no_data(tree: Tree) -> None:
    ino = tree.file(data=b"x" * 4 * PAGE)
    tree.fallocate(ino, FALLOC_FL_ZERO_RANGE, PAGE - 2, 5 * PAGE + 2)
    assert tree.read(ino) == b"x" * (PAGE - 2) + bytes(5 * PAGE + 2)
    assert (tree.node(ino).size, tree.node(ino).blocks) == (6 * PAGE, 6 * 8)
    assert tree.fs.lseek(ROOT, ino, None, 0, os.SEEK_HOLE) == PAGE
    with fails(errno.ENXIO):
        tree.fs.lseek(ROOT, ino, None, PAGE, os.SEEK_DATA)


def test_zero_range_that_keeps_the_size_reserves_behind_it(tree: Tree) -> None:
    ino = tree.file(data=b"x" * 10)
    tree.fallocate(ino, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 5, 3 * PAGE)
    assert (tree.read(ino), tree.node(ino).blocks) == (b"x" * 5 + bytes(5), 4 * 8)


@pytest.mark.parametrize(
    "mode", [FALLOC_FL_PUNCH_HOLE, 0x08, 0x20, 0x40], ids=["punch that grows", "collapse", "insert", "unshare"]
)
def test_other_modes_of_fallocate_are_eopnotsupp(tree: Tree, mode: int) -> None:
    with fails(errno.EOPNOTSUPP):
        tree.fallocate(tree.file(), mode, 0, PAGE)


def test_truncating_to_the_same_size_frees_what_was_reserved_behind(tree: Tree) -> None:
    ino = tree.file(data=b"x")
    tree.fallocate(ino, FALLOC_FL_KEEP_SIZE, 0, 8 * PAGE)
    assert tree.totals()[0] == 8
    tree.fs.setattr(ROOT, ino, SetAttr(size=1), None)
    assert tree.totals()[0] == 15


def test_copied_range_keeps_holes_and_takes_data_away(tree: Tree) -> None:
    source, target = tree.file(b"source"), tree.file(b"target", b"t" * 4 * PAGE)
    tree.write(source, b"s" * PAGE, 2 * PAGE)
    tree.fs.setattr(ROOT, source, SetAttr(size=5 * PAGE), None)
    assert tree.fs.copy_file_range(ROOT, source, None, 0, target, None, PAGE, 9 * PAGE, 0) == 5 * PAGE
    assert tree.read(target) == b"t" * PAGE + bytes(2 * PAGE) + b"s" * PAGE + bytes(2 * PAGE)
    assert tree.node(target).size == 6 * PAGE
    assert tree.fs.lseek(ROOT, target, None, 0, os.SEEK_HOLE) == PAGE
    assert tree.node(target).blocks == 4 * 8  # what it had stays reserved


def test_copy_inside_one_file_takes_the_bytes_as_they_were(tree: Tree) -> None:
    ino = tree.file(data=b"a" * PAGE + b"b" * PAGE)
    assert tree.fs.copy_file_range(ROOT, ino, None, 0, ino, None, 2 * PAGE, 2 * PAGE, 0) == 2 * PAGE
    assert tree.read(ino) == (b"a" * PAGE + b"b" * PAGE) * 2


def test_copy_is_cut_to_the_pages_that_are_left() -> None:
    tree = Tree(pages=5)
    source, target = tree.file(b"source", b"s" * 3 * PAGE), tree.file(b"target")
    assert tree.fs.copy_file_range(ROOT, source, None, 0, target, None, 0, 3 * PAGE, 0) == 2 * PAGE
    assert tree.read(target) == b"s" * 2 * PAGE
    with fails(errno.ENOSPC):
        tree.fs.copy_file_range(ROOT, source, None, 0, target, None, 2 * PAGE, PAGE, 0)


def test_copy_from_behind_the_end_copies_nothing(tree: Tree) -> None:
    source, target = tree.file(b"source", b"s"), tree.file(b"target")
    assert tree.fs.copy_file_range(ROOT, source, None, 1, target, None, 0, 10, 0) == 0


def test_only_regular_files_have_contents(tree: Tree) -> None:
    with fails(errno.EISDIR):
        tree.write(tree.directory(), b"x")
    fifo = now(tree.fs.mknod(ROOT, ROOT_ID, b"fifo", stat.S_IFIFO | 0o644, 0, 0)).ino
    with fails(errno.EINVAL):
        tree.fs.setattr(ROOT, fifo, SetAttr(size=0), None)
    with fails(errno.EINVAL):
        tree.fs.readlink(ROOT, fifo)


# Times.


def test_read_changes_atime_as_relatime_does(tree: Tree) -> None:
    ino = tree.file(data=b"x")
    node = tree.node(ino)
    tree.read(ino)
    first = node.atime_ns
    assert first >= node.mtime_ns
    node.mtime_ns = node.ctime_ns = first - 1
    tree.read(ino)
    assert node.atime_ns == first
    node.ctime_ns = first
    tree.read(ino)
    assert node.atime_ns > first
    node.mtime_ns = node.ctime_ns = 0
    node.atime_ns = yesterday = first - 86_400 * 10**9
    tree.read(ino)
    assert node.atime_ns > yesterday


def test_ctime_is_taken_when_the_kernel_owns_it(tree: Tree) -> None:
    ino = tree.file()
    assert now(tree.fs.setattr(ROOT, ino, SetAttr(mtime_ns=5, ctime_ns=7), None)).ctime_ns == 7


def test_birth_time_never_changes(tree: Tree) -> None:
    ino = tree.file()
    born = tree.fs.statx(ROOT, ino, None, 0).btime_ns
    tree.write(ino, b"x")
    tree.fs.setattr(ROOT, ino, SetAttr(mode=0o600, mtime_ns=1, atime_ns=1), None)
    assert tree.fs.statx(ROOT, ino, None, 0).btime_ns == born > 0


# Privileges.


def flagged(request_flags: int, uid: int = 1000, gid: int = 1000, pid: int = 0) -> Request:
    request = Request(2, uid, gid, pid)
    request.flags = request_flags
    return request


def test_write_that_says_so_clears_what_gives_rights(tree: Tree) -> None:
    ino = tree.file(mode=0o6755)
    tree.fs.setxattr(ROOT, ino, b"security.capability", memoryview(b"caps"), 0)
    tree.write(ino, b"x")
    assert stat.S_IMODE(tree.node(ino).mode) == 0o6755
    tree.write(ino, b"x", who=flagged(WRITE_KILL_SUIDGID))
    assert stat.S_IMODE(tree.node(ino).mode) == 0o755
    assert tree.fs.listxattr(ROOT, ino) == []
    assert tree.totals()[1] == 14


def test_change_of_nothing_clears_what_gives_rights(tree: Tree) -> None:
    ino = tree.file(mode=0o4711)
    assert stat.S_IMODE(now(tree.fs.setattr(USER, ino, SetAttr(), None)).mode) == 0o711


def test_directory_keeps_its_bits(tree: Tree) -> None:
    ino = tree.directory(mode=0o6755)
    assert stat.S_IMODE(now(tree.fs.setattr(USER, ino, SetAttr(uid=5, kill_suidgid=True), None)).mode) == 0o6755


@pytest.mark.parametrize(
    ("who", "left"),
    [
        (flagged(WRITE_KILL_SUIDGID, uid=0, gid=0), 0o2644),
        (flagged(WRITE_KILL_SUIDGID, gid=77), 0o2644),
        (flagged(WRITE_KILL_SUIDGID, gid=78), 0o644),
        (flagged(WRITE_KILL_SUIDGID, gid=78, pid=2**22 + 1), 0o644),
    ],
    ids=["root", "first group", "other group", "no such process"],
)
def test_sgid_without_execution_stays_for_members_of_the_group(tree: Tree, who: Request, left: int) -> None:
    ino = tree.file(mode=0o2644)
    tree.node(ino).gid = 77
    tree.write(ino, b"x", who=who)
    assert stat.S_IMODE(tree.node(ino).mode) == left


def test_supplementary_groups_are_found_in_proc(tree: Tree) -> None:
    """The process group of a caller is read where the kernel shows it."""
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, user=1000, group=1000, extra_groups=[77])
    try:
        ino = tree.file(mode=0o2644)
        tree.node(ino).gid = 77
        tree.write(ino, b"x", who=flagged(WRITE_KILL_SUIDGID, pid=child.pid))
        assert stat.S_IMODE(tree.node(ino).mode) == 0o2644
    finally:
        child.communicate()


def test_acl_that_a_mode_can_say_becomes_the_mode(tree: Tree) -> None:
    ino = tree.file(mode=0o2600)
    plain = acl.build([entry for entry in acl.parse(MASKED_ACL) if entry[0] in (acl.USER_OBJ, acl.GROUP_OBJ, acl.OTHER)])
    tree.fs.setxattr(ROOT, ino, acl.ACCESS, memoryview(MASKED_ACL), 0)
    assert tree.fs.listxattr(ROOT, ino) == [acl.ACCESS]
    tree.fs.setxattr(ROOT, ino, acl.ACCESS, memoryview(plain), 0)
    assert tree.fs.listxattr(ROOT, ino) == []
    assert stat.S_IMODE(tree.node(ino).mode) == 0o2755


def test_acl_of_one_who_is_not_in_the_group_clears_sgid(tree: Tree) -> None:
    ino = tree.file(mode=0o2600)
    tree.fs.setxattr(flagged(SETXATTR_ACL_KILL_SGID), ino, acl.ACCESS, memoryview(MASKED_ACL), 0)
    assert stat.S_IMODE(tree.node(ino).mode) == 0o755


def test_default_acl_of_a_file_is_eacces(tree: Tree) -> None:
    with fails(errno.EACCES):
        tree.fs.setxattr(ROOT, tree.file(), acl.DEFAULT, memoryview(MASKED_ACL), 0)


def test_trusted_xattrs_are_listed_for_root_only(tree: Tree) -> None:
    ino = tree.file()
    for name in (b"trusted.t", b"user.u"):
        tree.fs.setxattr(ROOT, ino, name, memoryview(b""), 0)
    assert tree.fs.listxattr(ROOT, ino) == [b"trusted.t", b"user.u"]
    assert tree.fs.listxattr(USER, ino) == [b"user.u"]


# Inode flags.


def test_flags_are_told_as_they_were_set(tree: Tree) -> None:
    ino = tree.file()
    asked = Request(2, 0, 0, 1)
    asked.size = 64
    tree.set_flags(ino, 0xC0)
    assert tree.fs.ioctl(asked, ino, None, flags.GETFLAGS, 0, memoryview(b"")) == Ioctl(0, struct.pack("=I", 0xC0))
    told = tree.fs.ioctl(asked, ino, None, flags.FSGETXATTR, 0, memoryview(b""))
    assert told == Ioctl(0, struct.pack("=IIIII8x", 0xC0, 0, 0, 0, 0))
    tree.fs.ioctl(asked, ino, None, flags.FSSETXATTR, 0, memoryview(struct.pack("=IIIII8x", 0x18, 0, 0, 0, 0)))
    assert tree.node(ino).flags == flags.FLAG_APPEND | flags.FLAG_IMMUTABLE


def test_flags_there_are_not_are_eopnotsupp_and_other_ioctls_enotty(tree: Tree) -> None:
    ino = tree.file()
    with fails(errno.EOPNOTSUPP):
        tree.set_flags(ino, 0x01)
    with fails(errno.EOPNOTSUPP):
        tree.fs.ioctl(ROOT, ino, None, flags.FSSETXATTR, 0, memoryview(struct.pack("=IIIII8x", 1, 0, 0, 0, 0)))
    with fails(errno.ENOTTY):
        tree.fs.ioctl(ROOT, ino, None, 0x5401, 0, memoryview(b""))


def test_immutable_file_refuses_every_change_until_the_flag_goes(tree: Tree) -> None:
    ino = tree.file(data=b"kept")
    other = tree.file(b"other")
    tree.set_flags(ino, flags.FLAG_IMMUTABLE)
    for call in (
        lambda: tree.write(ino, b"x"),
        lambda: tree.fallocate(ino, 0, 0, 1),
        lambda: tree.fs.copy_file_range(ROOT, other, None, 0, ino, None, 0, 1, 0),
        lambda: tree.fs.setattr(ROOT, ino, SetAttr(mode=0), None),
        lambda: tree.fs.setattr(ROOT, ino, SetAttr(size=0), None),
        lambda: tree.fs.setattr(ROOT, ino, SetAttr(mtime_ns=1, mtime_now=True), None),
        lambda: tree.fs.setxattr(ROOT, ino, b"user.x", memoryview(b""), 0),
        lambda: tree.fs.removexattr(ROOT, ino, b"user.x"),
        lambda: tree.fs.link(ROOT, ino, ROOT_ID, b"link"),
        lambda: tree.fs.unlink(ROOT, ROOT_ID, b"file"),
        lambda: tree.fs.rename(ROOT, ROOT_ID, b"file", ROOT_ID, b"moved", 0),
        lambda: tree.fs.rename(ROOT, ROOT_ID, b"other", ROOT_ID, b"file", 0),
    ):
        with fails(errno.EPERM):
            call()
    assert tree.read(ino) == b"kept"
    tree.set_flags(ino, 0)
    tree.fs.unlink(ROOT, ROOT_ID, b"file")
    tree.forget(ino)
    assert tree.fs.bound == 0


def test_append_only_file_only_grows(tree: Tree) -> None:
    ino = tree.file(data=b"kept")
    tree.set_flags(ino, flags.FLAG_APPEND)
    assert tree.write(ino, b"more", 4) == 4
    tree.fs.setattr(ROOT, ino, SetAttr(mtime_ns=1, mtime_now=True, atime_ns=1, atime_now=True), None)
    for call in (
        lambda: tree.write(ino, b"x", 3),
        lambda: tree.fs.setattr(ROOT, ino, SetAttr(size=0), None),
        lambda: tree.fs.setattr(ROOT, ino, SetAttr(mtime_ns=1), None),
        lambda: tree.fs.unlink(ROOT, ROOT_ID, b"file"),
    ):
        with fails(errno.EPERM):
            call()
    assert tree.read(ino) == b"keptmore"


def test_immutable_directory_keeps_its_names(tree: Tree) -> None:
    directory = tree.directory()
    tree.file(parent=directory)
    tree.file(b"other")
    tree.set_flags(directory, flags.FLAG_IMMUTABLE)
    for call in (
        lambda: tree.file(b"new", parent=directory),
        lambda: tree.fs.unlink(ROOT, directory, b"file"),
        lambda: tree.fs.rename(ROOT, ROOT_ID, b"other", directory, b"new", 0),
        lambda: tree.fs.rename(ROOT, directory, b"file", ROOT_ID, b"new", 0),
    ):
        with fails(errno.EPERM):
            call()
    assert tree.names(directory) == [b"file"]


def test_forgetting_an_immutable_file_stops_the_looking() -> None:
    tree = Tree()
    attr, _ = now(tree.fs.tmpfile(ROOT, ROOT_ID, 0o600, 0, 0))
    tree.set_flags(attr.ino, flags.FLAG_IMMUTABLE)
    assert tree.fs.bound == 1
    tree.forget(attr.ino)
    assert tree.fs.bound == 0

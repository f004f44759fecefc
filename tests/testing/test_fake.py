"""The system-call side of the fake kernel: what it asks, what it caches, and what a server does not do."""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pyfusekit.core import Attr, Filesystem, NoOptions, Request, SetAttr, abi
from pyfusekit.testing.contract.base import ALICE, fails_with, opened
from pyfusekit.testing.doors import FakeDoor, open_fake
from pyfusekit.testing.fake import FakeTree
from pyfusekit.testing.pending import OFFERED
from pyfusekit.testing.recipe import Recipe


class Note(Filesystem):
    """One file, "note", and nothing that is not needed for it."""

    Options = NoOptions
    attr_ttl = entry_ttl = negative_ttl = 1000.0
    data = b"hello"
    mode = stat.S_IFREG | 0o644

    def __init__(self, source: str | None = None, options: Any = None) -> None:
        self.nlookup = 0
        self.contents = self.data

    def lookup(self, request: Request, parent: int, name: bytes) -> Attr | None:
        if name != b"note":
            return None
        self.nlookup += 1
        return self.getattr(request, 2, None)

    def forget(self, ino: int, nlookup: int) -> None:
        self.nlookup -= nlookup

    def getattr(self, request: Request, ino: int, handle: Any) -> Attr:
        if ino == 1:
            return Attr(ino=1, mode=stat.S_IFDIR | 0o755, nlink=2)
        return Attr(ino=2, mode=self.mode, size=len(self.contents))

    def read(self, request: Request, ino: int, handle: Any, offset: int, size: int) -> bytes:
        return self.contents[offset : offset + size]


class Forgetful(Note):
    """Nothing of it may be cached."""

    attr_ttl = entry_ttl = negative_ttl = 0.0


class Writable(Note):
    """It may be written, by anybody, and has set-id bits."""

    mode = stat.S_IFREG | 0o6777

    def setattr(self, request: Request, ino: int, changes: SetAttr, handle: Any) -> Attr:
        if changes.mode is not None:
            self.mode = changes.mode
        if changes.size is not None:
            self.contents = self.contents[: changes.size]
        return self.getattr(request, ino, handle)

    def write(self, request: Request, ino: int, handle: Any, offset: int, data: memoryview) -> int:
        self.contents = self.contents[:offset] + bytes(data) + self.contents[offset + len(data) :]
        return len(data)


class Stateless(Note):
    """Opening needs no request."""

    stateless_open = True


class Liar(Note):
    """It reads more than the file has, and less."""

    def read(self, request: Request, ino: int, handle: Any, offset: int, size: int) -> bytes:
        return b"he"


def served(name: str, **arguments: Any) -> Any:
    return open_fake(Recipe(f"{__name__}:{name}"), **arguments)


@pytest.fixture
def door() -> Iterator[FakeDoor]:
    with served("Note") as opened:
        yield opened


@pytest.fixture
def tree(door: FakeDoor) -> FakeTree:
    assert isinstance(door.tree, FakeTree)
    return door.tree


def test_name_and_attributes_are_asked_once_while_they_hold(door: FakeDoor, tree: FakeTree) -> None:
    for _ in range(5):
        assert tree.stat("note").size == 5
    asked = door.mount.kernel.asked
    assert (asked[abi.LOOKUP], asked[abi.GETATTR]) == (1, 1)  # GETATTR of the root, to walk through it


def test_missing_name_is_asked_once_while_that_holds(door: FakeDoor, tree: FakeTree) -> None:
    for _ in range(5):
        assert not tree.exists("missing")
    assert door.mount.kernel.asked[abi.LOOKUP] == 1


def test_everything_is_asked_again_when_nothing_holds() -> None:
    with served("Forgetful") as door:
        for _ in range(5):
            assert door.tree.stat("note").size == 5
            assert not door.tree.exists("missing")
        asked = door.mount.kernel.asked
        assert asked[abi.LOOKUP] == 10
        assert door.mount.kernel.lookups[2] == 5


def test_dropped_caches_are_forgotten_and_asked_again(door: FakeDoor, tree: FakeTree) -> None:
    tree.stat("note")
    tree.drop_caches()
    until(lambda: door.mount.kernel.lookups[2] == 0)
    tree.stat("note")
    assert door.mount.kernel.asked[abi.LOOKUP] == 2


def test_invalidated_name_is_asked_again(door: FakeDoor, tree: FakeTree) -> None:
    tree.stat("note")
    mount = door.mount
    mount._loop.call_soon_threadsafe(lambda: mount.fs.notifier.inval_entry(1, b"note"))
    until(lambda: mount.kernel.notifications)
    tree.stat("note")
    assert mount.kernel.asked[abi.LOOKUP] == 2


def test_invalidated_attributes_are_asked_again(door: FakeDoor, tree: FakeTree) -> None:
    tree.stat("note")
    mount = door.mount
    before = mount.kernel.asked[abi.GETATTR]
    mount._loop.call_soon_threadsafe(lambda: mount.fs.notifier.inval_inode(2))
    until(lambda: mount.kernel.notifications)
    tree.stat("note")
    assert mount.kernel.asked[abi.GETATTR] == before + 1


def until(condition: Any) -> None:
    """Wait until *condition* holds, at most five seconds."""
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_what_is_not_implemented_fails_as_the_kernel_would(door: FakeDoor, tree: FakeTree) -> None:
    for number, verb in (
        (errno.EPERM, lambda: tree.mkdir("d")),
        (errno.EPERM, lambda: tree.symlink("x", "s")),
        (errno.EPERM, lambda: tree.mknod("n", 0o100644)),
        (errno.EPERM, lambda: tree.write_file("new")),
        (errno.EPERM, lambda: tree.link("note", "l")),
        (errno.EPERM, lambda: tree.unlink("note")),
        (errno.EPERM, lambda: tree.rename("note", "n")),
        (errno.EPERM, lambda: tree.chmod("note", 0o600)),
        (errno.EOPNOTSUPP, lambda: tree.getxattr("note", "user.x")),
        (errno.EOPNOTSUPP, lambda: tree.setxattr("note", "user.x", b"")),
        (errno.EOPNOTSUPP, lambda: tree.listxattr("note")),
        (errno.EOPNOTSUPP, lambda: tree.open("", os.O_TMPFILE | os.O_RDWR)),
        (errno.EOPNOTSUPP, lambda: tree.listdir()),
    ):
        for _ in range(2):
            with fails_with(number):
                verb()
    assert tree.btime_ns("note") is None
    assert tree.btime_ns("note") is None
    asked = door.mount.kernel.asked
    for opcode in (abi.GETXATTR, abi.SETXATTR, abi.LISTXATTR, abi.TMPFILE, abi.STATX, abi.LINK):
        assert asked[opcode] == 1, abi.OPS[opcode].name


def test_what_is_absent_succeeds_where_the_kernel_lets_it(door: FakeDoor, tree: FakeTree) -> None:
    for _ in range(2):
        with opened(tree, "note") as fd:
            tree.fsync(fd)
            assert tree.lseek(fd, 1, os.SEEK_DATA) == 1
            assert tree.lseek(fd, 1, os.SEEK_HOLE) == 5
    asked = door.mount.kernel.asked
    assert (asked[abi.FSYNC], asked[abi.LSEEK], asked[abi.FLUSH]) == (1, 1, 1)
    assert (asked[abi.OPEN], asked[abi.RELEASE]) == (2, 2)


def test_stateless_open_is_asked_once_and_never_released() -> None:
    with served("Stateless") as door:
        for _ in range(3):
            assert door.tree.read_file("note") == b"hello"
        asked = door.mount.kernel.asked
        assert (asked[abi.OPEN], asked[abi.RELEASE], asked[abi.FLUSH]) == (1, 0, 1)


def test_short_read_is_filled_with_zeros_up_to_the_size() -> None:
    with served("Liar") as door:
        assert door.tree.read_file("note") == b"he\0\0\0"


def test_reads_go_by_pages(door: FakeDoor, tree: FakeTree) -> None:
    sizes: list[str] = []
    door.mount.kernel.trace = sizes.append
    with opened(tree, "note") as fd:
        assert tree.pread(fd, 2, 1) == b"el"
    reads = [line for line in sizes if "READ " in line]
    assert len(reads) == 1
    assert "size=4096" in reads[0]
    assert "offset=" not in reads[0]


@pytest.mark.parametrize("offered", ["v2", "none"])
def test_set_id_bits_are_cleared_by_the_kernel_or_by_the_server(offered: str) -> None:
    flags = OFFERED if offered == "v2" else OFFERED & ~abi.HANDLE_KILLPRIV_V2
    with served("Writable", offered=flags) as door, door.tree.actor(ALICE, ALICE) as alice:
        tree = door.tree
        fd = alice.run(tree.open, "note", os.O_WRONLY)
        alice.run(tree.pwrite, fd, b"J", 0)
        alice.run(tree.close, fd)
        assert tree.stat("note").mode & 0o7777 == 0o777
        assert tree.read_file("note") == b"Jello"


def test_open_with_truncation_sends_a_setattr(door: FakeDoor) -> None:
    with served("Writable") as door:
        door.tree.close(door.tree.open("note", os.O_WRONLY | os.O_TRUNC))
        assert door.tree.stat("note").size == 0
        assert door.mount.kernel.asked[abi.SETATTR] == 1


def test_descriptor_left_open_fails_the_door() -> None:
    with pytest.raises(AssertionError, match="still open"), served("Note") as door:
        door.tree.open("note", os.O_RDONLY)


def test_warning_of_the_server_fails_the_door() -> None:
    with pytest.raises(AssertionError, match="careful"), served("Note"):
        logging.getLogger("pyfusekit.example").warning("careful")


def test_complaint_fails_the_check_once(door: FakeDoor) -> None:
    door.mount.kernel.complaints.append("nonsense")
    with pytest.raises(AssertionError, match="nonsense"):
        door.check()
    door.check()


def test_mount_that_cannot_start_says_why() -> None:
    with pytest.raises(ModuleNotFoundError), open_fake(Recipe("nowhere.at.all:FS")):
        pass

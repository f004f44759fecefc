"""Promises of docs/semantics.md and the man pages that no other test holds: limits, mappings, what goes with the server."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from commandline import Commandline, commandline

from pyfusekit.core import abi
from pyfusekit.fs.memfs import MemFS
from pyfusekit.fs.s3fs import S3FS
from pyfusekit.service import procs
from pyfusekit.testing.contract.base import fails_with, opened
from pyfusekit.testing.kernel import FakeKernel
from pyfusekit.testing.recipe import Recipe
from pyfusekit.testing.tree import Tree

PAGE = 4096
PAGES = 64
FILES = 20


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """A memory filesystem that is soon full, for the fixture ``tree`` behind both doors."""
    return Recipe("pyfusekit.fs.memfs:MemFS", options={"size": PAGES * PAGE, "nr_inodes": FILES})


@pytest.fixture
def command() -> Iterator[Commandline]:
    with commandline() as made:
        yield made


def fill(tree: Tree, fd: int, piece: bytes) -> int:
    """Write until nothing fits; return how many bytes did."""
    written = 0
    with fails_with(errno.ENOSPC):
        while True:
            written += tree.write(fd, piece)
    return written


# --- memfs: limits ------------------------------------------------------------------------------------------------------


def test_every_page_of_size_can_be_written_and_not_one_more(tree: Tree) -> None:
    free = tree.statfs().bfree
    assert free == PAGES
    with opened(tree, "f", os.O_WRONLY | os.O_CREAT) as fd:
        assert fill(tree, fd, b"x" * PAGE) == free * PAGE
        assert tree.statfs().bfree == tree.statfs().bavail == 0
        assert tree.pwrite(fd, b"y" * PAGE, 0) == PAGE, "what has its pages can be overwritten"
        with fails_with(errno.ENOSPC):
            tree.fallocate(fd, 0, free * PAGE, 1)
        assert tree.fstat(fd).size == free * PAGE
    assert tree.read_file("f")[:PAGE] == b"y" * PAGE


def test_space_of_a_removed_file_is_there_for_the_next_one(tree: Tree) -> None:
    for turn in range(5):
        with opened(tree, f"f{turn}", os.O_WRONLY | os.O_CREAT) as fd:
            assert fill(tree, fd, b"x" * (8 * PAGE)) == PAGES * PAGE
        tree.unlink(f"f{turn}")


def test_files_end_at_nr_inodes_and_names_count(tree: Tree) -> None:
    left = tree.statfs().ffree
    assert left == FILES - 2, "the root and the test's own directory"
    tree.write_file("f")
    for number in range(left - 1):
        tree.link("f", f"l{number}")
    assert tree.statfs().ffree == 0
    makers: tuple[Callable[[], object], ...] = (
        lambda: tree.mkdir("d"),
        lambda: tree.link("f", "m"),
        lambda: tree.symlink("f", "s"),
        lambda: tree.write_file("g"),
    )
    for more in makers:
        with fails_with(errno.ENOSPC):
            more()
    tree.unlink("l0")
    tree.mkdir("d")


def test_a_full_filesystem_refuses_and_loses_nothing(tree: Tree) -> None:
    tree.write_file("kept", b"k" * 5000)
    with opened(tree, "big", os.O_WRONLY | os.O_CREAT) as fd:
        fill(tree, fd, b"x" * PAGE)
    with fails_with(errno.ENOSPC):
        tree.write_file("late", b"l")
    assert tree.read_file("kept") == b"k" * 5000
    assert tree.stat("late").size == 0
    tree.unlink("big")
    tree.write_file("late", b"l")
    assert tree.read_file("late") == b"l"


# --- memfs: through the real kernel -------------------------------------------------------------------------------------


def mount(command: Commandline, *words: str) -> Path:
    place = command.folder()
    done = command.run("mount", "mem", place, *words)
    assert done.returncode == 0, done.stderr
    return place


def seen(*words: str | Path, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run a program that touches a mount; it is killed when the mount hangs."""
    argv = ["timeout", "-s", "KILL", "20", *prefix, *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, env={**os.environ, "LC_ALL": "C"})


@pytest.mark.mounted
def test_a_write_is_cut_to_the_room_there_is(command: Commandline) -> None:
    place = mount(command, "--size", str(PAGES * PAGE))
    fd = os.open(place / "f", os.O_WRONLY | os.O_CREAT)
    try:
        assert os.write(fd, b"x" * (2 * PAGES * PAGE)) == PAGES * PAGE
        with pytest.raises(OSError, match=r".") as info:
            os.write(fd, b"x")
        assert info.value.errno == errno.ENOSPC
        assert os.fstat(fd).st_size == PAGES * PAGE
    finally:
        os.close(fd)
    assert command.run("umount", place).returncode == 0


@pytest.mark.mounted
def test_mapped_page_without_room_is_enospc_at_msync(command: Commandline) -> None:
    place = mount(command, "--size", str(PAGES * PAGE))
    with contextlib.closing(os.fdopen(os.open(place / "f", os.O_RDWR | os.O_CREAT), "r+b", buffering=0)) as file:
        os.ftruncate(file.fileno(), 2 * PAGES * PAGE)
        with mmap.mmap(file.fileno(), 2 * PAGES * PAGE) as mapping:
            for page in range(2 * PAGES):
                mapping[page * PAGE] = 1
            with pytest.raises(OSError, match=r".") as info:
                mapping.flush()
            assert info.value.errno == errno.ENOSPC
    assert os.statvfs(place).f_bfree == 0
    assert command.run("umount", place).returncode == 0


@pytest.mark.mounted
def test_everything_is_gone_with_the_server(command: Commandline) -> None:
    place = mount(command)
    (place / "f").write_text("written")
    fd = os.open(place / "f", os.O_RDONLY)
    try:
        os.fsync(fd)
        (info,) = command.mounts()
        (server,) = procs.servers_of(info.minor)
        os.kill(server, signal.SIGKILL)
        assert procs.wait_gone(server, None, 10)
        assert os.strerror(errno.ENOTCONN) in seen("cat", place / "f").stderr
        with pytest.raises(OSError, match=r".") as raised:
            os.fstat(fd)
        assert raised.value.errno == errno.ENOTCONN
    finally:
        os.close(fd)
    assert command.run("umount", place).returncode == 0
    assert command.run("mount", "mem", place).returncode == 0
    assert list(place.iterdir()) == []
    assert command.run("umount", place).returncode == 0


@pytest.mark.mounted
def test_other_users_see_nothing_unless_they_are_let_in(command: Commandline) -> None:
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    place = mount(command)
    assert os.strerror(errno.EACCES) in seen("ls", place, prefix=nobody).stderr
    assert command.run("umount", place).returncode == 0
    assert command.run("mount", "mem", place, "--allow-other").returncode == 0
    assert seen("ls", "-a", place, prefix=nobody).stdout.split() == [".", ".."]
    assert os.strerror(errno.EACCES) in seen("touch", place / "f", prefix=nobody).stderr
    assert command.run("umount", place).returncode == 0
    assert command.run("mount", "mem", place, "--allow-other", "--mode", "1777").returncode == 0
    assert seen("touch", place / "f", prefix=nobody).returncode == 0
    assert (place / "f").stat().st_uid == 65534
    assert command.run("umount", place).returncode == 0


@pytest.mark.mounted
def test_noatime_changes_nothing_and_the_root_is_its_mounters(command: Commandline) -> None:
    place = mount(command, "-o", "noatime,uid=7,gid=8")
    root = place.stat()
    assert (stat.S_IMODE(root.st_mode), root.st_uid, root.st_gid) == (0o755, 7, 8)
    (place / "f").write_text("x")
    os.utime(place / "f", ns=(0, (place / "f").stat().st_mtime_ns))
    with open(place / "f", "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert file.read(1) == b"x"
    assert (place / "f").stat().st_atime_ns > 0
    assert (place / "f").stat().st_blksize == 65536
    assert command.run("umount", place).returncode == 0


# --- what the kernel is told --------------------------------------------------------------------------------------------


async def test_memfs_leaves_locks_and_write_back_to_the_kernel_as_promised() -> None:
    async with FakeKernel(MemFS()) as kernel:
        assert not kernel.has(abi.POSIX_LOCKS)
        assert not kernel.has(abi.FLOCK_LOCKS)
        assert not kernel.has(abi.WRITEBACK_CACHE)
        assert kernel.has(abi.POSIX_ACL)


def test_s3fs_leaves_locks_and_write_back_to_the_kernel_as_promised() -> None:
    fs = S3FS("bucket")
    assert not fs.implements("setlk")
    assert not fs.implements("getlk")
    assert not fs.writeback_cache

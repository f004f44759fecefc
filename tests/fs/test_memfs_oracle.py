"""memfs does what tmpfs does: the same steps on a real tmpfs and on a real mount of memfs, everything visible compared.

Steps, paths and values are hypothesis's choice, the same in every run; three variables of the environment ask for more:

    PYFUSEKIT_ORACLE_EXAMPLES   how many sequences of 50 steps (120)
    PYFUSEKIT_ORACLE_SEED       a number: other sequences than usual
    PYFUSEKIT_ORACLE_SHRINK     1: when steps differ, look for the fewest that do; takes minutes
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import stat
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import oracle
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pyfusekit.testing.mounted import MountedServer
from pyfusekit.testing.recipe import Recipe

pytestmark = pytest.mark.mounted

EXAMPLES = oracle.examples(120)
STEPS = 50
TIMEOUT_S = 7200 if EXAMPLES > 120 or oracle.SHRINK else 60

PAGE = 4096
SIZE = 50 * PAGE
NR_INODES = 14
RECIPE = Recipe("pyfusekit.fs.memfs:MemFS", options={"size": SIZE, "nr_inodes": NR_INODES, "mode": 0o777})

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
AT_FDCWD = -100
AT_SYMLINK_FOLLOW = 0x400
FALLOC_FL_PUNCH_HOLE = 2
F_OFD_SETLK = 37
F_OFD_GETLK = 36
CLOCK_REALTIME_COARSE = 5


# Two trees.


@contextlib.contextmanager
def mounted_tmpfs(path: str) -> Iterator[None]:
    options = f"size={SIZE},nr_inodes={NR_INODES},mode=777,huge=never"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "oracle", path], check=True, timeout=20)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True, timeout=20)


class World:
    """One of the two trees, and what is open in it."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.fds: dict[int, int] = {}

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def close(self) -> None:
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()
        for entry in os.scandir(self.root):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)


@contextlib.contextmanager
def acting_as(uid: int) -> Iterator[None]:
    """Give this thread the rights of *uid* in filesystems, as setfsuid(2): the capabilities over files go too."""
    if not uid:
        yield
        return
    libc.setfsgid(uid)
    libc.setfsuid(uid)
    try:
        yield
    finally:
        libc.setfsuid(0)
        libc.setfsgid(0)


def c_call(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def renameat2(old: str, new: str, flags: int) -> int:
    return c_call(libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


def outcome(call: Callable[[], Any]) -> Any:
    """Return what *call* returns, or the name of the errno it raises."""
    try:
        return call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def is_dense(fd: int, at: int, length: int) -> bool:
    """Say whether there is no hole in a range of a file; the position of *fd* stays."""
    try:
        position = os.lseek(fd, 0, os.SEEK_CUR)
        size = os.fstat(fd).st_size
        if at >= size:
            return True
        hole = os.lseek(fd, at, os.SEEK_HOLE)
        os.lseek(fd, position, os.SEEK_SET)
    except OSError:
        return False  # not a file that has any
    return hole >= min(at + length, size)


# What can be seen.


def file_bytes(fd: int, size: int) -> list[tuple[int, bytes]]:
    """Return the (offset, bytes) of what is not a hole."""
    found = []
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break
        at = os.lseek(fd, start, os.SEEK_HOLE)
        found.append((start, os.pread(fd, at - start, start)))
        assert len(found[-1][1]) == at - start
    return found


def xattrs_of(path: str) -> dict[str, bytes]:
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)}


def describe_status(status: os.stat_result) -> dict[str, Any]:
    return {
        "mode": oct(status.st_mode),
        "nlink": status.st_nlink,
        "owner": (status.st_uid, status.st_gid),
        "size": status.st_size,
        "blocks": status.st_blocks,
        "rdev": status.st_rdev,
    }


class Snapshot:
    """Everything that can be seen of a tree, in comparable form."""

    def __init__(self, world: World) -> None:
        self.files: dict[str, dict[str, Any]] = {}
        self.times: dict[int, tuple[int, int]] = {}
        self.names: dict[int, str] = {}  # the first name of each inode: the link structure
        self._walk(world, "")
        self.tick = time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
        for slot, fd in world.fds.items():
            status = os.fstat(fd)
            self.files[f"<{slot}>"] = describe_status(status) | {"is": self.names.setdefault(status.st_ino, f"<{slot}>")}
            self.times[status.st_ino] = (status.st_mtime_ns, status.st_ctime_ns)
        totals = os.statvfs(world.root)
        self.totals = (totals.f_blocks, totals.f_bfree, totals.f_bavail, totals.f_files, totals.f_ffree, totals.f_frsize)

    def _walk(self, world: World, name: str) -> None:
        path = world.path(name)
        status = os.lstat(path)
        self.times[status.st_ino] = (status.st_mtime_ns, status.st_ctime_ns)
        seen = describe_status(status) | {"is": self.names.setdefault(status.st_ino, name), "xattrs": xattrs_of(path)}
        self.files[name] = seen
        if stat.S_ISLNK(status.st_mode):
            seen["target"] = os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            fd = os.open(path, os.O_RDONLY)
            try:
                seen["data"] = file_bytes(fd, status.st_size)
            finally:
                os.close(fd)
        elif stat.S_ISDIR(status.st_mode):
            with os.scandir(path) as entries:
                listing = sorted((entry.name, entry.inode(), file_type(entry)) for entry in entries)
            seen["entries"] = [(entry, kind) for entry, _, kind in listing]
            for entry, ino, _ in listing:
                self._walk(world, f"{name}/{entry}" if name else entry)
                assert os.lstat(world.path(f"{name}/{entry}")).st_ino == ino

    def changed_since(self, before: Snapshot) -> dict[str, dict[str, bool | None]]:
        """Return, for each inode there was before too, whether its mtime and its ctime are others now.

        None: nobody can say, as it was stamped just before, and a stamp of tmpfs may be as coarse as the clock's tick.
        """
        return {
            self.names[ino]: {
                kind: True if new != old else None if old >= before.tick else False
                for kind, old, new in zip(("mtime", "ctime"), before.times[ino], times, strict=True)
            }
            for ino, times in self.times.items()
            if ino in before.times
        }


def differences(theirs: dict[str, dict[str, Any]], ours: dict[str, dict[str, Any]]) -> list[str]:
    """Say in which files and in what two snapshots differ."""
    found = [f"only on one side: {name}" for name in sorted(theirs.keys() ^ ours.keys())]
    for name in theirs.keys() & ours.keys():
        for key in theirs[name]:
            if theirs[name][key] != ours[name].get(key):
                found.append(f"{name} {key}: tmpfs {theirs[name][key]!r:.200}, memfs {ours[name].get(key)!r:.200}")
    return found


def different_changes(
    theirs: dict[str, dict[str, bool | None]], ours: dict[str, dict[str, bool | None]], kinds: tuple[str, ...]
) -> list[str]:
    """Say where changed_since says of one that a time is another now, and of the other that it is not."""
    assert theirs.keys() == ours.keys()
    return [
        f"{kind} of {name}: changed is {theirs[name][kind]} on tmpfs, {ours[name][kind]} on memfs"
        for name in theirs
        for kind in kinds
        if None not in (theirs[name][kind], ours[name][kind]) and theirs[name][kind] != ours[name][kind]
    ]


def file_type(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return "symlink"
    if entry.is_dir(follow_symlinks=False):
        return "directory"
    return "file" if entry.is_file(follow_symlinks=False) else "special"


# What steps are made of.

PATHS = st.sampled_from(("a", "a", "b", "d", "d", "d/a", "d/a", "d/b", "d/e", "d/e/a", "f", "f/a"))
WHO = st.sampled_from((0, 0, 0, 0, 1000, 1000, 1001))
SLOTS = st.integers(0, 2)
MODES = st.sampled_from((0o644, 0o600, 0o666, 0o755, 0o777, 0o700, 0o070, 0, 0o4755, 0o2755, 0o2775, 0o2644, 0o1777, 0o6777))
UMASKS = st.sampled_from((0, 0o022, 0o077, 0o027))
OWNERS = st.sampled_from((-1, 0, 1000, 1001))
OPEN_FLAGS = st.builds(
    lambda access, more: access | more[0] | more[1],
    st.sampled_from((os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR)),
    st.tuples(
        st.sampled_from((0, os.O_CREAT, os.O_CREAT, os.O_CREAT | os.O_EXCL)),
        st.sampled_from((0, 0, os.O_TRUNC, os.O_APPEND, os.O_NOFOLLOW, os.O_DIRECTORY, os.O_PATH)),
    ),
)
BOUNDARIES = (0, 1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE, 32 * PAGE - 1, 32 * PAGE, 33 * PAGE + 5, 64 * PAGE)
OFFSETS = st.one_of(st.sampled_from((*BOUNDARIES, 1 << 40)), st.integers(0, 70 * PAGE))
LENGTHS = st.one_of(st.sampled_from((1, 2, PAGE - 1, PAGE, PAGE + 1, 5 * PAGE, 33 * PAGE)), st.integers(1, 40 * PAGE))
FILL = st.integers(1, 255)
XATTRS = st.sampled_from(("user.a", "user.b", "trusted.a", "security.a", "user.", "system.a", "foo", "user." + "n" * 250))
VALUES = st.sampled_from((b"", b"v", b"w" * 300, b"x" * 2000))
TIMES = st.one_of(st.integers(0, 2**33 * 10**9), st.sampled_from((0, 1, 10**9 - 1, -1, 10**18 + 7)))


def payload(length: int, fill: int) -> bytes:
    return bytes((fill + at // 512) % 255 + 1 for at in range(0, length, 512) for _ in range(512))[:length]


@st.composite
def acls(draw: st.DrawFn) -> bytes:
    """A POSIX ACL as setxattr(2) takes it; now and then not a valid one."""
    perms = st.integers(0, 7)
    entries = [(0x01, draw(perms), 0xFFFFFFFF)]
    entries += [(0x02, draw(perms), uid) for uid in (1000, 1001) if draw(st.booleans())]
    entries += [(0x04, draw(perms), 0xFFFFFFFF)]
    entries += [(0x08, draw(perms), gid) for gid in (1000,) if draw(st.booleans())]
    if len(entries) > 2 or draw(st.booleans()):
        entries.append((0x10, draw(perms), 0xFFFFFFFF))
    if draw(st.integers(0, 9)):
        entries.append((0x20, draw(perms), 0xFFFFFFFF))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def make_machine(tmpfs: World, memfs: World, sign_of_life: Callable[[], None]) -> type[RuleBasedStateMachine]:
    class Oracle(RuleBasedStateMachine):
        """Runs each step on both, and compares what it said, and after it everything there is to see."""

        def __init__(self) -> None:
            super().__init__()
            self.before = self.snapshots()
            self.times: tuple[str, ...] = ("mtime", "ctime")
            self.reserved: set[int] = set()

        def snapshots(self) -> tuple[Snapshot, Snapshot]:
            return Snapshot(tmpfs), Snapshot(memfs)

        def both(self, who: int, step: Callable[[World], Any]) -> Any:
            outcomes = []
            for world in (tmpfs, memfs):
                with acting_as(who):
                    outcomes.append(outcome(partial(step, world)))
            assert outcomes[1] == outcomes[0]
            if outcomes[0] == "ENOSPC":
                self.times = ()  # tmpfs stamps a file before it finds that it cannot write
            return outcomes[0]

        def teardown(self) -> None:
            for world in (tmpfs, memfs):
                world.close()
            # Nothing has leaked: not a page, not an inode.
            for snapshot in self.snapshots():
                assert list(snapshot.files) == [""]
                assert snapshot.totals == (SIZE // PAGE, SIZE // PAGE, SIZE // PAGE, NR_INODES, NR_INODES - 1, PAGE)
            for world in (tmpfs, memfs):
                os.chmod(world.root, 0o777)

        @invariant()
        def nothing_differs(self) -> None:
            sign_of_life()
            theirs, ours = now = self.snapshots()
            assert differences(theirs.files, ours.files) == []
            assert ours.totals == theirs.totals
            changes = theirs.changed_since(self.before[0]), ours.changed_since(self.before[1])
            assert different_changes(*changes, self.times) == []
            self.before = now
            self.times = ("mtime", "ctime")

        @initialize(modes=st.tuples(MODES, MODES), acl=st.one_of(st.none(), acls()))
        def plant(self, modes: tuple[int, int], acl: bytes | None) -> None:
            """Begin with a few files, two of them open."""

            def step(w: World) -> None:
                for directory in ("d", "d/e", "f"):
                    os.mkdir(w.path(directory), 0o777)
                    os.chmod(w.path(directory), 0o777)
                for slot, path in enumerate(("a", "d/a")):
                    w.fds[slot] = os.open(w.path(path), os.O_RDWR | os.O_CREAT, 0o666)
                    os.chown(w.path(path), 1000, 1000)
                    os.write(w.fds[slot], payload(3 * PAGE + 7, slot + 1))
                    os.chmod(w.path(path), modes[slot])
                if acl is not None:
                    os.setxattr(w.path("d"), "system.posix_acl_default", acl)
                    os.setxattr(w.path("a"), "system.posix_acl_access", acl)

            self.both(0, step)

        # Names.

        @rule(path=PATHS, mode=MODES, umask=UMASKS, who=WHO)
        def mkdir(self, path: str, mode: int, umask: int, who: int) -> None:
            old = os.umask(umask)
            self.both(who, lambda w: os.mkdir(w.path(path), mode))
            os.umask(old)

        @rule(path=st.sampled_from(("d/b", "d/e/a", "f/a")), mode=MODES)
        def mkdir_below(self, path: str, mode: int) -> None:
            self.both(0, lambda w: os.mkdir(w.path(path), mode))

        @rule(path=PATHS, who=WHO)
        def unlink(self, path: str, who: int) -> None:
            self.both(who, lambda w: os.unlink(w.path(path)))

        @rule(path=PATHS, who=WHO)
        def rmdir(self, path: str, who: int) -> None:
            self.both(who, lambda w: os.rmdir(w.path(path)))

        @rule(path=PATHS, points_to=st.one_of(PATHS, st.sampled_from(("x" * 127, "y" * 128, "z" * 4000))), who=WHO)
        def symlink(self, path: str, points_to: str, who: int) -> None:
            self.both(who, lambda w: os.symlink(points_to, w.path(path)))

        @rule(path=PATHS, new=PATHS, who=WHO)
        def link(self, path: str, new: str, who: int) -> None:
            self.both(who, lambda w: os.link(w.path(path), w.path(new), follow_symlinks=False))

        @rule(path=PATHS, new=PATHS, flags=st.sampled_from((0, 0, 1, 2, 4, 3, 5, 6, 8)), who=WHO)
        def rename(self, path: str, new: str, flags: int, who: int) -> None:
            self.both(who, lambda w: renameat2(w.path(path), w.path(new), flags))

        @rule(path=st.sampled_from(("d/e", "f/a")), new=st.sampled_from(("f/a", "d/b", "g")), flags=st.sampled_from((0, 2, 4)))
        def move(self, path: str, new: str, flags: int) -> None:
            """As rename, but seldom in vain."""
            self.both(0, lambda w: renameat2(w.path(path), w.path(new), flags))

        @rule(
            path=PATHS, kind=st.sampled_from((stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK, 0)), mode=MODES, who=WHO
        )
        def mknod(self, path: str, kind: int, mode: int, who: int) -> None:
            self.both(who, lambda w: os.mknod(w.path(path), kind | mode, os.makedev(1, 3)))

        @rule(length=st.sampled_from((254, 255, 256)), who=WHO)
        def long_name(self, length: int, who: int) -> None:
            self.both(who, lambda w: os.mkdir(w.path("n" * length)))

        # Attributes.

        @rule(path=PATHS, mode=MODES, who=WHO)
        def chmod(self, path: str, mode: int, who: int) -> None:
            self.both(who, lambda w: os.chmod(w.path(path), mode))

        @rule(mode=st.sampled_from((0o777, 0o1777, 0o2777, 0o775)))
        def chmod_root(self, mode: int) -> None:
            self.both(0, lambda w: os.chmod(w.root, mode))

        @rule(path=PATHS, uid=OWNERS, gid=OWNERS, who=WHO)
        def chown(self, path: str, uid: int, gid: int, who: int) -> None:
            if uid == gid == -1:
                who = 0  # from others the kernel lets FUSE clear set-id bits with it, and tmpfs not
            self.both(who, lambda w: os.chown(w.path(path), uid, gid, follow_symlinks=False))

        @rule(path=PATHS, atime=TIMES, mtime=TIMES, who=WHO)
        def utimens(self, path: str, atime: int, mtime: int, who: int) -> None:
            def step(w: World) -> tuple[int, int]:
                os.utime(w.path(path), ns=(atime, mtime), follow_symlinks=False)
                status = os.lstat(w.path(path))
                return status.st_atime_ns, status.st_mtime_ns

            self.both(who, step)

        @rule(path=PATHS, who=WHO)
        def touch(self, path: str, who: int) -> None:
            self.both(who, lambda w: os.utime(w.path(path), follow_symlinks=False))

        @rule(path=PATHS, mode=st.integers(0, 7), who=WHO)
        def access(self, path: str, mode: int, who: int) -> None:
            self.both(who, lambda w: os.access(w.path(path), mode))

        @rule(path=PATHS, name=XATTRS, value=VALUES, flags=st.sampled_from((0, 0, 1, 2)), who=WHO)
        def setxattr(self, path: str, name: str, value: bytes, flags: int, who: int) -> None:
            self.both(who, lambda w: os.setxattr(w.path(path), name, value, flags, follow_symlinks=False))

        @rule(path=PATHS, name=XATTRS, who=WHO)
        def removexattr(self, path: str, name: str, who: int) -> None:
            self.both(who, lambda w: os.removexattr(w.path(path), name, follow_symlinks=False))

        @rule(path=PATHS, kind=st.sampled_from(("access", "default")), acl=acls(), who=WHO)
        def set_acl(self, path: str, kind: str, acl: bytes, who: int) -> None:
            self.both(who, lambda w: os.setxattr(w.path(path), f"system.posix_acl_{kind}", acl, follow_symlinks=False))

        @rule(path=PATHS, kind=st.sampled_from(("access", "default")), who=WHO)
        def remove_acl(self, path: str, kind: str, who: int) -> None:
            self.both(who, lambda w: os.removexattr(w.path(path), f"system.posix_acl_{kind}", follow_symlinks=False))

        # Files.

        @rule(slot=SLOTS, path=PATHS, flags=OPEN_FLAGS, mode=MODES, umask=UMASKS, who=WHO)
        def open(self, slot: int, path: str, flags: int, mode: int, umask: int, who: int) -> None:
            old = os.umask(umask)
            self.opened(slot, who, lambda w: os.open(w.path(path), flags | os.O_NONBLOCK, mode))
            os.umask(old)

        @rule(slot=SLOTS, path=st.sampled_from((".", "d", "f")), mode=MODES, who=WHO)
        def open_tmpfile(self, slot: int, path: str, mode: int, who: int) -> None:
            self.opened(slot, who, lambda w: os.open(w.path(path), os.O_TMPFILE | os.O_RDWR, mode))

        def opened(self, slot: int, who: int, how: Callable[[World], int]) -> None:
            self.close(slot)

            def step(w: World) -> bool:
                w.fds[slot] = how(w)
                return True

            self.both(who, step)

        @precondition(lambda self: bool(tmpfs.fds))
        @rule(slot=SLOTS)
        def close(self, slot: int) -> None:
            for world in (tmpfs, memfs):
                if slot in world.fds:
                    os.close(world.fds.pop(slot))

        def on_open(self, slot: int, step: Callable[[World, int], Any], who: int = 0) -> Any:
            if slot in tmpfs.fds:
                return self.both(who, lambda w: step(w, w.fds[slot]))
            return None

        @precondition(lambda self: bool(tmpfs.fds))
        @rule(slot=SLOTS, offset=OFFSETS, length=LENGTHS, fill=FILL, who=WHO)
        def pwrite(self, slot: int, offset: int, length: int, fill: int, who: int) -> None:
            data = payload(length, fill)
            self.on_open(slot, lambda w, fd: os.pwrite(fd, data, offset), who)

        @precondition(lambda self: bool(tmpfs.fds))
        @rule(slot=SLOTS, length=LENGTHS, fill=FILL, who=WHO)
        def write(self, slot: int, length: int, fill: int, who: int) -> None:
            data = payload(length, fill)
            self.on_open(slot, lambda w, fd: os.write(fd, data), who)

        @precondition(lambda self: bool(tmpfs.fds))
        @rule(slot=SLOTS, offset=OFFSETS, length=LENGTHS)
        def pread(self, slot: int, offset: int, length: int) -> None:
            self.on_open(slot, lambda w, fd: os.pread(fd, length, offset))

        @precondition(lambda self: bool(tmpfs.fds))
        @rule(slot=SLOTS, offset=OFFSETS, whence=st.sampled_from((os.SEEK_SET, os.SEEK_END, os.SEEK_DATA, os.SEEK_HOLE)))
        def lseek(self, slot: int, offset: int, whence: int) -> None:
            # Positions in directories are a matter between kernel and C library.
            if slot in tmpfs.fds and not stat.S_ISDIR(os.fstat(tmpfs.fds[slot]).st_mode):
                self.on_open(slot, lambda w, fd: os.lseek(fd, offset, whence))

        @precondition(lambda self: bool(tmpfs.fds))
        @rule(slot=SLOTS, size=OFFSETS, who=WHO)
        def ftruncate(self, slot: int, size: int, who: int) -> None:
            self.on_open(slot, lambda w, fd: os.ftruncate(fd, size), who)

        @rule(path=PATHS, size=OFFSETS, who=WHO)
        def truncate(self, path: str, size: int, who: int) -> None:
            if outcome(lambda: os.stat(tmpfs.path(path)).st_size) == size:
                self.times = ()  # tmpfs leaves the times alone when the size stays, unless there are pages; we do not
            self.both(who, lambda w: os.truncate(w.path(path), size))

        @precondition(lambda self: bool(tmpfs.fds))
        @rule(slot=SLOTS, mode=st.sampled_from((0, 1, 3, 3, 2)), offset=OFFSETS, length=LENGTHS)
        def fallocate(self, slot: int, mode: int, offset: int, length: int) -> None:
            """Reserve in each file only once: a second time, tmpfs makes data of what it had reserved.

            Only as root: the kernel has FUSE clear set-id bits here, as disk filesystems do, and tmpfs does not.
            """
            if slot not in tmpfs.fds:
                return
            if not mode & FALLOC_FL_PUNCH_HOLE:
                ino = os.fstat(tmpfs.fds[slot]).st_ino
                if ino in self.reserved:
                    return
                self.reserved.add(ino)
            self.both(0, lambda w: c_call(libc.fallocate(w.fds[slot], mode, offset, length)))

        @precondition(lambda self: len(tmpfs.fds) > 1)
        @rule(source=SLOTS, onto=SLOTS, at=OFFSETS, to=OFFSETS, length=LENGTHS)
        def copy_file_range(self, source: int, onto: int, at: int, to: int, length: int) -> None:
            """Only where there are no holes: tmpfs fills them."""
            if source not in tmpfs.fds or onto not in tmpfs.fds:
                return
            if is_dense(tmpfs.fds[source], at, length):
                self.both(0, lambda w: os.copy_file_range(w.fds[source], w.fds[onto], length, at, to))

        @precondition(lambda self: bool(tmpfs.fds))
        @rule(slot=SLOTS, path=PATHS, who=WHO)
        def link_open(self, slot: int, path: str, who: int) -> None:
            """What O_TMPFILE is for; and what an unlinked file refuses."""
            self.on_open(
                slot,
                lambda w, fd: c_call(
                    libc.linkat(AT_FDCWD, b"/proc/self/fd/%d" % fd, AT_FDCWD, os.fsencode(w.path(path)), AT_SYMLINK_FOLLOW)
                ),
                who,
            )

        @precondition(lambda self: len(tmpfs.fds) > 1)
        @rule(
            slot=SLOTS,
            kind=st.sampled_from((fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK)),
            start=st.integers(0, 5),
            ofd=st.booleans(),
        )
        def lock(self, slot: int, kind: int, start: int, ofd: bool) -> None:
            if ofd:
                wanted = struct.pack("hhqqi4x", kind, 0, start, 3, 0)
                self.on_open(slot, lambda w, fd: bool(fcntl.fcntl(fd, F_OFD_SETLK, wanted)))
                probe = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
                self.on_open((slot + 1) % 3, lambda w, fd: fcntl.fcntl(fd, F_OFD_GETLK, probe)[:20])
            else:
                how = {fcntl.F_RDLCK: fcntl.LOCK_SH, fcntl.F_WRLCK: fcntl.LOCK_EX, fcntl.F_UNLCK: fcntl.LOCK_UN}[kind]
                self.on_open(slot, lambda w, fd: fcntl.flock(fd, how | fcntl.LOCK_NB))

        @rule()
        def forget(self) -> None:
            """Let the kernel forget what it can, so that the next looks are answered by memfs."""
            Path("/proc/sys/vm/drop_caches").write_text("2")

    return Oracle


@pytest.mark.timeout(TIMEOUT_S)
def test_every_step_does_what_it_does_on_tmpfs() -> None:
    base = tempfile.mkdtemp(prefix="pyfusekit-oracle-")
    os.chmod(base, 0o755)
    try:
        with mounted_tmpfs(base), MountedServer(RECIPE, allow_other=True) as server:
            oracle.run_machine(make_machine(World(base), World(server.mountpoint), server.pet), EXAMPLES, STEPS)
    finally:
        os.rmdir(base)

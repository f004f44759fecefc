"""The verbs a contract speaks: POSIX, whoever answers them.

A Tree is a directory seen through some door: the kernel's own system calls (native.py), or the FakeKernel and the wire
(vfs.py). Paths are relative to the tree's root, str or bytes; descriptors are small integers of the tree; errors are OSError
with the errno a system call would have given.

Every verb acts as the calling thread's process. Another user, or another process, is an :class:`Actor`:

    with tree.actor(uid=1000, gid=1000) as user:
        user.run(tree.mkdir, "d")                       # as uid 1000, umask and descriptors of its own
        call = user.start(tree.posix_lock, fd, F_WRLCK, wait=True)   # do not wait for it
        call.interrupt()                                # a signal arrives
        call.result(timeout=10)
"""

from __future__ import annotations

import os
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, ParamSpec, TypeAlias, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
Path: TypeAlias = str | bytes

UTIME_NOW = -1
"""For utimens: this moment."""
UTIME_OMIT = -2
"""For utimens: leave it."""

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_COLLAPSE_RANGE = 0x08
FALLOC_FL_ZERO_RANGE = 0x10

O_TMPFILE = os.O_TMPFILE

PATIENCE = 20.0
"""Seconds after which a call that has not ended is taken for hung."""


@dataclass(frozen=True, slots=True)
class Stat:
    """What stat(2) says; times in integer nanoseconds."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    blksize: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class Dirent:
    """What getdents64(2) says about one name: *offset* is the cookie of the next one, *type* a DT_ constant."""

    name: bytes
    ino: int
    offset: int
    type: int


@dataclass(frozen=True, slots=True)
class HeldLock:
    """A byte-range lock in the way, as F_GETLK tells it; *length* 0 is to the end of the file."""

    type: int
    start: int
    length: int
    pid: int


@dataclass(frozen=True, slots=True)
class Totals:
    """What statvfs(3) says; blocks, bfree and bavail count units of frsize bytes."""

    bsize: int
    frsize: int
    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    namelen: int


class Call(Generic[R]):
    """A verb under way in an Actor."""

    def __init__(self, future: Future[R], interrupt: Callable[[], None]) -> None:
        self._future = future
        self._interrupt = interrupt

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self._future.done()

    def result(self, timeout: float = PATIENCE) -> R:
        """Wait for its end and return what it returned, or raise what it raised; TimeoutError after *timeout* seconds."""
        return self._future.result(timeout)

    def interrupt(self) -> None:
        """Send its thread a signal: a wait that can be interrupted ends with EINTR."""
        self._interrupt()


class Actor:
    """A process of its own: a thread with its own credentials, umask, descriptors and locks.

    *enter* runs first in the thread and makes it so, *leave* runs last; *interrupt* sends it a signal.
    """

    def __init__(
        self, name: str, enter: Callable[[], None], leave: Callable[[], None], interrupt: Callable[[threading.Thread], None]
    ) -> None:
        self._enter = enter
        self._leave = leave
        self._signal = interrupt
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)
        self._ready: Future[None] = Future()
        self._thread.start()
        self._ready.result(PATIENCE)

    def _live(self) -> None:
        try:
            self._enter()
        except BaseException as exc:
            self._ready.set_exception(exc)
            return
        self._ready.set_result(None)
        while (item := self._work.get()) is not None:
            future, work = item
            try:
                future.set_result(work())
            except BaseException as exc:
                future.set_exception(exc)
            del item, future, work
        self._leave()

    def start(self, verb: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """Begin *verb* as this process, without waiting for it."""
        future: Future[R] = Future()
        self._work.put((future, lambda: verb(*args, **kwargs)))
        return Call(future, lambda: self._signal(self._thread))

    def run(self, verb: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Do *verb* as this process and return what it returns."""
        return self.start(verb, *args, **kwargs).result()

    def close(self) -> None:
        """Exit: descriptors are closed, locks are gone when this returns."""
        self._work.put(None)
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            raise TimeoutError(f"{self._thread.name} has not ended: a verb hangs in it")

    def __enter__(self) -> Actor:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Tree(ABC):
    """POSIX verbs below one directory."""

    maps_files: bool = False
    """Whether mmap can be tried through this door."""
    counts_requests: bool = False
    """Whether the door sees the wire."""

    # Processes.

    @abstractmethod
    def actor(self, uid: int = 0, gid: int = 0, groups: tuple[int, ...] = ()) -> Actor:
        """Make another process."""

    @abstractmethod
    def umask(self, mask: int) -> int:
        """Set the calling process's umask and return the old one."""

    @abstractmethod
    def below(self, path: Path) -> Tree:
        """Return the same tree rooted at *path*."""

    @abstractmethod
    def drop_caches(self) -> None:
        """Have the kernel forget every name, attribute and node it can, so that it must ask again."""

    # Descriptors.

    @abstractmethod
    def open(self, path: Path, flags: int, mode: int = 0o666) -> int: ...

    @abstractmethod
    def close(self, fd: int) -> None: ...

    @abstractmethod
    def dup(self, fd: int) -> int: ...

    @abstractmethod
    def read(self, fd: int, size: int) -> bytes: ...

    @abstractmethod
    def write(self, fd: int, data: bytes) -> int: ...

    @abstractmethod
    def pread(self, fd: int, size: int, offset: int) -> bytes: ...

    @abstractmethod
    def pwrite(self, fd: int, data: bytes, offset: int) -> int: ...

    @abstractmethod
    def read_direct(self, fd: int, size: int, offset: int) -> bytes:
        """As pread, into memory aligned for O_DIRECT."""

    @abstractmethod
    def lseek(self, fd: int, offset: int, whence: int) -> int: ...

    @abstractmethod
    def fsync(self, fd: int) -> None: ...

    @abstractmethod
    def fdatasync(self, fd: int) -> None: ...

    @abstractmethod
    def ftruncate(self, fd: int, size: int) -> None: ...

    @abstractmethod
    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> None: ...

    @abstractmethod
    def copy_file_range(self, fd_in: int, offset_in: int, fd_out: int, offset_out: int, length: int) -> int: ...

    @abstractmethod
    def fstat(self, fd: int) -> Stat: ...

    @abstractmethod
    def fchmod(self, fd: int, mode: int) -> None: ...

    @abstractmethod
    def getdents(self, fd: int, size: int = 4096) -> list[Dirent]:
        """Return an open directory's next entries, as many as *size* bytes of struct linux_dirent64 hold; [] at the end."""

    @abstractmethod
    def link_fd(self, fd: int, path: Path) -> None:
        """Give an open file a name (linkat with AT_EMPTY_PATH)."""

    # Locks.

    @abstractmethod
    def posix_lock(self, fd: int, type: int, start: int = 0, length: int = 0, *, wait: bool = False) -> None: ...

    @abstractmethod
    def posix_getlk(self, fd: int, type: int, start: int = 0, length: int = 0) -> HeldLock | None: ...

    @abstractmethod
    def ofd_lock(self, fd: int, type: int, start: int = 0, length: int = 0, *, wait: bool = False) -> None: ...

    @abstractmethod
    def flock(self, fd: int, operation: int) -> None: ...

    # Names.

    @abstractmethod
    def stat(self, path: Path, *, follow: bool = True) -> Stat: ...

    @abstractmethod
    def btime_ns(self, path: Path) -> int | None:
        """Return when the file was made (statx STATX_BTIME), or None when the filesystem does not say."""

    @abstractmethod
    def access(self, path: Path, mode: int) -> bool: ...

    @abstractmethod
    def mkdir(self, path: Path, mode: int = 0o777) -> None: ...

    @abstractmethod
    def rmdir(self, path: Path) -> None: ...

    @abstractmethod
    def unlink(self, path: Path) -> None: ...

    @abstractmethod
    def rename(self, old: Path, new: Path, flags: int = 0) -> None: ...

    @abstractmethod
    def link(self, old: Path, new: Path) -> None:
        """Make a hard link; a symbolic link *old* is linked itself."""

    @abstractmethod
    def symlink(self, target: Path, path: Path) -> None: ...

    @abstractmethod
    def readlink(self, path: Path) -> bytes: ...

    @abstractmethod
    def mknod(self, path: Path, mode: int, rdev: int = 0) -> None: ...

    @abstractmethod
    def chmod(self, path: Path, mode: int) -> None: ...

    @abstractmethod
    def chown(self, path: Path, uid: int, gid: int, *, follow: bool = True) -> None: ...

    @abstractmethod
    def truncate(self, path: Path, size: int) -> None: ...

    @abstractmethod
    def utimens(self, path: Path, atime_ns: int, mtime_ns: int, *, follow: bool = True) -> None:
        """Set times; either may be UTIME_NOW or UTIME_OMIT."""

    @abstractmethod
    def statfs(self, path: Path = "") -> Totals: ...

    # Extended attributes.

    @abstractmethod
    def getxattr(self, path: Path, name: Path, size: int = 65536, *, follow: bool = True) -> bytes:
        """Return a value of at most *size* bytes (ERANGE)."""

    @abstractmethod
    def getxattr_size(self, path: Path, name: Path) -> int:
        """Return how long the value is (getxattr with size 0)."""

    @abstractmethod
    def setxattr(self, path: Path, name: Path, value: bytes, flags: int = 0, *, follow: bool = True) -> None: ...

    @abstractmethod
    def listxattr(self, path: Path, *, follow: bool = True) -> list[bytes]: ...

    @abstractmethod
    def removexattr(self, path: Path, name: Path, *, follow: bool = True) -> None: ...

    # Memory.

    @abstractmethod
    def mmap(self, fd: int, length: int, *, shared: bool = True, writable: bool = False) -> Any:
        """Map an open file from its beginning (an mmap.mmap); ENODEV through a door without memory."""

    # Made of the others.

    def lstat(self, path: Path) -> Stat:
        """Return the attributes of *path* itself."""
        return self.stat(path, follow=False)

    def exists(self, path: Path) -> bool:
        """Tell whether there is something named *path*, be it a dangling link."""
        try:
            self.lstat(path)
        except FileNotFoundError:
            return False
        return True

    def read_file(self, path: Path) -> bytes:
        """Return a file's whole contents, read to the end."""
        fd = self.open(path, os.O_RDONLY)
        try:
            return self.read_all(fd)
        finally:
            self.close(fd)

    def read_all(self, fd: int, chunk: int = 1 << 20) -> bytes:
        """Read from the descriptor's offset to the end."""
        pieces = []
        while piece := self.read(fd, chunk):
            pieces.append(piece)
        return b"".join(pieces)

    def write_file(self, path: Path, data: bytes = b"", mode: int = 0o644) -> None:
        """Make or replace a file with *data*."""
        fd = self.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        try:
            self.write_all(fd, data)
        finally:
            self.close(fd)

    def write_all(self, fd: int, data: bytes) -> None:
        """Write all of *data* at the descriptor's offset."""
        view = data
        while view:
            view = view[self.write(fd, view) :]

    def read_entries(self, fd: int, size: int = 32768) -> Iterator[list[Dirent]]:
        """Read an open directory to its end, in calls of *size* bytes; AssertionError when it goes in circles."""
        seen: set[tuple[bytes, int]] = set()
        while batch := self.getdents(fd, size):
            for entry in batch:
                assert (entry.name, entry.offset) not in seen, f"{entry} comes twice: the listing goes in circles"
                seen.add((entry.name, entry.offset))
            yield batch

    def scandir(self, path: Path = "", size: int = 32768) -> list[Dirent]:
        """Return every entry of a directory but "." and "..", in the order the filesystem gives them."""
        fd = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return [entry for batch in self.read_entries(fd, size) for entry in batch if entry.name not in (b".", b"..")]
        finally:
            self.close(fd)

    def listdir(self, path: Path = "") -> list[bytes]:
        """Return a directory's names, sorted, without "." and ".."."""
        return sorted(entry.name for entry in self.scandir(path))

    def remove_tree(self, path: Path) -> None:
        """Remove a directory and all below it."""
        base = os.fsencode(path)
        for entry in self.scandir(base):
            child = base + b"/" + entry.name
            if entry.type == 4:
                self.remove_tree(child)
            else:
                self.unlink(child)
        self.rmdir(base)


__all__ = [
    "FALLOC_FL_COLLAPSE_RANGE",
    "FALLOC_FL_KEEP_SIZE",
    "FALLOC_FL_PUNCH_HOLE",
    "FALLOC_FL_ZERO_RANGE",
    "O_TMPFILE",
    "PATIENCE",
    "RENAME_EXCHANGE",
    "RENAME_NOREPLACE",
    "RENAME_WHITEOUT",
    "UTIME_NOW",
    "UTIME_OMIT",
    "Actor",
    "Call",
    "Dirent",
    "HeldLock",
    "Path",
    "Stat",
    "Totals",
    "Tree",
]

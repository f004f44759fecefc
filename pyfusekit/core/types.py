"""The values a filesystem and the core hand each other; none of them knows the wire."""

from __future__ import annotations

from collections.abc import AsyncIterable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")

Result: TypeAlias = T | Coroutine[Any, Any, T]
"""What a handler returns: the value itself, or a coroutine that will."""

Data: TypeAlias = bytes | bytearray | memoryview
"""File contents in one piece."""

ReadResult: TypeAlias = Data | list[Data]
"""What read returns: one piece, or pieces that are sent one after the other without being joined."""


class Request:
    """Who asks, and the few words of the request that are not arguments of the method.

    One is built for every message, so it is a plain class with slots. It may be kept as long as the handler runs.
    """

    __slots__ = ("extensions", "flags", "gid", "pid", "size", "uid", "unique")

    def __init__(self, unique: int, uid: int, gid: int, pid: int) -> None:
        self.unique = unique
        """The kernel's number of this request; bit 63 is set when it is sent again after a crash (RESEND)."""
        self.uid = uid
        """The caller's fsuid, mapped into the mounter's user namespace. 0 in RELEASE, FORGET and write-back."""
        self.gid = gid
        """The caller's fsgid, likewise."""
        self.pid = pid
        """The caller's thread id; 0 where it is in a foreign pid namespace, and in write-back."""
        self.flags = 0
        """The operation's own flag bits, 0 where it has none: OPEN_KILL_SUIDGID (open, create), READ_LOCKOWNER (read),
        WRITE_CACHE, WRITE_LOCKOWNER, WRITE_KILL_SUIDGID (write), SETXATTR_ACL_KILL_SGID (setxattr), RELEASE_FLUSH and
        RELEASE_FLOCK_UNLOCK (release), LK_FLOCK (locks), IOCTL_DIR... (ioctl), POLL_SCHEDULE_NOTIFY (poll)."""
        self.size = 0
        """The most bytes the answer may have (read, readdir, getxattr, listxattr, ioctl)."""
        self.extensions: Extensions | None = None
        """The request's extensions, when the filesystem asked for them (security_ctx, create_supp_group)."""

    def __repr__(self) -> str:
        return f"Request(unique={self.unique}, uid={self.uid}, gid={self.gid}, pid={self.pid}, flags={self.flags:#x})"


@dataclass(slots=True)
class Extensions:
    """What follows a request's own fields when header.total_extlen is not 0 (uapi/linux/fuse.h, struct fuse_ext_header)."""

    secctx: list[tuple[bytes, bytes]]
    """(xattr name, value) pairs the kernel wants on the new file, e.g. (b"security.selinux", label)."""
    groups: list[int]
    """The caller's supplementary groups; the kernel sends the one that matches the parent directory."""


@dataclass(slots=True)
class Attr:
    """A file's metadata, kept on the inode and mutated; handing it out builds nothing."""

    ino: int = 0
    """The node id: what later requests name the file by, and st_ino. Never 0; 1 is the root."""
    mode: int = 0
    """File type and permissions, as st_mode."""
    nlink: int = 1
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    """Device number of a device node, as the kernel's new_encode_dev packs it (os.makedev gives the same below 2^32)."""
    size: int = 0
    """Bytes."""
    blocks: int = 0
    """512-byte units in use, whatever blksize says."""
    blksize: int = 4096
    """Preferred I/O size in bytes, a power of two; 0 lets the kernel say its page size."""
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    btime_ns: int = 0
    """Nanoseconds since the epoch; btime is asked by statx only."""
    generation: int = 0
    """(ino, generation) is unique for the life of the mount; raise it when an ino is used again."""
    entry_ttl: float | None = None
    """Seconds the kernel may believe the name; None: the filesystem's entry_ttl."""
    attr_ttl: float | None = None
    """Seconds the kernel may believe these attributes; None: the filesystem's attr_ttl."""


@dataclass(slots=True)
class SetAttr:
    """The changes SETATTR asks for; what is None stays as it is."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    """Sent with the write-back cache only: the kernel then owns the times."""
    atime_now: bool = False
    """atime_ns is this moment, as the core saw it (UTIME_NOW)."""
    mtime_now: bool = False
    kill_suidgid: bool = False
    """Clear set-user-id, and set-group-id of a group-executable file (FATTR_KILL_SUIDGID)."""
    lock_owner: int | None = None


@dataclass(slots=True)
class DirEntry:
    """One name in a directory."""

    name: bytes
    ino: int
    mode: int
    """Only the file type bits (S_IFMT) count."""
    offset: int
    """The cookie of the *next* entry: readdir called with it goes on behind this one. At least 1, and stable while the
    directory is open, whatever is created or removed meanwhile."""
    attr: Attr | None = None
    """readdirplus: the file's attributes; None when they are not at hand ("." and ".." never have them)."""


Entries: TypeAlias = Iterable[DirEntry] | AsyncIterable[DirEntry]
"""What readdir returns: anything that yields entries; the core takes as many as the reply holds, then stops."""


@dataclass(slots=True)
class StatFs:
    """A filesystem's totals, as statvfs(3): blocks, bfree, bavail count units of frsize bytes."""

    blocks: int = 0
    bfree: int = 0
    bavail: int = 0
    files: int = 0
    ffree: int = 0
    bsize: int = 4096
    frsize: int = 4096
    namelen: int = 255


@dataclass(slots=True)
class Opened:
    """What open, opendir, create and tmpfile answer when the handle alone does not say enough."""

    handle: Any = None
    """Any object; the methods called for this open file receive it back, release last."""
    flags: int = 0
    """FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE, FOPEN_NONSEEKABLE, FOPEN_CACHE_DIR, FOPEN_NOFLUSH, FOPEN_PARALLEL_DIRECT_WRITES."""
    backing: Any = None
    """A Backing: the kernel serves the file's data from it, without asking. Ignored where the kernel cannot."""


@dataclass(slots=True)
class Lock:
    """A byte-range lock. A whole-file flock has start 0 and end 2^63 - 1."""

    type: int
    """fcntl.F_RDLCK, F_WRLCK or F_UNLCK."""
    start: int
    end: int
    """The last byte, inclusive; 2^63 - 1 is the end of the file."""
    pid: int


@dataclass(slots=True)
class Ioctl:
    """What ioctl answers when its result is not 0: the return value of ioctl(2), and the bytes written to its argument."""

    result: int = 0
    data: Data = b""


__all__ = [
    "Attr",
    "Data",
    "DirEntry",
    "Entries",
    "Extensions",
    "Ioctl",
    "Lock",
    "Opened",
    "ReadResult",
    "Request",
    "Result",
    "SetAttr",
    "StatFs",
]

"""Replies, compiled: a value becomes its message in one pack, header included."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import Any

from . import abi
from .codec import DIRENT, DIRENTPLUS, OUT_HEADER, REPLY_HEADER_BYTES, SECOND_NS, split_ttl, struct_of
from .types import Attr, Data, DirEntry, Lock

_ENTRY_REPLY = struct.Struct("=IiQ" + "".join(abi.ENTRY_OUT.fields.values()))
_ATTR_REPLY = struct.Struct("=IiQ" + "".join(abi.ATTR_OUT.fields.values()))
_CREATE_REPLY = struct.Struct("=IiQ" + "".join(abi.CREATE_OUT.fields.values()))
_STATX_REPLY = struct.Struct("=IiQ" + "".join(abi.STATX_OUT.fields.values()))
_OPEN_REPLY = struct.Struct("=IiQ" + "".join(abi.OPEN_OUT.fields.values()))
_WRITE_REPLY = struct.Struct("=IiQ" + "".join(abi.WRITE_OUT.fields.values()))
_OFFSET_REPLY = struct.Struct("=IiQQ")
_LOCK_REPLY = struct.Struct("=IiQ" + "".join(abi.LK_OUT.fields.values()))
_IOCTL_REPLY = struct.Struct("=IiQ" + "".join(abi.IOCTL_OUT.fields.values()))
_STATFS_REPLY = struct.Struct("=IiQ" + "".join(abi.STATFS_OUT.fields.values()))

pack_reply_header = OUT_HEADER.pack
"""pack_reply_header(length, -errno, unique)"""


def encode_attr(unique: int, attr: Attr, ttl: tuple[int, int]) -> bytes:
    """Encode the reply to GETATTR and SETATTR; *ttl* holds unless the Attr has its own."""
    if attr.attr_ttl is not None:
        ttl = split_ttl(attr.attr_ttl)
    atime, atimensec = divmod(attr.atime_ns, SECOND_NS)
    mtime, mtimensec = divmod(attr.mtime_ns, SECOND_NS)
    ctime, ctimensec = divmod(attr.ctime_ns, SECOND_NS)
    return _ATTR_REPLY.pack(
        120, 0, unique, ttl[0], ttl[1], 0,
        attr.ino, attr.size, attr.blocks, atime, mtime, ctime, atimensec, mtimensec, ctimensec,
        attr.mode, attr.nlink, attr.uid, attr.gid, attr.rdev, attr.blksize, 0,
    )  # fmt: skip


def entry_fields(attr: Attr, entry_ttl: tuple[int, int], attr_ttl: tuple[int, int]) -> tuple[int, ...]:
    """Return the values of a fuse_entry_out."""
    if attr.attr_ttl is not None:
        attr_ttl = split_ttl(attr.attr_ttl)
    if attr.entry_ttl is not None:
        entry_ttl = split_ttl(attr.entry_ttl)
    atime, atimensec = divmod(attr.atime_ns, SECOND_NS)
    mtime, mtimensec = divmod(attr.mtime_ns, SECOND_NS)
    ctime, ctimensec = divmod(attr.ctime_ns, SECOND_NS)
    ino = attr.ino
    return (
        ino, attr.generation, entry_ttl[0], attr_ttl[0], entry_ttl[1], attr_ttl[1],
        ino, attr.size, attr.blocks, atime, mtime, ctime, atimensec, mtimensec, ctimensec,
        attr.mode, attr.nlink, attr.uid, attr.gid, attr.rdev, attr.blksize, 0,
    )  # fmt: skip


def encode_entry(unique: int, attr: Attr, entry_ttl: tuple[int, int], attr_ttl: tuple[int, int]) -> bytes:
    """Encode the reply to LOOKUP and whatever makes a name."""
    if attr.attr_ttl is not None:
        attr_ttl = split_ttl(attr.attr_ttl)
    if attr.entry_ttl is not None:
        entry_ttl = split_ttl(attr.entry_ttl)
    atime, atimensec = divmod(attr.atime_ns, SECOND_NS)
    mtime, mtimensec = divmod(attr.mtime_ns, SECOND_NS)
    ctime, ctimensec = divmod(attr.ctime_ns, SECOND_NS)
    ino = attr.ino
    # entry_fields again, spelled out: a tuple in between costs a fifth of the call.
    return _ENTRY_REPLY.pack(
        144, 0, unique, ino, attr.generation, entry_ttl[0], attr_ttl[0], entry_ttl[1], attr_ttl[1],
        ino, attr.size, attr.blocks, atime, mtime, ctime, atimensec, mtimensec, ctimensec,
        attr.mode, attr.nlink, attr.uid, attr.gid, attr.rdev, attr.blksize, 0,
    )  # fmt: skip


_NO_ATTR = (0,) * len(abi.ATTR.fields)


def encode_negative_entry(unique: int, ttl: tuple[int, int]) -> bytes:
    """Encode "there is no such name, and so it stays for *ttl*"."""
    return _ENTRY_REPLY.pack(144, 0, unique, 0, 0, ttl[0], 0, ttl[1], 0, *_NO_ATTR)


def encode_created(
    unique: int, attr: Attr, entry_ttl: tuple[int, int], attr_ttl: tuple[int, int], fh: int, flags: int, backing_id: int
) -> bytes:
    """Encode the reply to CREATE and TMPFILE."""
    return _CREATE_REPLY.pack(160, 0, unique, *entry_fields(attr, entry_ttl, attr_ttl), fh, flags, backing_id)


def encode_opened(unique: int, fh: int, flags: int, backing_id: int) -> bytes:
    """Encode the reply to OPEN and OPENDIR."""
    return _OPEN_REPLY.pack(32, 0, unique, fh, flags, backing_id)


def encode_written(unique: int, size: int) -> bytes:
    """Encode the reply to WRITE and COPY_FILE_RANGE, and likewise to POLL: one u32 and padding."""
    return _WRITE_REPLY.pack(24, 0, unique, size, 0)


def encode_offset(unique: int, offset: int) -> bytes:
    """Encode the reply to LSEEK, BMAP and COPY_FILE_RANGE_64: one u64."""
    return _OFFSET_REPLY.pack(24, 0, unique, offset)


def encode_lock(unique: int, lock: Lock | None) -> bytes:
    """Encode the reply to GETLK; None is F_UNLCK."""
    if lock is None:
        return _LOCK_REPLY.pack(40, 0, unique, 0, 0, 2, 0)
    return _LOCK_REPLY.pack(40, 0, unique, lock.start, lock.end, lock.type, lock.pid)


def encode_ioctl(unique: int, result: int, data: Data) -> bytes:
    """Encode the reply to a restricted IOCTL."""
    return _IOCTL_REPLY.pack(32 + len(data), 0, unique, result, 0, 0, 0) + bytes(data)


def encode_statfs(unique: int, totals: Any) -> bytes:
    """Encode the reply to STATFS."""
    return _STATFS_REPLY.pack(
        96, 0, unique, totals.blocks, totals.bfree, totals.bavail, totals.files, totals.ffree, totals.bsize, totals.namelen,
        totals.frsize, 0, 0, 0, 0, 0, 0, 0,
    )  # fmt: skip


STATX_BASIC_STATS = 0x7FF
STATX_BTIME = 0x800


def encode_statx(unique: int, attr: Attr, ttl: tuple[int, int]) -> bytes:
    """Encode the reply to STATX: the basic stats and btime (all that the kernel takes, fs/fuse/dir.c fuse_do_statx)."""
    if attr.attr_ttl is not None:
        ttl = split_ttl(attr.attr_ttl)
    times: list[int] = []
    for moment in (attr.atime_ns, attr.btime_ns, attr.ctime_ns, attr.mtime_ns):
        times += (*divmod(moment, SECOND_NS), 0)
    major, minor = (attr.rdev >> 8) & 0xFFF, (attr.rdev & 0xFF) | ((attr.rdev >> 12) & 0xFFF00)
    return _STATX_REPLY.pack(
        REPLY_HEADER_BYTES + struct_of(abi.STATX_OUT).size, 0, unique, ttl[0], ttl[1], 0, 0, 0,
        STATX_BASIC_STATS | STATX_BTIME, attr.blksize, 0, attr.nlink, attr.uid, attr.gid, attr.mode, 0,
        attr.ino, attr.size, attr.blocks, 0, *times, major, minor, 0, 0, *(0,) * 14,
    )  # fmt: skip


_PADDING = (b"", b"\0" * 7, b"\0" * 6, b"\0" * 5, b"\0" * 4, b"\0" * 3, b"\0" * 2, b"\0")


class DirentPacker:
    """Packs entries of one READDIR or READDIRPLUS reply until it is full."""

    __slots__ = ("_attr_ttl", "_entered", "_entry_ttl", "_plus", "_room", "counted", "parts")

    def __init__(
        self,
        limit: int,
        plus: bool,
        entry_ttl: tuple[int, int],
        attr_ttl: tuple[int, int],
        entered: Callable[[int], None],
    ) -> None:
        self.parts: list[bytes] = []
        self.counted: list[int] = []
        """The nodes whose lookup count was raised, to be taken back if the reply is not delivered."""
        self._room = limit
        self._plus = plus
        self._entry_ttl = entry_ttl
        self._attr_ttl = attr_ttl
        self._entered = entered

    def add(self, entry: DirEntry) -> bool:
        """Take *entry* and return True, or return False when it does not fit any more.

        OSError(EINVAL), as getdents(2) says it, when it is the first and does not fit: an empty reply would be the end.
        """
        name = entry.name
        length = len(name)
        size = (152 if self._plus else 24) + ((length + 7) & ~7)
        if size > self._room:
            if not self.parts:
                raise OSError(errno.EINVAL, f"a reply of {self._room} bytes is too small for an entry of {size}")
            return False
        self._room -= size
        kind = (entry.mode >> 12) & 15
        if not self._plus:
            self.parts.append(DIRENT.pack(entry.ino, entry.offset, length, kind) + name + _PADDING[length & 7])
            return True
        attr = entry.attr
        if attr is None or name in (b".", b".."):
            fields: tuple[int, ...] = (0,) * len(abi.ENTRY_OUT.fields)
        else:
            fields = entry_fields(attr, self._entry_ttl, self._attr_ttl)
            self._entered(attr.ino)
            self.counted.append(attr.ino)
        self.parts.append(DIRENTPLUS.pack(*fields, entry.ino, entry.offset, length, kind) + name + _PADDING[length & 7])
        return True

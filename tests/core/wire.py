"""One message of every operation, byte for byte, and what it means: the corpus of the protocol's tests.

Every field has bytes of its own, so that one taken for another cannot look right. Little-endian, as the machines that run this.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from pyfusekit.core import abi
from pyfusekit.core.abi import Layout
from pyfusekit.core.types import Lock, SetAttr

UNIQUE = 0x1817161514131211
NODEID = 0x2827262524232221
UID = 0x34333231
GID = 0x44434241
PID = 0x54535251


class Handle(NamedTuple):
    """What stands in for the object behind a handle."""

    fh: int


class Handles:
    """Every handle is open."""

    def __getitem__(self, fh: int) -> Handle:
        return Handle(fh)


class Example(NamedTuple):
    """A request in three forms: its bytes, its fields by name, and the call that comes of it."""

    opcode: int
    body: str
    """What follows the header, in hex."""
    fields: Mapping[str, int | tuple[int, ...]]
    arguments: tuple[Any, ...]
    """What the method gets behind the Request."""
    names: tuple[bytes, ...] = ()
    data: bytes = b""
    flags: int = 0
    """Request.flags."""
    size: int = 0
    """Request.size."""
    layout: Layout | None = None
    """The struct, when it is not the row's own."""

    @property
    def name(self) -> str:
        return abi.OPS[self.opcode].name

    @property
    def message(self) -> bytes:
        return message(self.opcode, bytes.fromhex(self.body))


def message(opcode: int, body: bytes = b"", *, unique: int = UNIQUE, nodeid: int = NODEID, extensions: bytes = b"") -> bytes:
    """Return a request with the corpus's header."""
    return (
        struct.pack("<II", 40 + len(body) + len(extensions), opcode)
        + struct.pack("<QQ", unique, nodeid)
        + struct.pack("<III", UID, GID, PID)
        + struct.pack("<HH", len(extensions) // 8, 0)  # total_extlen, padding
        + body
        + extensions
    )


def cut(whole: bytes, n: int) -> bytes:
    """Return the first *n* bytes of a message, as a message whose header says that this is all."""
    return struct.pack("<I", n) + whole[4:n]


F1, F2, F3 = 0x6867666564636261, 0x7877767574737271, 0x8887868584838281
F4, F5, F6 = 0x9897969594939291, 0xA8A7A6A5A4A3A2A1, 0xB8B7B6B5B4B3B2B1
F7 = 0xC8C7C6C5C4C3C2C1
W1, W2, W3, W4, W5 = 0x04030201, 0x0D0C0B0A, 0xD4D3D2D1, 0xE4E3E2E1, 0xF4F3F2F1

_LOCK_BODY = (
    "6162636465666768"  # fh
    "7172737475767778"  # owner
    "8182838485868708"  # lk.start
    "9192939495969718"  # lk.end
    "01000000"  # lk.type: F_WRLCK
    "d1d2d3d4"  # lk.pid
    "01000000"  # lk_flags: FUSE_LK_FLOCK
    "00000000"  # padding
)
_LOCK_FIELDS = {
    "fh": F1, "owner": F2, "lk_start": 0x0887868584838281, "lk_end": 0x1897969594939291, "lk_type": 1, "lk_pid": W3,
    "lk_flags": 1,
}  # fmt: skip
_LOCK_CALL = (NODEID, Handle(F1), F2, Lock(1, 0x0887868584838281, 0x1897969594939291, W3))

_READ_BODY = (
    "6162636465666768"  # fh
    "7172737475767778"  # offset
    "01020304"  # size
    "02000000"  # read_flags: FUSE_READ_LOCKOWNER
    "8182838485868788"  # lock_owner
    "d1d2d3d4"  # flags
    "00000000"  # padding
)
_READ_FIELDS = {"fh": F1, "offset": F2, "size": W1, "read_flags": 2, "lock_owner": F3, "flags": W3}

_OPEN_BODY = (
    "01020304"  # flags
    "01000000"  # open_flags: FUSE_OPEN_KILL_SUIDGID
)
_RELEASE_BODY = (
    "6162636465666768"  # fh
    "01020304"  # flags
    "03000000"  # release_flags: FLUSH | FLOCK_UNLOCK
    "7172737475767778"  # lock_owner
)
_FSYNC_BODY = (
    "6162636465666768"  # fh
    "01000000"  # fsync_flags: FDATASYNC
    "00000000"  # padding
)
_CREATE_BODY = (
    "01020304"  # flags
    "a4810000"  # mode: S_IFREG | 0644
    "12000000"  # umask
    "01000000"  # open_flags: FUSE_OPEN_KILL_SUIDGID
)
_CREATE_FIELDS = {"flags": W1, "mode": 0o100644, "umask": 0o022, "open_flags": 1}
_COPY_BODY = (
    "6162636465666768"  # fh_in
    "7172737475767778"  # off_in
    "8182838485868788"  # nodeid_out
    "9192939495969798"  # fh_out
    "a1a2a3a4a5a6a7a8"  # off_out
    "b1b2b30000000000"  # len
    "c1c2c3c4c5c6c7c8"  # flags
)
_COPY_FIELDS = {"fh_in": F1, "off_in": F2, "nodeid_out": F3, "fh_out": F4, "off_out": F5, "len": 0xB3B2B1, "flags": F7}
_COPY_CALL = (NODEID, Handle(F1), F2, F3, Handle(F4), F5, 0xB3B2B1, F7)

# fmt: off
EXAMPLES: list[Example] = [
    Example(abi.LOOKUP, b"lk\xff\0".hex(), {}, (NODEID, b"lk\xff"), (b"lk\xff",)),
    Example(
        abi.FORGET,
        "6162636465666768",  # nlookup
        {"nlookup": F1},
        (NODEID, F1),
    ),
    Example(
        abi.GETATTR,
        "01000000"  # getattr_flags: FUSE_GETATTR_FH
        "00000000"  # dummy
        "6162636465666768",  # fh
        {"getattr_flags": 1, "fh": F1},
        (NODEID, Handle(F1)),
    ),
    Example(
        abi.SETATTR,
        "7f0e0000"  # valid: MODE UID GID SIZE ATIME MTIME FH LOCKOWNER CTIME KILL_SUIDGID
        "00000000"  # padding
        "6162636465666768"  # fh
        "7172737475767778"  # size
        "8182838485868788"  # lock_owner
        "feffffffffffffff"  # atime: -2
        "9192939495969700"  # mtime
        "a1a2a3a4a5a60000"  # ctime
        "01000000"  # atimensec
        "02000000"  # mtimensec
        "03000000"  # ctimensec
        "b4810000"  # mode: S_IFREG | 0664
        "00000000"  # unused4
        "d1d2d3d4"  # uid
        "e1e2e3e4"  # gid
        "00000000",  # unused5
        {
            "valid": 0xE7F, "fh": F1, "size": F2, "lock_owner": F3, "atime": -2, "mtime": 0x97969594939291,
            "ctime": 0xA6A5A4A3A2A1, "atimensec": 1, "mtimensec": 2, "ctimensec": 3, "mode": 0o100664, "uid": W3, "gid": W4,
        },
        (
            NODEID,
            SetAttr(
                mode=0o100664, uid=W3, gid=W4, size=F2, atime_ns=-2 * 10**9 + 1, mtime_ns=0x97969594939291 * 10**9 + 2,
                ctime_ns=0xA6A5A4A3A2A1 * 10**9 + 3, kill_suidgid=True, lock_owner=F3,
            ),
            Handle(F1),
        ),
    ),
    Example(abi.READLINK, "", {}, (NODEID,)),
    Example(abi.SYMLINK, b"new\0to/there\0".hex(), {}, (NODEID, b"new", b"to/there"), (b"new", b"to/there")),
    Example(
        abi.MKNOD,
        "b0610000"  # mode: S_IFBLK | 0660
        "01020304"  # rdev
        "12000000"  # umask
        "00000000"  # padding
        + b"dev\0".hex(),
        {"mode": 0o60660, "rdev": W1, "umask": 0o022},
        (NODEID, b"dev", 0o60660, W1, 0o022),
        (b"dev",),
    ),
    Example(
        abi.MKDIR,
        "ed010000"  # mode: 0755
        "3f000000"  # umask
        + b"dir\0".hex(),
        {"mode": 0o755, "umask": 0o77},
        (NODEID, b"dir", 0o755, 0o77),
        (b"dir",),
    ),
    Example(abi.UNLINK, b"gone\0".hex(), {}, (NODEID, b"gone"), (b"gone",)),
    Example(abi.RMDIR, b"empty\0".hex(), {}, (NODEID, b"empty"), (b"empty",)),
    Example(
        abi.RENAME,
        "6162636465666768"  # newdir
        + b"old\0new\0".hex(),
        {"newdir": F1},
        (NODEID, b"old", F1, b"new", 0),
        (b"old", b"new"),
    ),
    Example(
        abi.LINK,
        "6162636465666768"  # oldnodeid
        + b"second\0".hex(),
        {"oldnodeid": F1},
        (F1, NODEID, b"second"),
        (b"second",),
    ),
    Example(abi.OPEN, _OPEN_BODY, {"flags": W1, "open_flags": 1}, (NODEID, W1), flags=1),
    Example(abi.READ, _READ_BODY, _READ_FIELDS, (NODEID, Handle(F1), F2, W1), flags=2, size=W1),
    Example(
        abi.WRITE,
        "6162636465666768"  # fh
        "7172737475767778"  # offset
        "05000000"  # size
        "06000000"  # write_flags: LOCKOWNER | KILL_SUIDGID
        "8182838485868788"  # lock_owner
        "d1d2d3d4"  # flags
        "00000000"  # padding
        + b"da\0ta".hex(),
        {"fh": F1, "offset": F2, "size": 5, "write_flags": 6, "lock_owner": F3, "flags": W3},
        (NODEID, Handle(F1), F2, b"da\0ta"),
        data=b"da\0ta",
        flags=6,
        size=5,
    ),
    Example(abi.STATFS, "", {}, (NODEID,)),
    Example(
        abi.RELEASE,
        _RELEASE_BODY,
        {"fh": F1, "flags": W1, "release_flags": 3, "lock_owner": F2},
        (NODEID, Handle(F1)),
        flags=3,
    ),
    Example(abi.FSYNC, _FSYNC_BODY, {"fh": F1, "fsync_flags": 1}, (NODEID, Handle(F1), 1)),
    Example(
        abi.SETXATTR,
        "06000000"  # size
        "02000000"  # flags: XATTR_REPLACE
        "01000000"  # setxattr_flags: ACL_KILL_SGID
        "00000000"  # padding
        + b"user.x\0va\0lue".hex(),
        {"size": 6, "flags": 2, "setxattr_flags": 1},
        (NODEID, b"user.x", b"va\0lue", 2),
        (b"user.x",),
        b"va\0lue",
        flags=1,
        size=6,
    ),
    Example(
        abi.GETXATTR,
        "01020304"  # size
        "00000000"  # padding
        + b"user.y\0".hex(),
        {"size": W1},
        (NODEID, b"user.y"),
        (b"user.y",),
        size=W1,
    ),
    Example(
        abi.LISTXATTR,
        "01020304"  # size
        "00000000",  # padding
        {"size": W1},
        (NODEID,),
        size=W1,
    ),
    Example(abi.REMOVEXATTR, b"user.z\0".hex(), {}, (NODEID, b"user.z"), (b"user.z",)),
    Example(
        abi.FLUSH,
        "6162636465666768"  # fh
        "00000000"  # unused
        "00000000"  # padding
        "7172737475767778",  # lock_owner
        {"fh": F1, "lock_owner": F2},
        (NODEID, Handle(F1), F2),
    ),
    Example(
        abi.INIT,
        "07000000"  # major
        "2d000000"  # minor: 45
        "01020304"  # max_readahead
        "fbffff73"  # flags, as Linux 6.18 offers
        "fd070000"  # flags2, likewise
        + "00" * 44,  # unused
        {"major": 7, "minor": 45, "max_readahead": W1, "flags": 0x73FFFFFB, "flags2": 0x7FD},
        (),
    ),
    Example(abi.OPENDIR, _OPEN_BODY, {"flags": W1, "open_flags": 1}, (NODEID, W1), flags=1),
    Example(abi.READDIR, _READ_BODY, _READ_FIELDS, (NODEID, Handle(F1), F2), size=W1),
    Example(
        abi.RELEASEDIR,
        _RELEASE_BODY,
        {"fh": F1, "flags": W1, "release_flags": 3, "lock_owner": F2},
        (NODEID, Handle(F1)),
        flags=3,
    ),
    Example(abi.FSYNCDIR, _FSYNC_BODY, {"fh": F1, "fsync_flags": 1}, (NODEID, Handle(F1), 1)),
    Example(abi.GETLK, _LOCK_BODY, _LOCK_FIELDS, _LOCK_CALL, flags=1),
    Example(abi.SETLK, _LOCK_BODY, _LOCK_FIELDS, _LOCK_CALL, flags=1),
    Example(abi.SETLKW, _LOCK_BODY, _LOCK_FIELDS, _LOCK_CALL, flags=1),
    Example(
        abi.ACCESS,
        "06000000"  # mask: R_OK | W_OK
        "00000000",  # padding
        {"mask": 6},
        (NODEID, 6),
    ),
    Example(
        abi.CREATE,
        _CREATE_BODY + b"file\0".hex(),
        _CREATE_FIELDS,
        (NODEID, b"file", 0o100644, 0o022, W1),
        (b"file",),
        flags=1,
    ),
    Example(
        abi.INTERRUPT,
        "6162636465666768",  # unique of the interrupted request
        {"unique": F1},
        (F1,),
    ),
    Example(
        abi.BMAP,
        "6162636465666768"  # block
        "00020000"  # blocksize
        "00000000",  # padding
        {"block": F1, "blocksize": 512},
        (NODEID, F1, 512),
    ),
    Example(abi.DESTROY, "", {}, ()),
    Example(
        abi.IOCTL,
        "6162636465666768"  # fh
        "10000000"  # flags: FUSE_IOCTL_DIR
        "01020304"  # cmd
        "7172737475767778"  # arg
        "03000000"  # in_size
        "0a0b0c0d"  # out_size
        + b"\x01in".hex(),
        {"fh": F1, "flags": 16, "cmd": W1, "arg": F2, "in_size": 3, "out_size": W2},
        (NODEID, Handle(F1), W1, F2, b"\x01in"),
        data=b"\x01in",
        flags=16,
        size=W2,
    ),
    Example(
        abi.POLL,
        "6162636465666768"  # fh
        "7172737475767778"  # kh
        "01000000"  # flags: SCHEDULE_NOTIFY
        "05000000",  # events: POLLIN | POLLOUT
        {"fh": F1, "kh": F2, "flags": 1, "events": 5},
        (NODEID, Handle(F1), 5, F2),
        flags=1,
    ),
    Example(
        abi.NOTIFY_REPLY,
        "6162636465666768"  # dummy1
        "7172737475767778"  # offset
        "06000000"  # size
        "01020304"  # dummy2
        "8182838485868788"  # dummy3
        "9192939495969798"  # dummy4
        + b"cached".hex(),
        {"dummy1": F1, "offset": F2, "size": 6, "dummy2": W1, "dummy3": F3, "dummy4": F4},
        (F2, b"cached"),
        data=b"cached",
    ),
    Example(
        abi.BATCH_FORGET,
        "02000000"  # count
        "00000000"  # dummy
        "6162636465666768"  # [0].nodeid
        "7172737475767778"  # [0].nlookup
        "8182838485868788"  # [1].nodeid
        "9192939495969798",  # [1].nlookup
        {"count": 2},
        (2, struct.pack("<4Q", F1, F2, F3, F4)),
        data=struct.pack("<4Q", F1, F2, F3, F4),
    ),
    Example(
        abi.FALLOCATE,
        "6162636465666768"  # fh
        "7172737475767778"  # offset
        "8182838485868788"  # length
        "03000000"  # mode: KEEP_SIZE | PUNCH_HOLE
        "00000000",  # padding
        {"fh": F1, "offset": F2, "length": F3, "mode": 3},
        (NODEID, Handle(F1), 3, F2, F3),
    ),
    Example(abi.READDIRPLUS, _READ_BODY, _READ_FIELDS, (NODEID, Handle(F1), F2), size=W1),
    Example(
        abi.RENAME2,
        "6162636465666768"  # newdir
        "02000000"  # flags: RENAME_EXCHANGE
        "00000000"  # padding
        + b"a\0bcd\0".hex(),
        {"newdir": F1, "flags": 2},
        (NODEID, b"a", F1, b"bcd", 2),
        (b"a", b"bcd"),
    ),
    Example(
        abi.LSEEK,
        "6162636465666768"  # fh
        "7172737475767778"  # offset
        "03000000"  # whence: SEEK_DATA
        "00000000",  # padding
        {"fh": F1, "offset": F2, "whence": 3},
        (NODEID, Handle(F1), F2, 3),
    ),
    Example(abi.COPY_FILE_RANGE, _COPY_BODY, _COPY_FIELDS, _COPY_CALL),
    Example(
        abi.SETUPMAPPING,
        "6162636465666768"  # fh
        "7172737475767778"  # foffset
        "8182838485868788"  # len
        "9192939495969798"  # flags
        "a1a2a3a4a5a6a7a8",  # moffset
        {"fh": F1, "foffset": F2, "len": F3, "flags": F4, "moffset": F5},
        (),
    ),
    Example(
        abi.REMOVEMAPPING,
        "01000000"  # count
        "6162636465666768"  # moffset
        "7172737475767778",  # len
        {"count": 1},
        (),
        data=struct.pack("<2Q", F1, F2),
    ),
    Example(
        abi.SYNCFS,
        "0000000000000000",  # padding
        {},
        (NODEID,),
    ),
    Example(
        abi.TMPFILE, _CREATE_BODY + b"/\0".hex(), _CREATE_FIELDS, (NODEID, 0o100644, 0o022, W1), (b"/",), flags=1
    ),
    Example(
        abi.STATX,
        "01000000"  # getattr_flags: FUSE_GETATTR_FH
        "00000000"  # reserved
        "6162636465666768"  # fh
        "01020304"  # sx_flags
        "ff0f0000",  # sx_mask: BASIC_STATS | BTIME
        {"getattr_flags": 1, "fh": F1, "sx_flags": W1, "sx_mask": 0xFFF},
        (NODEID, Handle(F1), 0xFFF),
    ),
    Example(abi.COPY_FILE_RANGE_64, _COPY_BODY, _COPY_FIELDS, _COPY_CALL),
]

OLD_FORMS: list[Example] = [
    Example(
        abi.SETXATTR,
        "03000000"  # size
        "01000000"  # flags: XATTR_CREATE
        + b"user.old\0abc".hex(),
        {"size": 3, "flags": 1},
        (NODEID, b"user.old", b"abc", 1),
        (b"user.old",),
        b"abc",
        size=3,
        layout=abi.SETXATTR_IN_COMPAT,
    ),
    Example(
        abi.INIT,
        "07000000"  # major
        "17000000"  # minor: 23
        "01020304"  # max_readahead
        "0a0b0c0d",  # flags
        {"major": 7, "minor": 23, "max_readahead": W1, "flags": W2},
        (),
        layout=abi.INIT_IN_COMPAT,
    ),
]
# fmt: on
"""What kernels send that are older, or that were not asked for more."""

BY_OPCODE = {example.opcode: example for example in EXAMPLES}

SECURITY_BLOCK = bytes.fromhex(
    "30000000"  # fuse_secctx_header.size: 48
    "01000000"  # nr_secctx
    "09000000"  # fuse_secctx.size
    "00000000"  # padding
    + b"security.selinux\0".hex()
    + b"label_t:s".hex()  # 17 + 9 bytes
    + "000000000000"  # padding to 8
)
GROUPS_BLOCK = bytes.fromhex(
    "18000000"  # fuse_ext_header.size: 24
    "20000000"  # type: FUSE_EXT_GROUPS
    "02000000"  # nr_groups
    "01020304"  # groups[0]
    "0a0b0c0d"  # groups[1]
    "00000000"  # padding to 8
)

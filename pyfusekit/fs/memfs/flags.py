"""The inode flags that lsattr(1) shows and chattr(1) sets, in the two forms the kernel asks for them (ioctl_iflags(2))."""

from __future__ import annotations

import errno
import struct

FLAG_IMMUTABLE = 0x10
FLAG_APPEND = 0x20
_FLAG_NODUMP = 0x40
_FLAG_NOATIME = 0x80
FLAGS = FLAG_IMMUTABLE | FLAG_APPEND | _FLAG_NODUMP | _FLAG_NOATIME
"""What tmpfs takes (mm/shmem.c, SHMEM_FL_USER_MODIFIABLE): i and a, which bind, d and A, which are only kept."""

_READ, _WRITE = 2, 1


def _ioctl(direction: int, kind: str, number: int, size: int) -> int:
    return direction << 30 | size << 16 | ord(kind) << 8 | number


# Their numbers speak of a long, their argument is an unsigned int.
GETFLAGS = _ioctl(_READ, "f", 1, struct.calcsize("l"))
SETFLAGS = _ioctl(_WRITE, "f", 2, struct.calcsize("l"))
_WORD = struct.Struct("=I")

_FSXATTR = struct.Struct("=IIIII8x")  # fsx_xflags, then what only disks have
FSGETXATTR = _ioctl(_READ, "X", 31, _FSXATTR.size)
FSSETXATTR = _ioctl(_WRITE, "X", 32, _FSXATTR.size)
_XFLAGS = ((FLAG_IMMUTABLE, 0x08), (FLAG_APPEND, 0x10), (_FLAG_NOATIME, 0x40), (_FLAG_NODUMP, 0x80))


def encode(cmd: int, flags: int) -> bytes | None:
    """Return *flags* as the answer to *cmd*, or None when it does not ask for them."""
    if cmd == GETFLAGS:
        return _WORD.pack(flags)
    if cmd == FSGETXATTR:
        return _FSXATTR.pack(sum(xflag for flag, xflag in _XFLAGS if flags & flag), 0, 0, 0, 0)
    return None


def decode(cmd: int, data: memoryview) -> int | None:
    """Return the flags that *cmd* sets with *data*, or None when it sets none; EOPNOTSUPP for flags there are not."""
    if cmd == SETFLAGS and len(data) >= _WORD.size:
        (flags,) = _WORD.unpack_from(data)
        if flags & ~FLAGS:
            raise OSError(errno.EOPNOTSUPP, f"inode flags {flags:#x}")
        return int(flags)
    if cmd == FSSETXATTR and len(data) == _FSXATTR.size:
        xflags = _FSXATTR.unpack(data)[0]
        if xflags & ~sum(xflag for _, xflag in _XFLAGS):
            raise OSError(errno.EOPNOTSUPP, f"inode flags {xflags:#x}")
        return sum(flag for flag, xflag in _XFLAGS if xflags & xflag)
    return None


__all__ = ["FLAGS", "FLAG_APPEND", "FLAG_IMMUTABLE", "FSGETXATTR", "FSSETXATTR", "GETFLAGS", "SETFLAGS", "decode", "encode"]

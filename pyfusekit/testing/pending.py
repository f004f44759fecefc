"""What the fake kernel knows of operations, and a request that waits for its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from concurrent.futures import Future
from typing import Any

from ..core import abi
from ..core.codec import ReplyMessage

OFFERED = (
    abi.ASYNC_READ | abi.POSIX_LOCKS | abi.ATOMIC_O_TRUNC | abi.EXPORT_SUPPORT | abi.BIG_WRITES | abi.DONT_MASK
    | abi.FLOCK_LOCKS | abi.HAS_IOCTL_DIR | abi.AUTO_INVAL_DATA | abi.DO_READDIRPLUS | abi.READDIRPLUS_AUTO | abi.ASYNC_DIO
    | abi.NO_OPEN_SUPPORT | abi.PARALLEL_DIROPS | abi.HANDLE_KILLPRIV | abi.POSIX_ACL | abi.ABORT_ERROR | abi.MAX_PAGES
    | abi.CACHE_SYMLINKS | abi.NO_OPENDIR_SUPPORT | abi.EXPLICIT_INVAL_DATA | abi.HANDLE_KILLPRIV_V2 | abi.SETXATTR_EXT
    | abi.INIT_EXT | abi.SECURITY_CTX | abi.CREATE_SUPP_GROUP | abi.HAS_EXPIRE_ONLY | abi.DIRECT_IO_ALLOW_MMAP
    | abi.HAS_RESEND | abi.ALLOW_IDMAP | abi.REQUEST_TIMEOUT
)  # fmt: skip
"""What Linux 6.18 offers, without what needs a page cache or files of the kernel's own: splice, write-back, passthrough,
io_uring."""

STICKY_ENOSYS = frozenset(
    (
        abi.OPEN, abi.OPENDIR, abi.CREATE, abi.FLUSH, abi.FSYNC, abi.FSYNCDIR, abi.ACCESS, abi.LINK, abi.RENAME2, abi.TMPFILE,
        abi.STATX, abi.SETXATTR, abi.GETXATTR, abi.LISTXATTR, abi.REMOVEXATTR, abi.LSEEK, abi.FALLOCATE,
        abi.COPY_FILE_RANGE, abi.COPY_FILE_RANGE_64, abi.POLL, abi.BMAP, abi.INTERRUPT, abi.SYNCFS,
    )
)  # fmt: skip
"""Operations that the kernel does not ask again after one ENOSYS (fuse.md 2.4)."""


class Pending:
    """A request that is not yet answered; await it, or ask its future from another thread."""

    def __init__(self, opcode: int, nodeid: int, unique: int, message: bytes, size: int, mode: int | None) -> None:
        self.opcode = opcode
        self.nodeid = nodeid
        self.unique = unique
        """As the server knows it: with bit 63 after a resend."""
        self.message = message
        self.size = size
        """The most bytes the reply's data may have."""
        self.mode = mode
        """The file type asked for, for what makes a node."""
        self.future: Future[ReplyMessage] = Future()

    def __repr__(self) -> str:
        return f"{abi.OPS[self.opcode].name} #{self.unique:#x} nodeid={self.nodeid}"

    def __await__(self) -> Generator[Any, None, ReplyMessage]:
        return asyncio.wrap_future(self.future).__await__()


__all__ = ["OFFERED", "STICKY_ENOSYS", "Pending"]

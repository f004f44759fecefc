"""A null filesystem on pyfuse3, as fast as its interface allows: answers are built once, reads give the same bytes."""

# mypy: disallow-subclassing-any=False, disable-error-code="import-not-found"

from __future__ import annotations

import stat
import sys
from typing import Any

import pyfuse3
import trio

FILE, SLOW = 2, 3
BYTES = {size: b"x" * size for size in (4096, 1 << 20)}


def entry(ino: int) -> Any:
    """Build the attributes of *ino*, which the kernel may not keep."""
    attributes = pyfuse3.EntryAttributes()
    attributes.st_ino = ino
    attributes.st_mode = stat.S_IFDIR | 0o755 if ino == pyfuse3.ROOT_INODE else stat.S_IFREG | 0o644
    attributes.st_nlink = 1
    attributes.st_size = 0 if ino == pyfuse3.ROOT_INODE else 1 << 30
    attributes.entry_timeout = 0
    attributes.attr_timeout = 0
    return attributes


class Null(pyfuse3.Operations):
    """Every name is the file FILE, but "slow", whose reads take 100 ms."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = {ino: entry(ino) for ino in (pyfuse3.ROOT_INODE, FILE, SLOW)}

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> Any:
        return self.entries[SLOW if name == b"slow" else FILE]

    async def getattr(self, inode: int, ctx: Any) -> Any:
        return self.entries[inode]

    async def open(self, inode: int, flags: int, ctx: Any) -> Any:
        return pyfuse3.FileInfo(fh=inode, direct_io=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        if fh == SLOW:
            await trio.sleep(0.1)
        return BYTES[size]

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return len(buf)

    async def release(self, fh: int) -> None:
        return None


def main() -> None:
    """Serve sys.argv[1] until it is unmounted or SIGTERM comes."""
    pyfuse3.init(Null(), sys.argv[1], {"fsname=null"})
    trio.run(pyfuse3.main, 1, 2000)
    pyfuse3.close()


if __name__ == "__main__":
    main()

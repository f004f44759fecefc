"""A null filesystem on pyfusekit: answers are built once, reads give the same bytes."""

from __future__ import annotations

import asyncio
import stat
import sys

from pyfusekit.core import Attr, Filesystem, MountOptions, Opened, Request, serve
from pyfusekit.core.abi import FOPEN_DIRECT_IO

ROOT, FILE, SLOW = 1, 2, 3


class Null(Filesystem):
    """Every name is the file FILE, but "slow", whose reads take 100 ms."""

    attr_ttl = 0.0
    entry_ttl = 0.0
    default_permissions = False

    def __init__(self) -> None:
        self.attrs = {
            ROOT: Attr(ino=ROOT, mode=stat.S_IFDIR | 0o755),
            FILE: Attr(ino=FILE, mode=stat.S_IFREG | 0o644, size=1 << 30),
            SLOW: Attr(ino=SLOW, mode=stat.S_IFREG | 0o644, size=1 << 30),
        }
        self.bytes = {size: b"x" * size for size in (4096, 1 << 20)}

    def lookup(self, request: Request, parent: int, name: bytes) -> Attr:
        return self.attrs[SLOW if name == b"slow" else FILE]

    def getattr(self, request: Request, ino: int, handle: object) -> Attr:
        return self.attrs[ino]

    def open(self, request: Request, ino: int, flags: int) -> Opened:
        return Opened(flags=FOPEN_DIRECT_IO)

    def read(self, request: Request, ino: int, handle: object, offset: int, size: int) -> object:
        return self.read_slowly(size) if ino == SLOW else self.bytes[size]

    async def read_slowly(self, size: int) -> bytes:
        await asyncio.sleep(0.1)
        return self.bytes[size]

    def write(self, request: Request, ino: int, handle: object, offset: int, data: memoryview) -> int:
        return len(data)


async def main() -> None:
    """Serve sys.argv[1] until it is unmounted."""
    async with serve(Null(), sys.argv[1], MountOptions(source="null", default_permissions=False)) as served:
        await served.wait()


if __name__ == "__main__":
    asyncio.run(main())

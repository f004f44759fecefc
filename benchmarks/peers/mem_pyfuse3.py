"""A memory filesystem on pyfuse3 in plain dicts, instead of its example's database, as fast as the interface allows."""

# mypy: disallow-subclassing-any=False, disable-error-code="import-not-found"

from __future__ import annotations

import errno
import stat
import sys
import time
from typing import Any

import pyfuse3
import trio


class Memory(pyfuse3.Operations):
    """Files and directories in one table of inodes; the attributes object of each is kept and handed out."""

    def __init__(self) -> None:
        super().__init__()
        self.attributes: dict[int, Any] = {}
        self.names: dict[int, dict[bytes, int]] = {}
        self.data: dict[int, bytearray] = {}
        self.last = 0
        self.make(stat.S_IFDIR | 0o755, 0, 0)

    def make(self, mode: int, uid: int, gid: int) -> Any:
        self.last = ino = self.last + 1
        entry = self.attributes[ino] = pyfuse3.EntryAttributes()
        entry.st_ino = ino
        entry.st_mode = mode
        entry.st_nlink = 1
        entry.st_uid = uid
        entry.st_gid = gid
        entry.entry_timeout = entry.attr_timeout = 300
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = time.time_ns()
        if stat.S_ISDIR(mode):
            self.names[ino] = {}
        else:
            self.data[ino] = bytearray()
        return entry

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> Any:
        ino = self.names[parent_inode].get(name)
        if ino is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self.attributes[ino]

    async def getattr(self, inode: int, ctx: Any) -> Any:
        return self.attributes[inode]

    async def setattr(self, inode: int, attr: Any, fields: Any, fh: int | None, ctx: Any) -> Any:
        entry = self.attributes[inode]
        if fields.update_size:
            data = self.data[inode]
            del data[attr.st_size :]
            data.extend(bytes(attr.st_size - len(data)))
            entry.st_size = attr.st_size
        if fields.update_mode:
            entry.st_mode = attr.st_mode
        if fields.update_mtime:
            entry.st_mtime_ns = attr.st_mtime_ns
        return entry

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: Any) -> Any:
        entry = self.make(mode | stat.S_IFDIR, ctx.uid, ctx.gid)
        self.names[parent_inode][name] = entry.st_ino
        return entry

    async def create(self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any) -> tuple[Any, Any]:
        entry = self.make(mode, ctx.uid, ctx.gid)
        self.names[parent_inode][name] = entry.st_ino
        return pyfuse3.FileInfo(fh=entry.st_ino), entry

    async def unlink(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        ino = self.names[parent_inode].pop(name)
        self.attributes[ino].st_nlink = 0

    async def forget(self, inode_list: list[tuple[int, int]]) -> None:
        for ino, _ in inode_list:
            entry = self.attributes.get(ino)
            if entry is not None and entry.st_nlink == 0:
                del self.attributes[ino], self.data[ino]

    async def open(self, inode: int, flags: int, ctx: Any) -> Any:
        return pyfuse3.FileInfo(fh=inode)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return bytes(self.data[fh][off : off + size])

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        data = self.data[fh]
        if off > len(data):
            data.extend(bytes(off - len(data)))
        data[off : off + len(buf)] = buf
        entry = self.attributes[fh]
        entry.st_size = len(data)
        entry.st_mtime_ns = entry.st_ctime_ns = time.time_ns()
        return len(buf)

    async def release(self, fh: int) -> None:
        return None


def main() -> None:
    """Serve sys.argv[1] until it is unmounted."""
    pyfuse3.init(Memory(), sys.argv[1], {"fsname=memory", "default_permissions"})
    trio.run(pyfuse3.main)
    pyfuse3.close()


if __name__ == "__main__":
    main()

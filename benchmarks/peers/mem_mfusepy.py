"""A memory filesystem on mfusepy: one directory of files in dicts, as its memory example, as fast as the interface allows."""

# mypy: disallow-subclassing-any=False, disable-error-code="import-not-found"

from __future__ import annotations

import errno
import stat
import sys
import time

import mfusepy


class Memory(mfusepy.Operations):
    """Attributes and contents by path; a handle is a number and nothing else."""

    use_ns = True

    def __init__(self) -> None:
        now = time.time_ns()
        times = {"st_ctime": now, "st_mtime": now, "st_atime": now}
        self.attributes: dict[str, dict[str, int]] = {"/": {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2, **times}}
        self.data: dict[str, bytearray] = {}

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        attributes = self.attributes.get(path)
        if attributes is None:
            raise mfusepy.FuseOSError(errno.ENOENT)
        return attributes

    def create(self, path: str, mode: int) -> int:
        now = time.time_ns()
        times = {"st_ctime": now, "st_mtime": now, "st_atime": now}
        self.attributes[path] = {"st_mode": stat.S_IFREG | mode, "st_nlink": 1, "st_size": 0, **times}
        self.data[path] = bytearray()
        return 1

    def open(self, path: str, flags: int) -> int:
        return 1

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return bytes(self.data[path][offset : offset + size])

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        contents = self.data[path]
        if offset > len(contents):
            contents.extend(bytes(offset - len(contents)))
        contents[offset : offset + len(data)] = data
        attributes = self.attributes[path]
        attributes["st_size"] = len(contents)
        attributes["st_mtime"] = attributes["st_ctime"] = time.time_ns()
        return len(data)

    def truncate(self, path: str, length: int, fh: int | None = None) -> None:
        contents = self.data[path]
        del contents[length:]
        contents.extend(bytes(length - len(contents)))
        self.attributes[path]["st_size"] = length

    def unlink(self, path: str) -> None:
        del self.attributes[path], self.data[path]


def main() -> None:
    """Serve sys.argv[1] until it is unmounted."""
    nothreads = "--nothreads" in sys.argv
    mfusepy.FUSE(Memory(), sys.argv[1], foreground=True, nothreads=nothreads, default_permissions=True, fsname="memory")


if __name__ == "__main__":
    main()

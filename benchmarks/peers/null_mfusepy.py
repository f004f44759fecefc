"""A null filesystem on mfusepy, as fast as its interface allows: answers are built once, reads give the same bytes."""

# mypy: disallow-subclassing-any=False, disable-error-code="import-not-found"

from __future__ import annotations

import stat
import sys
import time

import mfusepy

FILE, SLOW = 2, 3
BYTES = {size: b"x" * size for size in (4096, 1 << 20)}
ROOT_ATTRIBUTES = {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 1}
FILE_ATTRIBUTES = {"st_mode": stat.S_IFREG | 0o644, "st_nlink": 1, "st_size": 1 << 30}


class Null(mfusepy.Operations):
    """Every name is the same file, but "slow", whose reads take 100 ms."""

    use_ns = True

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        return ROOT_ATTRIBUTES if path == "/" else FILE_ATTRIBUTES

    def open(self, path: str, flags: int) -> int:
        return SLOW if path == "/slow" else FILE

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        if fh == SLOW:
            time.sleep(0.1)
        return BYTES[size]

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return len(data)


def main() -> None:
    """Serve sys.argv[1] until it is unmounted or SIGTERM comes."""
    nothreads = "--nothreads" in sys.argv
    mfusepy.FUSE(
        Null(),
        sys.argv[1],
        foreground=True,
        nothreads=nothreads,
        direct_io=True,
        attr_timeout=0,
        entry_timeout=0,
        negative_timeout=0,
        fsname="null",
    )


if __name__ == "__main__":
    main()

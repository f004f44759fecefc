"""What lies in a directory of the block cache, told and cleared by somebody who mounts nothing. See blocks.py and entry.py."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .blocks import _evict
from .entry import BLOCK, HEADER, RECORD

DAMAGED = "(damaged)"
"""The source of entries whose header cannot be read: a mount that meets one removes it."""


class Held(NamedTuple):
    """One entry."""

    path: Path
    """Its records."""
    source: str
    name: str
    size: int
    """Bytes of the remote file."""
    cached: int
    """Bytes that are here."""
    disk: int
    """Bytes its two files take."""
    used_at: float
    """When it was last used, in seconds since the epoch."""
    in_use: bool

    @property
    def complete(self) -> bool:
        """Return whether the whole file is here."""
        return self.cached == self.size and self.source != DAMAGED


def is_cache(directory: str | os.PathLike[str]) -> bool:
    """Say whether *directory* has entries."""
    return next(Path(directory).glob("??/*.meta"), None) is not None


def held(directory: str | os.PathLike[str]) -> Iterator[Held]:
    """Yield the entries in *directory*; one that goes meanwhile is left out. OSError when the directory cannot be read."""
    os.listdir(directory)
    locked = _locked()
    for path in sorted(Path(directory).glob("??/*.meta")):
        with contextlib.suppress(OSError):
            yield _read(path, locked)


def clear(path: Path) -> bool:
    """Remove the entry whose records are *path*; False when somebody has it open. PermissionError when it is another user's."""
    if _evict(path):
        return True
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return True
    return False


def _read(path: Path, locked: set[tuple[int, int, int]]) -> Held:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        header = file.read(HEADER)
        records = file.read()
    body, _, check = header.rstrip(b"\0").rpartition(b"\n")
    source, name, size, disk = DAMAGED, "", 0, status.st_blocks * 512
    fields = body.split(b"\n")
    # A damaged header, or one of another version of this program.
    with contextlib.suppress(ValueError, IndexError, TypeError):
        if check == b"%08x" % zlib.crc32(body):
            source, name, _validator, size, _block = json.loads(fields[1].decode("utf-8", "surrogatepass"))
            data = path.with_name(f"{path.stem}.{fields[2].decode('ascii')}.data")
            with contextlib.suppress(OSError):
                disk += data.stat().st_blocks * 512
    in_use = _key(os.major(status.st_dev), os.minor(status.st_dev), status.st_ino) in locked
    return Held(path, str(source), str(name), int(size), _cached(records, int(size)), disk, status.st_mtime, in_use)


def _cached(records: bytes, size: int) -> int:
    """Return how many bytes have a record."""
    tags = memoryview(records[: len(records) // RECORD.size * RECORD.size]).cast("I")[::2].tolist()
    blocks = -(-size // BLOCK)
    count = (len(tags[:blocks]) - tags[:blocks].count(0)) * BLOCK
    # The last block is as long as the file lets it be.
    if blocks and len(tags) >= blocks and tags[blocks - 1]:
        count -= blocks * BLOCK - size
    return count


def _locked() -> set[tuple[int, int, int]]:
    """Return major, minor and inode of all files that somebody holds a flock on (proc_locks(5)).

    Asking the file itself would be to hold its lock for a moment, in which a mount would not find the entry.
    """
    found = set()
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if len(fields) > 5 and fields[1] == "FLOCK":
                with contextlib.suppress(ValueError):
                    major, minor, inode = fields[5].split(":")
                    found.add(_key(int(major, 16), int(minor, 16), int(inode)))
    return found


def _key(major: int, minor: int, inode: int) -> tuple[int, int, int]:
    """Return what tells files apart; btrfs and overlayfs tell stat(2) another anonymous device than /proc/locks."""
    return (major, minor if major else 0, inode)


__all__ = ["DAMAGED", "Held", "clear", "held", "is_cache"]

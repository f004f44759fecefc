"""One entry of the block cache: two files. See blocks.py."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .blocks import BlockCache

log = logging.getLogger("pyfusekit.cache")

BLOCK = 128 << 10
"""Bytes of a block."""
HEADER = 4096
"""Where the records begin."""
RECORD = struct.Struct("=II")
"""Tag of the boot, never 0; CRC32."""
_FORMAT = b"pyfusekit blocks 1\n"


class Entry:
    """What the cache has of one version of one file. See BlockCache.open."""

    def __init__(self, cache: BlockCache, stem: str, what: bytes, size: int) -> None:
        self.size = size
        self.opens = 0
        self.blocks = -(-size // BLOCK)
        self._cache = cache
        self.stem = stem
        self._what = what
        self._path = cache.directory / stem[:2] / f"{stem}.meta"
        self._meta = -1
        self._data = -1
        self._broken = False
        """Nothing more of it can be kept."""
        self._writing = threading.Lock()
        """The cache's thread, one that adopts a file and the caller of write_later may have the same entry."""
        self._filling: dict[int, tuple[int, int]] = {}
        """Block -> the offset up to which it was written here, in order from its beginning, and the CRC so far."""
        self._there = bytearray(self.blocks if cache.limit > 0 else 0)
        """1 for each block that was seen to be there and whole."""
        self.doubtful = False
        """It was whole in another boot: only its CRCs can say whether it is still, see :meth:`verify`."""
        self._complete = not size

    @property
    def complete(self) -> bool:
        """Return whether all bytes are there, and known to be whole: see :meth:`verify`."""
        if not self._complete and self._there:
            self._complete = self._there.find(0) < 0
        return self._complete

    @property
    def fd(self) -> int:
        """Return the descriptor of the sparse file, which has the remote file's size, until close; -1 when there is none.

        Whoever reads it directly wants the entry to be complete, and nobody may write to it.
        """
        return self._data

    def close(self) -> None:
        """Let go of it; the last one lets it be evicted."""
        if not self._cache.leave(self):
            return
        if self._meta >= 0:
            with contextlib.suppress(OSError):
                os.utime(self._meta)
        # Requests that end later bring bytes for nobody.
        self._broken = True
        self._complete = False
        self._there = bytearray()
        self._shut()

    def _shut(self) -> None:
        for fd in (self._meta, self._data):
            if fd >= 0:
                os.close(fd)
        self._meta = self._data = -1

    # Reading.

    def read(self, offset: int, size: int) -> bytes | None:
        """Return the bytes [offset, offset + size), cut at the end of the file; None unless all are there."""
        end = min(offset + size, self.size)
        if offset >= end:
            return b""
        if self._meta < 0 or not self._has(offset // BLOCK, -(-end // BLOCK)):
            return None
        try:
            data = os.pread(self._data, end - offset, offset)
        except OSError:
            data = b""
        if len(data) == end - offset:
            return data
        self._distrust(offset // BLOCK, -(-end // BLOCK))
        return None

    def missing(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return the ranges of whole blocks that [start, end) touches and that are not there, in order."""
        found: list[tuple[int, int]] = []
        end = min(end, self.size)
        if start >= end:
            return found
        first = start // BLOCK
        for number, there in enumerate(self._look(first, -(-end // BLOCK)), first):
            if there:
                continue
            upto = min(self.size, (number + 1) * BLOCK)
            if found and found[-1][1] == number * BLOCK:
                found[-1] = (found[-1][0], upto)
            else:
                found.append((number * BLOCK, upto))
        return found

    def verify(self) -> bool:
        """Look at all blocks, those of another boot with their CRC, and return whether the entry is complete.

        It may read the whole file: call this in a thread when it is large. It stops at the first block that is missing.
        """
        self.doubtful = False
        return self._meta >= 0 and self._has(0, self.blocks)

    def verify_later(self) -> None:
        """Have a thread verify it, which keeps it open meanwhile."""
        self.doubtful = False
        self._cache.verify_later(self)

    def _has(self, first: int, upto: int) -> bool:
        """Return whether the blocks [first, upto) are all there."""
        if self._there and self._there.find(0, first, upto) < 0:
            return True
        return self._meta >= 0 and all(self._look(first, upto))

    def _look(self, first: int, upto: int) -> Iterator[bool]:
        """Yield for each of the blocks [first, upto) whether it is there."""
        records = b""
        if self._meta >= 0:
            with contextlib.suppress(OSError):
                records = os.pread(self._meta, (upto - first) * RECORD.size, HEADER + first * RECORD.size)
        for number in range(first, upto):
            at = (number - first) * RECORD.size
            if self._there and self._there[number]:
                yield True
            elif len(records) < at + RECORD.size or not any(records[at : at + RECORD.size]):
                yield False
            else:
                yield self._trust(number, *RECORD.unpack_from(records, at))

    def _trust(self, number: int, boot: int, crc: int) -> bool:
        """Return whether the record of a block holds: one of another boot if its bytes are what was written."""
        if boot != self._cache.boot:
            length = min(BLOCK, self.size - number * BLOCK)
            try:
                data = os.pread(self._data, length, number * BLOCK)
                right = len(data) == length and zlib.crc32(data) == crc
                os.pwrite(self._meta, RECORD.pack(self._cache.boot, crc) if right else bytes(8), HEADER + number * 8)
            except OSError:
                return False
            if not right:
                return False
        self._there[number] = 1
        return True

    def _distrust(self, first: int, upto: int) -> None:
        """Forget blocks whose bytes cannot be read."""
        log.info("%s: bytes of %d blocks are gone", self._path, upto - first)
        with contextlib.suppress(OSError):
            os.pwrite(self._meta, bytes((upto - first) * RECORD.size), HEADER + first * RECORD.size)
        self._complete = False
        self._there[first:upto] = bytes(upto - first)

    # Writing.

    def write(self, offset: int, data: bytes | memoryview) -> bool:
        """Keep *data* of the place *offset*; return False when nothing more is kept.

        A block is there when it was written whole, in any number of pieces but in order from its beginning.
        """
        end = min(offset + len(data), self.size)
        if offset >= end:
            return not self._broken
        with self._writing:
            return self._keep(offset, end, data)

    def _keep(self, offset: int, end: int, data: bytes | memoryview) -> bool:
        if self._broken or not self._ready(end - offset):
            return False
        first, crc = self._filling.pop(offset // BLOCK, (-1, 0))
        if first != offset:
            # A block begins here, or the beginning of this one is not there.
            first, crc = -(-offset // BLOCK) * BLOCK, 0
        if first >= end or self._there.find(0, first // BLOCK, -(-end // BLOCK)) < 0:
            return True
        try:
            self._write(first, end, memoryview(data)[first - offset : end - offset], crc)
        except OSError as exc:
            self._fail(exc)
            return False
        return True

    def _write(self, start: int, end: int, data: memoryview, crc: int) -> None:
        """Write bytes, then the records of the blocks that are whole by that. *crc* is that of the block up to *start*."""
        if os.pwrite(self._data, data, start) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._cache.used += len(data)
        first = number = start // BLOCK
        records: list[int] = []
        position = start
        while position < end:
            upto = min(self.size, (number + 1) * BLOCK)
            crc = zlib.crc32(data[position - start : min(upto, end) - start], crc)
            if upto > end:
                self._filling[number] = (end, crc)
                break
            records += (self._cache.boot, crc)
            number, position, crc = number + 1, upto, 0
        if records:
            os.pwrite(self._meta, struct.pack(f"={len(records)}I", *records), HEADER + first * RECORD.size)
            self._there[first:number] = b"\1" * (number - first)

    def write_later(self, offset: int, pieces: Sequence[bytes | memoryview]) -> None:
        """Have the cache's thread write *pieces*, which lie one behind the other; do it now when the disk cannot keep up."""
        if self._broken:
            return
        size = sum(map(len, pieces))
        if not self._cache.later(self, offset, pieces, size):
            for piece in pieces:
                self.write(offset, piece)
                offset += len(piece)

    def _fail(self, exc: OSError) -> None:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            self._cache.full(exc)
        else:
            log.warning("%s: the cache keeps no more of this file: %s", self._path, exc)
            self._broken = True

    def _ready(self, size: int) -> bool:
        """Return whether *size* bytes may be written: the files are made at the first."""
        if not self._there or not self._cache.room(size):
            return False
        if self._meta < 0:
            try:
                self._make()
            except OSError as exc:
                self._fail(exc)
                return False
            self._broken = self._meta < 0
        return not self._broken

    # The files.

    def find(self) -> None:
        """Open the files, if they are there and are what they should be."""
        if not self._there:
            return
        try:
            self._meta = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return
        try:
            fcntl.flock(self._meta, fcntl.LOCK_SH | fcntl.LOCK_NB)
            # Whoever evicted it meanwhile holds the lock no more, but the name is another file's, or nobody's.
            if os.fstat(self._meta).st_ino == os.stat(self._path).st_ino and self._open_data():
                os.utime(self._meta)
                self._count()
                return
        except OSError as exc:
            log.debug("%s: %s", self._path, exc)
        self._shut()

    def _open_data(self) -> bool:
        """Open the bytes the header names; remove the entry when it or they are damaged."""
        header = os.pread(self._meta, HEADER, 0)
        body, _, check = header.rstrip(b"\0").rpartition(b"\n")
        fields = body.split(b"\n")
        if len(fields) == 3 and body.startswith(_FORMAT) and check == b"%08x" % zlib.crc32(body) and fields[1] == self._what:
            with contextlib.suppress(FileNotFoundError):
                self._data = self._open_nonce(fields[2].decode("ascii"), 0)
                if os.fstat(self._data).st_size == self.size:
                    return True
        log.warning("%s: damaged, and removed", self._path)
        self._path.unlink()
        return False

    def _open_nonce(self, nonce: str, flags: int) -> int:
        return os.open(self._path.with_name(f"{self.stem}.{nonce}.data"), os.O_RDWR | os.O_CLOEXEC | flags, 0o600)

    def _count(self) -> None:
        """Learn from the records of this boot which blocks are there; the others are looked at when they are wanted."""
        records = os.pread(self._meta, self.blocks * RECORD.size, HEADER)
        tags = memoryview(records[: len(records) // 8 * 8]).cast("I")[::2].tolist()
        self._there[: len(tags)] = bytes(map(self._cache.boot.__eq__, tags))
        self.doubtful = len(tags) == self.blocks and 0 not in tags and not self.complete

    def _make(self) -> None:
        """Make the files: the bytes first, the records under a name of their own and then by link(2), so as to be whole."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        nonce = secrets.token_hex(4)
        body = b"%s%s\n%s" % (_FORMAT, self._what, nonce.encode())
        header = b"%s\n%08x" % (body, zlib.crc32(body))
        if len(header) > HEADER:
            return
        self._data = self._open_nonce(nonce, os.O_CREAT | os.O_EXCL)
        draft = self._path.with_name(f"{self.stem}.{nonce}.new")
        self._meta = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(self._data, self.size)
            os.pwrite(self._meta, header.ljust(HEADER, b"\0"), 0)
            fcntl.flock(self._meta, fcntl.LOCK_SH | fcntl.LOCK_NB)
            os.link(draft, self._path)
        except OSError as exc:
            self._shut()
            self._path.with_name(f"{self.stem}.{nonce}.data").unlink()
            if not isinstance(exc, FileExistsError):
                raise
            # Another process made it just now.
            self.find()
        finally:
            draft.unlink(missing_ok=True)


def read_nonce(path: Path) -> str:
    """Return which bytes belong to the records at *path*; a damaged header names none."""
    with path.open("rb") as file:
        fields = file.read(HEADER).split(b"\n")
    return fields[2].decode("ascii", "replace").replace("/", "") if len(fields) > 2 else "?"


__all__ = ["BLOCK", "HEADER", "RECORD", "Entry", "read_nonce"]

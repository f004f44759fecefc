"""The block cache on disk: what was fetched of a version of a remote file is not fetched again, not after a restart either.

An entry is two files. NAME.meta begins with a header that says what the entry is of; behind it lies a record for each block of
128 KiB: the boot in which it was written and the CRC32 of its bytes. NAME.NONCE.data is the remote file itself, sparse, the
nonce being in the header, so that records and bytes of different lives of an entry never meet.

- Bytes are written before their record. kill -9 loses neither, because both are in the kernel's cache by then. Power loss may
  lose any of them: so a record of another boot is believed only when the bytes have its CRC.
- The records are read from the file whenever they are needed: several mounts may share a directory and see each other's blocks.
- Who has an entry open holds a shared flock on its records; who evicts wants an exclusive one, and unlinks the records first.
- Whatever goes wrong (disk full, a damaged file, somebody deleting) is a block that is not there, never an error.

Nothing here waits for anything but the disk, and nothing is synced.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import secrets
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue

from .entry import BLOCK, Entry, read_nonce

log = logging.getLogger("pyfusekit.cache")

BACKLOG = 16 << 20
"""Bytes that may wait for the disk."""
_COPY = 1 << 20


def _boot() -> int:
    """Return a number for this boot of the machine; for this process, where nothing tells."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        text = secrets.token_bytes(16)
    return zlib.crc32(text) or 1


class BlockCache:
    """Entries in *directory*, of *limit* bytes together, those that were not used for the longest time going first.

    Entries that are open, here or in another process, stay: while they fill the limit, nothing more is kept.
    """

    def __init__(self, directory: str | os.PathLike[str], limit: int) -> None:
        self.directory = Path(directory)
        self.limit = limit
        self.boot = _boot()
        self.used = 0
        """Bytes on the disk when it was last looked at, and what was written here since."""
        self._room = limit
        """The limit, or less where the disk has less."""
        self._counted = False
        self._refuse = 0
        """So many bytes are not kept before it is worth looking for room again."""
        self._entries: dict[str, Entry] = {}
        self._lock = threading.Lock()
        """Of opens and closes."""
        self._trimming = threading.Lock()
        self._trimmer: threading.Thread | None = None
        self._jobs: SimpleQueue[tuple[Entry, int, Sequence[bytes | memoryview]] | None] = SimpleQueue()
        self._writer: threading.Thread | None = None
        self._backlog = 0
        """INVARIANT: bytes of the pieces in _jobs; changed under _lock."""

    def open(self, source: str, name: str, validator: str, size: int) -> Entry:
        """Return the entry of a version of a file: *validator* is what tells versions apart, e.g. an ETag.

        Close it once for each open. Nothing is made on the disk before the first write.
        """
        what = json.dumps([source, name, validator, size, BLOCK], ensure_ascii=False).encode("utf-8", "surrogatepass")
        stem = hashlib.sha256(what).hexdigest()[:40]
        with self._lock:
            entry = self._entries.get(stem)
            if entry is None:
                entry = self._entries[stem] = Entry(self, stem, what, size)
                entry.find()
            entry.opens += 1
        return entry

    def adopt(self, source: str, name: str, validator: str, size: int, file: str | int) -> bool:
        """Copy a finished local file, a path or a descriptor, as a complete entry; say whether it is one now.

        It is read whole: call this in a thread when it is large.
        """
        entry = self.open(source, name, validator, size)
        fd = -1
        try:
            fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC) if isinstance(file, str) else os.dup(file)
            offset = 0
            while offset < size and (data := os.pread(fd, min(_COPY, size - offset), offset)):
                if not entry.write(offset, data):
                    return False
                offset += len(data)
            return offset == size and entry.complete
        except OSError as exc:
            log.info("%r is not cached: %s", name, exc)
            return False
        finally:
            if fd >= 0:
                os.close(fd)
            entry.close()

    def room(self, size: int) -> bool:
        """Return whether *size* bytes more may be written. Old entries are evicted in a thread before the limit is reached."""
        if self._refuse > 0:
            self._refuse -= size
            return False
        if not self._counted or self.used + size > self._room - self._room // 16:
            self._begin_trim()
        return self.used + size <= self._room

    def full(self, exc: OSError) -> None:
        """Note that the disk is full."""
        log.warning("%s: nothing is cached for a while: %s", self.directory, exc)
        self._refuse = max(self.limit // 16, BLOCK)
        self._begin_trim()

    def _begin_trim(self) -> None:
        """Trim in a thread; at most one is under way, and the mount goes on meanwhile."""
        with self._lock:
            if self._trimmer is not None and self._trimmer.is_alive():
                return
            self._counted = True
            trimmer = threading.Thread(target=self.trim, name="cache-trim", daemon=True)
            # Started before others see it: close joins what it sees.
            trimmer.start()
            self._trimmer = trimmer

    def close(self) -> None:
        """Wait for what is being written and evicted. Entries are closed by who opened them. It may be used again."""
        if self._writer is not None:
            self._jobs.put(None)
            self._writer.join()
            self._writer = None
        with self._lock:
            trimmer = self._trimmer
        if trimmer is not None:
            trimmer.join()

    def leave(self, entry: Entry) -> bool:
        """Count a close of *entry*; return whether it was the last."""
        with self._lock:
            entry.opens -= 1
            if entry.opens > 0:
                return False
            self._entries.pop(entry.stem, None)
        return True

    def later(self, entry: Entry, offset: int, pieces: Sequence[bytes | memoryview], size: int) -> bool:
        """Have the writing thread keep *pieces*, of *size* bytes; False when it has too much to do already."""
        with self._lock:
            if self._backlog + size > BACKLOG:
                return False
            self._backlog += size
            # The thread's own open: descriptors are closed when nobody uses them.
            entry.opens += 1
        self._jobs.put((entry, offset, pieces))
        if self._writer is None:
            self._writer = threading.Thread(target=self._write, name="cache-write", daemon=True)
            self._writer.start()
        return True

    def _write(self) -> None:
        """Write what is queued, in its order, until there is a None."""
        while (job := self._jobs.get()) is not None:
            entry, offset, pieces = job
            size = sum(map(len, pieces))
            try:
                for piece in pieces:
                    entry.write(offset, piece)
                    offset += len(piece)
            finally:
                del job, pieces
                with self._lock:
                    self._backlog -= size
                entry.close()

    def verify_later(self, entry: Entry) -> None:
        """Have a thread verify *entry*, which stays open meanwhile."""

        def run() -> None:
            try:
                entry.verify()
            finally:
                entry.close()

        with self._lock:
            entry.opens += 1
        threading.Thread(target=run, name="cache-verify", daemon=True).start()

    def trim(self) -> None:
        """Count the bytes, and evict what was not used for the longest time if the limit is near. May be called in a thread."""
        with self._trimming:
            before = self.used
            found = sorted(self._scan())
            used = sum(row[1] for row in found)
            self._room = self._free(used)
            if used > self._room - self._room // 16:
                for _, taken, path in found:
                    if used <= self._room - self._room // 8:
                        break
                    if _evict(path):
                        used -= taken
                if used > self._room - self._room // 16:
                    self._refuse = max(self.limit // 16, BLOCK)
            # What is written during the scan may be counted twice, which the next look mends.
            self.used += used - before
            self._counted = True

    def _free(self, used: int) -> int:
        """Return what the cache may take: the limit, but a twentieth of the disk, or 1 GiB, is left to others."""
        try:
            disk = os.statvfs(self.directory)
        except OSError:
            return self.limit
        spare = disk.f_bavail * disk.f_frsize - min(1 << 30, disk.f_blocks * disk.f_frsize // 20)
        return max(0, min(self.limit, used + spare))

    def _scan(self) -> Iterator[tuple[float, int, Path]]:
        """Yield when each entry was used, the bytes it takes, and its path; remove what belongs to none."""
        loose: dict[str, list[Path]] = {}
        for pattern in ("??/*.data", "??/*.new"):
            for path in self.directory.glob(pattern):
                loose.setdefault(path.name.partition(".")[0], []).append(path)
        for path in self.directory.glob("??/*.meta"):
            with contextlib.suppress(OSError):
                found = path.stat()
                taken = found.st_blocks * 512
                files = loose.pop(path.stem, [])
                if len(files) > 1:
                    nonce = read_nonce(path)
                    loose[path.stem] = [file for file in files if nonce not in file.name]
                for file in files:
                    taken += file.stat().st_blocks * 512
                yield found.st_mtime, taken, path
        for paths in loose.values():
            for path in paths:
                _remove_loose(path)


def _evict(path: Path) -> bool:
    """Remove the entry whose records are *path*, unless somebody has it open."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        nonce = read_nonce(path)
        path.unlink()
        path.with_name(f"{path.stem}.{nonce}.data").unlink()
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


def _remove_loose(path: Path) -> None:
    """Remove bytes without records, which somebody left who was killed; after an hour, for they may be just in the making."""
    with contextlib.suppress(OSError):
        if path.stat().st_mtime < time.time() - 3600:
            path.unlink()


__all__ = ["BLOCK", "BlockCache", "Entry"]

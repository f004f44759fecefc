"""Files that are written: a sparse file on this disk for each, and the copies that could not be published.

A staging file has a name from the start, in DIRECTORY/open, and while it holds what the server has not, NAME.json beside it
says whose it is: what a killed mount leaves there, the next one finds, keeps in DIRECTORY/kept, and names. A staging file in
use is locked (flock), so that mounts that live do not take each other's.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import NamedTuple

from ..client.urls import without_user
from ..values import Resource

_PIECE = 256 << 10
_ABANDONED_SECONDS = 60
"""An unlocked staging file that says nothing is removed when it is older: it may just be being made."""
_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02


class Kept(NamedTuple):
    """A local version that is not on the server."""

    path: str
    """Of the copy."""
    source: str
    """The mount's URL."""
    url: str
    """The file's."""
    size: int
    time_ns: int
    """When it was kept."""
    why: str


class Staged:
    """The local version of one file, shared by all its handles. Nothing here waits, but for digest().

    Every byte of the file is in the staging file. *generation* counts changes; what the server has is *published*.
    """

    __slots__ = (
        "attempts",
        "base",
        "failure",
        "fd",
        "generation",
        "gone",
        "kept",
        "lock",
        "mtime_ns",
        "path",
        "published",
        "sending",
        "size",
        "store",
        "url",
    )

    def __init__(self, store: StagingDir, fd: int, path: str, url: str, base: Resource | None) -> None:
        """StagingDir.stage makes these; *base* None is a new file, which is dirty from the start."""
        self.store = store
        self.fd = fd
        self.path = path
        self.url = url
        """Where it is published: changes with the file's name."""
        self.base = base
        """The version that a publish may replace; None: the server must have none."""
        self.size = 0
        self.generation = 0
        self.published = -1 if base is None else 0
        """The generation that the server has; -1: none."""
        self.mtime_ns = time.time_ns()
        """When it was changed last, or what utimens said since."""
        self.attempts: set[tuple[int, bytes]] = set()
        """Sizes and digests of versions that were sent, and nobody knows whether they arrived."""
        self.failure: OSError | None = None
        """Why the last publish did not succeed."""
        self.gone = False
        """Its name was removed: it is not published any more."""
        self.kept = ""
        """Path of the copy that stays when this is closed; "" when none does."""
        self.sending: asyncio.Event | None = None
        """While a publish reads the file, nothing may change it: set when it is done."""
        self.lock = asyncio.Lock()  # One publish at a time.

    @property
    def dirty(self) -> bool:
        """Whether the server lacks something of it."""
        return self.published != self.generation

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Write all of *data* at *offset*; ENOSPC when the disk is full."""
        view = memoryview(data)
        self._change()
        position = offset
        while view:
            done = os.pwrite(self.fd, view, position)
            view, position = view[done:], position + done
            self.size = max(self.size, position)
        return position - offset

    def truncate(self, size: int) -> None:
        """Set the size; what grows is zero. EFBIG, ENOSPC."""
        os.ftruncate(self.fd, size)
        self._change()
        self.size = size

    def allocate(self, start: int, end: int, *, keep_size: bool) -> None:
        """Have the disk keep room for the bytes [start, end) (ENOSPC), and let the size reach to it unless *keep_size*."""
        if not _fallocate(self.fd, _KEEP_SIZE, start, end):
            raise OSError(errno.ENOSPC, "the disk of the staging files has no room for that")
        if end > self.size and not keep_size:
            self.truncate(end)

    def zero(self, start: int, end: int) -> None:
        """Make the bytes [start, end) within the size zero."""
        end = min(end, self.size)
        if start < end:
            _punch(self.fd, start, end)
            self._change()

    def fill(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Take bytes of the base. ENOSPC."""
        view = memoryview(data)
        while view:
            done = os.pwrite(self.fd, view, offset)
            view, offset = view[done:], offset + done
        self.size = max(self.size, offset)

    def read(self, offset: int, size: int) -> bytes:
        """Return what is there, fewer bytes at the end."""
        return os.pread(self.fd, size, offset)

    async def pieces(self, size: int) -> AsyncIterator[bytes]:
        """Yield the first *size* bytes; EIO when the staging file has become shorter."""
        position = 0
        while position < size:
            piece = os.pread(self.fd, min(_PIECE, size - position), position)
            if not piece:
                raise OSError(errno.EIO, f"{self.path}: the staging file is shorter than what was written to it")
            position += len(piece)
            yield piece

    async def digest(self) -> tuple[int, bytes]:
        """Return the file's size and what tells its bytes apart; on the loop only when it is small."""
        size = self.size
        if size <= _PIECE:
            return size, new_digest(os.pread(self.fd, size, 0)).digest()
        fd = os.dup(self.fd)
        try:
            return size, await asyncio.to_thread(_digest, fd, size)
        finally:
            os.close(fd)

    def done(self, generation: int, base: Resource) -> None:
        """Say that the server has what this was at *generation*, and that it is *base*."""
        self.base = base
        self.published = generation
        self.failure = None
        self.attempts.clear()
        if not self.dirty:
            self.store.forget(self)

    def close(self) -> None:
        """End it: the staging file goes, unless it was kept. May be called twice."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)
            if not self.kept:
                self.store.remove(self.path)

    def _change(self) -> None:
        if self.fd < 0:
            raise OSError(errno.EBADF, "the staging file is closed")
        if not self.dirty:
            self.store.remember(self)
        self.generation += 1
        self.mtime_ns = time.time_ns()


class StagingDir:
    """The directory of the staging files of all mounts, and of the copies they left."""

    def __init__(self, directory: str, source: str) -> None:
        """*source* is the mount's URL, by which it knows its own; the directories are made when they are needed."""
        self.directory = directory
        self.source = source
        self._open = os.path.join(directory, "open")
        self._kept = os.path.join(directory, "kept")

    def stage(self, url: str, base: Resource | None) -> Staged:
        """Return an empty Staged of the file at *url*. OSError when the directory cannot be written."""
        os.makedirs(self._open, 0o700, exist_ok=True)
        path = os.path.join(self._open, f"{uuid.uuid4().hex}-{_word(url)}")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            staged = Staged(self, fd, path, url, base)
            if base is None:
                self.remember(staged)
        except BaseException:
            os.close(fd)
            os.unlink(path)
            raise
        return staged

    def remember(self, staged: Staged) -> None:
        """Say beside the staging file that it holds what the server has not. What cannot be said is no failure of a write."""
        with suppress(OSError):
            self._say(Kept(staged.path, self.source, staged.url, -1, time.time_ns(), ""))

    def forget(self, staged: Staged) -> None:
        """Say that it holds nothing the server has not."""
        with suppress(OSError):
            os.unlink(f"{staged.path}.json")

    def keep(self, staged: Staged, why: str) -> str:
        """Let the staging file stay when *staged* is closed, and return its path; blocks until the disk has it. OSError."""
        kept = self._keep(staged.path, staged.url, staged.size, why)
        staged.path = staged.kept = kept.path
        os.fsync(staged.fd)
        return kept.path

    def left(self) -> list[Kept]:
        """Keep what dead mounts of this source did not publish, and return it."""
        found = []
        for name in _names(self._open):
            path = os.path.join(self._open, name)
            if name.endswith(".json"):
                self._remove_orphan(path)
                continue
            try:
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                said = _read(path)
                if said is not None and said.source == self.source:
                    size = os.fstat(fd).st_size
                    found.append(self._keep(path, said.url, size, "it was not closed when the mount ended"))
                elif said is None and time.time() - os.fstat(fd).st_mtime > _ABANDONED_SECONDS:
                    self.remove(path)
            except OSError:
                # Somebody has it open, or took it meanwhile.
                continue
            finally:
                os.close(fd)
        return found

    def kept(self) -> list[Kept]:
        """Return the copies that mounts of this source kept, the oldest first."""
        paths = [os.path.join(self._kept, name) for name in _names(self._kept) if not name.endswith(".json")]
        found = [said for path in paths if (said := _read(path)) is not None and said.source == self.source]
        return sorted(found, key=lambda one: one.time_ns)

    def remove(self, path: str) -> None:
        """Remove a staging file and what is said of it."""
        for one in (path, f"{path}.json"):
            with suppress(OSError):
                os.unlink(one)

    def _keep(self, path: str, url: str, size: int, why: str) -> Kept:
        os.makedirs(self._kept, 0o700, exist_ok=True)
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        to = os.path.join(self._kept, f"{stamp}-{_word(url)}")
        number = 1
        while os.path.lexists(to) or os.path.lexists(f"{to}.json"):
            number += 1
            to = os.path.join(self._kept, f"{stamp}-{number}-{_word(url)}")
        kept = Kept(to, self.source, url, size, time.time_ns(), why)
        self._say(kept)
        os.rename(path, to)
        with suppress(OSError):
            os.unlink(f"{path}.json")
        return kept

    def _remove_orphan(self, path: str) -> None:
        """Remove what is said of a staging file that is gone, unless it is just being made."""
        with suppress(OSError):
            if not os.path.exists(path.removesuffix(".json")) and time.time() - os.stat(path).st_mtime > _ABANDONED_SECONDS:
                os.unlink(path)

    def _say(self, kept: Kept) -> None:
        said = kept._asdict()
        del said["path"]
        said["url"] = without_user(kept.url)[0]
        temporary = f"{kept.path}.json~{uuid.uuid4().hex[:8]}.json"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(said, file)
            file.flush()
            if kept.size >= 0:
                os.fsync(file.fileno())
        os.rename(temporary, f"{kept.path}.json")


def new_digest(data: bytes = b"") -> hashlib.blake2b:
    """Return what digests are made with."""
    return hashlib.blake2b(data, digest_size=32)


def _digest(fd: int, size: int) -> bytes:
    digest = new_digest()
    position = 0
    while position < size:
        piece = os.pread(fd, min(1 << 20, size - position), position)
        if not piece:
            break
        digest.update(piece)
        position += len(piece)
    return digest.digest()


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _read(path: str) -> Kept | None:
    """Return what is said beside *path*; None when nothing is, or it cannot be understood."""
    try:
        with open(f"{path}.json", encoding="utf-8") as file:
            said = json.load(file)
        return Kept(path, str(said["source"]), str(said["url"]), int(said["size"]), int(said["time_ns"]), str(said["why"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _word(url: str) -> str:
    """Return what reminds of a URL's last name, fit for a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", url.partition("?")[0].rstrip("/").rpartition("/")[2]).strip(".")[:80] or "file"


def _punch(fd: int, start: int, end: int) -> None:
    """Make the bytes [start, end) zero and give their space back."""
    if not _fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, start, end):
        while start < end:
            start += os.pwrite(fd, bytes(min(1 << 20, end - start)), start)


def _fallocate(fd: int, mode: int, start: int, end: int) -> bool:
    """Call fallocate(2), which Python's os has not; return whether it was done."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate64.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return bool(libc.fallocate64(fd, mode, start, end - start) == 0)


__all__ = ["Kept", "Staged", "StagingDir", "new_digest"]

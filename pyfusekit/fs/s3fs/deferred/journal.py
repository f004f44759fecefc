"""The journal of a mount: what it acknowledged or began and the store has not finished, on disk: kill -9 loses nothing.

Each server has a directory of its own below its source's, locked while it lives; the next server of the same source adopts
those of dead ones:

    <staging_dir>/s3/<source>/lock                 held while directories are made or adopted
    <staging_dir>/s3/<source>/<server>/lock        held by the server that owns the directory
    <staging_dir>/s3/<source>/<server>/log-N       what is to be finished (recordlog.py)
    <staging_dir>/s3/<source>/<server>/data-N      bytes of files too large for the log
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
import tempfile
import time
import uuid
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ..remote.store import Upload
from ..writing.sparse import link
from .recordlog import RESTORED, Record, RecordLog, fsync_directory, said, write_all

log = logging.getLogger(__name__)
T = TypeVar("T")

INLINE = 256 << 10
"""Bytes of local data up to which they go into the log. Writing them twice costs less than an fsync of their own."""


def home_of(staging_dir: str, endpoint: str, source: str) -> str:
    """Return the directory of all journals of a source; *staging_dir* "" is the user's state directory."""
    if not staging_dir:
        state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        staging_dir = os.path.join(state, "pyfusekit")
    words = re.sub(r"[^A-Za-z0-9.-]+", "-", source.removeprefix("s3://")).strip("-.")[:40] or "all"
    return os.path.join(staging_dir, "s3", f"{words}-{hashlib.sha256(f'{endpoint} {source}'.encode()).hexdigest()[:16]}")


class Journal:
    """The records of one server, and those it adopted.

    Coroutines return when what they say is on the disk; whoever waits at the same time shares one fsync. They raise OSError
    (ENOSPC, EIO) when it did not get there: then nothing was recorded.
    """

    def __init__(self, home: str) -> None:
        self.home = home
        self.directory = ""
        """Of this server, after open(): staging files below it can be linked here (one filesystem)."""
        self._threads = ThreadPoolExecutor(4, "journal")
        self._own: RecordLog | None = None
        self._adopted: list[RecordLog] = []
        self._uploads: dict[Upload, Record] = {}
        self._files = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    async def open(self) -> list[Record]:
        """Make and lock this server's directory, adopt those of dead servers, and return what these left, oldest first."""
        loop = asyncio.get_running_loop()
        own, self._adopted = await loop.run_in_executor(self._threads, self._open)
        self._own, self.directory = own, own.directory
        return [record for adopted in self._adopted for record in adopted.records.values()]

    def _open(self) -> tuple[RecordLog, list[RecordLog]]:
        os.makedirs(self.home, 0o700, exist_ok=True)
        guard = os.open(os.path.join(self.home, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(guard, fcntl.LOCK_EX)
            adopted = []
            for name in sorted(os.listdir(self.home)):
                path = os.path.join(self.home, name)
                if os.path.isdir(path) and (found := self._adopt(path)) is not None:
                    adopted.append(found)
            path = os.path.join(self.home, f"{time.time_ns():020}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
            os.mkdir(path, 0o700)
            lock = _locked(path)
            assert lock is not None, "a new directory is locked by somebody"
            for parent in (self.home, os.path.dirname(self.home), os.path.dirname(os.path.dirname(self.home))):
                fsync_directory(parent)
            return RecordLog(path, lock, self._threads), adopted
        finally:
            os.close(guard)

    def _adopt(self, path: str) -> RecordLog | None:
        """Return the log of a dead server; None when it lives, or when it left nothing."""
        try:
            lock = _locked(path)
        except OSError as exc:
            log.warning("the journal %s cannot be read: %s", path, exc.strerror)
            return None
        if lock is None:
            return None
        found = RecordLog(path, lock, self._threads)
        try:
            found.load()
        except (OSError, ValueError, KeyError) as exc:
            log.warning("the journal %s cannot be read, and stays where it is: %s", path, exc)
            found.abandon()
            return None
        if found.records:
            return found
        found.close()
        return None

    async def close(self) -> None:
        """Write what waits and let go; directories in which nothing is left are removed. May be called twice."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        own, self._own = self._own, None
        logs = [*([own] if own is not None else []), *self._adopted]
        self._adopted = []
        for one in logs:
            await one.idle()
        for one in logs:
            await asyncio.get_running_loop().run_in_executor(self._threads, one.close)
        self._threads.shutdown(wait=False)

    def _log(self) -> RecordLog:
        if self._own is None:
            raise OSError(errno.ESHUTDOWN, "the journal is closed")
        return self._own

    async def begin(self, kind: str, value: dict[str, Any]) -> Record:
        """Add a record. Cancelled, it leaves none."""
        adding = asyncio.ensure_future(self._log().put(kind, value))
        try:
            return await asyncio.shield(adding)
        except asyncio.CancelledError:
            self.background(self._take_back(adding))
            raise

    async def _take_back(self, adding: asyncio.Future[Record]) -> None:
        with contextlib.suppress(OSError):
            await self.done(await adding)

    async def change(self, record: Record, **changes: Any) -> None:
        """Replace fields of a record's value."""
        await asyncio.shield(record.log.change(record, changes))

    def change_soon(self, record: Record, **changes: Any) -> None:
        """Replace fields of a record's value without waiting for the disk."""
        record.log.change(record, changes).add_done_callback(said)

    async def done(self, record: Record) -> None:
        """Forget a record, and its data."""
        await asyncio.shield(record.log.done(record))

    def done_soon(self, record: Record) -> None:
        """Forget a record without waiting for the disk: for what does no harm when it is found again."""
        record.log.done(record).add_done_callback(said)

    def upload_begun(self, upload: Upload) -> None:
        """Note a multipart upload, so that it is aborted when this server dies. Does not wait."""
        self._uploads[upload] = self._log().put_soon("upload", {"key": upload.key, "id": upload.id})

    def upload_ended(self, upload: Upload) -> None:
        """Note that an upload was completed or aborted. Does not wait."""
        if (record := self._uploads.pop(upload, None)) is not None:
            self.done_soon(record)

    def background(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin with what has to come to its end although who wanted it may be cancelled; close() waits for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def keep(
        self, fd: int, ranges: Sequence[tuple[int, int]], value: dict[str, Any], replaces: Record | None = None
    ) -> Record:
        """Put the bytes *ranges* of a staging file and a record of kind "file" on the disk, in place of a record or of none.

        Few bytes go into the log. Of many the file gets a name here (no copy) and value["data"] says it: then these bytes must
        not change while the record stands. Cancelled, the record may be there nevertheless: shield it.
        """
        size = sum(end - start for start, end in ranges)
        own = self._log()
        mine = [replaces] if replaces is not None and replaces.log is own else []
        if size <= INLINE:
            value.pop("data", None)
            record = await own.put("file", value, lambda: _read_ranges(fd, ranges), size, replaces=mine)
        else:
            self._files += 1
            known = str(mine[0].value.get("data", "")) if mine else ""
            loop = asyncio.get_running_loop()
            name = await loop.run_in_executor(self._threads, _link, own.directory, fd, ranges, known, f"data-{self._files}")
            value["data"] = name
            try:
                record = await own.put("file", value, linked=name != known, replaces=mine)
            except OSError:
                if name != known:
                    os.unlink(os.path.join(own.directory, name))
                raise
        if replaces is not None and not mine:
            await self.done(replaces)
        return record

    async def data(self, record: Record, ranges: Sequence[tuple[int, int]]) -> int:
        """Return a descriptor of a file that holds the bytes of a record at their offsets; the caller closes it."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, open_data, record, ranges)


def _locked(path: str) -> int | None:
    """Return a descriptor that locks a server's directory, or None when its server lives, or has just removed it."""
    fd = os.open(os.path.join(path, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_nlink:
            return fd
    except BlockingIOError:
        pass
    os.close(fd)
    return None


def _read_ranges(fd: int, ranges: Sequence[tuple[int, int]]) -> bytes:
    pieces = [os.pread(fd, end - start, start) for start, end in ranges]
    if any(len(piece) != end - start for piece, (start, end) in zip(pieces, ranges, strict=True)):
        raise OSError(errno.EIO, "the staging file is shorter than what was written to it")
    return b"".join(pieces)


def _link(directory: str, fd: int, ranges: Sequence[tuple[int, int]], known: str, name: str) -> str:
    """Put a file's data on the disk and give it a name in *directory*: *known* when that is the same file, else *name*."""
    os.fdatasync(fd)
    if known:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(os.path.join(directory, known)), os.fstat(fd)):
                return known
    path = os.path.join(directory, name)
    try:
        link(fd, path)
    except OSError:
        # On another filesystem, or made without O_TMPFILE and unlinked: it has to be a copy.
        copy = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            copy_ranges(fd, copy, ranges)
            os.fdatasync(copy)
        finally:
            os.close(copy)
    return name


def copy_ranges(source: int, target: int, ranges: Sequence[tuple[int, int]]) -> None:
    """Copy bytes between files at the same offsets, in the kernel where it can (reflinks); sync."""
    for start, end in ranges:
        while start < end:
            try:
                copied = os.copy_file_range(source, target, end - start, start, start)
            except OSError as exc:
                if exc.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                    raise
                copied = os.pwrite(target, os.pread(source, min(end - start, 1 << 20), start), start)
            if not copied:
                raise OSError(errno.EIO, "the staging file is shorter than what was written to it")
            start += copied


def open_data(record: Record, ranges: Sequence[tuple[int, int]]) -> int:
    """Do what Journal.data does; sync."""
    name = record.value.get("data")
    if name:
        return os.open(os.path.join(record.directory, str(name)), os.O_RDWR | os.O_CLOEXEC)
    data = memoryview(record.log.read(record))
    if len(data) != sum(end - start for start, end in ranges):
        raise OSError(errno.EIO, f"the journal {record.directory} has not the bytes of {record.id}")
    try:
        fd = os.open(record.directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        # Not unlinked: such a file could not be given a name any more, as a conflict's copy needs. The log removes it.
        fd, _ = tempfile.mkstemp(prefix=RESTORED, dir=record.directory)
    try:
        for start, end in ranges:
            write_all(fd, data[: end - start], start)
            data = data[end - start :]
    except OSError:
        os.close(fd)
        raise
    return fd


__all__ = ["INLINE", "Journal", "Record", "copy_ranges", "home_of", "open_data"]

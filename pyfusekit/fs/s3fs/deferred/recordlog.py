"""An append-only log of records on disk: what is to be finished, and the bytes of small files with it.

A frame says that a record is put, changed or done; what the frames say in order is the state. Whoever waits for the disk at the
same time shares one fdatasync in a thread, and the bytes of a small file go into the frame of its record, so that 2,000 small
files cost some hundred fsyncs instead of 6,000. Log files are dropped from the oldest when all that began in them is done; what
keeps an old one alive is written again at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import mmap
import os
import struct
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

log = logging.getLogger(__name__)

SEGMENT = 64 << 20
"""Bytes of a log file at which the next is begun."""
EMPTY_SEGMENT = 1 << 20
"""The same when nothing is under way: then the old ones can go."""
BATCH = 8 << 20
"""Bytes of frames that are written at once: they are in memory for that time."""
MOST_SEGMENTS = 4
RESTORED = "restored-"
"""What the names of files begin with that are needed only while their server lives."""

_encode = json.JSONEncoder(separators=(",", ":")).encode
_MAGIC = b"\x89pfkjrn1"
_FRAME = struct.Struct("<8sIII")
"""Magic, bytes of JSON, bytes of data, CRC-32 of both."""


class Where(NamedTuple):
    """Where the data of a frame lie."""

    segment: int
    start: int
    size: int


NOWHERE = Where(0, 0, 0)


@dataclass(slots=True, eq=False)
class Record:
    """Something to be finished.

    *value* is JSON; *kind* is "file" (waits for its upload), "delete", "rename", "tree" or "upload" (multipart, under way).
    """

    id: str
    kind: str
    value: dict[str, Any]
    log: RecordLog = field(repr=False)
    where: Where

    @property
    def directory(self) -> str:
        """Where files that belong to the record may lie: they are removed with the directory."""
        return self.log.directory


@dataclass(slots=True, eq=False)
class _Segment:
    """A log file."""

    number: int
    fd: int
    size: int
    live: int = 0
    """Records whose frame lies here."""
    closed: bool = False
    """No more frames: it is full, or an fsync of it failed."""


@dataclass(slots=True, eq=False)
class _Entry:
    """A frame to be written, and who waits for it."""

    text: bytes
    """JSON: what it says."""
    done: asyncio.Future[Where]
    data: Callable[[], bytes] | None = None
    size: int = 0
    """Bytes that data() will return, about."""
    linked: bool = False
    """A file was linked into the directory first: the directory goes to the disk before the frame."""
    apply: Callable[[Where], None] | None = None
    where: Where = NOWHERE
    error: OSError | None = None


class RecordLog:
    """The log of one directory. INVARIANT: what the frames on disk say is `records`, but for entries that are queued."""

    def __init__(self, directory: str, lock: int, threads: ThreadPoolExecutor) -> None:
        self.directory = directory
        self.lock = lock
        self.records: dict[str, Record] = {}
        self.data_users: dict[str, int] = {}
        """Names of data files -> records that need them."""
        self._threads = threads
        self._segments: dict[int, _Segment] = {}
        """By number, the oldest first."""
        self._closing = threading.Lock()
        """Held while a segment is read or closed: the number of a closed descriptor may be another file's a moment later."""
        self._queue: deque[_Entry] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._made = 0
        self._leaving: set[str] = set()
        """Records that a queued entry ends or moves."""
        self._unsaid: list[Record] = []
        """Records that are done, which could not be written: it is tried again with the next batch."""

    def load(self) -> None:
        """Read what a dead server left; sync."""
        names = sorted(name for name in os.listdir(self.directory) if name.startswith("log-"))
        for name in names:
            fd = os.open(os.path.join(self.directory, name), os.O_RDWR | os.O_CLOEXEC)
            segment = _Segment(int(name[4:]), fd, os.fstat(fd).st_size, closed=True)
            self._segments[segment.number] = segment
            for meta, where in _frames(segment, name):
                self._replay(meta, where)
        for record in self.records.values():
            self._count(record, 1)
        for name in os.listdir(self.directory):
            if name.startswith(("data-", RESTORED)) and name not in self.data_users:
                os.unlink(os.path.join(self.directory, name))

    def _replay(self, meta: dict[str, Any], where: Where) -> None:
        name, op = str(meta["id"]), meta["op"]
        if op == "put":
            for replaced in meta.get("replaces", ()):
                self.records.pop(replaced, None)
            # A record that was written again keeps its place: the oldest is finished first.
            if (known := self.records.get(name)) is not None:
                known.value, known.where = meta["value"], where
            else:
                self.records[name] = Record(name, meta["kind"], meta["value"], self, where)
        elif op == "set" and name in self.records:
            self.records[name].value.update(meta["value"])
        elif op == "done":
            self.records.pop(name, None)

    def _count(self, record: Record, by: int) -> None:
        """Count a record in (1) or out (-1) of its segment and its data file, which goes with its last record."""
        self._segments[record.where.segment].live += by
        name = record.value.get("data")
        if name:
            left = self.data_users[name] = self.data_users.get(name, 0) + by
            if left <= 0:
                del self.data_users[name]
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(self.directory, name))

    # Changing it.

    async def put(
        self,
        kind: str,
        value: dict[str, Any],
        data: Callable[[], bytes] | None = None,
        size: int = 0,
        linked: bool = False,
        replaces: Sequence[Record] = (),
    ) -> Record:
        """Add a record in place of others. When the caller is cancelled while it waits, it may be there nevertheless."""
        entry, record = self._put(kind, value, data, size, linked, replaces)
        await asyncio.shield(entry.done)
        return record

    def put_soon(self, kind: str, value: dict[str, Any]) -> Record:
        """Add a record without waiting for the disk."""
        entry, record = self._put(kind, value)
        entry.done.add_done_callback(said)
        return record

    def _put(
        self,
        kind: str,
        value: dict[str, Any],
        data: Callable[[], bytes] | None = None,
        size: int = 0,
        linked: bool = False,
        replaces: Sequence[Record] = (),
    ) -> tuple[_Entry, Record]:
        self._made += 1
        record = Record(f"{os.path.basename(self.directory)}.{self._made}", kind, value, self, NOWHERE)
        meta = {"op": "put", "id": record.id, "kind": kind, "value": value, "replaces": [one.id for one in replaces]}

        def apply(where: Where) -> None:
            record.where = where
            self.records[record.id] = record
            self._count(record, 1)
            for one in replaces:
                self._forget(one)

        return self._queued(meta, apply, data, size, linked, ends=replaces), record

    def change(self, record: Record, changes: Mapping[str, Any]) -> asyncio.Future[Where]:
        """Replace fields of a record's value; what is returned ends when the disk has."""
        record.value.update(changes)
        return self._queued({"op": "set", "id": record.id, "value": dict(changes)}).done

    def done(self, record: Record) -> asyncio.Future[Where]:
        """Forget a record; what is returned ends when the disk has."""

        def written(future: asyncio.Future[Where]) -> None:
            if not future.cancelled() and future.exception() is not None:
                self._unsaid.append(record)

        entry = self._queued({"op": "done", "id": record.id}, lambda where: self._forget(record), ends=(record,))
        entry.done.add_done_callback(written)
        return entry.done

    def _forget(self, record: Record) -> None:
        if self.records.pop(record.id, None) is not None:
            self._count(record, -1)

    def _queued(
        self,
        meta: Mapping[str, Any],
        apply: Callable[[Where], None] | None = None,
        data: Callable[[], bytes] | None = None,
        size: int = 0,
        linked: bool = False,
        ends: Sequence[Record] = (),
    ) -> _Entry:
        text = _encode(meta).encode()
        loop = asyncio.get_running_loop()
        entry = _Entry(text, loop.create_future(), data, size + len(text), linked, apply)
        self._queue.append(entry)
        for record in ends:
            self._leaving.add(record.id)
            entry.done.add_done_callback(partial(self._left, record.id))
        if self._writer is None:
            self._writer = loop.create_task(self._write_queue())
        return entry

    def _left(self, name: str, _: asyncio.Future[Where]) -> None:
        self._leaving.discard(name)

    async def idle(self) -> None:
        """Wait until all that is queued is on the disk, or has failed."""
        if self._unsaid:
            self._say_again()
        while self._writer is not None:
            await asyncio.shield(self._writer)

    def _say_again(self) -> None:
        unsaid, self._unsaid = self._unsaid, []
        for record in unsaid:
            self.done(record).add_done_callback(said)

    async def _write_queue(self) -> None:
        loop = asyncio.get_running_loop()
        batch: list[_Entry] = []
        try:
            while self._queue:
                batch, total = [], 0
                while self._queue and total < BATCH:
                    batch.append(self._queue.popleft())
                    total += batch[-1].size
                await loop.run_in_executor(self._threads, self._write, batch)
                for entry in batch:
                    self._finish(entry)
                if self._unsaid and batch[-1].error is None:
                    self._say_again()
                dropped = self._drop()
                if dropped:
                    await loop.run_in_executor(self._threads, self._remove, dropped)
        except BaseException:
            # The loop ends, or it is a bug: nobody may wait for ever, nor believe that it was written.
            for entry in (*batch, *self._queue):
                if not entry.done.done():
                    entry.done.set_exception(OSError(errno.EIO, f"the journal {self.directory} was given up"))
                    entry.done.exception()
            self._queue.clear()
            raise
        finally:
            self._writer = None

    def _finish(self, entry: _Entry) -> None:
        if entry.error is None and entry.apply is not None:
            entry.apply(entry.where)
        if entry.done.done():
            return
        if entry.error is not None:
            entry.done.set_exception(entry.error)
        else:
            entry.done.set_result(entry.where)

    # In a thread, one at a time.

    def _write(self, batch: list[_Entry]) -> None:
        """Write a batch's frames and have them on the disk, or give each entry the error and leave the log as it was."""
        try:
            segment = self._current()
        except OSError as exc:
            for entry in batch:
                entry.error = exc
            return
        parts: list[bytes] = []
        at = segment.size
        for entry in batch:
            try:
                data = entry.data() if entry.data is not None else b""
            except OSError as exc:
                entry.error = exc
                continue
            text = entry.text
            parts += (_FRAME.pack(_MAGIC, len(text), len(data), zlib.crc32(data, zlib.crc32(text))), text, data)
            entry.where = Where(segment.number, at + _FRAME.size + len(text), len(data))
            at += _FRAME.size + len(text) + len(data)
        try:
            if any(entry.linked for entry in batch):
                fsync_directory(self.directory)
            write_all(segment.fd, b"".join(parts), segment.size)
            os.fdatasync(segment.fd)
            segment.size = at
        except OSError as exc:
            # After a failed fsync nobody knows what of the file is on the disk: nothing is appended to it again.
            segment.closed = exc.errno != errno.ENOSPC
            try:
                os.ftruncate(segment.fd, segment.size)
            except OSError:
                segment.closed = True
            for entry in batch:
                entry.error = entry.error or OSError(exc.errno, f"the journal {self.directory}: {os.strerror(exc.errno or 0)}")

    def _current(self) -> _Segment:
        """Return the segment to append to, a new one when the last is full."""
        last = self._segments[max(self._segments)] if self._segments else None
        limit = SEGMENT if self.records else EMPTY_SEGMENT
        if last is not None and not last.closed and last.size < limit:
            return last
        number = last.number + 1 if last is not None else 1
        path = os.path.join(self.directory, f"log-{number:08}")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fsync_directory(self.directory)
        except OSError:
            os.close(fd)
            os.unlink(path)
            raise
        if last is not None:
            last.closed = True
        self._segments[number] = _Segment(number, fd, 0)
        return self._segments[number]

    # Back on the loop.

    def _drop(self) -> list[_Segment]:
        """Take the oldest segments of which nothing is needed; write again what keeps many of them.

        From the oldest only: a younger one may say of a record in an older one that it is done.
        """
        dropped = []
        while len(self._segments) > 1 and (oldest := next(iter(self._segments.values()))).live == 0:
            dropped.append(self._segments.pop(oldest.number))
        if len(self._segments) > MOST_SEGMENTS:
            live = sum(record.where.size for record in self.records.values())
            if live * 2 < sum(segment.size for segment in self._segments.values()):
                number = next(iter(self._segments))
                for record in [one for one in self.records.values() if one.where.segment == number]:
                    self._move(record)
        return dropped

    def _move(self, record: Record) -> None:
        """Write a record again at the end, unless what ends it stands in the queue: it would come to life again behind it."""
        if record.id in self._leaving:
            return

        def apply(moved: Where) -> None:
            if record.id in self.records:
                self._segments[record.where.segment].live -= 1
                self._segments[moved.segment].live += 1
                record.where = moved

        meta = {"op": "put", "id": record.id, "kind": record.kind, "value": record.value}
        entry = self._queued(meta, apply, lambda: self.read(record), record.where.size, ends=(record,))
        entry.done.add_done_callback(said)

    def _remove(self, segments: list[_Segment]) -> None:
        """Remove log files nothing is needed of, the oldest first: a crash between leaves a log that says the same."""
        for segment in segments:
            with self._closing:
                os.close(segment.fd)
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self.directory, f"log-{segment.number:08}"))

    def read(self, record: Record) -> bytes:
        """Return the data of a record; sync, in any thread."""
        with self._closing:
            where = record.where
            segment = self._segments.get(where.segment)
            if segment is None:  # It was moved in this moment.
                where = record.where
                segment = self._segments.get(where.segment)
            data = os.pread(segment.fd, where.size, where.start) if segment is not None else b""
        if len(data) != where.size:
            raise OSError(errno.EIO, f"the journal {self.directory} is shorter than it was")
        return data

    def close(self) -> None:
        """Close the files and unlock; an empty log is removed first, and its directory when nothing else lies there. Sync."""
        if not self.records:
            # The lock is held until the directory is gone, so nobody adopts it half removed. The oldest log goes first: a
            # crash between leaves records that are done already, said to be done by the younger ones.
            self._remove(list(self._segments.values()))
            self._segments.clear()
            with contextlib.suppress(OSError):
                for name in os.listdir(self.directory):
                    if name.startswith(RESTORED):
                        os.unlink(os.path.join(self.directory, name))
                if os.listdir(self.directory) == ["lock"]:
                    os.unlink(os.path.join(self.directory, "lock"))
                    os.rmdir(self.directory)
        self.abandon()

    def abandon(self) -> None:
        """Close the files and unlock, whatever is in them; sync."""
        for segment in self._segments.values():
            os.close(segment.fd)
        self._segments.clear()
        os.close(self.lock)


def _frames(segment: _Segment, name: str) -> Iterator[tuple[dict[str, Any], Where]]:
    """Yield what a log file says.

    A frame that was cut off by the crash ends it. One that is damaged is passed over and said: what follows is still true.
    """
    if not segment.size:
        return
    with mmap.mmap(segment.fd, segment.size, access=mmap.ACCESS_READ) as data:
        at, damaged = 0, 0
        while 0 <= at <= segment.size - _FRAME.size:
            magic, text_size, data_size, crc = _FRAME.unpack_from(data, at)
            start = at + _FRAME.size
            end = start + text_size + data_size
            if magic == _MAGIC and end <= segment.size and zlib.crc32(data[start:end]) == crc:
                if damaged:
                    log.warning("the journal %s is damaged at byte %d: a record was lost", name, at)
                    damaged = 0
                yield json.loads(data[start : start + text_size]), Where(segment.number, end - data_size, data_size)
                at = end
            else:
                damaged = 1
                at = data.find(_MAGIC, at + 1)


def write_all(fd: int, data: bytes | memoryview, at: int) -> None:
    """Write all of *data* at the offset *at*."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, at)
        view, at = view[written:], at + written


def fsync_directory(path: str) -> None:
    """Have the names in a directory on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def said(future: asyncio.Future[Any]) -> None:
    """Log what nobody waits for when it fails."""
    if not future.cancelled() and (error := future.exception()) is not None:
        log.warning("a note in the journal could not be written: %s", error)


__all__ = ["NOWHERE", "RESTORED", "Record", "RecordLog", "Where", "fsync_directory", "said", "write_all"]

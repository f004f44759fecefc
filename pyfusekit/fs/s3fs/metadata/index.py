"""What HEAD said of each version, kept on disk: one HEAD a version, ever.

User metadata cannot change without another version, so what is known of a key with this ETag and this LastModified stays true.
Two versions with both the same are possible, though: a chmod copies the object onto itself, which keeps the ETag, and may come
within the second that LastModified counts in. So what was asked in that second, or the next, is not kept.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from email.utils import parsedate_to_datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from ..remote.store import Head, Object
from .posix import HEADERS

if TYPE_CHECKING:
    import sqlite3

log = logging.getLogger("pyfusekit.s3fs")

RACY_NS: Final = 2_000_000_000
"""Versions younger than this when they were asked about may have been followed by one that looks the same."""
_DELAY_S = 1.0
_MANY = 1000
"""So many new entries are written without waiting for _DELAY_S."""
_SECOND = 10**9
_AGE_S = 7 * 86400
"""An entry used that long after it was written is written again, so that it is not the first to go."""
_SCHEMA = """
create table if not exists entries (
    id integer primary key,  -- the oldest have the smallest
    key blob not null unique,  -- a digest, see _digest
    etag text not null,
    modified integer not null,  -- seconds
    written integer not null,  -- seconds
    value text not null
)
"""
_CHUNK = 500
"""Keys in a statement."""
_KEPT = (*HEADERS, "x-amz-missing-meta")
"""Headers that do not change while the version stands, unlike x-amz-restore or x-amz-tagging-count."""

T = TypeVar("T")


class Entry(NamedTuple):
    """What one version carries beside its bytes, as in Head, but only the headers that a copy must repeat."""

    metadata: Mapping[str, str]
    headers: Mapping[str, str]


class _Row(NamedTuple):
    etag: str
    modified: int
    written: int
    value: str


class Index:
    """A file of entries by key, each valid for one ETag and LastModified. Several mounts may share the file.

    It is a cache: nothing in here raises. A broken file is replaced by one of another name (somebody may still have the broken
    one open, and SQLite removes files by name); a disk that is full or gone means that nothing is remembered.
    """

    def __init__(self, path: str, limit: int = 256 << 20) -> None:
        """*path*: of a file; ".v1.NUMBER" is put behind it, and its directory is made when missing. *limit*: its bytes.

        One path is one bucket of one endpoint, as everybody who shares it names keys.
        """
        self.path = path
        self.limit = limit
        self._database: sqlite3.Connection | None = None
        """Used by the thread alone."""
        self._file = ""
        self._thread: ThreadPoolExecutor | None = None
        self._pending: dict[bytes, _Row | None] = {}
        """Not given to the thread yet; None: to be removed."""
        self._wake = asyncio.Event()
        self._full = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Open or make the file."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="s3fs-index")
            self._task = asyncio.create_task(self._write_behind())
            await self._run(self._connect)

    async def page(self, items: Sequence[Object]) -> dict[str, Entry]:
        """Return by key what is known of exactly these versions; of the others a HEAD must tell."""
        found: dict[str, Entry] = {}
        asked: dict[bytes, Object] = {}
        for item in items:
            if not item.etag:
                continue
            digest = _digest(item.key)
            if digest not in self._pending:
                asked[digest] = item
                continue
            row = self._pending[digest]
            entry = _entry(row.value) if row is not None and _is_of(row, item) else None
            if entry is not None:
                found[item.key] = entry
        rows = await self._run(lambda: self._select(list(asked))) if asked else None
        worn = time.time() - _AGE_S
        for digest, etag, modified, written, value in rows or ():
            item = asked[digest]
            if etag != item.etag or modified != item.mtime_ns // _SECOND:
                continue
            entry = _entry(value)
            if entry is not None:
                found[item.key] = entry
                if written < worn and digest not in self._pending:
                    self._note(digest, _Row(etag, modified, int(time.time()), value))
        return found

    def put(
        self, item: Object, metadata: Mapping[str, str], headers: Mapping[str, str], *, asked_ns: int | None = None
    ) -> None:
        """Keep what HEAD said; within a second it is on disk.

        *asked_ns*: by our clock, when HEAD was sent; None is now. headers["date"] is the server's clock, where the store hands
        it out, and is believed more. What is too young then to be told from its successor is not kept.
        """
        if item.etag and _asked_ns(headers, asked_ns) - item.mtime_ns >= RACY_NS:
            value = _value(metadata, headers)
            if value is not None:
                self._note(_digest(item.key), _Row(item.etag, item.mtime_ns // _SECOND, int(time.time()), value))

    def put_head(self, head: Head, *, asked_ns: int | None = None) -> None:
        """Keep *head*, as put."""
        self.put(head.item, head.metadata, head.headers, asked_ns=asked_ns)

    def forget(self, key: str) -> None:
        """Drop what is known of *key*."""
        self._note(_digest(key), None)

    async def flush(self) -> None:
        """Write what is still in memory."""
        if self._pending:
            batch, self._pending = self._pending, {}
            # The thread does its work in order: whoever asks from here on is answered behind this.
            await self._run(lambda: self._write(batch))

    async def close(self) -> None:
        """Write, and end. May be called twice."""
        if self._thread is None:
            return
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await self.flush()
        await self._run(self._disconnect)
        self._thread.shutdown()
        self._thread = None

    def _note(self, digest: bytes, row: _Row | None) -> None:
        if self._thread is not None:
            self._pending[digest] = row
            self._wake.set()
            if len(self._pending) >= _MANY:
                self._full.set()

    async def _write_behind(self) -> None:
        while True:
            await self._wake.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(_DELAY_S):
                    await self._full.wait()
            self._wake.clear()
            self._full.clear()
            await self.flush()

    async def _run(self, work: Callable[[], T]) -> T | None:
        """Do *work* in the thread; None when the file does not let it."""
        if self._thread is None:
            return None
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._guarded, work)

    # In the thread.

    def _guarded(self, work: Callable[[], T]) -> T | None:
        import sqlite3

        try:
            return work()
        except sqlite3.OperationalError as exc:
            # Locked too long, or a disk that is full or read-only: another time perhaps.
            log.debug("%s: %s", self._file, exc)
            self._roll_back()
        except sqlite3.DatabaseError as exc:
            log.warning("%s is broken (%s): another is begun", self._file, exc)
            self._replace()
        except OSError as exc:
            log.debug("%s: %s", self.path, exc)
        return None

    def _roll_back(self) -> None:
        import sqlite3

        if self._database is not None and self._database.in_transaction:
            with suppress(sqlite3.Error):
                self._database.rollback()

    def _connect(self) -> None:
        directory, name = os.path.split(os.path.abspath(f"{self.path}.v1."))
        os.makedirs(directory, mode=0o700, exist_ok=True)
        numbers = [other[len(name) :] for other in os.listdir(directory) if other.startswith(name)]
        self._open(max((int(number) for number in numbers if number.isdecimal()), default=1))

    def _open(self, number: int) -> None:
        import sqlite3

        self._file = f"{self.path}.v1.{number}"
        self._database = sqlite3.connect(self._file, timeout=2.0, isolation_level=None, check_same_thread=False)
        self._database.execute("pragma journal_mode=wal")
        self._database.execute("pragma synchronous=normal")
        self._database.execute(_SCHEMA)

    def _replace(self) -> None:
        import sqlite3

        broken = self._file
        self._disconnect()
        with suppress(sqlite3.Error, OSError):
            self._open(int(broken.rpartition(".")[2]) + 1)
        for end in ("", "-wal", "-shm"):
            with suppress(OSError):
                os.unlink(broken + end)

    def _disconnect(self) -> None:
        import sqlite3

        if self._database is not None:
            with suppress(sqlite3.Error):
                self._database.close()
            self._database = None

    def _select(self, digests: Sequence[bytes]) -> list[tuple[bytes, str, int, int, str]]:
        if self._database is None:
            return []
        found: list[tuple[bytes, str, int, int, str]] = []
        for start in range(0, len(digests), _CHUNK):
            chunk = digests[start : start + _CHUNK]
            marks = ",".join("?" * len(chunk))
            query = f"select key, etag, modified, written, value from entries where key in ({marks})"
            found += self._database.execute(query, chunk).fetchall()
        return found

    def _write(self, batch: Mapping[bytes, _Row | None]) -> None:
        database = self._database
        if database is None:
            return
        rows = [(digest, *row) for digest, row in batch.items() if row is not None]
        gone = [(digest,) for digest, row in batch.items() if row is None]
        database.execute("begin immediate")
        database.executemany("replace into entries (key, etag, modified, written, value) values (?, ?, ?, ?, ?)", rows)
        database.executemany("delete from entries where key = ?", gone)
        if self._used(database) > self.limit:
            # Twice what came: so it shrinks to a limit that was lowered, without one long wait.
            excess = max(2 * len(rows), _CHUNK)
            database.execute("delete from entries where id in (select id from entries order by id limit ?)", (excess,))
        database.execute("commit")

    @staticmethod
    def _used(database: sqlite3.Connection) -> int:
        """Return the bytes of the file that hold something."""
        ((pages,), (free,), (size,)) = (
            database.execute(f"pragma {word}").fetchone() for word in ("page_count", "freelist_count", "page_size")
        )
        used: int = (pages - free) * size
        return used


def _digest(key: str) -> bytes:
    return blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _is_of(row: _Row, item: Object) -> bool:
    """Return whether *row* is of that very version. A listing may say fractions of a second that HEAD does not."""
    return row.etag == item.etag and row.modified == item.mtime_ns // _SECOND


def _asked_ns(headers: Mapping[str, str], asked_ns: int | None) -> int:
    """Return when HEAD was asked by the clock that LastModified goes by, as well as it is known."""
    date = headers.get("date")
    if date:
        with suppress(ValueError):
            return int(parsedate_to_datetime(date).timestamp()) * _SECOND
    return time.time_ns() if asked_ns is None else asked_ns


def _value(metadata: Mapping[str, str], headers: Mapping[str, str]) -> str | None:
    """Return an entry as text, names and values in turn; None where it has what no header can have."""
    kept = [text for name in _KEPT if name in headers for text in (name, headers[name])]
    said = [text for pair in metadata.items() for text in pair]
    text = "\n".join([str(len(kept)), *kept, *said])
    if text.count("\n") != len(kept) + len(said):
        return None
    try:
        text.encode()
    except UnicodeEncodeError:
        return None
    return text


def _entry(value: str) -> Entry | None:
    """Return what _value made text of; None when the disk made something else of it."""
    count, *texts = value.split("\n")
    if not count.isdecimal() or len(texts) % 2:
        return None
    kept = int(count)
    headers, metadata = texts[:kept], texts[kept:]
    return Entry(dict(zip(metadata[::2], metadata[1::2], strict=False)), dict(zip(headers[::2], headers[1::2], strict=False)))


__all__ = ["RACY_NS", "Entry", "Index"]

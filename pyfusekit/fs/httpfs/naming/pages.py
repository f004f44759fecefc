"""What the server said, kept on disk: pages of listings as they came, and what was learnt of single files.

With it a mount that begins needs no page it has seen before if the server says 304, and one whose host is gone can show what it
showed. Pages are kept as they came, so what reads them is what reads the server's: listing.parse.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from ..values import Resource, Validator

if TYPE_CHECKING:
    import sqlite3

log = logging.getLogger("pyfusekit.httpfs")

T = TypeVar("T")

_LIMIT: Final = 256 << 20
_DELAY_S: Final = 1.0
_MANY: Final = 1000
_KEPT = ("etag", "last-modified", "content-type", "content-disposition", "link", "dav", "server")
"""Headers of a page that its reader, or a condition, may need."""
_SCHEMA = """
create table if not exists pages (
    url text primary key, status integer not null, final text not null, headers text not null, body blob not null,
    fetched integer not null
) without rowid;
create table if not exists resources (url text primary key, value text not null, checked integer not null) without rowid;
"""


class Page(NamedTuple):
    """An answer to a request for a listing."""

    status: int
    url: str
    """Where redirects ended."""
    headers: Mapping[str, str]
    body: bytes
    fetched: float
    """When, in seconds since 1970."""


class Pages:
    """A file of pages and resources by URL. Several mounts may share it.

    It is a cache: nothing in here raises. A broken file is moved away by another name; a disk that is full means that nothing
    is remembered.
    """

    def __init__(self, path: str, limit: int = _LIMIT) -> None:
        self.path = path
        self.limit = limit
        self._database: sqlite3.Connection | None = None
        """Used by the thread alone."""
        self._thread: ThreadPoolExecutor | None = None
        self._resources: dict[str, tuple[str, int]] = {}
        """Not given to the thread yet."""
        self._writing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Open or make the file."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="httpfs-pages")
            await self._run(self._connect)

    async def close(self) -> None:
        """Write what waits, and end. May be called twice."""
        if self._thread is None:
            return
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)
        self._flush()
        await self._run(self._disconnect)
        self._thread.shutdown()
        self._thread = None

    # Pages.

    async def page(self, key: str) -> Page | None:
        """Return the page that was kept of *key*."""
        return await self._run(lambda: self._select_page(key))

    def put_page(self, key: str, status: int, url: str, headers: Mapping[str, str], body: bytes) -> None:
        """Keep a page."""
        kept = json.dumps({name: headers[name] for name in _KEPT if headers.get(name)})
        now = int(time.time())
        self._begin(lambda: self._write_page((key, status, url, kept, zlib.compress(body, 1), now)))

    def forget_page(self, key: str) -> None:
        """Drop a page."""
        self._begin(lambda: self._execute("delete from pages where url = ?", (key,)))

    # Resources.

    async def resource(self, url: str) -> Resource | None:
        """Return what was learnt of a file."""
        waiting = self._resources.get(url)
        if waiting is not None:
            return _resource(url, waiting[0])
        value = await self._run(lambda: self._select_value(url))
        return None if value is None else _resource(url, value)

    def put_resource(self, resource: Resource) -> None:
        """Keep what was learnt of a file; within a second it is on disk."""
        value = json.dumps(
            [
                resource.final_url, resource.size, resource.mtime_ns, list(resource.validator), resource.content_type,
                resource.ranges, list(resource.mirrors), list(resource.hashes),
            ]
        )  # fmt: skip
        self._resources[resource.url] = (value, int(time.time()))
        if len(self._resources) >= _MANY:
            self._flush()
        elif self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write_behind())

    async def _write_behind(self) -> None:
        await asyncio.sleep(_DELAY_S)
        self._writing = None
        self._flush()

    def _flush(self) -> None:
        if self._resources:
            rows = [(url, value, checked) for url, (value, checked) in self._resources.items()]
            self._resources = {}
            self._begin(lambda: self._write_resources(rows))

    # The thread.

    def _begin(self, work: Callable[[], object]) -> None:
        if self._thread is not None:
            self._thread.submit(self._quietly, work)

    async def _run(self, work: Callable[[], T]) -> T | None:
        if self._thread is None:
            return None
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._quietly, work)

    def _quietly(self, work: Callable[[], T]) -> T | None:
        import sqlite3

        try:
            return work()
        except sqlite3.DatabaseError as exc:
            log.info("%s: %s", self.path, exc)
            if self._database is not None and not isinstance(exc, sqlite3.OperationalError):
                self._replace()
        except (OSError, ValueError, zlib.error) as exc:
            log.info("%s: %s", self.path, exc)
        return None

    def _replace(self) -> None:
        """Begin a new file: the one that is there is broken."""
        import sqlite3

        self._disconnect()
        with suppress(OSError, sqlite3.Error):
            os.replace(self.path, f"{self.path}.broken")
            self._connect()

    def _connect(self) -> None:
        import sqlite3

        os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
        database = sqlite3.connect(self.path, timeout=5, isolation_level=None, check_same_thread=False)
        try:
            database.execute("pragma journal_mode = wal")
            database.execute("pragma synchronous = off")
            database.executescript(_SCHEMA)
        except sqlite3.OperationalError:
            # Locked for too long, or a disk that is full or read-only: it may be another mount's, and whole.
            database.close()
            raise
        except sqlite3.Error:
            database.close()
            with suppress(OSError):
                os.replace(self.path, f"{self.path}.broken")
            database = sqlite3.connect(self.path, timeout=5, isolation_level=None, check_same_thread=False)
            database.executescript(_SCHEMA)
        self._database = database

    def _disconnect(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            database.close()

    def _execute(self, statement: str, values: tuple[object, ...]) -> list[tuple[object, ...]]:
        if self._database is None:
            return []
        return self._database.execute(statement, values).fetchall()

    def _select_page(self, key: str) -> Page | None:
        rows = self._execute("select status, final, headers, body, fetched from pages where url = ?", (key,))
        for status, final, headers, body, fetched in rows:
            if isinstance(status, int) and isinstance(body, bytes) and isinstance(fetched, int):
                return Page(status, str(final), json.loads(str(headers)), zlib.decompress(body), float(fetched))
        return None

    def _write_page(self, row: tuple[object, ...]) -> None:
        self._execute("insert or replace into pages values (?, ?, ?, ?, ?, ?)", row)
        self._trim()

    def _select_value(self, url: str) -> str | None:
        rows = self._execute("select value from resources where url = ?", (url,))
        return str(rows[0][0]) if rows else None

    def _write_resources(self, rows: list[tuple[str, str, int]]) -> None:
        if self._database is not None:
            self._database.execute("begin")
            self._database.executemany("insert or replace into resources values (?, ?, ?)", rows)
            self._database.execute("commit")
            self._trim()

    def _trim(self) -> None:
        """Drop the oldest while the file is too large."""
        size = 0
        with suppress(OSError):
            size = os.stat(self.path).st_size
        if size <= self.limit:
            return
        for table, age in (("pages", "fetched"), ("resources", "checked")):
            self._execute(f"delete from {table} where {age} < (select avg({age}) from {table})", ())
        self._execute("vacuum", ())


def _resource(url: str, value: str) -> Resource | None:
    try:
        final, size, mtime_ns, validator, kind, ranges, mirrors, hashes = json.loads(value)
        pairs = tuple((str(name), str(digest)) for name, digest in hashes)
        return Resource(url, final, size, mtime_ns, Validator(*validator), kind, ranges, {}, tuple(mirrors), pairs)
    except (ValueError, TypeError):
        return None


__all__ = ["Page", "Pages"]

"""A bucket that remembers every version it ever held, mounts of it that can be killed, and who knew of which version.

Time is a clock to turn. Parts are of 8 bytes, so that a few bytes are a multipart upload.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from fakestore import FakeStore, Fault, Objects
from namespace import Clock
from s3user import Fd, User

from pyfusekit.core import abi
from pyfusekit.fs.s3fs import S3FS, S3Options, files, reader, state
from pyfusekit.fs.s3fs.deferred import journal, recovery, uploading
from pyfusekit.fs.s3fs.metadata import index
from pyfusekit.fs.s3fs.naming import learn
from pyfusekit.fs.s3fs.remote.errors import StoreError
from pyfusekit.fs.s3fs.remote.store import Attributes, Features, Head, Object, Page, Store
from pyfusekit.fs.s3fs.writing import conflicts, feeding, plan, publish, staging, streams
from pyfusekit.fs.s3fs.writing.copying import head_or_none
from pyfusekit.testing.kernel import FakeKernel

T = TypeVar("T")
MIN = 8
TTL = 1.0
FOREVER = float("inf")
SHM = "/dev/shm" if os.path.isdir("/dev/shm") else None
CALLS = (
    *("list", "head", "get", "put", "copy", "delete", "delete_many", "create_upload", "upload_part", "copy_part"),
    *("complete", "abort", "uploads", "tags", "set_tags", "versions"),
)


class AtOnce(ThreadPoolExecutor):
    """An executor that has done everything when it is asked: what happens depends on no other thread."""

    def submit(self, work: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Do it."""
        future: Future[T] = Future()
        try:
            future.set_result(work(*args, **kwargs))
        except Exception as exc:
            future.set_exception(exc)
        return future


@contextlib.contextmanager
def small_world(clock: Clock, *, small: bool = True) -> Iterator[None]:
    """Let the mounts take their time from *clock*, wait for nothing, and, if *small*, make S3's sizes small."""
    with pytest.MonkeyPatch.context() as patch:
        clock.install(patch)
        for module in (learn, reader, state):
            patch.setattr(module, "time", SimpleNamespace(monotonic=clock, time=time.time, time_ns=time.time_ns))
        patch.setattr(publish, "random", SimpleNamespace(uniform=lambda low, high: 0))
        for module in (recovery, uploading):
            patch.setattr(module, "FIRST_RETRY", 0.002)
        for module in (index, journal):
            patch.setattr(module, "ThreadPoolExecutor", AtOnce)
        if small:
            for module in (plan, staging, feeding):
                patch.setattr(module, "MIN_PART", MIN)
            patch.setattr(plan, "PUT_MAX", 2 * MIN)
            patch.setattr(plan, "_COPY", 3 * MIN)
            patch.setattr(plan, "_MIB", 1)
            for module in (plan, publish):
                patch.setattr(module, "MAX_PART", 8 * MIN)
            for module in (publish, files):
                patch.setattr(module, "SMALL", 3 * MIN)
            patch.setattr(streams, "_PIECE", 3)
        yield


@dataclass(eq=False)
class Version:
    """A version a key held."""

    data: bytes
    etag: str
    since: float
    until: float = FOREVER
    who: Line | None = None
    """Who made it; None: a plain client."""
    replaced: Version | None = None


ACTOR: ContextVar[Any] = ContextVar("ACTOR", default=None)
"""The Line on whose behalf the store is working."""


class Ledger:
    """Every version that keys held, and who made it. *wrong* says who overwrote or removed what it had not seen."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.held: dict[str, list[Version]] = {}
        self.wrong: list[str] = []

    def current(self, key: str) -> Version | None:
        """Return what a key holds."""
        held = self.held.get(key)
        return held[-1] if held and held[-1].until == FOREVER else None

    def made(self, key: str, data: bytes, etag: str) -> None:
        """A key got a version."""
        who, was = ACTOR.get(), self.current(key)
        if was is not None:
            self._judge(who, key, was, "overwrote")
            was.until = self.clock.now
        self.held.setdefault(key, []).append(Version(data, etag, self.clock.now, who=who, replaced=was))
        if who is not None:
            who.seen.add(etag)

    def removed(self, key: str) -> None:
        """A key holds nothing any more."""
        who, was = ACTOR.get(), self.current(key)
        if was is None:
            return
        if who is not None and not key.endswith("/"):
            self._judge(who, key, was, "removed")
            elsewhere = any(v.data == was.data for k, held in self.held.items() if k != key for v in held)
            if key not in who.removes and not elsewhere:
                self.wrong.append(f"{who.name} removed {key!r} with {was.data!r}, which nobody asked for")
        was.until = self.clock.now

    def _judge(self, who: Line | None, key: str, was: Version, did: str) -> None:
        if who is not None and was.etag not in who.seen and not (key.endswith("/") and not was.data):
            self.wrong.append(f"{who.name} {did} {key!r} with {was.data!r}, which it never saw")


class History(FakeStore, Ledger):
    """Remembers all versions; listings show what was there *lag* seconds ago."""

    def __init__(self, clock: Clock) -> None:
        FakeStore.__init__(self, page_size=3, min_part=MIN)
        Ledger.__init__(self, clock)
        self.lag = 0.0
        self._states: list[tuple[float, Objects]] = [(0.0, Objects())]

    def put_plain(self, *args: Any, **kwargs: Any) -> Object:
        """Put an object there as another client does now."""
        acting = ACTOR.set(None)
        try:
            return super().put_plain(*args, **kwargs)
        finally:
            ACTOR.reset(acting)

    def remove_plain(self, key: str) -> None:
        """Remove an object, as another client."""
        if self.objects.pop(key) is not None:
            self.removed(key)
            self._changed()

    def contents(self) -> dict[str, bytes]:
        """Return what is there, as a plain client sees it."""
        return {key: stored.data for key, stored in self.objects.items()}

    def names(self) -> dict[str, int]:
        """Return what a mount must show: path -> size, -1 of a directory."""
        return names_of({key: len(stored.data) for key, stored in self.objects.items()})

    async def look(self) -> None:
        """Find out what was done by a line that was cut: here all is known."""

    def _keep(self, data: bytes, item: Object, attributes: Attributes) -> Object:
        self.made(item.key, data, item.etag)
        kept = super()._keep(data, item, attributes)
        self._changed()
        return kept

    def _remove(self, key: str) -> None:
        self.removed(key)
        super()._remove(key)
        self._changed()

    def _changed(self) -> None:
        now = Objects()
        for key, stored in self.objects.items():
            now[key] = stored
        self._states.append((self.clock.now, now))

    async def list(self, *args: Any, **kwargs: Any) -> Page:
        """Show what was there *lag* seconds ago."""
        if self.lag:
            self.stale = [shown for since, shown in self._states if since <= self.clock.now - self.lag][-1]
        else:
            self.stale = None
        return await super().list(*args, **kwargs)


class Watched(Ledger):
    """A real store, looked at after each request that changes it; *client* is a plain one (boto3)."""

    def __init__(self, clock: Clock, store: Any, client: Any, bucket: str) -> None:
        super().__init__(clock)
        self.store = store
        self.client = client
        self.bucket = bucket
        self.fail: list[Fault] = []
        """Nothing fails but by itself."""
        self.lag = 0.0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in CALLS:
            raise AttributeError(name)
        work = getattr(self.store, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            found = await work(*args, **kwargs)
            for key in _changes(name, args):
                await self._done(key, found if isinstance(found, Object) else None)
            return found

        return call

    async def _done(self, key: str, item: Object | None) -> None:
        """A request made *item* of a key, or removed it; somebody else may have come since."""
        head = await head_or_none(self.store, key)
        if (head.item.etag if head is not None else "") == (item.etag if item is not None else ""):
            await self.noted(key)
        elif item is not None and head is not None:
            await self.noted(key, item.etag)

    async def noted(self, key: str, before: str = "") -> None:
        """Note what a key holds now; when that has replaced the version *before*, it is nobody's fault."""
        acting = ACTOR.set(None) if before else None
        was = self.current(key)
        while True:
            try:
                head = await self.store.head(key)
                pieces: list[bytes] = []
                if head.item.size and (was is None or was.etag != head.item.etag):
                    await self.store.get(head.item, 0, head.item.size, pieces.append)
            except StoreError as exc:
                if exc.errno == errno.ENOENT:
                    self.removed(key)
                    break
                if exc.errno != errno.ESTALE:
                    raise
            else:
                if was is None or was.etag != head.item.etag:
                    self.made(key, b"".join(pieces), head.item.etag)
                break
        if acting is not None:
            ACTOR.reset(acting)

    async def look(self) -> None:
        """Find out what was done by a line that was cut, or by others meanwhile."""
        keys = {row["Key"] for row in self._pages(Delimiter="")} | self.held.keys()
        for key in sorted(keys):
            await self.noted(key)

    def put_plain(self, key: str, data: bytes) -> None:
        """Put an object there as another client does."""
        answer = self.client.put_object(Bucket=self.bucket, Key=key, Body=data)
        self.made(key, data, answer["ETag"].strip('"'))

    def remove_plain(self, key: str) -> None:
        """Remove an object, as another client."""
        self.client.delete_object(Bucket=self.bucket, Key=key)
        self.removed(key)

    def contents(self) -> dict[str, bytes]:
        """Return what is there, as a plain client sees it."""
        keys = [row["Key"] for row in self._pages(Delimiter="")]
        return {key: self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read() for key in keys}

    def names(self) -> dict[str, int]:
        """Return what a mount must show: path -> size, -1 of a directory."""
        shown: dict[str, int] = {}
        todo = [""]
        while todo:
            above = todo.pop()
            for row in self._pages(Prefix=above, Delimiter="/"):
                if "Prefix" in row:
                    shown[row["Prefix"][:-1]] = -1
                    todo.append(row["Prefix"])
                elif row["Key"] != above:
                    shown[row["Key"]] = row["Size"]
        return shown

    def _pages(self, **arguments: str) -> Iterator[dict[str, Any]]:
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, **arguments):
            yield from page.get("Contents", ())
            yield from page.get("CommonPrefixes", ())


def _changes(name: str, args: Any) -> list[str]:
    """Return the keys that a call may change."""
    if name in ("put", "delete"):
        return [args[0]]
    if name == "copy":
        return [args[1]]
    if name == "complete":
        return [args[0].key]
    return list(args[0]) if name == "delete_many" else []


class Line:
    """A mount's own way to the store: it notes what the mount is told, repeats what failed, and can be cut."""

    endpoint = ""

    def __init__(self, store: Any, name: str, *, attempts: int = 1) -> None:
        self.store = store
        self.name = name
        self.attempts = attempts
        self.features = Features()
        self.seen: set[str] = set()
        """ETags of versions that the mount was told of, or made."""
        self.removes: set[str] = set()
        """Keys that the mount was asked to remove."""
        self.flying: set[asyncio.Task[Any]] = set()
        self.cut = False

    async def start(self) -> None:
        """Do nothing: the store is everybody's."""

    async def close(self) -> None:
        """Do nothing."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in CALLS:
            raise AttributeError(name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            if self.cut:
                raise StoreError(5, "the mount is dead")
            task = asyncio.ensure_future(self._do(name, args, kwargs))
            self.flying.add(task)
            task.add_done_callback(self._landed)
            try:
                return await asyncio.shield(task)
            except asyncio.CancelledError:
                if not self.cut:
                    task.cancel()
                raise

        return call

    def _landed(self, task: asyncio.Task[Any]) -> None:
        self.flying.discard(task)
        if not task.cancelled():
            task.exception()

    async def _do(self, name: str, args: Any, kwargs: Any) -> Any:
        ACTOR.set(self)
        for attempt in itertools.count(1):
            try:
                found = await getattr(self.store, name)(*args, **kwargs)
            except StoreError as exc:
                if exc.retryable and attempt < self.attempts and name != "get":
                    continue
                exc.tries = attempt  # type: ignore[attr-defined]
                raise
            self._see(found)
            return found

    def _see(self, found: Any) -> None:
        if isinstance(found, Object):
            self.seen.add(found.etag)
        elif isinstance(found, Head):
            self.seen.add(found.item.etag)
        elif isinstance(found, Page):
            self.seen.update(item.etag for item in found.objects)

    def break_off(self, finish: bool) -> None:
        """Cut it; requests on their way are done by the store if *finish*, else never heard of."""
        self.cut = True
        if not finish:
            for task in self.flying:
                task.cancel()


@dataclass(eq=False)
class Inode:
    """What a program may see in a file it has open."""

    pairs: set[tuple[bytes | None, bytes]]
    """What the contents may be, each with the version it is made of."""
    changed: bool = False
    began: int = 0
    """How many versions the mount's key had when the first change was made."""
    opens: int = 0

    @property
    def contents(self) -> set[bytes]:
        """What it may hold."""
        return {content for _, content in self.pairs}

    def change(self, how: Callable[[bytes], bytes]) -> None:
        """Change the contents."""
        before = self.pairs
        self.pairs = {(base, how(content)) for base, content in before}
        self.changed = self.changed or self.pairs != before


@dataclass(eq=False)
class Opened:
    """An open file."""

    fd: Fd
    inode: Inode
    path: str | None
    """None: it was removed."""
    flags: int

    @property
    def writable(self) -> bool:
        """Whether it may be written to."""
        return self.flags & os.O_ACCMODE != os.O_RDONLY


@dataclass(eq=False)
class Mount:
    """A mount of the bucket, and the program that uses it."""

    name: str
    store: Any
    home: Path
    options: dict[str, Any]
    attempts: int = 1
    opened: list[Opened] = field(default_factory=list)
    inodes: dict[int, Inode] = field(default_factory=dict)
    owed: dict[str, list[set[bytes]]] = field(default_factory=dict)
    """By path: contents that were acknowledged, or that a failed close promised to keep."""
    lines: list[Line] = field(default_factory=list)
    deaths: int = 0

    @property
    def write_back(self) -> bool:
        """Whether close is acknowledged by the journal."""
        return bool(self.options.get("write_back"))

    @property
    def line(self) -> Line:
        """The line of the server that lives."""
        return self.lines[-1]

    async def start(self) -> None:
        """Mount."""
        line = Line(self.store, f"{self.name}{self.deaths}", attempts=self.attempts)
        if self.lines:
            line.seen |= self.line.seen  # In its journal.
            line.removes |= self.line.removes
        self.lines.append(line)
        options = {
            "probe": False,
            "metadata_ttl": TTL,
            "part_size": MIN,
            "cache_dir": str(self.home / "cache"),
            "staging_dir": str(self.home / "staging"),
            **self.options,
        }
        self.fs = S3FS("bucket", S3Options(**options), store=_store(line))
        self.kernel = FakeKernel(self.fs)
        await self.kernel.__aenter__()
        self.user = User(self.fs, self.kernel, self.store)

    async def stop(self) -> None:
        """Unmount, and see that the kernel has nothing to complain of."""
        self.kernel.forget_all()
        await self.kernel.settle()
        await self.kernel.request(abi.STATFS, 1)
        self.kernel.check()
        await self.kernel.__aexit__(None, None, None)

    async def kill(self, finish: bool) -> None:
        """End the server as kill -9 does, and mount again with what it left on the disk."""
        self.line.break_off(finish)
        staging, grave = self.home / "staging", self.home / f"grave{self.deaths}"
        # What the dead one still does, it does elsewhere.
        staging.rename(grave)
        shutil.copytree(grave, staging, symlinks=True)
        self.opened.clear()
        self.inodes.clear()
        self.deaths += 1
        await self.kernel.__aexit__(None, None, None)
        shutil.rmtree(grave)
        await self.start()

    def kept(self) -> list[conflicts.Kept]:
        """Return the copies of what was not published."""
        return conflicts.kept(str(self.home / "staging" / "conflicts"))

    def keeps(self, contents: set[bytes]) -> bool:
        """Say whether a copy of one of *contents* is kept, but for bytes that were never here."""
        return any(_is_copy(kept, content) for kept in self.kept() for content in contents)


def _is_copy(kept: conflicts.Kept, content: bytes) -> bool:
    data = bytearray(Path(kept.path).read_bytes())
    if len(data) != len(content):
        return False
    for start, end in kept.missing:
        data[start:end] = content[start:end]
    return bytes(data) == content


def _store(line: Line) -> Store:
    return line  # type: ignore[return-value]


class Tracebacks(logging.Handler):
    """Gathers what was logged with a traceback: bugs."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self.found.append(f"{record.getMessage()}: {logging.Formatter().formatException(record.exc_info)}")


def names_of(keys: dict[str, int]) -> dict[str, int]:
    """Return what a mount must show of keys and their sizes: path -> size, -1 of a directory."""
    shown: dict[str, int] = {}
    for key in keys:
        parts = key.split("/")
        for depth in range(1, len(parts)):
            shown["/".join(parts[:depth])] = -1
    for key, size in keys.items():
        if not key.endswith("/"):
            shown[f"{key}␛f" if key in shown else key] = size
    return shown


__all__ = [
    "FOREVER",
    "MIN",
    "SHM",
    "TTL",
    "AtOnce",
    "Fault",
    "History",
    "Inode",
    "Line",
    "Mount",
    "Opened",
    "Tracebacks",
    "Version", "Watched",
    "names_of",
    "small_world",
]  # fmt: skip

"""A file of a server that sends nothing but all of it: fetched once to a local file, or read as it comes by."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import logging
import os
import tempfile
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from pyfusekit.cache import Budget

from ..client.words import shown
from ..values import HttpError
from .resource import strongest
from .source import RangeIgnored, Source

log = logging.getLogger("pyfusekit.httpfs")

_COPY = 256 << 10
_VERIFIED_PART = 2 << 20
"""Bytes of a range, and how many are under way, when a file whose digest is known is fetched."""
_PARTS = 4
KEPT = 2 << 20
"""Bytes behind the front of a stream that are kept: the kernel's reads do not come in order."""
_AHEAD = 1 << 20
_CUTS = 5
"""How often in a row a stream may be cut without getting on."""


def again(error: OSError) -> OSError:
    """Return a fresh exception for each who waited: a traceback is not theirs to share. Its cause is the HttpError."""
    found = OSError(error.errno, error.strerror)
    found.__cause__ = error
    return found


class _Arriving:
    """What bytes arrive for, and who waits for them."""

    def __init__(self) -> None:
        self.filled = 0
        self.size: int | None = None
        self.done = False
        self.error: OSError | None = None
        self._waiters: list[tuple[int, int, asyncio.Future[None]]] = []
        """Until where, from where."""
        self._task: asyncio.Task[None] | None = None

    def _begin(self, work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[Any]]) -> None:
        task = self._task = asyncio.get_running_loop().create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def _wait(self, start: int, end: int) -> None:
        waiter = asyncio.get_running_loop().create_future()
        place = (end, start, waiter)
        self._waiters.append(place)
        try:
            await waiter
        finally:
            if place in self._waiters:
                self._waiters.remove(place)

    def _wake(self, everybody: bool = False) -> None:
        for end, _, waiter in self._waiters:
            if (everybody or end <= self.filled) and not waiter.done():
                waiter.set_result(None)

    def _fail(self, error: OSError) -> None:
        self.error = error
        self._wake(everybody=True)

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._fail(self.error or OSError(errno.EINTR, "the file was closed"))


class Spool(_Arriving):
    """All of a file in a local one without a name, of at most *limit* bytes: EFBIG. Readers get bytes as they arrive.

    With *hashes* they get them when all are there and their digest is what was promised; each of *sources* is tried. *learn*
    asks a mirror what it has, before it is used.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        limit: int,
        directory: Path | None,
        budget: Budget,
        tasks: set[asyncio.Task[Any]],
        hashes: tuple[tuple[str, str], ...] = (),
        learn: Callable[[Source], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__()
        self._learn = learn
        self._sources = sources
        self.limit = limit
        self._budget = budget
        self._promised = strongest(hashes)
        self._digest = hashlib.new(self._promised[0]) if self._promised else None
        self.size = sources[0].resource.size
        self.name = shown(sources[0].resource.url)
        self.fd = _unnamed(directory)
        self._begin(self._run(), tasks)

    def read(self, offset: int, size: int) -> bytes | Coroutine[Any, Any, bytes]:
        """Return up to *size* bytes from *offset*; at once when they are there, else a coroutine."""
        end = offset + size if self.size is None else min(offset + size, self.size)
        if self.done or (end <= self.filled and self._promised is None):
            return os.pread(self.fd, size, offset)
        if self.error is not None:
            raise again(self.error)
        return self._read(offset, size, end)

    async def _read(self, offset: int, size: int, end: int) -> bytes:
        while not self.done and (end > self.filled or self._promised is not None):
            if self.error is not None:
                raise again(self.error)
            await self._wait(offset, end if self._promised is None else 1 << 63)
        return os.pread(self.fd, size if self.done else end - offset, offset)

    async def hand(self, start: int, end: int, sink: Callable[[bytes], None]) -> None:
        """Hand [start, end) to *sink*."""
        await hand(self, start, end, sink)

    async def whole(self) -> int:
        """Wait until all is there; return its size."""
        while not self.done:
            if self.error is not None:
                raise again(self.error)
            await self._wait(0, 1 << 63)
        assert self.size is not None
        return self.size

    def close(self) -> None:
        """End the request and remove the file. Who waits gets EINTR."""
        self._stop()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    async def _run(self) -> None:
        error: OSError | None = None
        for source in self._sources:
            try:
                if self._learn is not None:
                    await self._learn(source)
                size = await self._fill(source)
                self._verify(source)
            except OSError as exc:
                log.warning("%s", exc.strerror)
                # Where nothing can be verified, what was handed out may not be followed by what another server has.
                error = error or exc
                if (self._digest is None and self.filled) or exc.errno in (errno.EFBIG, errno.ENOSPC, errno.EDQUOT):
                    break
                self._restart()
                continue
            self.size, self.done = size, True
            self._wake(everybody=True)
            return
        self._fail(error or OSError(errno.EIO, f"{self.name}: there is no source"))

    def _restart(self) -> None:
        self.filled = 0
        if self._promised:
            self._digest = hashlib.new(self._promised[0])
        os.ftruncate(self.fd, 0)

    async def _fill(self, source: Source) -> int:
        """Fetch all of the file; several ranges at a time where bytes need not be handed out as they come."""
        size = source.resource.size
        if self._digest is not None and size is not None and source.resource.ranges is not False:
            if self.size is not None and self.size != size:
                raise OSError(errno.EIO, f"{shown(source.resource.url)}: it has {size} bytes, and others {self.size}")
            with contextlib.suppress(RangeIgnored):
                await self._fill_by_ranges(source, size)
                return size
        return await source.fetch_all(self._put, size if size is not None else self.limit)

    async def _fill_by_ranges(self, source: Source, size: int) -> None:
        """Fetch parts at once, and put them behind one another."""
        loop = asyncio.get_running_loop()
        parts: deque[tuple[asyncio.Task[None], list[bytes]]] = deque()
        begun = 0
        held = min(size, _PARTS * _VERIFIED_PART)
        await self._budget.wait(held)
        try:
            while self.filled < size:
                while begun < size and len(parts) < _PARTS:
                    pieces: list[bytes] = []
                    upto = min(size, begun + _VERIFIED_PART)
                    parts.append((loop.create_task(source.fetch(begun, upto, pieces.append)), pieces))
                    begun = upto
                task, pieces = parts[0]
                await task
                parts.popleft()
                for piece in pieces:
                    await self._put(self.filled, piece)
        finally:
            for task, _ in parts:
                task.cancel()
            await asyncio.gather(*(task for task, _ in parts), return_exceptions=True)
            self._budget.give(held)

    async def _put(self, position: int, piece: bytes) -> None:
        """Write *piece*; where bytes were already, they must be the same: another answer to the same request."""
        known = min(len(piece), max(0, self.filled - position))
        if known and os.pread(self.fd, known, position) != piece[:known]:
            raise HttpError(errno.ESTALE, f"{self.name} was replaced while it was fetched", url=self.name)
        new = memoryview(piece)[known:]
        if not new:
            return
        if self.filled + len(new) > self.limit:
            raise too_large(self.name, None, self.limit)
        written = 0
        while written < len(new):
            written += os.pwrite(self.fd, new[written:], self.filled + written)
        if self._digest is not None:
            self._digest.update(new)
        self.filled += len(new)
        self._wake()

    def _verify(self, source: Source) -> None:
        """Raise unless the bytes have the digest that was promised."""
        if self._promised is None or self._digest is None:
            return
        name, promised = self._promised
        found = self._digest.hexdigest()
        if found != promised.lower():
            why = f"{name} of what came is {found[:12]}..., and {promised[:12].lower()}... was promised"
            raise HttpError(errno.EIO, f"{shown(source.resource.url)}: {why}", url=source.resource.url)


class Streamed(_Arriving):
    """A file read as it comes by, with what was just read kept. Going back further begins again, if the version can be told.

    INVARIANT: _kept are the bytes [begun, filled).
    """

    def __init__(self, source: Source, tasks: set[asyncio.Task[Any]]) -> None:
        super().__init__()
        self._source = source
        self._tasks = tasks
        self.size = source.resource.size
        self.begun = 0
        """Where the kept bytes begin."""
        self._kept = bytearray()
        self._wanted = 0
        self._more = asyncio.Event()
        self.requests = 0

    def read(self, offset: int, size: int) -> bytes | Coroutine[Any, Any, bytes]:
        """Return up to *size* bytes from *offset*; at once when they are there, else a coroutine. ESPIPE: they went by."""
        end = offset + size if self.size is None else min(offset + size, self.size)
        if self._has(offset, end):
            return self._cut(offset, end)
        if self.error is not None:
            raise again(self.error)
        return self._read(offset, end)

    def _has(self, offset: int, end: int) -> bool:
        return offset >= self.begun and (self.done or end <= self.filled)

    def _cut(self, offset: int, end: int) -> bytes:
        data = bytes(memoryview(self._kept)[max(0, offset - self.begun) : max(0, end - self.begun)])
        self._want(end)
        return data

    def _want(self, end: int) -> None:
        if end + _AHEAD > self._wanted:
            self._wanted = end + _AHEAD
            self._more.set()

    async def _read(self, offset: int, end: int) -> bytes:
        while not self._has(offset, end):
            if self.error is not None:
                raise again(self.error)
            if offset < self.begun:
                self._rewind(offset)
            if self._task is None:
                self.requests += 1
                self._begin(self._run(), self._tasks)
            self._want(end)
            await self._wait(offset, end)
        return self._cut(offset, end)

    async def hand(self, start: int, end: int, sink: Callable[[bytes], None]) -> None:
        """Hand [start, end) to *sink*."""
        await hand(self, start, end, sink)

    async def whole(self) -> int | None:
        """Return the size, when it is known."""
        return self.size

    def _rewind(self, offset: int) -> None:
        """Begin again: what was asked for went by."""
        validator = self._source.resource.validator
        if not (validator.etag or validator.modified):
            why = f"byte {offset} went by, and without an ETag or Last-Modified it cannot be asked for again (norange=stream)"
            raise OSError(errno.ESPIPE, f"{shown(self._source.resource.url)}: {why}")
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self.begun = self.filled = self._wanted = 0
        self.done = False
        self._kept.clear()

    async def _run(self) -> None:
        """Read on as far as is wanted; what is cut is asked for again from the beginning."""
        me, cuts = asyncio.current_task(), 0
        while True:
            before = self.filled
            try:
                size = await self._source.read_all(self._put)
            except OSError as exc:
                cuts = cuts + 1 if self.filled == before else 0
                known = self._source.resource.validator
                if getattr(exc, "retryable", False) and cuts < _CUTS and (known.etag or known.modified):
                    log.info("%s; trying again", exc.strerror)
                    await asyncio.sleep(0.1 * 2**cuts)
                    continue
                if self._task is me:
                    self._fail(exc)
                return
            if self._task is me:
                self.size, self.done = size, True
                self._wake(everybody=True)
            return

    async def _put(self, position: int, piece: bytes) -> None:
        while self.filled >= self._wanted:
            self._more.clear()
            await self._more.wait()
        low, high = max(position, self.begun), min(position + len(piece), self.filled)
        if low < high and self._kept[low - self.begun : high - self.begun] != piece[low - position : high - position]:
            name = shown(self._source.resource.url)
            raise HttpError(errno.ESTALE, f"{name} was replaced while it was read", url=name)
        new = memoryview(piece)[max(0, self.filled - position) :]
        if not new:
            return
        self._kept += new
        self.filled += len(new)
        self._wake()
        # Who waits has not been there yet: what he waits for stays.
        needed = min((start for _, start, _ in self._waiters if start >= self.begun), default=self.filled)
        keep = min(needed, self.filled - KEPT)
        if keep - self.begun >= _COPY:
            del self._kept[: keep - self.begun]
            self.begun = keep

    def close(self) -> None:
        """End the request."""
        self._stop()
        self._kept.clear()


async def hand(whole: Spool | Streamed, start: int, end: int, sink: Callable[[bytes], None]) -> None:
    """Hand [start, end) of *whole* to *sink*; EIO when it ends before."""
    while start < end:
        found = whole.read(start, min(_COPY, end - start))
        data = await found if isinstance(found, Coroutine) else found
        if not data:
            raise OSError(errno.EIO, f"{end - start} bytes are missing at the end of a file")
        sink(data)
        start += len(data)


def too_large(name: str, size: int | None, limit: int) -> OSError:
    """Return the error of a file that is not spooled."""
    what = f" of {size} bytes" if size is not None else ""
    return OSError(
        errno.EFBIG, f"{name}: this file{what} must be fetched whole, and is larger than --spool-size ({limit} bytes)"
    )


def _unnamed(directory: Path | None) -> int:
    """Return a new file without a name, in the cache directory, where room is, if it can be."""
    for place in (directory, Path(tempfile.gettempdir())):
        if place is None:
            continue
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd, name = tempfile.mkstemp(prefix="spool.", dir=place)
        except OSError as exc:
            log.info("%s: no room for a spooled file: %s", place, exc)
            continue
        os.unlink(name)
        return fd
    raise OSError(errno.EROFS, "there is no directory to spool a file to")


__all__ = ["KEPT", "Spool", "Streamed", "again", "hand", "too_large"]

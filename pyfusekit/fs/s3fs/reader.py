"""Reading one version of one object: ranges in flight, and a window ahead of a sequential reader.

A Reader belongs to an open file. While reads go on where the last one ended, it keeps a stream: fetches that lie one behind
the other, each a ranged GET that fills a buffer, the last of them up to *window* bytes ahead of the reader. The window
doubles when the reader had to wait and never otherwise, so a slow reader is not fetched for in vain. A read elsewhere is
one GET of just its range.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Coroutine
from typing import Any

from pyfusekit.core import Data

from .store import Object, Store

FIRST_WINDOW = 1 << 20
"""What is fetched ahead at first. The kernel adds its own readahead to the reads it sends."""
LARGEST_PART = 4 << 20
"""Bytes of one GET in a stream: enough to hide what a request costs."""
KEEP_BEHIND = 1 << 20
"""Bytes kept behind the reader: the kernel's readahead is not asked in strict order."""


class Fetch:
    """A range on its way: a GET that fills *buffer*, and those who wait for it.

    INVARIANT: buffer[:filled] is right and stays as it is; when *task* is done, filled == len(buffer) or *error* says why not.
    """

    __slots__ = ("_wakers", "buffer", "end", "error", "filled", "start", "task", "users")

    def __init__(self, store: Store, item: Object, start: int, end: int) -> None:
        self.start = start
        self.end = end
        self.buffer = bytearray(end - start)
        self.filled = 0
        self.error: Exception | None = None
        self.users = 0
        """Reads that need it; only a fetch without any is cancelled."""
        self._wakers: set[asyncio.Future[None]] = set()
        self.task = asyncio.ensure_future(self._run(store, item))

    async def _run(self, store: Store, item: Object) -> None:
        try:
            await store.get(item, self.start, self.end - self.start, self._take)
            if self.filled < len(self.buffer):
                self.error = OSError(errno.EIO, f"{item.key!r}: {len(self.buffer) - self.filled} bytes are missing")
        except Exception as exc:
            self.error = exc
        except asyncio.CancelledError:
            self.error = OSError(errno.EINTR, f"{item.key!r}: the file was closed")
            raise
        finally:
            self._wake()

    def _take(self, piece: bytes) -> None:
        upto = self.filled + len(piece)
        if upto > len(self.buffer):
            raise OSError(errno.EIO, "more bytes came than were asked for")
        self.buffer[self.filled : upto] = piece
        self.filled = upto
        self._wake()

    def _wake(self) -> None:
        for waker in self._wakers:
            if not waker.done():
                waker.set_result(None)

    def has(self, upto: int) -> bool:
        """Return whether the bytes before the offset *upto* are there."""
        return self.start + self.filled >= upto

    async def wait(self, upto: int) -> None:
        """Wait until the bytes before *upto* are there; raise what went wrong."""
        while not self.has(upto):
            if self.error is not None:
                # A fresh exception for each: several readers may wait for one fetch, and a traceback is not theirs to share.
                if isinstance(self.error, OSError):
                    raise OSError(self.error.errno, self.error.strerror) from self.error
                raise self.error
            waker = asyncio.get_running_loop().create_future()
            self._wakers.add(waker)
            try:
                await waker
            finally:
                self._wakers.discard(waker)


class Reader:
    """The bytes of *item*, for one open file. *limit* is the largest window; 0 fetches nothing that was not asked for."""

    __slots__ = ("_expected", "_stream", "_tasks", "item", "limit", "store", "window")

    def __init__(self, store: Store, item: Object, limit: int, tasks: set[asyncio.Task[None]]) -> None:
        self.store = store
        self.item = item
        self.limit = limit
        self.window = min(FIRST_WINDOW, limit)
        self._tasks = tasks
        """All fetches of the filesystem: who ends it waits for them."""
        self._stream: list[Fetch] = []
        """INVARIANT: in order, without gaps: each begins where the one before ends."""
        self._expected = 0
        """Where a sequential reader reads next."""

    def read(self, offset: int, size: int) -> bytes | list[Data] | Coroutine[Any, Any, bytes | list[Data]]:
        """Return up to *size* bytes from *offset*; at once when they are there, else a coroutine."""
        end = min(offset + size, self.item.size)
        if offset >= end:
            return b""
        sequential = self._goes_on(offset)
        self._expected = end
        if not sequential:
            return self._read_alone(offset, end)
        self._drop_failed()
        self._extend(offset, end)
        needed = [fetch for fetch in self._stream if fetch.start < end and fetch.end > offset]
        if all(fetch.has(min(end, fetch.end)) for fetch in needed):
            return _pieces(needed, offset, end)
        for fetch in needed:
            fetch.users += 1
        return self._read_stream(needed, offset, end)

    async def begin(self) -> None:
        """Fetch a small object whole and wait for its first bytes, so that opening it shows whether it can be read."""
        if not self._stream:
            self._stream.append(self._fetch(0, self.item.size))
        self._stream[0].users += 1
        await self._wait(self._stream[:1], 1)

    def close(self) -> None:
        """End all fetches; nobody reads any more."""
        for fetch in self._stream:
            fetch.task.cancel()
        self._stream.clear()

    def _goes_on(self, offset: int) -> bool:
        """Return whether a read at *offset* belongs to the stream, or begins one."""
        if self._stream and self._stream[0].start <= offset <= self._stream[-1].end:
            return True
        return self.limit > 0 and offset == self._expected

    def _fetch(self, start: int, end: int) -> Fetch:
        fetch = Fetch(self.store, self.item, start, end)
        self._tasks.add(fetch.task)
        fetch.task.add_done_callback(self._tasks.discard)
        return fetch

    def _let_go(self, fetches: list[Fetch]) -> None:
        for fetch in fetches:
            if not fetch.users:
                fetch.task.cancel()

    def _drop_failed(self) -> None:
        """Forget a fetch that failed, and what lies behind it: the next reader tries again."""
        for index, fetch in enumerate(self._stream):
            if fetch.error is not None:
                self._let_go(self._stream[index:])
                del self._stream[index:]
                return

    def _extend(self, offset: int, end: int) -> None:
        """Make the stream reach *end* and the window behind it, and let go of what lies far behind *offset*."""
        if not self._stream or not self._stream[0].start <= offset <= self._stream[-1].end:
            self._let_go(self._stream)
            self._stream.clear()
            self._stream.append(self._fetch(offset, min(self.item.size, max(end, offset + self.window))))
        part = min(LARGEST_PART, max(FIRST_WINDOW, self.window // 4))
        reached = self._stream[-1].end
        while reached < self.item.size and (reached < end or reached + part <= end + self.window):
            upto = min(self.item.size, max(end, reached + part) if reached < end else reached + part)
            self._stream.append(self._fetch(reached, upto))
            reached = upto
        while self._stream[0].end + KEEP_BEHIND <= offset:
            self._let_go([self._stream.pop(0)])

    async def _read_stream(self, needed: list[Fetch], offset: int, end: int) -> list[Data]:
        """Wait for [offset, end), which *needed* holds: a later read may drop them from the stream."""
        if self.limit:
            self.window = min(self.limit, max(self.window, FIRST_WINDOW) * 2)
        await self._wait(needed, end)
        return _pieces(needed, offset, end)

    async def _wait(self, needed: list[Fetch], end: int) -> None:
        """Wait for the bytes before *end*; each of *needed* was given a user, who goes away here."""
        interrupted = False
        try:
            for fetch in needed:
                await fetch.wait(min(end, fetch.end))
        except asyncio.CancelledError:
            interrupted = True
            raise
        finally:
            for fetch in needed:
                fetch.users -= 1
            # When nobody else reads, what an interrupted reader asked for ends now and not at its deadline.
            if interrupted and not any(fetch.users for fetch in self._stream):
                self._let_go(needed)
                self.close()

    async def _read_alone(self, offset: int, end: int) -> bytes:
        """GET just this range."""
        pieces: list[bytes] = []
        await self.store.get(self.item, offset, end - offset, pieces.append)
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if len(data) != end - offset:
            raise OSError(errno.EIO, f"{self.item.key!r}: {len(data)} bytes came of {end - offset}")
        return data


def _pieces(fetches: list[Fetch], offset: int, end: int) -> list[Data]:
    """Return [offset, end) as views of the buffers of *fetches*, which hold it."""
    return [
        memoryview(fetch.buffer)[max(offset, fetch.start) - fetch.start : min(end, fetch.end) - fetch.start]
        for fetch in fetches
    ]


__all__ = ["Fetch", "Reader"]

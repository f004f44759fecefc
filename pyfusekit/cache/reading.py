"""Reading one version of a remote file, for all who have it open: from memory, from the disk cache, from where it is.

A CachedReader is a Prefetcher that looks into an entry of the block cache first: what came from afar is kept there, and what is
there is not asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from .entry import BLOCK, Entry
from .memory import Budget, Data
from .prefetch import SPREAD, Fetch, Prefetcher

_COPY = 256 << 10
_BATCH = 1 << 20
_GAP = 512 << 10
"""Bytes between two ranges that are rather fetched twice than asked for apart."""


class CachedReader:
    """The *size* bytes that *fetch* gets. *limit* is the largest window ahead of each who reads in order; 0: nothing unasked.

    *entry* is the file's in the disk cache; who opened it closes it, after the reader. *tasks* gets every request under way.
    *name* is for error texts.
    """

    __slots__ = ("_fetch_remote", "_run", "_upto", "entry", "prefetch")

    def __init__(
        self,
        fetch: Fetch,
        size: int,
        *,
        limit: int,
        budget: Budget,
        tasks: set[asyncio.Task[Any]],
        entry: Entry | None = None,
        spread: int = SPREAD,
        name: str = "",
    ) -> None:
        self._fetch_remote = fetch
        self.entry = entry
        """Complete, it answers everything."""
        align = 1 if entry is None else BLOCK
        self.prefetch = Prefetcher(self._fetch, size, limit, budget, tasks, align=align, spread=spread, name=name)
        self._upto = 0
        """Where the last read that the disk cache answered ended."""
        self._run = 0
        """How many bytes it had answered in order by then."""
        if entry is not None and entry.doubtful:
            entry.verify_later()

    def read(self, offset: int, size: int) -> bytes | list[Data] | Coroutine[Any, Any, list[Data]]:
        """Return up to *size* bytes from *offset*; at once when they are there, else a coroutine. OSError is fetch's."""
        entry = self.entry
        if entry is None:
            return self.prefetch.read(offset, size)
        if entry.complete or not self.prefetch.covers(offset):
            data = entry.read(offset, size)
            if data is not None:
                self._run = len(data) + (self._run if offset == self._upto else 0)
                self._upto = offset + len(data)
                return data
        return self.prefetch.read(offset, size, self._run if offset == self._upto else 0)

    def cached(self) -> bytes | None:
        """Return the whole file when the disk cache has it."""
        return self.entry.read(0, self.prefetch.size) if self.entry is not None else None

    def at_hand(self) -> bytes | None:
        """Return the whole file when nothing need be asked for it."""
        found = self.cached()
        return found if found is not None else self.prefetch.whole()

    def close(self) -> None:
        """End all requests but those that reads wait for; nobody begins to read any more."""
        self.prefetch.close()

    async def _fetch(self, start: int, end: int, sink: Callable[[bytes], None]) -> None:
        """Hand on [start, end): what the disk cache has from there, the rest from afar."""
        entry = self.entry
        if entry is None:
            await self._fetch_remote(start, end, sink)
            return
        position = start
        for first, upto in [*_merged(entry.missing(start, end)), (end, end)]:
            while position < first:
                data = entry.read(position, min(_COPY, first - position))
                if data is None:
                    await self._fetch_and_keep(entry, position, first, sink)
                    position = first
                    break
                sink(data)
                position += len(data)
                # Others have their turn: this goes on at the speed of the disk.
                await asyncio.sleep(0)
            if position < min(upto, end):
                await self._fetch_and_keep(entry, position, min(upto, end), sink)
                position = min(upto, end)

    async def _fetch_and_keep(self, entry: Entry, start: int, end: int, sink: Callable[[bytes], None]) -> None:
        """Fetch [start, end) and keep it on the disk, a few blocks at a time."""
        pieces: list[bytes | memoryview] = []
        position = begun = start

        def keep(piece: bytes) -> None:
            nonlocal position, begun, pieces
            sink(piece)
            pieces.append(piece)
            position += len(piece)
            rest = position % BLOCK
            if position == end:
                # At once: whoever waits for these bytes may close the file when he has them.
                entry.write_later(begun, pieces)
                pieces = []
                begun = end
            elif position - rest - begun >= _BATCH:
                # Whole blocks: batches may be written in another order.
                view = memoryview(piece)
                pieces[-1] = view[: len(piece) - rest]
                entry.write_later(begun, pieces)
                pieces = [view[len(piece) - rest :]]
                begun = position - rest

        try:
            await self._fetch_remote(start, end, keep)
        finally:
            if pieces:
                entry.write_later(begun, pieces)


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return *ranges* with those joined that lie so close that one request costs less than two."""
    found: list[tuple[int, int]] = []
    for start, end in ranges:
        if found and start - found[-1][1] <= _GAP:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


__all__ = ["CachedReader"]

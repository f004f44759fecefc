"""Reading one version of one object, for all who have it open: from memory, from the disk cache, from the store.

A Reader is a Prefetcher (pyfusekit.cache) whose ranges are GETs with If-Match, so what it returns is one version or ESTALE.
Where there is a disk cache, what came from the store is kept there, and what is there is not asked for.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeAlias

from pyfusekit.cache import BLOCK, Budget, Entry, Prefetcher
from pyfusekit.core import Data

from .store import Object, Store, same_version

SMALL = 1 << 20
"""An object of so many bytes is worth fetching whole before it is opened."""
IN_ORDER = 8
"""Files opened in the order of a listing, one behind the other, until those that follow are fetched before they are opened."""
AHEAD = 16
"""How many of them."""
_COPY = 256 << 10
_BATCH = 1 << 20
_GAP = 512 << 10
"""Bytes between two ranges that are rather fetched twice than asked for apart."""
_NEAR = 8
"""How far behind the last one a file may be in the listing and still be in order: several may walk together."""
_WALKS = 16

Version: TypeAlias = tuple[str, str, int]


class Reader:
    """The bytes of *item*. *limit* is the largest window ahead of each who reads in order; 0 fetches nothing unasked.

    *entry* is the item's in the disk cache; who opened it closes it, after the reader. *tasks* gets what runs beside the
    requests. *version* reads an older version by its id. *item* may be replaced by a copy of the same bytes under another key.
    """

    __slots__ = ("_run", "_upto", "entry", "item", "prefetch", "store", "version")

    def __init__(
        self,
        store: Store,
        item: Object,
        *,
        limit: int,
        budget: Budget,
        tasks: set[asyncio.Task[Any]],
        entry: Entry | None = None,
        version: str = "",
    ) -> None:
        self.store = store
        self.item = item
        self.entry = entry
        """Complete, it answers everything."""
        self.version = version
        align = 1 if entry is None else BLOCK
        self.prefetch = Prefetcher(self._fetch, item.size, limit, budget, tasks, align=align, name=repr(item.key))
        self._upto = 0
        """Where the last read that the disk cache answered ended."""
        self._run = 0
        """How many bytes it had answered in order by then."""
        if entry is not None and entry.doubtful:
            entry.verify_later()

    def read(self, offset: int, size: int) -> bytes | list[Data] | Coroutine[Any, Any, list[Data]]:
        """Return up to *size* bytes from *offset*; at once when they are there, else a coroutine."""
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

    def at_hand(self) -> bytes | None:
        """Return the whole object when nothing need be asked for it."""
        found = self.entry.read(0, self.item.size) if self.entry is not None else None
        return found if found is not None else self.prefetch.whole()

    async def begin(self) -> None:
        """Fetch a small object whole and wait for its first bytes, so that opening it shows whether it can be read.

        When the disk cache has it, the store is asked only whether it is still that version: ESTALE.
        """
        if self.entry is None or self.entry.read(0, self.item.size) is None:
            await self.prefetch.begin()
        elif not same_version(self.item, (await self.store.head(self.item.key)).item):
            raise OSError(errno.ESTALE, f"{self.item.key!r} was replaced")

    def close(self) -> None:
        """End all requests but those that reads wait for; nobody begins to read any more."""
        self.prefetch.close()

    async def _fetch(self, start: int, end: int, sink: Callable[[bytes], None]) -> None:
        """Hand on [start, end): what the disk cache has from there, the rest from the store."""
        entry = self.entry
        if entry is None:
            await self.store.get(self.item, start, end - start, sink, version=self.version)
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
        """Get [start, end) from the store and keep it on the disk, a few blocks at a time."""
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
            await self.store.get(self.item, start, end - start, keep, version=self.version)
        finally:
            if pieces:
                entry.write_later(begun, pieces)


class Neighbours:
    """Small files fetched before they are opened, for who opens the files of a directory one behind the other.

    make(item) returns a Reader, for :meth:`take` to hand over with its entry. What was fetched is good for *believed* seconds:
    as long as it would be believed that the object is still there without asking.
    """

    def __init__(self, make: Callable[[Object], Reader], believed: float) -> None:
        self._make = make
        self.believed = believed
        self._ready: OrderedDict[Version, tuple[float, Reader]] = OrderedDict()
        """And until when they are good."""
        self._walks: OrderedDict[str, _Walk] = OrderedDict()

    def take(self, item: Object) -> Reader | None:
        """Return the reader of *item* that was made before it was opened: the caller's from now on."""
        until, reader = self._ready.pop(_version(item), (0.0, None))
        if reader is not None and until < time.monotonic():
            _end(reader)
            return None
        return reader

    def opened(self, directory: str, item: Object, following: Callable[[str, int], Sequence[Object]]) -> None:
        """Note that *item* of *directory* is being opened, and fetch what follows.

        following(key, count) returns the objects of that directory behind *key* in the order of the listing, as far as they
        are known without asking the store.
        """
        if self.believed <= 0:
            return
        walk = self._walks.pop(directory, None) or _Walk()
        self._walks[directory] = walk
        if len(self._walks) > _WALKS:
            self._walks.popitem(last=False)
        if walk.goes_on(item.key, following) and len(self._ready) <= AHEAD // 2:
            self._fetch(walk, following(max(item.key, walk.fetched), AHEAD))

    def _fetch(self, walk: _Walk, items: Sequence[Object]) -> None:
        now = time.monotonic()
        while self._ready and next(iter(self._ready.values()))[0] < now:
            _end(self._ready.popitem(last=False)[1][1])
        for item in items:
            name = _version(item)
            if 0 < item.size <= SMALL and item.etag and name not in self._ready:
                reader = self._make(item)
                if not reader.prefetch.begin_ahead():
                    _end(reader)
                    return
                self._ready[name] = now + self.believed, reader
            walk.fetched = item.key

    def close(self) -> None:
        """End what nobody opened."""
        while self._ready:
            _end(self._ready.popitem()[1][1])


class _Walk:
    """How far somebody opened the files of a directory in order."""

    __slots__ = ("count", "fetched", "last")

    def __init__(self) -> None:
        self.last = ""
        self.count = 0
        self.fetched = ""
        """The last key that was fetched before it was opened."""

    def goes_on(self, key: str, following: Callable[[str, int], Sequence[Object]]) -> bool:
        """Return whether *key* is one more in a row."""
        if self.count and key <= self.last:
            return False
        near = self.count and any(item.key == key for item in following(self.last, _NEAR))
        self.count = self.count + 1 if near else 1
        self.last = key
        return self.count >= IN_ORDER


def _end(reader: Reader) -> None:
    """End a reader that nobody took."""
    reader.close()
    if reader.entry is not None:
        reader.entry.close()


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return *ranges* with those joined that lie so close that one request costs less than two."""
    found: list[tuple[int, int]] = []
    for start, end in ranges:
        if found and start - found[-1][1] <= _GAP:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


def _version(item: Object) -> Version:
    return item.key, item.etag, item.size


__all__ = ["AHEAD", "IN_ORDER", "SMALL", "Neighbours", "Reader"]

"""Reading one version of one object, for all who have it open: from memory, from the disk cache, from the store.

A Reader is a CachedReader (pyfusekit.cache) whose ranges are GETs with If-Match, so what it returns is one version or ESTALE.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from pyfusekit.cache import Budget, CachedReader, Entry

from .remote.store import Object, Store, same_version

SMALL = 1 << 20
"""An object of so many bytes is worth fetching whole before it is opened."""
IN_ORDER = 8
"""Files opened in the order of a listing, one behind the other, until those that follow are fetched before they are opened."""
AHEAD = 16
"""How many of them."""
_NEAR = 8
"""How far behind the last one a file may be in the listing and still be in order: several may walk together."""
_WALKS = 16

Version: TypeAlias = tuple[str, str, int]


class Reader(CachedReader):
    """The bytes of *item*. *limit* is the largest window ahead of each who reads in order; 0 fetches nothing unasked.

    *entry* is the item's in the disk cache; who opened it closes it, after the reader. *tasks* gets what runs beside the
    requests. *version* reads an older version by its id. *item* may be replaced by a copy of the same bytes under another key.
    """

    __slots__ = ("item", "store", "version")

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
        self.version = version
        super().__init__(self._get, item.size, limit=limit, budget=budget, tasks=tasks, entry=entry, name=repr(item.key))

    async def begin(self) -> None:
        """Fetch a small object whole and wait for its first bytes, so that opening it shows whether it can be read.

        When the disk cache has it, the store is asked only whether it is still that version: ESTALE.
        """
        if self.cached() is None:
            await self.prefetch.begin()
        elif not same_version(self.item, (await self.store.head(self.item.key)).item):
            raise OSError(errno.ESTALE, f"{self.item.key!r} was replaced")

    async def _get(self, start: int, end: int, sink: Callable[[bytes], None]) -> None:
        await self.store.get(self.item, start, end - start, sink, version=self.version)


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


def _version(item: Object) -> Version:
    return item.key, item.etag, item.size


__all__ = ["AHEAD", "IN_ORDER", "SMALL", "Neighbours", "Reader"]

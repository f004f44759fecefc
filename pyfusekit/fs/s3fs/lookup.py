"""Finding names in the store: one by one, or a page of neighbours when somebody looks at a whole directory.

Who lists a directory and then looks at every file in it ("find", "du", a slow "ls -l") comes back when what the listing said
is no longer believed. Asked one by one, 10,000 names are 10,000 requests. So when lookups in one directory follow each
other, one listing from the name on answers the next thousand.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from .listing import Listing
from .store import Store
from .tree import Node, Tree

_LOOKUP_KEYS = 16
"""Names asked for in a lookup. Between "a" and "a/" there may be others ("a-b", "a.txt"), rarely many."""
_STORM = 8
"""So many lookups in a directory, none later than _PAUSE_S after the one before, are somebody who looks at everything."""
_PAUSE_S = 1.0
_WORTH = 16
"""A page of neighbours that answered fewer lookups than this was not worth it: they come in no order."""
_CALM = 200
"""Lookups then asked one by one before a page is tried again."""


@dataclass(slots=True)
class _Run:
    """Lookups that follow each other in one directory."""

    count: int = 0
    last: float = 0.0
    page: Listing | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Finder:
    """Asks the store for names that the tree cannot answer."""

    def __init__(self, store: Store, tree: Tree) -> None:
        self.store = store
        self.tree = tree
        self._runs: dict[str, _Run] = {}

    async def lookup(self, directory: Node, text: str) -> Node | None:
        """Return the node of *text* in *directory*, or None when there is no such name."""
        run = self._run_of(directory.key)
        if run.count > _STORM:
            async with run.lock:
                # Whoever had the lock may have fetched what is asked for here.
                found = self.tree.known(directory, text.encode())
                if not isinstance(found, Node) and found and self._worth(run):
                    await self._neighbours(run, directory, text)
                    found = self.tree.known(directory, text.encode())
            if isinstance(found, Node):
                return found
        return await self.find(directory.key + text)

    async def find(self, key: str) -> Node | None:
        """Return what the store has under *key*: a directory when a key begins with key + "/", else a file, else None.

        One ListObjectsV2, because HEAD says nothing of directories; a second when many names lie between "a" and "a/".
        """
        expires = self.tree.expiry()
        page = await self.store.list(key, max_keys=_LOOKUP_KEYS)
        item = next((item for item in page.objects if item.key == key), None)
        directory = f"{key}/" in page.prefixes
        if not directory and page.token:
            last = max([item.key for item in page.objects] + page.prefixes, default="")
            if last < f"{key}/":
                below = await self.store.list(f"{key}/", max_keys=1)
                directory = bool(below.objects or below.prefixes)
        if directory:
            if item is not None:
                self.tree.hide(key, "there is a directory of that name")
            return self.tree.install(f"{key}/", None, expires)
        return self.tree.install(key, item, expires) if item is not None else None

    def _run_of(self, prefix: str) -> _Run:
        now = time.monotonic()
        run = self._runs.get(prefix)
        if run is None or now - run.last > _PAUSE_S:
            for old in [old for old, other in self._runs.items() if now - other.last > _PAUSE_S]:
                del self._runs[old]
            run = self._runs[prefix] = _Run()
        run.count += 1
        run.last = now
        return run

    @staticmethod
    def _worth(run: _Run) -> bool:
        """Return whether another page of neighbours is likely to be of use."""
        if run.page is None or run.page.hits >= _WORTH:
            return True
        run.count = _STORM - _CALM
        run.page = None
        return False

    async def _neighbours(self, run: _Run, directory: Node, text: str) -> None:
        """List a page of *directory* that begins at *text*, to answer lookups from."""
        expires = self.tree.expiry()
        listing = Listing(directory.key, self.tree.hide)
        page = await self.store.list(directory.key, start_after=directory.key + _before(text))
        listing.take(page, expires)
        run.page = listing
        self.tree.remember(listing)


def _before(text: str) -> str:
    """Return a string that sorts before *text*, with little in between."""
    last = ord(text[-1])
    return text[:-1] + (chr(last - 1) + "~~~" if ord("!") < last < ord("~") else "")


__all__ = ["Finder"]

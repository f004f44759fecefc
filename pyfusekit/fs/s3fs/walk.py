"""One open directory: its listing, fetched page by page as the reader goes on."""

from __future__ import annotations

import asyncio
import stat
import time
from collections.abc import AsyncIterator, Callable

from pyfusekit.core import Attr, DirEntry

from .listing import Listing
from .store import Store
from .tree import Node, Tree

_DOTS = 2
"""Cookies 1 and 2 follow "." and ".."; entry i of the listing is followed by cookie i + 3."""


class Walk:
    """The handle of an open directory.

    Names are handed out as their page comes in, each once. The cookie of an entry is its place in the listing, which only
    grows, so going back to any cookie finds the same names behind it.
    """

    def __init__(self, store: Store, tree: Tree, node: Node, dated: Callable[[Node], Attr]) -> None:
        self.store = store
        self.tree = tree
        self.node = node
        self._dated = dated
        """Gives a node's Attr with what is left of its time to live."""
        self._listing = Listing(node.key, tree.hide)
        self._token = ""
        self._begun = 0.0
        self._lock = asyncio.Lock()
        self._offered: list[Node] = []
        """Nodes of readdirplus entries; those that did not reach the kernel are dropped with the next call."""

    async def entries(self, offset: int, plus: bool) -> AsyncIterator[DirEntry]:
        """Yield the entries behind the cookie *offset*, with attributes when *plus*."""
        self._drop_unwanted()
        if offset == 0 and self._begun and self._begun + self.tree.ttl <= time.monotonic():
            self._restart()
        own = self.node.attr.ino
        if offset < 1:
            yield DirEntry(b".", own, stat.S_IFDIR, 1)
        if offset < _DOTS:
            yield DirEntry(b"..", self._parent_ino(), stat.S_IFDIR, _DOTS)
        listing = self._listing
        place = max(0, offset - _DOTS)
        while True:
            while place >= len(listing.entries) and not listing.complete:
                await self._more(listing, place)
            if place >= len(listing.entries):
                return
            name, item = listing.entries[place]
            place += 1
            key = self.tree.key_of(self.node, name.decode(), item)
            kind = stat.S_IFDIR if item is None else stat.S_IFREG
            if plus:
                node = self.tree.install(key, item, listing.expires)
                self._offered.append(node)
                yield DirEntry(name, node.attr.ino, kind, place + _DOTS, self._dated(node))
            else:
                yield DirEntry(name, self.tree.ino_of(key), kind, place + _DOTS)

    def close(self) -> None:
        """End the walk."""
        self._drop_unwanted()
        self.tree.settle(self._listing)

    def _restart(self) -> None:
        """Begin again with a new listing, as rewinddir(3) promises; whoever still reads the old one has reached its end."""
        self._listing.complete = True
        self._listing = Listing(self.node.key, self.tree.hide)
        self._token = ""
        self._begun = 0.0

    def _drop_unwanted(self) -> None:
        for node in self._offered:
            self.tree.release(node)
        self._offered.clear()

    def _parent_ino(self) -> int:
        if self.node is self.tree.root:
            return self.node.attr.ino
        return self.tree.ino_of(self.node.key[: self.node.key.rstrip("/").rfind("/") + 1])

    async def _more(self, listing: Listing, place: int) -> None:
        """Get the next page, unless another reader of the same handle got it meanwhile."""
        async with self._lock:
            if place < len(listing.entries) or listing.complete or listing is not self._listing:
                return
            expires = self.tree.expiry()
            page = await self.store.list(listing.prefix, token=self._token)
            if listing is not self._listing:
                return
            listing.take(page, expires)
            listing.complete = not page.token
            if not self._begun:
                self._begun = time.monotonic()
                self.tree.remember(listing)
            self._token = page.token


__all__ = ["Walk"]

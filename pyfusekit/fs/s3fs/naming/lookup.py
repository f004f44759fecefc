"""Finding names in the store: one by one, or a page of neighbours when somebody looks at a whole directory.

Who lists a directory and then looks at every file in it ("find", "du", a slow "ls -l") comes back when what the listing said
is no longer believed, and who copies files into it asks for each name before it is made. Asked one by one, 10,000 names are
10,000 requests. So when lookups in one directory follow each other, one listing from the name on answers the next thousand.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from ..remote.store import Object, Store
from .keys import MORE, PLAIN, Meaning
from .listing import Life, Span, clean
from .nodes import Node
from .overlay import ASK, GONE, HERE
from .tree import UNKNOWN, Tree

_LOOKUP_KEYS = 16
"""Names asked for in a lookup. Between "a" and "a/" there may be others ("a-b", "a.txt"), rarely many."""
_STORM = 8
"""So many lookups in a directory, none later than _PAUSE_S after the one before, are somebody who looks at everything."""
_PAUSE_S = 1.0
_WORTH = 4
"""A page of neighbours that answered fewer lookups than this was not worth it: they come in no order."""
_CALM = 50
"""Lookups then asked one by one before a page is tried again."""


@dataclass(slots=True)
class _Run:
    """Lookups that follow each other in one directory."""

    count: int = 0
    last: float = 0.0
    page: Span | None = None
    large: bool = False
    """The directory has more names than a page."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Finder:
    """Asks the store for names that the tree cannot answer."""

    def __init__(self, store: Store, tree: Tree) -> None:
        self.store = store
        self.tree = tree
        self._runs: dict[str, _Run] = {}

    async def named(self, directory: Node, name: bytes) -> Node | None:
        """Return the node of *name* in *directory*, as it is believed or else as the store says; None when there is none."""
        found = self.tree.known(directory, name)
        return await self.lookup(directory, name) if found is UNKNOWN else found

    async def lookup(self, directory: Node, name: bytes) -> Node | None:
        """Return the node of *name* in *directory*, or None when there is no such name."""
        where = self.tree.meaning(directory, name)
        if where is None:
            return None
        if where.kind == MORE:
            return await self._continuation(where.key)
        run = self._run_of(directory.key)
        if run.count > _STORM and where.kind == PLAIN and len(where.key) > len(directory.key):
            async with run.lock:
                # Whoever had the lock may have fetched what is asked for here.
                found = self.tree.known(directory, name)
                if found is UNKNOWN and self._worth(run):
                    await self._neighbours(run, directory.key, where.key)
                    found = self.tree.known(directory, name)
            if found is not UNKNOWN:
                return found
        return await self._find(where)

    async def find(self, key: str) -> Node | None:
        """Return what the store has under *key*: a directory when a key begins with key + "/", else a file, else None."""
        return await self._find(Meaning(key, PLAIN))

    async def _find(self, where: Meaning) -> Node | None:
        """Ask for one name.

        One ListObjectsV2, because HEAD says nothing of directories; a second when many names lie between "a" and "a/".
        """
        key = where.key
        expires = self.tree.expiry()
        asked = time.monotonic()
        page = await self.store.list(key, max_keys=_LOOKUP_KEYS)
        item = next((item for item in page.objects if item.key == key), None)
        prefix = f"{key}/"
        below = prefix in page.prefixes or any(item.key.startswith(prefix) for item in page.objects)
        if not below and page.token:
            last = max([item.key for item in page.objects] + page.prefixes, default="")
            if last < prefix:
                more = await self.store.list(prefix, max_keys=1)
                below = bool(more.objects or more.prefixes)
        if item is not None and not item.size and (not key or key[-1] == "/"):
            # The marker of the directory itself.
            item = None
        found = self.tree.settle(where, item, below, expires, asked=asked, now=asked)
        if found is UNKNOWN:
            # Something was done while the answer came, or the key is doubted since.
            found = self.tree.settle(where, item, below, 0.0, asked=time.monotonic(), now=asked)
        elif found is None and item is None and not below:
            self.tree.missed(where, asked)
        return None if found is UNKNOWN else found

    async def _continuation(self, key: str) -> Node | None:
        """Return the directory in which long components that begin with *key* go on, None when there are none."""
        expires = self.tree.expiry()
        listing = self.tree.listing(key)
        token = ""
        while True:
            page = await self.store.list(key, token=token)
            if listing.take(clean(page, key)) or any(True for _ in self.tree.children(key)):
                return self.tree.install(key, None, expires, True)
            if not page.token or page.token == token:
                return None
            token = page.token

    async def current(self, node: Node) -> Node | None:
        """Ask whether *node* is still there; return it, or the newer version of its key, or None when there is nothing."""
        expires = self.tree.expiry()
        asked = time.monotonic()
        if node.is_dir:
            page = await self.store.list(node.key, max_keys=1)
            there = bool(page.objects or page.prefixes) or node is self.tree.root
            verdict = self.tree.overlay.judge(node.key, True, there, None, asked, asked)
            there = verdict == HERE or (verdict != GONE and there)
            return self.tree.install(node.key, None, expires, True, asked) if there else None
        page = await self.store.list(node.key, max_keys=1)
        item = next((item for item in page.objects if item.key == node.key and (item.size or item.key[-1] != "/")), None)
        verdict = self.tree.overlay.judge(node.key, False, item is not None, item, asked, asked)
        if verdict == HERE or (item is None and node.staged is not None):
            found = self.tree.at(node.key, False)
            if found is not None:
                found.expires = max(found.expires, expires)
            return found
        if item is None or verdict == GONE:
            return None
        return self.tree.install(node.key, item, expires, False, asked)

    async def empty(self, node: Node) -> bool:
        """Return whether nothing is in a directory but its own marker."""
        if any(True for _ in self.tree.children(node.key)):
            return False
        token = ""
        max_keys = 2
        while True:
            asked = time.monotonic()
            page = await self.store.list(node.key, token=token, max_keys=max_keys, delimiter="")
            if any(self._inside(node, item, asked) for item in page.objects):
                return False
            if not page.token or page.token == token:
                return True
            token = page.token
            max_keys = 1000

    def _inside(self, node: Node, item: Object, asked: float) -> bool:
        """Return whether a key that a listing shows below a directory makes something in it."""
        if not item.key.startswith(node.key) or (item.key == node.key and not item.size):
            return False
        is_dir = item.key.endswith("/") and not item.size
        return self.tree.overlay.judge(item.key, is_dir, True, None if is_dir else item, asked, asked) not in (GONE, ASK)

    def _run_of(self, prefix: str) -> _Run:
        now = time.monotonic()
        run = self._runs.get(prefix)
        if run is None or now - run.last > _PAUSE_S:
            for old in [old for old, other in self._runs.items() if now - other.last > _PAUSE_S]:
                del self._runs[old]
                self.tree.pages.pop(old, None)
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

    async def _neighbours(self, run: _Run, directory: str, key: str) -> None:
        """List the whole of *directory*, or when it is large a page that begins at *key*, to answer lookups from."""
        expires = self.tree.expiry()
        asked = time.monotonic()
        after = _before(key) if run.large else ""
        page = await self.store.list(directory, start_after=after)
        if page.token and not run.large:
            run.large = True
            after = _before(key)
            page = await self.store.list(directory, start_after=after)
        span = run.page = self.tree.pages[directory] = Span(after, clean(page, directory), asked, Life(expires))
        self.tree.remember(directory, span)


def _before(key: str) -> str:
    """Return a string that sorts before *key*, with little in between."""
    last = ord(key[-1])
    return key[:-1] + (chr(last - 1) + "~~~" if ord("!") < last < ord("~") else "")


__all__ = ["Finder"]

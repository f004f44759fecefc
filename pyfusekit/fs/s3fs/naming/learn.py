"""What the objects' metadata say, asked no more often than needed: modes, owners, times and xattrs.

A listing says nothing of them, so a version that was never seen costs a HEAD, once: the index keeps the answer. Who looks at
one file after the other in a directory ("ls -l") is noticed, and the HEADs of the next ones are sent ahead, many at a time.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from ..metadata.index import Index
from ..metadata.posix import NOTHING, Posix, blank, decode
from ..remote.store import Attributes, Head, Object, Store, same_version
from .tree import Node, Tree

DIRECTORY_TTL_S = 60.0
"""How long a directory's own mode and owner are believed: nothing in a listing tells of their change."""
_RUN = 3
"""So many files of a directory asked one after the other are somebody who looks at all of them."""
_AHEAD = 96
"""Files asked ahead of who looks at all of them, at first; while he goes on, twice as many each time."""
_MOST_AHEAD = 384
_AT_ONCE = 48
"""Of those so many are asked at a time: others have requests too, and a store that is flooded is no faster."""
_MOST_REMEMBERED = 20_000
_MOST_SENT = 1000


class Learner:
    """Knows, or asks for, the metadata of a mount's nodes; *flavour* is the option metadata."""

    def __init__(self, store: Store, tree: Tree, index: Index | None, flavour: str) -> None:
        self.store = store
        self.tree = tree
        self.index = index
        self.flavour = flavour
        self._asking: dict[int, asyncio.Task[Any]] = {}
        """By inode number: who asks meanwhile waits for the same answer."""
        self._waiting: dict[asyncio.Task[Any], int] = {}
        """How many wait for one of them."""
        self._seen: dict[str, tuple[Object, Posix | None]] = {}
        """What the index said of the entries of pages that were handed out; None: it does not know this version."""
        self._directories: dict[str, tuple[float, Posix]] = {}
        self._sent: dict[str, tuple[float, Head]] = {}
        """By key: what this mount wrote last, and until when it is believed."""
        self._run: tuple[str, int] = ("", 0)
        """Somebody looks at the files of this directory; so many one after the other."""
        self._mark = ""
        """When he comes here, the next ones are asked for. Empty: nobody was noticed."""
        self._asked_upto = ""
        self._window = _AHEAD
        self._queue: deque[Node] = deque()
        """Those to be asked ahead, in the order in which he will come to them."""

    async def page_seen(self, items: Sequence[Object]) -> None:
        """Look a page of a listing up in the index, before its entries are handed out."""
        if self.index is None:
            return
        entries = await self.index.page(items)
        while len(self._seen) > _MOST_REMEMBERED:
            del self._seen[next(iter(self._seen))]
        for item in items:
            entry = entries.get(item.key)
            posix = None if entry is None else decode(Head(item, entry.metadata, entry.headers), self.flavour)
            self._seen[item.key] = (item, posix)

    def recall(self, node: Node) -> Posix | None:
        """Return what is known of *node* without asking; it is then node.posix too."""
        if node.posix is None:
            if self.flavour == "none":
                node.posix = NOTHING
            elif node.is_dir:
                known = self._directories.get(node.key)
                if known is not None and known[0] > time.monotonic():
                    node.posix = known[1]
            elif node.item is not None:
                seen = self._seen.get(node.key)
                if seen is not None and seen[1] is not None and seen[0] == node.item:
                    node.posix = seen[1]
                    del self._seen[node.key]
        return node.posix

    def set_directory(self, key: str, posix: Posix) -> None:
        """Remember what this mount made of a directory."""
        self._directories[key] = (time.monotonic() + DIRECTORY_TTL_S, posix)

    async def learn(self, node: Node) -> Posix:
        """Return what *node*'s metadata say; ENOENT when it is gone, ESTALE when it is another version now."""
        known = self.recall(node)
        if known is not None:
            return known
        if not node.is_dir:
            self._notice(node)
        await self._answer(node)
        if node.posix is None:
            raise OSError(errno.ESTALE, f"{node.key!r} was replaced")
        return node.posix

    async def _answer(self, node: Node) -> None:
        """Wait for what is asked of *node*; the last one who gives up waiting ends the request."""
        task = self._ask(node)
        self._waiting[task] = self._waiting.get(task, 0) + 1
        try:
            await asyncio.shield(task)
        finally:
            self._waiting[task] -= 1
            if not self._waiting[task]:
                del self._waiting[task]
                task.cancel()

    def _ask(self, node: Node) -> asyncio.Task[Any]:
        task = self._asking.get(node.ino)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._directory(node) if node.is_dir else self._file(node))
            self._asking[node.ino] = task
            ino = node.ino

            def asked(done: asyncio.Task[Any]) -> None:
                self._asking.pop(ino, None)
                if not done.cancelled():
                    done.exception()
                if self._queue:
                    self._ask_more()

            task.add_done_callback(asked)
        return task

    async def _directory(self, node: Node) -> None:
        if not node.key:
            node.posix = NOTHING
            return
        key = node.key
        head = await self.there(key)
        if head is not None and node.item is None and node.key == key:
            node.item = head.item
        node.posix = decode(head or blank(key), self.flavour)
        self.set_directory(key, node.posix)

    async def there(self, key: str) -> Head | None:
        """Return what the store says of *key* now, all of it; None when there is nothing."""
        try:
            return await self.store.head(key)
        except OSError as exc:
            if exc.errno != errno.ENOENT:
                raise
        return None

    async def _file(self, node: Node) -> None:
        item = node.item
        if item is None:
            node.posix = NOTHING
            return
        looked = self._seen.pop(item.key, None)
        if looked is None or looked[0] != item:
            indexed = await self._indexed(item)
            if indexed is not None:
                node.posix = decode(indexed, self.flavour)
                return
        expires = self.tree.expiry()
        try:
            head = await self.ask(item.key)
        except OSError as exc:
            if exc.errno == errno.ENOENT:
                self.tree.expire(node)
            raise
        now = node.item
        if now is None or not same_version(now, item):
            return
        if same_version(item, head.item):
            node.posix = decode(head, self.flavour)
        elif node.staged is None:
            found = self.tree.install(node.key, head.item, expires, False)
            if found is node:
                node.posix = decode(head, self.flavour)

    async def ask(self, key: str) -> Head:
        """Return what the store says of a file's key now, and keep it; ENOENT."""
        asked_ns = time.time_ns()
        head = await self.store.head(key)
        if self.index is not None:
            self.index.put_head(head, asked_ns=asked_ns)
        return head

    async def _indexed(self, item: Object) -> Head | None:
        """Return what the index knows of exactly this version."""
        entry = (await self.index.page([item])).get(item.key) if self.index is not None else None
        return Head(item, entry.metadata, entry.headers) if entry is not None else None

    def sent(self, item: Object, attributes: Attributes) -> None:
        """Keep what was just written with *item*: who renames or changes it next need not ask. Believed as names are."""
        self._sent.pop(item.key, None)
        self._sent[item.key] = (self.tree.expiry(), Head(item, attributes.metadata, attributes.headers))
        if len(self._sent) > _MOST_SENT:
            del self._sent[next(iter(self._sent))]

    async def head(self, item: Object) -> Head:
        """Return all that describes *item*, from the index when it knows; ENOENT, ESTALE."""
        sent = self._sent.get(item.key)
        if sent is not None and sent[0] > time.monotonic() and sent[1].item == item:
            return sent[1]
        indexed = await self._indexed(item)
        if indexed is not None:
            return indexed
        head = await self.ask(item.key)
        if not same_version(item, head.item):
            raise OSError(errno.ESTALE, f"{item.key!r} was replaced")
        return head

    def passed(self, node: Node) -> None:
        """Note that somebody looked at *node*, of which nothing had to be asked: who looks on finds the next ones asked too."""
        if self._mark and node.key >= self._mark and not node.is_dir:
            self._notice(node)

    def _notice(self, node: Node) -> None:
        """Ask ahead when files of one directory are looked at one after the other."""
        prefix = self.tree.parent_key(node)
        count = self._run[1] + 1
        if self._run[0] != prefix:
            count = 1
            self._mark = self._asked_upto = ""
            self._window = _AHEAD
            self._queue.clear()
        self._run = (prefix, count)
        if count < _RUN or len(self._queue) > self._window // 2:
            return
        following = self.tree.following(prefix, max(node.key, self._asked_upto), self._window)
        for item in following:
            other = self.tree.at(item.key, False)
            if other is None:
                # Until the listing is no longer believed; the kernel comes for it before that, or not at all.
                other = self.tree.install(item.key, item, node.expires, False)
            if self.recall(other) is None:
                self._queue.append(other)
        self._mark = following[len(following) // 4].key if following else ""
        self._asked_upto = following[-1].key if following else ""
        if self._mark:
            self._window = min(_MOST_AHEAD, self._window * 2)
        self._ask_more()

    def _ask_more(self) -> None:
        """Ask for the next ones in the queue: whenever one is answered, so that the store is busy while he looks."""
        while self._queue and len(self._asking) < _AT_ONCE:
            node = self._queue.popleft()
            # Meanwhile he may have come for it, or somebody changed or removed it.
            if node.posix is None and node.ino not in self._asking and self.tree.at(node.key, False) is node:
                self._ask(node)

    async def close(self) -> None:
        """End what is being asked."""
        self._queue.clear()
        for task in list(self._asking.values()):
            task.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)


__all__ = ["DIRECTORY_TTL_S", "Learner"]

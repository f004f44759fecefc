"""One open directory: its listing, fetched page by page as the reader goes on, one page ahead."""

from __future__ import annotations

import asyncio
import errno
import stat
import time
from bisect import bisect_right
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator

from pyfusekit.core import Attr, DirEntry

from ..remote.store import Object, Page, Store
from .keys import MORE
from .listing import Life, Row, Span, clean
from .nodes import Node, ident
from .overlay import ASK, BELIEVE, GONE, GRACE_S
from .tree import Tree

_DOTS = 2
"""Cookies 1 and 2 follow "." and ".."; entry i of the listing is followed by cookie i + 3."""
_AHEAD = 8
"""The next page is asked for when an eighth of the last one is read: who only wants the first names does not pay for it."""

Entry = Callable[[Node, bytes], Attr | None]
"""Gives a node's Attr with what is left of its time to live; None when not all of it is known: the entry goes out without."""
PageSeen = Callable[[list[Object]], Awaitable[None]]
"""Awaited with the objects of a page before its names are handed out."""
TypeOf = Callable[[str, Object], int]
"""Gives the type (S_IFREG...) of a file that is listed without attributes; 0: not known."""


class _Batch:
    """The names of one page. When the reader is behind them only the names stay: a directory may have millions."""

    __slots__ = ("_kinds", "_names", "asked", "bare", "count", "first", "local", "rows", "span")

    def __init__(self, first: int, rows: list[Row], asked: float, span: Span | None, local: bool = False) -> None:
        self.first = first
        """Place of its first name in the directory."""
        self.count = len(rows)
        self.rows: list[Row] | None = rows
        self.asked = asked
        self.span = span
        self.local = local
        """What exists here only, instead of a page."""
        self.bare = False
        """Some entry went out without its node: its name will be looked up, and the page shall answer."""
        self._names = b""
        self._kinds = b""

    def shrink(self) -> None:
        """Keep the names only."""
        if self.rows is not None:
            self._names = b"/".join([row.name for row in self.rows])
            self._kinds = bytes([row.is_dir for row in self.rows])
            self.rows = None
            self.span = None

    def names(self) -> list[tuple[bytes, bool]]:
        """Return the names, and which are directories."""
        if self.rows is not None:
            return [(row.name, row.is_dir) for row in self.rows]
        return (
            [(name, bool(kind)) for name, kind in zip(self._names.split(b"/"), self._kinds, strict=True)] if self.count else []
        )


class _Pass:
    """One reading of a directory from its beginning. INVARIANT: batches only grow, and no name is in them twice."""

    def __init__(self, tree: Tree, directory: str) -> None:
        self.listing = tree.listing(directory)
        self.life = Life(0.0)
        self.batches: list[_Batch] = []
        self.firsts: list[int] = []
        self.count = 0
        self.token = ""
        self.after = ""
        """The last key before the page that comes next."""
        self.complete = False
        self.begun = time.monotonic()
        self.serial = tree.overlay.serial
        self.task: asyncio.Task[None] | None = None
        rows = [Row(tree.name_of(node), node.key, None, node.is_dir, node.beside) for node in tree.children(directory)]
        self.early_names = {row.name for row in rows}
        self.early_keys = {ident(row.key, row.is_dir) for row in rows}
        if rows:
            self.append(_Batch(0, rows, self.begun, None, local=True))

    def append(self, batch: _Batch) -> None:
        """Add a batch behind the others."""
        self.firsts.append(batch.first)
        self.batches.append(batch)
        self.count += batch.count

    def new(self, rows: list[Row]) -> list[Row]:
        """Return those of *rows* that have not been handed out."""
        if self.early_names:
            rows = [
                row for row in rows if row.name not in self.early_names and ident(row.key, row.is_dir) not in self.early_keys
            ]
        if self.listing.unsorted:
            seen = {name for batch in self.batches for name, _ in batch.names()}
            rows = [row for row in rows if row.name not in seen]
        return rows


class Walk:
    """The handle of an open directory.

    Names are handed out as their page comes in, each once; those that exist here only come first. The cookie of an entry is its
    place, and places only grow, so going back to any cookie finds the same names behind it.
    """

    def __init__(
        self,
        store: Store,
        tree: Tree,
        node: Node,
        entry: Entry,
        page_seen: PageSeen | None = None,
        type_of: TypeOf | None = None,
    ) -> None:
        self.store = store
        self.tree = tree
        self.node = node
        self._entry = entry
        self._page_seen = page_seen
        self._type_of = type_of
        self._pass: _Pass | None = None
        self._offered: Node | None = None
        """The node of the last entry, which may not have found room in the reply."""

    async def entries(self, offset: int, plus: bool) -> AsyncGenerator[DirEntry, None]:
        """Yield the entries behind the cookie *offset*, with attributes when *plus*."""
        self._drop_offered()
        now = self._pass
        if now is None or (offset == 0 and (now.count or now.complete) and self._is_old(now)):
            now = self._restart()
        if offset < 1:
            yield DirEntry(b".", self.node.ino, stat.S_IFDIR, 1)
        if offset < _DOTS:
            yield DirEntry(b"..", self._parent_ino(), stat.S_IFDIR, _DOTS)
        place = max(0, offset - _DOTS)
        while True:
            number = bisect_right(now.firsts, place) - 1
            if number < 0 or place >= now.batches[number].first + now.batches[number].count:
                if now.complete:
                    return
                await self._more(now)
                continue
            batch = now.batches[number]
            if number > 1:
                self._behind(now.batches[number - 2])
            last = number == len(now.batches) - 1 and not now.complete
            ahead = batch.first + batch.count // _AHEAD
            for entry in self._of_batch(now, batch, place - batch.first, plus):
                if last and entry.offset - _DOTS > ahead:
                    last = False
                    self._fetch_ahead(now)
                yield entry
            place = batch.first + batch.count

    def close(self) -> None:
        """End the walk and its requests."""
        self._drop_offered()
        if self._pass is not None:
            self._end(self._pass)

    def _restart(self) -> _Pass:
        """Begin again with a new listing, as rewinddir(3) promises; whoever still reads the old one has reached its end."""
        if self._pass is not None:
            self._end(self._pass)
        self._pass = _Pass(self.tree, self.node.key)
        return self._pass

    def _is_old(self, now: _Pass) -> bool:
        """Return whether a reading may lack what has happened since it began."""
        return now.serial != self.tree.overlay.serial or now.begun + self.tree.ttl <= time.monotonic()

    @staticmethod
    def _end(old: _Pass) -> None:
        old.complete = True
        if old.task is not None:
            old.task.cancel()

    def _drop_offered(self) -> None:
        if self._offered is not None:
            self.tree.release(self._offered)
            self._offered = None

    def _behind(self, batch: _Batch) -> None:
        """Give up what is kept of a batch that is read, except its names, and what nodes do not have."""
        if batch.span is not None and not batch.bare:
            self.tree.memory.lean(batch.span)
        batch.shrink()

    def _parent_ino(self) -> int:
        return self.tree.ino_of(self.tree.parent_key(self.node), True)

    # Entries.

    def _of_batch(self, now: _Pass, batch: _Batch, start: int, plus: bool) -> Iterator[DirEntry]:
        """Yield the entries of a batch from *start* on."""
        cookie = batch.first + start + _DOTS
        rows = batch.rows
        if rows is None:
            yield from self._of_names(batch.names()[start:], cookie)
            return
        if batch.local:
            yield from self._of_local(rows[start:], cookie, plus)
            return
        tree = self.tree
        expires = now.life.expires
        asked = batch.asked
        # After that, what was done here since the page was asked for may be forgotten.
        plus = plus and time.monotonic() < asked + tree.ttl + GRACE_S
        for name, key, item, is_dir, beside in rows[start:] if start else rows:
            cookie += 1
            opinion = tree.opinion(key, is_dir, item, asked) if tree.overlay else BELIEVE
            if opinion != BELIEVE:
                if opinion == GONE:
                    continue
                if opinion == ASK:
                    yield self._bare(name, key, item, is_dir, cookie)
                    continue
            if not plus:
                batch.bare = True
                yield self._bare(name, key, item, is_dir, cookie)
                continue
            if opinion == BELIEVE:
                node = tree.install(key, item, expires, is_dir, asked)
            else:
                node = tree.left_here(key, is_dir, expires)
            node.beside = beside
            entry = self._full(node, name, cookie)
            if entry.attr is None:
                batch.bare = True
            yield entry

    def _full(self, node: Node, name: bytes, cookie: int) -> DirEntry:
        """Return a readdirplus entry."""
        attr = self._entry(node, name)
        if attr is None:
            entry = self._bare(name, node.key, node.item, node.is_dir, cookie)
            self.tree.release(node)
            return entry
        self._offered = node
        return DirEntry(name, node.ino, stat.S_IFMT(attr.mode), cookie, attr)

    def _bare(self, name: bytes, key: str, item: Object | None, is_dir: bool, cookie: int) -> DirEntry:
        """Return an entry without attributes."""
        if is_dir:
            kind = stat.S_IFDIR
        elif item is None or self._type_of is None:
            kind = stat.S_IFREG
        else:
            kind = self._type_of(key, item)
        return DirEntry(name, self.tree.ino_of(key, is_dir), kind, cookie)

    def _of_local(self, rows: list[Row], cookie: int, plus: bool) -> Iterator[DirEntry]:
        """Yield what exists here, if it still does."""
        for name, key, _, is_dir, _ in rows:
            cookie += 1
            node = self.tree.at(key, is_dir)
            if node is None:
                if self.tree.opinion(key, is_dir, None, self.node.asked) == GONE:
                    continue
                yield self._bare(name, key, None, is_dir, cookie)
            elif plus:
                yield self._full(node, name, cookie)
            else:
                yield self._bare(name, key, node.item, is_dir, cookie)

    def _of_names(self, names: list[tuple[bytes, bool]], cookie: int) -> Iterator[DirEntry]:
        """Yield entries of a page whose objects were given up: somebody went back."""
        for name, is_dir in names:
            cookie += 1
            where = self.tree.meaning(self.node, name)
            if where is not None:
                key = f"{where.key}/" if is_dir and not self._continues(name) else where.key
                yield DirEntry(name, self.tree.ino_of(key, is_dir), stat.S_IFDIR if is_dir else 0, cookie)

    def _continues(self, name: bytes) -> bool:
        where = self.tree.meaning(self.node, name)
        return where is not None and where.kind == MORE

    # Pages.

    async def _more(self, now: _Pass) -> None:
        """Wait for the next page; whoever is interrupted leaves it to the others."""
        task = self._fetch_ahead(now)
        await asyncio.wait([task])
        if now.task is task:
            now.task = None
        if not task.cancelled():
            task.result()

    def _fetch_ahead(self, now: _Pass) -> asyncio.Task[None]:
        """Begin to get the next page, unless that is under way."""
        if now.task is None:
            now.task = asyncio.get_running_loop().create_task(self._fetch(now))
            now.task.add_done_callback(_retrieve)
        return now.task

    async def _fetch(self, now: _Pass) -> None:
        directory = self.node.key
        expires = self.tree.expiry()
        asked = time.monotonic()
        try:
            page = await self.store.list(directory, token=now.token)
        except OSError as exc:
            if exc.errno == errno.ENOENT:
                # The bucket is gone. libc takes ENOENT of getdents(2) for the end of the directory (glibc readdir64.c).
                raise OSError(errno.ESTALE, exc.strerror) from exc
            raise
        if page.token and page.token == now.token:
            raise OSError(errno.EIO, f"the store lists the same page of {directory!r} again and again")
        if self._page_seen is not None:
            await self._page_seen(page.objects)
        if not now.complete:
            self._take(now, page, asked, expires)

    def _take(self, now: _Pass, page: Page, asked: float, expires: float) -> None:
        """Add the names of a page."""
        page = clean(page, self.node.key)
        rows = now.listing.take(page)
        if now.early_keys:
            for row in rows:
                self.tree.shown(row.key if row.is_dir else f"{row.key}/", True, asked)
        rows = now.new(rows)
        span = Span(now.after, page, asked, now.life)
        now.life.expires = expires
        if not now.listing.unsorted:
            self.tree.remember(self.node.key, span)
            now.after = span.last
        now.token = page.token
        now.complete = not page.token
        if rows:
            now.append(_Batch(now.count, rows, asked, span))


def _retrieve(task: asyncio.Task[None]) -> None:
    """Take the exception of a page that nobody may come to ask for."""
    if not task.cancelled():
        task.exception()


__all__ = ["Entry", "PageSeen", "TypeOf", "Walk"]

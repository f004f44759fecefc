"""What a directory holds: names made of the store's pages, and pages remembered to answer lookups.

A directory is there while a key begins with its prefix, an object of that very name (a folder marker) included. Where an object
"a" stands beside keys "a/...", the directory has the plain name. keys.py says which keys need an escape.
"""

from __future__ import annotations

import errno
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from operator import lt
from typing import NamedTuple

from ..remote.store import Object, Page
from .keys import MARK, MORE, NAME_MAX, name_in, stem_of, unfit
from .packed import Packed

MAX_ROWS = 300_000
"""Rows of remembered pages, all directories together; the oldest go first. Packed rows, and those whose objects nodes have,
count a quarter: so the names of a directory of a million are all remembered, in some 110 MiB."""
LOOSE_ROWS = 60_000
"""So many before the oldest are packed."""
_LEAN = 4
_END = "\U0010ffff"
"""Behind every key."""
_UNESCAPED = frozenset((b"", b".", b".."))

Hide = Callable[[str, str], None]
"""Called with a key that is left out, and why."""


class Row(NamedTuple):
    """One name of a directory."""

    name: bytes
    key: str
    """As a node has it."""
    item: Object | None
    """None: a directory."""
    is_dir: bool
    beside: bool
    """A file whose plain name a directory has."""


class Listing:
    """Makes names of the pages of one directory, in their order."""

    def __init__(self, directory: str, mode: str, hide: Hide) -> None:
        self.directory = directory
        self._mode = mode
        self._hide = hide
        self._stem = stem_of(directory)
        self._base = directory[: len(directory) - len(self._stem)]
        self._last = ""
        self._held: list[Object] = []
        """Objects "a" for which a prefix "a/" may still come: keys sort "a" < "a-b" < "a/"."""
        self._more: set[bytes] = set()
        """Continuations that have been named."""
        self.unsorted = False
        """The store does not sort. INVARIANT: from then on everything is kept for the last page."""
        self._kept: list[Page] = []

    def take(self, page: Page) -> list[Row]:
        """Return the names that *page*, the one behind those taken before, settles; EIO for a bad key in mode "error".

        The page is one that clean() gave.
        """
        objects, prefixes, _ = page
        keys = [item.key for item in objects]
        first = min(keys[0] if keys else _END, prefixes[0] if prefixes else _END)
        self.unsorted |= first <= self._last or not _rising(keys) or not _rising(prefixes)
        if self.unsorted:
            self._kept.append(Page(self._held + objects, prefixes, ""))
            self._held = []
            if page.token:
                return []
            found = {item.key: item for kept in self._kept for item in kept.objects}
            keys = sorted(found)
            objects = [found[key] for key in keys]
            prefixes = sorted({prefix for kept in self._kept for prefix in kept.prefixes})
        last = max(keys[-1] if keys else "", prefixes[-1] if prefixes else "")
        self._last = max(last, self._last)
        return self._rows(objects, keys, prefixes, bool(page.token))

    def _rows(self, objects: list[Object], keys: list[str], prefixes: list[str], more: bool) -> list[Row]:
        """Return the rows of sorted objects and prefixes; hold back objects that are not settled when *more* is to come."""
        besides: set[str] = set()
        if prefixes and (keys or self._held):
            besides = {prefix[:-1] for prefix in prefixes}
            besides.intersection_update(keys + [item.key for item in self._held])
        held = self._held
        self._held = []
        if more:
            self._held = [item for item in held if item.key not in besides and f"{item.key}/" > self._last]
            # Only what the last key begins with can still meet its "/".
            loose = [
                item
                for item in objects
                if self._last.startswith(item.key) and f"{item.key}/" > self._last and item.key not in besides
            ]
            if loose:
                keep = {item.key for item in loose}
                objects = [item for item in objects if item.key not in keep]
            settled = [item for item in held if item not in self._held] + objects
            self._held += loose
        else:
            settled = held + objects
        return [*self._directories(prefixes), *self._files(settled, besides)]

    def _directories(self, prefixes: list[str]) -> Iterable[Row]:
        start = len(self.directory)
        names = None if self._stem else _plain([prefix[start:-1] for prefix in prefixes])
        if names is not None:
            return [Row(name, prefix, None, True, False) for name, prefix in zip(names, prefixes, strict=True)]
        return [row for prefix in prefixes if (row := self._row(prefix, None, False)) is not None]

    def _files(self, objects: list[Object], besides: set[str]) -> Iterable[Row]:
        start = len(self.directory)
        if not besides and not self._stem:
            if objects and objects[0].key == self.directory and not objects[0].size:
                objects = objects[1:]
            names = _plain([item.key[start:] for item in objects])
            if names is not None:
                return [Row(name, item.key, item, False, False) for name, item in zip(names, objects, strict=True)]
        return [row for item in objects if (row := self._row(item.key, item, item.key in besides)) is not None]

    def _row(self, key: str, item: Object | None, beside: bool) -> Row | None:
        """Return the row of a key, None when it has none here."""
        if item is not None and key == self.directory and (not item.size or self._stem):
            return None
        component = key[len(self._base) :] if item is not None else key[len(self._base) : -1]
        if self._mode != "escape":
            why = "there is a directory of that name" if beside else unfit(component)
            if why:
                self._refuse(key, why)
                return None
            return Row(component.encode(), key, item, item is None, False)
        try:
            found = name_in(self.directory, component, beside)
        except UnicodeEncodeError:
            self._refuse(key, "it is not UTF-8")
            return None
        if found is None:
            return None
        if found.kind != MORE:
            return Row(found.name, key, item, item is None, beside)
        if found.name in self._more:
            return None
        self._more.add(found.name)
        return Row(found.name, self._base + component[: found.end], None, True, False)

    def _refuse(self, key: str, why: str) -> None:
        self._hide(key, why)
        if self._mode == "error":
            raise OSError(errno.EIO, f"the key {key!r} is no path: {why}")


def _rising(keys: list[str]) -> bool:
    """Return whether *keys* are sorted, each once."""
    return all(map(lt, keys, islice(keys, 1, None)))


def clean(page: Page, directory: str) -> Page:
    """Return *page* without what is not in *directory*; what is deeper in, or the marker of a directory, is that directory."""
    objects, prefixes, token = page
    keys = [item.key for item in objects] + prefixes
    if directory not in prefixes and all([key.startswith(directory) for key in keys]):
        # None has fewer slashes than these, so if all together have as many, each has.
        slashes = len(keys) * directory.count("/") + len(prefixes)
        if "".join(keys).count("/") == slashes and all([prefix[-1] == "/" for prefix in prefixes]):
            return page
    start = len(directory)
    kept = [item for item in objects if item.key.startswith(directory) and "/" not in item.key[start:]]
    below = [key for key in keys if key.startswith(directory) and "/" in key[start:]]
    return Page(kept, sorted({key[: key.index("/", start) + 1] for key in below}), token)


def _plain(components: list[str]) -> list[bytes] | None:
    """Return components as names when all of them are names as they stand."""
    if not components:
        return []
    text = "/".join(components)
    if MARK in text or "\0" in text:
        return None
    try:
        names = text.encode().split(b"/")
    except UnicodeEncodeError:
        return None
    if len(names) != len(components) or max(map(len, names)) > NAME_MAX or not _UNESCAPED.isdisjoint(names):
        return None
    return names


class Life:
    """How long the pages of one walk are believed: it moves with each page, so that a directory that takes long to list can be
    looked at when it is listed."""

    __slots__ = ("expires",)

    def __init__(self, expires: float) -> None:
        self.expires = expires


class Span:
    """A remembered page: everything the store has in a directory behind one key and up to another."""

    __slots__ = ("after", "asked", "hits", "items", "keys", "last", "life", "prefixes", "weight")

    def __init__(self, after: str, page: Page, asked: float, life: Life) -> None:
        objects, self.prefixes, token = page
        self.after = after
        """Keys behind this one..."""
        self.keys = [item.key for item in objects]
        self.items: Sequence[Object] | None = objects
        """None: the nodes know."""
        last = max(self.keys[-1] if self.keys else "", self.prefixes[-1] if self.prefixes else "")
        self.last = last if token else _END
        """...up to this one."""
        self.asked = asked
        self.life = life
        self.hits = 0
        """Lookups it answered."""
        self.weight = 0
        """Rows, as MAX_ROWS counts; 0 while it is not remembered."""


class Said(NamedTuple):
    """What a remembered page says of a name."""

    item: Object | None
    """The object under the key."""
    below: bool
    """There are keys that begin with it and "/"."""
    span: Span


class Memory:
    """The remembered pages of all directories. INVARIANT: a directory's spans are in order and do not overlap."""

    def __init__(self) -> None:
        self._spans: dict[str, list[Span]] = {}
        """By directory key, the one that was written to last at the end."""
        self._total = 0
        self._loose: deque[Span] = deque()
        """Those that were not packed, the oldest first; some may have been forgotten since."""

    def add(self, directory: str, span: Span, now: float) -> None:
        """Remember *span*, a clean page, in place of what it overlaps; forget what is too old or too much."""
        if not _rising(span.keys) or not _rising(span.prefixes) or (span.keys and span.keys[0] <= span.after):
            return
        while self._spans:
            key, spans = next(iter(self._spans.items()))
            if any(other.life.expires > now for other in spans):
                break
            self._drop(self._spans.pop(key))
        spans = self._spans.pop(directory, [])
        first = max(0, bisect_left(spans, span.after, key=_after) - 1)
        if first < len(spans) and spans[first].last <= span.after:
            first += 1
        end = first
        while end < len(spans) and spans[end].after < span.last:
            end += 1
        self._drop(spans[first:end])
        spans[first:end] = [span]
        self._weigh(span, 1 + len(span.keys) + len(span.prefixes))
        self._spans[directory] = spans
        self._loose.append(span)
        while len(self._loose) > 1 and (self._total > LOOSE_ROWS or not self._loose[0].weight):
            self._pack(self._loose.popleft())
        while self._total > MAX_ROWS:
            key, spans = next(iter(self._spans.items()))
            oldest = min(spans, key=_asked)
            spans.remove(oldest)
            self._drop([oldest])
            if not spans:
                del self._spans[key]

    def add_empty(self, directory: str, now: float, ttl: float) -> None:
        """Remember that nothing is in *directory*."""
        self.add(directory, Span("", Page([], [], ""), now, Life(now + ttl)), now)

    def lean(self, span: Span) -> None:
        """Give up the objects of *span*, which nodes have."""
        span.items = None
        self._lighten(span)

    def _pack(self, span: Span) -> None:
        """Keep the objects of *span* in little memory, if they are still remembered."""
        if span.weight and span.items is not None:
            span.items = Packed(span.keys, span.items)
            self._lighten(span)

    def _lighten(self, span: Span) -> None:
        if span.weight:
            self._weigh(span, 1 + (len(span.keys) + len(span.prefixes)) // _LEAN)

    def behind(self, directory: str, key: str, count: int) -> list[tuple[str, Object | None]]:
        """Return up to *count* objects behind *key* in *directory*, in order: (key, None) for those that nodes have."""
        found: list[tuple[str, Object | None]] = []
        spans = self._spans.get(directory, [])
        for span in islice(spans, max(0, bisect_right(spans, key, key=_after) - 1), None):
            if len(found) == count:
                break
            if span.last > key:
                place = bisect_right(span.keys, key)
                keys = span.keys[place : place + count - len(found)]
                items: Sequence[Object | None] = (
                    span.items[place : place + len(keys)] if span.items is not None else [None] * len(keys)
                )
                found.extend(zip(keys, items, strict=True))
        return found

    def _weigh(self, span: Span, weight: int) -> None:
        self._total += weight - span.weight
        span.weight = weight

    def _drop(self, spans: Iterable[Span]) -> None:
        for span in spans:
            self._weigh(span, 0)

    def find(self, directory: str, key: str) -> Said | None:
        """Return what is remembered of *key* and key + "/", None when a part of that is not."""
        spans = self._spans.get(directory)
        if not spans:
            return None
        span = _covering(spans, key)
        prefix = f"{key}/"
        behind = span if span is not None and prefix <= span.last else _covering(spans, prefix)
        if span is None or behind is None:
            return None
        item = None
        place = bisect_left(span.keys, key)
        if place < len(span.keys) and span.keys[place] == key:
            if span.items is None:
                return None
            item = span.items[place]
        place = bisect_left(behind.prefixes, prefix)
        below = place < len(behind.prefixes) and behind.prefixes[place] == prefix
        return Said(item, below, behind if below else span)

    def forget(self, below: str) -> None:
        """Forget what is remembered of the directories whose keys begin with *below*."""
        for directory in [directory for directory in self._spans if directory.startswith(below)]:
            self._drop(self._spans.pop(directory))

    def forget_old(self, directory: str, asked: float) -> None:
        """Forget what was asked for before *asked* about a directory."""
        spans = self._spans.get(directory)
        if spans is not None:
            self._drop([span for span in spans if span.asked < asked])
            spans[:] = [span for span in spans if span.asked >= asked]
            if not spans:
                del self._spans[directory]

    def rows(self) -> int:
        """Return how many names are remembered."""
        return sum(len(span.keys) + len(span.prefixes) for spans in self._spans.values() for span in spans)


def _after(span: Span) -> str:
    return span.after


def _asked(span: Span) -> float:
    return span.asked


def _covering(spans: list[Span], key: str) -> Span | None:
    """Return the span in which *key* would be."""
    place = bisect_left(spans, key, key=_after) - 1
    return spans[place] if place >= 0 and key <= spans[place].last else None


__all__ = ["MAX_ROWS", "Life", "Listing", "Memory", "Row", "Said", "Span", "clean"]

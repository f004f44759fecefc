"""What a directory holds, gathered from the store's pages: names, and which keys make none.

Keys are flat; "/" in them makes directories. A directory is there while a key begins with its prefix, an object of that very
name (a folder marker) included. Where an object "a" stands beside keys "a/...", the name is the directory. Keys that make no
name are hidden, with a line in the log: an empty part ("a//b"), ".", "..", NUL, more than 255 bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from .store import Object, Page

NAME_MAX = 255
KEY_MAX = 1024
"""Bytes of the longest key S3 has."""


class Listed(NamedTuple):
    """One name of a listing."""

    name: bytes
    item: Object | None
    """None: a directory."""


@dataclass(slots=True)
class Listing:
    """What the directory *prefix* held when it was listed; grows page by page."""

    prefix: str
    hide: Callable[[str, str], None]
    """Called with a key that cannot be reached, and why."""
    entries: list[Listed] = field(default_factory=list)
    """INVARIANT: only grows, and no name is in it twice."""
    places: dict[bytes, int] = field(default_factory=dict)
    """Where in entries a name is."""
    complete: bool = False
    """Every page is in, from the first."""
    expires: float = 0.0
    """On the monotonic clock: until then all of it is believed. It moves with each page, so that a directory that takes long
    to list can be looked at when it is listed."""
    hits: int = 0
    """Lookups it answered."""
    _held: list[Object] = field(default_factory=list)
    """Objects "a" for which a prefix "a/" may still come: keys sort "a" < "a-b" < "a/"."""

    def take(self, page: Page, expires: float) -> None:
        """Add the names of *page*, the one behind those taken before; *page* is believed until *expires*."""
        self.expires = max(self.expires, expires)
        held = self._held
        for key, item in self._named(page):
            while held and key > f"{held[-1].key}/":
                self._add(held.pop())
            if item is not None:
                held.append(item)
                continue
            if held and f"{held[-1].key}/" == key:
                self.hide(held.pop().key, "there is a directory of that name")
            self._append(key[len(self.prefix) : -1].encode(), None)
        if not page.token:
            while held:
                self._add(held.pop())

    def _add(self, item: Object) -> None:
        self._append(item.key[len(self.prefix) :].encode(), item)

    def _append(self, name: bytes, item: Object | None) -> None:
        """Append a name, unless it is there: a store that does not sort can bring one twice."""
        if name not in self.places:
            self.places[name] = len(self.entries)
            self.entries.append(Listed(name, item))

    def _named(self, page: Page) -> Iterator[tuple[str, Object | None]]:
        """Yield (key, object), or (prefix, None) for a directory, of what has a name, in the order of the keys.

        A key ending in "/" is a directory wherever it stands; the marker of the directory itself is no entry.
        """
        rows: list[tuple[str, Object | None]] = [(item.key, None if item.key.endswith("/") else item) for item in page.objects]
        rows.extend((found, None) for found in page.prefixes)
        rows.sort(key=lambda row: row[0])
        for key, item in rows:
            if key == self.prefix or not key.startswith(self.prefix):
                continue
            why = unfit(key[len(self.prefix) :].removesuffix("/"))
            if why:
                self.hide(key, why)
            else:
                yield key, item


def unfit(name: str) -> str:
    """Return why *name*, a part of a key, cannot be a file's name, or ""."""
    if not name:
        return 'a part of it is empty ("//")'
    if name in (".", ".."):
        return f"{name!r} means something else in a path"
    if "\0" in name or "/" in name:
        return "it has a character no name can have"
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        return "it is not UTF-8"
    if length > NAME_MAX:
        return f"a part of it has more than {NAME_MAX} bytes"
    return ""


def text_of(name: bytes) -> str | None:
    """Return *name* as it stands in a key, or None when no key can hold it: keys are UTF-8."""
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return None
    return None if unfit(text) else text


__all__ = ["KEY_MAX", "NAME_MAX", "Listed", "Listing", "text_of", "unfit"]

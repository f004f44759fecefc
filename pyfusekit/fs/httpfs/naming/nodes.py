"""The names of one directory, small: a listing may have a hundred thousand of them, and the kernel asks for all.

A name is a row in parallel arrays, not an object. Its inode number says where it is: the directory's number, then the row's
place. So nothing else is needed to find it, and a number is never given to another file.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..values import Entry, Resource

PLACE_BITS = 24
MOST_ROWS = (1 << PLACE_BITS) - 1
"""Names of one directory, those that it had before included."""
NAME_MAX = 255

IS_DIR = 1
EXACT = 2
"""The size is known to the byte, or known to be unknowable (UNSIZED)."""
GONE = 4
"""No name leads here any more: removed, or another version has the name."""
UNSIZED = 8
"""The server does not tell a size: reads go past the page cache."""
PROBED = 16
"""Found by asking for the name alone; Extra.expires says how long that is believed."""
OWN_TIME = 32
"""The listing told the modification time: HEAD's does not replace it, so that it stays the same."""

NO_TIME = -(1 << 63)
RACY_NS = 120 * 10**9
"""Listings count times in minutes: a size that was asked for so soon after the listed time may belong to an older version."""


@dataclass(slots=True)
class Extra:
    """What is known of a file beyond its listing: only of those that somebody asked about."""

    resource: Resource | None = None
    checked: float = 0.0
    """On the monotonic clock: when the server was asked about it."""
    asked_ns: int = 0
    """The same on the wall's clock."""
    expires: float = 0.0
    """Of a PROBED row."""
    cached: str = ""
    """The version whose bytes the kernel may have in its page cache."""


class Walked:
    """One reading of a directory: its names in their order. INVARIANT: inos only grows, so a place stays a place."""

    __slots__ = ("changed", "complete", "failure", "inos")

    def __init__(self) -> None:
        self.inos = array("Q")
        self.complete = False
        self.failure: OSError | None = None
        """Why it ended before its end."""
        self.changed = asyncio.Event()
        """Set, and replaced by another, whenever there is more."""

    def more(self) -> None:
        """Tell who waits that names were added, or that there will be no more."""
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def end(self, failure: OSError | None = None) -> None:
        """No more names will come."""
        self.complete = True
        self.failure = failure
        self.more()


@dataclass(slots=True)
class Told:
    """What the last listing was, so that the next can be compared with it."""

    etag: str = ""
    modified: str = ""
    digest: bytes = b""
    pages: int = 0
    driver: str = ""
    headers: dict[str, str] = field(default_factory=dict)


class Load:
    """A reading that is under way."""

    __slots__ = ("begun", "task")

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.begun = asyncio.Event()
        """Set when names of it are there."""


class Directory:
    """A directory somebody has looked into, and the rows of its names."""

    __slots__ = (
        "dirs", "expires", "extras", "flags", "index", "ino", "is_listed", "loaded", "loading", "lookups", "marks", "misses",
        "mtimes", "names", "number", "opened", "parent", "path", "said", "serial", "sizes", "stamps", "streak", "told", "total",
        "url", "urls", "walked", "walks",
    )  # fmt: skip

    def __init__(self, number: int, ino: int, path: bytes, url: str, parent: Directory | None) -> None:
        self.number = number
        self.ino = ino
        self.path = path
        """Below the root, without a slash at either end."""
        self.url = url
        """What its names' URLs begin with; ends in a slash unless it is a listing of another kind."""
        self.parent = parent
        self.names: list[bytes] = []
        self.index: dict[bytes, int] = {}
        """Name -> inode number. INVARIANT: of one of the rows here."""
        self.sizes = array("q")
        self.mtimes = array("q")
        self.marks = array("q")
        """A hash of what the listing said of it."""
        self.flags = bytearray()
        self.lookups = array("I")
        self.stamps = array("I")
        """The reading that saw it last."""
        self.total = 0
        """INVARIANT: the sum of lookups."""
        self.urls: dict[int, str] = {}
        """By place: URLs that do not follow from the name."""
        self.said: dict[int, Entry] = {}
        """By place: entries with more than name, size and time."""
        self.extras: dict[int, Extra] = {}
        self.dirs = 0
        """Directories that were made of its rows."""
        self.serial = 0
        """The number of the reading that stamps."""
        self.walked: Walked | None = None
        """The last reading; the one that is under way, if one is."""
        self.loading: Load | None = None
        self.loaded = False
        """It was read to the end once."""
        self.is_listed = True
        """The server lists it; otherwise its names are found one by one."""
        self.expires = 0.0
        """On the monotonic clock: until then what is known of its names is believed."""
        self.misses: dict[bytes, float] = {}
        """Of one that is not listed: names that are not there, and until when that is believed."""
        self.told = Told()
        self.walks = 0
        """Open handles."""
        self.opened = (0.0, -1, 0)
        """When a file was opened last that had to be asked about, its place, and how many were one behind the other."""
        self.streak = (0.0, -1, 0)
        """When a size was asked for last, of which place, and how many were one after the other."""

    @property
    def fresh(self) -> bool:
        """Whether its names need not be asked for."""
        return self.loaded and time.monotonic() < self.expires

    def ino_at(self, place: int) -> int:
        """Return the inode number of a row."""
        return (self.number << PLACE_BITS) | (place + 1)

    def url_at(self, place: int) -> str:
        """Return the URL of a row."""
        known = self.urls.get(place)
        if known is not None:
            return known
        tail = self.names[place].decode("utf-8", "surrogateescape")
        return f"{self.url}{tail}/" if self.flags[place] & IS_DIR else self.url + tail

    def extra(self, place: int) -> Extra:
        """Return what is known of a row beyond its listing, made when nothing is."""
        found = self.extras.get(place)
        if found is None:
            found = self.extras[place] = Extra()
        return found

    def append(self, name: bytes, flags: int) -> int:
        """Add a row that no name leads to yet, and return its place."""
        self.names.append(name)
        self.sizes.append(0)
        self.mtimes.append(NO_TIME)
        self.marks.append(0)
        self.flags.append(flags)
        self.lookups.append(0)
        self.stamps.append(0)
        return len(self.names) - 1

    def extend(self, entries: Sequence[Entry], limit: int) -> bool:
        """Add a row for each of *entries*, many at a time; return False, with nothing done, unless all are new plain names."""
        start = len(self.names)
        try:
            names = [entry.name.encode() for entry in entries]
        except UnicodeEncodeError:
            return False
        joined = b"/".join(names)
        plain = joined.count(b"/") == len(names) - 1 and b"\0" not in joined and _NO_NAMES.isdisjoint(names)
        if not plain or max(map(len, names)) > NAME_MAX or start + len(names) > limit:
            return False
        numbers = dict(zip(names, range(self.ino_at(start), self.ino_at(start) + len(names)), strict=True))
        if len(numbers) != len(names) or not self.index.keys().isdisjoint(names):
            return False
        self.index.update(numbers)
        self.names += names
        zeros = bytes(4 * len(names))
        self.lookups.frombytes(zeros)
        self.stamps.extend([self.serial] * len(names))
        self.sizes.extend([0 if entry.size is None or entry.is_dir else entry.size for entry in entries])
        self.mtimes.extend([_time_of(entry) for entry in entries])
        self.marks.extend([mark_of(entry) for entry in entries])
        self.flags += bytes([_flags_of(entry) for entry in entries])
        base = self.url
        for place, entry in enumerate(entries, start):
            if entry.url != (f"{base}{entry.name}/" if entry.is_dir else base + entry.name):
                self.urls[place] = entry.url
            if entry.etag or entry.mirrors or entry.hashes or entry.content_type:
                self.said[place] = entry
        return True

    def fill(self, place: int, entry: Entry) -> None:
        """Let a row say what a listing's entry says."""
        self.sizes[place] = 0 if entry.size is None or entry.is_dir else entry.size
        self.mtimes[place] = _time_of(entry)
        self.flags[place] = (self.flags[place] & ~(EXACT | OWN_TIME | UNSIZED | IS_DIR)) | _flags_of(entry)
        self.marks[place] = mark_of(entry)
        plain = self.names[place].decode("utf-8", "surrogateescape")
        if entry.url == f"{self.url}{plain}/" if entry.is_dir else entry.url == self.url + plain:
            self.urls.pop(place, None)
        else:
            self.urls[place] = entry.url
        if entry.etag or entry.mirrors or entry.hashes or entry.content_type:
            self.said[place] = entry
        else:
            self.said.pop(place, None)

    def still_exact(self, place: int, entry: Entry) -> bool:
        """Return whether a size that HEAD told is still that of an entry which looks as it did then."""
        extra = self.extras.get(place)
        if extra is None or entry.mtime_ns is None:
            return False
        return extra.asked_ns - entry.mtime_ns > RACY_NS


_NO_NAMES = frozenset((b"", b".", b".."))


def _time_of(entry: Entry) -> int:
    moment = entry.mtime_ns
    return NO_TIME if moment is None or not -(1 << 62) < moment < 1 << 62 else moment


def _flags_of(entry: Entry) -> int:
    flags = IS_DIR | EXACT if entry.is_dir else EXACT if entry.exact and entry.size is not None else 0
    return flags if entry.mtime_ns is None else flags | OWN_TIME


def mark_of(entry: Entry) -> int:
    """Return a number that is another one when a listing says something else of a file."""
    return hash((entry.size, entry.mtime_ns, entry.etag, entry.exact, entry.hashes))


def name_of(entry: Entry) -> bytes | None:
    """Return an entry's name as the kernel has it, None when it can have none."""
    try:
        name = entry.name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return None
    if not name or len(name) > NAME_MAX or b"/" in name or b"\0" in name or name in (b".", b".."):
        return None
    return name


__all__ = [
    "EXACT",
    "GONE",
    "IS_DIR",
    "MOST_ROWS",
    "NAME_MAX",
    "NO_TIME",
    "OWN_TIME",
    "PLACE_BITS",
    "PROBED",
    "UNSIZED",
    "Directory",
    "Extra",
    "Load",
    "Told",
    "Walked",
    "mark_of",
    "name_of",
]

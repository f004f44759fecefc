"""What is known of the source: directories with their rows, and which of it the kernel knows.

A listing is merged into the rows that were there: what it says of a name as before stays as it is, what has changed while
somebody has it open becomes another inode, and what is not in it any more has no name. So an open file never becomes another
version.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterable, Iterator

from pyfusekit.core import ROOT_ID

from ..values import Entry, Resource
from .nodes import (
    EXACT,
    GONE,
    IS_DIR,
    MOST_ROWS,
    NO_TIME,
    OWN_TIME,
    PLACE_BITS,
    PROBED,
    UNSIZED,
    Directory,
    Extra,
    Walked,
    mark_of,
    name_of,
)

log = logging.getLogger("pyfusekit.httpfs")

_MASK = (1 << PLACE_BITS) - 1
KEPT_DIRECTORIES = 4096
"""Directories that are kept although the kernel knows nothing of them."""


class Tree:
    """All directories that somebody has looked into, by the inode number of their own row."""

    def __init__(self, url: str, is_open: Callable[[int], bool]) -> None:
        """*url*: of the root. *is_open* says whether somebody has the file of an inode number open."""
        self._is_open = is_open
        self._numbers: dict[int, Directory] = {}
        self._next = 1
        top = self._top = Directory(0, 0, b"", url, None)
        self._numbers[0] = top
        top.append(b"", IS_DIR | EXACT)
        top.lookups[0] = top.total = 1
        self.directories: dict[int, Directory] = {}
        self._most = KEPT_DIRECTORIES
        """How many there may be before those that nobody needs are dropped."""
        self.root = self._make(ROOT_ID, b"", url, top)
        self.skipped = 0
        """Entries that could have no name."""

    # Finding.

    def row(self, ino: int) -> tuple[Directory, int]:
        """Return where a number's row is; ESTALE."""
        directory = self._numbers.get(ino >> PLACE_BITS)
        place = (ino & _MASK) - 1
        if directory is None or not 0 <= place < len(directory.names):
            raise OSError(errno.ESTALE, f"inode {ino} is not known")
        return directory, place

    def directory(self, ino: int) -> Directory:
        """Return the directory of a number, made of its row when nobody has looked into it; ENOTDIR, ESTALE."""
        found = self.directories.get(ino)
        if found is not None:
            return found
        parent, place = self.row(ino)
        if not parent.flags[place] & IS_DIR:
            raise OSError(errno.ENOTDIR, f"{self.path(ino)!r} is a file")
        path = parent.names[place] if parent.number == self.root.number else b"%s/%s" % (parent.path, parent.names[place])
        parent.dirs += 1
        return self._make(ino, path, parent.url_at(place), parent)

    def _make(self, ino: int, path: bytes, url: str, parent: Directory) -> Directory:
        made = Directory(self._next, ino, path, url, parent)
        self._numbers[self._next] = made
        self._next += 1
        self.directories[ino] = made
        if len(self.directories) > self._most:
            self._trim()
        return made

    def path(self, ino: int) -> bytes:
        """Return the path of a number below the root."""
        directory, place = self.row(ino)
        if directory is self._top:
            return b""
        return b"%s/%s" % (directory.path, directory.names[place]) if directory.path else directory.names[place]

    def at(self, path: bytes) -> int:
        """Return the number that a path leads to by what is known, 0 when it leads nowhere."""
        ino = ROOT_ID
        for name in filter(None, path.split(b"/")):
            directory = self.directories.get(ino)
            found = directory.index.get(name) if directory is not None else None
            if found is None:
                return 0
            ino = found
        return ino

    def live(self, directory: Directory) -> Iterator[tuple[bytes, int]]:
        """Yield the names of a directory with their numbers."""
        yield from list(directory.index.items())

    # What a listing says.

    def begin(self, directory: Directory) -> Walked:
        """Begin to merge a new reading of a directory."""
        directory.serial += 1
        directory.walked = Walked()
        return directory.walked

    def merge(self, directory: Directory, entries: Iterable[Entry]) -> None:
        """Take a page of the reading that has begun."""
        walked = directory.walked
        assert walked is not None
        if not isinstance(entries, list):
            entries = list(entries)
        if directory.extend(entries, MOST_ROWS):
            walked.inos.extend(
                range(directory.ino_at(len(directory.names) - len(entries)), directory.ino_at(len(directory.names)))
            )
            walked.more()
            return
        serial, stamps, index, add = directory.serial, directory.stamps, directory.index, walked.inos.append
        base = (directory.number << PLACE_BITS) | 1
        for entry in entries:
            name = name_of(entry)
            if name is None:
                self._skip(directory, entry)
                continue
            ino = index.get(name)
            if ino is None:
                place = self._new(directory, name, entry)
            else:
                place = ino - base
                if stamps[place] == serial:
                    continue
                place = self._again(directory, place, entry)
            if place >= 0:
                stamps[place] = serial
                add(base + place)
        walked.more()

    def _skip(self, directory: Directory, entry: Entry) -> None:
        self.skipped += 1
        if self.skipped <= 100:
            log.warning("%s: %.300r is not shown: a file cannot have that name", directory.url, entry.name)

    def _new(self, directory: Directory, name: bytes, entry: Entry) -> int:
        """Add a row for a name; return its place, -1 when there is no room."""
        if len(directory.names) >= MOST_ROWS:
            return -1
        place = directory.append(name, IS_DIR if entry.is_dir else 0)
        directory.fill(place, entry)
        directory.index[name] = directory.ino_at(place)
        return place

    def _again(self, directory: Directory, place: int, entry: Entry) -> int:
        """Compare a row with what a listing says of it now; return the place that has the name then."""
        flags = directory.flags[place]
        same = directory.marks[place] == mark_of(entry)
        if bool(flags & IS_DIR) != entry.is_dir:
            if not (entry.is_dir or not flags & EXACT or directory.marks[place] != mark_of(entry)):
                # HEAD has shown that what is listed as a file is a directory.
                return place
            return self._replace(directory, place, entry)
        if flags & IS_DIR:
            directory.fill(place, entry)
            return place
        if same and flags & EXACT and (entry.exact or directory.still_exact(place, entry)):
            return place
        if same and not flags & EXACT:
            return place
        if self._is_open(directory.ino_at(place)):
            return place if same else self._replace(directory, place, entry)
        directory.fill(place, entry)
        extra = directory.extras.get(place)
        if extra is not None:
            extra.resource = None
            extra.checked = 0.0
        return place

    def _replace(self, directory: Directory, place: int, entry: Entry) -> int:
        """Give a name to another inode."""
        directory.flags[place] |= GONE
        return self._new(directory, directory.names[place], entry)

    def finish(self, directory: Directory, expires: float) -> None:
        """End a reading: names that were not in it are gone."""
        serial, flags, stamps = directory.serial, directory.flags, directory.stamps
        if directory.loaded:
            first = directory.ino_at(0)
            for name, ino in list(directory.index.items()):
                if stamps[ino - first] == serial:
                    flags[ino - first] &= ~PROBED
                else:
                    self._lose(directory, name, ino)
        directory.expires = expires
        directory.loaded = directory.is_listed = True
        directory.misses.clear()
        if directory.walked is not None:
            directory.walked.end()

    def _lose(self, directory: Directory, name: bytes, ino: int) -> None:
        del directory.index[name]
        home, place = self.row(ino)
        home.flags[place] |= GONE

    # What is learnt of single names.

    def learn(self, directory: Directory, place: int, resource: Resource, asked: float) -> int:
        """Take what the server says of one file, asked at *asked* on the monotonic clock; return the place that has the name.

        That is another one when what the kernel knows as one version has become another.
        """
        extra = directory.extra(place)
        before = extra.resource
        size = 0 if resource.size is None else resource.size
        flags = directory.flags[place]
        known = flags & EXACT and not flags & UNSIZED
        changed = bool(known and resource.size is not None and directory.sizes[place] != size)
        changed |= before is not None and before.validator.changed(resource.validator)
        if changed and (directory.lookups[place] or self._is_open(directory.ino_at(place))) and not flags & GONE:
            place = self._succeed(directory, place)
            extra = directory.extra(place)
            flags = directory.flags[place]
        if changed:
            flags &= ~OWN_TIME
        flags &= ~UNSIZED
        if resource.size is None and not (known and not changed):
            flags |= UNSIZED
        if resource.size is not None or not known or changed:
            directory.sizes[place] = size
        if resource.mtime_ns is not None and not flags & OWN_TIME:
            directory.mtimes[place] = resource.mtime_ns
        directory.flags[place] = flags | EXACT
        extra.resource = resource
        extra.checked = asked
        extra.asked_ns = time.time_ns()
        return place

    def _succeed(self, directory: Directory, place: int) -> int:
        """Make a row for the next version of a name, and return its place."""
        directory.flags[place] |= GONE
        new = directory.append(directory.names[place], directory.flags[place] & ~GONE)
        directory.mtimes[new] = directory.mtimes[place]
        directory.marks[new] = directory.marks[place]
        directory.stamps[new] = directory.stamps[place]
        if place in directory.urls:
            directory.urls[new] = directory.urls[place]
        if place in directory.said:
            directory.said[new] = directory.said[place]
        extra = directory.extras.get(place)
        if extra is not None:
            directory.extras[new] = Extra(expires=extra.expires)
        ino = directory.ino_at(new)
        directory.index[directory.names[new]] = ino
        if directory.walked is not None:
            directory.walked.inos.append(ino)
        return new

    def is_directory_after_all(self, directory: Directory, place: int, url: str) -> int:
        """Note that what was listed as a file is a directory, whose names are below *url*; return the place it has."""
        if directory.lookups[place] or self._is_open(directory.ino_at(place)):
            # The kernel knows it as a file: no inode changes its type.
            place = self._succeed(directory, place)
        directory.flags[place] = (directory.flags[place] | IS_DIR | EXACT) & ~UNSIZED
        directory.sizes[place] = 0
        directory.urls[place] = url
        directory.extras.pop(place, None)
        return place

    def expire(self, directory: Directory, place: int) -> None:
        """Believe nothing of one file that is not asked for again: it has turned out to be another version."""
        extra = directory.extra(place)
        extra.resource = None
        extra.checked = extra.expires = 0.0
        if not directory.flags[place] & GONE:
            new = self._succeed(directory, place)
            directory.flags[new] &= ~(EXACT | OWN_TIME)

    # What is done here (see writing.py), and single names of directories that are not listed.

    def put(self, directory: Directory, entry: Entry, *, expires: float | None = None) -> int:
        """Let a name be what *entry* says, as if it had just been listed; return its number.

        *expires* is given for a name that was found alone, in a directory that is not listed.
        """
        name = name_of(entry)
        if name is None:
            raise OSError(errno.EINVAL, f"{entry.name!r} cannot be a name")
        directory.misses.pop(name, None)
        ino = directory.index.get(name)
        if ino is None:
            place = self._new(directory, name, entry)
            if place < 0:
                raise OSError(errno.ENOSPC, f"{directory.path!r} has too many names")
            if directory.walked is not None:
                directory.walked.inos.append(directory.ino_at(place))
        else:
            place = self._again(directory, (ino & _MASK) - 1, entry)
        directory.stamps[place] = directory.serial
        if expires is not None:
            directory.flags[place] |= PROBED
            directory.extra(place).expires = expires
        return directory.ino_at(place)

    def remove(self, directory: Directory, name: bytes) -> None:
        """Let a name lead nowhere; who has the file open keeps it."""
        ino = directory.index.get(name)
        if ino is not None:
            self._lose(directory, name, ino)

    def move(self, directory: Directory, name: bytes, target: Directory, new: bytes, url: str) -> int:
        """Give what *name* is to *new* in *target*, where it is at *url*, over what was there; return its number.

        A directory that is moved is forgotten below: its names' URLs are others now.
        """
        ino = directory.index[name]
        home, place = self.row(ino)
        if target.index.get(new) not in (None, ino):
            self._lose(target, new, target.index[new])
        del directory.index[name]
        moved = self.directories.get(ino)
        if moved is not None:
            self._drop(moved)
        if home is target:
            # The number can stay: it is one of the directory's own.
            home.names[place] = new
            home.urls[place] = url
            home.extras.pop(place, None)
            home.said.pop(place, None)
            target.index[new] = ino
        else:
            home.flags[place] |= GONE
            copy = target.append(new, home.flags[place] & ~GONE)
            target.sizes[copy], target.mtimes[copy] = home.sizes[place], home.mtimes[place]
            target.stamps[copy] = target.serial
            target.urls[copy] = url
            ino = target.index[new] = target.ino_at(copy)
        if target.walked is not None:
            target.walked.inos.append(ino)
        return ino

    # What the kernel knows.

    def entered(self, ino: int) -> None:
        """Count a lookup."""
        directory = self._numbers[ino >> PLACE_BITS]
        directory.lookups[(ino & _MASK) - 1] += 1
        directory.total += 1

    def forgot(self, ino: int, nlookup: int) -> None:
        """Take lookups back."""
        directory = self._numbers.get(ino >> PLACE_BITS)
        place = (ino & _MASK) - 1
        if directory is None or not 0 <= place < len(directory.names):
            return
        count = min(nlookup, directory.lookups[place])
        directory.lookups[place] -= count
        directory.total -= count
        if not directory.lookups[place]:
            extra = directory.extras.get(place)
            if extra is not None:
                extra.cached = ""

    def _trim(self) -> None:
        """Drop directories of which the kernel knows nothing, the oldest first, until half as many are kept."""
        for directory in list(self.directories.values())[: -KEPT_DIRECTORIES // 2]:
            if self._idle(directory):
                self._drop(directory)
        # All that the kernel knows stay: then it is not worth looking again soon.
        self._most = max(KEPT_DIRECTORIES, 2 * len(self.directories))

    def _idle(self, directory: Directory) -> bool:
        parent = directory.parent
        busy = directory.total or directory.walks or directory.dirs or directory.loading is not None
        if busy or parent is None or parent.lookups[(directory.ino & _MASK) - 1]:
            return False
        return not any(map(self._is_open, map(directory.ino_at, directory.extras)))

    def _drop(self, directory: Directory) -> None:
        """Forget a directory and what is below it; the kernel's numbers of them are stale from now on."""
        for other in [other for other in self.directories.values() if other.parent is directory]:
            self._drop(other)
        if self.directories.pop(directory.ino, None) is not None:
            self._numbers.pop(directory.number, None)
            if directory.parent is not None:
                directory.parent.dirs -= 1

    def forget(self, path: bytes) -> list[int]:
        """Believe nothing of *path* and all below it that was not asked for again; return the numbers the kernel may know."""
        found: list[int] = []
        ino = self.at(path)
        if not ino:
            return found
        home, place = self.row(ino)
        extra = home.extras.get(place)
        if extra is not None:
            extra.checked = extra.expires = 0.0
        if home is not self._top:
            home.expires = 0.0
        found.append(ino)
        inside = b"%s/" % path if path else b""
        for directory in list(self.directories.values()):
            if directory.ino == ino or not path or directory.path.startswith(inside):
                directory.expires = 0.0
                directory.misses.clear()
                for other in directory.extras.values():
                    other.checked = other.expires = 0.0
                found += [number for number in directory.index.values() if number != ino]
        return found

    def counts(self) -> dict[str, int]:
        """Return how much is known."""
        return {"directories": len(self.directories), "names": sum(len(d.index) for d in self.directories.values())}

    def known_bytes(self) -> int:
        """Return the sum of the sizes that are known."""
        return sum(sum(directory.sizes) for directory in self.directories.values())

    def time_of(self, directory: Directory) -> int | None:
        """Return when a directory was changed, as its parent's listing says."""
        if directory.parent is None:
            return None
        moment = directory.parent.mtimes[(directory.ino & _MASK) - 1]
        return None if moment == NO_TIME else moment


__all__ = ["KEPT_DIRECTORIES", "Tree"]

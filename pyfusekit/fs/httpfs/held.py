"""What is known here and not on the server: files that are being written, and times that it does not keep."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from .moved import MovableTree
from .naming.nodes import GONE, OWN_TIME, Directory, Walked, name_of
from .values import Entry, Resource
from .webdav.staged import Staged

MOST_TIMES = 1 << 17
"""Times that are remembered; of more files, those of the oldest are the server's again."""
_MINUTE_NS = 61 * 10**9


class Local:
    """What is done here to one file, while it is open to be written, or until nobody has it open any more."""

    __slots__ = ("base", "gone", "ino", "lock", "overtaken", "staged", "url", "writers")

    def __init__(self, ino: int, url: str, base: Resource | None) -> None:
        self.ino = ino
        self.url = url
        self.base = base
        """The version the open saw; None: the file is new."""
        self.staged: Staged | None = None
        """From the first change on everybody reads this."""
        self.writers = 0
        self.gone = False
        """Its name was removed here: nothing is published any more."""
        self.overtaken = False
        """Somebody replaced it on the server as soon as it was there: who opens the name next gets that."""
        self.lock = asyncio.Lock()
        """Only one begins a staging file."""

    @property
    def unpublished(self) -> bool:
        """Whether it is something that the server lacks."""
        return self.staged is not None and self.staged.dirty and not self.gone


class Time(NamedTuple):
    """A modification time that was set here, of one version of a file."""

    mtime_ns: int
    size: int
    """-1: of a directory."""
    etag: str
    """As far as the server tells it."""
    server_ns: int | None
    """What the server says instead."""


class Times:
    """Modification times that the server does not keep, or only to the second, by path: they last as long as the mount."""

    def __init__(self) -> None:
        self._times: OrderedDict[bytes, Time] = OrderedDict()

    def __len__(self) -> int:
        return len(self._times)

    def set(self, path: bytes, time: Time) -> None:
        """Remember a time."""
        self._times[path] = time
        self._times.move_to_end(path)
        if len(self._times) > MOST_TIMES:
            self._times.popitem(last=False)

    def of(self, path: bytes, entry: Entry) -> int | None:
        """Return the time that was set of what a listing shows at *path*; None when that is another version."""
        found = self._times.get(path)
        if found is None:
            return None
        if entry.is_dir:
            return found.mtime_ns if found.size < 0 else None
        etag = entry.etag.removeprefix("W/")
        same = not (etag and found.etag) or etag == found.etag.removeprefix("W/")
        if entry.exact and entry.size is not None:
            same = same and entry.size == found.size
        if not etag and entry.mtime_ns is not None and found.server_ns is not None:
            # Listings may count in minutes.
            same = same and abs(entry.mtime_ns - found.server_ns) < _MINUTE_NS
        if not same:
            del self._times[path]
        return found.mtime_ns if same else None

    def forget(self, path: bytes) -> None:
        """Forget what was removed, or replaced."""
        self._times.pop(path, None)

    def move(self, path: bytes, new: bytes) -> None:
        """Let what was set of *path* and all below it be of *new*."""
        self.forget(new)
        inside = path + b"/"
        for one in [one for one in self._times if one == path or one.startswith(inside)]:
            self._times[new + one[len(path) :]] = self._times.pop(one)


class WritableTree(MovableTree):
    """A tree whose listings do not undo what is done here."""

    def __init__(self, url: str, is_open: Callable[[int], bool], held: dict[int, Local], times: Times) -> None:
        super().__init__(url, is_open)
        self._held = held
        self._times = times
        self._removed: dict[int, set[bytes]] = {}
        """By a directory's number: names that were removed since its reading began; the reading may still bring them."""

    def begin(self, directory: Directory) -> Walked:
        """Begin a reading; what is being written is in it, whatever the server lists."""
        walked = super().begin(directory)
        self._removed.pop(directory.number, None)
        for ino in filter(self.is_held, self._held):
            home, place = self.row(ino)
            if home.flags[place] & GONE or self.home(home, place) is not directory:
                continue
            if home is directory:
                directory.stamps[place] = directory.serial
            else:
                self._seen.add(ino)
            walked.inos.append(ino)
        return walked

    def merge(self, directory: Directory, entries: Iterable[Entry]) -> None:
        """Take a page, without what was removed here since it was asked for, and with the times that were set here."""
        removed = self._removed.get(directory.number)
        if removed:
            entries = [one for one in entries if name_of(one) not in removed]
        if len(self._times):
            entries = list(entries)
        super().merge(directory, entries)
        if len(self._times):
            for entry in entries:
                self._timed(directory, entry)

    def is_held(self, ino: int) -> bool:
        """Return whether a file is what is written here, whatever the server says."""
        local = self._held.get(ino)
        return local is not None and local.staged is not None and not local.gone

    def learn(self, directory: Directory, place: int, resource: Resource, asked: float) -> int:
        """Take what the server says of one file, unless it is being written here."""
        return place if self.is_held(directory.ino_at(place)) else super().learn(directory, place, resource, asked)

    def remove(self, directory: Directory, name: bytes) -> None:
        """Let a name lead nowhere, unless what it leads to is being written here: then the server has nothing of it yet."""
        if self.is_held(directory.index.get(name, 0)):
            return
        super().remove(directory, name)
        if directory.loading is not None:
            self._removed.setdefault(directory.number, set()).add(name)

    def put(self, directory: Directory, entry: Entry, *, expires: float | None = None) -> int:
        """Let a name be what *entry* says."""
        self._removed.get(directory.number, set()).discard(name_of(entry) or b"")
        return super().put(directory, entry, expires=expires)

    def move(self, directory: Directory, name: bytes, target: Directory, new: bytes, url: str) -> int:
        """Give what *name* is to *new* in *target*."""
        ino = super().move(directory, name, target, new, url)
        self._removed.get(target.number, set()).discard(new)
        if directory.loading is not None:
            self._removed.setdefault(directory.number, set()).add(name)
        return ino

    def stamp(self, directory: Directory, place: int, mtime_ns: int) -> None:
        """Let a row have a time that no answer of the server replaces."""
        directory.mtimes[place] = mtime_ns
        directory.flags[place] |= OWN_TIME

    def _again(self, directory: Directory, place: int, entry: Entry) -> int:
        if self.is_held(directory.ino_at(place)):
            return place
        return super()._again(directory, place, entry)

    def _stays(self, directory: Directory, ino: int, entry: Entry) -> bool:
        if self.is_held(ino):
            # begin() has put it into the reading.
            self._seen.add(ino)
            return True
        return super()._stays(directory, ino, entry)

    def _timed(self, directory: Directory, entry: Entry) -> None:
        """Let a name have the time that was set of it here."""
        name = name_of(entry)
        ino = directory.index.get(name) if name is not None else None
        if ino is None:
            return
        home, place = self.row(ino)
        mtime_ns = self._times.of(self.path_at(home, place), entry)
        if mtime_ns is not None:
            self.stamp(home, place, mtime_ns)


__all__ = ["Local", "Time", "Times", "WritableTree"]

"""A tree whose files keep their inode numbers when they are renamed: who has one open, or stands in it, does not notice.

A row stays where it was made, for its number says where that is. So a directory's index may hold numbers of rows that lie
elsewhere: of what was moved into it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .naming.nodes import IS_DIR, PLACE_BITS, Directory, Told, Walked, mark_of, name_of
from .naming.tree import Tree
from .values import Entry


class MovableTree(Tree):
    """Tree, with renames that keep numbers.

    INVARIANT: a number is in _moved if and only if its row lies in another directory than its name, which it maps to.
    """

    def __init__(self, url: str, is_open: Callable[[int], bool]) -> None:
        self._moved: dict[int, Directory] = {}
        self._seen: set[int] = set()
        """Of those, the ones that a reading under way, or the last one, has brought."""
        super().__init__(url, is_open)

    def home(self, directory: Directory, place: int) -> Directory:
        """Return the directory in which a row's name is."""
        return self._moved.get(directory.ino_at(place), directory) if self._moved else directory

    def path_at(self, directory: Directory, place: int) -> bytes:
        """Return the path of a row below the root."""
        where = self.home(directory, place)
        return b"%s/%s" % (where.path, directory.names[place]) if where.path else directory.names[place]

    def path(self, ino: int) -> bytes:
        """Return the path of a number below the root."""
        return self.path_at(*self.row(ino)) if ino in self._moved else super().path(ino)

    def directory(self, ino: int) -> Directory:
        """Return the directory of a number, made of its row when nobody has looked into it."""
        known = ino in self.directories
        found = super().directory(ino)
        if not known and ino in self._moved:
            found.path = self.path(ino)
        return found

    # Listings.

    def merge(self, directory: Directory, entries: Iterable[Entry]) -> None:
        """Take a page; what was moved here keeps its row."""
        if self._moved and any(where is directory for where in self._moved.values()):
            entries = [entry for entry in entries if not self._brought(directory, entry)]
        super().merge(directory, entries)

    def _brought(self, directory: Directory, entry: Entry) -> bool:
        """Return whether an entry is of something that was moved here, and stays what it is."""
        name = name_of(entry)
        ino = directory.index.get(name) if name is not None else None
        if name is None or ino is None or ino not in self._moved:
            return False
        if ino in self._seen or self._stays(directory, ino, entry):
            return True
        self._lose(directory, name, ino)
        return False

    def begin(self, directory: Directory) -> Walked:
        """Begin to merge a new reading."""
        self._seen.difference_update([ino for ino, where in self._moved.items() if where is directory])
        return super().begin(directory)

    def finish(self, directory: Directory, expires: float) -> None:
        """End a reading: what was moved here and is not listed any more is gone."""
        moved = {name: ino for name, ino in directory.index.items() if ino in self._moved} if self._moved else {}
        for name, ino in moved.items():
            if ino not in self._seen:
                self._lose(directory, name, ino)
            else:
                del directory.index[name]
        super().finish(directory, expires)
        directory.index.update((name, ino) for name, ino in moved.items() if ino in self._seen)

    def put(self, directory: Directory, entry: Entry, *, expires: float | None = None) -> int:
        """Let a name be what *entry* says, as if it had just been listed; return its number."""
        name = name_of(entry)
        ino = directory.index.get(name) if name is not None else None
        if name is not None and ino is not None and ino in self._moved:
            self._lose(directory, name, ino)
        return super().put(directory, entry, expires=expires)

    def _stays(self, directory: Directory, ino: int, entry: Entry) -> bool:
        """Take what a listing says of something that was moved here; False: it gets a row of its own."""
        home, place = self.row(ino)
        used = home.lookups[place] or self._is_open(ino)
        same = home.marks[place] == mark_of(entry)
        if not used or bool(home.flags[place] & IS_DIR) != entry.is_dir or (self._is_open(ino) and not same):
            return False
        if not same or entry.is_dir:
            home.fill(place, entry)
            extra = home.extras.get(place)
            if extra is not None:
                extra.resource, extra.checked = None, 0.0
        self._seen.add(ino)
        if directory.walked is not None:
            directory.walked.inos.append(ino)
        return True

    def _lose(self, directory: Directory, name: bytes, ino: int) -> None:
        super()._lose(directory, name, ino)
        self._moved.pop(ino, None)
        self._seen.discard(ino)

    def _succeed(self, directory: Directory, place: int) -> int:
        """Make a row for the next version of a name, and return its place."""
        before = directory.ino_at(place)
        where = self._moved.pop(before, None)
        if where is None:
            return super()._succeed(directory, place)
        name = directory.names[place]
        own = directory.index.get(name)
        new = super()._succeed(directory, place)
        if own is None:
            del directory.index[name]
        else:
            directory.index[name] = own
        if directory.walked is not None:
            directory.walked.inos.pop()
        ino = directory.ino_at(new)
        where.index[name] = ino
        self._moved[ino] = where
        if where.walked is not None:
            where.walked.inos.append(ino)
        return new

    # Renames.

    def move(self, directory: Directory, name: bytes, target: Directory, new: bytes, url: str) -> int:
        """Give what *name* is to *new* in *target*, where it is at *url*, over what was there; return its number."""
        ino = directory.index[name]
        home, place = self.row(ino)
        path, before = self.path(ino), home.url_at(place)
        there = target.index.get(new)
        if there is not None and there != ino:
            self._lose(target, new, there)
        del directory.index[name]
        home.names[place] = new
        home.urls[place] = url
        home.said.pop(place, None)
        home.extras.pop(place, None)
        target.index[new] = ino
        self._seen.discard(ino)
        if home is target:
            self._moved.pop(ino, None)
            home.stamps[place] = home.serial
        else:
            # A reading that is under way may have been asked for before.
            self._moved[ino] = target
            self._seen.add(ino)
        if target is not directory and target.walked is not None and ino not in target.walked.inos:
            target.walked.inos.append(ino)
        if home.flags[place] & IS_DIR:
            self._rebase(ino, path, self.path(ino), before, url)
        return ino

    def _rebase(self, ino: int, path: bytes, new: bytes, before: str, url: str) -> None:
        """Let a directory that was moved, and all below it, be where they are now."""
        inside = path + b"/"
        for one in self.directories.values():
            if one.ino != ino and not one.path.startswith(inside):
                continue
            one.path = new + one.path[len(path) :]
            one.url = url + one.url[len(before) :] if one.url.startswith(before) else one.url
            for place, there in one.urls.items():
                if there.startswith(before):
                    one.urls[place] = url + there[len(before) :]
            one.said.clear()
            one.told = Told()
            for extra in one.extras.values():
                extra.resource, extra.checked = None, 0.0

    def _drop(self, directory: Directory) -> None:
        """Forget a directory; what was moved out of it, and nobody uses, is listed anew where it is."""
        super()._drop(directory)
        for ino, where in list(self._moved.items()):
            if where is directory:
                del self._moved[ino]
            elif ino >> PLACE_BITS == directory.number:
                del self._moved[ino]
                for name, number in list(where.index.items()):
                    if number == ino:
                        del where.index[name]
                where.expires = 0.0


__all__ = ["MovableTree"]

"""Names: lookups answered from the listing, and listings handed out as they come in."""

from __future__ import annotations

import errno
import stat
from collections.abc import AsyncIterator, Iterator
from typing import Any

from pyfusekit.core import Attr, DirEntry, Entries, Request, Result

from .naming.nodes import EXACT, GONE, IS_DIR, NAME_MAX, NO_TIME, PROBED, UNSIZED, Directory, Walked
from .state import BLOCK, Mounted
from .values import HttpError

_DOTS = 2
"""Cookies 1 and 2 follow "." and ".."; entry i of the reading is followed by cookie i + 3."""


class Walk:
    """The handle of an open directory."""

    __slots__ = ("directory", "walked")

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self.walked: Walked | None = None
        """The reading that is handed out; begun again by rewinddir(3)."""


class Names(Mounted):
    """lookup, opendir, readdir, readdirplus."""

    # One name.

    def lookup(self, request: Request, parent: int, name: bytes) -> Result[Attr | None]:
        """Answer from the listing of the parent; what it lacks is not there, and nobody is asked."""
        if len(name) > NAME_MAX:
            raise OSError(errno.ENAMETOOLONG, f"a name has at most {NAME_MAX} bytes")
        directory = self.tree.directory(parent)
        if directory.fresh:
            ino = directory.index.get(name)
            if ino is None:
                if directory.is_listed:
                    return None
            else:
                home, place = self.tree.row(ino)
                if self.settled(home, place):
                    return self.enter(home, place)
        return self._lookup(directory, name)

    async def _lookup(self, directory: Directory, name: bytes) -> Attr | None:
        ino = await self.named(directory, name)
        if not ino:
            return None
        home, place = self.tree.row(ino)
        return self.enter(home, place)

    async def named(self, directory: Directory, name: bytes) -> int:
        """Return the inode number that a name has now, its attributes known; 0 when there is none."""
        await self.lister.find(directory, name)
        ino = directory.index.get(name)
        if not directory.is_listed:
            if ino is not None and self.settled(*self.tree.row(ino)):
                return ino
            return await self.resolver.find(directory, name)
        if ino is None:
            return 0
        home, place = self.tree.row(ino)
        flags = home.flags[place]
        # What the listing tells was asked for just now, even if nothing may be believed for any time.
        if flags & EXACT and (not flags & (PROBED | UNSIZED) or self.settled(home, place)):
            return ino
        await self._resolve(home, place)
        return directory.index.get(name, 0)

    async def _resolve(self, directory: Directory, place: int) -> None:
        """Ask for what the listing does not tell; a name that leads nowhere is gone then."""
        try:
            await self.resolver.size(directory, place)
        except HttpError as exc:
            if exc.status not in (404, 410):
                raise

    # Listings.

    def opendir(self, request: Request, ino: int, flags: int) -> Result[Any]:
        """Begin a walk; nothing is asked yet."""
        directory = self.tree.directory(ino)
        directory.walks += 1
        return Walk(directory)

    def releasedir(self, request: Request, ino: int, handle: Any) -> None:
        """End a walk."""
        handle.directory.walks -= 1

    def readdir(self, request: Request, ino: int, handle: Any, offset: int) -> Entries:
        """List, at once when the listing is there."""
        return self._listed(handle, offset, plus=False)

    def readdirplus(self, request: Request, ino: int, handle: Any, offset: int) -> Entries:
        """List with the attributes the listing tells; entries whose size it does not tell go without."""
        return self._listed(handle, offset, plus=True)

    def _listed(self, walk: Walk, offset: int, *, plus: bool) -> Entries:
        directory = walk.directory
        if offset == 0:
            walk.walked = None
        if walk.walked is None:
            if not directory.fresh:
                return self._later(walk, offset, plus=plus)
            walk.walked = directory.walked if directory.is_listed else self._found(directory)
        walked = walk.walked
        if walked is None or not walked.complete or walked.failure is not None:
            return self._later(walk, offset, plus=plus)
        return self._entries(directory, walked, offset, plus=plus)

    def _found(self, directory: Directory) -> Walked:
        """Return the names that were found in a directory that is not listed."""
        walked = Walked()
        walked.inos.extend(ino for _, ino in self.tree.live(directory))
        walked.end()
        return walked

    async def _later(self, walk: Walk, offset: int, *, plus: bool) -> AsyncIterator[DirEntry]:
        """Yield entries as their pages come in."""
        directory = walk.directory
        if walk.walked is None:
            try:
                found = await self.lister.walk(directory)
            except HttpError as exc:
                if exc.errno == errno.ENOENT:
                    # libc takes ENOENT of getdents(2) for the end of the directory (glibc readdir64.c).
                    raise OSError(errno.ESTALE, exc.strerror) from exc
                raise
            walk.walked = found if found is not None else self._found(directory)
        walked = walk.walked
        place = offset
        while True:
            count = len(walked.inos) + _DOTS
            changed, complete = walked.changed, walked.complete
            for entry in self._entries(directory, walked, place, plus=plus):
                yield entry
            place = max(place, count)
            if complete:
                if walked.failure is not None:
                    raise walked.failure
                return
            if len(walked.inos) + _DOTS <= place and not walked.complete:
                await changed.wait()

    def _entries(self, directory: Directory, walked: Walked, offset: int, *, plus: bool) -> Iterator[DirEntry]:
        """Yield what is there of a reading behind a cookie. Each is used again for the next: the core packs it at once."""
        if offset < 1:
            yield DirEntry(b".", directory.ino, stat.S_IFDIR, 1)
        if offset < _DOTS:
            parent = directory.parent
            yield DirEntry(b"..", parent.ino if parent is not None and parent.ino else directory.ino, stat.S_IFDIR, _DOTS)
        entry = DirEntry(b"", 0, 0, 0)
        attr = self.blank()
        file_mode, block = self.file_mode, BLOCK
        flags, names, sizes, mtimes = directory.flags, directory.names, directory.sizes, directory.mtimes
        first = directory.ino_at(0)
        inos = walked.inos
        for cookie in range(max(offset, _DOTS), len(inos) + _DOTS):
            ino = inos[cookie - _DOTS]
            place = ino - first
            if not 0 <= place < len(names):
                continue
            what = flags[place]
            if what & GONE:
                continue
            entry.name, entry.ino, entry.offset = names[place], ino, cookie + 1
            entry.mode = stat.S_IFDIR if what & IS_DIR else stat.S_IFREG
            if not plus or not what & EXACT or what & PROBED:
                entry.attr = None
            elif what & (IS_DIR | UNSIZED) or mtimes[place] == NO_TIME or attr.mode != file_mode:
                entry.attr = self.attr(directory, place, attr)
            else:
                # As self.attr() does, spelled out: most entries are files, and there may be a hundred thousand of them.
                attr.ino = ino
                attr.size = size = sizes[place]
                attr.blocks = (size + block - 1) // block
                attr.nlink = 1
                attr.mtime_ns = attr.atime_ns = attr.ctime_ns = attr.btime_ns = mtimes[place]
                entry.attr = attr
            yield entry


__all__ = ["Names", "Walk"]

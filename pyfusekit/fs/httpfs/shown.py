"""What a mount with --rw shows of the tree: what is written here, what was renamed, and modes that only the mount knows."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import Any

from pyfusekit.core import Attr, DirEntry, Entries, Request, Result

from .attributes import Attributed
from .directory import Walk
from .held import MOST_TIMES, Local, Times, WritableTree
from .naming.nodes import EXACT, GONE, IS_DIR, PROBED, UNSIZED, Directory, Walked
from .options import HttpOptions

_DOTS = 2


class Shown(Attributed):
    """Attributes and listings."""

    def __init__(self, source: str | None, options: HttpOptions | None = None) -> None:
        super().__init__(source, options)
        self.locals: dict[int, Local] = {}
        """By inode number: what is being written."""
        self.times = Times()
        self.modes: dict[int, int] = {}
        """By inode number: what chmod and the makers of files said."""
        if self.options.rw:
            self.tree: WritableTree = WritableTree(self.source, self.files.__contains__, self.locals, self.times)

    # Attributes.

    def attr(self, directory: Directory, place: int, attr: Attr | None = None) -> Attr:
        """Return a row's attributes; the mode is what chmod said, as long as the mount knows the file."""
        attr = super().attr(directory, place, attr)
        if self.modes:
            mode = self.modes.get(attr.ino)
            if mode is not None:
                attr.mode = attr.mode & ~0o7777 | mode
        if self.locals:
            local = self.locals.get(attr.ino)
            if local is not None and local.staged is not None and local.staged.fd >= 0:
                attr.blocks = os.fstat(local.staged.fd).st_blocks
        return attr

    def set_mode(self, ino: int, mode: int) -> None:
        """Remember a mode, which WebDAV does not keep."""
        self.modes[ino] = mode & 0o7777
        if len(self.modes) > MOST_TIMES:
            del self.modes[next(iter(self.modes))]

    def moded(self, ino: int, mode: int, usual: int) -> None:
        """Remember the mode of a new file when it is not the usual one."""
        if mode & 0o7777 != usual & 0o7777:
            self.set_mode(ino, mode)

    def expiry(self, directory: Directory, place: int) -> float:
        """Return until when what is known of a row is believed: what its name's directory says, wherever the row lies."""
        where = self.tree.home(directory, place) if self.options.rw else directory
        if where is directory or directory.flags[place] & (PROBED | UNSIZED):
            return super().expiry(directory, place)
        return where.expires

    async def refreshed(self, directory: Directory, place: int) -> None:
        """Ask for what is too old of a row."""
        where = self.tree.home(directory, place) if self.options.rw else directory
        if where is directory:
            await super().refreshed(directory, place)
            return
        if where.is_listed:
            await self.lister.ensure(where)
        if not directory.flags[place] & (GONE | IS_DIR) and not self.settled(directory, place):
            await self.resolver.size(directory, place)

    def getattr(self, request: Request, ino: int, handle: Any) -> Result[Attr]:
        """Answer also of a directory that was removed while somebody has it open."""
        own = self.tree.directories.get(ino) if self.options.rw else None
        if own is not None and own.walks:
            directory, place = self.tree.row(ino)
            if directory.flags[place] & GONE:
                return self.attr(directory, place)
        return super().getattr(request, ino, handle)

    # Listings.

    def _listed(self, walk: Walk, offset: int, *, plus: bool) -> Entries:
        """List; a directory that was removed has no entries."""
        home, place = self.tree.row(walk.directory.ino)
        if home.flags[place] & GONE:
            raise OSError(errno.ENOENT, f"{walk.directory.path!r} was removed")
        return super()._listed(walk, offset, plus=plus)

    def _entries(self, directory: Directory, walked: Walked, offset: int, *, plus: bool) -> Iterator[DirEntry]:
        """Yield what is there of a reading behind a cookie; what was renamed since is where it is now."""
        if not self.options.rw:
            return super()._entries(directory, walked, offset, plus=plus)
        return self._entries_now(directory, walked, offset, plus=plus)

    def _entries_now(self, directory: Directory, walked: Walked, offset: int, *, plus: bool) -> Iterator[DirEntry]:
        if offset < 1:
            yield DirEntry(b".", directory.ino, stat.S_IFDIR, 1)
        if offset < _DOTS:
            parent = directory.parent
            yield DirEntry(b"..", parent.ino if parent is not None and parent.ino else directory.ino, stat.S_IFDIR, _DOTS)
        entry, attr = DirEntry(b"", 0, 0, 0), self.blank()
        inos, index, row = walked.inos, directory.index, self.tree.row
        for cookie in range(max(offset, _DOTS), len(inos) + _DOTS):
            ino = inos[cookie - _DOTS]
            try:
                home, place = row(ino)
            except OSError:
                # Moved here from a directory that nobody knows any more: it is listed anew.
                continue
            what, name = home.flags[place], home.names[place]
            if what & GONE or index.get(name) != ino:
                continue
            entry.name, entry.ino, entry.offset = name, ino, cookie + 1
            entry.mode = stat.S_IFDIR if what & IS_DIR else stat.S_IFREG
            entry.attr = self.attr(home, place, attr) if plus and what & EXACT and not what & PROBED else None
            yield entry


__all__ = ["Shown"]

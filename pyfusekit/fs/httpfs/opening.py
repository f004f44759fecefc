"""Open files: an open asks what the file is now, unless that was asked less than metadata-ttl ago, and reads that version."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from pyfusekit.core import FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE, Opened, ReadResult, Request, Result

from .contents.resource import cache_key
from .directory import Names
from .naming.nodes import EXACT, GONE, IS_DIR, UNSIZED, Directory
from .state import File
from .values import HttpError, Resource

if TYPE_CHECKING:
    from .contents.reading import OpenFile

SMALL = 128 << 10
"""A file of up to so many bytes is fetched when it is opened."""


class Handle:
    """One open file."""

    __slots__ = ("file",)

    def __init__(self, file: File) -> None:
        self.file = file


def version_of(content: OpenFile) -> str:
    """Return what names the version of a file for ever; empty when nothing does."""
    named = cache_key(content.resource)
    return f"{named} {content.size}" if named else ""


class Opens(Names):
    """open, read, release."""

    def open(self, request: Request, ino: int, flags: int) -> Result[Any]:
        """Pin the version that is there now. ESTALE has the kernel look the name up again, so the caller does not see it."""
        directory, place = self._row_of_file(ino)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, f"{directory.names[place]!r} cannot be written")
        file = self.files.get(ino)
        resource = self.known(directory, place)
        if file is not None and file.content is not None and file.content.error is None and resource is not None:
            return self._opened(file, directory, place)
        return self._open(ino, directory, place)

    def _row_of_file(self, ino: int) -> tuple[Directory, int]:
        directory, place = self.tree.row(ino)
        flags = directory.flags[place]
        if flags & IS_DIR:
            raise OSError(errno.EISDIR, f"{directory.names[place]!r} is a directory")
        if flags & GONE:
            raise OSError(errno.ESTALE, f"{directory.names[place]!r} was replaced")
        return directory, place

    def known(self, directory: Directory, place: int) -> Resource | None:
        """Return what the server said of a file, when that is not too old."""
        extra = directory.extras.get(place)
        if extra is None or extra.resource is None:
            return None
        return extra.resource if time.monotonic() < extra.checked + self.options.metadata_ttl else None

    async def current(self, ino: int, directory: Directory, place: int) -> Resource:
        """Return what the server says of a file, asked now when it is too long ago; ESTALE when that is another version."""
        resource = self.known(directory, place)
        if resource is not None:
            return resource
        try:
            new = await self.resolver.opened(directory, place)
        except HttpError as exc:
            if exc.status in (404, 410):
                raise OSError(errno.ESTALE, exc.strerror) from exc
            raise
        extra = directory.extras.get(place)
        if new != place or directory.flags[place] & (GONE | IS_DIR) or extra is None or extra.resource is None:
            self.notifier.inval_entry(directory.ino, directory.names[place])
            raise OSError(errno.ESTALE, f"{directory.names[place]!r} was replaced")
        return extra.resource

    def _told(self, ino: int) -> None:
        """Have the kernel drop what it was told of a node."""
        self.notifier.inval_inode(ino)

    async def _open(self, ino: int, directory: Directory, place: int) -> Opened:
        file = self.files.get(ino)
        if file is None:
            file = self.files[ino] = File(ino)
        file.opening += 1
        try:
            async with file.lock:
                resource = await self.current(ino, directory, place)
                content = file.content
                if content is not None and content.error is not None:
                    self.tree.expire(directory, place)
                    self.notifier.inval_entry(directory.ino, directory.names[place])
                    raise OSError(errno.ESTALE, f"{directory.names[place]!r} was replaced")
                if content is None:
                    file.content = await self.content.open(resource)
                    # What was not told may be found out by opening.
                    self._sized(file, directory, place)
                    await self._fetch_small(file, directory, place)
            return self._opened(file, directory, place)
        finally:
            file.opening -= 1
            self._left(file)

    async def _fetch_small(self, file: File, directory: Directory, place: int) -> None:
        """Fetch all of a small file, unless this disk or the kernel has it. ESTALE here has the kernel look it up again."""
        content = file.content
        if content is None or not content.size or content.size > SMALL or content.backing_fd() >= 0:
            return
        version = version_of(content)
        if version and directory.extra(place).cached == version:
            return
        try:
            found = content.read(0, content.size)
            whole = await found if isinstance(found, Coroutine) else found
        except OSError as exc:
            self._lost(file, exc)
            raise
        data = b"".join(whole) if isinstance(whole, list) else bytes(whole)
        if len(data) == content.size:
            file.data = data

    def _opened(self, file: File, directory: Directory, place: int) -> Opened:
        """Count the open. The kernel keeps its cached pages if they are of this very version."""
        content = file.content
        assert content is not None
        extra = directory.extra(place)
        if content.size is None:
            file.unsized = True
            file.handles += 1
            return Opened(Handle(file), flags=FOPEN_DIRECT_IO)
        version = version_of(content)
        keep = FOPEN_KEEP_CACHE if version and extra.cached == version else 0
        extra.cached = version
        if file.backing is None and not file.handles:
            fd = content.backing_fd()
            file.backing = self.backing(fd) if fd >= 0 else None
        file.handles += 1
        # The kernel takes no other flags beside a backing file (fs/fuse/iomode.c fuse_file_passthrough_open).
        return Opened(Handle(file), flags=0 if file.backing is not None else keep, backing=file.backing)

    def release(self, request: Request, ino: int, handle: Any) -> Result[None]:
        """End an open file."""
        handle.file.handles -= 1
        self._left(handle.file)
        return None

    def _left(self, file: File) -> None:
        """Let go of what the last open needed."""
        if file.handles or file.opening:
            return
        if self.files.get(file.ino) is file:
            del self.files[file.ino]
        if file.backing is not None:
            file.backing.close()
            file.backing = None
        file.data = None
        if file.content is not None:
            file.content.close()
            file.content = None

    # Reading.

    def read(self, request: Request, ino: int, handle: Any, offset: int, size: int) -> Result[ReadResult]:
        """Answer from what is there, else wait for it."""
        content = handle.file.content
        if handle.file.data is not None:
            return memoryview(handle.file.data)[offset : offset + size]
        if handle.file.unsized:
            return self._read(handle.file, offset, size)
        found: Result[ReadResult]
        try:
            found = content.read(offset, size)
        except OSError as exc:
            self._lost(handle.file, exc)
            raise
        return self._awaited(handle.file, found) if isinstance(found, Coroutine) else found

    async def _awaited(self, file: File, waiting: Coroutine[Any, Any, ReadResult]) -> ReadResult:
        try:
            return await waiting
        except OSError as exc:
            self._lost(file, exc)
            raise

    async def _read(self, file: File, offset: int, size: int) -> ReadResult:
        """Read a file of unknown size, and learn its size at its end."""
        content = file.content
        assert content is not None
        try:
            found = content.read(offset, size)
            data: ReadResult = await found if isinstance(found, Coroutine) else found
        except OSError as exc:
            self._lost(file, exc)
            raise
        if content.size is not None:
            file.unsized = False
            directory, place = self.tree.row(file.ino)
            if self._sized(file, directory, place):
                self._told(file.ino)
        return data

    def _sized(self, file: File, directory: Directory, place: int) -> bool:
        """Note a size that was found out; return whether it is news."""
        content = file.content
        if content is None or content.size is None or not directory.flags[place] & UNSIZED:
            return False
        directory.sizes[place] = content.size
        directory.flags[place] = (directory.flags[place] | EXACT) & ~UNSIZED
        extra = directory.extra(place)
        if extra.resource is not None:
            extra.resource = extra.resource._replace(size=content.size)
        return True

    def _lost(self, file: File, exc: OSError) -> None:
        """Believe nothing of a file any more that has turned out to be another version."""
        if exc.errno not in (errno.ESTALE, errno.ENOENT):
            return
        directory, place = self.tree.row(file.ino)
        if not directory.flags[place] & GONE:
            self.report(exc, "read", directory.url_at(place))
            self.tree.expire(directory, place)
            self.notifier.inval_entry(directory.ino, directory.names[place])


__all__ = ["Handle", "Opens"]

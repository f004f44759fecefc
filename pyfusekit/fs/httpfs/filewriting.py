"""Open files that are written: the first change makes a staging file, close and fsync publish it.

From the first change on everybody on this mount reads the staging file, until nobody has the file open any more. What close
could not publish is kept on this disk, and its path named; the name shows what the server has then.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

from pyfusekit.core import CONFLICT, FOPEN_KEEP_CACHE, Attr, Opened, ReadResult, Request, Result

from .contents.resource import cache_key
from .guarded import GuardedFiles
from .held import Local, Time
from .naming.nodes import EXACT, GONE, PROBED, UNSIZED, Directory
from .opening import Handle
from .shown import Shown
from .state import File
from .values import Entry, HttpError, Resource
from .webdav.staged import Staged
from .webdav.writing import Published, Writer

log = logging.getLogger("pyfusekit.httpfs")

KEPT_WHEN_UNLINKED = 64 << 20
"""An open file up to this many bytes is fetched whole before it is removed, so that who reads it can go on."""
_JUST_NOW_S = 1.0
"""An answer that is not older counts as one that was asked for by the open."""
_PIECE = 1 << 20
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 0x01, 0x02, 0x10


class WriteHandle(Handle):
    """One open file of one that is, or may be, changed here."""

    __slots__ = ("local", "writable")

    def __init__(self, file: File, local: Local, writable: bool) -> None:
        super().__init__(file)
        self.local = local
        self.writable = writable


class Writes(Shown):
    """create, open, read, write, flush, fsync, release, fallocate of a mount with --rw."""

    writer: Writer
    guarded: GuardedFiles

    # Opening.

    def open(self, request: Request, ino: int, flags: int) -> Result[Any]:
        """Pin the version that is there now; with O_TRUNC nothing of it is fetched."""
        writing = flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)
        local = self.locals.get(ino)
        if not writing and (local is None or local.staged is None):
            return super().open(request, ino, flags)
        if self.single or not self.options.rw:
            raise OSError(
                errno.EROFS, "one file is mounted, not a directory of WebDAV" if self.single else "mounted without --rw"
            )
        directory, place = self._row_of_file(ino)
        if local is not None and local.staged is not None and not flags & os.O_TRUNC:
            self._check_given_up(local.staged)
            return self._joined(local, flags)
        return self._open_to_write(ino, directory, place, flags)

    def must_be_writable(self) -> None:
        """Raise EROFS where nothing can be written."""
        if self.single:
            raise OSError(errno.EROFS, "one file is mounted, and WebDAV writes into directories")
        if not self.options.rw:
            raise OSError(errno.EROFS, "mounted without --rw")

    def changed(self, directory: Directory) -> None:
        """A directory has other names now."""
        home, place = self.tree.row(directory.ino)
        self.tree.stamp(home, place, time.time_ns())

    async def _open_to_write(self, ino: int, directory: Directory, place: int, flags: int) -> Opened:
        file = self._file(ino)
        if file.backing is not None:
            # The kernel reads this inode by itself and takes no other mode for it. The name gets another inode.
            self.tree.expire(directory, place)
            raise OSError(errno.ESTALE, f"{directory.names[place]!r} is open for reading")
        file.handles += 1
        try:
            local = self.locals.get(ino)
            if local is None:
                async with file.lock:
                    base = await self._newest(ino, directory, place)
                    if flags & os.O_ACCMODE == os.O_RDWR and not flags & os.O_TRUNC and file.content is None:
                        file.content = await self.content.open(base)
                        self._sized(file, directory, place)
                    if directory.flags[place] & GONE:
                        raise OSError(errno.ESTALE, f"{directory.names[place]!r} was replaced")
                local = self.locals.setdefault(ino, Local(ino, directory.url_at(place), base))
            opened = self._joined(local, flags)
            try:
                if flags & os.O_TRUNC:
                    await self.resize(local, 0)
            except BaseException:
                left = self._leave(opened.handle)
                if left is not None:
                    await left
                raise
            return opened
        finally:
            file.handles -= 1
            self._left_local(file)

    async def _newest(self, ino: int, directory: Directory, place: int) -> Resource:
        """Return what the server has now: who changes an old version in good faith would only be told when it is too late."""
        extra = directory.extras.get(place)
        if extra is not None and extra.checked < time.monotonic() - _JUST_NOW_S:
            extra.checked = 0.0
        return await self.current(ino, directory, place)

    def _file(self, ino: int) -> File:
        file = self.files.get(ino)
        if file is None:
            file = self.files[ino] = File(ino)
        return file

    def _joined(self, local: Local, flags: int) -> Opened:
        """Count an open of a file that is, or may be, changed."""
        file = self._file(local.ino)
        writable = flags & os.O_ACCMODE != os.O_RDONLY
        file.handles += 1
        local.writers += writable
        keep = FOPEN_KEEP_CACHE if local.staged is not None and not flags & os.O_TRUNC else 0
        return Opened(WriteHandle(file, local, writable), flags=keep)

    async def create(self, request: Request, parent: int, name: bytes, mode: int, umask: int, flags: int) -> tuple[Attr, Any]:
        """Make a file that the server gets when it is closed, and open it."""
        self.must_be_writable()
        directory = self.tree.directory(parent)
        ino = await self.named(directory, name)
        if ino:
            if flags & os.O_EXCL:
                raise OSError(errno.EEXIST, f"{name!r} is there")
            result = self.open(request, ino, flags)
            opened = await result if isinstance(result, Coroutine) else result
            return self.enter(*self.tree.row(ino)), opened
        local = self.begin(directory, name)
        self.moded(local.ino, mode, self.file_mode)
        self.changed(directory)
        opened = self._joined(local, flags)
        return self.enter(*self.tree.row(local.ino)), opened

    def begin(self, directory: Directory, name: bytes) -> Local:
        """Give *name* to a new and empty file, which the server lacks."""
        url = directory.url + quote(name)
        staged = self.writer.staging.stage(url, None)
        try:
            ino = self._put(directory, Entry(name.decode("utf-8", "surrogateescape"), url, False, 0, True, staged.mtime_ns))
        except BaseException:
            staged.close()
            raise
        local = self.locals[ino] = Local(ino, url, None)
        local.staged = staged
        return local

    def _put(self, directory: Directory, entry: Entry) -> int:
        expires = None if directory.is_listed else time.monotonic() + self.options.metadata_ttl
        return self.tree.put(directory, entry, expires=expires)

    async def named(self, directory: Directory, name: bytes) -> int:
        """Return the inode number that a name has now; of what is being written, nobody is asked."""
        ino = directory.index.get(name)
        local = self.locals.get(ino) if ino is not None else None
        if ino is not None and local is not None and local.staged is not None:
            return ino
        return await super().named(directory, name)

    # Reading and writing.

    def read(self, request: Request, ino: int, handle: Any, offset: int, size: int) -> Result[ReadResult]:
        """Read what was written here; the version that was opened, when nothing was."""
        local = self.locals.get(ino)
        if local is not None and local.staged is not None:
            self._check_given_up(local.staged)
            return local.staged.read(offset, size)
        if handle.file.content is None:
            return self._read_after(handle, offset, size)
        return super().read(request, ino, handle, offset, size)

    async def _read_after(self, handle: Any, offset: int, size: int) -> ReadResult:
        """Read through a handle that was opened for writing alone, as truncate(2) and the kernel's own reads may."""
        staged = await self.staged(handle.local)
        return staged.read(offset, size)

    def write(self, request: Request, ino: int, handle: Any, offset: int, data: memoryview) -> Result[int]:
        """Write to the staging file; wait while it is being made, or sent."""
        local: Local = handle.local
        staged = local.staged
        if staged is None or staged.sending is not None:
            return self._write_later(local, offset, data)
        return self._write(local, staged, offset, data)

    def _write(self, local: Local, staged: Staged, offset: int, data: memoryview) -> int:
        self._check_given_up(staged)
        try:
            return staged.write(offset, data)
        finally:
            self._show(local, staged)

    async def _write_later(self, local: Local, offset: int, data: memoryview) -> int:
        return self._write(local, await self.changeable(local), offset, data)

    async def changeable(self, local: Local) -> Staged:
        """Return the staging file when it may be changed; nothing may be awaited before it is."""
        while True:
            staged = await self.staged(local)
            if staged.sending is None:
                self._check_given_up(staged)
                return staged
            await staged.sending.wait()

    async def staged(self, local: Local) -> Staged:
        """Return the staging file, made with all bytes of the version that was opened when there is none."""
        async with local.lock:
            if local.staged is None:
                local.staged = await self._filled(local)
            return local.staged

    async def _filled(self, local: Local) -> Staged:
        base = local.base
        assert base is not None
        content = await self.content.open(base)
        staged = self.writer.staging.stage(local.url, base)
        try:
            size = await content.whole()
            position = 0
            while size is None or position < size:
                found = content.read(position, _PIECE)
                data = found if isinstance(found, bytes | list) else await found
                pieces = data if isinstance(data, list) else [data]
                if not any(map(len, pieces)):
                    break
                for piece in pieces:
                    staged.fill(position, piece)
                    position += len(piece)
            if size is not None and position != size:
                raise HttpError(errno.EIO, f"{local.url}: {position} bytes came of {size}", url=local.url)
        except BaseException:
            staged.close()
            raise
        finally:
            content.close()
        return staged

    async def resize(self, local: Local, size: int) -> None:
        """Set a file's size; of what is cut off altogether nothing is fetched."""
        if local.staged is None and size == 0:
            async with local.lock:
                if local.staged is None:
                    local.staged = self.writer.staging.stage(local.url, local.base)
        staged = await self.changeable(local)
        staged.truncate(size)
        self._show(local, staged)

    def _show(self, local: Local, staged: Staged) -> None:
        """Let the attributes be those of the staging file."""
        directory, place = self.tree.row(local.ino)
        directory.sizes[place] = staged.size
        directory.flags[place] = (directory.flags[place] | EXACT) & ~UNSIZED
        self.tree.stamp(directory, place, staged.mtime_ns)

    def fallocate(self, request: Request, ino: int, handle: Any, mode: int, offset: int, length: int) -> Result[None]:
        """Lengthen, or make a range zero, in the staging file."""
        return self._fallocate(handle.local, mode, offset, offset + length)

    async def _fallocate(self, local: Local, mode: int, start: int, end: int) -> None:
        staged = await self.changeable(local)
        if mode & (_PUNCH_HOLE | _ZERO_RANGE):
            staged.zero(start, end)
        else:
            staged.allocate(start, end, keep_size=bool(mode & _KEEP_SIZE))
        if end > staged.size and not mode & _KEEP_SIZE:
            staged.truncate(end)
        self._show(local, staged)

    # Publishing.

    def flush(self, request: Request, ino: int, handle: Any, lock_owner: int) -> Result[None]:
        """Publish at close: what goes wrong is close's error."""
        if not isinstance(handle, WriteHandle) or not handle.writable:
            return None
        return self.publish(handle.local)

    def fsync(self, request: Request, ino: int, handle: Any, datasync: int) -> Result[None]:
        """Publish now: the server has it when this returns."""
        return self.publish(handle.local) if isinstance(handle, WriteHandle) else None

    def publish(self, local: Local) -> Result[None]:
        """Make what was changed the server's version; at once when that is nothing."""
        staged = local.staged
        if staged is None:
            return None
        self._check_given_up(staged)
        return self._publish(local, staged) if local.unpublished else None

    async def _publish(self, local: Local, staged: Staged) -> None:
        mtime_ns = staged.mtime_ns
        try:
            published = await self.writer.publish(staged)
        except OSError:
            if staged.kept:
                self._give_up(local)
            raise
        if published is not None:
            self._believe(local, staged, published, mtime_ns)

    def _believe(self, local: Local, staged: Staged, published: Published, mtime_ns: int) -> None:
        """Take what was published for what is there: nobody is asked again."""
        resource = published.resource
        if local.base is not None and not local.base.validator.changed(resource.validator):
            # Changed twice in a second, for a server that counts seconds.
            self.guarded.suspect(resource.url)
        local.base = resource
        local.overtaken = published.overtaken
        directory, place = self.tree.row(local.ino)
        self.problems.settle(self.place_of(local.url))
        now = time.monotonic()
        extra = directory.extra(place)
        extra.resource = resource
        extra.checked = 0.0 if published.overtaken else now
        extra.asked_ns = time.time_ns()
        if directory.flags[place] & PROBED:
            extra.expires = now + self.options.metadata_ttl
        directory.said.pop(place, None)
        directory.stamps[place] = directory.serial
        named = cache_key(resource)
        extra.cached = f"{named} {resource.size}" if named else ""
        path = self.tree.path_at(directory, place)
        self.times.set(path, Time(mtime_ns, resource.size or 0, resource.validator.etag, resource.mtime_ns))
        self._show(local, staged)
        if self.pages is not None and not published.overtaken:
            self.pages.put_resource(resource)

    def _check_given_up(self, staged: Staged) -> None:
        if staged.kept:
            raise OSError(errno.ESTALE, f"{staged.url} was not written; the local version is in {staged.kept}")

    def _give_up(self, local: Local) -> None:
        """Show what the server has under the name, in place of what was kept; who has the file open is told ESTALE."""
        directory, place = self.tree.row(local.ino)
        local.gone = True
        self.times.forget(self.tree.path_at(directory, place))
        if directory.flags[place] & GONE:
            return
        where = self.tree.home(directory, place)
        if local.base is None:
            self.tree.remove(where, directory.names[place])
        else:
            self.tree.expire(directory, place)
        where.expires = 0.0

    # Letting go.

    def release(self, request: Request, ino: int, handle: Any) -> Result[None]:
        """End an open file. What mmap wrote after the last close is published now; what cannot be is kept."""
        return self._leave(handle)

    def _leave(self, handle: Handle) -> Result[None]:
        file = handle.file
        local = self.locals.get(file.ino)
        if local is None:
            file.handles -= 1
            self._left(file)
            return None
        if isinstance(handle, WriteHandle):
            local.writers -= handle.writable
        if not local.writers and local.unpublished:
            return self._last_writer(local, file)
        file.handles -= 1
        self._left_local(file)
        return None

    async def _last_writer(self, local: Local, file: File) -> None:
        """Publish, or keep, what no close has published."""
        staged = local.staged
        assert staged is not None
        try:
            async with local.lock:
                why = staged.failure
                if why is None and local.unpublished:
                    try:
                        await self._publish(local, staged)
                    except OSError as exc:
                        why = exc
                if why is not None and local.unpublished and not local.writers:
                    await self.writer.keep(staged, why, CONFLICT if why.errno == errno.ESTALE else "close")
                    self._give_up(local)
        finally:
            file.handles -= 1
            self._left_local(file)

    def _left_local(self, file: File) -> None:
        """Let go of what the last open needed, also of what was changed."""
        local = self.locals.get(file.ino)
        if local is not None and not file.handles:
            del self.locals[file.ino]
            if local.staged is not None:
                self._let_go(local, local.staged)
        self._left(file)

    def _let_go(self, local: Local, staged: Staged) -> None:
        """End a staging file; the disk cache may have its bytes."""
        directory, place = self.tree.row(local.ino)
        if local.overtaken and not directory.flags[place] & GONE:
            self.tree.expire(directory, place)
        if self.cache is None or local.base is None or staged.dirty or local.overtaken or staged.kept or not staged.size:
            staged.close()
            return
        self.spawn(self._adopt(local.base, staged), f"keeping {local.url} in the cache")

    async def _adopt(self, resource: Resource, staged: Staged) -> None:
        try:
            await self.content.adopt(resource, staged.fd)
        finally:
            staged.close()

    @asynccontextmanager
    async def unopened(self, ino: int) -> AsyncIterator[None]:
        """Let those who open a file wait during the block: what they would find is neither one version nor the other."""
        file = self._file(ino)
        file.handles += 1
        try:
            async with file.lock:
                yield
        finally:
            file.handles -= 1
            self._left_local(file)

    async def keep_for_readers(self, ino: int) -> None:
        """Fetch what is being read of a file that is about to be removed; not of large ones. What fails, fails the reader."""
        if ino in self.files:
            # Who is just opening it shall have it.
            async with self.unopened(ino):
                pass
        file, local = self.files.get(ino), self.locals.get(ino)
        directory, place = self.tree.row(ino)
        if file is None or not file.handles or file.backing is not None or directory.sizes[place] > KEPT_WHEN_UNLINKED:
            return
        if local is None:
            if file.content is None:
                return
            local = self.locals[ino] = Local(ino, directory.url_at(place), file.content.resource)
        file.handles += 1
        try:
            await self.staged(local)
        except OSError as exc:
            # Who reads it will be told ESTALE, as of any file that somebody else removes.
            log.info("%s: %s", local.url, exc)
        finally:
            file.handles -= 1
            self._left_local(file)


__all__ = ["WriteHandle", "Writes"]

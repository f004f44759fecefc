"""What a mount with --rw changes beside the bytes of files: names, sizes, times; and what it tells of the server's room.

WebDAV keeps no owners and no modes. What chmod says lasts as long as the mount, for cp -p, rsync and git to go on, and so do
times where the server does not take them; chown to somebody else is EPERM.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import quote

from pyfusekit.core import RENAME_NOREPLACE, Attr, Request, Result, SetAttr, StatFs

from .filewriting import WriteHandle, Writes
from .guarded import GuardedFiles
from .held import Local, Time
from .naming.nodes import GONE, IS_DIR, NAME_MAX, Directory
from .values import Entry, HttpError, Resource, Validator
from .webdav.writing import Writer

log = logging.getLogger("pyfusekit.httpfs")

_BLOCK = 4096
_QUOTA_TTL_S = 30.0
_CHANGES = frozenset(
    ("create", "fallocate", "flush", "fsync", "mkdir", "mknod", "rename", "rmdir", "setattr", "unlink", "write")
)


class Changes(Writes):
    """mknod, mkdir, unlink, rmdir, rename, setattr, statfs; and the life of what writes."""

    _quota: StatFs | None = None
    _quota_until = 0.0

    def implements(self, method: str) -> bool:
        """Without --rw the kernel asks for nothing that changes anything, and sends no flush at each close."""
        return super().implements(method) and (self.options.rw or method not in _CHANGES)

    # The mount's life.

    async def start_writing(self) -> None:
        """Begin, when the source is known: name what a killed mount left. Called by init; does nothing without --rw."""
        if not self.options.rw:
            return
        self.writer = Writer(self.web, self.options, self.source, report=self.report, note=self._weakened)
        self.content = self.guarded = GuardedFiles(self.content)
        await self.writer.start()
        if self.single:
            self._weakened("one file is mounted: it is read-only, as WebDAV writes into directories")
        elif not self.web.offline:
            await self.writer.usable(self.tree.root.url)

    def _weakened(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)
            log.warning("%s", text)

    async def end_writing(self) -> None:
        """Keep what was not published when the mount ends with files open. Called by destroy, before the web is closed."""
        for local in list(self.locals.values()):
            staged = local.staged
            if staged is None:
                continue
            if local.unpublished and not staged.kept:
                try:
                    await self.writer.keep(
                        staged, staged.failure or OSError(errno.EIO, "it was open when the mount ended"), "close"
                    )
                except OSError as exc:
                    log.error("%s: %s", staged.url, exc)
            staged.close()
        self.locals.clear()

    # Names.

    async def _place(self, directory: Directory, name: bytes) -> tuple[int, Directory, int]:
        """Return what a name is now; ENOENT."""
        ino = await self.named(directory, name)
        if not ino:
            raise OSError(errno.ENOENT, f"{name!r} is not there")
        return (ino, *self.tree.row(ino))

    def _changeable_directory(self, parent: int) -> Directory:
        self.must_be_writable()
        return self.tree.directory(parent)

    async def mknod(self, request: Request, parent: int, name: bytes, mode: int, rdev: int, umask: int) -> Attr:
        """Make an empty file; WebDAV has no others."""
        if not stat.S_ISREG(mode) and stat.S_IFMT(mode):
            raise OSError(errno.EPERM, "WebDAV has files and directories only")
        directory = self._changeable_directory(parent)
        if await self.named(directory, name):
            raise OSError(errno.EEXIST, f"{name!r} is there")
        local = self.begin(directory, name)
        self.moded(local.ino, mode, self.file_mode)
        self.changed(directory)
        await self._once(local)
        return self.enter(*self.tree.row(local.ino))

    async def _once(self, local: Local) -> None:
        """Publish what was changed without an open file, and let go of it."""
        opened = self._joined(local, os.O_WRONLY)
        try:
            result = self.publish(local)
            if result is not None:
                await result
        finally:
            left = self._leave(opened.handle)
            if left is not None:
                await left

    async def mkdir(self, request: Request, parent: int, name: bytes, mode: int, umask: int) -> Attr:
        """Make a directory. WebDAV keeps no mode."""
        directory = self._changeable_directory(parent)
        if await self.named(directory, name):
            raise OSError(errno.EEXIST, f"{name!r} is there")
        url = f"{directory.url}{quote(name)}/"
        try:
            await self.writer.mkdir(url)
        except HttpError as exc:
            if exc.errno == errno.EEXIST:
                # Somebody else made it: the listing that says otherwise is not believed any more.
                directory.expires = 0.0
            raise
        ino = self._put(directory, Entry(name.decode("utf-8", "surrogateescape"), url, True, None, True, time.time_ns()))
        self.moded(ino, mode, self.dir_mode)
        self.changed(directory)
        made = self.tree.directory(ino)
        if directory.is_listed:
            # It is empty: nobody has to ask.
            self.tree.begin(made)
            self.tree.finish(made, time.monotonic() + self.options.metadata_ttl)
        return self.enter(*self.tree.row(ino))

    async def unlink(self, request: Request, parent: int, name: bytes) -> None:
        """Remove a file; who has it open reads on."""
        directory = self._changeable_directory(parent)
        ino, home, place = await self._place(directory, name)
        if home.flags[place] & IS_DIR:
            raise OSError(errno.EISDIR, f"{name!r} is a directory")
        await self.keep_for_readers(ino)
        async with AsyncExitStack() as stack:
            local = self.locals.get(ino)
            if local is not None and local.staged is not None:
                # A publish that is under way would bring it back.
                await stack.enter_async_context(local.staged.lock)
            if local is None or not self._never_sent(local):
                try:
                    await self._remove(directory, name, home, place)
                except HttpError as exc:
                    # What is written here has a name, whatever somebody else did to the version before.
                    if exc.errno != errno.ENOENT or not self.tree.is_held(ino):
                        raise
            self._removed(directory, name, ino)

    async def _remove(self, directory: Directory, name: bytes, home: Directory, place: int) -> None:
        extra = home.extras.get(place)
        try:
            await self.writer.unlink(home.url_at(place), extra.resource if extra is not None else None)
        except HttpError as exc:
            if exc.errno in (errno.ENOENT, errno.EISDIR):
                # Another client was there before: what is known of the directory is old.
                self.tree.remove(directory, name)
                directory.expires = 0.0
            raise

    @staticmethod
    def _never_sent(local: Local) -> bool:
        staged = local.staged
        return staged is not None and staged.base is None and not staged.attempts

    @staticmethod
    def _forsake(local: Local) -> None:
        """Publish nothing more of a file that has no name."""
        local.gone = True
        if local.staged is not None:
            local.staged.gone = True

    def _stale(self, ino: int) -> None:
        """Nothing that is at a file's URL from now on is what was read there."""
        home, place = self.tree.row(ino)
        if home.flags[place] & IS_DIR:
            return
        self.guarded.replaced(home.url_at(place), home.mtimes[place])
        file = self.files.get(ino)
        if file is not None and file.content is not None:
            self.guarded.left(file.content)

    def _removed(self, directory: Directory, name: bytes, ino: int) -> None:
        self._stale(ino)
        local = self.locals.get(ino)
        if local is not None:
            self._forsake(local)
        self.times.forget(_join(directory.path, name))
        self.changed(directory)
        if directory.index.get(name) == ino:
            self.tree.remove(directory, name)

    async def rmdir(self, request: Request, parent: int, name: bytes) -> None:
        """Remove an empty directory: DELETE alone would take all that is in it."""
        directory = self._changeable_directory(parent)
        ino, home, place = await self._place(directory, name)
        if not home.flags[place] & IS_DIR:
            raise OSError(errno.ENOTDIR, f"{name!r} is a file")
        gone = self.tree.directory(ino)
        await self._must_be_empty(gone)
        try:
            await self.writer.dav.delete(_slash(gone.url))
        except HttpError as exc:
            if exc.errno == errno.ENOENT:
                directory.expires = 0.0
            raise
        self._removed(directory, name, ino)

    async def _must_be_empty(self, directory: Directory) -> None:
        """Raise ENOTEMPTY when a directory holds anything, on the server or only here."""
        if any(number in self.locals for number in directory.index.values()):
            raise OSError(errno.ENOTEMPTY, f"{directory.path!r} has files that are being written")
        try:
            await self.writer.must_be_empty(_slash(directory.url))
        except HttpError as exc:
            if exc.errno == errno.ENOTEMPTY:
                directory.expires = 0.0
            if exc.errno != errno.EOPNOTSUPP:
                raise
            directory.expires = 0.0
            await self.lister.ensure(directory)
            if directory.index:
                raise OSError(errno.ENOTEMPTY, f"{directory.path!r} is not empty") from None
            if not directory.is_listed:
                raise

    async def rename(self, request: Request, parent: int, name: bytes, newparent: int, newname: bytes, flags: int) -> None:
        """Rename; over a file or an empty directory unless RENAME_NOREPLACE. RENAME_EXCHANGE is EINVAL."""
        if flags & ~RENAME_NOREPLACE:
            raise OSError(errno.EINVAL, "WebDAV cannot exchange names")
        directory, target = self._changeable_directory(parent), self._changeable_directory(newparent)
        ino, home, place = await self._place(directory, name)
        there = await self.named(target, newname)
        if there == ino:
            return
        if there and flags & RENAME_NOREPLACE:
            raise OSError(errno.EEXIST, f"{newname!r} is there")
        is_dir = bool(home.flags[place] & IS_DIR)
        if there:
            over, spot = self.tree.row(there)
            if bool(over.flags[spot] & IS_DIR) != is_dir:
                raise OSError(errno.ENOTDIR if is_dir else errno.EISDIR, f"{newname!r} is of another kind")
        if is_dir:
            self._nothing_written_below(ino)
            if there:
                await self._must_be_empty(self.tree.directory(there))
        else:
            await self._published(ino)
            if there:
                await self.keep_for_readers(there)
        await self._move(directory, name, target, newname, ino, there, bool(flags & RENAME_NOREPLACE))

    def _nothing_written_below(self, ino: int) -> None:
        path = self.tree.path(ino) + b"/"
        if any(self.tree.path(one).startswith(path) for one, local in self.locals.items() if not local.gone):
            raise OSError(errno.EBUSY, f"{path!r} has files that are being written")

    async def _published(self, ino: int) -> None:
        """Publish what was written of a file, so that the server has something to rename."""
        local = self.locals.get(ino)
        result = self.publish(local) if local is not None else None
        if result is not None:
            await result

    async def _move(
        self, directory: Directory, name: bytes, target: Directory, newname: bytes, ino: int, there: int, no_replace: bool
    ) -> None:
        home, place = self.tree.row(ino)
        is_dir = bool(home.flags[place] & IS_DIR)
        url = home.url_at(place)
        to = target.url + quote(newname) + ("/" if is_dir else "")
        local, other = self.locals.get(ino), self.locals.get(there)
        async with AsyncExitStack() as stack:
            if there:
                await stack.enter_async_context(self.unopened(there))
            # None of the two is sent meanwhile; always in the same order.
            for one in sorted(
                {one for one in (local, other) if one is not None and one.staged is not None}, key=lambda one: one.ino
            ):
                assert one.staged is not None
                await stack.enter_async_context(one.staged.lock)
            replaces = self._replaced(there) if other is None or not self._never_sent(other) else None
            try:
                await self.writer.rename(
                    _slash(url) if is_dir else url, to, replaces=replaces, is_dir=is_dir, no_replace=no_replace
                )
            except HttpError as exc:
                if exc.errno in (errno.ENOENT, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY):
                    directory.expires = target.expires = 0.0
                raise
            if other is not None:
                self._forsake(other)
            for number in filter(None, (ino, there)):
                self._stale(number)
            self._renamed(directory, name, target, newname, to, local)
        for number in self._open_at(ino):
            await self._follow(number)

    def _open_at(self, ino: int) -> list[int]:
        """Return the numbers of the open files at, or below, one that was renamed."""
        path = self.tree.path(ino)
        return [one for one in self.files if one == ino or self.tree.path(one).startswith(path + b"/")]

    async def _follow(self, ino: int) -> None:
        """Let an open file go on where it is now. A server may give what is renamed another ETag."""
        file, local = self.files[ino], self.locals.get(ino)
        url = self.tree.row(ino)[0].url_at(self.tree.row(ino)[1])
        content = file.content
        before = local.base if local is not None else content.resource if content is not None else None
        if before is None:
            return
        try:
            found = await self.writer.dav.look(url)
            if found is None or found.size not in (None, before.size):
                return
            # The bytes are those that were renamed: what tells the versions apart may have changed with the name.
            found = found._replace(size=before.size)
            if local is not None:
                local.base = found
                if local.staged is not None:
                    local.staged.base = found
            if content is not None and file.content is content and file.backing is None:
                file.content = await self.content.open(found)
                content.close()
        except OSError as exc:
            log.info("%s: who has it open cannot go on: %s", url, exc)

    def _replaced(self, there: int) -> Resource | None:
        """Return what is known of the file that a rename replaces; None when there is none."""
        if not there:
            return None
        home, place = self.tree.row(there)
        url = home.url_at(place)
        extra = home.extras.get(place)
        return extra.resource if extra is not None and extra.resource is not None else _anything(url)

    def _renamed(
        self, directory: Directory, name: bytes, target: Directory, newname: bytes, to: str, local: Local | None
    ) -> None:
        """Let the tree be what the server is now."""
        self.times.move(_join(directory.path, name), _join(target.path, newname))
        self.changed(directory)
        self.changed(target)
        if directory.index.get(name) is None:
            directory.expires = target.expires = 0.0
            return
        self.tree.move(directory, name, target, newname, to)
        if local is not None:
            local.url = to
            if local.staged is not None:
                local.staged.url = to
                if local.staged.dirty:
                    local.staged.store.remember(local.staged)

    # Attributes.

    def setattr(self, request: Request, ino: int, changes: SetAttr, handle: Any) -> Result[Attr]:
        """Truncate, and set the modification time; modes are remembered, owners are what they are."""
        self.must_be_writable()
        directory, place = self.tree.row(ino)
        now = self.attr(directory, place)
        if changes.uid not in (None, now.uid) or changes.gid not in (None, now.gid):
            raise OSError(errno.EPERM, "WebDAV keeps no owners: see --uid and --gid")
        if changes.mode is not None:
            self.set_mode(ino, changes.mode)
        if changes.size is None and changes.mtime_ns is None:
            return self.attr(directory, place)
        return self._setattr(ino, changes, handle)

    async def _setattr(self, ino: int, changes: SetAttr, handle: Any) -> Attr:
        directory, place = self.tree.row(ino)
        if changes.size is not None:
            await self._truncate(ino, changes.size, handle)
        if changes.mtime_ns is not None:
            await self._set_time(ino, changes.mtime_ns)
        directory, place = self.tree.row(ino)
        if directory.flags[place] & GONE and ino not in self.files:
            raise OSError(errno.ESTALE, f"{directory.names[place]!r} was replaced")
        return self.attr(directory, place)

    async def _truncate(self, ino: int, size: int, handle: Any) -> None:
        if isinstance(handle, WriteHandle) and handle.writable:
            await self.resize(handle.local, size)
            return
        directory, place = self._row_of_file(ino)
        opened = await self._open_to_write(ino, directory, place, os.O_WRONLY)
        try:
            await self.resize(opened.handle.local, size)
            result = self.publish(opened.handle.local)
            if result is not None:
                await result
        finally:
            left = self._leave(opened.handle)
            if left is not None:
                await left

    async def _set_time(self, ino: int, mtime_ns: int) -> None:
        """Set a file's time: it goes with what is written, or to the server by itself, or is remembered here."""
        local = self.locals.get(ino)
        directory, place = self.tree.row(ino)
        is_dir = bool(directory.flags[place] & IS_DIR)
        resource: Resource | None = None
        if local is not None and local.unpublished and local.staged is not None:
            local.staged.mtime_ns = mtime_ns
        elif not is_dir and (local is None or not local.gone):
            resource = await self.writer.set_mtime(directory.url_at(place), mtime_ns)
        self.tree.stamp(directory, place, mtime_ns)
        extra = directory.extra(place)
        if resource is not None:
            extra.resource, extra.checked = resource, time.monotonic()
            if local is not None and local.staged is not None:
                local.staged.base = resource
                local.base = resource
        if local is not None and local.staged is not None and not local.unpublished:
            local.staged.mtime_ns = mtime_ns
        known = resource or extra.resource
        etag, server_ns = (known.validator.etag, known.mtime_ns) if known is not None else ("", None)
        size = -1 if is_dir else directory.sizes[place]
        self.times.set(self.tree.path_at(directory, place), Time(mtime_ns, size, etag, server_ns))

    # The whole.

    def statfs(self, request: Request, ino: int) -> Result[StatFs]:  # type: ignore[override]
        """Tell the quota where the server does (RFC 4331)."""
        if not self.options.rw or self.single or not self.writer.honours.quota or self.web.offline:
            return super().statfs(request, ino)
        if self._quota is not None and time.monotonic() < self._quota_until:
            return self._quota
        return self._statfs(request, ino)

    async def _statfs(self, request: Request, ino: int) -> StatFs:
        try:
            found = await self.writer.dav.quota(self.tree.root.url)
        except OSError as exc:
            log.info("quota: %s", exc)
            found = None
        if found is None:
            self.writer.honours.quota = False
            return super().statfs(request, ino)
        free, used = (number // _BLOCK for number in found)
        files = 1 << 40
        self._quota = StatFs(
            blocks=free + used, bfree=free, bavail=free, files=files, ffree=files, bsize=_BLOCK, frsize=_BLOCK, namelen=NAME_MAX
        )
        self._quota_until = time.monotonic() + _QUOTA_TTL_S
        return self._quota


def _slash(url: str) -> str:
    return url if url.endswith("/") else f"{url}/"


def _join(path: bytes, name: bytes) -> bytes:
    return b"%s/%s" % (path, name) if path else name


def _anything(url: str) -> Resource:
    return Resource(url, url, None, None, Validator())


__all__ = ["Changes"]

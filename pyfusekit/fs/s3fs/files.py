"""Open files: reading one version, writing to a staging file, and publishing it at close and fsync.

A file that is only read shows one version of its object. The first write, or a truncation, gives the inode a Staged: from
then on every open of the inode sees the local bytes over those of the base, until a publish makes them the next version.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Awaitable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

from pyfusekit.core import FOPEN_KEEP_CACHE, Data, Opened, ReadResult, Request, Result

from .metadata.posix import NOTHING
from .naming.tree import Node
from .naming.versions import FIRST_INO
from .publishing import Publishing
from .reader import SMALL
from .remote.store import Object, read_range, same_version
from .state import File, Handle
from .writing.staging import Base, Local, Staged

KEPT_WHEN_UNLINKED = 64 << 20
"""An open file up to this many bytes is fetched whole before its object is deleted, so that who reads it can go on."""
_FALLOC_KEEP_SIZE, _FALLOC_PUNCH_HOLE, _FALLOC_ZERO_RANGE = 0x01, 0x02, 0x10


class Files(Publishing):
    """Opens, reads, writes."""

    # Opening.

    def open(self, request: Request, ino: int, flags: int) -> Result[Any]:
        """Pin the version that is there now. ESTALE has the kernel look the name up again, so the caller does not see it."""
        if ino >= FIRST_INO:
            return self.older.open(ino, flags)
        node = self.tree.node(ino)
        if node.is_dir:
            raise OSError(errno.EISDIR, f"{node.key!r} is a directory")
        if node.replaced or (node.gone and node.staged is None and node.packed is None):
            raise OSError(errno.ESTALE, f"{node.key!r} was replaced")
        writing = flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC
        if writing and self.by_kernel(node):
            # The kernel reads this inode by itself and takes no other mode for it. The name gets another inode.
            self.tree.replace(node)
            raise OSError(errno.ESTALE, f"{node.key!r} is open for reading")
        if node.staged is not None or node.item is None:
            opened = self.opened(node, flags)
            if flags & os.O_TRUNC:
                return self._truncated_open(opened)
            return opened
        if flags & os.O_TRUNC:
            node.staged = self.scratch.stage(node.item, truncated=True)
            self._touch_times(node)
            return self.opened(node, flags)
        if flags & os.O_ACCMODE == os.O_WRONLY or self._trusted(node):
            return self.opened(node, flags)
        return self._open(node, node.item, flags)

    def by_kernel(self, node: Node) -> bool:
        """Return whether the kernel reads *node* by itself, and so must go on reading what it is now."""
        file = self.files.get(node.ino)
        return file is not None and file.backing is not None

    def _trusted(self, node: Node) -> bool:
        """Return whether the store need not be asked: it was, a moment ago, and nothing of the file is to be fetched."""
        item = node.item
        if item is None or not self.tree.fresh(node):
            return False
        return not item.size or node.cached_etag == item.etag != "" or self.recent.find(node.ino, item.etag) is not None

    async def _truncated_open(self, opened: Opened) -> Opened:
        handle: Handle = opened.handle
        try:
            await self._truncate(handle.file, 0)
        except BaseException:
            self._leave(handle)
            raise
        return opened

    async def _open(self, node: Node, item: Object, flags: int) -> Opened:
        """Ask the store whether *item* is still there: with a small file's contents, otherwise with a HEAD."""
        expires = self.tree.expiry()
        file = self.file(node)
        file.handles += 1
        prefix = self.tree.parent_key(node)
        self.neighbours.opened(prefix, item, partial(self.tree.following, prefix))
        try:
            if 0 < item.size <= SMALL and node.cached_etag != item.etag:
                await self.reader(file).begin()
            else:
                head = await self.learner.ask(item.key)
                if not same_version(item, head.item):
                    raise OSError(errno.ESTALE, f"{item.key!r} was replaced")
            if node.replaced or node.item is None or not same_version(item, node.item):
                raise OSError(errno.ESTALE, f"{item.key!r} was replaced")
        except OSError as exc:
            self._drop_open(file)
            self.lost(node, item, exc)
            if exc.errno == errno.ENOENT:
                raise OSError(errno.ESTALE, exc.strerror) from None
            raise
        except BaseException:
            self._drop_open(file)
            raise
        file.handles -= 1
        node.expires = max(node.expires, expires)
        return self.opened(node, flags)

    def _drop_open(self, file: File) -> None:
        file.handles -= 1
        if not file.handles:
            self._forget_file(file)

    def opened(self, node: Node, flags: int) -> Opened:
        """Count the open. The kernel keeps its cached pages if they are of this very version."""
        file = self.file(node)
        handle = Handle(file, flags)
        backing = self._backing(file, handle)
        file.handles += 1
        file.writers += handle.writable
        node.opens += 1
        etag = node.etag
        local = node.staged is not None
        keep = FOPEN_KEEP_CACHE if node.cached_etag == etag and (etag or local) else 0
        node.cached_etag = etag
        # The kernel takes no other flags beside a backing file (fs/fuse/iomode.c fuse_file_passthrough_open).
        return Opened(handle, flags=0 if backing is not None else keep, backing=backing)

    def _backing(self, file: File, handle: Handle) -> Any:
        """Return the cache file for the kernel to read from: when it holds the whole object and nobody else has it open."""
        if file.backing is not None or handle.writable or file.handles or self.cache is None or file.node.staged is not None:
            return file.backing
        item = file.node.item
        if item is None or not item.size:
            return None
        self.reader(file)
        if file.entry is not None and file.entry.complete:
            file.backing = self.backing(file.entry.fd)
        return file.backing

    def release(self, request: Request, ino: int, handle: Any) -> Result[None]:
        """End an open file; the last writer's changes that no publish took are kept for the journal."""
        if ino >= FIRST_INO:
            self.older.release(ino, handle)
            return None
        return self._leave(handle)

    def _leave(self, handle: Handle) -> Result[None]:
        file = handle.file
        file.handles -= 1
        file.writers -= handle.writable
        file.node.opens -= 1
        return self._left(file)

    # Reading.

    def read(self, request: Request, ino: int, handle: Any, offset: int, size: int) -> Result[ReadResult]:
        """Answer from what is local or was fetched ahead, else wait for it."""
        if not isinstance(handle, Handle):
            found: Result[ReadResult] = handle.read(offset, size)
            return found
        file = handle.file
        node = file.node
        staged: Staged | None = node.staged
        if staged is not None:
            local = staged.read(offset, size)
            return local if local is not None else self._read(file, offset, size)
        if node.packed is None or file.given_up:
            raise given_up(node)
        if file.reader is None and (kept := self.recent.find(node.ino, node.etag)) is not None:
            return kept[offset : offset + size]
        found = self.reader(file).read(offset, size)
        return self._read(file, offset, size, found) if isinstance(found, Coroutine) else found

    async def _read(
        self, file: File, offset: int, size: int, waiting: Coroutine[Any, Any, list[Data]] | None = None
    ) -> ReadResult:
        """Wait for bytes; begin again when this mount published another version meanwhile, whose bytes are elsewhere."""
        node = file.node
        while True:
            staged, item = node.staged, node.item
            try:
                if waiting is not None:
                    return await waiting
                if staged is not None:
                    merged = await self._merged(file, staged, offset, size)
                    if merged is not None:
                        return merged
                elif item is not None and not file.given_up:
                    found = self.reader(file).read(offset, size)
                    return await found if isinstance(found, Coroutine) else found
                else:
                    raise given_up(node)
            except OSError as exc:
                if exc.errno not in (errno.ESTALE, errno.ENOENT, errno.EINTR) or item is None:
                    raise
                now = node.item
                if node.replaced or node.gone or (node.staged is staged and now is not None and same_version(now, item)):
                    self.lost(node, item, exc)
                    if exc.errno != errno.ENOENT:
                        raise
                    # Deleted while open, which POSIX lets a reader survive, but S3 does not.
                    gone = OSError(errno.ESTALE, exc.strerror)
                    self.report(gone, "read", node.key)
                    raise gone from None
            waiting = None

    async def _merged(self, file: File, staged: Staged, offset: int, size: int) -> list[Data] | None:
        """Put a read together from local bytes, the base's and zeros; None when *staged* was let go of meanwhile."""
        base = staged.base
        pieces: list[Data] = []
        for piece in staged.plan_read(offset, size):
            length = piece.end - piece.start
            if file.node.staged is not staged or staged.base is not base:
                return None
            if isinstance(piece, Local):
                pieces.append(os.pread(staged.fd, length, piece.start))
            elif isinstance(piece, Base) and base is not None:
                pieces.append(await self.read_base(file, base, piece.start, length))
            else:
                pieces.append(bytes(length))
        return pieces

    async def read_base(self, file: File, base: Object, offset: int, size: int) -> bytes:
        """Return bytes of the version that local changes lie over."""
        item = file.node.item
        if item is not None and same_version(base, item):
            found = self.reader(file).read(offset, size)
            if isinstance(found, Coroutine):
                found = await found
            return b"".join(found) if isinstance(found, list) else found
        return await read_range(self.store, base, offset, offset + size)

    # Writing.

    def staged(self, node: Node) -> Staged:
        """Return *node*'s local changes, begun when there are none."""
        if node.staged is None:
            if node.gone:
                # Removed, or given up: nothing written now would ever be published, nor anybody told.
                raise OSError(errno.ESTALE, f"{node.key!r} was removed")
            file = self.files.get(node.ino)
            if file is not None and file.given_up:
                raise given_up(node)
            node.staged = self.scratch.stage(node.item)
            data = self.recent.find(node.ino, node.etag)
            if data is None and file is not None and file.reader is not None and node.size <= SMALL:
                data = file.reader.at_hand()
            if data is not None:
                # It was fetched when it was opened: publishing it takes no second GET, nor a conflict bytes that are gone.
                with suppress(OSError):
                    node.staged.fill(0, data)
        staged: Staged = node.staged
        return staged

    def write(self, request: Request, ino: int, handle: Any, offset: int, data: memoryview) -> Result[int]:
        """Write to the staging file, and begin to send what is complete; wait while too much is on its way."""
        node = handle.file.node
        staged = self.staged(node)
        end = offset + len(data)
        room = self.publisher.room(staged, offset, end)
        if room is not None or self.writeback.frozen(staged, offset, end):
            return self._write_later(handle, offset, data, room)
        return self._write(handle, staged, offset, data)

    def _write(self, handle: Handle, staged: Staged, offset: int, data: memoryview) -> int:
        node = handle.file.node
        written = staged.write(offset, data, append=handle.append)
        self._touch_times(node)
        if not node.gone and not self.options.write_back:
            self.publisher.feed(staged, node.key, lambda: self._attributes_now(node))
        return written

    async def _write_later(self, handle: Handle, offset: int, data: memoryview, room: Awaitable[None] | None) -> int:
        if room is not None:
            await room
        return self._write(handle, await self._changeable(handle.file.node, offset, offset + len(data)), offset, data)

    async def _changeable(self, node: Node, start: int, end: int | None) -> Staged:
        """Return *node*'s local changes once their bytes [start, end) may be changed; nothing may be awaited before they are.

        Without *end*, those between start and the end of the file, wherever it lies.

        While one obstacle is waited for another may come up: an upload of what was acknowledged begins, or ends and takes the
        staging file with it.
        """
        while True:
            staged = self.staged(node)
            low, high = (start, end) if end is not None else sorted((start, staged.size))
            room = self.publisher.room(staged, low, high)
            if room is not None:
                await room
            let_go = id(node.staged) != id(staged)
            if let_go or low < staged.sending_end:
                continue
            if not self.writeback.frozen(staged, low, high):
                return staged
            await self.writeback.thaw(staged, low, high)

    def _touch_times(self, node: Node) -> None:
        now = time.time_ns()
        node.posix = (node.posix or NOTHING).but(mtime_ns=now, ctime_ns=now)
        file = self.files.get(node.ino)
        if file is not None:
            file.times_set = False

    async def _truncate(self, file: File, size: int) -> None:
        node = file.node
        staged = await self._changeable(node, size, None)
        staged.truncate(size)
        self._touch_times(node)

    def fallocate(self, request: Request, ino: int, handle: Any, mode: int, offset: int, length: int) -> Result[None]:
        """Lengthen, or make a range zero. Space is not reserved: there is no such thing on S3."""
        return self._fallocate(handle, mode, offset, offset + length)

    async def _fallocate(self, handle: Handle, mode: int, start: int, end: int) -> None:
        node = handle.file.node
        staged = self.staged(node)
        if not mode & (_FALLOC_PUNCH_HOLE | _FALLOC_ZERO_RANGE):
            new = sum(high - low for low, high in staged.local.gaps(max(start, staged.base_limit), end))
            if not self.scratch.fits(new):
                raise OSError(errno.ENOSPC, "the staging area has no room for that")
            handle.file.reserved = max(handle.file.reserved, end)
        if mode & (_FALLOC_PUNCH_HOLE | _FALLOC_ZERO_RANGE):
            upto = min(end, staged.size)
            if start < upto:
                staged = await self._changeable(node, start, upto)
                staged.zero(start, min(upto, staged.size))
                self._touch_times(node)
        if end > staged.size and not mode & _FALLOC_KEEP_SIZE:
            await self._truncate(handle.file, end)

    # Publishing.

    def flush(self, request: Request, ino: int, handle: Any, lock_owner: int) -> Result[None]:
        """Publish at close: what goes wrong is close's error. A journalled write-back acknowledges what is on this disk."""
        if not isinstance(handle, Handle) or not handle.writable:
            return None
        return self._publish_changes(handle.file)

    def fsync(self, request: Request, ino: int, handle: Any, datasync: int) -> Result[None]:
        """Publish now: the data are in the store (with write-back: in the journal) when this returns."""
        if not isinstance(handle, Handle) or (handle.file.given_up and not handle.writable):
            return None
        return self._publish_changes(handle.file)

    def _publish_changes(self, file: File) -> Result[None]:
        """Publish what there is to publish, at once when that is nothing; ESTALE when it was given up."""
        node = file.node
        if file.given_up:
            raise given_up(node)
        if node.staged is None or not node.staged.dirty or node.gone:
            return None
        return self.publish(file)

    async def keep_for_readers(self, file: File) -> None:
        """Fetch what is not local of an open file whose object is about to be deleted; not of large ones."""
        node = file.node
        if node.item is None or node.item.size > KEPT_WHEN_UNLINKED or file.backing is not None:
            return
        staged = self.staged(node)
        for piece in staged.plan_read(0, staged.size):
            if isinstance(piece, Base) and staged.base is not None:
                data = await self.read_base(file, staged.base, piece.start, piece.end - piece.start)
                if node.staged is not staged:
                    # Whoever had it open has closed it meanwhile.
                    return
                staged.fill(piece.start, data)


def given_up(node: Node) -> OSError:
    """Return what a file's opens are told when what they have seen will not be published."""
    return OSError(errno.ESTALE, f"{node.key!r} was not published, and its local bytes are given up")


__all__ = ["Files", "given_up"]

"""Making local changes the next version of a file, and letting go of what nobody needs any more.

One publish of a file at a time, and none while its name changes (alone()). What cannot be published is never dropped: it goes
to the journal, to be tried again, or where the error says.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from pyfusekit.core import Result

from .metadata import posix as metadata
from .metadata.posix import NOTHING, Posix
from .naming.tree import Node
from .remote.store import Attributes, Head, Object
from .state import File, Mounted
from .writing.recent import LARGEST
from .writing.staging import Staged

log = logging.getLogger("pyfusekit.s3fs")

_TIMES = frozenset({"mtime", "atime", "ctime"})
_HOPELESS = frozenset(
    (errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL, errno.ENAMETOOLONG, errno.EFBIG, errno.EOPNOTSUPP, errno.ENOENT)
)
"""Failures of a publish that no other attempt will mend."""


class Publishing(Mounted):
    """What becomes of local changes."""

    async def publish(self, file: File, *, to_store: bool = False) -> None:
        """Make *file*'s local changes the next version, or with write-back put them into the journal; not *to_store*."""
        async with file.lock:
            await self.publish_alone(file, to_store=to_store)

    async def publish_alone(self, file: File, *, to_store: bool = False) -> None:
        """Do what publish() does, for who has the file alone()."""
        node = file.node
        staged: Staged | None = node.staged
        if staged is None or not staged.dirty or node.gone:
            return
        if self.waits(node) and to_store:
            await self.writeback.settle(node.key)
            return
        file.failure = None
        try:
            attributes = await self.attributes(node)
            if self.options.write_back and not to_store:
                await self.writeback.keep(staged, node.key, attributes)
                return
            loose = () if file.times_set else _TIMES
            item = await self.publisher.publish(staged, node.key, attributes, loose=loose)
        except OSError as exc:
            file.failure = exc
            raise
        self.problems.settle(self.place_of(node.key))
        self.learner.sent(item, attributes)
        self.published(node, staged, item)

    def published(self, node: Node, staged: Staged, item: Object) -> None:
        """Believe that *node* is *item* now."""
        if item.key != node.key:
            # The policy for conflicts wrote it under another name; ours is what somebody else made of it.
            self.tree.expire(node)
            return
        moved = item.size != staged.size
        same_bytes = node.cached_etag == node.etag
        self.tree.published(node, item)
        file = self.files.get(node.ino)
        if file is not None:
            self.drop_reader(file)
        if same_bytes and not moved:
            node.cached_etag = item.etag
        elif moved:
            node.cached_etag = ""
            self.notifier.inval_inode(node.ino)

    async def attributes(self, node: Node) -> Attributes:
        """Return what the next version of *node* carries; asks for what the version before carries."""
        old = await self.old_head(node)
        return self._encode(node, old)

    def _attributes_now(self, node: Node) -> Attributes:
        return self._encode(node, None)

    async def old_head(self, node: Node) -> Head | None:
        """Return what describes the version that *node* shows; None when there is none, or somebody changed it."""
        if node.item is None:
            return None
        try:
            return await self.learner.head(node.item)
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.ESTALE):
                # Somebody changed it: the condition of the publish will say so.
                return None
            raise

    def _encode(self, node: Node, old: Head | None) -> Attributes:
        posix = node.posix or NOTHING
        if posix.mode is None and self.options.metadata == "s3fs":
            posix = posix.but(mode=stat.S_IFREG | self.options.file_mode)
        return self.encoded(node.key, posix, old)

    def encoded(self, key: str, posix: Posix, old: Head | None = None) -> Attributes:
        """Return *posix* as the mount keeps it, with what *old*, the version before, carries of others."""
        return metadata.attributes(key, posix, self.options.metadata, old=old, guess_type=self.options.content_type)

    # Letting go.

    def _left(self, file: File) -> Result[None]:
        """Let go of what nobody needs any more of *file*."""
        node = file.node
        staged: Staged | None = node.staged
        if file.handles == 0 and node.gone:
            self._forget_file(file)
            if staged is not None:
                node.staged = None
                return self.publisher.discard(staged)
            self.tree.release(node)
            return None
        # Of a file that was removed, the local bytes are all there is for who still reads it.
        if file.writers == 0 and staged is not None and not node.gone:
            if not staged.dirty:
                return self._settled(file, staged)
            if not self.waits(node):
                return self._unpublished(file, staged)
        if file.handles == 0:
            self._forget_file(file)
            self.tree.release(node)
        return None

    def _unused(self, file: File) -> None:
        """Forget *file* when nobody has it open, unless that was done already."""
        if file.handles == 0 and self.files.get(file.node.ino) is file:
            self._forget_file(file)
            self.tree.release(file.node)

    def _forget_file(self, file: File) -> None:
        self.drop_reader(file)
        if file.backing is not None:
            file.backing.close()
            file.backing = None
        if self.files.get(file.node.ino) is file:
            del self.files[file.node.ino]

    @asynccontextmanager
    async def alone(self, *nodes: Node | None) -> AsyncIterator[None]:
        """Let nothing of *nodes* be published during the block, and let go of none of them."""
        files = [self.file(node) for node in sorted({node for node in nodes if node is not None}, key=lambda node: node.ino)]
        for file in files:
            file.handles += 1
            file.node.nlookup += 1
        taken = 0
        try:
            # In the order of their numbers: two who need the same files do not wait for each other.
            for file in files:
                await file.lock.acquire()
                taken += 1
            yield
        finally:
            for file in files[:taken]:
                file.lock.release()
            for file in files:
                file.handles -= 1
                file.node.nlookup -= 1
                rest = self._left(file)
                if rest is not None:
                    self.spawn(rest, "letting a staging file go")
                self.tree.release(file.node)

    def waits(self, node: Node) -> bool:
        """Return whether *node*'s changes are in the journal, to be uploaded later."""
        pending = self.writeback.files.get(node.key)
        return pending is not None and pending.staged is node.staged

    async def _settled(self, file: File, staged: Staged) -> None:
        """Let go of a staging file that says nothing the store does not know; the block cache may have its bytes."""
        node = file.node
        async with file.lock:
            if node.staged is not staged or staged.dirty or file.writers or node.gone or self.waits(node):
                return
            node.staged = None
            item = node.item
            if item is not None and item.etag and staged.complete and item.size == staged.size:
                if item.size <= LARGEST:
                    self.recent.keep(node.ino, item.etag, os.pread(staged.fd, item.size, 0))
                if self.cache is not None:
                    # It reads and checksums the file.
                    adopt = partial(self.cache.adopt, self.cache_source, item.key, item.etag, item.size, staged.fd)
                    await asyncio.to_thread(adopt)
            staged.reusable = True
            await self.publisher.discard(staged)
        self._unused(file)

    async def _unpublished(self, file: File, staged: Staged) -> None:
        """Keep what close could not publish: after a conflict its copy lies where the error said, else the journal has it."""
        node = file.node
        async with file.lock:
            if node.staged is not staged or file.writers:
                return
            why = file.failure
            if not node.gone and not staged.kept and why is not None and why.errno in _HOPELESS and staged.dirty:
                # close said so; to try again for ever would only hold the unmount up. The bytes stay on this machine.
                await self._keep_copy(staged, node.key, why)
                if node.staged is not staged or file.writers:
                    # Opened again meanwhile: the next close publishes it, or keeps it as it is then.
                    staged.kept = ""
                    return
            if staged.kept or node.gone or (staged.conflicted and not staged.data_dirty):
                self.give_up(node)
                await self.publisher.discard(staged)
            elif staged.dirty and not self.waits(node):
                try:
                    attributes = await self.attributes(node)
                except OSError:
                    # What others say of the version before is not to be had now; the bytes are what must not be lost.
                    attributes = self._attributes_now(node)
                await self.writeback.keep(staged, node.key, attributes)
        self._unused(file)

    async def _keep_copy(self, staged: Staged, key: str, why: OSError) -> None:
        """Keep what cannot be published among the conflicts, if that can be; the journal has it otherwise."""
        try:
            where = await self.publisher.keep_copy(staged, key, why.strerror or str(why))
        except OSError as exc:
            log.warning("%r: no copy of what was written can be kept among the conflicts: %s", key, exc.strerror)
            return
        error = OSError(why.errno, f"{why.strerror}; what was written is kept in {where}")
        self.report(error, "close", key, f"mend the cause, copy {where} back, then remove it and {where}.json")

    def give_up(self, node: Node, *, unseen: bool = False) -> None:
        """Show what the store holds again, in place of local changes that will not be published.

        Who has the file open has seen them, unless they are *unseen*: the name gets another inode, and theirs is stale.
        """
        node.staged = None
        node.cached_etag = ""
        file = self.files.get(node.ino)
        if file is not None:
            # What it has fetched is of a version that may be gone, and would be taken for what is there.
            self.drop_reader(file)
        if file is not None and node.opens and not unseen and node.packed is not None:
            file.given_up = True
            self.tree.replace(node)
        else:
            self.tree.expire(node)
        if node.packed is None:
            self.tree.forsaken(node)
        self.notifier.inval_inode(node.ino, 0)


__all__ = ["Publishing"]

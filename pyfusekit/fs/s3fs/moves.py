"""Renaming and copying inside the store. S3 has no rename: files and whole directories are copied and then deleted.

The condition is always that the store still holds what was seen, so two writers never undo each other in silence: the loser
gets EBUSY (at ESTALE the kernel would look again and repeat it). What is renamed is not published meanwhile.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
import uuid
from typing import Any

from pyfusekit.core import Request

from .deferred.rename import copy_file, rename_file, rename_tree
from .metadata.posix import NOTHING, Posix
from .names import Names
from .naming.overlay import PUBLISHED
from .naming.tree import Node
from .naming.versions import FIRST_INO
from .reader import SMALL
from .remote.errors import StoreError
from .remote.store import Attributes, Object, expecting
from .state import File, Handle
from .writing.staging import Staged

log = logging.getLogger("pyfusekit.s3fs")

_RENAME_NOREPLACE = 1


class Moves(Names):
    """rename and copy_file_range."""

    async def rename(self, request: Request, parent: int, name: bytes, newparent: int, newname: bytes, flags: int) -> None:
        """Copy inside the store, then delete. EBUSY when somebody else changed either meanwhile; EINVAL for exchanges."""
        if flags & ~_RENAME_NOREPLACE:
            raise OSError(errno.EINVAL, "S3 cannot exchange names")
        directory = self._writable_directory(parent)
        newdirectory = self._writable_directory(newparent)
        node = await self._existing(directory, name)
        target = await self.finder.named(newdirectory, newname)
        if target is node:
            return
        if target is not None and flags & _RENAME_NOREPLACE:
            raise OSError(errno.EEXIST, f"{target.key!r} exists")
        if target is not None and target.is_dir != node.is_dir:
            raise OSError(errno.EISDIR if target.is_dir else errno.ENOTDIR, f"{target.key!r} is not of the same kind")
        try:
            key = self.tree.key_for(newdirectory, newname, node.is_dir)
            if node.is_dir:
                await self._rename_directory(node, target, key)
            else:
                await self._rename_file(node, target, key, bool(flags & _RENAME_NOREPLACE))
        except StoreError as exc:
            if exc.errno == errno.ESTALE:
                self.tree.expire(node)
                if target is not None:
                    self.tree.expire(target)
                self.report(exc, "rename", node.key)
                raise OSError(errno.EBUSY, f"{node.key!r} was changed by somebody else") from exc
            raise
        if directory is not self.tree.root:
            self.tree.hold(directory)
        self.changed(directory, newdirectory)

    async def _rename_file(self, node: Node, target: Node | None, key: str, exclusive: bool) -> None:
        async with self.alone(node, target):
            if node.gone or node.replaced:
                raise OSError(errno.ENOENT, f"{node.key!r} is gone")
            if target is not None and (target.gone or target.replaced):
                target = None
            if target is not None:
                await self._settle_target(target)
            replaced = target.item if target is not None else None
            unheard_of = self._unheard_of(node)
            if self.waits(node):
                pending = await self.writeback.rekey(node.key, key, replaced) if unheard_of else None
                if pending is None or pending.base is not None:
                    unheard_of = False
                    await self.writeback.settle(node.key)
            if unheard_of:
                # The store never heard of it: it will be published under the new name, over what is there now.
                if not self.waits(node):
                    node.staged.retarget(replaced)
                self._moved(node, target, key, None)
                return
            await self.publish_alone(self.file(node), to_store=True)
            item = node.item
            if item is None:
                raise OSError(errno.ENOENT, f"{node.key!r} is gone")
            copied = await self._copied(node, item, key, replaced, exclusive)
            self._moved(node, target, key, copied)

    @staticmethod
    def _unheard_of(node: Node) -> bool:
        """Return whether the store has nothing under *node*'s key: neither a version of it nor one that it shall replace."""
        return node.item is None and node.staged is not None and node.staged.replaces is None

    async def _settle_target(self, target: Node) -> None:
        """Prepare a file for being replaced: its waiting changes are done with, and who has it open goes on reading."""
        if self.waits(target):
            await self.writeback.settle(target.key)
        if target.item is not None and target.opens:
            await self.keep_for_readers(self.file(target))

    async def _copied(self, node: Node, item: Object, key: str, replaced: Object | None, exclusive: bool) -> Object:
        """Move the object, whose ctime is now; *replaced* is what it replaces, None nothing."""
        posix, attributes = await self._moved_attributes(node, key)
        try:
            made = await rename_file(self.store, item, key, expecting(replaced), attributes, self.journal)
        except OSError as exc:
            if exc.errno == errno.EEXIST and not exclusive:
                raise OSError(errno.EBUSY, f"{key!r} was made by somebody else") from exc
            raise
        if attributes is not None:
            node.posix = posix
            self.learner.sent(made, attributes)
        return made

    async def _moved_attributes(self, node: Node, key: str) -> tuple[Posix, Attributes | None]:
        """Return the metadata of a moved object; None: it keeps its own, and its new LastModified is its ctime."""
        try:
            posix = await self.learner.learn(node)
            if posix.ctime_ns is None or not self.keeps("ctime_ns"):
                return posix, None
            posix = posix.but(ctime_ns=time.time_ns())
            old = await self.old_head(node)
            if old is not None:
                return posix, self.encoded(key, posix, old)
        except OSError as exc:
            log.info("%r keeps its ctime: %s", key, exc.strerror)
        return NOTHING, None

    def _moved(self, node: Node, target: Node | None, key: str, item: Object | None) -> None:
        """Give *node* the name *key*; what had it has none."""
        if target is not None:
            self.tree.removed(target)
        same, etag = node.cached_etag == node.etag, node.etag
        self.tree.moved(node, key, item)
        self.reread(node)
        if item is not None:
            # A copy has the same bytes, but not always the same ETag.
            self.recent.copied(node.ino, etag, item.etag)
            if same:
                node.cached_etag = item.etag
            self._rebased(node)

    @staticmethod
    def _rebased(node: Node) -> None:
        """Let changes of a file lie over its copy: what it was before is no longer there. Nothing was published meanwhile."""
        staged, item = node.staged, node.item
        if staged is not None and item is not None and staged.base is not None and staged.base.key != item.key:
            staged.base = staged.replaces = item

    async def _rename_directory(self, node: Node, target: Node | None, key: str) -> None:
        if key.startswith(node.key):
            raise OSError(errno.EINVAL, f"{node.key!r} cannot become part of itself")
        if target is not None and not await self.finder.empty(target):
            raise OSError(errno.ENOTEMPTY, f"{target.key!r} is not empty")
        old = node.key
        below = [file.node for file in self.files.values() if file.node.key.startswith(old) and not file.node.gone]
        async with self.alone(*below):
            await self.writeback.settle(old, below=True)
            for other in below:
                if not other.gone:
                    await self.publish_alone(self.file(other), to_store=True)
            copies: dict[str, Object] = {}
            versions: dict[str, str] = {}
            try:
                done = [change for _, change in self.tree.overlay.below(old) if change.kind == PUBLISHED]
                published = {change.key: change.item.etag if change.item is not None else "" for change in done}
                copies = await rename_tree(self.store, self.journal, old, key, versions=versions, published=published)
            except OSError as exc:
                if exc.errno != errno.ENOENT or isinstance(exc, StoreError):
                    raise
                if not any(
                    here.held or here.item is None for here in (node, *self.tree.children(old)) if here.held or not here.is_dir
                ):
                    # Somebody else moved or removed it.
                    self.tree.expire(node)
                    raise
                # Nothing below it in the store: a directory that only this mount remembers.
            for other in below:
                if other.key in versions and other.item is not None and versions[other.key] != other.etag:
                    # Somebody changed it: what moved is not the version that is open here.
                    self.tree.replace(other)
            if target is not None:
                self.tree.removed(target)
            for other in self.tree.moved_tree(old, key, {item.key: item for item in copies.values()}):
                self.reread(other)
                self._rebased(other)
        self.changes_ns.pop(key, None)
        self.moved_changes(old, key)
        if node.posix is not None:
            self.learner.set_directory(key, node.posix)

    # Copying.

    async def copy_file_range(
        self,
        request: Request,
        ino: int,
        handle: Any,
        offset: int,
        ino_out: int,
        handle_out: Any,
        offset_out: int,
        length: int,
        flags: int,
    ) -> int:
        """Copy a whole object to a new or emptied file in one request to the store, at once: what is copied may be changed
        next. EOPNOTSUPP for all else, which the kernel then reads and writes. With write-back all goes through the journal.
        """
        if ino < FIRST_INO and isinstance(handle_out, Handle) and not self.options.write_back:
            source = self.tree.node(ino)
            item = source.item
            whole = item is not None and offset == offset_out == 0 and length >= item.size > SMALL
            if item is not None and whole and (source.staged is None or not source.staged.dirty):
                # Shielded: when it is made, the file is that copy, even if who asked does not wait for it.
                copied = await asyncio.shield(self.spawn(self._copy_inside(item, handle_out.file), f"copying {item.key!r}"))
                if copied:
                    return item.size
        raise OSError(errno.EOPNOTSUPP, "only whole objects are copied inside the store")

    async def _copy_inside(self, item: Object, file: File) -> bool:
        """Let *file*, when it is empty, become a copy of an object; return whether it is."""
        node = file.node
        async with self.alone(node):
            staged: Staged | None = node.staged
            if staged is None or staged.size or staged.stream is not None or staged.attempts or node.gone:
                return False
            condition = expecting(staged.replaces)
            generation = staged.generation
            self._touch_times(node)
            attributes = await self.attributes(node)
            made = await copy_file(self.store, item, node.key, condition, attributes, uuid.uuid4().hex, self.journal)
            if staged.generation != generation:
                # Somebody wrote meanwhile, into a file that was empty then: that counts.
                staged.retarget(made)
                return False
            staged.show(made)
            self.learner.sent(made, attributes)
            self.published(node, staged, made)
            return True


__all__ = ["Moves"]

"""Changing what is known of a file beside its bytes: mode, owner, times, size, extended attributes.

All of it is metadata of the object, which S3 sets only together with a new version. While a file has changes to publish, a
chmod is published with them; otherwise it is a copy of the object onto itself, under the condition that it is still the same.
"""

from __future__ import annotations

import errno
import stat
import time

from pyfusekit.core import Attr, Request, Result, SetAttr

from .deferred.rename import copy_object
from .metadata import xattrs
from .metadata.posix import NOTHING, Posix, blank
from .moves import Moves
from .naming.tree import Node
from .naming.versions import FIRST_INO
from .remote.errors import StoreError
from .remote.store import Bytes, Head, expecting
from .state import Handle
from .writing import conflicts


class Attributed(Moves):
    """setattr and the xattr calls."""

    async def setattr(self, request: Request, ino: int, changes: SetAttr, handle: object) -> Attr:
        """Change size, mode, owner and times. EPERM for what the mount's way of keeping metadata cannot keep."""
        if ino >= FIRST_INO:
            raise self.older.refuse(ino)
        node = self.tree.node(ino)
        await self.learner.learn(node)
        wanted = self._wanted(node, changes)
        if changes.size is not None:
            await self._resize(node, changes.size, handle)
            # The size is a change of the contents, whose time is now; what was asked for beside it stands over that.
            if wanted is not None:
                wanted = self._wanted(node, changes)
        if wanted is not None:
            file = self.files.get(ino)
            if file is not None and (changes.mtime_ns is not None or changes.atime_ns is not None):
                file.times_set = True
            if changes.mtime_ns is not None:
                self.changes_ns.pop(node.key, None)
            node.posix = wanted
            await self._save(node)
        return self.attr(node)

    def _wanted(self, node: Node, changes: SetAttr) -> Posix | None:
        """Return the metadata *changes* ask for, None when they ask for none."""
        now = self.attr(node)
        posix = node.posix or NOTHING
        fields: dict[str, int] = {}
        if changes.mode is not None and stat.S_IMODE(changes.mode) != stat.S_IMODE(now.mode):
            fields["mode"] = stat.S_IFMT(now.mode) | stat.S_IMODE(changes.mode)
        if changes.uid is not None and changes.uid != now.uid:
            fields["uid"] = changes.uid
        if changes.gid is not None and changes.gid != now.gid:
            fields["gid"] = changes.gid
        if changes.mtime_ns is not None:
            fields["mtime_ns"] = changes.mtime_ns
        for field in fields:
            if not self.keeps(field):
                raise OSError(errno.EPERM, f"{field} is not kept with --metadata {self.options.metadata}")
        if changes.atime_ns is not None and self.keeps("atime_ns"):
            fields["atime_ns"] = changes.atime_ns
        if not fields:
            return None
        fields["ctime_ns"] = time.time_ns()
        # What was never said is said now, or a mode alone would leave the owner to whoever mounts it next.
        for field, value in (("mode", now.mode), ("uid", now.uid), ("gid", now.gid), ("mtime_ns", now.mtime_ns)):
            if getattr(posix, field) is None and self.keeps(field):
                fields.setdefault(field, value)
        return posix.but(**fields)

    async def _resize(self, node: Node, size: int, handle: object) -> None:
        """Truncate or lengthen; without an open file that will publish it at its close, publish it now."""
        if node.is_dir:
            raise OSError(errno.EISDIR, f"{node.key!r} is a directory")
        if isinstance(handle, Handle):
            await self._truncate(handle.file, size)
            return
        if node.staged is None and node.item is not None and size == node.item.size:
            return
        if self.by_kernel(node):
            # As open for writing: the name gets another inode, where the kernel repeats it.
            self.tree.replace(node)
            raise OSError(errno.ESTALE, f"{node.key!r} is open for reading")
        file = self.file(node)
        fresh = node.staged is None
        file.handles += 1
        node.opens += 1
        try:
            await self._truncate(file, size)
            if not file.writers:
                await self.publish(file)
        except BaseException:
            staged = node.staged
            if fresh and staged is not None and not file.writers:
                self.give_up(node, unseen=True)
                if staged.kept:
                    # There is nothing in it that somebody wrote. At ESTALE the kernel repeats it with what is there now.
                    conflicts.drop(staged.kept)
                    self.problems.settle(self.place_of(node.key), conflicts=True)
                await self.publisher.discard(staged)
            raise
        finally:
            file.handles -= 1
            node.opens -= 1
            if not file.writers and node.staged is not None and not node.staged.dirty:
                await self._settled(file, node.staged)
            elif not file.handles:
                self._forget_file(file)

    async def _save(self, node: Node, head: Head | None = None) -> None:
        """Bring node.posix to the object, at once or with the changes that are going to be published."""
        if node.gone:
            return
        if node.is_dir:
            await self._save_directory(node, head)
            return
        file = self.files.get(node.ino)
        staged = node.staged
        if head is None and (self.waits(node) or (file is not None and file.writers)):
            self.staged(node).touch()
            if not (file is not None and file.writers):
                await self.writeback.keep(self.staged(node), node.key, await self.attributes(node))
            return
        if staged is not None and staged.dirty:
            staged.touch()
            await self.publish(self.file(node), to_store=True)
            if head is None:
                return
        await self._copy_onto_itself(node, head)

    async def _copy_onto_itself(self, node: Node, head: Head | None) -> None:
        file = self.file(node)
        file.handles += 1
        try:
            async with file.lock:
                item, wanted = node.item, node.posix or NOTHING
                if item is None:
                    raise OSError(errno.ENOENT, f"{node.key!r} has no object")
                old = head if head is not None else await self.learner.head(item)
                attributes = self.encoded(node.key, wanted, old)
                copied = await copy_object(self.store, item, node.key, attributes, expecting(item), journal=self.journal)
                same = node.cached_etag == item.etag
                self.tree.published(node, copied)
                self.recent.copied(node.ino, item.etag, copied.etag)
                self.reread(node)
                if same:
                    node.cached_etag = copied.etag
                if node.staged is not None and not node.staged.dirty:
                    node.staged.base = node.staged.replaces = copied
        except StoreError as exc:
            node.posix = None
            self.lost(node, item, exc) if item is not None else None
            raise
        finally:
            file.handles -= 1
            if not file.handles:
                self._forget_file(file)

    async def _save_directory(self, node: Node, head: Head | None) -> None:
        """Write the folder marker anew. The root of a bucket has none: what is set there lasts as long as the mount."""
        posix = node.posix or NOTHING
        self.learner.set_directory(node.key, posix)
        if not node.key.endswith("/"):
            return
        old = head if head is not None else await self.learner.there(node.key)
        attributes = self.encoded(node.key, posix, old)
        condition = expecting(old.item if old is not None else None)
        if old is not None and old.item.size:
            # A marker with bytes is a file beside the directory: they stay.
            item = await copy_object(self.store, old.item, node.key, attributes, condition, journal=self.journal)
        else:
            item = await self.store.put(node.key, Bytes(b""), attributes, condition)
        self.tree.published(node, item)

    # Extended attributes.

    def getxattr(self, request: Request, ino: int, name: bytes) -> Result[bytes]:
        """Return one of the user's own, or one of S3's words under user.s3; ENODATA."""
        if ino >= FIRST_INO:
            raise OSError(errno.ENODATA, "older versions have no xattrs here")
        need = xattrs.needs(name)
        node = self.tree.node(ino)
        if need == xattrs.NOTHING or (need == xattrs.POSIX and node.posix is not None):
            return xattrs.get(name, node.posix or NOTHING, None)
        return self._getxattr(node, name, need)

    async def _getxattr(self, node: Node, name: bytes, need: int) -> bytes:
        posix = await self.learner.learn(node)
        head = await self._described(node) if need >= xattrs.HEAD else None
        tags = await self.store.tags(node.key) if need == xattrs.TAGS and node.item is not None else None
        return xattrs.get(name, posix, head, tags)

    async def _described(self, node: Node) -> Head:
        """Return the Head of *node*; a blank one when the store has nothing under its key."""
        # Not from the index: it keeps what a copy must repeat, and no more.
        asked = node.item is not None or (node.is_dir and node.key.endswith("/"))
        return (await self.learner.there(node.key) if asked else None) or blank(node.key)

    async def listxattr(self, request: Request, ino: int) -> list[bytes]:
        """Return the names of the user's own; S3's words are found by who knows their names."""
        if ino >= FIRST_INO:
            return []
        return xattrs.names(await self.learner.learn(self.tree.node(ino)))

    async def setxattr(self, request: Request, ino: int, name: bytes, value: memoryview, flags: int) -> None:
        """Set one, in the object's metadata or its tags."""
        await self._assign(ino, name, bytes(value), flags)

    async def removexattr(self, request: Request, ino: int, name: bytes) -> None:
        """Remove one."""
        await self._assign(ino, name, None, 0)

    async def _assign(self, ino: int, name: bytes, value: bytes | None, flags: int) -> None:
        if ino >= FIRST_INO:
            raise self.older.refuse(ino)
        node = self.tree.node(ino)
        posix = await self.learner.learn(node)
        need = xattrs.needs(name)
        whole = need >= xattrs.HEAD
        if whole and node.staged is not None and node.staged.dirty:
            await self.publish(self.file(node), to_store=True)
        head = await self._described(node) if whole else blank(node.key)
        tags = await self.store.tags(node.key) if need == xattrs.TAGS else None
        assigned = xattrs.assign(name, value, flags, posix, head, self.options.metadata, tags)
        if assigned.tags is not None:
            await self.store.set_tags(node.key, assigned.tags)
            return
        node.posix = assigned.posix.but(ctime_ns=time.time_ns()) if self.keeps("ctime_ns") else assigned.posix
        await self._save(node, assigned.head if whole else None)


__all__ = ["Attributed"]

"""Names: looking them up, making and removing them.

What this mount does shows at once, in the tree's overlay; what others do shows when what was learnt of a name is no longer
believed. Every change carries the condition that the store still holds what was seen, so two writers never undo each other in
silence: the loser gets ESTALE at close or fsync.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from typing import Any

from pyfusekit.core import ROOT_ID, Attr, Entries, Opened, Request, Result

from .files import Files, given_up
from .metadata import posix as metadata
from .metadata.posix import NOTHING, Posix
from .naming.keys import NAME_MAX
from .naming.tree import UNKNOWN, Node
from .naming.versions import FIRST_INO
from .naming.versions import NAME as VERSIONS
from .naming.walk import Walk
from .remote.errors import StoreError
from .remote.store import ABSENT, Bytes, Object, expecting, read_range

_SYMLINK_MAX = 4095


class Names(Files):
    """The namespace."""

    def lookup(self, request: Request, parent: int, name: bytes) -> Result[Attr | None]:
        """Answer from a fresh node or listing, else ask the store."""
        if len(name) > NAME_MAX:
            # The kernel itself only knows a limit of 1024.
            raise OSError(errno.ENAMETOOLONG, f"a name has at most {NAME_MAX} bytes")
        if parent >= FIRST_INO:
            return self.older.lookup(parent, name)
        if self.view is not None and parent == ROOT_ID and name == VERSIONS:
            return self.view.enter_root()
        directory = self.tree.node(parent)
        found = self.tree.known(directory, name)
        if found is None:
            return None
        if found is UNKNOWN or self.learner.recall(found) is None:
            return self._lookup(directory, name)
        self.learner.passed(found)
        return self.enter(found)

    async def _lookup(self, directory: Node, name: bytes) -> Attr | None:
        node = await self.find(directory, name)
        return self.enter(node) if node is not None else None

    async def find(self, directory: Node, name: bytes) -> Node | None:
        """Return what *name* is, with its metadata known, or None."""
        missing = False
        for _ in range(3):
            node = await self.finder.named(directory, name)
            if node is None:
                return None
            # Nobody counts it yet, and what is not counted may be let go at the next await.
            node.nlookup += 1
            try:
                await self.learner.learn(node)
            except BaseException as exc:
                node.nlookup -= 1
                self.tree.expire(node)
                self.tree.release(node)
                if isinstance(exc, OSError) and exc.errno in (errno.ENOENT, errno.ESTALE):
                    # The listing was older than the HEAD: once more.
                    missing = exc.errno == errno.ENOENT
                    continue
                raise
            node.nlookup -= 1
            if not node.replaced and not node.gone:
                return node
            self.tree.release(node)
        if missing:
            # The listing lags behind; a HEAD does not.
            return None
        raise OSError(errno.EAGAIN, f"{directory.key!r}: what {name!r} is changes faster than it can be asked")

    def forget(self, ino: int, nlookup: int) -> None:
        """Take lookups back; a node nobody knows is dropped."""
        if ino >= FIRST_INO:
            self.older.forget(ino, nlookup)
            return
        node = self.tree.nodes.get(ino)
        if node is not None:
            node.nlookup -= nlookup
            self.tree.release(node)

    # Making.

    def create(self, request: Request, parent: int, name: bytes, mode: int, umask: int, flags: int) -> Result[tuple[Attr, Any]]:
        """Make a file here; the store learns of it when it is closed, in one request with its first bytes."""
        directory = self._writable_directory(parent)
        if self.tree.known(directory, name) is not None:
            return self._create_over(request, directory, name, mode, flags)
        return self._created(request, directory, name, mode, flags)

    def _created(self, request: Request, directory: Node, name: bytes, mode: int, flags: int) -> tuple[Attr, Opened]:
        node = self.tree.create(self.tree.key_for(directory, name, False), False)
        node.posix = self._new_posix(request, directory, stat.S_IFREG | stat.S_IMODE(mode))
        node.staged = self.scratch.stage(None)
        self.changed(directory)
        opened = self.opened(node, flags)
        return self.enter(node), opened

    async def _create_over(self, request: Request, directory: Node, name: bytes, mode: int, flags: int) -> tuple[Attr, Any]:
        node = await self.find(directory, name)
        if node is None:
            return self._created(request, directory, name, mode, flags)
        if flags & os.O_EXCL:
            raise OSError(errno.EEXIST, f"{node.key!r} exists")
        opened = self.open(request, node.ino, flags)
        if not isinstance(opened, Opened):
            opened = await opened
        return self.enter(node), opened

    def tmpfile(self, request: Request, parent: int, mode: int, umask: int, flags: int) -> tuple[Attr, Opened]:
        """Make a file without a name: local changes that no key is for. What is not linked is gone when it is closed."""
        directory = self._writable_directory(parent)
        node = self.tree.nameless(directory)
        node.posix = self._new_posix(request, directory, stat.S_IFREG | stat.S_IMODE(mode))
        node.staged = self.scratch.stage(None)
        opened = self.opened(node, flags)
        return self.enter(node), opened

    async def link(self, request: Request, ino: int, newparent: int, newname: bytes) -> Attr:
        """Give a file of tmpfile its only name; it is published as a new file is. EPERM for others: an object has one key."""
        if ino >= FIRST_INO:
            raise self.older.refuse(ino)
        node = self.tree.node(ino)
        directory = self._writable_directory(newparent)
        if not self.tree.is_nameless(node):
            raise OSError(errno.EPERM, "S3 has no hard links")
        key = self.tree.key_for(directory, newname, False)
        await self._absent(directory, newname)
        if node.staged is None or not self.tree.is_nameless(node):
            raise OSError(errno.ENOENT, "the file was closed, or got its name, meanwhile")
        self.tree.named(node, key)
        node.posix = (node.posix or NOTHING).but(ctime_ns=time.time_ns())
        self.changed(directory)
        return self.enter(node)

    async def fsyncdir(self, request: Request, ino: int, handle: Any, datasync: int) -> None:
        """Publish the files that were made in a directory and that the store has not heard of yet: their names then last."""
        if ino >= FIRST_INO:
            return
        key = self.tree.node(ino).key
        for file in list(self.files.values()):
            node = file.node
            if node.packed is None and node.staged is not None and not node.gone and self.tree.parent_key(node) == key:
                await self.publish(file)

    def _writable_directory(self, ino: int) -> Node:
        if ino >= FIRST_INO:
            raise self.older.refuse(ino)
        node = self.tree.node(ino)
        if node.gone:
            raise OSError(errno.ENOENT, f"{node.key!r} was removed")
        if not self.source.bucket and node is self.tree.root:
            raise OSError(errno.EPERM, "buckets are neither made nor removed here")
        return node

    def _new_posix(self, request: Request, directory: Node, mode: int) -> Posix:
        """Return the metadata of something *request* makes in *directory*: a set-group-id directory hands its group on."""
        now = time.time_ns()
        gid = request.gid
        above = directory.posix
        if above is not None and above.mode is not None and above.mode & stat.S_ISGID:
            gid = above.gid if above.gid is not None else gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        keeps = self.keeps
        return Posix(
            mode=mode if keeps("mode") or not stat.S_ISREG(mode) else None,
            uid=request.uid if keeps("uid") else None,
            gid=gid if keeps("gid") else None,
            mtime_ns=now,
            ctime_ns=now,
        )

    def keeps(self, field: str) -> bool:
        """Return whether the mount's way of keeping metadata can keep Posix.*field*."""
        return metadata.keeps(self.options.metadata, field)

    async def mkdir(self, request: Request, parent: int, name: bytes, mode: int, umask: int) -> Attr:
        """Put a folder marker, so that the directory is there for everybody and stays when it is empty. EEXIST."""
        directory = self._writable_directory(parent)
        key = self.tree.key_for(directory, name, True)
        posix = self._new_posix(request, directory, stat.S_IFDIR | stat.S_IMODE(mode))
        await self._absent(directory, name)
        item = await self._put_new(key, posix, b"")
        return self._entered_new(directory, key, True, item, posix)

    async def mknod(self, request: Request, parent: int, name: bytes, mode: int, rdev: int, umask: int) -> Attr:
        """Put an empty object; a fifo, socket or device is one with its type in the metadata. EPERM where that is not kept."""
        directory = self._writable_directory(parent)
        if not stat.S_ISREG(mode) and not self.keeps("rdev"):
            raise OSError(errno.EPERM, "special files need --metadata s3fs")
        key = self.tree.key_for(directory, name, False)
        posix = self._new_posix(request, directory, mode)
        if rdev:
            posix = posix.but(rdev=rdev)
        await self._absent(directory, name)
        item = await self._put_new(key, posix, b"")
        return self._entered_new(directory, key, False, item, posix)

    async def symlink(self, request: Request, parent: int, name: bytes, target: bytes) -> Attr:
        """Put an object whose bytes are the target and whose metadata say that it is a symbolic link."""
        directory = self._writable_directory(parent)
        if not self.keeps("mode"):
            raise OSError(errno.EPERM, "symbolic links need --metadata s3fs")
        if len(target) > _SYMLINK_MAX:
            raise OSError(errno.ENAMETOOLONG, "the target of a symbolic link has at most 4095 bytes")
        key = self.tree.key_for(directory, name, False)
        posix = self._new_posix(request, directory, stat.S_IFLNK | 0o777)
        await self._absent(directory, name)
        item = await self._put_new(key, posix, target)
        return self._entered_new(directory, key, False, item, posix)

    async def _absent(self, directory: Node, name: bytes) -> None:
        """Raise EEXIST when the name is there; what is only believed, the condition of the request checks."""
        found = await self.finder.named(directory, name)
        if found is not None:
            raise OSError(errno.EEXIST, f"{found.key!r} exists")

    async def _put_new(self, key: str, posix: Posix, data: bytes) -> Object:
        try:
            return await self.store.put(key, Bytes(data), self.encoded(key, posix), ABSENT)
        except StoreError as exc:
            if exc.errno == errno.ESTALE:
                raise OSError(errno.EEXIST, f"{key!r} was made by somebody else") from exc
            raise

    def _entered_new(self, directory: Node, key: str, is_dir: bool, item: Object, posix: Posix) -> Attr:
        node = self.tree.create(key, is_dir, item)
        node.posix = posix
        self.changed(directory)
        if is_dir:
            self.changes_ns.pop(key, None)
            self.learner.set_directory(key, posix)
        return self.enter(node)

    async def readlink(self, request: Request, ino: int) -> bytes:
        """Read a link's object."""
        node = self.tree.node(ino)
        item = node.item
        if item is None or node.posix is None or not stat.S_ISLNK(node.posix.mode or 0):
            raise OSError(errno.EINVAL, f"{node.key!r} is no symbolic link")
        if item.size > _SYMLINK_MAX:
            raise OSError(errno.EIO, f"{node.key!r} is a symbolic link with a target of {item.size} bytes")
        if not item.size:
            return b""
        try:
            return await read_range(self.store, item, 0, item.size)
        except OSError as exc:
            self.lost(node, item, exc)
            raise

    # Removing.

    async def unlink(self, request: Request, parent: int, name: bytes) -> None:
        """Delete the object, if it is still the version that was seen; who has a small file open goes on reading it."""
        directory = self._writable_directory(parent)
        node = await self._existing(directory, name)
        if node.is_dir:
            raise OSError(errno.EISDIR, f"{node.key!r} is a directory")
        async with self.alone(node):
            if node.gone or node.replaced:
                raise OSError(errno.ENOENT, f"{node.key!r} is gone")
            if node.opens and node.item is not None:
                await self.keep_for_readers(self.file(node))
            await self._delete(node)
            self._lose(directory, node)

    async def _delete(self, node: Node) -> None:
        """Delete what the store has of *node*, and forget what waits to be sent."""
        if self.waits(node):
            await self.writeback.remove(node.key)
            return
        item = node.item
        if item is None and node.staged is not None:
            # Renamed over an object, and never published: that is still there.
            item = node.staged.replaces
        if item is None:
            return
        try:
            await self.store.delete(item.key, expecting(item))
        except StoreError as exc:
            if exc.errno in (errno.ESTALE, errno.ENOENT):
                self.tree.expire(node)
                raise OSError(errno.ESTALE, f"{item.key!r} was changed by somebody else") from exc
            raise

    def _lose(self, directory: Node, node: Node) -> None:
        """Take *node*'s name away; its directory stays, even if this was the last key below it."""
        if directory is not self.tree.root:
            self.tree.hold(directory)
        self.changed(directory)
        self.tree.removed(node)
        file = self.files.get(node.ino)
        if file is None and node.staged is not None:
            staged, node.staged = node.staged, None
            self.spawn(self.publisher.discard(staged), "discarding local changes")

    async def rmdir(self, request: Request, parent: int, name: bytes) -> None:
        """Delete a folder marker, when nothing else begins with it; ENOTEMPTY."""
        directory = self._writable_directory(parent)
        node = await self._existing(directory, name)
        if not node.is_dir:
            raise OSError(errno.ENOTDIR, f"{node.key!r} is a file")
        if not await self.finder.empty(node):
            raise OSError(errno.ENOTEMPTY, f"{node.key!r} is not empty")
        await self.store.delete(node.key)
        self._lose(directory, node)

    async def _existing(self, directory: Node, name: bytes) -> Node:
        node = await self.finder.named(directory, name)
        if node is None:
            raise OSError(errno.ENOENT, f"{name!r} is not in {directory.key!r}")
        return node

    # Directories.

    def opendir(self, request: Request, ino: int, flags: int) -> Result[Any]:
        """Begin a walk; nothing is asked yet."""
        if ino >= FIRST_INO:
            return self.older.opendir(ino)
        return Walk(self.store, self.tree, self.tree.node(ino), self._entry, self.learner.page_seen)

    def _entry(self, node: Node, name: bytes) -> Attr | None:
        """Return the attributes of an entry when nothing need be asked for them."""
        return self.attr(node) if self.learner.recall(node) is not None else None

    def readdir(self, request: Request, ino: int, handle: Any, offset: int) -> Entries:
        """List page by page."""
        if not isinstance(handle, Walk):
            return self._view_entries(ino, handle, offset, False)
        return handle.entries(offset, plus=False)

    def readdirplus(self, request: Request, ino: int, handle: Any, offset: int) -> Entries:
        """List page by page; the listing and the index say what they know of each entry."""
        if not isinstance(handle, Walk):
            return self._view_entries(ino, handle, offset, True)
        return handle.entries(offset, plus=True)

    def _view_entries(self, ino: int, handle: Any, offset: int, plus: bool) -> Entries:
        if self.view is None:
            raise OSError(errno.EBADF, "no directory is open")
        return self.older.readdir(ino, handle, offset, plus)

    def releasedir(self, request: Request, ino: int, handle: Any) -> None:
        """End a walk."""
        if isinstance(handle, Walk):
            handle.close()

    def getattr(self, request: Request, ino: int, handle: Any) -> Result[Attr]:
        """Answer from the node while it is fresh, open, or has local changes."""
        if ino >= FIRST_INO:
            return self.older.getattr(ino)
        node = self.tree.node(ino)
        if node.gone and node.staged is None and node.packed is None and not node.is_dir:
            raise given_up(node)
        file = self.files.get(ino)
        if file is not None and file.given_up:
            raise given_up(node)
        settled = node.opens or node.staged is not None or node.gone or node is self.tree.root
        if (settled or self.tree.fresh(node)) and self.learner.recall(node) is not None:
            return self.attr(node)
        if node.replaced:
            raise OSError(errno.ESTALE, f"{node.key!r} was replaced")
        return self._getattr(node)

    async def _getattr(self, node: Node) -> Attr:
        if not node.opens and node.staged is None and not self.tree.fresh(node) and node is not self.tree.root:
            found = await self.finder.current(node)
            if found is None:
                self.tree.expire(node)
                raise OSError(errno.ENOENT, f"{node.key!r} is gone")
            if found is not node:
                self.tree.release(found)
                # The name is something else now; at ESTALE the kernel looks it up again by itself.
                raise OSError(errno.ESTALE, f"{node.key!r} was replaced")
        await self.learner.learn(node)
        return self.attr(node)


__all__ = ["Names"]

"""The filesystem: S3's objects as read-only files.

Consistency. Names, sizes and times are at most metadata-ttl old, counted from the end of a listing. An open file is one
version of its object, the newest at the time of the open: every GET carries If-Match, and when the object is replaced while
it is open, reads that are not answered yet fail with ESTALE; who opens the name again gets the new version. Bytes of two
versions never mix: the new version of a file that is open is another inode.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from pyfusekit.core import FOPEN_KEEP_CACHE, Attr, Data, Entries, Filesystem, Opened, ReadResult, Request, Result, StatFs

from .listing import NAME_MAX
from .lookup import Finder
from .options import S3Options, parse_source
from .reader import Reader
from .store import Object, Store
from .tree import Node, Tree, same_version
from .walk import Walk

SMALL = 1 << 20
"""Files up to this many bytes are fetched whole when they are opened: one request instead of a HEAD and a GET."""
_BLOCK = 4096


class S3FS(Filesystem):
    """A bucket, or what is under a prefix of it, read-only."""

    summary = "A bucket of Amazon S3 or of a compatible object store."
    Options = S3Options
    source_use = "required"
    read_only = True
    async_dio = False

    def __init__(self, source: str | None, options: S3Options | None = None, *, store: Store | None = None) -> None:
        self.options = options or S3Options()
        self._mounted_ns = time.time_ns()
        self.source = parse_source(source)
        self.tree = Tree(self.source.prefix, self.options.metadata_ttl, self._stamp)
        ttl = self.options.metadata_ttl
        self.attr_ttl = self.entry_ttl = self.negative_ttl = ttl
        self._store = store
        self._finder_of: Finder | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def store(self) -> Store:
        """The store; there is one from init on."""
        if self._store is None:
            raise OSError(errno.ENOTCONN, "the store is not open")
        return self._store

    @property
    def _finder(self) -> Finder:
        if self._finder_of is None:
            self._finder_of = Finder(self.store, self.tree)
        return self._finder_of

    async def init(self) -> None:
        """Connect, and list one name: MountError when that cannot be done."""
        from .probe import open_store, probe

        if self._store is None:
            self._store = await open_store(self.source, self.options)
        try:
            await probe(self._store, self.source)
        except BaseException:
            await self._store.close()
            raise

    async def destroy(self) -> None:
        """End all requests to the store and close it."""
        for task in self._tasks:
            task.cancel()
        while self._tasks:
            with suppress(asyncio.CancelledError):
                await asyncio.wait(self._tasks)
        if self._store is not None:
            await self._store.close()

    def _stamp(self, attr: Attr, directory: bool) -> None:
        """Give a new Attr what the store does not know. A directory's times are the mount's: prefixes have none."""
        options = self.options
        attr.uid = os.getuid() if options.uid is None else options.uid
        attr.gid = os.getgid() if options.gid is None else options.gid
        attr.mode = (stat.S_IFDIR | options.dir_mode) if directory else (stat.S_IFREG | options.file_mode)
        if directory:
            attr.atime_ns = attr.mtime_ns = attr.ctime_ns = attr.btime_ns = self._mounted_ns

    def _dated(self, node: Node) -> Attr:
        """Return *node*'s Attr; the kernel may believe it for what is left of its time."""
        left = max(0.0, node.expires - time.monotonic())
        node.attr.entry_ttl = min(self.entry_ttl, left)
        node.attr.attr_ttl = min(self.attr_ttl, left)
        return node.attr

    def _node(self, ino: int) -> Node:
        node = self.tree.nodes.get(ino)
        if node is None:
            raise OSError(errno.ESTALE, f"inode {ino} is not known")
        return node

    # Names.

    def lookup(self, request: Request, parent: int, name: bytes) -> Result[Attr | None]:
        """Answer from a fresh node or listing, else ask the store."""
        if len(name) > NAME_MAX:
            raise OSError(errno.ENAMETOOLONG, "S3 names shown as files have at most 255 bytes")
        directory = self._node(parent)
        found = self.tree.known(directory, name)
        if found is False:
            return None
        if isinstance(found, Node):
            return self._entered(found)
        return self._lookup(directory, name.decode())

    async def _lookup(self, directory: Node, text: str) -> Attr | None:
        node = await self._finder.lookup(directory, text)
        return self._entered(node) if node is not None else None

    def _entered(self, node: Node) -> Attr:
        node.nlookup += 1
        return self._dated(node)

    def forget(self, ino: int, nlookup: int) -> None:
        """Take lookups back; a node nobody knows is dropped."""
        node = self.tree.nodes.get(ino)
        if node is not None:
            node.nlookup -= nlookup
            self.tree.release(node)

    def entered(self, ino: int) -> None:
        """A readdirplus entry goes to the kernel."""
        node = self.tree.nodes.get(ino)
        if node is not None:
            node.nlookup += 1

    def getattr(self, request: Request, ino: int, handle: Any) -> Result[Attr]:
        """Answer from the node while it is fresh, or open: an open version does not change."""
        node = self._node(ino)
        if node.item is None or node.opens or self.tree.fresh(node):
            return self._dated(node)
        if node.replaced:
            raise OSError(errno.ESTALE, f"{node.key!r} was replaced")
        return self._getattr(node)

    async def _getattr(self, node: Node) -> Attr:
        found = await self._finder.find(node.key)
        if found is node:
            return self._dated(node)
        if found is None:
            self.tree.expire(node)
            raise OSError(errno.ENOENT, f"{node.key!r} is gone")
        self.tree.release(found)
        # The name is something else now; at ESTALE the kernel looks it up again by itself.
        raise OSError(errno.ESTALE, f"{node.key!r} was replaced")

    # Files.

    def open(self, request: Request, ino: int, flags: int) -> Result[Any]:
        """Pin the version that is there now. ESTALE has the kernel look the name up again, so the caller does not see it."""
        node = self._node(ino)
        if node.item is None:
            raise OSError(errno.EISDIR, f"{node.key!r} is a directory")
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, "mounted read-only")
        if node.replaced:
            raise OSError(errno.ESTALE, f"{node.key!r} was replaced")
        if self.tree.fresh(node) and (node.cached_etag == node.item.etag != ""):
            return self._opened(node, self._reader(node.item))
        return self._open(node, node.item)

    async def _open(self, node: Node, item: Object) -> Opened:
        """Ask the store whether *item* is still there: with a small file's contents, otherwise with a HEAD."""
        reader = self._reader(item)
        expires = self.tree.expiry()
        try:
            if 0 < item.size <= SMALL and node.cached_etag != item.etag:
                await reader.begin()
            elif not same_version(item, await self.store.head(item.key)):
                raise OSError(errno.ESTALE, f"{item.key!r} was replaced")
            if node.replaced or node.item is None or not same_version(item, node.item):
                raise OSError(errno.ESTALE, f"{item.key!r} was replaced")
        except OSError as exc:
            reader.close()
            self._gone(node, item, exc)
            raise
        except BaseException:
            reader.close()
            raise
        node.expires = max(node.expires, expires)
        return self._opened(node, reader)

    def _reader(self, item: Object) -> Reader:
        return Reader(self.store, item, self.options.readahead, self._tasks)

    def _opened(self, node: Node, reader: Reader) -> Opened:
        """Count the open. The kernel keeps its cached pages if they are of this very version."""
        node.opens += 1
        etag = reader.item.etag
        keep = FOPEN_KEEP_CACHE if etag and node.cached_etag == etag else 0
        node.cached_etag = etag
        return Opened(reader, flags=keep)

    def _gone(self, node: Node, item: Object, exc: OSError) -> None:
        """Believe *node* no longer when the store says that *item* is not what its key holds."""
        if exc.errno not in (errno.ESTALE, errno.ENOENT) or node.item is None or not same_version(item, node.item):
            return
        if node.opens:
            self.tree.replace(node)
        else:
            self.tree.expire(node)

    def read(self, request: Request, ino: int, handle: Any, offset: int, size: int) -> Result[ReadResult]:
        """Answer from what was fetched ahead, else wait for it."""
        reader: Reader = handle
        found = reader.read(offset, size)
        if isinstance(found, Coroutine):
            return self._read(ino, reader.item, found)
        return found

    async def _read(self, ino: int, item: Object, waiting: Coroutine[Any, Any, bytes | list[Data]]) -> ReadResult:
        try:
            return await waiting
        except OSError as exc:
            node = self.tree.nodes.get(ino)
            if exc.errno == errno.ENOENT:
                # Deleted while open, which POSIX lets a reader survive, but S3 does not.
                exc = OSError(errno.ESTALE, exc.strerror)
            if node is not None:
                self._gone(node, item, exc)
            raise exc from None

    def release(self, request: Request, ino: int, handle: Any) -> None:
        """End the fetches of an open file."""
        reader: Reader = handle
        reader.close()
        node = self.tree.nodes.get(ino)
        if node is not None:
            node.opens -= 1
            self.tree.release(node)

    # Directories.

    def opendir(self, request: Request, ino: int, flags: int) -> Walk:
        """Begin a walk; nothing is asked yet."""
        return Walk(self.store, self.tree, self._node(ino), self._dated)

    def readdir(self, request: Request, ino: int, handle: Any, offset: int) -> Entries:
        """List page by page."""
        walk: Walk = handle
        return walk.entries(offset, plus=False)

    def readdirplus(self, request: Request, ino: int, handle: Any, offset: int) -> Entries:
        """List page by page; the listing itself says sizes and times."""
        walk: Walk = handle
        return walk.entries(offset, plus=True)

    def releasedir(self, request: Request, ino: int, handle: Any) -> None:
        """End a walk."""
        walk: Walk = handle
        walk.close()

    # The whole.

    def statfs(self, request: Request, ino: int) -> StatFs:
        """A bucket has no size and no limit: 1 PiB, all of it free."""
        blocks = (1 << 50) // _BLOCK
        files = 1 << 40
        return StatFs(
            blocks=blocks, bfree=blocks, bavail=blocks, files=files, ffree=files, bsize=_BLOCK, frsize=_BLOCK, namelen=NAME_MAX
        )


__all__ = ["S3FS"]

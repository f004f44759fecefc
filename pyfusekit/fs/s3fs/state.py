"""What all rooms of the filesystem share: the store and what stands before it, a file's open state, and attributes.

Attributes have three origins, the first that says something counts: a local change that is not published yet; the metadata
of the object (a HEAD, or the index of earlier ones); the listing, with the mount's defaults.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import stat
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pyfusekit.cache import BlockCache, Budget, Entry
from pyfusekit.core import CONFLICT, Attr, Backing, Filesystem, Problem, ProblemLog

from .metadata.posix import NOTHING
from .naming.learn import Learner
from .naming.lookup import Finder
from .naming.tree import Node, Tree
from .naming.versions import FIRST_INO
from .options import S3Options, parse_source
from .reader import Neighbours, Reader
from .remote.store import Object, Store
from .writing.recent import Recent
from .writing.scratch import Scratch
from .writing.staging import Staged

if TYPE_CHECKING:
    from .deferred.journal import Journal
    from .deferred.writeback import WriteBack
    from .metadata.index import Index
    from .naming.versions import VersionView
    from .writing.publish import Publisher

log = logging.getLogger("pyfusekit.s3fs")

_BLOCK = 512
_DIRECTORY_SIZE = 4096
_MOST_CHANGES = 1 << 16
"""Directories whose changes here are remembered."""


@dataclass(slots=True, eq=False)
class File:
    """What the open files of one inode share."""

    node: Node
    handles: int = 0
    writers: int = 0
    reader: Reader | None = None
    """Of the version node.item; replaced when this mount publishes another."""
    entry: Entry | None = None
    backing: Backing | None = None
    """While it is set the kernel reads the file by itself, and so must every other open of this inode."""
    times_set: bool = False
    """Somebody set the times by hand (utimensat): they must reach the object exactly."""
    failure: OSError | None = None
    """Why the last publish failed."""
    given_up: bool = False
    """Local changes that its opens have seen will not be published: what they do from now on is ESTALE, never on another
    version's bytes."""
    reserved: int = 0
    """Up to where somebody asked for space (fallocate): st_blocks says so while the file is open."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One publish of a file at a time."""


class Handle:
    """One open file."""

    __slots__ = ("append", "file", "writable")

    def __init__(self, file: File, flags: int) -> None:
        self.file = file
        # Linux truncates with O_RDONLY | O_TRUNC too, and that is a change somebody must publish.
        self.writable = flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)
        self.append = bool(flags & os.O_APPEND)


class Mounted(Filesystem):
    """The state of one mount."""

    def __init__(self, source: str | None, options: S3Options | None = None, *, store: Store | None = None) -> None:
        self.options = options or S3Options()
        self.source = parse_source(source)
        self._mounted_ns = time.time_ns()
        ttl = self.options.metadata_ttl
        negative = ttl if self.options.negative_ttl is None else self.options.negative_ttl
        self.attr_ttl = self.entry_ttl = ttl
        self.negative_ttl = negative
        self.tree = Tree(self.source.prefix, ttl, negative, self.options.keys)
        self.tree.refused = self.report
        self.problems: ProblemLog = ProblemLog()
        self.notes: list[str] = []
        self.files: dict[int, File] = {}
        """By inode number, while somebody has it open."""
        self.changes_ns: dict[str, int] = {}
        """By directory key: when names in it were last changed here. No object says so: it lasts as long as the mount."""
        self._store = store
        self.tasks: set[asyncio.Task[Any]] = set()
        self.budget = Budget(self.options.memory_limit)
        self.recent = Recent()
        self.neighbours = Neighbours(self._make_reader, ttl)
        self.cache: BlockCache | None = None
        self.cache_source = ""
        """What the bucket is called in the disk cache, by everybody who mounts any part of it."""
        self.index: Index | None = None
        self.view: VersionView | None = None
        # Made by init: they need the store.
        self.finder: Finder
        self.learner: Learner
        self.scratch: Scratch
        self.journal: Journal
        self.publisher: Publisher
        self.writeback: WriteBack

    @property
    def store(self) -> Store:
        """The store; there is one from init on."""
        if self._store is None:
            raise OSError(errno.ENOTCONN, "the store is not open")
        return self._store

    def place_of(self, key: str) -> str:
        """Return where below the mountpoint a key is, but for the escapes of odd ones."""
        return key.removeprefix(self.source.prefix)

    def report(self, error: OSError, operation: str, key: str, remedy: str = "") -> None:
        """Keep a failure for ``pyfusekit errors``; who asked got only its errno."""
        if operation == CONFLICT:
            # The refused request that showed it says less.
            self.problems.settle(self.place_of(key))
        self.problems.add(
            Problem(
                time=time.time(),
                operation=operation,
                path=self.place_of(key),
                errno=error.errno or errno.EIO,
                cause=error.strerror or str(error),
                remedy=remedy,
                request_id=getattr(error, "request_id", ""),
            )
        )

    def spawn(self, work: Coroutine[Any, Any, Any], what: str) -> asyncio.Task[Any]:
        """Run *work* beside the requests; its failure is logged, and the mount's end ends it."""

        async def run() -> Any:
            try:
                return await work
            except OSError as exc:
                log.info("%s: %s", what, exc)

        task = asyncio.get_running_loop().create_task(run())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def end_tasks(self) -> None:
        """End everything that runs beside the requests."""
        for task in list(self.tasks):
            task.cancel()
        if self.tasks:
            await asyncio.gather(*self.tasks, return_exceptions=True)

    @property
    def older(self) -> VersionView:
        """The view of older versions, for inode numbers that are its own."""
        if self.view is None:
            raise OSError(errno.ESTALE, "there is no view of older versions")
        return self.view

    # Attributes.

    def attr(self, node: Node) -> Attr:
        """Return *node*'s attributes; the kernel may believe them for what is left of its time."""
        posix = node.posix or NOTHING
        attr = Attr(ino=node.ino)
        self.stamp(attr, node.is_dir)
        if node.is_dir:
            attr.size = _DIRECTORY_SIZE
        else:
            staged: Staged | None = node.staged
            attr.size = staged.size if staged is not None else node.size
            file = self.files.get(node.ino) if node.opens else None
            taken = attr.size if file is None else max(attr.size, file.reserved)
            attr.blocks = (taken + _BLOCK - 1) // _BLOCK
            attr.blksize = 1 << 20
        if node.gone:
            attr.nlink = 0
        if node.mtime_ns:
            attr.atime_ns = attr.mtime_ns = attr.ctime_ns = attr.btime_ns = node.mtime_ns
        posix.fill(attr)
        if node.is_dir and self.changes_ns:
            changed = self.changes_ns.get(node.key, 0)
            if changed:
                attr.mtime_ns = changed
                attr.ctime_ns = max(attr.ctime_ns, changed)
        if node.staged is None:
            left = max(0.0, node.expires - time.monotonic())
            attr.entry_ttl = min(self.entry_ttl, left)
            attr.attr_ttl = min(self.attr_ttl, left)
        return attr

    def stamp(self, attr: Attr, is_dir: bool) -> None:
        """Give *attr* what the mount says where no object does: owner, mode, and the time of the mount."""
        options = self.options
        attr.uid = os.getuid() if options.uid is None else options.uid
        attr.gid = os.getgid() if options.gid is None else options.gid
        attr.mode = (stat.S_IFDIR | options.dir_mode) if is_dir else (stat.S_IFREG | options.file_mode)
        attr.atime_ns = attr.mtime_ns = attr.ctime_ns = attr.btime_ns = self._mounted_ns

    def changed(self, *directories: Node) -> None:
        """Note that names in *directories* changed now."""
        now = time.time_ns()
        for directory in directories:
            self.changes_ns.pop(directory.key, None)
            self.changes_ns[directory.key] = now
            if len(self.changes_ns) > _MOST_CHANGES:
                del self.changes_ns[next(iter(self.changes_ns))]

    def moved_changes(self, old: str, new: str) -> None:
        """Note that what was below the directory key *old* is below *new*."""
        for key in [key for key in self.changes_ns if key.startswith(old)]:
            self.changes_ns[new + key[len(old) :]] = self.changes_ns.pop(key)

    def entered(self, ino: int) -> None:
        """A readdirplus entry goes to the kernel."""
        if ino >= FIRST_INO:
            self.older.entered(ino)
            return
        node = self.tree.nodes.get(ino)
        if node is not None:
            node.nlookup += 1

    def enter(self, node: Node) -> Attr:
        """Count a lookup of *node* and return its attributes."""
        node.nlookup += 1
        return self.attr(node)

    # Content.

    def file(self, node: Node) -> File:
        """Return the open state of *node*, made when nobody had it open."""
        found = self.files.get(node.ino)
        if found is None:
            found = self.files[node.ino] = File(node)
        return found

    def reader(self, file: File) -> Reader:
        """Return the reader of the version that *file* shows."""
        if file.reader is None:
            item = file.node.item
            if item is None:
                raise OSError(errno.ESTALE, f"{file.node.key!r} has no object")
            file.reader = self.neighbours.take(item) or self._make_reader(item)
            file.entry = file.reader.entry
        return file.reader

    def _make_reader(self, item: Object) -> Reader:
        entry = None
        if self.cache is not None and item.etag:
            entry = self.cache.open(self.cache_source, item.key, item.etag, item.size)
        return self.new_reader(self.store, item, entry)

    def new_reader(self, store: Store, item: Object, entry: Entry | None = None) -> Reader:
        """Return a reader within the mount's memory; *store* may be one of older versions."""
        return Reader(store, item, limit=self.options.readahead, budget=self.budget, entry=entry, tasks=self.tasks)

    def drop_reader(self, file: File) -> None:
        """End the fetches of *file*, but those that reads wait for; the next read makes a reader of what is there then."""
        if file.reader is not None:
            file.reader.close()
            file.reader = None
        if file.entry is not None:
            file.entry.close()
            file.entry = None

    def reread(self, node: Node) -> None:
        """Read on where *node*'s bytes are now: under another key, or with another ETag, the same."""
        file = self.files.get(node.ino)
        if file is not None and file.reader is not None:
            item = node.item
            if item is not None:
                file.reader.item = item

    def lost(self, node: Node, item: Object, exc: OSError) -> None:
        """Believe *node* no longer when the store says that *item* is not what its key holds."""
        if exc.errno not in (errno.ESTALE, errno.ENOENT) or node.item != item or node.replaced or node.gone:
            return
        if node.opens:
            self.tree.replace(node)
        else:
            self.tree.expire(node)


__all__ = ["File", "Handle", "Mounted"]

"""The filesystem: a bucket of S3 as a folder. Its life, and what the operator asks.

Consistency. Names, sizes and times are at most metadata-ttl old, counted from the end of a listing. An open file is one
version of its object, the newest at the time of the open, or one that was seen less than metadata-ttl before: every GET
carries If-Match, and when the object is replaced while it is open, reads that are not answered yet fail with ESTALE; who
opens the name again gets the new version. What this mount wrote it believes for 5 seconds longer. Bytes of two
versions never mix: the new version of a file that is open is another inode. What is written becomes the next version at
close or fsync, whole, and only over the version that was read.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyfusekit.cache import BlockCache
from pyfusekit.core import CONFLICT, Problem, Request, StatFs

from .attributes import Attributed
from .deferred.journal import Journal, home_of
from .deferred.writeback import Pending, WriteBack
from .metadata.index import Index
from .naming.keys import NAME_MAX
from .naming.learn import Learner
from .naming.lookup import Finder
from .naming.tree import Node
from .naming.versions import VersionView
from .options import S3Options
from .remote.store import Object, Store
from .writing import conflicts
from .writing.publish import Publisher
from .writing.scratch import Scratch

log = logging.getLogger("pyfusekit.s3fs")

_BLOCK = 4096
_INDEX_BYTES = 256 << 20


class S3FS(Attributed):
    """A bucket, what is under a prefix of it, or all buckets."""

    summary = "A bucket of Amazon S3 or of a compatible object store."
    Options = S3Options
    source_use = "optional"
    atomic_o_trunc = True
    async_dio = False
    explicit_inval_data = True
    """Cached pages are dropped at open when they are another version's (no FOPEN_KEEP_CACHE), not whenever a time changes."""

    # The mount's life.

    async def init(self) -> None:
        """Connect, list one name, find out what the server honours, and take over what a dead server of this source left."""
        from .remote.probe import open_store, probe

        if self._store is None:
            self._store = await open_store(self.source, self.options, self.report)
        try:
            await probe(self._store, self.source)
            await self._furnish(self._store)
        except BaseException:
            await self._close()
            raise

    async def _furnish(self, store: Store) -> None:
        """Make what stands before the store."""
        options = self.options
        if options.probe and not self.read_only:
            from .remote.probe import features

            self.notes += await features(store, self.source, self._cache_home())
            for note in self.notes:
                log.warning("%s", note)
        self.finder = Finder(store, self.tree)
        if options.metadata != "none":
            self.index = Index(os.path.join(self._cache_home(), "index", f"{self._identity()}.sqlite"), _INDEX_BYTES)
            await self.index.open()
        self.learner = Learner(store, self.tree, self.index, options.metadata)
        if options.cache_size:
            self.cache = BlockCache(os.path.join(self._cache_home(), "blocks"), options.cache_size)
            self.cache_source = self._identity()
        if options.versions:
            self.view = VersionView(
                store, self.source.prefix, ttl=options.metadata_ttl, stamp=self.stamp, reader=self.new_reader
            )
        home = home_of(options.staging_dir, self._endpoint(), str(self.source))
        staging = os.path.dirname(os.path.dirname(home))
        self.journal = Journal(home)
        self.scratch = Scratch(
            os.path.join(staging, "scratch"), options.staging_size, conflicts=os.path.join(staging, "conflicts")
        )
        self.publisher = Publisher(
            store,
            options,
            self.scratch,
            source=str(self.source),
            report=self.report,
            begun=self.journal.upload_begun,
            ended=self.journal.upload_ended,
        )
        self.writeback = WriteBack(
            store,
            self.publisher,
            self.scratch,
            self.journal,
            uploads=options.uploads,
            delay=options.write_back_delay,
            published=self._uploaded,
            failed=self._not_uploaded,
        )
        for kept in conflicts.kept(self.scratch.conflicts):
            if kept.source != str(self.source):
                continue
            self.problems.add(
                Problem(
                    operation=CONFLICT,
                    path=self.place_of(kept.key),
                    errno=errno.ESTALE,
                    cause=f"{kept.why}; the local version is kept in {kept.path}",
                    remedy=f"compare it with the file, then remove {kept.path} and {kept.path}.json",
                    time=kept.time_ns / 1e9,
                )
            )
        for pending in await self.writeback.start():
            node = self.tree.create(pending.key, False, pending.base)
            node.staged = pending.staged

    def _endpoint(self) -> str:
        return str(getattr(self.store, "endpoint", ""))

    def _identity(self) -> str:
        """Return a file name for what belongs to this bucket at this endpoint, whoever mounts it."""
        return os.path.basename(home_of("/", self._endpoint(), self.source.bucket))

    def _cache_home(self) -> str:
        if self.options.cache_dir:
            return os.path.join(os.path.abspath(os.path.expanduser(self.options.cache_dir)), "s3")
        base = os.environ.get("XDG_CACHE_HOME") or os.path.join(Path.home(), ".cache")
        return os.path.join(base, "pyfusekit", "s3")

    async def destroy(self) -> None:
        """End all requests to the store and close it. What could not be published stays in the journal."""
        await self._close()

    async def _close(self) -> None:
        self.neighbours.close()
        for file in list(self.files.values()):
            self.drop_reader(file)
            if file.backing is not None:
                file.backing.close()
        await self.end_tasks()
        for name in ("learner", "writeback", "publisher"):
            part = getattr(self, name, None)
            if part is not None:
                await part.close()
        if hasattr(self, "scratch"):
            self.scratch.close()
        if self.index is not None:
            await self.index.close()
        if self.cache is not None:
            self.cache.close()
        if self._store is not None:
            await self._store.close()

    # What the journal says.

    def _uploaded(self, pending: Pending, item: Object) -> None:
        """A file that waited is in the store."""
        self.problems.settle(self.place_of(pending.key))
        node = self.tree.at(pending.key, False)
        if node is None or node.staged is not pending.staged:
            return
        staged = node.staged
        self.published(node, staged, item)
        file = self.files.get(node.ino)
        if not self.waits(node) and not staged.dirty and (file is None or not file.writers):
            self.spawn(self._settled(self.file(node), staged), "letting a staging file go")

    def _not_uploaded(self, pending: Pending, error: OSError, final: bool) -> None:
        """A file that waits could not be sent; when *final*, its bytes are where the error says."""
        self.report(error, "upload", pending.key)
        if not final:
            return
        node = self.tree.at(pending.key, False)
        if node is not None and node.staged is pending.staged:
            self.give_up(node)

    # The whole.

    def statfs(self, request: Request, ino: int) -> StatFs:
        """A bucket has no size and no limit: 1 PiB, all of it free."""
        blocks = (1 << 50) // _BLOCK
        files = 1 << 40
        return StatFs(
            blocks=blocks, bfree=blocks, bavail=blocks, files=files, ffree=files, bsize=_BLOCK, frsize=_BLOCK, namelen=NAME_MAX
        )

    # What the operator asks.

    def waiting(self) -> tuple[int, int]:
        """Return what was acknowledged and is not in the store yet."""
        return self.writeback.waiting()

    async def drain(self, deadline: float) -> None:
        """Upload what waits, until *deadline* on the monotonic clock."""
        left = deadline - asyncio.get_running_loop().time()
        await self.writeback.drain(None if left == float("inf") else max(0.0, left))

    async def refresh(self, path: bytes) -> int:
        """Believe nothing of *path* and below, and have the kernel drop it."""
        node = self.tree.root
        for name in filter(None, path.split(b"/")):
            found = self.tree.known(node, name)
            if not isinstance(found, Node):
                # What is not believed, or believed absent, is asked for again once its directory is.
                break
            node = found
        stale = self.tree.refresh(node.key)
        # Names that are not there are not among the nodes, but the kernel may believe in their absence for long.
        notes = [self.notifier.inc_epoch()]
        for other in stale:
            other.posix = other.posix if other.staged is not None else None
            notes.append(self.notifier.inval_inode(other.ino))
        for note in notes:
            with suppress(OSError):
                await note
        return len(stale)

    def disk_cache(self) -> BlockCache | None:
        """Return the cache on disk, None without one."""
        return self.cache

    def details(self) -> dict[str, Any]:
        """Return counts, and what the server does not honour."""
        return {"notes": list(self.notes), **self.tree.counts()}


__all__ = ["S3FS"]

"""The filesystem: a web directory or a URL as files. Its life, and what the operator asks.

Consistency. Names, sizes and times are at most metadata-ttl old. An open file is one version, the newest at the time of the
open or one that was seen less than metadata-ttl before; when it is replaced while it is open, reads of what was not read yet
fail with ESTALE, and who opens the name again gets the new version. Bytes of two versions never mix: the new version of a file
that is open is another inode.
"""

from __future__ import annotations

import hashlib
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pyfusekit.cache import BlockCache

from .changing import Changes
from .options import HttpOptions

log = logging.getLogger("pyfusekit.httpfs")


class HttpFS(Changes):
    """A directory of a web server, or one file of it."""

    summary = "A web directory or a URL, as files."
    Options = HttpOptions
    source_use = "required"
    atomic_o_trunc = True
    async_dio = False
    explicit_inval_data = True
    """Cached pages are dropped at open when they are another version's (no FOPEN_KEEP_CACHE), not whenever a time changes."""

    # The mount's life.

    async def init(self) -> None:
        """Find out what the source is; with --offline auto, what it was."""
        from .client.offline import GatedWeb
        from .contents.reading import Files
        from .naming.listings import Lister
        from .naming.pages import Pages
        from .naming.resolve import Resolver
        from .root import discover

        options = self.options
        self.web = GatedWeb(options, self.source, self.failed, self._reached)
        # Without user and password: it is shown, and the names of files begin with it.
        self.source = self.tree.root.url = self.web.source
        try:
            await self.web.start()
            if options.offline != "never":
                self.pages = Pages(os.path.join(self._cache_home(), "index", f"{self._identity()}.sqlite"))
                await self.pages.open()
            if options.cache_size:
                self.cache = BlockCache(os.path.join(self._cache_home(), "blocks"), options.cache_size)
            self.content = Files(self.web, options, self.cache, self.budget, self.tasks)
            self.lister = Lister(self.web, self.tree, options, self.pages)
            self.resolver = Resolver(
                self.web,
                self.tree,
                self.content.probe,
                self.pages,
                ttl=options.metadata_ttl,
                negative_ttl=options.negative_ttl,
            )
            await discover(self)
            self._remark()
            await self.start_writing()
        except BaseException:
            await self._close()
            raise

    def _remark(self) -> None:
        """Note what the person who mounts should know."""
        root = self.tree.root
        if not root.is_listed:
            self._notes.append(
                "the server does not list the directory: names are found by asking for them, and ls shows those found"
            )

    def _reached(self, offline: bool) -> None:
        """The host went, or has come back: then everything is asked for again as it is wanted."""
        if not offline:
            for directory in list(self.tree.directories.values()):
                directory.expires = min(directory.expires, 0.0) if not self.single else directory.expires

    def _identity(self) -> str:
        """Return a file name for what belongs to this origin, as this user sees it."""
        parts = urlsplit(self.source)
        user = self.options.user or "?" if self.options.password or self.options.bearer_token else self.options.user
        return hashlib.sha256(f"{parts.scheme}://{parts.netloc}\n{user}".encode()).hexdigest()[:32]

    def _cache_home(self) -> str:
        if self.options.cache_dir:
            return os.path.join(os.path.abspath(os.path.expanduser(self.options.cache_dir)), "http")
        base = os.environ.get("XDG_CACHE_HOME") or os.path.join(Path.home(), ".cache")
        return os.path.join(base, "pyfusekit", "http")

    async def destroy(self) -> None:
        """End all requests."""
        await self._close()

    async def _close(self) -> None:
        await self.end_writing()
        for file in list(self.files.values()):
            file.handles = file.opening = 0
            self._left(file)
        for name in ("lister", "resolver"):
            part = getattr(self, name, None)
            if part is not None:
                await part.close()
        await self.end_tasks()
        await self.web.close()
        if self.pages is not None:
            await self.pages.close()
        if self.cache is not None:
            self.cache.close()

    # What the operator asks.

    async def refresh(self, path: bytes) -> int:
        """Believe nothing of *path* and below, and have the kernel drop it."""
        found = self.tree.forget(path)
        # Names that are not there are no nodes, but the kernel may believe in their absence.
        notes = [self.notifier.inc_epoch()]
        for ino in found:
            directory, place = self.tree.row(ino)
            if directory.lookups[place]:
                notes.append(self.notifier.inval_inode(ino))
        for note in notes:
            with suppress(OSError):
                await note
        return len(found)

    def disk_cache(self) -> BlockCache | None:
        """Return the cache on disk, None without one."""
        return self.cache

    def details(self) -> dict[str, Any]:
        """Return how the source is listed, whether it can be reached, and counts."""
        web = getattr(self, "web", None)
        offline = web is not None and web.offline
        return {
            "notes": list(self.notes),
            "source": "one file" if self.single else "a directory",
            "driver": self.tree.root.told.driver,
            "offline": offline,
            **self.tree.counts(),
        }


__all__ = ["HttpFS"]

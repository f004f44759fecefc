"""What all rooms of the filesystem share: the web before it, the tree, attributes, and what is open."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import stat
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from pyfusekit.cache import BlockCache, Budget
from pyfusekit.core import ROOT_ID, Attr, Backing, Filesystem, Problem, ProblemLog, Request, Result

from .naming.nodes import EXACT, GONE, IS_DIR, NO_TIME, PROBED, UNSIZED, Directory
from .naming.tree import Tree
from .options import HttpOptions, parse_source
from .values import HttpError

if TYPE_CHECKING:
    from .client.offline import GatedWeb
    from .contents.reading import Files, OpenFile
    from .naming.listings import Lister
    from .naming.pages import Pages
    from .naming.resolve import Resolver

log = logging.getLogger("pyfusekit.httpfs")

BLOCK = 512
_DIRECTORY_SIZE = 4096


class File:
    """What the open files of one inode share."""

    __slots__ = ("backing", "content", "data", "handles", "ino", "lock", "opening", "unsized")

    def __init__(self, ino: int) -> None:
        self.ino = ino
        self.handles = 0
        self.opening = 0
        """Opens that are under way, and need it."""
        self.content: OpenFile | None = None
        self.data: bytes | None = None
        """All of a small file, fetched when it was opened: who replaces it a moment later does not spoil the read."""
        self.backing: Backing | None = None
        """While it is set the kernel reads the file by itself, and so must every other open of this inode."""
        self.unsized = False
        """Its size was not known when it was opened: the end of the file tells it."""
        self.lock = asyncio.Lock()
        """One open at a time."""


class Mounted(Filesystem):
    """The state of one mount."""

    def __init__(self, source: str | None, options: HttpOptions | None = None) -> None:
        self.options = options or HttpOptions()
        self.source = parse_source(source)
        self._mounted_ns = time.time_ns()
        self.read_only = not self.options.rw
        self.attr_ttl = self.entry_ttl = self.options.metadata_ttl
        self.negative_ttl = self.options.negative_ttl
        self.files: dict[int, File] = {}
        """By inode number, while somebody has it open."""
        self.tree = Tree(self.source, self.files.__contains__)
        self.problems: ProblemLog = ProblemLog()
        self._notes: list[str] = []
        self.tasks: set[asyncio.Task[Any]] = set()
        self.budget = Budget(self.options.memory_limit)
        self.single = False
        """The source is one file."""
        self.cache: BlockCache | None = None
        self.pages: Pages | None = None
        self._attr = self.blank()
        # Made by init.
        self.web: GatedWeb
        self.content: Files
        self.lister: Lister
        self.resolver: Resolver

    # What went wrong.

    def place_of(self, url: str) -> str:
        """Return where below the mountpoint a URL is; the URL when it is elsewhere."""
        base = self.tree.root.url
        return unquote(url.removeprefix(base)) if url.startswith(base) else url

    def report(self, error: OSError, operation: str, url: str = "", remedy: str = "") -> None:
        """Keep a failure for ``pyfusekit errors``; who asked got only its errno."""
        self.problems.add(
            Problem(
                time=time.time(),
                operation=operation,
                path=self.place_of(url or getattr(error, "url", "")),
                errno=error.errno or errno.EIO,
                cause=error.strerror or str(error),
                remedy=remedy,
            )
        )

    def failed(self, error: HttpError, what: str) -> None:
        """Keep a request that failed for good; that something is not there is no problem."""
        if error.errno not in (errno.ENOENT, errno.ESHUTDOWN):
            self.report(error, what)

    @property
    def notes(self) -> list[str]:  # type: ignore[override]
        """What the person who mounts should know."""
        web = getattr(self, "web", None)
        if web is None or not web.offline:
            return list(self._notes)
        return [*self._notes, f"offline, only what is cached is served: {web.why}"]

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

    # Attributes.

    def blank(self) -> Attr:
        """Return an Attr with what is the same for all."""
        options = self.options
        uid = os.getuid() if options.uid is None else options.uid
        gid = os.getgid() if options.gid is None else options.gid
        return Attr(uid=uid, gid=gid)

    @property
    def file_mode(self) -> int:
        """The mode of files."""
        return stat.S_IFREG | self.options.file_mode | (0o200 if self.options.rw else 0)

    @property
    def dir_mode(self) -> int:
        """The mode of directories."""
        return stat.S_IFDIR | self.options.dir_mode | (0o200 if self.options.rw else 0)

    def attr(self, directory: Directory, place: int, attr: Attr | None = None) -> Attr:
        """Return a row's attributes, in *attr* or an Attr that the next call uses again: the core packs it at once."""
        flags = directory.flags[place]
        attr = attr or self._attr
        attr.ino = ino = directory.ino_at(place)
        if flags & IS_DIR:
            attr.mode = self.dir_mode
            attr.size = _DIRECTORY_SIZE
            attr.blocks = 0
            attr.blksize = 4096
        else:
            attr.mode = self.file_mode
            attr.size = size = directory.sizes[place]
            attr.blocks = (size + BLOCK - 1) // BLOCK
            attr.blksize = 1 << 20
        attr.nlink = 0 if flags & GONE else 1
        mtime = directory.mtimes[place]
        attr.mtime_ns = attr.atime_ns = attr.ctime_ns = attr.btime_ns = self._mounted_ns if mtime == NO_TIME else mtime
        if ino == ROOT_ID or directory.loading is not None:
            # What is handed out of a listing that still comes in has come just now.
            attr.entry_ttl = attr.attr_ttl = None
        else:
            left = max(0.0, self.expiry(directory, place) - time.monotonic())
            attr.entry_ttl = attr.attr_ttl = left if left < self.attr_ttl else None
        return attr

    def expiry(self, directory: Directory, place: int) -> float:
        """Return until when what is known of a row is believed."""
        flags = directory.flags[place]
        if flags & (PROBED | UNSIZED) and not flags & IS_DIR:
            extra = directory.extras.get(place)
            if extra is None:
                return 0.0
            return extra.expires if flags & PROBED else extra.checked + self.options.metadata_ttl
        if flags & PROBED:
            extra = directory.extras.get(place)
            return extra.expires if extra is not None else 0.0
        return directory.expires

    def settled(self, directory: Directory, place: int) -> bool:
        """Return whether a row's attributes need not be asked for."""
        if not directory.flags[place] & EXACT:
            return False
        return time.monotonic() < self.expiry(directory, place)

    def enter(self, directory: Directory, place: int) -> Attr:
        """Count a lookup of a row and return its attributes."""
        attr = self.attr(directory, place)
        self.tree.entered(attr.ino)
        return attr

    def entered(self, ino: int) -> None:
        """A readdirplus entry goes to the kernel."""
        self.tree.entered(ino)

    def forget(self, ino: int, nlookup: int) -> None:
        """The kernel takes lookups back."""
        self.tree.forgot(ino, nlookup)

    def getattr(self, request: Request, ino: int, handle: Any) -> Result[Attr]:
        """Answer from the row while it is believed, or open."""
        directory, place = self.tree.row(ino)
        if ino == ROOT_ID or ino in self.files or self.settled(directory, place):
            if directory.flags[place] & GONE and ino not in self.files:
                raise OSError(errno.ESTALE, f"{directory.names[place]!r} was replaced")
            return self.attr(directory, place)
        return self._getattr(ino, directory, place)

    async def _getattr(self, ino: int, directory: Directory, place: int) -> Attr:
        await self.refreshed(directory, place)
        if directory.flags[place] & GONE:
            # The name is something else now, or nothing: at ESTALE the kernel looks it up again by itself.
            raise OSError(errno.ESTALE, f"{directory.names[place]!r} was replaced")
        return self.attr(directory, place)

    async def refreshed(self, directory: Directory, place: int) -> None:
        """Ask for what is too old of a row, or not known; the row may be GONE then."""
        if directory.flags[place] & PROBED or not directory.is_listed:
            if not self.settled(directory, place) and not directory.flags[place] & GONE:
                if directory.flags[place] & IS_DIR:
                    await self.resolver.find(directory, directory.names[place])
                else:
                    await self._checked(directory, place)
            return
        await self.lister.ensure(directory)
        flags = directory.flags[place]
        told = flags & EXACT and not flags & UNSIZED
        if not flags & GONE and not told and not self.settled(directory, place):
            try:
                await self.resolver.size(directory, place)
            except HttpError as exc:
                if exc.status not in (404, 410):
                    raise

    async def _checked(self, directory: Directory, place: int) -> None:
        try:
            await self.resolver.check(directory, place)
        except HttpError as exc:
            if exc.status not in (404, 410):
                raise


__all__ = ["BLOCK", "File", "Mounted"]

"""Open files: one version of each, for all who have it open, read by ranges, from a spool or as it comes by.

ESTALE is final for an open file: whoever opens it again asks the server what is there now.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

from pyfusekit.cache import BlockCache, Budget, CachedReader, Data, Entry

from ..client.words import shown
from ..options import HttpOptions
from ..values import HttpError, Resource
from .probe import Prober
from .resource import cache_key, origin_of, strongest
from .source import RangeIgnored, Source
from .spool import Spool, Streamed, again, too_large

if TYPE_CHECKING:
    from ..client.web import Web

log = logging.getLogger("pyfusekit.httpfs")

Version: TypeAlias = tuple[str, str, int | None]
"""URL, what names the version, size."""


class Files:
    """The files of a mount that are open. *tasks* gets what runs beside the requests: who ends the mount waits for them."""

    def __init__(
        self,
        web: Web,
        options: HttpOptions,
        cache: BlockCache | None,
        budget: Budget,
        tasks: set[asyncio.Task[Any]],
    ) -> None:
        self.web = web
        self.options = options
        self.cache = cache
        self.budget = budget
        self.tasks = tasks
        self.prober = Prober(web)
        self._open: dict[Version, OpenFile] = {}

    async def probe(self, url: str, mirrors: Sequence[str] = (), hashes: Sequence[tuple[str, str]] = ()) -> Resource:
        """Return what the server says of *url* now, or the first of its *mirrors* that can be had; HttpError.

        By HEAD, and by a GET of one byte where HEAD is refused or tells no size.
        """
        return await self.prober.probe(url, mirrors, hashes)

    async def open(self, resource: Resource) -> OpenFile:
        """Return the version that *resource* describes, to be read; close it once for each open.

        Nothing is asked: what the cache has can be read while the host is gone. OSError: EFBIG, EOPNOTSUPP where the server
        serves no ranges and the options do not allow for that.
        """
        named = cache_key(resource)
        version = self._shared_as(resource, named)
        file = self._open.get(version) if version is not None else None
        if file is None:
            entry = self._entry(resource, named)
            try:
                if entry is not None and entry.doubtful and (strongest(resource.hashes) or resource.ranges is False):
                    # What is missing of such a file cannot be fetched alone.
                    await asyncio.to_thread(entry.verify)
                file = self._open.get(version) if version is not None else None
                if file is None:
                    file = OpenFile(self, resource, entry)
                    entry = None
                    if version is not None:
                        self._open[version] = file
            finally:
                if entry is not None:
                    entry.close()
        file.opens += 1
        return file

    def _entry(self, resource: Resource, named: str) -> Entry | None:
        """Return the place of a version in the disk cache; None when nothing names it for ever."""
        if self.cache is None or not named or not resource.size:
            return None
        return self.cache.open(*_place(resource), named, resource.size)

    def _shared_as(self, resource: Resource, named: str) -> Version | None:
        """Return what those have in common who may read one OpenFile; None when it cannot be told whether they do."""
        if not named and not resource.validator.etag:
            return None
        return resource.url, named or resource.validator.etag, resource.size

    def left(self, file: OpenFile) -> None:
        """Forget a file that nobody has open."""
        for version, there in list(self._open.items()):
            if there is file:
                del self._open[version]

    async def adopt(self, resource: Resource, fd: int) -> None:
        """Keep a spooled file in the disk cache. *fd* is closed by who calls, afterwards."""
        named = cache_key(resource)
        if self.cache is not None and named and resource.size:
            await asyncio.to_thread(self.cache.adopt, *_place(resource), named, resource.size, fd)


class OpenFile:
    """One version of a file. Made by Files.open; *opens* of it are closed one by one."""

    def __init__(self, files: Files, resource: Resource, entry: Entry | None) -> None:
        self.resource = resource
        self.size = resource.size
        """Bytes; None until all was fetched, when the server does not tell: see :meth:`whole`."""
        self.opens = 0
        self.error: OSError | None = None
        """Why nothing more can be read: the version is gone."""
        self._files = files
        self._entry = entry
        mirrors = [resource._replace(url=url, final_url=url, mirrors=()) for url in resource.mirrors]
        self._sources = [Source(files.web, files.prober, one) for one in (resource, *mirrors)]
        self._unknown = set(self._sources[1:])
        """Mirrors nobody has asked yet what they have."""
        self._whole: Spool | Streamed | None = None
        self._adopting: asyncio.Task[None] | None = None
        self._closed = False
        cached = resource.size == 0 or (entry is not None and entry.complete)
        self._only_whole = not cached and (self._verified or resource.size is None or resource.ranges is False or self._unnamed)
        """Nothing can be read before all of it is being fetched: with the first read."""
        if self._only_whole:
            self._check_whole()
        self._reader: CachedReader | None = None
        if resource.size is not None:
            self._reader = CachedReader(
                self._fetch,
                resource.size,
                limit=files.options.readahead,
                budget=files.budget,
                tasks=files.tasks,
                entry=entry,
                # Many servers give a connection a part of what the line could carry.
                spread=files.options.max_connections,
                name=repr(shown(resource.url)),
            )

    @property
    def _verified(self) -> bool:
        return strongest(self.resource.hashes) is not None

    @property
    def _unnamed(self) -> bool:
        """Whether ranges of it may be of two versions and nobody could tell: only one body is surely one version.

        A file too large to be spooled, or that may not be, is read by ranges all the same; its size is compared.
        """
        validator, options = self.resource.validator, self._files.options
        if validator.etag or validator.modified or self.resource.size is None:
            return False
        return options.norange == "spool" and self.resource.size <= options.spool_size

    def read(self, offset: int, size: int) -> bytes | list[Data] | Coroutine[Any, Any, bytes | list[Data]]:
        """Return up to *size* bytes from *offset*; at once when they are there, else a coroutine.

        ESTALE: the server has another version. EIO: what came was none of the file, or not what was promised. The cause of the
        error is the HttpError.
        """
        if self.error is not None:
            raise again(self.error)
        if self._only_whole and self._whole is None:
            self._without_ranges()
        whole = self._whole
        if whole is not None:
            return whole.read(offset, size) if isinstance(whole, Spool) and whole.done else self._read(whole, offset, size)
        assert self._reader is not None
        return self._reader.read(offset, size)

    async def _read(self, whole: Spool | Streamed, offset: int, size: int) -> bytes:
        try:
            found = whole.read(offset, size)
            data = await found if isinstance(found, Coroutine) else found
        except OSError as exc:
            raise self._note(exc) from exc.__cause__
        if whole.size is not None:
            self.size = whole.size
        return data

    async def whole(self) -> int | None:
        """Wait until the size is known, with all of the file if that tells it; None where a stream's is not."""
        if self.size is None:
            self._without_ranges()
            assert self._whole is not None
            try:
                self.size = await self._whole.whole()
            except OSError as exc:
                raise self._note(exc) from exc.__cause__
        return self.size

    def backing_fd(self) -> int:
        """Return a local file for the kernel to read from by itself, until close; -1 while not all is there."""
        if self._closed or self.error is not None or not self.size:
            return -1
        if isinstance(self._whole, Spool):
            return self._whole.fd if self._whole.done else -1
        return self._entry.fd if self._entry is not None and self._entry.complete else -1

    def close(self) -> None:
        """Let go of it; the last one ends all requests but those that reads wait for."""
        self.opens -= 1
        if self.opens > 0 or self._closed:
            return
        self._closed = True
        self._files.left(self)
        if self._reader is not None:
            self._reader.close()
        whole = self._whole
        adopting = self._adopting is not None and not self._adopting.done()
        if whole is not None and not (whole.done and adopting):
            whole.close()
        if self._entry is not None:
            self._entry.close()

    def _note(self, exc: OSError) -> OSError:
        """Remember when the version is gone."""
        if exc.errno == errno.ESTALE and self.error is None:
            self.error = exc
            self._files.left(self)
        return exc

    # Fetching.

    async def _fetch(self, start: int, end: int, sink: Callable[[bytes], None]) -> None:
        """Hand on [start, end), from whichever mirror answers, or from the spool where ranges are ignored."""
        position = start

        def take(piece: bytes) -> None:
            nonlocal position
            sink(piece)
            position += len(piece)

        try:
            if self._whole is None:
                try:
                    await self._fetch_ranges(lambda: position, end, take)
                    return
                except RangeIgnored:
                    if self._closed:
                        raise OSError(errno.EINTR, f"{shown(self.resource.url)}: the file was closed") from None
                    self._without_ranges()
            assert self._whole is not None
            await self._whole.hand(position, end, sink)
        except OSError as exc:
            raise self._note(exc) from exc.__cause__

    async def _fetch_ranges(self, position: Callable[[], int], end: int, sink: Callable[[bytes], None]) -> None:
        """Fetch from the first source that answers; the one that failed goes to the end of the row."""
        error: HttpError | None = None
        for source in tuple(self._sources):
            try:
                await self._learn(source)
                await source.fetch(position(), end, sink)
                return
            except HttpError as exc:
                # Another version here means that nobody knows whose is the right one.
                if exc.errno == errno.ESTALE and source is self._sources[0]:
                    raise
                error = error or exc
                if len(self._sources) > 1:
                    log.info("%s; asking the next mirror", exc.strerror)
                    self._sources.remove(source)
                    self._sources.append(source)
        assert error is not None
        raise error

    async def _learn(self, source: Source) -> None:
        """Ask a mirror what it has, once: a file of the same size, with a validator of its own."""
        if source not in self._unknown:
            return
        found = await self._files.prober.probe(source.resource.url)
        if self.size is not None and found.size != self.size and not (self._verified and found.size is None):
            why = f"{shown(found.url)}: this mirror's file has {found.size} bytes, and the first one's {self.size}"
            raise HttpError(errno.EIO, why, url=shown(found.url))
        source.resource = found
        self._unknown.discard(source)

    def _without_ranges(self) -> None:
        """Begin to fetch all of the file, as the options say; EOPNOTSUPP, EFBIG."""
        files = self._files
        if self._whole is not None:
            return
        self._check_whole()
        mode = files.options.norange
        if self._verified or mode == "spool":
            self._whole = spool = Spool(
                tuple(self._sources),
                files.options.spool_size,
                files.cache.directory if files.cache is not None else None,
                files.budget,
                files.tasks,
                self.resource.hashes,
                self._learn,
            )
            self._adopting = task = asyncio.get_running_loop().create_task(self._adopt(spool))
            files.tasks.add(task)
            task.add_done_callback(files.tasks.discard)
        else:
            self._whole = Streamed(self._sources[0], files.tasks)

    def _check_whole(self) -> None:
        """Raise when the options do not allow to fetch all of the file."""
        options, name = self._files.options, shown(self.resource.url)
        if options.norange == "fail" and not self._verified:
            why = f"{name}: the server serves no ranges; --norange spool or stream reads it all the same"
            raise OSError(errno.EOPNOTSUPP, why)
        if (options.norange == "spool" or self._verified) and self.size is not None and self.size > options.spool_size:
            raise too_large(name, self.size, options.spool_size)

    async def _adopt(self, spool: Spool) -> None:
        """Keep what was spooled in the disk cache, when all is there."""
        try:
            size = await spool.whole()
            self.size = size
            await self._files.adopt(self.resource._replace(size=size), spool.fd)
        except OSError as exc:
            self._note(exc)
            log.debug("%s", exc.strerror)
        finally:
            if self._closed:
                spool.close()


def _place(resource: Resource) -> tuple[str, str]:
    """Return whose file it is, and which, without user and password."""
    parts = urlsplit(resource.url)
    return origin_of(resource.url), f"{parts.path}?{parts.query}" if parts.query else parts.path


__all__ = ["Files", "OpenFile", "Version"]

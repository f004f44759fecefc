"""Reading directories: one request each, answered by 304 when nothing has changed, and from the disk when nobody answers."""

from __future__ import annotations

import asyncio
import errno
import gc
import hashlib
import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin

from ..client.offline import GatedWeb
from ..client.web import unreachable
from ..values import HttpError, Listing
from .nodes import Directory, Load, Told, Walked
from .pages import Page, Pages
from .tree import Tree

if TYPE_CHECKING:
    from ..options import HttpOptions

log = logging.getLogger("pyfusekit.httpfs")

RETRY_S: Final = 5.0
"""How long old names are believed when the server could not be asked."""
FALLBACK_S: Final = 12.0
"""How long the server is waited for when there is an old listing to show."""
_CHUNK = 4000
_IN_THREAD = 256 << 10
"""Pages from this size on are parsed beside the loop."""
_MOST_PAGES = 100_000
_ANSWERED = frozenset((*range(200, 300), 304))
_UNLISTED = frozenset((400, 403, 404, 405, 406, 410, 501))
_NO_DAV = frozenset((400, 403, 404, 405, 501))


class Lister:
    """Reads the directories of a tree."""

    def __init__(self, web: GatedWeb, tree: Tree, options: HttpOptions, pages: Pages | None) -> None:
        self._web = web
        self._tree = tree
        self._pages = pages
        self._ttl = options.metadata_ttl
        self._external = options.external_links
        self.dav: bool | None = True if options.rw else None
        """Whether the server does WebDAV; None: nobody has asked it."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """End what is under way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Asking for a directory.

    def begin(self, directory: Directory) -> Load:
        """Begin to read a directory, unless that is under way."""
        load = directory.loading
        if load is None:
            load = directory.loading = Load()
            load.task = asyncio.get_running_loop().create_task(self._load(directory, load))
            self._tasks.add(load.task)
            load.task.add_done_callback(self._done)
        return load

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()

    async def ensure(self, directory: Directory) -> None:
        """Wait until all names of a directory are known, and not too old."""
        if not directory.fresh:
            task = self.begin(directory).task
            assert task is not None
            await asyncio.wait([task])
            _result(task, directory)

    async def find(self, directory: Directory, name: bytes) -> None:
        """Wait until it is known what *name* is: maybe before the directory's last page is there."""
        if directory.fresh:
            return
        load = self.begin(directory)
        task = load.task
        assert task is not None
        begun = asyncio.ensure_future(load.begun.wait())
        try:
            await asyncio.wait([task, begun], return_when=asyncio.FIRST_COMPLETED)
            while not task.done():
                walked = directory.walked
                ino = directory.index.get(name)
                if ino is not None and self._is_stamped(directory, ino):
                    return
                more = asyncio.ensure_future(walked.changed.wait()) if walked is not None else begun
                await asyncio.wait([task, more], return_when=asyncio.FIRST_COMPLETED)
                more.cancel()
        finally:
            begun.cancel()
        _result(task, directory)

    def _is_stamped(self, directory: Directory, ino: int) -> bool:
        home, place = self._tree.row(ino)
        return home is directory and home.stamps[place] == home.serial

    async def walk(self, directory: Directory) -> Walked | None:
        """Return a reading that is not too old, as soon as its first names are there; None: the directory is not listed."""
        if not directory.fresh:
            load = self.begin(directory)
            task = load.task
            assert task is not None
            begun = asyncio.ensure_future(load.begun.wait())
            try:
                await asyncio.wait([task, begun], return_when=asyncio.FIRST_COMPLETED)
            finally:
                begun.cancel()
            if load.begun.is_set() and directory.walked is not None:
                return directory.walked
            _result(task, directory)
        return directory.walked if directory.is_listed else None

    # Reading.

    async def _load(self, directory: Directory, load: Load) -> None:
        try:
            await self._read(directory, load)
        except BaseException as exc:
            walked = directory.walked
            if load.begun.is_set() and walked is not None and not walked.complete:
                # Its names are all that is known now; the directory is asked for again by whoever comes next.
                walked.end(exc if isinstance(exc, OSError) else OSError(errno.EIO, "the listing was interrupted"))
                directory.expires = 0.0
            raise
        finally:
            directory.loading = None

    async def _read(self, directory: Directory, load: Load) -> None:
        page, stored = await self._first(directory)
        if page is None:
            return
        digest = hashlib.blake2b(page.body, digest_size=16).digest()
        told = directory.told
        if directory.loaded and directory.is_listed and told.pages == 1 and told.digest == digest:
            directory.expires = self._expiry(stored)
            return
        listing = await self._parse(page)
        if listing is None and self.dav is None and not stored and await self._finds_dav(directory.url):
            await self._read(directory, load)
            return
        if listing is None:
            self._unlisted(directory, page)
            return
        if self._pages is not None and not stored:
            self._pages.put_page(self._key(directory.url), page.status, page.url, page.headers, page.body)
        if page.url != directory.url and page.status != 207:
            directory.url = page.url if page.url.endswith("/") or "?" in page.url else directory.url
        headers = {name: page.headers[name] for name in ("server",) if page.headers.get(name)}
        directory.told = Told(
            page.headers.get("etag", ""), page.headers.get("last-modified", ""), digest, 1, listing.driver, headers
        )
        self._tree.begin(directory)
        page = page._replace(body=b"")
        await self._merge(directory, listing, load)
        here, seen = page.url, {directory.url}
        while listing.next_url:
            here = urljoin(here, listing.next_url)
            if here in seen or len(seen) > _MOST_PAGES:
                raise HttpError(errno.EIO, f"{here} comes again and again in the listing of {directory.url}", url=here)
            seen.add(here)
            listing = await self._next(here)
            directory.told.pages += 1
            await self._merge(directory, listing, load)
        self._tree.finish(directory, self._expiry(stored))

    def _expiry(self, stored: bool) -> float:
        return time.monotonic() + (RETRY_S if stored and self._web.offline and self._ttl > RETRY_S else self._ttl)

    def _key(self, url: str) -> str:
        return f"PROPFIND {url}" if self.dav else url

    async def _first(self, directory: Directory) -> tuple[Page | None, bool]:
        """Return a directory's first page, and whether it is the one kept on the disk; None when nothing has changed."""
        known = directory.loaded and directory.is_listed
        stored: Page | None = None
        conditions: Mapping[str, str] = {}
        if known and directory.told.pages == 1:
            conditions = {"etag": directory.told.etag, "last-modified": directory.told.modified}
        elif not known and self._pages is not None:
            stored = await self._pages.page(self._key(directory.url))
            conditions = stored.headers if stored is not None else {}
        try:
            answer = await self._ask_in_time(directory.url, conditions, known or stored is not None)
        except (HttpError, TimeoutError) as exc:
            if isinstance(exc, HttpError) and exc.status in _UNLISTED:
                self._refused(directory, exc)
                return None, False
            gone = isinstance(exc, TimeoutError) or unreachable(exc) or self._web.offline
            if not gone or not (known or stored is not None) or self._web.never:
                if isinstance(exc, HttpError):
                    raise
                raise HttpError(errno.ETIMEDOUT, f"{directory.url}: no answer in time", url=directory.url) from None
            if isinstance(exc, TimeoutError):
                self._web.lost(HttpError(errno.EHOSTUNREACH, "no answer in time", url=directory.url))
            if stored is not None:
                return stored, True
            directory.expires = time.monotonic() + RETRY_S
            return None, False
        if answer.status != 304:
            return answer, False
        if stored is not None:
            return stored, True
        directory.expires = time.monotonic() + self._ttl
        return None, False

    async def _ask_in_time(self, url: str, conditions: Mapping[str, str], impatient: bool) -> Page:
        """Ask for a page; TimeoutError when *impatient* and the host answers nothing else either."""
        if not impatient:
            return await self._ask(url, conditions)
        task = asyncio.create_task(self._ask(url, conditions))
        try:
            await asyncio.wait([task], timeout=FALLBACK_S)
            if not task.done() and not await self._web.answers(FALLBACK_S):
                raise TimeoutError
            # It is the listing that takes its time.
            return await task
        finally:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()

    async def _ask(self, url: str, conditions: Mapping[str, str]) -> Page:
        """Ask for a page of a listing, with what a 304 needs when *conditions* has it."""
        from .. import listing

        headers = {"accept": listing.ACCEPT}
        if conditions.get("etag"):
            headers["if-none-match"] = conditions["etag"]
        if conditions.get("last-modified"):
            headers["if-modified-since"] = conditions["last-modified"]
        if self.dav:
            try:
                answer = await self._web.request(
                    "PROPFIND", url, headers={"depth": "1", "content-type": "application/xml"}, body=listing.PROPFIND,
                    ok=_ANSWERED,
                )  # fmt: skip
                return Page(answer.status, answer.url, answer.headers, answer.body, time.time())
            except HttpError as exc:
                if exc.status not in _NO_DAV:
                    raise
        answer = await self._web.request("GET", url, headers=headers, ok=_ANSWERED)
        return Page(answer.status, answer.url, answer.headers, answer.body, time.time())

    async def _next(self, url: str) -> Listing:
        """Return a later page."""
        stored: Page | None = None
        if self._web.offline and self._pages is not None:
            stored = await self._pages.page(url)
        page = stored if stored is not None else await self._ask(url, {})
        if stored is None and self._pages is not None:
            self._pages.put_page(url, page.status, page.url, page.headers, page.body)
        found = await self._parse(page)
        if found is None:
            raise HttpError(errno.EIO, f"{url} is no page of a listing, as the page before it says", url=url)
        return found

    async def _parse(self, page: Page) -> Listing | None:
        from .. import listing

        kind, external = page.headers.get("content-type", ""), self._external
        if len(page.body) < _IN_THREAD:
            return listing.parse(page.url, kind, page.body, external=external)

        def parse() -> Listing | None:
            try:
                return listing.parse(page.url, kind, page.body, external=external)
            finally:
                # What a large page was parsed with is freed before its names take memory, not some time later.
                gc.collect()

        return await asyncio.to_thread(parse)

    async def _merge(self, directory: Directory, listing: Listing, load: Load) -> None:
        entries = listing.entries
        entries.reverse()
        while True:
            chunk = entries[-_CHUNK:]
            del entries[-_CHUNK:]
            chunk.reverse()
            self._tree.merge(directory, chunk)
            load.begun.set()
            if not entries:
                return
            await asyncio.sleep(0)

    # Directories without a listing.

    async def _finds_dav(self, url: str) -> bool:
        """Ask whether the server does WebDAV; return whether that is news."""
        self.dav = False
        try:
            answer = await self._web.request("OPTIONS", url, ok=range(200, 500))
        except HttpError:
            return False
        self.dav = answer.status < 300 and bool(answer.headers.get("dav"))
        return self.dav

    def _refused(self, directory: Directory, error: HttpError) -> None:
        """Take it that a directory is gone when it was there, or that it is not listed when it never was."""
        if error.status in (404, 410) and directory.loaded and directory.is_listed and directory.parent is not None:
            for name, _ in self._tree.live(directory):
                self._tree.remove(directory, name)
            directory.loaded = False
            raise error
        self.status = error.status
        self._unlisted(directory, Page(error.status, directory.url, {}, b"", time.time()))

    status = 0
    """Of the last answer that refused a listing."""

    def _unlisted(self, directory: Directory, page: Page) -> None:
        log.info("%s is not listed (%d): names are asked for one by one", directory.url, page.status)
        directory.is_listed = False
        directory.loaded = True
        directory.walked = None
        directory.told = Told(driver="none")
        directory.expires = time.monotonic() + self._ttl


def _result(task: asyncio.Task[None], directory: Directory) -> None:
    """Raise why a reading failed, if it did."""
    if task.cancelled():
        raise OSError(errno.EIO, f"{directory.url} was not read to its end")
    task.result()


__all__ = ["FALLBACK_S", "RETRY_S", "Lister"]

"""Asking about single files: what a listing does not tell, and whether a file is still what it was.

At most six such requests are under way. Who stats one name after the other, as ``ls -l`` does, has those that follow asked for
meanwhile.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias
from urllib.parse import quote, urlsplit

from ..client.offline import GatedWeb
from ..client.web import unreachable
from ..values import Entry, HttpError, Resource, Validator
from .nodes import EXACT, GONE, IS_DIR, PROBED, Directory
from .pages import Pages
from .tree import Tree

log = logging.getLogger("pyfusekit.httpfs")

AT_A_TIME: Final = 6
AHEAD: Final = 48
"""Files that are asked about ahead of who stats one after the other."""
OPENS_AHEAD: Final = 12
"""Files that are asked about ahead of who opens one after the other, as cp -r does."""
_STREAK_S: Final = 2.0
_NEAR: Final = 8
"""So far behind the last one a file may be to be the next: others between them may be directories."""
_MOST_MISSES: Final = 10_000
_ABSENT = frozenset((404, 410))
_NOTHING: Final = Validator()

Probe: TypeAlias = Callable[..., Awaitable[Resource]]
"""Files.probe: of a URL, its mirrors, and the hashes that are promised."""
_Key: TypeAlias = tuple[int, int]


class Resolver:
    """Asks about files of a tree."""

    def __init__(
        self, web: GatedWeb, tree: Tree, probe: Probe, pages: Pages | None, *, ttl: float, negative_ttl: float
    ) -> None:
        self._web = web
        self._tree = tree
        self._probe = probe
        self._pages = pages
        self._ttl = ttl
        self._negative_ttl = negative_ttl
        self._under_way: dict[_Key, asyncio.Task[int]] = {}
        self._ahead: deque[tuple[Directory, int]] = deque()
        self._slots = asyncio.Semaphore(AT_A_TIME)

    async def close(self) -> None:
        """End what is under way."""
        self._ahead.clear()
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Files whose directory lists them.

    async def size(self, directory: Directory, place: int) -> int:
        """Ask about a file whose size the listing does not tell; return the place that has its name then."""
        task = self._begin(directory, place)
        self._look_ahead(directory, place)
        return await self._result(task)

    async def check(self, directory: Directory, place: int) -> int:
        """Ask what a file is now; return the place that has its name then. ENOENT."""
        return await self._result(self._begin(directory, place))

    async def opened(self, directory: Directory, place: int) -> int:
        """Ask what a file is that is being opened, as check does; ask about the next ones, too, when they are likely to be."""
        task = self._begin(directory, place)
        asked, last, count = directory.opened
        now = time.monotonic()
        count = count + 1 if now - asked < _STREAK_S and 0 < place - last <= _NEAR else 0
        directory.opened = (now, place, count)
        if count > 1:
            old = now - self._ttl
            for other in range(place + 1, min(place + OPENS_AHEAD + 1, len(directory.flags))):
                extra = directory.extras.get(other)
                known = extra is not None and extra.resource is not None and extra.checked > old
                if len(self._under_way) >= AT_A_TIME:
                    break
                if not known and not directory.flags[other] & (GONE | IS_DIR) and directory.stamps[other] == directory.serial:
                    self._begin(directory, other)
        return await self._result(task)

    async def _result(self, task: asyncio.Task[int]) -> int:
        """Wait for a task that others may wait for too."""
        await asyncio.wait([task])
        if task.cancelled():
            raise OSError(errno.EIO, "the mount is being ended")
        return task.result()

    def _begin(self, directory: Directory, place: int) -> asyncio.Task[int]:
        key = (directory.number, place)
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.get_running_loop().create_task(self._ask(directory, place))
            task.add_done_callback(lambda done: self._done(key, done))
        return task

    def _done(self, key: _Key, task: asyncio.Task[int]) -> None:
        self._under_way.pop(key, None)
        if not task.cancelled():
            # Nobody may wait for what was asked ahead.
            task.exception()
        while self._ahead and len(self._under_way) < AT_A_TIME:
            directory, place = self._ahead.popleft()
            if not directory.flags[place] & (EXACT | GONE) and self._tree.directories.get(directory.ino) is directory:
                self._begin(directory, place)

    def _look_ahead(self, directory: Directory, place: int) -> None:
        """Have the files behind *place* asked about, when this is not the first one that is."""
        asked, last, count = directory.streak
        now = time.monotonic()
        count = count + 1 if now - asked < _STREAK_S and last != place else 0
        directory.streak = (now, place, count)
        if not count or len(self._ahead) > AHEAD // 2:
            return
        flags, stamps, serial = directory.flags, directory.stamps, directory.serial
        waiting = {other for where, other in self._ahead if where is directory}
        room = min(AHEAD, 4 << min(count, 8)) - len(waiting)
        for other in (*range(place + 1, len(flags)), *range(place)):
            if room <= 0:
                break
            known = flags[other] & (EXACT | GONE | IS_DIR) or stamps[other] != serial
            if not known and other not in waiting and (directory.number, other) not in self._under_way:
                self._ahead.append((directory, other))
                room -= 1
        while self._ahead and len(self._under_way) < AT_A_TIME:
            self._begin(*self._ahead.popleft())

    async def _ask(self, directory: Directory, place: int) -> int:
        async with self._slots:
            asked = time.monotonic()
            url = directory.url_at(place)
            try:
                found = await self._get(directory, place, url)
            except HttpError as exc:
                if exc.status in _ABSENT:
                    self._vanished(directory, place)
                raise
        if leads_to_directory(url, found.final_url):
            return self._tree.is_directory_after_all(directory, place, found.final_url)
        new = self._tree.learn(directory, place, found._replace(headers=_kept(found)), asked)
        if directory.flags[new] & PROBED:
            directory.extra(new).expires = asked + self._ttl
        return new

    async def _get(self, directory: Directory, place: int, url: str) -> Resource:
        """Ask the server; the disk when nobody answers."""
        entry = directory.said.get(place)
        try:
            found = await self._probe(url, entry.mirrors, entry.hashes) if entry is not None else await self._probe(url)
        except HttpError as exc:
            kept = await self._kept(url, exc)
            if kept is None and self._web.offline and directory.extra(place).resource is not None:
                kept = directory.extra(place).resource
            if kept is not None:
                return kept
            raise
        if self._pages is not None:
            self._pages.put_resource(found)
        return found

    async def _kept(self, url: str, error: HttpError) -> Resource | None:
        """Return what the disk knows of a file, when nobody answers."""
        if self._pages is None or self._web.never or not (self._web.offline or unreachable(error)):
            return None
        return await self._pages.resource(url)

    def _vanished(self, directory: Directory, place: int) -> None:
        """A name that is listed, or was found, leads nowhere now."""
        if directory.flags[place] & GONE:
            return
        name = directory.names[place]
        self._tree.remove(directory, name)
        if not directory.is_listed:
            self._miss(directory, name)

    # Names of directories that are not listed.

    async def find(self, directory: Directory, name: bytes) -> int:
        """Ask for *name* in a directory that is not listed; return its inode number, 0 when there is none."""
        until = directory.misses.get(name)
        if until is not None and time.monotonic() < until:
            return 0
        asked = time.monotonic()
        url = directory.url + quote(name)
        async with self._slots:
            found = await self._found(url)
            if found is None:
                found = await self._found(f"{url}/")
        if found is None:
            self._miss(directory, name)
            return 0
        is_dir = leads_to_directory(url, found.final_url) or found.url.endswith("/")
        text = name.decode("utf-8", "surrogateescape")
        place_url = found.final_url if is_dir else url
        entry = Entry(text, place_url, is_dir, None if is_dir else found.size, not is_dir and found.size is not None)
        ino = self._tree.put(directory, entry, expires=asked + self._ttl)
        if is_dir:
            return ino
        home, place = self._tree.row(ino)
        return home.ino_at(self._tree.learn(home, place, found._replace(headers=_kept(found)), asked))

    async def _found(self, url: str) -> Resource | None:
        try:
            found = await self._probe(url)
        except HttpError as exc:
            if exc.status in (*_ABSENT, 403) and leads_to_directory(url, exc.url):
                return Resource(url, exc.url, None, None, _NOTHING)
            if exc.status in _ABSENT:
                return None
            kept = await self._kept(url, exc)
            if kept is not None:
                return kept
            if exc.status == 403 and url.endswith("/"):
                # A directory that may not be listed: what is in it may be had all the same.
                return Resource(url, url, None, None, _NOTHING)
            raise
        if self._pages is not None:
            self._pages.put_resource(found)
        return found

    def _miss(self, directory: Directory, name: bytes) -> None:
        if len(directory.misses) >= _MOST_MISSES:
            directory.misses.clear()
        directory.misses[name] = time.monotonic() + self._negative_ttl


def leads_to_directory(url: str, final: str) -> bool:
    """Return whether the redirect from *url* to *final* is the one that adds the slash of a directory."""
    here, there = urlsplit(url).path, urlsplit(final).path
    return not here.endswith("/") and there.endswith("/") and there.rstrip("/").rpartition("/")[2] == here.rpartition("/")[2]


def _kept(found: Resource) -> dict[str, str]:
    """Return the headers that are shown later."""
    return {name: found.headers[name] for name in ("server",) if found.headers.get(name)}


__all__ = ["AT_A_TIME", "Resolver", "leads_to_directory"]

"""Knowing that the host is gone: then nobody waits for it, what is cached is served, and it is looked for every few seconds."""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Mapping
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ..options import HttpOptions
from ..values import HttpError
from .web import Answer, Report, Stream, Upload, Web, unreachable

log = logging.getLogger("pyfusekit.httpfs")

T = TypeVar("T")

FIRST_LOOK_S = 5.0
MOST_LOOK_S = 60.0
_LOOKING: ContextVar[bool] = ContextVar("_LOOKING", default=False)


class GatedWeb(Web):
    """Makes requests while the host answers, and none while it does not; *source* is asked whether it is there again.

    Other hosts, to which redirects or links may lead, do not count.
    """

    def __init__(
        self, options: HttpOptions, source: str, report: Report | None = None, changed: Callable[[bool], None] | None = None
    ) -> None:
        super().__init__(options, source, report)
        self._source = source
        self._host = urlsplit(source).netloc.rpartition("@")[2]
        self._mode = options.offline
        self._changed = changed
        self._watcher: asyncio.Task[None] | None = None
        self.never = options.offline == "never"
        """Nothing old is served."""
        self.offline = options.offline == "always"
        self.since = time.time()
        self.why = "nothing is asked with --offline always" if self.offline else ""

    async def close(self) -> None:
        """End all requests, and the looking."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
            self._watcher = None
        await super().close()

    def gone(self, url: str) -> HttpError:
        """Return the error of who wants what is not cached."""
        if self._mode == "always":
            return HttpError(errno.EIO, f"{url} is not in the cache, and with --offline always nobody is asked", url=url)
        clock = time.strftime("%H:%M:%S", time.localtime(self.since))
        why = f"{url} is not in the cache, and {self._host} cannot be reached since {clock}: {self.why}"
        return HttpError(errno.EIO, why, url=url)

    def _check(self, url: str) -> None:
        if self.offline and not _LOOKING.get() and (self._mode == "always" or self.same_origin(url)):
            raise self.gone(url)

    def lost(self, error: HttpError) -> None:
        """Take note of a request that failed: when the host is gone, no others are made until it is back."""
        if self._mode != "auto" or self.offline or _LOOKING.get():
            return
        if not unreachable(error) or (error.url and not self.same_origin(error.url)):
            return
        self.offline = True
        self.since = time.time()
        self.why = error.strerror or str(error)
        log.warning("%s cannot be reached; what is cached is served: %s", self._host, self.why)
        self._watcher = asyncio.get_running_loop().create_task(self._watch())
        if self._changed is not None:
            self._changed(True)

    async def answers(self, limit: float) -> bool:
        """Ask for the source, for at most *limit* seconds, and return whether the host answers."""
        with suppress(HttpError, TimeoutError):
            async with asyncio.timeout(limit), super().open("HEAD", self._source) as answer:
                return answer.status not in (502, 503, 504)
        return False

    async def _watch(self) -> None:
        """Look for the host until it answers."""
        _LOOKING.set(True)
        wait = FIRST_LOOK_S
        while self.offline:
            await asyncio.sleep(wait)
            wait = min(wait * 1.5, MOST_LOOK_S)
            self.offline = not await self.answers(MOST_LOOK_S)
        log.warning("%s can be reached again", self._host)
        if self._changed is not None:
            self._changed(False)

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        upload: Upload | None = None,
        ok: Container[int] = range(200, 300),
        limit: int = 256 << 20,
    ) -> Answer:
        """Make a request and return the whole answer; HttpError at once while the host is gone."""
        self._check(url)
        try:
            return await super().request(method, url, headers=headers, body=body, upload=upload, ok=ok, limit=limit)
        except HttpError as exc:
            self.lost(exc)
            raise

    @asynccontextmanager
    async def open(self, method: str, url: str, *, headers: Mapping[str, str] | None = None) -> AsyncIterator[Stream]:
        """Make one attempt of a request; HttpError at once while the host is gone."""
        self._check(url)
        async with super().open(method, url, headers=headers) as stream:
            yield stream

    async def run(self, what: str, url: str, size: int, attempt: Callable[[], Awaitable[T]], **more: Any) -> T:
        """Attempt a request until it is done or given up; HttpError at once while the host is gone."""
        self._check(url)
        try:
            return await super().run(what, url, size, attempt, **more)
        except HttpError as exc:
            self.lost(exc)
            raise


__all__ = ["GatedWeb"]

"""Finding out what a URL is: its size, its version, and whether ranges of it are served."""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from ..client.words import shown
from ..values import HttpError, Resource
from .ranges import Multipart, asked, boundary_of, content_range, unsatisfied
from .resource import IDENTITY, describe, encoded, length_of, origin_of

if TYPE_CHECKING:
    from ..client.web import Stream, Web

log = logging.getLogger("pyfusekit.httpfs")

T = TypeVar("T")


class Prober:
    """Asks servers what their files are: by HEAD, and by a GET of one byte where HEAD is refused or tells nothing."""

    def __init__(self, web: Web) -> None:
        self._web = web
        self._without_head: set[str] = set()
        """Origins that refuse HEAD, or answer it with lies."""
        self._compared: set[str] = set()
        """Origins whose HEAD was compared with a GET, and told the same."""

    async def probe(self, url: str, mirrors: Sequence[str] = (), hashes: Sequence[tuple[str, str]] = ()) -> Resource:
        """Return what *url* is now, or the first of *mirrors* that can be had; HttpError of *url*."""
        try:
            found = await self._probe(url)
        except HttpError as error:
            for index, mirror in enumerate(mirrors):
                log.info("%s; asking %s", error.strerror, shown(mirror))
                try:
                    found = await self._probe(mirror)
                except HttpError as exc:
                    log.info("%s", exc.strerror)
                    continue
                return found._replace(mirrors=(*mirrors[index + 1 :], *mirrors[:index], url), hashes=tuple(hashes))
            raise
        return found._replace(mirrors=tuple(mirrors), hashes=tuple(hashes))

    def distrust_head(self, url: str) -> None:
        """Note that what HEAD says of the files of this host is not what GET brings."""
        log.info("%s: HEAD is not believed from now on", origin_of(url))
        self._without_head.add(origin_of(url))

    async def _probe(self, url: str) -> Resource:
        origin, told = origin_of(url), None
        if origin not in self._without_head:
            told = await self._run("HEAD", url, lambda: self._head(url))
            if told is not None and origin in self._compared:
                return told
        found = await self._run("GET", url, lambda: self._first_byte(url))
        if found is None or (told is None and found.ranges and _bare(found)):
            # There are servers whose ranges do not tell their version.
            ranges = found is not None
            found = await self._run("GET", url, lambda: self._opened(url))
            return found._replace(ranges=True) if ranges else found
        if told is None:
            return found
        if found.size != told.size:
            self.distrust_head(url)
            return found
        self._compared.add(origin)
        return told._replace(ranges=found.ranges) if _bare(found) else found

    async def _run(self, method: str, url: str, attempt: Callable[[], Awaitable[T]]) -> T:
        return await self._web.run(method, url, 0, attempt)

    async def _head(self, url: str) -> Resource | None:
        """Ask by HEAD; None when the answer is worth nothing: then GET decides, also that there is no such file."""
        async with self._web.open("HEAD", url, headers=IDENTITY) as answer:
            if answer.status == 200:
                # No length, or none at all: many servers do not take the trouble to find it out for HEAD.
                size = length_of(answer.headers)
                return _described(url, answer, size, _promised(answer)) if size else None
            if answer.status in (405, 501):
                self._without_head.add(origin_of(url))
            elif answer.status == 429 or answer.status >= 500:
                error = self._web.judge(answer)
                if error.retryable:
                    raise error
            return None

    async def _first_byte(self, url: str) -> Resource | None:
        """Ask for the first byte; None when the answer tells nothing."""
        async with self._web.open("GET", url, headers=IDENTITY | {"range": asked(0, 1)}) as answer:
            if answer.status == 206:
                return await self._of_a_range(url, answer)
            if answer.status == 416:
                return _described(url, answer, 0, None) if unsatisfied(answer.headers.get("content-range", "")) == 0 else None
            return self._of_all(url, answer)

    async def _of_a_range(self, url: str, answer: Stream) -> Resource | None:
        """Read the answer to a request for the first byte."""
        if encoded(answer.headers):
            return None
        span = content_range(answer.headers.get("content-range", ""))
        boundary = boundary_of(answer.headers)
        if boundary is not None:
            span = None
            try:
                parts = Multipart(boundary)
                while span is None and (data := await answer.readany()):
                    for _ in parts.feed(data):
                        span = parts.span
            except ValueError as exc:
                log.info("GET %s: %s", shown(url), exc)
        if span is None or span.start != 0:
            return None
        return _described(url, answer, span.total, True)

    async def _opened(self, url: str) -> Resource:
        """Ask for everything and read nothing."""
        async with self._web.open("GET", url, headers=IDENTITY) as answer:
            return self._of_all(url, answer)

    def _of_all(self, url: str, answer: Stream) -> Resource:
        """Read the headers of the whole file."""
        if answer.status == 200:
            return _described(url, answer, length_of(answer.headers), False)
        error = self._web.judge(answer)
        if 200 <= answer.status < 400:
            why = f"GET {shown(url)}: the answer {answer.status} is none to such a request"
            error = HttpError(errno.EIO, why, url=shown(url), status=answer.status)
        raise error


def _described(url: str, answer: Stream, size: int | None, ranges: bool | None) -> Resource:
    return describe(url, answer.url, size, answer.headers, ranges=ranges)


def _bare(resource: Resource) -> bool:
    """Return whether an answer told no version."""
    return not (resource.validator.etag or resource.validator.modified)


def _promised(answer: Stream) -> bool | None:
    """Return False when the server says that it serves no ranges; whether it does is seen when one is asked for."""
    return False if answer.headers.get("accept-ranges", "").strip().lower() == "none" else None


__all__ = ["Prober"]

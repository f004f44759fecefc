"""What a server does of WebDAV beyond the verbs: found out once, at the first write, with a file that is removed again."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from urllib.parse import urljoin

from ..values import HttpError
from .dav import Dav

log = logging.getLogger("pyfusekit.httpfs")

_NEVER = '"pyfusekit: no version has this"'
_LONG_AGO_NS = 10**18
_MATCH = (
    "the server ignores If-Match: when somebody else changes a file in the moment before it is written here, theirs is lost"
)
_NONE_MATCH = (
    "the server ignores If-None-Match: when somebody else makes a file of the same name in the moment before it is made here, "
    "theirs is lost"
)
_REFUSED = "the server refuses the version it told itself: it is compared before a file is written, and no longer while it is"
_NOT_ALLOWED = frozenset((400, 403, 404, 405, 409, 415, 501))


class Honours:
    """What the server of a mount honours. What is True until it is found to be wrong is only used when that is safe."""

    def __init__(self, dav: Dav, note: Callable[[str], None]) -> None:
        self._dav = dav
        self._note = note
        self._lock = asyncio.Lock()
        self.known = False
        self.match = True
        """PUT with an If-Match that does not hold is refused."""
        self.none_match = True
        """PUT with If-None-Match: * is refused where a file is."""
        self.since = True
        """PUT with an If-Unmodified-Since that holds is taken; not known before it is tried."""
        self.mtime_header = False
        """PUT takes the modification time from X-OC-Mtime (ownCloud, Nextcloud, and others since)."""
        self.mtime_property = True
        """PROPPATCH sets getlastmodified; not known before it is tried."""
        self.quota = True
        """PROPFIND tells the quota; not known before it is tried."""

    async def learn(self, directory_url: str) -> None:
        """Find out, once, in the directory at *directory_url*. A server that cannot be asked is asked again next time."""
        if self.known:
            return
        async with self._lock:
            if self.known:
                return
            try:
                await self._try(urljoin(directory_url, f"pyfusekit-{uuid.uuid4().hex}.tmp"))
            except HttpError as exc:
                if exc.status not in _NOT_ALLOWED:
                    raise
                # A server may take the files of people and not this one: what they are told is the answer to theirs.
                log.info("%s; it is not known what the server honours", exc.strerror)
                self.match = self.none_match = False
            self.known = True
            if not self.match:
                self._note(_MATCH)
            if not self.none_match:
                self._note(_NONE_MATCH)

    async def _try(self, url: str) -> None:
        made = False
        try:
            made = await self._put(url, {"if-match": _NEVER}) != 412
            self.match = not made
            if self.match:
                # What is made from here on must go again, also when the answer is lost.
                made = True
                status = await self._put(url, {"if-none-match": "*", "x-oc-mtime": str(_LONG_AGO_NS // 10**9)})
                made = status != 412
            self.none_match = made and await self._put(url, {"if-none-match": "*"}) == 412
        finally:
            if made:
                await asyncio.shield(self._remove(url))

    def distrust(self, refused: Mapping[str, str]) -> None:
        """The server refuses a condition that holds: it is not used any more."""
        if "if-unmodified-since" in refused:
            # Apache's mod_dav compares it with the present.
            self.since = False
        elif "if-match" in refused and self.match:
            self.match = False
            self._note(_REFUSED)

    async def _put(self, url: str, headers: dict[str, str]) -> int:
        answer = await self._dav.put(url, 0, _nothing, headers)
        if "x-oc-mtime" in headers and answer.headers.get("x-oc-mtime", "").strip().lower() == "accepted":
            self.mtime_header = True
        return answer.status

    async def _remove(self, url: str) -> None:
        try:
            await self._dav.delete(url)
        except HttpError as exc:
            if exc.status in (404, 410):
                return
            log.warning("%s was made to find out what the server honours, and could not be removed: %s", url, exc.strerror)


async def _nothing() -> AsyncIterator[bytes]:
    """Yield the pieces of an empty file."""
    empty: tuple[bytes, ...] = ()
    for piece in empty:
        yield piece


__all__ = ["Honours"]

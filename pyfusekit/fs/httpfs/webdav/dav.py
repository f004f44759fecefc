"""The requests of WebDAV (RFC 4918) that change something, one method each, and the errno of each refusal."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from email.utils import formatdate
from typing import NamedTuple
from urllib.parse import urlsplit

from ..client.web import Answer, Web
from ..client.words import shown
from ..contents.resource import IDENTITY, describe, encoded, http_time, length_of
from ..values import HttpError, Resource, Validator
from .multistatus import Member, parse_multistatus, path_of
from .staged import new_digest

log = logging.getLogger("pyfusekit.httpfs")

TRIES = 4
"""How often a change is asked for again that was not done, when its answer was lost."""
UNSURE = frozenset((0, 408, 500, 502, 504, 520, 522, 524))
"""Failures after which nobody knows whether a request was carried out; 0 is no answer."""
_JUDGED = frozenset(
    (*range(200, 300), 301, 302, 303, 400, 403, 404, 405, 409, 410, 411, 412, 413, 414, 415, 423, 424, 501, 507)
)
"""Answers to a change that another attempt would not alter; all others are the Web's to judge."""
_ERRNO = {
    400: errno.EINVAL,
    403: errno.EACCES,
    404: errno.ENOENT,
    405: errno.EPERM,
    409: errno.ENOENT,
    410: errno.ENOENT,
    411: errno.EIO,
    412: errno.ESTALE,
    413: errno.EFBIG,
    414: errno.ENAMETOOLONG,
    415: errno.EINVAL,
    423: errno.EBUSY,
    424: errno.EBUSY,
    501: errno.EOPNOTSUPP,
    507: errno.ENOSPC,
}
"""RFC 4918, sections 9.3 to 9.9 and 11: 409 is a parent that is not there, 423 a lock."""
_WORDS = {
    403: "the server does not allow it",
    405: "the server does not take this method here: is it WebDAV?",
    409: "its directory is not there",
    412: "a condition does not hold",
    413: "it is larger than the server takes",
    423: "somebody has locked it",
    424: "something below it could not be changed",
    507: "the server has no space left",
}
_XML = {"content-type": 'application/xml; charset="utf-8"'}
_HEAD = '<?xml version="1.0" encoding="utf-8"?>\n'
_MEMBERS = f'{_HEAD}<D:propfind xmlns:D="DAV:"><D:prop><D:resourcetype/></D:prop></D:propfind>'.encode()
_VERSION = (
    f'{_HEAD}<D:propfind xmlns:D="DAV:"><D:prop><D:resourcetype/><D:getcontentlength/><D:getlastmodified/><D:getetag/>'
    "</D:prop></D:propfind>"
).encode()
_QUOTA = (
    f'{_HEAD}<D:propfind xmlns:D="DAV:"><D:prop><D:quota-available-bytes/><D:quota-used-bytes/></D:prop></D:propfind>'
).encode()


class Found(NamedTuple):
    """What a URL holds now."""

    resource: Resource
    digest: tuple[int, bytes]
    """The size and the digest of its bytes; (-1, b"") when they were not read."""


class Dav:
    """Makes the requests of WebDAV. Errors are HttpErrors whose errno is what the file's user is to be told."""

    def __init__(self, web: Web) -> None:
        self.web = web

    # What is there.

    async def look(self, url: str) -> Resource | None:
        """Return what is at *url* now, its final_url with a slash at its end for a directory; None when nothing is."""
        try:
            answer = await self.web.request("HEAD", url, headers=IDENTITY)
        except HttpError as exc:
            if exc.status in (404, 410):
                return None
            if exc.status not in (400, 403, 405, 501):
                raise
            return await self._look_dav(url)
        found = describe(url, answer.url, length_of(answer.headers), answer.headers, ranges=None)
        if is_directory(found) or found.validator.etag or found.validator.modified:
            return found
        return await self._look_dav(url) or found

    async def _look_dav(self, url: str) -> Resource | None:
        """Ask PROPFIND, for servers that say nothing in a HEAD."""
        try:
            answer = await self._change("PROPFIND", url, {**_XML, "depth": "0"}, _VERSION)
        except HttpError as exc:
            if exc.status in (405, 415, 501):
                return None
            raise
        if answer.status in (404, 410):
            return None
        self._expect(answer, 207)
        member = next(iter(parse_multistatus(answer.url, answer.body)), None)
        if member is None:
            return None
        props = member.props
        length, modified = props.get("getcontentlength", ""), props.get("getlastmodified", "")
        changed = http_time(modified)
        return Resource(
            url,
            answer.url.rstrip("/") + "/" if member.is_dir else answer.url,
            int(length) if length.isascii() and length.isdecimal() else None,
            None if changed is None else changed * 1_000_000_000,
            Validator(props.get("getetag", ""), modified if changed is not None else ""),
        )

    async def fetch(self, url: str, wanted: frozenset[int]) -> Found | None:
        """Return what is at *url*, with the digest of its bytes if their number is among *wanted*; None when nothing is."""

        async def attempt() -> Found | None:
            async with self.web.open("GET", url, headers=IDENTITY) as stream:
                if stream.status in (404, 410):
                    return None
                if stream.status != 200:
                    raise self.web.judge(stream)
                size = length_of(stream.headers)
                found = describe(url, stream.url, size, stream.headers, ranges=None)
                if (size is not None and size not in wanted) or encoded(stream.headers):
                    return Found(found, (-1, b""))
                digest, position = new_digest(), 0
                while data := await stream.readany():
                    digest.update(data)
                    position += len(data)
                    if position > max(wanted, default=0):
                        return Found(found, (-1, b""))
                return Found(found, (position, digest.digest()))

        return await self.web.run("GET", url, max(wanted, default=0), attempt)

    async def members(self, url: str) -> list[Member]:
        """Return what the directory at *url* holds, itself left out. ENOTDIR, ENOENT; EOPNOTSUPP without PROPFIND."""
        answer = await self._change("PROPFIND", url, {**_XML, "depth": "1"}, _MEMBERS)
        if answer.status in (400, 405, 415):
            raise self._refusal(answer, errno.EOPNOTSUPP)
        self._expect(answer, 207)
        found = parse_multistatus(answer.url, answer.body)
        here = path_of(answer.url)
        if any(one.path == here and not one.is_dir for one in found):
            raise self._refusal(answer, errno.ENOTDIR)
        return [one for one in found if one.path != here]

    async def quota(self, url: str) -> tuple[int, int] | None:
        """Return how many bytes are available and used (RFC 4331); None where the server does not tell."""
        answer = await self._change("PROPFIND", url, {**_XML, "depth": "0"}, _QUOTA)
        if answer.status != 207:
            return None
        member = next(iter(parse_multistatus(answer.url, answer.body)), None)
        numbers = [member.props.get(f"quota-{name}-bytes", "") for name in ("available", "used")] if member else ["", ""]
        values = [int(one) if one.isascii() and one.isdecimal() else -1 for one in numbers]
        return (values[0], max(0, values[1])) if values[0] >= 0 else None

    # What changes it.

    async def put(self, url: str, size: int, pieces: Callable[[], AsyncIterator[bytes]], headers: Mapping[str, str]) -> Answer:
        """Send a file; return the answer, which may be 412: a condition in *headers* does not hold."""
        answer = await self._change("PUT", url, headers, upload=(size, pieces))
        self._expect(answer, 200, 201, 204, 412)
        return answer

    async def mkcol(self, url: str) -> None:
        """Make a directory. EEXIST, ENOENT."""

        async def done() -> bool:
            # By the attempt whose answer was lost, or by somebody else and still as good as new.
            try:
                return not await self.members(url)
            except HttpError as exc:
                if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.EOPNOTSUPP):
                    return False
                raise

        answer = await self._once("MKCOL", url, {}, done)
        if answer is not None:
            if answer.status == 405:
                # It is there, or the server makes no directories at all.
                raise self._refusal(answer, errno.EPERM if await self.look(url) is None else errno.EEXIST)
            self._expect(answer, 200, 201, 204)

    async def delete(self, url: str, headers: Mapping[str, str] | None = None) -> bool:
        """Remove what is at *url*, a directory with all that is in it; return False when a condition in *headers* fails."""

        async def done() -> bool:
            return await self.look(url) is None

        answer = await self._once("DELETE", url, headers or {}, done)
        if answer is None:
            return True
        if answer.status == 207:
            failed = next((one for one in parse_multistatus(url, answer.body) if one.status >= 300), None)
            if failed is not None:
                number = _ERRNO.get(failed.status, errno.EIO)
                why = f"DELETE {shown(url)}: {failed.path} could not be removed: {failed.status}"
                raise HttpError(number, why, url=shown(url), status=failed.status)
        self._expect(answer, 200, 202, 204, 207, 412)
        return answer.status != 412

    async def move(self, source: str, target: str, *, overwrite: bool) -> None:
        """Rename; EEXIST when *target* is there and not to be overwritten, ENOENT when *source* is not there."""

        async def done() -> bool:
            return await self.look(source) is None and await self.look(target) is not None

        headers = {"destination": _destination(target), "overwrite": "T" if overwrite else "F"}
        try:
            answer = await self._once("MOVE", source, headers, done)
        except HttpError as exc:
            if exc.status == 502:
                # A server behind a proxy may not know the Destination for its own: who moves files copies them then.
                exc.errno = errno.EXDEV
            raise
        if answer is None:
            return
        if answer.status == 412:
            raise self._refusal(answer, errno.EEXIST)
        if answer.status == 207:
            raise self._refusal(answer, errno.EBUSY)
        self._expect(answer, 200, 201, 204)

    async def _once(
        self, method: str, url: str, headers: Mapping[str, str], done: Callable[[], Awaitable[bool]]
    ) -> Answer | None:
        """Make a change that must not be made twice; None when its answer was lost, and *done* says that it was done."""
        for tries in range(TRIES):
            try:
                return await self._change(method, url, headers)
            except HttpError as exc:
                if exc.status not in UNSURE or tries == TRIES - 1:
                    raise
                log.info("%s; looking whether it was done", exc.strerror)
            if await done():
                return None
            await asyncio.sleep(0.1 * (1 << tries))
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def set_mtime(self, url: str, mtime_ns: int) -> bool:
        """Set a file's modification time, to the second; return whether the server does such a thing."""
        date = formatdate(mtime_ns // 1_000_000_000, usegmt=True)
        body = (
            f'{_HEAD}<D:propertyupdate xmlns:D="DAV:"><D:set><D:prop><D:getlastmodified>{date}</D:getlastmodified>'
            "</D:prop></D:set></D:propertyupdate>"
        )
        answer = await self._change("PROPPATCH", url, _XML, body.encode())
        if answer.status in (404, 410, 423):
            raise self._refusal(answer)
        if answer.status != 207:
            return False
        try:
            found = parse_multistatus(answer.url, answer.body)
        except HttpError as exc:
            # lighttpd refuses it in XML that is not well-formed.
            log.info("%s", exc.strerror)
            return False
        return any(200 <= one.statuses.get("getlastmodified", 0) < 300 for one in found)

    async def options(self, url: str) -> tuple[str, str]:
        """Return what the server says that it does at *url*: the headers DAV and Allow."""
        answer = await self._change("OPTIONS", url)
        return answer.headers.get("dav", ""), answer.headers.get("allow", "")

    # Within.

    async def _change(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        *,
        upload: tuple[int, Callable[[], AsyncIterator[bytes]]] | None = None,
    ) -> Answer:
        return await self.web.request(method, url, headers=headers, body=body, upload=upload, ok=_JUDGED)

    def _expect(self, answer: Answer, *statuses: int) -> None:
        if answer.status not in statuses:
            raise self._refusal(answer)

    def _refusal(self, answer: Answer, number: int = 0) -> HttpError:
        if 300 <= answer.status < 400:
            number, words = errno.EIO, f"it is redirected to {shown(answer.headers.get('location', ''))}"
        else:
            words = _WORDS.get(answer.status) or answer.reason or "refused"
            number = number or _ERRNO.get(answer.status, errno.EIO)
        what = f"{answer.method} {shown(answer.url)}"
        return HttpError(number, f"{what}: {answer.status}: {words}", url=shown(answer.url), status=answer.status)


def is_directory(found: Resource) -> bool:
    """Return whether what look() found is a directory: servers redirect to its name with a slash, or say its type."""
    return urlsplit(found.final_url).path.endswith("/") or found.content_type == "httpd/unix-directory"


def _destination(url: str) -> str:
    """Return *url* as the header Destination has it: absolute, without anybody's password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="").geturl()


__all__ = ["Dav", "Found", "is_directory"]

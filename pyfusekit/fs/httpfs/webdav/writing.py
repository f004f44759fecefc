"""Writing by WebDAV: a file's local version becomes the server's, whole, and only over the version it was made from.

A condition says which version that is (If-Match, If-None-Match); where the server ignores conditions, or tells no ETag that is
strong, what is there is compared before. What an answer that was lost has done is found out by reading back: the bytes
decide, not the guess. What cannot be published is kept on this disk and named.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

from pyfusekit.core import CONFLICT

from ..client.web import Answer, Web
from ..client.words import shown
from ..contents.resource import describe, validator_of
from ..options import HttpOptions
from ..values import HttpError, Resource, Validator
from .dav import UNSURE, Dav, is_directory
from .honours import Honours
from .staged import Kept, Staged, StagingDir

log = logging.getLogger("pyfusekit.httpfs")

Report = Callable[[OSError, str, str, str], None]
"""Is told what went wrong: the error, the operation, the file's URL, and what mends it."""

TRIES = 4
"""How often a publish begins again because the server has an earlier attempt of it, or two answers contradict each other."""
READ_BACK = 1 << 20
"""A file up to this size is read back where the answer to a PUT does not tell its ETag: a HEAD might tell another's."""
_OVERTAKEN = '"pyfusekit: replaced before its version was known"'
_IN_THE_WAY = frozenset((301, 302, 409, 412))
"""What servers answer to a MOVE because of what is at its Destination: Apache redirects to a directory there."""


class Published(NamedTuple):
    """What became of a publish."""

    resource: Resource
    overtaken: bool
    """The server has it no more: somebody replaced it at once."""


class Writer:
    """Publishes the Staged files of one mount, and makes its other changes."""

    def __init__(self, web: Web, options: HttpOptions, source: str, *, report: Report, note: Callable[[str], None]) -> None:
        """*source*: the mount's URL. *note* is told, once each, what the server weakens."""
        self.dav = Dav(web)
        self.honours = Honours(self.dav, note)
        self.source = _anonymous(source)
        self.staging = StagingDir(_home(options.staging_dir), self.source)
        self._report = report
        self._note = note

    # The mount's life.

    async def start(self) -> list[Kept]:
        """Look after what dead mounts of this source left; return every copy that waits for a person, the oldest first."""
        left = await asyncio.to_thread(self.staging.left)
        for one in left:
            self._note(f"a mount ended before {one.url} was written to the server; its bytes are in {one.path}")
        kept = await asyncio.to_thread(self.staging.kept)
        for one in kept:
            why = OSError(errno.ESTALE, f"{one.why}; the local version is kept in {one.path}")
            self._report(why, CONFLICT, one.url, f"compare it with the file, then remove {one.path} and {one.path}.json")
        if len(kept) > len(left):
            self._note(f"{len(kept) - len(left)} files that could not be written wait in {self.staging.directory}/kept")
        return kept

    async def usable(self, url: str) -> None:
        """Ask what the server says that it does; a note when it speaks of no WebDAV. Its word is not needed: errors pass."""
        try:
            dav, allow = await self.dav.options(url)
        except OSError as exc:
            log.info("OPTIONS: %s", exc)
            return
        if not dav and "PUT" not in allow.upper():
            self._note("the server does not say that it is WebDAV: writing may be refused")

    # Files.

    async def publish(self, staged: Staged) -> Published | None:
        """Make *staged* the version at staged.url, and return that; None when the server has it already.

        Nothing may change staged meanwhile: whoever wants to waits for staged.sending. ESTALE: somebody else changed the file,
        and the copy is at staged.kept. After any other error staged is as it was, and publish may be called again.
        """
        async with staged.lock:
            if not staged.dirty or staged.kept or staged.gone:
                return None
            await self.honours.learn(urljoin(staged.url, "."))
            staged.sending = asyncio.Event()
            try:
                return await self._publish(staged)
            except OSError as exc:
                staged.failure = exc
                raise
            finally:
                staged.sending.set()
                staged.sending = None

    async def _publish(self, staged: Staged) -> Published:
        generation, url = staged.generation, staged.url
        for _ in range(TRIES):
            headers = await self._conditions(staged)
            if headers is None:
                found = await self._found(staged, {})
            else:
                if self.honours.mtime_header:
                    headers["x-oc-mtime"] = str(staged.mtime_ns // 1_000_000_000)
                answer = await self._put(staged, headers)
                found = await self._learn(staged, answer) if answer.status != 412 else await self._found(staged, headers)
            if found is not None:
                staged.done(generation, found.resource)
                return found
        raise HttpError(errno.EBUSY, f"PUT {url}: the server says one thing and then another", url=url, retryable=True)

    async def _put(self, staged: Staged, headers: dict[str, str]) -> Answer:
        """Send the file; remember what was sent when nobody can know whether it arrived."""
        size = staged.size
        try:
            return await self.dav.put(staged.url, size, lambda: staged.pieces(size), headers)
        except HttpError as exc:
            if exc.status in UNSURE:
                staged.attempts.add(await staged.digest())
            raise
        except asyncio.CancelledError:
            # A second interruption must not lose it: what is not known to be ours would be taken for a conflict.
            staged.attempts.add(await asyncio.shield(staged.digest()))
            raise

    async def _conditions(self, staged: Staged) -> dict[str, str] | None:
        """Return the headers that name the version to replace; None when something else is there already."""
        base = staged.base
        if base is None:
            if not self.honours.none_match and await self.dav.look(staged.url) is not None:
                return None
            return {"if-none-match": "*"}
        etag = base.validator.etag
        if self.honours.match and etag and not etag.startswith("W/"):
            return {"if-match": etag}
        now = await self.dav.look(staged.url)
        if now is None or differs(base, now):
            return None
        if self.honours.match and now.validator.etag and not now.validator.etag.startswith("W/") and etag:
            # It was weak because the file was just being changed (Apache); of the same version it is strong by now.
            return {"if-match": now.validator.etag}
        dated = self.honours.since and now.validator.modified
        return {"if-unmodified-since": now.validator.modified} if dated else {}

    async def _found(self, staged: Staged, refused: dict[str, str]) -> Published | None:
        """See what is there instead of the version to replace: this very file, what it was replaced by, or nothing.

        None: publish again, staged.base is what is there now. ESTALE when it is somebody else's. *refused*: the conditions
        that did not hold.
        """
        own = await staged.digest()
        sizes = frozenset((own[0], *(size for size, _ in staged.attempts)))
        there = await self.dav.fetch(staged.url, sizes)
        base = staged.base
        if there is None:
            if base is None:
                return None
            raise await self._conflict(staged, "removed")
        if there.digest == own:
            return Published(there.resource._replace(size=own[0]), False)
        if there.digest in staged.attempts:
            staged.base = there.resource
            return None
        if base is not None and not differs(base, there.resource) and _telling(base, there.resource):
            self.honours.distrust(refused)
            return None
        raise await self._conflict(staged, "made" if base is None else "changed")

    async def _learn(self, staged: Staged, answer: Answer) -> Published:
        """Return what the file is now that it was sent."""
        url, size = staged.url, staged.size
        if answer.headers.get("etag"):
            told = describe(url, url, size, {**answer.headers, "content-type": ""}, ranges=None)
            return Published(told._replace(validator=validator_of(answer.headers)), False)
        try:
            if size <= READ_BACK:
                own = await staged.digest()
                there = await self.dav.fetch(url, frozenset((size,)))
                now, same = (there.resource, there.digest == own) if there is not None else (None, False)
            else:
                now = await self.dav.look(url)
                same = now is not None and now.size in (None, size)
        except HttpError as exc:
            # It was acknowledged: that the version is not known matters only to who writes on.
            log.info("%s; the version of what was written is not known", exc.strerror)
            now, same = None, False
        if now is not None and same:
            return Published(now._replace(size=size), False)
        return Published(Resource(url, url, size, None, Validator(_OVERTAKEN)), True)

    async def _conflict(self, staged: Staged, what: str) -> HttpError:
        """Keep the local version, and return the error."""
        text = f"{staged.url} was {what} by somebody else"
        return await self.keep(staged, HttpError(errno.ESTALE, text, url=staged.url, status=412), CONFLICT)

    async def keep(self, staged: Staged, why: OSError, operation: str) -> HttpError:
        """Keep what could not be published, say so, and return the error with the copy's path in it."""
        text = why.strerror or str(why)
        remedy = ""
        if not staged.kept:
            try:
                path = await asyncio.to_thread(self.staging.keep, staged, text)
                text += f"; the local version is kept in {path}"
                remedy = f"compare it with the file, then remove {path} and {path}.json"
            except OSError as exc:
                text += f"; the local version could not be kept: {exc.strerror}"
        error = HttpError(why.errno or errno.EIO, text, url=staged.url, status=getattr(why, "status", 0))
        log.warning("%s", text)
        self._report(error, operation, staged.url, remedy)
        return error

    async def set_mtime(self, url: str, mtime_ns: int) -> Resource | None:
        """Have the server set a file's time; return what the file is then, None where it does not."""
        if not self.honours.mtime_property:
            return None
        if not await self.dav.set_mtime(url, mtime_ns):
            self.honours.mtime_property = False
            self._note("the server takes no modification times: those that are set here last as long as the mount")
            return None
        return await self.dav.look(url)

    # Names.

    async def mkdir(self, url: str) -> None:
        """Make a directory, at a URL that ends in a slash. EEXIST, ENOENT."""
        await self.dav.mkcol(url)

    async def rmdir(self, url: str) -> None:
        """Remove a directory that is empty: ENOTEMPTY otherwise, for DELETE would take all that is in it.

        NOTE: what somebody else puts into it in the moment between is lost; WebDAV has no way to say otherwise.
        """
        await self.must_be_empty(url)
        if not await self.dav.delete(url):
            raise HttpError(errno.EBUSY, f"DELETE {url}: the server wants a condition", url=url, status=412)

    async def must_be_empty(self, url: str) -> None:
        """Raise ENOTEMPTY when the directory at *url* holds anything; EOPNOTSUPP when the server cannot tell."""
        members = await self.dav.members(url)
        if members:
            raise HttpError(errno.ENOTEMPTY, f"{url} is not empty: {members[0].path} is in it", url=url)

    async def unlink(self, url: str, known: Resource | None) -> None:
        """Remove a file; never a directory that has come in its place, with all that is in it (EISDIR)."""
        etag = known.validator.etag if known is not None else ""
        strong = self.honours.known and self.honours.match and etag and not etag.startswith("W/")
        if strong and await self.dav.delete(url, {"if-match": etag}):
            return
        now = await self.dav.look(url)
        if now is None:
            raise HttpError(errno.ENOENT, f"DELETE {url}: it is gone already", url=url, status=404)
        if is_directory(now):
            raise HttpError(errno.EISDIR, f"{url} is a directory now", url=url)
        await self.dav.delete(url)

    async def rename(self, source: str, target: str, *, replaces: Resource | None, is_dir: bool, no_replace: bool) -> None:
        """Rename a file or a directory (URLs then end in slashes) over what is known to be there, *replaces*, or nothing.

        MOVE removes a directory that is in the way with all that is in it: so it is only allowed to where a file is known to
        be, or a directory that is empty. EEXIST, ENOTEMPTY, EISDIR, ENOTDIR.
        """
        if is_dir:
            await self._rename_directory(source, target, no_replace)
            return
        if replaces is None or no_replace:
            try:
                await self.dav.move(source, target, overwrite=False)
                return
            except HttpError as exc:
                if no_replace or exc.status not in _IN_THE_WAY:
                    raise
                now = await self.dav.look(target)
                if now is not None and is_directory(now):
                    raise HttpError(errno.EISDIR, f"{shown(target)} is a directory", url=shown(target)) from None
                if exc.errno != errno.EEXIST:
                    raise
        await self.dav.move(source, target, overwrite=True)

    async def _rename_directory(self, source: str, target: str, no_replace: bool) -> None:
        # lighttpd puts the one into the other, whatever Overwrite says: what is there is looked at first.
        now = await self.dav.look(target)
        if now is not None:
            if no_replace:
                raise HttpError(errno.EEXIST, f"{shown(target)} is there already", url=shown(target))
            if not is_directory(now):
                raise HttpError(errno.ENOTDIR, f"{shown(target)} is no directory", url=shown(target))
            await self.must_be_empty(target)
        await self.dav.move(source, target, overwrite=now is not None)


def differs(one: Resource, other: Resource) -> bool:
    """Return whether two answers are surely of different versions."""
    if one.validator.changed(other.validator):
        return True
    return one.size is not None and other.size is not None and one.size != other.size


def _telling(one: Resource, other: Resource) -> bool:
    """Return whether two answers have anything in common by which versions are told apart."""
    both = one.validator, other.validator
    return all(validator.etag for validator in both) or all(validator.modified for validator in both)


def _anonymous(url: str) -> str:
    """Return *url* without user and password: it is written to disk, and shown."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _home(directory: str) -> str:
    if directory:
        return os.path.join(os.path.abspath(os.path.expanduser(directory)), "http")
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(base, "pyfusekit", "http")


__all__ = ["Published", "Writer", "differs"]

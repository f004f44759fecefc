"""Publishing: a file's local changes become the next version of its object, whole or not at all."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import os
import random
import re
from collections.abc import Callable, Collection, Sequence

from pyfusekit.core import CONFLICT

from ..remote.errors import StoreError
from ..remote.store import (
    MAX_PART,
    Attributes,
    Body,
    Bytes,
    Condition,
    Object,
    Part,
    Store,
    Upload,
)
from . import conflicts
from .feeding import TXN, PublishOptions, labelled, stopped
from .outcome import Again, Conflict, Outcome
from .plan import CopyPart, Put, Step, plan, put_limit
from .scratch import Scratch
from .staging import Staged
from .streams import FileBody, Stream

log = logging.getLogger("pyfusekit.s3fs")

TRIES = 8
"""How often a publish begins again because the store says to (409), or the upload is gone, or after a conflict."""
SMALL = 1 << 20
"""A file up to this many bytes is read into memory to be sent, so writers need not wait meanwhile."""
_DIGESTED = 16 << 20
"""Bytes whose MD5 is made on the loop, when their request failed: 30 ms at most."""


class Publisher(Outcome):
    """Publishes the Staged files of one mount."""

    def __init__(
        self,
        store: Store,
        options: PublishOptions,
        scratch: Scratch,
        *,
        source: str = "",
        report: Callable[[OSError, str, str], None] | None = None,
        begun: Callable[[Upload], None] | None = None,
        ended: Callable[[Upload], None] | None = None,
    ) -> None:
        """*report*(error, "conflict", key) is told of conflicts and of what on_conflict did about them; *begun* and *ended* (a
        journal) of multipart uploads. *source* is the mount's, for the copies that conflicts leave."""
        super().__init__(store, options, scratch, begun, ended)
        self._source = source
        self._report = report or (lambda error, operation, key: None)

    async def publish(self, staged: Staged, key: str, attributes: Attributes, *, loose: Collection[str] = ()) -> Object:
        """Make *staged* the object *key*, with *attributes*, and return it; at once when staged is not dirty.

        ESTALE: somebody else changed the key (policy on_conflict); the text names the kept copy. Other errors are the
        store's. After any error, and when cancelled, staged holds what it held: readable, and publish may be called again.
        The Object may have another key (on_conflict=rename; staged.diverted) or size (append-merge: the bytes moved, so the
        kernel's cache of the file is to be dropped) than was asked for.
        *loose*: names of metadata (times that nobody set) for whose difference alone a streamed upload, whose metadata went out
        with its beginning, is not copied over itself.
        """
        async with staged.lock:
            target = staged.generation
            tries = 0
            while staged.base is None or staged.published_generation < target or staged.attributes_late:
                to = staged.diverted or key
                try:
                    await self._once(staged, to, attributes, loose)
                except Again as again:
                    tries += 1
                    if tries >= TRIES:
                        raise again.error from None
                    await asyncio.sleep(random.uniform(0.0, 0.05 * (1 << tries)))
                except Conflict as conflict:
                    tries += 1
                    await self._resolve(staged, to, conflict, tries)
            return staged.base

    async def discard(self, staged: Staged) -> None:
        """Forget the changes: abort the multipart upload (its errors are logged only) and close *staged*.

        A publish of it that is under way is waited for: cancel it first.
        """
        async with staged.lock:
            stream, staged.stream = staged.stream, None
            if stream is not None:
                await self._abort(stream)
            if staged.copy and not staged.kept:
                # It was to be kept, and is published, or in the journal.
                conflicts.drop(staged.copy)
            staged.close()

    async def _once(self, staged: Staged, key: str, attributes: Attributes, loose: Collection[str]) -> None:
        try:
            if not staged.data_dirty:
                await self._rewrite(staged, key, attributes)
            elif staged.size <= put_limit(self.part_size) and not staged.gone:
                await self._put(staged, key, attributes)
            else:
                await self._multipart(staged, key, attributes, loose)
        finally:
            staged.thaw()

    # The three ways to make a version.

    async def _put(self, staged: Staged, key: str, attributes: Attributes) -> None:
        """Send the file in one request."""
        while staged.missing(0, staged.size):
            await self._fill(staged, key, 0, staged.size)
        size = staged.size
        if size > put_limit(self.part_size):
            raise Again(OSError(errno.EBUSY, f"{key!r} grows faster than it can be published"))
        self._forget(staged)
        snapshot = staged.freeze(hold=size > SMALL)
        body: Body = FileBody(staged.fd, 0, size)
        if size <= SMALL:
            body = Bytes(b"".join(body.pieces()))
        txn = self.txn(staged)

        async def put(condition: Condition) -> Object:
            async with self._slots:
                return await self.store.put(key, body, labelled(attributes, txn), condition)

        feature = "put_if_absent" if staged.replaces is None else "put_if_match"
        item = await self.final(staged, key, txn, lambda: _md5(body), feature, put)
        staged.published(item, snapshot)
        staged.attributes_late = False

    async def _multipart(self, staged: Staged, key: str, attributes: Attributes, loose: Collection[str]) -> None:
        """Send and copy parts, those that are not in the store yet, and complete."""
        stream = await self._ready(staged, key, attributes, loose)
        snapshot = staged.freeze(hold=True)
        item = await self._upload(staged, stream, self.copyable(staged), staged.size)
        staged.published(item, snapshot)
        staged.attributes_late = _differ(stream.attributes, attributes, loose)

    async def _rewrite(self, staged: Staged, key: str, attributes: Attributes) -> None:
        """Change the attributes only: the store copies the object over itself."""
        source = staged.base
        assert source is not None
        self._forget(staged)
        snapshot = staged.freeze(hold=False)
        if source.size > MAX_PART:
            stream = self.create(staged, key, attributes)
            try:
                assert stream.creating is not None
                await asyncio.shield(stream.creating)
                item = await self._upload(staged, stream, [(0, source.size)], source.size)
            finally:
                if stream in self._streams:
                    self._spawn(self._abort(stream))
        else:
            txn = self.txn(staged)

            async def copy(condition: Condition) -> Object:
                async with self._slots:
                    return await self.store.copy(source, key, labelled(attributes, txn), condition)

            item = await self.final(staged, key, txn, lambda: source.etag, "copy_if", copy)
        staged.published(item, snapshot)
        staged.attributes_late = False

    # Parts.

    async def _upload(self, staged: Staged, stream: Stream, copyable: list[tuple[int, int]], size: int) -> Object:
        """Send and copy the parts of *size* bytes that are not in the store yet, and complete."""
        upload, key = stream.upload, stream.key
        assert upload is not None
        steps = [step for step in plan(size, copyable, self.part_size) if not isinstance(step, Put)]
        if not steps:
            raise Again(OSError(errno.EBUSY, f"{key!r} became too short for a multipart upload"))
        stream.lay(steps)
        stream.error = None
        try:
            await self._send(staged, stream, upload, steps)
        except OSError as exc:
            raise await self.begin_again(staged, key, exc) from None
        parts = [stream.done[step.number][1] for step in steps]

        answered = False

        async def complete(condition: Condition) -> Object:
            nonlocal answered
            made = await self.store.complete(upload, parts, condition)
            answered = True
            return made

        item = await self.final(staged, key, stream.txn, lambda: _etag_of(parts), "complete_if", complete)
        if answered:
            self._completed(staged, stream)
        else:  # The object may have been made by an upload before this one.
            self._spawn(self._abort(stream))
            staged.stream = None
        return item

    async def _ready(self, staged: Staged, key: str, attributes: Attributes, loose: Collection[str]) -> Stream:
        """Return the upload to go on with, or a new one."""
        stream = staged.stream
        if stream is not None and not staged.gone:
            wrong = stream.key != key or (stream.creating is not None and stream.creating.done() and stream.upload is None)
            # An attempt to complete it may still succeed, with what the file was then.
            attempt = staged.attempts.get(stream.txn)
            wrong = wrong or (attempt is not None and attempt.generation != staged.generation)
            # Metadata cannot be changed later but by a copy: better now, when that costs nothing.
            wrong = wrong or (not stream.done and _differ(stream.attributes, attributes, loose))
            if wrong:
                self._forget(staged)
                stream = None
        if stream is None:
            stream = self.begin(staged, key, attributes)
        attempt = staged.attempts.get(stream.txn)
        if stream.key != key or (attempt is not None and attempt.generation != staged.generation):
            raise OSError(
                errno.EIO, f"{key!r} cannot be published: it changed, and parts of it are only in an upload as it was"
            )
        if stream.upload is None and stream.creating is not None:
            await asyncio.shield(stream.creating)
        return stream

    async def _send(self, staged: Staged, stream: Stream, upload: Upload, steps: list[Step]) -> None:
        """Have the store make the parts that it has not yet. What was made stays made when one fails."""
        todo = iter(steps)

        async def work() -> None:
            for step in todo:
                if step.number in stream.under_way:
                    await asyncio.wait([stream.under_way[step.number]])
                if not stream.has(step):
                    await self._part(staged, stream, upload, step)

        tasks = [asyncio.create_task(work()) for _ in range(min(self.parallel, len(steps)))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            await stopped(tasks)
        errors = [exc for task in done if not task.cancelled() and (exc := task.exception()) is not None]
        if errors:
            raise errors[0]

    async def _part(self, staged: Staged, stream: Stream, upload: Upload, step: Step) -> None:
        if isinstance(step, CopyPart):
            assert staged.base is not None
            async with self._slots:
                stream.begin(step)
                try:
                    part = await self.store.copy_part(upload, step.number, staged.base, step.start, step.end)
                except StoreError as exc:
                    if exc.errno != errno.EOPNOTSUPP:
                        raise
                    self.store.features.copy_part = False
                    raise Again(exc) from None
        else:
            if staged.gone.overlaps(step.start, step.end):
                raise OSError(errno.EIO, f"part {step.number} of {stream.key!r} is lost: it was sent, and its upload is gone")
            await self._fill(staged, stream.key, step.start, step.end)
            async with self._slots:
                stream.begin(step)
                part = await self.store.upload_part(upload, step.number, FileBody(staged.fd, step.start, step.end))
        stream.sent(step, part)

    async def _fill(self, staged: Staged, key: str, start: int, end: int) -> None:
        """Fetch the bytes of the base within [start, end) that are not local."""
        base = staged.base
        for low, high in staged.missing(start, end):
            assert base is not None
            position = low
            failed: OSError | None = None

            def sink(piece: bytes) -> None:
                nonlocal position, failed
                try:
                    if failed is None:
                        staged.fill(position, piece)
                except OSError as exc:  # Ours, not the store's: it must not be taken for a broken connection.
                    failed = exc
                position += len(piece)

            try:
                await self.store.get(base, low, high - low, sink)
            except StoreError as exc:
                raise await self.begin_again(staged, key, exc) from None
            if failed is not None:
                raise failed

    # Conflicts.

    async def _resolve(self, staged: Staged, key: str, conflict: Conflict, tries: int) -> None:
        """Do what on_conflict says, so that the publish can begin again; ESTALE when there is no way."""
        policy = self.options.on_conflict if tries < TRIES and staged.data_dirty else "fail"
        if policy == "append-merge" and await self._merge(staged, key, conflict):
            self._say(key, "was changed by somebody else; the local bytes were put behind theirs")
            return
        stream = staged.stream
        if policy == "overwrite" and (staged.complete or _all_sent(stream)):
            if not _all_sent(stream):
                staged.own_all()
            staged.replaces = conflict.item
            self._say(key, "was changed by somebody else, and is overwritten")
            return
        if policy == "rename" and staged.complete:
            self._forget(staged)
            staged.own_all()
            staged.diverted = conflicts.conflict_key(key if not staged.diverted else key.rpartition(".conflict-")[0], [key])
            staged.replaces = None
            self._say(key, f"was changed by somebody else; the local version becomes {staged.diverted!r}")
            return
        raise await self._fail(staged, key, conflict)

    async def _fail(self, staged: Staged, key: str, conflict: Conflict) -> OSError:
        """Keep a copy of the local version, and return the error."""
        staged.conflicted = True
        text = f"{key!r} was {'changed' if conflict.item is not None else 'removed'} by somebody else"
        if staged.data_dirty:
            try:
                text += f"; the local version is kept in {await self.keep_copy(staged, key, text)}"
                if staged.missing(0, staged.size) or staged.gone:
                    text += ", but for bytes that were only in the version that is gone"
            except OSError as exc:
                text += f"; the local version could not be kept: {exc.strerror}"
        request_id = conflict.error.request_id if isinstance(conflict.error, StoreError) else ""
        error = StoreError(errno.ESTALE, text, code="PreconditionFailed", request_id=request_id)
        self._report(error, CONFLICT, key)
        log.warning("%s", text)
        return error

    async def keep_copy(self, staged: Staged, key: str, why: str) -> str:
        """Keep the local version among the conflicts, and return its path when it is on disk; again: as it is now.

        OSError when it cannot be kept.
        """
        kept = conflicts.keep(self.scratch.conflicts, self._source, key, staged, why)
        await asyncio.to_thread(os.fsync, staged.fd)
        staged.kept = kept
        return kept

    def _say(self, key: str, what: str) -> None:
        log.warning("%r %s", key, what)
        self._report(OSError(errno.ESTALE, f"{key!r} {what}"), CONFLICT, key)

    async def _merge(self, staged: Staged, key: str, conflict: Conflict) -> bool:
        """Put what was appended behind the other version, if nothing else was done to the file; return whether it was."""
        base, item = staged.base, conflict.item
        if item is None or conflict.txn.startswith(f"{staged.id}."):
            return False  # It may be ours, so that the lines would be there twice.
        if base is None:
            possible, origin = staged.appended, 0
        else:
            origin = base.size
            possible = staged.base_limit == origin < staged.size and staged.changed.start >= origin
            possible = possible and staged.replaces == base and base.key == key
        if not possible or staged.gone:
            return False
        staged.freeze(hold=True)
        try:
            origin = await self.landed(staged, item, origin)
        finally:
            staged.thaw()
        if origin == staged.size:
            self._forget(staged)
            staged.show(item)
            return True
        staged.freeze(hold=True)
        fd, path = self.scratch.open()
        try:
            await asyncio.to_thread(_copy_tail, staged.fd, fd, origin, staged.size, item.size)
        except OSError as exc:
            log.warning("%r: no merge: %s", key, exc.strerror)
            os.close(fd)
            return False
        finally:
            staged.thaw()
        self._forget(staged)
        staged.rebase(item, fd, origin)
        staged.path = path
        return True


def _copy_tail(source: int, target: int, start: int, end: int, to: int) -> None:
    """Copy the bytes [start, end) of a file to the offset *to* of another."""
    while start < end:
        piece = os.pread(source, min(1 << 20, end - start), start)
        if not piece:
            raise OSError(errno.EIO, "the staging file is shorter than what was written to it")
        done = os.pwrite(target, piece, to)
        start += done
        to += done


def _all_sent(stream: Stream | None) -> bool:
    """Return whether an upload has all its parts, so that it lacks only its completion."""
    return stream is not None and stream.laid and stream.whole


def _md5(body: Body) -> str:
    """Return the ETag of an object made by one PUT, where ETags are MD5s; "" when that would hold the loop up."""
    if body.size > _DIGESTED:
        return ""
    digest = hashlib.md5(usedforsecurity=False)
    for piece in body.pieces():
        digest.update(piece)
    return digest.hexdigest()


def _etag_of(parts: Sequence[Part]) -> str:
    """Return the ETag of an object made of parts, where ETags are MD5s: it is not when the bucket's keys are KMS's."""
    if not all(re.fullmatch("[0-9a-f]{32}", part.etag) for part in parts):
        return ""
    sums = bytes.fromhex("".join(part.etag for part in parts))
    return f"{hashlib.md5(sums, usedforsecurity=False).hexdigest()}-{len(parts)}"


def _differ(one: Attributes, other: Attributes, loose: Collection[str]) -> bool:
    """Return whether attributes differ in more than the metadata *loose*."""
    names = (one.metadata.keys() | other.metadata.keys()) - set(loose) - {TXN}
    return dict(one.headers) != dict(other.headers) or any(one.metadata.get(name) != other.metadata.get(name) for name in names)


__all__ = ["SMALL", "TRIES", "TXN", "Publisher"]

"""Uploads that happen after close: what is acknowledged is in the journal on disk, and goes to the store in its own time.

A file that waits is published from its live Staged, as it was acknowledged: one that was written since waits for its next
close or fsync. What a crash leaves is in the record: few bytes in the log itself, many in a file that thaw() protects. An
upload whose outcome the crash hid is recognised by the transaction id in the object's metadata, which begins with the
record's; the conditions stay those of the record, so that nothing newer is ever overwritten.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import time
from contextlib import suppress

from ..remote.store import Attributes, Object
from ..writing.copying import TXN, delete_exactly, head_or_none
from ..writing.staging import Staged
from .journal import Record
from .pending import Pending, copied, etag_of
from .recovery import abort_uploads, finish_removal, finish_rename
from .uploading import Uploads

log = logging.getLogger(__name__)

_EVERYTHING = 1 << 62


class WriteBack(Uploads):
    """The files that wait: how they come here, and how they go other than by an upload. See Uploads for its arguments."""

    # Beginning and end.

    async def start(self) -> list[Pending]:
        """Open the journal, adopt what dead servers left, and begin with it: renames, uploads, and uploads to be aborted.

        Returns the files that wait: they are to be in the tree (create(key), node.staged = pending.staged) before anybody asks.
        """
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < hard:
            with suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 20), hard))
        self.most = max(64, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        records = await self._journal.open()
        for record in records:
            if record.kind in ("rename", "tree"):
                await finish_rename(self._store, self._journal, record)
            elif record.kind == "file":
                await self._adopt(record)
        uploads = [record for record in records if record.kind == "upload"]
        self._closed = False
        self._pump()
        if uploads:
            self._spawn(abort_uploads(self._publisher, self._journal, uploads))
        return [pending for place, pending in self.files.items() if place == pending.key]

    async def _adopt(self, record: Record) -> None:
        """Let a dead server's file wait here."""
        key, file = str(record.value["key"]), record.value["file"]
        if record.value.get("removing"):
            self._spawn(finish_removal(self._store, self._journal, record))
            return
        known = self.files.get(key)
        if known is not None and known.record is not None and known.record.value["file"]["id"] == file["id"]:
            # A server adopted the older record, wrote a newer one into its own journal, and died before it ended the older.
            await self._journal.done(known.record)
            self._gone(known)
            known.staged.close()
        try:
            staged = self._scratch.adopt(file, await self._journal.data(record, file["local"]))
        except OSError as exc:
            log.error("%r was acknowledged by a server that died, and its bytes cannot be read: %s", key, exc.strerror)
            return
        pending = Pending(key, staged, Attributes(*record.value["attributes"]))
        pending.record, pending.generation = record, staged.generation
        pending.frozen_end = staged.local.end if record.value.get("data") else 0
        # Two servers' changes of one key: both are uploaded, and the conditions say which of them comes too late.
        place = key if key not in self.files else f"{key}\0{record.id}"
        self.files[place] = self._live[id(staged)] = pending
        self._schedule(pending)

    async def close(self) -> None:
        """Stop; what still waits stays in the journal for the next server: call drain() first. May be called twice."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for pending in self.files.values():
            self._answer(pending, OSError(errno.ESHUTDOWN, "the filesystem is unmounted"))
        # It aborts the uploads it has begun, and says so in the journal.
        await self._publisher.close()
        await self._journal.close()

    def waiting(self) -> tuple[int, int]:
        """Return how many files wait, and their bytes."""
        return len(self.files), sum(pending.staged.size for pending in self.files.values())

    async def drain(self, seconds: float | None = None) -> bool:
        """Upload everything now; return whether nothing waits. It is tried again until *seconds* are over (None: for ever)."""
        self._draining = True
        self._hurry(list(self.files.values()))
        try:
            async with asyncio.timeout(seconds):
                while self.files:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        finally:
            self._draining = False
        return True

    # Acknowledging.

    async def keep(self, staged: Staged, key: str, attributes: Attributes) -> Pending:
        """Acknowledge a file: its bytes and its record are on disk when this returns. Call at flush and fsync of a dirty file.

        Again for a file that waits: replaces what waits (one upload for several closes, chmod and utimens within the delay).
        ENOSPC, EIO, ENFILE: nothing was acknowledged; publish it at once instead.
        """
        staged.named = True
        known = self._live.get(id(staged))
        if known is None or known.key != key:
            if key in self.files:
                await self.settle(key)
            await self._room()
            known = self._live.get(id(staged)) or Pending(key, staged, attributes)
            self.files[key] = self._live[id(staged)] = known
        pending = known
        # Shielded: a record that is on disk must not be unknown because its writer was interrupted.
        await asyncio.shield(self._spawn(self._keep(pending, attributes)))
        return pending

    async def _room(self) -> None:
        """Wait while too many files wait."""
        while len(self.files) >= self.most:
            if self._down:
                raise OSError(errno.ENFILE, f"{len(self.files)} files wait for a store that cannot be reached")
            self._changed.clear()
            await self._changed.wait()

    async def _keep(self, pending: Pending, attributes: Attributes) -> None:
        async with pending.keeping:
            if pending.ending is not None:
                await asyncio.wait([pending.ending])
            before = pending.record
            while not await self._record(pending, attributes):
                pass
            if pending.stopped:
                return
            if pending.key not in self.files:  # It was published while the record was made.
                self.files[pending.key] = self._live[id(pending.staged)] = pending
            now = time.monotonic()
            soonest = pending.due - now if before is not None else self._delay
            self._again(pending, 0.0 if pending.blocked else min(soonest, self._delay))
            pending.blocked = False

    async def _record(self, pending: Pending, attributes: Attributes) -> bool:
        """Put what a file is now into the journal; return False when it must be done again."""
        staged = pending.staged
        said: tuple[int, Attributes] = staged.generation, attributes
        if pending.record is not None and said == (pending.generation, pending.attributes):
            return True
        if staged.gone:
            raise OSError(errno.ENOSPC, "the staging area had no room to keep what was sent already")
        etag = ""
        if pending.record is not None and any(not one.etag for one in staged.attempts.values()):
            etag = await asyncio.to_thread(etag_of, pending.record)
            said = staged.generation, attributes
        frozen, ranges = pending.frozen_end, list(staged.local)
        file = staged.record()
        value = {"key": pending.key, "file": file, "attributes": [dict(part) for part in attributes]}
        before = pending.record.value["file"]["attempts"] if pending.record is not None else {}
        for txn, attempt in staged.attempts.items():
            # Its bytes are overwritten here, so that after a crash only this can tell that the store's version is ours.
            if not attempt.etag and txn in before:
                file["attempts"][txn] = before[txn]
            elif not attempt.etag and attempt.generation == pending.generation:
                file["attempts"][txn] = list(attempt._replace(etag=etag))
        pending.frozen_end = max(frozen, staged.local.end)
        try:
            record = await self._journal.keep(staged.fd, ranges, value, pending.record)
        except OSError:
            pending.frozen_end = frozen
            if pending.record is None and pending.running is None:
                self._gone(pending)
            raise
        pending.record = record
        pending.frozen_end = ranges[-1][1] if record.value.get("data") else 0
        if record.value["file"]["id"] != staged.id and staged.base is not None:
            # A version before this one was published meanwhile.
            if staged.diverted or staged.base.key != pending.key:
                return False
            await self._rebase(pending, record, staged.base)
        # From here on it may be uploaded.
        pending.generation, pending.attributes = said
        return True

    def frozen(self, staged: Staged, start: int, end: int) -> bool:
        """Return whether thaw() must be awaited before the bytes [start, end) of a Staged may change. Cheap: ask each time.

        Ask again when it has returned, and Publisher.room too, until both have nothing against it.
        """
        pending = self._live.get(id(staged))
        if pending is None:
            return False
        # Also from when an upload begins until the publisher holds what it sends: only what was acknowledged may go.
        return start < pending.frozen_end or (pending.running is not None and staged.sending is None)

    async def thaw(self, staged: Staged, start: int, end: int) -> None:
        """Give a Staged a file of its own, because bytes [start, end) of what was acknowledged are to be changed.

        ENOSPC when the disk has no room for the copy.
        """
        pending = self._live.get(id(staged))
        if pending is None:
            return
        while pending.running is not None and staged.sending is None:
            await asyncio.wait([pending.running])
        async with pending.lock, pending.keeping:
            if start >= pending.frozen_end or self._live.get(id(staged)) is not pending:
                return
            frozen, pending.frozen_end = pending.frozen_end, _EVERYTHING
            try:
                copy, path = await asyncio.to_thread(copied, self._scratch, staged.fd, list(staged.local))
                staged.replace_file(copy)
                staged.path = path
                frozen = 0
            finally:
                pending.frozen_end = frozen

    # What needs the store to have it, or to have it under another name.

    async def settle(self, key: str, *, below: bool = False) -> None:
        """Upload what waits for *key* (*below*: for all keys that begin with it) now, and wait; raises what goes wrong."""
        found = [pending for place, pending in self.files.items() if place == key or (below and place.startswith(key))]
        waiters = []
        for pending in found:
            waiters.append(asyncio.get_running_loop().create_future())
            pending.waiters.append(waiters[-1])
        self._hurry(found)
        try:
            for outcome in await asyncio.gather(*waiters, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome
        finally:
            for waiter in waiters:
                waiter.cancel()

    async def rekey(self, key: str, new: str, replaced: Object | None) -> Pending:
        """Let a file that was never published wait under another name, where it is to replace *replaced*, or nothing.

        What waits there is dropped (it was replaced); its Staged stays the caller's. An upload under way is waited for first:
        look at the *base* of what is returned: not None means it is published under the OLD key, and is to be renamed as any
        object (rename_file).
        """
        pending = self.files[key]
        pending.stopped = True
        try:
            while pending.running is not None:
                await asyncio.wait([pending.running])
            return await self._rekey(pending, key, new, replaced)
        finally:
            pending.stopped = False
            if self._live.get(id(pending.staged)) is pending:
                self._schedule(pending)

    async def _rekey(self, pending: Pending, key: str, new: str, replaced: Object | None) -> Pending:
        async with pending.keeping:
            if self.files.get(key) is not pending or pending.base is not None or pending.record is None:
                return pending
            if pending.staged.attempts or pending.staged.restored:
                await self._recognise(pending)
                if pending.base is not None:
                    return pending
            target = self.files.get(new)
            if target is not None:
                replaced = await self._stop(target)
            del self.files[key]
            pending.key, pending.blocked = new, False
            self.files[new] = pending
            pending.staged.retarget(replaced)
            file = {**pending.record.value["file"], "replaces": list(replaced) if replaced is not None else None}
            ended = [] if target is None or target.record is None else [self._journal.done(target.record)]
            await asyncio.gather(self._journal.change(pending.record, key=new, file=file), *ended)
            return pending

    async def remove(self, key: str) -> None:
        """Unlink a file that waits: stop its upload, and delete what the store holds of it, unless others changed that.

        Its Staged stays the caller's: an open file may still be read; Publisher.discard it at the end. When this raises (the
        store cannot be reached) the file is there as before.
        """
        pending = self.files.get(key)
        if pending is None:
            return
        try:
            expected = await self._stop(pending)
            record = pending.record
            if expected is not None:
                if record is not None:
                    # A crash leaves the file, or its removal; and no upload that finds the key free and takes it.
                    file = {**record.value["file"], "replaces": list(expected)}
                    await self._journal.change(record, file=file, removing=True)
                await delete_exactly(self._store, expected)
        except BaseException:
            self._resume(pending)
            raise
        if record is not None:
            await self._journal.done(record)

    def _resume(self, pending: Pending) -> None:
        """Let a file wait again that was not removed."""
        record = pending.record
        if record is None:
            return
        if record.value.get("removing"):
            self._journal.change_soon(record, removing=False)
        self.files[pending.key] = self._live[id(pending.staged)] = pending
        pending.stopped = False
        self._again(pending, self._delay)

    async def _stop(self, pending: Pending) -> Object | None:
        """End what is done for a file and forget it, but for its record; return what the store holds of it."""
        pending.stopped = True
        for place in [place for place, one in self.files.items() if one is pending]:
            del self.files[place]
        if pending.running is not None:
            # Once the request that makes the version is sent, only its answer says what became of it.
            if not pending.staged.attempts:
                pending.running.cancel()
            await asyncio.wait([pending.running])
        async with pending.keeping:
            await self._recognise(pending)
            self._gone(pending)
            self._answer(pending, None)
            return pending.staged.replaces

    async def _recognise(self, pending: Pending) -> None:
        """Find out whether an upload whose outcome is not known was done."""
        staged = pending.staged
        if not staged.attempts and not staged.restored:
            return
        head = await head_or_none(self._store, pending.key)
        if head is not None and head.metadata.get(TXN, "").startswith(staged.id):
            # Ours, or made of ours by somebody else: the publisher can tell.
            with suppress(OSError):
                async with pending.lock:
                    await self._publisher.publish(staged, pending.key, pending.attributes)


__all__ = ["Pending", "WriteBack"]

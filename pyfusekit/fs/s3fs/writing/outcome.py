"""The one request that makes a version, and what became of it.

It carries a condition (what the key must hold) and a transaction id in its metadata. When its answer is lost, or says that the
condition does not hold, what the key holds then tells whether the store had done it. Servers that pass over conditions are
asked just before: that leaves a moment in which an update can be lost.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Awaitable, Callable

from ..remote.errors import StoreError
from ..remote.store import ANYWAY, Condition, Head, Object, expecting, same_version
from .feeding import TXN, Feeder
from .staging import Staged
from .streams import Attempt

log = logging.getLogger("pyfusekit.s3fs")


class Again(Exception):
    """The publish must begin again; *error* is what is raised when that was often enough."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror)
        self.error = error


class Conflict(Exception):
    """The key holds somebody else's version, or nothing."""

    def __init__(self, head: Head | None, error: OSError) -> None:
        super().__init__(error.strerror)
        self.item = head.item if head is not None else None
        self.txn = head.metadata.get(TXN, "") if head is not None else ""
        self.error = error


class Outcome(Feeder):
    """Makes versions, and knows what became of them."""

    def txn(self, staged: Staged) -> str:
        """Return the transaction id of what *staged* holds now."""
        return f"{staged.id}.{staged.generation}{'.m' if staged.merged else ''}"

    async def final(
        self,
        staged: Staged,
        key: str,
        txn: str,
        digest: Callable[[], str],
        feature: str,
        call: Callable[[Condition], Awaitable[Object]],
    ) -> Object:
        """Do the request that makes the version, if the key holds what is expected, and find out whether it did.

        *digest* returns the ETag it will most likely have, and is asked when the request fails. *feature* is the field of
        Features that says whether the server enforces the request's condition.
        """
        expected = staged.replaces
        sending = staged.sending
        assert sending is not None
        features = self.store.features
        condition = expecting(expected)
        if not getattr(features, feature) or (expected is not None and not expected.etag):
            condition = ANYWAY
            done = await self._compare(staged, key)
            if done is not None:
                return done
        attempt = Attempt(sending.generation, sending.size, "", staged.merged)
        before = staged.attempts.get(txn)
        staged.attempts[txn] = attempt
        try:
            return await call(condition)
        except asyncio.CancelledError:
            staged.attempts[txn] = attempt._replace(etag=digest())
            raise
        except OSError as exc:
            if before is None and isinstance(exc, StoreError) and exc.errno == errno.ESTALE and exc.tries == 1:
                del staged.attempts[txn]  # Refused at once: it cannot have been done.
            else:
                staged.attempts[txn] = attempt._replace(etag=digest())
            if exc.errno == errno.EOPNOTSUPP and condition != ANYWAY:
                log.warning("the store takes no conditions (%s): %s", feature, exc.strerror)
                setattr(features, feature, False)
                raise Again(exc) from None
            return await self.explain(staged, key, exc)

    async def _compare(self, staged: Staged, key: str) -> Object | None:
        """Raise Conflict unless the key holds what is expected; return the object if it is made already."""
        head = await self._head(key)
        if _holds(head, staged.replaces):
            return None
        error = StoreError(errno.ESTALE, f"{key!r} was changed by somebody else", code="PreconditionFailed")
        done = await self._recognize(staged, head, error)
        if done is None:
            raise Conflict(head, error)
        return done

    async def _head(self, key: str) -> Head | None:
        try:
            return await self.store.head(key)
        except OSError as exc:
            if exc.errno != errno.ENOENT:
                raise
            return None

    async def explain(self, staged: Staged, key: str, exc: OSError) -> Object:
        """Return the object if the store has done what *exc* says failed; raise what the failure means otherwise."""
        code = exc.code if isinstance(exc, StoreError) else ""
        status = exc.status if isinstance(exc, StoreError) else 0
        doubtful = status == 409 or (exc.errno in (errno.ESTALE, errno.ENOENT) and code != "NoSuchBucket")
        try:
            head = await self._head(key)
        except OSError as unknown:
            # Whether it was done, and what the failure means, will be seen by the next publish: the attempt is remembered.
            raise (unknown if doubtful else exc) from None
        done = await self._recognize(staged, head, exc)
        if done is not None:
            return done
        if doubtful and not _holds(head, staged.replaces):
            raise Conflict(head, exc)
        if code in ("NoSuchUpload", "InvalidPart", "InvalidPartOrder") or (status == 409 and staged.stream is not None):
            if staged.gone:
                raise exc
            self._forget(staged)
            raise Again(exc)
        if doubtful and exc.errno != errno.ENOENT:
            raise Again(exc)
        raise exc

    async def begin_again(self, staged: Staged, key: str, exc: OSError) -> Exception:
        """Return what to raise for a request that failed before the one that makes the version."""
        staged.continues(await self.explain(staged, key, exc))
        return Again(exc)

    async def _recognize(self, staged: Staged, head: Head | None, exc: OSError) -> Object | None:
        """Return the object when it is what is being published; raise Again when it is an earlier attempt of ours.

        The id alone is no proof: clients that change an object and keep its metadata carry it on.
        """
        txn = head.metadata.get(TXN, "") if head is not None else ""
        if head is None or not txn or (staged.base is not None and head.item.etag == staged.base.etag):
            return None
        item = head.item
        attempt = staged.attempts.get(txn)
        if attempt is None and staged.restored and txn.startswith(f"{staged.id}."):
            words = txn.split(".")
            attempt = Attempt(int(words[1]) if words[1].isdigit() else -1, -1, "", "m" in words)
        if attempt is None or attempt.size not in (-1, item.size):
            return None
        proved = bool(attempt.etag) and attempt.etag == item.etag
        if attempt.merged and not staged.merged:
            # Before a crash, perhaps: behind another writer's bytes.
            origin = staged.base.size if staged.base is not None else 0
            if attempt.generation not in (-1, staged.generation) or item.size < staged.size:
                return None
            if not await self._same(staged, item, origin, staged.size, item.size - staged.size):
                return None
            staged.show(item)
            raise Again(exc)
        sending = staged.sending
        now, size = (sending.generation, sending.size) if sending is not None else (staged.generation, staged.size)
        if attempt.generation in (-1, now) and item.size == size:
            return item if proved or await self._same_bytes(staged, item) else None
        # An earlier state of the file. Where its bytes have to prove it, all of them must be here to compare.
        whole = item.size > 0 and staged.local.covers(0, item.size)
        if not proved and not (whole and await self._same_bytes(staged, item)):
            return None
        if attempt.merged or item.size < staged.base_limit:
            return None
        staged.continues(item)  # What did not change since then is in both versions.
        raise Again(exc)

    async def _same_bytes(self, staged: Staged, item: Object) -> bool:
        """Return whether the object has the bytes that are local; what was copied inside the store is not looked at."""
        for start, end in staged.local.within(0, item.size):
            if not await self._same(staged, item, start, end):
                return False
        return True

    async def _same(self, staged: Staged, item: Object, start: int, end: int, shift: int = 0) -> bool:
        """Return whether an object has bytes [start, end) of the staging file, *shift* further on; False if it is mute."""
        same = True
        position = start
        if start >= end:
            return True

        def sink(piece: bytes) -> None:
            nonlocal position, same
            same = same and os.pread(staged.fd, len(piece), position) == piece
            position += len(piece)

        try:
            await self.store.get(item, start + shift, end - start, sink)
        except OSError:
            return False
        return same

    async def landed(self, staged: Staged, item: Object, origin: int) -> int:
        """Return up to where the bytes from *origin* on, which were appended, are in another writer's version already.

        They are when a publish whose answer was lost was done, and another writer went on from there.
        """
        doubtful = {attempt.size for attempt in staged.attempts.values()} | ({staged.size} if staged.restored else set())
        for size in sorted(doubtful, reverse=True):
            if origin < size <= min(item.size, staged.size) and await self._same(staged, item, origin, size):
                return size
        return origin


def _holds(head: Head | None, expected: Object | None) -> bool:
    """Return whether a key holds what is expected."""
    if head is None or expected is None:
        return head is None and expected is None
    return same_version(head.item, expected)


__all__ = ["Again", "Conflict", "Outcome"]
